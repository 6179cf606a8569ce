//! Two controller processes and one lease: the leader is killed, asked to end, or frozen, and the other goes on.

use crate::testbed::PATIENCE;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use promotion_controller::controller::handover::Written;
use promotion_controller::controller::lease::{Acquired, Elector};
use promotion_controller::engine::leadership::Leadership;
use quaylike::{
    Action, Digest, Gate, GateSpec, ImageSpec, Matcher, Registry, RequestKind, Rule, Shape,
};
use serde_json::json;

use crate::testbed::Signal;
use crate::testbed::floats::{FLOATS, audited, put};
use crate::testbed::stage::{Controller, LOOK, Stage, phase};

const SOURCES: &str = "src/pipeline";
const SETTLE: Duration = Duration::from_secs(3);
/// How soon a follower goes on after a leader's death: its lease, the look at it, and the list of requests.
const AFTER_DEATH: Duration = Duration::from_secs(20);

/// A leader and a follower, and a request for an existing float.
struct Pair {
    stage: Stage,
    registry: Registry,
    leader: Option<Controller>,
    follower: Controller,
    /// The leader's name in the lease.
    holder: String,
    old: Digest,
}

/// Every write of a tag.
fn tag_writes() -> Matcher {
    Matcher::put_manifest().tag(true)
}

