//! The way of a request: log, gate, latency, faults, work, faults again, gate, answer.
//!
//! In: requests of both listeners. Out: their answers. Each request is in the log before anything else happens to it, and its
//! entry is closed however it ends, also when the client goes away in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::answers::{self, Refusal};
use super::auth::{Authority, Caller, Rejected};
use super::call::{Call, gathered, text};
use super::content::Blob;
use super::faults::{Action, Faults};
use super::gate::{Gates, Held, Moment};
use super::log::{Entry, Log, Phase};
use super::manifest::Manifest;
use super::names::{self, Kind, Target};
use super::recall::{Bucket, Recall};
use super::settings::{Dialect, Options, Settings};
use super::store::Store;
use super::uploads::Uploads;
use super::wire::Line;
use super::{blobs, control, manifests, strike};

/// The running registry.
#[derive(Debug)]
pub(super) struct Registry {
    store: Mutex<Store>,
    settings: RwLock<Settings>,
    pub(super) uploads: Uploads,
    pub(super) authority: Authority,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) gates: Arc<Gates>,
    pub(super) held: Held,
    /// Answers by digest that outlive what they told.
    pub(super) manifests: Recall<Arc<Manifest>>,
    pub(super) blobs: Recall<Blob>,
    bucket: Bucket,
    pub(super) stop: CancellationToken,
    /// Base URL of the second listener.
    pub(super) storage: String,
    control: bool,
}

/// Closes the log entry of a request, whatever becomes of it.
struct Ticket {
    registry: Arc<Registry>,
    entry: Entry,
    started: Instant,
    read: Arc<AtomicU64>,
}

/// The routes of the registry's own listener.
pub(super) fn routes(registry: Arc<Registry>) -> Router {
    Router::new().fallback(front).with_state(registry)
}

/// The routes of the second listener: blobs to whoever has the address, as presigned object storage gives them.
pub(super) fn storage_routes(registry: Arc<Registry>) -> Router {
    Router::new().fallback(storage).with_state(registry)
}

async fn front(
    State(registry): State<Arc<Registry>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    if registry.control && parts.uri.path().starts_with("/_control/") {
        return control::answer(registry, parts, body).await;
    }
    let target = Target::parse(parts.uri.path());
    pass(registry, line, parts, body, target).await
}

async fn storage(
    State(registry): State<Arc<Registry>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let target = Target::of_storage(parts.uri.path());
    pass(registry, line, parts, body, target).await
}

/// Notes an arrival and sends the request on its way.
async fn pass(
    registry: Arc<Registry>,
    line: Line,
    parts: Parts,
    body: Body,
    target: Target,
) -> Response {
    let authorization = text(&parts.headers, &AUTHORIZATION);
    let caller = match target.kind {
        Kind::Token => registry.authority.applicant(authorization),
        Kind::Storage => Ok(Caller::anonymous()),
        _ => registry
            .authority
            .caller(&target.repository, authorization, Instant::now()),
    };
    let entry = registry.log.receive(arrival(&parts, target, &caller));
    let ticket = Ticket {
        registry: registry.clone(),
        entry,
        started: Instant::now(),
        read: Arc::default(),
    };
    if !registry.gates.concern(&ticket.entry) {
        return proceed(ticket, line, parts, body, caller).await;
    }
    // A task of its own, so that a request parked at a gate outlives its client: only the gate says what becomes of it.
    let body = gathered(&parts.headers, body).await;
    let parked = tokio::spawn(proceed(ticket, line.clone(), parts, body, caller));
    parked.await.unwrap_or_else(|_| {
        line.cut();
        answers::empty(StatusCode::SERVICE_UNAVAILABLE)
    })
}

/// The whole way of one request that is on the log.
async fn proceed(
    ticket: Ticket,
    line: Line,
    parts: Parts,
    body: Body,
    caller: Result<Caller, Rejected>,
) -> Response {
    let (registry, entry) = (ticket.registry.clone(), ticket.entry.clone());
    if !registry.passes(Moment::Before, &entry).await {
        return ticket.cut(&line);
    }
    let settings = registry.settings();
    if !settings.latency.is_zero() {
        tokio::time::sleep(settings.latency).await;
    }
    let actions: Arc<[Action]> = registry.faults.strike(&entry).into();
    let call = Call {
        registry: registry.clone(),
        settings,
        method: parts.method,
        headers: parts.headers,
        entry: entry.clone(),
        caller,
        actions: actions.clone(),
        body: Some(body),
        read: ticket.read.clone(),
    };
    let Some(response) = struck(call).await else {
        return ticket.cut(&line);
    };
    let response = strike::body(response, &actions);
    for action in actions.iter() {
        if let Action::Hang { ms } = action {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
        }
    }
    let through = registry.passes(Moment::After, &entry).await;
    if !through || actions.contains(&Action::LoseAnswer) {
        return ticket.cut(&line);
    }
    ticket.answer(response)
}

