//! Refusals, as read off the wire: status, error envelope, or any body at all.
//!
//! The table of `dialect` makes an [`Error`] of them. Guaranteed: it has no secret, and at most 200 characters of the registry's own words.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use reqwest::header::HeaderValue;
use serde_json::Value;

use super::dialect::{RequestKind, meaning, words};
use crate::registry::auth::credential::Credential;
use crate::registry::error::{Error, Meaning, one_line};

/// How much of a registry's own words goes into a message, in characters.
const QUOTE_MAX: usize = 200;
/// How much of a page that is no envelope is read for its words.
const PAGE_MAX: usize = 2048;

/// A refusal as read off the wire: the status and what the body tells.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// What was asked.
    kind: RequestKind,
    /// The first code of the error envelope; empty where the body is none.
    pub(crate) code: String,
    /// What is said, as the table compares it.
    pub(crate) words: String,
    quote: String,
}

impl Answer {
    /// Reads a refusal's body, which may be anything: JSON, HTML, nothing.
    pub(crate) fn read(kind: RequestKind, status: StatusCode, body: &[u8]) -> Self {
        Self::read_hiding(&[], kind, status, body)
    }

    /// As [`Answer::read`]; these secrets are not quoted, should the registry say them back.
    pub(crate) fn read_hiding(
        secrets: &[String],
        kind: RequestKind,
        status: StatusCode,
        body: &[u8],
    ) -> Self {
        let errors = errors(body);
        let Some(first) = errors.first() else {
            let said = String::from_utf8_lossy(body.get(..PAGE_MAX).unwrap_or(body));
            return Self {
                status,
                kind,
                code: String::new(),
                words: words(&said),
                quote: String::new(),
            };
        };
        let said = errors
            .iter()
            .map(|e| format!("{} {} ", e.message, e.detail));
        let code = one_line(&hiding(secrets, first.code.clone()), 40);
        let parts = [first.message.as_str(), first.reason()];
        let mut quote = code;
        for part in parts {
            let part = hiding(secrets, part.to_owned());
            if !part.is_empty() && !quote.contains(&part) {
                quote = format!("{quote}: {part}");
            }
        }
        Self {
            status,
            kind,
            words: words(&said.collect::<String>()),
            quote: one_line(&quote, QUOTE_MAX),
            code: errors.into_iter().next().unwrap_or_default().code,
        }
    }

    /// What the table says that it means.
    pub(crate) fn meaning(&self) -> Meaning {
        meaning(self.kind, self.status.as_u16(), &self.code, &self.words)
    }

    /// Whether the registry's error has this code.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        self.code.eq_ignore_ascii_case(code)
    }

    /// A 404 by which the registry itself says that what was asked for, or its repository, is not there. A bare 404 (a proxy, a
    /// wrong path, a HEAD) does not say that.
    pub(crate) fn says_absent(&self) -> bool {
        self.meaning() == Meaning::Absent
    }

    /// The registry's own words, to stand behind a message; empty where it says nothing.
    pub(crate) fn said(&self) -> String {
        if self.quote.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.quote)
        }
    }

    /// The class of this refusal. `what` names the object.
    pub(crate) fn error(&self, what: &str) -> Error {
        let meaning = self.meaning();
        let (reason, class, text, remedy) = meaning.says();
        let said = self.said();
        let text = if text.is_empty() {
            format!("the registry answered {}", self.status.as_u16())
        } else {
            text.to_owned()
        };
        let error = Error::new(reason, class, format!("{what}: {text}{said}{remedy}"));
        error.with_status(self.status).with_meaning(meaning)
    }
}

/// One error of an envelope.
#[derive(Debug, Default)]
struct Said {
    code: String,
    message: String,
    detail: Value,
}

impl Said {
    /// Why, where it stands in the detail (quay), which may be that alone.
    fn reason(&self) -> &str {
        let detail = self.detail.get("message").unwrap_or(&self.detail);
        detail.as_str().unwrap_or_default()
    }
}

/// The errors of an envelope, as far as they can be read: none where it is none.
fn errors(body: &[u8]) -> Vec<Said> {
    let envelope: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(Value::Array(errors)) = envelope.get("errors") else {
        return Vec::new();
    };
    let text = |error: &Value, field: &str| match error.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let errors = errors.iter().filter(|error| error.is_object());
    let said = errors.map(|error| Said {
        code: text(error, "code"),
        message: text(error, "message"),
        detail: error.get("detail").cloned().unwrap_or_default(),
    });
    said.collect()
}

/// What a request showed, and what that was had with: no message may.
pub(crate) fn secrets(authorization: Option<&HeaderValue>, credential: &Credential) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::registry::error::{MESSAGE_MAX, is_unseen};

    fn read(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer::read(RequestKind::Manifest, status, body.as_bytes())
    }

    #[test]
    fn an_envelope_is_read_as_far_as_it_can_be() {
        for (body, shown) in [
            (
                r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid","detail":{"message":"Unknown blob `x`"}}]}"#,
                "(MANIFEST_INVALID: manifest invalid: Unknown blob `x`)",
            ),
            (
                r#"{"errors":[{"code":"X","message":"why","detail":"because"}]}"#,
                "(X: why: because)",
            ),
            (
                r#"{"errors":[{"code":"X","message":"why","detail":{"message":"why"}}]}"#,
                "(X: why)",
            ),
            (
                r#"{"errors":[{"code":"X","message":null,"detail":null},{"code":"Y"}]}"#,
                "(X)",
            ),
            (r#"{"errors":[{"code":7,"message":["y"]}]}"#, "(7)"),
            (r#"{"errors":[null,"x",{"code":"Z"}]}"#, "(Z)"),
            (r#"{"errors":null}"#, ""),
            (r#"{"errors":[]}"#, ""),
            (r#"[{"code":"X"}]"#, ""),
            ("<html>", ""),
        ] {
            let error = read(418, body).error("x");
            let wanted = format!("x: the registry answered 418 {shown}");
            assert_eq!(error.message, wanted.trim(), "{body}");
        }
        let envelope = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":null}}]}}"#);
        assert!(read(404, &envelope("MANIFEST_UNKNOWN")).says_absent());
        assert!(!read(404, &envelope("UNKNOWN")).says_absent());
        for bare in [
            "",
            "<html>404 manifest unknown</html>",
            r#"{"errors":[]}"#,
            r#"{"code":"MANIFEST_UNKNOWN"}"#,
        ] {
            assert!(!read(404, bare).says_absent(), "{bare}");
        }
    }

    #[test]
    fn a_message_is_one_short_line_whatever_the_registry_says() {
        let long = "a\\nb".repeat(300);
        let body = format!(r#"{{"errors":[{{"code":"X","message":"{long}"}}]}}"#);
        let error = read(418, &body).error("quay.io/a:b");
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
            let kind = if write { RequestKind::Tag } else { RequestKind::Manifest };
            let answer = Answer::read(kind, StatusCode::from_u16(status).unwrap(), &body);
            let error = answer.error("quay.io/a:b");
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
            let kind = if write { RequestKind::Upload } else { RequestKind::Token };
            let error = Answer::read_hiding(&secrets, kind, status, body.as_bytes()).error("quay.io/a:b");
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
            let error = read(418, &deep.repeat(10_000));
            assert_eq!(error.error("x").message, "x: the registry answered 418");
        }
    }
}
