//! Tokens: what is sent to show a right.
//!
//! In comes whose rights are used on which repository ([`Access`]); out comes a [`Grant`]: the `Authorization` to send. The
//! challenge of a registry is learnt once (`GET /v2/`, or the first upload session that is asked for) and again whenever a 401 names another one. Tokens are kept by address,
//! credential and scopes, fetched by one at a time, and renewed at 80 % of their life.
//!
//! Guaranteed: what one credential was granted never serves another; a right that the token itself says is missing (quay and
//! distribution answer 200 with fewer actions) is an error before anything is sent; a token endpoint that is unwell is waited
//! for and never reads as "unauthorized".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use moka::policy::EvictionPolicy;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::access::{Access, Challenge, Grant, Right, Token};
use super::activity::Activity;
use super::budget::Lane;
use super::credential::CredentialKey;
use super::endpoint::{Endpoint, address};
use super::error::Error;
use super::look::CUTS_MAX;
use super::reply::{Refusal, Reply, challenge_of};
use super::transport::{Ask, Content, Failure, PATIENCE, Transport};
use crate::machine::Reason;

/// The life of a token that names none (the specification's default).
const LIFE_DEFAULT: Duration = Duration::from_mins(1);
/// No token is kept longer.
const LIFE_MAX: Duration = Duration::from_hours(24);
/// The most of a token endpoint's answer that is read.
const ANSWER_MAX: usize = 64 * 1024;
/// One that nobody wanted for so long is not kept.
const IDLE_MAX: Duration = Duration::from_hours(1);
/// The longest token that is kept and sent: servers take no longer header.
const TOKEN_MAX: usize = 16 * 1024;
/// Tokens kept.
const TOKENS_MAX: u64 = 5_000;

/// What is known of the registries' challenges, and the tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    challenges: Mutex<HashMap<String, Arc<Learnt>>>,
    cells: moka::sync::Cache<TokenKey, Arc<tokio::sync::Mutex<Cell>>>,
}

#[derive(Debug, Default)]
struct Learnt {
    challenge: Mutex<Option<Challenge>>,
    /// Held by the one that pings.
    ping: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    address: String,
    credential: CredentialKey,
    scopes: String,
}

#[derive(Debug, Default)]
struct Cell {
    token: Option<Arc<Token>>,
    /// The last refusal: who waited for it takes it, instead of asking again.
    refused: Option<(Instant, Error)>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct Claims {
    exp: Option<u64>,
    iat: Option<u64>,
    access: Option<Vec<Right>>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        let cells = moka::sync::Cache::builder()
            .max_capacity(TOKENS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE_MAX)
            .build();
        Self {
            challenges: Mutex::new(HashMap::new()),
            cells,
        }
    }

    /// Remembers what a 401 told. Whether it was news.
    pub(super) fn learn(&self, endpoint: &Endpoint, challenge: &Challenge) -> bool {
        let learnt = self.learnt(endpoint);
        let mut known = learnt
            .challenge
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let news = known.as_ref() != Some(challenge);
        *known = Some(challenge.clone());
        news
    }

    /// The registry's challenge, as far as it is known.
    pub(super) fn known(&self, endpoint: &Endpoint) -> Option<Challenge> {
        self.learnt(endpoint).known()
    }

    fn learnt(&self, endpoint: &Endpoint) -> Arc<Learnt> {
        let mut challenges = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(challenges.entry(address(&endpoint.base)).or_default())
    }
}

