//! The one way out: every request to every host passes [`Transport::send`].
//!
//! In goes an [`RegistryRequest`]; out comes a [`Reply`] whose status the caller has to judge, or a [`Failure`]. What is waited out inside:
//! 429 in any form, read-only maintenance (405), connections that cannot be made, and, for requests that are safe to repeat,
//! 5xx, 408, resets and timeouts as well. A 401 is answered with what it asks for, or a fresh token, as long as there is one. A write
//! that is redirected (307, 308) within the registry's own address is sent again there, the gate being asked again.
//!
//! Guaranteed: a request that may have changed something is never repeated here; the registry's credentials and tokens go to
//! the registry's own address only; every address is checked before it is asked (`egress`); no URL gets into an error.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Request, Response, StatusCode, Url};
use tokio::time::Instant;

use super::authorize::Tokens;
use super::dialect::{Meaning, RequestKind};
use super::egress::{EgressPolicy, REDIRECTS_MAX, SendError};
use super::reply::{
    Reply, challenge_of, describe, is_plain, is_untrusted, read_refusal, retry_after,
};
use crate::machine::Reason;
use crate::metrics::Scrape;
use crate::registry::Settings;
use crate::registry::auth::access::{Access, Challenge, Grant};
use crate::registry::endpoint::{Endpoints, address};
use crate::registry::error::{Answer, BuildError, Error, secrets};
use crate::registry::host::budget::{
    Admission, Caller, Host, HostPermit, Hosts, Needs, StreamPlaces,
};
use crate::registry::host::limits::{Lane, Limits};
use crate::registry::host::progress::{Progress, WaitGuard, Waiting};
use crate::registry::host::reserve;
use crate::registry::ops::referrers::is_astray;

/// The same bad answer so often from one URL, while the host serves others, is not the host's illness.
const BAD_ANSWERS_MAX: u32 = 20;
/// How often one request is sent with another token or challenge: a guess, what it asks for, a token that is fresh, and again.
const ROUNDS_MAX: u32 = 4;
/// How long a stream's places are held while its hosts are unavailable: others need them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// The longest `Retry-After` of a redirect's target that is believed.
const ELSEWHERE_MAX: Duration = Duration::from_mins(1);
/// The longest pause between two bad answers to one request.
const BACKOFF_MAX: u32 = 16;

/// The clients and what they share.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) settings: Settings,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) tokens: Tokens,
    pub(crate) egress: EgressPolicy,
    hosts: Hosts,
    backoff_first: Duration,
}

/// What is sent with a request.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing; `Content-Length: 0` where the method has a body.
    Nothing,
    /// Bytes that can be sent again.
    Bytes(Bytes),
    /// A stream, which can be sent once.
    Once(Body),
    /// A stream that was sent.
    Spent,
}

/// One request.
pub(crate) struct RegistryRequest<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// How messages name the object: `quay.io/openshift/ci:tag`.
    pub(crate) what: &'a str,
    pub(crate) lane: Lane,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Content,
    /// Whose rights are used, on which registry; they are sent to its own address only.
    pub(crate) access: &'a Access<'a>,
    /// Total time of one try.
    pub(crate) timeout: Option<Duration>,
    /// How long a try may wait for the host in all; none: as long as it takes.
    pub(crate) patience: Option<Duration>,
    /// Whether it is a tag PUT: it goes before others and is paced afterwards, because it rests on a look that must
    /// not grow old, and has a connection of its own.
    pub(crate) prompt: bool,
    /// Whether the caller holds a place on that host already.
    pub(crate) placed: bool,
    pub(crate) progress: &'a Progress,
}

