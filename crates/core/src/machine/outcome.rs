//! What a step found or did, with the evidence.

use super::{Forecast, Notice, Reason};
use crate::image::{Digest, Tag};
use crate::named;

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
        /// What a person should know of the pin that it gets.
        notices: Vec<Notice>,
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
    /// The float is not on what `replaces` says, nor at the source.
    Unmet {
        /// The float's digest.
        float: Option<Digest>,
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
    /// `<float>__post1` holds the source digest, and `<float>_incoming` is gone where that was asked for; what else was found.
    Posted {
        /// Somebody moved the float (to this digest, or away) after the latch.
        foreign: Option<Foreign>,
        /// Why `<float>_incoming` was not removed, though that was asked for.
        kept: Option<String>,
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

named! {
    /// What operations are counted by.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum OperationResult {
        /// It found or did what it was for.
        Done = "done",
        /// It waits for a registry.
        Waits = "waits",
        /// An attempt failed.
        Failed = "failed",
        /// The image's end.
        Refused = "refused",
        /// It was given up on purpose.
        Dropped = "dropped",
    }
}

impl Outcome {
    /// Why one attempt was used for nothing, if it was.
    #[must_use]
    pub fn failed_attempt(&self) -> Option<Reason> {
        match self {
            Self::Faulted(fault) => match fault.class {
                FaultClass::Attempt => Some(fault.reason),
                FaultClass::Terminal | FaultClass::Wait { .. } => None,
            },
            Self::Moved { .. } => Some(Reason::FloatMoved),
            Self::StagedGone(_) => Some(Reason::StagedLost),
            Self::Resolved { .. }
            | Self::Forecast(_)
            | Self::Staged { .. }
            | Self::Unpinned { .. }
            | Self::StampTaken { .. }
            | Self::BackedUp { .. }
            | Self::DisplacedGone { .. }
            | Self::Latched
            | Self::NotLatched
            | Self::Unmet { .. }
            | Self::Confirmed { .. }
            | Self::Posted { .. }
            | Self::RolledBack
            | Self::NothingToRollBack
            | Self::Dropped => None,
        }
    }

    /// What it counts as.
    #[must_use]
    pub fn result(&self) -> OperationResult {
        match self {
            Self::Faulted(fault) => match fault.class {
                FaultClass::Attempt => OperationResult::Failed,
                FaultClass::Terminal => OperationResult::Refused,
                FaultClass::Wait { .. } => OperationResult::Waits,
            },
            Self::Dropped => OperationResult::Dropped,
            Self::Unmet { .. } => OperationResult::Refused,
            Self::Resolved { .. }
            | Self::Forecast(_)
            | Self::Staged { .. }
            | Self::Unpinned { .. }
            | Self::StampTaken { .. }
            | Self::BackedUp { .. }
            | Self::DisplacedGone { .. }
            | Self::Latched
            | Self::NotLatched
            | Self::Moved { .. }
            | Self::Confirmed { .. }
            | Self::StagedGone(_)
            | Self::Posted { .. }
            | Self::RolledBack
            | Self::NothingToRollBack => OperationResult::Done,
        }
    }
}
