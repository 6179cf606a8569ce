//! What somebody sees who watches: every status of a request, how many there are, its events, and what is left alone.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{PostParams, WatchEvent, WatchParams};
use promotion_controller::api::{ImageStatus, PromotionRequest};
use quaylike::{Action, GateSpec, ImageSpec, Matcher, Registry, RequestKind, Rule, Shape, When};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::testbed::stage::{LOOK, Stage, condition, phase, spec};

const KINDS: [&str; 6] = [
    "Progressing",
    "Staged",
    "Complete",
    "Failed",
    "Reconciling",
    "Stalled",
];
/// In the order of progress.
const PHASES: [&str; 5] = ["Pending", "Incoming", "BackedUp", "Latched", "Posted"];

async fn registry() -> Registry {
    Registry::start(audited()).await.unwrap()
}

fn seeded(registry: &Registry, repository: &str, tag: &str, seed: &str) -> String {
    let spec = ImageSpec::new(Shape::Oci, seed);
    let digest = registry.seed_spec(repository, tag, &spec).unwrap();
    digest.to_string()
}

/// Every state of a request from its creation to its end, as a watch shows them.
fn watched(stage: &Stage, made: &PromotionRequest) -> JoinHandle<Vec<PromotionRequest>> {
    let name = made.metadata.name.clone().unwrap();
    let version = made.metadata.resource_version.clone().unwrap();
    let requests = stage.requests();
    tokio::spawn(async move {
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = requests.watch(&params, &version).await.unwrap().boxed();
        let mut seen = Vec::new();
        while let Some(event) = events.try_next().await.unwrap() {
            let WatchEvent::Modified(object) = event else {
                panic!("{event:?}")
            };
            let ended = object.status.as_ref().unwrap().completion_time.is_some();
            seen.push(object);
            if ended {
                return seen;
            }
        }
        panic!("the watch ended early");
    })
}

fn rank(phase: &str) -> usize {
    PHASES.iter().position(|p| *p == phase).unwrap()
}

fn has_staged(image: &ImageStatus) -> bool {
    rank(&image.phase) >= rank("Incoming")
}

