//! What this process knows of its own tag writes: what it sent, what was answered, and what may still land.
//!
//! One record of each, entered before it is sent. It is the only place that knows two times:
//!
//! - *Settle*, S: registries answer reads from replicas, so a read may be older than our last write. Within S of its answer a read
//!   that contradicts it is not believed, and within S of the sending of an unanswered write nothing at all is launched on its float.
//! - *Late*, L: a write that was sent and not answered may land until L after it was given up. Until then its float is not passed on,
//!   and no other digest is put to its tag. A tag that binds one digest (a prune tag) needs no L: whatever lands there is the same.
//!
//! Both outlive the request they came from.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::image::{Digest, Float, Repository, Stamp, Tag};
use crate::registry::SingleFlight;

/// The process's record of its own writes. Entries expire, so it stays proportional to the work under way.
#[derive(Debug)]
pub struct Memory {
    settle: Duration,
    late: Duration,
    inner: Mutex<Inner>,
    /// Tags that belong to no float alone: one writes at a time.
    pub(super) tag_locks: SingleFlight<(Repository, Tag)>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sent and not answered, by float.
    open: HashMap<Float, Vec<Sent>>,
    /// The last one answered, by tag.
    answered: HashMap<(Repository, Tag), (Digest, Instant)>,
    newest: u64,
    stamps: HashMap<Float, Stamp>,
    before: Option<Before>,
}

/// A write without an answer.
#[derive(Debug)]
struct Sent {
    number: u64,
    tag: Tag,
    digest: Digest,
    at: Instant,
}

/// What a process before this one may have sent.
#[derive(Debug)]
struct Before {
    /// Nothing is launched on any float before then.
    all: Instant,
    /// Nor before then on any that is not spared.
    others: Instant,
    spared: HashSet<Float>,
}

/// A write of one tag, as it is entered in the record.
#[derive(Debug)]
pub(super) struct Write<'a> {
    memory: &'a Memory,
    number: u64,
    float: &'a Float,
    tag: &'a Tag,
    digest: Digest,
}

// === impl Memory ===

