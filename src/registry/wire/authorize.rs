//! Authorization: sends each request with what its registry asks for.
//!
//! What a registry will ask for is guessed: what its repository asked for last, or the registry itself (`GET /v2/`, or the first upload
//! session that is opened). Only the 401 of a request says what that request needs; it is answered with that, or with a fresh token, as
//! long as there is one. Tokens are kept by address, realm, service, credential and scopes, fetched by one task at a time, and renewed at
//! 80 % of their life.
//!
//! Guaranteed: the registry's credentials and tokens go only to the registry's own address and its token realm; what one credential was
//! granted never serves another. If the token itself lacks a right (quay and distribution answer 200 with fewer actions), that is an error
//! before anything is sent. A token endpoint that is unavailable is waited for and never reads as "unauthorized".

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use tokio::time::Instant;

use super::reply::{CUTS_MAX, Reply};
use super::request::{Content, Failure, RegistryRequest};
use super::send::Transport;
use super::tokens::TokenKey;
use super::wide_token::WideKey;
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::challenge::{Challenge, challenge_of};
use crate::registry::auth::token::{Grant, Token, basic, now_unix, read_token};
use crate::registry::endpoint::address;
use crate::registry::error::{Error, Meaning};
use crate::registry::host::limits::Lane;
use crate::registry::host::progress::Progress;

/// How often one request is sent with another token or challenge: a guess, what it asks for, a token that is fresh, and again.
const ROUNDS_MAX: u32 = 4;
/// The most of a token endpoint's answer that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// What became of a request that was to be the first to its registry.
#[derive(Debug)]
pub(crate) enum First {
    /// It was not the first, or told nothing.
    NotTried,
    LetIn(Box<Reply>),
    Challenged(Challenge),
}

/// Whose rights are to be shown, how long that may take, and who is shown what it waits for.
#[derive(Clone, Copy)]
pub(crate) struct AuthContext<'a> {
    pub(crate) access: &'a Access<'a>,
    pub(crate) patience: Option<Duration>,
    pub(crate) progress: &'a Progress,
}

impl Transport {
    /// Sends with the rights of `request.access`.
    pub(crate) async fn send(&self, request: &mut RegistryRequest<'_>) -> Result<Reply, Failure> {
        self.send_gated(request, || true).await
    }

    /// As [`Transport::send`]; `gate` is asked directly before every sending, with no await between.
    pub(crate) async fn send_gated(
        &self,
        request: &mut RegistryRequest<'_>,
        mut gate: impl FnMut() -> bool + Send,
    ) -> Result<Reply, Failure> {
        let access = request.access;
        if !access.endpoint.is_at(&request.url) {
            return self.send_with_retry(request, None, gate).await;
        }
        let began = Instant::now();
        let safe = matches!(request.method, Method::GET | Method::HEAD);
        let context = AuthContext {
            access,
            patience: request.patience,
            progress: request.progress,
        };
        let guess = self.guess(context).await?;
        let guessed = self.grant(context, guess.clone(), None);
        let (mut grant, mut in_vain) = match guessed.await {
            // A guess: what this request itself is asked for, it is told without a credential.
            Err(Failure::Refused(error))
                if matches!(request.content, Content::Nothing) && !error.is_wait() =>
            {
                (Grant::bare(), Some(error))
            }
            grant => (grant?, None),
        };
        for _ in 0..ROUNDS_MAX {
            let reply = self
                .send_with_retry(request, grant.header(), &mut gate)
                .await?;
            let status = reply.status();
            // Some tell a stranger that it may not, or that nothing is there, and never ask who it is.
            let hidden = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
                && matches!(grant.challenge, Challenge::Open)
                && !reply.elsewhere
                && in_vain.is_none();
            if hidden && grant.header.is_none() && !access.credential.is_anonymous() {
                let basic = Challenge::Basic;
                self.tokens.learn(access, &basic);
                let shown = self.grant(context, basic, None);
                grant = shown.await?;
                continue;
            }
            if reply.elsewhere || status != StatusCode::UNAUTHORIZED {
                return match in_vain {
                    // What a stranger is shown is no answer to one who has a credential.
                    Some(error) if safe => Err(error.into()),
                    _ => Ok(reply),
                };
            }
            let told = challenge_of(reply.response.headers());
            if let Some((asked, _)) = &told {
                self.tokens.learn(access, asked);
            }
            let told_nothing = told.is_none();
            let (asked, insufficient) = told.unwrap_or((grant.challenge.clone(), false));
            if let Some(error) = in_vain.take_if(|_| told_nothing || asked == guess) {
                return Err(error.into());
            }
            in_vain = None;
            let answer = reply.answer().await;
            // A fresh token that was refused says no for good, unless it aged while the host was waited for.
            let fresh = !grant.is_token() || (grant.is_issued_since(began) && grant.is_young());
            let fresh = fresh && !grant.is_wide();
            let next = if fresh && asked == grant.challenge {
                None
            } else {
                let next = self.grant(context, asked, Some(&grant));
                Some(next.await?).filter(|next| next.header != grant.header)
            };
            let Some(next) = next else {
                let error = access.refused(answer.status, &answer.said(), &grant, insufficient);
                return Err(error.into());
            };
            if matches!(request.content, Content::Spent) {
                // The next try is given the other one.
                let message = format!("{}: the token was refused", request.what);
                return Err(Failure::OutcomeUnknown(Error::attempt(
                    Reason::RegistryError,
                    message,
                )));
            }
            grant = next;
        }
        Err(access.unsteady().into())
    }

