//! What an outcome changes.
//!
//! In come a request, the index of an image, the step that ran and what it found; the image's record is changed in place and
//! what deserves an event comes out. Every (phase, outcome) has its place here; those that cannot follow from each other leave
//! the record alone, because the record may have been changed by somebody else while the step ran (an end, most often).

use super::rollback;
use super::terms::{Context, Effect, backoff, held};
use super::{
    DISPLACED_MAX, Fault, FaultClass, Forecast, Foreign, Image, ImageSpec, Mode, Notice, Outcome,
    Phase, Pin, RESCUED_MAX, Reason, Request, SourceFacts, after,
};
use crate::image::{Digest, Stamp, Tag};

/// Records what a finished step of image `index` found.
///
/// The launch added one to the image's attempts; an outcome that is no failure takes it back here.
pub fn advance(request: &mut Request, index: usize, outcome: Outcome, context: &Context) -> Effect {
    if request.status.rollback {
        return rollback::advance(request, index, outcome, context);
    }
    let limit = request.spec.attempts;
    let plan_only = request.spec.mode == Mode::Plan;
    let committed = request.is_committed(index);
    let group = request.failed_float().map(ToString::to_string);
    let (Some(spec), Some(image)) = (
        request.spec.images.get(index),
        request.status.images.get_mut(index),
    ) else {
        return Effect::Ignored;
    };
    let mut update = ImageUpdate {
        spec,
        undo: request.spec.undo,
        image,
        expiring: &mut request.status.expiring,
        context,
        limit,
        committed,
        notices: Vec::new(),
    };
    if update.image.phase.has_done_with_floats() || !update.apply(outcome, plan_only, group) {
        return Effect::Ignored;
    }
    Effect::Recorded(update.notices)
}

/// One image while an outcome is recorded.
struct ImageUpdate<'a> {
    spec: &'a ImageSpec,
    undo: bool,
    image: &'a mut Image,
    expiring: &'a mut Option<String>,
    context: &'a Context,
    limit: u32,
    committed: bool,
    notices: Vec<Notice>,
}

