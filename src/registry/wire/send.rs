//! The one way out. [`Transport::send_with_retry`] is the whole path of a request, from top to bottom: admit, gate, send, classify, settle.
//!
//! It waits out 429 in any form, read-only maintenance (405) and connections that cannot be made; for requests that are safe to repeat also
//! 5xx, 408, resets and timeouts. A write that is redirected (307, 308) within the registry's own address is sent again there, and the gate
//! is asked again.
//!
//! Guaranteed: a request that may have changed something is never repeated here; `egress` checks every address; no error shows a URL.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{Response, Url, Version};
use tokio::time::Instant;

use super::answer::{Answer, secrets};
use super::cause::{Broken, NoReply};
use super::classify::{
    Fate, Health, NoAnswer, Origin, Verdict, classify, classify_no_answer, needs_words, retry_after,
};
use super::dialect::RequestKind;
use super::egress::{EgressPolicy, REDIRECTS_MAX, SendError};
use super::reply::{Reply, read_refusal};
use super::request::{Failure, RegistryRequest};
use super::tokens::Tokens;
use crate::machine::Reason;
use crate::metrics::Scrape;
use crate::registry::endpoint::{Endpoints, address, has_address};
use crate::registry::error::{BuildError, Error, Meaning};
use crate::registry::host::admission::{Admission, Caller, Host, HostPermit};
use crate::registry::host::hosts::{Hosts, StreamPlaces};
use crate::registry::host::limits::{Limit, Limits, Protocol, Rates};
use crate::registry::host::progress::{Progress, WaitGuard, Waiting};
use crate::registry::host::reserve;
use crate::registry::settings::Settings;

/// The same bad answer so often from one URL, while the host serves others, is not the host's illness.
const BAD_ANSWERS_MAX: u32 = 20;
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

/// What one sending came to, with the error that says so.
enum Settled {
    Answered(Response),
    TryAgain(Error),
    OutcomeUnknown(Error),
    Refused(Error),
}

