//! Blobs: mounted where the registry can, streamed where it cannot.
//!
//! In comes one blob of an image that is being copied; when it returns, the target repository has it. Guaranteed: nothing is
//! buffered but what is on its way; content is hashed on the way and an upload of anything else cannot complete; a download
//! that breaks goes on where it broke; an upload session is used or cancelled.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};

use super::activity::Activity;
use super::budget::{Lane, stream_places};
use super::endpoint::Endpoint;
use super::error::Error;
use super::keyring::Credential;
use super::manifest::Blob;
use super::token::Access;
use super::transport::{Ask, Content, Failure, Refusal, Reply};
use super::{Kind, Present, Registry};
use crate::image::{Digest, Repository};
use crate::machine::Reason;

/// How often a download goes on within one upload.
const RESUMES_MAX: u32 = 5;
/// How often a blob is started anew after an upload of which nothing certain is known.
const RESTARTS_MAX: u32 = 3;
/// How often a source may be unwell for one blob while it serves others.
const UNWELL_MAX: u32 = 20;
/// How long a stream's places are held while its hosts are unwell: others need them.
const PATIENCE: Duration = Duration::from_secs(10);
/// An upload that takes nothing for so long is given up.
const STALL: Duration = Duration::from_mins(5);

/// One image on its way from one repository to another.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) from: &'a Repository,
    pub(super) to: &'a Repository,
    pub(super) from_at: Endpoint,
    pub(super) to_at: Endpoint,
    pub(super) pull: &'a Credential,
    pub(super) push: &'a Credential,
    pub(super) activity: &'a Activity,
    /// Whether mounting is still worth a try.
    pub(super) mounts: AtomicBool,
}

/// What became of the wish to mount.
enum Mount {
    Mounted,
    /// An upload session was opened instead.
    Session(Url),
    /// Not here, not with these rights.
    Declined,
}

impl Job<'_> {
    pub(super) fn source(&self) -> Access<'_> {
        let (endpoint, credential, repository) = (&self.from_at, self.pull, self.from);
        Access { endpoint, credential, repository, push: false, also: None }
    }

    pub(super) fn target(&self) -> Access<'_> {
        let (endpoint, credential, repository) = (&self.to_at, self.push, self.to);
        Access { endpoint, credential, repository, push: true, also: None }
    }

    pub(super) fn present(&self, digest: Digest, kind: Kind) -> Present {
        Present { credential: self.push.key(), repository: self.to.clone(), digest, kind }
    }
}

impl Registry {
    /// Brings one blob to the target, once however many copies need it.
    pub(super) async fn bring(&self, job: &Job<'_>, blob: Blob) -> Result<(), Error> {
        let key = job.present(blob.digest, Kind::Blob);
        if self.0.present.contains_key(&key) {
            return Ok(());
        }
        let _flight = self.0.flights.enter(&key).await;
        if self.0.present.contains_key(&key) {
            return Ok(());
        }
        let mut session = None;
        if job.mounts.load(Ordering::Relaxed) {
            match self.mount(job, blob).await? {
                Mount::Mounted => {
                    self.0.present.insert(key, ());
                    return Ok(());
                }
                Mount::Session(url) => session = Some(url),
                Mount::Declined => job.mounts.store(false, Ordering::Relaxed),
            }
        }
        if session.is_some() || !self.has_blob(job, blob).await? {
            self.transfer(job, blob, session).await?;
        }
        self.0.present.insert(key, ());
        Ok(())
    }

