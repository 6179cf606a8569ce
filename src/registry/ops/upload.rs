//! Uploads: one blob streamed into the target, fed by a download.
//!
//! Guaranteed: places are held only while both hosts are available. If the outcome of an upload is unknown, the blob is looked for before
//! the upload starts again, three times at most. A session that is not used is cancelled if it is one of ours at the registry's own
//! address; nothing else is ever deleted here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};

use super::blob::{RESTARTS_MAX, mismatch, named, uploads_url};
use super::client::RegistryClient;
use super::download::{Download, Meter, SourceSpeed};
use super::job::Job;
use super::manifest::Blob;
use crate::image::Digest;
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::error::{Error, Meaning};
use crate::registry::host::admission::Caller;
use crate::registry::host::hosts::StreamPlaces;
use crate::registry::host::progress::Progress;
use crate::registry::wire::egress::{self, REDIRECTS_MAX};
use crate::registry::wire::location::is_own_upload;
use crate::registry::wire::reply::Reply;
use crate::registry::wire::request::{Content, Failure};
use crate::registry::wire::tokens::PATIENCE;

/// How often a source may be unavailable for one blob while it serves others.
const UNAVAILABLE_MAX: u32 = 20;

/// One blob on its way into an upload session.
struct Upload<'a> {
    job: &'a Job<'a>,
    blob: Blob,
    what: &'a str,
    access: &'a Access<'a>,
    places: &'a StreamPlaces,
}

