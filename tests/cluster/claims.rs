//! Who has a float, in what order, and what ends a request: suspend, cancel, deadline, deletion, a newer request.
//!
//! Instants are chosen by gates of the embedded registry: a request of the controller is stopped there until the test goes on.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::collections::BTreeSet;
use std::time::Duration;

use promotion_controller::api::{PromotionRequest, PromotionRequestStatus};
use quaylike::{Action, Gate, GateSpec, ImageSpec, Matcher, Registry, RequestKind, Rule, Shape};
use serde_json::{Value, json};

use crate::testbed::stage::{Controller, Stage, condition, phase, spec};

/// A namespace, and a registry with floats and one with sources.
struct Ground {
    stage: Stage,
    floats: Registry,
    sources: Registry,
}

impl Ground {
    async fn new(prefix: &str) -> Self {
        Self {
            stage: Stage::new(prefix).await,
            floats: Registry::start(audited()).await.unwrap(),
            sources: Registry::start(audited()).await.unwrap(),
        }
    }

    fn controller(&self) -> Controller {
        self.controller_with(&[])
    }

    fn controller_with(&self, more: &[&str]) -> Controller {
        let flags = [&self.floats, &self.sources].map(|r| format!("--plain-http={}", r.host()));
        let mut all = flags.each_ref().map(String::as_str).to_vec();
        all.extend(more);
        self.stage.controller(&all)
    }

    /// Puts a float on an image of its own.
    fn old(&self, tag: &str) -> String {
        let spec = ImageSpec::new(Shape::Oci, &format!("old {tag}"));
        self.floats.seed_spec("ci", tag, &spec).unwrap().to_string()
    }

    /// A source in a repository of its own: its digest, and how a request names it.
    fn source(&self, name: &str) -> (String, String) {
        let spec = ImageSpec::new(Shape::Oci, &format!("new {name}"));
        let repository = format!("src/{name}");
        let digest = self.sources.seed_spec(&repository, "x", &spec).unwrap();
        let reference = format!("{}/{repository}@{digest}", self.sources.host());
        (digest.to_string(), reference)
    }

    fn float(&self, tag: &str) -> String {
        format!("{}/ci:{tag}", self.floats.host())
    }

    fn at(&self, tag: &str) -> String {
        self.floats.tags("ci")[tag].to_string()
    }

    /// The digests a float has had, oldest first.
    fn history(&self, tag: &str) -> Vec<String> {
        let changes = self.floats.history("ci", tag);
        let digests = changes.into_iter().filter_map(|change| change.digest);
        digests.map(|digest| digest.to_string()).collect()
    }

    /// Every digest that a finished request moved a float off is held by the prune tag it recorded.
    fn assert_pinned(&self, request: &PromotionRequest) {
        let tags = self.floats.tags("ci");
        let images = &request.status.as_ref().unwrap().images;
        for image in images.iter().filter(|image| image.phase == "Posted") {
            for pin in &image.displaced {
                assert_eq!(tags[&pin.prune_tag].to_string(), pin.digest);
            }
        }
    }

    fn assert_sound(&self) {
        let trail = self.floats.audit_trail();
        assert!(trail.is_empty(), "{trail:?}\n{}", self.stage.log());
    }
}

/// The read of a source's manifest.
fn reads(repository: &str) -> Matcher {
    Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository(repository)
}

fn puts(tag: &str) -> Matcher {
    Matcher::put_manifest().repository("ci").reference(tag)
}

/// Stops the look before the latch; the one before that is Resolve's.
fn before_latch(ground: &Ground, tag: &str) -> Gate {
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference(tag);
    ground.floats.gate(GateSpec::before(look).nth(2))
}

fn reason(status: &PromotionRequestStatus, index: usize) -> Option<&str> {
    status.images.get(index)?.reason.as_deref()
}

fn waits_for(status: &PromotionRequestStatus, reason: &str) -> bool {
    let conditions = &status.conditions;
    conditions
        .iter()
        .any(|c| c.type_ == "Progressing" && c.status == "True" && c.reason == reason)
}

