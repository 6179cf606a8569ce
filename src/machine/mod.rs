//! START HERE. What a promotion is: pure, exhaustive, without I/O, clock, Kubernetes or registry.
//!
//! ```text
//!                outcomes                      what may run
//!    engine ───▶ advance ───▶ Request ──▶ decide ──▶ engine saves, then launches exactly that
//!                                ▲
//!    claims: who may begin ──────┘
//! ```
//!
//! A [`Request`] is a spec and what is durably recorded of its promotion. [`advance`] applies what a finished [`Step`] found,
//! its [`Outcome`]; [`decide`] says what may run next and records it. Both are functions of their arguments: time, jitter and the
//! state of the world come in as values. [`claims`] orders the requests that share a float; [`quota`] says how many of one namespace may be
//! at work.
//!
//! A committed group that fails can take its floats back; `rollback` is that alone. A request that only plans ends with a
//! [`Forecast`] of each image.
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
//! Where the pins were seen long ago, or the claim was given up since, [`Step::Confirm`] looks at them before the float moves.

mod advance;
pub mod claims;
mod decide;
mod expiry;
mod forecast;
pub mod quota;
mod reason;
mod request;
mod rollback;

#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(all(test, feature = "model"))]
mod runs;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod table;

pub use advance::{Context, Effect, advance};
pub use decide::{Admission, Decision, ImageContext, Inputs, Launch, Waiting, decide};
pub use expiry::Expiry;
pub use forecast::{Bytes, Children, Copying, FloatTags, Forecast, Tally, Write, WrittenTag};
pub use reason::{Reason, ReasonKind};
pub use request::{
    Image, ImageSpec, Latch, Mode, OnFailure, Pin, Referrers, Request, SourceFacts, Spec, Status,
};

use jiff::{SignedDuration, Timestamp};

use crate::image::{Digest, Tag};

/// The longest list of digests displaced from one float; the move that fills it ends the image.
pub const DISPLACED_MAX: usize = 8;
/// The longest list of digests rescued from the other tags of one float; a further one ends the image.
pub const RESCUED_MAX: usize = 3;
/// How long a committed request may run past its deadline, and how long it may take floats back, in seconds.
pub const GRACE_SECONDS: i64 = 600;

/// How long it counts what was seen of a float and its pins, and how old a prune tag's stamp may be when it is written, in seconds.
pub const FRESH_SECONDS: i64 = 3600;

/// What is true of an image now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing is held yet: resolving or staging comes next.
    Pending,
    /// `<float>_incoming` holds the source digest; nothing more is read from the source.
    Incoming,
    /// The newest displaced digest is held by its prune tag and `<float>__pre`.
    BackedUp,
    /// The float was seen at, or put to, the source digest.
    Latched,
    /// `<float>__post1` holds the source digest as well: the end.
    Posted,
    /// A plan was made: the end of `mode: Plan`.
    Planned,
    /// The end, for a [`Reason`].
    Failed,
    /// The end, by `spec.cancel`.
    Cancelled,
}

impl Phase {
    /// Every phase, in the order of progress.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Incoming,
        Self::BackedUp,
        Self::Latched,
        Self::Posted,
        Self::Planned,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name as it stands in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Incoming => "Incoming",
            Self::BackedUp => "BackedUp",
            Self::Latched => "Latched",
            Self::Posted => "Posted",
            Self::Planned => "Planned",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }

    /// The phase of this name; none for the name of a phase that only a newer version knows.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == name)
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(
            self,
            Self::Posted | Self::Planned | Self::Failed | Self::Cancelled
        )
    }
}

