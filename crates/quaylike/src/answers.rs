//! Answers: errors as quay writes them, pages as the proxy in front of it does, and plain success.
//!
//! In: what was found or refused. Out: responses. Every JSON error is `{"errors": [{"code", "message", "detail"}]}`.

use axum::body::Body;
use axum::http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::content::{Digest, DigestError};
use super::faults::{Action, RetryAfter};
use super::manifest::ManifestError;
use super::store::StoreError;

/// The digest of a body.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A request that is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// Code, message, detail.
    errors: Vec<(&'static str, String, Value)>,
    headers: Vec<(HeaderName, String)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::detailed(status, code, message, json!({}))
    }

    pub(super) fn detailed(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        detail: Value,
    ) -> Self {
        Self {
            status,
            errors: vec![(code, message.into(), detail)],
            headers: Vec::new(),
        }
    }

    pub(super) fn and(
        mut self,
        code: &'static str,
        message: impl Into<String>,
        detail: Value,
    ) -> Self {
        self.errors.push((code, message.into(), detail));
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Asks for a credential.
    pub(super) fn unauthorized(challenge: &str) -> Self {
        let message = "access to the requested resource is not authorized";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
            .header(WWW_AUTHENTICATE, challenge)
    }

    pub(super) fn not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "the operation is not supported here",
        )
    }

    /// Quay says this of a tag that has run out.
    pub(super) fn expired(mut self) -> Self {
        for (code, message, _) in &mut self.errors {
            if *code == "MANIFEST_UNKNOWN" {
                *code = "TAG_EXPIRED";
                "the tag has expired".clone_into(message);
            }
        }
        self
    }

    /// Harbor says this of a manifest or a repository that is not there.
    pub(super) fn not_found(mut self, repository: &str, reference: &str) -> Self {
        let mark = if reference.contains(':') { '@' } else { ':' };
        for (code, message, _) in &mut self.errors {
            *message = match *code {
                "MANIFEST_UNKNOWN" => format!("artifact {repository}{mark}{reference} not found"),
                "NAME_UNKNOWN" => format!("repository {repository} not found"),
                _ => continue,
            };
            *code = "NOT_FOUND";
        }
        self
    }

    pub(super) fn response(self) -> Response {
        let errors: Vec<Value> = self
            .errors
            .into_iter()
            .map(|(code, message, detail)| json!({"code": code, "message": message, "detail": detail}))
            .collect();
        let mut response = json_response(self.status, &json!({"errors": errors}));
        for (name, value) in self.headers {
            set(response.headers_mut(), name, &value);
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::RepositoryUnknown(name) => Self::detailed(
                StatusCode::NOT_FOUND,
                "NAME_UNKNOWN",
                message,
                json!({"name": name}),
            ),
            StoreError::ManifestUnknown(_) => {
                Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
            }
            StoreError::BlobUnknown(digest) => Self::detailed(
                StatusCode::NOT_FOUND,
                "BLOB_UNKNOWN",
                message,
                json!({"digest": digest}),
            ),
            StoreError::ContentUnknown { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
            }
        }
    }
}

impl From<DigestError> for Refusal {
    fn from(error: DigestError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    }
}

impl From<ManifestError> for Refusal {
    fn from(error: ManifestError) -> Self {
        let (status, code) = match error {
            ManifestError::Unsupported(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED"),
            _ => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        };
        let message = error.to_string();
        Self::detailed(
            status,
            code,
            "manifest invalid",
            json!({"message": message}),
        )
    }
}

/// Marks, in the extensions of an answer, that its connection is cut instead: not one byte of it may reach the client.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCut;

/// Instead of an answer.
pub(super) fn connection_cut() -> Response {
    let mut response = empty(StatusCode::SERVICE_UNAVAILABLE);
    response.extensions_mut().insert(ConnectionCut);
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// 201 for content that is there now.
pub(super) fn created(location: &str, digest: Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    set(response.headers_mut(), LOCATION, location);
    set(response.headers_mut(), CONTENT_DIGEST, &digest.to_string());
    response
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response {
    bytes_response(status, "application/json", value.to_string().into())
}

pub(super) fn bytes_response(
    status: StatusCode,
    content_type: &'static str,
    bytes: Bytes,
) -> Response {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Body::from(bytes);
    response
}

/// Sets a header; a value that is none is left out.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The answer of a fault that does nothing else; none for other faults.
pub(super) fn injected(action: &Action) -> Option<Response> {
    let (response, retry_after) = match action {
        Action::TooMany { retry_after } => (page(StatusCode::TOO_MANY_REQUESTS), *retry_after),
        Action::ReadOnly => {
            let message = "the registry is read-only for now: pulls go on";
            let detail = json!({"is_readonly": true});
            let refusal =
                Refusal::detailed(StatusCode::METHOD_NOT_ALLOWED, "DENIED", message, detail);
            (refusal.response(), None)
        }
        Action::Status {
            status,
            code,
            message,
            detail,
            body,
            retry_after,
        } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let response = match (code, body) {
                (Some(code), _) => {
                    let message = message.as_deref().unwrap_or("injected fault");
                    let detail = detail.clone().unwrap_or_else(|| json!({}));
                    let error = json!({"code": code, "message": message, "detail": detail});
                    json_response(status, &json!({"errors": [error]}))
                }
                (None, Some(body)) => bytes_response(status, "text/html", body.clone().into()),
                (None, None) => page(status),
            };
            (response, *retry_after)
        }
        Action::LieMount => (empty(StatusCode::CREATED), None),
        _ => return None,
    };
    let mut response = response;
    if let Some(retry_after) = retry_after {
        set(
            response.headers_mut(),
            RETRY_AFTER,
            &retry_after_text(retry_after),
        );
    }
    Some(response)
}

/// A page as a proxy sends it.
pub(super) fn page(status: StatusCode) -> Response {
    let title = format!(
        "{} {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error")
    );
    let text = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n<hr>\
         <center>nginx</center>\r\n</body>\r\n</html>\r\n"
    );
    bytes_response(status, "text/html", text.into())
}

fn retry_after_text(retry_after: RetryAfter) -> String {
    match retry_after {
        RetryAfter::Seconds(seconds) => seconds.to_string(),
        RetryAfter::Date(seconds) => {
            let ahead = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            let then = jiff::Timestamp::now()
                .saturating_add(ahead)
                .unwrap_or(jiff::Timestamp::MAX);
            jiff::fmt::rfc2822::DateTimePrinter::new()
                .timestamp_to_rfc9110_string(&then)
                .unwrap_or_else(|_| seconds.to_string())
        }
    }
}