impl RegistryRequest<'_> {
    fn needs(&self) -> Needs {
        Needs {
            lane: self.lane,
            placed: self.placed,
            prompt: self.prompt,
        }
    }

    fn mounts(&self) -> bool {
        self.method == Method::POST && self.url.query_pairs().any(|(name, _)| name == "mount")
    }

    /// What it asks, by which its answer is read and it is counted.
    pub(crate) fn kind(&self) -> RequestKind {
        let reads = matches!(self.method, Method::GET | Method::HEAD);
        // `/v2/<name>/manifests/<reference>`, `/v2/<name>/referrers/<digest>`
        let mut parts = self.url.path().rsplit('/');
        let (last, above) = (parts.next().unwrap_or_default(), parts.next());
        match self.lane {
            Lane::Tokens if self.url.path() == "/v2/" => RequestKind::Ping,
            Lane::Tokens => RequestKind::Token,
            Lane::Blobs if reads => RequestKind::Blob,
            Lane::Blobs if self.mounts() => RequestKind::Mount,
            Lane::Blobs => RequestKind::Upload,
            Lane::Manifests if above == Some("referrers") => RequestKind::Referrers,
            Lane::Manifests if reads => RequestKind::Manifest,
            Lane::Manifests if last.contains(':') => RequestKind::Child,
            Lane::Manifests => RequestKind::Tag,
        }
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A definite no, or nothing was sent: nothing has changed.
    Refused(Error),
    /// The registry may or may not have done it: reset, timed out, 408, 5xx.
    OutcomeUnknown(Error),
    /// Nothing was accepted, and the content cannot be sent again from here, or patience ran out: start anew. Not a failure.
    Restart(Error),
    /// The caller's gate was closed.
    NotSent,
}

impl Failure {
    /// The error, for callers to which the difference is none.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) | Self::OutcomeUnknown(error) | Self::Restart(error) => error,
            Self::NotSent => Error::attempt(Reason::RegistryError, "the request was not sent"),
        }
    }
}

impl Transport {
    pub(crate) fn new(
        settings: Settings,
        backoff_first: Duration,
        backoff_max: Duration,
    ) -> Result<Self, BuildError> {
        let endpoints = Arc::new(Endpoints::new(&settings)?);
        let limits = Limits {
            qps: settings.qps,
            concurrency: settings.concurrency,
            backoff_first,
            backoff_max,
        };
        let listed = settings.allowed.iter().flatten();
        let listed = listed.filter_map(|pattern| pattern.exact().map(with_port));
        let named = endpoints.plain().chain(listed).collect();
        Ok(Self {
            egress: EgressPolicy::new(&settings, &endpoints)?,
            endpoints,
            tokens: Tokens::new(),
            hosts: Hosts::new(limits, settings.metrics.clone(), named),
            backoff_first,
            settings,
        })
    }

    /// Tells what each host is asked to bear now.
    pub(crate) fn publish(&self, scrape: &Scrape<'_>) {
        self.hosts.publish(scrape);
    }

    /// The state of the host that `url` is at.
    pub(crate) fn host(&self, url: &Url) -> Arc<Host> {
        self.hosts.get(&address(url), None)
    }

    /// The state of the host that a request goes to. Only what is asked of a registry itself says anything of it: a request that
    /// another registry leads there does not.
    fn host_of(&self, request: &RegistryRequest<'_>) -> Arc<Host> {
        let own = request.access.endpoint.is_at(&request.url);
        let led_by = (!own).then(|| address(&request.access.endpoint.base));
        self.hosts.get(&address(&request.url), led_by)
    }

