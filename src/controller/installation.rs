//! One installation for each definition of `PromotionRequest`.
//!
//! The CRD's annotation [`LEASE`] names a Lease, `NAMESPACE/NAME`; only its holder may write floats. An installation sets the annotation
//! where it is absent; only [`adopt`], run by an administrator, changes it. A controller leads only while the annotation names its own
//! Lease. It looks before it waits for the lease, once it has it, and before each renewal; where the look fails, it does not renew. It
//! sends a renewal at most three seconds after the look and trusts it for ten, so a leader whose Lease is no longer named writes nothing
//! more after [`DURATION`](super::lease::DURATION). Whoever leads after an adoption waits that long.
//!
//! A controller without an election runs where no Lease is named, and ends when one is.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;

use super::health::Health;
use crate::engine::leadership::RENEW_EVERY;
use crate::metrics::{Call, Metrics};
use crate::store::call::{call, causes};

/// The Lease's name: all controllers that can write the same floats share it.
pub const LEASE_NAME: &str = "promotion-controller";
/// The annotation of the definition that names the Lease: `NAMESPACE/NAME`.
pub const LEASE: &str = "ci.openshift.io/lease";
/// The annotation that names the Lease that [`adopt`] replaced. The chart's guard refuses a change without it.
pub const ADOPTED_FROM: &str = "ci.openshift.io/lease-adopted-from";
/// The definition.
pub const DEFINITION: &str = "promotionrequests.ci.openshift.io";
/// What puts it there.
pub(super) const APPLY: &str =
    "apply the CRD: kubectl apply -f crds/promotionrequests.yaml, or install the chart";
/// How long a look may take.
const CALL: Duration = Duration::from_secs(3);

/// The Lease that this process would hold, compared with the one that the definition names.
#[derive(Clone)]
pub struct Installation {
    definition: Api<CustomResourceDefinition>,
    /// The address of the API server, for error messages.
    server: String,
    /// None: without an election.
    namespace: Option<String>,
    metrics: Metrics,
}

/// Another installation leads, or may at any time: this process must not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Why this process may not lead now.
#[derive(Debug)]
pub(super) enum Barred {
    /// The definition names another Lease.
    Another(String),
    /// The definition names none.
    Unnamed(String),
    /// The definition is not there.
    Undefined(String),
    /// The definition cannot be read.
    Unread(String),
}

impl Installation {
    /// For a process whose Lease is in `namespace`, or which has none.
    #[must_use]
    pub fn new(
        client: Client,
        server: String,
        namespace: Option<String>,
        metrics: Metrics,
    ) -> Self {
        Self {
            definition: Api::all(client),
            server,
            namespace,
            metrics,
        }
    }

    /// Waits until this process may wait for its lease. What it waits for is said once.
    ///
    /// # Errors
    /// The definition names another Lease.
    pub(super) async fn enter(&self, health: &Health) -> Result<(), Refused> {
        let mut said = String::new();
        loop {
            let why = match self.look().await {
                Ok(_) => {
                    health.barred(false);
                    health.lease_tick(true);
                    return Ok(());
                }
                Err(Barred::Another(why)) => return Err(Refused(why)),
                Err(Barred::Unnamed(why) | Barred::Undefined(why)) => {
                    health.barred(true);
                    health.lease_tick(true);
                    why
                }
                Err(Barred::Unread(why)) => {
                    health.lease_tick(false);
                    why
                }
            };
            if why != said {
                tracing::error!("{why}; waiting");
                said = why;
            }
            sleep(RENEW_EVERY).await;
        }
    }

    /// Whether this process may lead, and whether its Lease was adopted after another.
    pub(super) async fn look(&self) -> Result<bool, Barred> {
        let read = self.definition.get_metadata_opt(DEFINITION);
        let read = call(&self.metrics, Call::Definition, CALL, read).await;
        let unread = |why: String| {
            Barred::Unread(format!(
                "cannot read the definition {DEFINITION} at {}: {why}",
                self.server
            ))
        };
        let read = read.map_err(|_| unread("timed out".into()))?;
        let read = read.map_err(|error| match &error {
            kube::Error::Api(status) if status.is_forbidden() => unread(format!(
                "{}; grant get on customresourcedefinitions {DEFINITION}, as the chart does",
                causes(&error)
            )),
            _ => unread(causes(&error)),
        })?;
        let definition = read.ok_or_else(|| {
            Barred::Undefined(format!(
                "the definition {DEFINITION} does not exist: {APPLY}"
            ))
        })?;
        let annotations = definition.metadata.annotations.unwrap_or_default();
        self.judge(&annotations)
    }