impl ImageUpdate<'_> {
    /// Records an outcome. False where it cannot follow from the phase.
    fn apply(&mut self, outcome: Outcome, plan_only: bool, group: Option<String>) -> bool {
        match (self.image.phase, outcome) {
            (_, Outcome::Dropped) => self.dropped(),
            (phase, Outcome::Faulted(fault)) => self.fault(phase, fault),
            (
                Phase::Pending,
                Outcome::Resolved {
                    source,
                    media_type,
                    float,
                },
            ) => {
                self.succeed();
                self.resolve(source, media_type, float, plan_only);
            }
            (Phase::Pending, Outcome::Forecast(forecast)) if plan_only => {
                self.succeed();
                self.forecast(*forecast);
            }
            (
                Phase::Pending,
                Outcome::Staged {
                    media_type,
                    bytes,
                    notices,
                },
            ) => {
                self.succeed();
                self.note(notices);
                self.stage(media_type, bytes);
            }
            (Phase::Pending | Phase::Latched, Outcome::Unpinned { digest, notices }) => {
                self.succeed();
                self.note(notices);
                self.rescue(digest);
            }
            (Phase::Pending | Phase::Incoming | Phase::Latched, Outcome::StampTaken { tag }) => {
                self.succeed();
                self.restamp(&tag);
            }
            (Phase::Incoming, Outcome::BackedUp { notices }) => {
                self.note(notices);
                self.back_up();
            }
            (Phase::Incoming, Outcome::DisplacedGone { float }) => self.displaced_gone(float),
            (
                Phase::BackedUp,
                Outcome::Confirmed {
                    float,
                    staged,
                    pinned,
                },
            ) => self.confirm(float, staged, pinned),
            (Phase::BackedUp, Outcome::Latched) => {
                self.succeed();
                self.image.enter(Phase::Latched);
            }
            (Phase::BackedUp, Outcome::NotLatched) => {
                self.succeed();
                let message = group.map_or_else(String::new, |float| held(&float));
                self.image.end(Phase::Failed, Reason::Held, message);
            }
            (Phase::BackedUp, Outcome::Moved { to }) => self.moved(to),
            (Phase::BackedUp, Outcome::Unmet { float }) => {
                self.succeed();
                self.unmet(float);
            }
            (Phase::BackedUp, Outcome::StagedGone(why)) => self.staged_gone(why),
            (Phase::Latched, Outcome::Posted { foreign, kept }) => {
                self.succeed();
                let kept = kept.map(|why| {
                    let incoming = self.spec.float.incoming();
                    format!("{incoming} was not removed: {why}")
                });
                let message = kept.clone().unwrap_or_default();
                self.image.end(Phase::Posted, Reason::Promoted, message);
                self.notices.extend(kept.map(|message| Notice {
                    reason: Reason::IncomingKept,
                    message,
                }));
                if let Some(foreign) = foreign {
                    self.tell_foreign(&foreign);
                }
            }
            // Spelled out: a phase or an outcome that is added has to be thought of.
            #[rustfmt::skip]
            (
                Phase::Pending | Phase::Incoming | Phase::BackedUp | Phase::Latched | Phase::Posted | Phase::Planned | Phase::Failed
                | Phase::Cancelled | Phase::Referencing,
                Outcome::Resolved { .. } | Outcome::Forecast(_) | Outcome::Staged { .. } | Outcome::Unpinned { .. }
                | Outcome::StampTaken { .. } | Outcome::BackedUp { .. } | Outcome::DisplacedGone { .. } | Outcome::Latched
                | Outcome::NotLatched | Outcome::Moved { .. } | Outcome::Unmet { .. } | Outcome::Confirmed { .. } | Outcome::StagedGone(_)
                | Outcome::Posted { .. } | Outcome::RolledBack | Outcome::NothingToRollBack,
            ) => return false,
        }
        true
    }

    /// Takes back the attempt that the launch added.
    fn succeed(&mut self) {
        self.dropped();
        self.image.reason = None;
        self.image.message.clear();
    }

    /// Nothing came of the launch: it counts for nothing, and what was known of the image stays.
    fn dropped(&mut self) {
        self.image.attempts = self.image.attempts.saturating_sub(1);
        self.image.next_attempt = None;
    }

    /// Passes on what a step noticed. That tags expire is recorded too.
    fn note(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            if notice.reason.is_expiring() {
                super::expiry::add(self.expiring, &notice.message);
            }
            self.notices.push(notice);
        }
    }

    /// Records where source and float are, and what will be displaced.
    fn resolve(
        &mut self,
        digest: Digest,
        media_type: Option<String>,
        float: Option<Digest>,
        plan_only: bool,
    ) {
        let source = self
            .image
            .source
            .get_or_insert(SourceFacts { digest, media_type });
        let digest = source.digest;
        if float == Some(digest) {
            self.image.unchanged = true;
        } else if !self.spec.may_replace(float) {
            return self.unmet(float);
        } else if plan_only {
            self.image.would_displace = float;
        } else if let Some(old) = float {
            self.displace(old);
        }
        if plan_only {
            self.image.end(Phase::Planned, Reason::Planned, "");
        } else if self.image.unchanged {
            self.image.end(Phase::Posted, Reason::Unchanged, "");
        }
    }

    /// Records where source and float are, and what a promotion would do about it: the end of a plan.
    fn forecast(&mut self, forecast: Forecast) {
        let line = forecast.to_string();
        let Forecast {
            source,
            media_type,
            held,
            ..
        } = forecast;
        self.resolve(source, media_type, held.float, true);
        if self.image.phase.is_planned() {
            self.image.message = line;
        }
    }

    /// Records that the source is held in the float's repository.
    fn stage(&mut self, media_type: String, bytes: u64) {
        if let Some(source) = &mut self.image.source {
            source.media_type.get_or_insert(media_type);
        }
        self.image.bytes += bytes;
        self.image.enter(Phase::Incoming);
    }

    /// Records that its pins are in place. Where it matters what the float is on, that is looked at again directly before the commit.
    fn back_up(&mut self) {
        self.succeed();
        self.image.enter(Phase::BackedUp);
        self.image.pinned = Some(self.context.now).filter(|_| !self.spec.is_conditional());
    }

    /// Records a fresh look at everything that moving the float relies on. What has changed is redone; that is no failure.
    fn confirm(&mut self, float: Option<Digest>, staged: bool, pinned: bool) {
        self.succeed();
        self.image.pinned = Some(self.context.now);
        let source = self.image.source.as_ref().map(|s| s.digest);
        let newest = self.image.displaced.last().map(|pin| pin.digest);
        match float {
            float if float != source && !self.spec.may_replace(float) => self.unmet(float),
            Some(to) if float != source && float != newest => self.moved(to),
            _ if !pinned => self.image.enter(Phase::Incoming),
            _ => {}
        }
        if !staged && !self.image.phase.is_finished() {
            self.image.enter(Phase::Pending);
        }
    }

    /// What was staged is gone, or refused for want of content: it is staged again. Keeps the attempt.
    fn staged_gone(&mut self, why: Option<Fault>) {
        self.image.enter(Phase::Pending);
        let message = "the staged image is gone from the float's repository; staging it again";
        self.retry(why.unwrap_or_else(|| Fault {
            reason: Reason::RegistryError,
            message: message.into(),
            class: FaultClass::Attempt,
        }));
    }

    /// A prune tag is taken by another digest, or old: the next second is recorded for ours.
    fn restamp(&mut self, taken: &Tag) {
        let next = self.next_stamp();
        for pin in self.image.displaced.iter_mut().filter(|p| p.tag == *taken) {
            pin.tag = self.spec.displaced_tag(self.undo, next);
        }
        for pin in self.image.rescued.iter_mut().filter(|p| p.tag == *taken) {
            pin.tag = self.spec.float.rescued(next);
        }
    }

    /// Makes `digest` the newest displaced one: an entry that is listed already keeps its prune tag. The name of a rescue's would not
    /// say that the float was on it.
    fn displace(&mut self, digest: Digest) {
        let displaced = self.image.displaced.iter().position(|p| p.digest == digest);
        let pin = match displaced {
            Some(at) => self.image.displaced.remove(at),
            None => Pin {
                digest,
                tag: self.spec.displaced_tag(self.undo, self.next_stamp()),
            },
        };
        self.image.displaced.push(pin);
    }

    /// The float shows a digest that it should not: back it up first. Keeps the attempt.
    fn moved(&mut self, to: Digest) {
        self.notices.push(Notice {
            reason: Reason::FloatMoved,
            message: format!(
                "{} was moved to {to} by somebody else; backing that up first",
                self.spec.float
            ),
        });
        self.image.enter(Phase::Incoming);
        self.image.reason = Some(Reason::FloatMoved);
        self.image.message = format!("the float was moved to {to} by somebody else");
        self.image.next_attempt = None;
        let listed = self.image.displaced.iter().any(|pin| pin.digest == to);
        if listed || self.image.displaced.len() < DISPLACED_MAX {
            self.displace(to);
        }
        if self.image.attempts >= self.limit || self.image.displaced.len() >= DISPLACED_MAX {
            let message = format!(
                "somebody else keeps moving {} (last to {to}); stop the other writer, then create another request",
                self.spec.float
            );
            self.image.end(Phase::Failed, Reason::FloatMoved, message);
        }
    }

    /// The float is not on what `replaces` says: the end, if no write of ours could land when it was looked at. Else nobody can say yet
    /// where it will be.
    fn unmet(&mut self, float: Option<Digest>) {
        // By the record that the look was launched with.
        if let Some(until) = self.image.late_until {
            self.image.enter(self.image.phase);
            self.image.reason = Some(Reason::RegistryUnavailable);
            self.image.message =
                "an earlier write of the float was not answered and may land late; \
                waits until it cannot"
                    .into();
            self.image.next_attempt = Some(until);
            return;
        }
        let message = self.spec.unmet(float).unwrap_or_default();
        self.image
            .end(Phase::Failed, Reason::PreconditionFailed, message);
    }

    /// The newest displaced digest is gone, and `float` is what the float shows now. What is gone was not pinned, so it leaves
    /// the list: should the float show it again, it has to be backed up like any other.
    fn displaced_gone(&mut self, float: Option<Digest>) {
        let source = self.image.source.as_ref().map(|s| s.digest);
        let newest = self.image.displaced.last().map(|pin| pin.digest);
        match float {
            float if float != source && !self.spec.may_replace(float) => {
                self.succeed();
                self.unmet(float);
            }
            Some(digest) if Some(digest) != source => self.moved(digest),
            _ => self.back_up(),
        }
        let gone = newest.filter(|_| newest != float);
        self.image.displaced.retain(|pin| Some(pin.digest) != gone);
    }

    /// Gives `digest` a prune tag of its own, to be written before the tag that holds it alone is overwritten.
    fn rescue(&mut self, digest: Digest) {
        if self.image.pin(digest).is_some() {
            return;
        }
        if self.image.rescued.len() >= RESCUED_MAX {
            let message = format!(
                "somebody else keeps writing the pins of {} (last {digest}); stop the other writer, then create another request",
                self.spec.float
            );
            self.image.end(Phase::Failed, Reason::BackupFailed, message);
            return;
        }
        let tag = self.spec.float.rescued(self.next_stamp());
        self.image.rescued.push(Pin { digest, tag });
    }

    /// A stamp above every one known on this float, and not in the past.
    fn next_stamp(&self) -> Stamp {
        let Context {
            now, newest_stamp, ..
        } = *self.context;
        self.image.next_stamp(newest_stamp, now)
    }

    fn fault(&mut self, phase: Phase, mut fault: Fault) {
        fault.reason = fault.reason.in_phase(phase, self.committed);
        match fault.class {
            FaultClass::Terminal => self.image.end(Phase::Failed, fault.reason, fault.message),
            FaultClass::Attempt => self.retry(fault),
            FaultClass::Wait { seconds } => {
                self.succeed();
                self.image.reason = Some(fault.reason);
                self.image.message = fault.message;
                self.image.next_attempt = Some(after(self.context.now, seconds));
            }
        }
    }

    /// Keeps the attempt and sets the time of the next one, or ends the image if that was the last.
    fn retry(&mut self, fault: Fault) {
        if self.image.attempts >= self.limit {
            self.image.end(Phase::Failed, fault.reason, fault.message);
            return;
        }
        self.image.reason = Some(fault.reason);
        self.image.message = fault.message;
        let delay = backoff(self.image.attempts, self.context.jitter);
        self.image.next_attempt = Some(after(self.context.now, delay));
    }

    fn tell_foreign(&mut self, foreign: &Foreign) {
        let place = match foreign {
            Foreign::To(digest) => format!("is on {digest}"),
            Foreign::Gone => "is gone".into(),
        };
        self.notices.push(Notice {
            reason: Reason::FloatMoved,
            message: format!(
                "{} {place}: somebody else wrote it after it was promoted; it is left as it is",
                self.spec.float
            ),
        });
    }
}

#[cfg(test)]
mod tests;
