//! Many unfinished requests of one process, and what one more event costs there.
//!
//! Four of five are of one namespace: the oldest of these are ready, and the others wait behind them. One in eight is at work, and has
//! written its tags a moment ago.

use std::time::Duration;

use jiff::Timestamp;
use promotion_core::coordinator::{Answer, Coordinator, Decided, Key, Launched, Object, Round};
use promotion_core::image::{Digest, Float, Stamp};
use promotion_core::log::WriteLog;
use promotion_core::machine::claims::{Contender, Standing};
use promotion_core::machine::{
    Admission, ImageSpec, Latch, Mode, OnFailure, Outcome, Referrers, Request, Spec, Status,
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
        let read = self.read(one);
        self.coordinator
            .note(read.key, read.version, read.contender, ());
    }

    fn read<'a>(&mut self, one: &'a One) -> Object<'a, ()> {
        let (key, standing) = (&one.key, Standing::Undecided);
        self.version += 1;
        Object {
            key,
            version: self.version,
            contender: Contender::of(
                &one.uid,
                &key.to_string(),
                one.order,
                &one.request,
                standing,
            ),
            counts: (),
        }
    }

    /// What a request at work, of this number or so, does between two saves: it is reconciled, saved, launches a step and writes two tags. Nothing of it runs
    /// afterwards.
    pub fn work(&mut self, number: u64) {
        let one = One::of(number / 8 * 8 + 7);
        let (uid, wall) = (&one.uid, Timestamp::UNIX_EPOCH);
        self.hear(&one);
        self.coordinator.permit(uid, NOW);
        let (decided, launched) = self.reconcile(&one);
        let (float, digest) = (
            &one.request.spec.images[0].float,
            Digest::of(uid.as_bytes()),
        );
        let stamp = Stamp::at(wall).next();
        self.log.note_stamp(float, stamp, Stamp::at(wall));
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
        let whose = (uid.as_str(), &decided.request, &round);
        (self.coordinator).answered(&self.log, whose, None, NOW, |_| None);
        self.coordinator.take_woken();
    }

    /// One reconcile, from its load to its save.
    fn reconcile(&mut self, one: &One) -> (Decided, Vec<Launched>) {
        let wall = |_| Timestamp::UNIX_EPOCH;
        let (request, loaded) = (one.request.clone(), self.read(one));
        let (coordinator, log) = (&mut self.coordinator, &mut self.log);
        let taken = coordinator.take_up(log, request, loaded, NOW, wall);
        let mut me = taken
            .expect("it is taken up")
            .record(log, wall(NOW), || 0.5);
        while coordinator
            .admit(log, &mut me, Answer::Yes, NOW)
            .0
            .is_some()
        {}
        assert_eq!(*me.admission(), Admission::Holds);
        let decided = coordinator.decide(log, me, wall(NOW), (one.order, true, 0));
        let saved = self.read(one);
        let whose = (one.uid.as_str(), &decided.request, &decided.round);
        let answered =
            (self.coordinator).answered(&self.log, whose, Some(saved), NOW, |_| Some(()));
        (decided, answered.launched)
    }

    /// A request is heard of again.
    pub fn hear_of(&mut self, number: u64) {
        self.hear(&One::of(number));
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
