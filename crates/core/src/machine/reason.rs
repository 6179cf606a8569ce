//! The closed set of reasons, for conditions, events, metrics, logs and documents alike.
//!
//! Every name that a person or a program can read off a request is here, once; a test compares the set with the documents.

use crate::named;

/// What kind of thing a [`Reason`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasonKind {
    /// Nothing is wrong with the request: it waits, uses no attempt, and is bounded by the deadline.
    Waiting,
    /// A launch failed: one attempt, and the image's end when the attempts are used.
    Retried,
    /// The phase that is being left.
    Working,
    /// The end, unsuccessful.
    Terminal,
    /// An end that is not a failure of the promotion.
    Ended,
    /// Worth a person's eye; changes nothing.
    Warning,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $kind:ident,)*) => {
        named! {
            /// Why a request or an image is where it is.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum Reason {
                $($(#[$doc])* $name,)*
            }
        }

        impl Reason {
            /// What kind of reason this is.
            #[must_use]
            pub const fn kind(self) -> ReasonKind {
                match self { $(Self::$name => ReasonKind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// Another request holds a float, or is older; or whether this one may push is not yet known.
    Queued: Waiting,
    /// `spec.suspend` is set.
    Suspended: Waiting,
    /// Everything is staged and backed up, and `spec.gates` has entries left.
    AwaitingApproval: Waiting,
    /// The installation's operator keeps a float where it is.
    FloatFrozen: Waiting,
    /// An operator paused the controller or this host.
    Paused: Waiting,
    /// The Secret a request names is not there.
    SecretNotFound: Waiting,
    /// The registry answers 429.
    RateLimited: Waiting,
    /// The registry is unavailable: 5xx, refused, reset, timed out.
    RegistryUnavailable: Waiting,
    /// The registry refuses writes for maintenance.
    RegistryReadOnly: Waiting,
    /// The source image misses a blob or a child manifest.
    SourceIncomplete: Retried,
    /// Bytes do not have the digest they should have.
    DigestMismatch: Retried,
    /// The registry refuses the manifest.
    ManifestRejected: Retried,
    /// An image that would lose its tag could not be pinned.
    BackupFailed: Retried,
    /// Somebody else moved the float.
    FloatMoved: Retried,
    /// The referrers could not be copied.
    ReferrersFailed: Retried,
    /// The registry answered something else that is wrong, or the launch was cut off.
    RegistryError: Retried,
    /// Nothing is staged yet.
    Pending: Working,
    /// The source's content is held by `<float>_incoming`.
    Incoming: Working,
    /// The displaced digest is pinned twice.
    BackedUp: Working,
    /// The float is at the source digest.
    Latched: Working,
    /// Done.
    Posted: Working,
    /// The floats are at their end; tags of image streams are being set.
    Referencing: Working,
    /// A failed request is taking its floats back.
    RollingBack: Working,
    /// The spec cannot be carried out.
    InvalidSpec: Terminal,
    /// The controller's configuration does not allow this registry or credential.
    NotAllowed: Terminal,
    /// The Secret is there but cannot be used.
    SecretInvalid: Terminal,
    /// The registry rejects the credential.
    Unauthorized: Terminal,
    /// The credential lacks a right.
    PermissionDenied: Terminal,
    /// The source image is not there any more.
    SourceGone: Terminal,
    /// A manifest of a kind that cannot be promoted.
    UnsupportedManifest: Terminal,
    /// A manifest or blob larger than the registry or this program takes.
    TooLarge: Terminal,
    /// The registry holds the tag immutable.
    TagImmutable: Terminal,
    /// The registry's quota is used up.
    QuotaExceeded: Terminal,
    /// The registry's certificate is not trusted.
    CertificateUntrusted: Terminal,
    /// What was staged is gone, and the source too.
    StagedLost: Terminal,
    /// The float is not on what `replaces` says.
    PreconditionFailed: Terminal,
    /// A newer request took the float.
    Superseded: Terminal,
    /// The deadline passed.
    DeadlineExceeded: Terminal,
    /// Another image of the request failed, so this one was not moved.
    Held: Terminal,
    /// The float was rolled back.
    RolledBack: Terminal,
    /// The float could not be rolled back.
    NotRolledBack: Terminal,
    /// The floats moved, and a tag of an image stream could not be set.
    ReferenceFailed: Terminal,
    /// Every float is at its source.
    Promoted: Ended,
    /// The float had the source digest already.
    Unchanged: Ended,
    /// A plan was made; nothing was written.
    Planned: Ended,
    /// `spec.cancel` was set in time.
    Cancelled: Ended,
    /// The image's labels make its tags expire.
    Expiring: Warning,
    /// `spec.cancel` came after the request was committed.
    CancelIgnored: Warning,
    /// The float is promoted, and its `_incoming` tag could not be removed.
    IncomingKept: Warning,
    /// The request has something of a newer version, and is left alone.
    Unreadable: Warning,
}

/// Something worth an event that is not a change of phase.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The event's reason.
    pub reason: Reason,
    /// One line that a person can act on.
    pub message: String,
}

/// A question about a reason: by kinds, those for which it is true and then the others; or by the reasons it singles out.
macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident: $($yes:ident)|+, not $($no:ident)|+;)*) => {
        impl Reason {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $name(self) -> bool {
                    match self.kind() {
                        $(ReasonKind::$yes)|+ => true,
                        $(ReasonKind::$no)|+ => false,
                    }
                }
            )*
        }
    };
    ($($(#[$doc:meta])* $name:ident: $($yes:ident)|+;)*) => {
        impl Reason {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $name(self) -> bool {
                    matches!(self, $(Self::$yes)|+)
                }
            )*
        }
    };
}

questions! {
    /// Whether nothing is wrong and something is waited for.
    is_waiting: Waiting, not Retried | Working | Terminal | Ended | Warning;
    /// Whether a phase is worked on.
    is_working: Working, not Waiting | Retried | Terminal | Ended | Warning;
    /// Whether a launch failed for it, and another follows.
    is_retried: Retried, not Waiting | Working | Terminal | Ended | Warning;
    /// Whether a request can fail for it.
    can_fail: Terminal | Retried, not Waiting | Working | Ended | Warning;
    /// Whether an unfinished request can be where it is for it.
    is_of_the_unfinished: Waiting | Retried | Working, not Terminal | Ended | Warning;
}

questions! {
    /// Whether the image ended with its group, and not by a failure of its own.
    is_of_the_group: Held | RolledBack | NotRolledBack;
    /// Whether another image's failure kept this one from moving.
    is_held: Held;
    /// Whether an operator paused it.
    is_paused: Paused;
    /// Whether people hold it back: its age is no news.
    is_held_back: Suspended | AwaitingApproval | FloatFrozen;
    /// Whether the image's float is kept where it is.
    is_frozen: FloatFrozen;
    /// Whether somebody else wrote the float.
    is_foreign_move: FloatMoved;
    /// Whether the image's tags expire.
    is_expiring: Expiring;
    /// Whether another credential may mend it.
    may_be_rotated: Unauthorized;
    /// Whether a part of the source is missing.
    is_incomplete: SourceIncomplete;
    /// Whether the registry refused what it was sent.
    is_rejected: ManifestRejected;
    /// Whether the registry cannot be used now.
    is_unavailable: RegistryUnavailable;
}

impl Reason {
    /// Whether an attempt can be used up by it: [`Outcome::failed_attempt`](super::Outcome::failed_attempt) gives no other.
    #[must_use]
    pub const fn uses_attempt(self) -> bool {
        self.is_retried() || matches!(self, Self::StagedLost)
    }

    /// What a fault of a step is called: of a source that was staged before, of a pin that cannot be written.
    pub(super) fn in_phase(self, phase: super::Phase, committed: bool) -> Self {
        match self {
            Self::SourceGone if phase.reads_source() && committed => Self::StagedLost,
            Self::ManifestRejected | Self::RegistryError if phase.is_backing_up() => {
                Self::BackupFailed
            }
            reason => reason,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
