//! A registry on a bad day: an outage in the middle, answers of 429 and 503, and bodies that are cut.
//!
//! In: seeds, printed. Out: how many requests the faults cost, and how long they took. Guaranteed: every float of every run ends
//! Posted with the digest and the media type of its source, or the bench fails.

use std::time::{Duration, Instant};

use quaylike::{Action, Matcher, Options, Registry, RequestKind, Rule, Settings, Shape, When};
use serde_json::Value;

use crate::measure::Taken;
use crate::promotion::{self, FLOATS, Promotion, SOURCES};
use crate::relay::Relay;
use crate::report::{Report, Table, method, seconds};
use crate::served::Snapshot;
use crate::testbed::RunDir;

const PATIENCE: Duration = Duration::from_mins(10);
/// Of the requests of the run without faults.
const REQUESTS: f64 = 1.4;
/// Requests answered 429, and as many answered 503.
const REFUSED: f64 = 0.05;
/// GETs whose body is cut.
const CUT: f64 = 0.02;
/// So much of a body arrives.
const CUT_AFTER: u64 = 40;
const SEEDS: [u64; 3] = [429, 503, 20];
/// All of them, so that a conversion would show.
const SHAPES: [Shape; 4] = [Shape::Oci, Shape::Docker, Shape::Index, Shape::DockerList];
const KINDS: &str = "four kinds of images (OCI and docker, single and multi-arch)";
/// Floats of the run with the outage, and the tag write after which it begins: half of them.
const OUTAGE_FLOATS: usize = 20;
const OUTAGE_AFTER: usize = OUTAGE_FLOATS * 5 / 2;

pub async fn run(report: &mut Report) {
    outage(report).await;
    refusals(report).await;
}

async fn refusals(report: &mut Report) {
    let floats = if report.quick { 8 } else { 100 };
    method(&format!(
        "{floats} existing floats, {KINDS}, sources in another repository. {} % of \
         all requests are answered 429 without Retry-After, {} % 503, and {} % of the GETs' bodies are cut after {CUT_AFTER} bytes; \
         seeds {SEEDS:?}, drawn in the order of arrival. `promote --registry-qps=0 --settle-seconds=3`.",
        REFUSED * 100.0,
        REFUSED * 100.0,
        CUT * 100.0
    ));
    let mut table = Table::new(&[
        "",
        "time",
        "requests",
        "of the faultless",
        "limit",
        "429",
        "503",
        "cut",
        "floats with attempts",
    ]);
    let mut faultless = 0;
    let mut failed = None;
    for faults in [false, true] {
        let registry = registry(Duration::ZERO).await;
        let promotions = seed(&registry, floats);
        let rules: Vec<u64> = if faults {
            disturb(&registry)
        } else {
            Vec::new()
        };
        let taken = promote(&registry, &registry.host(), &promotions).await;
        let requests = requests(&registry);
        let tried = verify(&registry, &promotions, &taken);
        let shown = tried.as_ref().map_or("failed".into(), usize::to_string);
        failed = failed.or(tried.err());
        let (mut ratio, mut limit) = (String::new(), String::new());
        if faults {
            #[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
            let times = requests as f64 / faultless as f64;
            ratio = format!("{times:.2}");
            let figure = format!("{times:.2} of the faultless run's requests");
            limit = report.held(&figure, times <= REQUESTS, &format!("{REQUESTS}"));
        } else {
            faultless = requests;
        }
        let struck = |number: usize| {
            let active = registry.rules();
            let rule = active
                .iter()
                .find(|rule| rules.get(number) == Some(&rule.id));
            rule.map_or(0, |rule| rule.injected).to_string()
        };
        table.row([
            if faults { "with faults" } else { "without" }.to_owned(),
            seconds(taken.wall),
            requests.to_string(),
            ratio,
            limit,
            struck(0),
            struck(1),
            struck(2),
            shown,
        ]);
    }
    // A run that failed has its figures too: they may say why.
    table.print();
    if let Some(wrong) = failed {
        panic!("{wrong}");
    }
    println!("All Posted; every digest, pin and media type is right.\n");
}