    /// Places for a stream from one registry to another.
    pub(crate) async fn stream_places(
        &self,
        from: (&Host, Caller<'_>),
        to: (&Host, Caller<'_>),
    ) -> StreamPlaces {
        self.hosts.stream_places(from, to).await
    }

    /// What requests to the host that `url` is at wait for, while it is left alone.
    pub(crate) fn unavailable(&self, url: &Url) -> Option<Waiting> {
        self.hosts.unavailable(&address(url))
    }

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
        let (patience, progress) = (request.patience, request.progress);
        let guess = self.guess(access, patience, progress).await?;
        let guessed = self.answering(access, guess.clone(), None, patience, progress);
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
                let shown = self.answering(access, basic, None, patience, progress);
                grant = shown.await?;
                continue;
            }
            if reply.elsewhere || status != StatusCode::UNAUTHORIZED {
                return match in_vain {
                    // What a stranger is shown is no answer to one who has a credential.
                    Some(error) if safe => Err(Failure::Refused(error)),
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
                return Err(Failure::Refused(error));
            }
            in_vain = None;
            let answer = reply.answer().await;
            // A fresh token that was refused says no for good, unless it aged while the host was waited for.
            let fresh = !grant.is_token() || (grant.is_issued_since(began) && grant.is_young());
            let next = if fresh && asked == grant.challenge {
                None
            } else {
                let next = self.answering(access, asked, Some(&grant), patience, progress);
                Some(next.await?).filter(|next| next.header != grant.header)
            };
            let Some(next) = next else {
                let error = access.refused(&answer, &grant, insufficient);
                return Err(Failure::Refused(error));
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
        Err(Failure::Refused(access.unsteady()))
    }

    /// Sends until there is an answer that is not waited out. `authorization` is what `request.access` came to.
    pub(crate) async fn send_with_retry(
        &self,
        request: &mut RegistryRequest<'_>,
        authorization: Option<&HeaderValue>,
        mut gate: impl FnMut() -> bool + Send,
    ) -> Result<Reply, Failure> {
        let approved = self.egress.approve(request).map_err(Failure::Refused)?;
        let host = self.host_of(request);
        let caller = Caller::new(request.progress, request.access.credential);
        let safe = matches!(request.method, Method::GET | Method::HEAD);
        // Who holds memory that others wait for waits for no host without end.
        let reserved = || request.progress.is_reserved().then_some(reserve::PATIENCE);
        let patience = request.patience.or_else(reserved);
        let deadline = patience.map(|patience| Instant::now() + patience);
        let before = host.served();
        let (mut bad, mut served, mut failures, mut moves) = (0, before, 0, 0);
        // Until there is another answer, the last is what is waited for.
        let mut shown = None;
        loop {
            let admission = host
                .admit(!safe, deadline, caller)
                .await
                .map_err(Failure::Restart)?;
            let permit = Box::pin(host.acquire(request.needs(), caller)).await;
            if admission.is_stale() {
                permit.refund();
                continue;
            }
            let http = build(request, authorization)?;
            if !gate() {
                return Err(Failure::NotSent);
            }
            let sent = Instant::now();
            // Boxed: every step of every operation holds this future.
            let result = Box::pin(self.egress.send(request, &approved, http)).await;
            if !matches!(result, Err(SendError::AddressForbidden { sent: false, .. })) {
                let status = result.as_ref().ok().map(|answer| answer.status().as_u16());
                let (metrics, took) = (&self.settings.metrics, sent.elapsed());
                metrics.asked(&host.label, request.kind().sent(), status, took);
            }
            let verdict = self.classify(request, authorization, &host, &permit, admission, result);
            let verdict = verdict.await;
            if let Verdict::Again(error) | Verdict::OutcomeUnknown(error) = &verdict {
                self.settings.metrics.put_off(&host.label, error.reason);
            }
            let error = match verdict {
                Verdict::Reply(response) => {
                    // What was sent as a stream has to be opened again by who sent it.
                    let again = !matches!(request.content, Content::Spent);
                    if again && let Some(next) = self.egress.moved(request, &response) {
                        moves += 1;
                        if moves > REDIRECTS_MAX {
                            let error = astray(request, "too many redirects");
                            return Err(Failure::Refused(error.with_status(response.status())));
                        }
                        request.url = next.map_err(Failure::Refused)?;
                        continue;
                    }
                    let elsewhere = address(response.url()) != host.name;
                    return Ok(Reply {
                        response,
                        kind: request.kind(),
                        elsewhere,
                        authorization: authorization.cloned(),
                        credential: request.access.credential.clone(),
                        _permit: permit,
                    });
                }
                Verdict::Final(error) => return Err(Failure::Refused(error)),
                Verdict::Again(error) => {
                    (bad, served) = (0, host.served());
                    error
                }
                Verdict::OutcomeUnknown(error) if !safe => {
                    return Err(Failure::OutcomeUnknown(error));
                }
                Verdict::OutcomeUnknown(error) => {
                    bad += 1;
                    let others = host.served() > served;
                    if bad >= BAD_ANSWERS_MAX && others {
                        let message = format!(
                            "{} (twenty times, while {} serves others)",
                            error.message, host.name
                        );
                        return Err(Failure::Refused(Error::attempt(
                            Reason::RegistryError,
                            message,
                        )));
                    }
                    error
                }
            };
            drop(permit);
            failures += 1;
            // A host that is left alone is waited for; but of one that serves others this must not be the one that probes each time.
            let pause = if host.is_backing_off_from(!safe, caller) && host.served() == before {
                Duration::ZERO
            } else {
                self.backoff(failures).max(error.after().min(ELSEWHERE_MAX))
            };
            let late = deadline.is_some_and(|deadline| Instant::now() + pause > deadline);
            if late || matches!(request.content, Content::Spent) {
                return Err(Failure::Restart(error));
            }
            // A host that is left alone says itself what it waits for.
            let next = (!pause.is_zero()).then(|| show(pause, &error, request.progress));
            drop(std::mem::replace(&mut shown, next));
            tokio::time::sleep(pause).await;
        }
    }

    /// How long one request waits by itself after so many bad answers: longer with each, up to a bound, and never together with all
    /// others.
    pub(crate) fn backoff(&self, bad: u32) -> Duration {
        let longest = self.backoff_first * bad.min(BACKOFF_MAX);
        longest.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Pauses, and says why.
    pub(crate) async fn pause(&self, pause: Duration, error: &Error, progress: &Progress) {
        if pause.is_zero() {
            return;
        }
        let _shown = show(pause, error, progress);
        tokio::time::sleep(pause).await;
    }

    /// Reads an outcome, and tells the host's breakers and pacing.
    async fn classify(
        &self,
        request: &RegistryRequest<'_>,
        authorization: Option<&HeaderValue>,
        host: &Host,
        permit: &HostPermit,
        admission: Admission,
        result: Result<Response, SendError>,
    ) -> Verdict {
        let response = match result {
            Ok(response) => response,
            Err(error) => return failed(request, host, admission, error),
        };
        let status = response.status();
        let caller = Caller::new(request.progress, request.access.credential);
        let elsewhere = address(response.url()) != host.name;
        // A web page's limits and outages are no registry's.
        if request.kind() == RequestKind::Referrers && is_astray(&response) {
            host.serves(request.lane, caller, admission);
            return Verdict::Reply(response);
        }
        match status.as_u16() {
            // Whoever it was redirected to is no host of this registry's: this request waits, and nobody else.
            429 if elsewhere => {
                host.serves(request.lane, caller, admission);
                let error = Answer::read(request.kind(), status, b"").error(request.what);
                Verdict::Again(error.asking_after(retry_after(response.headers())))
            }
            429 => {
                let after = retry_after(response.headers());
                host.limits(request.lane, caller, permit, admission, after);
                Verdict::Again(Answer::read(request.kind(), status, b"").error(request.what))
            }
            408 | 500 | 502..=504 | 506..=599 => {
                if elsewhere {
                    host.serves(request.lane, caller, admission);
                } else {
                    let message = format!("{} answered {}", host.name, status.as_u16());
                    admission.unavailable(message, retry_after(response.headers()), false);
                }
                let verb = format!("{}: {}", request.what, request.method);
                Verdict::OutcomeUnknown(Answer::read(request.kind(), status, b"").error(&verb))
            }
            // What a storage does not do says nothing of maintenance.
            405 if !matches!(request.method, Method::GET | Method::HEAD)
                && request.access.endpoint.is_at(&request.url) =>
            {
                let secrets = secrets(authorization, request.access.credential);
                let answer = read_refusal(response, request.kind(), &secrets).await;
                let error = answer.error(request.what);
                if error.meaning() == Some(Meaning::ReadOnly) {
                    host.read_only(admission);
                    return Verdict::Again(error);
                }
                host.serves(request.lane, caller, admission);
                Verdict::Final(error)
            }
            _ => {
                host.serves(request.lane, caller, admission);
                Verdict::Reply(response)
            }
        }
    }
}

/// Says why there is a pause, until what is given back is dropped.
fn show(pause: Duration, error: &Error, progress: &Progress) -> WaitGuard {
    progress.wait(Waiting {
        reason: error.reason,
        message: error.message.clone(),
        until: (Instant::now() + pause).into_std(),
    })
}

/// `HOST:PORT` of a host as the configuration names it, where it is one of HTTPS.
fn with_port(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => host.to_owned(),
        _ => format!("{host}:443"),
    }
}

/// What became of one sending.
enum Verdict {
    Reply(Response),
    /// Not sent, or definitely refused for now: may be sent again.
    Again(Error),
    OutcomeUnknown(Error),
    Final(Error),
}

fn build(
    request: &mut RegistryRequest<'_>,
    authorization: Option<&HeaderValue>,
) -> Result<Request, Failure> {
    let mut http = Request::new(request.method.clone(), request.url.clone());
    http.headers_mut().extend(request.headers.clone());
    if let Some(value) = authorization {
        http.headers_mut().insert(AUTHORIZATION, value.clone());
    }
    *http.timeout_mut() = request.timeout;
    match std::mem::replace(&mut request.content, Content::Spent) {
        Content::Nothing => {
            if matches!(request.method, Method::POST | Method::PUT | Method::PATCH) {
                http.headers_mut()
                    .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            request.content = Content::Nothing;
        }
        Content::Bytes(bytes) => {
            *http.body_mut() = Some(bytes.clone().into());
            request.content = Content::Bytes(bytes);
        }
        Content::Once(body) => *http.body_mut() = Some(body),
        Content::Spent => {
            let message = format!("{}: the content was sent already", request.what);
            return Err(Failure::OutcomeUnknown(Error::attempt(
                Reason::RegistryError,
                message,
            )));
        }
    }
    Ok(http)
}

fn astray(request: &RegistryRequest<'_>, problem: &str) -> Error {
    Error::attempt(
        Reason::RegistryError,
        format!("{}: {problem}", request.what),
    )
}

/// Reads a sending that had no answer.
fn failed(
    request: &RegistryRequest<'_>,
    host: &Host,
    admission: Admission,
    error: SendError,
) -> Verdict {
    let caller = Caller::new(request.progress, request.access.credential);
    let (error, at) = match error {
        // Nothing was sent: that tells nothing about the host.
        SendError::AddressForbidden { error, sent: false } => return Verdict::Final(error),
        SendError::AddressForbidden { error, sent: true } => {
            host.serves(request.lane, caller, admission);
            return Verdict::Final(error);
        }
        SendError::Astray(problem) => {
            host.serves(request.lane, caller, admission);
            return Verdict::Final(astray(request, problem));
        }
        SendError::Broken { error, at } => (error, at),
    };
    if is_untrusted(&error) {
        host.serves(request.lane, caller, admission);
        let name = at.trim_end_matches(":443");
        let message = match describe(&error) {
            // What was given is trusted to sign others, and the server shows that very one.
            cause if cause.contains("CaUsedAsEndEntity") => format!(
                "{at} shows a CA's certificate as its own, which is not trusted ({cause}): a self-signed one; \
                 have it made without CA:TRUE, or signed by a CA that is given with --registry-ca {name}=FILE"
            ),
            cause => format!(
                "the certificate of {at} is not trusted ({cause}); have its CA given with --registry-ca {name}=FILE"
            ),
        };
        return Verdict::Final(Error::terminal(Reason::CertificateUntrusted, message));
    }
    if is_plain(&error) {
        host.serves(request.lane, caller, admission);
        let message = format!(
            "{}: {at} does not speak TLS; if it answers plain HTTP, give --plain-http {at}",
            request.what
        );
        return Verdict::Final(Error::attempt(Reason::RegistryError, message));
    }
    if error.is_builder() {
        host.serves(request.lane, caller, admission);
        let message = format!("{}: {}", request.what, describe(&error));
        return Verdict::Final(Error::attempt(Reason::RegistryError, message));
    }
    let cause = describe(&error);
    let message = if at == host.name {
        format!("{at} is not reachable ({cause})")
    } else {
        format!(
            "{at}, where {} redirects to, is not reachable ({cause})",
            host.name
        )
    };
    let cause = Error::wait(
        Reason::RegistryUnavailable,
        None,
        format!("{}: {message}", request.what),
    );
    // No connection: nothing was sent.
    let unsent = error.is_connect();
    if at == host.name {
        admission.unavailable(message, None, unsent);
    } else {
        // The registry itself has answered.
        host.serves(request.lane, caller, admission);
        return Verdict::Again(cause);
    }
    if unsent {
        Verdict::Again(cause)
    } else {
        Verdict::OutcomeUnknown(cause)
    }
}
