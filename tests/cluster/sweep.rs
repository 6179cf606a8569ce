//! What becomes of finished requests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use serde_json::{Value, json};

use super::ground::{Ground, PATIENCE};
use super::relay::{Call, Relay};
use crate::testbed::stage::{LOOK, phase};

/// As a sweep every second does it, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

async fn names(ground: &Ground) -> BTreeSet<String> {
    let list = ground.stage.list().await;
    list.into_iter().filter_map(|r| r.metadata.name).collect()
}

async fn until_gone(ground: &Ground, name: &str) {
    let end = Instant::now() + SOON;
    while names(ground).await.contains(name) {
        assert!(
            Instant::now() < end,
            "{name} stays:\n{}",
            ground.stage.log()
        );
        tokio::time::sleep(LOOK).await;
    }
}

fn with_ttl(mut spec: Value, seconds: u32) -> Value {
    spec["ttlSecondsAfterFinished"] = json!(seconds);
    spec
}

fn ttl(seconds: u32) -> Value {
    json!({"spec": {"ttlSecondsAfterFinished": seconds}})
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_requests_go_when_their_time_is_over_as_it_is_set_by_then() {
    let ground = Ground::new("ttl").await;
    let _controller = ground.controller(&["--sweep-interval=1"]);
    let names_of_all = [
        "at-once",
        "later",
        "longer",
        "kept",
        "unfinished",
        "cancelled",
        "planned",
        "failed",
    ];
    let mut specs = names_of_all.map(|name| {
        let seconds = match name {
            "at-once" | "unfinished" | "cancelled" | "planned" | "failed" => 0,
            "longer" => 6,
            _ => 604_800,
        };
        let (_, images) = ground.request(name, name);
        (name, with_ttl(images, seconds))
    });
    specs[4].1["suspend"] = json!(true);
    specs[5].1["cancel"] = json!(true);
    specs[6].1["mode"] = json!("Plan");
    specs[7].1["images"][0]["source"] = json!(format!("{}/src/none:x", ground.registry.host()));
    for (name, spec) in &specs {
        ground.stage.create(name, spec).await;
    }
    for name in ["later", "longer", "kept"] {
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted");
        if name == "longer" {
            ground.stage.patch(name, &ttl(604_800)).await;
        }
    }
    for name in ["at-once", "cancelled", "planned", "failed"] {
        until_gone(&ground, name).await;
    }
    ground.stage.patch("later", &ttl(0)).await;
    until_gone(&ground, "later").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let left = ["kept", "longer", "unfinished"].map(str::to_owned);
    assert_eq!(
        names(&ground).await,
        BTreeSet::from(left),
        "{}",
        ground.stage.log()
    );
    // Its promotion was not lost with it.
    assert!(ground.at("at-once").is_some());
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_finished_request_follows_its_generation_in_one_write() {
    let ground = Ground::new("generation").await;
    let _controller = ground.controller(&["--sweep-interval=1"]);
    let (_, images) = ground.request("a", "f");
    ground.stage.create("r", &images).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    let changed = ground.stage.patch("r", &ttl(1_000_000)).await;
    assert_eq!(changed.metadata.generation, Some(2));
    let followed = ground
        .stage
        .until("r", SOON, |s| s.observed_generation == Some(2))
        .await;
    let mut wanted = done.status.unwrap();
    wanted.observed_generation = Some(2);
    for condition in &mut wanted.conditions {
        condition.observed_generation = Some(2);
    }
    assert_eq!(followed.status, Some(wanted));
    let wait = [
        "wait",
        "--for=condition=Complete",
        "preq/r",
        "--timeout=5s",
        "-n",
        &ground.stage.namespace,
    ];
    let output = ground.stage.plane.kubectl(&wait).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(ground.stage.get("r").await, followed, "it is written again");
}

/// A finished request as a former leader left it.
async fn finished(ground: &Ground, name: &str, ttl: u32, lags: bool) {
    let images = json!({"images": [{"source": "x.io/a/b:c", "float": format!("x.io/a/b:{name}")}]});
    let mut made = ground.stage.create(name, &with_ttl(images, ttl)).await;
    let ended = Timestamp::now() - SignedDuration::from_hours(1);
    let generation = made.metadata.generation.unwrap() - i64::from(lags);
    made.status = Some(
        serde_json::from_value(json!({
            "phase": "Posted", "observedGeneration": generation, "completionTime": ended,
        }))
        .unwrap(),
    );
    let params = PostParams::default();
    ground
        .stage
        .requests()
        .replace_status(name, &params, &made)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_hundred_finished_requests_are_paged_through_a_few_requests_a_second() {
    const ALL: usize = 1200;
    /// Scattered over the pages, the first and the last of all among them.
    const OVER: [usize; 6] = [0, 99, 100, 511, 850, 1199];
    const LAGS: [usize; 3] = [1, 640, 1198];
    let ground = Ground::new("pages").await;
    let began = Instant::now();
    futures::stream::iter(0..ALL)
        .map(|n| {
            let ttl = if OVER.contains(&n) { 60 } else { 604_800 };
            let ground = &ground;
            async move { finished(ground, &format!("r{n:04}"), ttl, LAGS.contains(&n)).await }
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
    println!("made in {:.1?}", began.elapsed());
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    let _controller = ground.controller_through(&relay.kubeconfig, &["--sweep-interval=1"]);
    let began = Instant::now();
    let end = began + PATIENCE;
    let pages = || {
        relay
            .seen(Call::Page)
            .iter()
            .filter(|s| s.status == Some(200))
            .count()
    };
    while pages() < 2 * ALL / 20 + 1 {
        assert!(
            Instant::now() < end,
            "{} pages:\n{}",
            pages(),
            ground.stage.log()
        );
        tokio::time::sleep(LOOK).await;
    }
    println!("swept twice after {:.1?}", began.elapsed());
    let left = ground.stage.list().await;
    assert_eq!(left.len(), ALL - OVER.len());
    for request in &left {
        let name = request.metadata.name.as_deref().unwrap();
        let number: usize = name[1..].parse().unwrap();
        assert!(!OVER.contains(&number), "{name} stays");
        let observed = request.status.as_ref().unwrap().observed_generation;
        assert_eq!(observed, request.metadata.generation, "{name}");
    }
    let calls = [Call::Page, Call::Delete, Call::Load, Call::Save];
    let mut times: Vec<Instant> = calls
        .iter()
        .flat_map(|&call| relay.seen(call))
        .map(|seen| seen.at)
        .collect();
    times.sort();
    // A refresh is two requests.
    let most = times.iter().map(|&from| {
        let second = times
            .iter()
            .filter(|&&at| at >= from && at - from < Duration::from_secs(1));
        second.count()
    });
    let most = most.max().unwrap();
    println!("{} requests, {most} in the busiest second", times.len());
    assert!(most <= 8, "{most}");
    assert_eq!(relay.seen(Call::Delete).len(), OVER.len());
    assert_eq!(relay.seen(Call::Save).len(), LAGS.len());
}