    /// What the definition's annotations say.
    fn judge(&self, annotations: &BTreeMap<String, String>) -> Result<bool, Barred> {
        let named = annotations.get(LEASE).filter(|name| !name.is_empty());
        match (named, &self.namespace) {
            (None, None) => Ok(false),
            (Some(named), Some(namespace)) if *named == full(namespace) => {
                Ok(annotations.contains_key(ADOPTED_FROM))
            }
            (Some(named), Some(namespace)) => Err(Barred::Another(format!(
                "the definition {DEFINITION} belongs to the installation whose Lease is {named}, and this one's is {}: together they \
                 would write the same floats. End the other one and run `promotion-controller adopt-lease --lease-namespace {namespace}` \
                 as an administrator, or give this one its Lease with --lease-namespace",
                full(namespace)
            ))),
            (Some(named), None) => Err(Barred::Another(format!(
                "the definition {DEFINITION} belongs to the installation whose Lease is {named}, and this one has no election: together \
                 they would write the same floats. Leave out --leader-elect=false and give that Lease with --lease-namespace"
            ))),
            (None, Some(namespace)) => Err(Barred::Unnamed(format!(
                "the definition {DEFINITION} names no Lease, so another installation could lead beside this one: run \
                 `promotion-controller adopt-lease --lease-namespace {namespace}` as an administrator"
            ))),
        }
    }

    /// Resolves when another installation leads. For a process without an election, which renews nothing.
    pub(super) async fn another(&self, health: &Health) -> Refused {
        loop {
            sleep(RENEW_EVERY).await;
            let looked = self.look().await;
            health.lease_tick(!matches!(looked, Err(Barred::Unread(_))));
            match looked {
                Err(Barred::Another(why)) => return Refused(why),
                Err(Barred::Unread(why)) => tracing::debug!("{why}"),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl From<Barred> for Refused {
    fn from(barred: Barred) -> Self {
        let (Barred::Another(why)
        | Barred::Unnamed(why)
        | Barred::Undefined(why)
        | Barred::Unread(why)) = barred;
        Self(why)
    }
}

/// A Lease's name as the annotation has it.
fn full(namespace: &str) -> String {
    format!("{namespace}/{LEASE_NAME}")
}

/// What [`adopt`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Adopted {
    /// The definition named this Lease already.
    Already,
    /// It named none before.
    First,
    /// It named this one before.
    From(String),
}

/// Makes the definition name the Lease of `namespace`. A leader of another Lease ends within [`DURATION`](super::lease::DURATION). The
/// next leader waits for that and for writes on their way, and takes over the unfinished requests.
///
/// # Errors
/// What is missing, or was refused, and what to do.
pub async fn adopt(client: Client, namespace: &str) -> Result<Adopted, String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let place = namespaces.get_metadata_opt(namespace).await;
    if place.map_err(|error| causes(&error))?.is_none() {
        return Err(format!(
            "the namespace {namespace} does not exist; create it, or name another --lease-namespace"
        ));
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = definitions.get_metadata_opt(DEFINITION).await;
    let found = found.map_err(|error| causes(&error))?;
    let found =
        found.ok_or_else(|| format!("the definition {DEFINITION} does not exist; {APPLY}"))?;
    let wanted = full(namespace);
    let annotations = found.metadata.annotations.unwrap_or_default();
    let before = annotations.get(LEASE).filter(|name| !name.is_empty());
    if before == Some(&wanted) {
        return Ok(Adopted::Already);
    }
    let mut change = json!({"metadata": {
        // Nobody has changed it meanwhile.
        "resourceVersion": found.metadata.resource_version,
        "annotations": {LEASE: wanted},
    }});
    if let Some(before) = before {
        change["metadata"]["annotations"][ADOPTED_FROM] = json!(before);
        // An old Lease may say that it was released long ago. Where there is none, the next leader knows that others may have led until now.
        let leases: Api<Lease> = Api::namespaced(client, namespace);
        match leases.delete(LEASE_NAME, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => {
                return Err(format!(
                    "cannot delete the Lease {wanted}: {}",
                    causes(&error)
                ));
            }
        }
    }
    let params = PatchParams::default();
    let change = Patch::Merge(&change);
    match definitions
        .patch_metadata(DEFINITION, &params, &change)
        .await
    {
        Ok(_) => Ok(before.map_or(Adopted::First, |before| Adopted::From(before.clone()))),
        Err(kube::Error::Api(status)) if status.is_conflict() => Err(format!(
            "somebody changed the definition {DEFINITION} meanwhile; run this again"
        )),
        Err(error) => Err(format!(
            "cannot change the definition {DEFINITION}: {}",
            causes(&error)
        )),
    }
}
