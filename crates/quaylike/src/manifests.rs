//! Manifests, tags and referrers over HTTP.
//!
//! In: authorized calls. Out: what the store has, in the dialect's words. Reads by tag may be stale where a fault says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LINK};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::answers::{self, CONTENT_DIGEST, Refusal, set};
use super::call::Call;
use super::content::Digest;
use super::faults::Action;
use super::manifest::{MAX_MANIFEST, Manifest, OCI_INDEX};
use super::names::is_tag;
use super::settings::{Deletion, Dialect};
use super::store::{Stale, Store, StoreError};

/// What quay answers with when it converts.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Tags on one page of quay's, at most.
const QUAY_PAGE: usize = 100;

/// Tag or digest of a request.
enum Reference {
    Tag(String),
    Digest(Digest),
}

fn reference(call: &Call) -> Result<Reference, Refusal> {
    let text = &call.entry.reference;
    if text.contains(':') {
        return Ok(Reference::Digest(text.parse()?));
    }
    if !is_tag(text) {
        let message = "the tag is invalid: up to 128 letters, digits, underscores, dots and dashes";
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "TAG_INVALID",
            message,
        ));
    }
    Ok(Reference::Tag(text.clone()))
}

/// GET and HEAD of a manifest.
pub(super) fn read(call: &Call) -> Result<Response, Refusal> {
    let repository = &call.entry.repository;
    let now = Instant::now();
    let manifest = match reference(call)? {
        Reference::Digest(digest) => {
            let (cache, life) = (
                &call.registry.stale_manifests,
                call.settings.stale_manifests,
            );
            cache.get_or_read(repository, digest, life, now, || {
                call.registry.store().manifest(repository, digest, now)
            })?
        }
        Reference::Tag(tag) => {
            let manifest = by_tag(call, &tag, now)?;
            if !is_accepted(call, manifest.media_type) {
                return converted(call, &tag, &manifest);
            }
            manifest
        }
    };
    Ok(found(
        call,
        manifest.media_type,
        manifest.digest,
        manifest.bytes.clone(),
    ))
}

fn by_tag(call: &Call, tag: &str, now: Instant) -> Result<Arc<Manifest>, StoreError> {
    let repository = &call.entry.repository;
    let lag = call.actions.iter().find_map(|action| match action {
        Action::StaleRead { ms } => Some(Duration::from_millis(*ms)),
        _ => None,
    });
    let mut store = call.registry.store();
    match lag.map_or(Stale::Current, |lag| store.stale(repository, tag, lag, now)) {
        Stale::Was(manifest) => Ok(manifest),
        Stale::Absent => Err(StoreError::ManifestUnknown(tag.to_owned())),
        Stale::Current => store.tagged(repository, tag, now),
    }
}

fn found(call: &Call, media_type: &'static str, digest: Digest, bytes: Bytes) -> Response {
    let mut response = answers::bytes_response(StatusCode::OK, media_type, bytes);
    set(response.headers_mut(), CONTENT_DIGEST, &digest.to_string());
    if call.is_head() {
        // The length stays, the body goes.
        *response.body_mut() = axum::body::Body::empty();
    }
    response
}

/// Whether the client names the stored type. A wildcard is no name to quay.
fn is_accepted(call: &Call, media_type: &str) -> bool {
    let values = call.headers.get_all(ACCEPT).iter();
    let named = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    named
        .filter_map(|part| part.split(';').next())
        .any(|part| part.trim().eq_ignore_ascii_case(media_type))
}

/// What a client gets that does not accept what is stored.
fn converted(call: &Call, tag: &str, manifest: &Manifest) -> Result<Response, Refusal> {
    if call.settings.dialect != Dialect::Quay {
        let message = format!(
            "the manifest is stored as {}: accept that",
            manifest.media_type
        );
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "MANIFEST_UNKNOWN",
            message,
        ));
    }
    let repository = &call.entry.repository;
    let mut image = Arc::new(manifest.clone());
    // Quay takes the list's image for linux on amd64, which is the first here.
    for _ in 0..8 {
        let Some(child) = image.children.first() else {
            break;
        };
        image = call
            .registry
            .store()
            .manifest(repository, *child, Instant::now())?;
    }
    if image.is_index() {
        return Err(StoreError::ManifestUnknown(tag.to_owned()).into());
    }
    let layers: Vec<Value> = image
        .blobs
        .iter()
        .skip(1)
        .rev()
        .map(|blob| json!({"blobSum": blob}))
        .collect();
    let history = vec![json!({"v1Compatibility": "{}"}); layers.len()];
    let document = json!({
        "schemaVersion": 1, "name": repository, "tag": tag, "architecture": "amd64",
        "fsLayers": layers, "history": history, "signatures": [],
    });
    let bytes = Bytes::from(document.to_string());
    Ok(found(call, SCHEMA_ONE, Digest::of(&bytes), bytes))
}