impl Learnt {
    fn known(&self) -> Option<Challenge> {
        self.challenge
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Transport {
    /// What to send for `access`. `spent` is a grant that was refused and must not be given again.
    pub(super) async fn authorise(
        &self,
        access: &Access<'_>,
        spent: Option<&Grant>,
        patience: Option<Duration>,
        activity: &Activity,
    ) -> Result<Grant, Failure> {
        match self.challenge(access, patience, activity).await? {
            Challenge::Open => Ok(Grant::default()),
            Challenge::Basic => Ok(Grant {
                header: access.credential.secret().map(basic),
                token: None,
            }),
            Challenge::Bearer { realm, service } => {
                let ask = TokenAsk {
                    access,
                    realm: &realm,
                    service: service.as_deref(),
                    patience,
                    activity,
                };
                let token = self.token(&ask, spent).await?;
                if let Some(action) = access.lacking(token.rights.as_ref()) {
                    let anonymous = access.credential.is_anonymous();
                    let error = if anonymous {
                        access.no_entry()
                    } else {
                        access.denied(action)
                    };
                    return Err(Failure::Refused(error));
                }
                Ok(Grant {
                    header: Some(token.header.clone()),
                    token: Some(token),
                })
            }
        }
    }

    /// The registry's challenge: as remembered, else by the one ping.
    async fn challenge(
        &self,
        access: &Access<'_>,
        patience: Option<Duration>,
        activity: &Activity,
    ) -> Result<Challenge, Failure> {
        let endpoint = access.endpoint;
        let learnt = self.tokens.learnt(endpoint);
        if let Some(challenge) = learnt.known() {
            return Ok(challenge);
        }
        let _ping = within(patience, learnt.ping.lock(), endpoint).await?;
        if let Some(challenge) = learnt.known() {
            return Ok(challenge);
        }
        let what = format!("{}/v2/", endpoint.name);
        let mut ask = self.plain_ask(&what, endpoint.url(""), access, patience, activity);
        let reply = self.exchange(&mut ask, None, || true).await?;
        let status = reply.status();
        let challenge = if status.is_success() {
            Challenge::Open
        } else if status == StatusCode::UNAUTHORIZED && !reply.elsewhere {
            let Some((challenge, _)) = challenge_of(reply.response.headers()) else {
                let message = format!(
                    "{what}: the registry asks for a credential and does not say which kind"
                );
                return Err(Failure::Refused(Error::attempt(
                    Reason::RegistryError,
                    message,
                )));
            };
            challenge
        } else {
            let message = format!("{what}: answered {status}; is this a registry?");
            return Err(Failure::Refused(Error::attempt(
                Reason::RegistryError,
                message,
            )));
        };
        self.tokens.learn(endpoint, &challenge);
        Ok(challenge)
    }

    /// The first request to a registry, `ask`, without a credential: what it answers tells its challenge as a ping would. Its reply,
    /// where it was let in; nothing where the challenge is known already, or is now.
    pub(super) async fn try_first(
        &self,
        access: &Access<'_>,
        ask: &mut Ask<'_>,
    ) -> Result<Option<Reply>, Failure> {
        let learnt = self.tokens.learnt(access.endpoint);
        if learnt.known().is_some() {
            return Ok(None);
        }
        let _ping = within(ask.patience, learnt.ping.lock(), access.endpoint).await?;
        if learnt.known().is_some() {
            return Ok(None);
        }
        let reply = self.exchange(ask, None, || true).await?;
        if reply.status().is_success() {
            self.tokens.learn(access.endpoint, &Challenge::Open);
            return Ok(Some(reply));
        }
        if reply.status() == StatusCode::UNAUTHORIZED
            && let Some((challenge, _)) = challenge_of(reply.response.headers())
        {
            self.tokens.learn(access.endpoint, &challenge);
        }
        Ok(None)
    }

    async fn token(
        &self,
        ask: &TokenAsk<'_>,
        spent: Option<&Grant>,
    ) -> Result<Arc<Token>, Failure> {
        let access = ask.access;
        let key = TokenKey {
            address: address(&access.endpoint.base),
            credential: access.credential.key(),
            scopes: access.scopes().join(" "),
        };
        let cell = self.tokens.cells.get_with(key, Arc::default);
        let asked = Instant::now();
        let mut cell = within(ask.patience, cell.lock(), access.endpoint).await?;
        if let Some(token) = &cell.token
            && Instant::now() < token.renew
            && !spent.is_some_and(|spent| spent.is(token))
        {
            return Ok(Arc::clone(token));
        }
        if let Some((at, error)) = &cell.refused
            && *at >= asked
        {
            return Err(Failure::Refused(error.clone()));
        }
        let mut fetched = self.fetch_token(ask).await;
        for _ in 1..CUTS_MAX {
            if matches!(&fetched, Err(Failure::Refused(error)) if error.is_cut()) {
                fetched = self.fetch_token(ask).await;
            }
        }
        // Who asked for the token does not repeat that.
        let fetched = fetched.map_err(|failure| match failure {
            Failure::Refused(error) => Failure::Refused(error.whole()),
            failure => failure,
        });
        match fetched {
            Ok(token) => {
                let token = Arc::new(token);
                cell.token = Some(Arc::clone(&token));
                cell.refused = None;
                Ok(token)
            }
            Err(failure) => {
                if let Failure::Refused(error) = &failure {
                    cell.refused = Some((Instant::now(), error.clone()));
                }
                Err(failure)
            }
        }
    }

    async fn fetch_token(&self, ask: &TokenAsk<'_>) -> Result<Token, Failure> {
        let access = ask.access;
        let refuse = |error| Err(Failure::Refused(error));
        let url = match realm_url(access, ask.realm, ask.service) {
            Ok(url) => url,
            Err(error) => return refuse(error),
        };
        let what = format!("the token for {}", access.repository);
        let mut request = self.plain_ask(&what, url, access, ask.patience, ask.activity);
        let authorization = access.credential.secret().map(basic);
        let reply = self
            .exchange(&mut request, authorization.as_ref(), || true)
            .await?;
        let issued = Instant::now();
        match reply.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                if access.credential.is_anonymous() =>
            {
                return refuse(access.no_entry());
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return refuse(access.rejected()),
            _ => return refuse(reply.refusal(&what, Refusal::OfRead).await),
        }
        let body = reply
            .body(&what, ANSWER_MAX)
            .await
            .map_err(Failure::Refused)?;
        let token = body.and_then(|body| read_token(&body, issued, now_unix()));
        token.map(|token| token.narrowed(access)).ok_or_else(|| {
            let message = format!("{what}: the token endpoint answered something that is no token");
            Failure::Refused(Error::attempt(Reason::RegistryError, message))
        })
    }

    fn plain_ask<'a>(
        &self,
        what: &'a str,
        url: Url,
        access: &'a Access<'a>,
        patience: Option<Duration>,
        activity: &'a Activity,
    ) -> Ask<'a> {
        Ask {
            method: Method::GET,
            url,
            what,
            lane: Lane::Tokens,
            headers: HeaderMap::new(),
            content: Content::Nothing,
            access,
            timeout: Some(self.settings.request_timeout),
            patience,
            prompt: false,
            placed: false,
            activity,
        }
    }
}

