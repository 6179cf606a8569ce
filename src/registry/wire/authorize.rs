//! Tokens: what is sent to show a right.
//!
//! In comes whose rights are used on which repository ([`Access`]), and what is to be answered; out comes a [`Grant`]: the
//! `Authorization` to send. What a registry will ask for is guessed: as its repository asked last, else as the registry itself did
//! (`GET /v2/`, or the first upload session that is asked for). Only the 401 of a request says what that request wants. Tokens are
//! kept by address, realm, service, credential and scopes, fetched by one at a time, and renewed at 80 % of their life.
//!
//! Guaranteed: what one credential was granted never serves another; a right that the token itself says is missing (quay and
//! distribution answer 200 with fewer actions) is an error before anything is sent; a token endpoint that is unavailable is waited
//! for and never reads as "unauthorized".

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use moka::policy::EvictionPolicy;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::dialect::Meaning;
use super::reply::{Reply, challenge_of};
use super::send::{Content, Failure, PATIENCE, RegistryRequest, Transport};
use crate::image::Repository;
use crate::machine::Reason;
use crate::registry::auth::access::{Access, Challenge, Grant, Token};
use crate::registry::auth::credential::CredentialKey;
use crate::registry::endpoint::{Endpoint, address};
use crate::registry::error::Error;
use crate::registry::host::limits::Lane;
use crate::registry::host::progress::{Progress, WaitGuard, Waiting};
use crate::registry::ops::get::CUTS_MAX;

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
/// Registries of which it is kept what they asked for.
const GREETINGS_MAX: u64 = 5_000;
/// Who waits for another task's work looks this often at what that one waits for.
const WORKER_LOOK: Duration = Duration::from_millis(500);
/// Repositories of which it is kept what they asked for.
const CHALLENGES_MAX: u64 = 10_000;

/// What registries asked for, and the tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// By address.
    greetings: moka::sync::Cache<String, Arc<Greeting>>,
    /// By repository, and whether it was to be written to.
    challenges: moka::sync::Cache<(Repository, bool), Challenge>,
    cells: moka::sync::Cache<TokenKey, Arc<Shared<Cell>>>,
}

/// What one task at a time has in work; the others are shown what that one waits for.
#[derive(Debug, Default)]
struct Shared<T> {
    inner: tokio::sync::Mutex<T>,
    worker: Mutex<Option<Progress>>,
}

/// What a registry asked for at the first of all requests.
#[derive(Debug, Default)]
struct Greeting {
    challenge: OnceLock<Challenge>,
    /// Held by the one that asks.
    ping: Shared<()>,
}

/// What became of a request that was to be the first to its registry.
#[derive(Debug)]
pub(crate) enum First {
    /// It was not the first, or told nothing.
    NotTried,
    LetIn(Box<Reply>),
    RequestKind(Challenge),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    address: String,
    realm: String,
    service: Option<String>,
    credential: CredentialKey,
    scopes: String,
}

#[derive(Debug, Default)]
struct Cell {
    token: Option<Arc<Token>>,
    /// The last refusal: who waited for it takes it, instead of asking again.
    refused: Option<(Instant, Error)>,
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

impl Tokens {
    pub(crate) fn new() -> Self {
        Self {
            greetings: kept(GREETINGS_MAX),
            challenges: kept(CHALLENGES_MAX),
            cells: kept(TOKENS_MAX),
        }
    }

    /// Remembers what a 401 asked for.
    pub(crate) fn learn(&self, access: &Access<'_>, challenge: &Challenge) {
        let key = (access.repository.clone(), access.push);
        if self.challenges.get(&key).as_ref() != Some(challenge) {
            self.challenges.insert(key, challenge.clone());
        }
    }

    /// What will be asked for, as far as that can be guessed.
    pub(crate) fn known(&self, access: &Access<'_>) -> Option<Challenge> {
        let key = (access.repository.clone(), access.push);
        let own = self.challenges.get(&key);
        own.or_else(|| self.greeting(access.endpoint).challenge.get().cloned())
    }

    fn greeting(&self, endpoint: &Endpoint) -> Arc<Greeting> {
        let address = address(&endpoint.base);
        self.greetings.get_with(address, Arc::default)
    }
}

/// A memory of so many, which forgets what nobody wanted for long.
fn kept<K, V>(most: u64) -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(most)
        .eviction_policy(EvictionPolicy::lru())
        .time_to_idle(IDLE_MAX)
        .build()
}

impl Transport {
    /// What to send for `access`, as far as it can be guessed what it will be asked for. A refusal is that of the guess.
    pub(crate) async fn authorise(
        &self,
        access: &Access<'_>,
        patience: Option<Duration>,
        progress: &Progress,
    ) -> Result<Grant, Failure> {
        let guess = self.guess(access, patience, progress).await?;
        self.answering(access, guess, None, patience, progress)
            .await
    }

