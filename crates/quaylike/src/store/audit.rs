//! The check of "never dangling": looks up anew what every tag reaches.
//!
//! In: a repository. Out: each tag from which something does not resolve. It walks down from the tags and does not use the counts of
//! holders, so that it notices if they are wrong.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::repository::Repository;
use crate::content::Digest;

/// Records kept by the running audit.
const RECORDS: usize = 10_000;

/// A tag from which something does not resolve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dangling {
    /// Repository of the tag.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// The digest it has.
    pub digest: Digest,
    /// What does not resolve: `digest` itself, a child, or a blob.
    pub missing: Digest,
}

/// What the running audit has seen.
#[derive(Debug, Default)]
pub(super) struct AuditTrail {
    now: BTreeSet<Dangling>,
    seen: Vec<Dangling>,
}

impl AuditTrail {
    /// Every dangling tag ever recorded, in the order in which they began to dangle.
    pub(super) fn seen(&self) -> &[Dangling] {
        &self.seen
    }

    pub(super) fn record(&mut self, repository: &str, found: Vec<Dangling>) {
        self.now
            .retain(|known| known.repository != repository || found.contains(known));
        for dangling in found {
            if self.now.insert(dangling.clone()) && self.seen.len() < RECORDS {
                self.seen.push(dangling);
            }
        }
    }
}

/// Every tag of a repository that dangles now.
pub(super) fn dangling(name: &str, repository: &Repository) -> Vec<Dangling> {
    let mut reached = HashMap::new();
    let mut found = Vec::new();
    for (tag, digest) in &repository.tags {
        reach(repository, *digest, &mut reached);
        for missing in reached.get(digest).into_iter().flatten() {
            found.push(Dangling {
                repository: name.to_owned(),
                tag: tag.clone(),
                digest: *digest,
                missing: *missing,
            });
        }
    }
    found
}

/// Notes for `top` and all manifests below it what does not resolve from there. Children come before their parents.
fn reach(repository: &Repository, top: Digest, reached: &mut HashMap<Digest, Vec<Digest>>) {
    let mut work = vec![(top, false)];
    while let Some((digest, below_done)) = work.pop() {
        if reached.contains_key(&digest) {
            continue;
        }
        let kept = repository.manifests.get(&digest);
        let Some(kept) = kept.filter(|_| repository.resolves(digest)) else {
            reached.insert(digest, vec![digest]);
            continue;
        };
        let manifest = &kept.content;
        if below_done {
            let blobs = manifest.blobs.iter().copied();
            let mut missing: Vec<Digest> = blobs
                .filter(|blob| !repository.blobs.contains_key(blob))
                .collect();
            for child in &manifest.children {
                missing.extend(reached.get(child).into_iter().flatten());
            }
            missing.sort_unstable();
            missing.dedup();
            reached.insert(digest, missing);
        } else {
            work.push((digest, true));
            work.extend(manifest.children.iter().map(|child| (*child, false)));
        }
    }
}
