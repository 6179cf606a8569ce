//! The handle over HTTP, for a registry that is a process of its own: JSON below `/_control/`.
//!
//! | Request | Does |
//! |---|---|
//! | `GET, POST settings` | shows them; changes the fields given |
//! | `POST auth` | replaces users, rights and mode |
//! | `POST tokens/revoke` | makes issued tokens invalid |
//! | `GET, POST, DELETE rules`, `DELETE rules/<id>` | faults |
//! | `POST gates`, `GET gates/<id>?wait_ms=`, `POST gates/<id>/open`, `POST gates/<id>/cut`, `DELETE gates` | gates; the GET waits until a request is parked |
//! | `GET held`, `POST held/release` | late writes |
//! | `GET log?after=&limit=`, `DELETE log`, `GET counts` | the log |
//! | `POST log/find` with a matcher, `POST log/wait` with `{match, nth, answered, wait_ms}` | requests that match; a wait for the nth |
//! | `GET snapshot`, `GET dangling`, `GET, DELETE audit` | tags, and which of them dangle |
//! | `GET history?repository=&tag=`, `GET manifest?repository=&reference=` | one tag's changes, one manifest |
//! | `POST tag` with `{repository, tag, digest}`, `POST untag` with `{repository, tag}` | another writer |
//! | `POST seed` with `{repository, tag, image}` | puts an image in |
//! | `POST lose` with `{repository, digest}` | loses a blob or manifest |
//!
//! Waits last 60 s at most; then the answer is 204. What does not parse is a 400 that says why.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::{bytes_response, empty, json_response};
use super::auth::Auth;
use super::content::Digest;
use super::faults::{Matcher, Rule};
use super::gate::{GateSpec, GateState};
use super::handle::RegistryHandle;
use super::seed::ImageSpec;
use super::settings::Settings;
use super::state::RegistryState;

/// The longest wait.
const WAIT: Duration = Duration::from_mins(1);
/// The largest body taken.
const BODY: usize = 1 << 20;

