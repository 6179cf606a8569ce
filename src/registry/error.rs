//! What can go wrong at a registry, and how it counts.
//!
//! In comes what a registry answered (status, error envelope, any body at all); out comes an [`Error`] with one of the program's
//! reasons, its class, and one line of text that names the object and the remedy. Guaranteed: that line is at most 256
//! characters, carries no secret and no URL, and at most 200 characters of a registry's own words.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::StatusCode;
use reqwest::header::HeaderValue;

use super::credential::Credential;
use crate::machine::Reason;

/// The longest message of an [`Error`], in characters.
const MESSAGE_MAX: usize = 256;
/// How much of a registry's own words goes into a message, in characters.
const QUOTE_MAX: usize = 200;

/// How an error counts against a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// One attempt is used; another launch may succeed.
    Attempt,
    /// Nothing but another spec, Secret or registry setting changes the answer.
    Terminal,
    /// The host is unwell: ask again, no attempt is used.
    Wait {
        /// The earliest useful time to ask again, counted from now, where the registry or the breaker named one.
        after: Option<Duration>,
    },
}

/// An operation at a registry that did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The program's name for it.
    pub reason: Reason,
    /// How it counts.
    pub class: Class,
    /// One line, at most 256 characters, without secrets and URLs.
    pub message: String,
    status: Option<StatusCode>,
    cut: bool,
}

impl Error {
    /// An answer that broke off: asked for again, it may come whole.
    pub(super) fn cut(what: &str, received: usize, cause: &str) -> Self {
        let message = format!("{what}: cut off after {received} bytes ({cause})");
        Self {
            cut: true,
            ..Self::attempt(Reason::RegistryError, message)
        }
    }

    /// The same, of an answer that was asked for often enough.
    pub(super) fn whole(self) -> Self {
        Self { cut: false, ..self }
    }

    /// Whether the answer broke off.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    pub(super) fn attempt(reason: Reason, message: impl AsRef<str>) -> Self {
        Self::new(reason, Class::Attempt, message)
    }

    pub(super) fn terminal(reason: Reason, message: impl AsRef<str>) -> Self {
        Self::new(reason, Class::Terminal, message)
    }

    pub(super) fn wait(reason: Reason, after: Option<Duration>, message: impl AsRef<str>) -> Self {
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
            cut: false,
        }
    }

    /// The HTTP status it rests on, where it rests on one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status.map(|s| s.as_u16())
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }
}

/// The client could not be built.
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

/// A refusal as read off the wire: the status and what the body tells.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The error envelope's first code, where the body is one.
    code: Option<OciErrorCode>,
    /// Every message and detail of the envelope in lower case, for the few cases that only the text tells apart.
    words: String,
    quote: String,
}

