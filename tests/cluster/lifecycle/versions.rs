//! Controllers of other versions that come and go in the middle of a promotion: what they noted stays, and it is finished.
//!
//! A next version is stood for by what it leaves: its definition, with fields that this one does not know, and statuses that
//! have them.

use std::time::Instant;

use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use promotion_controller::api::{PromotionRequest, PromotionRequestStatus, crd, crd_yaml};
use quaylike::{Gate, GateSpec, Matcher, RequestKind};
use serde_json::{Value, json};

use super::latch;
use crate::ground::{Ground, PATIENCE, alone};
use crate::testbed::Signal;
use crate::testbed::stage::{Controller, LOOK, Stage, condition, phase, spec};

/// The definition of a next version: a field more wherever status has fields.
fn next_crd() -> String {
    let mut next = serde_json::to_value(crd()).unwrap();
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let image = format!("{schema}/status/properties/images/items");
    let note = json!({
        "type": "object",
        "properties": {"text": {"type": "string"}, "list": {"type": "array", "items": {"type": "integer"}}},
    });
    for part in [
        format!("{schema}/status"),
        format!("{image}/properties/source"),
        format!("{image}/properties/displaced/items"),
        image,
    ] {
        let properties = next.pointer_mut(&format!("{part}/properties")).unwrap();
        properties["next"] = note.clone();
    }
    next.to_string()
}

/// The same, with a field more in the spec and in each of its images.
fn asking_crd() -> String {
    let mut next: Value = serde_json::from_str(&next_crd()).unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    for part in [spec.to_owned(), format!("{spec}/images/items/properties")] {
        next.pointer_mut(&part).unwrap()["someday"] = json!({"type": "string"});
    }
    next.to_string()
}

fn untyped(ground: &Ground) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<PromotionRequest>(&());
    let client = ground.stage.plane.client().unwrap();
    Api::namespaced_with(client, &ground.stage.namespace, &resource)
}

/// Where in a status a next version notes something, and what: at each place that is there.
fn notes(status: &Value) -> Vec<(String, Value)> {
    let mut places = vec![String::new()];
    for image in 0..status["images"].as_array().map_or(0, Vec::len) {
        let image = format!("/images/{image}");
        let parts = [String::new(), "/source".into(), "/displaced/0".into()];
        places.extend(parts.map(|part| image.clone() + &part));
    }
    places.retain(|place| status.pointer(place).is_some());
    let note = |place: String| {
        let text = json!({"text": format!("of a next version, at {place}"), "list": [3, 1, 2]});
        (format!("{place}/next"), text)
    };
    places.into_iter().map(note).collect()
}

/// A condition of a kind that only a next version knows.
fn signed() -> Value {
    json!({
        "type": "Signed", "status": "True", "reason": "SignerAgreed", "message": "by a next version",
        "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1,
    })
}

