//! The world: a registry, the recorded requests, the processes that work on them, and everything that can go wrong.
//!
//! One [`Action`] is one indivisible step. Each registry request of a step is an action of its own, in the order of
//! [`steps`](crate::steps), which the engine runs as well. The clock stands still but where
//! something has to wait: then it goes to the next time that is due, so that there are finitely many states.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use super::registry::Registry;
use crate::image::{Digest, Float, Reference, Tag};
use crate::machine::{Freeze, Outcome, Request};
use crate::steps::replay::{Answer, Ask, Seen};

use super::process::{Op, Process, moment, second};
use super::promises::Past;
use super::search::{Model, fingerprint};
use super::setup::{Broken, Faults, Mutation, Setup, digest, freeze};

/// How long a tag write may take to show, in seconds.
pub const SETTLE: i64 = 10;
/// How long one without an answer may take to land, in seconds.
pub const LATE: i64 = 30;

/// Which image of which request.
pub type Who = (usize, usize);

/// A value that is shared between states and hashed once.
#[derive(Debug)]
pub struct Shared<T>(Arc<T>, u64);

/// A request's object.
#[derive(Debug, Clone, Hash)]
pub struct Object {
    /// As it is recorded.
    pub request: Shared<Request>,
    /// It was deleted; what was recorded last.
    pub deleted: bool,
}

/// A tag write, and what its step knew.
#[derive(Debug, Clone, Hash)]
pub struct Write {
    /// Whose.
    pub who: Who,
    /// Which tag.
    pub tag: Tag,
    /// To what.
    pub digest: Digest,
    /// What the request directly before this one showed of the tag, if it was a look at it.
    pub saw: Option<Seen>,
    /// Somebody else wrote the tag after that look, or the look was answered by an old replica.
    pub excused: bool,
    /// A read of this launch failed.
    pub unknown: bool,
}

/// The world.
#[derive(Debug, Clone)]
pub struct World {
    /// What does not change.
    pub setup: Arc<Setup>,
    /// The time, in seconds.
    pub now: i64,
    /// The faults that may still come.
    pub left: Faults,
    /// The registry of the floats.
    pub registry: Shared<Registry>,
    /// What a read by tag may still show, and since when not any more.
    pub replicas: BTreeMap<Tag, (Option<Digest>, i64)>,
    /// The requests; the index is their order.
    pub objects: Vec<Object>,
    /// Tag writes on the wire: each lands before then, or never.
    pub wire: Vec<(i64, Write)>,
    /// Floats on which the operator has stopped all work.
    pub paused: BTreeSet<usize>,
    /// The process that leads.
    pub leader: Process,
    /// One that led and does not know yet that it does no more; for [`Mutation::FormerSaves`] only.
    pub former: Option<Process>,
    /// The sources are gone.
    pub sources_gone: bool,
    /// What the promises need to know.
    pub past: Past,
    /// The first promise that broke.
    pub broken: Option<Broken>,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The leader hears of a request.
    Notice(usize),
    /// The leader reconciles a request: load, collect, advance, admit, decide, save, launch.
    Reconcile(usize),
    /// The next request of a step is answered truthfully.
    Serve(Who),
    /// A write on the wire lands.
    Land(usize),
    /// A write on the wire comes to nothing.
    Die(usize),
    /// Nothing is stopped any more.
    Unpause,
    /// Time passes to the next that is due.
    Wait,
    /// `spec.suspend` is unset.
    Resume(usize),
    /// The gates of a request are removed.
    Open(usize),
    /// A float is let go.
    Thaw(usize),
    // From here on: faults.
    Fail(Who, Answer),
    Stale(Who),
    Lose(Who),
    Late(Who),
    Refuse(Who, Answer),
    Prune(usize),
    Pause(usize),
    Freeze(usize),
    Crash(Option<Who>),
    Replace,
    FormerReconcile(usize),
    Handover,
    Move(usize),
    Back(usize),
    Remove(usize),
    Suspend(usize),
    Cancel(usize),
    Delete(usize),
    Deadline,
    Overrun,
    Expire,
    LoseSources,
    Slow,
    StaleLaunch(usize),
}

