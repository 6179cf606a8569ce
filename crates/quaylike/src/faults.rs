//! Faults: rules that make the registry fail as quay does on a bad day.
//!
//! In: [`Rule`]s, set at run time, and each request's log entry. Out: the [`Action`]s to inject. A rule says
//! which requests match ([`Matcher`]), which of those fail ([`When`]), how many at most, and how. Every rule that matches counts
//! the request; all that are due act, in the order they were added. Rules read and write as JSON (`/_control/rules`).

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content::Digest;
use super::log::LoggedRequest;
use super::names::RequestKind;

/// Picks requests. What is left out picks all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matcher {
    /// This method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// This kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<RequestKind>,
    /// This repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Repositories that begin like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_prefix: Option<String>,
    /// This tag, digest or upload session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// References that begin like this: `sha256:` for reads and writes by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_prefix: Option<String>,
    /// References that end like this: `__pre`, `_incoming`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_suffix: Option<String>,
    /// References that contain this: `_prune_`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_contains: Option<String>,
    /// With `true` only requests whose reference is a tag, with `false` only the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<bool>,
    /// With `true` only PUT, POST, PATCH and DELETE, with `false` only the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<bool>,
    /// Only requests with the credential of this user; the empty string for anonymous ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// Which of the matching requests fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Each one.
    #[default]
    Always,
    /// The nth, counted from 1, and no other.
    Nth(u64),
    /// From the nth on.
    From(u64),
    /// Each nth.
    Every(u64),
    /// Each with a probability from 0 to 1, drawn from a seed.
    Probability {
        /// From 0 to 1.
        p: f64,
        /// The same seed picks the same requests, if they arrive in the same order.
        seed: u64,
    },
}

/// A `Retry-After` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// A number of seconds.
    Seconds(u64),
    /// The HTTP date that many seconds from now.
    Date(u64),
}

/// How a request fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// 429 as quay's proxy says it: an HTML page, by itself without `Retry-After`.
    TooMany {
        /// The header, where wanted.
        #[serde(default)]
        retry_after: Option<RetryAfter>,
    },
    /// An answer without doing anything: with `code` a JSON error, with `body` that text, else an HTML page.
    Status {
        /// The HTTP status.
        status: u16,
        /// The JSON error's code.
        #[serde(default)]
        code: Option<String>,
        /// The JSON error's message.
        #[serde(default)]
        message: Option<String>,
        /// The JSON error's detail.
        #[serde(default)]
        detail: Option<Value>,
        /// A body of its own, sent as `text/html`.
        #[serde(default)]
        body: Option<String>,
        /// `Retry-After`.
        #[serde(default)]
        retry_after: Option<RetryAfter>,
    },
    /// 405 `DENIED` with `is_readonly`, for writes; reads pass.
    ReadOnly,
    /// Does the work, answers with the whole length announced, and cuts the connection after so many bytes of the body.
    CutBody {
        /// Bytes that arrive.
        after: u64,
    },
    /// Does the work and inverts one byte of the answer's body.
    Corrupt {
        /// Its position; beyond the end nothing happens.
        at: u64,
    },
    /// Does the work, then waits, then answers. A client that gives up has had its write done.
    Hang {
        /// How long.
        ms: u64,
    },
    /// Waits, then does the work. A client that gives up before has had nothing done, unless a gate counts the request.
    Delay {
        /// How long.
        ms: u64,
    },
    /// Cuts the connection before doing anything.
    DropConnection,
    /// Does the work and cuts the connection instead of answering.
    LoseAnswer,
    /// A GET or HEAD by tag answers as of `ms` ago: the tag's previous digest, or 404.
    StaleRead {
        /// How far the replica lags.
        ms: u64,
    },
    /// A blob GET is answered with a redirect to `<base>/storage/<repository>/<digest>`; the registry's own second listener
    /// where no base is given.
    Redirect {
        /// Where to, without a slash at the end.
        #[serde(default)]
        base: Option<String>,
    },
    /// 409 `TAG_IMMUTABLE` for a PUT or DELETE of a tag that exists; new tags pass.
    ImmutableTag,
    /// Another `Docker-Content-Digest` than the content's.
    LieDigest {
        /// The digest sent; by default that of no bytes.
        #[serde(default)]
        digest: Option<Digest>,
    },
    /// A `Content-Length` that is wrong by so much.
    LieLength {
        /// Added to the true length.
        by: i64,
    },
    /// Does the work and sends this many bytes of nonsense instead of the body; without a number until the client goes.
    Endless {
        /// How many bytes.
        #[serde(default)]
        bytes: Option<u64>,
    },
    /// 404s of manifests say `TAG_EXPIRED` where they said `MANIFEST_UNKNOWN`.
    TagExpired,
    /// A mount is not done: 202 with an upload session.
    RefuseMount,
    /// A mount is not done, and 201 says that it is. Other requests pass.
    LieMount,
    /// Does the work and leaves `Location` out of the answer.
    NoLocation,
    /// 307 to the same place, once for each request: there it is taken.
    RedirectWrite,
    /// A late write: the body is read at once, the work done when the hold is released (`release_held`) or over, whether the
    /// client is still there or not. Where it is not, the log says `dropped`; the tag's history shows the write.
    HoldWrite {
        /// Done by itself after this long.
        #[serde(default)]
        ms: Option<u64>,
    },
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which requests match.
    #[serde(default, rename = "match")]
    pub matcher: Matcher,
    /// Which of them fail.
    #[serde(default)]
    pub when: When,
    /// How many more at most; without a number, no limit.
    #[serde(default)]
    pub left: Option<u64>,
    /// How they fail.
    pub action: Action,
}

