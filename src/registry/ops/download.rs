//! Downloads: one blob as a stream that resumes where it broke.
//!
//! Guaranteed: chunks are hashed on the way, and the last is given only if all together have the right digest and length; an upload fed by
//! it cannot complete with anything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::blob::{blob_url, mismatch, named};
use super::client::RegistryClient;
use super::expiry::ConfigCapture;
use super::manifest::Blob;
use crate::image::{Digest, Repository};
use crate::machine::Reason;
use crate::metrics;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::registry::wire::request::Failure;

/// How often a download goes on within one upload.
const RESUMES_MAX: u32 = 5;
/// How long a source that is unavailable is waited for once a part of the blob is on its way and would have to be sent again.
const RESUME_PATIENCE: Duration = Duration::from_secs(10);
/// What a source has to bring, and a target to take, in the time that a read may stand still (five times that for the target, which
/// may have to put its storage in order first): whoever is slower holds places that others need.
const MIN_PROGRESS_BYTES: u64 = 64 * 1024;
/// How much longer a target is given than a source.
const TARGET_PATIENCE: u32 = 5;

/// A download on its way into an upload.
pub(crate) struct Download {
    pub(crate) registry: RegistryClient,
    pub(crate) from: Repository,
    pub(crate) at: Arc<Endpoint>,
    /// What the source is counted as.
    pub(crate) counted: metrics::Host,
    pub(crate) pull: Credential,
    pub(crate) blob: Blob,
    pub(crate) response: Option<Response>,
    /// Bytes to pass over: the registry began again at the start.
    pub(crate) skip: u64,
    pub(crate) offset: u64,
    pub(crate) hash: Sha256,
    pub(crate) resumes: u32,
    pub(crate) speed: SourceSpeed,
    pub(crate) progress: Progress,
    pub(crate) meter: Arc<Meter>,
    /// A config is kept, to read its labels.
    pub(crate) capture: Option<ConfigCapture>,
}

/// How fast a source is: what it brought of late, in the time that it was waited for.
#[derive(Debug, Default)]
pub(crate) struct SourceSpeed {
    waited: Duration,
    brought: u64,
}

impl SourceSpeed {
    /// The next bytes of `response`; none where it ended, broke, or brings less than [`MIN_PROGRESS_BYTES`] in `window`.
    async fn next(&mut self, response: &mut Response, window: Duration) -> Option<Bytes> {
        loop {
            let began = Instant::now();
            let left = window.saturating_sub(self.waited);
            // What is there already is taken also when no time is left.
            if let Ok(read) = tokio::time::timeout(left, response.chunk()).await {
                let chunk = read.ok().flatten()?;
                self.waited += began.elapsed();
                self.brought += chunk.len() as u64;
                return Some(chunk);
            }
            if self.brought < MIN_PROGRESS_BYTES {
                return None;
            }
            *self = Self::default();
        }
    }
}

/// What the stream tells the one who waits for the upload.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) bytes: AtomicU64,
    /// The source is waited for, and has its own limits.
    starving: AtomicBool,
    pub(crate) fault: Mutex<Option<Failure>>,
}

impl Meter {
    pub(crate) fn fault(&self) -> Option<Failure> {
        self.fault.lock().take()
    }

    /// Resolves when less than [`MIN_PROGRESS_BYTES`] of `size` bytes was taken in [`TARGET_PATIENCE`] times `window`, or nothing more at the end.
    pub(crate) async fn stands_still(&self, size: u64, window: Duration) {
        let mut last = 0;
        loop {
            tokio::time::sleep(window * TARGET_PATIENCE).await;
            let bytes = self.bytes.load(Ordering::Relaxed);
            let little = bytes == last || (bytes < size && bytes - last < MIN_PROGRESS_BYTES);
            if little && !self.starving.load(Ordering::Relaxed) {
                return;
            }
            last = bytes;
        }
    }
}

