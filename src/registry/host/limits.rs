//! The limits of a host, and the key by which requests share it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Manifests,
    Blobs,
    /// Tokens and pings, in places of their own.
    Tokens,
}

/// What a registry limits the rate of by itself. The lists of tags, which quay limits too, are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Manifests and blobs together: quay has one bucket for both.
    Content,
    Tokens,
}

/// What a host speaks: quay's limits are ten times as high on HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// The connection that a request is sent on, of those to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// The one of all.
    Shared,
    /// One of a tag PUT's own. It rests on a look that must not grow old: it goes before all others, and is paced afterwards.
    Prompt,
    /// One of its own for the content of a large blob, whose caller holds a place.
    Bulk,
}

/// Which limit a request counts against, as its answer told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) zone: Zone,
    /// What was spoken; none where there was no answer of the host's own.
    pub(crate) protocol: Option<Protocol>,
    /// It had a connection of its own: that is one of HTTP/1.1 also where the host speaks HTTP/2.
    pub(crate) apart: bool,
}

/// How often each bucket was slowed: by zone, and in each by protocol.
pub(crate) type Slowings = [[u64; 2]; 2];

/// How many requests a second there may be in each zone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// At first; 0: no pacing.
    pub(crate) qps: u32,
    /// At the most, once the host was seen to bear it.
    pub(crate) qps_max: u32,
}

impl Lane {
    pub(crate) fn zone(self) -> Zone {
        match self {
            Self::Manifests | Self::Blobs => Zone::Content,
            Self::Tokens => Zone::Tokens,
        }
    }
}

impl Connection {
    /// Whether it is one of HTTP/1.1, whatever the host speaks.
    pub(crate) fn is_apart(self) -> bool {
        self != Self::Shared
    }
}

impl Zone {
    pub(crate) const ALL: [Self; 2] = [Self::Content, Self::Tokens];

    /// So many requests may come at once: what quay takes at once beyond its rate.
    pub(crate) fn burst(self) -> f64 {
        match self {
            Self::Content => 10.0,
            Self::Tokens => 3.0,
        }
    }

    /// Its label in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Tokens => "tokens",
        }
    }
}

/// The limits of every host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests a second in each zone.
    pub(crate) rates: Rates,
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
