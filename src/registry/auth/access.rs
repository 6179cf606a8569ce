//! Rights as data: whose they are, what a registry wants to see, and what a token says it allows.
//!
//! In comes the text of a challenge or the claims of a token; out come answers: is a right missing, is a refusal final, and what
//! is a person to do about it.

use std::sync::Arc;

use http_auth::parser::ChallengeParser;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

use super::credential::Credential;
use crate::image::Repository;
use crate::machine::Reason;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::{Answer, Error};

/// Whose rights are used, for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) credential: &'a Credential,
    pub(crate) repository: &'a Repository,
    /// Whether it is written to, or absence there is to be believed.
    pub(crate) push: bool,
    /// Another repository of the same registry that is read as well, if the credential may: for mounts.
    pub(crate) also: Option<&'a Repository>,
}

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

/// What is sent with a request, and what is known about it.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// What it answers.
    pub(crate) challenge: Challenge,
    pub(crate) header: Option<HeaderValue>,
    pub(crate) token: Option<Arc<Token>>,
}

#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) issued: Instant,
    pub(crate) renew: Instant,
    pub(crate) rights: Option<Vec<Right>>,
    pub(crate) header: HeaderValue,
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

impl<'a> Access<'a> {
    /// The rights of `credential` in one repository: to read it, or, with `push`, to write it and to have absence there believed.
    pub(crate) fn new(
        endpoint: &'a Endpoint,
        credential: &'a Credential,
        repository: &'a Repository,
        push: bool,
    ) -> Self {
        Self {
            endpoint,
            credential,
            repository,
            push,
            also: None,
        }
    }
}

impl Access<'_> {
    /// The scopes a token needs, one string each.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository.path())];
        scopes.extend(
            self.also
                .map(|also| format!("repository:{}:pull", also.path())),
        );
        scopes
    }

    /// Why a 401 with this grant is final.
    pub(crate) fn refused(&self, answer: &Answer, grant: &Grant, insufficient: bool) -> Error {
        if grant.header.is_none() && !self.credential.is_anonymous() {
            return self.unnamed().with_status(answer.status);
        }
        let lacks = insufficient
            || grant
                .token
                .as_ref()
                .is_some_and(|t| self.lacking(t.rights.as_ref()).is_some());
        let error = if self.credential.is_anonymous() {
            self.no_entry()
        } else if lacks {
            self.denied(if self.push { "push" } else { "pull" }, Some(answer))
        } else {
            self.rejected(answer)
        };
        error.with_status(answer.status)
    }

    /// The action this access needs and the token says is missing.
    pub(crate) fn lacking(&self, rights: Option<&Vec<Right>>) -> Option<&'static str> {
        let needed: &[&'static str] = if self.push {
            &["push", "pull"]
        } else {
            &["pull"]
        };
        let rights = rights?;
        needed
            .iter()
            .copied()
            .find(|action| !may(rights, self.repository, action))
    }

    /// The credential was shown, and is not accepted; the registry's words may say why.
    pub(crate) fn rejected(&self, answer: &Answer) -> Error {
        let (host, named, words) = (&self.endpoint.name, self.credential.named(), answer.said());
        Error::terminal(
            Reason::Unauthorized,
            format!("{host} rejected {named}; renew it{words}"),
        )
    }

    /// The credential is accepted and lacks a right. That may be because there is nothing to have a right on: a registry that gives
    /// fewer rights than were asked for does not say why.
    pub(crate) fn denied(&self, action: &str, answer: Option<&Answer>) -> Error {
        let (repository, named) = (self.repository, self.credential.named());
        let words = answer.map(Answer::said).unwrap_or_default();
        let remedy = if action == "push" {
            "grant it push there, unless the repository or its organization is missing or the registry is read-only"
        } else {
            "grant it pull there"
        };
        let message = format!("{named} may not {action} {repository}; {remedy}{words}");
        Error::terminal(Reason::PermissionDenied, message)
    }

    /// Nothing was shown, for it was not said what to show.
    fn unnamed(&self) -> Error {
        let repository = self.repository;
        let message =
            format!("{repository}: the registry asks for a credential and does not say which kind");
        Error::attempt(Reason::RegistryError, message)
    }

    /// It was shown what it asked for, and asked for something else, again and again.
    pub(crate) fn unsteady(&self) -> Error {
        let repository = self.repository;
        let message =
            format!("{repository}: the registry asks for another kind of credential each time");
        Error::attempt(Reason::RegistryError, message)
    }

    pub(crate) fn no_entry(&self) -> Error {
        let (repository, named) = (self.repository, self.credential.named());
        let message =
            format!("{repository} wants a credential and was asked as {named}; give one for it");
        Error::terminal(Reason::Unauthorized, message)
    }
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

impl Token {
    /// Of what it allows, what this access asks for: a token may claim any number of other things.
    pub(crate) fn narrowed(mut self, access: &Access<'_>) -> Self {
        self.rights = self.rights.map(|rights| {
            let repositories = std::iter::once(access.repository).chain(access.also);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

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
        fn what_is_quoted_reads_back(realm in "[ -~]{0,40}", service in "[ -~]{0,40}") {
            let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let text = format!("Bearer realm={},service={}", quoted(&realm), quoted(&service));
            let (challenge, _) = Challenge::parse(&text).unwrap();
            prop_assert_eq!(challenge, Challenge::Bearer { realm, service: Some(service) });
        }
    }

    #[test]
    fn a_challenge_as_long_as_headers_can_be_is_read_at_once() {
        let begun = std::time::Instant::now();
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
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }
}