/// What was wrong with a request, and how bad.
type Refused = (StatusCode, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TagCommand {
    repository: String,
    tag: String,
    digest: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedCommand {
    repository: String,
    tag: String,
    image: ImageSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoseCommand {
    repository: String,
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitCommand {
    #[serde(default, rename = "match")]
    matcher: Matcher,
    #[serde(default)]
    nth: usize,
    #[serde(default)]
    answered: bool,
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// One request and the registry it is about.
struct Command {
    registry: Arc<RegistryState>,
    handle: RegistryHandle,
    query: String,
    body: Value,
}

/// Answers a request below `/_control/`.
pub(super) async fn answer(registry: Arc<RegistryState>, parts: Parts, body: Body) -> Response {
    let Ok(bytes) = axum::body::to_bytes(body, BODY).await else {
        return refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is too large or ended early",
        );
    };
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        match serde_json::from_slice(&bytes) {
            Ok(body) => body,
            Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    };
    let command = Command {
        handle: RegistryHandle::new(registry.clone()),
        registry,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body,
    };
    let path = parts
        .uri
        .path()
        .trim_start_matches("/_control/")
        .trim_end_matches('/');
    let path: Vec<&str> = path.split('/').collect();
    match command.run(&parts.method, &path).await {
        Ok(response) => response,
        Err((status, message)) => refusal(status, &message),
    }
}

fn refusal(status: StatusCode, message: &str) -> Response {
    json_response(status, &json!({"error": message}))
}

fn shown(value: impl Serialize) -> Result<Response, Refused> {
    let value = serde_json::to_value(value).map_err(broken)?;
    Ok(json_response(StatusCode::OK, &value))
}

fn done() -> Response {
    empty(StatusCode::NO_CONTENT)
}

fn broken(error: impl std::fmt::Display) -> Refused {
    (StatusCode::BAD_REQUEST, format!("{error}"))
}

fn missing(error: impl std::fmt::Display) -> Refused {
    (StatusCode::NOT_FOUND, error.to_string())
}

impl Command {
    async fn run(&self, method: &Method, path: &[&str]) -> Result<Response, Refused> {
        match (method.as_str(), path) {
            ("GET" | "DELETE", _) => self.look(method, path).await,
            ("POST", ["log", "wait"]) => self.wait().await,
            ("POST", _) => self.change(path),
            _ => Err((
                StatusCode::METHOD_NOT_ALLOWED,
                "use GET, POST or DELETE".to_owned(),
            )),
        }
    }

    async fn look(&self, method: &Method, path: &[&str]) -> Result<Response, Refused> {
        let handle = &self.handle;
        match (method.as_str(), path) {
            ("GET", ["settings"]) => shown(handle.settings()),
            ("GET", ["rules"]) => shown(handle.rules()),
            ("GET", ["gates", id]) => self.gate(number(id)?).await,
            ("GET", ["held"]) => shown(json!({"held": handle.held_writes()})),
            ("GET", ["log"]) => {
                let after = self.numeric("after").unwrap_or_default();
                let limit =
                    usize::try_from(self.numeric("limit").unwrap_or(1_000)).unwrap_or(usize::MAX);
                shown(handle.requests_after(after, limit, &Matcher::default()))
            }
            ("GET", ["counts"]) => shown(json!({
                "counts": handle.counts(), "peak_in_flight": handle.peak_in_flight(),
            })),
            ("GET", ["snapshot"]) => shown(handle.snapshot()),
            ("GET", ["dangling"]) => shown(handle.dangling()),
            ("GET", ["audit"]) => shown(handle.audit_trail()),
            ("GET", ["history"]) => {
                shown(handle.history(&self.text("repository"), &self.text("tag")))
            }
            ("GET", ["manifest"]) => self.manifest(),
            ("DELETE", ["rules"]) => {
                handle.clear_rules();
                Ok(done())
            }
            ("DELETE", ["rules", id]) => {
                handle.remove_rule(number(id)?);
                Ok(done())
            }
            ("DELETE", ["gates"]) => {
                self.registry.gates.remove(None);
                Ok(done())
            }
            ("DELETE", ["log"]) => {
                handle.reset_log();
                Ok(done())
            }
            ("DELETE", ["audit"]) => {
                handle.clear_audit_trail();
                Ok(done())
            }
            _ => Err(missing("no such thing below /_control/")),
        }
    }

    fn change(&self, path: &[&str]) -> Result<Response, Refused> {
        let handle = &self.handle;
        match path {
            ["settings"] => return self.set(),
            ["auth"] => handle.set_auth(self.read::<Auth>()?),
            ["tokens", "revoke"] => handle.revoke_tokens(),
            ["rules"] => return shown(json!({"id": handle.add_rule(self.read::<Rule>()?)})),
            ["gates"] => {
                return shown(json!({"id": self.registry.gates.add(self.read::<GateSpec>()?)}));
            }
            ["gates", id, way @ ("open" | "cut")] => {
                if !self.registry.gates.open(number(id)?, *way == "cut") {
                    return Err(missing(format!("no gate {id}")));
                }
            }
            ["held", "release"] => handle.release_held(),
            ["log", "find"] => return shown(handle.requests(&self.read::<Matcher>()?)),
            ["tag"] => {
                let wanted: TagCommand = self.read()?;
                let digest = wanted.digest.ok_or_else(|| broken("`digest` is missing"))?;
                let moved = handle.set_tag(&wanted.repository, &wanted.tag, digest);
                moved.map_err(missing)?;
            }
            ["untag"] => {
                let wanted: TagCommand = self.read()?;
                handle
                    .delete_tag(&wanted.repository, &wanted.tag)
                    .map_err(missing)?;
            }
            ["seed"] => {
                let wanted: SeedCommand = self.read()?;
                let seeded = handle.seed_spec(&wanted.repository, &wanted.tag, &wanted.image);
                return shown(json!({"digest": seeded.map_err(broken)?}));
            }
            ["lose"] => {
                let LoseCommand { repository, digest } = self.read()?;
                let lost = handle.lose_blob(&repository, digest)
                    || handle.lose_manifest(&repository, digest);
                return shown(json!({"lost": lost}));
            }
            _ => return Err(missing("no such thing below /_control/")),
        }
        Ok(done())
    }

    /// The present settings with the given fields replaced.
    fn set(&self) -> Result<Response, Refused> {
        let mut merged = serde_json::to_value(self.handle.settings()).map_err(broken)?;
        let (Value::Object(fields), Some(kept)) = (self.body.clone(), merged.as_object_mut())
        else {
            return Err(broken("settings are a JSON object"));
        };
        kept.extend(fields);
        let wanted: Settings = serde_json::from_value(merged).map_err(broken)?;
        shown(self.handle.update(|settings| *settings = wanted))
    }

    async fn gate(&self, id: u64) -> Result<Response, Refused> {
        let gates = &self.registry.gates;
        let gate = gates
            .find(id)
            .ok_or_else(|| missing(format!("no gate {id}")))?;
        let wait = Self::patience(self.numeric("wait_ms").unwrap_or_default());
        match tokio::time::timeout(wait, gate.parked()).await {
            Ok(entry) => shown(GateState::Parked { entry }),
            Err(_) => shown(gates.state(id)),
        }
    }

    async fn wait(&self) -> Result<Response, Refused> {
        let wanted: WaitCommand = self.read()?;
        let wait = Self::patience(wanted.wait_ms.unwrap_or(u64::MAX));
        let found = self
            .handle
            .wait_for(&wanted.matcher, wanted.nth, wanted.answered);
        match tokio::time::timeout(wait, found).await {
            Ok(entry) => shown(entry),
            Err(_) => Ok(done()),
        }
    }

    fn manifest(&self) -> Result<Response, Refused> {
        let (repository, reference) = (self.text("repository"), self.text("reference"));
        let found = match reference.parse::<Digest>() {
            Ok(digest) => self.handle.manifest(&repository, digest),
            Err(_) => self.handle.tagged(&repository, &reference),
        };
        let found =
            found.ok_or_else(|| missing(format!("no manifest {repository} {reference}")))?;
        Ok(bytes_response(
            StatusCode::OK,
            found.media_type,
            found.bytes.clone(),
        ))
    }

    fn patience(asked_ms: u64) -> Duration {
        Duration::from_millis(asked_ms).min(WAIT)
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        serde_json::from_value(self.body.clone()).map_err(broken)
    }

    fn text(&self, name: &str) -> String {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        let found = pairs.find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    }

    fn numeric(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }
}

fn number(text: &str) -> Result<u64, Refused> {
    text.parse().map_err(broken)
}
