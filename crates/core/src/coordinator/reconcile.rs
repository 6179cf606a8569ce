//! One reconcile of one request, from its load to what follows from its save. Nothing else knows this order.
//!
//! ```text
//!   load ─▶ Loaded::leads_to ─▶ Coordinator::take_up ─▶ Collected::record ─▶ Coordinator::admit, until it asks nothing more
//!        ─▶ Coordinator::decide ─▶ save ─▶ Coordinator::answered
//! ```
//!
//! Each step takes what the one before gave, so that nobody can leave one out or turn two round. In between, the driver loads, asks and
//! saves: the engine in the cluster, the model in its world.

use std::ops::ControlFlow::{self, Break};
use std::time::Duration;

use jiff::Timestamp;

use super::key::Key;
use super::round::{Finished, Launched, Round, record};
use super::state::Coordinator;
use crate::image::Stamp;
use crate::log::{Time, WriteLog};
use crate::machine::claims::{Contender, Rival, Uid};
use crate::machine::{
    self, Admission, Image, ImageContext, Inputs, Launch, Notice, Reason, Request,
};

/// An object as a load shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// It shows a save of ours whose answer was lost.
    pub landed: bool,
    /// It has ended, as far as floats are concerned.
    pub over: bool,
}

/// What a load leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Nothing is there: what was known under this name is gone.
    Gone,
    /// The save has landed: what follows from it follows now ([`Coordinator::answered`]).
    Landed,
    /// It is forgotten.
    Over,
    /// Another process may lead: nothing is saved over what was loaded. Look again soon.
    Later,
    /// It is read, and taken up ([`Coordinator::take_up`]).
    Open,
}

/// A request taken up, and what its operations have found.
#[derive(Debug, Clone)]
pub struct Collected {
    uid: Uid,
    request: Request,
    /// The outcomes to be recorded.
    pub finished: Vec<Finished>,
    /// What surrounds each image.
    pub contexts: Vec<ImageContext>,
}

/// A request in which the outcomes are recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its UID.
    pub uid: Uid,
    /// As it is now.
    pub request: Request,
    /// What surrounds each image.
    pub contexts: Vec<ImageContext>,
    /// What the outcomes say to people.
    pub notices: Vec<Notice>,
    /// Its images as they were loaded.
    was: Vec<Image>,
    collected: Vec<(usize, u64)>,
    pub(super) asked: Option<Ask>,
    pub(super) admission: Admission,
    pub(super) again: Option<Duration>,
}

/// What is to be found out before it is known whether a request may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Whether the operator allows it.
    Policy,
    /// What it may act with.
    Access,
    /// Whether the registries let it push.
    Push,
    /// This older request is to end on the floats ([`super::end_rival`]), and its end is to be saved.
    End(Rival),
}

/// What came of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is so, or done.
    Yes,
    /// That settles whether it may run; it is asked again after so long, if nothing else happens.
    Settled(Admission, Option<Duration>),
}

/// What a reconcile came to: to be saved, and what follows then.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Whose.
    pub uid: Uid,
    /// As it is to be saved.
    pub request: Request,
    /// What to tell people once it is saved.
    pub notices: Vec<Notice>,
    /// What follows once it is saved.
    pub round: Round,
    /// What the request as a whole waits for, if it does.
    pub waiting: Option<(Reason, String)>,
    /// Look again then.
    pub wake: Option<Timestamp>,
    /// Ask again after so long whether it may run.
    pub again: Option<Duration>,
    /// `spec.cancel` came too late.
    pub cancel_ignored: bool,
}

/// An object as it was loaded or saved.
#[derive(Debug, Clone)]
pub struct Object<'a, C> {
    /// Its name.
    pub key: &'a Key,
    /// Its resourceVersion.
    pub version: u64,
    /// As it contends for its floats.
    pub contender: Contender,
    /// What is counted of it.
    pub counts: C,
}

/// What follows from a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered<T> {
    /// These steps begin.
    pub launched: Vec<Launched>,
    /// Its floats are released then, if not before ([`Coordinator::settle`]).
    pub settle_at: Option<T>,
}

// === impl Loaded ===

impl Loaded {
    /// What to do with what was loaded; `trusted`: no other process can have gone on from it. That is asked after the load: what the
    /// lease is lost later for, shows as a conflict.
    #[must_use]
    pub fn leads_to(loaded: Option<Self>, trusted: bool) -> Load {
        match loaded {
            None => Load::Gone,
            // Before its end is looked at: what it says to people would never be told.
            Some(Self { landed: true, .. }) if trusted => Load::Landed,
            Some(Self {
                landed: false,
                over,
            }) if over => Load::Over,
            Some(_) if trusted => Load::Open,
            Some(_) => Load::Later,
        }
    }
}

