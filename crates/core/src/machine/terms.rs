//! What deciding and advancing speak of: what goes in, and what comes out.

use jiff::Timestamp;

use super::{Image, Notice, Reason, Request, Step, after};
use crate::image::Stamp;

/// The longest backoff, in seconds.
const BACKOFF_MAX: i64 = 120;

/// What a decision depends on, beside the request.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Now.
    pub now: Timestamp,
    /// By how many seconds the clock ran ahead of the time that really passed since the deadline was first seen, because it was set or
    /// nobody led meanwhile. Deadlines move by as much.
    pub stepped: i64,
    /// The resourceVersion of the object: its order, if none is recorded yet.
    pub resource_version: u64,
    /// Whether the request has its floats to itself.
    pub admission: Admission,
    /// Whether anything may be launched at all (not while shutting down, nor without the lease).
    pub launching: bool,
    /// The context of each image, in the order of the spec.
    pub contexts: Vec<ImageContext>,
}

/// What surrounds one image.
#[derive(Debug, Clone, Default)]
pub struct ImageContext {
    /// The step that runs.
    pub running: Option<Step>,
    /// What that step waits for.
    pub waiting: Option<Waiting>,
    /// Nothing may be launched on the float before then: a write of ours may not show yet.
    pub quiet_until: Option<Timestamp>,
    /// A write of ours may land on the float until then: nothing is final, and nothing rolled back, before.
    pub late_until: Option<Timestamp>,
    /// The newest prune stamp known on the float, of whatever request.
    pub newest_stamp: Option<Stamp>,
    /// The message of a pause of one of the image's registries.
    pub paused: Option<String>,
    /// This process has launched nothing of the image: any recorded launch is an earlier process's.
    pub taken_over: bool,
}

/// What a running step waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// A waiting reason.
    pub reason: Reason,
    /// One line.
    pub message: String,
    /// Until when, at least.
    pub until: Timestamp,
}

/// What the claims say of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It holds every float of its unfinished images (or plans only, and needs none).
    Holds,
    /// It has to wait, for a waiting reason.
    Waits(Reason, String),
    /// It cannot ever be carried out, for a terminal reason.
    Refused(Reason, String),
    /// A newer request took these images' floats; the message names it.
    Superseded(Vec<usize>, String),
}

/// What to do once the record is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Launch these.
    pub launches: Vec<Launch>,
    /// Cancel these images' running steps: reads and copies at once, tag writes after their answer.
    pub drops: Vec<usize>,
    /// Look again then.
    pub wake: Option<Timestamp>,
    /// What the request as a whole waits for, if it does.
    pub waiting: Option<(Reason, String)>,
    /// `spec.cancel` came too late.
    pub cancel_ignored: bool,
}

/// A step to run on one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Launch {
    /// The image's index.
    pub image: usize,
    /// The step.
    pub step: Step,
    /// It may have run before, so it looks before it writes.
    pub may_have_run: bool,
}

/// What an outcome's record depends on, beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Now.
    pub now: Timestamp,
    /// The newest prune stamp known on this float, of whatever request.
    pub newest_stamp: Option<Stamp>,
    /// Where in its range the backoff falls, 0 to 1.
    pub jitter: f64,
}

/// What became of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It is recorded; these deserve an event.
    Recorded(Vec<Notice>),
    /// It cannot follow from the recorded phase; nothing changed.
    Ignored,
}

// === impl Inputs ===

impl Inputs {
    /// When the deadline of a request is, by this clock.
    pub(super) fn due(&self, request: &Request) -> Option<Timestamp> {
        let deadline = request.status.deadline?;
        Some(after(deadline, self.stepped))
    }

    /// Whether the end of its process cut off the last launch of an image: the next launch is then the same attempt, because the cause
    /// was most likely another image. The deadline bounds how often.
    pub(super) fn was_cut_off(&self, index: usize, image: &Image) -> bool {
        let taken_over = self
            .contexts
            .get(index)
            .is_some_and(|context| context.taken_over);
        // What failed says when it is tried again.
        let open = image.next_attempt.is_none();
        taken_over && open && image.attempts > 0
    }
}

// === impl Decision ===

impl Decision {
    /// Launches a step of an image and counts it, unless it has to wait, or nothing is launched at all.
    pub(super) fn launch(&mut self, index: usize, step: Step, image: &mut Image, inputs: &Inputs) {
        let context = inputs.contexts.get(index);
        let mut not_before = image.next_attempt.max(context.and_then(|c| c.quiet_until));
        if step.is_final() {
            not_before = not_before.max(context.and_then(|c| c.late_until));
        }
        if let Some(later) = not_before.filter(|&t| t > inputs.now) {
            self.wake_at(Some(later));
        } else if inputs.launching {
            self.launches.push(Launch {
                image: index,
                step,
                may_have_run: image.attempts > 0,
            });
            image.attempts += u32::from(!inputs.was_cut_off(index, image));
            // Why it is launched again stays: until there is an outcome it is the last that is known.
            image.next_attempt = None;
        }
    }

    /// Looks again then at the latest.
    pub(super) fn wake_at(&mut self, at: Option<Timestamp>) {
        self.wake = [self.wake, at].into_iter().flatten().min();
    }
}

/// The message of an image that was held back because `float` failed.
pub(super) fn held(float: &str) -> String {
    format!("not moved, because {float} failed; see there, then create another request")
}

/// The seconds until the next attempt: exponential with full jitter, 1 to 120.
#[must_use]
pub fn backoff(attempts: u32, jitter: f64) -> i64 {
    let ceiling = BACKOFF_MAX.min(1 << attempts.min(7));
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let seconds = (ceiling as f64 * jitter.clamp(0.0, 1.0)).ceil() as i64;
    seconds.clamp(1, BACKOFF_MAX)
}
