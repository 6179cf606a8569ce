//! What the traces stand on: a controller in the test's process on the real API server, a registry with faults, and words for
//! what is on it.
//!
//! Guaranteed: a controller that is crashed does nothing more; every wait ends, showing status and registry.

pub use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::api::PostParams;
use promotion_controller::api::{ImageStatus, PromotionRequest};
use promotion_controller::controller::{Config, run};
use promotion_controller::engine;
use promotion_controller::policy::Policy;
use promotion_controller::registry::{self, RegistryClient};
use promotion_controller::store::credentials::CredentialFiles;
use promotion_controller::store::streams::StreamSettings;
use quaylike::{Digest, Gate, GateSpec, LoggedRequest, Matcher, Registry};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

pub use crate::testbed::floats::{FLOATS, image, look, put};
use crate::testbed::stage::{LOOK, Stage, object, phase};

/// How long a tag write may take to land: short, and long enough that a busy machine keeps within it.
pub const SETTLE: Duration = Duration::from_millis(2500);
/// For traces in which something has to happen within the settle time.
pub const LONG_SETTLE: Duration = Duration::from_secs(8);
/// When a tag PUT without an answer is given up.
pub const PUT: Duration = Duration::from_secs(1);
/// So much longer one without an answer may take to land.
const LATER: Duration = Duration::from_millis(500);
/// The repository of the sources.
pub const SOURCES: &str = "src/pipeline";

/// A namespace, a registry, and what the test does with them.
pub struct Ground {
    pub stage: Stage,
    pub registry: Registry,
    pub host: String,
}

/// A controller in this process, on threads of its own.
pub struct Inside {
    runtime: Option<Runtime>,
}

/// Writes of its prune tags.
pub fn put_prune(tag: &str) -> Matcher {
    Matcher::put_manifest()
        .repository(FLOATS)
        .reference_suffix(&format!("_prune_{tag}"))
}

/// Looks at its prune tags.
pub fn look_prune(tag: &str) -> Matcher {
    let matcher = Matcher::kind(quaylike::RequestKind::Manifest).method("GET");
    matcher
        .repository(FLOATS)
        .reference_suffix(&format!("_prune_{tag}"))
}

pub fn displaced(object: &PromotionRequest) -> Vec<String> {
    let pins = first_image(object).displaced.into_iter();
    pins.map(|pin| pin.digest).collect()
}

pub fn rescued(object: &PromotionRequest) -> Vec<String> {
    let pins = first_image(object).rescued.into_iter();
    pins.map(|pin| pin.digest).collect()
}

pub fn texts(digests: &[Digest]) -> Vec<String> {
    digests.iter().map(ToString::to_string).collect()
}

pub fn first_image(object: &PromotionRequest) -> ImageStatus {
    let images = object.status.clone().unwrap_or_default().images;
    images.into_iter().next().unwrap()
}

impl Ground {
    pub async fn new(prefix: &str) -> Self {
        let registry = Registry::start(audited()).await.unwrap();
        registry.create_repository(FLOATS);
        Self {
            stage: Stage::new(prefix).await,
            host: registry.host(),
            registry,
        }
    }

    /// Puts an image under a tag of the floats' repository.
    pub fn seed(&self, tag: &str, seed: &str) -> Digest {
        self.registry.seed_image(FLOATS, tag, &image(seed)).unwrap()
    }

    /// Makes a source of this name; its image is that of [`image`].
    pub fn source(&self, seed: &str) -> Digest {
        self.registry
            .seed_image(SOURCES, seed, &image(seed))
            .unwrap()
    }

    /// Moves a tag as somebody else would: an image of this seed is pushed to it.
    pub fn foreign(&self, tag: &str, seed: &str) -> Digest {
        self.seed(tag, seed)
    }

    pub fn controller(&self, settle: Duration) -> Inside {
        Inside::start(&self.stage, &self.host, settle, PUT)
    }

    /// A controller that waits so long for the answer to a tag PUT.
    pub fn patient_controller(&self, put_timeout: Duration) -> Inside {
        Inside::start(&self.stage, &self.host, put_timeout + SETTLE, put_timeout)
    }

    /// Creates a request for one float from a source of this seed.
    pub async fn promote(&self, name: &str, seed: &str, float: &str) {
        let source = format!("{}/{SOURCES}@{}", self.host, self.source(seed));
        self.request(name, &source, float, &json!({})).await;
    }

    /// Creates a request for one float from a tag or digest of the floats' repository itself, beginning with `:` or `@`.
    pub async fn promote_own(&self, name: &str, reference: &str, float: &str) {
        let source = format!("{}/{FLOATS}{reference}", self.host);
        self.request(name, &source, float, &json!({})).await;
    }

    pub async fn request(&self, name: &str, source: &str, float: &str, more: &Value) {
        let mut spec = json!({
            "images": [{"source": source, "float": format!("{}/{FLOATS}:{float}", self.host)}],
            "attempts": 20,
        });
        let fields = spec.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let request = object(name, &spec);
        let params = PostParams::default();
        self.stage
            .requests()
            .create(&params, &request)
            .await
            .unwrap();
    }

    /// The request, Posted.
    pub async fn posted(&self, name: &str) -> PromotionRequest {
        let done = self.ended(name).await;
        assert_eq!(phase(&done), "Posted", "{name}: {}", self.told(&done));
        done
    }

