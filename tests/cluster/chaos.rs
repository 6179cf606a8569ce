//! Two controller processes that are killed, frozen and ended at random, while requests come all the time and somebody pulls.
//!
//! The registry is a process of its own that collects at once. Whatever is done to the controllers: no pull ever misses
//! anything, no tag ever goes back, and in the end everything is as if nobody had been killed.
//!
//! A run lasts `CHAOS_SECONDS` (30), then until every request has ended; `CHAOS_SEED` repeats the choices of a run.

mod adversary;
mod collected;
mod crash;
mod reader;
mod replicas;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Api, ListParams};
use promotion_controller::api::PromotionRequest;
use quaylike::{ImageSpec, Shape};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::testbed::served::{Served, TagWrite};
use crate::testbed::stage::Stage;
use adversary::Adversary;
use reader::Reader;
use replicas::Replicas;
use requests::{Outcome, Requests, Sources};

const FLOATS: &str = "ci";
const SOURCES: &str = "src/pipeline";
/// How long all requests may take to end once nobody strikes any more: a lease that runs out, and all that has waited.
const QUIET: Duration = Duration::from_secs(75);
/// Every registry request waits this long, so that there is something to strike at.
const LATENCY_MS: u64 = 40;
/// What the reader is held to, a second.
const PULLS: f64 = 10.0;

/// Sources in the registry of the floats.
struct Beside<'a>(&'a Served);

impl Sources for Beside<'_> {
    async fn make(&self, tag: &str, kind: usize) -> String {
        let shapes = [Shape::Oci, Shape::Index, Shape::DockerList, Shape::Docker];
        self.0
            .seed(SOURCES, tag, &ImageSpec::new(shapes[kind], tag))
            .await
    }

    fn repository(&self) -> String {
        format!("{}/{SOURCES}", self.0.host())
    }
}

/// `CHAOS_SEED`, else a new one; printed.
fn seed() -> u64 {
    let given = std::env::var("CHAOS_SEED").ok();
    let seed = given.map_or_else(
        || rand::random_range(0..1_000_000),
        |seed| seed.parse().unwrap(),
    );
    println!("CHAOS_SEED={seed}");
    seed
}

fn seconds() -> Duration {
    let given = std::env::var("CHAOS_SECONDS").ok();
    Duration::from_secs(given.map_or(30, |seconds| seconds.parse().unwrap()))
}

/// Requests that have not ended well yet.
async fn unfinished(api: &Api<PromotionRequest>) -> Vec<PromotionRequest> {
    let params = ListParams::default().fields("status.phase!=Posted");
    api.list(&params).await.unwrap().items
}

fn is_staged(object: &PromotionRequest) -> bool {
    let status = object.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == "Staged" && condition.status == "True")
}

fn has_ended(object: &PromotionRequest) -> bool {
    let status = object.status.as_ref();
    status.is_some_and(|status| status.completion_time.is_some())
}

