//! A crash at every point: the engine is stopped before and after every single registry request and every save of a promotion, and
//! started again; and every tag write in turn loses its answer. Not a sample: the points are counted in a run that nothing
//! disturbs. What is promoted, and what must be true of the end, is a [`Case`].

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::time::Duration;

use futures::StreamExt as _;
use promotion_controller::api::PromotionRequest;
use promotion_controller::engine::leadership::Leadership;
use quaylike::{
    Action, GateSpec, Image, ImageBuilder, ImageSpec, Layer, Matcher, Registry, RequestKind, Rule,
    Shape, When,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::testbed::RunDir;
use crate::testbed::inside::{self, OnSave};
use crate::testbed::stage::{object, phase};

/// How long a write may take to land: on this registry none takes any time.
const SETTLE: Duration = Duration::from_millis(300);
/// Runs at once.
const AT_ONCE: usize = 6;

/// Where a run is stopped.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// Nowhere.
    Never,
    /// The nth request to the floats' registry has not been carried out.
    BeforeRequest(u64),
    /// It has, and was not answered.
    AfterRequest(u64),
    /// The nth request to the sources' registry has not been carried out.
    BeforeSource(u64),
    /// It has, and was not answered.
    AfterSource(u64),
    /// The nth save has not been made.
    BeforeSave(usize),
    /// It has, and was not answered.
    AfterSave(usize),
    /// Not stopped: the nth write of a tag is carried out, and its answer is lost.
    Lost(u64),
}

/// What is promoted, and how it ends.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Seeds the floats' and the sources' registry, and gives the request's spec.
    pub spec: fn(&Registry, &Registry) -> Value,
    /// The phase in which it ends.
    pub phase: &'static str,
    /// The tags at the end are those of the undisturbed run.
    pub same: bool,
    /// What else is true of the floats' registry and of the request at the end.
    pub check: fn(&Registry, &PromotionRequest),
}

/// What a run comes to: the tags, the stamps of prune tags left out; and how many points there are.
#[derive(Debug)]
struct End {
    tags: Vec<(String, String)>,
    requests: u64,
    writes: u64,
    source_requests: u64,
    saves: usize,
    stopped: bool,
}

/// An image that shares a layer with others of its kind.
fn sharing(seed: &str) -> Image {
    ImageBuilder::oci(seed)
        .layer(Layer::sized("shared by several", 3000))
        .layer(Layer::sized(seed, 500))
        .build()
        .unwrap()
}

/// A request of all kinds: an existing float, a first promotion, an index, one at its source already, two that share a layer, one
/// from another registry.
fn mixed(floats: &Registry, sources: &Registry) -> Value {
    let image = |shape, seed: &str| ImageSpec::new(shape, seed).build().unwrap();
    let mut images = Vec::new();
    let mut add = |from: &Registry, float: &str, new: &Image, old: Option<&Image>| {
        let digest = from.seed_image("src/x", float, new).unwrap();
        if let Some(old) = old {
            floats.seed_image("ci", float, old).unwrap();
        }
        images.push(json!({
            "source": format!("{}/src/x@{digest}", from.host()),
            "float": format!("{}/ci:{float}", floats.host()),
        }));
    };
    let old = |seed: &str| image(Shape::Docker, seed);
    add(floats, "existing", &sharing("a"), Some(&old("old a")));
    add(floats, "first", &sharing("b"), None);
    let index = image(Shape::Index, "index");
    add(
        floats,
        "index",
        &index,
        Some(&image(Shape::Index, "old index")),
    );
    let same = image(Shape::Oci, "same");
    add(floats, "same", &same, Some(&same));
    add(
        sources,
        "far",
        &image(Shape::Oci, "far"),
        Some(&old("old far")),
    );
    json!({"images": images, "attempts": 20})
}

/// Two registries and a request.
struct World {
    case: Case,
    floats: Registry,
    sources: Registry,
    spec: Value,
    folder: RunDir,
}

impl World {
    async fn new(case: Case) -> Self {
        let open = || Registry::start(audited());
        let (floats, sources) = (open().await.unwrap(), open().await.unwrap());
        let spec = (case.spec)(&floats, &sources);
        Self {
            case,
            floats,
            sources,
            spec,
            folder: RunDir::create("points").unwrap(),
        }
    }

