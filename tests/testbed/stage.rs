//! Where a controller is tried: a namespace of the real API server, controller processes on it, requests in it.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use super::PATIENCE;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use promotion_controller::api::{PromotionRequest, PromotionRequestStatus, crd_yaml};
use promotion_controller::controller::installation::{ADOPTED_FROM, DEFINITION, LEASE};
use promotion_controller::controller::lease;
use quaylike::Gate;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{ControlPlane, RunDir, Signal, Supervised, Turn, own_plane, shared};

/// How often a test looks.
pub const LOOK: Duration = Duration::from_millis(50);

/// An argument for [`Stage::controller`]: all namespaces, which wants a control plane of the test's own.
pub const EVERYWHERE: &str = "everywhere";

/// A namespace and a folder of a test's own.
pub struct Stage {
    pub plane: &'static ControlPlane,
    pub namespace: String,
    pub folder: RunDir,
    /// At the control plane of those who elect a leader, of which there is one for a definition.
    _turn: Option<Turn>,
}

/// A controller process.
pub struct Controller {
    process: Supervised,
    log: PathBuf,
}

/// The shared control plane, serving the CRD.
pub async fn plane() -> &'static ControlPlane {
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    let plane = shared().await;
    APPLIED
        .get_or_try_init(|| async { plane.apply_crds(&crd_yaml()).await })
        .await
        .unwrap();
    plane
}

/// Lets the definition name a Lease, or none (null), as nobody adopted it.
pub async fn name_lease(plane: &ControlPlane, lease: Value) {
    let api: Api<CustomResourceDefinition> = Api::all(plane.client().unwrap());
    let change = json!({"metadata": {"annotations": {LEASE: lease, ADOPTED_FROM: null}}});
    api.patch(DEFINITION, &PatchParams::default(), &Patch::Merge(&change))
        .await
        .unwrap();
}

impl Stage {
    pub async fn new(prefix: &str) -> Self {
        Self::on(plane().await, prefix).await
    }

    /// Without a Lease.
    pub async fn bare(prefix: &str) -> Self {
        Self::bare_on(plane().await, prefix).await
    }