    /// What to send to answer a challenge. `spent` is a grant that was refused and must not be given again.
    pub(crate) async fn answering(
        &self,
        access: &Access<'_>,
        challenge: Challenge,
        spent: Option<&Grant>,
        patience: Option<Duration>,
        progress: &Progress,
    ) -> Result<Grant, Failure> {
        let shown = || access.credential.secret().map(basic);
        let (realm, service) = match &challenge {
            // Absence has to be believed: who asks for nothing may still hide from strangers what is there.
            Challenge::Open if !access.push => return Ok(Grant::bare()),
            Challenge::Open | Challenge::Basic => {
                return Ok(Grant {
                    header: shown(),
                    challenge,
                    token: None,
                });
            }
            Challenge::Bearer { realm, service } => (realm, service.as_deref()),
        };
        let wanted = TokenRequest {
            access,
            realm,
            service,
            patience,
            progress,
        };
        let token = self.token(&wanted, spent).await?;
        if let Some(action) = access.lacking(token.rights.as_ref()) {
            let anonymous = access.credential.is_anonymous();
            let error = if anonymous {
                access.no_entry()
            } else {
                access.denied(action, None)
            };
            return Err(Failure::Refused(error));
        }
        Ok(Grant {
            challenge,
            header: Some(token.header.clone()),
            token: Some(token),
        })
    }

    /// What `access` will be asked for: as remembered, else as the one ping was.
    pub(crate) async fn guess(
        &self,
        access: &Access<'_>,
        patience: Option<Duration>,
        progress: &Progress,
    ) -> Result<Challenge, Failure> {
        let endpoint = access.endpoint;
        if let Some(challenge) = self.tokens.known(access) {
            return Ok(challenge);
        }
        let greeting = self.tokens.greeting(endpoint);
        let _ping = greeting.ping.lock(patience, endpoint, progress).await?;
        if let Some(challenge) = greeting.challenge.get() {
            return Ok(challenge.clone());
        }
        let what = format!("{}/v2/", endpoint.name);
        let mut request = self.plain_request(&what, endpoint.url(""), access, patience, progress);
        let reply = self.send_with_retry(&mut request, None, || true).await?;
        let asked = reply.status() == StatusCode::UNAUTHORIZED && !reply.elsewhere;
        let challenge = asked.then(|| challenge_of(reply.response.headers()));
        // Whatever else it answers, a repository of it may be asked.
        let challenge = challenge
            .flatten()
            .map_or(Challenge::Open, |(asked, _)| asked);
        Ok(greeting.challenge.get_or_init(|| challenge).clone())
    }

    /// Whether a registry says at `/v2/` that it takes an index without its children.
    pub(crate) async fn greets_sparse(
        &self,
        access: &Access<'_>,
        progress: &Progress,
    ) -> Result<bool, Failure> {
        let what = format!("{}/v2/", access.endpoint.name);
        let mut request =
            self.plain_request(&what, access.endpoint.url(""), access, None, progress);
        let reply = self.send_with_retry(&mut request, None, || true).await?;
        let says = reply.header("x-sparse-manifest-support");
        Ok(says.is_some_and(|says| says.eq_ignore_ascii_case("true")))
    }

    /// Sends `request` without a credential, where it is the first request to its registry: what it answers tells what a ping would.
    pub(crate) async fn try_first(
        &self,
        access: &Access<'_>,
        request: &mut RegistryRequest<'_>,
    ) -> Result<First, Failure> {
        let known = || self.tokens.known(access).is_some();
        if known() {
            return Ok(First::NotTried);
        }
        let greeting = self.tokens.greeting(access.endpoint);
        let _ping = greeting
            .ping
            .lock(request.patience, access.endpoint, request.progress)
            .await?;
        if known() {
            return Ok(First::NotTried);
        }
        let reply = self.send_with_retry(request, None, || true).await?;
        if reply.status().is_success() {
            greeting.challenge.get_or_init(|| Challenge::Open);
            return Ok(First::LetIn(Box::new(reply)));
        }
        if reply.status() == StatusCode::UNAUTHORIZED
            && let Some((challenge, _)) = challenge_of(reply.response.headers())
        {
            self.tokens.learn(access, &challenge);
            greeting.challenge.get_or_init(|| challenge.clone());
            return Ok(First::RequestKind(challenge));
        }
        Ok(First::NotTried)
    }

