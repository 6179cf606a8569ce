//! One repository: who holds what, counted.
//!
//! In: manifests stored, tags moved, graces given and ended. Out: content that exists exactly as long as something holds it. For
//! each digest, the stored manifests that name it are counted, so that a collection costs only what it collects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::content::{Blob, Digest};
use crate::manifest::Manifest;

/// Changes kept for each tag: enough for any test, bounded for long runs.
const TAG_HISTORY: usize = 256;
/// How many of the newest changes keep the manifest itself, so that a stale read can be answered after its collection.
const STALE_DEPTH: usize = 4;

/// One repository. Blobs belong to a repository, as on quay.
#[derive(Debug, Default)]
pub(super) struct Repository {
    pub(super) public: bool,
    pub(super) subjects_hold: bool,
    pub(super) one_level: bool,
    pub(super) tags: BTreeMap<String, Digest>,
    pub(super) immutable: BTreeSet<String>,
    pub(super) manifests: HashMap<Digest, Stored<Arc<Manifest>>>,
    pub(super) blobs: HashMap<Digest, Stored<Blob>>,
    pub(super) changes: HashMap<String, VecDeque<Change>>,
    pub(super) tagged: HashMap<Digest, BTreeSet<String>>,
    /// How many stored manifests name this digest as a child, or as a blob.
    pub(super) parents: HashMap<Digest, usize>,
    pub(super) users: HashMap<Digest, usize>,
    pub(super) referrers: HashMap<Digest, BTreeSet<Digest>>,
}

#[derive(Debug)]
pub(super) struct Stored<T> {
    pub(super) content: T,
    pub(super) grace: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Graced {
    Manifest(Digest),
    Blob(Digest),
}

#[derive(Debug)]
pub(super) struct Change {
    pub(super) seq: u64,
    pub(super) at: Instant,
    pub(super) digest: Option<Digest>,
    pub(super) manifest: Option<Arc<Manifest>>,
}

/// Why the store refuses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// No such repository.
    #[error("repository `{0}` does not exist: push to it first")]
    RepositoryUnknown(String),
    /// The tag or digest does not resolve.
    #[error("manifest `{0}` is unknown")]
    ManifestUnknown(String),
    /// The blob is not in the repository.
    #[error("blob `{0}` is unknown")]
    BlobUnknown(Digest),
    /// A manifest names content that the repository does not have.
    #[error(
        "manifest names unknown content: blobs {blobs:?}, manifests {children:?}: push them first"
    )]
    ContentUnknown {
        /// Missing config and layers, in the manifest's order.
        blobs: Vec<Digest>,
        /// Missing children, in the index's order.
        children: Vec<Digest>,
    },
}

// === impl Repository ===

impl Repository {
    pub(super) fn manifest(&self, digest: Digest) -> Result<Arc<Manifest>, StoreError> {
        let found = self.manifests.get(&digest);
        let found = found.ok_or_else(|| StoreError::ManifestUnknown(digest.to_string()))?;
        Ok(found.content.clone())
    }

    /// The manifest a digest resolves to: also one that is stored need not.
    pub(super) fn resolve(&self, digest: Digest) -> Result<Arc<Manifest>, StoreError> {
        let found = self.manifest(digest)?;
        if self.resolves(digest) {
            Ok(found)
        } else {
            Err(StoreError::ManifestUnknown(digest.to_string()))
        }
    }

    /// Whether a stored manifest resolves by its digest.
    pub(super) fn resolves(&self, digest: Digest) -> bool {
        let alive = |digest: &Digest| {
            let kept = self.manifests.get(digest);
            self.tagged.contains_key(digest) || kept.is_some_and(|kept| kept.grace.is_some())
        };
        let named = |parent: &Digest| {
            let kept = self.manifests.get(parent);
            kept.is_some_and(|kept| kept.content.children.contains(&digest))
        };
        let subject = self.manifests.get(&digest);
        let subject = subject.and_then(|kept| kept.content.subject);
        !self.one_level
            || alive(&digest)
            || self
                .manifests
                .keys()
                .any(|parent| alive(parent) && named(parent))
            || (self.subjects_hold && subject.is_some_and(|subject| alive(&subject)))
    }

    pub(super) fn check(&self, manifest: &Manifest, sparse: bool) -> Result<(), StoreError> {
        let blobs: Vec<_> = manifest
            .blobs
            .iter()
            .filter(|digest| !self.blobs.contains_key(digest))
            .copied()
            .collect();
        let children: Vec<_> = manifest
            .children
            .iter()
            .filter(|digest| !sparse && !self.manifests.contains_key(digest))
            .copied()
            .collect();
        if blobs.is_empty() && children.is_empty() {
            Ok(())
        } else {
            Err(StoreError::ContentUnknown { blobs, children })
        }
    }

    /// Stores a manifest that is new here and counts it as a holder of what it names.
    pub(super) fn insert(&mut self, manifest: &Arc<Manifest>) {
        if self.manifests.contains_key(&manifest.digest) {
            return;
        }
        for child in &manifest.children {
            *self.parents.entry(*child).or_default() += 1;
        }
        for blob in &manifest.blobs {
            *self.users.entry(*blob).or_default() += 1;
        }
        if let Some(subject) = manifest.subject {
            self.referrers
                .entry(subject)
                .or_default()
                .insert(manifest.digest);
        }
        let kept = Stored {
            content: manifest.clone(),
            grace: None,
        };
        self.manifests.insert(manifest.digest, kept);
    }

