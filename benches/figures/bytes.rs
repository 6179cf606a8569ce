//! Large layers from one registry to another: how fast, and in how much memory.
//!
//! In: layers that the source repeats from one block, and a target that hashes what it is sent and keeps its length alone, so
//! that neither disk nor memory of a registry is what is measured. Out: the speed of `promote` and `stage` beside those of a plain loop
//! and of `crane copy`, and the peak memory of both with ten layers on their way.

use std::time::Duration;

use quaylike::{ImageSpec, Shape};
use serde_json::json;

use crate::measure::Taken;
use crate::plain::Plan;
use crate::promotion;
use crate::report::{Report, Table, mebibytes, method, seconds};
use crate::served::Served;
use crate::testbed::RunDir;
use crate::tools::{self, Tool};

const PATIENCE: Duration = Duration::from_mins(5);
const MIB: u64 = 1 << 20;
/// Of the speed of both others.
const SPEED: f64 = 0.9;
/// Resident, of `promote`.
const MEMORY: u64 = 100 * MIB;
/// Layers on their way at once.
const AT_ONCE: usize = 10;
/// The repository of the sources.
const LARGE: &str = "src/large";

/// One way to copy.
#[derive(Clone, Copy)]
enum Way<'a> {
    Loop,
    Promote,
    Stage,
    Crane(&'a Tool),
}

/// The registry that has the layers: an image of one layer for each seed.
struct Source {
    served: Served,
    /// Tag and manifest digest.
    images: Vec<(String, String)>,
}

pub async fn run(report: &mut Report) {
    let (layer, runs) = if report.quick {
        (64 * MIB, 1)
    } else {
        (1024 * MIB, 3)
    };
    method(&format!(
        "One layer of {} MiB from one registry to another on loopback, both embedded and processes of their own; the source \
         repeats a block, the target hashes and keeps nothing. The plain loop: GET as a stream, sha256, PUT. Median of {runs} \
         run(s), taking turns, each on a fresh target. Three processes share the cores.",
        layer / MIB
    ));
    let crane = tools::crane().await;
    let ways = [Way::Loop, Way::Crane(&crane), Way::Promote, Way::Stage];
    let source = Source::with(1, layer).await;
    let mut taken: [Vec<Taken>; 4] = Default::default();
    for _ in 0..runs {
        for (way, taken) in ways.iter().zip(&mut taken) {
            taken.push(copy(*way, &source).await);
        }
    }
    drop(source);
    let medians = taken.map(median);
    let ours = medians[2].wall.as_secs_f64();
    let mut table = Table::new(&[
        "one layer",
        "time",
        "speed",
        "promote's speed, of this",
        "limit",
        "CPU",
        "peak memory",
    ]);
    for (way, taken) in ways.iter().zip(&medians) {
        let ratio = taken.wall.as_secs_f64() / ours;
        let (shown, limit) = if matches!(way, Way::Promote | Way::Stage) {
            (String::new(), String::new())
        } else {
            let figure = format!("promote at {ratio:.2} of the speed of {}", way.name());
            let limit = report.held(&figure, ratio >= SPEED, &format!("{SPEED}"));
            (format!("{ratio:.2}"), limit)
        };
        table.row([
            way.name(),
            seconds(taken.wall),
            speed(layer, taken.wall),
            shown,
            limit,
            seconds(taken.cpu),
            mebibytes(taken.peak),
        ]);
    }
    table.print();
    memory(report).await;
}

async fn memory(report: &mut Report) {
    let layer = if report.quick { 32 * MIB } else { 512 * MIB };
    method(&format!(
        "{AT_ONCE} images with one layer of {} MiB each, no two alike, in one request.",
        layer / MIB
    ));
    let source = Source::with(AT_ONCE, layer).await;
    let mut table = Table::new(&[
        &format!("{AT_ONCE} layers at once"),
        "time",
        "speed",
        "CPU",
        "peak memory",
        "limit",
    ]);
    for way in [Way::Promote, Way::Stage] {
        let taken = copy(way, &source).await;
        let figure = format!("{} resident in {}", mebibytes(taken.peak), way.name());
        let limit = report.held(&figure, taken.peak <= MEMORY, &mebibytes(MEMORY));
        table.row([
            way.name(),
            seconds(taken.wall),
            speed(layer * AT_ONCE as u64, taken.wall),
            seconds(taken.cpu),
            mebibytes(taken.peak),
            limit,
        ]);
    }
    table.print();
}