impl RegistryClient {
    /// Streams one blob from source to target, however often that takes.
    pub(crate) async fn transfer(
        &self,
        job: &Job<'_>,
        blob: Blob,
        mut session: Option<Url>,
    ) -> Result<(), Error> {
        let transport = self.transport();
        let source = transport.host(&job.from_at.base);
        let target = transport.host(&job.to_at.base);
        let puller = Caller::new(job.progress, job.from.credential);
        let pusher = Caller::new(job.progress, job.to.credential);
        let (mut restarts, mut unavailable, served) = (0, 0, source.served());
        let mut restarts_in_a_row = 0;
        loop {
            source.until_available(false, puller).await;
            target.until_available(true, pusher).await;
            // Tokens are had before places are taken: a token endpoint may be unavailable for long.
            for access in [job.source(), job.target()] {
                // What is refused to a guess, the requests themselves are told.
                match transport.authorize(&access, None, job.progress).await {
                    Ok(_) | Err(Failure::Refused(_)) => {}
                    Err(failure) => return Err(failure.into()),
                }
            }
            let places = transport.stream_places((&source, puller), (&target, pusher));
            let places = places.await;
            let outcome = self.stream(job, blob, session.take(), &places).await;
            drop(places);
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(Failure::OutcomeUnknown(error)) if restarts < RESTARTS_MAX => {
                    restarts += 1;
                    if self.has_blob(job, blob).await? {
                        return Ok(());
                    }
                    tracing::debug!(%error, "blob is started anew");
                    continue;
                }
                Err(Failure::Restart(error)) => error,
                Err(Failure::OutcomeUnknown(error)) => {
                    let message = format!("{} (started anew {RESTARTS_MAX} times)", error.message);
                    return Err(Error::attempt(Reason::RegistryError, message));
                }
                Err(failure) => return Err(failure.into()),
            };
            restarts_in_a_row += 1;
            unavailable += u32::from(error.status().is_some_and(|status| status >= 500));
            let pause = transport.backoff(restarts_in_a_row);
            transport.pause(pause, &error, job.progress).await;
            if unavailable >= UNAVAILABLE_MAX && source.served() > served {
                let message = format!(
                    "{} (twenty times, while the host serves others)",
                    error.message
                );
                return Err(Error::attempt(Reason::RegistryError, message));
            }
        }
    }

    /// One upload, fed by a download.
    async fn stream(
        &self,
        job: &Job<'_>,
        blob: Blob,
        session: Option<Url>,
        places: &StreamPlaces,
    ) -> Result<(), Failure> {
        let what = named(job.to.repository, blob.digest);
        let access = job.target();
        let source = job.source();
        let open = async {
            tokio::select! {
                biased;
                opened = self.open(&source, blob, 0, job.progress) => opened,
                () = places.preempted() => Err(gives_way(&what)),
            }
        };
        let session = async {
            match session {
                Some(location) => Ok(location),
                None => self.begin(&access, &what, true, job.progress).await,
            }
        };
        // Side by side: the bytes wait for both, and neither for the other.
        let (response, location) = match futures::join!(open, session) {
            (Ok(response), location) => (response, location?),
            (Err(failure), location) => {
                self.cancel(location.ok().as_ref(), &access, &what, job.progress)
                    .await;
                return Err(failure);
            }
        };
        let upload = Upload {
            job,
            blob,
            what: &what,
            access: &access,
            places,
        };
        let outcome = self.send_blob(&upload, &location, response).await;
        if outcome.is_err() {
            self.cancel(Some(&location), &access, &what, job.progress)
                .await;
        }
        outcome
    }

    /// Sends a blob to its upload session, and to where that is redirected.
    async fn send_blob(
        &self,
        upload: &Upload<'_>,
        location: &Url,
        response: Response,
    ) -> Result<(), Failure> {
        let Upload {
            job, blob, what, ..
        } = *upload;
        let (mut url, mut response) = (location.clone(), response);
        url.query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        for _ in 0..=REDIRECTS_MAX {
            let moved = self.upload(upload, url, response).await?;
            let Some(next) = moved else {
                return Ok(());
            };
            url = next;
            let source = job.source();
            let again = self.open(&source, blob, 0, job.progress);
            response = again.await?;
        }
        let message = format!("{what}: too many redirects");
        Err(Error::attempt(Reason::RegistryError, message).into())
    }

    /// The closing PUT of an upload, with the whole content. Where it has to be sent instead, if that is said.
    async fn upload(
        &self,
        upload: &Upload<'_>,
        location: Url,
        response: Response,
    ) -> Result<Option<Url>, Failure> {
        let Upload {
            job,
            blob,
            what,
            access,
            places,
        } = *upload;
        let mut request = self.blob_request(Method::PUT, location, what, access, job.progress);
        request.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        // Also where the location is another host: waiting for a place there could close a circle.
        request.placed = true;
        request.connection = blob.connection();
        request.patience = Some(PATIENCE);
        request.timeout = None;
        let meter = Arc::new(Meter::default());
        if blob.size == 0 {
            if blob.digest != Digest::of(b"") {
                return Err(mismatch(job.from.repository, blob.digest).into());
            }
        } else {
            request
                .headers
                .insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
            let download = Download {
                registry: self.clone(),
                from: job.from.repository.clone(),
                at: Arc::clone(&job.from_at),
                counted: self.transport().host(&job.from_at.base).label.clone(),
                pull: job.from.credential.clone(),
                blob,
                response: Some(response),
                skip: 0,
                offset: 0,
                hash: Sha256::new(),
                resumes: 0,
                speed: SourceSpeed::default(),
                progress: job.progress.clone(),
                meter: Arc::clone(&meter),
                capture: job.capture(blob),
            };
            request.content = Content::Once(Body::wrap_stream(stream::try_unfold(
                download,
                Download::next,
            )));
        }
        let result = tokio::select! {
            biased;
            result = self.transport().send(&mut request) => result,
            () = meter.stands_still(blob.size, self.transport().settings.read_timeout) => {
                let message = format!("{what}: the upload stands still");
                Err(Failure::OutcomeUnknown(Error::attempt(Reason::RegistryError, message)))
            }
            () = places.preempted() => Err(gives_way(what)),
        };
        let outcome = match result {
            Ok(mut reply) => {
                if let Some(next) = self.transport().egress.moved(&request, &reply.response) {
                    next.map(Some).map_err(Failure::Refused)
                } else {
                    reply.elsewhere = !access.endpoint.is_at(&request.url);
                    landed(what, blob, reply).await.map(|()| None)
                }
            }
            // It had the blob and failed at it: it may fail at it again (quay at a layer over its maximum), so it is an attempt.
            Err(Failure::OutcomeUnknown(error)) if error.status() == Some(500) => Err(
                Failure::Refused(Error::attempt(Reason::RegistryError, &error.message)),
            ),
            Err(failure) => Err(failure),
        };
        if !matches!(outcome, Ok(None)) {
            job.progress.retract(meter.bytes.load(Ordering::Relaxed));
        }
        match (outcome, meter.fault()) {
            (Ok(moved), _) => Ok(moved),
            // What broke the stream is why the upload ended.
            (Err(_), Some(fault)) => Err(fault),
            (Err(failure), None) => Err(failure),
        }
    }

    /// Opens an upload session. `placed`: whether a place on that host is held.
    pub(crate) async fn begin(
        &self,
        access: &Access<'_>,
        what: &str,
        placed: bool,
        progress: &Progress,
    ) -> Result<Url, Failure> {
        let mut request =
            self.blob_request(Method::POST, uploads_url(access), what, access, progress);
        request.placed = placed;
        request.patience = placed.then_some(PATIENCE);
        let reply = self.transport().send(&mut request).await?;
        if reply.status() == StatusCode::ACCEPTED {
            return self
                .location(&reply, access, what)
                .map_err(Failure::Refused);
        }
        Err(Failure::Refused(reply.refusal(what).await))
    }

    /// Where an upload goes on: relative or absolute, its query kept.
    pub(crate) fn location(
        &self,
        reply: &Reply,
        access: &Access<'_>,
        what: &str,
    ) -> Result<Url, Error> {
        let location = reply
            .header(LOCATION.as_str())
            .and_then(|location| reply.response.url().join(location).ok())
            .filter(|url| {
                self.transport()
                    .endpoints
                    .may_follow(Some(&access.endpoint.base), url)
            });
        let location = location.and_then(egress::unsigned).ok_or_else(|| {
            let message = format!("{what}: the registry opened an upload and does not say where");
            Error::attempt(Reason::RegistryError, message).with_status(reply.status())
        })?;
        self.transport().egress.may_upload(access, &location)?;
        Ok(location)
    }

    /// Cancels an upload session of ours, as far as the registry takes part.
    pub(crate) async fn cancel(
        &self,
        session: Option<&Url>,
        access: &Access<'_>,
        what: &str,
        progress: &Progress,
    ) {
        let Some(session) = session.filter(|session| is_own_upload(access, session)) else {
            return;
        };
        let mut request =
            self.blob_request(Method::DELETE, session.clone(), what, access, progress);
        request.placed = true;
        request.patience = Some(Duration::from_secs(1));
        request.timeout = Some(PATIENCE);
        let _ = self.transport().send(&mut request).await;
    }
}

/// Nothing is wrong with it: it comes again when it is its turn.
fn gives_way(what: &str) -> Failure {
    let message = format!("{what}: it was slow, and gave its places to an image that had none");
    Failure::Restart(Error::wait(Reason::Queued, None, message))
}

/// Reads the answer to the closing PUT of an upload.
async fn landed(what: &str, blob: Blob, reply: Reply) -> Result<(), Failure> {
    if reply.status() == StatusCode::CREATED {
        let stated = reply
            .header("docker-content-digest")
            .filter(|stated| stated.starts_with("sha256:"));
        if stated.is_none_or(|stated| stated == blob.digest.to_string()) {
            return Ok(());
        }
        let message = format!("{what}: the registry stored it under another digest");
        return Err(Error::attempt(Reason::DigestMismatch, message).into());
    }
    let status = reply.status();
    let error = reply.refusal(what).await;
    if error.meaning() == Some(Meaning::SessionLost)
        || !(status.is_client_error() || status.is_redirection())
    {
        return Err(Failure::OutcomeUnknown(error));
    }
    Err(error.into())
}
