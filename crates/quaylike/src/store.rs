//! The state of the registry: repositories, tags, manifests, blobs, and the collection of what nothing holds.
//!
//! In: pushes, tag moves, deletions, and the time they happen at. Out: what resolves now.
//!
//! # Guarantees
//!
//! With [`Settings::collect`] a repository holds exactly what is reachable from its tags and from its grace holds:
//!
//! - a tag holds its manifest, a manifest its children and its blobs, and with [`Settings::referrers`] a subject the manifests that
//!   refer to it;
//! - content pushed without a tag (a manifest by digest, an uploaded or mounted blob) is held by itself for [`Settings::hold`].
//!   That grace ends early when a tag first holds the content after the push, directly or through an index; from then on it
//!   lives no longer than its holders. Quay keeps its temporary tag the full hour; ending it early is the stricter test.
//! - the moment the last holder goes, the content goes, and so on down, in the same call.
//!
//! Holders are counted for each digest, so a call costs the size of the images it touches, never that of the repository.

mod audit;
mod labels;
mod repository;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::content::{Blob, Digest};
use super::manifest::Manifest;
use super::settings::Settings;
use audit::AuditTrail;
pub use audit::Dangling;
pub use repository::StoreError;
use repository::{Change, Graced, Repository, Stored};

const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// Everything the registry stores. Pure: it asks no clock and does no I/O.
#[derive(Debug)]
pub struct Store {
    pub(super) settings: Settings,
    repositories: BTreeMap<String, Repository>,
    trail: AuditTrail,
    /// When graces end. Entries may be outdated: the content's own `grace` decides.
    graces: BinaryHeap<Reverse<(Instant, String, Graced)>>,
    /// When tags expire, each for the change that set it.
    lives: BinaryHeap<Reverse<(Instant, String, String, u64)>>,
    /// Number of the newest tag change.
    seq: u64,
}

/// One change of a tag.
#[derive(Clone, Debug, Serialize)]
pub struct TagChange {
    /// Its number, counted over all tags of the registry.
    pub seq: u64,
    /// The digest the tag had from then on; none for a deletion.
    pub digest: Option<Digest>,
}

/// What a lagging replica says of a tag.
#[derive(Debug)]
pub enum Stale {
    /// The tag has not changed lately: the present answer stands.
    Current,
    /// The tag was not there.
    Absent,
    /// The tag had this manifest.
    Was(Arc<Manifest>),
}

// === impl Store ===

