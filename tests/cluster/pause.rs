//! The pause: the ConfigMap `promotion-controller`, by which an operator pauses the controller.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use quaylike::{GateSpec, Matcher, Options, Registry};
use serde_json::json;

use super::ground::{Ground, PATIENCE, waits_for};
use crate::metrics::Scraped;
use crate::testbed::floats::put;
use crate::testbed::free_port;
use crate::testbed::stage::{Controller, condition, phase, spec};

/// Longer than it takes to hear of the ConfigMap and to save a status.
const A_WHILE: Duration = Duration::from_secs(3);

impl Ground {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.stage.plane.client().unwrap(), &self.stage.namespace)
    }

    /// As an operator does: `kubectl create configmap promotion-controller --from-literal=paused=…`, or a patch of it.
    pub async fn pause(&self, what: &str) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "promotion-controller"},
            "data": {"paused": what},
        });
        let params = PatchParams::apply("operator").force();
        let map = Patch::Apply(&map);
        self.maps()
            .patch("promotion-controller", &params, &map)
            .await
            .unwrap();
    }

    pub async fn go_on(&self) {
        let params = DeleteParams::default();
        self.maps()
            .delete("promotion-controller", &params)
            .await
            .unwrap();
    }

    fn braked(&self, arguments: &[&str]) -> Controller {
        let here = format!("--lease-namespace={}", self.stage.namespace);
        let mut all = vec![here.as_str()];
        all.extend(arguments);
        self.controller(&all)
    }

    pub async fn paused(&self, name: &str) -> String {
        let paused = |status: &promotion_controller::api::PromotionRequestStatus| {
            let progressing = status.conditions.iter().find(|c| c.type_ == "Progressing");
            progressing.is_some_and(|c| c.status == "True" && c.reason == "Paused")
        };
        let object = self.stage.until(name, PATIENCE, paused).await;
        condition(&object, "Progressing").2.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_tag_writes_end_and_launches_nothing_and_going_on_promotes_once() {
    let ground = Ground::new("pause").await;
    // The PUT at the gate is waited for until the pause is heard of, on a busy machine too.
    let _controller = ground.braked(&["--settle-seconds=10"]);
    let old = ground.old("f");
    let (new, images) = ground.request("a", "f");
    let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
    ground.stage.create("begun", &images).await;
    ground.stage.reached(&gate).await;
    ground.pause("all").await;
    let (_, others) = ground.request("b", "other");
    ground.stage.create("fresh", &others).await;
    let place = format!("ConfigMap {}/promotion-controller", ground.stage.namespace);
    let why = format!("paused by {place} (paused: all); remove the key to resume");
    assert!(ground.paused("fresh").await.starts_with(&why));
    // The write that is on its way ends, is recorded, and nothing follows.
    gate.open();
    let held = ground
        .stage
        .until("begun", PATIENCE, |status| {
            status.phase.as_deref() == Some("BackedUp")
        })
        .await;
    let held_by = condition(&held, "Progressing").2;
    assert!(held_by.starts_with(&why), "{held_by}");
    let image = &held.status.as_ref().unwrap().images[0];
    assert_eq!(image.reason.as_deref(), Some("Paused"));
    let asked = ground.registry.count(&Matcher::default());
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(
        ground.registry.count(&Matcher::default()),
        asked,
        "{}",
        ground.stage.log()
    );
    assert!(ground.at("other").is_none() && ground.at("f") == Some(old.clone()));
    ground.go_on().await;
    let begun = ground.stage.finished("begun", PATIENCE).await;
    let fresh = ground.stage.finished("fresh", PATIENCE).await;
    ground.assert_promoted_once(&begun, "f", &old, &new);
    assert_eq!(phase(&fresh), "Posted");
    for request in [&begun, &fresh] {
        let image = &request.status.as_ref().unwrap().images[0];
        assert!(image.attempts.is_none() && image.reason.as_deref() != Some("Paused"));
    }
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_registry_is_stopped_and_what_has_to_do_with_others_alone_goes_on() {
    let ground = Ground::new("pause-host").await;
    let other = Registry::start(Options::default()).await.unwrap();
    ground.pause(&other.host()).await;
    let flag = format!("--plain-http={}", other.host());
    let port = free_port().unwrap();
    let listen = format!("--listen=127.0.0.1:{port}");
    let _controller = ground.braked(&[&flag, &listen]);
    let (_, here) = ground.request("a", "f");
    let (_, source) = ground.source("b");
    let there = spec(&[(&source, &format!("{}/ci:g", other.host()))]);
    ground.stage.create("there", &there).await;
    ground.stage.create("here", &here).await;
    let here = ground.stage.finished("here", PATIENCE).await;
    assert_eq!(phase(&here), "Posted");
    let why = ground.paused("there").await;
    assert!(why.contains(&format!("paused: {}", other.host())), "{why}");
    assert_eq!(other.count(&Matcher::default()), 0);
    let scraped = Scraped::of(port).await.unwrap();
    assert_eq!(scraped.sum(r#"paused{scope="hosts"}"#), 1);
    assert_eq!(scraped.sum(r#"requests{reason="Paused"}"#), 1);
    ground.pause("false").await;
    let there = ground.stage.finished("there", PATIENCE).await;
    assert_eq!(phase(&there), "Posted");
    assert!(other.tag("ci", "g").is_some());
    let scraped = Scraped::of(port).await.unwrap();
    assert_eq!(scraped.sum("paused"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_starts_under_a_brake_it_cannot_read_contacts_no_registry() {
    let ground = Ground::new("pause-start").await;
    ground.pause("yes, please").await;
    let (new, images) = ground.request("a", "f");
    ground.stage.create("r", &images).await;
    let controller = ground.braked(&[]);
    let why = ground.paused("r").await;
    assert!(why.contains("neither all nor HOST[:PORT]"), "{why}");
    assert_eq!(ground.registry.count(&Matcher::default()), 0);
    // Corrected while nobody looks.
    controller.kill();
    ground.pause("registry.example.com").await;
    let _next = ground.braked(&[]);
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!((phase(&done), ground.at("f")), ("Posted", Some(new)));
    assert!(!waits_for(&done, "Paused"));
}
