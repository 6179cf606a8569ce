//! The promises, as they are checked: at every write, at every save, in every state and at every end.

use std::collections::BTreeMap;

use crate::image::{Digest, Float, Stamp, Tag};
use crate::machine::{DISPLACED_MAX, Latch, OnFailure, Phase, Pin, RESCUED_MAX, Reason, Request};

use crate::steps::replay::{Ask, Seen};

use super::process::{Process, SentAt, uid};
use super::setup::{Broken, Deletion, Mutation};
use super::world::{Who, World, Write};

/// What is promised, by the rows of the table in docs/verification.md. Not here: that copies are byte-exact (7; a digest is all there is of an
/// image in this world) and that memory is bounded (9, but for the lists and attempts of a record).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    /// 1: a float that resolved goes on to.
    NeverDangling,
    /// 2: nothing that a float was seen on is lost.
    NothingLost,
    /// 3: what is written was recorded, what has ended stays so, and the record says what happened.
    RecordedBeforeDone,
    /// 4: crashes, lost answers and failed reads do not show in the tags at the end.
    Idempotent,
    /// 5: no write follows a read that failed, nor one that shows another digest than `replaces` says; no frozen float is let move.
    FailsClosed,
    /// 6: one writer per float, forwards only, the last created wins.
    ForwardsOnly,
    /// 8: no float of a group moves before all are backed up.
    Together,
    /// 9: attempts and lists stay within their bounds.
    Bounded,
    /// Every request that is not suspended ends.
    Ends,
}

/// How a run ended: the tags, prune tags without their time but counted, and each image's phase and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    tags: BTreeMap<(String, Option<Digest>), (Digest, usize)>,
    images: Vec<(Phase, Option<Reason>)>,
}

/// What the promises need to know of the past.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Past {
    /// The newest request that has its image on each float, where nobody else has written it since.
    pub winners: [Option<usize>; 2],
    /// The images that moved their float.
    pub moved: Vec<Who>,
    /// The floats that resolved.
    pub resolved: [bool; 2],
    /// What a write of an image took its float from, where a failed group is to take it back there.
    pub from: BTreeMap<Who, Digest>,
    /// Since when the leader knows of a request that it may push, where that is an action of its own.
    pub permitted: BTreeMap<usize, i64>,
    /// Foreign digests that a write of ours took off a float unseen: the exceptions of promise 2.
    pub unseen: u8,
}

impl World {
    /// Notes the first promise that breaks.
    pub fn breaks(&mut self, promise: Promise, what: impl Into<String>) {
        let what = what.into();
        self.broken.get_or_insert(Broken { promise, what });
    }

    fn strangers(&self) -> bool {
        let (all, left) = (self.setup.faults, self.left);
        (all.moved, all.back, all.removed) != (left.moved, left.back, left.removed)
    }

    /// Whether a digest is held by a prune tag of this float by whose name a revert finds it, or, of what the float is taken back
    /// from, by one whose name hides it.
    fn is_pruned(&self, float: &Float, digest: Digest, taken_back: bool) -> bool {
        let name = if taken_back {
            Float::broken
        } else {
            Float::prune
        };
        let mut tags = self.registry.tags.iter();
        tags.any(|(tag, held)| {
            *held == digest && Stamp::of(tag).is_some_and(|stamp| name(float, stamp) == *tag)
        })
    }

