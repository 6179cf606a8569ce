//! A leader is killed: what the next one goes on with at once, and what it waits for.

use crate::testbed::PATIENCE;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use quaylike::{Action, Digest, Gate, GateSpec, ImageSpec, Matcher, Registry, Rule, Shape};
use serde_json::json;

use crate::testbed::floats::{audited, look, put};
use crate::testbed::stage::{Controller, LOOK, Stage, phase};

/// What a controller says that leads, and one that does not.
const LEADS: &str = "leading how=";
const FOLLOWS: &str = "waiting for the lease";
/// The lease, a look at it, and the list of requests, on a busy machine; nothing is launched before the settle time is over.
const TAKEN_OVER: Duration = Duration::from_secs(25);

/// The smallest settle time, or with `LATE_IN_FULL` the default.
fn settle() -> Duration {
    let full = std::env::var_os("LATE_IN_FULL").is_some();
    Duration::from_secs(if full { 10 } else { 3 })
}

/// The timeout of a tag PUT.
fn put_timeout() -> Duration {
    settle().saturating_sub(Duration::from_secs(2))
}

/// A leader, a follower, and a registry.
struct Pair {
    stage: Stage,
    registry: Registry,
    leader: Option<Controller>,
    follower: Controller,
    arguments: Vec<String>,
}

async fn said(controller: &Controller, words: &str) {
    said_times(controller, words, 1).await;
}

/// All controllers of a test write one log.
async fn said_times(controller: &Controller, words: &str, times: usize) {
    let end = Instant::now() + PATIENCE;
    while controller.log().matches(words).count() < times {
        assert!(Instant::now() < end, "no '{words}':\n{}", controller.log());
        tokio::time::sleep(LOOK).await;
    }
}

impl Pair {
    async fn start(prefix: &str, late: Duration) -> Self {
        let registry = Registry::start(audited()).await.unwrap();
        let stage = Stage::elected(prefix).await;
        let arguments = [
            "--leader-elect=true".to_owned(),
            format!("--lease-namespace={}", stage.namespace),
            format!("--plain-http={}", registry.host()),
            format!("--late-seconds={}", late.as_secs()),
            format!("--settle-seconds={}", settle().as_secs()),
        ];
        let started: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let leader = stage.controller(&started);
        said(&leader, " ready").await;
        let follower = stage.controller(&started);
        said(&follower, FOLLOWS).await;
        Self {
            stage,
            registry,
            leader: Some(leader),
            follower,
            arguments: arguments.into(),
        }
    }

    /// The leader is killed, and the follower leads; another one follows it.
    async fn take_over(&mut self) -> Instant {
        let log = self.follower.log();
        let said = |words: &str| log.matches(words).count();
        let killed = Instant::now();
        self.leader.take().unwrap().kill();
        said_times(&self.follower, LEADS, said(LEADS) + 1).await;
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let next = self.stage.controller(&arguments);
        said_times(&next, FOLLOWS, said(FOLLOWS) + 1).await;
        self.leader = Some(std::mem::replace(&mut self.follower, next));
        killed
    }

    /// A request whose latch is on the wire when it is deleted, and that the registry does so long after. Gives what its float was on,
    /// and what is written late.
    async fn deleted_in_flight(&self, float: &str, lands: Duration) -> (Digest, Digest) {
        let old = self.seed("ci", float, &format!("old-{float}"));
        let ms = u64::try_from(lands.as_millis()).unwrap();
        let held = Rule::new(put(float), Action::HoldWrite { ms: Some(ms) });
        self.registry.add_rule(held.times(1));
        let one = self.promote(float, float).await;
        let end = Instant::now() + PATIENCE;
        while self.registry.held_writes() == 0 {
            assert!(Instant::now() < end, "{}", self.stage.log());
            tokio::time::sleep(LOOK).await;
        }
        self.stage.delete(float).await;
        (old, one)
    }

    /// Asserts that the late write of a float came before its next one.
    fn assert_in_order(&self, float: &str, digests: [Digest; 3]) {
        let history = self.registry.history("ci", float).into_iter();
        let history: Vec<_> = history.filter_map(|change| change.digest).collect();
        assert_eq!(history, digests, "{}", self.follower.log());
        let pre = self.registry.tag("ci", &format!("{float}__pre"));
        assert_eq!(pre, Some(digests[1]));
        assert_eq!(self.registry.held_writes(), 0);
        assert_eq!(self.registry.audit_trail(), []);
    }

    fn seed(&self, repository: &str, tag: &str, name: &str) -> Digest {
        let image = ImageSpec::new(Shape::Oci, name);
        self.registry.seed_spec(repository, tag, &image).unwrap()
    }

    async fn promote(&self, name: &str, float: &str) -> Digest {
        let new = self.seed("src/x", name, name);
        let host = self.registry.host();
        let image =
            json!({"source": format!("{host}/src/x@{new}"), "float": format!("{host}/ci:{float}")});
        self.stage.create(name, &json!({"images": [image]})).await;
        new
    }

