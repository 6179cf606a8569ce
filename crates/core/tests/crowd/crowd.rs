//! Many unfinished requests of one process, and what one more event costs there.
//!
//! Four of five are of one namespace: the oldest of these are ready, and the others wait behind them. One in eight is at work, and has
//! written its tags a moment ago.

use std::time::Duration;

use jiff::Timestamp;
use promotion_core::coordinator::{Claim, Coordinator, Key, Round};
use promotion_core::image::{Digest, Float, Stamp};
use promotion_core::log::WriteLog;
use promotion_core::machine::claims::{Contender, Standing};
use promotion_core::machine::{
    ImageSpec, Latch, Launch, Mode, OnFailure, Outcome, Referrers, Request, Spec, Status, Step,
};
use rustix::time::{ClockId, clock_gettime};

const NOW: Duration = Duration::from_hours(1);

/// The requests of a process.
#[derive(Clone)]
pub struct Crowd {
    coordinator: Coordinator<Duration, (), (), ()>,
    log: WriteLog<Duration>,
    version: u64,
}

/// A request of one image.
struct One {
    key: Key,
    uid: String,
    order: u64,
    request: Request,
}

impl Crowd {
    /// So many requests.
    pub fn of(count: u64) -> Self {
        let (settle, late) = (Duration::from_secs(10), Duration::from_secs(30));
        let mut crowd = Self {
            coordinator: Coordinator::new(0),
            log: WriteLog::new(settle, late),
            version: 0,
        };
        for number in 0..count {
            crowd.hear(&One::of(number));
            if One::is_at_work(number) {
                crowd.work(number);
            }
        }
        crowd
    }

    fn hear(&mut self, one: &One) {
        let (uid, key) = (&one.uid, &one.key);
        self.version += 1;
        let standing = Standing::Undecided;
        let contender = Contender::of(uid, &key.to_string(), one.order, &one.request, standing);
        self.coordinator.note(key, self.version, contender, ());
    }

    /// What a request at work, of this number or so, does between two saves: it is reconciled, saved, launches a step and writes two tags. Nothing of it runs
    /// afterwards.
    pub fn work(&mut self, number: u64) {
        let one = One::of(number / 8 * 8 + 7);
        let (uid, request) = (&one.uid, &one.request);
        self.hear(&one);
        let shown = |_| Timestamp::UNIX_EPOCH;
        self.coordinator.spare(&mut self.log, uid, request, NOW);
        let found = (self.coordinator).collect(&self.log, uid, request, NOW, shown);
        assert!(found.0.is_empty());
        self.coordinator.permit(uid, NOW);
        let claim = self.coordinator.claim(uid, request, NOW);
        assert!(matches!(claim, Claim::Holds | Claim::Ends(_)), "{claim:?}");
        let (float, wall) = (&request.spec.images[0].float, Timestamp::UNIX_EPOCH);
        let stamp = Stamp::at(wall).next();
        self.log.note_stamp(float, stamp, Stamp::at(wall));
        let launch = Launch {
            image: 0,
            step: Step::Latch,
            may_have_run: false,
        };
        self.hear(&one);
        let launched = self.coordinator.launch(uid, request, &[launch], |_| ());
        let digest = Digest::of(uid.as_bytes());
        for tag in [float.tag().clone(), float.prune(stamp)] {
            assert!(self.log.enter(float, &tag, Some(digest), None, NOW));
            assert!(
                !self
                    .log
                    .contradicts(float.repository(), &tag, Some(digest), NOW)
            );
            self.log.answered(float, &tag, Some(digest), NOW, NOW);
        }
        let pre = float.pre();
        assert!(self.log.enter(float, &pre, Some(digest), None, NOW));
        let id = launched[0].id;
        self.coordinator.ended(uid, 0, id, Outcome::Dropped);
        let round = Round {
            collected: vec![(0, id)],
            ..Round::default()
        };
        self.coordinator.recorded(uid, &round);
        self.coordinator.settle(&self.log, uid, NOW);
        self.coordinator.take_woken();
    }

    /// A request is heard of again, and asked for how many are before it.
    pub fn hear_of(&mut self, number: u64) {
        let one = One::of(number);
        self.hear(&one);
        _ = self.coordinator.shelved_behind(&one.uid);
        self.coordinator.take_woken();
    }

    /// A request ends: of its namespace, another one comes.
    pub fn end(&mut self, number: u64) {
        self.coordinator.forget(&One::of(number).uid, NOW);
        self.coordinator.take_woken();
        self.coordinator.take_dropped();
    }
}

impl One {
    fn is_at_work(number: u64) -> bool {
        number % 8 == 7
    }

    fn of(number: u64) -> Self {
        let crowded = !number.is_multiple_of(5) && !Self::is_at_work(number);
        let namespace = if crowded {
            "crowd".into()
        } else {
            format!("ns-{}", number % 1_000)
        };
        let float: Float =
            (format!("quay.io/openshift/ci:ocp_4.21_{number:06}").parse()).expect("a float");
        let image = ImageSpec {
            source: "registry.ci/ci/src:x".parse().expect("a source"),
            float,
            replaces: None,
            freeze: None,
            remove_incoming: false,
        };
        let spec = Spec {
            images: vec![image],
            latch: Latch::Together,
            on_failure: OnFailure::Hold,
            mode: Mode::Promote,
            referrers: Referrers::Ignore,
            attempts: 5,
            deadline_seconds: 7200,
            suspend: false,
            cancel: false,
            gates: Vec::new(),
            undo: false,
        };
        let mut status = Status::new(1);
        if Self::is_at_work(number) {
            status.started = Some(Timestamp::UNIX_EPOCH);
        }
        Self {
            key: Key {
                namespace,
                name: format!("request-{number:06}"),
            },
            uid: format!("00000000-0000-0000-0000-{number:012}"),
            order: number + 1,
            request: Request { spec, status },
        }
    }
}

/// The processor time that one of so many events takes, the first of the newest request.
pub fn cost(crowd: &Crowd, count: u64, events: u64, event: impl Fn(&mut Crowd, u64)) -> Duration {
    let mut crowd = crowd.clone();
    let before = spent();
    for number in 0..events {
        event(&mut crowd, count - 1 - number);
    }
    spent().saturating_sub(before) / u32::try_from(events).expect("few events")
}

fn spent() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a time")
}