/// Creates requests until `end`, and takes a request's sources away once it says that it needs them no more.
async fn ask(stage: &Stage, registry: &Served, requests: &mut Requests, seed: u64, end: Instant) {
    let mut draws = StdRng::seed_from_u64(seed);
    let api = stage.requests();
    let mut sourced: BTreeSet<usize> = BTreeSet::new();
    while Instant::now() < end {
        let request = requests.next(&Beside(registry)).await;
        stage.create(&request.name, &request.spec).await;
        sourced.insert(requests.asked.len() - 1);
        let open: BTreeMap<String, PromotionRequest> = unfinished(&api)
            .await
            .into_iter()
            .map(|object| (object.metadata.name.clone().unwrap_or_default(), object))
            .collect();
        let staged = |number: &usize| {
            let object = open.get(&requests.asked[*number].name);
            object.is_none_or(is_staged)
        };
        let staged: Vec<usize> = sourced.iter().copied().filter(staged).collect();
        for number in staged {
            sourced.remove(&number);
            for tag in requests.asked[number]
                .images
                .iter()
                .filter_map(|image| image.tag.as_ref())
            {
                registry.untag(SOURCES, tag).await;
            }
        }
        let pause = draws.random_range(500..2_200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Gathers the writes of tags, until it is stopped; the registry's log forgets.
async fn gather(registry: &Served, stop: &CancellationToken) -> Vec<TagWrite> {
    let (mut writes, mut newest) = (Vec::new(), 0);
    loop {
        let stopped = stop.is_cancelled();
        let (more, seen) = registry.tag_writes(newest).await;
        newest = seen;
        writes.extend(more.into_iter().filter(|write| write.repository == FLOATS));
        if stopped {
            return writes;
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), stop.cancelled()).await;
    }
}

/// From each loss of the lead to the next write of a tag: a line each.
fn takeovers(adversary: &Adversary, writes: &[TagWrite]) -> String {
    let mut lines = String::new();
    for fall in &adversary.falls {
        let Some(followed) = fall.followed else {
            continue;
        };
        let next = writes.iter().find(|write| write.time >= followed);
        let next = next.map_or("nothing to write".to_owned(), |write| {
            format!("{:.1} s to the next tag", seconds_of(write.time - fall.at))
        });
        let lead = seconds_of(followed - fall.at);
        let disturbed = if fall.disturbed {
            ", struck again meanwhile"
        } else {
            ""
        };
        let _ = writeln!(
            lines,
            "  {:?}: {lead:.1} s to the next lead, {next}{disturbed}",
            fall.how
        );
    }
    lines
}

#[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
fn seconds_of(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// That nothing went wrong: in the outcome, with the replicas, or as `more` says.
///
/// # Panics
/// With what did, and with the logs of what it is about.
fn assert_no_complaints(
    seed: u64,
    outcome: Vec<(String, String)>,
    more: impl IntoIterator<Item = String>,
    replicas: &Replicas,
) {
    let (mut about, mut complaints): (Vec<String>, Vec<String>) = outcome.into_iter().unzip();
    about.push("lease".to_owned());
    complaints.extend(more);
    complaints.extend(replicas.complaints.iter().cloned());
    complaints.extend(replicas.panics());
    assert!(
        complaints.is_empty(),
        "CHAOS_SEED={seed}\n{}\n{}",
        complaints.join("\n"),
        replicas.log_of(&about)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_frozen_and_ended_controllers_lose_nothing_and_move_no_float_back() {
    let (seed, seconds) = (seed(), seconds());
    let registry = Served::start(&json!({"audit": true, "latency_ms": LATENCY_MS})).await;
    let stage = Stage::elected("chaos").await;
    let floats: Vec<String> = (0..6)
        .map(|number| format!("ocp_4.2{number}_cli"))
        .collect();
    let mut begun = BTreeMap::new();
    // The others are promoted to for the first time.
    for float in &floats[..4] {
        let image = ImageSpec::new(Shape::Index, float);
        begun.insert(float.clone(), registry.seed(FLOATS, float, &image).await);
    }
    let mut replicas = Replicas::start(&stage, &[registry.host().to_owned()]);
    let reader = Arc::new(Reader::new(registry.host(), FLOATS, &floats));
    let reading = tokio::spawn(Arc::clone(&reader).read());
    let (reading_since, stop) = (Instant::now(), CancellationToken::new());
    let mut adversary = Adversary::new(seed);
    let repository = format!("{}/{FLOATS}", registry.host());
    let mut requests = Requests::new(seed, repository, &floats);
    let work = async {
        let end = Instant::now() + seconds;
        let asking = ask(&stage, &registry, &mut requests, seed, end);
        let raging = adversary.rage(&mut replicas, end);
        let ((), ()) = tokio::join!(asking, raging);
        let quiet = Instant::now();
        let api = stage.requests();
        while !unfinished(&api).await.iter().all(has_ended) && quiet.elapsed() < QUIET {
            adversary.watch(&mut replicas).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        stop.cancel();
        quiet.elapsed()
    };
    let (quiet, writes) = tokio::join!(work, gather(&registry, &stop));
    let rate = so_many_a_second(reader.so_far().pulls, reading_since.elapsed());
    reading.abort();
    let read = reader.so_far();

    let done = stage.list().await;
    let mut outcome = Outcome::of(&begun, &requests.asked, &done);
    let tags = registry.snapshot().await.unwrap();
    outcome.compare_tags(&tags[FLOATS]);
    let moving: Vec<String> = outcome.histories.keys().cloned().collect();
    for tag in moving {
        outcome.compare_history(&tag, &registry.history(FLOATS, &tag).await);
    }
    // Whatever a float has ever shown is pinned: nothing that was displaced is pruned in a run.
    let shown: BTreeSet<&String> = outcome.histories.values().flatten().collect();
    let pulls = shown.into_iter().map(|digest| reader.pull(digest));
    futures::future::join_all(pulls).await;
    let missing = reader.so_far().missing;

    println!(
        "{} requests over {seconds:.0?} and {quiet:.1?} of quiet; {:?}; {} tags written; most attempts of an image: {}\n\
         {} pulls ({rate:.0} a second, the longest {:.0?}), {} digests seen on {} floats\n{}",
        requests.asked.len(),
        adversary.strikes,
        writes
            .iter()
            .filter(|write| write.status == Some(201))
            .count(),
        outcome.attempts,
        read.pulls,
        read.longest,
        read.digests.len(),
        floats.len(),
        takeovers(&adversary, &writes),
    );
    let trail = registry.audit_trail().await;
    let more = missing
        .into_iter()
        .chain(trail.iter().map(ToString::to_string));
    assert_no_complaints(seed, outcome.complaints, more, &replicas);
    assert!(rate >= PULLS, "{rate:.1} pulls a second");
    // At the latest in the quiet after all strikes.
    let followed = adversary.falls.iter().any(|fall| fall.followed.is_some());
    assert!(followed, "{}", replicas.log_of(&["lease".to_owned()]));
}

#[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
fn so_many_a_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