    /// Whether the target has the blob, asked by HEAD.
    async fn has_blob(&self, job: &Job<'_>, blob: Blob) -> Result<bool, Error> {
        let what = named(job.to, blob.digest);
        let access = job.target();
        let url = blob_url(&access, blob.digest);
        let mut ask = self.blob_ask(Method::HEAD, url, &what, Some(&access), job.activity);
        let reply = self.transport().send(&mut ask).await.map_err(Failure::into_error)?;
        match reply.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(reply.refusal(&what, Refusal::OfRead).await),
        }
    }

    async fn mount(&self, job: &Job<'_>, blob: Blob) -> Result<Mount, Error> {
        let what = named(job.to, blob.digest);
        let access = Access { also: Some(job.from), ..job.target() };
        let grant = self.transport().authorise(&access, None, None, job.activity).await;
        if !grant.map_err(Failure::into_error)?.may_pull(job.from) {
            return Ok(Mount::Declined);
        }
        for _ in 0..=RESTARTS_MAX {
            let mut url = uploads_url(&access);
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", job.from.path());
            let mut ask = self.blob_ask(Method::POST, url, &what, Some(&access), job.activity);
            let reply = match self.transport().send(&mut ask).await {
                Ok(reply) => reply,
                Err(Failure::Unsettled(_)) if self.has_blob(job, blob).await? => return Ok(Mount::Mounted),
                Err(Failure::Unsettled(_)) => continue,
                // Distribution refuses the whole request where the right to pull is missing.
                Err(Failure::Refused(error)) if matches!(error.status(), Some(401 | 403)) => {
                    return Ok(Mount::Declined);
                }
                Err(failure) => return Err(failure.into_error()),
            };
            return Ok(match reply.status() {
                StatusCode::CREATED => Mount::Mounted,
                StatusCode::ACCEPTED => Mount::Session(self.location(&reply, &access, &what)?),
                _ => Mount::Declined,
            });
        }
        Ok(Mount::Declined)
    }

    /// Streams one blob from source to target, however often that takes.
    async fn transfer(&self, job: &Job<'_>, blob: Blob, mut session: Option<Url>) -> Result<(), Error> {
        let source = self.transport().host(&job.from_at.base);
        let target = self.transport().host(&job.to_at.base);
        let (mut restarts, mut unwell, served) = (0, 0, source.served());
        loop {
            source.well(false, job.activity).await;
            target.well(true, job.activity).await;
            let places = stream_places(&source, &target).await;
            let outcome = self.stream(job, blob, session.take()).await;
            drop(places);
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(Failure::Unsettled(error)) if restarts < RESTARTS_MAX => {
                    restarts += 1;
                    if self.has_blob(job, blob).await? {
                        return Ok(());
                    }
                    tracing::debug!(%error, "blob is started anew");
                    continue;
                }
                Err(Failure::Restart(error)) => error,
                Err(Failure::Unsettled(error)) => {
                    let message = format!("{} (started anew {RESTARTS_MAX} times)", error.message);
                    return Err(Error::attempt(Reason::RegistryError, message));
                }
                Err(failure) => return Err(failure.into_error()),
            };
            if error.status().is_some_and(|status| status >= 500) {
                unwell += 1;
            }
            if unwell >= UNWELL_MAX && source.served() > served {
                let message = format!("{} (twenty times, while the host serves others)", error.message);
                return Err(Error::attempt(Reason::RegistryError, message));
            }
        }
    }

    /// One upload, fed by a download.
    async fn stream(&self, job: &Job<'_>, blob: Blob, session: Option<Url>) -> Result<(), Failure> {
        let what = named(job.to, blob.digest);
        let access = job.target();
        let opened = self.open(job.from, &job.from_at, job.pull, blob, 0, job.activity).await;
        let response = match (opened, &session) {
            (Ok(response), _) => response,
            (Err(failure), session) => {
                self.cancel(session.as_ref(), &access, &what, job.activity).await;
                return Err(failure);
            }
        };
        let location = match session {
            Some(location) => location,
            None => self.begin(&access, &what, true, job.activity).await?,
        };
        let outcome = self.upload(job, blob, &what, &access, location.clone(), response).await;
        if outcome.is_err() {
            self.cancel(Some(&location), &access, &what, job.activity).await;
        }
        outcome
    }

    /// The closing PUT of an upload, with the whole content.
    async fn upload(
        &self,
        job: &Job<'_>,
        blob: Blob,
        what: &str,
        access: &Access<'_>,
        mut location: Url,
        response: Response,
    ) -> Result<(), Failure> {
        let own = access.endpoint.is_at(&location);
        location.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut ask = self.blob_ask(Method::PUT, location, what, own.then_some(access), job.activity);
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        ask.placed = own;
        ask.patience = Some(PATIENCE);
        ask.timeout = None;
        let meter = Arc::new(Meter::default());
        if blob.size == 0 {
            if blob.digest != Digest::of(b"") {
                return Err(Failure::Refused(mismatch(job.from, blob.digest)));
            }
        } else {
            ask.headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
            let download = Download {
                registry: self.clone(),
                from: job.from.clone(),
                at: job.from_at.clone(),
                pull: job.pull.clone(),
                blob,
                response: Some(response),
                skip: 0,
                offset: 0,
                hash: Sha256::new(),
                resumes: 0,
                activity: job.activity.clone(),
                meter: Arc::clone(&meter),
            };
            ask.content = Content::Once(Body::wrap_stream(stream::try_unfold(download, Download::next)));
        }
        let result = tokio::select! {
            result = self.transport().send(&mut ask) => result,
            () = meter.stands_still() => {
                let message = format!("{what}: the upload stands still");
                Err(Failure::Unsettled(Error::attempt(Reason::RegistryError, message)))
            }
        };
        let outcome = match result {
            Ok(reply) => landed(what, blob, reply).await,
            Err(failure) => Err(failure),
        };
        if outcome.is_err() {
            job.activity.take_back(meter.bytes.load(Ordering::Relaxed));
        }
        match (outcome, meter.fault()) {
            (Ok(()), _) => Ok(()),
            // What broke the stream is why the upload ended.
            (Err(_), Some(fault)) => Err(fault),
            (Err(failure), None) => Err(failure),
        }
    }

    /// GET of a blob's content from `offset`.
    async fn open(
        &self,
        from: &Repository,
        at: &Endpoint,
        pull: &Credential,
        blob: Blob,
        offset: u64,
        activity: &Activity,
    ) -> Result<Response, Failure> {
        let what = named(from, blob.digest);
        let access = Access { endpoint: at, credential: pull, repository: from, push: false, also: None };
        let url = blob_url(&access, blob.digest);
        let mut ask = self.blob_ask(Method::GET, url, &what, Some(&access), activity);
        ask.placed = true;
        ask.patience = Some(PATIENCE);
        ask.timeout = None;
        if offset > 0 {
            ask.headers.insert(RANGE, range(offset));
        }
        let reply = self.transport().send(&mut ask).await?;
        match reply.status() {
            StatusCode::OK => {
                let length = reply.response.content_length();
                if length.is_some_and(|length| length != blob.size) {
                    return Err(Failure::Refused(mismatch(from, blob.digest)));
                }
                Ok(reply.response)
            }
            StatusCode::PARTIAL_CONTENT if offset > 0 => Ok(reply.response),
            StatusCode::NOT_FOUND if !reply.elsewhere => {
                let message = format!("{what}: the source image misses this blob; rebuild it");
                Err(Failure::Refused(Error::attempt(Reason::SourceIncomplete, message)))
            }
            _ => Err(Failure::Refused(reply.refusal(&what, Refusal::OfRead).await)),
        }
    }

    /// Opens an upload session. `placed`: whether a place on that host is held.
    async fn begin(
        &self,
        access: &Access<'_>,
        what: &str,
        placed: bool,
        activity: &Activity,
    ) -> Result<Url, Failure> {
        let mut ask = self.blob_ask(Method::POST, uploads_url(access), what, Some(access), activity);
        ask.placed = placed;
        ask.patience = placed.then_some(PATIENCE);
        let reply = self.transport().send(&mut ask).await?;
        if reply.status() == StatusCode::ACCEPTED {
            return self.location(&reply, access, what).map_err(Failure::Refused);
        }
        Err(Failure::Refused(reply.refusal(what, Refusal::OfWrite).await))
    }

    /// Where an upload goes on: relative or absolute, its query kept.
    fn location(&self, reply: &Reply, access: &Access<'_>, what: &str) -> Result<Url, Error> {
        let location = reply
            .header(LOCATION.as_str())
            .and_then(|location| reply.response.url().join(location).ok())
            .filter(|url| self.transport().endpoints.may_follow(Some(&access.endpoint.base), url));
        location.ok_or_else(|| {
            let message = format!("{what}: the registry opened an upload and does not say where");
            Error::attempt(Reason::RegistryError, message)
        })
    }

    /// Cancels an upload session, as far as the registry takes part.
    async fn cancel(&self, session: Option<&Url>, access: &Access<'_>, what: &str, activity: &Activity) {
        let Some(session) = session else {
            return;
        };
        let own = access.endpoint.is_at(session).then_some(access);
        let mut ask = self.blob_ask(Method::DELETE, session.clone(), what, own, activity);
        ask.placed = own.is_some();
        ask.patience = Some(Duration::from_secs(1));
        ask.timeout = Some(PATIENCE);
        let _ = self.transport().send(&mut ask).await;
    }

    /// Whether `credential` may push there: what its token says, else an upload session opened and cancelled, remembered for an
    /// hour.
    ///
    /// # Errors
    /// `PermissionDenied` and `Unauthorized` are the definite no; a waiting error is "not known now".
    pub async fn may_push(
        &self,
        repository: &Repository,
        credential: &Credential,
        activity: &Activity,
    ) -> Result<(), Error> {
        let endpoint = self.endpoint(repository)?;
        let access = Access { endpoint: &endpoint, credential, repository, push: true, also: None };
        let grant = self.transport().authorise(&access, None, None, activity).await;
        let key = (credential.key(), repository.clone());
        if grant.map_err(Failure::into_error)?.tells_rights() || self.0.pushable.contains_key(&key) {
            return Ok(());
        }
        let what = repository.to_string();
        let session = self.begin(&access, &what, false, activity).await.map_err(Failure::into_error)?;
        self.0.pushable.insert(key, ());
        self.cancel(Some(&session), &access, &what, activity).await;
        Ok(())
    }

    fn blob_ask<'a>(
        &self,
        method: Method,
        url: Url,
        what: &'a str,
        access: Option<&'a Access<'a>>,
        activity: &'a Activity,
    ) -> Ask<'a> {
        Ask {
            method,
            url,
            what,
            lane: Lane::Blobs,
            headers: HeaderMap::new(),
            content: Content::Nothing,
            access,
            timeout: Some(self.transport().settings.request_timeout),
            patience: None,
            placed: false,
            activity,
        }
    }
}

