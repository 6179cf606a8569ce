//! What this process knows of its own tag writes: what it wrote, and what may still land.
//!
//! Registries answer reads from replicas, so a read may be older than our last write: within the settle time a read that
//! contradicts it is not believed. And a write whose answer was lost may land late: until the settle time has passed since it
//! was sent, nothing is launched on that float. Both outlive the request they came from.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::image::{Digest, Float, Repository, Stamp, Tag};
use crate::registry::Flights;

/// The process's memory of its own writes. Entries leave after the settle time, so that it stays as small as what is in work.
#[derive(Debug)]
pub struct Memory {
    settle: Duration,
    inner: Mutex<Inner>,
    /// Tags that belong to no float alone: one writes at a time.
    pub(super) turns: Flights<(Repository, Tag)>,
}

#[derive(Debug, Default)]
struct Inner {
    written: HashMap<(Repository, Tag), (Digest, Instant)>,
    fences: HashMap<Float, Instant>,
    landing: HashMap<(Repository, Tag), Instant>,
    stamps: HashMap<Float, Stamp>,
    newest_write: Option<Instant>,
    quiet_until: Option<Instant>,
}

impl Memory {
    /// An empty memory. `settle` is how long a write may take to show, or to land.
    #[must_use]
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            inner: Mutex::default(),
            turns: Flights::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a write may take to show, or to land.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.settle
    }

    /// Launches nothing on any float before `until`: writes of an earlier process may still land.
    pub fn keep_quiet(&self, until: Instant) {
        let mut inner = self.lock();
        inner.quiet_until = inner.quiet_until.max(Some(until));
    }

    /// Until when writes of an earlier process may still land, where that is not over.
    #[must_use]
    pub fn inherited_until(&self, now: Instant) -> Option<Instant> {
        self.lock().quiet_until.filter(|&until| until > now)
    }

    /// A tag write is being sent now.
    pub fn sending(&self, now: Instant) {
        let mut inner = self.lock();
        inner.newest_write = inner.newest_write.max(Some(now));
    }

    /// A tag write was answered: the tag holds `digest`.
    pub fn written(&self, repository: &Repository, tag: &Tag, digest: Digest, now: Instant) {
        let mut inner = self.lock();
        let settle = self.settle;
        inner.written.retain(|_, (_, at)| *at + settle > now);
        inner
            .written
            .insert((repository.clone(), tag.clone()), (digest, now));
        inner.newest_write = inner.newest_write.max(Some(now));
    }

    /// The answer to a tag write sent at `sent` was lost: it may land until the settle time has passed.
    pub fn unanswered(&self, float: &Float, repository: &Repository, tag: &Tag, sent: Instant) {
        let mut inner = self.lock();
        let until = sent + self.settle;
        let fence = inner.fences.entry(float.clone()).or_insert(until);
        *fence = until.max(*fence);
        inner.landing.retain(|_, until| *until > sent);
        inner
            .landing
            .insert((repository.clone(), tag.clone()), until);
        // What the tag holds is not known any more.
        inner.written.remove(&(repository.clone(), tag.clone()));
    }

    /// Whether a read of a tag contradicts what this process wrote there less than the settle time ago.
    #[must_use]
    pub fn contradicts(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: Option<Digest>,
        now: Instant,
    ) -> bool {
        let inner = self.lock();
        let written = inner.written.get(&(repository.clone(), tag.clone()));
        written.is_some_and(|(digest, at)| *at + self.settle > now && seen != Some(*digest))
    }

    /// Whether this process put a tag to `digest` less than the settle time ago.
    #[must_use]
    pub fn wrote(&self, repository: &Repository, tag: &Tag, digest: Digest, now: Instant) -> bool {
        let inner = self.lock();
        let written = inner.written.get(&(repository.clone(), tag.clone()));
        written.is_some_and(|(known, at)| *at + self.settle > now && *known == digest)
    }

    /// Until when nothing may be launched on a float; none where it has settled.
    #[must_use]
    pub fn quiet_until(&self, float: &Float, now: Instant) -> Option<Instant> {
        let mut inner = self.lock();
        inner.fences.retain(|_, until| *until > now);
        let fence = inner.fences.get(float).copied();
        fence.max(inner.quiet_until.filter(|&until| until > now))
    }

    /// Until when a write of a tag may still land; none where it has settled.
    #[must_use]
    pub fn landing_until(
        &self,
        repository: &Repository,
        tag: &Tag,
        now: Instant,
    ) -> Option<Instant> {
        let inner = self.lock();
        let until = inner.landing.get(&(repository.clone(), tag.clone()));
        until.copied().filter(|until| *until > now)
    }

    /// When the newest tag write of this process, answered or not, has settled; none where there was none.
    #[must_use]
    pub fn settled_at(&self) -> Option<Instant> {
        self.lock().newest_write.map(|at| at + self.settle)
    }

    /// The newest prune stamp this process recorded for a float.
    #[must_use]
    pub fn newest_stamp(&self, float: &Float) -> Option<Stamp> {
        self.lock().stamps.get(float).copied()
    }

    /// Remembers a float's prune stamp. Stamps that lie in the past need no memory: the clock is above them.
    pub fn note_stamp(&self, float: &Float, stamp: Stamp, now: Stamp) {
        let mut inner = self.lock();
        inner.stamps.retain(|_, known| *known >= now);
        let known = inner.stamps.entry(float.clone()).or_insert(stamp);
        *known = stamp.max(*known);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SETTLE: Duration = Duration::from_secs(10);

    fn float() -> Float {
        "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap()
    }

    #[test]
    fn a_read_that_contradicts_our_own_write_is_not_believed_until_it_settled() {
        let memory = Memory::new(SETTLE);
        let (float, now) = (float(), Instant::now());
        let (repository, tag) = (float.repository(), float.tag());
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        assert!(!memory.contradicts(repository, tag, None, now));
        memory.written(repository, tag, ours, now);
        assert!(!memory.contradicts(repository, tag, Some(ours), now));
        assert!(memory.contradicts(repository, tag, Some(other), now));
        assert!(memory.contradicts(repository, tag, None, now + Duration::from_secs(9)));
        assert!(!memory.contradicts(repository, tag, None, now + SETTLE));
    }

    #[test]
    fn a_write_without_an_answer_keeps_its_float_quiet_from_when_it_was_sent() {
        let memory = Memory::new(SETTLE);
        let (float, now) = (float(), Instant::now());
        memory.unanswered(&float, float.repository(), &float.pre(), now);
        assert_eq!(memory.quiet_until(&float, now), Some(now + SETTLE));
        let other: Float = "quay.io/openshift/ci:other".parse().unwrap();
        assert_eq!(memory.quiet_until(&other, now), None);
        assert_eq!(memory.quiet_until(&float, now + SETTLE), None);
    }

    #[test]
    fn a_new_process_keeps_every_float_quiet() {
        let memory = Memory::new(SETTLE);
        let now = Instant::now();
        memory.keep_quiet(now + SETTLE);
        assert_eq!(memory.quiet_until(&float(), now), Some(now + SETTLE));
        assert_eq!(memory.quiet_until(&float(), now + SETTLE), None);
    }

    #[test]
    fn the_newest_write_counts_from_its_answer_or_its_sending() {
        let memory = Memory::new(SETTLE);
        let (float, now) = (float(), Instant::now());
        assert_eq!(memory.settled_at(), None);
        memory.sending(now);
        assert_eq!(memory.settled_at(), Some(now + SETTLE));
        let later = now + Duration::from_secs(3);
        memory.written(float.repository(), float.tag(), Digest::of(b""), later);
        assert_eq!(memory.settled_at(), Some(later + SETTLE));
    }
}