    /// A tag write is sent: by the record as it is now.
    pub fn check_sent(&mut self, process: &Process, write: &Write) {
        let request = self.objects[write.who.0].request.clone();
        let (index, tag) = (write.who.1, &write.tag);
        let spec = &request.spec.images[index];
        let float = &spec.float;
        let image = &request.status.images[index];
        if write.unknown {
            self.breaks(
                Promise::FailsClosed,
                format!("{tag} is written after a read that failed"),
            );
        }
        let Some(digest) = write.digest else {
            let last = image.phase.is_latched() && !request.status.rollback;
            if !(spec.remove_incoming && last && *tag == float.incoming()) {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("{tag} is deleted, and is not recorded as one that may be"),
                );
            }
            return;
        };
        let source = image.source.as_ref().map(|source| source.digest) == Some(digest);
        let taken_back = request.status.rollback && image.rollback.is_some();
        let newest = image.displaced.last().map(|pin| pin.digest);
        // A save that has landed stops steps only once it is answered. Where they moved the float, it is taken back all the same.
        let sent = process.sent.get(&write.who.0);
        let unheard = sent.is_some_and(|sent| sent.at != SentAt::Way) && source;
        let may_move = request.is_committed(index)
            && if request.status.rollback && !unheard {
                taken_back && newest == Some(digest)
            } else {
                request.failed_float().is_none() || unheard
            };
        if tag == float.tag() && !may_move {
            let promise = match request.spec.latch {
                Latch::Together => Promise::Together,
                Latch::Independently => Promise::RecordedBeforeDone,
            };
            self.breaks(
                promise,
                format!("{tag} is written, but is not recorded as one that may move"),
            );
        }
        let recorded = if Stamp::of(tag).is_some() {
            let mut pins = image.displaced.iter().chain(&image.rescued);
            pins.any(|pin| pin.tag == *tag && pin.digest == digest)
                || (image.rollback.as_ref() == Some(tag) && source)
        } else if *tag == float.pre() {
            let displaced = image.displaced.iter().any(|pin| pin.digest == digest);
            displaced || (taken_back && source)
        } else {
            source || (taken_back && tag == float.tag())
        };
        if !recorded {
            self.breaks(
                Promise::RecordedBeforeDone,
                format!("{tag} is written before it is recorded"),
            );
        }
    }

    /// A tag write lands; gives whether the registry takes it.
    pub fn land(&mut self, write: &Write) -> bool {
        let (who, tag) = (write.who, &write.tag);
        let Some(digest) = write.digest else {
            self.land_deletion(write);
            return true;
        };
        let float = self.float(who).clone();
        let number = self.setup.number(&float);
        let before = self.registry.look(tag);
        let moves = tag == float.tag() && before != Some(digest);
        let excused = moves && write.excused && self.strangers();
        if let Some(old) = before.filter(|_| moves) {
            let name = self.setup.name(old).to_owned();
            if write.saw == Some(Seen(Some(old))) {
                let image = &self.objects[who.0].request.status.images[who.1];
                let source = image.source.as_ref().map(|source| source.digest);
                let undo = self.objects[who.0].request.spec.undo;
                let taken_back = undo || source != Some(digest);
                if !self.is_pruned(&float, old, taken_back) {
                    self.breaks(
                        Promise::NothingLost,
                        format!("{name} is displaced without a prune tag"),
                    );
                }
                if self.registry.look(&float.pre()) != Some(old) {
                    self.breaks(
                        Promise::NothingLost,
                        format!("{name} is displaced without __pre"),
                    );
                }
            } else if excused {
                self.past.unseen += 1;
            } else {
                self.breaks(
                    Promise::NothingLost,
                    format!("{name} is displaced and was not looked at"),
                );
            }
        }
        let spec = &self.objects[who.0].request.spec.images[who.1];
        let image = &self.objects[who.0].request.status.images[who.1];
        let forth = image.source.as_ref().map(|source| source.digest) == Some(digest);
        if moves && forth && !excused && !spec.may_replace(before) {
            let what = format!("{tag} is moved off what replaces does not say");
            self.breaks(Promise::FailsClosed, what);
        }
        if moves {
            self.note_move(write, before, excused);
        }
        let held = self.registry.tags.get(tag).copied();
        if Stamp::of(tag).is_some() && held.is_some_and(|held| held != digest) {
            self.breaks(
                Promise::NothingLost,
                format!("{tag} is overwritten with another digest"),
            );
        }
        self.remember_for_stale_reads(tag);
        let (put, lost) = self.registry.change(|registry| registry.put(tag, digest));
        if let Some(lost) = lost.filter(|_| !excused) {
            let name = self.setup.name(lost).to_owned();
            self.breaks(
                Promise::NothingLost,
                format!("{tag} was the last tag of {name}, which is lost"),
            );
        }
        if put && moves {
            self.promoted(number, who.0);
            if !self.past.moved.contains(&who) {
                self.past.moved.push(who);
                self.past.moved.sort_unstable();
            }
        }
        put
    }

    /// A tag is deleted.
    fn land_deletion(&mut self, write: &Write) {
        let tag = &write.tag;
        self.remember_for_stale_reads(tag);
        let lost = match self.setup.scenario.deletion {
            Deletion::OfTheTag => self.registry.change(|registry| registry.delete(tag)),
            Deletion::OfTheImage => self.registry.change(|registry| registry.delete_image(tag)),
        };
        let Some(lost) = lost else { return };
        if write.excused && self.strangers() {
            self.past.unseen += 1;
            return;
        }
        let name = self.setup.name(lost).to_owned();
        self.breaks(
            Promise::NothingLost,
            format!("{tag} was the last tag of {name}, and is deleted"),
        );
    }

    /// A float moves: forth to an image, or back to where that image took it from.
    fn note_move(&mut self, write: &Write, before: Option<Digest>, excused: bool) {
        let request = &self.objects[write.who.0].request;
        if request.spec.on_failure != OnFailure::Rollback {
            return;
        }
        let source = request.status.images[write.who.1].source.as_ref();
        let source = source.map(|source| source.digest);
        if source == write.digest {
            let known = before.filter(|_| !excused);
            match known {
                Some(old) => self.past.from.insert(write.who, old),
                None => self.past.from.remove(&write.who),
            };
            return;
        }
        let from = self.past.from.get(&write.who).copied();
        let name = |digest: Option<Digest>| digest.map_or("?", |d| self.setup.name(d)).to_owned();
        let (to, from, was) = (name(write.digest), name(from), name(before));
        if from != "?" && to != from {
            let what = format!("a float is taken back to {to}, but it was taken from {from}");
            self.breaks(Promise::ForwardsOnly, what);
        }
        if before != source && !excused {
            let what =
                format!("a float is taken back from {was}, which its request did not put there");
            self.breaks(Promise::ForwardsOnly, what);
        }
    }

    /// A request has its image on a float.
    fn promoted(&mut self, number: usize, request: usize) {
        let newest = self.past.winners[number];
        if newest.is_some_and(|newest| newest > request) {
            self.breaks(
                Promise::ForwardsOnly,
                format!("f{number} goes back to the image of the older r{request}"),
            );
        }
        self.past.winners[number] = newest.max(Some(request));
    }

    /// An object is saved.
    pub fn check_saved(&mut self, index: usize, request: &Request) {
        let before = self.objects[index].request.clone();
        for (image, (new, old)) in request
            .status
            .images
            .iter()
            .zip(&before.status.images)
            .enumerate()
        {
            let name = format!("r{index}/{}", request.spec.images[image].float.tag());
            let (is, was) = (request.is_committed(image), before.is_committed(image));
            let source = |i: &crate::machine::Image| i.source.as_ref().map(|s| s.digest);
            if was && !is {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("the commit of {name} is taken back"),
                );
            }
            // What has ended is taken back, or not; then it has failed.
            let failed = new.phase == old.phase || new.phase.is_failed();
            let taken_back = request.status.rollback && failed;
            if old.phase.is_finished() && new != old && !taken_back {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("{name} had ended and is changed"),
                );
            }
            if source(old).is_some() && source(old) != source(new) {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("the source of {name} is changed"),
                );
            }
            let ended = !old.phase.is_finished() && new.phase.is_finished();
            let float = self.float((index, image)).clone();
            let there = self.registry.look(float.tag());
            let unmoved = new.phase.is_cancelled()
                || matches!(
                    new.reason,
                    Some(Reason::Superseded | Reason::Held | Reason::PreconditionFailed)
                );
            if ended && unmoved && self.past.moved.contains(&(index, image)) && there == source(new)
            {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("{name} says that it did not move its float, but it did"),
                );
            }
            if ended && new.unchanged && there == source(new) {
                let number = self.setup.number(&float);
                self.promoted(number, index);
            }
            if new.reason.is_some_and(Reason::is_foreign_move) && !self.strangers() {
                self.breaks(
                    Promise::RecordedBeforeDone,
                    format!("{name} says that somebody else moved its float, and nobody did"),
                );
            }
            if is && !was {
                self.check_committed(&before, image, &name);
            }
            let superseded =
                ended && !before.spec.suspend && new.reason == Some(Reason::Superseded);
            if superseded
                && before.awaits_gate(image)
                && !self.is_passed_by_one_without_gates(index)
            {
                let what =
                    format!("{name} waits at its gate, and ends for one that has to wait as well");
                self.breaks(Promise::ForwardsOnly, what);
            }
            if is && !was && request.spec.latch == Latch::Together {
                let mut phases = request.status.images.iter().map(|image| image.phase);
                if !phases.all(Phase::is_backed_up) {
                    self.breaks(
                        Promise::Together,
                        format!("r{index} commits before all is backed up"),
                    );
                }
            }
            let full = new.displaced.len() > DISPLACED_MAX || new.rescued.len() > RESCUED_MAX;
            let used_up = new.attempts > request.spec.attempts && !request.status.rollback;
            if full || used_up {
                self.breaks(
                    Promise::Bounded,
                    format!("{name} has too many attempts or pins"),
                );
            }
            for pins in [&new.displaced, &new.rescued] {
                let twice =
                    |(at, pin): (usize, &Pin)| pins[..at].iter().any(|p| p.digest == pin.digest);
                if pins.iter().enumerate().any(twice) {
                    self.breaks(
                        Promise::Idempotent,
                        format!("{name} gives one digest two prune tags"),
                    );
                }
            }
        }
    }

    /// An image is let move.
    fn check_committed(&mut self, before: &Request, image: usize, name: &str) {
        let together = before.spec.latch == Latch::Together;
        let images = before.spec.images.iter().zip(&before.status.images);
        let mut open = images.enumerate().filter(|(other, (_, recorded))| {
            (together || *other == image) && !recorded.phase.is_finished()
        });
        if open.any(|(_, (spec, _))| spec.freeze.is_some()) {
            let what = format!("{name} commits, and its float is frozen");
            self.breaks(Promise::FailsClosed, what);
        }
        if !before.spec.gates.is_empty() {
            let what = format!("{name} commits, and a gate is left");
            self.breaks(Promise::Together, what);
        }
    }

    /// Whether a newer request that shares a float with this one has no gate.
    fn is_passed_by_one_without_gates(&self, index: usize) -> bool {
        let floats = |at: usize| {
            self.objects[at]
                .request
                .spec
                .images
                .iter()
                .map(|i| &i.float)
        };
        let newer = index + 1..self.objects.len();
        let mut free = newer.filter(|&at| self.objects[at].request.spec.gates.is_empty());
        free.any(|at| floats(at).any(|float| floats(index).any(|other| other == float)))
    }

    /// What is broken in this state; at an `end` nothing but faults can follow.
    pub fn check(&self, end: bool) -> Option<Broken> {
        if self.broken.is_some() {
            return self.broken.clone();
        }
        let broken = |promise, what| Some(Broken { promise, what });
        for (number, float) in self.setup.floats.iter().enumerate() {
            let held = self.registry.tags.get(float.tag()).copied();
            if held.is_some_and(|digest| !self.registry.has(digest)) {
                return broken(Promise::NeverDangling, format!("f{number} dangles"));
            }
            if held.is_none() && self.past.resolved[number] {
                return broken(Promise::NeverDangling, format!("f{number} is gone"));
            }
        }
        if let Some(what) = self.two_writers() {
            return broken(Promise::ForwardsOnly, what);
        }
        if !end {
            return None;
        }
        if let Some(index) = (0..self.objects.len()).find(|&index| !self.rests(index)) {
            let what = format!("r{index} does not end, and nothing more happens");
            return broken(Promise::Ends, what);
        }
        if let Some(what) = self.not_removed() {
            return broken(Promise::RecordedBeforeDone, what);
        }
        if let Some(undisturbed) = &self.setup.undisturbed
            && self.setup.faults.heal()
            && *undisturbed != self.end()
        {
            let what = "the tags at the end are not those of the undisturbed run".into();
            return broken(Promise::Idempotent, what);
        }
        if let Some(what) = self.unexplained() {
            return broken(Promise::Ends, what);
        }
        if let Some(what) = self.half_moved() {
            return broken(Promise::Together, what);
        }
        let what = self.last_does_not_win()?;
        broken(Promise::ForwardsOnly, what)
    }

    /// A request that ended without saying why, or at a deadline that had not come.
    fn unexplained(&self) -> Option<String> {
        let (all, left) = (self.setup.faults, self.left);
        let in_time = (all.deadline, all.overrun) == (left.deadline, left.overrun);
        for (index, object) in self.objects.iter().enumerate() {
            let request = &object.request;
            let images = &request.status.images;
            if in_time
                && images
                    .iter()
                    .any(|i| i.reason == Some(Reason::DeadlineExceeded))
            {
                return Some(format!("r{index} is stuck until its deadline"));
            }
            let held = images.iter().any(|i| i.reason.is_some_and(Reason::is_held));
            if request.is_finished() && held && request.failed_float().is_none() {
                return Some(format!("r{index} holds floats back, and none has failed"));
            }
        }
        None
    }

    /// A tag that is recorded as removed, and is there.
    fn not_removed(&self) -> Option<String> {
        for (index, object) in self.objects.iter().enumerate() {
            let request = &object.request;
            for (spec, image) in request.spec.images.iter().zip(&request.status.images) {
                let incoming = spec.float.incoming();
                let source = image.source.as_ref().map(|source| source.digest);
                let removed = spec.remove_incoming
                    && image.phase.is_posted()
                    && !image.unchanged
                    && image.message.is_empty();
                if removed && self.registry.look(&incoming) == source {
                    return Some(format!("r{index} has removed {incoming}, which is there"));
                }
            }
        }
        None
    }

    /// A group that failed, was to be taken back, and was not, without saying so.
    fn half_moved(&self) -> Option<String> {
        for (index, object) in self.objects.iter().enumerate() {
            let request = &object.request;
            let rolled_back = request.spec.on_failure == OnFailure::Rollback
                && request.status.committed
                && request.phase().is_failed()
                && !object.deleted;
            if !rolled_back {
                continue;
            }
            if !request.status.rollback {
                return Some(format!("r{index} has failed, and takes nothing back"));
            }
            for (image, recorded) in request.status.images.iter().enumerate() {
                let float = self.float((index, image));
                let newest = recorded.displaced.last().map(|pin| pin.digest);
                let source = recorded.source.as_ref().map(|source| source.digest);
                if newest.is_none() || recorded.unchanged {
                    continue;
                }
                let name = format!("r{index}/{}", float.tag());
                let there = self.registry.look(float.tag());
                let named = recorded.message.starts_with("not rolled back");
                if there == source && !named {
                    return Some(format!(
                        "{name} is where it was promoted to, and does not say so"
                    ));
                }
                let number = self.setup.number(float);
                let alone = self.past.winners[number].is_none_or(|newest| newest <= index);
                if self.strangers() || !alone || named {
                    continue;
                }
                let back = recorded.reason == Some(Reason::RolledBack);
                if there != newest || (!recorded.phase.is_failed()) {
                    return Some(format!(
                        "{name} is not where it was, or says it is elsewhere"
                    ));
                }
                let moved = self.past.moved.contains(&(index, image));
                if moved && !back && !recorded.message.starts_with("back on") {
                    return Some(format!("{name} was taken back, and does not say so"));
                }
            }
        }
        None
    }

    /// Two requests at work on one float, by what runs or by the records.
    fn two_writers(&self) -> Option<String> {
        if matches!(
            self.setup.mutation,
            Some(Mutation::NoClaims | Mutation::StaleLaunch | Mutation::ReleasedEarly)
        ) {
            // There the point is what comes of it.
            return None;
        }
        for who in self.leader.running.keys() {
            let (float, uid) = (self.float(*who), uid(who.0));
            let number = self.setup.number(float);
            let owner = self.leader.coordinator.claims().owner(float);
            if owner != Some(&uid) {
                return Some(format!("r{} works on f{number} without its claim", who.0));
            }
        }
        let mut owned = Vec::new();
        for index in 0..self.objects.len() {
            let floats = self.owned_by_record(index);
            if let Some(float) = floats.iter().find(|float| owned.contains(*float)) {
                return Some(format!("two requests have begun on {float}"));
            }
            owned.extend(floats);
        }
        None
    }

    /// Where nobody else writes, the last created that succeeded has its image on the float, unless a later one moved it and
    /// failed after that.
    fn last_does_not_win(&self) -> Option<String> {
        if self.strangers() {
            return None;
        }
        for (number, float) in self.setup.floats.iter().enumerate() {
            let mut expected = None;
            for object in &self.objects {
                let images = object.request.spec.images.iter();
                for (index, _) in images.enumerate().filter(|(_, spec)| spec.float == *float) {
                    let image = &object.request.status.images[index];
                    let source = image.source.as_ref().map(|source| source.digest);
                    if image.phase.is_posted() {
                        expected = Some(vec![source]);
                    } else if let Some(sources) = &mut expected
                        && object.request.is_committed(index)
                    {
                        sources.push(source);
                        let newest = image.displaced.last().map(|pin| pin.digest);
                        sources.extend(object.request.status.rollback.then_some(newest));
                    }
                }
            }
            let there = self.registry.look(float.tag());
            if expected.is_some_and(|sources| !sources.contains(&there)) {
                return Some(format!("f{number} is not on the last created image"));
            }
        }
        None
    }

    /// How it ended.
    pub fn end(&self) -> End {
        let mut tags = BTreeMap::new();
        for (tag, digest) in &self.registry.tags {
            let key = match Stamp::of(tag) {
                Some(_) => (tag.as_str()[14..].to_owned(), Some(*digest)),
                None => (tag.to_string(), None),
            };
            tags.entry(key).or_insert((*digest, 0)).1 += 1;
        }
        let images = self
            .objects
            .iter()
            .flat_map(|object| &object.request.status.images);
        End {
            tags,
            images: images.map(|image| (image.phase, image.reason)).collect(),
        }
    }

    /// Somebody else writes or removes a float: whoever looked before did not see it.
    pub fn foreign(&mut self, number: usize, digest: Option<Digest>) {
        let tag: Tag = self.setup.floats[number].tag().clone();
        let incoming = self.setup.floats[number].incoming();
        self.remember_for_stale_reads(&tag);
        self.registry.change(|registry| match digest {
            Some(digest) => {
                registry.push(digest);
                registry.put(&tag, digest);
            }
            None => _ = registry.delete(&tag),
        });
        self.past.winners[number] = None;
        self.past.resolved[number] = digest.is_some();
        // A deletion rests on a look at the float.
        let rests_on_it = |written: &Tag, digest: Option<Digest>| {
            *written == tag || (digest.is_none() && *written == incoming)
        };
        for op in self.leader.running.values_mut() {
            let write = op.next.as_ref().and_then(Ask::write);
            if write.is_some_and(|(written, digest)| rests_on_it(written, digest)) {
                op.change(|op| op.excused = true);
            }
        }
        for (_, write) in &mut self.wire {
            write.excused |= rests_on_it(&write.tag, write.digest);
        }
    }
}