// === impl World ===

impl World {
    /// The world at the start.
    pub fn new(setup: Setup) -> Self {
        let mut registry = Registry::new(setup.scenario.lenient);
        if setup.scenario.exists {
            for (number, float) in setup.floats.iter().enumerate() {
                let old = digest(&format!("D{number}"));
                registry.push(old);
                registry.put(float.tag(), old);
            }
        }
        if setup.scenario.post1 {
            for (number, float) in setup.floats.iter().enumerate() {
                let other = digest(&format!("P{number}"));
                registry.push(other);
                registry.put(&float.post1(), other);
            }
        }
        let objects = setup.requests().map(|request| Object {
            request: Shared::new(request),
            deleted: false,
        });
        let objects: Vec<Object> = objects.collect();
        let now = 1_770_000_000;
        let mut leader = Process::new(objects.len(), setup.scenario.quota, setup.late());
        if setup.mutation == Some(Mutation::HeardOutOfOrder) {
            leader.known[0] = None;
        }
        let resolved = [setup.scenario.exists; 2];
        Self {
            now,
            left: setup.faults,
            registry: Shared::new(registry),
            replicas: BTreeMap::new(),
            objects,
            wire: Vec::new(),
            paused: BTreeSet::new(),
            leader,
            former: None,
            sources_gone: false,
            past: Past {
                resolved,
                ..Past::default()
            },
            broken: None,
            setup: Arc::new(setup),
        }
    }

    /// The float of an image.
    pub fn float(&self, who: Who) -> &Float {
        &self.objects[who.0].request.spec.images[who.1].float
    }