    async fn reached(&self, gate: &Gate) {
        let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
        assert!(reached.is_ok(), "{}", self.stage.log());
    }

    /// When the first manifest request about this float came after `after`.
    async fn first_look(&self, float: &str, after: u64) -> Instant {
        let end = Instant::now() + PATIENCE;
        while self
            .registry
            .requests_after(after, 1, &look(float))
            .is_empty()
        {
            assert!(Instant::now() < end, "{float}: {}", self.follower.log());
            tokio::time::sleep(LOOK).await;
        }
        Instant::now()
    }
}

/// One float whose request has begun and has nothing under way, one with a write on the wire, one that nobody has claimed; and one
/// whose request is deleted with its latch on the wire, which the registry does long after the next leader has taken over and was
/// asked for another image there.
async fn followed(late: Duration) {
    let mut pair = Pair::start("late-takeover", late).await;
    for float in ["rest", "flight", "free"] {
        pair.seed("ci", float, &format!("old-{float}"));
    }
    let lands = (late + put_timeout()).saturating_sub(Duration::from_millis(500));
    let (old, one) = pair.deleted_in_flight("gone", lands).await;
    let flies = pair.registry.gate(GateSpec::before(put("flight")));
    pair.promote("flight", "flight").await;
    pair.reached(&flies).await;
    let resolves = pair.registry.gate(GateSpec::before(look("rest")));
    pair.promote("rest", "rest").await;
    pair.reached(&resolves).await;
    // What only reads is given up by a pause, and its attempt taken back; what writes is not.
    let pause = ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some("promotion-controller".into()),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("paused".into(), "all".into())])),
        ..Default::default()
    };
    let client = pair.stage.plane.client().unwrap();
    let configs: Api<ConfigMap> = Api::namespaced(client, &pair.stage.namespace);
    configs
        .create(&PostParams::default(), &pause)
        .await
        .unwrap();
    pair.stage
        .until("rest", PATIENCE, |status| {
            let image = status.images.first();
            image.is_some_and(|i| i.reason.as_deref() == Some("Paused") && i.attempts.is_none())
        })
        .await;
    let newest = pair
        .registry
        .requests(&Matcher::default())
        .last()
        .unwrap()
        .seq;
    let killed = Instant::now();
    pair.leader.take().unwrap().kill();
    resolves.cut();
    flies.cut();
    let params = DeleteParams::default();
    configs
        .delete("promotion-controller", &params)
        .await
        .unwrap();
    pair.promote("free", "free").await;
    let two = pair.promote("next", "gone").await;
    let (rest, flight, free) = tokio::join!(
        pair.first_look("rest", newest),
        pair.first_look("flight", newest),
        pair.first_look("free", newest),
    );
    let took = |at: Instant| at - killed;
    println!(
        "L {late:?}: after the leader was killed the next one went on with a float whose request had nothing under way in {:.1?}, \
         with one in flight in {:.1?}, with one that nobody had claimed in {:.1?}",
        took(rest),
        took(flight),
        took(free)
    );
    for at in [flight, free] {
        // The PUT was sent before the leader was killed: its timeout, and L.
        assert!(took(at) >= late + put_timeout(), "{:?}", took(at));
        assert!(took(at) < late + TAKEN_OVER + settle(), "{:?}", took(at));
        assert!(took(rest) + late / 4 < took(at), "{:?}", took(rest));
    }
    for name in ["rest", "flight", "free", "next"] {
        let done = pair.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{name}");
    }
    pair.assert_in_order("gone", [old, one, two]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_leader_was_killed_only_what_may_be_written_late_is_waited_for() {
    let full = std::env::var_os("LATE_IN_FULL").is_some();
    followed(Duration::from_secs(if full { 30 } else { 20 })).await;
}

/// The second leader is killed as well, while it waits: the third one waits for what the first one sent, and no longer than it would
/// for what the second one may have sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_while_it_waits_leaves_the_rest_of_the_wait_to_the_next() {
    let late = Duration::from_secs(30);
    let mut pair = Pair::start("late-chain", late).await;
    let lands = (late + put_timeout()).saturating_sub(Duration::from_millis(500));
    let (old, one) = pair.deleted_in_flight("gone", lands).await;
    let newest = pair.registry.requests(&Matcher::default());
    let newest = newest.last().unwrap().seq;
    let first = pair.take_over().await;
    let two = pair.promote("next", "gone").await;
    let second = pair.take_over().await;
    assert!(second - first < late, "the second was to wait still");
    let looked = pair.first_look("gone", newest).await;
    println!(
        "L {late:?}: the float was gone on with {:.1?} after the first leader was killed, {:.1?} after the second",
        looked - first,
        looked - second
    );
    assert!(looked - first >= late + put_timeout());
    assert!(looked - second < late + TAKEN_OVER + settle());
    let done = pair.stage.finished("next", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    pair.assert_in_order("gone", [old, one, two]);
}
