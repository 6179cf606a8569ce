//! Deletes tags, where that deletes nothing else.
//!
//! Some registries delete the image when they are told to delete a tag of it, some refuse. So before the first deletion in a repository it
//! is tried, on an image that nobody else has: pushed under two prune tags, one of them deleted, and the other and the digest have to
//! resolve still. A pruner takes what is left of it where the registry deletes no tags.
//!
//! Guaranteed: nothing is ever deleted by digest; a deletion whose outcome is not known is not repeated here.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::blob;
use super::client::RegistryClient;
use super::get::named;
use super::manifest::Manifest;
use super::put::{Put, TAG_PUT_MAX_DELAY, refused};
use crate::image::{Digest, Reference, Repository, Stamp, Tag};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::error::Error;
use crate::registry::host::limits::Connection;
use crate::registry::host::progress::Progress;
use crate::registry::wire::request::{Content, Failure};

/// An image without a file: an empty layer.
const LAYER: [u8; 1024] = [0; 1024];
/// Before each look at the tag that was deleted: replicas may show it for a while.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
];

impl RegistryClient {
    /// DELETE of a tag that was read just before, and of nothing else: to be called only where [`RegistryClient::undeletable`] has nothing
    /// to say against it. `gate` and what it comes to are as in [`RegistryClient::put_tag`]; [`Put::Written`]: the tag is gone.
    pub async fn delete_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        credential: &Credential,
        gate: impl Fn() -> bool + Send,
        progress: &Progress,
    ) -> Put {
        let endpoint = match self.endpoint(repository) {
            Ok(endpoint) => endpoint,
            Err(error) => return Put::Refused(error),
        };
        let access = Access::new(&endpoint, credential, repository, true);
        let reference = Reference::Tag(tag.clone());
        let what = named(repository, &reference);
        let mut request =
            self.manifest_request(Method::DELETE, &what, &reference, &access, progress);
        request.timeout = Some(self.put_timeout());
        request.patience = Some(TAG_PUT_MAX_DELAY);
        request.connection = Connection::Prompt;
        let reply = match self.transport().send_gated(&mut request, gate).await {
            Ok(reply) => reply,
            Err(Failure::Refused(error) | Failure::Restart(error)) => return refused(error),
            Err(Failure::OutcomeUnknown(error)) => return Put::Unknown(error),
            Err(Failure::NotSent) => return Put::NotSent,
        };
        let status = reply.status();
        if matches!(
            status,
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT
        ) {
            return Put::Written;
        }
        let answer = reply.answer().await;
        if answer.says_absent() {
            return Put::Written;
        }
        let error = answer.error(&what);
        if status.is_client_error() || status.is_redirection() {
            refused(error)
        } else {
            Put::Unknown(error)
        }
    }

    /// Why tags of a repository cannot be deleted alone with this credential; none: they can. Tried once, and remembered for a day.
    ///
    /// # Errors
    /// It could not be tried.
    pub async fn undeletable(
        &self,
        repository: &Repository,
        credential: &Credential,
        gate: impl Fn() -> bool + Send + Sync,
        progress: &Progress,
    ) -> Result<Option<String>, Error> {
        let key = (credential.key(), repository.clone());
        let _flight = self.0.trying.enter(&key).await;
        if let Some(known) = self.0.undeletable.get(&key) {
            return Ok(known);
        }
        let found = self.try_deletion(repository, credential, &gate, progress);
        let found = found.await?;
        self.0.undeletable.insert(key, found.clone());
        Ok(found)
    }

    async fn try_deletion(
        &self,
        repository: &Repository,
        credential: &Credential,
        gate: &(impl Fn() -> bool + Send + Sync),
        progress: &Progress,
    ) -> Result<Option<String>, Error> {
        let name = format!("deletion_probe_{:016x}", rand::random::<u64>());
        let stamp = Stamp::at(Timestamp::now());
        let tag = |number: u8| format!("{stamp}_prune_{name}_{number}").parse::<Tag>();
        let (Ok(first), Ok(second)) = (tag(1), tag(2)) else {
            let message = format!("{repository}: no tag can be named by this clock; correct it");
            return Err(Error::attempt(Reason::RegistryError, message));
        };
        let manifest = self
            .push_probe(repository, &name, credential, progress)
            .await?;
        for tag in [&first, &second] {
            let put = self.put_tag(repository, tag, &manifest, credential, gate, progress);
            done(repository, put.await)?;
        }
        let deletion = self.delete_tag(repository, &first, credential, gate, progress);
        match deletion.await {
            Put::Refused(error) if !error.is_wait() => return Ok(Some(error.message)),
            Put::Immutable(error) => return Ok(Some(error.message)),
            // Who answers so each time would be waited for without end. Without an answer it is tried again.
            Put::Unknown(error) if error.status().is_some() => {
                return Err(Error::attempt(Reason::RegistryError, error.message));
            }
            deletion => done(repository, deletion)?,
        }
        let shows = |tag| self.get_authoritative(repository, tag, credential, progress);
        let mut gone = false;
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            gone = shows(&first).await?.is_none();
            if gone {
                break;
            }
        }
        if !gone {
            let why = format!("{repository}: its registry says that a tag is deleted and keeps it");
            return Ok(Some(why));
        }
        self.forget_manifest(repository, manifest.digest, credential);
        let by_digest = Reference::Digest(manifest.digest);
        let whole = shows(&second).await?.is_some()
            && self
                .get(repository, &by_digest, credential, progress)
                .await?
                .is_some();
        if !whole {
            let why = format!("{repository}: its registry deletes the image with a tag of it");
            return Ok(Some(why));
        }
        // Where this comes to nothing, a pruner takes it.
        self.delete_tag(repository, &second, credential, gate, progress)
            .await;
        Ok(None)
    }

    /// Brings an image that nobody else has, and not yet its manifest.
    async fn push_probe(
        &self,
        repository: &Repository,
        name: &str,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<Manifest, Error> {
        let layer = Digest::of(&LAYER);
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": name}],
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.to_string(), "size": LAYER.len(),
            }],
        });
        let manifest = Bytes::from(manifest.to_string());
        let manifest = Manifest::read(name, manifest, None, None, None)?;
        for bytes in [Bytes::from_static(&LAYER), config] {
            self.push_blob(repository, bytes, credential, progress)
                .await?;
        }
        Ok(manifest)
    }

    async fn push_blob(
        &self,
        repository: &Repository,
        bytes: Bytes,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<(), Error> {
        let endpoint = self.endpoint(repository)?;
        let access = Access::new(&endpoint, credential, repository, true);
        let digest = Digest::of(&bytes);
        let what = blob::named(repository, digest);
        let mut url = self.begin(&access, &what, false, progress).await?;
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let mut request = self.blob_request(Method::PUT, url, &what, &access, progress);
        let kind = HeaderValue::from_static("application/octet-stream");
        request.headers.insert(CONTENT_TYPE, kind);
        request.content = Content::Bytes(bytes);
        let reply = self.transport().send(&mut request).await?;
        if reply.status() == StatusCode::CREATED {
            return Ok(());
        }
        Err(reply.refusal(&what).await)
    }
}

/// A write that has to be done for the trial to go on.
fn done(repository: &Repository, put: Put) -> Result<(), Error> {
    match put {
        Put::Written => Ok(()),
        Put::Refused(error)
        | Put::ContentMissing(error)
        | Put::Immutable(error)
        | Put::Unknown(error) => Err(error),
        Put::NotSent => {
            let message = format!("{repository}: waits until it may be written to again");
            Err(Error::wait(Reason::RegistryUnavailable, None, message))
        }
    }
}
