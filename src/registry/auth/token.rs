//! Tokens: read from a token endpoint's answer, with their lifetime and the rights they name, as far as these can be read.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::challenge::Challenge;
use crate::image::Repository;

/// The life of a token that names none (the specification's default).
const LIFE_DEFAULT: Duration = Duration::from_mins(1);
/// No token is kept longer.
const LIFE_MAX: Duration = Duration::from_hours(24);
/// The longest token that is kept and sent: servers take no longer header.
const TOKEN_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) issued: Instant,
    pub(crate) renew: Instant,
    pub(crate) rights: Option<Vec<Right>>,
    pub(crate) header: HeaderValue,
    /// Whether it was asked for more than what it is shown for.
    pub(crate) wide: bool,
}

/// One entry of a token's `access` claim.
#[derive(Debug, Deserialize)]
pub(crate) struct Right {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

/// What is sent with a request, and what is known about it.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// What it answers.
    pub(crate) challenge: Challenge,
    pub(crate) header: Option<HeaderValue>,
    pub(crate) token: Option<Arc<Token>>,
}

/// A token endpoint's answer, each field whatever it is: what cannot be read of it is as if it were not there.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Value>,
    access_token: Option<Value>,
    expires_in: Option<Value>,
}

/// What a token says of itself, as far as that can be read.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    exp: Option<Value>,
    iat: Option<Value>,
    access: Option<Value>,
}

impl Token {
    /// Of what it allows, what concerns these repositories: a token may claim any number of other things.
    pub(crate) fn narrowed<'a>(
        mut self,
        repositories: impl Iterator<Item = &'a Repository>,
    ) -> Self {
        self.rights = self.rights.map(|rights| {
            let narrowed = repositories.map(|repository| Right {
                r#type: "repository".into(),
                name: repository.path().into(),
                actions: ["pull", "push"]
                    .into_iter()
                    .filter(|action| may(&rights, repository, action))
                    .map(str::to_owned)
                    .collect(),
            });
            narrowed.collect()
        });
        self
    }
}

impl Grant {
    /// Nothing is shown.
    pub(crate) fn bare() -> Self {
        Self {
            challenge: Challenge::Open,
            header: None,
            token: None,
        }
    }

    pub(crate) fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    pub(crate) fn is_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether a token for less may be granted where this one is refused.
    pub(crate) fn is_wide(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.wide)
    }

    pub(crate) fn is_issued_since(&self, time: Instant) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| token.issued >= time)
    }

    /// Whether it is far from its end.
    pub(crate) fn is_young(&self) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| Instant::now() < token.renew)
    }

    /// Whether the token says what it allows.
    pub(crate) fn tells_rights(&self) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| token.rights.is_some())
    }

    /// Whether `repository` may be read with it; true where that cannot be known but by trying.
    pub(crate) fn may_pull(&self, repository: &Repository) -> bool {
        let rights = self.token.as_ref().and_then(|token| token.rights.as_ref());
        rights.is_none_or(|rights| may(rights, repository, "pull"))
    }

    pub(crate) fn is(&self, token: &Arc<Token>) -> bool {
        self.token
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, token))
    }
}

pub(crate) fn may(rights: &[Right], repository: &Repository, action: &str) -> bool {
    rights.iter().any(|right| {
        right.r#type == "repository"
            && right.name == repository.path()
            && right
                .actions
                .iter()
                .any(|allowed| allowed == action || allowed == "*")
    })
}

/// Reads a token endpoint's answer; none where it holds no token.
pub(crate) fn read_token(body: &[u8], issued: Instant, unix: u64) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let texts = [&answer.token, &answer.access_token].into_iter().flatten();
    let mut texts = texts.filter_map(Value::as_str);
    let text = texts.find(|token| {
        (1..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(|c| c.is_ascii_graphic())
    })?;
    let claims = claims(text);
    let told = |value: Option<Value>| value.as_ref().and_then(seconds);
    let stated = told(claims.exp).map(|exp| exp.saturating_sub(told(claims.iat).unwrap_or(unix)));
    let life = told(answer.expires_in)
        .or(stated)
        .map_or(LIFE_DEFAULT, Duration::from_secs)
        .min(LIFE_MAX);
    let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
    header.set_sensitive(true);
    Some(Token {
        issued,
        renew: issued + life * 4 / 5,
        rights: claims
            .access
            .and_then(|access| serde_json::from_value(access).ok()),
        header,
        wide: false,
    })
}

/// A number of seconds, however it is written; none where it is none, or negative.
fn seconds(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    // Too large a one is the largest.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (number >= 0.0).then_some(number as u64)
}

/// The claims of a JWT; nothing where the token is opaque.
fn claims(token: &str) -> Claims {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Claims::default();
    };
    let decoded = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
    decoded
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

/// The `Authorization` of user and password.
pub(crate) fn basic((user, password): (&str, &str)) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // Base64 is visible ASCII, which every header may hold.
    let mut header =
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

