//! Rolling floats back: what `onFailure: Rollback` does when a committed group has failed.
//!
//! When every image has ended, nothing runs and no write of ours can land any more, one save records the intent and the prune tag that
//! will pin each promoted image. Then each committed image that displaced something is examined, whatever its recorded
//! phase, because a latch may have landed unrecorded: a float at its source goes back to the newest displaced digest; one that
//! is anywhere else is left. Until all are examined the request counts as unfinished, for at most [`GRACE_SECONDS`].

use jiff::Timestamp;

use super::terms::{Context, Decision, Effect, Inputs, backoff};
use super::{
    Fault, FaultClass, GRACE_SECONDS, Image, OnFailure, Outcome, Phase, Reason, Request, Step,
    after,
};
use crate::image::Stamp;

impl Request {
    /// Whether floats are being rolled back, or will be: the request has not ended yet.
    #[must_use]
    pub fn is_rolling_back(&self) -> bool {
        let images = &self.status.images;
        let failed = || images.iter().any(|i| i.phase.is_failed());
        self.spec.on_failure == OnFailure::Rollback
            && self.status.committed
            && images.iter().all(|i| i.phase.is_finished())
            && failed()
            && (!self.status.rollback || images.iter().any(|i| i.rollback.is_some()))
    }
}

/// Records the intent when it is due, and says which floats are examined now.
pub(super) fn decide(request: &mut Request, inputs: &Inputs, decision: &mut Decision) {
    let contexts = || inputs.contexts.iter();
    if !request.status.rollback {
        let settled = contexts().filter_map(|context| context.quiet_until.max(context.late_until));
        let settled = settled.max();
        if contexts().any(|context| context.running.is_some()) {
            return;
        }
        if let Some(later) = settled.filter(|&t| t > inputs.now) {
            decision.wake_at(Some(later));
            return;
        }
        begin(request, inputs);
    }
    decision.cancel_ignored = request.spec.cancel;
    // The time is its own: what the deadline was for has ended.
    let deadline = after(inputs.now, GRACE_SECONDS);
    request.status.deadline.get_or_insert(deadline);
    let due = inputs.due(request).unwrap_or(deadline);
    let late = due <= inputs.now;
    for index in 0..request.status.images.len() {
        let context = inputs.contexts.get(index).cloned().unwrap_or_default();
        let image = &mut request.status.images[index];
        if image.rollback.is_none() {
            continue;
        }
        if context.running.is_some() {
            if late || context.paused.is_some() {
                decision.drops.push(index);
            }
            continue;
        }
        if late {
            let why = format!("not within {GRACE_SECONDS} s");
            image.leave_behind(&why);
            continue;
        }
        if context.paused.is_some() {
            continue;
        }
        decision.launch(index, Step::RollBack, image, inputs);
    }
    if request.is_rolling_back() {
        decision.wake_at(Some(due).filter(|&t| t > inputs.now));
    }
}

/// The intent: which floats may have moved, and the tag that will pin what they moved to.
fn begin(request: &mut Request, inputs: &Inputs) {
    request.status.rollback = true;
    request.status.deadline = None;
    for (index, image) in request.status.images.iter_mut().enumerate() {
        if image.unchanged || image.displaced.is_empty() {
            continue;
        }
        let Some(spec) = request.spec.images.get(index) else {
            continue;
        };
        let known = inputs
            .contexts
            .get(index)
            .and_then(|context| context.newest_stamp);
        image.rollback = Some(spec.float.broken(image.next_stamp(known, inputs.now)));
        image.attempts = 0;
        image.next_attempt = None;
    }
}

/// Records the outcome of rolling back one float.
pub(super) fn advance(
    request: &mut Request,
    index: usize,
    outcome: Outcome,
    context: &Context,
) -> Effect {
    let (Some(spec), Some(image)) = (
        request.spec.images.get(index),
        request.status.images.get_mut(index),
    ) else {
        return Effect::Ignored;
    };
    let Some(tag) = image.rollback.clone() else {
        return Effect::Ignored;
    };
    match outcome {
        Outcome::RolledBack => {
            let back = image.displaced.last().map(|pin| pin.digest.to_string());
            let back = back.unwrap_or_default();
            let message = format!(
                "back on {back}, {tag} holds what it was on{}",
                image.cause()
            );
            let reason = image.own_failure().unwrap_or(Reason::RolledBack);
            image.end(Phase::Failed, reason, message);
            image.rollback = None;
        }
        // It never moved, or somebody else moved it since: it is not ours to roll back.
        Outcome::NothingToRollBack => image.rollback = None,
        Outcome::StampTaken { tag: taken } => {
            image.attempts = image.attempts.saturating_sub(1);
            if taken == tag {
                let next = image.next_stamp(context.newest_stamp, context.now);
                image.rollback = Some(spec.float.broken(next));
            }
        }
        Outcome::Dropped => {
            image.attempts = image.attempts.saturating_sub(1);
            image.next_attempt = None;
        }
        Outcome::Faulted(Fault {
            reason,
            message,
            class,
        }) => {
            let delay = match class {
                FaultClass::Terminal => {
                    image.leave_behind(&format!("{reason}: {message}"));
                    return Effect::Recorded(Vec::new());
                }
                FaultClass::Attempt => backoff(image.attempts, context.jitter),
                FaultClass::Wait { seconds } => {
                    image.attempts = image.attempts.saturating_sub(1);
                    seconds
                }
            };
            image.next_attempt = Some(after(context.now, delay));
        }
        Outcome::Resolved { .. }
        | Outcome::Forecast(_)
        | Outcome::Staged { .. }
        | Outcome::Unpinned { .. }
        | Outcome::BackedUp { .. }
        | Outcome::DisplacedGone { .. }
        | Outcome::Latched
        | Outcome::NotLatched
        | Outcome::Moved { .. }
        | Outcome::Unmet { .. }
        | Outcome::Confirmed { .. }
        | Outcome::StagedGone(_)
        | Outcome::Posted { .. } => return Effect::Ignored,
    }
    Effect::Recorded(Vec::new())
}

impl Image {
    /// Ends an examination that did not succeed. An image that failed itself keeps its reason: it is why the whole group failed.
    fn leave_behind(&mut self, why: &str) {
        let cause = self.cause();
        let message = format!(
            "not rolled back: {why}; look at the float and promote its __pre by hand{cause}"
        );
        let reason = self.own_failure().unwrap_or(Reason::NotRolledBack);
        self.end(Phase::Failed, reason, message);
        self.rollback = None;
    }

    /// Why the image itself had failed, if it had.
    fn own_failure(&self) -> Option<Reason> {
        self.reason.filter(|_| self.has_failed_itself())
    }

    /// The same for a person.
    fn cause(&self) -> String {
        self.own_failure().map_or_else(String::new, |_| {
            format!("; it had failed: {}", self.message)
        })
    }

    /// A stamp above every one known on the float, and not in the past.
    pub(super) fn next_stamp(&self, known: Option<Stamp>, now: Timestamp) -> Stamp {
        let known = self.newest_stamp().max(known);
        let now = Stamp::at(now);
        known.map_or(now, |known| now.max(known.next()))
    }
}

#[cfg(test)]
mod tests;
