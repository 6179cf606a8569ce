//! Challenges: what a registry asks for in `WWW-Authenticate`.
//!
//! Parses the header and picks the best challenge that can be met; says whether the registry reports a missing right.

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants to see. Two that differ in their scope alone are one: the scopes are those of the access.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Challenge {
    /// Nothing.
    Open,
    /// User and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of a `WWW-Authenticate` value, and whether it says that a right is missing.
    pub(crate) fn parse(value: &str) -> Option<(Self, bool)> {
        let mut best = None;
        for challenge in ChallengeParser::new(value) {
            let challenge = challenge.ok()?;
            let param = |name: &str| {
                let found = challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            let parsed = if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let insufficient =
                    param("error").is_some_and(|error| error == "insufficient_scope");
                let Some(realm) = param("realm") else {
                    continue;
                };
                let service = param("service");
                (Self::Bearer { realm, service }, insufficient)
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                (Self::Basic, false)
            } else {
                continue;
            };
            best = best.max(Some(parsed));
        }
        best
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn challenges_are_read_whatever_their_order() {
        let bearer =
            r#"Bearer realm="https://quay.io/v2/auth",service="quay.io",scope="repository:a:pull""#;
        let (challenge, insufficient) = Challenge::parse(bearer).unwrap();
        let wanted = Challenge::Bearer {
            realm: "https://quay.io/v2/auth".into(),
            service: Some("quay.io".into()),
        };
        assert_eq!((challenge, insufficient), (wanted.clone(), false));
        assert_eq!(
            Challenge::parse(&format!("Basic realm=\"x\", {bearer}"))
                .unwrap()
                .0,
            wanted
        );
        assert!(
            Challenge::parse(&format!("{bearer},error=\"insufficient_scope\""))
                .unwrap()
                .1
        );
        assert_eq!(
            Challenge::parse("basic realm=x").unwrap().0,
            Challenge::Basic
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(
            Challenge::parse("Bearer service=\"x\", Basic realm=\"x\"")
                .unwrap()
                .0,
            Challenge::Basic
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_challenge_or_none(text in "\\PC{0,120}|(Bearer|Basic|,| |=|\"|\\\\|realm|service|error|x){0,20}") {
            let _ = Challenge::parse(&text);
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

        #[test]
        fn what_is_quoted_reads_back(realm in "[ -~]{0,40}", service in "[ -~]{0,40}") {
            let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let text = format!("Bearer realm={},service={}", quoted(&realm), quoted(&service));
            let (challenge, _) = Challenge::parse(&text).unwrap();
            prop_assert_eq!(challenge, Challenge::Bearer { realm, service: Some(service) });
        }
    }

    #[test]
    fn a_challenge_as_long_as_headers_can_be_is_read_at_once() {
        crate::cost::is_cheap(|| {
            for part in [
                "a=b,",
                "Bearer ",
                "Bearer realm=\"x\", ",
                "\"",
                "\\\"",
                ",",
                " ",
            ] {
                let _ = Challenge::parse(&part.repeat(400_000 / part.len()));
            }
        });
    }
}