/// What a token is asked for with.
struct TokenAsk<'a> {
    access: &'a Access<'a>,
    realm: &'a str,
    service: Option<&'a str>,
    patience: Option<Duration>,
    activity: &'a Activity,
}

/// The URL to ask for a token at, if it may be asked.
fn realm_url(access: &Access<'_>, realm: &str, service: Option<&str>) -> Result<Url, Error> {
    let host = &access.endpoint.name;
    let Ok(mut url) = Url::parse(realm) else {
        let message = format!("{host} names a token realm that is no URL");
        return Err(Error::attempt(Reason::RegistryError, message));
    };
    let other = address(&url);
    if !access.endpoint.may_ask(&url) {
        let message = format!("{host} names a token realm without TLS ({other}); not asked");
        return Err(Error::terminal(Reason::NotAllowed, message));
    }
    if !access.credential.is_anonymous() && !access.endpoint.trusts(&url) {
        let message =
            format!("{host} wants its credential sent to {other}, which is not its own; not sent");
        return Err(Error::terminal(Reason::NotAllowed, message));
    }
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    for scope in access.scopes() {
        query.append_pair("scope", &scope);
    }
    drop(query);
    Ok(url)
}

/// Reads a token endpoint's answer; none where it holds no token.
fn read_token(body: &[u8], issued: Instant, unix: u64) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let text = answer
        .token
        .or(answer.access_token)
        .filter(|token| (1..=TOKEN_MAX).contains(&token.len()))
        .filter(|token| token.bytes().all(|c| c.is_ascii_graphic()))?;
    let claims = claims(&text);
    let stated = claims
        .exp
        .map(|exp| exp.saturating_sub(claims.iat.unwrap_or(unix)));
    let life = answer
        .expires_in
        .or(stated)
        .map_or(LIFE_DEFAULT, Duration::from_secs)
        .min(LIFE_MAX);
    let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
    header.set_sensitive(true);
    Some(Token {
        issued,
        renew: issued + life * 4 / 5,
        rights: claims.access,
        header,
    })
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
fn basic((user, password): (&str, &str)) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // Base64 is visible ASCII, which every header may hold.
    let mut header =
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Waits for a lock that another task holds while it asks, but no longer than there is patience.
async fn within<T>(
    patience: Option<Duration>,
    lock: impl Future<Output = T>,
    endpoint: &Endpoint,
) -> Result<T, Failure> {
    let Some(patience) = patience else {
        return Ok(lock.await);
    };
    tokio::time::timeout(patience.max(PATIENCE), lock)
        .await
        .map_err(|_| {
            let message = format!("a token of {} is being waited for", endpoint.name);
            Failure::Restart(Error::wait(Reason::RegistryUnavailable, None, message))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::access::may;
    use super::*;

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
        let endpoint = Endpoint {
            name: "x.io".into(),
            base: Url::parse("https://x.io/").unwrap(),
        };
        let repository = "x.io/a/b".parse().unwrap();
        let access = Access {
            endpoint: &endpoint,
            credential: &super::super::Credential::anonymous(),
            repository: &repository,
            push: true,
            also: None,
        };
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
            .narrowed(&access)
            .rights
            .unwrap();
        assert_eq!(rights.len(), 1);
        assert!(may(&rights, &repository, "push") && !may(&rights, &repository, "pull"));
    }
}