    /// Whether a guard is taken away.
    pub fn lacks(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    /// Whether an object is gone, or has ended.
    pub fn over(&self, index: usize) -> bool {
        self.objects[index].deleted || self.objects[index].request.is_finished()
    }

    /// Whether nothing more has to happen to a request: it has ended, is gone or is held back.
    pub fn rests(&self, index: usize) -> bool {
        let request = &self.objects[index].request;
        let held_back = request.held_back().is_some() || self.waits_for_a_gate(index);
        let runs = self.leader.running.keys().any(|who| who.0 == index);
        (self.over(index) || held_back) && !runs
    }

    /// Whether a request with a gate is queued behind an older one that waits at its own.
    fn waits_for_a_gate(&self, index: usize) -> bool {
        let shares = |a: &Request, b: &Request| {
            let mut images = a.spec.images.iter();
            images.any(|one| b.spec.images.iter().any(|other| one.float == other.float))
        };
        let me = &self.objects[index].request;
        let mut older = (0..index).filter(|&older| !self.over(older));
        !me.spec.gates.is_empty()
            && older.any(|older| {
                let other = &self.objects[older].request;
                !other.spec.gates.is_empty() && shares(me, other) && self.rests(older)
            })
    }

    /// Keeps what a stale read may show of a tag that is about to be written.
    pub fn remember_for_stale_reads(&mut self, tag: &Tag) {
        if self.left.stale > 0 {
            let shown = self.registry.look(tag);
            self.replicas
                .insert(tag.clone(), (shown, self.now + SETTLE));
        }
    }

    fn pass(&mut self, to: i64) {
        self.now = to.max(self.now);
        let now = self.now;
        self.replicas.retain(|_, (_, until)| *until > now);
        self.leader.forget(now);
    }

    /// The next time at which something that waits can go on.
    fn due(&self) -> Option<i64> {
        let leader = &self.leader;
        let mut due: Vec<i64> = leader.log.changes().map(second).collect();
        for (index, object) in self.objects.iter().enumerate() {
            let open = object.request.status.images.iter().enumerate();
            let waits = open.filter(|(image, _)| !leader.running.contains_key(&(index, *image)));
            if !self.over(index) {
                due.extend(waits.filter_map(|(_, i)| Some(i.next_attempt?.as_second())));
            }
        }
        for op in leader.running.values() {
            // A look that is not believed is made again until our own write has settled.
            if let Some(tag) = op.next.as_ref().and_then(Ask::read_tag)
                && self.disbelieved(leader, tag, self.registry.look(tag))
            {
                let (repository, now) = (self.setup.floats[0].repository(), moment(self.now));
                let written = leader.log.written(repository, tag, now);
                due.extend(written.map(|(_, until)| second(until)));
            }
        }
        due.into_iter().filter(|&at| at > self.now).min()
    }

    /// Whether a look contradicts what the process has written a moment ago.
    pub fn disbelieved(&self, process: &Process, tag: &Tag, seen: Option<Digest>) -> bool {
        let (repository, now) = (self.setup.floats[0].repository(), moment(self.now));
        !self.lacks(Mutation::NoMemory) && process.log.contradicts(repository, tag, seen, now)
    }

    // === what happens ===

    /// This world after an action.
    pub fn after(&self, action: Action) -> Self {
        let mut world = self.clone();
        world.act(action);
        for (number, float) in self.setup.floats.iter().enumerate() {
            world.past.resolved[number] |= world.registry.look(float.tag()).is_some();
        }
        world
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Notice(index) => self.leader.notice(index),
            Action::Reconcile(index) => self.lead(|world, leader| world.reconcile(leader, index)),
            Action::Serve(who) => self.lead(|world, leader| world.serve(leader, who)),
            Action::Land(index) => {
                let (_, write) = self.wire.remove(index);
                self.land(&write);
            }
            Action::Die(index) => _ = self.wire.remove(index),
            Action::Wait => self.pass(self.due().expect("something is due")),
            Action::Stale(who) => {
                self.left.stale -= 1;
                self.lead(|world, leader| world.read_stale(leader, who));
            }
            Action::Lose(who) => {
                self.left.lost -= 1;
                self.lead(|world, leader| world.lose(leader, who, true));
            }
            Action::Late(who) => {
                self.left.late -= 1;
                self.lead(|world, leader| world.lose(leader, who, false));
            }
            Action::Fail(..) | Action::Refuse(..) | Action::Prune(_) => {
                self.act_as_registry(action);
            }
            Action::Crash(sent) => {
                self.left.crash -= 1;
                if let Some(who) = sent {
                    self.left.late -= 1;
                    self.lead(|world, leader| world.lose(leader, who, false));
                }
                self.begin(Some(self.now));
            }
            Action::Replace => {
                self.left.replace -= 1;
                let sent = self.now;
                self.pass(self.now + 15);
                let former = self.leader.clone();
                self.begin(Some(sent));
                self.former = Some(former).filter(|_| self.lacks(Mutation::FormerSaves));
            }
            Action::FormerReconcile(index) => {
                let mut former = self.former.take().expect("a former leader");
                self.reconcile(&mut former, index);
            }
            Action::Handover => {
                self.left.handover -= 1;
                self.hand_over();
            }
            Action::Move(number) => {
                let name = if self.left.moved == self.setup.faults.moved {
                    "F"
                } else {
                    "G"
                };
                self.left.moved -= 1;
                self.foreign(number, Some(digest(&format!("{name}{number}"))));
            }
            Action::Back(number) => {
                self.left.back -= 1;
                self.foreign(number, Some(digest(&format!("D{number}"))));
            }
            Action::Remove(number) => {
                self.left.removed -= 1;
                self.foreign(number, None);
            }
            Action::Deadline => {
                self.left.deadline -= 1;
                self.pass(self.now + 7300);
            }
            Action::Overrun => {
                self.left.overrun -= 1;
                self.overrun();
            }
            Action::Expire => {
                self.left.expire -= 1;
                self.registry.change(Registry::expire);
            }
            Action::LoseSources => {
                self.left.sources -= 1;
                self.sources_gone = true;
            }
            Action::Slow => {
                self.left.slow -= 1;
                self.pass(self.now + 60);
            }
            Action::StaleLaunch(index) => {
                self.lead(|world, leader| world.launch_stale(leader, index));
            }
            action => self.act_as_user(action),
        }
    }

