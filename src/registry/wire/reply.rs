//! What comes back: answers as they are read off the wire, and failures of a connection.
//!
//! Guaranteed: no more of a body is read than the reader names; no error shows a URL.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};

use super::dialect::RequestKind;
use crate::machine::Reason;
use crate::registry::auth::access::Challenge;
use crate::registry::auth::credential::Credential;
use crate::registry::error::{Answer, Error, secrets};
use crate::registry::host::budget::HostPermit;
use crate::registry::host::reserve::SMALL_MAX;
use crate::registry::ops::get::MANIFEST_MAX;

/// The most of a refusal's body that is read.
const REFUSAL_MAX: usize = 64 * 1024;
/// And the longest time: its words are worth no more, and the places of a copy may be held meanwhile.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(10);

/// An answer to be verdict by the caller: neither a wait nor a 401.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) response: Response,
    /// What was asked.
    pub(crate) kind: RequestKind,
    /// Whether a redirect led to another address than the one asked.
    pub(crate) elsewhere: bool,
    /// What the request showed, and whose it was.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) credential: Credential,
    pub(crate) _permit: HostPermit,
}

/// What a manifest's body came to.
#[derive(Debug)]
pub(crate) enum ManifestBody {
    All(Bytes),
    /// It is large, and nothing is reserved for it.
    Large,
    /// It is larger than any may be.
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
    pub(crate) async fn answer(self) -> Answer {
        let secrets = secrets(self.authorization.as_ref(), &self.credential);
        read_refusal(self.response, self.kind, &secrets).await
    }

    /// The refusal this reply is, where its words decide something: an error where they were cut off.
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

    /// The refusal this reply is, classed. What a redirect's target refuses says nothing about rights at the registry.
    pub(crate) async fn refusal(self, what: &str) -> Error {
        if self.elsewhere {
            return of_storage(what, self.status());
        }
        self.answer().await.error(what)
    }

    /// Whether this 404 says that what was asked for is not there. At the registry any does; where a redirect led elsewhere only a
    /// typed one, and only to a read that decides no write.
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

    /// The body, at most `max` bytes of it: none where it is longer, an error where it was cut off.
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
    mut response: Response,
    kind: RequestKind,
    secrets: &[String],
) -> Answer {
    let status = response.status();
    match gather_refusal(&mut response).await {
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
    // Growing step by step would take twice as much at times.
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
                // What is kept is no larger than what was sent.
                body.shrink_to_fit();
                return Gathered::All(body.into());
            }
            Err(error) => return Gathered::Cut(body.len(), describe(&error.without_url())),
        }
    }
}

/// The challenge of a 401: Bearer where there is one, else Basic.
pub(crate) fn challenge_of(headers: &HeaderMap) -> Option<(Challenge, bool)> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| Challenge::parse(value.to_str().ok()?))
        .max()
}

/// `Retry-After` in both forms: seconds or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(
        date.duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    )
}

/// Whether a certificate was not accepted, wherever in the chain of causes it says so.
pub(crate) fn is_untrusted(error: &reqwest::Error) -> bool {
    matches!(
        cause(error),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    )
}

/// Whether TLS was answered in another protocol, which is plain HTTP where nobody says otherwise.
pub(crate) fn is_plain(error: &reqwest::Error) -> bool {
    matches!(
        cause(error),
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType
        ))
    )
}

/// The first cause of that type in the chain of causes.
pub(crate) fn cause<T: StdError + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error hides the error it wraps from `source`.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost cause of an error, which is the one that helps.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".into();
    }
    let mut cause: &dyn StdError = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    proptest! {
        #[test]
        fn any_retry_after_is_a_time_or_none(bytes: Vec<u8>, number: i128) {
            for bytes in [bytes, number.to_string().into_bytes()] {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    let _ = retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]));
                }
            }
        }

        #[test]
        fn any_challenges_are_read(values: Vec<Vec<u8>>) {
            let values = values.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok());
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, value);
            }
            let _ = challenge_of(&headers);
        }
    }

    #[test]
    fn a_time_that_has_passed_is_now_and_one_before_now_is_none() {
        let after = |value: &'static str| {
            retry_after(&HeaderMap::from_iter([(
                RETRY_AFTER,
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(
            after("1000000000000"),
            Some(Duration::from_secs(1_000_000_000_000))
        );
        assert_eq!(
            after("18446744073709551615"),
            Some(Duration::from_secs(u64::MAX))
        );
        for none in ["-5", "1e12", "18446744073709551616", "soon", ""] {
            assert_eq!(after(none), None, "{none}");
        }
    }
}