// === impl Collected ===

impl Collected {
    /// The request as it was loaded.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Applies what operations found.
    pub fn record<T: Time>(
        self,
        log: &WriteLog<T>,
        now: Timestamp,
        mut jitter: impl FnMut() -> f64,
    ) -> Recorded {
        let Self {
            uid,
            mut request,
            finished,
            contexts,
        } = self;
        let was = request.status.images.clone();
        let recorded = finished
            .iter()
            .filter_map(|ended| record(&mut request, ended, log, now, jitter()));
        let notices = recorded.flatten().collect();
        Recorded {
            uid,
            request,
            contexts,
            notices,
            was,
            collected: finished
                .iter()
                .map(|ended| (ended.image, ended.id))
                .collect(),
            asked: None,
            admission: Admission::Holds,
            again: None,
        }
    }
}

// === impl Recorded ===

impl Recorded {
    /// Whether it may run, as far as that is known.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn waits(
        &mut self,
        reason: Reason,
        message: impl Into<String>,
        again: Option<Duration>,
    ) -> ControlFlow<Admission, Ask> {
        self.again = again;
        Break(Admission::Waits(reason, message.into()))
    }
}

// === impl Coordinator ===

impl<T: Time, C: Clone, R: Default, O> Coordinator<T, C, R, O> {
    /// Takes a request up as it was loaded; none where nothing more is launched and nothing has ended.
    pub fn take_up(
        &mut self,
        log: &mut WriteLog<T>,
        request: Request,
        loaded: Object<'_, C>,
        now: T,
        shown: impl Fn(T) -> Timestamp,
    ) -> Option<Collected> {
        let uid = loaded.contender.uid.clone();
        self.note(loaded.key, loaded.version, loaded.contender, loaded.counts);
        self.spare(log, &uid, &request, now);
        let (finished, contexts) = self.collect(log, &uid, &request, now, shown);
        let open = !(self.draining && finished.is_empty());
        open.then_some(Collected {
            uid,
            request,
            finished,
            contexts,
        })
    }

    /// Decides what may run. `version` is the object's, `launching` whether anything may be launched at all, and `stepped` by how much the
    /// clock ran ahead ([`Inputs::stepped`]).
    pub fn decide(
        &self,
        log: &mut WriteLog<T>,
        me: Recorded,
        now: Timestamp,
        (version, launching, stepped): (u64, bool, i64),
    ) -> Decided {
        let Recorded {
            uid,
            mut request,
            contexts,
            notices,
            was,
            collected,
            admission,
            again,
            ..
        } = me;
        let inputs = Inputs {
            now,
            stepped,
            resource_version: version,
            admission,
            launching: launching && !self.draining,
            contexts,
        };
        let decision = machine::decide(&mut request, &inputs);
        // Remembered before they are saved: another request on the float must not choose them too.
        let images = request.status.images.iter().zip(&was);
        for (spec, (image, old)) in request.spec.images.iter().zip(images) {
            if let Some(stamp) = image.newest_stamp().filter(|_| image != old) {
                log.note_stamp(&spec.float, stamp, Stamp::at(now));
            }
        }
        Decided {
            uid,
            request,
            notices,
            round: Round {
                collected,
                drops: decision.drops,
                launches: decision.launches,
            },
            waiting: decision.waiting,
            wake: decision.wake,
            again,
            cancel_ignored: decision.cancel_ignored,
        }
    }

    /// What was decided is saved (none: it changed nothing). Only now may what was collected be forgotten, and what it says be launched;
    /// `kept` makes what the driver keeps of each.
    pub fn answered(
        &mut self,
        log: &WriteLog<T>,
        (uid, request, round): (&str, &Request, &Round),
        saved: Option<Object<'_, C>>,
        now: T,
        kept: impl FnMut(Launch) -> Option<O>,
    ) -> Answered<T> {
        if let Some(saved) = saved {
            self.note(saved.key, saved.version, saved.contender, saved.counts);
        }
        self.recorded(uid, round);
        let launched = self.launch(uid, request, &round.launches, kept);
        let settle_at = self.settle(log, uid, now);
        Answered {
            launched,
            settle_at,
        }
    }
}
