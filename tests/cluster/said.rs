//! What a request says of itself while it is at work: how far a copy is, what it waits for, and whether it is done.

use std::time::Duration;

use promotion_controller::api::PromotionRequest;
use quaylike::{GateSpec, ImageBuilder, Layer, Matcher, Registry, RequestKind};
use serde_json::json;

use crate::ground::Ground;
use crate::testbed::floats::audited;
use crate::testbed::stage::{condition, spec};

const PATIENCE: Duration = Duration::from_secs(90);
const LAYER: u64 = 1 << 20;

/// What kstatus, and with it Flux, takes for the state: nothing is current while one of these is True.
fn kstatus(object: &PromotionRequest) -> (&str, &str) {
    (
        condition(object, "Reconciling").0,
        condition(object, "Stalled").0,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_copy_is_shows_within_the_status_interval_and_goes_with_the_copy() {
    let ground = Ground::new("said").await;
    let source = Registry::start(audited()).await.unwrap();
    let plain = format!("--plain-http={}", source.host());
    let _controller = ground.controller(&[&plain]);
    let image = ImageBuilder::oci("large")
        .layer(Layer::sized("one", LAYER))
        .layer(Layer::sized("two", LAYER))
        .build()
        .unwrap();
    let digest = source.seed_image("src/x", "x", &image).unwrap();
    let blob = Matcher::kind(RequestKind::Blob).method("GET");
    let gate = source.gate(GateSpec::before(blob).nth(2));
    let reference = format!("{}/src/x@{digest}", source.host());
    ground
        .stage
        .create("r", &spec(&[(&reference, &ground.float("f"))]))
        .await;
    ground.stage.reached(&gate).await;
    let during = ground
        .stage
        .until("r", PATIENCE, |status| {
            let image = status.images.first();
            image.is_some_and(|image| image.copied_now > Some(0))
        })
        .await;
    let image = &during.status.as_ref().unwrap().images[0];
    let (copied, total) = (image.copied_now.unwrap(), image.copy_total.unwrap());
    assert!(
        copied < total && u64::try_from(total).unwrap() >= 2 * LAYER,
        "{copied} of {total}"
    );
    assert_eq!(image.bytes_copied, None);
    let (_, reason, message) = condition(&during, "Progressing");
    assert_eq!(reason, "Pending");
    assert!(
        message.contains("; copied ") && message.contains(" of 2.0 MiB"),
        "{message}"
    );
    assert_eq!(kstatus(&during), ("True", "False"));
    // What there is to say is said once.
    let said = during
        .status
        .as_ref()
        .unwrap()
        .conditions
        .iter()
        .filter(|c| !c.message.is_empty());
    assert_eq!(said.count(), 1);
    gate.open();
    let done = ground.stage.finished("r", PATIENCE).await;
    let image = &done.status.as_ref().unwrap().images[0];
    assert_eq!((image.copied_now, image.copy_total), (None, None));
    assert_eq!(image.bytes_copied, Some(total));
    assert_eq!(kstatus(&done), ("False", "False"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_waited_for_is_an_event_and_a_failure_is_stalled() {
    let ground = Ground::new("waits").await;
    let _controller = ground.controller(&[]);
    let (_, mut images) = ground.request("one", "f");
    images["pushSecret"] = json!({"name": "absent"});
    ground.stage.create("r", &images).await;
    let events = ground
        .stage
        .events_until("r", "SecretNotFound", PATIENCE)
        .await;
    let event = events.last().unwrap();
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert!(
        event
            .note
            .as_deref()
            .unwrap()
            .contains("absent does not exist"),
        "{event:?}"
    );
    assert_eq!(kstatus(&ground.stage.get("r").await), ("True", "False"));
    ground
        .stage
        .patch("r", &json!({"spec": {"cancel": true}}))
        .await;
    let ended = ground.stage.finished("r", PATIENCE).await;
    assert_eq!(kstatus(&ended), ("False", "True"));
    let waits = ground.stage.events("r").await.into_iter();
    let waits: Vec<_> = waits
        .filter(|e| e.reason.as_deref() == Some("SecretNotFound"))
        .collect();
    assert!(waits.len() == 1 && waits[0].series.is_none(), "{waits:#?}");
}