/// What must be true of each state, and between it and the one before.
fn assert_sound(seen: &[PromotionRequest]) {
    for state in seen {
        let status = state.status.as_ref().unwrap();
        let kinds: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(kinds, KINDS);
        for condition in &status.conditions {
            assert_eq!(condition.observed_generation, state.metadata.generation);
        }
        assert_eq!(status.observed_generation, state.metadata.generation);
        assert!(status.order.is_some() && status.deadline_time.is_some());
        let posted = status.images.iter().filter(|i| i.phase == "Posted").count();
        let progress = format!("{posted}/{}", status.images.len());
        assert_eq!(status.progress, Some(progress));
        let staged = status.images.iter().all(has_staged);
        let shown = condition(state, "Staged").0;
        assert_eq!(shown, if staged { "True" } else { "False" });
        let least = status.images.iter().map(|i| rank(&i.phase)).min();
        assert_eq!(Some(rank(phase(state))), least);
        let latched = |i: &&ImageStatus| i.unchanged.is_none() && rank(&i.phase) >= rank("Latched");
        if status.images.iter().filter(latched).count() > 0 {
            assert_eq!(status.committed, Some(true));
        }
        let ended = status.completion_time.is_some();
        assert_eq!(ended, phase(state) == "Posted");
        assert_eq!(condition(state, "Progressing").0 == "False", ended);
        assert_eq!(condition(state, "Complete").0 == "True", ended);
        assert_eq!(condition(state, "Failed").0, "False");
    }
    for pair in seen.windows(2) {
        let [before, after] = [&pair[0], &pair[1]].map(|s| s.status.as_ref().unwrap());
        assert_ne!(before, after, "a save that changes nothing");
        assert!(before.committed <= after.committed);
        assert_eq!(before.order, after.order);
        for (old, new) in before.images.iter().zip(&after.images) {
            assert!(rank(&old.phase) <= rank(&new.phase), "{old:?} {new:?}");
            if let (Some(old), Some(new)) = (&old.source, &new.source) {
                assert_eq!(old.digest, new.digest);
            }
            assert!(old.source.is_none() || new.source.is_some());
            assert!(new.displaced.starts_with(&old.displaced));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_sees_staged_before_a_float_moves_and_never_a_step_back() {
    let stage = Stage::new("watched").await;
    let registry = registry().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "a", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let same = seeded(&registry, "ci", "same", "same");
    seeded(&registry, "src/y", "same", "same");
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    // The looks before the latches.
    let look = |tag: &str| {
        Matcher::kind(RequestKind::Manifest)
            .method("GET")
            .repository("ci")
            .reference(tag)
    };
    let gates = ["a", "first"].map(|tag| registry.gate(GateSpec::before(look(tag)).nth(2)));
    let images = spec(&[
        (&format!("{host}/src/x@{new}"), &format!("{host}/ci:a")),
        (&format!("{host}/src/x:new"), &format!("{host}/ci:first")),
        (&format!("{host}/src/y@{same}"), &format!("{host}/ci:same")),
    ]);
    let made = stage.create("r", &images).await;
    let watch = watched(&stage, &made);
    for gate in &gates {
        stage.reached(gate).await;
        let now = stage.get("r").await;
        assert_eq!(condition(&now, "Staged").0, "True");
        assert_eq!(now.status.as_ref().unwrap().committed, Some(true));
        assert_eq!(registry.tags("ci")["a"].to_string(), old);
    }
    for gate in &gates {
        gate.open();
    }
    let seen = watch.await.unwrap();
    assert_sound(&seen);
    let status = seen.last().unwrap().status.clone().unwrap();
    assert_eq!(condition(seen.last().unwrap(), "Complete").1, "Promoted");
    assert_eq!(status.progress.as_deref(), Some("3/3"));
    let reasons: Vec<_> = status.images.iter().map(|i| i.reason.as_deref()).collect();
    let wanted = ["Promoted", "Promoted", "Unchanged"].map(Some);
    assert_eq!(reasons, wanted);
    let first: Vec<_> = status.images.iter().map(|i| i.first_promotion).collect();
    assert_eq!(first, [None, Some(true), None]);
    let promoted: Vec<_> = status
        .images
        .iter()
        .map(|i| i.promoted.clone().unwrap())
        .collect();
    let at = |digest: &str| format!("{host}/ci@{digest}");
    assert_eq!(promoted, [at(&new), at(&new), at(&same)]);
    assert_eq!(registry.history("ci", "same").len(), 1);
    assert!(!registry.tags("ci").contains_key("same_incoming"));
    assert_eq!(status.images[0].displaced[0].digest, old);
    assert!(registry.audit_trail().is_empty());
    let events = stage.events_until("r", "Promoted", PATIENCE).await;
    assert!(events.len() <= 10, "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_writes_grow_with_phases_and_not_with_images() {
    const INTERVAL: f64 = 2.0;
    let stage = Stage::new("writes").await;
    let registry = registry().await;
    let host = registry.host();
    let flags = [format!("--plain-http={host}"), "--registry-qps=0".into()];
    let _controller = stage.controller(&flags.each_ref().map(String::as_str));
    for count in [1_usize, 100] {
        let pairs: Vec<(String, String)> = (0..count)
            .map(|number| {
                let tag = format!("f{count}-{number}");
                seeded(&registry, "ci", &tag, &format!("old {tag}"));
                let new = seeded(&registry, "src/x", &tag, &format!("new {tag}"));
                (format!("{host}/src/x@{new}"), format!("{host}/ci:{tag}"))
            })
            .collect();
        let images: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(source, float)| (source.as_str(), float.as_str()))
            .collect();
        let begun = Instant::now();
        let made = stage.create(&format!("r{count}"), &spec(&images)).await;
        let states = watched(&stage, &made).await.unwrap();
        let took = begun.elapsed().as_secs_f64();
        assert_sound(&states);
        let writes = states.len();
        println!("{count} images: {writes} status writes in {took:.1} s");
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bound = 8 + (took / INTERVAL).ceil() as usize;
        assert!(
            writes <= bound,
            "{writes} writes in {took} s\n{}",
            stage.log()
        );
    }
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_each_change_of_phase_at_most_ten_and_always_the_last() {
    let stage = Stage::new("events").await;
    let registry = registry().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let foreign: Vec<String> = (0..7)
        .map(|n| {
            seeded(
                &registry,
                "ci",
                &format!("foreign{n}"),
                &format!("foreign {n}"),
            )
        })
        .collect();
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let source = format!("{host}/src/x@{new}");
    stage
        .create("plain", &spec(&[(&source, &format!("{host}/ci:first"))]))
        .await;
    let events = stage.events_until("plain", "Promoted", PATIENCE).await;
    let told: Vec<_> = events.iter().map(|e| e.reason.clone().unwrap()).collect();
    let wanted = ["Pending", "Incoming", "BackedUp", "Latched", "Promoted"];
    assert_eq!(told, wanted);
    assert!(events.iter().all(|e| e.type_.as_deref() == Some("Normal")));

    // Somebody moves the float before each look of the latch, until the request gives up.
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("f");
    let mut images = spec(&[(&source, &format!("{host}/ci:f"))]);
    images["attempts"] = json!(20);
    let resolve = registry.gate(GateSpec::before(look.clone()));
    stage.create("moved", &images).await;
    stage.reached(&resolve).await;
    let mut passed = resolve;
    for digest in &foreign {
        let next = registry.gate(GateSpec::before(look.clone()));
        passed.open();
        stage.reached(&next).await;
        registry
            .set_tag("ci", "f", digest.parse().unwrap())
            .unwrap();
        passed = next;
    }
    passed.open();
    let done = stage.finished("moved", PATIENCE).await;
    assert_eq!(phase(&done), "Failed");
    assert_eq!(condition(&done, "Failed").1, "FloatMoved");
    let image = &done.status.as_ref().unwrap().images[0];
    let displaced: Vec<&str> = image.displaced.iter().map(|p| p.digest.as_str()).collect();
    let seen: Vec<&str> = std::iter::once(&old)
        .chain(&foreign)
        .map(String::as_str)
        .collect();
    assert_eq!(displaced, seen);
    let tags = registry.tags("ci");
    for pin in &image.displaced[..7] {
        assert_eq!(tags[&pin.prune_tag].to_string(), pin.digest);
    }
    assert_eq!(tags["f"].to_string(), foreign[6]);
    let end = Instant::now() + PATIENCE;
    let events = loop {
        let events = stage.events("moved").await;
        let note = |e: &&k8s_openapi::api::events::v1::Event| {
            e.note
                .as_deref()
                .is_some_and(|n| n.contains("keeps moving"))
        };
        if events.iter().any(|e| note(&e)) {
            break events;
        }
        assert!(Instant::now() < end, "no last event: {events:#?}");
        tokio::time::sleep(LOOK).await;
    };
    let told: i32 = events
        .iter()
        .map(|e| e.series.as_ref().map_or(1, |s| s.count))
        .sum();
    assert!(told <= 10, "{told}: {events:#?}");
    let last = events.last().unwrap();
    assert_eq!(last.reason.as_deref(), Some("FloatMoved"));
    assert_eq!(last.type_.as_deref(), Some("Warning"));
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_a_phase_of_a_newer_version_is_left_alone() {
    let stage = Stage::new("newer").await;
    let registry = registry().await;
    let host = registry.host();
    let new = seeded(&registry, "src/x", "new", "new");
    let source = format!("{host}/src/x@{new}");
    let float = format!("{host}/ci:f");
    let mut newer = stage.create("newer", &spec(&[(&source, &float)])).await;
    let status = json!({
        "order": 7, "phase": "Signing", "startTime": "2026-01-01T00:00:00Z",
        "images": [{"float": float, "phase": "Signing", "signature": "of a newer version"}],
    });
    newer.status = Some(serde_json::from_value(status).unwrap());
    let params = PostParams::default();
    let left = stage
        .requests()
        .replace_status("newer", &params, &newer)
        .await
        .unwrap();
    let controller = stage.controller(&[&format!("--plain-http={host}")]);
    let other = spec(&[(&source, &format!("{host}/ci:g"))]);
    stage.create("other", &other).await;
    assert_eq!(phase(&stage.finished("other", PATIENCE).await), "Posted");
    let end = Instant::now() + PATIENCE;
    let said = |line: &str| {
        line.contains("/newer") && line.contains("'Signing'") && line.contains("left alone")
    };
    while !controller.log().lines().any(said) {
        assert!(Instant::now() < end, "{}", controller.log());
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(stage.get("newer").await, left);
    let tags = registry.tags("ci");
    assert!(tags.keys().all(|tag| tag.starts_with('g')), "{tags:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_edited_while_it_is_saved_is_looked_at_again() {
    let stage = Stage::new("edited").await;
    let registry = registry().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let images = spec(&[(&format!("{host}/src/x@{new}"), &format!("{host}/ci:f"))]);
    let ended = Arc::new(AtomicBool::new(false));
    let stage = Arc::new(stage);
    stage.create("r", &images).await;
    let editors: Vec<JoinHandle<usize>> = (0..2)
        .map(|editor| {
            let (stage, ended) = (Arc::clone(&stage), Arc::clone(&ended));
            tokio::spawn(async move {
                let mut edits = 0;
                while !ended.load(Ordering::Relaxed) {
                    let change: Value =
                        json!({"metadata": {"labels": {format!("e{editor}"): edits.to_string()}}});
                    stage.patch("r", &change).await;
                    edits += 1;
                }
                edits
            })
        })
        .collect();
    let suspend = |on: bool| json!({"spec": {"suspend": on}});
    stage.patch("r", &suspend(true)).await;
    stage
        .until("r", PATIENCE, |s| {
            s.conditions.iter().any(|c| c.reason == "Suspended")
        })
        .await;
    stage.patch("r", &suspend(false)).await;
    let done = stage.finished("r", PATIENCE).await;
    ended.store(true, Ordering::Relaxed);
    let mut edits = 0;
    for editor in editors {
        edits += editor.await.unwrap();
    }
    println!("{edits} edits");
    assert_eq!(phase(&done), "Posted");
    let status = done.status.as_ref().unwrap();
    assert_eq!(status.images[0].attempts, None);
    let tags = registry.tags("ci");
    assert_eq!(tags.len(), 5, "{tags:?}");
    for (tag, count) in [("f", 2), ("f_incoming", 1), ("f__pre", 1), ("f__post1", 1)] {
        assert_eq!(registry.history("ci", tag).len(), count, "{tag}");
    }
    assert_eq!(tags["f"].to_string(), new);
    assert_eq!(tags["f__pre"].to_string(), old);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_shows_its_reason_and_end_and_is_saved_when_they_change_and_not_again() {
    let stage = Stage::new("waits").await;
    let registry = registry().await;
    let host = registry.host();
    let flags = [format!("--plain-http={host}"), "--status-interval=1".into()];
    let _controller = stage.controller(&flags.each_ref().map(String::as_str));
    let pairs = ["a", "b", "c"].map(|tag| {
        seeded(&registry, "ci", tag, &format!("old {tag}"));
        let new = seeded(&registry, "src/x", tag, &format!("new {tag}"));
        (format!("{host}/src/x@{new}"), format!("{host}/ci:{tag}"))
    });
    let images = pairs
        .each_ref()
        .map(|(source, float)| (&**source, &**float));
    // Down for a while in the middle, and every probe takes its time.
    let down = registry
        .add_rule(Rule::new(Matcher::default(), Action::Hang { ms: 900 }).when(When::From(12)));
    let page =
        registry.add_rule(Rule::new(Matcher::default(), Action::page(503)).when(When::From(12)));
    let made = stage.create("r", &spec(&images)).await;
    let watch = watched(&stage, &made);
    stage
        .until("r", PATIENCE, |s| {
            s.images
                .iter()
                .any(|i| i.reason.as_deref() == Some("RegistryUnavailable"))
        })
        .await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    registry.remove_rule(down);
    registry.remove_rule(page);
    let seen = watch.await.unwrap();
    assert_sound(&seen);
    let mut waits: Vec<_> = seen
        .iter()
        .filter_map(|state| {
            let status = state.status.as_ref().unwrap();
            let waiting = |i: &&ImageStatus| i.reason.as_deref() == Some("RegistryUnavailable");
            let image = status.images.iter().find(waiting)?;
            assert!(image.message.as_ref().unwrap().contains(&host), "{image:?}");
            let (_, reason, _) = condition(state, "Progressing");
            assert_eq!(reason, "RegistryUnavailable");
            image.next_attempt_time.clone()
        })
        .collect();
    // What else changed meanwhile was saved with the same end.
    waits.dedup();
    // The rests of 1, 2 and 4 s, and little more: what is shown of one rest does not change.
    assert!(!waits.is_empty() && waits.len() <= 6, "{waits:?}");
    let images = &seen.last().unwrap().status.as_ref().unwrap().images;
    assert!(
        images.iter().all(|image| image.attempts.is_none()),
        "{images:?}"
    );
}