    async fn token(
        &self,
        wanted: &TokenRequest<'_>,
        spent: Option<&Grant>,
    ) -> Result<Arc<Token>, Failure> {
        let access = wanted.access;
        let key = TokenKey {
            address: address(&access.endpoint.base),
            realm: wanted.realm.to_owned(),
            service: wanted.service.map(str::to_owned),
            credential: access.credential.key(),
            scopes: access.scopes().join(" "),
        };
        let cell = self.tokens.cells.get_with(key, Arc::default);
        let asked = Instant::now();
        let mut cell = cell
            .lock(wanted.patience, access.endpoint, wanted.progress)
            .await?;
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
        let mut fetched = self.fetch_token(wanted).await;
        for _ in 1..CUTS_MAX {
            if matches!(&fetched, Err(Failure::Refused(error)) if error.is_cut()) {
                fetched = self.fetch_token(wanted).await;
            }
        }
        // Who asked for the token does not repeat that.
        let fetched = fetched.map_err(|failure| match failure {
            Failure::Refused(error) => Failure::Refused(error.without_retry()),
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

    async fn fetch_token(&self, wanted: &TokenRequest<'_>) -> Result<Token, Failure> {
        let access = wanted.access;
        let refuse = |error| Err(Failure::Refused(error));
        let url = match realm_url(access, wanted.realm, wanted.service) {
            Ok(url) => url,
            Err(error) => return refuse(error),
        };
        let at = address(&url);
        let what = format!("the token for {} at {at}", access.repository);
        let mut request = self.plain_request(&what, url, access, wanted.patience, wanted.progress);
        let authorization = access.credential.secret().map(basic);
        let reply = self
            .send_with_retry(&mut request, authorization.as_ref(), || true)
            .await?;
        let issued = Instant::now();
        if !reply.status().is_success() {
            if reply.elsewhere {
                return refuse(reply.refusal(&what).await);
            }
            let answer = reply.answer().await;
            return refuse(match answer.meaning() {
                Meaning::Unauthorized | Meaning::Denied if access.credential.is_anonymous() => {
                    access.no_entry()
                }
                Meaning::Unauthorized | Meaning::Denied => access.rejected(&answer),
                _ => answer.error(&what),
            });
        }
        let body = reply
            .body(&what, ANSWER_MAX)
            .await
            .map_err(Failure::Refused)?;
        let token = body.and_then(|body| read_token(&body, issued, now_unix()));
        token.map(|token| token.narrowed(access)).ok_or_else(|| {
            let message = format!("{what}: what is answered there holds no token");
            Failure::Refused(Error::attempt(Reason::RegistryError, message))
        })
    }

    fn plain_request<'a>(
        &self,
        what: &'a str,
        url: Url,
        access: &'a Access<'a>,
        patience: Option<Duration>,
        progress: &'a Progress,
    ) -> RegistryRequest<'a> {
        RegistryRequest {
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
            progress,
        }
    }
}

/// What a token is asked for with.
struct TokenRequest<'a> {
    access: &'a Access<'a>,
    realm: &'a str,
    service: Option<&'a str>,
    patience: Option<Duration>,
    progress: &'a Progress,
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

impl<T> Shared<T> {
    /// Waits for what another task has in work, but no longer than there is patience.
    async fn lock(
        &self,
        patience: Option<Duration>,
        endpoint: &Endpoint,
        progress: &Progress,
    ) -> Result<MutexGuard<'_, T>, Failure> {
        let deadline = patience.map(|patience| Instant::now() + patience.max(PATIENCE));
        let mut locked = std::pin::pin!(self.inner.lock());
        let mut shown: Option<(Waiting, WaitGuard)> = None;
        loop {
            let look = Instant::now() + WORKER_LOOK;
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            if let Ok(guard) = tokio::time::timeout_at(until, &mut locked).await {
                *self.worker() = Some(progress.clone());
                return Ok(guard);
            }
            let waits = self.worker().as_ref().and_then(Progress::waiting);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let (reason, message) = waits.map_or_else(
                    || {
                        let message = format!("a token of {} is being waited for", endpoint.name);
                        (Reason::RegistryUnavailable, message)
                    },
                    |waits| (waits.reason, waits.message),
                );
                return Err(Failure::Restart(Error::wait(reason, None, message)));
            }
            if shown.as_ref().map(|(known, _)| known) != waits.as_ref() {
                shown = waits.map(|waits| (waits.clone(), progress.wait(waits)));
            }
        }
    }

    fn worker(&self) -> std::sync::MutexGuard<'_, Option<Progress>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::registry::auth::access::may;

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
    fn however_many_registries_and_repositories_there_are_few_are_remembered() {
        let (tokens, none) = (Tokens::new(), crate::registry::Credential::anonymous());
        for n in 0..30_000 {
            let endpoint = Endpoint {
                name: format!("r{n}.io"),
                base: Url::parse(&format!("https://r{n}.io/")).unwrap(),
            };
            let repository = format!("r{n}.io/a/b").parse().unwrap();
            let access = Access::new(&endpoint, &none, &repository, true);
            let greeting = tokens.greeting(&endpoint);
            greeting.challenge.get_or_init(|| Challenge::Open);
            tokens.learn(&access, &Challenge::Basic);
            assert_eq!(tokens.known(&access), Some(Challenge::Basic));
        }
        tokens.greetings.run_pending_tasks();
        tokens.challenges.run_pending_tasks();
        assert!(tokens.greetings.entry_count() <= GREETINGS_MAX);
        assert!(tokens.challenges.entry_count() <= CHALLENGES_MAX);
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
            credential: &crate::registry::Credential::anonymous(),
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
