//! Control planes that one test at a time has to itself: what a cluster has only once may be changed there.

use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::ClusterResourceScope;
use kube::runtime::wait::{await_condition, conditions};
use parking_lot::Mutex;
use promotion_controller::controller::installation::DEFINITION;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ControlPlane, PATIENCE, shared};

/// So many at most, as each takes memory and some of the processor all the time.
static PERMITS: Semaphore = Semaphore::const_new(6);
/// Each is started by the first test that finds none free.
static FREE: Mutex<Vec<&'static ControlPlane>> = Mutex::new(Vec::new());

/// While it is held, the control plane is nobody else's.
pub struct Turn {
    plane: &'static ControlPlane,
    _permit: SemaphorePermit<'static>,
}

/// Waits for its turn at a control plane that serves, without our definition and without a release of the chart.
pub async fn own_plane() -> (Turn, &'static ControlPlane) {
    let permit = PERMITS.acquire().await.unwrap();
    // Everything is built, by whoever needs it first.
    shared().await;
    let free = FREE.lock().pop();
    let plane = match free {
        Some(plane) => {
            plane.stop_controllers();
            if !plane.serves().await {
                plane.restart_apiserver().await.unwrap();
            }
            clear(plane).await;
            plane
        }
        None => Box::leak(Box::new(ControlPlane::start().await.unwrap())),
    };
    let turn = Turn {
        plane,
        _permit: permit,
    };
    (turn, plane)
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the permit goes.
        FREE.lock().push(self.plane);
    }
}

/// Takes away what a test leaves: our definition with all requests, and what the chart makes for the whole cluster.
async fn clear(plane: &ControlPlane) {
    let client = plane.client().unwrap();
    // Those first that could refuse the rest.
    delete_released::<ValidatingAdmissionPolicyBinding>(&client).await;
    delete_released::<ValidatingAdmissionPolicy>(&client).await;
    delete_released::<ClusterRoleBinding>(&client).await;
    delete_released::<ClusterRole>(&client).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    let Some(definition) = definitions.get_opt(DEFINITION).await.unwrap() else {
        return;
    };
    // The API server goes by a policy for a moment after it is gone; what one of the chart's refuses shows when none of them holds.
    let back =
        Patch::Merge(json!({"metadata": {"labels": {"app.kubernetes.io/version": "0.0.1"}}}));
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let end = Instant::now() + PATIENCE;
    while let Err(error) = definitions.patch_metadata(DEFINITION, &dry, &back).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let now = DeleteParams::default();
    definitions.delete(DEFINITION, &now).await.unwrap();
    let uid = definition.metadata.uid.unwrap();
    let gone = await_condition(definitions, DEFINITION, conditions::is_deleted(&uid));
    gone.await.unwrap();
}

async fn delete_released<K>(client: &kube::Client)
where
    K: kube::Resource<Scope = ClusterResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let ours = ListParams::default().labels("app.kubernetes.io/name=promotion-controller");
    let (all, now): (Api<K>, _) = (Api::all(client.clone()), DeleteParams::default());
    all.delete_collection(&now, &ours).await.unwrap();
}