impl Memory {
    /// An empty record. `settle` is how long a write may take to show, `late` how long after its
    /// sending one without an answer may land.
    #[must_use]
    pub fn new(settle: Duration, late: Duration) -> Self {
        Self {
            settle,
            late: late.max(settle),
            inner: Mutex::default(),
            tag_locks: SingleFlight::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// How long a write may take to show.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.settle
    }

    /// An earlier process may have sent tag writes until `last_sent`; nothing is known of them here.
    pub fn follow(&self, last_sent: Instant) {
        self.keep_quiet(last_sent + self.settle, last_sent + self.late);
    }

    /// Until when writes of an earlier process may still land, where that is not over.
    #[must_use]
    pub fn inherited_until(&self, now: Instant) -> Option<Instant> {
        let inner = self.lock();
        let until = inner.before.as_ref().map(|b| b.others.max(b.all));
        until.filter(|&until| until > now)
    }

    /// Launches nothing on any float before `all`, nor before `others` on one that is not [spared](Self::spare).
    pub fn keep_quiet(&self, all: Instant, others: Instant) {
        let spared = HashSet::new();
        self.lock().before = Some(Before {
            all,
            others,
            spared,
        });
    }

    /// Whether it is known by now that an earlier process has nothing on the wire.
    pub(super) fn may_spare(&self, now: Instant) -> bool {
        let inner = self.lock();
        inner.before.as_ref().is_none_or(|before| before.all <= now)
    }

    /// An earlier process has nothing on the wire for this float.
    pub(super) fn spare(&self, float: &Float) {
        if let Some(before) = &mut self.lock().before {
            before.spared.insert(float.clone());
        }
    }

    /// A write of `tag`, in the float's repository, that is about to be sent.
    pub(super) fn write<'a>(&'a self, float: &'a Float, tag: &'a Tag, digest: Digest) -> Write<'a> {
        let mut inner = self.lock();
        inner.newest += 1;
        Write {
            memory: self,
            number: inner.newest,
            float,
            tag,
            digest,
        }
    }

    /// Whether a read of a tag contradicts what this process wrote there less than the settle time ago. What was sent there since and
    /// not answered may show as well.
    #[must_use]
    pub fn contradicts(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: Option<Digest>,
        now: Instant,
    ) -> bool {
        let inner = self.lock();
        let Some(written) = inner.answered_since(repository, tag, now, self.settle) else {
            return false;
        };
        let sent = inner.open_on(repository, tag).map(|sent| sent.digest);
        let mut known = sent.chain([written]);
        seen.is_none_or(|seen| known.all(|digest| digest != seen))
    }

    /// Whether this process put a tag to `digest` less than the settle time ago, and sent nothing else there since.
    #[must_use]
    pub fn wrote(&self, repository: &Repository, tag: &Tag, digest: Digest, now: Instant) -> bool {
        let inner = self.lock();
        let written = inner.answered_since(repository, tag, now, self.settle);
        let mut sent = inner.open_on(repository, tag);
        written == Some(digest) && sent.all(|sent| sent.digest == digest)
    }

    /// Until when nothing may be launched on a float; none where it has settled.
    #[must_use]
    pub fn quiet_until(&self, float: &Float, now: Instant) -> Option<Instant> {
        self.lock().until(float, now, |_| self.settle)
    }

    /// Until when a write of ours may land on a float: it is not passed on before, nor decided upon for good. None where nothing can.
    #[must_use]
    pub fn late_until(&self, float: &Float, now: Instant) -> Option<Instant> {
        let mut inner = self.lock();
        inner.until(float, now, |tag| self.lateness(tag))
    }

    /// Until when a write of a tag may still land; none where nothing can. `but`: the digest that would be no harm.
    #[must_use]
    pub(super) fn landing_until(
        &self,
        repository: &Repository,
        tag: &Tag,
        but: Option<Digest>,
        now: Instant,
    ) -> Option<Instant> {
        let inner = self.lock();
        let sent = inner.open_on(repository, tag);
        let sent = sent.filter(|sent| Some(sent.digest) != but);
        let until = sent.map(|sent| sent.at + self.lateness(tag)).max();
        until.filter(|until| *until > now)
    }

    /// When every tag write of this process has shown, or can land no more; none where that is so now.
    #[must_use]
    pub fn settled_at(&self, now: Instant) -> Option<Instant> {
        let inner = self.lock();
        let sent = inner.open.values().flatten();
        let sent = sent.map(|sent| sent.at + self.lateness(&sent.tag));
        let answered = inner.answered.values().map(|(_, at)| *at + self.settle);
        sent.chain(answered).max().filter(|until| *until > now)
    }

    /// How long after its sending a write of this tag may matter.
    fn lateness(&self, tag: &Tag) -> Duration {
        if Stamp::of(tag).is_some() {
            self.settle
        } else {
            self.late
        }
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

// === impl Inner ===

impl Inner {
    /// What was written to a tag, if that was answered less than `settle` ago.
    fn answered_since(
        &self,
        repository: &Repository,
        tag: &Tag,
        now: Instant,
        settle: Duration,
    ) -> Option<Digest> {
        let written = self.answered.get(&(repository.clone(), tag.clone()));
        let written = written.filter(|(_, at)| *at + settle > now);
        written.map(|(digest, _)| *digest)
    }

    /// What was sent to a tag and not answered: few, because an answer comes or the float rests.
    fn open_on<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
    ) -> impl Iterator<Item = &'a Sent> {
        let there = self.open.iter();
        let there = there.filter(move |(float, _)| float.repository() == repository);
        let sent = there.flat_map(|(_, sent)| sent);
        sent.filter(move |sent| sent.tag == *tag)
    }

    /// The latest of: sent writes plus what `lasts` says of their tag, and writes that an earlier process may have sent.
    fn until(
        &mut self,
        float: &Float,
        now: Instant,
        lasts: impl Fn(&Tag) -> Duration,
    ) -> Option<Instant> {
        let sent = self.open.get(float).into_iter().flatten();
        let sent = sent.map(|sent| sent.at + lasts(&sent.tag)).max();
        if self
            .before
            .as_ref()
            .is_some_and(|b| b.others.max(b.all) <= now)
        {
            self.before = None;
        }
        let before = self.before.as_ref().map(|before| {
            if before.spared.contains(float) {
                before.all
            } else {
                before.others.max(before.all)
            }
        });
        sent.max(before).filter(|until| *until > now)
    }

    fn take(&mut self, float: &Float, number: u64) -> Option<Sent> {
        let sent = self.open.get_mut(float)?;
        let at = sent.iter().position(|sent| sent.number == number)?;
        let taken = sent.swap_remove(at);
        if sent.is_empty() {
            self.open.remove(float);
        }
        Some(taken)
    }
}

// === impl Write ===

impl Write<'_> {
    /// Enters it as sent now: whatever becomes of who sent it, it counts as unanswered from here on. False, and nothing is entered,
    /// where another digest may still land on the tag. To be called directly before each sending.
    pub(super) fn enter(&self, now: Instant) -> bool {
        let memory = self.memory;
        let late = memory.lateness(self.tag);
        let mut inner = memory.lock();
        let other = inner
            .open_on(self.float.repository(), self.tag)
            .any(|sent| sent.digest != self.digest && sent.at + late > now);
        if other {
            return false;
        }
        inner.take(self.float, self.number);
        let late = memory.late;
        inner.open.retain(|_, sent| {
            sent.retain(|sent| sent.at + late > now);
            !sent.is_empty()
        });
        let sent = Sent {
            number: self.number,
            tag: self.tag.clone(),
            digest: self.digest,
            at: now,
        };
        inner.open.entry(self.float.clone()).or_default().push(sent);
        true
    }

    /// It was answered: the tag holds the digest.
    pub(super) fn answered(&self, now: Instant) {
        let settle = self.memory.settle;
        let mut inner = self.memory.lock();
        inner.take(self.float, self.number);
        inner.answered.retain(|_, (_, at)| *at + settle > now);
        let key = (self.float.repository().clone(), self.tag.clone());
        inner.answered.insert(key, (self.digest, now));
    }

    /// It was refused, or no byte of it was sent: nothing was written.
    pub(super) fn refused(&self) {
        self.memory.lock().take(self.float, self.number);
    }
}

#[cfg(test)]
mod tests;
