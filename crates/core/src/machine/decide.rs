//! What may run.
//!
//! In come a request and what surrounds it; the record is changed in place (order, deadline, start, commit,
//! ends, the attempt that each launch uses) and out comes what to do once that record is saved: launch, drop, wake up.
//!
//! The rules run in a fixed order, each a function of its own: what ends the request before it is committed, what a failure
//! does to its group, whose attempts are used up, whether the floats may move, what is launched.

use jiff::{SignedDuration, Timestamp};

use super::rollback;
use super::terms::{Admission, Decision, Inputs, held};
use super::{GRACE_SECONDS, Image, Latch, Phase, Reason, Request, Step, after, whole_second};

/// No write of ours lands later than this many seconds from now: the longest L, a write's timeout, and a former leader that does not know
/// it yet.
const LATE_MAX_SECONDS: i64 = 160;
/// Times in status are whole seconds, so two that differ by one may be the same.
const SAME_TIME: SignedDuration = SignedDuration::from_secs(1);

/// What is said of a request that nothing is launched for.
const QUIET: &str = "waits until an earlier tag write that was not answered, of this process or of one before, can land no more";

/// Records what is due and says what may run.
pub fn decide(request: &mut Request, inputs: &Inputs) -> Decision {
    let mut decision = Decision::default();
    if request.is_finished() {
        request.note_end(inputs.now);
        return decision;
    }
    note_late(request, inputs);
    if !request.is_rolling_back() {
        note_order_and_deadline(request, inputs);
        show_waiting(request, inputs);
        end_by_cause(request, inputs, &mut decision);
        hold_group(request, inputs, &mut decision);
        end_exhausted(request, inputs);
        forget_pins(request);
        commit(request, inputs);
        launch(request, inputs, &mut decision);
    }
    if request.is_rolling_back() {
        rollback::decide(request, inputs, &mut decision);
        // Images that had ended are under way again where they are taken back.
        note_late(request, inputs);
    }
    decision.waiting = waiting_reason(request, inputs);
    if request.is_finished() {
        request.note_end(inputs.now);
        decision.wake = None;
        decision.waiting = None;
    }
    decision
}

/// The first save records the order; the deadline starts then, and anew after a suspension.
fn note_order_and_deadline(request: &mut Request, inputs: &Inputs) {
    let status = &mut request.status;
    status.order.get_or_insert(inputs.resource_version);
    let suspended = request.spec.suspend && !request.has_open_commit();
    let status = &mut request.status;
    if suspended {
        status.deadline = None;
    } else if status.deadline.is_none() {
        status.deadline = Some(after(inputs.now, request.spec.deadline_seconds));
    }
    if inputs.admission == Admission::Holds && !suspended {
        status.started.get_or_insert(inputs.now);
    }
}

/// Records until when a write of ours may land: a next leader, or a request that waits for the float, cannot know it otherwise. A time
/// too far ahead comes from another clock and is dropped.
fn note_late(request: &mut Request, inputs: &Inputs) {
    let latest = after(inputs.now, LATE_MAX_SECONDS);
    let holds = request.status.started.is_some() || inputs.admission == Admission::Holds;
    for (image, context) in request.status.images.iter_mut().zip(&inputs.contexts) {
        if image.phase.is_finished() && image.rollback.is_none() {
            // It is recorded as it ended.
            continue;
        }
        let open = |until: &Timestamp| *until > inputs.now && *until <= latest;
        let known = image.late_until.filter(open);
        let same = |until: Timestamp| {
            known.is_some_and(|known| known.duration_since(until).abs() <= SAME_TIME)
        };
        let seen = context.late_until.filter(|&until| holds && !same(until));
        image.late_until = known.max(seen);
    }
}

