//! Blobs: mounted if the registry can, streamed otherwise.
//!
//! [`RegistryClient::ensure_blob`] returns when the target has the blob. Guaranteed: only what is on its way is buffered; content is hashed
//! on the way, and an upload of anything else cannot complete; a download that breaks resumes; an upload session is used or cancelled.

use std::sync::atomic::Ordering;

use reqwest::{Method, StatusCode, Url};

use super::client::RegistryClient;
use super::job::Job;
use super::known::BlobState;
use super::manifest::Blob;
use crate::image::{Digest, Repository};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::error::Error;
use crate::registry::host::limits::Lane;
use crate::registry::host::progress::Progress;
use crate::registry::wire::request::{Failure, RegistryRequest};

/// How often a blob is started anew after an upload of which nothing certain is known.
pub(crate) const RESTARTS_MAX: u32 = 3;

/// What became of the wish to mount.
enum Mount {
    Mounted,
    /// An upload session was opened instead.
    Session(Url),
    /// Not here, not with these rights.
    Declined,
}

impl RegistryClient {
    /// Brings one blob to the target, once however many copies need it. Gives whether this one has written it.
    pub(crate) async fn ensure_blob(&self, job: &Job<'_>, blob: Blob) -> Result<bool, Error> {
        let key = job.blob_key(blob.digest);
        let known = || self.0.blobs.get(&key);
        if known().is_some_and(|known| known.there) {
            return Ok(false);
        }
        let _flight = self.0.single_flight.enter(&key).await;
        let known = known();
        if known.is_some_and(|known| known.there) {
            return Ok(false);
        }
        let mut session = None;
        // What was said to be mounted, and is missed, is not mounted again.
        if job.mounts.load(Ordering::Relaxed) && !known.is_some_and(|known| known.mounted) {
            match self.mount(job, blob).await? {
                Mount::Mounted => {
                    let (there, mounted) = (true, true);
                    self.0.blobs.insert(key, BlobState { there, mounted });
                    return Ok(false);
                }
                Mount::Session(url) => session = Some(url),
                Mount::Declined => job.mounts.store(false, Ordering::Relaxed),
            }
        }
        // Boxed: most blobs are mounted, and each would be as large as what it takes to send one.
        let missing = session.is_some() || !Box::pin(self.has_blob(job, blob)).await?;
        if missing {
            match Box::pin(self.transfer(job, blob, session)).await {
                Err(error) if blob.elsewhere && error.reason.is_incomplete() => {
                    return Ok(false);
                }
                transferred => transferred?,
            }
        }
        let (there, mounted) = (true, false);
        self.0.blobs.insert(key, BlobState { there, mounted });
        Ok(missing)
    }

    /// Whether the target has the blob, asked by HEAD, unless the registry was seen to miss it: its answer may come from a cache.
    pub(crate) async fn has_blob(&self, job: &Job<'_>, blob: Blob) -> Result<bool, Error> {
        let known = self.0.blobs.get(&job.blob_key(blob.digest));
        if known.is_some_and(|known| !known.there) {
            return Ok(false);
        }
        let what = named(job.to.repository, blob.digest);
        let access = job.target();
        let url = blob_url(&access, blob.digest);
        let request = self.blob_request(Method::HEAD, url, &what, &access, job.progress);
        self.is_there(request).await
    }

    async fn mount(&self, job: &Job<'_>, blob: Blob) -> Result<Mount, Error> {
        let access = Access {
            also: Some(job.from.repository),
            ..job.target()
        };
        // Some token endpoints refuse altogether where one scope is denied: then without mounting, which tells what is wrong.
        match self
            .transport()
            .authorize(&access, None, job.progress)
            .await
        {
            Ok(grant) if grant.may_pull(job.from.repository) => {}
            Ok(_) | Err(Failure::Refused(_)) => return Ok(Mount::Declined),
            Err(failure) => return Err(failure.into()),
        }
        let mount = self.send_mount(job, &access, blob);
        let (mounted, ()) = futures::join!(mount, self.read_labels_ahead(job, blob));
        mounted
    }

    async fn send_mount(
        &self,
        job: &Job<'_>,
        access: &Access<'_>,
        blob: Blob,
    ) -> Result<Mount, Error> {
        let what = named(job.to.repository, blob.digest);
        for _ in 0..=RESTARTS_MAX {
            let mut url = uploads_url(access);
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", job.from.repository.path());
            let mut request = self.blob_request(Method::POST, url, &what, access, job.progress);
            let reply = match self.transport().send(&mut request).await {
                Ok(reply) => reply,
                Err(Failure::OutcomeUnknown(_)) if Box::pin(self.has_blob(job, blob)).await? => {
                    return Ok(Mount::Mounted);
                }
                Err(Failure::OutcomeUnknown(_)) => continue,
                // A refusal is no reason not to send the blob: distribution's is that the right to pull is missing.
                Err(Failure::Refused(error)) if matches!(error.status(), Some(400..500)) => {
                    return Ok(Mount::Declined);
                }
                Err(failure) => return Err(failure.into()),
            };
            return Ok(match reply.status() {
                StatusCode::CREATED => Mount::Mounted,
                StatusCode::ACCEPTED => self
                    .location(&reply, access, &what)
                    .map_or(Mount::Declined, Mount::Session),
                _ => Mount::Declined,
            });
        }
        Ok(Mount::Declined)
    }

    pub(crate) fn blob_request<'a>(
        &self,
        method: Method,
        url: Url,
        what: &'a str,
        access: &'a Access<'a>,
        progress: &'a Progress,
    ) -> RegistryRequest<'a> {
        RegistryRequest {
            timeout: Some(self.transport().settings.request_timeout),
            ..RegistryRequest::new(method, url, what, Lane::Blobs, access, progress)
        }
    }
}

pub(crate) fn named(repository: &Repository, digest: Digest) -> String {
    format!("{repository}, blob {}", digest.short())
}

pub(crate) fn mismatch(repository: &Repository, digest: Digest) -> Error {
    let message = format!(
        "{}: its content is not that of its digest",
        named(repository, digest)
    );
    Error::attempt(Reason::DigestMismatch, message)
}

pub(crate) fn blob_url(access: &Access<'_>, digest: Digest) -> Url {
    access
        .endpoint
        .url(format_args!("{}/blobs/{digest}", access.repository.path()))
}

pub(crate) fn uploads_url(access: &Access<'_>) -> Url {
    access
        .endpoint
        .url(format_args!("{}/blobs/uploads/", access.repository.path()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::auth::credential::Credential;
    use crate::registry::settings::Settings;

    #[test]
    fn a_blob_takes_little_memory_while_it_is_only_mounted() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = RegistryClient::new(Settings::default()).unwrap();
        let [from, to]: [Repository; 2] =
            ["quay.io/a/b", "quay.io/a/c"].map(|r| r.parse().unwrap());
        let (credential, progress) = (Credential::anonymous(), Progress::default());
        let job = registry.job(credential.at(&from), credential.at(&to), &progress);
        let blob = Blob {
            digest: Digest::of(b""),
            size: 0,
            elsewhere: false,
        };
        let size = size_of_val(&registry.ensure_blob(&job.unwrap(), blob));
        assert!(size < 5000, "{size}");
    }
}
