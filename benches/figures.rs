//! The figures this program is held to, measured on the real parts and printed beside their limits.
//!
//! `cargo bench` runs it: requests per float (the command without a cluster, on the embedded registry), and status writes and
//! time of a request of 100 images (the controller on the real API server). Times are of this machine, in this run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a bench that meets an error has failed"
)]

#[path = "../tests/it/stage.rs"]
#[allow(dead_code)]
mod stage;
#[path = "../tests/testbed/mod.rs"]
mod testbed;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use promotion_controller::embedded::{
    Auth, AuthMode, Embedded, Image, ImageSpec, Kind, Options, Settings, Shape, User,
};
use serde_json::json;
use stage::Stage;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        requests().await;
        println!();
        writes_and_time().await;
    });
}

fn image(shape: Shape, seed: &str, layers: usize) -> Image {
    let mut spec = ImageSpec::new(shape, seed);
    spec.layers = layers;
    spec.build().unwrap()
}

async fn requests() {
    println!(
        "Registry requests of one promotion (pings and tokens apart), tokens fetched on the way"
    );
    println!(
        "{:<58} {:>8} {:>6} {:>7} {:>6}",
        "", "requests", "limit", "tokens", "pings"
    );
    let new = image(Shape::Oci, "new", 3);
    let old = image(Shape::Oci, "old", 3);
    let blobs = 4;
    let row = async |name: &str, limit: usize, seed: &dyn Fn(&Embedded), source: &str| {
        let bot = User::new("bot", "secret").push("ci").pull("src");
        let registry =
            Embedded::start(Options::default().auth(Auth::new(AuthMode::Bearer).user(bot)))
                .await
                .unwrap();
        seed(&registry);
        promote(&registry, &[(source.into(), "ci:float".into())]);
        let counts = registry.counts();
        let count = |kind: Kind| counts.get(&kind).copied().unwrap_or_default();
        let requests = count(Kind::Manifest) + count(Kind::Blob) + count(Kind::Upload);
        println!(
            "{name:<58} {requests:>8} {limit:>6} {:>7} {:>6}",
            count(Kind::Token),
            count(Kind::Ping)
        );
    };
    let by_digest = format!("src/app@{}", new.digest());
    let seeded = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &old).unwrap();
    };
    row(
        "existing float, another repository, 4 blobs mounted",
        12 + blobs,
        &seeded,
        &by_digest,
    )
    .await;
    let same = format!("ci@{}", new.digest());
    let in_repository = |registry: &Embedded| {
        registry.seed_image("ci", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &old).unwrap();
    };
    row(
        "existing float, the same repository",
        12,
        &in_repository,
        &same,
    )
    .await;
    let unchanged = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &new).unwrap();
    };
    row("already at the source digest", 1, &unchanged, &by_digest).await;
    let again = |registry: &Embedded| {
        seeded(registry);
        for tag in ["float_incoming", "float__post1"] {
            registry.seed_image("ci", tag, &old).unwrap();
        }
    };
    row(
        "promoted before: _incoming and __post1 hold the old digest",
        12 + blobs,
        &again,
        &by_digest,
    )
    .await;
    let stranger = image(Shape::Oci, "stranger", 1);
    let rescue = |registry: &Embedded| {
        seeded(registry);
        registry
            .seed_image("ci", "float_incoming", &stranger)
            .unwrap();
    };
    row(
        "_incoming is the last pin of another digest: rescue",
        14 + blobs,
        &rescue,
        &by_digest,
    )
    .await;
    let first = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.create_repository("ci");
    };
    row(
        "first promotion, 4 blobs mounted",
        7 + blobs,
        &first,
        &by_digest,
    )
    .await;
}

/// Runs the command on `images` (source, float; without the host) of one request.
fn promote(registry: &Embedded, images: &[(String, String)]) {
    let folder = tempfile::tempdir().unwrap();
    let host = registry.host();
    let mut text = String::from(
        "apiVersion: ci.openshift.io/v1alpha1\nkind: PromotionRequest\nmetadata: {name: bench}\nspec:\n  images:\n",
    );
    for (source, float) in images {
        writeln!(
            text,
            "  - {{source: '{host}/{source}', float: '{host}/{float}'}}"
        )
        .unwrap();
    }
    let auth = json!({"auths": {&host: {"username": "bot", "password": "secret"}}});
    std::fs::write(folder.path().join("requests.yaml"), text).unwrap();
    std::fs::write(folder.path().join("auth.json"), auth.to_string()).unwrap();
    let output = Command::new(Path::new(env!("CARGO_BIN_EXE_promotion-controller")))
        .current_dir(folder.path())
        .args([
            "promote",
            "-f",
            "requests.yaml",
            "--registry-config",
            "auth.json",
            "--registry-qps=0",
        ])
        .args(["--plain-http", &host])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn writes_and_time() {
    println!(
        "One request on the real API server: existing floats, 4 blobs each mounted, 10 ms added to each registry request, no pacing"
    );
    println!(
        "{:<12} {:>12} {:>14} {:>7} {:>18} {:>7}",
        "", "applied to", "status writes", "limit", "registry requests", "limit"
    );
    println!("{:<12} {:>12}", "", "Posted");
    for images in [1_usize, 100] {
        let stage = Stage::new("figures").await;
        let settings = Settings {
            latency: Duration::from_millis(10),
            ..Settings::default()
        };
        let registry = Embedded::start(Options::default().settings(settings))
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
            .filter(|(kind, _)| *kind != Kind::Ping)
            .map(|(_, n)| n)
            .sum();
        let intervals = took.as_secs() / 2;
        println!(
            "{:<12} {:>10.2} s {writes:>14} {:>7} {requests:>18} {:>7}",
            format!("{images} images"),
            took.as_secs_f64(),
            8 + intervals,
            16 * images
        );
        controller.kill();
    }
    println!("(limit for 100 images: 5 s on two cores)");
}

/// How often the status of the object `figures` was written, until it has ended.
async fn watch_writes(api: kube::Api<promotion_controller::api::PromotionRequest>) -> usize {
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
