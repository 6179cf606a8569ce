//! Copies an image: everything that a manifest references, from one repository to another.
//!
//! When it returns, the target has the blobs and child manifests, so that a PUT of the manifest itself can succeed. Guaranteed: blobs come
//! before the manifest that needs them, children before their parents. A child is put each time, because a HEAD by digest may be
//! answered by a cache that outlives what was collected. An index is at most four levels deep and lists at most 1000 manifests and
//! 64 MiB of them.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use super::client::RegistryClient;
use super::get::named;
use super::job::Job;
use super::known::{BlobKey, BlobState};
use super::manifest::{Blob, CHILDREN_MAX, Manifest};
use super::put::{Bounds, Put};
use crate::image::{Digest, Reference, Repository};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Remote;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;

/// Levels of manifests below the top one.
pub(crate) const DEPTH_MAX: usize = 4;
/// Blobs of one image, those of its children included.
pub(crate) const BLOBS_MAX: usize = 4_000;
/// The bytes of the manifests below the top one: how long they are read at all.
const CHILDREN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Blobs, and manifests, of one copy on their way at once.
pub(crate) const AT_ONCE: usize = 8;
/// How often a PUT by digest is repeated when nothing certain is known of it.
const REPEATS_MAX: u32 = 3;
/// How often the blobs of a manifest are brought anew when the registry misses one.
const MISSED_MAX: u32 = 2;

/// What a copy has to bring. Of manifests, their digests alone: each is read again when it is placed, so that a copy holds one at a
/// time, however many there are.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) blobs: Vec<Blob>,
    /// Children that are to be put, by level.
    pub(crate) levels: Vec<Vec<Digest>>,
    /// How many there are, with those that a survey found there.
    pub(crate) children: usize,
}

/// A plan that is being made.
struct Walk<'a> {
    registry: &'a RegistryClient,
    job: &'a Job<'a>,
    top: Digest,
    /// The manifest whose labels are read first, as far as is known.
    first: Digest,
    plan: Plan,
    blobs: HashSet<Digest>,
    children: HashSet<Digest>,
    /// Of the children read so far.
    bytes: usize,
}

impl Walk<'_> {
    /// Takes note of what a manifest references; gives the children that were not met before.
    async fn note(&mut self, manifest: &Manifest) -> Result<Vec<Digest>, Error> {
        let what = named(
            self.job.from.repository,
            &Reference::Digest(manifest.digest),
        );
        let read = |manifest: &Manifest, what: &str| {
            let config = manifest.config().map(|config| config.digest);
            Ok((manifest.parts(what)?, config, manifest.annotated()))
        };
        let (parts, config, annotated) = if manifest.is_large() {
            let manifest = manifest.clone();
            let reserve = &self.registry.0.reserve;
            reserve.compute(move || read(&manifest, &what)).await?
        } else {
            read(manifest, &what)?
        };
        let inner = manifest.digest != self.top && manifest.is_index();
        if (parts.nested || inner) && self.registry.is_quay(&self.job.target()) {
            return Err(too_deep(self.job.to.repository, self.top));
        }
        let mut configs = self.job.configs.lock();
        configs.extend(config);
        drop(configs);
        if self.job.labelled && manifest.digest == self.first {
            match parts.children.first() {
                Some(child) => self.first = *child,
                None if annotated.is_complete() => {}
                None => *self.job.first_config.lock() = config,
            }
        }
        let blobs = parts.blobs.into_iter();
        let new = blobs.filter(|blob| self.blobs.insert(blob.digest));
        self.plan.blobs.extend(new);
        if self.plan.blobs.len() > BLOBS_MAX {
            let what = "it consists of more than 4000 blobs";
            return Err(self.fails(Reason::TooLarge, what));
        }
        let children = parts.children.into_iter();
        let new: Vec<_> = children
            .filter(|child| self.children.insert(*child))
            .collect();
        let deep = !new.is_empty() && self.plan.levels.len() >= DEPTH_MAX;
        if deep || self.children.len() > CHILDREN_MAX {
            let what = "its index is too deep or too long";
            return Err(self.fails(Reason::UnsupportedManifest, what));
        }
        Ok(new)
    }

    fn fails(&self, reason: Reason, why: &str) -> Error {
        let message = format!("{}@{}: {why}", self.job.from.repository, self.top.short());
        Error::terminal(reason, message)
    }
}

