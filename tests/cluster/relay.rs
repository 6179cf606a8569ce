//! A relay between one controller and the API server, which answers, hangs, and loses answers as a test wants.
//!
//! The controller speaks plain HTTP to it, so that single requests can be chosen; it speaks TLS to the server. What no fault is
//! set for goes through as it is, watches in pieces as they come.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use crate::testbed::{ControlPlane, RunDir};

/// What a request of the controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    List,
    /// A page of finished requests.
    Page,
    Watch,
    Load,
    Delete,
    Save,
    Lease,
    ReadStream,
    WriteStream,
    Other,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not forwarded: this status, in the API server's form, with a `Retry-After` of so many seconds.
    Refuse(u16, Option<u32>),
    /// It is not forwarded: the server knows no such path.
    NotServed,
    /// A watch begins, and says at once that its resourceVersion has expired.
    Expired,
    /// It is not forwarded and not answered.
    Hang,
    /// It is carried out, and the connection is cut instead of an answer.
    LoseAnswer,
    /// It is carried out, and answered with 504, which has kube send it again.
    TimeOutAfterwards,
}

/// A request that came by.
#[derive(Debug, Clone)]
pub struct Seen {
    pub call: Call,
    pub at: Instant,
    pub fault: Option<Fault>,
    /// Of what was forwarded and answered.
    pub status: Option<u16>,
}

/// How a watch ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutOff {
    /// Nothing more is heard of it.
    Silent,
    /// Its connection is closed.
    Closed,
}

struct Rule {
    call: Call,
    fault: Fault,
    /// The first of every so many.
    every: usize,
    /// So many times, at most.
    left: usize,
    seen: usize,
}

struct Inner {
    server: String,
    token: String,
    client: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Seen>>,
    /// What has become of the watches that were open when it was sent.
    cut_off: watch::Sender<CutOff>,
}

/// A relay. It ends with the test's runtime.
pub struct Relay {
    inner: Arc<Inner>,
    pub kubeconfig: PathBuf,
}

impl Relay {
    /// A relay before `plane`'s API server, for its administrator.
    pub async fn start(plane: &ControlPlane, folder: &RunDir) -> Self {
        let ca = reqwest::Certificate::from_pem(plane.ca_pem().as_bytes()).unwrap();
        let client = crate::testbed::http_builder()
            .tls_certs_only([ca])
            .build()
            .unwrap();
        let inner = Arc::new(Inner {
            server: plane.server().to_owned(),
            token: plane.admin_token().to_owned(),
            client,
            rules: Mutex::default(),
            log: Mutex::default(),
            cut_off: watch::Sender::new(CutOff::Closed),
        });
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new()
            .fallback(pass)
            .with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "relay",
            "clusters": [{"name": "relay", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "relay", "user": {"token": plane.admin_token()}}],
            "contexts": [{"name": "relay", "context": {"cluster": "relay", "user": "relay", "namespace": "default"}}],
        });
        let kubeconfig = folder
            .write("relay.kubeconfig", &kubeconfig.to_string())
            .unwrap();
        Self { inner, kubeconfig }
    }

    /// Every nth request of this kind from now on, beginning with the next, meets the fault; `left` times at most.
    pub fn add(&self, call: Call, fault: Fault, every: usize, left: usize) {
        self.inner.rules.lock().push(Rule {
            call,
            fault,
            every,
            left,
            seen: 0,
        });
    }

    pub fn clear(&self) {
        self.inner.rules.lock().clear();
    }

    /// From now on nothing more is heard of the watches that are open, their end included.
    pub fn silence_watches(&self) {
        self.inner.cut_off.send_replace(CutOff::Silent);
    }

    /// Closes the watches that are open.
    pub fn drop_watches(&self) {
        self.inner.cut_off.send_replace(CutOff::Closed);
    }

    pub fn seen(&self, call: Call) -> Vec<Seen> {
        let log = self.inner.log.lock();
        log.iter()
            .filter(|seen| seen.call == call)
            .cloned()
            .collect()
    }

    /// How many requests of this kind have met a fault.
    pub fn faults(&self, call: Call) -> usize {
        let seen = self.seen(call);
        seen.iter().filter(|seen| seen.fault.is_some()).count()
    }
}

impl Inner {
    fn judge(&self, call: Call) -> (usize, Option<Fault>) {
        let mut rules = self.rules.lock();
        let mut met = None;
        for rule in rules.iter_mut().filter(|rule| rule.call == call) {
            let due = rule.seen.is_multiple_of(rule.every) && rule.left > 0;
            rule.seen += 1;
            if due && met.is_none() {
                rule.left -= 1;
                met = Some(rule.fault);
            }
        }
        let mut log = self.log.lock();
        log.push(Seen {
            call,
            at: Instant::now(),
            fault: met,
            status: None,
        });
        (log.len() - 1, met)
    }
}

