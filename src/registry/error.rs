//! What can go wrong at a registry, and how it counts.
//!
//! An [`Error`] has a reason, a class and one line of text that names the object and the remedy. Each [`Meaning`] of a refusal has one
//! reason, one class and one text. Guaranteed: the line has at most 256 characters, no secret and no URL.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

use crate::machine::Reason;

/// The longest message of an [`Error`], in characters.
pub(crate) const MESSAGE_MAX: usize = 256;

/// How an error counts against a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// One attempt is used; another launch may succeed.
    Attempt,
    /// Nothing but another spec, Secret or registry setting changes the answer.
    Terminal,
    /// The host is unavailable: ask again, no attempt is used.
    Wait {
        /// The earliest useful time to ask again, counted from now, where the registry or the breaker named one.
        after: Option<Duration>,
    },
}

/// A registry operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The reason.
    pub reason: Reason,
    /// How it counts.
    pub class: Class,
    /// One line, at most 256 characters, without secrets and URLs.
    pub message: String,
    status: Option<StatusCode>,
    meaning: Option<Meaning>,
    cut: bool,
}

impl Error {
    /// The same, with the time after which it is worth while to ask again.
    pub(crate) fn asking_after(mut self, after: Option<Duration>) -> Self {
        if let Class::Wait { after: known } = &mut self.class {
            *known = after;
        }
        self
    }

    /// When it is worth while to ask again, counted from now.
    pub(crate) fn after(&self) -> Duration {
        match self.class {
            Class::Wait { after } => after.unwrap_or_default(),
            Class::Attempt | Class::Terminal => Duration::ZERO,
        }
    }

    /// An answer that broke off: asked for again, it may come whole.
    pub(crate) fn cut(what: &str, received: usize, cause: &str) -> Self {
        let message = format!("{what}: cut off after {received} bytes ({cause})");
        Self {
            cut: true,
            ..Self::attempt(Reason::RegistryError, message)
        }
    }

    /// The same, of an answer that was asked for often enough.
    pub(crate) fn without_retry(self) -> Self {
        Self { cut: false, ..self }
    }

    /// Whether the host is unavailable: nothing is decided.
    pub(crate) fn is_wait(&self) -> bool {
        matches!(self.class, Class::Wait { .. })
    }

    /// Whether the answer broke off.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    pub(crate) fn attempt(reason: Reason, message: impl AsRef<str>) -> Self {
        Self::new(reason, Class::Attempt, message)
    }

    pub(crate) fn terminal(reason: Reason, message: impl AsRef<str>) -> Self {
        Self::new(reason, Class::Terminal, message)
    }

    pub(crate) fn wait(reason: Reason, after: Option<Duration>, message: impl AsRef<str>) -> Self {
        Self::new(reason, Class::Wait { after }, message)
    }

    /// An error of this reason and class; the message is cut to one line of 256 characters.
    #[must_use]
    pub fn new(reason: Reason, class: Class, message: impl AsRef<str>) -> Self {
        Self {
            reason,
            class,
            message: one_line(message.as_ref(), MESSAGE_MAX),
            status: None,
            meaning: None,
            cut: false,
        }
    }

    /// The HTTP status behind it, if any.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status.map(|s| s.as_u16())
    }

    /// The meaning of the registry's answer, if there was one.
    pub(crate) fn meaning(&self) -> Option<Meaning> {
        self.meaning
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn with_meaning(mut self, meaning: Meaning) -> Self {
        self.meaning = Some(meaning);
        self
    }
}

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// reqwest or its TLS backend refused the configuration.
    #[error(
        "cannot set up the HTTP client: {0}; check the system's CA certificates and proxy variables"
    )]
    Client(String),
    /// A private CA cannot be used.
    #[error("--registry-ca {host}={}: {problem}; give a PEM file with the CA's certificate", file.display())]
    Ca {
        /// For which host.
        host: String,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// `rewrite` or `plain_http` holds something that is no address.
    #[error("'{0}' is not HOST or HOST:PORT")]
    Address(String),
}

