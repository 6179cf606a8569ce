//! Memory does not grow with images.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quaylike::{ImageSpec, Options, Registry, Settings, Shape};

use crate::testbed::RunDir;

const MIB: u64 = 1024 * 1024;
/// Ten layers of this size are on their way at once.
const LAYER: u64 = 64 * MIB;
/// What the process may take at its highest, a debug build's own needs included.
const LIMIT: u64 = 100 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_640_mib_go_from_registry_to_registry_in_bounded_memory() {
    let discarding = Settings {
        discard_blobs: true,
        ..Settings::default()
    };
    let from = Registry::start(Options::default()).await.unwrap();
    let to = Registry::start(Options::default().settings(discarding))
        .await
        .unwrap();
    let mut spec = ImageSpec::new(Shape::Oci, "large");
    (spec.layers, spec.layer_bytes) = (10, Some(LAYER));
    let digest = from.seed_spec("src/large", "t", &spec).unwrap();
    let folder = RunDir::create("bounded").unwrap();
    let (source, float) = (
        format!("{}/src/large@{digest}", from.host()),
        format!("{}/ci:large", to.host()),
    );
    let request = format!(
        "apiVersion: ci.openshift.io/v1alpha1\nkind: PromotionRequest\nmetadata: {{name: large}}\n\
         spec: {{images: [{{source: '{source}', float: '{float}'}}]}}\n"
    );
    folder.write("request.yaml", &request).unwrap();
    let begun = Instant::now();
    let mut process = Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .args(["promote", "-f", "request.yaml", "--registry-qps=0"])
        .args(["--plain-http", &from.host(), "--plain-http", &to.host()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut highest = 0;
    let status = loop {
        highest = highest.max(peak(process.id()).unwrap_or_default());
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_mins(3), "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success());
    assert_eq!(to.tag("ci", "large"), Some(digest));
    println!(
        "10 layers of {} MiB: {} MiB at the highest (limit {}), {:.1} s",
        LAYER / MIB,
        highest / MIB,
        LIMIT / MIB,
        begun.elapsed().as_secs_f64()
    );
    assert!(highest > 0 && highest < LIMIT, "{} MiB", highest / MIB);
}

/// The highest resident memory of a process so far, in bytes; none once it is gone.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