    /// The request, once it has ended.
    pub async fn ended(&self, name: &str) -> PromotionRequest {
        self.until(name, |object| {
            object
                .status
                .as_ref()
                .is_some_and(|status| status.completion_time.is_some())
        })
        .await
    }

    pub async fn until(
        &self,
        name: &str,
        wanted: impl Fn(&PromotionRequest) -> bool,
    ) -> PromotionRequest {
        let end = Instant::now() + PATIENCE;
        loop {
            let object = self.stage.get(name).await;
            if wanted(&object) {
                return object;
            }
            assert!(
                Instant::now() < end,
                "{name} after {PATIENCE:?}: {}",
                self.told(&object)
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The request once the reason it waits or works for is `reason`.
    pub async fn reason(&self, name: &str, reason: &str) -> PromotionRequest {
        self.until(name, |object| {
            let conditions = object.status.iter().flat_map(|status| &status.conditions);
            conditions
                .into_iter()
                .any(|c| c.type_ == "Progressing" && c.reason == reason)
        })
        .await
    }

    pub fn gate(&self, spec: GateSpec) -> Gate {
        self.registry.gate(spec)
    }

    /// Waits until a request stands at the gate.
    pub async fn reached(&self, gate: &Gate) -> LoggedRequest {
        let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
        assert!(reached.is_ok(), "nothing has come:\n{}", self.log());
        reached.unwrap()
    }

    /// That a float was moved to `new` off `old`, and that these digests are pinned.
    pub fn assert_promoted(&self, float: &str, new: Digest, old: Digest, pinned: &[Digest]) {
        let [incoming, pre, post] =
            ["_incoming", "__pre", "__post1"].map(|end| format!("{float}{end}"));
        let tags: [(&str, Digest); 4] = [(float, new), (&incoming, new), (&pre, old), (&post, new)];
        self.assert_tags(&tags, pinned);
    }

    /// Asserts the whole of the floats' repository: every tag but the prune tags, and the digests that prune tags pin, each as
    /// often as it is pinned. And that no tag ever dangled.
    pub fn assert_tags(&self, tags: &[(&str, Digest)], pruned: &[Digest]) {
        let mut expected: BTreeMap<String, Digest> = BTreeMap::new();
        expected.extend(
            tags.iter()
                .map(|(tag, digest)| ((*tag).to_owned(), *digest)),
        );
        let (pins, others): (BTreeMap<_, _>, BTreeMap<_, _>) = self
            .registry
            .tags(FLOATS)
            .into_iter()
            .partition(|(tag, _)| tag.contains("_prune_"));
        let mut pinned: Vec<Digest> = pins.values().copied().collect();
        let mut pruned = pruned.to_vec();
        pinned.sort_unstable();
        pruned.sort_unstable();
        assert_eq!(others, expected, "{}", self.log());
        assert_eq!(pinned, pruned, "{pins:?}\n{}", self.log());
        let dangled = self.registry.audit_trail();
        assert!(dangled.is_empty(), "{dangled:?}\n{}", self.log());
    }

    /// How often the one fault in force has injected.
    pub fn injected(&self) -> u64 {
        self.registry.rules().iter().map(|rule| rule.injected).sum()
    }

    /// Waits until a fault has injected so often.
    pub async fn until_injected(&self, times: u64) {
        let end = Instant::now() + PATIENCE;
        while self.injected() < times {
            assert!(Instant::now() < end, "not injected:\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    fn told(&self, object: &PromotionRequest) -> String {
        let status = serde_json::to_string_pretty(&object.status).unwrap();
        format!("{status}\n{}", self.log())
    }

    /// The manifest requests, for whoever reads a failed test.
    pub fn log(&self) -> String {
        let manifests = Matcher::kind(quaylike::RequestKind::Manifest);
        let entries = self.registry.requests(&manifests).into_iter();
        let line = |entry: LoggedRequest| {
            let status = entry.status.map_or("-".into(), |status| status.to_string());
            format!(
                "{} {} {} {}:{} {status} {:?}",
                entry.seq, entry.time, entry.method, entry.repository, entry.reference, entry.phase
            )
        };
        entries.map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Inside {
    pub fn start(stage: &Stage, host: &str, settle: Duration, put_timeout: Duration) -> Self {
        crate::testbed::install_tls();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let settings = registry::Settings {
            plain_http: vec![host.into()],
            qps: 0,
            put_timeout,
            ..registry::Settings::default()
        };
        let rest = Duration::from_millis(100);
        let config = {
            // The client's tasks belong to the controller's threads.
            let _inside = runtime.enter();
            Config {
                client: stage.plane.client().unwrap(),
                server: stage.plane.server().to_owned(),
                namespace: Some(stage.namespace.clone()),
                lease_namespace: None,
                pause_namespace: stage.namespace.clone(),
                identity: "inside".into(),
                registry: RegistryClient::with_backoff(settings, rest, rest * 10).unwrap(),
                policy: Policy::default(),
                credentials: CredentialFiles::none(),
                streams: StreamSettings::default(),
                engine: engine::Settings {
                    settle,
                    late: settle + LATER,
                    status_interval: Duration::from_millis(200),
                    namespace_max: 0,
                },
                sweep_interval: Duration::from_mins(5),
                listener: None,
                probes: None,
            }
        };
        runtime.spawn(async {
            let _ = run(config, std::future::pending()).await;
        });
        Self {
            runtime: Some(runtime),
        }
    }

    /// Ends it as a crash would: everything it does stops where it is.
    pub fn crash(self) {
        drop(self);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
