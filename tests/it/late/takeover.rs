//! A leader is killed: what the next one goes on with at once, and what it waits for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use quaylike::{
    Action, Digest, Gate, GateSpec, ImageSpec, Matcher, Options, Registry, RequestKind, Rule,
    Settings, Shape,
};
use serde_json::json;

use crate::stage::{Controller, LOOK, Stage, phase};

const PATIENCE: Duration = Duration::from_secs(90);
/// The timeout of a tag PUT, with the smallest settle time.
const PUT: Duration = Duration::from_secs(1);
/// The lease, a look at it, and the list of requests.
const TAKEN_OVER: Duration = Duration::from_secs(20);

/// A leader, a follower, and a registry.
struct Pair {
    stage: Stage,
    registry: Registry,
    leader: Option<Controller>,
    follower: Controller,
}

fn put(tag: &str) -> Matcher {
    Matcher::put_manifest().repository("ci").reference(tag)
}

fn look(tag: &str) -> Matcher {
    Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference(tag)
}

async fn said(controller: &Controller, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !controller.log().contains(words) {
        assert!(Instant::now() < end, "no '{words}':\n{}", controller.log());
        tokio::time::sleep(LOOK).await;
    }
}

impl Pair {
    async fn start(prefix: &str, late: Duration) -> Self {
        let settings = Settings {
            audit: true,
            ..Settings::default()
        };
        let registry = Registry::start(Options::default().settings(settings))
            .await
            .unwrap();
        let stage = Stage::elected(prefix).await;
        let arguments = [
            "--leader-elect=true".to_owned(),
            format!("--lease-namespace={}", stage.namespace),
            format!("--plain-http={}", registry.host()),
            format!("--late-seconds={}", late.as_secs()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let leader = stage.controller(&arguments);
        said(&leader, " ready").await;
        let follower = stage.controller(&arguments);
        said(&follower, "waiting for the lease").await;
        Self {
            stage,
            registry,
            leader: Some(leader),
            follower,
        }
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
    for float in ["rest", "flight", "free", "gone"] {
        pair.seed("ci", float, &format!("old-{float}"));
    }
    let old = pair.registry.tag("ci", "gone").unwrap();
    let lands = (late + PUT).saturating_sub(Duration::from_millis(500));
    let ms = u64::try_from(lands.as_millis()).unwrap();
    let held = Rule::new(put("gone"), Action::HoldWrite { ms: Some(ms) });
    pair.registry.add_rule(held.times(1));
    let one = pair.promote("gone", "gone").await;
    let end = Instant::now() + PATIENCE;
    while pair.registry.held_writes() == 0 {
        assert!(Instant::now() < end, "{}", pair.stage.log());
        tokio::time::sleep(LOOK).await;
    }
    pair.stage.delete("gone").await;
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
    assert!(took(rest) < TAKEN_OVER, "{}", pair.follower.log());
    for at in [flight, free] {
        // The PUT was sent before the leader was killed: its timeout, and L.
        assert!(took(at) >= late + PUT, "{:?}", took(at));
        assert!(took(at) < late + TAKEN_OVER, "{:?}", took(at));
    }
    for name in ["rest", "flight", "free", "next"] {
        let done = pair.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{name}");
    }
    let history = pair.registry.history("ci", "gone").into_iter();
    let history: Vec<_> = history.filter_map(|change| change.digest).collect();
    assert_eq!(history, [old, one, two], "{}", pair.follower.log());
    assert_eq!(pair.registry.tag("ci", "gone__pre"), Some(one));
    assert_eq!(pair.registry.held_writes(), 0);
    assert_eq!(pair.registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_leader_was_killed_only_what_may_be_written_late_is_waited_for() {
    followed(Duration::from_secs(20)).await;
}