/// Shows what a running step waits for, and what keeps a float where it is.
fn show_waiting(request: &mut Request, inputs: &Inputs) {
    for (index, context) in inputs.contexts.iter().enumerate() {
        let freeze = request.spec.images[index].freeze.as_ref();
        let freeze = freeze.filter(|_| request.is_frozen(index));
        let image = &mut request.status.images[index];
        if image.phase.is_finished() {
            continue;
        }
        if context.running.is_none() {
            let paused = image.reason.is_some_and(Reason::is_paused) && context.paused.is_none();
            if let Some(freeze) = freeze {
                image.reason = Some(Reason::FloatFrozen);
                image.message.clone_from(&freeze.message);
            } else if paused || image.reason.is_some_and(Reason::is_frozen) {
                image.reason = None;
                image.message.clear();
            }
            continue;
        }
        if let Some(waiting) = &context.waiting {
            // Computed from a running clock, the same time may come out a second apart: that is no change.
            let known = image.next_attempt.filter(|known| {
                image.reason == Some(waiting.reason)
                    && image.message == waiting.message
                    && known.duration_since(waiting.until).abs() <= SAME_TIME
            });
            if known.is_some() {
                continue;
            }
            image.reason = Some(waiting.reason);
            image.message.clone_from(&waiting.message);
            image.next_attempt = Some(waiting.until);
        } else if image.reason.is_some_and(Reason::is_waiting) && image.next_attempt.is_some() {
            // The step continues. A reason without a time is that of the launch before, and stays until there is another.
            image.reason = None;
            image.message.clear();
            image.next_attempt = None;
        }
    }
}

/// Cancel, refusal, a newer request and the deadline end what is not committed; the deadline's grace ends the rest.
fn end_by_cause(request: &mut Request, inputs: &Inputs, decision: &mut Decision) {
    let all: Vec<usize> = (0..request.status.images.len()).collect();
    let late = inputs.due(request).filter(|&due| due <= inputs.now);
    let overrun = late.is_some_and(|d| after(d, GRACE_SECONDS) <= inputs.now);
    if overrun {
        end_late(request, inputs, decision, &all);
        return;
    }
    if request.spec.cancel && all.iter().any(|&i| request.is_committed(i)) {
        decision.cancel_ignored = true;
    }
    let uncommitted: Vec<usize> = all
        .into_iter()
        .filter(|&i| !request.is_committed(i))
        .collect();
    if request.spec.cancel {
        end(
            request,
            inputs,
            decision,
            &uncommitted,
            Phase::Cancelled,
            Reason::Cancelled,
            "",
        );
    } else if let Admission::Refused(reason, message) = &inputs.admission {
        end(
            request,
            inputs,
            decision,
            &uncommitted,
            Phase::Failed,
            *reason,
            message,
        );
    } else if late.is_some() {
        end_late(request, inputs, decision, &uncommitted);
    } else if let Admission::Superseded(images, message) = &inputs.admission {
        let images: Vec<usize> = uncommitted
            .into_iter()
            .filter(|i| images.contains(i))
            .collect();
        end(
            request,
            inputs,
            decision,
            &images,
            Phase::Failed,
            Reason::Superseded,
            message,
        );
    } else {
        let stopped = |&index: &usize| request.spec.suspend || request.is_frozen(index);
        let running = |&index: &usize| running(inputs, index).is_some();
        let stopped = uncommitted.into_iter().filter(stopped);
        decision.drops.extend(stopped.filter(running));
    }
}

/// Ends these images at the deadline, each with its last known cause.
fn end_late(request: &mut Request, inputs: &Inputs, decision: &mut Decision, images: &[usize]) {
    let seconds = request.spec.deadline_seconds;
    let messages: Vec<_> = images
        .iter()
        .map(|&index| {
            let cause = last_cause(request, inputs, index);
            format!("not finished within deadlineSeconds ({seconds}); create another request; last: {cause}")
        })
        .collect();
    for (&index, message) in images.iter().zip(&messages) {
        let reason = Reason::DeadlineExceeded;
        end(
            request,
            inputs,
            decision,
            &[index],
            Phase::Failed,
            reason,
            message,
        );
    }
}

/// What held an image up last: its own cause, else the request's, else that of another of its group, else the phase it works in.
fn last_cause(request: &Request, inputs: &Inputs, index: usize) -> String {
    let own = |index: usize| {
        let image = request.status.images.get(index)?;
        let reason = image.reason.filter(|_| !image.phase.is_finished())?;
        Some(format!("{reason}: {}", image.message))
    };
    if let Some(cause) = own(index) {
        return cause;
    }
    if let Admission::Waits(reason, message) | Admission::Refused(reason, message) =
        &inputs.admission
    {
        return format!("{reason}: {message}");
    }
    let others = 0..request.status.images.len();
    let others = others.filter(|_| request.spec.latch == Latch::Together);
    let mut others = others.filter_map(|other| {
        let float = &request.spec.images.get(other)?.float;
        own(other).map(|cause| format!("{float}: {cause}"))
    });
    others.next().unwrap_or_else(|| {
        let phase = request.status.images.get(index).map(|image| image.phase);
        let phase = phase.map_or("", Phase::as_str);
        format!("working in phase {phase}, no error known")
    })
}