impl RegistryClient {
    /// Brings everything `manifest` references (config, layers, child manifests) from `from` to `to`. Of layers that are not to be
    /// distributed, those that say where they are fetched from may be missing at the source. The manifest itself is not put. Within
    /// one repository there is nothing to do, but where its registry would take an index without its children: they are put again.
    /// On one host blobs are mounted where the push
    /// credential may pull the source; otherwise what the target does not have is streamed.
    ///
    /// # Errors
    /// `SourceIncomplete` if the source lacks a part; otherwise the error of a request.
    pub async fn copy(
        &self,
        from: Remote<'_>,
        manifest: impl Borrow<Manifest> + Send,
        to: Remote<'_>,
        progress: &Progress,
    ) -> Result<(), Error> {
        self.carry_out(self.job(from, to, progress)?, manifest)
            .await
    }

    /// The same of an image whose labels will be asked for in its new repository: they are read while its config is mounted.
    ///
    /// # Errors
    /// As [`RegistryClient::copy`].
    pub async fn copy_labelled(
        &self,
        from: Remote<'_>,
        manifest: impl Borrow<Manifest> + Send,
        to: Remote<'_>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut job = self.job(from, to, progress)?;
        job.labelled = true;
        self.carry_out(job, manifest).await
    }

    async fn carry_out(
        &self,
        job: Job<'_>,
        manifest: impl Borrow<Manifest> + Send,
    ) -> Result<(), Error> {
        let (from, to, progress) = (job.from, job.to, job.progress);
        let top = manifest.borrow();
        if from.repository == to.repository
            && !self.takes_sparse(&job.target(), top, progress).await?
        {
            return self.check_depth(top, to);
        }
        let plan = self.plan(&job, top).await?;
        drop(manifest);
        if from.repository != to.repository {
            self.ensure_blobs(&job, plan.blobs).await?;
        }
        for level in plan.levels.into_iter().rev() {
            stream::iter(level)
                .map(|child| self.push_child(&job, child))
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    async fn ensure_blobs(&self, job: &Job<'_>, blobs: Vec<Blob>) -> Result<(), Error> {
        job.progress
            .expects(blobs.iter().map(|blob| blob.size).sum());
        stream::iter(blobs)
            .map(|blob| async move {
                if !self.ensure_blob(job, blob).await? {
                    job.progress.spares(blob.size);
                }
                Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// A manifest on its way from one repository to another.
    pub(crate) fn job<'a>(
        &self,
        from: Remote<'a>,
        to: Remote<'a>,
        progress: &'a Progress,
    ) -> Result<Job<'a>, Error> {
        Ok(Job {
            from,
            to,
            from_at: self.endpoint(from.repository)?,
            to_at: self.endpoint(to.repository)?,
            progress,
            mounts: AtomicBool::new(from.repository.host() == to.repository.host()),
            writes: true,
            configs: Mutex::default(),
            labelled: false,
            first_config: Mutex::default(),
        })
    }

    /// Finds out what is to be brought, level by level. A survey leaves out what the target has.
    pub(crate) async fn plan(&self, job: &Job<'_>, top: &Manifest) -> Result<Plan, Error> {
        let mut walk = Walk {
            registry: self,
            job,
            top: top.digest,
            first: top.digest,
            plan: Plan::default(),
            blobs: HashSet::new(),
            children: HashSet::new(),
            bytes: 0,
        };
        let mut next = walk.note(top).await?;
        while !next.is_empty() {
            let mut found = stream::iter(next)
                .map(|digest| self.wanted(job, digest))
                .buffer_unordered(AT_ONCE);
            let mut level = Vec::new();
            next = Vec::new();
            // The level counts from here on: what its manifests list is one deeper.
            walk.plan.levels.push(Vec::new());
            while let Some(child) = found.try_next().await? {
                let Some(child) = child else {
                    continue;
                };
                // Counted as they come: a whole level of them may be sixty times as much.
                walk.bytes += child.bytes.len();
                if walk.bytes > CHILDREN_BYTES_MAX {
                    let what = "its manifests are larger than 64 MiB";
                    return Err(walk.fails(Reason::TooLarge, what));
                }
                next.extend(walk.note(&child).await?);
                level.push(child.digest);
            }
            if let Some(last) = walk.plan.levels.last_mut() {
                *last = level;
            }
        }
        walk.plan.children = walk.children.len();
        Ok(walk.plan)
    }

    /// Refuses what the registry would not keep: of an index that a tag holds, quay keeps what it lists, and not what that lists in
    /// turn.
    pub(crate) fn check_depth(&self, top: &Manifest, to: Remote<'_>) -> Result<(), Error> {
        let endpoint = self.endpoint(to.repository)?;
        let nested = top.parts("").is_ok_and(|parts| parts.nested);
        // Whichever it was spoken to for.
        let mut accesses = [true, false]
            .map(|write| Access::new(&endpoint, to.credential, to.repository, write))
            .into_iter();
        if nested && accesses.any(|access| self.is_quay(&access)) {
            return Err(too_deep(to.repository, top.digest));
        }
        Ok(())
    }

    /// The child as the source has it; nothing where a survey finds that the target has it.
    async fn wanted(&self, job: &Job<'_>, digest: Digest) -> Result<Option<Manifest>, Error> {
        if !job.writes
            && self
                .has_manifest(&job.target(), digest, job.progress)
                .await?
        {
            return Ok(None);
        }
        self.child(job, digest).await.map(Some)
    }

    /// A child as the source has it.
    async fn child(&self, job: &Job<'_>, digest: Digest) -> Result<Manifest, Error> {
        let reference = Reference::Digest(digest);
        let child = self
            .get(
                job.from.repository,
                &reference,
                job.from.credential,
                job.progress,
            )
            .await?;
        child.ok_or_else(|| {
            let message = format!(
                "{}: the source image misses this manifest; rebuild it",
                named(job.from.repository, &reference)
            );
            Error::attempt(Reason::SourceIncomplete, message)
        })
    }

    /// Puts a child manifest.
    async fn push_child(&self, job: &Job<'_>, digest: Digest) -> Result<(), Error> {
        let child = self.child(job, digest).await?;
        self.put_by_digest(job, &child).await.map(|_| ())
    }

    /// Puts a manifest by its digest, again until the registry answers that it has it. Where it misses a blob that was remembered,
    /// or that a cache showed, all are brought once more; where it misses one that it said it mounted, they are uploaded. Whether
    /// it says that it took note of what the manifest refers to.
    pub(crate) async fn put_by_digest(
        &self,
        job: &Job<'_>,
        manifest: &Manifest,
    ) -> Result<bool, Error> {
        let (target, reference) = (job.target(), Reference::Digest(manifest.digest));
        let bounds = Bounds {
            timeout: self.transport().settings.request_timeout,
            patience: None,
        };
        let (mut repeats, mut missed) = (0, 0);
        loop {
            let (put, noted) = self
                .put(&target, &reference, manifest, bounds, || true, job.progress)
                .await;
            let error = match put {
                Put::Written => return Ok(noted),
                Put::ContentMissing(_)
                    if missed < MISSED_MAX && job.from.repository != job.to.repository =>
                {
                    missed += 1;
                    let parts = manifest.parts(&named(job.to.repository, &reference))?;
                    self.ensure_blobs(job, parts.blobs).await?;
                    continue;
                }
                Put::ContentMissing(error) | Put::Refused(error) | Put::Immutable(error) => {
                    return Err(error);
                }
                Put::NotSent => continue,
                Put::Unknown(error) => error,
            };
            // A read waits until the host is well again. That it finds the manifest says nothing: a cache may have answered.
            self.has_manifest(&target, manifest.digest, job.progress)
                .await?;
            repeats += 1;
            if repeats > REPEATS_MAX {
                let message = format!("{} (repeated {REPEATS_MAX} times)", error.message);
                return Err(Error::attempt(Reason::RegistryError, message));
            }
        }
    }

    /// Takes note that the registry misses content of a manifest: its blobs are brought again, without asking for them first.
    pub(crate) fn forget_parts(&self, access: &Access<'_>, manifest: &Manifest) {
        let parts = manifest.parts("").unwrap_or_default();
        for blob in parts.blobs {
            let key = BlobKey::of(access, blob.digest);
            let known = self.0.blobs.get(&key);
            let mounted = known.is_some_and(|known| known.mounted);
            let there = false;
            self.0.blobs.insert(key, BlobState { there, mounted });
        }
    }
}

fn too_deep(to: &Repository, top: Digest) -> Error {
    let message = format!(
        "{to}@{}: its index lists an index, whose images {} would give up within the hour; list them all in one index",
        top.short(),
        to.host()
    );
    Error::terminal(Reason::UnsupportedManifest, message)
}