/// The work with what faults do before it. None: the connection is to be cut.
async fn struck(mut call: Call) -> Option<Response> {
    let (actions, rate) = (call.actions.clone(), call.settings.rate);
    if !call
        .registry
        .bucket
        .admits(call.entry.kind, rate, Instant::now())
    {
        call.drain().await;
        return Some(answers::page(StatusCode::TOO_MANY_REQUESTS));
    }
    for action in actions.iter() {
        match action {
            Action::Delay { ms } => {
                // With its body read, a connection that ends is noticed, and this is dropped.
                call.gather().await;
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
                if let Some(response) = answers::faulty(action) {
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
        return Some(work(call).await);
    };
    call.gather().await;
    // A task of its own, so that the write lands even when its client has gone.
    let late = tokio::spawn(async move {
        let registry = call.registry.clone();
        tokio::select! {
            () = registry.held.wait(limit) => Some(work(call).await),
            () = registry.stop.cancelled() => None,
        }
    });
    late.await.ok().flatten()
}

/// Authorizes the request and does it.
async fn work(mut call: Call) -> Response {
    let expired = call.actions.contains(&Action::TagExpired);
    let result = dispatch(&mut call).await;
    // Else the connection breaks under a client that is still sending.
    call.drain().await;
    let mut response = result.unwrap_or_else(|refusal| {
        let refusal = if expired { refusal.expired() } else { refusal };
        let refusal = match (call.settings.dialect, call.entry.kind) {
            (Dialect::Harbor, Kind::Manifest) if !call.entry.is_write() => {
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

async fn dispatch(call: &mut Call) -> Result<Response, Refusal> {
    match call.entry.kind {
        Kind::Ping => return Ok(call.ping()),
        Kind::Token => return call.token(),
        Kind::Storage => return blobs::read(call),
        Kind::Other => return Ok(answers::page(StatusCode::NOT_FOUND)),
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
        (Kind::Manifest, &Method::GET | &Method::HEAD) => manifests::read(call),
        (Kind::Manifest, &Method::PUT) => manifests::write(call).await,
        (Kind::Manifest, &Method::DELETE) => manifests::delete(call),
        (Kind::Tags, &Method::GET) => manifests::list_tags(call),
        (Kind::Referrers, &Method::GET) => manifests::list_referrers(call),
        (Kind::Blob, &Method::GET | &Method::HEAD) => blobs::read(call),
        (Kind::Upload, _) => blobs::upload(call).await,
        _ => Err(Refusal::not_allowed()),
    }
}

// === impl Registry ===

impl Registry {
    pub(super) fn new(options: Options, storage: String, stop: CancellationToken) -> Self {
        Self {
            store: Mutex::new(Store::new(options.settings.policy())),
            settings: RwLock::new(options.settings),
            uploads: Uploads::default(),
            authority: Authority::new(options.auth),
            faults: Faults::default(),
            log: Log::new(options.log_entries),
            gates: Arc::new(Gates::default()),
            held: Held::new(),
            manifests: Recall::default(),
            blobs: Recall::default(),
            bucket: Bucket::default(),
            stop,
            storage,
            control: options.control,
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    pub(super) fn settings(&self) -> Settings {
        *self.settings.read()
    }

    /// Parks a request where a gate stops it. False: its connection is to be cut.
    async fn passes(&self, moment: Moment, entry: &Entry) -> bool {
        tokio::select! {
            through = self.gates.pass(moment, entry) => through,
            () = self.stop.cancelled() => false,
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Settings)) -> Settings {
        let settings = {
            let mut settings = self.settings.write();
            change(&mut settings);
            *settings
        };
        self.store().set_policy(settings.policy(), Instant::now());
        settings
    }
}

// === impl Ticket ===

impl Ticket {
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
    fn cut(mut self, line: &Line) -> Response {
        self.entry.phase = Phase::Answered;
        line.cut();
        answers::empty(StatusCode::SERVICE_UNAVAILABLE)
    }
}

impl Drop for Ticket {
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
fn arrival(parts: &Parts, target: Target, caller: &Result<Caller, Rejected>) -> Entry {
    let query = parts.uri.query().unwrap_or_default();
    let Target {
        kind,
        mut repository,
        mut reference,
    } = target;
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match (kind, key.as_ref()) {
            (Kind::Upload, "digest" | "mount") => reference = value.into_owned(),
            (Kind::Token, "scope") => {
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
    Entry {
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
