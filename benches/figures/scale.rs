//! Many requests at once, and many that have ended: what the controller takes of memory and of the API server.
//!
//! Out: the peak memory of the controller's process, and for each request the status writes and reads that the API server's own
//! audit log has of it; and with ten thousand finished requests the time from start to ready, and the sweep. Guaranteed: every
//! request that is waited for ends Posted, with every float at its source's digest, or the bench fails.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use promotion_controller::api::{PromotionRequest, crd_yaml};
use quaylike::{
    Action, Auth, AuthMode, Dialect, Matcher, Options, Registry, RequestKind, Rule, Settings,
    Shape, User, When,
};
use serde_json::{Value, json};

use crate::plain;
use crate::profile::Profile;
use crate::promotion;
use crate::report::{Report, Table, mebibytes, method, seconds};
use crate::requests::image;
use crate::served::Served;
use crate::testbed::stage::{self, Controller, EVERYWHERE, Stage};
use crate::testbed::{AuditedRequest, ControlPlane, RunDir};
use crate::waiting;

/// Floats of a request.
pub const FLOATS: usize = 10;
/// Of the plain loop's time.
const FACTOR: f64 = 1.3;
/// Of the controller's process, in bytes.
pub const MEMORY: u64 = 150 << 20;
/// Of a request, and one more for each status interval from its start to its end: one that waits is not saved.
const WRITES: u64 = 8;
const READS: u64 = 10;
/// The default status interval.
const INTERVAL: u64 = 2;
/// From the process's start, with so many finished requests.
const READY: Duration = Duration::from_secs(10);
/// Requests of the sweep in any second.
const SWEEP_RATE: usize = 4;
pub const PATIENCE: Duration = Duration::from_mins(20);
/// Objects created at once.
pub const AT_ONCE: usize = 32;
/// How long blobs are slow.
const SLOW: Duration = Duration::from_mins(1);
/// How long the controller is watched where it cannot come to an end.
const WATCHED: Duration = Duration::from_mins(2);

pub async fn run(report: &mut Report) {
    // Its own: the audit log is of the whole server. It ends with this process.
    let plane = ControlPlane::start().await.unwrap();
    let plane: &'static ControlPlane = Box::leak(Box::new(plane));
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let (user, kubeconfig) = plane.mighty_account("scale").await.unwrap();
    let bot = User::new("bot", "secret").push("ci").pull("src");
    let ground = Ground {
        plane,
        user,
        kubeconfig,
        auth: Auth::new(AuthMode::Bearer).user(bot),
    };
    let model = many(report, &ground).await;
    ended(report, &ground, &model).await;
    waiting::run(report, &ground).await;
}

pub struct Ground {
    pub plane: &'static ControlPlane,
    /// Whom the controller is to the API server.
    user: String,
    pub kubeconfig: PathBuf,
    auth: Auth,
}

// === many requests at once ===

/// What stands in the way of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Nothing but 10 ms in each registry request.
    Free,
    /// The same, watched: `perf` takes most of a core.
    Watched,
    /// Sources are in another registry, and for a while the floats' registry takes so long for each answer about a blob that as many
    /// copies wait for it as begin at all, and the others behind them.
    Stalled,
    /// The default pacing, to the end.
    Paced,
    /// The default pacing, for a while: all floats wait.
    Waiting,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Free => "no pacing",
            Self::Watched => "no pacing, watched",
            Self::Stalled => {
                "copied to a registry that takes 5 s for each blob request of the first minute"
            }
            Self::Paced => "the default pacing",
            Self::Waiting => "the default pacing, the first minutes",
        }
    }
}