    fn act_as_registry(&mut self, action: Action) {
        match action {
            Action::Fail(who, answer) => {
                *self.left.of(answer) -= 1;
                self.lead(|world, leader| world.fail_read(leader, who, answer));
            }
            Action::Refuse(who, answer) => {
                *self.left.of(answer) -= 1;
                self.lead(|world, leader| world.refuse(leader, who, answer));
            }
            Action::Prune(number) => {
                self.left.pruned -= 1;
                self.prune(number);
            }
            _ => unreachable!("not a registry's"),
        }
    }

    fn act_as_user(&mut self, action: Action) {
        match action {
            Action::Suspend(index) => {
                self.left.suspend -= 1;
                self.edit(index, |request| request.spec.suspend = true);
            }
            Action::Cancel(index) => {
                self.left.cancel -= 1;
                self.edit(index, |request| request.spec.cancel = true);
            }
            Action::Delete(index) => {
                self.left.delete -= 1;
                self.objects[index].deleted = true;
            }
            Action::Pause(number) => {
                self.left.pause -= 1;
                self.paused.insert(number);
            }
            Action::Freeze(number) => {
                self.left.freeze -= 1;
                self.freeze(number, Some(&freeze()));
            }
            Action::Resume(index) => self.edit(index, |request| request.spec.suspend = false),
            Action::Open(index) => self.edit(index, |request| request.spec.gates.clear()),
            Action::Thaw(number) => self.freeze(number, None),
            Action::Unpause => self.paused.clear(),
            _ => unreachable!("not a user's"),
        }
    }

    fn overrun(&mut self) {
        let past = jiff::Timestamp::from_second(self.now - crate::machine::GRACE_SECONDS);
        let past = past.expect("a time");
        for object in &mut self.objects {
            if object.request.has_open_commit() && !object.request.status.rollback {
                object
                    .request
                    .change(|request| request.status.deadline = Some(past));
            }
        }
    }

    /// What a source's repository has there: of the float's own, what it holds.
    pub fn fetch(&self, who: Who, reference: &Reference) -> Option<Digest> {
        let spec = &self.objects[who.0].request.spec.images[who.1];
        match reference {
            Reference::Tag(tag) => self.registry.look(tag),
            Reference::Digest(digest) if spec.is_within_one_repository() => {
                Some(*digest).filter(|digest| self.registry.has(*digest))
            }
            Reference::Digest(digest) => Some(*digest).filter(|_| !self.sources_gone),
        }
    }

    /// Whether the registry refuses this tag to this request for good.
    pub fn is_refused(&self, who: Who, tag: &Tag) -> bool {
        who.0 == 0 && self.setup.scenario.refused == Some(tag.as_str())
    }

    /// Whether the request that names a float is held back in time: whatever it has pinned there may have become old.
    fn is_held_back(&self, number: usize) -> bool {
        let named = |index: usize| {
            let mut images = self.objects[index].request.spec.images.iter();
            images.any(|image| image.float == self.setup.floats[number])
        };
        let mut named = (0..self.objects.len()).filter(|&index| named(index) && !self.over(index));
        // A suspension that no leader has seen is no long one.
        let seen = |index: usize| {
            let images = &self.objects[index].request.status.images;
            images.iter().all(|image| image.pinned.is_none())
        };
        named.all(|index| {
            self.objects[index].request.held_back().is_some() && self.rests(index) && seen(index)
        })
    }

    /// What was written a moment ago is old by nobody's clock.
    fn prune(&mut self, number: usize) {
        self.pass(self.now + SETTLE);
        let float = &self.setup.floats[number];
        let tags = self
            .registry
            .tags
            .keys()
            .filter(|tag| float.is_stamped(tag));
        let tags: Vec<Tag> = tags.cloned().collect();
        self.registry
            .change(|registry| tags.iter().for_each(|tag| registry.delete(tag)));
    }

