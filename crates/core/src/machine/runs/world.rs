//! A small world: a registry, the recorded requests, and the process that works on them with the real `decide`, `advance` and
//! claims.
//!
//! An [`Event`] takes the world one indivisible step on: a reconcile (collect, advance, admit, decide, save, launch), one request
//! of one step, or a mishap. Everything is plain data that can be cloned, so a search can enumerate what random runs only
//! sample. The promises are asserted where they could break: at every tag write, at every save, and after every event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::registry::Registry;
use crate::image::{Digest, Float, Reference, Stamp, Tag};
use crate::machine::claims::{self, Claims, Contender, Standing, Verdict};
use crate::machine::{
    Admission, Context, Decision, Effect, FaultClass, ImageContext, ImageSpec, Latch, Outcome,
    Phase, Reason, Request, Status, advance, decide,
};
use crate::steps::is_old;
use crate::steps::replay::{Answer, Ask, Halt, Running, Seen, faulted};

/// How long a tag write may take to show, in seconds.
const SETTLE: i64 = 10;
/// How long one without an answer may take to land, in seconds.
const LATE: i64 = 30;

/// What a world begins with.
#[derive(Debug, Clone)]
pub struct Case {
    /// Each float is on a digest of its own at the start.
    pub exists: bool,
    /// The registry takes tags for missing content.
    pub lenient: bool,
    /// In the order they are created.
    pub wishes: Vec<Wish>,
}

/// A request that is made.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Float by number, and what to put there.
    pub images: Vec<(usize, From)>,
    /// When its floats move.
    pub latch: Latch,
    /// It is undecided for so many seconds.
    pub undecided: i64,
}

/// Where a wished image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A digest of its own.
    New,
    /// What the float was on at the start.
    Old,
    /// `<float>__pre`, as a person rolls back.
    Pre,
}

/// One indivisible thing that happens.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// This request is reconciled.
    Reconcile(usize),
    /// The next request of a running step is answered.
    Serve(usize),
    /// The process dies, and another begins.
    Crash,
    /// A tag write lands and its answer is lost.
    Lose(usize),
    /// A tag write's answer is lost before it landed.
    Late(usize),
    /// A running step is answered with a fault.
    Fault(usize, FaultClass),
    /// Somebody else puts a float to one of three digests, or back, or removes it.
    Foreign(usize, u8),
    /// `spec.cancel` is set.
    Cancel(usize),
    /// `spec.suspend` is set.
    Suspend(usize),
    /// `spec.suspend` is unset.
    Resume(usize),
    /// Work on a float is stopped.
    Pause(usize),
    /// Work goes on, on every float.
    Unpause,
    /// The object is deleted.
    Delete(usize),
    /// Time passes.
    Tick(i64),
    /// What was pushed and never tagged is given up.
    Expire,
    /// The sources are gone.
    LoseSources,
}

/// Which image of which request.
type Who = (usize, usize);

/// The world.
#[derive(Debug, Clone)]
pub struct World {
    now: i64,
    /// The registry of the floats.
    pub registry: Registry,
    /// The requests as they are recorded; the index is their order.
    pub requests: Vec<Request>,
    undecided: Vec<i64>,
    /// Deleted ones.
    pub deleted: BTreeSet<usize>,
    sources_gone: bool,
    paused: BTreeSet<Float>,
    process: Process,
    wire: Vec<(i64, Write)>,
    /// The number of writes of somebody else.
    pub foreign: u32,
    /// Foreign digests that a write of ours took off a float unseen: the exceptions of promise 2.
    pub unseen: u32,
    absent_by_others: BTreeSet<Float>,
    displaced: BTreeSet<(Float, Digest)>,
    pruned: BTreeMap<Tag, Digest>,
    latched_by: BTreeMap<Float, usize>,
}

