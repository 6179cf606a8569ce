//! A process: the shipped [`Coordinator`] with its [log](WriteLog), and the steps that it runs. Here stand only the store and the
//! registry that answer it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::coordinator::{
    self, Answer as Admitted, Ask as Asked, Decided, Ended, Finished, Key, Launched, Load, Loaded,
    Object as Read, Recorded, Round, end_rival,
};
use crate::image::{Digest, Float, Reference, Stamp, Tag};
use crate::log::WriteLog;
use crate::machine::claims::{Contender, PATIENCE, Rival, Standing};
use crate::machine::{
    Admission, ImageContext, Inputs, Launch, Outcome, Reason, Request, Step, decide,
};
use crate::steps::is_old;
use crate::steps::replay::{Answer, Ask, Halt, Running, Seen};

use super::promises::Promise;
use super::search::fingerprint;
use super::setup::{Deletion, Mutation};
use super::world::{LATE, Object, SETTLE, Shared, Who, World, Write};

/// Who works on what, as the engine has it.
pub type Coordinator = coordinator::Coordinator<Duration, (), (), ()>;

/// What a process knows, and forgets when it dies.
#[derive(Debug, Clone, Hash)]
pub struct Process {
    /// Its own tag writes, and what an earlier process may have sent.
    pub log: Shared<WriteLog<Duration>>,
    /// The requests it has heard of, who owns which float, what runs.
    pub coordinator: Shared<Coordinator>,
    /// The steps that run, and those that ended and are not recorded yet.
    pub running: BTreeMap<Who, Shared<Op>>,
    /// The objects that it has loaded and not looked at yet, where a load is an action of its own.
    pub loaded: BTreeMap<usize, Object>,
    /// Its saves whose answer is not known, where a save and its answer are actions of their own.
    pub sent: BTreeMap<usize, Shared<Sent>>,
    /// It is of an older version, and cannot read the first request.
    pub older: bool,
    /// Its lease has run out, and it does not know.
    pub former: bool,
    /// An object as it was when a float of it was latched first; for [`Mutation::StaleLaunch`] only.
    pub stale: BTreeMap<usize, Shared<Request>>,
    /// For [`Mutation::LaunchBeforeSave`] only.
    unsaved: BTreeMap<usize, Request>,
}

/// A save, and what follows once it is answered.
#[derive(Debug, Clone, Hash)]
pub struct Sent {
    /// As it is saved.
    pub request: Request,
    /// The version it was loaded at; once it has landed, its own.
    pub version: u64,
    /// How far it is.
    pub at: SentAt,
    round: Round,
}

/// How far a save is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SentAt {
    /// It may land.
    Way,
    /// It has landed, and is not answered.
    Landed,
    /// It was refused, or is not answered any more: the next load shows whether it has landed.
    Unknown,
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

/// The UID of a request.
pub fn uid(index: usize) -> String {
    index.to_string()
}

/// A time as the log of writes has it.
pub fn moment(second: i64) -> Duration {
    Duration::from_secs(second.unsigned_abs())
}

/// The same in seconds.
pub fn second(moment: Duration) -> i64 {
    moment.as_secs().cast_signed()
}

fn shown(moment: Duration) -> Timestamp {
    time(second(moment))
}

