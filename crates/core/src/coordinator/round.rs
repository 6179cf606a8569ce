//! One round of one request: what its operations found, what is decided, and what follows once that is saved.

use jiff::Timestamp;

use super::state::{Coordinator, InFlight};
use crate::log::{Time, WriteLog};
use crate::machine::{self, Context, Effect, ImageContext, Launch, Notice, Outcome, Request};

/// An outcome that was read and is not recorded yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finished {
    /// The index of the image.
    pub image: usize,
    /// The operation's number.
    pub id: u64,
    /// What it came to.
    pub outcome: Outcome,
}

/// What follows once a decision is saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Round {
    /// What was collected: images' indices and operations' numbers.
    pub collected: Vec<(usize, u64)>,
    /// The images whose operations are given up.
    pub drops: Vec<usize>,
    /// What is launched.
    pub launches: Vec<Launch>,
}

/// An operation that was launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// What, on which image.
    pub launch: Launch,
    /// Its number.
    pub id: u64,
    /// False: the end, or a deletion, came between the save and its answer, and it is given up before it does anything.
    pub entitled: bool,
}

/// What to do after an operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its outcome is kept until it is recorded: reconcile its request.
    Record,
    /// Its request has ended or is gone: its floats may be free now.
    Settle,
    /// It is not known any more.
    Unknown,
}

impl<T: Time, C: Clone, R: Default, O> Coordinator<T, C, R, O> {
    /// What operations of a request have found, and the surroundings of its images apart from that, as far as they are known here. Read
    /// at once, so that an operation is either finished or running. `shown` is a time of the log's clock as statuses have it.
    pub(crate) fn collect(
        &self,
        log: &WriteLog<T>,
        uid: &str,
        request: &Request,
        now: T,
        shown: impl Fn(T) -> Timestamp,
    ) -> (Vec<Finished>, Vec<ImageContext>) {
        let operations = self.operations.get(uid);
        let mut finished = Vec::new();
        let images = request.spec.images.iter().enumerate();
        let contexts = images.map(|(image, spec)| {
            let float = &spec.float;
            let mut context = ImageContext {
                newest_stamp: log.newest_stamp(float),
                quiet_until: log.quiet_until(float, now).map(&shown),
                late_until: log.late_until(float, now).map(&shown),
                taken_over: operations.is_none_or(|all| !all.launched.contains(&image)),
                ..ImageContext::default()
            };
            let operation = operations.and_then(|all| all.by_image.get(&image));
            match operation.map(|o| (o, &o.outcome)) {
                Some((operation, Some(outcome))) => finished.push(Finished {
                    image,
                    id: operation.id,
                    outcome: outcome.clone(),
                }),
                Some((operation, None)) => context.running = Some(operation.step),
                None => {}
            }
            context
        });
        let contexts = contexts.collect();
        (finished, contexts)
    }

    /// A record is saved, or unchanged: only now may what was collected be forgotten, and what it says be given up and launched.
    pub(super) fn recorded(&mut self, uid: &str, round: &Round) {
        let Some(operations) = self.operations.get_mut(uid) else {
            return;
        };
        for (image, id) in &round.collected {
            let same = |o: &InFlight<O>| o.id == *id;
            if operations.by_image.get(image).is_some_and(same) {
                operations.by_image.remove(image);
            }
        }
    }

    /// Launches what a record says that is saved, or unchanged; `kept` makes what the driver keeps of each.
    pub(crate) fn launch(
        &mut self,
        uid: &str,
        request: &Request,
        launches: &[Launch],
        mut kept: impl FnMut(Launch) -> Option<O>,
    ) -> Vec<Launched> {
        let mut begun = Vec::new();
        for &launch in launches {
            let spec = request.spec.images.get(launch.image);
            let Some((spec, kept)) = spec.zip(kept(launch)) else {
                continue;
            };
            self.next_operation += 1;
            let id = self.next_operation;
            let operation = InFlight {
                id,
                step: launch.step,
                float: spec.float.clone(),
                outcome: None,
                kept,
            };
            let operations = self.operations.entry(uid.to_owned()).or_default();
            operations.launched.insert(launch.image);
            operations.by_image.insert(launch.image, operation);
            begun.push(Launched {
                launch,
                id,
                entitled: !self.draining && self.is_entitled(uid, &spec.float),
            });
        }
        begun
    }

    /// An operation has ended.
    pub fn ended(&mut self, uid: &str, image: usize, id: u64, outcome: Outcome) -> Ended {
        let known = self.known.contains_key(uid);
        let Some(operations) = self.operations.get_mut(uid) else {
            return Ended::Unknown;
        };
        let operation = operations.by_image.get_mut(&image);
        let Some(operation) = operation.filter(|operation| operation.id == id) else {
            return Ended::Unknown;
        };
        if known {
            operation.outcome = Some(outcome);
            return Ended::Record;
        }
        operations.by_image.remove(&image);
        Ended::Settle
    }

    /// How many operations have not been recorded yet, whether they run or have ended.
    #[must_use]
    pub fn unrecorded(&self) -> usize {
        let all = self.operations();
        let counts = all.filter(|(uid, o)| o.outcome.is_none() || self.known.contains_key(*uid));
        counts.count()
    }
}

/// Applies what an operation found; none where that came too late.
pub(super) fn record<T: Time>(
    request: &mut Request,
    finished: &Finished,
    log: &WriteLog<T>,
    wall: Timestamp,
    jitter: f64,
) -> Option<Vec<Notice>> {
    let float = request
        .spec
        .images
        .get(finished.image)
        .map(|spec| &spec.float);
    let context = Context {
        now: wall,
        newest_stamp: float.and_then(|float| log.newest_stamp(float)),
        jitter,
    };
    match machine::advance(request, finished.image, finished.outcome.clone(), &context) {
        Effect::Recorded(notices) => Some(notices),
        Effect::Ignored => None,
    }
}
