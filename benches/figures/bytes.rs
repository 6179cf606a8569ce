//! Large layers from one registry to another: how fast, and in how much memory.
//!
//! In: layers that the source repeats from one block, and a target that hashes what it is sent and keeps its length alone, so
//! that neither disk nor memory of a registry is what is measured. Out: the speed of `promote` and `stage` beside that of plain loops
//! and of other tools: of one layer, and of ten side by side at several latencies and with TLS; the peak memory of both with ten
//! layers on their way; and what of it hashing is.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use quaylike::{ImageSpec, Shape};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::measure::{Taken, Task};
use crate::plain::{Blob, Plan};
use crate::promotion::{self, FLOATS, SOURCES};
use crate::report::{Report, Table, mebibytes, method, seconds};
use crate::served::Served;
use crate::testbed::RunDir;
use crate::tls::Authority;
use crate::tools::{self, Tool};

const PATIENCE: Duration = Duration::from_mins(5);
const MIB: u64 = 1 << 20;
/// Of the speed of one plain loop, and of `crane`.
const SPEED: f64 = 0.9;
/// Of the speed of ten plain loops.
const SPEED_TOGETHER: f64 = 0.95;
/// Resident, of `promote`.
const MEMORY: u64 = 100 * MIB;
/// Layers on their way at once.
const AT_ONCE: usize = 10;

/// One way to copy.
#[derive(Clone, Copy, PartialEq)]
enum Way<'a> {
    Loop,
    /// The loop that moves the floats as well.
    MovingLoop,
    Promote,
    Stage,
    Tool(&'a Tool),
}

/// What is between the two registries and who copies.
#[derive(Clone, Copy, PartialEq)]
struct Road {
    /// Added to each request, in milliseconds.
    latency: u64,
    tls: bool,
}

const SHORT: Road = Road {
    latency: 0,
    tls: false,
};

/// What a copy took, and the bytes of it: from the first GET or HEAD of a blob to the end of the last upload, as the registries saw it.
struct Copied {
    taken: Taken,
    bytes: Duration,
}

/// The registry that has the layers: an image of one layer for each seed.
struct Source {
    served: Served,
    /// Tag, manifest digest, layer digest.
    images: Vec<(String, String, String)>,
}

pub async fn run(report: &mut Report) {
    one(report).await;
    together(report).await;
    memory(report).await;
    hashing(report);
}

async fn one(report: &mut Report) {
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
    let (crane, regctl) = (tools::crane().await, tools::regctl().await);
    let ways = [
        Way::Loop,
        Way::Tool(&crane),
        Way::Tool(&regctl),
        Way::Promote,
        Way::Stage,
    ];
    let source = Source::with(1, layer, SHORT).await;
    let medians = in_turn(&ways, &source, SHORT, runs).await;
    let ours = medians[3].taken.wall.as_secs_f64();
    let mut table = Table::new(&[
        "one layer",
        "time",
        "speed",
        "promote's speed, of this",
        "limit",
        "CPU for each GiB",
        "peak memory",
    ]);
    for (way, Copied { taken, .. }) in ways.iter().zip(&medians) {
        let ratio = taken.wall.as_secs_f64() / ours;
        let (shown, limit) = match way {
            Way::Promote | Way::Stage => (String::new(), String::new()),
            Way::Tool(tool) if tool.name == "regctl" => (format!("{ratio:.2}"), String::new()),
            way => {
                let figure = format!("promote at {ratio:.2} of the speed of {}", way.name());
                let limit = report.held(&figure, ratio >= SPEED, &format!("{SPEED}"));
                (format!("{ratio:.2}"), limit)
            }
        };
        table.row([
            way.name(),
            seconds(taken.wall),
            speed(layer, taken.wall),
            shown,
            limit,
            for_each_gib(taken, layer),
            mebibytes(taken.peak),
        ]);
    }
    table.print();
}