/// What a process knows, and forgets when it dies.
#[derive(Debug, Clone)]
struct Process {
    since: i64,
    claims: Claims,
    running: BTreeMap<Who, Running>,
    launched: BTreeSet<Who>,
    standing: Vec<Standing>,
    /// Since when each is known to be eligible.
    eligible: Vec<Option<i64>>,
    /// Its tag writes without an answer, and when they were sent.
    open: BTreeMap<(Float, Tag), (Digest, i64)>,
    /// Floats for which nothing of the process before is on the wire.
    spared: BTreeSet<Float>,
    stamps: BTreeMap<Float, Stamp>,
    wakes: Vec<Option<Timestamp>>,
}

/// A tag write with what its step saw there before.
#[derive(Debug, Clone)]
struct Write {
    who: Who,
    tag: Tag,
    digest: Digest,
    saw: Option<Seen>,
}

/// The float of this number.
pub fn float(number: usize) -> Float {
    format!("quay.io/openshift/ci:f{number}")
        .parse()
        .expect("a float")
}

/// The digest a float is on at the start.
pub fn old(number: usize) -> Digest {
    Digest::of(format!("old {number}").as_bytes())
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

// === impl World ===

impl World {
    /// The world at the start.
    pub fn new(case: &Case) -> Self {
        let mut registry = Registry::new(case.lenient);
        if case.exists {
            for number in 0..2 {
                registry.push(old(number));
                registry.put(float(number).tag(), old(number));
            }
        }
        let now = 1_770_000_000;
        let requests: Vec<Request> = case
            .wishes
            .iter()
            .enumerate()
            .map(|(index, wish)| wish.request(index))
            .collect();
        let count = requests.len();
        Self {
            now,
            registry,
            requests,
            undecided: case
                .wishes
                .iter()
                .map(|wish| now + wish.undecided)
                .collect(),
            deleted: BTreeSet::new(),
            sources_gone: false,
            paused: BTreeSet::new(),
            process: Process::new(now - LATE, count),
            wire: Vec::new(),
            foreign: 0,
            unseen: 0,
            absent_by_others: BTreeSet::new(),
            displaced: BTreeSet::new(),
            pruned: BTreeMap::new(),
            latched_by: BTreeMap::new(),
        }
    }

    /// Takes the world one step on. Indices beyond what there is wrap around.
    pub fn apply(&mut self, event: Event) {
        let count = self.requests.len();
        let request = |index: usize| index % count;
        match event {
            Event::Reconcile(index) => self.reconcile(request(index)),
            Event::Serve(index) => self.with_running(index, Self::serve),
            Event::Crash => self.crash(),
            Event::Lose(index) => self.with_running(index, |world, who| world.lose(who, true)),
            Event::Late(index) => self.with_running(index, |world, who| world.lose(who, false)),
            Event::Fault(index, class) => self.with_running(index, |world, who| {
                let reason = match class {
                    FaultClass::Attempt => Reason::ManifestRejected,
                    FaultClass::Terminal => Reason::QuotaExceeded,
                    FaultClass::Wait { .. } => Reason::RateLimited,
                };
                world.end(who, faulted(reason, class));
            }),
            Event::Foreign(number, kind) => self.write_foreign(number % 2, kind % 5),
            Event::Cancel(index) => self.requests[index % count].spec.cancel = true,
            Event::Suspend(index) => self.requests[index % count].spec.suspend = true,
            Event::Resume(index) => self.requests[index % count].spec.suspend = false,
            Event::Pause(number) => _ = self.paused.insert(float(number % 2)),
            Event::Unpause => self.paused.clear(),
            Event::Delete(index) => self.delete(request(index)),
            Event::Tick(seconds) => self.pass(seconds),
            Event::Expire => self.registry.expire(),
            Event::LoseSources => self.sources_gone = true,
        }
        self.check();
    }

    /// One fair round without mishaps; time passes when nothing runs.
    pub fn round(&mut self) {
        for index in 0..self.requests.len() {
            self.apply(Event::Reconcile(index));
        }
        let running: Vec<Who> = self.process.running.keys().copied().collect();
        if running.is_empty() {
            let due = self
                .process
                .wakes
                .iter()
                .flatten()
                .map(|at| at.as_second() - self.now);
            self.apply(Event::Tick(
                due.filter(|&s| s > 0).min().unwrap_or(5).min(5),
            ));
        }
        for who in running {
            self.serve(who);
            self.check();
        }
    }

    /// Fair rounds, nothing paused, until every request has ended or is held back by its suspension.
    pub fn settle(&mut self) {
        self.apply(Event::Unpause);
        for _ in 0..2_500 {
            let rests = |world: &Self, index: usize| {
                let request = &world.requests[index];
                request.is_finished() || world.deleted.contains(&index) || is_suspended(request)
            };
            let rest = (0..self.requests.len()).all(|index| rests(self, index));
            if rest && self.process.running.is_empty() && self.wire.is_empty() {
                return;
            }
            self.round();
        }
        panic!("a request does not end: {:#?}", self.requests);
    }

    // === the process ===

    fn reconcile(&mut self, index: usize) {
        self.process.wakes[index] = None;
        if self.deleted.contains(&index) || self.requests[index].is_finished() {
            self.settle_claims(index);
            return;
        }
        let mut request = self.requests[index].clone();
        for image in 0..request.spec.images.len() {
            let ended = self
                .process
                .running
                .get(&(index, image))
                .and_then(|r| r.outcome.clone());
            if let Some(outcome) = ended {
                let float = &request.spec.images[image].float;
                let newest_stamp = self.process.stamps.get(float).copied();
                let context = Context {
                    now: time(self.now),
                    newest_stamp,
                    jitter: 0.5,
                };
                let effect = advance(&mut request, image, outcome, &context);
                assert_ne!(
                    effect,
                    Effect::Ignored,
                    "nothing else ended the image meanwhile"
                );
                self.process.running.remove(&(index, image));
            }
        }
        let admission = self.admit(index, &request);
        let decision = self.decide(index, &mut request, admission.clone());
        self.save(index, &request);
        self.process.wakes[index] = decision.wake;
        for &image in &decision.drops {
            let running = self.process.running.get_mut(&(index, image));
            running.expect("only what runs is dropped").dropped = true;
        }
        for launch in decision.launches {
            self.process.launched.insert((index, launch.image));
            let image = request.status.images[launch.image].clone();
            let running = Running {
                launch,
                image,
                said: Vec::new(),
                dropped: false,
                outcome: None,
            };
            let before = self.process.running.insert((index, launch.image), running);
            assert!(before.is_none(), "one step of an image at a time");
        }
        let mut again = request.clone();
        let repeated = self.decide(index, &mut again, admission);
        assert_eq!(
            again, request,
            "a second decision on the same world changes nothing"
        );
        assert_eq!(
            repeated.launches,
            [],
            "a second decision on the same world launches nothing"
        );
        self.settle_claims(index);
    }

    fn decide(&self, index: usize, request: &mut Request, admission: Admission) -> Decision {
        let contexts = request
            .spec
            .images
            .iter()
            .enumerate()
            .map(|(image, spec)| ImageContext {
                running: self
                    .process
                    .running
                    .get(&(index, image))
                    .map(|r| r.launch.step),
                waiting: None,
                quiet_until: self.until(&spec.float, |_| SETTLE),
                late_until: self.until(&spec.float, lateness),
                newest_stamp: None,
                paused: self.paused.get(&spec.float).map(ToString::to_string),
                taken_over: !self.process.launched.contains(&(index, image)),
            });
        let inputs = crate::machine::Inputs {
            now: time(self.now),
            stepped: 0,
            resource_version: index as u64 + 1,
            admission,
            launching: true,
            contexts: contexts.collect(),
        };
        let decision = decide(request, &inputs);
        assert!(
            decision.wake.is_none_or(|at| at > inputs.now),
            "a wake in the past never ends: {decision:?}"
        );
        decision
    }

    /// The end of what lasts so long after its sending, as `engine::memory` has it.
    fn until(&self, float: &Float, lasts: impl Fn(&Tag) -> i64) -> Option<Timestamp> {
        let process = &self.process;
        let open = process.open.iter().filter(|((on, _), _)| on == float);
        let open = open.map(|((_, tag), (_, at))| at + lasts(tag)).max();
        let before = if process.spared.contains(float) {
            SETTLE
        } else {
            LATE
        };
        let until = open.max(Some(process.since + before));
        until.filter(|&until| until > self.now).map(time)
    }

    fn admit(&mut self, index: usize, request: &Request) -> Admission {
        if is_suspended(request) {
            self.process.standing[index] = Standing::Ineligible;
            return Admission::Waits(Reason::Suspended, "spec.suspend is set".into());
        }
        let images = request.spec.images.iter().zip(&request.status.images);
        let open = images.filter(|(_, image)| !image.phase.is_finished());
        let floats: Vec<Float> = open.map(|(spec, _)| spec.float.clone()).collect();
        let uid = index.to_string();
        if self.process.claims.holds(&uid, floats.iter()) {
            return Admission::Holds;
        }
        if self.now < self.undecided[index] {
            return Admission::Waits(Reason::Queued, "checking push permission".into());
        }
        self.process.standing[index] = Standing::Eligible;
        let eligible = *self.process.eligible[index].get_or_insert(self.now);
        let waited = Duration::from_secs(u64::try_from(self.now - eligible).expect("time passes"));
        let patience = claims::PATIENCE.saturating_sub(waited);
        let contenders: Vec<Contender> = (0..self.requests.len())
            .filter_map(|other| self.contender(other))
            .collect();
        let me = self.contender(index).expect("it is unfinished");
        match self.process.claims.judge(&me, contenders.iter(), patience) {
            Verdict::Wait { behind, after } => {
                assert!(after.is_none_or(|after| !after.is_zero()));
                Admission::Waits(Reason::Queued, behind)
            }
            Verdict::Superseded { by, floats } => Admission::Superseded(lost(request, &floats), by),
            Verdict::Claim(rivals) => {
                assert!(
                    self.process.claims.take(&uid, &floats),
                    "it was judged free"
                );
                for rival in rivals {
                    self.supersede(rival.uid.parse().expect("an index"), &rival.floats);
                }
                Admission::Holds
            }
        }
    }

    /// What is known of an unfinished request.
    fn contender(&self, index: usize) -> Option<Contender> {
        let request = &self.requests[index];
        let there = !request.is_finished() && !self.deleted.contains(&index);
        let uid = index.to_string();
        let standing = self.process.standing[index];
        there.then(|| Contender::of(&uid, &uid, index as u64 + 1, request, standing))
    }

    fn supersede(&mut self, index: usize, floats: &[Float]) {
        let mut request = self.requests[index].clone();
        for image in lost(&request, floats) {
            let runs = self.process.running.contains_key(&(index, image));
            let shared = floats.contains(&request.spec.images[image].float);
            assert!(!(runs && shared), "what runs owns its float");
            assert!(
                !request.is_committed(image),
                "a committed image is waited for"
            );
            if !request.status.images[image].phase.is_finished() {
                request.status.images[image].end(Phase::Failed, Reason::Superseded, "");
            }
        }
        self.save(index, &request);
        if request.is_finished() {
            self.give_up(index);
        }
    }

    fn save(&mut self, index: usize, request: &Request) {
        let before = self.requests[index].clone();
        for image in 0..request.spec.images.len() {
            assert!(
                request.is_committed(image) || !before.is_committed(image),
                "committed is never taken back"
            );
            let (new, old) = (&request.status.images[image], &before.status.images[image]);
            assert!(
                new.attempts <= request.spec.attempts,
                "attempts stay within the limit"
            );
            if let (Some(new), Some(old)) = (&new.source, &old.source) {
                assert_eq!(new.digest, old.digest, "the source never changes again");
            }
            assert!(
                new == old || !old.phase.is_finished(),
                "what has ended stays as it is"
            );
            if let Some(stamp) = new.newest_stamp() {
                let float = request.spec.images[image].float.clone();
                let known = self.process.stamps.entry(float).or_insert(stamp);
                *known = stamp.max(*known);
            }
            if request.is_committed(image) && !before.is_committed(image) {
                let spec = &request.spec;
                assert!(
                    !spec.cancel && !spec.suspend,
                    "neither cancelled nor suspended when committed"
                );
                self.check_backed_up(request, image);
            }
        }
        self.requests[index] = request.clone();
    }

    /// Gives back what a request owns no longer.
    fn settle_claims(&mut self, index: usize) {
        let owned = self.contender(index).map(|c| c.owned()).unwrap_or_default();
        let mut keep = owned;
        for (image, spec) in self.requests[index].spec.images.iter().enumerate() {
            let runs = self.process.running.contains_key(&(index, image));
            if runs || self.until(&spec.float, lateness).is_some() {
                keep.push(spec.float.clone());
            }
        }
        self.process
            .claims
            .release(&index.to_string(), |float| keep.contains(float));
    }

    // === requests and mishaps ===

    fn with_running(&mut self, index: usize, act: impl FnOnce(&mut Self, Who)) {
        let open = self
            .process
            .running
            .iter()
            .filter(|(_, running)| running.outcome.is_none());
        let open: Vec<Who> = open.map(|(who, _)| *who).collect();
        if !open.is_empty() {
            act(self, open[index % open.len()]);
        }
    }

    fn spec(&self, who: Who) -> ImageSpec {
        self.requests[who.0].spec.images[who.1].clone()
    }

    /// Answers the next request of a step, or notes its end.
    fn serve(&mut self, who: Who) {
        let running = &self.process.running[&who];
        if running.outcome.is_some() {
            return;
        }
        let ask = match running.next(&self.spec(who)) {
            Halt::End(outcome) => return self.end(who, outcome),
            Halt::Ask(_) if running.dropped => return self.end(who, Outcome::Dropped),
            Halt::Ask(ask) => ask,
        };
        let yes = |yes: bool| if yes { Answer::Yes } else { Answer::No };
        let answer = match &ask {
            Ask::Look(tag) => Answer::At(self.registry.look(tag)),
            Ask::Held(digest) => yes(self.registry.has(*digest)),
            Ask::Fetch(reference) => Answer::At(self.fetch(who, reference)),
            Ask::Copy(digest) => {
                let there = self.fetch(who, &Reference::Digest(*digest)).is_some();
                if there {
                    self.registry.push(*digest);
                }
                yes(there)
            }
            Ask::Put(tag, digest) => {
                if let Some(seconds) = self.gate(who, tag, *digest) {
                    Answer::Landing(seconds)
                } else {
                    let write = self.write(who, tag, *digest);
                    yes(self.land(&write))
                }
            }
            // This world's process remembers nothing of its writes; reads are never stale here.
            Ask::Wrote(..) => Answer::No,
            Ask::Old(tag) => yes(is_old(tag, time(self.now))),
        };
        let running = self.process.running.get_mut(&who).expect("it runs");
        running.said.push((ask, answer));
    }

    /// What a source's repository has there: of the float's own, what it holds.
    fn fetch(&self, who: Who, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Tag(tag) => self.registry.look(tag),
            Reference::Digest(digest) if self.spec(who).is_within_one_repository() => {
                Some(*digest).filter(|digest| self.registry.has(*digest))
            }
            Reference::Digest(digest) => Some(*digest).filter(|_| !self.sources_gone),
        }
    }

    /// The answer to a tag write is lost; it has landed, or is still on the wire.
    fn lose(&mut self, who: Who, landed: bool) {
        let running = &self.process.running[&who];
        let Halt::Ask(Ask::Put(tag, digest)) = running.next(&self.spec(who)) else {
            return;
        };
        if running.dropped {
            return;
        }
        if self.gate(who, &tag, digest).is_some() {
            return;
        }
        let write = self.write(who, &tag, digest);
        if landed {
            self.land(&write);
        } else {
            let lasts = if self.now % 2 == 0 {
                SETTLE
            } else {
                lateness(&tag)
            };
            self.wire.push((self.now + lasts - 1, write));
        }
        let key = (self.spec(who).float, tag);
        self.process.open.insert(key, (digest, self.now));
        self.end(
            who,
            faulted(
                Reason::RegistryUnavailable,
                FaultClass::Wait { seconds: SETTLE },
            ),
        );
    }

    /// For how long another digest than this one may land on the tag, if one may.
    fn gate(&self, who: Who, tag: &Tag, digest: Digest) -> Option<i64> {
        let key = (self.spec(who).float, tag.clone());
        let open = self.process.open.get(&key);
        let other = open.filter(|(other, _)| *other != digest);
        let left = other.map(|(_, at)| at + lateness(tag) - self.now);
        left.filter(|&left| left > 0)
    }

    fn end(&mut self, who: Who, outcome: Outcome) {
        let running = self.process.running.get_mut(&who).expect("it runs");
        running.outcome = Some(outcome);
        if self.deleted.contains(&who.0) || self.requests[who.0].is_finished() {
            self.process.running.remove(&who);
            self.settle_claims(who.0);
        }
    }

    fn crash(&mut self) {
        self.process = Process::new(self.now, self.requests.len());
        for index in 0..self.requests.len() {
            let owned = self.contender(index).map(|c| c.owned()).unwrap_or_default();
            let taken = self.process.claims.take(&index.to_string(), &owned);
            assert!(taken, "two requests have begun on one float");
            let request = &self.requests[index];
            let images = request.spec.images.iter().zip(&request.status.images);
            let rest =
                images.filter(|(spec, image)| image.is_at_rest() && owned.contains(&spec.float));
            let spared = rest.map(|(spec, _)| spec.float.clone());
            self.process.spared.extend(spared);
        }
    }

    fn delete(&mut self, index: usize) {
        self.deleted.insert(index);
        self.give_up(index);
    }

    /// Nobody asks for a request's outcomes any more; a step that runs keeps its float until it has ended.
    fn give_up(&mut self, index: usize) {
        for (_, running) in self
            .process
            .running
            .iter_mut()
            .filter(|(who, _)| who.0 == index)
        {
            running.dropped = true;
        }
        self.process
            .running
            .retain(|who, running| who.0 != index || running.outcome.is_none());
        self.settle_claims(index);
    }

    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        let now = self.now;
        let landing: Vec<Write> = self
            .wire
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, write)| write)
            .collect();
        for write in landing {
            self.land(&write);
        }
    }

    fn write_foreign(&mut self, number: usize, kind: u8) {
        let float = float(number);
        self.foreign += 1;
        if kind == 4 {
            self.registry.delete(float.tag());
            self.absent_by_others.insert(float);
            return;
        }
        let digest = match kind {
            3 => old(number),
            kind => Digest::of(format!("foreign {number} {kind}").as_bytes()),
        };
        self.registry.push(digest);
        self.registry.put(float.tag(), digest);
        self.absent_by_others.remove(&float);
        self.latched_by.remove(&float);
    }

    fn write(&self, who: Who, tag: &Tag, digest: Digest) -> Write {
        let saw = self.process.running[&who].saw(tag);
        Write {
            who,
            tag: tag.clone(),
            digest,
            saw,
        }
    }

    // === the promises ===

    /// A tag write of ours reaches the registry; false where it is refused for missing content.
    fn land(&mut self, write: &Write) -> bool {
        let Write {
            who,
            tag,
            digest,
            saw,
        } = write;
        let float = self.spec(*who).float;
        let before = self.registry.look(tag);
        let moves_float = tag == float.tag();
        if moves_float && before != Some(*digest) {
            self.check_latch(*who, &float, before, *saw);
        }
        let (put, lost) = self.registry.put(tag, *digest);
        if put && moves_float {
            self.absent_by_others.remove(&float);
            self.latched_by.insert(float, who.0);
        }
        if let Some(lost) = lost {
            let read = *saw == Some(Seen(Some(lost)));
            assert!(
                !read && moves_float,
                "{tag}: the last tag of {lost} was taken by us"
            );
            assert!(
                self.foreign > 0,
                "nothing goes unseen but what others write"
            );
        }
        put
    }

    fn check_latch(&mut self, who: Who, float: &Float, before: Option<Digest>, saw: Option<Seen>) {
        let request = &self.requests[who.0];
        assert!(
            request.is_committed(who.1),
            "no float moves before it is committed"
        );
        let newer = self
            .latched_by
            .get(float)
            .is_some_and(|&order| order > who.0);
        assert!(!newer, "{float} goes back to an older request's image");
        let Some(before) = before else { return };
        if saw == Some(Seen(Some(before))) {
            assert!(
                self.is_pruned(float, before),
                "{before} is displaced without a prune tag"
            );
            assert_eq!(
                self.registry.look(&float.pre()),
                Some(before),
                "and without __pre"
            );
            self.displaced.insert((float.clone(), before));
        } else {
            assert!(
                self.foreign > 0,
                "nothing goes unseen but what others write"
            );
            self.unseen += 1;
        }
    }

    fn check_backed_up(&self, request: &Request, image: usize) {
        if request.spec.latch == Latch::Together {
            let ready = |phase: Phase| phase.awaits_latch() || phase.is_posted();
            assert!(
                request.status.images.iter().all(|i| ready(i.phase)),
                "all are backed up"
            );
        }
        let record = &request.status.images[image];
        let float = &request.spec.images[image].float;
        if let Some(newest) = record.displaced.last()
            && self.foreign == 0
            && record.phase.awaits_latch()
        {
            assert!(self.is_pruned(float, newest.digest));
            assert_eq!(self.registry.look(&float.pre()), Some(newest.digest));
        }
    }

    fn is_pruned(&self, float: &Float, digest: Digest) -> bool {
        self.prune_tags(float).any(|(_, held)| held == digest)
    }

    /// The prune tags of a float.
    pub fn prune_tags(&self, float: &Float) -> impl Iterator<Item = (&Tag, Digest)> {
        let tags = self
            .registry
            .tags
            .iter()
            .filter(|(tag, _)| Stamp::of(tag).is_some());
        let prune = move |tag: &Tag| Stamp::of(tag).map(|stamp| float.prune(stamp));
        tags.filter(move |(tag, _)| prune(tag).as_ref() == Some(tag))
            .map(|(tag, digest)| (tag, *digest))
    }

    /// What holds at every instant.
    fn check(&mut self) {
        for number in 0..2 {
            let float = float(number);
            if let Some(&digest) = self.registry.tags.get(float.tag()) {
                assert!(self.registry.has(digest), "{float} dangles");
            } else {
                let moved = self.latched_by.contains_key(&float);
                let away = self.absent_by_others.contains(&float);
                assert!(away || !moved, "{float} went away");
            }
        }
        for (tag, digest) in &self.registry.tags {
            // A lenient registry may take one for what somebody else removed; the record of that digest is dropped then.
            if Stamp::of(tag).is_some() && self.registry.has(*digest) {
                let known = *self.pruned.entry(tag.clone()).or_insert(*digest);
                assert_eq!(known, *digest, "{tag} was overwritten with another digest");
                let pins = self.requests.iter().flat_map(|r| &r.status.images);
                let mut pins = pins.flat_map(|i| i.displaced.iter().chain(&i.rescued));
                let recorded = pins.any(|pin| pin.tag == *tag && pin.digest == *digest);
                let excused = self.registry.is_lenient() && self.foreign > 0;
                assert!(
                    recorded || excused,
                    "{tag} was written before it was recorded"
                );
            }
        }
        for tag in self.pruned.keys() {
            assert!(self.registry.tags.contains_key(tag), "{tag} went away");
        }
        for (float, digest) in &self.displaced {
            assert!(self.is_pruned(float, *digest), "{digest} is pinned no more");
        }
        self.check_pins();
        self.check_claims();
    }

    /// One prune tag for each digest of a list, no tag twice, and the lists within their bounds.
    fn check_pins(&self) {
        for image in self.requests.iter().flat_map(|r| &r.status.images) {
            for pins in [&image.displaced, &image.rescued] {
                let digests: BTreeSet<_> = pins.iter().map(|pin| pin.digest).collect();
                assert_eq!(digests.len(), pins.len(), "{pins:?}");
            }
            let pins = image.displaced.iter().chain(&image.rescued);
            let tags: BTreeSet<_> = pins.clone().map(|pin| &pin.tag).collect();
            assert_eq!(tags.len(), pins.count(), "{image:?}");
            assert!(image.displaced.len() <= crate::machine::DISPLACED_MAX);
            assert!(image.rescued.len() <= crate::machine::RESCUED_MAX);
        }
    }

    /// One owner for each float, by the table and by the records; whatever runs owns its float.
    fn check_claims(&self) {
        for who in self.process.running.keys() {
            let owner = self.process.claims.owner(&self.spec(*who).float);
            assert_eq!(owner, Some(&who.0.to_string()), "what runs owns its float");
        }
        let mut owners = BTreeMap::new();
        for index in 0..self.requests.len() {
            for float in self.contender(index).map(|c| c.owned()).unwrap_or_default() {
                let other = owners.insert(float, index);
                assert_eq!(other, None, "two requests have begun on one float");
            }
        }
    }
}