impl Transport {
    pub(crate) fn new(
        settings: Settings,
        backoff_first: Duration,
        backoff_max: Duration,
    ) -> Result<Self, BuildError> {
        let endpoints = Arc::new(Endpoints::new(&settings)?);
        let limits = Limits {
            rates: Rates {
                qps: settings.qps,
                qps_max: settings.qps_max,
            },
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

    /// After a pause of everything: those who wait do not all go at once.
    pub(crate) fn restart(&self) {
        self.hosts.restart();
    }

    /// The state of the host that `url` is at.
    pub(crate) fn host(&self, url: &Url) -> Arc<Host> {
        self.hosts.get(&address(url), None)
    }

    /// The state of the host that a request goes to. Only what is asked of a registry itself says anything of it: a request that
    /// another registry leads there does not.
    fn host_of(&self, request: &RegistryRequest<'_>) -> Arc<Host> {
        let registry = request.access.endpoint;
        if registry.is_at(&request.url) {
            return self.hosts.get(&registry.address, None);
        }
        let led_by = Some(registry.address.clone());
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

    /// Sends until there is an answer that is not waited out. `authorization` is what `request.access` came to; `gate` is asked
    /// directly before every sending, with no await between.
    pub(crate) async fn send_with_retry(
        &self,
        request: &mut RegistryRequest<'_>,
        authorization: Option<&HeaderValue>,
        mut gate: impl FnMut() -> bool + Send,
    ) -> Result<Reply, Failure> {
        let approved = self.egress.approve(request)?;
        let host = self.host_of(request);
        let caller = Caller::new(request.progress, request.access.credential);
        let kind = request.kind();
        let write = kind.is_write();
        // Who holds memory that others wait for waits for no host without end.
        let reserved = || request.progress.is_reserved().then_some(reserve::PATIENCE);
        let patience = request.patience.or_else(reserved);
        let deadline = patience.map(|patience| Instant::now() + patience);
        let before = host.served();
        let (mut bad, mut served, mut failures, mut moves) = (0, before, 0, 0);
        // Until there is another answer, the last is what is waited for.
        let mut shown = None;
        loop {
            // Admit: the host is available, and it is this request's turn.
            let admission = host
                .admit(request.lane.zone(), write, deadline, caller)
                .await
                .map_err(Failure::Restart)?;
            let mut permit = Box::pin(host.acquire(request.needs(), caller)).await;
            if admission.is_stale() {
                permit.refund();
                continue;
            }
            let http = request.build(authorization)?;
            // Gate: nothing is awaited from here to the sending.
            if !gate() {
                return Err(Failure::NotSent);
            }
            // Send. Boxed: every step of every operation holds this future.
            let sent = Instant::now();
            let result = Box::pin(self.egress.send(request, &approved, http)).await;
            let answer = result.as_ref().ok();
            if !matches!(result, Err(SendError::AddressForbidden { sent: false, .. })) {
                let status = answer.map(|answer| answer.status().as_u16());
                let (metrics, took) = (&self.settings.metrics, sent.elapsed());
                metrics.asked(&host.label, kind.sent(), status, took);
            }
            let protocol = answer.and_then(|answer| spoken(answer, &host));
            let from = (kind, protocol.is_some());
            // Classify: what it means for the request and for the host.
            let (outcome, health, message) = match result {
                Ok(response) => read(request, from, authorization, &host, response).await,
                Err(error) => unanswered(request, &host, error),
            };
            // Settle: the host's breakers and pacing are told.
            let told = (admission, protocol);
            settle(&host, request, &permit, told, health, message);
            let error = match outcome {
                Settled::Answered(response) => {
                    // What was sent as a stream has to be opened again by who sent it.
                    let again = !request.is_spent();
                    if again && let Some(next) = self.egress.moved(request, &response) {
                        moves += 1;
                        if moves > REDIRECTS_MAX {
                            let error = astray(request, "too many redirects");
                            return Err(error.with_status(response.status()).into());
                        }
                        request.url = next?;
                        continue;
                    }
                    request.progress.pay(permit.answered());
                    return Ok(Reply {
                        response,
                        kind,
                        elsewhere: protocol.is_none(),
                        authorization: authorization.cloned(),
                        credential: request.access.credential.clone(),
                        _permit: permit,
                    });
                }
                Settled::Refused(error) => return Err(error.into()),
                Settled::TryAgain(error) => {
                    self.settings.metrics.put_off(&host.label, error.reason);
                    (bad, served) = (0, host.served());
                    error
                }
                Settled::OutcomeUnknown(error) => {
                    self.settings.metrics.put_off(&host.label, error.reason);
                    if write {
                        return Err(Failure::OutcomeUnknown(error));
                    }
                    bad += 1;
                    let others = host.served() > served;
                    if bad >= BAD_ANSWERS_MAX && others {
                        let message = format!(
                            "{} (twenty times, while {} serves others)",
                            error.message, host.name
                        );
                        return Err(Error::attempt(Reason::RegistryError, message).into());
                    }
                    error
                }
            };
            drop(permit);
            failures += 1;
            let pause = self.rest((&host, before), request, write, failures, &error);
            let late = deadline.is_some_and(|deadline| Instant::now() + pause > deadline);
            if late || request.is_spent() {
                return Err(Failure::Restart(error));
            }
            // A host that is left alone says itself what it waits for.
            let next = (!pause.is_zero()).then(|| show(pause, &error, request.progress));
            drop(std::mem::replace(&mut shown, next));
            tokio::time::sleep(pause).await;
        }
    }

    /// How long a request pauses that was answered badly so often, at a host that had served `before` others when it came.
    fn rest(
        &self,
        (host, before): (&Host, u64),
        request: &RegistryRequest<'_>,
        write: bool,
        failures: u32,
        error: &Error,
    ) -> Duration {
        let caller = Caller::new(request.progress, request.access.credential);
        let zone = request.lane.zone();
        // A host that is left alone is waited for; but of one that serves others this must not be the one that probes each time.
        if host.is_backing_off_from(zone, write, caller) && host.served() == before {
            Duration::ZERO
        } else {
            // What was beyond the rate is paced at the lower one when it goes again; nothing else has to become well meanwhile.
            let limited = error.meaning() == Some(Meaning::Limited);
            let pause = self.backoff(failures) / (1 + u32::from(limited));
            pause.max(error.after().min(ELSEWHERE_MAX))
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
}

/// Classifies an answer, which is the host's `own` or of whoever it redirected to; what is said of the host, in words as well.
async fn read(
    request: &RegistryRequest<'_>,
    (kind, own): (RequestKind, bool),
    authorization: Option<&HeaderValue>,
    host: &Host,
    mut response: Response,
) -> (Settled, Health, String) {
    let status = response.status();
    let from = if kind == RequestKind::Referrers && is_astray(&response) {
        Origin::Page
    } else if !own {
        Origin::Redirect
    } else if request.access.endpoint.is_at(&request.url) {
        Origin::Registry
    } else {
        Origin::Led
    };
    let said = if needs_words(kind, from, status.as_u16()) {
        let secrets = secrets(authorization, request.access.credential);
        Some(Box::pin(read_refusal(&mut response, kind, &secrets)).await)
    } else {
        None
    };
    let headers = response.headers();
    let (code, words) = said
        .as_ref()
        .map_or(("", ""), |said| (said.code.as_str(), said.words.as_str()));
    let Verdict { fate, health } = classify(kind, from, status.as_u16(), headers, code, words);
    // Most often nothing has to be said of it.
    let answer = || said.unwrap_or_else(|| Answer::read(kind, status, b""));
    let outcome = match fate {
        // Of a host of this registry's, its breaker knows when to come back.
        Fate::TryAgain if from == Origin::Redirect => {
            let error = answer().error(request.what);
            Settled::TryAgain(error.asking_after(retry_after(headers)))
        }
        Fate::TryAgain => Settled::TryAgain(answer().error(request.what)),
        Fate::OutcomeUnknown => {
            let verb = format!("{}: {}", request.what, request.method);
            Settled::OutcomeUnknown(answer().error(&verb))
        }
        Fate::Refused => Settled::Refused(answer().error(request.what)),
        Fate::Answered => Settled::Answered(response),
    };
    let message = match health {
        Health::Serves => String::new(),
        _ => format!("{} answered {}", host.name, status.as_u16()),
    };
    (outcome, health, message)
}

/// Classifies a sending that had no answer.
fn unanswered(
    request: &RegistryRequest<'_>,
    host: &Host,
    error: SendError,
) -> (Settled, Health, String) {
    let (why, own, error, message) = match error {
        SendError::AddressForbidden { error, sent } => {
            (NoAnswer::Forbidden { sent }, false, error, String::new())
        }
        SendError::Astray(problem) => {
            let error = astray(request, problem);
            (NoAnswer::Useless, false, error, String::new())
        }
        SendError::Broken { error, at } => {
            let own = at == host.name;
            let (why, error, message) = unreachable(request, host, &error, &at);
            (why, own, error, message)
        }
    };
    let Verdict { fate, health } = classify_no_answer(why, own);
    let outcome = match fate {
        Fate::TryAgain => Settled::TryAgain(error),
        Fate::OutcomeUnknown => Settled::OutcomeUnknown(error),
        Fate::Refused | Fate::Answered => Settled::Refused(error),
    };
    (outcome, health, message)
}

/// Why the connection to `at` failed, for the request and for the host.
fn unreachable(
    request: &RegistryRequest<'_>,
    host: &Host,
    error: &NoReply,
    at: &str,
) -> (NoAnswer, Error, String) {
    let (what, cause) = (request.what, error.describe());
    let useless = |error| (NoAnswer::Useless, error, String::new());
    let why = match error.kind() {
        Broken::Untrusted => {
            let name = at.trim_end_matches(":443");
            // What was given is trusted to sign others, and the server shows that very one.
            let message = if cause.contains("CaUsedAsEndEntity") {
                format!(
                    "{at} shows a CA's certificate as its own, which is not trusted ({cause}): a self-signed one; \
                     have it made without CA:TRUE, or signed by a CA that is given with --registry-ca {name}=FILE"
                )
            } else {
                format!(
                    "the certificate of {at} is not trusted ({cause}); have its CA given with --registry-ca {name}=FILE"
                )
            };
            return useless(Error::terminal(Reason::CertificateUntrusted, message));
        }
        Broken::NotTls => {
            let message = format!(
                "{what}: {at} does not speak TLS; if it answers plain HTTP, give --plain-http {at}"
            );
            return useless(Error::attempt(Reason::RegistryError, message));
        }
        Broken::NotBuilt => {
            let message = format!("{what}: {cause}");
            return useless(Error::attempt(Reason::RegistryError, message));
        }
        Broken::NotConnected => NoAnswer::NotConnected,
        Broken::Otherwise => NoAnswer::Broken,
    };
    let message = if at == host.name {
        format!("{at} is not reachable ({cause})")
    } else {
        format!(
            "{at}, where {} redirects to, is not reachable ({cause})",
            host.name
        )
    };
    let error = format!("{what}: {message}");
    let error = Error::wait(Reason::RegistryUnavailable, None, error);
    (why, error, message)
}

/// What the host itself speaks.
fn spoken(response: &Response, host: &Host) -> Option<Protocol> {
    let own = has_address(response.url(), &host.name);
    own.then(|| match response.version() {
        Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http1,
    })
}

/// Tells the host's breakers and pacing.
fn settle(
    host: &Host,
    request: &RegistryRequest<'_>,
    permit: &HostPermit,
    (admission, protocol): (Admission, Option<Protocol>),
    health: Health,
    message: String,
) {
    let caller = Caller::new(request.progress, request.access.credential);
    let limit = Limit {
        zone: request.lane.zone(),
        protocol,
        apart: request.connection.is_apart(),
    };
    match health {
        Health::NotAsked => {}
        Health::Serves => host.serves(limit, caller, admission),
        Health::Limits { after } => host.limits(limit, caller, permit, &admission, after),
        Health::Unavailable { after, certain } => admission.unavailable(message, after, certain),
        Health::ReadOnly => host.read_only(admission),
    }
}

/// Whether a redirect of the referrers API led to something that is none.
pub(crate) fn is_astray(response: &Response) -> bool {
    !response.url().path().contains("/referrers/")
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

fn astray(request: &RegistryRequest<'_>, problem: &str) -> Error {
    let message = format!("{}: {problem}", request.what);
    Error::attempt(Reason::RegistryError, message)
}
