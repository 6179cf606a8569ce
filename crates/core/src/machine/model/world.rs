//! The world: a registry, the recorded requests, the processes that work on them, and everything that can go wrong.
//!
//! One [`Action`] is one indivisible step. Where a scenario is searched with `split`, a save's way to the store, its answer and the answer
//! to whether a request may push are actions of their own, and a save outlives its process. Each registry request of a step is an action of its own, in the order of
//! [`steps`](crate::steps), which the engine runs as well. The clock stands still but where
//! something has to wait: then it goes to the next time that is due, so that there are finitely many states.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::registry::Registry;
use crate::image::{Digest, Float, Reference, Tag};
use crate::machine::{Freeze, Outcome, Request};
use crate::steps::replay::{Answer, Ask, Seen};

use super::process::{Op, Process, Sent, SentAt, moment, second, uid};
use super::promises::Past;
use super::search::{Model, fingerprint};
use super::setup::{Broken, Faults, Mutation, Setup, digest, freeze};

/// How long a tag write may take to show, in seconds.
pub const SETTLE: i64 = 10;
/// How long one without an answer may take to land, in seconds.
pub const LATE: i64 = 30;

/// Which image of which request.
pub type Who = (usize, usize);

/// A value that is shared between states, and hashed at most once.
#[derive(Debug)]
pub struct Shared<T>(Arc<Hashed<T>>);

#[derive(Debug, Clone)]
struct Hashed<T> {
    value: T,
    hash: OnceLock<u64>,
}

/// A request's object.
#[derive(Debug, Clone, Hash)]
pub struct Object {
    /// As it is recorded.
    pub request: Shared<Request>,
    /// It was deleted; what was recorded last.
    pub deleted: bool,
    /// Counts its changes while a save is under way.
    pub version: u64,
}

/// A tag write, and what its step knew.
#[derive(Debug, Clone, Hash)]
pub struct Write {
    /// Whose.
    pub who: Who,
    /// Which tag.
    pub tag: Tag,
    /// To what; none: it is deleted.
    pub digest: Option<Digest>,
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
    /// Saves of processes that are gone, or do not wait for them any more: each lands, unless the object changes before.
    pub late_saves: Vec<(usize, Shared<Sent>)>,
    /// Floats on which the operator has stopped all work.
    pub paused: BTreeSet<usize>,
    /// The process that leads.
    pub leader: Process,
    /// One that led and goes on where it was frozen.
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
    /// The leader reconciles a request: load, collect, advance, admit, decide, save, launch. Where saves are actions of their own, the
    /// save is sent, and nothing is launched yet.
    Reconcile(usize),
    /// The registries say that a request may push.
    Permit(usize),
    /// A save lands, or is refused because the object has changed since.
    Commit(usize),
    /// A save that landed is answered: what it says is launched.
    Answer(usize),
    /// The watch tells that a request has ended or is gone.
    Gone(usize),
    /// A save whose process is gone, or waits no longer, reaches the store.
    LateSave(usize),
    /// It never does.
    NoSave(usize),
    /// A process that can read everything takes over from one of an older version.
    Newer,
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
    Former(Deed),
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
    /// The answer to a save is lost.
    Silence(usize),
    /// A process of an older version takes over, which cannot read the first request.
    Older,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Reconcile(usize),
    Serve(Who),
    Commit(usize),
    Answer(usize),
}

