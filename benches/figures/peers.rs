//! The same promotions three ways: a plain loop that sends the minimal requests, `promote`, and the staged script.
//!
//! In: sizes and latencies. Out: a table for each latency and shape. Guaranteed: each row begins on a registry of its own with
//! existing floats and sources in another repository, and ends with a look at every tag.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use quaylike::Shape;
use serde_json::{Value, json};

use crate::measure::{Taken, Task};
use crate::plain;
use crate::plot::{Line, Plot};
use crate::promotion::{self, Promotion};
use crate::report::{Report, Table, mebibytes, method, seconds};
use crate::served::{Asked, Served};
use crate::testbed::RunDir;
use crate::tools::{self, Tool};

/// No row takes longer.
const PATIENCE: Duration = Duration::from_mins(4);
/// How much longer than the plain loop `promote` may take, where the registry is not infinitely fast.
const FACTOR: f64 = 1.25;
/// And of ten floats where it is.
const FACTOR_AT_ONCE: f64 = 1.6;
/// Runs of a row of at most ten floats, of which the median counts; at 50 ms fewer.
const RUNS: usize = 5;
const RUNS_SLOW: usize = 3;
const BOT: (&str, &str) = ("bot", "secret");

/// One way to promote.
#[derive(Clone, Copy)]
enum Way<'a> {
    Loop,
    Promote,
    Script(&'a Tool),
}

/// What is promoted, and where.
#[derive(Clone, Copy)]
struct Case {
    latency: u64,
    shape: Shape,
    floats: usize,
    /// Bearer tokens instead of an open registry.
    tokens: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            latency, floats, ..
        } = self;
        let tokens = if self.tokens { ", bearer tokens" } else { "" };
        let plural = if *floats == 1 { "" } else { "s" };
        let shape = shown(self.shape);
        write!(f, "{latency} ms, {shape}{tokens}, {floats} float{plural}")
    }
}

fn shown(shape: Shape) -> &'static str {
    match shape {
        Shape::Index => "multi-arch (index of 2, 8 blobs)",
        _ => "single-arch (4 blobs)",
    }
}

/// One run of a way on a case.
struct Run {
    taken: Taken,
    asked: Asked,
}

/// A time to be drawn: of whom, at which latency, of how many floats.
struct Point {
    way: String,
    latency: u64,
    floats: usize,
    seconds: f64,
}

/// How many floats each way promotes in one table.
struct Sizes {
    loops: &'static [usize],
    scripts: &'static [usize],
}

pub async fn run(report: &mut Report) {
    let (found, missing) = tools::find().await;
    let quick = report.quick;
    method(
        "One registry (embedded, a process of its own, latency added to each request). Existing floats, each with an image of its own in \
         another repository, no blob shared: single-arch, 4 blobs; multi-arch, an index of two, 8 blobs; all mounted. The plain loop \
         sends the minimal requests and nothing else, 12 + B for a single-arch float and 16 + B for an index of two, 16 in flight, the \
         steps of a float one after another, all floats at once. The scripts promote one float after the other, as the original does.",
    );
    method(&format!(
        "Each row is a process of its own, its start included, on a fresh registry; with 10 floats and fewer the median of up to {} runs, \
         loop and `promote` taking turns, scripts once. Requests are the registry's own count, without pings and tokens; bodies are the \
         bytes of all bodies, both ways; CPU and peak memory are the client's, memory that of its largest process. After each row all \
         tags are checked.",
        if quick { 1 } else { RUNS }
    ));
    method(&format!(
        "`promote` syncs its state to the disk three times before it goes on, and where steps take longer than 0.1 s twice meanwhile; the \
         plain loop saves nothing. Such a save of 20 kB took {:.1} ms just now, the median of 21.",
        save().as_secs_f64() * 1000.0
    ));
    if !missing.is_empty() {
        println!("Not on PATH, so not measured: {}.\n", missing.join(", "));
    }
    let latencies: &[u64] = if quick { &[0, 10] } else { &[0, 10, 50] };
    let mut points = Vec::new();
    for &latency in latencies {
        for shape in [Shape::Oci, Shape::Index] {
            let timed = table(report, &found, latency, shape).await;
            if shape == Shape::Oci {
                points.extend(timed);
            }
        }
    }
    draw(report, &points);
    tokens(report, &found).await;
}

