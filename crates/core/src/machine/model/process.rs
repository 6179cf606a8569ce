//! A process: the reconcile loop of `engine::reconcile` with the real `decide`, `advance` and claims, and the steps that it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::image::{Digest, Float, Reference, Stamp, Tag};
use crate::log::WriteLog;
use crate::machine::claims::{self, Claims, Contender, Standing, Uid, Verdict};
use crate::machine::quota::{NamespaceQuota, QuotaKey};
use crate::machine::{
    Admission, Context, Decision, ImageContext, Launch, Outcome, Phase, Reason, Request, Step,
    advance, decide,
};
use crate::steps::is_old;
use crate::steps::replay::{Answer, Ask, Halt, Running, Seen};

use super::setup::Mutation;
use super::world::{LATE, SETTLE, Shared, Who, World, Write};

/// What a process knows, and forgets when it dies.
#[derive(Debug, Clone, Hash)]
pub struct Process {
    /// Its own tag writes, and what an earlier process may have sent.
    pub log: Shared<WriteLog<Duration>>,
    /// Who owns which float.
    pub owners: BTreeMap<usize, usize>,
    /// How many of a namespace may have begun at once.
    pub quota: NamespaceQuota,
    /// The steps that run, and those that ended and are not recorded yet.
    pub running: BTreeMap<Who, Shared<Op>>,
    /// Those of which it has launched anything.
    launched: BTreeSet<Who>,
    /// The unfinished requests it has heard of, and since when or whether they may begin.
    pub known: Vec<Option<Known>>,
    /// Those that have ended or are gone.
    pub left: BTreeSet<usize>,
    /// An object as it was when a float of it was latched first; for [`Mutation::StaleLaunch`] only.
    pub stale: BTreeMap<usize, Shared<Request>>,
    /// For [`Mutation::LaunchBeforeSave`] only.
    unsaved: BTreeMap<usize, Request>,
}

/// Whether a request may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    Undecided,
    /// Until then it waits for older ones of which it is not known.
    Eligible(i64),
    Ineligible,
    BehindGate,
}

/// A step under way.
#[derive(Debug, Clone, Hash)]
pub struct Op {
    /// As the machine launched it.
    pub run: Running,
    /// Its next request.
    pub next: Option<Ask>,
    /// Somebody else wrote what it looked at last, or that look was an old one.
    pub excused: bool,
    /// A read of it failed.
    pub unknown: bool,
    /// The last look was none.
    blind: bool,
}

/// Why a request waits that is over its namespace's limit.
const OVER_LIMIT: &str = "over its namespace's limit";

const PATIENCE: i64 = claims::PATIENCE.as_secs().cast_signed();

/// A time as the log of writes has it.
pub fn moment(second: i64) -> Duration {
    Duration::from_secs(second.unsigned_abs())
}

