//! A registry that collects at once: a manifest that loses its last tag is gone in that moment.
//!
//! What was pushed and never tagged is kept until it expires. A lenient registry takes a tag for what it does not have: there,
//! only the order of requests keeps a float from dangling.

use std::collections::{BTreeMap, BTreeSet};

use crate::image::{Digest, Tag};

/// One repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Registry {
    /// Where the tags are.
    pub tags: BTreeMap<Tag, Digest>,
    content: BTreeSet<Digest>,
    fresh: BTreeSet<Digest>,
    lenient: bool,
}

impl Registry {
    /// An empty one; a lenient one takes tags for missing content.
    pub fn new(lenient: bool) -> Self {
        Self {
            lenient,
            ..Self::default()
        }
    }

    /// Where a tag is, as a GET by tag answers.
    pub fn look(&self, tag: &Tag) -> Option<Digest> {
        self.tags
            .get(tag)
            .copied()
            .filter(|&digest| self.has(digest))
    }

    /// Whether a digest resolves.
    pub fn has(&self, digest: Digest) -> bool {
        self.content.contains(&digest)
    }

    /// Pushes a manifest with its content, without a tag.
    pub fn push(&mut self, digest: Digest) {
        if self.content.insert(digest) {
            self.fresh.insert(digest);
        }
    }

    /// Puts a tag; false where the content is missing. The second part is the digest that lost its last tag.
    pub fn put(&mut self, tag: &Tag, digest: Digest) -> (bool, Option<Digest>) {
        if !self.has(digest) && !self.lenient {
            return (false, None);
        }
        self.fresh.remove(&digest);
        let old = self.tags.insert(tag.clone(), digest);
        (true, old.and_then(|old| self.collect(old)))
    }

    /// Removes a tag; gives the digest that lost its last one.
    pub fn delete(&mut self, tag: &Tag) -> Option<Digest> {
        let old = self.tags.remove(tag)?;
        self.collect(old)
    }

    /// Removes what a tag holds, with all its tags, as some registries do when a tag is deleted.
    pub fn delete_image(&mut self, tag: &Tag) -> Option<Digest> {
        let old = self.tags.remove(tag)?;
        self.tags.retain(|_, held| *held != old);
        self.collect(old)
    }

    /// What was pushed and never tagged is given up.
    pub fn expire(&mut self) {
        for digest in std::mem::take(&mut self.fresh) {
            self.content.remove(&digest);
        }
    }

    fn collect(&mut self, digest: Digest) -> Option<Digest> {
        if self.tags.values().any(|held| *held == digest) {
            return None;
        }
        self.content.remove(&digest).then_some(digest)
    }
}
