//! Labels: names that are fixed, values from closed sets.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::family::Family;

use promotion_core::named;

/// The value of a label: a word of this program, or a host that was given a label.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Word(&'static str),
    Host(Host),
}

/// A host's label.
#[derive(Debug, Clone)]
pub struct Host(Arc<str>);

/// The values of one series, in the order of its family's labels.
#[derive(Debug, Clone)]
pub(super) struct Labels<const N: usize> {
    names: &'static [&'static str; N],
    values: [Value; N],
}

/// A family and the names of its labels.
pub(super) struct Table<const N: usize, M> {
    names: &'static [&'static str; N],
    family: Family<Labels<N>, M>,
}

named! {
    /// A call to the API server.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Call {
        /// Reading one request freshly.
        Load = "load",
        /// Saving a status.
        Save = "save",
        /// Reading a Secret.
        Secret = "secret",
        /// Publishing an event.
        Event = "event",
        /// Reading or writing the Lease.
        Lease = "lease",
        /// Looking whose installation the definition belongs to.
        Definition = "definition",
        /// Listing finished requests.
        List = "list",
        /// Deleting a finished request.
        Delete = "delete",
        /// Reading or writing an image stream, or looking whether there are any.
        Stream = "stream",
    }
}

named! {
    /// What kind of request was sent to a registry.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Sent {
        /// `/v2/` alone.
        Ping = "ping",
        /// A token.
        Token = "token",
        /// A manifest read, or a child manifest put by its digest.
        Manifest = "manifest",
        /// A tag put or deleted.
        Tag = "tag",
        /// A list of referrers.
        Referrers = "referrers",
        /// A blob read or looked for.
        Blob = "blob",
        /// A blob mounted or uploaded.
        Upload = "upload",
    }
}

impl<const N: usize, M: 'static> Table<N, M> {
    pub(super) fn new(names: &'static [&'static str; N], family: Family<Labels<N>, M>) -> Self {
        Self { names, family }
    }

    /// The series of these values, made where there is none. Not to be held while another of this family is asked for.
    pub(super) fn at(&self, values: [Value; N]) -> impl Deref<Target = M> + '_ {
        self.family.get_or_create(&Labels {
            names: self.names,
            values,
        })
    }

    /// Lets the series of these values be there, at 0 where it is new.
    pub(super) fn begin(&self, values: [Value; N]) {
        drop(self.at(values));
    }

    pub(super) fn clear(&self) {
        self.family.clear();
    }
}

impl Value {
    fn as_str(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Host(host) => &host.0,
        }
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<Host> for Value {
    fn from(host: Host) -> Self {
        Self::Host(host)
    }
}

impl From<&str> for Host {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl<const N: usize> PartialEq for Labels<N> {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.values.iter().zip(&other.values);
        pairs.all(|(a, b)| a.as_str() == b.as_str())
    }
}

impl<const N: usize> Eq for Labels<N> {}

impl<const N: usize> Hash for Labels<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for value in &self.values {
            value.as_str().hash(state);
        }
    }
}

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, value) in self.names.iter().zip(&self.values) {
            (*name, value.as_str()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

named! {
    /// What a call to the API server comes to.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum CallResult {
        /// It was answered as it should be.
        Ok = "ok",
        /// The object was changed meanwhile.
        Conflict = "conflict",
        /// The object is not there.
        Gone = "gone",
        /// Another error of the API server.
        Refused = "refused",
        /// No answer in time.
        Timeout = "timeout",
        /// The API server could not be reached.
        Failed = "failed",
    }
}

/// The codes that answers are counted under by themselves.
const USUAL: [(u16, &str); 20] = [
    (200, "200"),
    (201, "201"),
    (202, "202"),
    (204, "204"),
    (206, "206"),
    (307, "307"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (409, "409"),
    (413, "413"),
    (416, "416"),
    (429, "429"),
    (500, "500"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
];

/// An answer's status: the usual ones by number, the others by their hundred, since a registry may answer with any.
pub(super) fn code(status: Option<u16>) -> &'static str {
    let Some(status) = status else {
        return "error";
    };
    if let Some((_, code)) = USUAL.iter().find(|(usual, _)| *usual == status) {
        return code;
    }
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "xxx",
    }
}