/// PUT of a manifest.
pub(super) async fn write(call: &mut Call) -> Result<Response, Refusal> {
    let reference = reference(call)?;
    let announced = call
        .header(&CONTENT_LENGTH)
        .and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_MANIFEST) {
        let message = format!("a manifest may have {MAX_MANIFEST} bytes");
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "SIZE_INVALID",
            message,
        ));
    }
    let bytes = call.bytes(MAX_MANIFEST).await?;
    let manifest = Arc::new(Manifest::parse(call.header(&CONTENT_TYPE), bytes)?);
    let (digest, subject) = (manifest.digest, manifest.subject);
    let tag = match &reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(named) if *named == digest => None,
        Reference::Digest(named) => {
            let message = "the manifest has another digest";
            let detail = json!({"asked": named, "actual": digest});
            return Err(Refusal::detailed(
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                message,
                detail,
            ));
        }
    };
    let repository = &call.entry.repository;
    {
        let mut store = call.registry.store();
        refuse_immutable(call, tag, &mut store)?;
        let stored = store.put_manifest(repository, tag, &manifest, Instant::now());
        stored.map_err(|error| rejected(error, call.settings.dialect))?;
    }
    let mut response = answers::created(&format!("/v2/{repository}/manifests/{digest}"), digest);
    let noted = call.settings.referrers && call.settings.oci_subject;
    if let Some(subject) = subject.filter(|_| noted) {
        let name = HeaderName::from_static("oci-subject");
        set(response.headers_mut(), name, &subject.to_string());
    }
    Ok(response)
}

fn refuse_immutable(call: &Call, tag: Option<&str>, store: &mut Store) -> Result<(), Refusal> {
    let (repository, immutable) = (
        &call.entry.repository,
        call.actions.contains(&Action::ImmutableTag),
    );
    if let Some(tag) = tag
        && store.tagged(repository, tag, Instant::now()).is_ok()
        && (immutable || store.is_immutable(repository, tag))
    {
        let repository = &call.entry.repository;
        return Err(match call.settings.dialect {
            Dialect::Harbor => {
                let message = format!(
                    "Failed to process request due to '{repository}:{tag}' configured as immutable."
                );
                Refusal::new(StatusCode::PRECONDITION_FAILED, "PRECONDITION", message)
            }
            Dialect::Ecr => {
                let message = format!(
                    "The image tag '{tag}' already exists in the '{repository}' repository and cannot be overwritten \
                    because the repository is immutable."
                );
                Refusal::new(StatusCode::BAD_REQUEST, "TAG_INVALID", message)
            }
            Dialect::Quay | Dialect::Distribution => {
                let message = format!("tag `{tag}` is immutable");
                Refusal::new(StatusCode::CONFLICT, "TAG_IMMUTABLE", message)
            }
        });
    }
    Ok(())
}