pub(crate) fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use may;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn read(body: &str) -> Token {
        read_token(body.as_bytes(), Instant::now(), 1000).unwrap()
    }

    fn life(token: &Token) -> u64 {
        (token.renew - token.issued).as_secs() * 5 / 4
    }

    #[test]
    fn a_tokens_life_is_what_the_answer_says_else_the_claim_else_a_minute() {
        let token = jwt(r#"{"exp":5000,"iat":2000}"#);
        assert_eq!(
            life(&read(&format!(r#"{{"token":"{token}","expires_in":100}}"#))),
            100
        );
        assert_eq!(life(&read(&format!(r#"{{"token":"{token}"}}"#))), 3000);
        assert_eq!(
            life(&read(&format!(
                r#"{{"token":"{}"}}"#,
                jwt(r#"{"exp":1500}"#)
            ))),
            500
        );
        assert_eq!(life(&read(r#"{"access_token":"opaque"}"#)), 60);
        for (life_of, seconds) in [
            ("\"300\"", 300),
            ("\" 300 \"", 300),
            ("300.5", 300),
            ("3e2", 300),
            ("\"300.5\"", 300),
            ("0", 0),
            ("1e300", 86_400),
            ("-1", 60),
            ("-0.5", 60),
            ("\"soon\"", 60),
            ("\"\"", 60),
            ("\"NaN\"", 60),
            ("null", 60),
            ("[300]", 60),
            ("{}", 60),
            ("true", 60),
        ] {
            let body = format!(r#"{{"token":"opaque","expires_in":{life_of}}}"#);
            assert_eq!(life(&read(&body)), seconds, "{life_of}");
        }
        let odd = jwt(r#"{"exp":1500.7,"iat":"1000","access":7}"#);
        let odd = read(&format!(r#"{{"token":"{odd}","expires_in":-1}}"#));
        assert_eq!(life(&odd), 500);
        assert!(odd.rights.is_none());
        for body in [
            r#"{"token":"","access_token":"t0k"}"#,
            r#"{"token":null,"access_token":"t0k"}"#,
            r#"{"token":{"a":1},"access_token":"t0k"}"#,
            r#"{"token":"t0k","access_token":""}"#,
            r#"{"token":"t0k","access_token":7,"refresh_token":[],"issued_at":0}"#,
        ] {
            assert_eq!(read(body).header, "Bearer t0k", "{body}");
        }
        assert!(read_token(b"{}", Instant::now(), 0).is_none());
        assert!(read_token(br#"{"token":""}"#, Instant::now(), 0).is_none());
    }

    #[test]
    fn rights_are_those_of_the_claim_and_unknown_where_there_is_none() {
        let claims = r#"{"access":[{"type":"repository","name":"a/b","actions":["pull"]}]}"#;
        let token = read(&format!(r#"{{"token":"{}"}}"#, jwt(claims)));
        let rights = token.rights.as_ref().unwrap();
        let (own, other) = ("x.io/a/b".parse().unwrap(), "x.io/a/c".parse().unwrap());
        assert!(may(rights, &own, "pull"));
        assert!(!may(rights, &own, "push"));
        assert!(!may(rights, &other, "pull"));
        assert!(read(r#"{"token":"a.b.c"}"#).rights.is_none());
    }

    #[test]
    fn a_token_never_shows() {
        let token = read(r#"{"token":"s3cret"}"#);
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn any_answer_is_a_token_that_ends_or_none(
            text in prop_oneof!["\\PC{0,40}", "[a-z\r\n\u{0}]{0,20}", "e30\\.[A-Za-z0-9_-]{0,60}\\.x"], expires: Option<i128>, exp: Option<u64>, iat: Option<u64>,
            noise: Vec<u8>, unix: u64,
        ) {
            let now = Instant::now();
            let claimed = jwt(&serde_json::json!({"exp": exp, "iat": iat}).to_string());
            for text in [&text, &claimed] {
                let expires = expires.map_or("null".to_owned(), |seconds| seconds.to_string());
                let body = format!(r#"{{"token":{},"expires_in":{expires}}}"#, serde_json::Value::from(text.as_str()));
                for body in [body.as_bytes(), &noise] {
                    if let Some(token) = read_token(body, now, unix) {
                        prop_assert!(token.renew >= now && token.renew <= now + LIFE_MAX);
                        prop_assert!(token.header.as_bytes().iter().all(|c| (b' '..=b'~').contains(c)));
                        let (shown, bearer) = (format!("{token:?}"), format!("Bearer {text}"));
                        prop_assert!(!shown.contains(&bearer), "{}", shown);
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_is_no_longer_than_a_header_may_be_and_keeps_of_its_claims_what_was_asked_for() {
        let long = |length: usize| {
            read_token(
                format!(r#"{{"token":"{}"}}"#, "a".repeat(length)).as_bytes(),
                Instant::now(),
                0,
            )
        };
        assert!(long(TOKEN_MAX).is_some());
        assert!(long(TOKEN_MAX + 1).is_none());
        let repository: Repository = "x.io/a/b".parse().unwrap();
        let right = |name: &str| {
            format!(r#"{{"type":"repository","name":"{name}","actions":["push","push","x"]}}"#)
        };
        let claims = format!(
            r#"{{"access":[{},{},{}]}}"#,
            right("a/c"),
            right("a/b"),
            right("a/b")
        );
        let rights = read(&format!(r#"{{"token":"{}"}}"#, jwt(&claims)))
            .narrowed(std::iter::once(&repository))
            .rights
            .unwrap();
        assert_eq!(rights.len(), 1);
        assert!(may(&rights, &repository, "push") && !may(&rights, &repository, "pull"));
    }
}