/// How long it takes to replace a file durably, as the state file is.
fn save() -> Duration {
    let folder = RunDir::create("save").unwrap();
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let begun = Instant::now();
            let mut file = File::create(folder.join("next")).unwrap();
            file.write_all(&"x".repeat(20_000).into_bytes()).unwrap();
            file.sync_all().unwrap();
            std::fs::rename(folder.join("next"), folder.join("state")).unwrap();
            File::open(folder.path()).unwrap().sync_all().unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Bounded so that the section takes some five minutes: what takes longest at 50 ms is left out.
fn sizes(quick: bool, latency: u64, shape: Shape) -> Sizes {
    let (loops, scripts): (&[usize], &[usize]) = match (quick, latency, shape) {
        (true, _, _) => (&[1, 10], &[1]),
        (_, 10, Shape::Oci) => (&[1, 10, 100, 500], &[1, 10, 30]),
        (_, _, Shape::Oci) => (&[1, 10, 100], &[1, 10]),
        (_, 50, _) => (&[1, 10], &[]),
        _ => (&[1, 10, 100], &[1]),
    };
    Sizes { loops, scripts }
}

/// Time against floats, and against latency.
fn draw(report: &Report, points: &[Point]) {
    let mut ways: Vec<&str> = Vec::new();
    for point in points {
        if !ways.contains(&point.way.as_str()) {
            ways.push(&point.way);
        }
    }
    let lines = |of: &dyn Fn(&Point) -> Option<f64>| -> Vec<Line> {
        let line = |&way: &&str| Line {
            name: way.to_owned(),
            points: points
                .iter()
                .filter(|point| point.way == way)
                .filter_map(|point| Some((of(point)?, point.seconds)))
                .collect(),
        };
        ways.iter().map(line).collect()
    };
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let by_floats = Plot {
        title: "Single-arch floats at 10 ms".into(),
        across: "floats",
        up: "seconds",
        lines: lines(&|point| (point.latency == 10).then_some(point.floats as f64)),
    };
    report.plot("floats", &by_floats, Plot::draw_by_powers);
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let by_latency = Plot {
        title: "Ten single-arch floats".into(),
        across: "latency of each request, ms",
        up: "seconds",
        lines: lines(&|point| (point.floats == 10).then_some(point.latency as f64)),
    };
    report.plot("latency", &by_latency, Plot::draw_evenly);
}

async fn table(report: &mut Report, found: &[Tool], latency: u64, shape: Shape) -> Vec<Point> {
    let mut points = Vec::new();
    let mut point = |way: String, floats, run: &Run| {
        points.push(Point {
            way,
            latency,
            floats,
            seconds: run.taken.wall.as_secs_f64(),
        });
    };
    let mut table = new_table(&format!("{latency} ms, {}", shown(shape)));
    let sizes = sizes(report.quick, latency, shape);
    for &floats in sizes.loops {
        let case = Case {
            latency,
            shape,
            floats,
            tokens: false,
        };
        let [plain, ours] = beside(report, &mut table, case).await;
        point("plain loop".into(), floats, &plain);
        point("promote".into(), floats, &ours);
    }
    for tool in found {
        for &floats in sizes.scripts {
            let case = Case {
                latency,
                shape,
                floats,
                tokens: false,
            };
            let run = once(case, Way::Script(tool)).await;
            point(script(tool), floats, &run);
            add(
                &mut table,
                &script(tool),
                floats,
                &run,
                String::new(),
                String::new(),
            );
        }
    }
    table.print();
    points
}

/// The loop and `promote`, taking turns.
async fn beside(report: &mut Report, table: &mut Table, case: Case) -> [Run; 2] {
    let runs = match case {
        _ if report.quick || case.floats > 10 => 1,
        Case { latency: 50, .. } => RUNS_SLOW,
        _ => RUNS,
    };
    let (mut loops, mut promotes) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        loops.push(once(case, Way::Loop).await);
        promotes.push(once(case, Way::Promote).await);
    }
    let (plain, ours) = (median(loops), median(promotes));
    let ratio = ours.taken.wall.as_secs_f64() / plain.taken.wall.as_secs_f64();
    let factor = match case.latency {
        0 => (case.floats == 10 && case.shape == Shape::Oci).then_some(FACTOR_AT_ONCE),
        _ => Some(FACTOR),
    };
    let limit = factor.map_or_else(String::new, |factor| {
        let name = format!("{case}: {ratio:.2} of the loop's time");
        report.held(&name, ratio <= factor, &format!("{factor}"))
    });
    add(
        table,
        "plain loop",
        case.floats,
        &plain,
        "1.00".into(),
        String::new(),
    );
    add(
        table,
        "promote --registry-qps=0",
        case.floats,
        &ours,
        format!("{ratio:.2}"),
        limit,
    );
    [plain, ours]
}

