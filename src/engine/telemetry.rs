//! What the engine logs and counts of its work: one line of log for each transition, and what is counted.
//!
//! In come saved records and ended operations; nothing leaves but lines and numbers. Fields are named the same everywhere: `request`,
//! `float`, `step`, `phase`, `reason`, `digest`, `took` (seconds, to the millisecond), `why`. Transitions are `info`, what a person may
//! look at is `warn`, steps are `debug`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::shared::{Engine, Inner};
use super::stats::PhaseTimes;
use crate::api::{PromotionRequest, conditions};
use crate::image::Float;
use crate::machine::claims::Contender;
use crate::machine::{FaultClass, Launch, Notice, Outcome, Phase, Reason, Request, Step};
use crate::metrics::{Metrics, Scrape};
use crate::store::{Key, Store};

// === reconciles ===

impl<S: Store> Engine<S> {
    /// What counts the engine's work.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.inner.tools.registry.metrics()
    }

    /// For how long requests have been due without a reconcile that ended; none: nothing is due.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        self.inner.work_queue.lock().stalled(Instant::now())
    }

    /// Takes note that a request that was due is not there.
    pub fn dequeue_missing(&self, key: &Key) {
        self.inner.work_queue.lock().waiting.remove(key);
    }

    /// A request's turn has come.
    pub(super) fn reconcile_started(&self, key: &Key) -> Instant {
        let due = self.inner.work_queue.lock().waiting.remove(key);
        if let Some(since) = due {
            self.metrics().reconcile_waited(since.elapsed());
        }
        Instant::now()
    }

    /// A request's turn is over.
    pub(super) fn reconcile_ended(&self, begun: Instant, well: bool) {
        self.inner.work_queue.lock().ended = Instant::now();
        self.metrics().reconciled(begun.elapsed(), well);
    }

    /// Registers this engine with every scrape, for as long as it lives.
    pub(super) fn register_collector(&self) {
        let inner = Arc::downgrade(&self.inner);
        self.metrics().at_scrape(move |scrape| {
            if let Some(inner) = inner.upgrade() {
                collect(&inner, scrape);
            }
        });
    }
}

fn collect<S>(inner: &Inner<S>, scrape: &Scrape<'_>) {
    let now = Timestamp::now();
    let since = |time: Option<Timestamp>| {
        let passed = time.map(|time| now.duration_since(time));
        passed
            .and_then(|passed| Duration::try_from(passed).ok())
            .unwrap_or_default()
    };
    let mut reasons: HashMap<Reason, usize> = HashMap::new();
    let mut phases = [0_usize; Phase::ALL.len()];
    let mut steps = Step::ALL.map(|step| (step, 0));
    let (mut age, mut overdue) = (Duration::ZERO, Duration::ZERO);
    let paused;
    let (frozen, unreadable);
    {
        let state = inner.state.lock();
        let lines = state.freezes.lines().iter();
        frozen = lines.filter(|line| line.is_in_force(now)).count();
        unreadable = state.freezes.unreadable().is_some();
        paused = state.pause.scope();
        reasons.insert(Reason::Referencing, state.referencing.len());
        let known = state.coordinator.all_known().map(|known| &known.counts);
        let shelved = state.coordinator.shelved().map(|shelved| &shelved.counts);
        for counts in known.chain(shelved) {
            for (sum, count) in phases.iter_mut().zip(counts.phases) {
                *sum += usize::from(count);
            }
            if let Some(reason) = counts.reason {
                *reasons.entry(reason).or_default() += 1;
            }
            if !counts.reason.is_some_and(Reason::is_held_back) {
                age = age.max(since(counts.created));
                overdue = overdue.max(since(counts.deadline));
            }
        }
        let operations = state.coordinator.operations().map(|(_, o)| o);
        for operation in operations.filter(|o| o.outcome.is_none()) {
            for (step, count) in &mut steps {
                *count += usize::from(*step == operation.step);
            }
        }
    }
    for (reason, count) in reasons {
        scrape.requests(reason, count);
    }
    let images = Phase::ALL.into_iter().zip(phases);
    for (phase, count) in images.filter(|(phase, _)| !phase.is_referencing()) {
        scrape.images(phase, count);
    }
    for (step, count) in steps {
        scrape.operations(step, count);
    }
    scrape.oldest(age, overdue);
    if let Some(scope) = paused {
        scrape.paused(scope);
    }
    scrape.freezes(frozen, unreadable);
    scrape.due(inner.work_queue.lock().waiting.len());
}

// === operations ===

/// One line for a request that is gone before its end.
pub(super) fn deleted(key: &Key, contender: &Contender) {
    let floats = contender.shares.iter().filter(|share| !share.finished);
    let open = floats.clone().count();
    let moving = floats.filter(|share| share.committed).count();
    let why = "deleted before its end: a tag write under way ends, nothing more is launched, and every tag stays as it is then";
    if moving > 0 {
        tracing::warn!(request = %key, open, moving, why, "deleted");
    } else {
        tracing::info!(request = %key, open, why, "deleted");
    }
}