    /// A namespace of another control plane, with a Lease as an installation makes it.
    pub async fn on(plane: &'static ControlPlane, prefix: &str) -> Self {
        let stage = Self::bare_on(plane, prefix).await;
        let lease: Lease = serde_json::from_value(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": lease::NAME, "annotations": {lease::MADE: "true"}},
        }))
        .unwrap();
        let api: Api<Lease> = Api::namespaced(plane.client().unwrap(), &stage.namespace);
        api.create(&PostParams::default(), &lease).await.unwrap();
        stage
    }

    /// Without a Lease, on another control plane.
    pub async fn bare_on(plane: &'static ControlPlane, prefix: &str) -> Self {
        let namespace = plane.namespace(prefix).await.unwrap();
        Self {
            plane,
            namespace,
            folder: RunDir::create(prefix).unwrap(),
            _turn: None,
        }
    }

    /// A namespace for controllers that elect a leader: the definition names its Lease. No other test has this control plane meanwhile.
    pub async fn elected(prefix: &str) -> Self {
        let (turn, plane) = own_plane().await;
        plane.apply_crds(&crd_yaml()).await.unwrap();
        let stage = Self::on(plane, prefix).await;
        stage.rules().await;
        Self {
            _turn: Some(turn),
            ..stage
        }
    }

    /// Lets the definition name this namespace's Lease.
    pub async fn rules(&self) {
        let lease = format!("{}/promotion-controller", self.namespace);
        name_lease(self.plane, json!(lease)).await;
    }

    /// Starts a controller for this namespace: without election and with the smallest times, unless `arguments` say otherwise. The
    /// first takes the Lease that nobody has held, so that it waits for nothing.
    pub fn controller(&self, arguments: &[&str]) -> Controller {
        self.controller_through(self.plane.kubeconfig(), arguments)
    }

    /// The same, on its way to the API server past whoever the kubeconfig names.
    pub fn controller_through(&self, kubeconfig: &Path, arguments: &[&str]) -> Controller {
        let mut all = vec!["controller".to_owned()];
        let own = |name: &str| arguments.iter().any(|a| a.starts_with(name));
        let everywhere = arguments.contains(&EVERYWHERE);
        if !everywhere {
            all.push(format!("--namespace={}", self.namespace));
        }
        if !own("--leader-elect") {
            all.push("--leader-elect=false".into());
        }
        if !own("--lease-namespace") {
            all.push(format!("--lease-namespace={}", self.namespace));
        }
        if !own("--settle-seconds") {
            all.push("--settle-seconds=3".into());
        }
        if !own("--late-seconds") {
            all.push("--late-seconds=15".into());
        }
        if !own("--allow-registry") {
            all.push("--allow-registry=127.0.0.1:*".into());
            all.push("--allow-registry=localhost:*".into());
        }
        all.extend(
            arguments
                .iter()
                .filter(|a| **a != EVERYWHERE)
                .map(|&a| a.to_owned()),
        );
        let program = Path::new(env!("CARGO_BIN_EXE_promotion-controller"));
        let environment = [
            ("KUBECONFIG", kubeconfig.to_str().unwrap()),
            ("RUST_LOG", "warn,promotion_controller=debug"),
        ];
        let process = Supervised::spawn(
            "controller",
            program,
            &all,
            &environment,
            self.folder.path(),
        )
        .unwrap();
        Controller {
            process,
            log: self.folder.join("controller.log"),
        }
    }

    pub fn requests(&self) -> Api<PromotionRequest> {
        Api::namespaced(self.plane.client().unwrap(), &self.namespace)
    }

    /// A Secret of type dockerconfigjson with one entry per (key, user, password).
    pub async fn secret(&self, name: &str, entries: &[(&str, &str, &str)]) {
        let config = dockerconfig(entries);
        self.secret_of(
            name,
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            &config,
        )
        .await;
    }

    /// A Secret of any type with one key.
    pub async fn secret_of(&self, name: &str, kind: &str, key: &str, content: &str) {
        let secret: Secret = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": name},
            "stringData": {key: content},
        }))
        .unwrap();
        let api: Api<Secret> = Api::namespaced(self.plane.client().unwrap(), &self.namespace);
        api.create(&PostParams::default(), &secret).await.unwrap();
    }

    pub async fn create(&self, name: &str, spec: &Value) -> PromotionRequest {
        let object = object(name, spec);
        self.requests()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    /// Changes a request's spec.
    pub async fn edit(&self, name: &str, spec: &Value) -> PromotionRequest {
        self.patch(name, &json!({ "spec": spec })).await
    }

    /// Changes the request as a user does.
    pub async fn patch(&self, name: &str, change: &Value) -> PromotionRequest {
        let change = Patch::Merge(change);
        let params = PatchParams::default();
        self.requests().patch(name, &params, &change).await.unwrap()
    }

    pub async fn delete(&self, name: &str) {
        let params = DeleteParams::default();
        self.requests().delete(name, &params).await.unwrap();
    }

    /// The events of a request, oldest first.
    pub async fn events(&self, name: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.plane.client().unwrap(), &self.namespace);
        let mut events = api.list(&ListParams::default()).await.unwrap().items;
        events.retain(|event| {
            let regarding = event.regarding.as_ref();
            regarding.and_then(|object| object.name.as_deref()) == Some(name)
        });
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        events
    }

    /// The events of a request once the last of them has this reason.
    ///
    /// # Panics
    /// With the events, if that does not happen within `patience`.
    pub async fn events_until(&self, name: &str, last: &str, patience: Duration) -> Vec<Event> {
        let end = Instant::now() + patience;
        loop {
            let events = self.events(name).await;
            if events.last().and_then(|event| event.reason.as_deref()) == Some(last) {
                return events;
            }
            assert!(
                Instant::now() < end,
                "{name} has no event {last}: {events:#?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn get(&self, name: &str) -> PromotionRequest {
        self.requests().get(name).await.unwrap()
    }

    /// The request once `wanted` is true of its status.
    ///
    /// # Panics
    /// With the status, if that does not happen within `patience`.
    pub async fn until(
        &self,
        name: &str,
        patience: Duration,
        wanted: impl Fn(&PromotionRequestStatus) -> bool,
    ) -> PromotionRequest {
        let end = Instant::now() + patience;
        loop {
            let object = self.get(name).await;
            let status = object.status.clone().unwrap_or_default();
            if wanted(&status) {
                return object;
            }
            assert!(
                Instant::now() < end,
                "{name} after {patience:?}: {}\n{}",
                serde_json::to_string_pretty(&status).unwrap(),
                std::fs::read_to_string(self.folder.join("controller.log")).unwrap_or_default()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The request once it has ended.
    pub async fn finished(&self, name: &str, patience: Duration) -> PromotionRequest {
        self.until(name, patience, |status| status.completion_time.is_some())
            .await
    }

    /// Waits until the controller stands at a gate.
    ///
    /// # Panics
    /// With the controller's log, if it does not come.
    pub async fn reached(&self, gate: &Gate) {
        let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
        assert!(reached.is_ok(), "nobody came to the gate:\n{}", self.log());
    }

    pub async fn list(&self) -> Vec<PromotionRequest> {
        self.requests()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    /// The controller's log so far, for a test that has failed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("controller.log")).unwrap_or_default()
    }
}

impl Controller {
    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Waits until its log has these words.
    ///
    /// # Panics
    /// With the log, if that takes too long.
    pub async fn says(&self, words: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < end, "no '{words}':\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The exit code, as soon as it has ended.
    ///
    /// # Panics
    /// With the log, if that takes too long.
    pub async fn ended(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(code) = self.exit_code() {
                return code;
            }
            assert!(Instant::now() < end, "still runs:\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The exit code, once it has ended.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.process.exit_code()
    }

    /// The highest resident memory of the process so far, in bytes; none once it is gone.
    pub fn peak_memory(&self) -> Option<u64> {
        self.process.peak_memory()
    }

    /// Its processor time so far; none once it is gone.
    pub fn cpu(&self) -> Option<Duration> {
        self.process.cpu()
    }

    /// The number of the process; none once it is gone.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub fn object(name: &str, spec: &Value) -> PromotionRequest {
    serde_json::from_value(json!({
        "apiVersion": "ci.openshift.io/v1alpha1",
        "kind": "PromotionRequest",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

/// A dockerconfigjson with one entry per (key, user, password).
pub fn dockerconfig(entries: &[(&str, &str, &str)]) -> String {
    let auths: serde_json::Map<String, Value> = entries
        .iter()
        .map(|(key, user, password)| {
            let entry = json!({"username": user, "password": password});
            ((*key).to_owned(), entry)
        })
        .collect();
    json!({"auths": auths}).to_string()
}

/// A spec that promotes (source, float) pairs.
pub fn spec(images: &[(&str, &str)]) -> Value {
    let images: Vec<Value> = images
        .iter()
        .map(|(source, float)| json!({"source": source, "float": float}))
        .collect();
    json!({"images": images})
}

/// A condition's status, reason and message.
pub fn condition<'a>(object: &'a PromotionRequest, kind: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = &object.status.as_ref().unwrap().conditions;
    let condition = conditions.iter().find(|c| c.type_ == kind).unwrap();
    (&condition.status, &condition.reason, &condition.message)
}

pub fn phase(object: &PromotionRequest) -> &str {
    object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}