/// A download on its way into an upload.
struct Download {
    registry: Registry,
    from: Repository,
    at: Endpoint,
    pull: Credential,
    blob: Blob,
    response: Option<Response>,
    /// Bytes to pass over: the registry began again at the start.
    skip: u64,
    offset: u64,
    hash: Sha256,
    resumes: u32,
    activity: Activity,
    meter: Arc<Meter>,
}

/// What the stream tells the one who waits for the upload.
#[derive(Debug, Default)]
struct Meter {
    bytes: AtomicU64,
    fault: Mutex<Option<Failure>>,
}

impl Meter {
    fn fault(&self) -> Option<Failure> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Resolves when nothing was taken for [`STALL`].
    async fn stands_still(&self) {
        let mut last = None;
        loop {
            let bytes = self.bytes.load(Ordering::Relaxed);
            if last == Some(bytes) {
                return;
            }
            last = Some(bytes);
            tokio::time::sleep(STALL).await;
        }
    }
}

impl Download {
    /// The next bytes; nothing after the last of them, which is given only when all together have the right digest.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        if self.offset == self.blob.size {
            return Ok(None);
        }
        loop {
            let read = match &mut self.response {
                Some(response) => response.chunk().await.ok().flatten(),
                None => None,
            };
            let step = match read {
                Some(chunk) => self.accept(chunk),
                None => self.resume().await.map(|()| None),
            };
            match step {
                Ok(Some(chunk)) => return Ok(Some((chunk, self))),
                Ok(None) => {}
                Err(failure) => {
                    let shown = Error::attempt(Reason::RegistryError, "the download ended");
                    *self.meter.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    return Err(shown);
                }
            }
        }
    }

    fn accept(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, Failure> {
        let over = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
        let _ = chunk.split_to(over);
        self.skip -= over as u64;
        if chunk.is_empty() {
            return Ok(None);
        }
        let length = chunk.len() as u64;
        if self.offset + length > self.blob.size {
            return Err(Failure::Refused(mismatch(&self.from, self.blob.digest)));
        }
        self.hash.update(&chunk);
        self.offset += length;
        if self.offset == self.blob.size {
            let found = Digest::from_bytes(self.hash.clone().finalize().into());
            if found != self.blob.digest {
                return Err(Failure::Refused(mismatch(&self.from, self.blob.digest)));
            }
        }
        self.meter.bytes.fetch_add(length, Ordering::Relaxed);
        self.activity.wrote(length);
        Ok(Some(chunk))
    }

    /// Opens the download again where it broke.
    async fn resume(&mut self) -> Result<(), Failure> {
        self.response = None;
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            let (what, offset) = (named(&self.from, self.blob.digest), self.offset);
            let message = format!("{what}: cut off {RESUMES_MAX} times, last after {offset} bytes");
            return Err(Failure::Refused(Error::attempt(Reason::RegistryError, message)));
        }
        tokio::time::sleep(Duration::from_millis(50) * self.resumes * self.resumes).await;
        let (registry, activity) = (self.registry.clone(), self.activity.clone());
        let response =
            registry.open(&self.from, &self.at, &self.pull, self.blob, self.offset, &activity).await?;
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.offset) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let message = format!("{}: another range was sent than asked", named(&self.from, self.blob.digest));
                return Err(Failure::Refused(Error::attempt(Reason::RegistryError, message)));
            }
            _ => self.offset,
        };
        self.response = Some(response);
        Ok(())
    }
}