/// What to do next: one idempotent operation on one float.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Look at the float; find the source's digest.
    Resolve,
    /// Bring the source's content to the float's repository and pin it on `<float>_incoming`.
    Stage,
    /// Pin the newest displaced digest on its prune tag and on `<float>__pre`.
    BackUp,
    /// Look at the float and its pins again, before it may move: they were seen a while ago.
    Confirm,
    /// Put the float to the source digest, if it is where it was when it was backed up.
    Latch,
    /// Pin the source digest on `<float>__post1`, and look at the float once more.
    Post,
    /// Only look whether a latch that may have been sent has landed: its group failed meanwhile.
    Verify,
    /// Put the float back to the newest displaced digest, if it is at the source digest.
    RollBack,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 8] = [
        Self::Resolve,
        Self::Stage,
        Self::BackUp,
        Self::Confirm,
        Self::Latch,
        Self::Post,
        Self::Verify,
        Self::RollBack,
    ];

    /// The name as it stands in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "Resolve",
            Self::Stage => "Stage",
            Self::BackUp => "BackUp",
            Self::Confirm => "Confirm",
            Self::Latch => "Latch",
            Self::Post => "Post",
            Self::Verify => "Verify",
            Self::RollBack => "RollBack",
        }
    }
}

/// What a step found or did, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The source's digest and media type (where it was read), and where the float is (none: it does not exist).
    Resolved {
        /// The digest to promote.
        source: Digest,
        /// Its media type, where the manifest was read.
        media_type: Option<String>,
        /// The float's digest.
        float: Option<Digest>,
    },
    /// What promoting the image would do; nothing was written.
    Forecast(Box<Forecast>),
    /// `<float>_incoming` holds the source digest.
    Staged {
        /// The source's media type.
        media_type: String,
        /// Bytes written to the float's repository.
        bytes: u64,
        /// What a person should know of it.
        notices: Vec<Notice>,
    },
    /// A tag that is about to be overwritten holds a digest that this request has not pinned: record it first.
    Unpinned {
        /// The digest found.
        digest: Digest,
    },
    /// A prune tag is taken by another digest, or was not written and says a time long past: record another first.
    StampTaken {
        /// The prune tag that cannot be used.
        tag: Tag,
    },
    /// Both pins hold the newest displaced digest, or nothing was displaced.
    BackedUp {
        /// What a person should know of the pins.
        notices: Vec<Notice>,
    },
    /// The displaced digest is not there any more; where the float is now.
    DisplacedGone {
        /// The float's digest.
        float: Option<Digest>,
    },
    /// The float is at the source digest.
    Latched,
    /// The float is not at the source digest: a latch that may have been sent has not landed.
    NotLatched,
    /// The float is on a digest that is neither the source nor the newest displaced one.
    Moved {
        /// The float's digest.
        to: Digest,
    },
    /// All that moving the float rests on, as a look at it shows.
    Confirmed {
        /// The float's digest.
        float: Option<Digest>,
        /// `<float>_incoming` holds the source digest.
        staged: bool,
        /// Both pins hold the newest displaced digest, or nothing was displaced.
        pinned: bool,
    },
    /// The staged content is not there any more, or the registry refuses it because of that.
    StagedGone(Option<Fault>),
    /// `<float>__post1` holds the source digest; what else the float showed in the end.
    Posted {
        /// Somebody moved the float (to this digest, or away) after the latch.
        foreign: Option<Foreign>,
    },
    /// The float is back on the newest displaced digest.
    RolledBack,
    /// The float is not at the source digest: there is nothing to roll back.
    NothingToRollBack,
    /// The step ended without reaching its aim.
    Faulted(Fault),
    /// The step was given up on purpose, before or between writes.
    Dropped,
}

/// Where a float was found that somebody else moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// On this digest.
    To(Digest),
    /// Nowhere: the float, or what it pointed at, is gone.
    Gone,
}

/// Why a step ended without reaching its aim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The reason, from the closed set.
    pub reason: Reason,
    /// One line that a person can act on.
    pub message: String,
    /// How it counts.
    pub class: FaultClass,
}

/// How a fault counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// One attempt; tried again after a backoff.
    Attempt,
    /// The image's end.
    Terminal,
    /// No attempt; tried again after so many seconds.
    Wait {
        /// Seconds until the next launch.
        seconds: i64,
    },
}

/// Something worth an event that is not a change of phase.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The event's reason.
    pub reason: Reason,
    /// One line that a person can act on.
    pub message: String,
}

/// As times stand in a status.
pub(crate) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// So many seconds after `time`, at the latest at the end of time: what a registry asks for has no bound.
fn after(time: Timestamp, seconds: i64) -> Timestamp {
    let later = time.checked_add(SignedDuration::from_secs(seconds));
    later.unwrap_or(Timestamp::MAX)
}