impl Store {
    /// An empty registry.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            repositories: BTreeMap::new(),
            trail: AuditTrail::default(),
            graces: BinaryHeap::new(),
            lives: BinaryHeap::new(),
            seq: 0,
        }
    }

    /// Changes the settings. Turning `collect` on drops at once what nothing holds.
    pub fn change(&mut self, settings: Settings, now: Instant) {
        let less = !self.settings.collect || (self.settings.referrers && !settings.referrers);
        let sweep = settings.collect && less;
        self.settings = settings;
        for repository in self.repositories.values_mut() {
            repository.subjects_hold = settings.referrers;
            repository.one_level = settings.one_level;
        }
        self.expire(now);
        if sweep {
            self.repositories.values_mut().for_each(Repository::sweep);
        }
        let names: Vec<String> = self.repositories.keys().cloned().collect();
        for name in names {
            self.examine(&name);
        }
    }

    /// Makes sure that the repository exists.
    pub fn create(&mut self, repository: &str) {
        self.repository_mut(repository);
    }

    /// Whether the repository exists.
    #[must_use]
    pub fn exists(&self, repository: &str) -> bool {
        self.repositories.contains_key(repository)
    }

    /// Lets everybody pull from a repository, or no longer. Creates it.
    pub fn set_public(&mut self, repository: &str, public: bool) {
        self.repository_mut(repository).public = public;
    }

    /// Whether everybody may pull from it.
    #[must_use]
    pub fn is_public(&self, repository: &str) -> bool {
        self.repositories
            .get(repository)
            .is_some_and(|found| found.public)
    }

    /// Ends graces and removes tags that are over at `now`. Every other call does this first.
    pub fn expire(&mut self, now: Instant) {
        while let Some(Reverse((due, ..))) = self.lives.peek()
            && *due <= now
        {
            let Some(Reverse((_, name, tag, seq))) = self.lives.pop() else {
                return;
            };
            // One that was set again since has a life of its own, or none.
            if self
                .history(&name, &tag)
                .last()
                .is_some_and(|last| last.seq == seq)
            {
                self.move_tag(&name, &tag, None, now);
            }
        }
        while let Some(Reverse((due, ..))) = self.graces.peek()
            && *due <= now
        {
            let Some(Reverse((_, name, held))) = self.graces.pop() else {
                return;
            };
            let Some(repository) = self.repositories.get_mut(&name) else {
                continue;
            };
            if repository.end_grace(held, now) && self.settings.collect {
                match held {
                    Graced::Manifest(digest) => repository.collect_manifest(digest),
                    Graced::Blob(digest) => repository.collect_blob(digest),
                }
                self.examine(&name);
            }
        }
    }

    /// The manifest a digest names.
    ///
    /// # Errors
    /// The repository or the digest does not resolve.
    pub fn manifest(
        &mut self,
        repository: &str,
        digest: Digest,
        now: Instant,
    ) -> Result<Arc<Manifest>, StoreError> {
        self.expire(now);
        self.repository(repository)?.resolve(digest)
    }

    /// The manifest a tag names.
    ///
    /// # Errors
    /// The repository, the tag, or the tag's digest does not resolve.
    pub fn tagged(
        &mut self,
        repository: &str,
        tag: &str,
        now: Instant,
    ) -> Result<Arc<Manifest>, StoreError> {
        self.expire(now);
        let found = self.repository(repository)?;
        let digest = found.tags.get(tag);
        found.manifest(*digest.ok_or_else(|| StoreError::ManifestUnknown(tag.to_owned()))?)
    }

    /// What a replica that lags by `lag` says of a tag.
    #[must_use]
    pub fn stale(&self, repository: &str, tag: &str, lag: Duration, now: Instant) -> Stale {
        let changes = self
            .repositories
            .get(repository)
            .and_then(|found| found.changes.get(tag));
        let Some(changes) = changes else {
            return Stale::Current;
        };
        let seen = |change: &&Change| now.saturating_duration_since(change.at) >= lag;
        match changes.iter().rev().position(|change| seen(&change)) {
            Some(0) => Stale::Current,
            Some(back) => match changes.iter().rev().nth(back) {
                Some(Change {
                    manifest: Some(manifest),
                    ..
                }) => Stale::Was(manifest.clone()),
                Some(Change { digest: None, .. }) => Stale::Absent,
                _ => Stale::Current,
            },
            None => Stale::Absent,
        }
    }

    /// Stores a manifest and points `tag` at it; without a tag it is held for the grace.
    ///
    /// # Errors
    /// [`StoreError::ContentUnknown`] where [`Settings::check`] is on and content is missing; nothing has changed then, but that the
    /// repository exists.
    pub fn put_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        manifest: &Arc<Manifest>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.expire(now);
        let (check, sparse) = (self.settings.check, self.settings.sparse);
        let found = self.repository_mut(repository);
        if check {
            found.check(manifest, sparse)?;
        }
        let digest = manifest.digest;
        found.insert(manifest);
        match tag {
            Some(tag) => self.move_tag(repository, tag, Some(digest), now),
            None => self.grant(repository, Graced::Manifest(digest), now),
        }
        Ok(())
    }

    /// Whether a tag is there that cannot be moved or deleted, by the labels of its image.
    #[must_use]
    pub fn is_immutable(&self, repository: &str, tag: &str) -> bool {
        let found = self.repositories.get(repository);
        found.is_some_and(|found| found.immutable.contains(tag))
    }

    /// Points a tag at a digest that the repository has.
    ///
    /// # Errors
    /// The repository or the digest does not resolve.
    pub fn set_tag(
        &mut self,
        repository: &str,
        tag: &str,
        digest: Digest,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.manifest(repository, digest, now)?;
        self.move_tag(repository, tag, Some(digest), now);
        Ok(())
    }

    /// Removes one tag.
    ///
    /// # Errors
    /// The repository or the tag does not exist.
    pub fn delete_tag(
        &mut self,
        repository: &str,
        tag: &str,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.expire(now);
        if !self.repository(repository)?.tags.contains_key(tag) {
            return Err(StoreError::ManifestUnknown(tag.to_owned()));
        }
        self.move_tag(repository, tag, None, now);
        Ok(())
    }

    /// Removes all tags of a digest and its grace, as quay does for a `DELETE` by digest. An index that is held keeps it.
    ///
    /// # Errors
    /// The repository or the digest does not resolve.
    pub fn delete_manifest(
        &mut self,
        repository: &str,
        digest: Digest,
        now: Instant,
    ) -> Result<Vec<String>, StoreError> {
        self.manifest(repository, digest, now)?;
        let found = self.repository_mut(repository);
        let tags: Vec<String> = found
            .tagged
            .get(&digest)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        if let Some(kept) = found.manifests.get_mut(&digest) {
            kept.grace = None;
        }
        for tag in &tags {
            self.move_tag(repository, tag, None, now);
        }
        // Also where nothing else is collected: the caller asked for this one.
        self.repository_mut(repository).collect_manifest(digest);
        self.examine(repository);
        Ok(tags)
    }

    /// Takes a blob out of a repository, whatever holds it: what a broken storage does.
    pub fn lose_blob(&mut self, repository: &str, digest: Digest) -> bool {
        let lost = self
            .repository_mut(repository)
            .blobs
            .remove(&digest)
            .is_some();
        self.examine(repository);
        lost
    }

    /// Takes a manifest out of a repository, whatever holds it, and whatever it alone held with it.
    pub fn lose_manifest(&mut self, repository: &str, digest: Digest) -> bool {
        let lost = self.repository_mut(repository).remove_manifest(digest);
        self.examine(repository);
        lost
    }

    /// The blob a digest names.
    ///
    /// # Errors
    /// The repository or the blob does not exist.
    pub fn blob(
        &mut self,
        repository: &str,
        digest: Digest,
        now: Instant,
    ) -> Result<Blob, StoreError> {
        self.expire(now);
        let found = self.repository(repository)?.blobs.get(&digest);
        Ok(found
            .ok_or(StoreError::BlobUnknown(digest))?
            .content
            .clone())
    }

    /// Stores a blob, held for the grace. One that is there already keeps its content.
    pub fn put_blob(&mut self, repository: &str, digest: Digest, blob: Blob, now: Instant) {
        self.expire(now);
        self.repository_mut(repository)
            .blobs
            .entry(digest)
            .or_insert(Stored {
                content: blob,
                grace: None,
            });
        self.grant(repository, Graced::Blob(digest), now);
    }

    /// Copies a blob from another repository, held for the grace.
    ///
    /// # Errors
    /// The source repository or the blob in it does not exist.
    pub fn mount_blob(
        &mut self,
        from: &str,
        to: &str,
        digest: Digest,
        now: Instant,
    ) -> Result<(), StoreError> {
        let blob = self.blob(from, digest, now)?;
        self.put_blob(to, digest, blob, now);
        Ok(())
    }

    /// The tags of a repository with their digests, in order.
    ///
    /// # Errors
    /// The repository does not exist.
    pub fn tags(
        &mut self,
        repository: &str,
        now: Instant,
    ) -> Result<&BTreeMap<String, Digest>, StoreError> {
        self.expire(now);
        Ok(&self.repository(repository)?.tags)
    }

    /// Every change of a tag, oldest first, at most the newest 256.
    #[must_use]
    pub fn history(&self, repository: &str, tag: &str) -> Vec<TagChange> {
        self.repositories
            .get(repository)
            .and_then(|found| found.changes.get(tag))
            .into_iter()
            .flatten()
            .map(|change| TagChange {
                seq: change.seq,
                digest: change.digest,
            })
            .collect()
    }

    /// The stored manifests whose subject is `digest`.
    #[must_use]
    pub fn referrers(
        &mut self,
        repository: &str,
        digest: Digest,
        now: Instant,
    ) -> Vec<Arc<Manifest>> {
        self.expire(now);
        let Some(found) = self.repositories.get(repository) else {
            return Vec::new();
        };
        let referrers = found.referrers.get(&digest).into_iter().flatten();
        referrers
            .filter_map(|referrer| found.manifest(*referrer).ok())
            .collect()
    }

    /// Repository, tag, digest: the whole of what tags say.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, BTreeMap<String, Digest>> {
        self.repositories
            .iter()
            .map(|(name, found)| (name.clone(), found.tags.clone()))
            .collect()
    }

    fn repository(&self, name: &str) -> Result<&Repository, StoreError> {
        self.repositories
            .get(name)
            .ok_or_else(|| StoreError::RepositoryUnknown(name.to_owned()))
    }

    fn repository_mut(&mut self, name: &str) -> &mut Repository {
        if !self.repositories.contains_key(name) {
            let repository = Repository {
                subjects_hold: self.settings.referrers,
                one_level: self.settings.one_level,
                ..Repository::default()
            };
            self.repositories.insert(name.to_owned(), repository);
        }
        self.repositories.entry(name.to_owned()).or_default()
    }

    fn move_tag(&mut self, repository: &str, tag: &str, digest: Option<Digest>, now: Instant) {
        self.seq += 1;
        let (seq, collect, labels) = (self.seq, self.settings.collect, self.settings.has_labels());
        let found = self.repository_mut(repository);
        let before = found.retag(tag, digest, seq, now);
        let rule = digest
            .filter(|_| labels)
            .map(|digest| found.tag_rule(digest));
        let rule = rule.unwrap_or_default();
        found.immutable.remove(tag);
        if rule.immutable {
            found.immutable.insert(tag.to_owned());
        }
        if let Some(before) = before
            && collect
        {
            found.collect_manifest(before);
        }
        if let Some(due) = rule.life.and_then(|life| now.checked_add(life)) {
            let life = (due, repository.to_owned(), tag.to_owned(), seq);
            self.lives.push(Reverse(life));
        }
        self.examine(repository);
    }

    fn grant(&mut self, repository: &str, held: Graced, now: Instant) {
        // A hold beyond the clock's range lasts for a century.
        let until = now.checked_add(self.settings.hold).unwrap_or(now + CENTURY);
        self.repository_mut(repository).set_grace(held, Some(until));
        self.graces
            .push(Reverse((until, repository.to_owned(), held)));
        self.examine(repository);
    }

    /// Every tag that dangles now.
    #[must_use]
    pub fn dangling(&self) -> Vec<Dangling> {
        self.repositories
            .iter()
            .flat_map(|(name, found)| audit::dangling(name, found))
            .collect()
    }

    /// Every tag that the running audit ever found dangling, in the order of the instants at which it began to.
    #[must_use]
    pub fn audit_trail(&self) -> Vec<Dangling> {
        self.trail.seen().to_vec()
    }

    /// Forgets what the running audit has found.
    pub fn clear_audit_trail(&mut self) {
        self.trail = AuditTrail::default();
    }

    /// Where the audit runs: looks at a repository after a change and records what began to dangle by it.
    fn examine(&mut self, repository: &str) {
        if !self.settings.audit {
            return;
        }
        let Some(found) = self.repositories.get(repository) else {
            return;
        };
        let found = audit::dangling(repository, found);
        self.trail.record(repository, found);
    }
}

#[cfg(test)]
mod tests;