impl From<Deed> for Action {
    fn from(deed: Deed) -> Self {
        match deed {
            Deed::Reconcile(index) => Self::Reconcile(index),
            Deed::Serve(who) => Self::Serve(who),
            Deed::Commit(index) => Self::Commit(index),
            Deed::Answer(index) => Self::Answer(index),
        }
    }
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
            version: 0,
        });
        let objects: Vec<Object> = objects.collect();
        let now = 1_770_000_000;
        let leader = Process::new(setup.scenario.quota, setup.late());
        let first = usize::from(setup.mutation == Some(Mutation::HeardOutOfOrder));
        let resolved = [setup.scenario.exists; 2];
        let mut world = Self {
            now,
            left: setup.faults,
            registry: Shared::new(registry),
            replicas: BTreeMap::new(),
            objects,
            wire: Vec::new(),
            late_saves: Vec::new(),
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
        };
        for index in first..world.objects.len() {
            world.lead(|world, leader| world.hear(leader, index));
        }
        world.leader.simplify(now, true);
        world
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
        let leader = &self.leader;
        let runs = leader.running.keys().any(|who| who.0 == index) || leader.older;
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
        let quiet = self.is_quiet();
        self.leader.forget(now, quiet);
        self.former.iter_mut().for_each(|f| f.forget(now, quiet));
    }

    /// Whether no version matters: nothing that was loaded is to be saved.
    fn is_quiet(&self) -> bool {
        let works = |process: &Process| !process.sent.is_empty() || !process.loaded.is_empty();
        !works(&self.leader)
            && !self.former.as_ref().is_some_and(works)
            && self.late_saves.is_empty()
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
        world.drop_refused_saves();
        let quiet = world.is_quiet();
        let were = self.is_quiet();
        if quiet && !were {
            world.objects.iter_mut().for_each(|o| o.version = 0);
        }
        if quiet != were || !world.leader.coordinator.is(&self.leader.coordinator) {
            world.leader.simplify(world.now, quiet);
        }
        if let Some(former) = &mut world.former {
            former.simplify(world.now, quiet);
        }
        for (number, float) in self.setup.floats.iter().enumerate() {
            world.past.resolved[number] |= world.registry.look(float.tag()).is_some();
        }
        world
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Notice(index) => self.lead(|world, leader| world.hear(leader, index)),
            Action::Permit(index) => self.lead(|world, leader| world.permit(leader, index)),
            Action::Gone(index) => self.lead(|world, leader| world.gone(leader, index)),
            Action::Commit(_)
            | Action::Answer(_)
            | Action::Silence(_)
            | Action::LateSave(_)
            | Action::NoSave(_) => self.act_on_a_save(action),
            Action::Newer => self.begin(Some(self.now), false),
            Action::Older => {
                self.left.older -= 1;
                self.begin(Some(self.now), true);
            }
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
                self.begin(Some(self.now), self.leader.older);
            }
            Action::Replace => {
                self.left.replace -= 1;
                let sent = self.now;
                self.pass(self.now + 15);
                let mut former = self.leader.clone();
                former.former = true;
                if self.left.awake > 0 {
                    // They are on their way beside it.
                    self.leader.sent.clear();
                }
                self.begin(Some(sent), self.leader.older);
                self.former = Some(former).filter(|_| self.left.awake > 0);
            }
            Action::Former(deed) => {
                self.change_places();
                self.act(deed.into());
                self.change_places();
            }
            Action::Handover => {
                self.left.handover -= 1;
                self.hand_over();
            }
            Action::Move(_) | Action::Back(_) | Action::Remove(_) => self.act_as_stranger(action),
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
            action => {
                self.act_as_user(action);
                self.tell_leader();
            }
        }
    }

    fn act_as_stranger(&mut self, action: Action) {
        match action {
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
            _ => unreachable!("{action:?} is nobody else's"),
        }
    }

    fn act_on_a_save(&mut self, action: Action) {
        match action {
            Action::Commit(index) => {
                let mut sent = self.leader.sent[&index].clone();
                let lands = self.commit(index, &sent);
                let version = self.objects[index].version;
                sent.change(|sent| {
                    sent.at = SentAt::Unknown;
                    if lands {
                        (sent.at, sent.version) = (SentAt::Landed, version);
                    }
                });
                self.leader.sent.insert(index, sent);
            }
            Action::Answer(index) => self.lead(|world, leader| {
                let sent = leader.sent.remove(&index).expect("a save");
                world.answered(leader, index, &sent, Some(sent.version));
            }),
            Action::Silence(index) => {
                self.left.silent -= 1;
                let sent = self.leader.sent.get_mut(&index).expect("a save");
                if sent.at == SentAt::Way {
                    self.late_saves.push((index, sent.clone()));
                }
                sent.change(|sent| sent.at = SentAt::Unknown);
            }
            Action::LateSave(at) => {
                let (index, sent) = self.late_saves.remove(at);
                self.commit(index, &sent);
            }
            Action::NoSave(at) => _ = self.late_saves.remove(at),
            _ => unreachable!("no save"),
        }
    }

    /// Saves that are refused whenever they come.
    fn drop_refused_saves(&mut self) {
        if !self.lacks(Mutation::SaveUnchecked) {
            let objects = &self.objects;
            let lands = |index: usize, sent: &Sent| {
                objects[index].version == sent.version && !objects[index].deleted
            };
            (self.late_saves).retain(|(index, sent)| lands(*index, sent));
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
                self.objects[index].version += 1;
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

    /// What users and operators change is heard at once where a reconcile is one action; elsewhere the next load tells.
    fn tell_leader(&mut self) {
        let told: Vec<usize> = (0..self.objects.len())
            .filter(|&index| !self.setup.splits() && !self.over(index))
            .filter(|&index| self.leader.hears(index) && !(self.leader.older && index == 0))
            .collect();
        for index in told {
            self.lead(|world, leader| world.hear(leader, index));
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
            .change(|registry| tags.iter().for_each(|tag| _ = registry.delete(tag)));
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

    pub fn edit(&mut self, index: usize, edit: impl FnOnce(&mut Request)) {
        self.objects[index].request.change(edit);
        self.objects[index].version += u64::from(self.setup.splits());
    }

    fn lead(&mut self, act: impl FnOnce(&mut Self, &mut Process)) {
        let nobody = Process::new(0, LATE);
        let mut leader = std::mem::replace(&mut self.leader, nobody);
        act(self, &mut leader);
        self.leader = leader;
    }

    /// The former leader is in the place of the leader, or back in its own.
    fn change_places(&mut self) {
        let former = self.former.as_mut().expect("a former leader");
        std::mem::swap(&mut self.leader, former);
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
        self.begin(None, self.leader.older);
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
    fn begin(&mut self, last_sent: Option<i64>, older: bool) {
        let quota = self.setup.scenario.quota;
        let mut leader = Process::new(quota, self.setup.late());
        leader.older = older;
        if let Some(sent) = last_sent.filter(|_| !self.lacks(Mutation::NoQuietStart)) {
            leader.log.change(|log| log.follow(moment(sent)));
        }
        let saves = std::mem::take(&mut self.leader.sent).into_iter();
        self.late_saves
            .extend(saves.filter(|(_, s)| s.at == SentAt::Way));
        self.past.permitted.clear();
        for index in (0..self.objects.len()).filter(|&index| !self.over(index)) {
            if !older || index > 0 {
                self.hear(&mut leader, index);
            } else if !self.lacks(Mutation::UnreadUnheard) {
                self.hear_unread(&mut leader, index);
            }
        }
        leader.coordinator.change(|c| _ = c.rebuild());
        for index in (0..self.objects.len()).filter(|_| self.lacks(Mutation::AllSpared)) {
            let owned = self.owned_by_record(index);
            leader
                .log
                .change(|log| owned.iter().for_each(|float| log.spare(float)));
        }
        leader.forget(self.now, self.late_saves.is_empty());
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
        if let Some(former) = &self.former {
            self.deeds_of_the_former(former, &mut actions);
        }
        for index in 0..self.wire.len() {
            actions.extend([Action::Land(index), Action::Die(index)]);
        }
        for index in 0..self.late_saves.len() {
            actions.extend([Action::LateSave(index), Action::NoSave(index)]);
        }
        if self.leader.older {
            actions.push(Action::Newer);
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
        let over = self.over(index);
        let unread = leader.older && index == 0;
        if !(leader.hears(index) || over || unread) {
            actions.push(Action::Notice(index));
        }
        if leader.reconciles(index) {
            actions.push(Action::Reconcile(index));
        }
        if self.setup.splits() {
            let known = leader.coordinator.known(&uid(index));
            let sent = leader.sent.get(&index).map(|sent| sent.at);
            let waits = known.is_some_and(|known| known.permitted.is_none());
            let heard_of = known.is_some() && over;
            let may = [
                (
                    waits && !over && leader.reconciles(index),
                    Action::Permit(index),
                ),
                (
                    heard_of
                        && (sent.is_some() || leader.loaded.contains_key(&index) || leader.older),
                    Action::Gone(index),
                ),
                (sent == Some(SentAt::Way), Action::Commit(index)),
                (sent == Some(SentAt::Landed), Action::Answer(index)),
                (
                    self.left.silent > 0 && sent.is_some_and(|at| at != SentAt::Unknown),
                    Action::Silence(index),
                ),
            ];
            actions.extend(may.into_iter().filter(|(may, _)| *may).map(|(_, f)| f));
        }
        if leader.stale.contains_key(&index) {
            actions.push(Action::StaleLaunch(index));
        }
        if over {
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

    fn deeds_of_the_former(&self, former: &Process, actions: &mut Vec<Action>) {
        let mut deeds = Vec::new();
        for (&who, op) in &former.running {
            let seen = op.next.as_ref().and_then(Ask::read_tag);
            let seen = seen.map(|tag| (tag, self.registry.look(tag)));
            let waits = seen.is_some_and(|(tag, there)| self.disbelieved(former, tag, there));
            deeds.extend((op.next.is_some() && !waits).then_some(Deed::Serve(who)));
        }
        for (&index, sent) in &former.sent {
            deeds.extend(match sent.at {
                SentAt::Way => Some(Deed::Commit(index)),
                SentAt::Landed => Some(Deed::Answer(index)),
                SentAt::Unknown => None,
            });
        }
        let objects = (0..self.objects.len()).filter(|&index| former.reconciles(index));
        deeds.extend(objects.map(Deed::Reconcile));
        actions.extend(deeds.into_iter().map(Action::Former));
    }

    fn actions_of_step(&self, who: Who, op: &Op, actions: &mut Vec<Action>) {
        let Some(ask) = &op.next else { return };
        if let Some((tag, digest)) = ask.write() {
            actions.push(Action::Serve(who));
            let closed = self.closed_for(&self.leader, who, tag, digest).is_some();
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
        if *ask == Ask::Deletes {
            // Whatever else goes wrong there says that they are not, as far as is known.
            actions.push(Action::Serve(who));
            let unknown = self.left.unknown > 0;
            actions.extend(unknown.then_some(Action::Fail(who, Answer::Unknown)));
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
        let idle = self.leader.running.is_empty() && self.leader.sent.is_empty();
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
            (
                left.older > 0 && settled && !self.leader.older,
                Action::Older,
            ),
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
            Ask::Deletes => "are tags deleted alone?".into(),
            Ask::Delete(tag) => format!("delete {tag}"),
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
            late_saves,
            paused,
            leader,
            former,
            sources_gone,
            past,
            broken,
        } = self;
        (now, left, registry, replicas, objects, wire, paused).hash(state);
        (late_saves, leader, former, sources_gone, past, broken).hash(state);
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
                | Action::Permit(_)
                | Action::Commit(_)
                | Action::Answer(_)
                | Action::Former(_)
                | Action::Gone(_)
                | Action::LateSave(_)
                | Action::NoSave(_)
                | Action::Newer
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
            Action::Commit(index) | Action::Answer(index) => {
                let what = self.say_reconcile(&self.leader, &after.leader, &after);
                format!("{action:?} r{index}: {what}")
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
                let name = write
                    .digest
                    .map_or("deletion", |digest| self.setup.name(digest));
                format!("LATE: {} = {name} lands", write.tag)
            }
            Action::Former(deed) => {
                let mut then = self.clone();
                then.change_places();
                format!("the FORMER leader: {}", then.describe(deed.into()))
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
        let hash = OnceLock::new();
        Self(Arc::new(Hashed { value, hash }))
    }

    /// Whether this is the very value of another state, unchanged.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Changes this state's value.
    pub fn change<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        let shared = Arc::make_mut(&mut self.0);
        shared.hash.take();
        change(&mut shared.value)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let hash = (self.0.hash).get_or_init(|| fingerprint(&self.0.value));
        state.write_u64(*hash);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}