    /// What to send for `access`, as far as it can be guessed what it will be asked for. A refusal is that of the guess.
    pub(crate) async fn authorize(
        &self,
        access: &Access<'_>,
        patience: Option<Duration>,
        progress: &Progress,
    ) -> Result<Grant, Failure> {
        let context = AuthContext {
            access,
            patience,
            progress,
        };
        let guess = self.guess(context).await?;
        self.grant(context, guess, None).await
    }

    /// What to send to answer a challenge. `spent` is a grant that was refused and must not be given again.
    pub(crate) async fn grant(
        &self,
        context: AuthContext<'_>,
        challenge: Challenge,
        spent: Option<&Grant>,
    ) -> Result<Grant, Failure> {
        let access = context.access;
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
            context,
            realm,
            service,
            scopes: access.scopes(),
        };
        let token = self.token(&wanted, spent).await?;
        if let Some(action) = access.lacking(token.rights.as_ref()) {
            if access.credential.is_anonymous() {
                return Err(access.no_entry().into());
            }
            return Err(access.denied(action, "").into());
        }
        Ok(Grant {
            challenge,
            header: Some(token.header.clone()),
            token: Some(token),
        })
    }

    /// What `access` will be asked for: as remembered, else as the one ping was.
    async fn guess(&self, context: AuthContext<'_>) -> Result<Challenge, Failure> {
        match self.tokens.known(context.access) {
            Some(challenge) => Ok(challenge),
            // Boxed, as all that a request seldom needs: a step is as large as what it may have to send.
            None => Box::pin(self.ping(context)).await,
        }
    }

    /// What a registry asks for, as its one ping is answered.
    async fn ping(&self, context: AuthContext<'_>) -> Result<Challenge, Failure> {
        let AuthContext {
            access,
            patience,
            progress,
        } = context;
        let endpoint = access.endpoint;
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
            return Ok(First::Challenged(challenge));
        }
        Ok(First::NotTried)
    }

    async fn token(
        &self,
        wanted: &TokenRequest<'_>,
        spent: Option<&Grant>,
    ) -> Result<Arc<Token>, Failure> {
        let AuthContext {
            access,
            patience,
            progress,
        } = wanted.context;
        let key = TokenKey {
            address: access.endpoint.address.clone(),
            realm: wanted.realm.to_owned(),
            service: wanted.service.map(str::to_owned),
            credential: access.credential.key(),
            scopes: wanted.scopes.join(" "),
        };
        if let Some(token) = self.wide_token(wanted, spent, &key).await? {
            return Ok(token);
        }
        let cell = self.tokens.cells.get_with(key, Arc::default);
        let asked = Instant::now();
        let mut cell = cell.lock(patience, access.endpoint, progress).await?;
        if let Some(token) = &cell.token
            && Instant::now() < token.renew
            && !spent.is_some_and(|spent| spent.is(token))
        {
            return Ok(Arc::clone(token));
        }
        if let Some((at, error)) = &cell.refused
            && *at >= asked
        {
            return Err(error.clone().into());
        }
        match Box::pin(self.fetch_whole_token(wanted)).await {
            Ok(token) => {
                let token = token.narrowed(access.repositories());
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

    /// The token for all that the request of `wanted` needs of this registry, where it stands for the one that is wanted.
    async fn wide_token(
        &self,
        wanted: &TokenRequest<'_>,
        spent: Option<&Grant>,
        key: &TokenKey,
    ) -> Result<Option<Arc<Token>>, Failure> {
        let AuthContext {
            access,
            patience,
            progress,
        } = wanted.context;
        let own = WideKey {
            flow: progress.flow(),
            address: key.address.clone(),
            credential: key.credential,
        };
        let Some(kept) = self.tokens.wide.get(&own) else {
            return Ok(None);
        };
        let wide = &kept.wanted;
        // A few tokens that others want too are asked for by themselves, once for all.
        let first = || self.tokens.first.get_with(key.clone(), || own.flow);
        let shared = wide.is_small() && first() != own.flow;
        if shared || !wide.covers(access) || spent.is_some_and(Grant::is_token) {
            if spent.is_some_and(Grant::is_wide) {
                wide.give_up();
            }
            return Ok(None);
        }
        let mut cell = kept.cell.lock(patience, access.endpoint, progress).await?;
        let known = cell.token.clone();
        let token = match known.filter(|token| Instant::now() < token.renew) {
            Some(token) => token,
            // Given up by who had the cell before.
            None if !wide.covers(access) => return Ok(None),
            None => {
                let scopes = wide.scopes();
                let wanted = TokenRequest { scopes, ..*wanted };
                match Box::pin(self.fetch_whole_token(&wanted)).await {
                    Ok(token) => {
                        let mut token = token.narrowed(wide.repositories());
                        token.wide = true;
                        Arc::clone(cell.token.insert(Arc::new(token)))
                    }
                    // Some refuse altogether where one scope is denied.
                    Err(Failure::Refused(_)) => {
                        wide.give_up();
                        return Ok(None);
                    }
                    Err(failure) => return Err(failure),
                }
            }
        };
        let lacks = access.lacking(token.rights.as_ref()).is_some();
        Ok((!lacks).then_some(token))
    }

    /// A token, asked for again where the answer breaks off.
    async fn fetch_whole_token(&self, wanted: &TokenRequest<'_>) -> Result<Token, Failure> {
        let mut fetched = self.fetch_token(wanted).await;
        for _ in 1..CUTS_MAX {
            if matches!(&fetched, Err(Failure::Refused(error)) if error.is_cut()) {
                fetched = self.fetch_token(wanted).await;
            }
        }
        // Who asked for the token does not repeat that.
        fetched.map_err(|failure| match failure {
            Failure::Refused(error) => Failure::Refused(error.without_retry()),
            failure => failure,
        })
    }

    async fn fetch_token(&self, wanted: &TokenRequest<'_>) -> Result<Token, Failure> {
        let AuthContext {
            access,
            patience,
            progress,
        } = wanted.context;
        let url = realm_url(wanted)?;
        let at = address(&url);
        let what = format!("the token for {} at {at}", access.repository);
        let mut request = self.plain_request(&what, url, access, patience, progress);
        let authorization = access.credential.secret().map(basic);
        let reply = self
            .send_with_retry(&mut request, authorization.as_ref(), || true)
            .await?;
        let issued = Instant::now();
        if !reply.status().is_success() {
            if reply.elsewhere {
                return Err(reply.refusal(&what).await.into());
            }
            let answer = reply.answer().await;
            let error = match answer.meaning() {
                Meaning::Unauthorized | Meaning::Denied if access.credential.is_anonymous() => {
                    access.no_entry()
                }
                Meaning::Unauthorized | Meaning::Denied => access.rejected(&answer.said()),
                _ => answer.error(&what),
            };
            return Err(error.into());
        }
        let body = reply.body(&what, ANSWER_MAX).await?;
        let token = body.and_then(|body| read_token(&body, issued, now_unix()));
        token.ok_or_else(|| {
            let message = format!("{what}: what is answered there holds no token");
            Error::attempt(Reason::RegistryError, message).into()
        })
    }

    /// A request for a token, or a ping.
    fn plain_request<'a>(
        &self,
        what: &'a str,
        url: Url,
        access: &'a Access<'a>,
        patience: Option<Duration>,
        progress: &'a Progress,
    ) -> RegistryRequest<'a> {
        RegistryRequest {
            timeout: Some(self.settings.request_timeout),
            patience,
            ..RegistryRequest::new(Method::GET, url, what, Lane::Tokens, access, progress)
        }
    }
}

/// What a token is asked for with.
struct TokenRequest<'a> {
    context: AuthContext<'a>,
    realm: &'a str,
    service: Option<&'a str>,
    scopes: Vec<String>,
}

/// The URL to ask for a token at, if it may be asked.
fn realm_url(wanted: &TokenRequest<'_>) -> Result<Url, Error> {
    let (access, realm) = (wanted.context.access, wanted.realm);
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
    if let Some(service) = wanted.service {
        query.append_pair("service", service);
    }
    for scope in &wanted.scopes {
        query.append_pair("scope", scope);
    }
    drop(query);
    Ok(url)
}