/// Copies all images of the source to a fresh target.
///
/// # Panics
/// Where it fails, or the target does not end with the same digests.
async fn copy(way: Way<'_>, source: &Source) -> Taken {
    let target = Served::start(&json!({"discard_blobs": true})).await;
    let (from, to) = (source.served.host(), target.host());
    let folder = RunDir::create("bytes").unwrap();
    promotion::log_in(folder.path(), to, None);
    let task = match way {
        Way::Loop => {
            let (tag, _) = &source.images[0];
            let layer = source.layer(tag).await;
            let plan = Plan::Copy {
                from: format!("http://{from}/v2/{LARGE}/blobs/{layer}"),
                to: format!("http://{to}/v2/ci/blobs/uploads/"),
                digest: layer,
            };
            plan.task(folder.path())
        }
        Way::Promote | Way::Stage => {
            let pairs: Vec<_> = source
                .images
                .iter()
                .map(|(tag, digest)| (format!("{from}/{LARGE}@{digest}"), format!("{to}/ci:{tag}")))
                .collect();
            let arguments = ["--registry-qps=0"];
            let hosts = [from, to];
            if matches!(way, Way::Stage) {
                promotion::stage(folder.path(), &pairs, &hosts, &arguments)
            } else {
                promotion::promote(folder.path(), &pairs, &hosts, &arguments)
            }
        }
        Way::Crane(tool) => {
            let (tag, digest) = &source.images[0];
            let (from, to) = (format!("{from}/{LARGE}@{digest}"), format!("{to}/ci:{tag}"));
            tool.task(folder.path(), &[], &["copy", &from, &to]).await
        }
    };
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}: {}", way.name(), taken.stderr);
    // The loop has checked the digest itself, and sets no tag.
    if !matches!(way, Way::Loop) {
        let tags = target.snapshot().await.unwrap();
        for (tag, digest) in &source.images {
            let held = match way {
                Way::Stage => tags["ci"].values().any(|held| held == digest),
                _ => tags["ci"].get(tag) == Some(digest),
            };
            assert!(held, "{}: {tags:?}", way.name());
        }
    }
    taken
}

impl Source {
    async fn with(images: usize, layer: u64) -> Self {
        let served = Served::start(&json!({})).await;
        let mut seeded = Vec::new();
        for number in 0..images {
            let mut spec = ImageSpec::new(Shape::Oci, &format!("large {number}"));
            (spec.layers, spec.layer_bytes) = (1, Some(layer));
            let tag = format!("l{number}");
            let digest = served.seed(LARGE, &tag, &spec).await;
            seeded.push((tag, digest));
        }
        Self {
            served,
            images: seeded,
        }
    }

    /// The digest of an image's layer.
    async fn layer(&self, tag: &str) -> String {
        let manifest = self.served.manifest(LARGE, tag).await;
        let digest = manifest["layers"][0]["digest"].as_str();
        digest.unwrap().to_owned()
    }
}

impl Way<'_> {
    fn name(self) -> String {
        match self {
            Self::Loop => "plain loop".into(),
            Self::Promote => "promote".into(),
            Self::Stage => "stage".into(),
            Self::Crane(tool) => format!("{} copy", tool.label()),
        }
    }
}

fn median(mut runs: Vec<Taken>) -> Taken {
    runs.sort_by_key(|taken| taken.wall);
    runs.swap_remove(runs.len() / 2)
}

#[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
fn speed(bytes: u64, wall: Duration) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{:.0} MiB/s", mebibytes / wall.as_secs_f64())
}