/// Changes a request's status as somebody else does, whoever else writes it meanwhile.
async fn change(ground: &Ground, name: &str, change: impl Fn(&mut Value)) -> Value {
    let api = untyped(ground);
    loop {
        let mut object = api.get(name).await.unwrap();
        change(&mut object.data["status"]);
        let params = PostParams::default();
        match api.replace_status(name, &params, &object).await {
            Ok(written) => return written.data,
            Err(kube::Error::Api(refused)) if refused.is_conflict() => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has a next version note what it likes in a request's status, and gives what it noted, by place.
async fn note(ground: &Ground, name: &str) -> Vec<(String, Value)> {
    let written = change(ground, name, |status| {
        for (place, text) in notes(status) {
            let (part, field) = place.rsplit_once('/').unwrap();
            status.pointer_mut(part).unwrap()[field] = text;
        }
        status["conditions"].as_array_mut().unwrap().push(signed());
    })
    .await;
    let mut all = notes(&written["status"]);
    let last = written["status"]["conditions"].as_array().unwrap().len() - 1;
    all.push((format!("/conditions/{last}"), signed()));
    assert_noted(&written, &all);
    assert!(all.len() >= 3, "{all:?}");
    all
}

fn assert_noted(object: &Value, all: &[(String, Value)]) {
    for (place, value) in all {
        let found = object["status"].pointer(place);
        assert_eq!(found, Some(value), "{place} in {object:#}");
    }
}

/// Requests whose promotions stand before a look, one in each phase.
struct Standing {
    ground: Ground,
    gates: Vec<Gate>,
    pairs: Vec<(String, String)>,
}

const PHASES: [&str; 4] = ["Pending", "Incoming", "BackedUp", "Latched"];

impl Standing {
    /// The requests r0 to r3, and the controller that has got them there.
    async fn start(ground: Ground) -> (Self, Controller) {
        let look = |repository: &str| {
            Matcher::kind(RequestKind::Manifest)
                .method("GET")
                .repository(repository)
        };
        let mut standing = Self {
            ground,
            gates: Vec::new(),
            pairs: Vec::new(),
        };
        let ground = &standing.ground;
        for (number, phase) in PHASES.iter().enumerate() {
            let tag = format!("f{number}");
            let spec = match *phase {
                "Pending" => GateSpec::before(look(&format!("src/s{number}"))),
                "Incoming" => {
                    let prune = look("ci").reference_suffix(&format!("_prune_{tag}"));
                    GateSpec::before(prune)
                }
                "BackedUp" => latch(&tag),
                _ => GateSpec::before(look("ci").reference(&format!("{tag}__post1"))),
            };
            standing.gates.push(ground.registry.gate(spec));
            let old = ground.old(&tag);
            let (new, images) = ground.request(&format!("s{number}"), &tag);
            standing.pairs.push((old, new));
            ground.stage.create(&format!("r{number}"), &images).await;
        }
        let controller = ground.controller(&[]);
        for (number, gate) in standing.gates.iter().enumerate() {
            ground.stage.reached(gate).await;
            let wanted = |s: &PromotionRequestStatus| s.phase.as_deref() == Some(PHASES[number]);
            ground
                .stage
                .until(&format!("r{number}"), PATIENCE, wanted)
                .await;
        }
        (standing, controller)
    }

    /// Ends the controller, and gives the requests' statuses as it left them.
    async fn end(&self, mut controller: Controller, how: Signal) {
        controller.signal(how);
        let end = Instant::now() + PATIENCE;
        while controller.exit_code().is_none() {
            assert!(Instant::now() < end, "{}", controller.log());
            tokio::time::sleep(LOOK).await;
        }
        for gate in &self.gates {
            gate.cut();
        }
        for (number, wanted) in PHASES.iter().enumerate() {
            let left = self.ground.stage.get(&format!("r{number}")).await;
            assert_eq!(phase(&left), *wanted);
        }
    }

    /// Every request is promoted, and nothing is lost or left over. Gives the objects.
    async fn finished(&self) -> Vec<Value> {
        let ground = &self.ground;
        let mut objects = Vec::new();
        for (number, (old, new)) in self.pairs.iter().enumerate() {
            let (name, tag) = (format!("r{number}"), format!("f{number}"));
            let done = ground.stage.finished(&name, PATIENCE).await;
            assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
            assert_eq!(condition(&done, "Complete").0, "True");
            let status = done.status.unwrap();
            assert_eq!(ground.history(&tag), [old.clone(), new.clone()]);
            let displaced = &status.images[0].displaced;
            assert_eq!(displaced.len(), 1, "{displaced:?}");
            for (pin, digest) in [
                (displaced[0].prune_tag.clone(), old),
                (format!("{tag}_incoming"), new),
                (format!("{tag}__pre"), old),
                (format!("{tag}__post1"), new),
            ] {
                assert_eq!(ground.at(&pin).as_ref(), Some(digest), "{pin}");
            }
            assert_eq!(ground.puts(&tag), 1, "{tag}");
            objects.push(untyped(ground).get(&name).await.unwrap().data);
        }
        ground.assert_sound();
        objects
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_a_next_version_had_in_hand_is_finished_and_keeps_what_that_noted() {
    let (_turn, plane) = alone().await;
    let both =
        async |prefix| Standing::start(Ground::of(Stage::on(plane, prefix).await).await).await;
    let ((asked, a), (crashed, b)) = tokio::join!(both("asked"), both("crashed"));
    // Beside them, a group of single images: one has failed, for a reason of the next version.
    let ground = &asked.ground;
    let gate = ground.registry.gate(latch("apart"));
    ground.old("apart");
    let (_, source) = ground.source("apart");
    let gone = format!("{}/src/x@sha256:{}", ground.registry.host(), "0".repeat(64));
    let mut images = spec(&[
        (&gone, &ground.float("gone")),
        (&source, &ground.float("apart")),
    ]);
    images["latch"] = json!("Independently");
    ground.stage.create("apart", &images).await;
    ground.stage.reached(&gate).await;
    let failed = |s: &PromotionRequestStatus| s.images.first().is_some_and(|i| i.phase == "Failed");
    ground.stage.until("apart", PATIENCE, failed).await;

    tokio::join!(
        asked.end(a, Signal::Terminate),
        crashed.end(b, Signal::Kill)
    );
    gate.cut();
    plane.apply_crds(&next_crd()).await.unwrap();
    let mut noted = Vec::new();
    for standing in [&asked, &crashed] {
        for number in 0..PHASES.len() {
            noted.push(note(&standing.ground, &format!("r{number}")).await);
        }
    }
    let mut apart = note(ground, "apart").await;
    apart.push(("/images/0/reason".into(), json!("SignatureInvalid")));
    let unknown = |status: &mut Value| status["images"][0]["reason"] = json!("SignatureInvalid");
    change(ground, "apart", unknown).await;

    let _controllers = [&asked, &crashed].map(|standing| standing.ground.controller(&[]));
    let objects = [asked.finished().await, crashed.finished().await].concat();
    for (object, noted) in objects.iter().zip(&noted) {
        assert_noted(object, noted);
    }
    let done = ground.stage.finished("apart", PATIENCE).await;
    assert_noted(&untyped(ground).get("apart").await.unwrap().data, &apart);
    let (failed, reason, message) = condition(&done, "Failed");
    assert_eq!((failed, reason), ("True", "SignatureInvalid"));
    assert!(message.contains(&gone), "{message}");
    plane.apply_crds(&crd_yaml()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_lacks_all_that_it_may_lack_is_gone_on_from() {
    let ground = Ground::new("older").await;
    let (standing, controller) = Standing::start(ground).await;
    standing.end(controller, Signal::Kill).await;
    let ground = &standing.ground;
    for number in 0..PHASES.len() {
        let name = format!("r{number}");
        change(ground, &name, |status| {
            let status = status.as_object_mut().unwrap();
            for field in [
                "conditions",
                "observedGeneration",
                "progress",
                "deadlineTime",
                "phase",
            ] {
                status.remove(field);
            }
            for image in status["images"].as_array_mut().unwrap() {
                let image = image.as_object_mut().unwrap();
                for field in [
                    "message",
                    "reason",
                    "firstPromotion",
                    "bytesCopied",
                    "attempts",
                    "nextAttemptTime",
                    "pinnedTime",
                ] {
                    image.remove(field);
                }
                if let Some(source) = image.get_mut("source") {
                    source.as_object_mut().unwrap().remove("mediaType");
                }
            }
        })
        .await;
    }
    let _controller = ground.controller(&[]);
    for object in standing.finished().await {
        let status = &object["status"];
        assert_eq!(status["progress"], "1/1", "{status:#}");
        assert_eq!(
            status["conditions"].as_array().unwrap().len(),
            6,
            "{status:#}"
        );
        assert!(status["deadlineTime"].is_string(), "{status:#}");
        assert_eq!(status["observedGeneration"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_is_upgraded_and_put_back_under_a_controller_at_work() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "definitions").await).await;
    let mut controller = ground.controller(&[]);
    let promote = async |name: &str, definition: String| {
        let gate = ground.registry.gate(latch(name));
        let old = ground.old(name);
        let (new, images) = ground.request(name, name);
        ground.stage.create(name, &images).await;
        ground.stage.reached(&gate).await;
        plane.apply_crds(&definition).await.unwrap();
        (gate, old, new)
    };
    let (gate, old, new) = promote("up", next_crd()).await;
    let noted = note(&ground, "up").await;
    gate.open();
    let done = ground.stage.finished("up", PATIENCE).await;
    ground.assert_promoted_once(&done, "up", &old, &new);
    assert_noted(&untyped(&ground).get("up").await.unwrap().data, &noted);

    let (gate, old, new) = promote("down", crd_yaml()).await;
    gate.open();
    let done = ground.stage.finished("down", PATIENCE).await;
    ground.assert_promoted_once(&done, "down", &old, &new);
    // What no definition has any more is not shown, and was not in the way.
    let up = untyped(&ground).get("up").await.unwrap();
    assert_eq!(up.data["status"].get("next"), None);
    assert_eq!(up.data["status"]["phase"], "Posted");
    assert_eq!(controller.exit_code(), None);
    ground.assert_sound();
}

/// The definition of an earlier version, whose floats could be longer and end as pins do today.
fn earlier_crd() -> String {
    let now = serde_json::to_string(&crd()).unwrap();
    let earlier = now
        .replace("{0,97}", "{0,106}")
        .replace("|__rescued|__broken", "");
    assert_ne!(now, earlier);
    earlier
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_an_earlier_version_admitted_is_promoted_to_the_end_and_no_new_one_is() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "earlier").await).await;
    plane.apply_crds(&earlier_crd()).await.unwrap();
    let floats = [("long", "t".repeat(107)), ("named", "x__rescued".into())];
    let mut promotions = Vec::new();
    for (name, tag) in &floats {
        let old = ground.old(tag);
        let (new, images) = ground.request(name, tag);
        ground.stage.create(name, &images).await;
        promotions.push((*name, tag, old, new));
    }
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let _controller = ground.controller(&[]);
    for (name, tag, old, new) in promotions {
        let done = ground.stage.finished(name, PATIENCE).await;
        ground.assert_promoted_once(&done, tag, &old, &new);
        let again = json!({"images": done.spec.images});
        let (params, again) = (
            PostParams::default(),
            crate::testbed::stage::object("again", &again),
        );
        let refused = ground.stage.requests().create(&params, &again).await;
        assert!(refused.is_err(), "{tag}");
    }
    ground.assert_sound();
}

/// Waits until a request waits for another, saying what is to be done about that one.
async fn until_behind(ground: &Ground, name: &str, other: &str) {
    let told = |status: &PromotionRequestStatus| {
        let mut messages = status
            .conditions
            .iter()
            .map(|c| (c.reason.as_str(), c.message.as_str()));
        messages.any(|(reason, message)| {
            let named = message.contains(&format!("/{other} ")) && message.contains("upgrade");
            reason == "Queued" && named
        })
    };
    ground.stage.until(name, PATIENCE, told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_next_version_understands_keeps_its_floats_over_restarts_until_that_is_back() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "returning").await).await;
    plane.apply_crds(&asking_crd()).await.unwrap();
    // Committed, and then taken on by a next version, in a phase of its own.
    let old = ground.old("f");
    let (a, first) = ground.request("a", "f");
    let gate = ground.registry.gate(latch("f"));
    ground.stage.create("first", &first).await;
    let mut controller = ground.controller(&[]);
    ground.stage.reached(&gate).await;
    controller.signal(Signal::Kill);
    gate.cut();
    let signing = |status: &mut Value| {
        status["phase"] = json!("Signing");
        status["images"][0]["phase"] = json!("Signing");
    };
    change(&ground, "first", signing).await;
    let (b, second) = ground.request("b", "f");
    ground.stage.create("second", &second).await;
    // Asked for in words of a next version, in an image and in the whole.
    for (tag, place) in [("g", "/spec/images/0"), ("h", "/spec")] {
        ground.old(tag);
        let (_, spec) = ground.request(&format!("ask {tag}").replace(' ', "-"), tag);
        let mut object = json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": format!("asks-{tag}")}, "spec": spec,
        });
        object.pointer_mut(place).unwrap()["someday"] = json!("None");
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        untyped(&ground)
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
        let (_, later) = ground.request(&format!("later-{tag}"), tag);
        ground.stage.create(&format!("later-{tag}"), &later).await;
    }
    let mut running: Option<Controller> = None;
    for run in ["once", "again"] {
        if let Some(mut former) = running.take() {
            former.signal(Signal::Kill);
        }
        let controller = ground.controller(&[]);
        until_behind(&ground, "second", "first").await;
        for tag in ["g", "h"] {
            until_behind(&ground, &format!("later-{tag}"), &format!("asks-{tag}")).await;
            let left = untyped(&ground).get(&format!("asks-{tag}")).await.unwrap();
            assert_eq!(left.data.get("status"), None, "{left:#?}");
            ground
                .stage
                .events_until(&format!("asks-{tag}"), "Unreadable", PATIENCE)
                .await;
        }
        // It hinders nobody else.
        let (_, other) = ground.request(run, run);
        ground.stage.create(run, &other).await;
        assert_eq!(phase(&ground.stage.finished(run, PATIENCE).await), "Posted");
        assert_eq!(ground.history("f"), std::slice::from_ref(&old));
        assert!(
            controller.log().contains("spec.images.0.someday"),
            "{}",
            controller.log()
        );
        running = Some(controller);
    }
    // The next version is back, and gets on to a phase that both know.
    let signed = |status: &mut Value| {
        status["phase"] = json!("BackedUp");
        status["images"][0]["phase"] = json!("BackedUp");
    };
    change(&ground, "first", signed).await;
    for name in ["first", "second"] {
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
    }
    assert_eq!(ground.history("f"), [old, a, b]);
    ground.stage.delete("asks-g").await;
    let done = ground.stage.finished("later-g", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    ground.assert_sound();
    plane.apply_crds(&crd_yaml()).await.unwrap();
}