/// Ends these images, each as soon as nothing of it runs.
fn end(
    request: &mut Request,
    inputs: &Inputs,
    decision: &mut Decision,
    images: &[usize],
    phase: Phase,
    reason: Reason,
    message: &str,
) {
    for &index in images {
        let Some(image) = request.status.images.get_mut(index) else {
            continue;
        };
        if image.phase.is_finished() {
            continue;
        }
        if running(inputs, index).is_some() {
            decision.drops.push(index);
        } else {
            image.end(phase, reason, message);
        }
    }
}

/// After a failure in a group no further float of it moves: what is not latched is held back. A latch that may have been sent
/// is looked for first, so that the record says where the float is.
fn hold_group(request: &mut Request, inputs: &Inputs, decision: &mut Decision) {
    let Some(failed) = request.failed_float().map(ToString::to_string) else {
        return;
    };
    for index in 0..request.status.images.len() {
        let committed = request.status.committed;
        let image = &mut request.status.images[index];
        if !image.phase.can_be_held() {
            continue;
        }
        match running(inputs, index) {
            Some(step) if step.is_dropped_with_group() => decision.drops.push(index),
            Some(_) => {}
            None if committed && image.phase.awaits_latch() => {}
            None => image.end(Phase::Failed, Reason::Held, held(&failed)),
        }
    }
}

/// An image whose launches are used up ends with its last reason.
fn end_exhausted(request: &mut Request, inputs: &Inputs) {
    let limit = request.spec.attempts;
    for (index, image) in request.status.images.iter_mut().enumerate() {
        let used = image.attempts - u32::from(inputs.was_cut_off(index, image));
        if image.phase.is_finished() || running(inputs, index).is_some() || used < limit {
            continue;
        }
        let last = image.reason.filter(|r| r.is_retried());
        let message = if last.is_some() {
            std::mem::take(&mut image.message)
        } else {
            format!(
                "cut off {} times; see the controller's log, then create another request",
                image.attempts
            )
        };
        image.end(
            Phase::Failed,
            last.unwrap_or(Reason::RegistryError),
            message,
        );
    }
}

/// Whoever is held back gives up the claim: whoever owned the floats meanwhile may have changed them. The commit waits for a new look.
fn forget_pins(request: &mut Request) {
    for index in 0..request.status.images.len() {
        if request.is_held_back(index) {
            request.status.images[index].pinned = None;
        }
    }
}

/// The floats may move: all images of a group are backed up, or this one is. While paused or frozen nothing is committed, so it can
/// still be cancelled.
fn commit(request: &mut Request, inputs: &Inputs) {
    let late = inputs.due(request).is_none_or(|due| due <= inputs.now);
    let held = request.spec.cancel || request.spec.suspend || !request.spec.gates.is_empty();
    if held || late || inputs.admission != Admission::Holds {
        return;
    }
    let stopped: Vec<bool> = (inputs.contexts.iter().enumerate())
        .map(|(index, context)| context.paused.is_some() || request.freeze(index).is_some())
        .collect();
    let pinned = |image: &Image| !image.phase.awaits_latch() || image.is_pinned(inputs.now);
    match request.spec.latch {
        Latch::Together => {
            let images = || request.status.images.iter();
            let stopped = stopped.contains(&true);
            if request.is_ready(0) && !stopped && images().all(pinned) {
                request.status.committed |= images().any(|i| i.phase.awaits_latch());
            }
        }
        Latch::Independently => {
            for (index, stopped) in stopped.into_iter().enumerate() {
                let ready = request.is_ready(index) && !stopped;
                let image = &mut request.status.images[index];
                image.committed |= ready && pinned(image);
            }
        }
    }
}

/// Launches the next step of every image that nothing keeps back, and counts it.
fn launch(request: &mut Request, inputs: &Inputs, decision: &mut Decision) {
    if inputs.admission != Admission::Holds {
        decision.wake_at(next_end(request, inputs));
        return;
    }
    let failed = request.failed_float().is_some();
    for index in 0..request.status.images.len() {
        let committed = request.is_committed(index);
        let ready = committed || request.is_ready(index);
        let held_back = request.is_held_back(index);
        let image = &mut request.status.images[index];
        let context = inputs.contexts.get(index).cloned().unwrap_or_default();
        if image.phase.is_finished() || held_back {
            continue;
        }
        if context.running.is_some() {
            if context.paused.is_some() {
                decision.drops.push(index);
            }
            continue;
        }
        if let Some(message) = context.paused {
            image.reason = Some(Reason::Paused);
            image.message = message;
            continue;
        }
        let standing = Standing {
            resolved: image.source.is_some(),
            ready,
            pinned: image.is_pinned(inputs.now),
            committed,
            failed,
        };
        let Some(step) = next_step(image.phase, standing) else {
            continue;
        };
        decision.launch(index, step, image, inputs);
    }
    decision.wake_at(next_end(request, inputs));
}

