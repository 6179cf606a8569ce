//! The limits of a host, and the key by which requests share it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// What kind of request it is, for pacing: quay limits manifests and blobs apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Manifests,
    Blobs,
    /// Tokens and pings: paced with the manifests, in places of their own.
    Tokens,
}

impl Lane {
    /// The lane that paces it.
    pub(crate) fn paced(self) -> Self {
        match self {
            Self::Manifests | Self::Tokens => Self::Manifests,
            Self::Blobs => Self::Blobs,
        }
    }
}

/// The limits of every host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests a second in each lane; 0: no pacing.
    pub(crate) qps: u32,
    /// Requests in flight.
    pub(crate) concurrency: usize,
    /// How long a host that is unavailable is left alone at first.
    pub(crate) backoff_first: Duration,
    /// And at the longest.
    pub(crate) backoff_max: Duration,
}

/// Who shares a host's places and pacing with others: a promotion request of a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) namespace: u64,
    pub(crate) request: u64,
}

impl FlowKey {
    /// The namespace of whatever has none: there are no others beside it.
    pub(crate) const NOBODY: u64 = 0;

    /// The key of a promotion request; without a namespace, there is nobody to share with.
    pub(crate) fn of(namespace: &str, request: &str) -> Self {
        Self {
            namespace: if namespace.is_empty() {
                Self::NOBODY
            } else {
                hashed(namespace)
            },
            request: hashed(request),
        }
    }
}

fn hashed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
