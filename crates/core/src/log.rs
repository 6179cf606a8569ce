//! The log of own tag writes: what this process sent, what was answered, and what may still land.
//!
//! One entry for each write, made before it is sent: a tag is put to a digest, or (no digest) deleted. It is the only place that
//! knows two times:
//!
//! - *Settle*, S: registries answer reads from replicas, so a read may be older than our last write. Within S of its answer a read
//!   that contradicts it is not believed, and within S of the sending of an unanswered write nothing at all is launched on its float.
//! - *Late*, L: a write that was sent and not answered may land until L after it was given up. Until then its float is not passed on,
//!   and no other digest is put to its tag. A tag that binds one digest (a prune tag) needs no L: whatever lands there is the same.
//!
//! Both outlive the request they came from. Time is an argument: the engine's is that of its runtime, the model's is its own.

mod expiring;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Sub};
use std::time::Duration;

use expiring::Expiring;

use crate::image::{Digest, Float, Repository, Stamp, Tag};

/// A clock's time.
pub trait Time: Copy + Ord + Add<Duration, Output = Self> + Sub<Output = Duration> {}

impl<T: Copy + Ord + Add<Duration, Output = T> + Sub<Output = Duration>> Time for T {}

/// What a process knows of its own tag writes. Entries expire, so it stays proportional to the work under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WriteLog<T> {
    settle: Duration,
    late: Duration,
    /// Sent and not answered, by float, each until the first of them says nothing any more.
    open: Expiring<Float, Vec<Sent<T>>, T>,
    /// The floats for which a tag was sent that is not answered: one, most often.
    open_on: BTreeMap<(Repository, Tag), Vec<Float>>,
    /// The last one answered, by tag, until it has settled.
    answered: Expiring<(Repository, Tag), Option<Digest>, T>,
    /// The newest of each float, until it lies in the past.
    stamps: Expiring<Float, (), Stamp>,
    before: Option<Before<T>>,
}

/// A write without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Sent<T> {
    at: T,
    tag: Tag,
    digest: Option<Digest>,
}

/// What a process before this one may have sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Before<T> {
    /// Nothing is launched on any float before then.
    all: T,
    /// Nor before then on any that is not spared.
    others: T,
    spared: BTreeSet<Float>,
}

impl<T: Time> WriteLog<T> {
    /// An empty log. `settle` is how long a write may take to show, `late` how long after its
    /// sending one without an answer may land.
    #[must_use]
    pub fn new(settle: Duration, late: Duration) -> Self {
        Self {
            settle,
            late: late.max(settle),
            open: Expiring::default(),
            open_on: BTreeMap::new(),
            answered: Expiring::default(),
            stamps: Expiring::default(),
            before: None,
        }
    }

