//! Faults: each hangs on an event, because what matters is between which two requests something happens, not when.

use std::time::Duration;

use http::{Method, Request};

use super::process::Server;
use super::registries::FLOATS;

/// What a request is for, by its method and path.
pub fn label<B>(server: Server, request: &Request<B>) -> &'static str {
    let (method, path) = (request.method(), request.uri().path());
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if server == Server::Api {
        return api_label(reads, path, request.uri().query().unwrap_or_default());
    }
    if request.uri().host() != Some(FLOATS) {
        return "source";
    }
    match tag(request) {
        Some(_) if reads => "look",
        Some(_) if *method == Method::DELETE => "delete tag",
        Some(tag) => Role::of(tag).0.put(),
        None if path.contains("/manifests/") => "child",
        None if path.contains("/blobs/") => "blob",
        None => "token",
    }
}

fn api_label(reads: bool, path: &str, query: &str) -> &'static str {
    let watches = query.contains("watch=");
    match path {
        _ if path.ends_with("/status") => "save",
        _ if path.contains("/leases/") && reads => "see lease",
        _ if path.contains("/leases") => "renew",
        _ if path.contains("/events") => "event",
        _ if path.contains("/secrets/") => "secret",
        _ if path.contains("/customresourcedefinitions/") => "definition",
        _ if path.contains("/image.openshift.io/") && reads => "see stream",
        _ if path.contains("/image.openshift.io/") => "put stream",
        _ if watches => "watch",
        _ if path.ends_with("/promotionrequests") || path.ends_with("/configmaps") => "list",
        _ if reads => "load",
        _ => "delete",
    }
}

/// The tag that a request names.
pub fn tag<B>(request: &Request<B>) -> Option<&str> {
    let (_, last) = request.uri().path().split_once("/manifests/")?;
    (!last.contains(':')).then_some(last)
}

/// What a tag is to its float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Float,
    Incoming,
    Pre,
    Post1,
    Prune,
}

impl Role {
    /// A tag's role, and its float.
    pub fn of(tag: &str) -> (Self, &str) {
        let suffixes = [
            ("_incoming", Self::Incoming),
            ("__pre", Self::Pre),
            ("__post1", Self::Post1),
        ];
        for (suffix, role) in suffixes {
            if let Some(float) = tag.strip_suffix(suffix) {
                return (role, float);
            }
        }
        match tag.split_once("_prune_") {
            Some((_, float)) => {
                let float = float
                    .trim_end_matches("__rescued")
                    .trim_end_matches("__broken");
                (Self::Prune, float)
            }
            None => (Self::Float, tag),
        }
    }

    /// The tag of a float that has this role, and this stamp where it has one.
    pub fn tag(self, float: &str, stamp: &str) -> String {
        match self {
            Self::Float => float.to_owned(),
            Self::Incoming => format!("{float}_incoming"),
            Self::Pre => format!("{float}__pre"),
            Self::Post1 => format!("{float}__post1"),
            Self::Prune => format!("{stamp}_prune_{float}"),
        }
    }

    fn put(self) -> &'static str {
        match self {
            Self::Float => "put float",
            Self::Incoming => "put incoming",
            Self::Pre => "put pre",
            Self::Post1 => "put post1",
            Self::Prune => "put prune",
        }
    }
}

/// Before or after the work of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Sent,
    Landed,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Its process is killed, and started anew after so long.
    Kill(Duration),
    /// Its process is asked to end, and started anew.
    Stop,
    /// Its process is not run for so long.
    Freeze(Duration),
    /// The machine of its process sleeps so long.
    Sleep(Duration),
    /// It never arrives.
    LoseRequest,
    /// It is done, and not answered.
    LoseAnswer,
    /// It is done so much later, and not answered.
    Late(Duration),
    /// It is done, or answered, so much later.
    Slow(Duration),
    /// It is answered with this status, and not done.
    Refuse(u16),
    /// From now on, twice as long, tags are read as they were so long before.
    Stale(Duration),
    /// Its registry lets nobody write the float that it is about, for so long.
    Forbid(Duration),
    /// Somebody else puts an image to this tag of the float that it is about, or deletes that tag.
    Meddle(Role, bool),
    /// The operator freezes the float that it is about, for so long.
    FreezeFloat(Duration),
    /// The operator pauses everything, for so long.
    Pause(Duration),
    /// The request for promotion that it is about is deleted.
    Delete,
    /// Its process does not reach that server for so long.
    Cut(Duration),
    /// Nobody reaches that server for so long.
    Down(Duration),
    /// The API server forgets what changed.
    Compact,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub on: &'static str,
    pub moment: Moment,
    /// Which of them, counted from 1; what is lost is sent and never lands.
    pub nth: u64,
    pub act: Act,
}

impl Fault {
    pub fn sent(on: &'static str, nth: u64, act: Act) -> Self {
        Self {
            on,
            moment: Moment::Sent,
            nth,
            act,
        }
    }

    pub fn landed(on: &'static str, nth: u64, act: Act) -> Self {
        Self {
            on,
            moment: Moment::Landed,
            nth,
            act,
        }
    }
}