    /// What whoever leads knows of a float from now on, for each request that names it: the next leader asks before it begins.
    fn freeze(&mut self, number: usize, freeze: Option<&Freeze>) {
        for index in 0..self.objects.len() {
            let float = self.setup.floats[number].clone();
            let exempt = self.setup.scenario.wishes[index].exempt;
            let freeze = freeze.filter(|_| !exempt).cloned();
            self.edit(index, |request| {
                let images = request.spec.images.iter_mut();
                let named = images.filter(|image| image.float == float);
                named.for_each(|image| image.freeze.clone_from(&freeze));
            });
        }
    }

    /// Whether a float is frozen for any request.
    fn is_frozen(&self, number: usize) -> bool {
        let mut images = self.objects.iter().flat_map(|o| &o.request.spec.images);
        images.any(|image| image.float == self.setup.floats[number] && image.freeze.is_some())
    }

    fn edit(&mut self, index: usize, edit: impl FnOnce(&mut Request)) {
        self.objects[index].request.change(edit);
    }

    fn lead(&mut self, act: impl FnOnce(&mut Self, &mut Process)) {
        let nobody = Process::new(0, 0, LATE);
        let mut leader = std::mem::replace(&mut self.leader, nobody);
        act(self, &mut leader);
        self.leader = leader;
    }

    /// The leader releases its lease once nothing of it can land any more, and the next one is told what it wrote a moment ago.
    fn hand_over(&mut self) {
        if let Some(landed) = self.leader.log.landed_at(moment(self.now)) {
            self.pass(second(landed));
        }
        let now = moment(self.now);
        let fresh = self.leader.log.fresh(now);
        let fresh = fresh.map(|(name, tag, digest)| (name.clone(), tag.clone(), digest));
        let fresh: Vec<_> = fresh.collect();
        self.begin(None);
        if self.lacks(Mutation::HandoverForgets) {
            return;
        }
        self.leader.log.change(|log| {
            for (name, tag, digest) in fresh {
                log.inherit(name, tag, digest, now);
            }
        });
    }

    /// Another process begins with what is recorded; the one before may have sent a write at `last_sent`.
    fn begin(&mut self, last_sent: Option<i64>) {
        let count = self.objects.len();
        let quota = self.setup.scenario.quota;
        let mut leader = Process::new(count, quota, self.setup.late());
        if let Some(sent) = last_sent.filter(|_| !self.lacks(Mutation::NoQuietStart)) {
            leader.log.change(|log| log.follow(moment(sent)));
        }
        for index in 0..count {
            if !self.owned_by_record(index).is_empty() {
                leader
                    .quota
                    .occupy(&self.quota_key(index), &index.to_string());
            }
            for float in self.owned_by_record(index) {
                let number = self.setup.number(&float);
                leader.owners.entry(number).or_insert(index);
                let request = &self.objects[index].request;
                let images = request.spec.images.iter().zip(&request.status.images);
                let mut rest = images.filter(|(_, image)| image.is_at_rest());
                if self.lacks(Mutation::AllSpared) || rest.any(|(spec, _)| spec.float == float) {
                    leader.log.change(|log| log.spare(&float));
                }
            }
        }
        leader.forget(self.now);
        self.leader = leader;
    }