/// The same in seconds.
pub fn second(moment: Duration) -> i64 {
    moment.as_secs().cast_signed()
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

// === impl Process ===

impl Process {
    /// A process that has listed all requests; `late`: for how long a write without an answer is taken to be able to land.
    pub fn new(requests: usize, quota: usize, late: i64) -> Self {
        Self {
            log: Shared::new(WriteLog::new(moment(SETTLE), moment(late))),
            owners: BTreeMap::new(),
            quota: NamespaceQuota::new(quota),
            running: BTreeMap::new(),
            launched: BTreeSet::new(),
            known: vec![Some(Known::Undecided); requests],
            left: BTreeSet::new(),
            stale: BTreeMap::new(),
            unsaved: BTreeMap::new(),
        }
    }

    /// Hears of a request.
    pub fn notice(&mut self, index: usize) {
        self.known[index] = Some(Known::Undecided);
    }

    /// Lets go of what is of no use any more.
    pub fn forget(&mut self, now: i64) {
        self.log.change(|log| {
            log.prune(moment(now));
            log.forget_stamps(Stamp::at(time(now)));
        });
        for known in self.known.iter_mut().flatten() {
            if let Known::Eligible(until) = known
                && *until <= now
            {
                *until = 0;
            }
        }
    }

    /// Gives a step up: reads and copies at once; a tag write is one indivisible action here.
    fn drop_step(&mut self, who: Who) {
        let Some(op) = self.running.get_mut(&who) else {
            return;
        };
        if op.run.outcome.is_none() {
            op.change(|op| {
                op.run.outcome = Some(Outcome::Dropped);
                op.next = None;
            });
        }
    }

    /// A request has ended or is gone: nobody asks for its outcomes any more.
    fn give_up(&mut self, index: usize) {
        self.known[index] = None;
        self.left.insert(index);
        self.running.retain(|who, _| who.0 != index);
        self.launched.retain(|who| who.0 != index);
    }
}

// === impl Op ===

impl Op {
    /// The tag it writes next, if it does.
    pub fn next_put(&self) -> Option<&Tag> {
        match &self.next {
            Some(Ask::Put(tag, _)) => Some(tag),
            _ => None,
        }
    }

    /// A tag write with what the request directly before it showed.
    fn write(&self, who: Who, tag: &Tag, digest: Digest) -> Write {
        let mut said = self.run.said.iter().rev();
        let saw = match said.find(|(ask, _)| !ask.is_local()) {
            Some((Ask::Look(looked), Answer::At(seen))) if looked == tag && !self.blind => {
                Some(Seen(*seen))
            }
            _ => None,
        };
        Write {
            who,
            tag: tag.clone(),
            digest,
            saw,
            excused: self.excused,
            unknown: self.unknown,
        }
    }
}

// === impl World ===

impl World {
    // === the reconcile loop ===

    /// Takes one request one step on: load, collect, advance, admit, decide, save, launch.
    pub fn reconcile(&mut self, process: &mut Process, index: usize) {
        if self.over(index) {
            process.give_up(index);
            self.settle_claims(process, index);
            return;
        }
        if process.known[index].is_none() {
            return;
        }
        let mut request = (*self.objects[index].request).clone();
        request.spec.undo &= !self.lacks(Mutation::UndoShown);
        if self.lacks(Mutation::GateIgnored) {
            request.spec.gates.clear();
        }
        if self.lacks(Mutation::FreezeIgnored) {
            let images = request.spec.images.iter_mut();
            images.for_each(|image| image.freeze = None);
        }
        if self.lacks(Mutation::FreezeOfOne) {
            // Whoever asks for the first one alone.
            let others = request.spec.images.iter_mut().skip(1);
            others.for_each(|image| image.freeze = None);
        }
        if self.lacks(Mutation::ReplacesIgnored) {
            let images = request.spec.images.iter_mut();
            images.for_each(|image| image.replaces = None);
        }
        if let Some(unsaved) = process.unsaved.remove(&index) {
            request.status = unsaved.status;
            self.save(process, index, &request);
        }
        let finished = self.collect(process, index, &mut request);
        let admission = self.admit(process, index, &request);
        let over_limit = admission == Some(Admission::Waits(Reason::Queued, OVER_LIMIT.into()));
        if !over_limit && admission != Some(Admission::Holds) {
            process
                .quota
                .withdraw(&self.quota_key(index), &index.to_string());
        }
        let Some(admission) = admission else {
            // Those that it supersedes are ended first; its own save is another action, and a crash may come between.
            return;
        };
        let repeated = self.setup.repeats.then(|| admission.clone());
        let decision = self.decide(process, index, &mut request, admission, &finished);
        let launched = self.lacks(Mutation::LaunchBeforeSave) && !decision.launches.is_empty();
        if launched {
            process.unsaved.insert(index, request.clone());
        } else {
            self.save(process, index, &request);
        }
        for &image in &finished {
            process.running.remove(&(index, image));
        }
        for &image in &decision.drops {
            process.drop_step((index, image));
        }
        for &launch in &decision.launches {
            self.launch(process, index, &request, launch);
        }
        if let Some(admission) = repeated {
            self.check_repeated(process, index, &request, admission);
        }
        if request.is_finished() && !launched {
            process.give_up(index);
        }
        self.settle_claims(process, index);
    }

    /// A second decision on the same world changes nothing and launches nothing, and no wake is in the past.
    fn check_repeated(
        &self,
        process: &Process,
        index: usize,
        request: &Request,
        admission: Admission,
    ) {
        let mut again = request.clone();
        let decision = self.decide(process, index, &mut again, admission, &[]);
        assert_eq!(again, *request);
        assert_eq!(decision.launches, []);
        assert!(decision.wake.is_none_or(|at| at > time(self.now)));
    }

    /// Records what has ended; gives whose it was.
    fn collect(&self, process: &Process, index: usize, request: &mut Request) -> Vec<usize> {
        let mut finished = Vec::new();
        for image in 0..request.spec.images.len() {
            let op = process.running.get(&(index, image));
            let ended =
                op.and_then(|op| Some((op.run.outcome.clone()?, op.run.launch.may_have_run)));
            let Some((outcome, may_have_run)) = ended else {
                continue;
            };
            let newest_stamp = process.log.newest_stamp(&request.spec.images[image].float);
            let context = Context {
                now: time(self.now),
                newest_stamp: newest_stamp.filter(|_| !self.lacks(Mutation::StampReused)),
                jitter: 0.5,
            };
            let before = request.clone();
            advance(
                request,
                image,
                self.tampered(outcome, &before, image, may_have_run),
                &context,
            );
            self.tamper_record(&before, request, image);
            finished.push(image);
        }
        finished
    }

    /// What the claims say; none where those that it supersedes were ended, and nothing else was done yet.
    fn admit(
        &mut self,
        process: &mut Process,
        index: usize,
        request: &Request,
    ) -> Option<Admission> {
        let waits = |reason, why: &str| Some(Admission::Waits(reason, why.into()));
        if request.spec.suspend {
            process.known[index] = Some(Known::Ineligible);
        }
        if let Some((reason, message)) = request.held_back() {
            return waits(reason, &message);
        }
        let released = self.lacks(Mutation::ReleasedEarly) && request.is_rolling_back();
        if self.lacks(Mutation::NoClaims) || released {
            return Some(Admission::Holds);
        }
        let floats = request.wanted_floats();
        let numbers: Vec<usize> = floats.iter().map(|f| self.setup.number(f)).collect();
        if numbers
            .iter()
            .all(|n| process.owners.get(n) == Some(&index))
        {
            return Some(Admission::Holds);
        }
        if request.spec.suspend {
            return waits(Reason::Queued, "another request holds a float");
        }
        let until = match process.known[index] {
            Some(Known::Eligible(until)) => until,
            _ => self.now + PATIENCE,
        };
        process.known[index] = Some(Known::Eligible(until));
        let patience = Duration::from_secs(u64::try_from(until - self.now).unwrap_or_default());
        let contenders = (0..self.objects.len()).filter_map(|i| self.contender(process, i));
        let contenders: Vec<Contender> = contenders.collect();
        let me = self.contender(process, index).expect("it is known");
        let mut claims = Claims::default();
        for (number, owner) in &process.owners {
            claims.take(&owner.to_string(), &[self.setup.floats[*number].clone()]);
        }
        match claims.judge(&me, contenders.iter(), patience) {
            Verdict::Wait { behind, gate, .. } => {
                if gate {
                    process.known[index] = Some(Known::BehindGate);
                }
                waits(Reason::Queued, &behind)
            }
            Verdict::Superseded { by, floats } => {
                Some(Admission::Superseded(request.images_losing(&floats), by))
            }
            Verdict::Claim(rivals) => {
                let others: Vec<Uid> = rivals.iter().map(|rival| rival.uid.clone()).collect();
                let (quota_key, uid) = (self.quota_key(index), index.to_string());
                if !process
                    .quota
                    .try_admit(&quota_key, &uid, me.order, others.iter())
                {
                    process.known[index] = Some(Known::Ineligible);
                    return waits(Reason::Queued, OVER_LIMIT);
                }
                process
                    .owners
                    .extend(numbers.into_iter().map(|n| (n, index)));
                let unrecorded = self.lacks(Mutation::SupersededUnrecorded);
                let mut ended = false;
                for rival in rivals.into_iter().filter(|_| !unrecorded) {
                    ended |= self.supersede(
                        process,
                        rival.uid.parse().expect("an index"),
                        &rival.floats,
                    );
                }
                (!ended).then_some(Admission::Holds)
            }
        }
    }

    /// Ends an older request on these floats; whether there was anything to end.
    fn supersede(&mut self, process: &mut Process, index: usize, floats: &[Float]) -> bool {
        if self.over(index) {
            return false;
        }
        let mut request = (*self.objects[index].request).clone();
        for image in request.images_losing(floats) {
            let image = &mut request.status.images[image];
            if !image.phase.is_finished() {
                image.end(Phase::Failed, Reason::Superseded, "");
            }
        }
        self.save(process, index, &request);
        if request.is_finished() {
            process.give_up(index);
            self.settle_claims(process, index);
        }
        true
    }

    fn decide(
        &self,
        process: &Process,
        index: usize,
        request: &mut Request,
        admission: Admission,
        finished: &[usize],
    ) -> Decision {
        let unsettled = self.lacks(Mutation::IntentUnsettled);
        let images = request.spec.images.iter().enumerate();
        let contexts = images.map(|(image, spec)| {
            let op = process.running.get(&(index, image));
            let (log, now) = (&process.log, moment(self.now));
            let at = |until| time(second(until));
            ImageContext {
                running: op
                    .filter(|_| !finished.contains(&image))
                    .map(|op| op.run.launch.step),
                waiting: None,
                quiet_until: (log.quiet_until(&spec.float, now).map(at)).filter(|_| !unsettled),
                late_until: (log.late_until(&spec.float, now).map(at)).filter(|_| !unsettled),
                newest_stamp: log.newest_stamp(&spec.float),
                paused: (self.paused.contains(&self.setup.number(&spec.float)))
                    .then(|| "stopped".into()),
                taken_over: !process.launched.contains(&(index, image)),
            }
        });
        let inputs = crate::machine::Inputs {
            now: time(self.now),
            stepped: 0,
            resource_version: index as u64 + 1,
            admission,
            launching: true,
            contexts: contexts.collect(),
        };
        let committed = request.status.committed;
        if self.lacks(Mutation::CommitIgnored) && request.spec.cancel {
            request.status.committed = false;
        }
        if self.lacks(Mutation::Unconfirmed) {
            for image in &mut request.status.images {
                image.pinned = Some(time(self.now));
            }
        }
        let latched: Vec<_> = request.status.images.iter().map(|i| i.phase).collect();
        let intent = request.status.rollback;
        let mut decision = decide(request, &inputs);
        if self.lacks(Mutation::OnlyLatchedExamined) && request.status.rollback && !intent {
            for (image, phase) in request.status.images.iter_mut().zip(latched) {
                if !phase.is_latched() {
                    image.rollback = None;
                }
            }
            let kept = |l: &Launch| request.status.images[l.image].rollback.is_some();
            decision.launches.retain(kept);
        }
        request.status.committed |= committed;
        self.tamper_decision(request, &inputs, &mut decision);
        decision
    }

    fn save(&mut self, process: &mut Process, index: usize, request: &Request) {
        if request.status == self.objects[index].request.status {
            return;
        }
        self.check_saved(index, request);
        let before = self.objects[index].request.clone();
        let images = request.status.images.iter().zip(&before.status.images);
        for (spec, (new, old)) in request.spec.images.iter().zip(images) {
            if let Some(stamp) = new.newest_stamp().filter(|_| new != old) {
                let now = Stamp::at(time(self.now));
                process
                    .log
                    .change(|log| log.note_stamp(&spec.float, stamp, now));
            }
        }
        let status = request.status.clone();
        self.objects[index]
            .request
            .change(|request| request.status = status);
    }

    fn launch(&mut self, process: &mut Process, index: usize, request: &Request, launch: Launch) {
        let who = (index, launch.image);
        if self.lacks(Mutation::StaleLaunch) && launch.step == Step::Latch {
            let object = Shared::new(request.clone());
            process.stale.entry(index).or_insert(object);
        }
        process.launched.insert(who);
        let run = Running {
            launch,
            image: request.status.images[launch.image].clone(),
            said: Vec::new(),
            outcome: None,
        };
        let op = Op {
            run,
            next: None,
            excused: false,
            unknown: false,
            blind: false,
        };
        process.running.insert(who, Shared::new(op));
        if self.lacks(Mutation::BackUpSkipped) && launch.step == Step::BackUp {
            let notices = Vec::new();
            self.end_step(process, who, &Outcome::BackedUp { notices });
        } else {
            self.go_on(process, who);
        }
    }

    /// A launch from an old reading of the object, without a save: what [`Mutation::StaleLaunch`] allows, once.
    pub fn launch_stale(&mut self, process: &mut Process, index: usize) {
        let Some(object) = process.stale.remove(&index) else {
            return;
        };
        for image in 0..object.spec.images.len() {
            let may_have_run = true;
            let step = Step::Latch;
            let launch = Launch {
                image,
                step,
                may_have_run,
            };
            self.launch(process, index, &object, launch);
        }
        process.stale.clear();
    }

    /// Gives back what a request owns no longer.
    fn settle_claims(&self, process: &mut Process, index: usize) {
        if self.lacks(Mutation::ClaimKept) {
            return;
        }
        let owned = self.contender(process, index).map(|c| c.owned());
        let owned = owned.unwrap_or_default();
        let now = self.now;
        let mut owners = std::mem::take(&mut process.owners);
        owners.retain(|&number, owner| {
            let float = &self.setup.floats[number];
            let runs = process
                .running
                .keys()
                .any(|&who| who.0 == index && self.float(who) == float);
            let late = process.log.late_until(float, moment(now));
            *owner != index || owned.contains(float) || runs || late.is_some()
        });
        process.owners = owners;
        if !process.owners.values().any(|owner| *owner == index) {
            process
                .quota
                .release(&self.quota_key(index), &index.to_string());
        }
        if process.known[index].is_none() {
            process
                .quota
                .withdraw(&self.quota_key(index), &index.to_string());
        }
    }

    /// With whom a request is counted.
    pub fn quota_key(&self, index: usize) -> QuotaKey {
        QuotaKey {
            namespace: self.setup.scenario.wishes[index].namespace.into(),
            plans: false,
        }
    }

    /// What is known of an unfinished request.
    fn contender(&self, process: &Process, index: usize) -> Option<Contender> {
        let standing = match process.known[index]? {
            Known::Undecided => Standing::Undecided,
            Known::Eligible(_) => Standing::Eligible,
            Known::Ineligible => Standing::Ineligible,
            Known::BehindGate => Standing::BehindGate,
        };
        let request = &self.objects[index].request;
        let released = self.lacks(Mutation::ReleasedEarly) && request.is_rolling_back();
        let there = !self.over(index) && !released;
        let uid = index.to_string();
        there.then(|| {
            let (name, order) = (format!("r{index}"), index as u64 + 1);
            let mut contender = Contender::of(&uid, &name, order, request, standing);
            contender.gated &= !self.lacks(Mutation::GatedPasses);
            if self.lacks(Mutation::GateKeepsClaim) {
                let shares = contender.shares.iter_mut();
                shares.for_each(|share| share.at_gate = false);
            }
            if self.lacks(Mutation::FreezeKeepsClaim) {
                contender.suspended = request.spec.suspend;
                let shares = contender.shares.iter_mut();
                shares.for_each(|share| share.frozen = false);
            }
            contender
        })
    }

    /// The floats that a request owns by its record, as a new leader rebuilds the claims.
    pub fn owned_by_record(&self, index: usize) -> Vec<Float> {
        if self.over(index) {
            return Vec::new();
        }
        let request = &self.objects[index].request;
        let standing = Standing::Eligible;
        Contender::of("", "", index as u64 + 1, request, standing).owned()
    }

    // === the steps ===

    /// The next request of a step is answered truthfully.
    pub fn serve(&mut self, process: &mut Process, who: Who) {
        let op = &process.running[&who];
        let yes = |yes: bool| if yes { Answer::Yes } else { Answer::No };
        let answer = match op.next.clone().expect("it asks") {
            Ask::Look(tag) => Answer::At(self.registry.look(&tag)),
            Ask::Held(digest) => yes(self.registry.has(digest)),
            Ask::Fetch(reference) => Answer::At(self.fetch(who, &reference)),
            Ask::Copy(digest) => {
                let there = self.fetch(who, &Reference::Digest(digest)).is_some();
                if there && !self.registry.has(digest) {
                    self.registry.change(|registry| registry.push(digest));
                }
                yes(there)
            }
            Ask::Put(tag, _) if self.is_refused(who, &tag) => {
                return self.refuse(process, who, Answer::Refused);
            }
            Ask::Put(tag, digest) => {
                let write = op.write(who, &tag, digest);
                if let Some(left) = self.closed_for(process, who, &tag, digest) {
                    return self.answer(process, who, Answer::Landing(left));
                }
                self.enter(process, &write);
                self.check_sent(&write);
                let put = self.land(&write);
                let (float, now) = (self.float(who), moment(self.now));
                process.log.change(|log| {
                    if put {
                        log.answered(float, &tag, digest, now, now);
                    } else {
                        log.refused(float, &tag, digest, now);
                    }
                });
                yes(put)
            }
            Ask::Wrote(..) | Ask::Old(_) => unreachable!("answered by the process"),
        };
        self.answer(process, who, answer);
    }

    /// A tag write is refused, and the registry says why; or it is not sent.
    pub fn refuse(&mut self, process: &mut Process, who: Who, answer: Answer) {
        let op = &process.running[&who];
        let Some(Ask::Put(tag, digest)) = op.next.clone() else {
            unreachable!("only writes are refused");
        };
        if answer != Answer::NotSent {
            self.check_sent(&op.write(who, &tag, digest));
        }
        self.answer(process, who, answer);
    }

    /// A read fails.
    pub fn fail_read(&mut self, process: &mut Process, who: Who, answer: Answer) {
        let op = process.running.get_mut(&who).expect("it runs");
        let look = matches!(op.next, Some(Ask::Look(_) | Ask::Fetch(_)));
        op.change(|op| op.unknown = true);
        let answer = if look && self.lacks(Mutation::UnknownIsAbsent) {
            Answer::At(None)
        } else {
            answer
        };
        self.answer(process, who, answer);
    }

    /// A read shows what was there before.
    pub fn read_stale(&mut self, process: &mut Process, who: Who) {
        let next = process.running[&who].next.as_ref();
        let tag = next
            .and_then(Ask::read_tag)
            .expect("only reads of tags are answered by old replicas");
        let (shown, _) = self.replicas[tag];
        self.answer(process, who, Answer::At(shown));
        process
            .running
            .entry(who)
            .and_modify(|op| op.change(|op| op.excused = true));
    }

    /// The answer to a tag write is lost; it has landed, or is on the wire.
    pub fn lose(&mut self, process: &mut Process, who: Who, landed: bool) {
        let op = &process.running[&who];
        let Some(Ask::Put(tag, digest)) = op.next.clone() else {
            unreachable!("only writes are lost");
        };
        let write = op.write(who, &tag, digest);
        if !self.lacks(Mutation::NoFence) {
            self.enter(process, &write);
        }
        self.check_sent(&write);
        if landed {
            self.land(&write);
        } else {
            self.wire.push((self.now + LATE, write));
        }
        self.answer(process, who, Answer::Lost(SETTLE));
    }

    /// For how long the gate is closed, because another digest than this one may land on the tag.
    pub fn closed_for(
        &self,
        process: &Process,
        who: Who,
        tag: &Tag,
        digest: Digest,
    ) -> Option<i64> {
        if self.lacks(Mutation::OtherDigestSent) {
            return None;
        }
        let (repository, now) = (self.float(who).repository(), moment(self.now));
        let until = process
            .log
            .landing_until(repository, tag, Some(digest), now)?;
        Some(second(until.saturating_sub(now)))
    }

    /// A tag write is entered in the log, and sent.
    fn enter(&self, process: &mut Process, write: &Write) {
        let (float, now) = (self.float(write.who), moment(self.now));
        process
            .log
            .change(|log| log.enter(float, &write.tag, write.digest, None, now));
    }

    fn answer(&mut self, process: &mut Process, who: Who, answer: Answer) {
        let op = process.running.get_mut(&who).expect("it runs");
        op.change(|op| {
            let ask = op.next.take().expect("it asks");
            op.excused = false;
            op.blind = false;
            op.run.said.push((ask, answer));
        });
        self.go_on(process, who);
    }

    /// Goes on to a step's next request of the registry, or to its end.
    fn go_on(&self, process: &mut Process, who: Who) {
        let mut spec = self.objects[who.0].request.spec.images[who.1].clone();
        if self.lacks(Mutation::ReplacesIgnored) {
            spec.replaces = None;
        }
        loop {
            let op = process.running.get_mut(&who).expect("it runs");
            let ask = match op.run.next(&spec) {
                Halt::End(outcome) => return self.end_step(process, who, &outcome),
                Halt::Ask(ask) => ask,
            };
            let local = match &ask {
                Ask::Wrote(tag, digest) => {
                    let (repository, now) = (spec.float.repository(), moment(self.now));
                    let wrote = process.log.wrote(repository, tag, *digest, now);
                    Some(if wrote { Answer::Yes } else { Answer::No })
                }
                Ask::Old(tag) => {
                    let old = is_old(tag, time(self.now));
                    Some(if old { Answer::Yes } else { Answer::No })
                }
                ask => self.tampered_answer(&op.run, ask),
            };
            let Some(answer) = local else {
                op.change(|op| op.next = Some(ask));
                return;
            };
            op.change(|op| {
                op.blind |= !ask.is_local();
                op.run.said.push((ask, answer));
            });
        }
    }

    fn end_step(&self, process: &mut Process, who: Who, outcome: &Outcome) {
        let op = process.running.get_mut(&who).expect("it runs");
        op.change(|op| op.run.outcome = Some(outcome.clone()));
        if process.known[who.0].is_none() {
            process.running.remove(&who);
            self.settle_claims(process, who.0);
        }
    }

    // === guards that are taken away ===

    /// What a step believes without having asked.
    fn tampered_answer(&self, run: &Running, ask: &Ask) -> Option<Answer> {
        let (step, image) = (run.launch.step, &run.image);
        let float = |tag: &Tag| self.setup.floats.iter().any(|f| f.tag() == tag);
        match (self.setup.mutation?, ask) {
            (Mutation::LatchWithoutLook, Ask::Look(tag)) if step == Step::Latch && float(tag) => {
                Some(Answer::At(image.displaced.last().map(|pin| pin.digest)))
            }
            (Mutation::PreSkipped, Ask::Put(tag, _)) if step == Step::BackUp => {
                let pre = self.setup.floats.iter().any(|f| f.pre() == *tag);
                pre.then_some(Answer::Yes)
            }
            (Mutation::PromotedUnpinned, Ask::Put(tag, _)) if step == Step::RollBack => {
                Stamp::of(tag).map(|_| Answer::Yes)
            }
            (Mutation::TakenBackWithoutLook, Ask::Look(tag))
                if step == Step::RollBack && float(tag) =>
            {
                Some(Answer::At(image.source.as_ref().map(|s| s.digest)))
            }
            (Mutation::RefusalBelieved, Ask::Look(_))
                if matches!(run.said.last(), Some((Ask::Put(..), Answer::No))) =>
            {
                Some(Answer::At(None))
            }
            (Mutation::IncomingSkipped, Ask::Put(..)) if step == Step::Stage => Some(Answer::Yes),
            (Mutation::StampReused, Ask::Look(tag)) if Stamp::of(tag).is_some() => {
                Some(Answer::At(None))
            }
            (Mutation::RescueSkipped, Ask::Look(tag)) => {
                let floats = &self.setup.floats;
                let pin = floats
                    .iter()
                    .any(|f| f.incoming() == *tag || f.post1() == *tag);
                (pin && !run.launch.may_have_run).then_some(Answer::At(None))
            }
            _ => None,
        }
    }

    fn tampered(
        &self,
        outcome: Outcome,
        request: &Request,
        image: usize,
        may_have_run: bool,
    ) -> Outcome {
        let displaced = request.status.images[image].displaced.last();
        let Some(source) = &request.status.images[image].source else {
            return outcome;
        };
        let new = displaced.is_some_and(|pin| pin.digest != source.digest);
        let moved = self.lacks(Mutation::MovesUncounted)
            || self.lacks(Mutation::LandedIsMoved) && may_have_run && new;
        if moved && outcome == Outcome::Latched {
            return Outcome::Moved { to: source.digest };
        }
        outcome
    }

    fn tamper_record(&self, before: &Request, request: &mut Request, image: usize) {
        let old = &before.status.images[image];
        let new = &mut request.status.images[image];
        if self.lacks(Mutation::ListedAgain)
            && let (Some(last), true) = (
                new.displaced.last().cloned(),
                new.displaced != old.displaced,
            )
            && let Some(pin) = old.pin(last.digest)
            && let Some(newest) = old.newest_stamp()
        {
            let again = before.spec.images[image].float.prune(newest.next());
            let listed = pin.clone();
            new.displaced.last_mut().expect("just looked at").tag = again;
            new.displaced.insert(0, listed);
        }
        if self.lacks(Mutation::RescuedIsDisplaced) {
            let rescued = new.rescued.drain(..);
            new.displaced.extend(rescued);
        }
        if self.lacks(Mutation::MovesUncounted) {
            new.attempts = 0;
            new.next_attempt = None;
            // It would be found by its reason before it goes round.
            new.reason = None;
        }
    }

    fn tamper_decision(
        &self,
        request: &mut Request,
        inputs: &crate::machine::Inputs,
        decision: &mut Decision,
    ) {
        let holds = inputs.admission == Admission::Holds;
        let backed_up =
            |request: &Request, image: usize| request.status.images[image].phase.awaits_latch();
        let ready = (0..request.spec.images.len()).filter(|&i| holds && backed_up(request, i));
        let ready: Vec<usize> = ready.collect();
        if self.lacks(Mutation::CommitEarly) && !ready.is_empty() {
            request.status.committed = true;
        }
        if self.lacks(Mutation::LatchOnItsOwn) && !request.status.committed {
            for image in ready {
                if inputs.contexts[image].running.is_none() {
                    let (step, may_have_run) = (Step::Latch, false);
                    decision.launches.push(Launch {
                        image,
                        step,
                        may_have_run,
                    });
                }
            }
        }
    }
}
