//! Answers, as read off the wire.
//!
//! Guaranteed: no more of a body is read than the reader asks for; no error shows a URL.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderValue;
use reqwest::{Response, StatusCode};

use super::answer::{Answer, secrets};
use super::cause::describe;
use super::dialect::RequestKind;
use crate::machine::Reason;
use crate::registry::auth::credential::Credential;
use crate::registry::error::Error;
use crate::registry::host::admission::HostPermit;
use crate::registry::host::reserve::SMALL_MAX;

/// The most of a manifest that is read: the specification's floor for what registries take.
pub(crate) const MANIFEST_MAX: usize = 4 * 1024 * 1024;
/// How often a read is sent if its answer breaks off; then it is a failed attempt.
pub(crate) const CUTS_MAX: u32 = 3;
/// The most of a refusal's body that is read.
const REFUSAL_MAX: usize = 64 * 1024;
/// And for how long: the places of a copy may be held meanwhile.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(10);

/// An answer for the caller to read: neither something to wait out nor a 401.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) response: Response,
    /// What was asked.
    pub(crate) kind: RequestKind,
    /// Whether a redirect led to another address than the one asked.
    pub(crate) elsewhere: bool,
    /// The `Authorization` that was sent, and whose it was.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) credential: Credential,
    pub(crate) _permit: HostPermit,
}

/// A manifest's body.
#[derive(Debug)]
pub(crate) enum ManifestBody {
    All(Bytes),
    /// Large, and no memory is reserved for it.
    Large,
    /// Larger than allowed.
    TooLarge,
}

impl Reply {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The refusal this reply is.
    pub(crate) async fn answer(mut self) -> Answer {
        let secrets = secrets(self.authorization.as_ref(), &self.credential);
        read_refusal(&mut self.response, self.kind, &secrets).await
    }

    /// As [`Reply::answer`] if the words decide something: an error if they were cut off.
    pub(crate) async fn words(mut self, what: &str) -> Result<Answer, Error> {
        let status = self.status();
        let secrets = secrets(self.authorization.as_ref(), &self.credential);
        match gather_refusal(&mut self.response).await {
            Gathered::All(body) | Gathered::Some(body) => {
                Ok(Answer::read_hiding(&secrets, self.kind, status, &body))
            }
            Gathered::Cut(received, cause) => Err(Error::cut(what, received, &cause)),
        }
    }

    /// The refusal as an error. What a redirect's target refuses says nothing about rights at the registry.
    pub(crate) async fn refusal(self, what: &str) -> Error {
        if self.elsewhere {
            return of_storage(what, self.status());
        }
        self.answer().await.error(what)
    }

    /// What this 404 says. From a redirect's target only a typed one counts, and only for a read that decides no write.
    pub(crate) async fn absence(self, what: &str, decides: bool) -> Result<Answer, Error> {
        let (elsewhere, status) = (self.elsewhere, self.status());
        if elsewhere && decides {
            return Err(of_storage(what, status));
        }
        let answer = self.words(what).await?;
        if elsewhere && !answer.says_absent() {
            return Err(of_storage(what, status));
        }
        Ok(answer)
    }

    /// The body of a manifest. `reserved`: whether it may be a large one.
    pub(crate) async fn manifest_body(
        self,
        what: &str,
        reserved: bool,
    ) -> Result<ManifestBody, Error> {
        let fits = |max: usize| {
            let announced = self.response.content_length();
            announced.is_none_or(|length| length <= max as u64)
        };
        let (max, larger) = if reserved {
            (MANIFEST_MAX, ManifestBody::TooLarge)
        } else {
            (SMALL_MAX, ManifestBody::Large)
        };
        if !fits(MANIFEST_MAX) {
            return Ok(ManifestBody::TooLarge);
        }
        if !fits(max) {
            return Ok(larger);
        }
        Ok(self
            .body(what, max)
            .await?
            .map_or(larger, ManifestBody::All))
    }

    /// The body, if it has at most `max` bytes; an error if it was cut off.
    pub(crate) async fn body(mut self, what: &str, max: usize) -> Result<Option<Bytes>, Error> {
        match gather(&mut self.response, max).await {
            Gathered::All(body) => Ok(Some(body)),
            Gathered::Some(_) => Ok(None),
            Gathered::Cut(received, cause) => Err(Error::cut(what, received, &cause)),
        }
    }
}

/// What a redirect's target refused.
fn of_storage(what: &str, status: StatusCode) -> Error {
    let status = status.as_u16();
    let message = format!("{what}: the storage the registry redirects to answered {status}");
    Error::attempt(Reason::RegistryError, message)
}

/// Reads a refusal; these secrets are not quoted.
pub(crate) async fn read_refusal(
    response: &mut Response,
    kind: RequestKind,
    secrets: &[String],
) -> Answer {
    let status = response.status();
    match gather_refusal(response).await {
        Gathered::All(body) | Gathered::Some(body) => {
            Answer::read_hiding(secrets, kind, status, &body)
        }
        Gathered::Cut(..) => Answer::read(kind, status, b""),
    }
}

async fn gather_refusal(response: &mut Response) -> Gathered {
    let gathered = tokio::time::timeout(REFUSAL_PATIENCE, gather(response, REFUSAL_MAX)).await;
    gathered.unwrap_or_else(|_| Gathered::Cut(0, "timed out".into()))
}

/// A body as far as it was read.
enum Gathered {
    All(Bytes),
    /// The beginning of one that is longer.
    Some(Bytes),
    /// How much came before it broke off, and why.
    Cut(usize, String),
}

/// Reads at most `max` bytes of a body.
async fn gather(response: &mut Response, max: usize) -> Gathered {
    let announced = response.content_length().unwrap_or_default();
    // Growing step by step may take twice as much.
    let mut body = Vec::with_capacity(usize::try_from(announced).unwrap_or(max).min(max));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = max - body.len();
                body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
                if chunk.len() > room {
                    return Gathered::Some(body.into());
                }
            }
            Ok(None) => {
                // Keep no more than was sent.
                body.shrink_to_fit();
                return Gathered::All(body.into());
            }
            Err(error) => return Gathered::Cut(body.len(), describe(&error.without_url())),
        }
    }
}