    /// One life of an engine, in a runtime of its own that ends as a process does. Whether it was stopped, and its saves.
    async fn live(&self, point: Point) -> (bool, usize) {
        let gate = match point {
            Point::BeforeRequest(n) => Some(self.floats.gate(before().nth(n))),
            Point::AfterRequest(n) => Some(self.floats.gate(after().nth(n))),
            Point::BeforeSource(n) => Some(self.sources.gate(before().nth(n))),
            Point::AfterSource(n) => Some(self.sources.gate(after().nth(n))),
            _ => None,
        };
        if let Point::Lost(n) = point {
            let lost = Rule::new(writes(), Action::LoseAnswer);
            self.floats.add_rule(lost.when(When::Nth(n)));
        }
        let on_save = match point {
            Point::BeforeSave(n) => OnSave::StopBefore(n),
            Point::AfterSave(n) => OnSave::StopAfter(n),
            _ => OnSave::Nothing,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let engine = {
            let _inside = runtime.enter();
            inside::start(
                vec![object("one", &self.spec)],
                &self.folder.join("state.yaml"),
                vec![self.floats.host(), self.sources.host()],
                SETTLE,
                Leadership::alone(),
                on_save,
            )
        };
        let reached = async {
            match &gate {
                Some(gate) => drop(gate.reached().await),
                None => engine.store().stopped().await,
            }
        };
        let over = async {
            let end = Instant::now() + PATIENCE;
            while !inside::is_over(&engine) {
                assert!(
                    Instant::now() < end,
                    "{point:?}: {:#?}",
                    engine.store().objects()
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let stopped = tokio::select! {
            () = reached => true,
            () = over => false,
        };
        // A run that is stopped after its last save has ended: the next one would begin anew what failed.
        let stopped = stopped && !inside::is_over(&engine);
        let saves = engine.store().saves();
        if !stopped {
            let end = engine.store().objects();
            let told = || format!("{point:?}: {:#?}", end[0].status);
            assert_eq!(phase(&end[0]), self.case.phase, "{}", told());
            (self.case.check)(&self.floats, &end[0]);
        }
        drop(engine);
        // All tasks end where they stand, and with them the lock on the state.
        let ended = tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(Duration::from_secs(10));
        });
        ended.await.unwrap();
        if let Some(gate) = gate {
            gate.cut();
        }
        (stopped, saves)
    }

    /// A run that is stopped at a point and taken up again.
    async fn run(case: Case, point: Point) -> End {
        let world = Self::new(case).await;
        let (stopped, saves) = world.live(point).await;
        if stopped {
            let (again, _) = world.live(Point::Never).await;
            assert!(!again);
        }
        for registry in [&world.floats, &world.sources] {
            let trail = registry.audit_trail();
            assert!(trail.is_empty(), "{point:?}: {trail:?}");
        }
        // What a crash leaves of a trial is a pruner's.
        let tags = world.floats.tags("ci").into_iter();
        let tags = tags.filter(|(tag, _)| !tag.contains("_prune_deletion_probe_"));
        let tags = tags.map(|(tag, digest)| {
            let tag = match tag.split_once("_prune_") {
                Some((_, float)) => format!("STAMP_prune_{float}"),
                None => tag,
            };
            (tag, digest.to_string())
        });
        let all = Matcher::default();
        let counted = |registry: &Registry, matcher: &Matcher| {
            u64::try_from(registry.count(matcher)).unwrap()
        };
        let count = |registry: &Registry| counted(registry, &all);
        let mut tags: Vec<_> = tags.collect();
        tags.sort();
        End {
            tags,
            requests: count(&world.floats),
            writes: counted(&world.floats, &writes()),
            source_requests: count(&world.sources),
            saves,
            stopped,
        }
    }
}

fn before() -> GateSpec {
    GateSpec::before(Matcher::default())
}

fn after() -> GateSpec {
    GateSpec::after(Matcher::default())
}

fn writes() -> Matcher {
    Matcher {
        write: Some(true),
        ..Matcher::kind(RequestKind::Manifest).tag(true)
    }
}

/// Runs a case once undisturbed, and once for every point; gives the tags of the undisturbed run.
pub async fn hold_at_every_point(case: Case) -> Vec<(String, String)> {
    let undisturbed = World::run(case, Point::Never).await;
    let mut points = Vec::new();
    for n in 1..=undisturbed.requests {
        points.extend([Point::BeforeRequest(n), Point::AfterRequest(n)]);
    }
    for n in 1..=undisturbed.source_requests {
        points.extend([Point::BeforeSource(n), Point::AfterSource(n)]);
    }
    for n in 1..=undisturbed.saves {
        points.extend([Point::BeforeSave(n), Point::AfterSave(n)]);
    }
    let all = points.len();
    points.extend((1..=undisturbed.writes).map(Point::Lost));
    let runs = points
        .into_iter()
        .map(async |point| (point, World::run(case, point).await));
    let mut runs = futures::stream::iter(runs).buffer_unordered(AT_ONCE);
    let mut stopped = 0;
    while let Some((point, end)) = runs.next().await {
        if case.same {
            assert_eq!(end.tags, undisturbed.tags, "{point:?}");
        }
        stopped += usize::from(end.stopped);
    }
    // Which request is the last may differ by a few from run to run: pings and HEADs of things done at once.
    assert!(stopped + 12 >= all, "stopped at {stopped} of {all} points");
    println!(
        "stopped and taken up again at {stopped} of {all} points; answers lost: {}",
        undisturbed.writes
    );
    undisturbed.tags
}

/// A float that is written once and one that exists, whose `_incoming` tags are removed.
fn removing(floats: &Registry, _: &Registry) -> Value {
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    floats.seed_image("ci", "existing", &image("old")).unwrap();
    let images = ["existing", "once"].map(|float| {
        let digest = floats.seed_image("src/x", float, &image(float)).unwrap();
        json!({
            "source": format!("{}/src/x@{digest}", floats.host()),
            "float": format!("{}/ci:{float}", floats.host()),
        })
    });
    json!({"images": images, "attempts": 20, "incoming": "Remove"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_or_a_lost_answer_anywhere_leaves_no_incoming_tag_that_was_to_be_removed() {
    let tags = hold_at_every_point(Case {
        spec: removing,
        phase: "Posted",
        same: true,
        check: |_, request| {
            let images = &request.status.as_ref().unwrap().images;
            assert!(
                images.iter().all(|image| image.message.is_none()),
                "{images:?}"
            );
        },
    })
    .await;
    let tags: Vec<&str> = tags.iter().map(|(tag, _)| tag.as_str()).collect();
    let left = [
        "STAMP_prune_existing",
        "existing",
        "existing__post1",
        "existing__pre",
        "once",
    ];
    assert_eq!(tags, left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_or_after_any_request_or_save_leaves_what_an_undisturbed_run_leaves() {
    let tags = hold_at_every_point(Case {
        spec: mixed,
        phase: "Posted",
        same: true,
        check: |_, _| {},
    })
    .await;
    let pinned = tags.iter().filter(|(tag, _)| tag.starts_with("STAMP"));
    assert_eq!(pinned.count(), 3, "{tags:?}");
}
