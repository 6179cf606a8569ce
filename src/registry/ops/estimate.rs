//! Estimates a copy by reads alone: how many blobs and bytes are there, could be mounted, or would be streamed.
//!
//! It walks as [`RegistryClient::copy`] does, with the same bounds, limits and memory. It writes nothing and asks for tokens to pull only.

use std::borrow::Borrow;

use futures::{StreamExt, TryStreamExt, stream};

use super::blob::{blob_url, named};
use super::client::RegistryClient;
use super::copy::AT_ONCE;
use super::job::Job;
use super::manifest::{Blob, Manifest};
use crate::machine::{Copying, Reason};
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Remote;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::registry::wire::request::Failure;

/// Where a blob is found.
enum FoundAt {
    /// The target has it.
    There,
    /// The source has it.
    Elsewhere,
    /// Neither has it, nor has to.
    Nowhere,
}

impl RegistryClient {
    /// What it takes to copy everything that `manifest` references from `from` to `to`. Does not look for blobs of child manifests that the
    /// target has.
    ///
    /// # Errors
    /// `SourceIncomplete` if neither side has a part; otherwise the error of a request.
    pub async fn estimate_copy(
        &self,
        from: Remote<'_>,
        manifest: impl Borrow<Manifest> + Send,
        to: Remote<'_>,
        progress: &Progress,
    ) -> Result<Copying, Error> {
        let mut copying = Copying::default();
        if from.repository == to.repository {
            return self.check_depth(manifest.borrow(), to).map(|()| copying);
        }
        let job = Job {
            writes: false,
            ..self.job(from, to, progress)?
        };
        let plan = self.plan(&job, manifest.borrow()).await?;
        drop(manifest);
        copying.children.missing = plan.levels.iter().map(|level| level.len() as u64).sum();
        copying.children.present = plan.children as u64 - copying.children.missing;
        let mounts = self.may_mount(&job).await?;
        let job = &job;
        let mut found = stream::iter(plan.blobs)
            .map(|blob| async move { self.find(job, blob).await.map(|found| (found, blob)) })
            .buffer_unordered(AT_ONCE);
        while let Some((found_at, blob)) = found.try_next().await? {
            let tally = match found_at {
                FoundAt::Nowhere => continue,
                FoundAt::There => &mut copying.present,
                FoundAt::Elsewhere if mounts => &mut copying.mountable,
                FoundAt::Elsewhere => &mut copying.missing,
            };
            tally.blobs += 1;
            tally.bytes = tally.bytes.saturating_add(blob.size);
        }
        Ok(copying)
    }

    /// Whether blobs could be mounted: on one registry, by a credential that may write here and read there.
    async fn may_mount(&self, job: &Job<'_>) -> Result<bool, Error> {
        if job.from.repository.host() != job.to.repository.host() {
            return Ok(false);
        }
        let access = Access::new(&job.from_at, job.to.credential, job.from.repository, false);
        match self
            .transport()
            .authorize(&access, None, job.progress)
            .await
        {
            Ok(grant) => Ok(grant.may_pull(job.from.repository)),
            Err(Failure::Refused(_)) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn find(&self, job: &Job<'_>, blob: Blob) -> Result<FoundAt, Error> {
        let known = self.0.blobs.get(&job.blob_key(blob.digest));
        if known.is_some_and(|known| known.there) {
            return Ok(FoundAt::There);
        }
        // Not remembered: by the time it is promoted, what held the blob may be gone.
        if self.has_blob(job, blob).await? {
            return Ok(FoundAt::There);
        }
        let what = named(job.from.repository, blob.digest);
        let access = job.source();
        let url = blob_url(&access, blob.digest);
        let request = self.blob_request(reqwest::Method::HEAD, url, &what, &access, job.progress);
        if self.is_there(request).await? {
            return Ok(FoundAt::Elsewhere);
        }
        if blob.elsewhere {
            return Ok(FoundAt::Nowhere);
        }
        let message = format!("{what}: the source image misses this blob; rebuild it");
        Err(Error::attempt(Reason::SourceIncomplete, message))
    }
}