/// A rule in force, and what it has seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActiveRule {
    /// Its number.
    pub id: u64,
    /// The rule; `left` counts down.
    #[serde(flatten)]
    pub rule: Rule,
    /// Requests that matched.
    pub matched: u64,
    /// Requests that it was injected into.
    pub injected: u64,
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    newest: u64,
    active: Vec<(ActiveRule, Option<StdRng>)>,
}

// === impl Matcher ===

impl Matcher {
    /// Requests of this kind.
    #[must_use]
    pub fn kind(kind: RequestKind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }

    /// PUTs of a manifest.
    #[must_use]
    pub fn put_manifest() -> Self {
        Self::kind(RequestKind::Manifest).method("PUT")
    }

    /// Only this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only this repository.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Only this tag, digest or upload session.
    #[must_use]
    pub fn reference(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    /// Only references that end like this.
    #[must_use]
    pub fn reference_suffix(mut self, suffix: &str) -> Self {
        self.reference_suffix = Some(suffix.to_owned());
        self
    }

    /// Only references that contain this.
    #[must_use]
    pub fn reference_contains(mut self, part: &str) -> Self {
        self.reference_contains = Some(part.to_owned());
        self
    }

    /// Only requests by tag, or only others.
    #[must_use]
    pub fn tag(mut self, tag: bool) -> Self {
        self.tag = Some(tag);
        self
    }

    /// Whether it picks this request.
    #[must_use]
    pub fn matches(&self, entry: &LoggedRequest) -> bool {
        fn agrees<T>(wanted: Option<&T>, holds: impl FnOnce(&T) -> bool) -> bool {
            wanted.is_none_or(holds)
        }
        let reference = entry.reference.as_str();
        agrees(self.method.as_ref(), |method| {
            method.eq_ignore_ascii_case(&entry.method)
        }) && agrees(self.kind.as_ref(), |kind| *kind == entry.kind)
            && agrees(self.repository.as_ref(), |name| *name == entry.repository)
            && agrees(self.repository_prefix.as_ref(), |prefix| {
                entry.repository.starts_with(prefix.as_str())
            })
            && agrees(self.reference.as_ref(), |wanted| wanted == reference)
            && agrees(self.reference_prefix.as_ref(), |prefix| {
                reference.starts_with(prefix.as_str())
            })
            && agrees(self.reference_suffix.as_ref(), |suffix| {
                reference.ends_with(suffix.as_str())
            })
            && agrees(self.reference_contains.as_ref(), |part| {
                reference.contains(part.as_str())
            })
            && agrees(self.tag.as_ref(), |tag| *tag == entry.is_by_tag())
            && agrees(self.write.as_ref(), |write| *write == entry.is_write())
            && agrees(self.credential.as_ref(), |user| {
                *user == entry.credential.as_deref().unwrap_or_default()
            })
    }
}

impl LoggedRequest {
    /// Whether its reference is a tag.
    #[must_use]
    pub fn is_by_tag(&self) -> bool {
        self.kind == RequestKind::Manifest && !self.reference.contains(':')
    }

