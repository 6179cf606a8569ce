//! One request: what is sent, with whose rights, and why there may be no reply.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Request, Url};

use super::dialect::RequestKind;
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::error::Error;
use crate::registry::host::admission::Needs;
use crate::registry::host::limits::{Connection, Lane};
use crate::registry::host::progress::Progress;

/// What is sent with a request.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing; `Content-Length: 0` where the method has a body.
    Nothing,
    /// Bytes that can be sent again.
    Bytes(Bytes),
    /// A stream, which can be sent once.
    Once(Body),
    /// A stream that was sent.
    Spent,
}

/// One request.
pub(crate) struct RegistryRequest<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// How messages name the object: `quay.io/openshift/ci:tag`.
    pub(crate) what: &'a str,
    pub(crate) lane: Lane,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Content,
    /// Whose rights are used, on which registry; they are sent to its own address only.
    pub(crate) access: &'a Access<'a>,
    /// Total time of one try.
    pub(crate) timeout: Option<Duration>,
    /// How long a try may wait for the host in all; none: as long as it takes.
    pub(crate) patience: Option<Duration>,
    pub(crate) connection: Connection,
    /// How many tag PUTs may follow its answer at once: it goes when they may.
    pub(crate) puts: u32,
    /// Whether the caller holds a place on that host already.
    pub(crate) placed: bool,
    pub(crate) progress: &'a Progress,
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A definite no, or nothing was sent: nothing has changed.
    Refused(Error),
    /// The registry may or may not have done it: reset, timed out, 408, 5xx.
    OutcomeUnknown(Error),
    /// Nothing was accepted, and the content cannot be sent again from here, or patience ran out: start anew. Not a failure.
    Restart(Error),
    /// The caller's gate was closed.
    NotSent,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Failure> for Error {
    /// For callers to which the difference is none.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) | Failure::OutcomeUnknown(error) | Failure::Restart(error) => {
                error
            }
            Failure::NotSent => Self::attempt(Reason::RegistryError, "the request was not sent"),
        }
    }
}

impl<'a> RegistryRequest<'a> {
    /// A request without content, which may wait for its host as long as it takes.
    pub(crate) fn new(
        method: Method,
        url: Url,
        what: &'a str,
        lane: Lane,
        access: &'a Access<'a>,
        progress: &'a Progress,
    ) -> Self {
        Self {
            method,
            url,
            what,
            lane,
            headers: HeaderMap::new(),
            content: Content::Nothing,
            access,
            timeout: None,
            patience: None,
            connection: Connection::Shared,
            puts: 0,
            placed: false,
            progress,
        }
    }

    /// What it takes of its host.
    pub(crate) fn needs(&self) -> Needs {
        Needs {
            lane: self.lane,
            placed: self.placed,
            connection: self.connection,
            puts: self.puts,
        }
    }

    /// What it asks, by which its answer is read and it is counted.
    pub(crate) fn kind(&self) -> RequestKind {
        let reads = matches!(self.method, Method::GET | Method::HEAD);
        // `/v2/<name>/manifests/<reference>`, `/v2/<name>/referrers/<digest>`
        let mut parts = self.url.path().rsplit('/');
        let (last, above) = (parts.next().unwrap_or_default(), parts.next());
        match self.lane {
            Lane::Tokens if self.url.path() == "/v2/" => RequestKind::Ping,
            Lane::Tokens => RequestKind::Token,
            Lane::Blobs if reads => RequestKind::Blob,
            Lane::Blobs if self.mounts() => RequestKind::Mount,
            Lane::Blobs => RequestKind::Upload,
            Lane::Manifests if above == Some("referrers") => RequestKind::Referrers,
            Lane::Manifests if reads => RequestKind::Manifest,
            Lane::Manifests if self.method == Method::DELETE => RequestKind::Deletion,
            Lane::Manifests if last.contains(':') => RequestKind::Child,
            Lane::Manifests => RequestKind::Tag,
        }
    }

    fn mounts(&self) -> bool {
        let named = |pair: &str| pair.split('=').next() == Some("mount");
        self.method == Method::POST && self.url.query().is_some_and(|q| q.split('&').any(named))
    }

    /// Whether it was a stream, which who sent it has to open again.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(self.content, Content::Spent)
    }

    /// The request as it goes out. `authorization` is what `access` came to.
    pub(crate) fn build(
        &mut self,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request, Failure> {
        let mut http = Request::new(self.method.clone(), self.url.clone());
        *http.headers_mut() = self.headers.clone();
        if let Some(value) = authorization {
            http.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        *http.timeout_mut() = self.timeout;
        match std::mem::replace(&mut self.content, Content::Spent) {
            Content::Nothing => {
                if matches!(self.method, Method::POST | Method::PUT | Method::PATCH) {
                    http.headers_mut()
                        .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                self.content = Content::Nothing;
            }
            Content::Bytes(bytes) => {
                *http.body_mut() = Some(bytes.clone().into());
                self.content = Content::Bytes(bytes);
            }
            Content::Once(body) => *http.body_mut() = Some(body),
            Content::Spent => {
                let message = format!("{}: the content was sent already", self.what);
                return Err(Failure::OutcomeUnknown(Error::attempt(
                    Reason::RegistryError,
                    message,
                )));
            }
        }
        Ok(http)
    }
}