/// What the next step depends on, beside the phase.
#[derive(Debug, Clone, Copy)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub(super) struct Standing {
    /// The source is.
    pub resolved: bool,
    /// Its float may move, or could be let move now.
    pub ready: bool,
    /// Its pins were seen lately.
    pub pinned: bool,
    /// Its float may move.
    pub committed: bool,
    /// A float of its group failed.
    pub failed: bool,
}

/// The step that leads on from a phase; none where the image has to wait for others.
pub(super) fn next_step(phase: Phase, standing: Standing) -> Option<Step> {
    match phase {
        Phase::Pending if standing.resolved => Some(Step::Stage),
        Phase::Pending => Some(Step::Resolve),
        Phase::Incoming => Some(Step::BackUp),
        Phase::BackedUp if standing.failed => standing.committed.then_some(Step::Verify),
        Phase::BackedUp if !standing.pinned => standing.ready.then_some(Step::Confirm),
        Phase::BackedUp => standing.committed.then_some(Step::Latch),
        Phase::Latched => Some(Step::Post),
        Phase::Posted | Phase::Planned | Phase::Failed | Phase::Cancelled | Phase::Referencing => {
            None
        }
    }
}

/// When the deadline, or its grace, ends something unfinished. A past time needs no wake-up: its images have ended, or end with their
/// running step.
fn next_end(request: &Request, inputs: &Inputs) -> Option<Timestamp> {
    let deadline = inputs.due(request)?;
    let grace = after(deadline, GRACE_SECONDS);
    let images = request.status.images.iter().enumerate();
    let ends = images
        .filter(|(_, image)| !image.phase.is_finished())
        .flat_map(|(index, _)| {
            [
                Some(deadline).filter(|_| !request.is_committed(index)),
                Some(grace),
            ]
        });
    ends.flatten().filter(|&end| end > inputs.now).min()
}

/// Why nothing continues, if nothing does.
fn waiting_reason(request: &Request, inputs: &Inputs) -> Option<(Reason, String)> {
    if let Some(held_back) = request.held_back() {
        return Some(held_back);
    }
    // A refusal does not end what is committed: that waits until it is lifted.
    if let Admission::Waits(reason, message) | Admission::Refused(reason, message) =
        &inputs.admission
    {
        return Some((*reason, message.clone()));
    }
    if request.is_rolling_back() {
        let images = request.status.images.iter().zip(&inputs.contexts);
        let mut open = images.filter(|(image, _)| image.rollback.is_some());
        return open.find_map(|(_, context)| Some((Reason::Paused, context.paused.clone()?)));
    }
    let waits = |i: &&super::Image| {
        let waiting = i.reason.filter(|r| r.is_waiting());
        let waiting = waiting.filter(|r| r.is_paused() || i.next_attempt.is_some());
        !i.phase.is_finished() && waiting.is_some()
    };
    let Some(image) = request.status.images.iter().find(waits) else {
        return is_quiet(request, inputs).then(|| (Reason::Queued, QUIET.into()));
    };
    let reason = image.reason?;
    let message = match image.next_attempt.filter(|_| !reason.is_paused()) {
        Some(next) => format!("{}; next try {}", image.message, whole_second(next)),
        None => image.message.clone(),
    };
    Some((reason, message))
}

/// Whether all that is left waits until an earlier tag write cannot land any more.
fn is_quiet(request: &Request, inputs: &Inputs) -> bool {
    let images = request.status.images.iter().zip(&inputs.contexts);
    let mut left = images
        .filter(|(image, _)| !image.phase.is_finished())
        .map(|(_, context)| {
            let quiet = context.quiet_until.is_some_and(|until| until > inputs.now);
            quiet && context.running.is_none()
        })
        .peekable();
    left.peek().is_some() && left.all(|quiet| quiet)
}

fn running(inputs: &Inputs, index: usize) -> Option<Step> {
    inputs
        .contexts
        .get(index)
        .and_then(|context| context.running)
}

#[cfg(test)]
mod tests;
