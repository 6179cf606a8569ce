//! How many instructions `promote` costs, counted by valgrind's callgrind where that is installed: a number that no busy machine changes.
//! `counts.json` of the registry tests has them beside the other costs. A cost that rises fails here; for one that falls, that file follows.

use std::process::Stdio;

use quaylike::{ImageSpec, Options, Settings, Shape};
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use crate::testbed::command::{Ground, document, ended};

/// Timers fire more often in a run that takes longer, threads take turns as it comes, and compilers differ.
const TOLERANCE_PERCENT: u64 = 25;

/// As the registry tests promote it.
#[derive(Deserialize)]
struct Case {
    name: String,
    floats: usize,
    /// Of a debug build, in millions.
    instructions: Option<u64>,
}

#[tokio::test(flavor = "multi_thread")]
async fn promotions_take_as_many_instructions_as_are_written_down() {
    if Command::new("valgrind")
        .arg("--version")
        .output()
        .await
        .is_err()
    {
        eprintln!("skipped: there is no valgrind");
        return;
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../registry/counts.json")).unwrap();
    let mut counted = 0;
    for case in cases {
        let Some(limit) = case.instructions else {
            continue;
        };
        // The fewer of two runs.
        let found = instructions(case.floats).await;
        let found = found.min(instructions(case.floats).await);
        println!("{}: {found} million instructions, limit {limit}", case.name);
        assert!(
            found * 100 <= limit * (100 + TOLERANCE_PERCENT),
            "{}: {found} million instructions, not {limit}",
            case.name
        );
        counted += 1;
    }
    assert!(counted > 0);
}

/// Of the promotion of so many existing floats, 4 blobs each mounted from another repository; in millions.
async fn instructions(floats: usize) -> u64 {
    let ground = Ground::with(Options::default().settings(Settings::default())).await;
    let image = |seed: String| {
        let mut spec = ImageSpec::new(Shape::Oci, &seed);
        spec.layers = 3;
        spec.build().unwrap()
    };
    let mut images = Vec::new();
    for n in 0..floats {
        let (new, old) = (image(format!("new {n}")), image(format!("old {n}")));
        let (source, float) = (format!("s{n}"), format!("f{n}"));
        ground.registry.seed_image("src/x", &source, &new).unwrap();
        ground.registry.seed_image("ci", &float, &old).unwrap();
        let source = ground.at(&format!("src/x@{}", new.digest()));
        images.push(json!({"source": source, "float": ground.at(&format!("ci:{float}"))}));
    }
    ground.documents(&[document("one", &json!({"images": images}))]);
    let promote = ground.command(&["--registry-qps=0"]);
    let promote = promote.as_std();
    let mut counting = Command::new("valgrind");
    counting
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(promote.get_program())
        .args(promote.get_args())
        .current_dir(promote.get_current_dir().unwrap())
        .env_clear()
        .envs(
            promote
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        // As many on every machine.
        .env("TOKIO_WORKER_THREADS", "2")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let run = ended(counting).await.exits(0);
    let count = run
        .stderr
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = count.expect("callgrind says what it collected");
    count.trim().parse::<u64>().unwrap() / 1_000_000
}