/// A registry that asks for bearer tokens.
async fn tokens(report: &mut Report, found: &[Tool]) {
    let mut table = new_table("10 ms, single-arch (4 blobs), bearer tokens");
    let case = Case {
        latency: 10,
        shape: Shape::Oci,
        floats: 10,
        tokens: true,
    };
    for &floats in if report.quick {
        &[1][..]
    } else {
        &[1, 10, 100]
    } {
        beside(report, &mut table, Case { floats, ..case }).await;
    }
    for tool in found {
        let run = once(case, Way::Script(tool)).await;
        add(
            &mut table,
            &script(tool),
            case.floats,
            &run,
            String::new(),
            String::new(),
        );
    }
    table.print();
}

/// One run on a fresh registry.
///
/// # Panics
/// Where it fails, or leaves other tags than it should.
async fn once(case: Case, way: Way<'_>) -> Run {
    let served = Served::start(&json!({"latency_ms": case.latency})).await;
    let promotions = promotion::seed(&served, case.shape, case.floats).await;
    let account = case.tokens.then_some(BOT);
    if case.tokens {
        served.authenticate(&bearer()).await;
    }
    let folder = RunDir::create("peers").unwrap();
    promotion::log_in(folder.path(), served.host(), account);
    let task = way.task(&served, &folder, account, &promotions).await;
    served.reset().await;
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}: {}", task.program, taken.stderr);
    let asked = served.asked().await;
    let tags = served.snapshot().await;
    if let Err(wrong) = tags.and_then(|tags| promotion::check(&tags, &promotions)) {
        panic!(
            "{} left a wrong tag: {wrong}\n{}",
            task.program, taken.stderr
        );
    }
    Run { taken, asked }
}

impl Way<'_> {
    async fn task(
        self,
        served: &Served,
        folder: &RunDir,
        account: Option<(&str, &str)>,
        promotions: &[Promotion],
    ) -> Task {
        let (host, folder) = (served.host(), folder.path());
        let pairs = promotion::pairs(host, promotions);
        match self {
            Self::Loop => plain::promotion(host, account, promotions).task(folder),
            Self::Promote => promotion::promote(folder, &pairs, &[host], &["--registry-qps=0"]),
            Self::Script(tool) => tool.script(folder, host, promotions).await,
        }
    }
}

fn bearer() -> Value {
    json!({"mode": "bearer", "users": [{"name": BOT.0, "password": BOT.1, "grants": [
        {"repositories": promotion::FLOATS, "pull": true, "push": true},
        {"repositories": promotion::SOURCES, "pull": true},
    ]}]})
}

fn median(mut runs: Vec<Run>) -> Run {
    runs.sort_by_key(|run| run.taken.wall);
    runs.swap_remove(runs.len() / 2)
}

fn script(tool: &Tool) -> String {
    format!("staged script, {}", tool.label())
}

fn new_table(what: &str) -> Table {
    Table::new(&[
        what,
        "floats",
        "time",
        "of the loop's",
        "limit",
        "requests",
        "pings",
        "tokens",
        "bodies",
        "CPU",
        "peak memory",
    ])
}

fn add(table: &mut Table, name: &str, floats: usize, run: &Run, ratio: String, limit: String) {
    let Run { taken, asked } = run;
    table.row([
        name.to_owned(),
        floats.to_string(),
        seconds(taken.wall),
        ratio,
        limit,
        asked.requests.to_string(),
        asked.pings.to_string(),
        asked.tokens.to_string(),
        format!("{} KiB", asked.bodies.div_ceil(1024)),
        seconds(taken.cpu),
        mebibytes(taken.peak),
    ]);
}
