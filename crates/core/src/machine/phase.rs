//! The phases of an image, and every question about them.
//!
//! Each question is an exhaustive match: a phase that is added does not compile until each has its answer.

use crate::named;

named! {
    /// What is true of an image now.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
        /// Of a request alone: its floats are at their end, and tags of image streams are set to them.
        Referencing,
        /// A plan was made: the end of `mode: Plan`.
        Planned,
        /// The end, for a [`Reason`](super::Reason).
        Failed,
        /// The end, by `spec.cancel`.
        Cancelled,
    }
}

/// A question: the phases for which it is true, then those for which it is false.
macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident: $($yes:ident)|+, not $($no:ident)|+;)*) => {
        impl Phase {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $name(self) -> bool {
                    match self {
                        $(Self::$yes)|+ => true,
                        $(Self::$no)|+ => false,
                    }
                }
            )*
        }
    };
}

questions! {
    /// Whether nothing more will happen.
    is_finished: Posted | Planned | Failed | Cancelled, not Pending | Incoming | BackedUp | Latched | Referencing;
    /// Whether its floats stay where they are, and are free for others.
    has_done_with_floats: Posted | Planned | Failed | Cancelled | Referencing, not Pending | Incoming | BackedUp | Latched;
    /// Whether tags of image streams are all that is left to set.
    is_referencing: Referencing, not Pending | Incoming | BackedUp | Latched | Posted | Planned | Failed | Cancelled;
    /// Whether it ended as it was meant to.
    is_complete: Posted | Planned, not Pending | Incoming | BackedUp | Latched | Failed | Cancelled | Referencing;
    /// Whether it ended otherwise: another run begins it again.
    is_unsuccessful: Failed | Cancelled, not Pending | Incoming | BackedUp | Latched | Posted | Planned | Referencing;
    /// Whether it ended for a reason.
    is_failed: Failed, not Pending | Incoming | BackedUp | Latched | Posted | Planned | Cancelled | Referencing;
    /// Whether it ended by `spec.cancel`.
    is_cancelled: Cancelled, not Pending | Incoming | BackedUp | Latched | Posted | Planned | Failed | Referencing;
    /// Whether its float is promoted.
    is_posted: Posted, not Pending | Incoming | BackedUp | Latched | Planned | Failed | Cancelled | Referencing;
    /// Whether it ended with a plan.
    is_planned: Planned, not Pending | Incoming | BackedUp | Latched | Posted | Failed | Cancelled | Referencing;
    /// Whether nothing is recorded of it yet.
    is_initial: Pending, not Incoming | BackedUp | Latched | Posted | Planned | Failed | Cancelled | Referencing;
    /// Whether its next step may read the source.
    reads_source: Pending, not Incoming | BackedUp | Latched | Posted | Planned | Failed | Cancelled | Referencing;
    /// Whether the float's repository holds the image, so that the source may go away.
    is_staged: Incoming | BackedUp | Latched | Posted, not Pending | Planned | Failed | Cancelled | Referencing;
    /// Whether its next step pins what will be displaced.
    is_backing_up: Incoming, not Pending | BackedUp | Latched | Posted | Planned | Failed | Cancelled | Referencing;
    /// Whether its pins are in place, or were when its float moved.
    is_backed_up: BackedUp | Latched | Posted, not Pending | Incoming | Planned | Failed | Cancelled | Referencing;
    /// Whether moving its float is what comes next: a latch may have been sent, and nothing is known of it.
    awaits_latch: BackedUp, not Pending | Incoming | Latched | Posted | Planned | Failed | Cancelled | Referencing;
    /// Whether its group's failure keeps it from moving.
    can_be_held: Pending | Incoming | BackedUp, not Latched | Posted | Planned | Failed | Cancelled | Referencing;
    /// Whether its float was seen at the source.
    is_latched: Latched | Posted, not Pending | Incoming | BackedUp | Planned | Failed | Cancelled | Referencing;
}

impl Phase {
    /// The phase of a request whose images are in these: the least advanced unfinished one; of ends, the least successful.
    #[must_use]
    pub fn of_all(phases: impl Iterator<Item = Self>) -> Self {
        phases
            .min_by_key(|p| p.precedence())
            .unwrap_or(Self::Posted)
    }

    /// How many steps are left before the end, if none is tried again.
    #[must_use]
    pub const fn steps_left(self) -> usize {
        match self {
            Self::Pending => 5,
            Self::Incoming => 3,
            Self::BackedUp => 2,
            Self::Latched => 1,
            Self::Referencing | Self::Failed | Self::Cancelled | Self::Planned | Self::Posted => 0,
        }
    }

    const fn precedence(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Incoming => 1,
            Self::BackedUp => 2,
            Self::Latched => 3,
            Self::Referencing => 4,
            Self::Failed => 5,
            Self::Cancelled => 6,
            Self::Planned => 7,
            Self::Posted => 8,
        }
    }
}