impl Answer {
    /// Reads a refusal's body, which may be anything: JSON, HTML, nothing.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Self {
        Self::read_hiding(&[], status, body)
    }

    /// As [`Answer::read`]; these secrets are not quoted, should the registry say them back.
    pub(super) fn read_hiding(secrets: &[String], status: StatusCode, body: &[u8]) -> Self {
        let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) else {
            let words = String::from_utf8_lossy(body.get(..2048).unwrap_or(body)).to_lowercase();
            return Self {
                status,
                code: None,
                words,
                quote: String::new(),
            };
        };
        let mut words = String::new();
        for error in &envelope.errors {
            words.push_str(&error.message.to_lowercase());
            words.push(' ');
            words.push_str(&error.detail.to_string().to_lowercase());
            words.push(' ');
        }
        let first = envelope.errors.into_iter().next();
        let quote = first.as_ref().map_or_else(String::new, |error| {
            let code = one_line(&hiding(secrets, code_name(&error.code)), 40);
            let message = hiding(secrets, error.message.clone());
            if message.is_empty() {
                code
            } else {
                format!("{code}: {}", one_line(&message, QUOTE_MAX))
            }
        });
        Self {
            status,
            code: first.map(|e| e.code),
            words,
            quote,
        }
    }

    fn is(&self, code: &OciErrorCode) -> bool {
        self.code.as_ref() == Some(code)
    }

    /// Whether the registry's error has this code.
    pub(super) fn has_code(&self, code: &str) -> bool {
        self.code.as_ref().is_some_and(|own| code_name(own) == code)
    }

    fn is_other(&self, code: &str) -> bool {
        matches!(&self.code, Some(OciErrorCode::Other(other)) if other == code)
    }

    /// A 404 by which the registry itself says that the manifest or the repository is not there. A bare 404 (a proxy, a
    /// wrong path, a HEAD) does not say that.
    pub(super) fn says_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
            && (self.is(&OciErrorCode::ManifestUnknown)
                || self.is(&OciErrorCode::NameUnknown)
                || self.is_other("TAG_EXPIRED"))
    }

    /// A manifest refused because something it references is unknown there. Quay says so with `MANIFEST_INVALID` and a text
    /// alone ("Unknown blob", and others for a child manifest).
    pub(super) fn says_content_missing(&self) -> bool {
        let unknown = ["unknown", "could not find", "could not load", "not found"]
            .iter()
            .any(|words| self.words.contains(words));
        matches!(self.status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST)
            && (self.is(&OciErrorCode::ManifestBlobUnknown)
                || self.is(&OciErrorCode::ManifestUnknown)
                || self.is(&OciErrorCode::BlobUnknown)
                || (self.is(&OciErrorCode::ManifestInvalid) && unknown))
    }

    /// The registry holds the tag immutable (quay's codes).
    pub(super) fn says_immutable(&self) -> bool {
        self.status == StatusCode::CONFLICT
            && (self.is_other("TAG_IMMUTABLE") || self.is_other("TAG_ALREADY_EXISTS"))
    }

    /// A write refused because the whole registry is read-only: quay answers 405 `DENIED`, or Flask's "METHOD NOT ALLOWED".
    /// A disabled namespace answers 405 `DENIED` as well and is no maintenance.
    pub(super) fn says_read_only(&self) -> bool {
        let words = &self.words;
        self.status == StatusCode::METHOD_NOT_ALLOWED
            && !self.is(&OciErrorCode::Unsupported)
            && !(words.contains("namespace") && words.contains("disabled"))
            && (self.is(&OciErrorCode::Denied)
                || words.contains("method not allowed")
                || words.contains("readonly")
                || words.contains("read-only"))
    }

    /// An upload session that the registry no longer knows or cannot go on with: the blob starts anew.
    pub(super) fn says_session_lost(&self) -> bool {
        self.status == StatusCode::RANGE_NOT_SATISFIABLE
            || self.is(&OciErrorCode::BlobUploadUnknown)
            || self.is(&OciErrorCode::BlobUploadInvalid)
    }

    /// The class of this refusal. `what` names the object, `write` tells whether it was to be changed.
    pub(super) fn error(&self, what: &str, write: bool) -> Error {
        let said = if self.quote.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.quote)
        };
        let status = self.status.as_u16();
        let error = match status {
            401 => Error::terminal(
                Reason::Unauthorized,
                format!("{what}: the registry wants another credential{said}; renew it"),
            ),
            403 if self.words.contains("quota") => Error::terminal(
                Reason::QuotaExceeded,
                format!("{what}: the quota is used up{said}; raise it or remove tags"),
            ),
            403 => Error::terminal(
                Reason::PermissionDenied,
                format!("{what}: the credential lacks the right{said}; grant it"),
            ),
            404 if write && self.is(&OciErrorCode::NameUnknown) => Error::terminal(
                Reason::PermissionDenied,
                format!(
                    "{what}: the repository does not exist and the account may not create it; create it"
                ),
            ),
            400 | 404 if self.says_content_missing() && write => Error::attempt(
                Reason::ManifestRejected,
                format!("{what}: the registry misses content of this manifest{said}"),
            ),
            400 if self.is(&OciErrorCode::ManifestInvalid) => Error::attempt(
                Reason::ManifestRejected,
                format!("{what}: the registry refuses the manifest{said}"),
            ),
            400 if self.is(&OciErrorCode::DigestInvalid) || self.is(&OciErrorCode::SizeInvalid) => {
                Error::attempt(
                    Reason::DigestMismatch,
                    format!("{what}: the registry received other content than was named{said}"),
                )
            }
            400 if self.is(&OciErrorCode::NameInvalid) || self.is(&OciErrorCode::TagInvalid) => {
                Error::terminal(
                    Reason::InvalidSpec,
                    format!("{what}: the registry does not accept this name{said}; choose another"),
                )
            }
            408 | 500 | 502..=504 | 506..=599 => Error::wait(
                Reason::RegistryUnavailable,
                None,
                format!("{what}: the registry answered {status}"),
            ),
            405 if self.says_read_only() => Error::wait(
                Reason::RegistryReadOnly,
                None,
                format!("{what}: the registry is read-only{said}"),
            ),
            409 if self.says_immutable() => Error::terminal(
                Reason::TagImmutable,
                format!(
                    "{what}: the registry holds this tag immutable; lift that or choose another float"
                ),
            ),
            413 => Error::terminal(
                Reason::TooLarge,
                format!("{what}: too large for the registry{said}"),
            ),
            415 => Error::terminal(
                Reason::UnsupportedManifest,
                format!("{what}: the registry does not accept this media type{said}"),
            ),
            429 => Error::wait(
                Reason::RateLimited,
                None,
                format!("{what}: the registry limits the rate"),
            ),
            _ => Error::attempt(
                Reason::RegistryError,
                format!("{what}: the registry answered {status}{said}"),
            ),
        };
        error.with_status(self.status)
    }
}

