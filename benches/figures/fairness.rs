//! A small request behind two large ones: how much longer it takes than alone.
//!
//! Out: the time from the small request's creation to its end, alone and while 500 images of two other requests are on their way,
//! with and without pacing.

use std::time::{Duration, Instant};

use quaylike::{Options, Registry, Settings, Shape};
use serde_json::{Value, json};

use crate::report::{Report, Table, method, seconds};
use crate::requests::image;
use crate::testbed::stage::{self, Stage};

/// Of its time alone.
const RATIO: f64 = 3.0;
const PATIENCE: Duration = Duration::from_mins(8);

pub async fn run(report: &mut Report) {
    let large = if report.quick { 40 } else { 250 };
    method(&format!(
        "A request of 2 existing floats on the real API server, alone and 2 s after two requests of {large} images each; sources in \
         another repository, 4 blobs mounted, 10 ms added to each registry request. From its creation to its end, the median of \
         three."
    ));
    let mut table = Table::new(&["pacing", "alone", "behind the others", "ratio", "limit"]);
    for (name, qps) in [("none", "0"), ("the default", "auto")] {
        let stage = Stage::new("fairness").await;
        let settings = Settings {
            latency: Duration::from_millis(10),
            ..Settings::default()
        };
        let registry = Registry::start(Options::default().settings(settings))
            .await
            .unwrap();
        let flags = [
            format!("--plain-http={}", registry.host()),
            format!("--registry-qps={qps}"),
        ];
        let controller = stage.controller(&flags.each_ref().map(String::as_str));
        let small = async |name: &str| {
            let begun = Instant::now();
            stage.create(name, &request(&registry, name, 2)).await;
            let done = stage.finished(name, PATIENCE).await;
            assert_eq!(stage::phase(&done), "Posted");
            begun.elapsed()
        };
        // The start's settle time is not what is measured.
        small("warm").await;
        let mut alone = Vec::new();
        for n in 0..3 {
            alone.push(small(&format!("alone-{n}")).await);
        }
        let mut behind = Vec::new();
        for n in 0..3 {
            let others = ["one", "two"].map(|other| format!("{other}-{n}"));
            for other in &others {
                stage.create(other, &request(&registry, other, large)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            behind.push(small(&format!("behind-{n}")).await);
            for other in &others {
                // Those that still run are what the next ones would be behind of as well.
                stage.delete(other).await;
            }
        }
        let (alone, behind) = (median(alone), median(behind));
        let ratio = behind.as_secs_f64() / alone.as_secs_f64();
        table.row([
            name.to_owned(),
            seconds(alone),
            seconds(behind),
            format!("{ratio:.2}"),
            report.held(&format!("pacing {name}: {ratio:.2}"), ratio <= RATIO, "3"),
        ]);
        controller.kill();
    }
    table.print();
}

/// A request of so many existing floats, each promoted from a source of its own.
fn request(registry: &Registry, name: &str, count: usize) -> Value {
    let host = registry.host();
    let images: Vec<Value> = (0..count)
        .map(|n| {
            let tag = format!("{name}-{n}");
            let new = image(Shape::Oci, &format!("new {tag}"), 3);
            let old = image(Shape::Oci, &format!("old {tag}"), 3);
            let new = registry.seed_image("src/app", &tag, &new).unwrap();
            registry.seed_image("ci", &tag, &old).unwrap();
            json!({"source": format!("{host}/src/app@{new}"), "float": format!("{host}/ci:{tag}")})
        })
        .collect();
    json!({"images": images})
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
