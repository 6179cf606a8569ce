//! The steps: what each does to one float, request by request. The order of requests stands here and nowhere else.
//!
//! In come an image's spec and record as they were saved, and a world to ask, [`StepIo`]; out comes an [`Outcome`]. Every step can be
//! run again from the start: what it would write is looked at first where it may have run before. The engine drives the steps over a
//! registry client, the model over recorded answers.
//!
//! ```text
//! stage     resolve, stage        find the image, bring it, hold it on _incoming
//! back_up   back_up               pin what the float is on
//! latch     confirm, latch, verify, post    move the float, pin what it was moved to, remove _incoming
//! roll_back roll_back             move it back
//! tag       what they are made of: look, pin, clear, write, delete
//! ```

mod back_up;
mod io;
mod latch;
mod roll_back;
mod stage;
mod tag;

#[cfg(test)]
pub(crate) mod replay;

pub use io::{Manifest, Put, StepIo, TagLabels, Unsettled};
pub use stage::{SOURCE_LOOKS, immovable};
pub use tag::Written;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::image::{Digest, Repository, Stamp, Tag};
use crate::machine::{FRESH_SECONDS, Fault, FaultClass, Image, ImageSpec, Outcome, Reason, Step};

/// The pause before a read that contradicts our own write is repeated.
pub const READ_AGAIN: Duration = Duration::from_secs(1);
/// The pause between the two looks at what one look alone does not decide.
pub const LOOK_TWICE: Duration = Duration::from_secs(2);

/// Goes on with a value, or ends the step with an outcome.
pub type Flow<T> = Result<T, Outcome>;

/// One step's work on one image.
#[derive(Debug)]
pub struct Work<'a, I> {
    /// The world.
    pub io: &'a I,
    /// The image and its float.
    pub spec: &'a ImageSpec,
    /// What is recorded of it.
    pub image: &'a Image,
    /// The step may have run before.
    pub may_have_run: bool,
}

impl<I: StepIo> Work<'_, I> {
    /// Runs a step to its outcome.
    pub async fn run(&self, step: Step) -> Outcome {
        let flow = match step {
            Step::Resolve => self.resolve().await,
            // Boxed: every step would be as large as the largest.
            Step::Stage => Box::pin(self.stage()).await,
            Step::BackUp => self.back_up().await,
            Step::Confirm => self.confirm().await,
            Step::Latch => self.latch().await,
            Step::Post => self.post().await,
            Step::Verify => self.verify().await,
            Step::RollBack => self.roll_back().await,
        };
        flow.unwrap_or_else(|outcome| outcome)
    }

    fn repository(&self) -> &Repository {
        self.spec.float.repository()
    }

    /// The recorded source digest; a step that needs it is never launched before it is recorded.
    ///
    /// # Errors
    /// It is not recorded.
    pub fn source(&self) -> Flow<Digest> {
        let source = self.image.source.as_ref();
        source.map(|source| source.digest).ok_or(Outcome::Dropped)
    }
}

/// Whether a prune tag's stamp says another time than that of its writing, so that a pruner might take it for old.
#[must_use]
pub fn is_old(prune: &Tag, now: Timestamp) -> bool {
    let fresh = now - SignedDuration::from_secs(FRESH_SECONDS);
    Stamp::of(prune).is_some_and(|stamp| stamp < Stamp::at(fresh))
}

/// A tag shows an image that cannot be pinned by another one: in the registry's words, where it had any.
fn unpinnable(image: &str, why: Option<&Fault>) -> Fault {
    let why = why.map_or("it is not found by its digest", |why| &why.message);
    Fault {
        reason: Reason::BackupFailed,
        message: format!(
            "{image} is incomplete, so it cannot be pinned; push it again, or remove its tag ({why})"
        ),
        class: FaultClass::Attempt,
    }
}

/// The step waits this long for the registry and uses no attempt.
fn waits(message: String, wait: Duration) -> Outcome {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = i64::try_from(whole).unwrap_or(i64::MAX);
    Outcome::Faulted(Fault {
        reason: Reason::RegistryUnavailable,
        message,
        class: FaultClass::Wait { seconds },
    })
}