/// How the dialects say that content is missing.
fn rejected(error: StoreError, dialect: Dialect) -> Refusal {
    let StoreError::ContentUnknown { blobs, children } = error else {
        return error.into();
    };
    let status = StatusCode::BAD_REQUEST;
    match dialect {
        Dialect::Quay => {
            let message = match (blobs.first(), children.first()) {
                (Some(blob), _) => format!("Unknown blob `{blob}`"),
                (None, Some(child)) => format!("Unknown child manifest `{child}`"),
                (None, None) => String::new(),
            };
            Refusal::detailed(
                status,
                "MANIFEST_INVALID",
                "manifest invalid",
                json!({"message": message}),
            )
        }
        Dialect::Distribution | Dialect::Harbor | Dialect::Ecr => {
            let mut missing = blobs
                .iter()
                .chain(&children)
                .map(|digest| json!({"digest": digest}));
            let (code, message) = ("MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
            let first = missing.next().unwrap_or_default();
            missing.fold(
                Refusal::detailed(status, code, message, first),
                |refusal, detail| refusal.and(code, message, detail),
            )
        }
    }
}

/// DELETE: by tag what the settings say, by digest all tags of it.
pub(super) fn delete(call: &Call) -> Result<Response, Refusal> {
    let repository = &call.entry.repository;
    let now = Instant::now();
    let mut store = call.registry.store();
    match reference(call)? {
        Reference::Tag(tag) => {
            refuse_immutable(call, Some(&tag), &mut store)?;
            match call.settings.deletion {
                Deletion::OfTheTag => store.delete_tag(repository, &tag, now)?,
                Deletion::OfTheImage => {
                    let digest = store.tagged(repository, &tag, now)?.digest;
                    store.delete_manifest(repository, digest, now)?;
                }
                Deletion::Refused => {
                    let message = "the operation is unsupported";
                    return Err(Refusal::new(
                        StatusCode::METHOD_NOT_ALLOWED,
                        "UNSUPPORTED",
                        message,
                    ));
                }
            }
        }
        Reference::Digest(digest) => {
            store.delete_manifest(repository, digest, now)?;
        }
    }
    Ok(answers::empty(StatusCode::ACCEPTED))
}

/// `tags/list`, in pages.
pub(super) fn list_tags(call: &Call) -> Result<Response, Refusal> {
    let repository = &call.entry.repository;
    let asked = call.query("n").and_then(|n| n.parse::<usize>().ok());
    let page = match call.settings.dialect {
        Dialect::Quay => asked.unwrap_or(QUAY_PAGE).min(QUAY_PAGE),
        Dialect::Distribution | Dialect::Harbor | Dialect::Ecr => asked.unwrap_or(usize::MAX),
    };
    let last = call.query("last").unwrap_or_default();
    let mut store = call.registry.store();
    let mut tags = store
        .tags(repository, Instant::now())?
        .range(last.clone()..);
    let mut names: Vec<String> = Vec::new();
    let mut more = false;
    for (tag, _) in tags.by_ref().filter(|(tag, _)| **tag != last) {
        if names.len() >= page {
            more = true;
            break;
        }
        names.push(tag.clone());
    }
    drop(store);
    let mut response =
        answers::json_response(StatusCode::OK, &json!({"name": repository, "tags": names}));
    if more && let Some(last) = names.last() {
        let link = format!("</v2/{repository}/tags/list?n={page}&last={last}>; rel=\"next\"");
        set(response.headers_mut(), LINK, &link);
    }
    Ok(response)
}

/// The referrers API.
pub(super) fn list_referrers(call: &Call) -> Result<Response, Refusal> {
    if !call.settings.referrers {
        return Ok(answers::page(StatusCode::NOT_FOUND));
    }
    let Reference::Digest(digest) = reference(call)? else {
        let message = "referrers are listed by digest";
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            message,
        ));
    };
    let wanted = call.query("artifactType");
    let mut store = call.registry.store();
    if call.settings.dialect == Dialect::Quay {
        let held = store.manifest(&call.entry.repository, digest, Instant::now());
        held.map_err(|_| {
            let message = "manifest invalid";
            Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
        })?;
    }
    let referrers = store.referrers(&call.entry.repository, digest, Instant::now());
    drop(store);
    let last = call.query("last").and_then(|last| last.parse().ok());
    let mut referrers = referrers
        .iter()
        .filter(|referrer| wanted.is_none() || wanted == referrer.artifact_type)
        .filter(|referrer| last.is_none_or(|last| referrer.digest > last));
    let page: Vec<_> = referrers
        .by_ref()
        .take(call.settings.referrers_page)
        .collect();
    let more = referrers.next().is_some();
    let manifests: Vec<Value> = page.iter().map(|referrer| descriptor(referrer)).collect();
    let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let mut response =
        answers::bytes_response(StatusCode::OK, OCI_INDEX, document.to_string().into());
    if more && let Some(last) = page.last() {
        let path = format!("/v2/{}/referrers/{digest}", call.entry.repository);
        let filter = wanted
            .as_deref()
            .map_or_else(String::new, |wanted| format!("&artifactType={wanted}"));
        let link = format!("<{path}?last={}{filter}>; rel=\"next\"", last.digest);
        set(response.headers_mut(), LINK, &link);
    }
    if wanted.is_some() {
        let name = HeaderName::from_static("oci-filters-applied");
        set(response.headers_mut(), name, "artifactType");
    }
    Ok(response)
}

fn descriptor(manifest: &Manifest) -> Value {
    let mut descriptor = json!({
        "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len(),
    });
    if let Some(artifact_type) = &manifest.artifact_type {
        descriptor["artifactType"] = json!(artifact_type);
    }
    if !manifest.annotations.is_empty() {
        descriptor["annotations"] = json!(manifest.annotations);
    }
    descriptor
}