impl Download {
    /// The next bytes; nothing after the last of them, which is given only when all together have the right digest.
    pub(crate) async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        if self.offset == self.blob.size {
            return Ok(None);
        }
        self.meter.starving.store(true, Ordering::Relaxed);
        loop {
            let read = match &mut self.response {
                Some(response) => {
                    let window = self.registry.transport().settings.read_timeout;
                    self.speed.next(response, window).await
                }
                None => None,
            };
            let step = match read {
                Some(chunk) => self.accept(chunk),
                None => self.resume().await.map(|()| None),
            };
            match step {
                Ok(Some(chunk)) => {
                    self.meter.starving.store(false, Ordering::Relaxed);
                    return Ok(Some((chunk, self)));
                }
                Ok(None) => {}
                Err(failure) => {
                    let shown = Error::attempt(Reason::RegistryError, "the download ended");
                    *self.meter.fault.lock() = Some(failure);
                    return Err(shown);
                }
            }
        }
    }

    fn accept(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, Failure> {
        let over = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let _ = chunk.split_to(over);
        self.skip -= over as u64;
        if chunk.is_empty() {
            return Ok(None);
        }
        let length = chunk.len() as u64;
        if self.offset + length > self.blob.size {
            return Err(mismatch(&self.from, self.blob.digest).into());
        }
        self.hash.update(&chunk);
        if let Some(capture) = &mut self.capture {
            capture.bytes.extend_from_slice(&chunk);
        }
        self.offset += length;
        if self.offset == self.blob.size {
            let found = Digest::from_bytes(self.hash.clone().finalize().into());
            if found != self.blob.digest {
                return Err(mismatch(&self.from, self.blob.digest).into());
            }
            if let Some(capture) = self.capture.take() {
                self.registry.learn_labels(capture);
            }
        }
        self.meter.bytes.fetch_add(length, Ordering::Relaxed);
        self.progress.wrote(length);
        self.registry.metrics().copied(&self.counted, length);
        Ok(Some(chunk))
    }

    /// Opens the download again where it broke.
    async fn resume(&mut self) -> Result<(), Failure> {
        self.response = None;
        self.speed = SourceSpeed::default();
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            let (what, offset) = (named(&self.from, self.blob.digest), self.offset);
            let message = format!(
                "{what}: cut off or too slow {RESUMES_MAX} times, last after {offset} bytes"
            );
            return Err(Error::attempt(Reason::RegistryError, message).into());
        }
        tokio::time::sleep(Duration::from_millis(50) * self.resumes * self.resumes).await;
        let (registry, progress) = (self.registry.clone(), self.progress.clone());
        let access = Access::new(&self.at, &self.pull, &self.from, false);
        let response = registry
            .open(&access, self.blob, self.offset, &progress)
            .await?;
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.offset) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let message = format!(
                    "{}: another range was sent than asked",
                    named(&self.from, self.blob.digest)
                );
                return Err(Error::attempt(Reason::RegistryError, message).into());
            }
            _ => self.offset,
        };
        self.response = Some(response);
        Ok(())
    }
}

impl RegistryClient {
    /// GET of a blob's content from `offset`.
    pub(crate) async fn open(
        &self,
        access: &Access<'_>,
        blob: Blob,
        offset: u64,
        progress: &Progress,
    ) -> Result<Response, Failure> {
        let from = access.repository;
        let what = named(from, blob.digest);
        let url = blob_url(access, blob.digest);
        let mut request = self.blob_request(Method::GET, url, &what, access, progress);
        request.placed = true;
        request.connection = blob.connection();
        // Nothing is lost yet by giving the places back at once.
        request.patience = Some(Duration::ZERO);
        request.timeout = None;
        if offset > 0 {
            request.patience = Some(RESUME_PATIENCE);
            request.headers.insert(RANGE, range(offset));
        }
        let reply = self.transport().send(&mut request).await?;
        match reply.status() {
            StatusCode::OK => {
                let length = reply.response.content_length();
                if length.is_some_and(|length| length != blob.size) {
                    return Err(mismatch(from, blob.digest).into());
                }
                Ok(reply.response)
            }
            StatusCode::PARTIAL_CONTENT if offset > 0 => Ok(reply.response),
            StatusCode::NOT_FOUND => {
                let absence = reply.absence(&what, false).await;
                absence?;
                let message = format!("{what}: the source image misses this blob; rebuild it");
                Err(Error::attempt(Reason::SourceIncomplete, message).into())
            }
            _ => Err(reply.refusal(&what).await.into()),
        }
    }
}

fn range(offset: u64) -> HeaderValue {
    // Digits and dashes are always a header.
    HeaderValue::from_str(&format!("bytes={offset}-"))
        .unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}

fn starts_at(response: &Response, offset: u64) -> bool {
    let value = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.starts_with(&format!("bytes {offset}-")))
}