async fn outage(report: &mut Report) {
    let down = Duration::from_secs(if report.quick { 5 } else { 90 });
    method(&format!(
        "{OUTAGE_FLOATS} existing floats, {KINDS}, sources in another repository, 20 ms added to each request; after {OUTAGE_AFTER} of {} tag writes all \
         connections break and new ones are refused, for {} s. `promote --registry-qps=0 --settle-seconds=3 -o json`.",
        OUTAGE_FLOATS * 5,
        down.as_secs()
    ));
    let registry = registry(Duration::from_millis(20)).await;
    let promotions = seed(&registry, OUTAGE_FLOATS);
    let mut relay = Relay::start(registry.addr()).await;
    let host = relay.host();
    let writes = Matcher::put_manifest().tag(true);
    let cut = async {
        registry.wait_for(&writes, OUTAGE_AFTER, true).await;
        relay.close().await;
        let begun = Instant::now();
        tokio::time::sleep(down).await;
        let unfinished = tags(&registry)[FLOATS].len() < OUTAGE_FLOATS * 5;
        relay.open().await;
        (begun.elapsed(), unfinished)
    };
    let (taken, (was_down, unfinished)) = tokio::join!(promote(&registry, &host, &promotions), cut);
    assert!(unfinished, "the outage came too late");
    let tried = verify(&registry, &promotions, &taken).unwrap_or_else(|wrong| panic!("{wrong}"));
    let limit = report.held(&format!("{tried} floats used attempts"), tried == 0, "0");
    let mut table = Table::new(&[
        "",
        "time",
        "of which down",
        "requests answered",
        "floats with attempts",
        "limit",
    ]);
    table.row([
        format!("{OUTAGE_FLOATS} floats over an outage"),
        seconds(taken.wall),
        seconds(was_down),
        requests(&registry).to_string(),
        tried.to_string(),
        limit,
    ]);
    table.print();
    println!("All Posted; every digest, pin and media type is right.\n");
}

async fn registry(latency: Duration) -> Registry {
    let settings = Settings {
        latency,
        ..Settings::default()
    };
    Registry::start(Options::default().settings(settings))
        .await
        .unwrap()
}

fn seed(registry: &Registry, floats: usize) -> Vec<Promotion> {
    let put = |repository: &str, tag: &str, shape, seed: &str| {
        let image = promotion::image(shape, seed);
        let digest = registry.seed_spec(repository, tag, &image).unwrap();
        digest.to_string()
    };
    (0..floats)
        .map(|number| {
            let shape = SHAPES[number % SHAPES.len()];
            let tag = format!("t{number:03}");
            let new = put(SOURCES, &tag, shape, &format!("new {number}"));
            let old = put(FLOATS, &tag, shape, &format!("old {number}"));
            Promotion { tag, new, old }
        })
        .collect()
}

/// The faults, and their numbers: 429, 503, cut bodies.
fn disturb(registry: &Registry) -> Vec<u64> {
    let draw = |p, seed| When::Probability { p, seed };
    let everything = Matcher::default();
    let reads = Matcher::default().method("GET");
    let rules = [
        Rule::new(everything.clone(), Action::TooMany { retry_after: None })
            .when(draw(REFUSED, SEEDS[0])),
        Rule::new(everything, Action::page(503)).when(draw(REFUSED, SEEDS[1])),
        Rule::new(reads, Action::CutBody { after: CUT_AFTER }).when(draw(CUT, SEEDS[2])),
    ];
    rules.map(|rule| registry.add_rule(rule)).to_vec()
}

async fn promote(registry: &Registry, host: &str, promotions: &[Promotion]) -> Taken {
    let folder = RunDir::create("faults").unwrap();
    promotion::log_in(folder.path(), host, None);
    let pairs = promotion::pairs(host, promotions);
    let arguments = ["--registry-qps=0", "--settle-seconds=3", "-o", "json"];
    let task = promotion::promote(folder.path(), &pairs, &[host], &arguments);
    registry.reset_log();
    task.run(folder.path(), PATIENCE).await
}

/// How many requests arrived, without pings and tokens.
fn requests(registry: &Registry) -> u64 {
    let counts = registry.counts();
    let counted = counts
        .into_iter()
        .filter(|(kind, _)| !matches!(kind, RequestKind::Ping | RequestKind::Token));
    counted.map(|(_, count)| count).sum()
}

fn tags(registry: &Registry) -> Snapshot {
    let snapshot = registry.snapshot().into_iter();
    snapshot
        .map(|(repository, tags)| {
            let tags = tags
                .into_iter()
                .map(|(tag, digest)| (tag, digest.to_string()));
            (repository, tags.collect())
        })
        .collect()
}

/// How many floats show attempts, or what is not as it should be.
fn verify(registry: &Registry, promotions: &[Promotion], taken: &Taken) -> Result<usize, String> {
    if !taken.success {
        return Err(taken.stderr.clone());
    }
    promotion::check(&tags(registry), promotions)?;
    if !registry.dangling().is_empty() {
        return Err(format!("tags dangle: {:?}", registry.dangling()));
    }
    for Promotion { tag, .. } in promotions {
        let float = registry.tagged(FLOATS, tag).unwrap();
        let source = registry.tagged(SOURCES, tag).unwrap();
        if (float.media_type, &float.bytes) != (source.media_type, &source.bytes) {
            return Err(format!("{tag} was converted to {}", float.media_type));
        }
    }
    let printed: Value = serde_json::from_str(&taken.stdout).unwrap();
    let mut images = Vec::new();
    for item in printed["items"].as_array().unwrap() {
        images.extend(item["status"]["images"].as_array().unwrap());
    }
    let posted = |image: &&&Value| image["phase"] == "Posted";
    if images.iter().filter(posted).count() != promotions.len() {
        return Err(format!("not all are Posted: {}", taken.stdout));
    }
    let tried = |image: &&&Value| image["attempts"].as_u64().unwrap_or_default() > 0;
    Ok(images.iter().filter(tried).count())
}
