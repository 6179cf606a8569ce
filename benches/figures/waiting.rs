//! Requests that wait on a registry that is down: what they take of memory, and whether they delay a newcomer on another.
//!
//! Out: the controller's memory with all of them, and the time of a request on another registry beside them and alone. Guaranteed: the
//! newcomer ends Posted.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use kube::api::PostParams;
use quaylike::{Action, Matcher, Registry, Rule, When};
use serde_json::json;

use crate::report::{Report, Table, mebibytes, method, seconds};
use crate::scale::{AT_ONCE, FLOATS, Ground, MEMORY, PATIENCE, create, ready, wanted};
use crate::testbed::stage::{self, Stage};

/// How long all have to have been looked at.
const SETTLED: Duration = Duration::from_secs(30);
const TRIES: usize = 5;

pub async fn run(report: &mut Report, ground: &Ground) {
    let count = if report.quick { 100 } else { 10_000 };
    method(&format!(
        "{count} unfinished requests of one float each, all on a registry that answers nothing but 503; beside them a newcomer of \
         {FLOATS} existing floats on another registry, 10 ms added to each request there. From its creation to its end, the median of {TRIES}, alone and \
         {} s after the last of the others was created.",
        SETTLED.as_secs()
    ));
    let stage = Stage::on(ground.plane, "waiting").await;
    let (down, other) = (ground.registry().await, ground.registry().await);
    down.add_rule(Rule {
        matcher: Matcher::default(),
        when: When::Always,
        left: None,
        action: Action::page(503),
    });
    for secret in ["pull", "push"] {
        let entries = [&down, &other].map(Registry::host);
        let entries = entries
            .each_ref()
            .map(|host| (host.as_str(), "bot", "secret"));
        stage.secret(secret, &entries).await;
    }
    let flags = [&down, &other].map(|registry| format!("--plain-http={}", registry.host()));
    let controller =
        stage.controller_through(&ground.kubeconfig, &flags.each_ref().map(String::as_str));
    ready(&stage).await;
    let newcomer = async |name: String| {
        let wanted = wanted(&name, &other, &other);
        let begun = Instant::now();
        create(&stage, std::slice::from_ref(&wanted)).await;
        let done = stage.finished(&name, PATIENCE).await;
        assert_eq!(stage::phase(&done), "Posted");
        begun.elapsed()
    };
    let median = async |kind: &str| {
        let mut times = Vec::new();
        for n in 0..TRIES {
            times.push(newcomer(format!("{kind}-{n}")).await);
        }
        times.sort();
        times[TRIES / 2]
    };
    let alone = median("alone").await;
    let before = controller.peak_memory().unwrap();
    let (api, params) = (stage.requests(), PostParams::default());
    let host = down.host();
    let others = stream::iter(0..count).map(|n| {
        let source = format!("{host}/src/app@sha256:{n:064x}");
        let image = json!({"source": source, "float": format!("{host}/ci:waits-{n}")});
        let spec =
            json!({"images": [image], "pullSecret": {"name": "pull"}, "pushSecret": {"name": "push"}});
        let object = stage::object(&format!("waits-{n}"), &spec);
        let (api, params) = (&api, &params);
        async move { api.create(params, &object).await.unwrap() }
    });
    others.buffer_unordered(AT_ONCE).count().await;
    tokio::time::sleep(SETTLED).await;
    let beside = median("beside").await;
    let memory = controller.peak_memory().unwrap();
    controller.kill();
    let mut table = Table::new(&["", "measured", "limit"]);
    table.row(["the newcomer alone".into(), seconds(alone), String::new()]);
    let name = format!("the newcomer beside {count} that wait");
    table.row([name, seconds(beside), String::new()]);
    table.row([
        "peak memory before".into(),
        mebibytes(before),
        String::new(),
    ]);
    let figure = format!("{count} that wait: {}", mebibytes(memory));
    let limit = report.held(&figure, memory <= MEMORY, &mebibytes(MEMORY));
    table.row([format!("with {count} that wait"), mebibytes(memory), limit]);
    table.print();
}