async fn together(report: &mut Report) {
    let (layer, runs) = if report.quick {
        (8 * MIB, 1)
    } else {
        (128 * MIB, 3)
    };
    method(&format!(
        "{AT_ONCE} images with one layer of {} MiB each, no two alike, in one request, and {AT_ONCE} plain loops side by side in one \
         process, on HTTP/1.1 also with TLS; latency is added to each request. Bytes: from the first GET or HEAD of a blob to the end of the \
         last upload, as the registries saw it; of that is the limit. In all: from start to end of the process. Of it `promote` spends the rest on its \
         start, the manifests and the floats, with a request after another however large the layers are; so does the loop that moves floats, \
         with as few requests as can be. Median of {runs} run(s), taking turns.",
        layer / MIB
    ));
    let mut table = Table::new(&[
        &format!("{AT_ONCE} layers side by side"),
        "bytes: loops",
        "promote",
        "speed",
        "of the loops'",
        "limit",
        "CPU for each GiB: loops",
        "promote",
        "in all: loops",
        "loops that move floats",
        "promote",
        "of it, other than bytes",
    ]);
    for (name, latency, tls) in [
        ("0 ms", 0, false),
        ("10 ms", 10, false),
        ("50 ms", 50, false),
        ("0 ms, TLS", 0, true),
    ] {
        let road = Road { latency, tls };
        let source = Source::with(AT_ONCE, layer, road).await;
        let ways = [Way::Loop, Way::MovingLoop, Way::Promote];
        let medians = in_turn(&ways, &source, road, runs).await;
        let [plain, moving, ours] = &medians[..] else {
            return;
        };
        let (all, ratio) = (
            layer * AT_ONCE as u64,
            plain.bytes.as_secs_f64() / ours.bytes.as_secs_f64(),
        );
        let figure = format!("{name}: {ratio:.2} of the speed of {AT_ONCE} loops");
        table.row([
            name.to_owned(),
            seconds(plain.bytes),
            seconds(ours.bytes),
            speed(all, ours.bytes),
            format!("{ratio:.2}"),
            report.held(
                &figure,
                ratio >= SPEED_TOGETHER,
                &SPEED_TOGETHER.to_string(),
            ),
            for_each_gib(&plain.taken, all),
            for_each_gib(&ours.taken, all),
            seconds(plain.taken.wall),
            seconds(moving.taken.wall),
            seconds(ours.taken.wall),
            seconds(ours.taken.wall.saturating_sub(ours.bytes)),
        ]);
    }
    table.print();
}

async fn memory(report: &mut Report) {
    let layer = if report.quick { 32 * MIB } else { 512 * MIB };
    method(&format!("The same with layers of {} MiB.", layer / MIB));
    let source = Source::with(AT_ONCE, layer, SHORT).await;
    let mut table = Table::new(&[
        &format!("{AT_ONCE} layers at once"),
        "time",
        "speed",
        "CPU for each GiB",
        "peak memory",
        "limit",
    ]);
    let all = layer * AT_ONCE as u64;
    for way in [Way::Promote, Way::Stage] {
        let Copied { taken, .. } = copy(way, &source, SHORT).await;
        let figure = format!("{} resident in {}", mebibytes(taken.peak), way.name());
        let limit = report.held(&figure, taken.peak <= MEMORY, &mebibytes(MEMORY));
        table.row([
            way.name(),
            seconds(taken.wall),
            speed(all, taken.wall),
            for_each_gib(&taken, all),
            mebibytes(taken.peak),
            limit,
        ]);
    }
    table.print();
}

/// What of it hashing is.
fn hashing(report: &Report) {
    let pieces = if report.quick { 64 } else { 1024 };
    let piece = vec![7_u8; usize::try_from(MIB).unwrap()];
    let begun = Instant::now();
    let mut hash = Sha256::new();
    for _ in 0..pieces {
        hash.update(black_box(&piece));
    }
    black_box(hash.finalize());
    let took = begun.elapsed().as_secs_f64() * 1024.0 / f64::from(pieces);
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = if flags.contains(" sha_ni") || flags.contains(" sha2") {
        "has"
    } else {
        "lacks"
    };
    println!(
        "Of it, hashing takes {took:.2} s of one core for each GiB; this processor {hardware} instructions for it.\n"
    );
}

/// The median of each way's runs.
async fn in_turn(ways: &[Way<'_>], source: &Source, road: Road, runs: usize) -> Vec<Copied> {
    let mut copied: Vec<Vec<Copied>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..runs {
        for (way, copied) in ways.iter().zip(&mut copied) {
            copied.push(copy(*way, source, road).await);
        }
    }
    copied.into_iter().map(median).collect()
}

/// Copies all images of the source to a fresh target.
///
/// # Panics
/// Where it fails, or the target does not end with the same digests.
async fn copy(way: Way<'_>, source: &Source, road: Road) -> Copied {
    let target = Served::start(&json!({"discard_blobs": true, "latency_ms": road.latency})).await;
    let folder = RunDir::create("bytes").unwrap();
    let (from, to) = if road.tls {
        let authority = Authority::new(folder.path());
        let before = async |served: &Served| authority.before(served.host().parse().unwrap()).await;
        (before(&source.served).await, before(&target).await)
    } else {
        (source.served.host().to_owned(), target.host().to_owned())
    };
    promotion::log_in(folder.path(), &to, None);
    let task = way.task(folder.path(), source, (&from, &to), road).await;
    source.served.reset().await;
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}: {}", way.name(), taken.stderr);
    // The loop has checked the digests itself, and sets no tag.
    if way != Way::Loop {
        let tags = target.snapshot().await.unwrap();
        for (tag, digest, _) in &source.images {
            let held = match way {
                Way::Stage => tags[FLOATS].values().any(|held| held == digest),
                _ => tags[FLOATS].get(tag) == Some(digest),
            };
            assert!(held, "{}: {tags:?}", way.name());
        }
    }
    let (from, to) = (source.served.blobs().await, target.blobs().await);
    let (begun, ended) = (from.min(to).unwrap().0, to.unwrap().1);
    Copied {
        taken,
        bytes: Duration::from_micros(u64::try_from(ended - begun).unwrap()),
    }
}