impl Pair {
    async fn start(prefix: &str, settle: Duration) -> Self {
        let registry = Registry::start(audited()).await.unwrap();
        let stage = Stage::elected(prefix).await;
        let old = seed(&registry, FLOATS, "f", "old");
        let arguments = [
            "--leader-elect=true".to_owned(),
            format!("--lease-namespace={}", stage.namespace),
            format!("--plain-http={}", registry.host()),
            format!("--settle-seconds={}", settle.as_secs()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let leader = stage.controller(&arguments);
        let holder = holder_other_than(&stage, None).await;
        let follower = stage.controller(&arguments);
        follower.says("waiting for the lease").await;
        Self {
            stage,
            registry,
            leader: Some(leader),
            follower,
            holder,
            old,
        }
    }

    async fn promote(&self, name: &str) -> Digest {
        let new = seed(&self.registry, SOURCES, name, name);
        let host = self.registry.host();
        let images = json!([{"source": format!("{host}/{SOURCES}@{new}"), "float": format!("{host}/{FLOATS}:f")}]);
        self.stage.create(name, &json!({"images": images})).await;
        new
    }

    async fn reached(&self, gate: &Gate) {
        let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
        assert!(reached.is_ok(), "{}", self.follower.log());
    }

    /// The number of the newest request, with the present time in milliseconds since 1970.
    fn newest(&self) -> (u64, i64) {
        let requests = self.registry.requests(&Matcher::default());
        let newest = requests.last().map_or(0, |entry| entry.seq);
        (newest, jiff::Timestamp::now().as_millisecond())
    }

    /// How long after `newest` the next request came: the follower's first.
    fn next_after(&self, newest: (u64, i64)) -> Duration {
        let (seq, time) = newest;
        let next = self.registry.requests_after(seq, 1, &Matcher::default());
        Duration::from_millis(u64::try_from(next[0].time - time).unwrap())
    }

    /// Asserts the float's whole neighbourhood.
    fn assert_tags(&self, now: Digest, before: Digest, pruned: &[Digest]) {
        let tags = self.registry.tags(FLOATS);
        let pins = tags.iter().filter(|(tag, _)| tag.contains("_prune_"));
        let mut pins: Vec<Digest> = pins.map(|(_, digest)| *digest).collect();
        let mut pruned = pruned.to_vec();
        pins.sort_unstable();
        pruned.sort_unstable();
        assert_eq!(pins, pruned, "{tags:?}\n{}", self.follower.log());
        for (tag, digest) in [
            ("f", now),
            ("f_incoming", now),
            ("f__post1", now),
            ("f__pre", before),
        ] {
            assert_eq!(tags.get(tag), Some(&digest), "{tag}: {tags:?}");
        }
        assert_eq!(tags.len(), 4 + pruned.len(), "{tags:?}");
        assert_eq!(self.registry.audit_trail(), []);
    }
}

fn seed(registry: &Registry, path: &str, tag: &str, seed: &str) -> Digest {
    let image = ImageSpec::new(Shape::Oci, seed).build().unwrap();
    registry.seed_image(path, tag, &image).unwrap()
}

async fn lease(stage: &Stage) -> Option<Lease> {
    let api: Api<Lease> = Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
    api.get_opt("promotion-controller").await.unwrap()
}

fn holder(lease: Option<&Lease>) -> Option<String> {
    let spec = lease?.spec.as_ref()?;
    spec.holder_identity
        .clone()
        .filter(|holder| !holder.is_empty())
}

async fn holder_other_than(stage: &Stage, other: Option<&str>) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let holder = holder(lease(stage).await.as_ref());
        if let Some(holder) = holder.filter(|holder| Some(holder.as_str()) != other) {
            return holder;
        }
        assert!(Instant::now() < end, "nobody else holds the lease");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_during_its_latch_is_followed_when_its_lease_has_run_out() {
    let mut pair = Pair::start("lease-kill", SETTLE).await;
    let latch = pair.registry.gate(GateSpec::before(put("f")));
    let new = pair.promote("one").await;
    pair.reached(&latch).await;
    let killed = pair.newest();
    pair.leader.take().unwrap().kill();
    // The write lands all the same, with nobody to hear of it.
    latch.open();
    let done = pair.stage.finished("one", PATIENCE).await;
    let went_on = pair.next_after(killed);
    println!("the follower went on {went_on:.1?} after the leader was killed");
    assert!(went_on < AFTER_DEATH, "{}", pair.follower.log());
    assert_eq!(phase(&done), "Posted");
    let next = holder(lease(&pair.stage).await.as_ref());
    assert!(next.is_some() && next.as_ref() != Some(&pair.holder));
    assert_eq!(done.status.unwrap().images[0].displaced.len(), 1);
    assert_eq!(pair.registry.count(&put("f")), 1);
    pair.assert_tags(new, pair.old, &[pair.old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_asked_to_end_hands_over_and_the_next_believes_no_read_older_than_its_writes() {
    let mut pair = Pair::start("lease-term", Duration::from_secs(10)).await;
    let latch = pair.registry.gate(GateSpec::before(put("f")));
    let new = pair.promote("one").await;
    pair.reached(&latch).await;
    let mut leader = pair.leader.take().unwrap();
    leader.signal(Signal::Terminate);
    leader.says("stopping: launching nothing more").await;
    // A replica that does not have the write yet answers whoever goes on.
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository(FLOATS)
        .reference("f");
    let lagging = Rule::new(look, Action::StaleRead { ms: 8_000 });
    pair.registry.add_rule(lagging);
    latch.open();
    let newest = pair.registry.wait_for(&put("f"), 1, true).await;
    assert_eq!(newest.status, Some(201));
    assert_eq!(leader.ended().await, 0, "{}", leader.log());
    assert!(
        leader.log().contains("released the lease"),
        "{}",
        leader.log()
    );
    let done = pair.stage.finished("one", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    assert_eq!(pair.registry.count(&put("f")), 1);
    let image = &done.status.unwrap().images[0];
    assert_eq!(image.attempts.unwrap_or_default(), 0, "{image:?}");
    // The leader wrote no tag after the one it was asked to end in.
    let writes = pair
        .registry
        .requests_after(newest.seq, usize::MAX, &tag_writes());
    assert_eq!(writes.len(), 1, "{writes:?}");
    assert_eq!(writes[0].reference, "f__post1");
    pair.assert_tags(new, pair.old, &[pair.old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_beyond_its_lease_writes_no_tag_when_it_wakes_up_and_ends() {
    let mut pair = Pair::start("lease-freeze", SETTLE).await;
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository(FLOATS)
        .reference_suffix("_prune_f");
    let back_up = pair.registry.gate(GateSpec::before(look));
    let one = pair.promote("one").await;
    pair.reached(&back_up).await;
    let mut leader = pair.leader.take().unwrap();
    leader.signal(Signal::Freeze);
    let frozen = Instant::now();
    let done = pair.stage.finished("one", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    println!("followed after {:.1?}", frozen.elapsed());
    // By now what the leader is about to write, the old image to `__pre`, would be wrong.
    let two = pair.promote("two").await;
    let done = pair.stage.finished("two", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let seen = pair
        .registry
        .requests(&Matcher::default())
        .last()
        .unwrap()
        .seq;
    back_up.open();
    leader.signal(Signal::Thaw);
    assert_eq!(leader.ended().await, 1, "{}", leader.log());
    assert!(leader.log().contains("is lost"), "{}", leader.log());
    let writes = pair
        .registry
        .requests_after(seen, usize::MAX, &tag_writes());
    assert_eq!(writes, []);
    let next = holder(lease(&pair.stage).await.as_ref());
    assert!(next.is_some() && next.as_ref() != Some(&pair.holder));
    pair.assert_tags(two, one, &[pair.old, one]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_wakes_up_late_leaves_the_lease_of_another_as_it_is() {
    let stage = Stage::bare("lease-woken").await;
    let leadership = Leadership::elected();
    let client = stage.plane.client().unwrap();
    let mut elector = Elector::new(
        client.clone(),
        &stage.namespace,
        "old".into(),
        leadership.clone(),
    );
    assert_eq!(elector.acquire().await, Acquired::New);
    assert!(leadership.covers(Duration::ZERO));
    // What it does not see while it sleeps.
    let api: Api<Lease> = Api::namespaced(client, &stage.namespace);
    let mut lease = api.get("promotion-controller").await.unwrap();
    lease.spec.as_mut().unwrap().holder_identity = Some("next".into());
    let next = api
        .replace("promotion-controller", &PostParams::default(), &lease)
        .await
        .unwrap();
    let lost = elector.keep().await.to_string();
    assert!(lost.contains("another process holds it"), "{lost}");
    assert!(!leadership.covers(Duration::ZERO));
    elector.release(&Written::default()).await;
    let now = api.get("promotion-controller").await.unwrap();
    assert_eq!(now, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_whose_answer_was_lost_is_no_loss_of_the_lease() {
    let stage = Stage::bare("lease-answer").await;
    let leadership = Leadership::elected();
    let client = stage.plane.client().unwrap();
    let mut elector = Elector::new(
        client.clone(),
        &stage.namespace,
        "one".into(),
        leadership.clone(),
    );
    assert_eq!(elector.acquire().await, Acquired::New);
    // As the renewal of this process that it never heard of.
    let api: Api<Lease> = Api::namespaced(client, &stage.namespace);
    let lease = api.get("promotion-controller").await.unwrap();
    let mut heard_of = lease.clone();
    heard_of.spec.as_mut().unwrap().lease_duration_seconds = Some(16);
    let unheard = api
        .replace("promotion-controller", &PostParams::default(), &heard_of)
        .await
        .unwrap();
    let kept = tokio::time::timeout(Duration::from_secs(12), elector.keep()).await;
    assert!(kept.is_err(), "{:?}", kept.map(|lost| lost.to_string()));
    let now = api.get("promotion-controller").await.unwrap();
    assert_eq!(holder(Some(&now)).as_deref(), Some("one"));
    assert_ne!(
        now.metadata.resource_version,
        unheard.metadata.resource_version
    );
    assert!(leadership.covers(Duration::from_secs(5)));
}