/// Reads the answer to the closing PUT of an upload.
async fn landed(what: &str, blob: Blob, reply: Reply) -> Result<(), Failure> {
    if reply.status() == StatusCode::CREATED {
        let stated = reply.header("docker-content-digest").filter(|stated| stated.starts_with("sha256:"));
        if stated.is_none_or(|stated| stated == blob.digest.to_string()) {
            return Ok(());
        }
        let message = format!("{what}: the registry stored it under another digest");
        return Err(Failure::Refused(Error::attempt(Reason::DigestMismatch, message)));
    }
    let answer = reply.answer().await;
    let error = answer.error(what, true);
    if answer.says_session_lost() || !answer.status.is_client_error() {
        return Err(Failure::Unsettled(error));
    }
    Err(Failure::Refused(error))
}

fn named(repository: &Repository, digest: Digest) -> String {
    format!("{repository}, blob {}", digest.short())
}

fn mismatch(repository: &Repository, digest: Digest) -> Error {
    let message = format!("{}: its content is not that of its digest", named(repository, digest));
    Error::attempt(Reason::DigestMismatch, message)
}

fn blob_url(access: &Access<'_>, digest: Digest) -> Url {
    access.endpoint.url(&format!("{}/blobs/{digest}", access.repository.path()))
}

fn uploads_url(access: &Access<'_>) -> Url {
    access.endpoint.url(&format!("{}/blobs/uploads/", access.repository.path()))
}

fn range(offset: u64) -> HeaderValue {
    // Digits and dashes are always a header.
    HeaderValue::from_str(&format!("bytes={offset}-")).unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}

fn starts_at(response: &Response, offset: u64) -> bool {
    let value = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.starts_with(&format!("bytes {offset}-")))
}