fn saved(key: &Key, version: u64, contender: Contender) -> Read<'_, ()> {
    Read {
        key,
        version,
        contender,
        counts: (),
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

// === impl Process ===

impl Process {
    /// A process that has heard of nothing yet; `late`: for how long a write without an answer is taken to be able to land.
    pub fn new(quota: usize, late: i64) -> Self {
        Self {
            log: Shared::new(WriteLog::new(moment(SETTLE), moment(late))),
            coordinator: Shared::new(Coordinator::new(quota)),
            running: BTreeMap::new(),
            loaded: BTreeMap::new(),
            sent: BTreeMap::new(),
            older: false,
            former: false,
            stale: BTreeMap::new(),
            unsaved: BTreeMap::new(),
        }
    }

    /// Lets go of what is of no use any more. `quiet`: no save is under way, of whatever process.
    pub fn forget(&mut self, now: i64, quiet: bool) {
        self.log.change(|log| {
            log.prune(moment(now));
            log.forget_stamps(Stamp::at(time(now)));
        });
        self.simplify(now, quiet);
    }

    /// Makes states alike that behave alike.
    pub fn simplify(&mut self, now: i64, quiet: bool) {
        (self.coordinator).change(|c| c.simplify(moment(now), Duration::ZERO, quiet));
    }

    /// Whether it has heard of a request.
    pub fn hears(&self, index: usize) -> bool {
        self.coordinator.key_of(&uid(index)).is_some()
    }

    /// Whether there is anything to do for a request.
    pub fn reconciles(&self, index: usize) -> bool {
        let unread = self.older && index == 0;
        let waits = self
            .sent
            .get(&index)
            .is_some_and(|s| s.at != SentAt::Unknown);
        let owns = self.coordinator.claims().owns_any(&uid(index));
        (self.hears(index) || owns) && !unread && !waits
    }

    fn id(&self, who: Who) -> u64 {
        let operation = self.coordinator.operation(&uid(who.0), who.1);
        operation.map_or(0, |operation| operation.id)
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
            self.ended(who, Outcome::Dropped);
        }
    }

    fn ended(&mut self, who: Who, outcome: Outcome) -> Ended {
        let id = self.id(who);
        let ended = (self.coordinator).change(|c| c.ended(&uid(who.0), who.1, id, outcome));
        if ended != Ended::Record {
            self.running.remove(&who);
        }
        ended
    }
}

// === impl Op ===

