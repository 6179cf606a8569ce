//! START HERE. What a promotion is: pure, exhaustive, without I/O, clock, Kubernetes or registry.
//!
//! ```text
//!                outcomes                      what may run
//!    engine ───▶ advance ───▶ Request ──▶ decide ──▶ engine saves, then launches exactly that
//!                                ▲
//!    claims: who may begin ──────┘
//! ```
//!
//! A [`Request`] is a spec and what is durably recorded of its promotion. [`advance`] applies what a finished [`Step`] found, its
//! [`Outcome`]; [`decide`] says what may run next and records it. Both are functions of their arguments: time, jitter and the state of
//! the world come in as values. [`claims`] orders the requests that share a float; [`quota`] says how many of one namespace may be
//! active on the same registries, a [`pool`].
//!
//! A committed group that fails can roll its floats back, in `rollback`. A plan ends with a [`Forecast`] of each image.
//!
//! Phases are participles (what is true now), steps are imperatives (what to do next), outcomes carry the evidence:
//!
//! ```text
//!      Pending ──Resolve, Stage──▶ Incoming ──BackUp──▶ BackedUp ──Latch──▶ Latched ──Post──▶ Posted
//!         ▲                            ▲                   │  │
//!         └── staged content gone ─────│───────────────────┘  │
//!                                      └── the float moved ───┘
//! ```
//!
//! If the pins were last seen long ago, or the claim was given up since, [`Step::Confirm`] checks them before the float moves.

mod advance;
pub mod claims;
mod decide;
mod expiry;
mod forecast;
mod outcome;
mod phase;
pub mod pool;
pub mod quota;
mod reason;
mod request;
mod rollback;
mod step;
mod terms;

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod table;

pub use advance::advance;
pub use decide::decide;
pub use expiry::Expiry;
pub use forecast::{Bytes, Children, Copying, FloatTags, Forecast, Tally, Write, WrittenTag};
pub use outcome::{Fault, FaultClass, Foreign, OperationResult, Outcome};
pub use phase::Phase;
pub use reason::{Notice, Reason, ReasonKind};
pub use request::{
    Freeze, Image, ImageSpec, Latch, Mode, OnFailure, Pin, References, Referrers, Replaces,
    Request, SourceFacts, Spec, Status,
};
pub use step::Step;
pub use terms::{
    Admission, Context, Decision, Effect, ImageContext, Inputs, Launch, Waiting, backoff,
};

use jiff::{SignedDuration, Timestamp};

/// The longest list of digests displaced from one float; the move that fills it ends the image.
pub const DISPLACED_MAX: usize = 8;
/// The longest list of digests rescued from the other tags of one float; a further one ends the image.
pub const RESCUED_MAX: usize = 3;
/// How long a committed request may run past its deadline, and how long a rollback may take, in seconds.
pub const GRACE_SECONDS: i64 = 600;

/// How long a look at a float and its pins counts, and how old a prune tag's stamp may be when written, in seconds.
pub const FRESH_SECONDS: i64 = 3600;

/// A time as statuses show it: whole seconds.
#[must_use]
pub fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// `seconds` after `time`, capped at the latest time there is: a registry may ask for any delay.
fn after(time: Timestamp, seconds: i64) -> Timestamp {
    let later = time.checked_add(SignedDuration::from_secs(seconds));
    later.unwrap_or(Timestamp::MAX)
}