/// Runs each load; gives a request that has ended.
async fn many(report: &mut Report, ground: &Ground) -> PromotionRequest {
    let (all, some) = if report.quick { (20, 4) } else { (1000, 50) };
    method(&format!(
        "Requests of {FLOATS} existing floats each, created at once, with a pushSecret (bearer tokens) and {AT_ONCE} creations in \
         flight; sources of each request in a repository of its own, 4 blobs each, 10 ms added to each registry request. The API \
         server's audit log counts the controller's reads and status writes of each request; of each one write and one read for \
         every {INTERVAL} s from its start to its end are taken off, and the most of any request is shown."
    ));
    let mut table = Table::new(&[
        "requests",
        "",
        "all Posted after",
        "of the loop's",
        "limit",
        "CPU for each",
        "peak memory",
        "limit",
        "status writes, median",
        "most",
        "limit",
        "reads, median",
        "most",
        "limit",
    ]);
    let (mut model, mut parts) = (None, None);
    let plain = plain_loop(all * FLOATS).await;
    let loads = [
        (Load::Free, all),
        (Load::Stalled, all),
        (Load::Waiting, all),
        (Load::Paced, some),
        (Load::Watched, 4 * some),
    ];
    for (load, requests) in loads {
        let ran = ground.promote(load, requests).await;
        let name = format!("{requests} requests, {}", load.name());
        let memory = format!("{name}: {}", mebibytes(ran.memory));
        let within = ran.memory <= MEMORY;
        let memory_limit = report.held(&memory, within, &mebibytes(MEMORY));
        let mut counted = |what: &str, counts: &Counts, limit: u64| {
            let figure = format!("{name}: {} {what}", counts.most);
            let limit = report.held(&figure, counts.most <= limit, &limit.to_string());
            [counts.median.to_string(), counts.most.to_string(), limit]
        };
        let writes = counted("status writes", &ran.writes, WRITES);
        let reads = counted("reads", &ran.reads, READS);
        let took = ran.took.map_or("-".into(), seconds);
        let (ratio, ratio_limit) = match ran.took.filter(|_| load == Load::Free) {
            Some(took) => {
                let ratio = took.as_secs_f64() / plain.as_secs_f64();
                let figure = format!("{name}: {ratio:.2} of the loop's time");
                let limit = report.held(&figure, ratio <= FACTOR, &FACTOR.to_string());
                (format!("{ratio:.2}"), limit)
            }
            None => (String::new(), String::new()),
        };
        let cells = [
            requests.to_string(),
            load.name().to_owned(),
            took,
            ratio,
            ratio_limit,
        ];
        let each = ran.cpu.as_secs_f64() * 1000.0 / number(requests);
        let memory = [format!("{each:.0} ms"), mebibytes(ran.memory), memory_limit];
        table.row(cells.into_iter().chain(memory).chain(writes).chain(reads));
        parts = ran.parts;
        eprintln!("{name}: {}", ran.others);
        model = model.or(ran.model);
    }
    table.print();
    println!(
        "The plain loop sends the same {} requests, 16 in flight, in {}.\n",
        all * FLOATS * 16,
        seconds(plain)
    );
    match parts {
        Some(parts) => {
            method(
                "The controller's processor time by part, of the last row: its stacks were sampled 49 times in a second of it, for which `perf` \
                 took most of a core. A sample is of the innermost part that one of its frames belongs to; a status save is JSON, HTTP, TLS \
                 and the kernel.",
            );
            parts.print();
        }
        None => println!("Its processor time is not divided: there is no `perf` that may look.\n"),
    }
    model.unwrap()
}

/// How long as many floats take the plain loop.
async fn plain_loop(floats: usize) -> Duration {
    let served = Served::start(&json!({"latency_ms": 10})).await;
    let promotions = promotion::seed(&served, Shape::Oci, floats).await;
    let folder = RunDir::create("loop").unwrap();
    let plan = plain::promotion(served.host(), None, &promotions);
    let taken = plan.task(folder.path()).run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}", taken.stderr);
    taken.wall
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn number(count: usize) -> f64 {
    count as f64
}

/// What a load came to.
struct Ran {
    took: Option<Duration>,
    memory: u64,
    /// The controller's, in all and by part.
    cpu: Duration,
    parts: Option<Table>,
    writes: Counts,
    reads: Counts,
    /// What else the API server was asked.
    others: String,
    model: Option<PromotionRequest>,
}

/// Requests to the API server about one object: of the median object, and of the one with the most beyond its run time.
struct Counts {
    median: u64,
    most: u64,
}

/// A request, and where each of its floats is to be in the end.
pub struct Wanted {
    name: String,
    spec: Value,
    floats: Vec<(String, String)>,
}