impl Op {
    /// A tag write with what the request directly before it showed.
    fn write(&self, who: Who, tag: &Tag, digest: Option<Digest>) -> Write {
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
    // === what is heard ===

    /// A process hears of a request as it is now.
    pub fn hear(&self, process: &mut Process, index: usize) {
        self.hear_as(
            process,
            index,
            self.contender(index),
            self.objects[index].version,
        );
    }

    fn key(&self, index: usize) -> Key {
        Key {
            namespace: self.setup.scenario.wishes[index].namespace.into(),
            name: format!("r{index}"),
        }
    }

    fn hear_as(&self, process: &mut Process, index: usize, contender: Contender, version: u64) {
        let key = self.key(index);
        (process.coordinator).change(|c| c.note(&key, version, contender, ()));
    }

    /// A process hears of a request that it cannot read.
    pub fn hear_unread(&self, process: &mut Process, index: usize) {
        let request = &self.objects[index].request;
        let floats = request.spec.images.iter().map(|image| image.float.clone());
        let floats: Vec<Float> = floats.collect();
        let (order, started) = (index as u64 + 1, request.status.started.is_some());
        let contender = Contender::unreadable(&uid(index), "", order, &floats, started);
        self.hear_as(process, index, contender, self.objects[index].version);
    }

    /// A request has ended or is gone: nobody asks for its outcomes any more.
    pub fn gone(&self, process: &mut Process, index: usize) {
        let now = moment(self.now);
        (process.coordinator).change(|c| c.forget(&uid(index), now));
        let whose: Vec<Who> = process.running.keys().copied().collect();
        for who in whose.into_iter().filter(|who| who.0 == index) {
            process.drop_step(who);
            process.running.remove(&who);
        }
        self.settle_claims(process, index);
    }

    /// It is known that a request may push.
    pub fn permit(&mut self, process: &mut Process, index: usize) {
        if self.setup.splits() {
            self.past.permitted.insert(index, self.now);
        }
        let spent = self.lacks(Mutation::PatienceSpent);
        let now = if spent {
            Duration::ZERO
        } else {
            moment(self.now)
        };
        (process.coordinator).change(|c| c.permit(&uid(index), now));
    }

    // === the reconcile loop ===

    /// Takes one request one step on, in the order that [`coordinator`] gives. It is sent in the end, where saves are actions of their
    /// own: what follows is another; and only loaded, where loads are.
    pub fn reconcile(&mut self, process: &mut Process, index: usize) {
        let object = self.objects[index].clone();
        let loaded = process.loaded.remove(&index);
        if loaded.is_none() && self.setup.faults.loads > 0 {
            let (mut after, mut then) = (self.clone(), process.clone());
            after.reconcile_loaded(&mut then, index, &object);
            let quiet = then.sent.is_empty() && self.late_saves.is_empty();
            then.simplify(self.now, quiet && self.former.is_none());
            // What comes to nothing is not loaded.
            if fingerprint(&(&after, &then)) != fingerprint(&(&*self, &*process)) {
                process.loaded.insert(index, object);
            }
            return;
        }
        self.reconcile_loaded(process, index, loaded.as_ref().unwrap_or(&object));
    }

    fn reconcile_loaded(&mut self, process: &mut Process, index: usize, loaded: &Object) {
        let (object, version) = (&loaded.request, loaded.version);
        let sent = process.sent.remove(&index);
        let landed = sent.filter(|sent| sent.request.status == object.status);
        let there = !loaded.deleted;
        let loaded = Loaded {
            landed: landed.is_some(),
            over: object.is_finished(),
        };
        let trusted = !process.former || self.lacks(Mutation::FormerSaves);
        match Loaded::leads_to(there.then_some(loaded), trusted) {
            Load::Gone | Load::Over => return self.gone(process, index),
            Load::Landed => {
                let sent = Sent {
                    // It may have been changed since.
                    request: (**object).clone(),
                    ..(*landed.expect("it has landed")).clone()
                };
                return self.answered(process, index, &sent, Some(version));
            }
            Load::Later => return,
            Load::Open => {}
        }
        if !process.hears(index) {
            return;
        }
        let mut request = self.without_what_is_ignored(object);
        if let Some(unsaved) = process.unsaved.remove(&index) {
            request.status = unsaved.status;
            self.save(index, &request);
        }
        let contender = self.contender_of(index, object);
        let Some(mut me) = self.record(process, index, request, (version, contender)) else {
            return;
        };
        if self.admit(process, index, &mut me) {
            // Those that it supersedes are ended first; its own save is another action, and a crash may come between.
            return;
        }
        let admission = me.admission().clone();
        let decided = self.decide(process, index, me);
        let sent = Sent {
            round: decided.round,
            version,
            at: SentAt::Way,
            request: decided.request,
        };
        if sent.request.status == object.status {
            self.answered(process, index, &sent, None);
            self.check_repeated(process, index, &sent.request, admission);
        } else if self.lacks(Mutation::LaunchBeforeSave) && !sent.round.launches.is_empty() {
            process.unsaved.insert(index, sent.request.clone());
            self.answered(process, index, &sent, None);
        } else if self.setup.splits() {
            process.sent.insert(index, Shared::new(sent));
        } else {
            self.save(index, &sent.request);
            self.answered(process, index, &sent, Some(sent.version));
            self.check_repeated(process, index, &sent.request, admission);
        }
    }

    fn without_what_is_ignored(&self, object: &Request) -> Request {
        let mut request = object.clone();
        request.spec.undo &= !self.lacks(Mutation::UndoShown);
        if self.lacks(Mutation::GateIgnored) {
            request.spec.gates.clear();
        }
        // Whoever asks for the first one alone ignores the others.
        let thawed = match self.setup.mutation {
            Some(Mutation::FreezeIgnored) => 0,
            Some(Mutation::FreezeOfOne) => 1,
            _ => request.spec.images.len(),
        };
        let images = request.spec.images.iter_mut().skip(thawed);
        images.for_each(|image| image.freeze = None);
        if self.lacks(Mutation::ReplacesIgnored) {
            let images = request.spec.images.iter_mut();
            images.for_each(|image| image.replaces = None);
        }
        request
    }

    /// A second decision on the same world changes nothing and launches nothing, and no wake is in the past.
    fn check_repeated(
        &self,
        process: &Process,
        index: usize,
        request: &Request,
        admission: Admission,
    ) {
        if !self.setup.repeats {
            return;
        }
        let mut again = request.clone();
        let (given_up, mut contexts) = self.look_around(process, index, request);
        for ended in given_up {
            // It has not been collected yet.
            let op = process.running.get(&(index, ended.image));
            contexts[ended.image].running = op.map(|op| op.run.launch.step);
        }
        let inputs = Inputs {
            now: time(self.now),
            stepped: 0,
            resource_version: index as u64 + 1,
            admission,
            launching: true,
            contexts,
        };
        let decision = decide(&mut again, &inputs);
        assert_eq!(again, *request);
        assert_eq!(decision.launches, []);
        assert!(decision.wake.is_none_or(|at| at > time(self.now)));
    }

    fn look_around(
        &self,
        process: &Process,
        index: usize,
        request: &Request,
    ) -> (Vec<Finished>, Vec<ImageContext>) {
        let (log, now) = (&process.log, moment(self.now));
        let found = process
            .coordinator
            .collect(log, &uid(index), request, now, shown);
        let (finished, mut contexts) = found;
        self.surround(request, &mut contexts);
        (finished, contexts)
    }

    /// What operators have stopped.
    fn surround(&self, request: &Request, contexts: &mut [ImageContext]) {
        for (spec, context) in request.spec.images.iter().zip(contexts) {
            if self.lacks(Mutation::IntentUnsettled) {
                (context.quiet_until, context.late_until) = (None, None);
            }
            let stopped = self.paused.contains(&self.setup.number(&spec.float));
            context.paused = stopped.then(|| "stopped".into());
        }
    }

    /// Takes a request up, and records what has ended.
    fn record(
        &self,
        process: &mut Process,
        index: usize,
        request: Request,
        (version, contender): (u64, Contender),
    ) -> Option<Recorded> {
        let before = request.clone();
        let key = self.key(index);
        let (coordinator, log) = (&mut process.coordinator, &mut process.log);
        let mut taken = coordinator.change(|c| {
            let loaded = saved(&key, version, contender);
            log.change(|log| c.take_up(log, request, loaded, moment(self.now), shown))
        })?;
        self.surround(&before, &mut taken.contexts);
        for ended in &mut taken.finished {
            let image = ended.image;
            let op = process.running.get(&(index, image));
            let may_have_run = op.is_some_and(|op| op.run.launch.may_have_run);
            ended.outcome = self.tampered(ended.outcome.clone(), &before, image, may_have_run);
        }
        let found: Vec<usize> = taken.finished.iter().map(|ended| ended.image).collect();
        let forgetful = WriteLog::new(Duration::ZERO, Duration::ZERO);
        let log = if self.lacks(Mutation::StampReused) {
            &forgetful
        } else {
            &*process.log
        };
        let mut me = taken.record(log, time(self.now), || 0.5);
        for image in found {
            self.tamper_record(&before, &mut me.request, image);
        }
        Some(me)
    }

    /// What the claims say; true where one that it supersedes was ended.
    fn admit(&mut self, process: &mut Process, index: usize, me: &mut Recorded) -> bool {
        let waits = |why: &str| {
            let admission = Admission::Waits(Reason::Queued, why.into());
            Admitted::Settled(admission, None)
        };
        let released = self.lacks(Mutation::ReleasedEarly) && me.request.is_rolling_back();
        let unasked = self.lacks(Mutation::NoClaims) || released;
        let wanted = me.request.wanted_floats();
        let claimed = process.coordinator.claims().holds(&me.uid, wanted.iter());
        let (mut answer, mut ended) = (Admitted::Yes, false);
        loop {
            let (coordinator, log) = (&mut process.coordinator, &process.log);
            let now = moment(self.now);
            let (ask, _) = coordinator.change(|c| c.admit(log, me, answer, now));
            answer = match ask {
                None => return ended,
                Some(Asked::Access) if unasked => Admitted::Settled(Admission::Holds, None),
                Some(Asked::Policy | Asked::Access) => Admitted::Yes,
                Some(Asked::Push) if self.setup.splits() => {
                    waits("it is asked whether it may push")
                }
                Some(Asked::Push) => {
                    self.permit(process, index);
                    Admitted::Yes
                }
                Some(Asked::End(_)) if ended => return true,
                Some(Asked::End(rival)) => {
                    if !claimed {
                        self.check_patience(process, index);
                    }
                    match self.supersede(process, index, &rival) {
                        Ok(saved) => {
                            ended |= saved;
                            Admitted::Yes
                        }
                        Err(()) => waits("one cannot be ended"),
                    }
                }
            };
        }
    }

    /// Ends one that a request supersedes; false where that was done. Err: it cannot be ended.
    fn supersede(
        &mut self,
        process: &mut Process,
        winner: usize,
        rival: &Rival,
    ) -> Result<bool, ()> {
        let index: usize = rival.uid.parse().expect("an index");
        if self.lacks(Mutation::RivalsForgotten) {
            let winner = uid(winner);
            let known = process.coordinator.known(&winner);
            let rivals = known.map(|known| known.rivals.clone()).unwrap_or_default();
            (process.coordinator)
                .change(|c| (rivals.iter()).for_each(|other| c.rival_ended(&winner, &other.uid)));
        }
        if self.over(index) || self.lacks(Mutation::SupersededUnrecorded) {
            return Ok(false);
        }
        let mut request = (*self.objects[index].request).clone();
        if !end_rival(&mut request, rival, index as u64 + 1, "", time(self.now)) {
            return Err(());
        }
        self.save(index, &request);
        let (version, round) = (self.objects[index].version, Round::default());
        let at = SentAt::Landed;
        let sent = Sent {
            request,
            version,
            at,
            round,
        };
        self.answered(process, index, &sent, Some(version));
        Ok(true)
    }

    /// Whoever a claim is to end had its time to be permitted.
    fn check_patience(&mut self, process: &Process, winner: usize) {
        let since = self.past.permitted.get(&winner);
        let patience = PATIENCE.as_secs().cast_signed();
        if !self.setup.splits() || since.is_some_and(|at| self.now - at >= patience) {
            return;
        }
        let me = process.coordinator.known(&uid(winner));
        for rival in me.map(|me| me.rivals.clone()).unwrap_or_default() {
            let known = process.coordinator.known(&rival.uid);
            // One that is held back there, as by a freeze, delays nobody.
            let undecided = known.is_some_and(|known| {
                let images = &self.objects[winner].request.spec.images;
                known.contender.standing == Standing::Undecided
                    && (images.iter()).any(|image| known.contender.wants(&image.float))
            });
            if undecided {
                let what = format!("r{} ends, and had no time to be permitted", rival.uid);
                self.breaks(Promise::ForwardsOnly, what);
            }
        }
    }

    fn decide(&self, process: &mut Process, index: usize, mut me: Recorded) -> Decided {
        let committed = me.request.status.committed;
        if self.lacks(Mutation::CommitIgnored) && me.request.spec.cancel {
            me.request.status.committed = false;
        }
        if self.lacks(Mutation::Unconfirmed) {
            for image in &mut me.request.status.images {
                image.pinned = Some(time(self.now));
            }
        }
        let latched: Vec<_> = me.request.status.images.iter().map(|i| i.phase).collect();
        let intent = me.request.status.rollback;
        let idle: Vec<bool> = me.contexts.iter().map(|c| c.running.is_none()).collect();
        let holds = *me.admission() == Admission::Holds;
        let (coordinator, log) = (&process.coordinator, &mut process.log);
        let order = index as u64 + 1;
        let mut decided =
            log.change(|log| coordinator.decide(log, me, time(self.now), (order, true, 0)));
        let request = &mut decided.request;
        if self.lacks(Mutation::OnlyLatchedExamined) && request.status.rollback && !intent {
            for (image, phase) in request.status.images.iter_mut().zip(latched) {
                if !phase.is_latched() {
                    image.rollback = None;
                }
            }
            let kept = |l: &Launch| request.status.images[l.image].rollback.is_some();
            decided.round.launches.retain(kept);
        }
        request.status.committed |= committed;
        if holds {
            self.tamper_decision(&mut decided, &idle);
        }
        decided
    }

    // === saves ===

    fn save(&mut self, index: usize, request: &Request) {
        if request.status != self.objects[index].request.status {
            self.land_save(index, request);
        }
    }

    fn land_save(&mut self, index: usize, request: &Request) {
        self.check_saved(index, request);
        let status = request.status.clone();
        self.edit(index, |request| request.status = status);
    }

    /// A save reaches the store: it lands, or is refused because the object has changed. Gives whether it lands.
    pub fn commit(&mut self, index: usize, sent: &Sent) -> bool {
        let object = &self.objects[index];
        let same = object.version == sent.version || self.lacks(Mutation::SaveUnchecked);
        let lands = same && !object.deleted;
        if lands {
            self.land_save(index, &sent.request);
        }
        lands
    }

    /// The save of a process is answered, or there was nothing to save: what it says is forgotten, given up and launched.
    pub fn answered(
        &mut self,
        process: &mut Process,
        index: usize,
        sent: &Sent,
        version: Option<u64>,
    ) {
        let (uid, round, request) = (uid(index), &sent.round, &sent.request);
        for (image, _) in &round.collected {
            process.running.remove(&(index, *image));
        }
        for &image in &round.drops {
            process.drop_step((index, image));
        }
        let (key, now) = (self.key(index), moment(self.now));
        let contender = self.contender_of(index, request);
        let (coordinator, log) = (&mut process.coordinator, &process.log);
        let answered = coordinator.change(|c| {
            let claims = c.claims().clone();
            let saved = version.map(|version| saved(&key, version, contender));
            let answered = c.answered(log, (&uid, request, round), saved, now, |_| Some(()));
            if self.lacks(Mutation::ClaimKept) {
                c.keep(claims);
            }
            answered
        });
        for step in answered.launched {
            self.begin_step(process, index, request, step);
        }
        if version.is_some() && request.is_finished() {
            self.gone(process, index);
        }
    }

    fn begin_step(
        &mut self,
        process: &mut Process,
        index: usize,
        request: &Request,
        launched: Launched,
    ) {
        let launch = launched.launch;
        let who = (index, launch.image);
        if self.lacks(Mutation::StaleLaunch) && launch.step == Step::Latch {
            let object = Shared::new(request.clone());
            process.stale.entry(index).or_insert(object);
        }
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
        let unasked = [
            Mutation::NoClaims,
            Mutation::ReleasedEarly,
            Mutation::StaleLaunch,
            Mutation::Unentitled,
        ];
        if !launched.entitled && !unasked.iter().any(|&guard| self.lacks(guard)) {
            process.drop_step(who);
        } else if self.lacks(Mutation::BackUpSkipped) && launch.step == Step::BackUp {
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
            let launched = (process.coordinator)
                .change(|c| c.launch(&uid(index), &object, &[launch], |_| Some(())));
            for step in launched {
                self.begin_step(process, index, &object, step);
            }
        }
        process.stale.clear();
    }

    /// Gives back what a request owns no longer.
    fn settle_claims(&self, process: &mut Process, index: usize) {
        if self.lacks(Mutation::ClaimKept) {
            return;
        }
        let (log, now) = (&process.log, moment(self.now));
        (process.coordinator).change(|c| c.settle(log, &uid(index), now));
    }

    /// What is known of a request.
    fn contender(&self, index: usize) -> Contender {
        self.contender_of(index, &self.objects[index].request)
    }

    fn contender_of(&self, index: usize, request: &Request) -> Contender {
        let (name, order) = (format!("r{index}"), index as u64 + 1);
        let mut contender = Contender::of(&uid(index), &name, order, request, Standing::Undecided);
        contender.gated &= !self.lacks(Mutation::GatedPasses);
        let released = self.lacks(Mutation::ReleasedEarly) && request.is_rolling_back();
        let kept = self.lacks(Mutation::FreezeKeepsClaim)
            || self.lacks(Mutation::FreezeIgnored)
            || self.lacks(Mutation::FreezeOfOne);
        contender.suspended = (contender.suspended && !kept) || request.spec.suspend;
        for share in &mut contender.shares {
            share.frozen &= !kept;
            share.at_gate &= !self.lacks(Mutation::GateKeepsClaim);
            share.finished |= released;
        }
        contender
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
        let ask = op.next.clone().expect("it asks");
        if let Some((tag, digest)) = ask.write() {
            return self.serve_write(process, who, tag, digest);
        }
        let yes = |yes: bool| if yes { Answer::Yes } else { Answer::No };
        let answer = match ask {
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
            Ask::Deletes => yes(self.setup.scenario.deletion == Deletion::OfTheTag),
            Ask::Put(..) | Ask::Delete(_) => unreachable!("it writes"),
            Ask::Wrote(..) | Ask::Old(_) => unreachable!("answered by the process"),
        };
        self.answer(process, who, answer);
    }

    fn serve_write(&mut self, process: &mut Process, who: Who, tag: &Tag, digest: Option<Digest>) {
        if process.former && !self.lacks(Mutation::FormerWrites) {
            return self.refuse(process, who, Answer::NotSent);
        }
        if self.is_refused(who, tag) {
            return self.refuse(process, who, Answer::Refused);
        }
        let write = process.running[&who].write(who, tag, digest);
        if let Some(left) = self.closed_for(process, who, tag, digest) {
            return self.answer(process, who, Answer::Landing(left));
        }
        self.enter(process, &write);
        self.check_sent(process, &write);
        let done = self.land(&write);
        let (float, now) = (self.float(who), moment(self.now));
        process.log.change(|log| {
            if done {
                log.answered(float, tag, digest, now, now);
            } else {
                log.refused(float, tag, digest, now);
            }
        });
        let answer = if done { Answer::Yes } else { Answer::No };
        self.answer(process, who, answer);
    }

    /// A tag write is refused, and the registry says why; or it is not sent.
    pub fn refuse(&mut self, process: &mut Process, who: Who, answer: Answer) {
        let op = &process.running[&who];
        let ask = op.next.clone();
        let Some((tag, digest)) = ask.as_ref().and_then(Ask::write) else {
            unreachable!("only writes are refused");
        };
        if answer != Answer::NotSent {
            self.check_sent(process, &op.write(who, tag, digest));
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
        let ask = op.next.clone();
        let Some((tag, digest)) = ask.as_ref().and_then(Ask::write) else {
            unreachable!("only writes are lost");
        };
        let write = op.write(who, tag, digest);
        if !self.lacks(Mutation::NoFence) {
            self.enter(process, &write);
        }
        self.check_sent(process, &write);
        if landed {
            self.land(&write);
        } else {
            self.wire.push((self.now + LATE, write));
        }
        self.answer(process, who, Answer::Lost(SETTLE));
    }

    /// For how long the gate is closed, because another write than this one may land on the tag.
    pub fn closed_for(
        &self,
        process: &Process,
        who: Who,
        tag: &Tag,
        digest: Option<Digest>,
    ) -> Option<i64> {
        let early = digest.is_none() && self.lacks(Mutation::RemovedEarly);
        if self.lacks(Mutation::OtherDigestSent) || early {
            return None;
        }
        let (repository, now) = (self.float(who).repository(), moment(self.now));
        let until = process.log.landing_until(repository, tag, digest, now)?;
        Some(second(until.saturating_sub(now)))
    }

    /// A tag write is entered in the log, and sent.
    fn enter(&self, process: &mut Process, write: &Write) {
        if write.digest.is_none() && self.lacks(Mutation::RemovalUnentered) {
            return;
        }
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
        if process.ended(who, outcome.clone()) == Ended::Settle {
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
            (Mutation::DeletionUntried, Ask::Deletes) => Some(Answer::Yes),
            (Mutation::RemovedUnseen, Ask::Look(tag)) if step == Step::Post && float(tag) => {
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

    /// Takes a guard of the commit away, of a request that has its floats to itself; `idle`: the images of which nothing ran.
    fn tamper_decision(&self, decided: &mut Decided, idle: &[bool]) {
        let request = &mut decided.request;
        let images = request.status.images.iter().enumerate();
        let ready = images.filter(|(_, image)| image.phase.awaits_latch());
        let ready: Vec<usize> = ready.map(|(index, _)| index).collect();
        if self.lacks(Mutation::CommitEarly) && !ready.is_empty() {
            request.status.committed = true;
        }
        if self.lacks(Mutation::LatchOnItsOwn) && !request.status.committed {
            let idle = ready.into_iter().filter(|&image| idle[image]);
            decided.round.launches.extend(idle.map(|image| Launch {
                image,
                step: Step::Latch,
                may_have_run: false,
            }));
        }
    }
}
