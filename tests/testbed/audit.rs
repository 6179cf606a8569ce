//! What the API server itself notes of requests: its audit log, of service accounts alone.
//!
//! Enters: the log of a control plane. Leaves: one [`AuditedRequest`] for each request that was answered, in the order of the
//! answers. The administrator's own are not in it.

use serde::Deserialize;

use super::{ControlPlane, Error, RunDir};

const POLICY: &str = "audit-policy.yaml";
const LOG: &str = "audit.log";

/// A request as the API server saw it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditedRequest {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: String,
    #[serde(rename = "requestURI")]
    pub uri: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: jiff::Timestamp,
    #[serde(default)]
    response_status: Answer,
}

#[derive(Debug, Clone, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Object {
    resource: String,
    name: String,
    subresource: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Answer {
    code: u16,
}

impl AuditedRequest {
    /// Whose it was.
    pub fn user(&self) -> &str {
        &self.user.username
    }

    /// `promotionrequests/status`, `secrets`.
    pub fn resource(&self) -> String {
        let object = &self.object_ref;
        match object.subresource.as_str() {
            "" => object.resource.clone(),
            sub => format!("{}/{sub}", object.resource),
        }
    }

    /// The object's name; empty where a whole kind was meant.
    pub fn name(&self) -> &str {
        &self.object_ref.name
    }

    /// The HTTP status.
    pub fn code(&self) -> u16 {
        self.response_status.code
    }
}

impl ControlPlane {
    /// The requests of service accounts so far.
    pub fn audited(&self) -> Result<Vec<AuditedRequest>, Error> {
        let path = self.directory.join(LOG);
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        // The last line may still be written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let requests = whole.lines().map(serde_json::from_str);
        requests
            .collect::<Result<_, _>>()
            .map_err(|error| Error::Cluster {
                what: "audit log",
                reason: error.to_string(),
            })
    }
}

/// The arguments of an API server that notes the requests of service accounts.
pub(super) fn arguments(directory: &RunDir) -> Result<Vec<String>, Error> {
    let policy = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  userGroups: [system:masters]
- level: Metadata
  userGroups: [system:serviceaccounts]
";
    let policy = directory.write(POLICY, policy)?;
    Ok(vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", directory.join(LOG).display()),
        // In MB: it is read as one file.
        "--audit-log-maxsize=100000".into(),
    ])
}
