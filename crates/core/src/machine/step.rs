//! The steps, and every question about them; each is an exhaustive match, as for phases.

use crate::named;

named! {
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
}

impl Step {
    /// Whether it moves layers, which takes long.
    #[must_use]
    pub const fn copies(self) -> bool {
        match self {
            Self::Stage => true,
            Self::Resolve
            | Self::BackUp
            | Self::Confirm
            | Self::Latch
            | Self::Post
            | Self::Verify
            | Self::RollBack => false,
        }
    }

    /// How many tag writes may follow a look of it at once.
    #[must_use]
    pub const fn writes_after_look(self) -> u32 {
        match self {
            Self::Resolve | Self::Confirm | Self::Verify => 0,
            Self::Stage | Self::Latch | Self::Post | Self::RollBack => 1,
            Self::BackUp => 2,
        }
    }

    /// Whether it pins what the float is on, whose labels it then asks for.
    #[must_use]
    pub const fn pins_displaced(self) -> bool {
        match self {
            Self::BackUp => true,
            Self::Resolve
            | Self::Stage
            | Self::Confirm
            | Self::Latch
            | Self::Post
            | Self::Verify
            | Self::RollBack => false,
        }
    }

    /// Whether what it finds is the last word on a float, so that no write may land there any more when it begins.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Verify | Self::RollBack => true,
            Self::Resolve
            | Self::Stage
            | Self::BackUp
            | Self::Confirm
            | Self::Latch
            | Self::Post => false,
        }
    }

    /// Whether a failure of the group gives it up.
    #[must_use]
    pub const fn is_dropped_with_group(self) -> bool {
        match self {
            Self::Verify => false,
            Self::Resolve
            | Self::Stage
            | Self::BackUp
            | Self::Confirm
            | Self::Latch
            | Self::Post
            | Self::RollBack => true,
        }
    }
}
