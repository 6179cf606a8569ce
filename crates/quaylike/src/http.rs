//! The way of a request: [`accept`], [`gate`], [`serve`], [`inject_faults`], [`dispatch`].
//!
//! It is logged, stops at a gate before the work, meets faults, is authorized and done; then faults change its answer, it stops at a
//! gate after the work, and is answered.
//!
//! In: requests of both listeners. Out: their answers. Each request is in the log before anything else happens to it, and its
//! entry is closed however it ends, even if the client disconnects in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Version};
use axum::response::Response;

use super::answers::{self, Refusal};
use super::auth::{Caller, Rejected};
use super::call::{Call, buffered, text};
use super::cuttable_listener::CutHandle;
use super::faults::Action;
use super::gate::Moment;
use super::log::{LoggedRequest, Phase};
use super::names::{self, RequestKind, Target};
use super::rate_limit::Client;
use super::settings::Dialect;
use super::state::RegistryState;
use super::{blobs, body_faults, control_api, manifests};

/// Closes the log entry of a request, however it ends.
struct LogGuard {
    registry: Arc<RegistryState>,
    entry: LoggedRequest,
    started: Instant,
    read: Arc<AtomicU64>,
}

/// The routes of the registry's own listener.
pub(super) fn routes(registry: Arc<RegistryState>) -> Router {
    Router::new().fallback(accept).with_state(registry)
}

/// The routes of the second listener: blobs to whoever has the address, as presigned object storage gives them.
pub(super) fn storage_routes(registry: Arc<RegistryState>) -> Router {
    Router::new().fallback(accept_storage).with_state(registry)
}

/// Both, for a registry without listeners.
pub(super) fn all_routes(registry: Arc<RegistryState>) -> Router {
    let storage = axum::routing::any(accept_storage);
    let storage = Router::new().route("/storage/{*blob}", storage);
    storage.with_state(registry.clone()).merge(routes(registry))
}

async fn accept(State(registry): State<Arc<RegistryState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if registry.control_api && parts.uri.path().starts_with("/_control/") {
        return control_api::answer(registry, parts, body).await;
    }
    let target = Target::parse(parts.uri.path());
    gate(registry, parts, body, target).await
}

async fn accept_storage(State(registry): State<Arc<RegistryState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = Target::of_storage(parts.uri.path());
    gate(registry, parts, body, target).await
}

/// Logs a request and serves it: in a task of its own where a gate may stop it.
async fn gate(registry: Arc<RegistryState>, parts: Parts, body: Body, target: Target) -> Response {
    let authorization = text(&parts.headers, &AUTHORIZATION);
    let caller = match target.kind {
        RequestKind::Token => registry.authority.applicant(authorization),
        RequestKind::Storage => Ok(Caller::anonymous()),
        _ => registry
            .authority
            .caller(&target.repository, authorization, Instant::now()),
    };
    let entry = registry.log.receive(arrival(&parts, target, &caller));
    let guard = LogGuard {
        registry: registry.clone(),
        entry,
        started: Instant::now(),
        read: Arc::default(),
    };
    if !registry.gates.any_matches(&guard.entry) {
        return serve(guard, parts, body, caller).await;
    }
    // A task of its own, so that a request parked at a gate outlives its client: only the gate decides its end.
    let body = buffered(&parts.headers, body).await;
    let parked = tokio::spawn(serve(guard, parts, body, caller));
    parked.await.unwrap_or_else(|_| answers::connection_cut())
}

/// The whole way of one request that is on the log.
async fn serve(
    guard: LogGuard,
    parts: Parts,
    body: Body,
    caller: Result<Caller, Rejected>,
) -> Response {
    let (registry, entry) = (guard.registry.clone(), guard.entry.clone());
    if !registry.passes(Moment::Before, &entry).await {
        return guard.cut();
    }
    let settings = registry.settings();
    if !settings.latency.is_zero() {
        tokio::time::sleep(settings.latency).await;
    }
    let actions: Arc<[Action]> = registry.faults.due(&entry).into();
    let call = Call {
        registry: registry.clone(),
        settings,
        client: client(&parts),
        method: parts.method,
        headers: parts.headers,
        entry: entry.clone(),
        caller,
        actions: actions.clone(),
        body: Some(body),
        read: guard.read.clone(),
    };
    let Some(response) = inject_faults(call).await else {
        return guard.cut();
    };
    let response = body_faults::apply(response, &actions);
    for action in actions.iter() {
        if let Action::Hang { ms } = action {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
        }
    }
    let through = registry.passes(Moment::After, &entry).await;
    if !through || actions.contains(&Action::LoseAnswer) {
        return guard.cut();
    }
    guard.answer(response)
}