impl Ground {
    async fn promote(&self, load: Load, requests: usize) -> Ran {
        let stage = Stage::on(self.plane, "scale").await;
        let (floats, sources) = (self.registry().await, self.registry().await);
        let from = if load == Load::Stalled {
            &sources
        } else {
            &floats
        };
        let host = floats.host();
        stage.secret("push", &[(&host, "bot", "secret")]).await;
        stage
            .secret("pull", &[(&from.host(), "bot", "secret")])
            .await;
        let prefix = format!("{load:?}").to_lowercase();
        let wanted: Vec<Wanted> = (0..requests)
            .map(|n| wanted(&format!("{prefix}-{n:04}"), from, &floats))
            .collect();
        let mut flags = vec![format!("--plain-http={host}")];
        flags.push(format!("--plain-http={}", sources.host()));
        if matches!(load, Load::Free | Load::Watched | Load::Stalled) {
            flags.push("--registry-qps=0".into());
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let controller = stage.controller_through(&self.kubeconfig, &flags);
        ready(&stage).await;
        let profile = (load == Load::Watched).then(|| {
            let process = controller.id().unwrap();
            Profile::begin(process, stage.folder.path())
        });
        let begun = Timestamp::now();
        let clock = Instant::now();
        if load == Load::Stalled {
            floats.add_rule(slow_blobs());
        }
        create(&stage, &wanted).await;
        if load == Load::Stalled {
            tokio::time::sleep(SLOW).await;
            floats.clear_rules();
        }
        let took = if load == Load::Waiting {
            tokio::time::sleep(WATCHED).await;
            None
        } else {
            unfinished(&stage, 0).await;
            Some(clock.elapsed())
        };
        let objects = stage.list().await;
        if took.is_some() {
            assert_promoted(&objects, &wanted, &floats);
        }
        let (memory, cpu) = (controller.peak_memory().unwrap(), controller.cpu().unwrap());
        controller.kill();
        let parts = profile.flatten().and_then(Profile::end);
        let audited = self.audited(begun);
        let count = |verb: &str, resource: &str| {
            let mut counts = BTreeMap::<&str, u64>::new();
            for request in &audited {
                if request.verb == verb && request.resource() == resource {
                    *counts.entry(request.name()).or_default() += 1;
                }
            }
            counts_of(&objects, &counts)
        };
        let writes = count("update", "promotionrequests/status");
        let reads = count("get", "promotionrequests");
        if load == Load::Waiting {
            let all = DeleteParams::default();
            let api = stage.requests();
            api.delete_collection(&all, &ListParams::default())
                .await
                .unwrap();
        }
        Ran {
            took,
            memory,
            cpu,
            parts,
            writes,
            reads,
            others: summary(&audited),
            model: took.and(objects.into_iter().next()),
        }
    }

    pub async fn registry(&self) -> Registry {
        let settings = Settings {
            // quay's labels would be read as well: two requests more than the loop sends.
            dialect: Dialect::Distribution,
            latency: Duration::from_millis(10),
            ..Settings::default()
        };
        let options = Options::default().settings(settings);
        Registry::start(options.auth(self.auth.clone()))
            .await
            .unwrap()
    }

    /// What the controller asked of the API server since.
    fn audited(&self, since: Timestamp) -> Vec<AuditedRequest> {
        let mut audited = self.plane.audited().unwrap();
        audited.retain(|r| r.user() == self.user && r.received >= since);
        audited
    }
}

/// A request of existing floats, whose images are put in.
pub fn wanted(name: &str, sources: &Registry, floats: &Registry) -> Wanted {
    let repository = format!("src/{name}");
    let mut images = Vec::new();
    let mut ends = Vec::new();
    for n in 0..FLOATS {
        let tag = format!("{name}-{n}");
        let new = image(Shape::Oci, &format!("new {tag}"), 3);
        let old = image(Shape::Oci, &format!("old {tag}"), 3);
        let new = sources.seed_image(&repository, &tag, &new).unwrap();
        floats.seed_image("ci", &tag, &old).unwrap();
        let source = format!("{}/{repository}@{new}", sources.host());
        images.push(json!({"source": source, "float": format!("{}/ci:{tag}", floats.host())}));
        ends.push((tag, new.to_string()));
    }
    let spec =
        json!({"images": images, "pullSecret": {"name": "pull"}, "pushSecret": {"name": "push"}});
    Wanted {
        name: name.to_owned(),
        spec,
        floats: ends,
    }
}

pub async fn create(stage: &Stage, wanted: &[Wanted]) {
    let api = stage.requests();
    let params = PostParams::default();
    let created = stream::iter(wanted).map(|wanted| {
        let object = stage::object(&wanted.name, &wanted.spec);
        let (api, params) = (&api, &params);
        async move { api.create(params, &object).await.unwrap() }
    });
    created.buffer_unordered(AT_ONCE).count().await;
}

fn slow_blobs() -> Rule {
    Rule {
        matcher: Matcher {
            kind: Some(RequestKind::Blob),
            ..Matcher::default()
        },
        when: When::Always,
        left: None,
        action: Action::Delay { ms: 5_000 },
    }
}

/// Waits until no more than so many requests are unfinished.
async fn unfinished(stage: &Stage, left: usize) {
    let api = stage.requests();
    let selector = "status.phase!=Posted,status.phase!=Failed,status.phase!=Cancelled";
    let params = ListParams::default().fields(selector);
    let begun = Instant::now();
    while api.list_metadata(&params).await.unwrap().items.len() > left {
        assert!(begun.elapsed() < PATIENCE, "{}", stage.log());
        // Each list costs the API server some 0.1 s of processor time among a thousand.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

fn assert_promoted(objects: &[PromotionRequest], wanted: &[Wanted], floats: &Registry) {
    assert_eq!(objects.len(), wanted.len());
    for object in objects {
        assert_eq!(stage::phase(object), "Posted", "{object:#?}");
    }
    for (tag, digest) in wanted.iter().flat_map(|wanted| &wanted.floats) {
        let held = floats.tag("ci", tag).map(|digest| digest.to_string());
        assert_eq!(held.as_ref(), Some(digest), "{tag}");
    }
    assert!(floats.dangling().is_empty());
}

fn counts_of(objects: &[PromotionRequest], counts: &BTreeMap<&str, u64>) -> Counts {
    let now = Timestamp::now();
    let mut all = Vec::new();
    let mut most = 0;
    for object in objects {
        let name = object.metadata.name.as_deref().unwrap();
        let count = counts.get(name).copied().unwrap_or_default();
        let status = object.status.as_ref();
        let began = status.and_then(|status| status.start_time.as_ref());
        let began = began.map_or(now, |Time(began)| *began);
        let ended = status.and_then(|status| status.completion_time.as_ref());
        let ended = ended.map_or(now, |Time(ended)| *ended);
        let run = u64::try_from(ended.duration_since(began).as_secs()).unwrap_or_default();
        all.push(count);
        most = most.max(count.saturating_sub(run / INTERVAL));
    }
    all.sort_unstable();
    Counts {
        median: all[all.len() / 2],
        most,
    }
}

/// `1000 create events, 3 get secrets`
fn summary(audited: &[AuditedRequest]) -> String {
    let mut counts = BTreeMap::<(String, &str, u16), usize>::new();
    for request in audited {
        let kind = (request.resource(), request.verb.as_str(), request.code());
        *counts.entry(kind).or_default() += 1;
    }
    let counts = counts
        .iter()
        .map(|((resource, verb, code), n)| format!("{n} {verb} {resource} {code}"));
    counts.collect::<Vec<_>>().join(", ")
}

/// Waits until the controller says that it is ready; gives how long that took.
pub async fn ready(stage: &Stage) -> Duration {
    let begun = Instant::now();
    while !stage.log().lines().any(|line| line.ends_with(": ready")) {
        assert!(begun.elapsed() < Duration::from_mins(2), "{}", stage.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

// === many that have ended ===

async fn ended(report: &mut Report, ground: &Ground, model: &PromotionRequest) {
    let count = if report.quick { 300 } else { 10_000 };
    let stage = Stage::on(ground.plane, "ended").await;
    method(&format!(
        "{count} finished requests of {FLOATS} floats each, beside those of the table above; a controller with election, on all \
         namespaces, from its start to ready. Its sweep, of all of them, is waited for."
    ));
    let api = stage.requests();
    let numbers = stream::iter(0..count);
    let finished = numbers.map(|n| finish(&api, model, format!("ended-{n:05}")));
    finished.buffer_unordered(AT_ONCE).count().await;

    let registry = ground.registry().await;
    stage.rules().await;
    let lease = format!("--lease-namespace={}", stage.namespace);
    let plain = format!("--plain-http={}", registry.host());
    let flags = [EVERYWHERE, "--leader-elect=true", &lease, &plain];
    let begun = Timestamp::now();
    let controller = stage.controller_through(&ground.kubeconfig, &flags);
    let took = ready(&stage).await;
    let at_ready = controller.peak_memory().unwrap();
    assert!(stage.log().contains("requests=0"), "{}", stage.log());
    let one = wanted("one", &registry, &registry);
    let host = registry.host();
    stage.secret("push", &[(&host, "bot", "secret")]).await;
    stage.secret("pull", &[(&host, "bot", "secret")]).await;
    let clock = Instant::now();
    create(&stage, std::slice::from_ref(&one)).await;
    let done = stage.finished("one", PATIENCE).await;
    let promoted = clock.elapsed();
    assert_promoted(&[done], std::slice::from_ref(&one), &registry);
    let pages = swept(ground, begun, &controller).await;
    let memory = controller.peak_memory().unwrap();
    controller.kill();
    // Who comes after it elects nobody.
    stage::name_lease(ground.plane, Value::Null).await;

    let mut table = Table::new(&["finished requests", "measured", "limit"]);
    let within = took <= READY;
    let limit = report.held(
        &format!("ready after {}", seconds(took)),
        within,
        &seconds(READY),
    );
    table.row([
        format!("{count}: from start to ready"),
        seconds(took),
        limit,
    ]);
    let promoted = seconds(promoted);
    table.row([
        "a request created then: to Posted, the start's settle time included".into(),
        promoted,
        String::new(),
    ]);
    table.row([
        "pages of the sweep".into(),
        pages.len().to_string(),
        String::new(),
    ]);
    let rate = busiest(&pages);
    let limit = report.held(
        &format!("{rate} requests of the sweep in a second"),
        rate <= SWEEP_RATE,
        &SWEEP_RATE.to_string(),
    );
    table.row([
        "requests of the sweep in any second, at the most".into(),
        rate.to_string(),
        limit,
    ]);
    table.row([
        "memory when ready".into(),
        mebibytes(at_ready),
        String::new(),
    ]);
    let limit = report.held(
        &format!("sweep: {}", mebibytes(memory)),
        memory <= MEMORY,
        &mebibytes(MEMORY),
    );
    table.row([
        "peak memory after the sweep".into(),
        mebibytes(memory),
        limit,
    ]);
    table.print();
}

/// Creates a request that has ended as another one did.
async fn finish(api: &Api<PromotionRequest>, model: &PromotionRequest, name: String) {
    let mut object = PromotionRequest::new(&name, model.spec.clone());
    let params = PostParams::default();
    object = api.create(&params, &object).await.unwrap();
    object.status.clone_from(&model.status);
    api.replace_status(&name, &params, &object).await.unwrap();
}

/// When the sweep asked for each page, once it has had all.
async fn swept(ground: &Ground, since: Timestamp, controller: &Controller) -> Vec<Timestamp> {
    let begun = Instant::now();
    loop {
        let mut audited = ground.audited(since);
        audited.retain(|r| r.verb == "list" && r.uri.contains("limit=20"));
        let newest = audited.iter().map(|r| r.received).max();
        let quiet = newest.is_some_and(|at| Timestamp::now().duration_since(at).as_secs() >= 3);
        if quiet {
            return audited.iter().map(|r| r.received).collect();
        }
        assert!(begun.elapsed() < PATIENCE, "{}", controller.log());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The most instants within one second.
fn busiest(instants: &[Timestamp]) -> usize {
    let within = |from: &Timestamp| {
        let in_second =
            |at: &&Timestamp| **at >= *from && at.duration_since(*from).as_millis() < 1000;
        instants.iter().filter(in_second).count()
    };
    instants.iter().map(within).max().unwrap_or_default()
}