    /// How long a write may take to show.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.settle
    }

    // === writes ===

    /// Enters a write as sent now: whatever becomes of who sends it, it counts as unanswered from here on. False, and nothing is
    /// entered, where another write may still land on the tag. To be called directly before each sending; `again`: when the same
    /// write was sent before, and surely did not land.
    pub fn enter(
        &mut self,
        float: &Float,
        tag: &Tag,
        digest: Option<Digest>,
        again: Option<T>,
        now: T,
    ) -> bool {
        let other = self.landing_until(float.repository(), tag, digest, now);
        if other.is_some() {
            return false;
        }
        if let Some(before) = again {
            self.take(float, tag, digest, before);
        }
        self.prune(now);
        let sent = Sent {
            at: now,
            tag: tag.clone(),
            digest,
        };
        let on = (float.repository().clone(), tag.clone());
        self.open_on.entry(on).or_default().push(float.clone());
        let mut open = self.open.remove(float).unwrap_or_default();
        let place = open.partition_point(|known| *known < sent);
        open.insert(place, sent);
        self.keep_open(float.clone(), open);
        true
    }

    /// A write that was sent then was answered: the tag holds the digest, or is gone.
    pub fn answered(&mut self, float: &Float, tag: &Tag, digest: Option<Digest>, sent: T, now: T) {
        self.take(float, tag, digest, sent);
        self.prune(now);
        self.inherit(float.repository().clone(), tag.clone(), digest, now);
    }

    /// A write that was entered then was refused, or no byte of it was sent: nothing was written.
    pub fn refused(&mut self, float: &Float, tag: &Tag, digest: Option<Digest>, sent: T) {
        self.take(float, tag, digest, sent);
    }

    /// Two that are the same in all this are the same to everybody.
    fn take(&mut self, float: &Float, tag: &Tag, digest: Option<Digest>, sent: T) {
        let Some(mut open) = self.open.remove(float) else {
            return;
        };
        let same =
            |known: &Sent<T>| known.at == sent && known.tag == *tag && known.digest == digest;
        if let Some(place) = open.iter().position(same) {
            let sent = open.remove(place);
            self.forget_open(float, sent);
        }
        self.keep_open(float.clone(), open);
    }

    fn keep_open(&mut self, float: Float, open: Vec<Sent<T>>) {
        let until = open.iter().map(|sent| self.over_at(sent)).min();
        if let Some(until) = until {
            self.open.insert(float, open, until);
        }
    }

    fn forget_open(&mut self, float: &Float, sent: Sent<T>) {
        let on = (float.repository().clone(), sent.tag);
        if let Some(floats) = self.open_on.get_mut(&on) {
            if let Some(place) = floats.iter().position(|other| other == float) {
                floats.swap_remove(place);
            }
            if floats.is_empty() {
                self.open_on.remove(&on);
            }
        }
    }

    /// When a write without an answer can land no more.
    fn over_at(&self, sent: &Sent<T>) -> T {
        sent.at + lateness(self.settle, self.late, &sent.tag)
    }

    /// Lets go of what says nothing any more.
    pub fn prune(&mut self, now: T) {
        while let Some((float, open)) = self.open.pop(|until| until <= now) {
            let (over, open): (Vec<_>, Vec<_>) =
                (open.into_iter()).partition(|sent| self.over_at(sent) <= now);
            for sent in over {
                self.forget_open(&float, sent);
            }
            self.keep_open(float, open);
        }
        while self.answered.pop(|until| until <= now).is_some() {}
        let over = |before: &Before<T>| before.others.max(before.all) <= now;
        if self.before.as_ref().is_some_and(over) {
            self.before = None;
        }
    }

    // === an earlier process ===

    /// An earlier process may have sent tag writes until `last_sent`; nothing is known of them here.
    pub fn follow(&mut self, last_sent: T) {
        self.keep_quiet(last_sent + self.settle, last_sent + self.late);
    }

    /// Launches nothing on any float before `all`, nor before `others` on one that is not [spared](Self::spare).
    pub fn keep_quiet(&mut self, all: T, others: T) {
        let spared = BTreeSet::new();
        self.before = Some(Before {
            all,
            others,
            spared,
        });
    }

    /// The process before wrote this less than the settle time ago, and handed over with nothing on the wire.
    pub fn inherit(&mut self, repository: Repository, tag: Tag, digest: Option<Digest>, now: T) {
        self.answered
            .insert((repository, tag), digest, now + self.settle);
    }

    /// Until when writes of an earlier process may still land, where that is not over.
    #[must_use]
    pub fn inherited_until(&self, now: T) -> Option<T> {
        let until = self.before.as_ref().map(|b| b.others.max(b.all));
        until.filter(|&until| until > now)
    }

    /// Until when an earlier process keeps every float quiet, where that is not over.
    #[must_use]
    pub fn nothing_until(&self, now: T) -> Option<T> {
        let until = self.before.as_ref().map(|before| before.all);
        until.filter(|&until| until > now)
    }

    /// Whether it is known by now that an earlier process has nothing on the wire.
    #[must_use]
    pub fn may_spare(&self, now: T) -> bool {
        self.before.as_ref().is_none_or(|before| before.all <= now)
    }

    /// An earlier process has nothing on the wire for this float.
    pub fn spare(&mut self, float: &Float) {
        if let Some(before) = &mut self.before {
            before.spared.insert(float.clone());
        }
    }

    // === questions ===

    /// Whether a read of a tag contradicts what this process wrote there less than the settle time ago. What was sent there since and
    /// not answered may show as well.
    #[must_use]
    pub fn contradicts(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: Option<Digest>,
        now: T,
    ) -> bool {
        let Some((written, _)) = self.written(repository, tag, now) else {
            return false;
        };
        let sent = self.open_on(repository, tag).map(|sent| sent.digest);
        let mut known = sent.chain([written]);
        known.all(|digest| digest != seen)
    }

    /// Whether this process put a tag to `digest` less than the settle time ago, and sent nothing else there since.
    #[must_use]
    pub fn wrote(&self, repository: &Repository, tag: &Tag, digest: Digest, now: T) -> bool {
        let written = self.written(repository, tag, now);
        let mut sent = self.open_on(repository, tag);
        written.is_some_and(|(written, _)| written == Some(digest))
            && sent.all(|sent| sent.digest == Some(digest))
    }

    /// What was written to a tag less than the settle time ago, and until when that counts.
    #[must_use]
    pub fn written(
        &self,
        repository: &Repository,
        tag: &Tag,
        now: T,
    ) -> Option<(Option<Digest>, T)> {
        let (digest, until) = *self.answered.get(&(repository.clone(), tag.clone()))?;
        (until > now).then_some((digest, until))
    }

    /// Until when nothing may be launched on a float; none where it has settled.
    #[must_use]
    pub fn quiet_until(&self, float: &Float, now: T) -> Option<T> {
        self.until(float, now, |_| self.settle)
    }

    /// Until when a write of ours may land on a float: it is not passed on before, nor decided upon for good. None where nothing can.
    #[must_use]
    pub fn late_until(&self, float: &Float, now: T) -> Option<T> {
        self.until(float, now, |tag| lateness(self.settle, self.late, tag))
    }

    /// Until when a write of a tag may still land; none where nothing can. `but`: the write that would be no harm, by its digest, or
    /// the tag's deletion.
    #[must_use]
    pub fn landing_until(
        &self,
        repository: &Repository,
        tag: &Tag,
        but: Option<Digest>,
        now: T,
    ) -> Option<T> {
        let sent = self.open_on(repository, tag);
        let sent = sent.filter(|sent| sent.digest != but);
        let late = lateness(self.settle, self.late, tag);
        let until = sent.map(|sent| sent.at + late).max();
        until.filter(|until| *until > now)
    }

    /// When no tag write of this process can land any more; none where that is so now.
    #[must_use]
    pub fn landed_at(&self, now: T) -> Option<T> {
        let sent = self.open.iter().flat_map(|(_, (sent, _))| sent);
        let until = sent.map(|sent| self.over_at(sent));
        until.max().filter(|until| *until > now)
    }

    /// What was answered less than the settle time ago. Given to the next process once nothing can land any more, it is all that this
    /// one knew: reads are as old for the next as for this one.
    pub fn fresh(&self, now: T) -> impl Iterator<Item = (&Repository, &Tag, Option<Digest>)> {
        let fresh = self
            .answered
            .iter()
            .filter(move |(_, (_, until))| *until > now);
        fresh.map(|((repository, tag), (digest, _))| (repository, tag, *digest))
    }

    /// What was sent to a tag and not answered: few, because an answer comes or the float rests.
    fn open_on<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
    ) -> impl Iterator<Item = &'a Sent<T>> {
        let floats = self.open_on.get(&(repository.clone(), tag.clone()));
        let mut floats: Vec<_> = floats.into_iter().flatten().collect();
        floats.sort_unstable();
        floats.dedup();
        let open = floats.into_iter().filter_map(|float| self.open.get(float));
        let sent = open.flat_map(|(sent, _)| sent);
        sent.filter(move |sent| sent.tag == *tag)
    }

    /// The latest of: sent writes plus what `lasts` says of their tag, and writes that an earlier process may have sent.
    fn until(&self, float: &Float, now: T, lasts: impl Fn(&Tag) -> Duration) -> Option<T> {
        let sent = self.open.get(float).into_iter().flat_map(|(sent, _)| sent);
        let sent = sent.map(|sent| sent.at + lasts(&sent.tag)).max();
        let before = self.before.as_ref().map(|before| {
            if before.spared.contains(float) {
                before.all
            } else {
                before.others.max(before.all)
            }
        });
        sent.max(before).filter(|until| *until > now)
    }

    /// When what it says of a float changes, without a further write.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> impl Iterator<Item = T> {
        let sent = self.open.iter().flat_map(|(_, (sent, _))| sent);
        let sent = sent.map(|sent| sent.at);
        let sent = sent.flat_map(|at| [at + self.settle, at + self.late]);
        let before = self.before.iter();
        sent.chain(before.flat_map(|before| [before.all, before.others]))
    }

    // === stamps ===

    /// The newest prune stamp this process recorded for a float.
    #[must_use]
    pub fn newest_stamp(&self, float: &Float) -> Option<Stamp> {
        self.stamps.get(float).map(|((), stamp)| *stamp)
    }

    /// Remembers a float's prune stamp. Stamps that lie in the past need no memory: the clock is above them.
    pub fn note_stamp(&mut self, float: &Float, stamp: Stamp, now: Stamp) {
        self.forget_stamps(now);
        let newest = stamp.max(self.newest_stamp(float).unwrap_or(stamp));
        self.stamps.insert(float.clone(), (), newest);
    }

    /// Lets go of the stamps that lie in the past.
    pub fn forget_stamps(&mut self, now: Stamp) {
        while self.stamps.pop(|known| known < now).is_some() {}
    }
}

/// How long after its sending a write of this tag may matter.
fn lateness(settle: Duration, late: Duration, tag: &Tag) -> Duration {
    if Stamp::of(tag).is_some() {
        settle
    } else {
        late
    }
}

#[cfg(test)]
mod tests;
