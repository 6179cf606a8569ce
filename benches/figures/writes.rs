//! Status writes and time of one request in a cluster: the controller on the real API server.
//!
//! Out: for one image and for a hundred, the time from creation to Posted, and the writes of the status until then.

use std::time::{Duration, Instant};

use quaylike::{Options, Registry, RequestKind, Settings, Shape};
use serde_json::json;

use crate::report::{Report, Table, method, seconds};
use crate::requests::image;
use crate::testbed::Signal;
use crate::testbed::stage::{self, Stage};

/// From creation to Posted, of a hundred images.
const TIME: Duration = Duration::from_secs(5);

pub async fn run(report: &mut Report) {
    method(
        "One request on the real API server with its etcd: existing floats, 4 blobs each mounted, 10 ms added to each registry \
         request, no pacing. The limit of writes is 8, and one more every 2 s.",
    );
    let mut table = Table::new(&[
        "one request",
        "from creation to Posted",
        "limit",
        "status writes",
        "limit",
        "registry requests",
        "limit",
    ]);
    let large = if report.quick { 10 } else { 100 };
    for images in [1_u32, large] {
        let stage = Stage::new("figures").await;
        let settings = Settings {
            latency: Duration::from_millis(10),
            ..Settings::default()
        };
        let registry = Registry::start(Options::default().settings(settings))
            .await
            .unwrap();
        let host = registry.host();
        let mut entries = Vec::new();
        for n in 0..images {
            let new = registry
                .seed_image(
                    "src/app",
                    &format!("t{n}"),
                    &image(Shape::Oci, &format!("new {n}"), 3),
                )
                .unwrap();
            registry
                .seed_image(
                    "ci",
                    &format!("t{n}"),
                    &image(Shape::Oci, &format!("old {n}"), 3),
                )
                .unwrap();
            entries.push(json!({"source": format!("{host}/src/app@{new}"), "float": format!("{host}/ci:t{n}")}));
        }
        let warm = image(Shape::Oci, "warm", 3);
        registry.seed_image("src/app", "warm", &warm).unwrap();
        let controller = stage.controller(&[&format!("--plain-http={host}"), "--registry-qps=0"]);
        // The start's settle time is not what is measured: a first request waits it out.
        stage.create("warm", &json!({"images": [{"source": format!("{host}/src/app:warm"), "float": format!("{host}/ci:warm")}]})).await;
        stage.finished("warm", Duration::from_mins(1)).await;
        registry.reset_log();
        let watching = tokio::spawn(watch_writes(stage.requests()));
        let begun = Instant::now();
        stage.create("figures", &json!({"images": entries})).await;
        let done = stage.finished("figures", Duration::from_mins(2)).await;
        let took = begun.elapsed();
        assert_eq!(stage::phase(&done), "Posted");
        let writes = watching.await.unwrap();
        let requests: u64 = registry
            .counts()
            .into_iter()
            .filter(|(kind, _)| *kind != RequestKind::Ping)
            .map(|(_, n)| n)
            .sum();
        let name = format!("{images} image(s)");
        let in_time = if images == 100 {
            let figure = format!("{name}: {}", seconds(took));
            report.held(&figure, took <= TIME, &seconds(TIME))
        } else {
            String::new()
        };
        let writes_max = 8 + took.as_secs() / 2;
        let requests_max = 16 * u64::from(images);
        table.row([
            name.clone(),
            seconds(took),
            in_time,
            writes.to_string(),
            report.held(
                &format!("{name}: {writes} status writes"),
                writes <= writes_max,
                &writes_max.to_string(),
            ),
            requests.to_string(),
            report.held(
                &format!("{name}: {requests} registry requests"),
                requests <= requests_max,
                &requests_max.to_string(),
            ),
        ]);
        controller.kill();
    }
    table.print();
    start().await;
}

/// How long the first promotion takes where a leader begins.
async fn start() {
    method(
        "From there to the end of a request of one existing float, created at that moment; with the default times, S 10 s and L 30 s, and \
         an election. A restarted leader had just promoted something, and the next one starts when it has ended, or waits for it.",
    );
    let mut table = Table::new(&["a leader begins", "first promotion after"]);
    let stage = Stage::elected("start").await;
    let registry = Registry::start(Options::default()).await.unwrap();
    let plain = format!("--plain-http={}", registry.host());
    let flags = [
        "--leader-elect=true",
        "--settle-seconds=10",
        "--late-seconds=30",
        &plain,
    ];
    let promote = async |name: &str, begun: Instant| {
        let host = registry.host();
        let images = ["new", "old"].map(|age| image(Shape::Oci, &format!("{age} {name}"), 3));
        let new = registry.seed_image("src/app", name, &images[0]).unwrap();
        registry.seed_image("ci", name, &images[1]).unwrap();
        let source = format!("{host}/src/app@{new}");
        let spec = stage::spec(&[(&source, &format!("{host}/ci:{name}"))]);
        stage.create(name, &spec).await;
        let done = stage.finished(name, Duration::from_mins(2)).await;
        assert_eq!(stage::phase(&done), "Posted");
        seconds(begun.elapsed())
    };
    let mut row = |name: &str, took: String| table.row([name.to_owned(), took]);
    let begun = Instant::now();
    let mut leader = stage.controller(&flags);
    let took = promote("install", begun).await;
    row("after an install: from the start of the process", took);
    let begun = Instant::now();
    leader.signal(Signal::Terminate);
    leader.ended().await;
    let mut leader = stage.controller(&flags);
    row(
        "after a restart: from the signal",
        promote("restart", begun).await,
    );
    let begun = Instant::now();
    leader.signal(Signal::Terminate);
    let standby = stage.controller(&flags);
    row(
        "a standby takes over: from the signal",
        promote("standby", begun).await,
    );
    leader.ended().await;
    let begun = Instant::now();
    standby.kill();
    let _last = stage.controller(&flags);
    row(
        "the leader is killed: from then",
        promote("killed", begun).await,
    );
    table.print();
}

/// How often the status of the object `figures` was written, until it has ended.
async fn watch_writes(api: kube::Api<promotion_controller::api::PromotionRequest>) -> u64 {
    use futures::StreamExt as _;
    use kube::api::{WatchEvent, WatchParams};
    let params = WatchParams::default().fields("metadata.name=figures");
    let mut events = Box::pin(api.watch(&params, "0").await.unwrap());
    let mut writes = 0;
    while let Some(event) = events.next().await {
        if let Ok(WatchEvent::Modified(object)) = event {
            writes += 1;
            if object
                .status
                .is_some_and(|status| status.completion_time.is_some())
            {
                break;
            }
        }
    }
    writes
}