/// How long after its sending a write of this tag may matter: a prune tag binds one digest.
fn lateness(tag: &Tag) -> i64 {
    if Stamp::of(tag).is_some() {
        SETTLE
    } else {
        LATE
    }
}

/// Whether a suspension holds back all that has not ended.
fn is_suspended(request: &Request) -> bool {
    let mut images = request.status.images.iter().enumerate();
    let goes_on = images.any(|(index, i)| !i.phase.is_finished() && request.is_committed(index));
    request.spec.suspend && !goes_on
}

/// The images that lose these floats: all of a group.
fn lost(request: &Request, floats: &[Float]) -> Vec<usize> {
    let images = request.spec.images.iter().enumerate();
    let together = request.spec.latch == Latch::Together;
    let lost = images.filter(|(_, image)| together || floats.contains(&image.float));
    lost.map(|(index, _)| index).collect()
}

// === impl Process ===

impl Process {
    fn new(since: i64, requests: usize) -> Self {
        Self {
            since,
            claims: Claims::default(),
            running: BTreeMap::new(),
            standing: vec![Standing::Undecided; requests],
            eligible: vec![None; requests],
            launched: BTreeSet::new(),
            open: BTreeMap::new(),
            spared: BTreeSet::new(),
            stamps: BTreeMap::new(),
            wakes: vec![None; requests],
        }
    }
}

// === impl Wish ===

impl Wish {
    fn request(&self, index: usize) -> Request {
        let images: Vec<ImageSpec> = self
            .images
            .iter()
            .map(|&(number, from)| {
                let float = float(number);
                let source = match from {
                    From::New => {
                        let digest = Digest::of(format!("new {index} {number}").as_bytes());
                        format!("registry.ci/ci/src@{digest}")
                    }
                    From::Old => format!("registry.ci/ci/src@{}", old(number)),
                    From::Pre => format!("{}:{}", float.repository(), float.pre()),
                };
                ImageSpec {
                    source: source.parse().expect("a source"),
                    float,
                    replaces: None,
                }
            })
            .collect();
        let status = Status::new(images.len());
        let spec = crate::machine::samples::spec(images, self.latch);
        Request { spec, status }
    }
}