fn independently(mut spec: Value) -> Value {
    spec["latch"] = json!("Independently");
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_created_at_once_end_in_the_order_of_their_resource_versions() {
    const CLIENTS: usize = 8;
    let ground = Ground::new("order").await;
    let old = ground.old("f");
    let _controller = ground.controller();
    let creations = (0..CLIENTS).map(|number| {
        let (digest, source) = ground.source(&number.to_string());
        let images = spec(&[(&source, &ground.float("f"))]);
        let ground = &ground;
        async move {
            let made = ground.stage.create(&format!("r{number}"), &images).await;
            let version: u64 = made.metadata.resource_version.unwrap().parse().unwrap();
            (version, number, digest)
        }
    });
    let mut created = futures::future::join_all(creations).await;
    created.sort();
    let mut wanted = vec![old];
    for (version, number, digest) in &created {
        let done = ground.stage.finished(&format!("r{number}"), PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
        let status = done.status.as_ref().unwrap();
        assert_eq!(status.order, i64::try_from(*version).ok());
        let before = wanted.last().unwrap();
        assert_eq!(status.images[0].displaced[0].digest, *before);
        ground.assert_pinned(&done);
        wanted.push(digest.clone());
    }
    assert_eq!(ground.history("f"), wanted);
    assert_eq!(ground.at("f__pre"), wanted[CLIENTS - 1]);
    assert_eq!(ground.at("f__post1"), wanted[CLIENTS]);
    assert_eq!(ground.floats.tags("ci").len(), 4 + CLIENTS);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_name_each_others_floats_in_opposite_order_both_end() {
    let ground = Ground::new("cross").await;
    let old = [ground.old("f"), ground.old("g")];
    let ((a, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    let (f, g) = (ground.float("f"), ground.float("g"));
    let _controller = ground.controller();
    let first = spec(&[(&from_a, &f), (&from_a, &g)]);
    let second = spec(&[(&from_b, &g), (&from_b, &f)]);
    ground.stage.create("a", &first).await;
    ground.stage.create("b", &second).await;
    for name in ["a", "b"] {
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted");
        ground.assert_pinned(&done);
    }
    for (tag, old) in ["f", "g"].into_iter().zip(old) {
        assert_eq!(ground.history(tag), [old, a.clone(), b.clone()]);
    }
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_request_does_nothing_until_it_is_resumed() {
    let ground = Ground::new("suspend").await;
    let old = ground.old("f");
    let (new, source) = ground.source("x");
    let _controller = ground.controller();
    let mut images = spec(&[(&source, &ground.float("f"))]);
    images["suspend"] = json!(true);
    ground.stage.create("held", &images).await;
    let held = ground
        .stage
        .until("held", PATIENCE, |s| waits_for(s, "Suspended"))
        .await;
    let status = held.status.as_ref().unwrap();
    assert_eq!(phase(&held), "Pending");
    assert!(status.deadline_time.is_none() && status.start_time.is_none());
    assert!(status.order.is_some());
    assert_eq!(ground.floats.count(&Matcher::default()), 0);
    assert_eq!(ground.sources.count(&Matcher::default()), 0);

    // While its copy runs: the copy is dropped, and nothing of it counts.
    let gate = ground.sources.gate(GateSpec::before(reads("src/x")));
    let resume = json!({"spec": {"suspend": false}});
    ground.stage.patch("held", &resume).await;
    ground.stage.reached(&gate).await;
    let running = ground.stage.get("held").await.status.unwrap();
    assert!(running.deadline_time.is_some() && running.start_time.is_some());
    let suspend = json!({"spec": {"suspend": true}});
    ground.stage.patch("held", &suspend).await;
    let held = ground
        .stage
        .until("held", PATIENCE, |s| {
            waits_for(s, "Suspended") && s.images[0].attempts.is_none()
        })
        .await;
    assert!(held.status.unwrap().deadline_time.is_none());
    // Its answer was not waited for.
    assert_eq!(ground.sources.count(&reads("src/x")), 1);
    assert_eq!(ground.floats.count(&Matcher::put_manifest()), 0);
    gate.open();
    ground.stage.patch("held", &resume).await;
    let done = ground.stage.finished("held", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let status = done.status.as_ref().unwrap();
    assert_eq!(status.images[0].attempts, None);
    assert_eq!(ground.history("f"), [old, new]);
    ground.assert_pinned(&done);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_request_supersedes_a_suspended_one_before_it_writes_anything() {
    let ground = Ground::new("overtake").await;
    let old = ground.old("f");
    let ((_, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller();
    let staging = ground.sources.gate(GateSpec::before(reads("src/a")));
    ground
        .stage
        .create("older", &spec(&[(&from_a, &ground.float("f"))]))
        .await;
    ground.stage.reached(&staging).await;
    let suspend = json!({"spec": {"suspend": true}});
    ground.stage.patch("older", &suspend).await;
    let first_write = ground
        .floats
        .gate(GateSpec::before(Matcher::put_manifest()));
    ground
        .stage
        .create("newer", &spec(&[(&from_b, &ground.float("f"))]))
        .await;
    ground.stage.reached(&first_write).await;
    let older = ground.stage.get("older").await;
    assert_eq!(phase(&older), "Failed");
    let (truth, why, message) = condition(&older, "Failed");
    assert_eq!((truth, why), ("True", "Superseded"));
    assert!(message.contains("/newer"), "{message}");
    first_write.open();
    let newer = ground.stage.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted");
    assert_eq!(ground.history("f"), [old, b]);
    let events = ground
        .stage
        .events_until("older", "Superseded", PATIENCE)
        .await;
    assert_eq!(events.last().unwrap().type_.as_deref(), Some("Warning"));
    // Resuming it changes nothing any more.
    let resume = json!({"spec": {"suspend": false}});
    ground.stage.patch("older", &resume).await;
    assert_eq!(phase(&ground.stage.get("older").await), "Failed");
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_request_loses_only_the_float_that_a_newer_one_began_on() {
    let ground = Ground::new("image").await;
    let old = [ground.old("f"), ground.old("g")];
    let ((a, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller();
    // Suspended when the newer one claims g, so the newer one ends that image and no other.
    let mut images = spec(&[(&from_a, &ground.float("f")), (&from_a, &ground.float("g"))]);
    images["suspend"] = json!(true);
    let older = independently(images);
    ground.stage.create("older", &older).await;
    ground
        .stage
        .until("older", PATIENCE, |s| waits_for(s, "Suspended"))
        .await;
    ground
        .stage
        .create("newer", &spec(&[(&from_b, &ground.float("g"))]))
        .await;
    let newer = ground.stage.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted");
    let status = ground.stage.get("older").await.status.unwrap();
    assert_eq!(reason(&status, 1), Some("Superseded"));
    assert_eq!(status.images[0].phase, "Pending");
    let resume = json!({"spec": {"suspend": false}});
    ground.stage.patch("older", &resume).await;
    let done = ground.stage.finished("older", PATIENCE).await;
    let status = done.status.as_ref().unwrap();
    let phases: Vec<_> = status.images.iter().map(|i| i.phase.as_str()).collect();
    assert_eq!(phases, ["Posted", "Failed"]);
    assert_eq!(condition(&done, "Failed").1, "Superseded");
    assert_eq!(ground.history("f"), [old[0].clone(), a]);
    assert_eq!(ground.history("g"), [old[1].clone(), b]);
    ground.assert_pinned(&done);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_finds_a_newer_one_at_work_on_one_float_goes_on_with_the_others() {
    let ground = Ground::new("late").await;
    let old = [ground.old("f"), ground.old("g")];
    let ((a, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    let images = spec(&[(&from_a, &ground.float("f")), (&from_a, &ground.float("g"))]);
    ground.stage.create("older", &independently(images)).await;
    // As after a change of leaders: the newer one has begun, and the older one was not seen before.
    let began = json!({
        "order": 9_000_000_000_i64, "phase": "Pending", "progress": "0/1",
        "startTime": "2026-01-01T00:00:00Z", "deadlineTime": "2100-01-01T00:00:00Z",
        "images": [{"float": ground.float("g"), "phase": "Pending"}],
    });
    let newer = spec(&[(&from_b, &ground.float("g"))]);
    let mut newer = ground.stage.create("newer", &newer).await;
    newer.status = Some(serde_json::from_value(began).unwrap());
    let params = kube::api::PostParams::default();
    let requests = ground.stage.requests();
    requests
        .replace_status("newer", &params, &newer)
        .await
        .unwrap();
    let staging = ground.sources.gate(GateSpec::before(reads("src/b")));
    let _controller = ground.controller();
    ground.stage.reached(&staging).await;
    let done = ground.stage.finished("older", PATIENCE).await;
    let status = done.status.as_ref().unwrap();
    let phases: Vec<_> = status.images.iter().map(|i| i.phase.as_str()).collect();
    assert_eq!(phases, ["Posted", "Failed"]);
    assert_eq!(reason(status, 1), Some("Superseded"));
    staging.open();
    let newer = ground.stage.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted");
    assert_eq!(ground.history("f"), [old[0].clone(), a]);
    assert_eq!(ground.history("g"), [old[1].clone(), b]);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_independent_request_finishes_what_is_committed_and_gives_the_rest_up() {
    let ground = Ground::new("partly").await;
    let old = [ground.old("f"), ground.old("g")];
    let ((a, from_a), (_, from_c)) = (ground.source("a"), ground.source("c"));
    let (b, from_b) = ground.source("b");
    let _controller = ground.controller();
    let latch = before_latch(&ground, "f");
    let staging = ground.sources.gate(GateSpec::before(reads("src/c")));
    let images = spec(&[(&from_a, &ground.float("f")), (&from_c, &ground.float("g"))]);
    ground.stage.create("older", &independently(images)).await;
    ground.stage.reached(&latch).await;
    ground.stage.reached(&staging).await;
    let suspend = json!({"spec": {"suspend": true}});
    ground.stage.patch("older", &suspend).await;
    // A newer one takes what was given up, and stops there: the committed image must not wait for it.
    let newer_staging = ground.sources.gate(GateSpec::before(reads("src/b")));
    ground
        .stage
        .create("newer", &spec(&[(&from_b, &ground.float("g"))]))
        .await;
    ground.stage.reached(&newer_staging).await;
    latch.open();
    let done = ground.stage.finished("older", PATIENCE).await;
    let status = done.status.as_ref().unwrap();
    let phases: Vec<_> = status.images.iter().map(|i| i.phase.as_str()).collect();
    assert_eq!(phases, ["Posted", "Failed"]);
    assert_eq!(reason(status, 1), Some("Superseded"));
    newer_staging.open();
    let newer = ground.stage.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted");
    assert_eq!(ground.history("f"), [old[0].clone(), a]);
    assert_eq!(ground.history("g"), [old[1].clone(), b]);
    ground.assert_pinned(&done);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_ends_a_request_before_the_commit_and_is_ignored_after_it() {
    let ground = Ground::new("cancel").await;
    let old = [ground.old("f"), ground.old("g")];
    let ((_, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller();
    let cancel = json!({"spec": {"cancel": true}});
    let staging = ground.sources.gate(GateSpec::before(reads("src/a")));
    let latch = before_latch(&ground, "g");
    ground
        .stage
        .create("early", &spec(&[(&from_a, &ground.float("f"))]))
        .await;
    ground
        .stage
        .create("late", &spec(&[(&from_b, &ground.float("g"))]))
        .await;
    ground.stage.reached(&staging).await;
    ground.stage.patch("early", &cancel).await;
    let early = ground.stage.finished("early", PATIENCE).await;
    assert_eq!(phase(&early), "Cancelled");
    assert_eq!(condition(&early, "Failed").1, "Cancelled");
    assert_eq!(condition(&early, "Complete").0, "False");
    let status = early.status.as_ref().unwrap();
    assert_eq!(status.observed_generation, early.metadata.generation);
    assert_eq!(status.images[0].phase, "Cancelled");
    assert_eq!(ground.history("f"), [old[0].clone()]);

    ground.stage.reached(&latch).await;
    ground.stage.patch("late", &cancel).await;
    let mine = ground
        .stage
        .events_until("late", "CancelIgnored", PATIENCE)
        .await;
    assert_eq!(mine.last().unwrap().type_.as_deref(), Some("Warning"));
    latch.open();
    let late = ground.stage.finished("late", PATIENCE).await;
    assert_eq!(phase(&late), "Posted");
    let status = late.status.as_ref().unwrap();
    assert_eq!(status.committed, Some(true));
    assert_eq!(status.observed_generation, late.metadata.generation);
    assert_eq!(ground.history("g"), [old[1].clone(), b]);
    let events = ground
        .stage
        .events_until("late", "Promoted", PATIENCE)
        .await;
    let ignored =
        |e: &&k8s_openapi::api::events::v1::Event| e.reason.as_deref() == Some("CancelIgnored");
    assert_eq!(events.iter().filter(ignored).count(), 1);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_stuck_fails_at_its_deadline_and_lets_the_next_one_go_on() {
    let ground = Ground::new("deadline").await;
    let old = ground.old("f");
    let ((_, from_a), (b, from_b)) = (ground.source("a"), ground.source("b"));
    ground
        .sources
        .add_rule(Rule::new(reads("src/a"), Action::Hang { ms: 120_000 }));
    let _controller = ground.controller();
    let mut images = spec(&[(&from_a, &ground.float("f"))]);
    images["deadlineSeconds"] = json!(60);
    ground.stage.create("stuck", &images).await;
    ground
        .stage
        .until("stuck", PATIENCE, |s| s.start_time.is_some())
        .await;
    ground
        .stage
        .create("next", &spec(&[(&from_b, &ground.float("f"))]))
        .await;
    ground
        .stage
        .until("next", PATIENCE, |s| waits_for(s, "Queued"))
        .await;
    let stuck = ground
        .stage
        .finished("stuck", Duration::from_secs(150))
        .await;
    assert_eq!(phase(&stuck), "Failed");
    assert_eq!(condition(&stuck, "Failed").1, "DeadlineExceeded");
    let status = stuck.status.unwrap();
    let (ended, due) = (
        status.completion_time.unwrap(),
        status.deadline_time.unwrap(),
    );
    assert!(ended.0 >= due.0, "{ended:?} {due:?}");
    assert_eq!(
        reason(&ground.stage.get("stuck").await.status.unwrap(), 0),
        Some("DeadlineExceeded")
    );
    let next = ground.stage.finished("next", PATIENCE).await;
    assert_eq!(phase(&next), "Posted");
    assert_eq!(ground.history("f"), [old, b]);
    ground.assert_pinned(&next);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_deleted_in_any_phase_lets_those_who_wait_go_on() {
    let ground = Ground::new("deleted").await;
    let phases = [
        ("pending", "Pending"),
        ("incoming", "Incoming"),
        ("backedup", "BackedUp"),
        ("latched", "Latched"),
    ];
    // Time for a tag write to stand at its gate.
    let _controller = ground.controller_with(&["--settle-seconds=8"]);
    let waiters = phases.map(|(tag, phase)| one_deletion(&ground, tag, phase));
    futures::future::join_all(waiters).await;
    ground.assert_sound();
    let left: BTreeSet<String> = ground
        .stage
        .list()
        .await
        .iter()
        .map(|r| phase(r).to_owned())
        .collect();
    assert_eq!(left, BTreeSet::from(["Posted".to_owned()]));
}

/// Deletes a request in this phase, its next registry request under way, and lets another one finish the float.
async fn one_deletion(ground: &Ground, tag: &str, in_phase: &str) {
    let old = ground.old(tag);
    let (a, from_a) = ground.source(&format!("{tag}-a"));
    let (b, from_b) = ground.source(&format!("{tag}-b"));
    let pin = Matcher::put_manifest()
        .repository("ci")
        .reference(&format!("{tag}__pre"));
    let gate = match in_phase {
        "Pending" => ground
            .sources
            .gate(GateSpec::before(reads(&format!("src/{tag}-a")))),
        "Incoming" => ground.floats.gate(GateSpec::before(pin)),
        "BackedUp" => ground.floats.gate(GateSpec::before(puts(tag))),
        _ => {
            let post = puts(&format!("{tag}__post1"));
            ground.floats.gate(GateSpec::before(post))
        }
    };
    let float = ground.float(tag);
    ground.stage.create(tag, &spec(&[(&from_a, &float)])).await;
    ground.stage.reached(&gate).await;
    let waiter = format!("{tag}-waiter");
    ground
        .stage
        .create(&waiter, &spec(&[(&from_b, &float)]))
        .await;
    let queued = ground
        .stage
        .until(&waiter, PATIENCE, |s| waits_for(s, "Queued"))
        .await;
    assert!(queued.status.unwrap().start_time.is_none());
    assert_eq!(phase(&ground.stage.get(tag).await), in_phase);
    ground.stage.delete(tag).await;
    // A tag write is never dropped: the one that stands at the gate is answered before anything else is asked on the float.
    gate.open();
    let done = ground.stage.finished(&waiter, PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let moved = matches!(in_phase, "BackedUp" | "Latched");
    let wanted = if moved { vec![old, a, b] } else { vec![old, b] };
    assert_eq!(ground.history(tag), wanted, "{in_phase}");
    ground.assert_pinned(&done);
    let log = ground.stage.log();
    let told = log.lines().filter(|line| {
        line.contains(&format!("/{tag} ")) && line.contains("deleted before its end")
    });
    assert_eq!(told.count(), 1, "{tag}: {log}");
}
