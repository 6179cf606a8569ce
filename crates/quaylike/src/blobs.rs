//! Blobs and upload sessions over HTTP.
//!
//! In: authorized calls, and reads of the second listener. Out: blobs as streams, in ranges where asked, and new blobs, hashed on
//! the way in. Memory per request is one piece, but for what the store keeps.

use std::ops::Range;
use std::time::Instant;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    RANGE,
};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::json;

use super::answers::{self, CONTENT_DIGEST, Refusal, set};
use super::call::Call;
use super::content::{Blob, Digest};
use super::faults::Action;
use super::names::RequestKind;
use super::store::StoreError;
use super::uploads::Upload;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// GET and HEAD of a blob.
pub(super) fn read(call: &Call) -> Result<Response, Refusal> {
    let repository = &call.entry.repository;
    let digest = call.entry.reference.parse::<Digest>()?;
    let now = Instant::now();
    let (cache, life) = (&call.registry.stale_blobs, call.settings.stale_blobs);
    let blob = cache.get_or_read(repository, digest, life, now, || {
        call.registry.store().blob(repository, digest, now)
    })?;
    if !call.is_head()
        && let Some(base) = elsewhere(call)
    {
        let mut response = answers::empty(StatusCode::TEMPORARY_REDIRECT);
        let location = format!("{base}/storage/{repository}/{digest}?signature=granted");
        set(response.headers_mut(), LOCATION, &location);
        return Ok(response);
    }
    if !call.is_head() && !blob.is_readable() {
        let message = "the content was discarded: turn discard_blobs off to read blobs back";
        return Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            message,
        ));
    }
    Ok(content(call, digest, &blob))
}

/// Where blobs are read instead, if not here.
fn elsewhere(call: &Call) -> Option<&str> {
    if call.entry.kind == RequestKind::Storage {
        return None;
    }
    let redirected = call.actions.iter().find_map(|action| match action {
        Action::Redirect { base } => Some(base.as_deref().unwrap_or(&call.registry.storage)),
        _ => None,
    });
    redirected.or(call
        .settings
        .redirect_blobs
        .then_some(call.registry.storage.as_str()))
}

fn content(call: &Call, digest: Digest, blob: &Blob) -> Response {
    let length = blob.length();
    let (status, range) = match call.header(&RANGE).and_then(|text| range(text, length)) {
        None => (StatusCode::OK, 0..length),
        Some(range) if range.is_empty() => {
            let mut response = answers::empty(StatusCode::RANGE_NOT_SATISFIABLE);
            set(
                response.headers_mut(),
                CONTENT_RANGE,
                &format!("bytes */{length}"),
            );
            return response;
        }
        Some(range) => (StatusCode::PARTIAL_CONTENT, range),
    };
    let mut response = answers::empty(status);
    let headers = response.headers_mut();
    set(headers, CONTENT_DIGEST, &digest.to_string());
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{length}", range.start, range.end - 1);
        set(headers, CONTENT_RANGE, &text);
    }
    if !call.is_head() {
        let pieces = blob.read(range).map(Ok::<_, std::convert::Infallible>);
        *response.body_mut() = Body::from_stream(futures::stream::iter(pieces));
    }
    response
}

/// The range a header asks for; empty where it cannot be satisfied; none where it is no single byte range, and so ignored.
fn range(text: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        return Some(length.saturating_sub(count)..length);
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() {
        length
    } else {
        last.parse::<u64>().ok()?.saturating_add(1).min(length)
    };
    Some(first.min(end)..end)
}

/// Everything below `blobs/uploads`.
pub(super) async fn upload(call: &mut Call) -> Result<Response, Refusal> {
    let session = call
        .entry
        .path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let session = if session == "uploads" {
        String::new()
    } else {
        session
    };
    match (call.method.clone(), session.as_str()) {
        (Method::POST, "") => open(call).await,
        (_, "") => Err(Refusal::not_allowed()),
        (Method::GET, id) => {
            find(call, id)?;
            Ok(progress(call, id, StatusCode::NO_CONTENT))
        }
        (Method::PATCH, id) => {
            receive(call, id).await?;
            Ok(progress(call, id, StatusCode::ACCEPTED))
        }
        (Method::PUT, id) => close(call, id).await,
        (Method::DELETE, id) => {
            find(call, id)?;
            call.registry.uploads.close(id);
            Ok(answers::empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::not_allowed()),
    }
}

/// POST: a mount, a whole blob at once, or a session.
async fn open(call: &mut Call) -> Result<Response, Refusal> {
    let repository = call.entry.repository.clone();
    if let Some(mounted) = mount(call)? {
        return Ok(mounted);
    }
    let discard = call.settings.discard_blobs;
    if let Some(digest) = call.query("digest") {
        let expected = digest.parse::<Digest>()?;
        let mut upload = Upload::new(&repository, discard, Instant::now());
        let mut stream = call.stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_| short_body())?;
            call.count(&piece);
            upload.append(upload.length(), &piece);
        }
        return store(call, &mut upload, expected);
    }
    call.registry.store().create(&repository);
    let settings = call.settings;
    let id = call
        .registry
        .uploads
        .open(&repository, discard, Instant::now(), settings.hold);
    Ok(progress(call, &id, StatusCode::ACCEPTED))
}

