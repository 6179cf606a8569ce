//! The closed set of reasons, for conditions, events, metrics, logs and documents alike.
//!
//! Every name that a person or a program can read off a request is here, once; a test compares the set with the documents.

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
        /// Why a request or an image is where it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is, in the order of the documents.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name as it stands in conditions, events, metrics and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

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
    /// An operator paused the controller or this host.
    Paused: Waiting,
    /// The Secret a request names is not there.
    SecretNotFound: Waiting,
    /// The registry answers 429.
    RateLimited: Waiting,
    /// The registry is unwell: 5xx, refused, reset, timed out.
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
    /// A newer request took the float.
    Superseded: Terminal,
    /// The deadline passed.
    DeadlineExceeded: Terminal,
    /// Another image of the request failed, so this one was not moved.
    Held: Terminal,
    /// The float was taken back to what it was.
    RolledBack: Terminal,
    /// The float was to be taken back, and could not be.
    NotRolledBack: Terminal,
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
    /// The request has something of a newer version, and is left alone.
    Unreadable: Warning,
}

impl Reason {
    /// The reason of this name; none where there is no such reason.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.as_str() == name)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