    /// Moves or removes a tag and returns the digest it leaves.
    pub(super) fn retag(
        &mut self,
        tag: &str,
        digest: Option<Digest>,
        seq: u64,
        now: Instant,
    ) -> Option<Digest> {
        let before = match digest {
            Some(digest) => {
                self.tagged
                    .entry(digest)
                    .or_default()
                    .insert(tag.to_owned());
                self.tags.insert(tag.to_owned(), digest)
            }
            None => self.tags.remove(tag),
        };
        let before = before.filter(|before| Some(*before) != digest);
        if let Some(before) = before
            && let Some(tags) = self.tagged.get_mut(&before)
        {
            tags.remove(tag);
            if tags.is_empty() {
                self.tagged.remove(&before);
            }
        }
        if let Some(digest) = digest {
            self.end_graces_below(digest);
        }
        let manifest = digest.and_then(|digest| self.manifest(digest).ok());
        let changes = self.changes.entry(tag.to_owned()).or_default();
        changes.push_back(Change {
            seq,
            at: now,
            digest,
            manifest,
        });
        if changes.len() > TAG_HISTORY {
            changes.pop_front();
        }
        if let Some(old) = changes.len().checked_sub(STALE_DEPTH + 1)
            && let Some(old) = changes.get_mut(old)
        {
            old.manifest = None;
        }
        before
    }

    /// What a tag holds now needs no grace of its own.
    pub(super) fn end_graces_below(&mut self, digest: Digest) {
        let (mut work, mut seen) = (vec![digest], HashSet::new());
        while let Some(digest) = work.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let Some(kept) = self.manifests.get_mut(&digest) else {
                continue;
            };
            kept.grace = None;
            work.extend(&kept.content.children);
            for blob in &kept.content.blobs {
                if let Some(blob) = self.blobs.get_mut(blob) {
                    blob.grace = None;
                }
            }
        }
    }

    pub(super) fn set_grace(&mut self, held: Graced, until: Option<Instant>) {
        match held {
            Graced::Manifest(digest) => {
                if let Some(kept) = self.manifests.get_mut(&digest) {
                    kept.grace = until;
                }
            }
            Graced::Blob(digest) => {
                if let Some(kept) = self.blobs.get_mut(&digest) {
                    kept.grace = until;
                }
            }
        }
    }

    /// Whether a grace was there and is over now.
    pub(super) fn end_grace(&mut self, held: Graced, now: Instant) -> bool {
        let grace = match held {
            Graced::Manifest(digest) => self.manifests.get(&digest).and_then(|kept| kept.grace),
            Graced::Blob(digest) => self.blobs.get(&digest).and_then(|kept| kept.grace),
        };
        let over = grace.is_some_and(|until| until <= now);
        if over {
            self.set_grace(held, None);
        }
        over
    }

    pub(super) fn is_held(&self, digest: Digest) -> bool {
        let Some(kept) = self.manifests.get(&digest) else {
            return false;
        };
        kept.grace.is_some()
            || self.tagged.contains_key(&digest)
            || self.parents.contains_key(&digest)
            || (self.subjects_hold
                && kept
                    .content
                    .subject
                    .is_some_and(|subject| self.manifests.contains_key(&subject)))
    }

    /// Drops a manifest that nothing holds, and with it whatever it alone held.
    pub(super) fn collect_manifest(&mut self, digest: Digest) {
        let mut work = vec![digest];
        while let Some(digest) = work.pop() {
            if !self.is_held(digest) {
                work.extend(self.detach(digest));
            }
        }
    }

    pub(super) fn remove_manifest(&mut self, digest: Digest) -> bool {
        let present = self.manifests.contains_key(&digest);
        for released in self.detach(digest) {
            self.collect_manifest(released);
        }
        present
    }

    /// Takes a manifest away and returns the manifests that it was a holder of.
    pub(super) fn detach(&mut self, digest: Digest) -> Vec<Digest> {
        let Some(kept) = self.manifests.remove(&digest) else {
            return Vec::new();
        };
        let manifest = kept.content;
        for blob in &manifest.blobs {
            release(&mut self.users, *blob);
            self.collect_blob(*blob);
        }
        if let Some(subject) = manifest.subject
            && let Some(referrers) = self.referrers.get_mut(&subject)
        {
            referrers.remove(&digest);
            if referrers.is_empty() {
                self.referrers.remove(&subject);
            }
        }
        for child in &manifest.children {
            release(&mut self.parents, *child);
        }
        let mut released = manifest.children.clone();
        released.extend(self.referrers.get(&digest).into_iter().flatten());
        released
    }

    pub(super) fn collect_blob(&mut self, digest: Digest) {
        let graced = self
            .blobs
            .get(&digest)
            .is_some_and(|kept| kept.grace.is_some());
        if !graced && !self.users.contains_key(&digest) {
            self.blobs.remove(&digest);
        }
    }

    pub(super) fn sweep(&mut self) {
        let manifests: Vec<Digest> = self.manifests.keys().copied().collect();
        for digest in manifests {
            self.collect_manifest(digest);
        }
        let blobs: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in blobs {
            self.collect_blob(digest);
        }
    }
}

/// Takes one holder off; a digest with none left has no entry.
fn release(holders: &mut HashMap<Digest, usize>, digest: Digest) {
    if let Some(count) = holders.get_mut(&digest) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            holders.remove(&digest);
        }
    }
}