fn call(request: &Request) -> Call {
    let uri = request.uri();
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    if path.contains("/imagestreams") {
        return match request.method().as_str() {
            "GET" => Call::ReadStream,
            _ => Call::WriteStream,
        };
    }
    // The definition's own name begins so too.
    let ours = path.strip_prefix("/apis/ci.openshift.io/");
    let Some((_, rest)) = ours.and_then(|path| path.split_once("/promotionrequests")) else {
        return if path.contains("/leases") {
            Call::Lease
        } else {
            Call::Other
        };
    };
    match (request.method().as_str(), rest) {
        ("GET", "") if query.contains("watch=") => Call::Watch,
        ("GET", "") if query.contains("limit=20") => Call::Page,
        ("GET", "") => Call::List,
        ("DELETE", _) => Call::Delete,
        ("GET", _) => Call::Load,
        ("PUT", name) if name.ends_with("/status") => Call::Save,
        _ => Call::Other,
    }
}

async fn pass(State(inner): State<Arc<Inner>>, request: Request) -> Response<Body> {
    let call = call(&request);
    let (number, fault) = inner.judge(call);
    match fault {
        None | Some(Fault::LoseAnswer | Fault::TimeOutAfterwards) => {}
        Some(Fault::Refuse(code, after)) => return refusal(code, after),
        Some(Fault::NotServed) => {
            return answer(
                404,
                "text/plain; charset=utf-8",
                "404 page not found\n".into(),
            );
        }
        Some(Fault::Expired) => {
            let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
            return answer(200, "application/json", format!("{gone}\n"));
        }
        Some(Fault::Hang) => std::future::pending().await,
    }
    let cut_off = inner.cut_off.subscribe();
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let url = format!("{}{}", inner.server, parts.uri);
    let mut forward = inner.client.request(parts.method, url).body(body);
    // client-go sends no token over plain HTTP.
    if !parts.headers.contains_key("authorization") {
        forward = forward.bearer_auth(&inner.token);
    }
    for (name, value) in &parts.headers {
        if !["host", "content-length", "connection"].contains(&name.as_str()) {
            forward = forward.header(name, value);
        }
    }
    let Ok(answered) = forward.send().await else {
        return cut();
    };
    inner.log.lock()[number].status = Some(answered.status().as_u16());
    match fault {
        Some(Fault::LoseAnswer) => return cut(),
        Some(Fault::TimeOutAfterwards) => return refusal(504, None),
        _ => {}
    }
    let mut response = Response::builder().status(answered.status());
    for (name, value) in answered.headers() {
        if !["transfer-encoding", "connection"].contains(&name.as_str()) {
            response = response.header(name, value);
        }
    }
    let pieces = answered.bytes_stream();
    let body = if call == Call::Watch {
        let state = (pieces.boxed(), cut_off);
        Body::from_stream(futures::stream::unfold(
            state,
            async |(mut pieces, mut cut_off)| {
                tokio::select! {
                    biased;
                    _ = cut_off.changed() => {
                        let silent = *cut_off.borrow() == CutOff::Silent;
                        if silent { std::future::pending().await } else { None }
                    }
                    piece = pieces.next() => Some((piece?, (pieces, cut_off))),
                }
            },
        ))
    } else {
        Body::from_stream(pieces)
    };
    response.body(body).unwrap()
}

fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "by the relay", "reason": reason, "code": code,
    })
}

fn refusal(code: u16, after: Option<u32>) -> Response<Body> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let mut response = answer(code, "application/json", status(code, reason).to_string());
    if let Some(after) = after {
        let headers = response.headers_mut();
        headers.insert("retry-after", after.into());
    }
    response
}

fn answer(code: u16, kind: &str, text: String) -> Response<Body> {
    let response = Response::builder()
        .status(code)
        .header("content-type", kind);
    response.body(Body::from(text)).unwrap()
}

/// An answer that breaks off: its first bytes are the last.
fn cut() -> Response<Body> {
    let pieces = futures::stream::iter([Ok(Bytes::from_static(b"{")), Err("cut")]);
    let response = Response::builder()
        .status(StatusCode::OK)
        .header("content-type", "application/json")
        .header("content-length", "1000");
    response.body(Body::from_stream(pieces)).unwrap()
}