/// What faults do before the work, and the work unless they replace it. None: the connection is to be cut.
async fn inject_faults(mut call: Call) -> Option<Response> {
    let actions = call.actions.clone();
    if !call.is_within_the_rate(Instant::now()) {
        call.drain().await;
        return Some(answers::page(StatusCode::TOO_MANY_REQUESTS));
    }
    for action in actions.iter() {
        match action {
            Action::Delay { ms } => {
                // With its body read, a connection that ends is noticed, and this is dropped.
                call.buffer_body().await;
                tokio::time::sleep(Duration::from_millis(*ms)).await;
            }
            Action::DropConnection => return None,
            Action::ReadOnly if !call.entry.is_write() => {}
            Action::LieMount if call.query("mount").is_none() => {}
            Action::RedirectWrite if call.query("moved").is_none() => {
                let (path, query) = (&call.entry.path, &call.entry.query);
                let mut response = answers::empty(StatusCode::TEMPORARY_REDIRECT);
                let location = format!("{path}?{query}&moved=1");
                answers::set(response.headers_mut(), LOCATION, &location);
                call.drain().await;
                return Some(response);
            }
            _ => {
                if let Some(response) = answers::injected(action) {
                    call.drain().await;
                    return Some(response);
                }
            }
        }
    }
    let hold = actions.iter().find_map(|action| match action {
        Action::HoldWrite { ms } => Some(ms.map(Duration::from_millis)),
        _ => None,
    });
    let Some(limit) = hold else {
        return Some(dispatch(call).await);
    };
    call.buffer_body().await;
    // A task of its own, so that the write lands even when its client has gone.
    let late = tokio::spawn(async move {
        let registry = call.registry.clone();
        tokio::select! {
            biased;
            () = registry.held.wait(limit) => Some(dispatch(call).await),
            () = registry.stop.cancelled() => None,
        }
    });
    late.await.ok().flatten()
}

/// Authorizes the request and does it.
async fn dispatch(mut call: Call) -> Response {
    let expired = call.actions.contains(&Action::TagExpired);
    let result = route(&mut call).await;
    // Otherwise the connection breaks while the client is still sending.
    call.drain().await;
    let mut response = result.unwrap_or_else(|refusal| {
        let refusal = if expired { refusal.expired() } else { refusal };
        let refusal = match (call.settings.dialect, call.entry.kind) {
            (Dialect::Harbor, RequestKind::Manifest) if !call.entry.is_write() => {
                refusal.not_found(&call.entry.repository, &call.entry.reference)
            }
            _ => refusal,
        };
        refusal.response()
    });
    let version = HeaderName::from_static("docker-distribution-api-version");
    response
        .headers_mut()
        .insert(version, HeaderValue::from_static("registry/2.0"));
    response
}

async fn route(call: &mut Call) -> Result<Response, Refusal> {
    match call.entry.kind {
        RequestKind::Ping => return Ok(call.ping()),
        RequestKind::Token => return call.token(),
        RequestKind::Storage => return blobs::read(call),
        RequestKind::Other => return Ok(answers::page(StatusCode::NOT_FOUND)),
        _ => {}
    }
    if !names::is_repository(&call.entry.repository) {
        let message = "repository name is invalid: use lower-case path components";
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            message,
        ));
    }
    call.authorize()?;
    let method = call.method.clone();
    match (call.entry.kind, &method) {
        (RequestKind::Manifest, &Method::GET | &Method::HEAD) => manifests::read(call),
        (RequestKind::Manifest, &Method::PUT) => manifests::write(call).await,
        (RequestKind::Manifest, &Method::DELETE) => manifests::delete(call),
        (RequestKind::Tags, &Method::GET) => manifests::list_tags(call),
        (RequestKind::Referrers, &Method::GET) => manifests::list_referrers(call),
        (RequestKind::Blob, &Method::GET | &Method::HEAD) => blobs::read(call),
        (RequestKind::Upload, _) => blobs::upload(call).await,
        _ => Err(Refusal::not_allowed()),
    }
}

/// Whose rate a request counts against.
fn client(parts: &Parts) -> Client {
    let connection = parts.extensions.get::<ConnectInfo<CutHandle>>();
    match connection {
        Some(ConnectInfo(connection)) if parts.version == Version::HTTP_2 => {
            Client::Connection(connection.id())
        }
        _ => Client::Address,
    }
}

// === impl LogGuard ===

impl LogGuard {
    fn answer(mut self, response: Response) -> Response {
        self.entry.status = Some(response.status().as_u16());
        if self.entry.method != "HEAD" {
            let length =
                text(response.headers(), &CONTENT_LENGTH).and_then(|length| length.parse().ok());
            self.entry.bytes_out = length.unwrap_or_default();
        }
        self.entry.phase = Phase::Answered;
        response
    }

    /// Ends the connection without a byte of an answer.
    fn cut(mut self) -> Response {
        self.entry.phase = Phase::Answered;
        answers::connection_cut()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if self.entry.phase == Phase::Received {
            self.entry.phase = Phase::Dropped;
        }
        self.entry.bytes_in = self.read.load(Ordering::Relaxed);
        self.entry.micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.registry.log.close(&self.entry);
    }
}

/// The log entry of a request that has just arrived.
fn arrival(parts: &Parts, target: Target, caller: &Result<Caller, Rejected>) -> LoggedRequest {
    let query = parts.uri.query().unwrap_or_default();
    let Target {
        kind,
        mut repository,
        mut reference,
    } = target;
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match (kind, key.as_ref()) {
            (RequestKind::Upload, "digest" | "mount") => reference = value.into_owned(),
            (RequestKind::Token, "scope") => {
                if repository.is_empty() {
                    value
                        .split(':')
                        .nth(1)
                        .unwrap_or_default()
                        .clone_into(&mut repository);
                }
                if !reference.is_empty() {
                    reference.push(' ');
                }
                reference.push_str(&value);
            }
            _ => {}
        }
    }
    LoggedRequest {
        seq: 0,
        time: jiff::Timestamp::now().as_millisecond(),
        micros: 0,
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: query.to_owned(),
        kind,
        repository,
        reference,
        credential: caller.as_ref().ok().and_then(|caller| caller.user.clone()),
        authorization: parts.headers.contains_key(AUTHORIZATION),
        status: None,
        bytes_in: 0,
        bytes_out: 0,
        phase: Phase::Received,
    }
}