/// The code as it stands on the wire.
fn code_name(code: &OciErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What a request showed, and what that was had with: no message may.
pub(super) fn secrets(authorization: Option<&HeaderValue>, credential: &Credential) -> Vec<String> {
    let mut secrets = Vec::new();
    if let Some((user, password)) = credential.secret() {
        let pair = format!("{user}:{password}");
        secrets.extend([STANDARD.encode(&pair), pair, password.to_owned()]);
    }
    let shown = authorization.and_then(|value| value.to_str().ok()?.split_once(' '));
    secrets.extend(shown.map(|(_, token)| token.to_owned()));
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

fn hiding(secrets: &[String], text: String) -> String {
    secrets
        .iter()
        .fold(text, |text, secret| text.replace(secret, "***"))
}

/// `text` on one line of at most `max` characters, without control characters and those that make a line look like another.
pub(super) fn one_line(text: &str, max: usize) -> String {
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
fn is_unseen(c: char) -> bool {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u16, code: &str, message: &str) -> Answer {
        let body =
            format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":{{}}}}]}}"#);
        Answer::read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn only_a_typed_404_says_absent() {
        for code in ["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "TAG_EXPIRED"] {
            assert!(answer(404, code, "").says_absent(), "{code}");
            assert!(!answer(400, code, "").says_absent(), "{code}");
        }
        assert!(!answer(404, "BLOB_UNKNOWN", "").says_absent());
        assert!(!Answer::read(StatusCode::NOT_FOUND, b"<html>404</html>").says_absent());
        assert!(!Answer::read(StatusCode::NOT_FOUND, b"").says_absent());
        assert!(!Answer::read(StatusCode::NOT_FOUND, br#"{"errors":[]}"#).says_absent());
    }

    #[test]
    fn quays_manifest_invalid_is_told_apart_by_its_text() {
        assert!(
            answer(
                400,
                "MANIFEST_INVALID",
                "manifest invalid: Unknown blob `x`"
            )
            .says_content_missing()
        );
        assert!(!answer(400, "MANIFEST_INVALID", "manifest invalid").says_content_missing());
        assert!(answer(404, "MANIFEST_BLOB_UNKNOWN", "").says_content_missing());
    }

    #[test]
    fn maintenance_is_told_from_a_disabled_namespace() {
        assert!(answer(405, "DENIED", "System is currently read-only").says_read_only());
        assert!(
            Answer::read(StatusCode::METHOD_NOT_ALLOWED, b"METHOD NOT ALLOWED").says_read_only()
        );
        assert!(!answer(405, "DENIED", "namespace 'x' has been disabled").says_read_only());
        assert!(!answer(405, "UNSUPPORTED", "unsupported").says_read_only());
        assert!(!answer(403, "DENIED", "read-only").says_read_only());
    }

    #[test]
    fn every_status_has_the_class_of_the_rules() {
        let wait = Class::Wait { after: None };
        for (status, code, message, reason, class) in [
            (
                401,
                "UNAUTHORIZED",
                "",
                Reason::Unauthorized,
                Class::Terminal,
            ),
            (403, "DENIED", "", Reason::PermissionDenied, Class::Terminal),
            (
                403,
                "DENIED",
                "Quota has been exceeded",
                Reason::QuotaExceeded,
                Class::Terminal,
            ),
            (
                404,
                "NAME_UNKNOWN",
                "",
                Reason::PermissionDenied,
                Class::Terminal,
            ),
            (
                400,
                "MANIFEST_INVALID",
                "x",
                Reason::ManifestRejected,
                Class::Attempt,
            ),
            (
                400,
                "DIGEST_INVALID",
                "",
                Reason::DigestMismatch,
                Class::Attempt,
            ),
            (405, "DENIED", "read-only", Reason::RegistryReadOnly, wait),
            (
                405,
                "UNSUPPORTED",
                "",
                Reason::RegistryError,
                Class::Attempt,
            ),
            (
                409,
                "TAG_IMMUTABLE",
                "",
                Reason::TagImmutable,
                Class::Terminal,
            ),
            (413, "", "", Reason::TooLarge, Class::Terminal),
            (415, "", "", Reason::UnsupportedManifest, Class::Terminal),
            (429, "", "", Reason::RateLimited, wait),
            (500, "", "", Reason::RegistryUnavailable, wait),
            (501, "", "", Reason::RegistryError, Class::Attempt),
            (502, "", "", Reason::RegistryUnavailable, wait),
            (408, "", "", Reason::RegistryUnavailable, wait),
            (418, "", "", Reason::RegistryError, Class::Attempt),
        ] {
            let error = answer(status, code, message).error("x", true);
            assert_eq!(
                (error.reason, error.class),
                (reason, class),
                "{status} {code} {message}"
            );
        }
    }

    #[test]
    fn a_message_is_one_short_line_whatever_the_registry_says() {
        let long = "a\\nb".repeat(300);
        let error = answer(418, "X", &long).error("quay.io/a:b", false);
        assert!(
            error.message.chars().count() <= MESSAGE_MAX,
            "{}",
            error.message
        );
        assert!(!error.message.contains('\n'));
        assert!(error.message.starts_with("quay.io/a:b"));
    }

    /// What must not show.
    const PASSWORD: &str = "s3cret-p4ss";

    fn is_plain(line: &str) -> bool {
        line.chars().count() <= MESSAGE_MAX && !line.chars().any(|c| c.is_control() || is_unseen(c))
    }

    proptest! {
        #[test]
        fn any_refusal_is_one_plain_line(status in 200_u16..600, body: Vec<u8>, write: bool) {
            let answer = Answer::read(StatusCode::from_u16(status).unwrap(), &body);
            let error = answer.error("quay.io/a:b", write);
            prop_assert!(is_plain(&error.message), "{:?}", error.message);
        }

        #[test]
        fn no_refusal_says_back_what_was_shown(
            status in 400_u16..600, code in "\\PC{0,50}", before in "\\PC{0,250}", basic: bool, write: bool,
        ) {
            let encoded = STANDARD.encode(format!("bot:{PASSWORD}"));
            let bot = Credential::new("bot".into(), PASSWORD.into(), "Secret a/b", "quay.io");
            let token = HeaderValue::from_static("Bearer s3cret-t0ken");
            let secrets = if basic { secrets(None, &bot) } else { secrets(Some(&token), &bot) };
            let said = if basic { PASSWORD } else { "s3cret-t0ken" };
            let message = format!("{before}{said} {encoded} bot:{PASSWORD}");
            let error = serde_json::json!({"code": format!("{code}{said}"), "message": message, "detail": message});
            let body = serde_json::json!({"errors": [error]}).to_string();
            let status = StatusCode::from_u16(status).unwrap();
            let error = Answer::read_hiding(&secrets, status, body.as_bytes()).error("quay.io/a:b", write);
            prop_assert!(is_plain(&error.message), "{:?}", error.message);
            // Also not by halves, where the line is cut.
            prop_assert!(!error.message.contains("s3cret"), "{:?}", error.message);
            prop_assert!(!error.message.contains(&encoded[..8]), "{:?}", error.message);
        }
    }

    #[test]
    fn a_refusal_of_any_depth_is_read() {
        for deep in [
            "[",
            "{\"errors\":",
            "{\"errors\":[{\"code\":\"X\",\"message\":\"\",\"detail\":[",
        ] {
            let error = Answer::read(StatusCode::IM_A_TEAPOT, deep.repeat(10_000).as_bytes());
            assert_eq!(
                error.error("x", false).message,
                "x: the registry answered 418"
            );
        }
    }
}
