//! Two controller processes and one lease: the leader is killed, asked to end, or frozen, and the other goes on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use promotion_controller::embedded::{
    Digest, Embedded, Gate, GateSpec, ImageSpec, Kind, Matcher, Options, Settings, Shape,
};
use serde_json::json;

use crate::stage::{Controller, LOOK, Stage, phase};
use crate::testbed::Signal;

const PATIENCE: Duration = Duration::from_secs(90);
const FLOATS: &str = "ci";
const SOURCES: &str = "src/pipeline";
/// What [`Stage::controller`] sets.
const SETTLE: Duration = Duration::from_secs(3);

/// A leader and a follower, and a request for an existing float.
struct Pair {
    stage: Stage,
    registry: Embedded,
    leader: Option<Controller>,
    follower: Controller,
    /// The leader's name in the lease.
    holder: String,
    old: Digest,
}

fn put(tag: &str) -> Matcher {
    Matcher::put_manifest().repository(FLOATS).reference(tag)
}

/// Every write of a tag.
fn tag_writes() -> Matcher {
    Matcher::put_manifest().tag(true)
}

impl Pair {
    async fn start(prefix: &str) -> Self {
        let settings = Settings {
            audit: true,
            ..Settings::default()
        };
        let registry = Embedded::start(Options::default().settings(settings))
            .await
            .unwrap();
        let stage = Stage::new(prefix).await;
        let old = seed(&registry, FLOATS, "f", "old");
        let arguments = [
            "--leader-elect=true".to_owned(),
            format!("--lease-namespace={}", stage.namespace),
            format!("--plain-http={}", registry.host()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let leader = stage.controller(&arguments);
        let holder = holder_other_than(&stage, None).await;
        let follower = stage.controller(&arguments);
        until(&follower, "waiting for the lease").await;
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

fn seed(registry: &Embedded, path: &str, tag: &str, seed: &str) -> Digest {
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

async fn until(controller: &Controller, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !controller.log().contains(words) {
        assert!(Instant::now() < end, "no '{words}':\n{}", controller.log());
        tokio::time::sleep(LOOK).await;
    }
}

async fn exit_code(controller: &mut Controller) -> i32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(code) = controller.exit_code() {
            return code;
        }
        assert!(Instant::now() < end, "still runs:\n{}", controller.log());
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_during_its_latch_is_followed_when_its_lease_has_run_out() {
    let mut pair = Pair::start("lease-kill").await;
    let latch = pair.registry.gate(GateSpec::before(put("f")));
    let new = pair.promote("one").await;
    pair.reached(&latch).await;
    pair.leader.take().unwrap().kill();
    let killed = Instant::now();
    // The write lands all the same, with nobody to hear of it.
    latch.open();
    let done = pair.stage.finished("one", PATIENCE).await;
    println!("followed after {:.1?}", killed.elapsed());
    assert_eq!(phase(&done), "Posted");
    let next = holder(lease(&pair.stage).await.as_ref());
    assert!(next.is_some() && next.as_ref() != Some(&pair.holder));
    assert_eq!(done.status.unwrap().images[0].displaced.len(), 1);
    assert_eq!(pair.registry.count(&put("f")), 1);
    pair.assert_tags(new, pair.old, &[pair.old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_asked_to_end_gives_the_lease_back_when_its_newest_write_has_settled() {
    let mut pair = Pair::start("lease-term").await;
    let latch = pair.registry.gate(GateSpec::before(put("f")));
    let new = pair.promote("one").await;
    pair.reached(&latch).await;
    let mut leader = pair.leader.take().unwrap();
    leader.signal(Signal::Terminate);
    until(&leader, "stopping: launching nothing more").await;
    latch.open();
    let newest = pair.registry.wait_for(&put("f"), 1, true).await;
    assert_eq!(newest.status, Some(201));
    // Given back, or taken by the follower since: either was written when it was free.
    let end = Instant::now() + PATIENCE;
    let given = loop {
        let lease = lease(&pair.stage).await.unwrap();
        if holder(Some(&lease)).as_ref() != Some(&pair.holder) {
            break lease.spec.unwrap().renew_time.unwrap().0;
        }
        assert!(Instant::now() < end, "{}", leader.log());
        tokio::time::sleep(LOOK).await;
    };
    let free = Instant::now();
    assert_eq!(exit_code(&mut leader).await, 0, "{}", leader.log());
    let answered = newest.time + i64::try_from(newest.micros / 1000).unwrap();
    let settle = i64::try_from(SETTLE.as_millis()).unwrap();
    let settled = given.as_millisecond() - answered;
    assert!(
        settled >= settle,
        "released after {settled} ms:\n{}",
        leader.log()
    );
    let done = pair.stage.finished("one", PATIENCE).await;
    println!("went on {:.1?} after the lease was free", free.elapsed());
    assert!(free.elapsed() < Duration::from_secs(15), "{}", leader.log());
    assert_eq!(phase(&done), "Posted");
    assert_eq!(pair.registry.count(&put("f")), 1);
    // The leader wrote no tag after the one it was asked to end in.
    let writes = pair
        .registry
        .requests_after(newest.seq, usize::MAX, &tag_writes());
    assert!(
        writes
            .iter()
            .all(|entry| entry.time > given.as_millisecond()),
        "{writes:?}"
    );
    pair.assert_tags(new, pair.old, &[pair.old]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_beyond_its_lease_writes_no_tag_when_it_wakes_up_and_ends() {
    let mut pair = Pair::start("lease-freeze").await;
    let look = Matcher::kind(Kind::Manifest)
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
    assert_eq!(exit_code(&mut leader).await, 1, "{}", leader.log());
    assert!(leader.log().contains("is lost"), "{}", leader.log());
    let writes = pair
        .registry
        .requests_after(seen, usize::MAX, &tag_writes());
    assert_eq!(writes, []);
    let next = holder(lease(&pair.stage).await.as_ref());
    assert!(next.is_some() && next.as_ref() != Some(&pair.holder));
    pair.assert_tags(two, one, &[pair.old, one]);
}