/// Says that an operation begins.
pub(super) fn launched(key: &Key, float: &Float, launch: Launch) {
    let may_have_run = launch.may_have_run;
    tracing::debug!(request = %key, %float, step = launch.step.as_str(), may_have_run, "step launched");
}

/// Says what an operation came to: a word about it where it failed, else at `debug`, because what it led to is logged once it is saved.
pub(super) fn ended(
    metrics: &Metrics,
    key: &Key,
    (float, step, started): (&Float, Step, Instant),
    outcome: &Outcome,
) {
    let took = started.elapsed();
    metrics.operation(step, outcome, took);
    let (step, took) = (step.as_str(), seconds(took));
    match outcome {
        Outcome::Faulted(fault) => {
            let (reason, why) = (fault.reason.as_str(), fault.message.as_str());
            match fault.class {
                FaultClass::Wait { .. } => {
                    tracing::info!(request = %key, %float, step, reason, took, why, "step waits");
                }
                FaultClass::Attempt | FaultClass::Terminal => {
                    tracing::warn!(request = %key, %float, step, reason, took, why, "step failed");
                }
            }
        }
        outcome => {
            tracing::debug!(request = %key, %float, step, took, ?outcome, "step ended");
        }
    }
}

// === transitions ===

/// A record that was saved.
pub(super) struct Saved<'a> {
    pub(super) key: &'a Key,
    pub(super) before: &'a PromotionRequest,
    pub(super) request: &'a Request,
    pub(super) notices: &'a [Notice],
    /// When its images entered the phases they were in before.
    pub(super) phase_entered_at: PhaseTimes,
}

impl Saved<'_> {
    /// Logs and counts what changed; gives when its images entered the phases they are in now.
    pub(super) fn report(self, metrics: &Metrics) -> PhaseTimes {
        let Self {
            key,
            before,
            request,
            notices,
            mut phase_entered_at,
        } = self;
        for notice in notices {
            if notice.reason.is_foreign_move() {
                metrics.moved_by_somebody_else();
            }
        }
        let created = before
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let old = before.status.as_ref();
        if request.status.started.is_some() && old.is_none_or(|old| old.start_time.is_none()) {
            let waited = since(created);
            if let Some(waited) = waited {
                metrics.claimed(waited);
            }
            let (images, took) = (request.spec.images.len(), waited.map(seconds));
            tracing::info!(request = %key, images, took, "request began");
        }
        let now = Instant::now();
        phase_entered_at.resize(request.spec.images.len(), None);
        let images = request.spec.images.iter().zip(&request.status.images);
        for ((index, (spec, image)), phase_entered_at) in
            images.enumerate().zip(&mut phase_entered_at)
        {
            let old = old.and_then(|old| old.images.get(index));
            let old = old.and_then(|image| Phase::parse(&image.phase));
            if old == Some(image.phase) {
                continue;
            }
            let took = phase_entered_at.replace(now).map(|since| now - since);
            if let (Some(old), Some(took)) = (old, took) {
                metrics.left_phase(old, took);
            }
            if old.is_some() || !image.phase.is_initial() {
                let digest = image.source.as_ref().map(|source| source.digest);
                image_line(key, &spec.float, image, digest, took.map(seconds));
            }
        }
        let phase = request.phase();
        if phase.is_finished() {
            let end = conditions::Summary::of(request, None);
            finished(metrics, key, created, phase, end.reason, &end.message);
        }
        phase_entered_at
    }
}

fn image_line(
    key: &Key,
    float: &Float,
    image: &crate::machine::Image,
    digest: Option<crate::image::Digest>,
    took: Option<f64>,
) {
    let phase = image.phase.as_str();
    let digest = digest.map(tracing::field::display);
    let reason = image.reason.map(Reason::as_str);
    if image.phase.is_failed() {
        let why = image.message.as_str();
        tracing::warn!(request = %key, %float, phase, reason, digest, took, why, "image entered phase");
    } else {
        tracing::info!(request = %key, %float, phase, reason, digest, took, "image entered phase");
    }
}

/// Says that a request ended.
pub(super) fn finished(
    metrics: &Metrics,
    key: &Key,
    created: Option<Timestamp>,
    phase: Phase,
    reason: Reason,
    why: &str,
) {
    let took = since(created);
    metrics.ended(phase, reason, took);
    let (failed, phase, reason) = (phase.is_failed(), phase.as_str(), reason.as_str());
    let took = took.map(seconds);
    if failed {
        tracing::warn!(request = %key, phase, reason, took, why, "request ended");
    } else {
        tracing::info!(request = %key, phase, reason, took, why, "request ended");
    }
}

/// How long ago it was; nothing where that is not known, and no time at all where the clocks disagree.
fn since(time: Option<Timestamp>) -> Option<Duration> {
    let passed = Timestamp::now().duration_since(time?);
    Some(Duration::try_from(passed).unwrap_or_default())
}

/// As it stands in the log: seconds, to the millisecond.
fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}