impl Source {
    async fn with(images: usize, layer: u64, road: Road) -> Self {
        let served = Served::start(&json!({"latency_ms": road.latency})).await;
        let mut seeded = Vec::new();
        for number in 0..images {
            let mut spec = ImageSpec::new(Shape::Oci, &format!("large {number}"));
            (spec.layers, spec.layer_bytes) = (1, Some(layer));
            let tag = format!("l{number}");
            let digest = served.seed(SOURCES, &tag, &spec).await;
            let manifest = served.manifest(SOURCES, &tag).await;
            let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
            seeded.push((tag, digest, layer));
        }
        Self {
            served,
            images: seeded,
        }
    }
}

impl Way<'_> {
    fn name(self) -> String {
        match self {
            Self::Loop => "plain loop".into(),
            Self::MovingLoop => "loop that moves floats".into(),
            Self::Promote => "promote".into(),
            Self::Stage => "stage".into(),
            Self::Tool(tool) => format!("{} copy", tool.label()),
        }
    }

    /// Copies from a host to another. Its files are in `folder`.
    async fn task(self, folder: &Path, source: &Source, hosts: (&str, &str), road: Road) -> Task {
        let (from, to) = hosts;
        match self {
            Self::Loop | Self::MovingLoop => {
                let scheme = if road.tls { "https" } else { "http" };
                let (from, to) = (format!("{scheme}://{from}"), format!("{scheme}://{to}"));
                let ca = road
                    .tls
                    .then(|| std::fs::read_to_string(folder.join("ca.crt")).unwrap());
                let plan = if self == Self::MovingLoop {
                    let floats = source.images.iter();
                    Plan::Promote {
                        floats: floats.map(|(t, d, _)| (t.clone(), d.clone())).collect(),
                        account: None,
                        to,
                        from,
                        ca,
                    }
                } else {
                    let blobs = source.images.iter().map(|(_, _, layer)| Blob {
                        from: format!("{from}/v2/{SOURCES}/blobs/{layer}"),
                        to: format!("{to}/v2/{FLOATS}/blobs/uploads/"),
                        digest: layer.clone(),
                    });
                    let blobs = blobs.collect();
                    Plan::Copy { blobs, ca }
                };
                plan.task(folder)
            }
            Self::Promote | Self::Stage => {
                let images = source.images.iter().map(|(tag, digest, _)| {
                    (
                        format!("{from}/{SOURCES}@{digest}"),
                        format!("{to}/{FLOATS}:{tag}"),
                    )
                });
                let images: Vec<_> = images.collect();
                let mut arguments = vec!["--registry-qps=0".to_owned()];
                if road.tls {
                    for host in [from, to] {
                        arguments.push(format!("--registry-ca={host}=ca.crt"));
                        arguments.push(format!("--allow-registry={host}"));
                    }
                }
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let plain = [from, to];
                let plain = if road.tls { &[] } else { &plain[..] };
                if self == Self::Stage {
                    promotion::stage(folder, &images, plain, &arguments)
                } else {
                    promotion::promote(folder, &images, plain, &arguments)
                }
            }
            Self::Tool(tool) => {
                let (tag, digest, _) = &source.images[0];
                let (source, float) = (
                    format!("{from}/{SOURCES}@{digest}"),
                    format!("{to}/{FLOATS}:{tag}"),
                );
                let verb: &[&str] = if tool.name == "regctl" {
                    &["image", "copy"]
                } else {
                    &["copy"]
                };
                let arguments = [verb, &[&source, &float]].concat();
                tool.task(folder, &[from, to], &arguments).await
            }
        }
    }
}

/// The run of the median time, with the median of the bytes' times.
fn median(mut runs: Vec<Copied>) -> Copied {
    let middle = runs.len() / 2;
    runs.sort_by_key(|copied| copied.bytes);
    let bytes = runs[middle].bytes;
    runs.sort_by_key(|copied| copied.taken.wall);
    let taken = runs.swap_remove(middle).taken;
    Copied { taken, bytes }
}

#[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn speed(bytes: u64, wall: Duration) -> String {
    format!(
        "{:.0} MiB/s",
        gibibytes(bytes) * 1024.0 / wall.as_secs_f64()
    )
}

fn for_each_gib(taken: &Taken, bytes: u64) -> String {
    format!("{:.2} s", taken.cpu.as_secs_f64() / gibibytes(bytes))
}