/// `text` on one line of at most `max` characters, without control characters and those that make a line look like another.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let mut line: String = text
        .chars()
        .map(|c| {
            if c.is_control() || is_unseen(c) {
                ' '
            } else {
                c
            }
        })
        .take(max + 1)
        .collect();
    if line.chars().count() > max {
        line = line.chars().take(max - 1).collect();
        line.push('…');
    }
    line
}

/// Separators of lines and paragraphs, and what changes how the text around it is shown: directions, joiners, tags.
pub(crate) fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The registry itself says that what was asked for is not there.
    Absent,
    /// What the manifest refers to is not there.
    ContentMissing,
    /// The manifest is not taken.
    Rejected,
    /// Content is not that of its digest.
    Mismatch,
    /// The name is not accepted.
    BadName,
    /// The tag must not move.
    Immutable,
    /// The credential is not accepted.
    Unauthorized,
    /// The credential lacks a right.
    Denied,
    /// There is no such repository, and none is made.
    NoRepository,
    /// The quota is used up.
    QuotaExceeded,
    /// Nobody may write for now.
    ReadOnly,
    /// Too many requests.
    Limited,
    /// The host is unavailable.
    Unavailable,
    /// Too large, as the registry itself says.
    TooLarge,
    /// Too large, as whatever stands before the registry says: a proxy's page for a backend that is down may say the same.
    TurnedAway,
    /// The media type is not taken.
    Unsupported,
    /// The upload session is not known any more.
    SessionLost,
    /// Blobs are not mounted like this.
    NotMounted,
    /// The write belongs elsewhere, and is not sent there.
    Redirected,
    /// Something else.
    Other,
}

impl Meaning {
    /// Its reason, its class, what it is called and what helps.
    #[rustfmt::skip]
    pub(crate) fn says(self) -> (Reason, Class, &'static str, &'static str) {
        use Class::{Attempt, Terminal};
        const WAIT: Class = Class::Wait { after: None };
        match self {
            Self::Absent => (Reason::RegistryError, Attempt, "the registry does not have it", ""),
            Self::ContentMissing => (Reason::ManifestRejected, Attempt, "the registry misses content of this manifest", ""),
            Self::Rejected => (Reason::ManifestRejected, Attempt, "the registry refuses the manifest", ""),
            Self::Mismatch => (Reason::DigestMismatch, Attempt, "the registry received other content than was named", ""),
            Self::BadName => (Reason::InvalidSpec, Terminal, "the registry does not accept this name", "; choose another"),
            Self::Immutable => (Reason::TagImmutable, Terminal, "the registry holds this tag immutable", "; lift that or choose another float"),
            Self::Unauthorized => (Reason::Unauthorized, Terminal, "the registry wants another credential", "; renew it"),
            Self::Denied => (Reason::PermissionDenied, Terminal, "the credential lacks the right", "; grant it"),
            Self::NoRepository => (Reason::PermissionDenied, Terminal, "the repository does not exist and the account may not create it", "; create it"),
            Self::QuotaExceeded => (Reason::QuotaExceeded, Terminal, "the quota is used up", "; raise it or remove tags"),
            Self::ReadOnly => (Reason::RegistryReadOnly, WAIT, "the registry is read-only", ""),
            Self::Limited => (Reason::RateLimited, WAIT, "the registry limits the rate", ""),
            Self::Unavailable => (Reason::RegistryUnavailable, WAIT, "", ""),
            Self::TooLarge => (Reason::TooLarge, Terminal, "too large for the registry", ""),
            Self::TurnedAway => (Reason::RegistryError, Attempt, "answered 413", ": too large for the proxy before the registry, or that hides an error"),
            Self::Unsupported => (Reason::UnsupportedManifest, Terminal, "the registry does not accept this media type", ""),
            Self::Redirected => (Reason::RegistryError, Terminal, "the registry redirects this write, which is not sent elsewhere", "; name the registry that takes it"),
            Self::NotMounted | Self::SessionLost | Self::Other => (Reason::RegistryError, Attempt, "", ""),
        }
    }
}
