//! A namespace with a registry, and what a whole promotion has to leave there.

pub use crate::testbed::PATIENCE;
use std::path::Path;
use std::time::{Duration, Instant};

use promotion_controller::api::{PromotionRequest, crd_yaml};
use quaylike::{ImageSpec, Registry, Shape};
use serde_json::Value;

use crate::testbed::floats::{audited, put};
use crate::testbed::stage::{Controller, LOOK, Stage, phase, spec};
use crate::testbed::{ControlPlane, Turn, own_plane};

/// A namespace, and a registry with both sources and floats.
pub struct Ground {
    pub stage: Stage,
    pub registry: Registry,
}

/// A control plane that this test has to itself: it may be killed, and lose its definitions.
pub async fn alone() -> (Turn, &'static ControlPlane) {
    let (turn, plane) = own_plane().await;
    plane.apply_crds(&crd_yaml()).await.unwrap();
    (turn, plane)
}

impl Ground {
    pub async fn new(prefix: &str) -> Self {
        Self::of(Stage::new(prefix).await).await
    }

    pub async fn of(stage: Stage) -> Self {
        let registry = Registry::start(audited()).await.unwrap();
        Self { stage, registry }
    }

    pub fn controller(&self, arguments: &[&str]) -> Controller {
        let flag = format!("--plain-http={}", self.registry.host());
        let mut all = vec![flag.as_str()];
        all.extend(arguments);
        self.stage.controller(&all)
    }

    pub fn controller_through(&self, kubeconfig: &Path, arguments: &[&str]) -> Controller {
        let flag = format!("--plain-http={}", self.registry.host());
        let mut all = vec![flag.as_str()];
        all.extend(arguments);
        self.stage.controller_through(kubeconfig, &all)
    }

    /// Puts a float on an image of its own.
    pub fn old(&self, tag: &str) -> String {
        let spec = ImageSpec::new(Shape::Oci, &format!("old {tag}"));
        self.registry
            .seed_spec("ci", tag, &spec)
            .unwrap()
            .to_string()
    }

    /// A source in a repository of its own: its digest, and how a request names it.
    pub fn source(&self, name: &str) -> (String, String) {
        let spec = ImageSpec::new(Shape::Oci, &format!("new {name}"));
        let repository = format!("src/{name}");
        let digest = self.registry.seed_spec(&repository, "x", &spec).unwrap();
        let reference = format!("{}/{repository}@{digest}", self.registry.host());
        (digest.to_string(), reference)
    }

    pub fn float(&self, tag: &str) -> String {
        format!("{}/ci:{tag}", self.registry.host())
    }

    /// A spec that promotes a source of this name to a float, and the source's digest.
    pub fn request(&self, source: &str, tag: &str) -> (String, Value) {
        let (digest, reference) = self.source(source);
        (digest, spec(&[(&reference, &self.float(tag))]))
    }

    /// The digests a tag has had, oldest first.
    pub fn history(&self, tag: &str) -> Vec<String> {
        let changes = self.registry.history("ci", tag);
        let digests = changes.into_iter().filter_map(|change| change.digest);
        digests.map(|digest| digest.to_string()).collect()
    }

    pub fn at(&self, tag: &str) -> Option<String> {
        self.registry
            .tag("ci", tag)
            .map(|digest| digest.to_string())
    }

    /// How often a tag was put, whatever came of it.
    pub fn puts(&self, tag: &str) -> usize {
        self.registry.count(&put(tag))
    }

    /// A promotion of `old` to `new` that nothing disturbed at the registry: every tag put once, one prune tag, no attempt
    /// used.
    pub fn assert_promoted_once(
        &self,
        request: &PromotionRequest,
        tag: &str,
        old: &str,
        new: &str,
    ) {
        assert_eq!(phase(request), "Posted", "{}", self.stage.log());
        let image = &request.status.as_ref().unwrap().images[0];
        assert_eq!(image.attempts, None, "{image:?}");
        assert_eq!(image.displaced.len(), 1, "{image:?}");
        let prune = &image.displaced[0];
        assert_eq!(prune.digest, old);
        assert_eq!(self.history(tag), [old, new]);
        let pins = [
            (prune.prune_tag.clone(), old),
            (format!("{tag}_incoming"), new),
            (format!("{tag}__pre"), old),
            (format!("{tag}__post1"), new),
        ];
        for (pin, digest) in &pins {
            assert_eq!(self.at(pin).as_deref(), Some(*digest), "{pin}");
            assert_eq!(self.puts(pin), 1, "{pin}");
        }
        assert_eq!(self.puts(tag), 1, "{tag}");
        let suffix = format!("_prune_{tag}");
        let tags = self.registry.tags("ci");
        let prunes = tags.keys().filter(|name| name.ends_with(&suffix));
        assert_eq!(prunes.count(), 1, "{tags:?}");
    }

    pub fn assert_sound(&self) {
        let trail = self.registry.audit_trail();
        assert!(trail.is_empty(), "{trail:?}\n{}", self.stage.log());
        assert!(self.registry.dangling().is_empty());
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, patience: Duration, wanted: impl Fn() -> bool) {
    let end = Instant::now() + patience;
    while !wanted() {
        assert!(
            Instant::now() < end,
            "{what} did not happen within {patience:?}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a request waits for a reason.
pub fn waits_for(request: &PromotionRequest, reason: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|c| c.type_ == "Progressing" && c.status == "True" && c.reason == reason)
}