    /// Whether it would change something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "POST" | "PATCH" | "DELETE")
    }
}

// === impl Rule ===

impl Rule {
    /// Every matching request fails.
    #[must_use]
    pub fn new(matcher: Matcher, action: Action) -> Self {
        Self {
            matcher,
            when: When::Always,
            left: None,
            action,
        }
    }

    /// Only these of them.
    #[must_use]
    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// At most so many.
    #[must_use]
    pub fn times(mut self, left: u64) -> Self {
        self.left = Some(left);
        self
    }
}

// === impl Action ===

impl Action {
    /// A JSON error of this status and code, without doing anything.
    #[must_use]
    pub fn error(status: u16, code: &str) -> Self {
        Self::Status {
            status,
            code: Some(code.to_owned()),
            message: None,
            detail: None,
            body: None,
            retry_after: None,
        }
    }

    /// An HTML page of this status, as a proxy in front of the registry sends it.
    #[must_use]
    pub fn page(status: u16) -> Self {
        Self::Status {
            status,
            code: None,
            message: None,
            detail: None,
            body: None,
            retry_after: None,
        }
    }
}

// === impl Faults ===

impl Faults {
    pub(super) fn add(&self, rule: Rule) -> u64 {
        let mut rules = self.rules.lock();
        rules.newest += 1;
        let id = rules.newest;
        let draws = match rule.when {
            When::Probability { seed, .. } => Some(StdRng::seed_from_u64(seed)),
            _ => None,
        };
        let active = ActiveRule {
            id,
            rule,
            matched: 0,
            injected: 0,
        };
        rules.active.push((active, draws));
        id
    }

    /// Takes away one rule, or all.
    pub(super) fn remove(&self, id: Option<u64>) {
        let mut rules = self.rules.lock();
        rules
            .active
            .retain(|(rule, _)| id.is_some_and(|id| id != rule.id));
    }

    pub(super) fn list(&self) -> Vec<ActiveRule> {
        let rules = self.rules.lock();
        rules.active.iter().map(|(rule, _)| rule.clone()).collect()
    }

    /// What to inject into this request. Counts it.
    pub(super) fn due(&self, entry: &LoggedRequest) -> Vec<Action> {
        let mut rules = self.rules.lock();
        let due = rules
            .active
            .iter_mut()
            .filter_map(|(rule, draws)| rule.due(draws.as_mut(), entry));
        due.collect()
    }
}

impl ActiveRule {
    fn due(&mut self, draws: Option<&mut StdRng>, entry: &LoggedRequest) -> Option<Action> {
        if !self.rule.matcher.matches(entry) {
            return None;
        }
        self.matched += 1;
        let due = match self.rule.when {
            When::Always => true,
            When::Nth(nth) => self.matched == nth,
            When::From(nth) => self.matched >= nth,
            When::Every(nth) => nth > 0 && self.matched.is_multiple_of(nth),
            When::Probability { p, .. } => {
                draws.is_some_and(|draws| draws.random_bool(p.clamp(0.0, 1.0)))
            }
        };
        if !due || self.rule.left == Some(0) {
            return None;
        }
        if let Some(left) = &mut self.rule.left {
            *left -= 1;
        }
        self.injected += 1;
        Some(self.rule.action.clone())
    }
}