/// A mount that succeeds. None: a session is opened instead, as the spec has it.
fn mount(call: &Call) -> Result<Option<Response>, Refusal> {
    let (Some(digest), Some(from)) = (call.query("mount"), call.query("from")) else {
        return Ok(None);
    };
    let digest = digest.parse::<Digest>()?;
    if call.actions.contains(&Action::RefuseMount) || !call.may_pull(&from) {
        return Ok(None);
    }
    let repository = &call.entry.repository;
    let mounted = call
        .registry
        .store()
        .mount_blob(&from, repository, digest, Instant::now());
    match mounted {
        Ok(()) => Ok(Some(answers::created(
            &format!("/v2/{repository}/blobs/{digest}"),
            digest,
        ))),
        Err(StoreError::RepositoryUnknown(_) | StoreError::BlobUnknown(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// PATCH, and the body of a PUT.
async fn receive(call: &mut Call, id: &str) -> Result<(), Refusal> {
    let upload = find(call, id)?;
    let mut offset = upload.lock().length();
    let mut announced = None;
    if let Some(text) = call.header(&CONTENT_RANGE) {
        let (start, end) = span(text).ok_or_else(|| {
            let message = "Content-Range must be <first>-<last>";
            Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
        })?;
        if start != offset {
            return Err(wrong_range(call, id, offset));
        }
        announced = Some((end - start).saturating_add(1));
    }
    let begun = offset;
    let mut stream = call.stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| short_body())?;
        call.count(&piece);
        if !upload.lock().append(offset, &piece) {
            return Err(wrong_range(call, id, offset));
        }
        offset += piece.len() as u64;
    }
    if announced.is_some_and(|announced| announced != offset - begun) {
        let message = "Content-Range and the body differ in length";
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "SIZE_INVALID",
            message,
        ));
    }
    Ok(())
}

/// PUT: the last bytes, if any, and the digest.
async fn close(call: &mut Call, id: &str) -> Result<Response, Refusal> {
    let upload = find(call, id)?;
    let expected = call.query("digest").ok_or_else(|| {
        let message = "the query must have a digest";
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    })?;
    let expected = expected.parse::<Digest>()?;
    receive(call, id).await?;
    call.registry.uploads.close(id);
    let mut upload = upload.lock();
    store(call, &mut upload, expected)
}

fn store(call: &Call, upload: &mut Upload, expected: Digest) -> Result<Response, Refusal> {
    let (digest, blob) = upload.finish();
    if digest != expected {
        let message = "the content has another digest";
        let detail = json!({"asked": expected, "actual": digest});
        return Err(Refusal::detailed(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            message,
            detail,
        ));
    }
    let repository = &call.entry.repository;
    call.registry
        .store()
        .put_blob(repository, digest, blob, Instant::now());
    Ok(answers::created(
        &format!("/v2/{repository}/blobs/{digest}"),
        digest,
    ))
}

fn find(call: &Call, id: &str) -> Result<std::sync::Arc<parking_lot::Mutex<Upload>>, Refusal> {
    let state = call.query("state");
    let found = call
        .registry
        .uploads
        .find(id, &call.entry.repository, state.as_deref());
    found.ok_or_else(|| {
        let message = "upload session unknown: follow the last Location with its query";
        Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
    })
}

/// Where a session goes on and how far it is.
fn progress(call: &Call, id: &str, status: StatusCode) -> Response {
    let uploads = &call.registry.uploads;
    let location = uploads.location(id, &call.entry.repository);
    let state = location.split_once("?state=").map(|(_, state)| state);
    let length = uploads
        .find(id, &call.entry.repository, state)
        .map_or(0, |upload| upload.lock().length());
    let mut response = answers::empty(status);
    let headers = response.headers_mut();
    set(headers, LOCATION, &location);
    set(headers, UPLOAD_ID, id);
    set(headers, RANGE, &format!("0-{}", length.saturating_sub(1)));
    response
}

fn span(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim_start_matches("bytes ").split_once('-')?;
    let last = last.split('/').next().unwrap_or(last);
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

fn wrong_range(call: &Call, id: &str, length: u64) -> Refusal {
    let location = call.registry.uploads.location(id, &call.entry.repository);
    let message = "the range does not follow what is there: ask for the offset";
    Refusal::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UPLOAD_INVALID",
        message,
    )
    .header(LOCATION, &location)
    .header(RANGE, &format!("0-{}", length.saturating_sub(1)))
}

fn short_body() -> Refusal {
    Refusal::new(
        StatusCode::BAD_REQUEST,
        "SIZE_INVALID",
        "the body ended early",
    )
}
