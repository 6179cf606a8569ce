//! One installation for each definition of `PromotionRequest`.
//!
//! The annotation [`LEASE`] of the definition names the Lease, `NAMESPACE/NAME`, whose holder alone may write floats. Whoever
//! installs writes it where it is absent; only [`adopt`], run by an administrator, changes it. A controller leads only while its own
//! Lease is the one named: it looks before it waits for the lease, when it has got it, and before each renewal, and a renewal whose
//! look failed is none. Trust counts from a renewal that was sent at most three seconds after its look, and lasts ten: what led under
//! another name writes nothing more [`DURATION`](super::lease::DURATION) after the change. Whoever comes after an adoption waits that long.
//!
//! A controller without an election may run where no Lease is named, and ends when one is.

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
/// The annotation that names the Lease before it: what [`adopt`] changes from. The chart's guard takes no change without it.
pub const ADOPTED_FROM: &str = "ci.openshift.io/lease-adopted-from";
/// The definition.
pub const DEFINITION: &str = "promotionrequests.ci.openshift.io";
/// What puts it there.
pub(super) const APPLY: &str =
    "apply the CRD: kubectl apply -f crds/promotionrequests.yaml, or install the chart";
/// How long a look may take.
const CALL: Duration = Duration::from_secs(3);

/// The Lease that a process would hold, beside the one that the definition names.
#[derive(Clone)]
pub struct Installation {
    definition: Api<CustomResourceDefinition>,
    /// The address of the API server, for whoever cannot reach it.
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

    /// What the definition's annotations come to.
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

    /// Resolves when another installation rules; for a process without an election, which renews nothing.
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

/// What [`adopt`] came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Adopted {
    /// The definition named this Lease already.
    Already,
    /// It named none before.
    First,
    /// It named this one before.
    From(String),
}

/// Lets the definition name the Lease of `namespace`. Whoever led under another name ends within [`DURATION`](super::lease::DURATION); who leads next
/// waits for that and for writes on their way, and takes over what the other left unfinished.
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
        // One that is there was given back in another time: who finds none knows that others may have led until now.
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
