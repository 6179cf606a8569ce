//! One request as the endpoints see it: who calls, what for, and the body.
//!
//! In: a request past log, gates and faults. Out: its parameters, its body in pieces or whole, and whether the caller may do it.
//! Bodies are read up to a bound; the rest is left to the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;

use super::answers::{self, Refusal};
use super::auth::{AuthMode, Caller, Rejected};
use super::faults::Action;
use super::log::LoggedRequest;
use super::names;
use super::rate_limit::Client;
use super::settings::{Dialect, Settings};
use super::state::RegistryState;
use super::store::StoreError;

/// Bytes of an unwanted body that are read, so that its sender sees the answer.
const DRAIN: u64 = 16 << 20;

/// One request, on its way through.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) registry: Arc<RegistryState>,
    pub(super) settings: Settings,
    pub(super) client: Client,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) entry: LoggedRequest,
    pub(super) caller: Result<Caller, Rejected>,
    pub(super) actions: Arc<[Action]>,
    pub(super) body: Option<Body>,
    pub(super) read: Arc<AtomicU64>,
}

impl Call {
    /// Whether its sender's rate has room for it.
    pub(super) fn is_within_the_rate(&self, now: Instant) -> bool {
        let (limit, rate) = (&self.registry.rate_limit, self.settings.rate);
        let authorization = self.header(&AUTHORIZATION);
        limit.admits(self.entry.kind, self.client, authorization, rate, now)
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        text(&self.headers, name)
    }

    /// A parameter of the query.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.queries(name).next()
    }

    fn queries(&self, name: &str) -> impl Iterator<Item = String> {
        url::form_urlencoded::parse(self.entry.query.as_bytes())
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// The body as it comes in, counted. Once.
    pub(super) fn stream(&mut self) -> BodyDataStream {
        self.body.take().unwrap_or_default().into_data_stream()
    }

    pub(super) fn count(&self, bytes: &Bytes) {
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// The whole body, if it is no longer than `limit`.
    pub(super) async fn bytes(&mut self, limit: usize) -> Result<Bytes, Refusal> {
        let mut stream = self.stream();
        let mut whole = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "SIZE_INVALID",
                    "the body ended early",
                )
            })?;
            self.count(&piece);
            if whole.len() + piece.len() > limit {
                self.body = Some(Body::from_stream(stream));
                let message = format!("the body is larger than {limit} bytes");
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "SIZE_INVALID",
                    message,
                ));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    pub(super) async fn buffer_body(&mut self) {
        let body = self.body.take().unwrap_or_default();
        self.body = Some(buffered(&self.headers, body).await);
    }

    pub(super) async fn drain(&mut self) {
        let mut left = DRAIN;
        let mut stream = self.stream();
        while let Some(Ok(piece)) = stream.next().await {
            self.count(&piece);
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                return;
            }
        }
    }

    /// Whether the caller may pull from a repository.
    pub(super) fn may_pull(&self, repository: &str) -> bool {
        let public = self.registry.store().is_public(repository);
        self.caller.as_ref().is_ok_and(|caller| {
            self.registry
                .authority
                .rights(caller, repository, public)
                .pull
        })
    }

    pub(super) fn authorize(&self) -> Result<(), Refusal> {
        let Ok(caller) = &self.caller else {
            return Err(Refusal::unauthorized(&self.challenge()));
        };
        let repository = &self.entry.repository;
        let public = self.registry.store().is_public(repository);
        let rights = self.registry.authority.rights(caller, repository, public);
        let granted = if self.entry.is_write() {
            rights.push
        } else {
            rights.pull
        };
        if granted {
            Ok(())
        } else if !rights.pull && self.registry.authority.hides() {
            let unknown = StoreError::RepositoryUnknown(repository.clone());
            Err(unknown.into())
        } else {
            // Quay answers a missing right like a missing credential.
            Err(Refusal::unauthorized(&self.challenge()))
        }
    }

    fn challenge(&self) -> String {
        let host = self.header(&HOST).unwrap_or("localhost");
        if self.registry.authority.mode(&self.entry.repository) == AuthMode::Basic {
            return format!("Basic realm=\"{host}\"");
        }
        // By its realm a client knows quay.
        let realm = match self.settings.dialect {
            Dialect::Quay => "v2/auth",
            Dialect::Distribution | Dialect::Harbor | Dialect::Ecr => "token",
        };
        let mut challenge = format!("Bearer realm=\"http://{host}/{realm}\",service=\"{host}\"");
        if !self.entry.repository.is_empty() {
            let actions = if self.entry.is_write() {
                "pull,push"
            } else {
                "pull"
            };
            challenge = format!(
                "{challenge},scope=\"repository:{}:{actions}\"",
                self.entry.repository
            );
        }
        challenge
    }

    pub(super) fn ping(&self) -> Response {
        let mut response = if self.caller.as_ref().is_ok_and(Caller::is_authenticated) {
            answers::json_response(StatusCode::OK, &json!(true))
        } else {
            Refusal::unauthorized(&self.challenge()).response()
        };
        if self.settings.sparse {
            let name = HeaderName::from_static("x-sparse-manifest-support");
            answers::set(response.headers_mut(), name, "true");
        }
        response
    }

    /// The token endpoint.
    pub(super) fn token(&self) -> Result<Response, Refusal> {
        if !self.registry.authority.has_tokens() || self.method != Method::GET {
            return Ok(answers::page(StatusCode::NOT_FOUND));
        }
        let caller = self.caller.as_ref().map_err(|_| {
            let message = "invalid username or password";
            Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
        })?;
        let scopes: Vec<String> = self.queries("scope").collect();
        let registry = &self.registry;
        let public = |name: &str| registry.store().is_public(name);
        let access = registry.authority.narrow(caller, &scopes, public);
        for granted in &access {
            // As on quay: who asks for a push token gets the repository made.
            if granted.actions.iter().any(|action| action == "push")
                && names::is_repository(&granted.name)
            {
                registry.store().create(&granted.name);
            }
        }
        let host = self.header(&HOST).unwrap_or("localhost");
        let token = registry
            .authority
            .issue(caller, access, host, self.settings.token_life);
        Ok(answers::json_response(
            StatusCode::OK,
            &json!({"token": token}),
        ))
    }
}

/// The body, read into memory where it announces a length that is small enough.
pub(super) async fn buffered(headers: &HeaderMap, body: Body) -> Body {
    let length = text(headers, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let Some(length) = length.filter(|length| *length <= DRAIN) else {
        return body;
    };
    let limit = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(body, limit).await;
    bytes.map_or_else(
        |error| {
            Body::from_stream(futures::stream::once(std::future::ready(Err::<Bytes, _>(
                error,
            ))))
        },
        Body::from,
    )
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
