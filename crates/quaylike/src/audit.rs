//! The judge of "never dangling": what every tag reaches, looked up anew.
//!
//! In: the store as it is. Out: each tag from which something does not resolve. It walks from the tags down and trusts none of
//! the store's holder counts, so that it would notice if they were wrong.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::content::Digest;
use super::store::{Repository, Store};

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
pub(super) struct Trail {
    now: BTreeSet<Dangling>,
    seen: Vec<Dangling>,
}

impl Store {
    /// Every tag that dangles now.
    #[must_use]
    pub fn dangling(&self) -> Vec<Dangling> {
        self.repositories
            .iter()
            .flat_map(|(name, found)| found.dangling(name))
            .collect()
    }

    /// Every tag that the running audit ever found dangling, in the order of the instants at which it began to.
    #[must_use]
    pub fn audit_trail(&self) -> Vec<Dangling> {
        self.trail.seen.clone()
    }

    /// Forgets what the running audit has found.
    pub fn clear_audit_trail(&mut self) {
        self.trail = Trail::default();
    }

    /// Where the audit runs: looks at a repository after a change and records what began to dangle by it.
    pub(super) fn examine(&mut self, repository: &str) {
        if !self.policy.audit {
            return;
        }
        let Some(found) = self.repositories.get(repository) else {
            return;
        };
        let found = found.dangling(repository);
        self.trail.record(repository, found);
    }
}

impl Trail {
    fn record(&mut self, repository: &str, found: Vec<Dangling>) {
        self.now
            .retain(|known| known.repository != repository || found.contains(known));
        for dangling in found {
            if self.now.insert(dangling.clone()) && self.seen.len() < RECORDS {
                self.seen.push(dangling);
            }
        }
    }
}

impl Repository {
    fn dangling(&self, name: &str) -> Vec<Dangling> {
        let mut reached = HashMap::new();
        let mut found = Vec::new();
        for (tag, digest) in &self.tags {
            self.reach(*digest, &mut reached);
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
    fn reach(&self, top: Digest, reached: &mut HashMap<Digest, Vec<Digest>>) {
        let mut work = vec![(top, false)];
        while let Some((digest, below_done)) = work.pop() {
            if reached.contains_key(&digest) {
                continue;
            }
            let kept = self.manifests.get(&digest);
            let Some(kept) = kept.filter(|_| self.resolves(digest)) else {
                reached.insert(digest, vec![digest]);
                continue;
            };
            let manifest = &kept.content;
            if below_done {
                let blobs = manifest.blobs.iter().copied();
                let mut missing: Vec<Digest> = blobs
                    .filter(|blob| !self.blobs.contains_key(blob))
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
}