    // === what may happen ===

    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for index in 0..self.objects.len() {
            self.actions_of(index, &mut actions);
        }
        for (&who, op) in &self.leader.running {
            self.actions_of_step(who, op, &mut actions);
        }
        for (who, op) in self.former.iter().flat_map(|former| &former.running) {
            if op.run.outcome.is_some() {
                actions.push(Action::FormerReconcile(who.0));
            }
        }
        for index in 0..self.wire.len() {
            actions.extend([Action::Land(index), Action::Die(index)]);
        }
        // What is due before the last moment of a write on the wire comes before it.
        let first = self.wire.iter().map(|(until, _)| *until).min();
        let due = self
            .due()
            .filter(|due| first.is_none_or(|first| *due < first));
        actions.extend(due.map(|_| Action::Wait));
        if !self.paused.is_empty() {
            actions.push(Action::Unpause);
        }
        self.actions_around(&mut actions);
        actions
    }

    fn actions_of(&self, index: usize, actions: &mut Vec<Action>) {
        let (leader, object) = (&self.leader, &self.objects[index]);
        if leader.known[index].is_none() && !leader.left.contains(&index) && !self.over(index) {
            actions.push(Action::Notice(index));
        }
        if leader.known[index].is_some() || leader.owners.values().any(|owner| *owner == index) {
            actions.push(Action::Reconcile(index));
        }
        if leader.stale.contains_key(&index) {
            actions.push(Action::StaleLaunch(index));
        }
        if self.over(index) {
            return;
        }
        let spec = &object.request.spec;
        let faults = [
            (
                self.left.suspend > 0 && !spec.suspend,
                Action::Suspend(index),
            ),
            (spec.suspend, Action::Resume(index)),
            (!spec.gates.is_empty(), Action::Open(index)),
            (self.left.cancel > 0 && !spec.cancel, Action::Cancel(index)),
            (self.left.delete > 0, Action::Delete(index)),
        ];
        actions.extend(faults.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
    }

    fn actions_of_step(&self, who: Who, op: &Op, actions: &mut Vec<Action>) {
        let Some(ask) = &op.next else { return };
        if let Ask::Put(tag, digest) = ask {
            actions.push(Action::Serve(who));
            let closed = self.closed_for(&self.leader, who, tag, *digest).is_some();
            if closed || self.is_refused(who, tag) {
                return;
            }
            let free = self.left.late > 0;
            let faults = [
                (self.left.lost > 0, Action::Lose(who)),
                (self.left.refused > 0, Action::Refuse(who, Answer::Refused)),
                (self.left.missing > 0, Action::Refuse(who, Answer::No)),
                (
                    self.left.immutable > 0,
                    Action::Refuse(who, Answer::Immutable),
                ),
                (self.left.unsent > 0, Action::Refuse(who, Answer::NotSent)),
                (free, Action::Late(who)),
                (free && self.left.crash > 0, Action::Crash(Some(who))),
            ];
            actions.extend(faults.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
            return;
        }
        let faults = [
            (self.left.unknown > 0, Action::Fail(who, Answer::Unknown)),
            (self.left.untyped > 0, Action::Fail(who, Answer::Untyped)),
            (self.left.denied > 0, Action::Fail(who, Answer::Denied)),
        ];
        actions.extend(faults.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
        let Some(tag) = ask.read_tag() else {
            actions.push(Action::Serve(who));
            return;
        };
        let there = self.registry.look(tag);
        if !self.disbelieved(&self.leader, tag, there) {
            actions.push(Action::Serve(who));
        }
        if let Some((shown, _)) = self.replicas.get(tag).filter(|_| self.left.stale > 0)
            && *shown != there
            && !self.disbelieved(&self.leader, tag, *shown)
        {
            actions.push(Action::Stale(who));
        }
    }

    fn actions_around(&self, actions: &mut Vec<Action>) {
        let left = &self.left;
        // What outlives a whole lease, or the deadline, is on the wire no more.
        let settled = self.wire.is_empty();
        let idle = self.leader.running.is_empty();
        // While an earlier process's writes may land, the lease is not handed over: it runs out.
        let inherited = self.leader.log.inherited_until(moment(self.now));
        let alone = inherited.is_none();
        let faults = [
            (left.crash > 0, Action::Crash(None)),
            (left.replace > 0 && settled, Action::Replace),
            (
                left.handover > 0 && settled && idle && alone,
                Action::Handover,
            ),
            (left.deadline > 0 && settled, Action::Deadline),
            (left.overrun > 0, Action::Overrun),
            (left.expire > 0, Action::Expire),
            (left.sources > 0, Action::LoseSources),
            (left.slow > 0 && settled, Action::Slow),
        ];
        actions.extend(faults.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
        let wished = self.objects.iter().flat_map(|o| &o.request.spec.images);
        let mut numbers: Vec<usize> = wished.map(|i| self.setup.number(&i.float)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let there = self.registry.look(self.setup.floats[number].tag());
            let old = Some(digest(&format!("D{number}")));
            let faults = [
                (left.moved > 0, Action::Move(number)),
                (
                    left.pause > 0 && !self.paused.contains(&number),
                    Action::Pause(number),
                ),
                (
                    left.freeze > 0 && !self.is_frozen(number),
                    Action::Freeze(number),
                ),
                (self.is_frozen(number), Action::Thaw(number)),
                (left.back > 0 && there != old, Action::Back(number)),
                (left.removed > 0 && there.is_some(), Action::Remove(number)),
                (
                    left.pruned > 0 && settled && self.is_held_back(number),
                    Action::Prune(number),
                ),
            ];
            actions.extend(faults.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
        }
    }

    /// How requests and answers read in a trace.
    fn say(&self, ask: &Ask) -> String {
        let name = |digest: &Digest| self.setup.name(*digest).to_owned();
        match ask {
            Ask::Look(tag) => format!("where is {tag}?"),
            Ask::Fetch(Reference::Tag(tag)) => format!("what is the source {tag}?"),
            Ask::Fetch(Reference::Digest(digest)) => {
                format!("is the source {} there?", name(digest))
            }
            Ask::Held(digest) => format!("is {} there?", name(digest)),
            Ask::Copy(digest) => format!("copy {}", name(digest)),
            Ask::Put(tag, digest) => format!("put {tag} = {}", name(digest)),
            Ask::Wrote(tag, digest) => format!("wrote {tag} = {}?", name(digest)),
            Ask::Old(tag) => format!("is {tag} old?"),
        }
    }

    fn say_step(&self, process: &Process, who: Who) -> String {
        let op = &process.running[&who];
        let step = op.run.launch.step.as_str();
        let ask = op
            .next
            .as_ref()
            .map_or_else(String::new, |ask| self.say(ask));
        format!("r{}/{} {step}: {ask}", who.0, self.float(who).tag())
    }

    fn say_answer(&self, before: &Process, after: &Process, who: Who) -> String {
        let at = before.running[&who].run.said.len();
        let Some(op) = after.running.get(&who) else {
            return "ends, and its request is over".into();
        };
        let answer = op.run.said.get(at).map_or("", |(_, answer)| match answer {
            Answer::At(Some(digest)) => self.setup.name(*digest),
            Answer::At(None) => "absent",
            Answer::Yes => "yes",
            Answer::No => "no",
            Answer::Unknown => "failed",
            Answer::Untyped => "a bare 404",
            Answer::Denied => "denied",
            Answer::Refused => "refused",
            Answer::Immutable => "refused as immutable",
            Answer::Lost(_) => "no answer",
            Answer::Landing(_) => "not sent, another may land",
            Answer::NotSent => "not sent",
        });
        match &op.run.outcome {
            None => answer.into(),
            Some(outcome) => format!("{answer}; ends: {}", self.say_outcome(outcome)),
        }
    }

    fn say_outcome(&self, outcome: &Outcome) -> String {
        let mut text = format!("{outcome:?}");
        if let Outcome::Faulted(fault) = outcome {
            text = format!("{:?}, {:?}", fault.reason, fault.class);
        }
        for (digest, name) in self.setup.names() {
            text = text.replace(&format!("{digest:?}"), name);
        }
        text
    }

    /// What a reconcile changed: phases, and what was launched.
    fn say_reconcile(&self, before: &Process, after: &Process, now: &Self) -> String {
        let mut parts = Vec::new();
        for (index, (old, new)) in self.objects.iter().zip(&now.objects).enumerate() {
            let images = old
                .request
                .status
                .images
                .iter()
                .zip(&new.request.status.images);
            for (image, (old, new)) in images.enumerate() {
                if (old.phase, &old.reason) != (new.phase, &new.reason) {
                    let reason = new.reason.map_or("", |reason| reason.as_str());
                    let tag = self.float((index, image)).tag();
                    parts.push(format!("r{index}/{tag} is {} {reason}", new.phase.as_str()));
                }
            }
            if old.request.status.committed != new.request.status.committed {
                parts.push(format!("r{index} is committed"));
            }
        }
        for (who, op) in &after.running {
            let known = before.running.get(who);
            if known.is_none_or(|known| known.run.launch != op.run.launch) {
                let tag = self.float(*who).tag();
                let step = op.run.launch.step.as_str();
                parts.push(format!("launches r{}/{tag} {step}", who.0));
            }
        }
        if parts.is_empty() {
            parts.push("nothing visible".into());
        }
        parts.join(", ").replace(" ,", ",")
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            setup: _,
            now,
            left,
            registry,
            replicas,
            objects,
            wire,
            paused,
            leader,
            former,
            sources_gone,
            past,
            broken,
        } = self;
        (now, left, registry, replicas, objects, wire, paused).hash(state);
        (leader, former, sources_gone, past, broken).hash(state);
    }
}

impl Model for World {
    type Action = Action;

    fn successors(&self, out: &mut Vec<(Action, Self)>) {
        if self.broken.is_none() {
            let actions = self.actions().into_iter();
            out.extend(actions.map(|action| (action, self.after(action))));
        }
    }

    fn is_fault(action: Action) -> bool {
        // Unsetting `suspend` is free, but nothing may depend on it.
        !matches!(
            action,
            Action::Notice(_)
                | Action::Reconcile(_)
                | Action::Serve(_)
                | Action::Land(_)
                | Action::Die(_)
                | Action::Unpause
                | Action::Wait
        )
    }

    fn unseen(&self) -> bool {
        self.past.unseen > 0
    }

    fn broken(&self, last: bool) -> Option<Broken> {
        self.check(last)
    }

    fn describe(&self, action: Action) -> String {
        let after = self.after(action);
        let step = |who| self.say_step(&self.leader, who);
        let answer = |who| self.say_answer(&self.leader, &after.leader, who);
        match action {
            Action::Reconcile(index) | Action::StaleLaunch(index) => {
                let what = self.say_reconcile(&self.leader, &after.leader, &after);
                format!("reconcile r{index}: {what}")
            }
            Action::Serve(who) => format!("{} {}", step(who), answer(who)),
            Action::Fail(who, _) => format!("{} FAILS: {}", step(who), answer(who)),
            Action::Stale(who) => format!("{} STALE: {}", step(who), answer(who)),
            Action::Lose(who) => format!("{} lands, ANSWER LOST", step(who)),
            Action::Refuse(who, _) => format!("{} NOT WRITTEN: {}", step(who), answer(who)),
            Action::Late(who) => format!("{} NO ANSWER, is on the wire", step(who)),
            Action::Crash(Some(who)) => format!("CRASH with on the wire {}", step(who)),
            Action::Land(index) => {
                let (_, write) = &self.wire[index];
                let name = self.setup.name(write.digest);
                format!("LATE: {} = {name} lands", write.tag)
            }
            Action::FormerReconcile(index) => {
                let gone = Process::new(0, 0, LATE);
                let what = self.say_reconcile(&gone, &gone, &after);
                format!("the FORMER leader reconciles r{index}: {what}")
            }
            Action::Wait => format!("{} s pass", after.now - self.now),
            action => format!("{action:?}"),
        }
    }
}

// === impl Shared ===

impl<T: Clone + Hash> Shared<T> {
    /// Shares a value.
    pub fn new(value: T) -> Self {
        let hash = fingerprint(&value);
        Self(Arc::new(value), hash)
    }

    /// Changes this state's value.
    pub fn change<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(Arc::make_mut(&mut self.0));
        self.1 = fingerprint(&*self.0);
        result
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), self.1)
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.1);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
