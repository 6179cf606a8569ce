//! Crashes: the controller process is killed, again and again, at instants that the registry chooses, and what is on the
//! registry at the end is what an uninterrupted run leaves.
//!
//! Each run is a namespace, two registries, one request of five images, and a list of instants. A request that reaches the
//! instant is parked there while its process is killed; then it is never done, was done already, or lands late, while the next
//! process waits for the settle time.

use crate::testbed::PATIENCE;
use std::time::Instant;

use futures::{StreamExt as _, stream};
use promotion_controller::api::PromotionRequest;
use quaylike::{
    Digest, GateSpec, Image, ImageBuilder, ImageSpec, Layer, Matcher, Registry, RequestKind, Shape,
};
use serde_json::json;

use crate::testbed::floats::{FLOATS, audited, put, put_suffix};
use crate::testbed::stage::{Controller, LOOK, Stage, condition, phase};

/// Runs at once: what they do most is wait.
const AT_ONCE: usize = 20;
/// Crashes of a run at most: after each the next process waits for the settle and the late time.
const CRASHES_MAX: usize = 3;
const SOURCES: &str = "src/pipeline";

/// What becomes of the request during which the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is never done.
    Undone,
    /// It was done; its answer is lost.
    Done,
    /// It is done once the next process is there.
    Late,
}

/// An instant: this request arrives.
struct Kill {
    what: &'static str,
    matcher: Matcher,
    fate: Fate,
}

struct Run {
    name: &'static str,
    kills: Vec<Kill>,
}

/// A tag of the floats' repository, its prune tags without their stamp, and its digest: all of them, sorted.
type Tags = Vec<(String, Digest)>;

fn get(repository: &str) -> Matcher {
    Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository(repository)
}

fn look(tag: &str) -> Matcher {
    get(FLOATS).reference(tag)
}

fn upload(method: &str) -> Matcher {
    Matcher::kind(RequestKind::Upload)
        .method(method)
        .repository(FLOATS)
}

fn kills(fate: Fate, points: Vec<(&'static str, Matcher)>) -> Vec<Kill> {
    let kill = |(what, matcher)| Kill {
        what,
        matcher,
        fate,
    };
    points.into_iter().map(kill).collect()
}

/// The tag writes of an existing float, in the order of the protocol.
fn tag_writes() -> Vec<(&'static str, Matcher)> {
    vec![
        ("_incoming", put("existing_incoming")),
        ("prune", put_suffix("_prune_existing")),
        ("__pre", put("existing__pre")),
        ("float", put("existing")),
        ("__post1", put("existing__post1")),
    ]
}

fn content(what: &'static str) -> Vec<(&'static str, Matcher)> {
    let matcher = match what {
        "mount" => upload("POST"),
        "upload" => upload("PUT"),
        _ => Matcher::put_manifest().repository(FLOATS).tag(false),
    };
    vec![(what, matcher)]
}

fn reads() -> Vec<(&'static str, Matcher)> {
    let source = shared("existing").digest().to_string();
    vec![
        ("look at the float to resolve", look("existing")),
        ("source", get(SOURCES).reference(&source)),
        ("look at _incoming", look("existing_incoming")),
        (
            "look at the prune tag",
            get(FLOATS).reference_suffix("_prune_existing"),
        ),
        ("look at the float to latch", look("existing")),
        ("look at __post1", look("existing__post1")),
    ]
}

/// Crashes in the order in which one float comes to them.
fn runs() -> Vec<Run> {
    let first = || {
        vec![
            ("first _incoming", put("first_incoming")),
            ("first float", put("first")),
        ]
    };
    let run = |name, kills| (name, kills);
    let runs = vec![
        run("undone", kills(Fate::Undone, tag_writes())),
        run("done", kills(Fate::Done, tag_writes())),
        run("late", kills(Fate::Late, tag_writes())),
        run("read-before", kills(Fate::Undone, reads())),
        run("read-after", kills(Fate::Done, reads())),
        run("first-undone", kills(Fate::Undone, first())),
        run("first-late", kills(Fate::Late, first())),
        run("mount-undone", kills(Fate::Undone, content("mount"))),
        run("mount-done", kills(Fate::Done, content("mount"))),
        run("upload-undone", kills(Fate::Undone, content("upload"))),
        run("upload-done", kills(Fate::Done, content("upload"))),
        run("child-undone", kills(Fate::Undone, content("child"))),
        run("child-done", kills(Fate::Done, content("child"))),
    ];
    let mut parts = Vec::new();
    for (name, mut kills) in runs {
        while kills.len() > CRASHES_MAX {
            let rest = kills.split_off(CRASHES_MAX);
            parts.push(Run { name, kills });
            kills = rest;
        }
        parts.push(Run { name, kills });
    }
    parts
}

fn shared(seed: &str) -> Image {
    let own = Layer::named(&format!("{seed}-own"));
    ImageBuilder::oci(seed)
        .layer(Layer::named("shared"))
        .layer(own)
        .build()
        .unwrap()
}

fn built(shape: Shape, seed: &str) -> Image {
    ImageSpec::new(shape, seed).build().unwrap()
}

/// The ground of one run.
struct Ground {
    stage: Stage,
    floats: Registry,
    sources: Registry,
}

impl Ground {
    async fn new(name: &str) -> Self {
        Self {
            stage: Stage::new(&format!("crash-{name}")).await,
            floats: Registry::start(audited()).await.unwrap(),
            sources: Registry::start(audited()).await.unwrap(),
        }
    }

    /// A first promotion, an existing float that shares a layer with it, an index of the other registry on an existing float,
    /// another image of that registry, and a float that has its digest already.
    async fn create(&self) {
        let (floats, sources) = (&self.floats, &self.sources);
        let seed = |registry: &Registry, path: &str, tag: &str, image: &Image| {
            registry.seed_image(path, tag, image).unwrap()
        };
        seed(floats, FLOATS, "existing", &built(Shape::Docker, "old"));
        seed(floats, FLOATS, "multi", &built(Shape::DockerList, "old"));
        seed(floats, FLOATS, "far", &built(Shape::Oci, "old-far"));
        seed(floats, FLOATS, "same", &built(Shape::Oci, "same"));
        let near = floats.host();
        let far = sources.host();
        let images = [
            (
                &near,
                seed(floats, SOURCES, "first", &shared("first")),
                "first",
            ),
            (
                &near,
                seed(floats, SOURCES, "existing", &shared("existing")),
                "existing",
            ),
            (
                &far,
                seed(sources, SOURCES, "multi", &built(Shape::Index, "multi")),
                "multi",
            ),
            (
                &far,
                seed(sources, SOURCES, "far", &built(Shape::Docker, "far")),
                "far",
            ),
            (
                &near,
                seed(floats, SOURCES, "same", &built(Shape::Oci, "same")),
                "same",
            ),
        ];
        let images: Vec<_> = images
            .iter()
            .map(|(host, digest, float)| {
                json!({
                    "source": format!("{host}/{SOURCES}@{digest}"), "float": format!("{near}/{FLOATS}:{float}"),
                })
            })
            .collect();
        // A process that ends under a launch uses no attempt of its own.
        let spec = json!({"images": images, "attempts": 1});
        self.stage.create("mixed", &spec).await;
    }

    fn controller(&self) -> Controller {
        let (near, far) = (self.floats.host(), self.sources.host());
        let plain = [
            format!("--plain-http={near}"),
            format!("--plain-http={far}"),
        ];
        self.stage.controller(&[&plain[0], &plain[1]])
    }

    /// Runs the request to its end through these crashes.
    async fn run(&self, kills: &[Kill]) -> PromotionRequest {
        self.create().await;
        let mut controller = self.controller();
        for (number, kill) in kills.iter().enumerate() {
            let spec = if kill.fate == Fate::Done {
                GateSpec::after(kill.matcher.clone())
            } else {
                GateSpec::before(kill.matcher.clone())
            };
            let gate = self.floats.gate(spec);
            if tokio::time::timeout(PATIENCE, gate.reached())
                .await
                .is_err()
            {
                let object = self.stage.get("mixed").await;
                panic!(
                    "{} did not come: {:#?}\n{}",
                    kill.what,
                    object.status,
                    controller.log()
                );
            }
            controller.kill();
            if kill.fate == Fate::Late {
                controller = self.controller();
                self.is_there(&controller, number + 2).await;
                gate.open();
            } else {
                gate.cut();
                controller = self.controller();
            }
        }
        self.stage.finished("mixed", PATIENCE).await
    }

    /// Waits until the nth process follows its watch. It launches nothing yet.
    async fn is_there(&self, controller: &Controller, nth: usize) {
        let end = Instant::now() + PATIENCE;
        let ready = |log: &str| log.lines().filter(|line| line.ends_with(" ready")).count();
        while ready(&controller.log()) < nth {
            assert!(Instant::now() < end, "{}", controller.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tags(&self) -> Tags {
        let unstamped = |tag: String| match tag.split_once("_prune_") {
            Some((_, float)) => format!("prune {float}"),
            None => tag,
        };
        let tags = self.floats.tags(FLOATS).into_iter();
        let mut tags: Tags = tags.map(|(tag, digest)| (unstamped(tag), digest)).collect();
        tags.sort();
        tags
    }
}

fn expected() -> Tags {
    let mut tags = Tags::new();
    let mut moved = |float: &str, new: Digest, old: Digest| {
        tags.extend([
            (float.to_owned(), new),
            (format!("{float}_incoming"), new),
            (format!("{float}__post1"), new),
            (format!("{float}__pre"), old),
            (format!("prune {float}"), old),
        ]);
    };
    let digest = |shape, seed| built(shape, seed).digest();
    moved(
        "existing",
        shared("existing").digest(),
        digest(Shape::Docker, "old"),
    );
    moved(
        "multi",
        digest(Shape::Index, "multi"),
        digest(Shape::DockerList, "old"),
    );
    moved(
        "far",
        digest(Shape::Docker, "far"),
        digest(Shape::Oci, "old-far"),
    );
    tags.extend([
        ("first".to_owned(), shared("first").digest()),
        ("first_incoming".to_owned(), shared("first").digest()),
        ("same".to_owned(), digest(Shape::Oci, "same")),
    ]);
    tags.sort();
    tags
}

fn assert_status(name: &str, done: &PromotionRequest, log: &str) {
    let told = || format!("{name}: {:#?}\n{log}", done.status);
    assert_eq!(phase(done), "Posted", "{}", told());
    assert_eq!(condition(done, "Complete").0, "True", "{}", told());
    let status = done.status.as_ref().unwrap();
    assert_eq!(status.progress.as_deref(), Some("5/5"), "{}", told());
    let shown: Vec<_> = status
        .images
        .iter()
        .map(|image| {
            (
                image.displaced.len(),
                image.rescued.len(),
                image.first_promotion == Some(true),
                image.unchanged == Some(true),
            )
        })
        .collect();
    let wanted = [
        (0, 0, true, false),
        (1, 0, false, false),
        (1, 0, false, false),
        (1, 0, false, false),
        (0, 0, false, true),
    ];
    assert_eq!(shown, wanted, "{}", told());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_write_or_read_leaves_what_an_uninterrupted_run_leaves() {
    let begun = Instant::now();
    let uninterrupted = Run {
        name: "none",
        kills: Vec::new(),
    };
    let all: Vec<Run> = runs().into_iter().chain([uninterrupted]).collect();
    let count: usize = all.iter().map(|run| run.kills.len()).sum();
    assert!(count >= 20);
    stream::iter(all)
        .for_each_concurrent(AT_ONCE, |run| async move {
            let ground = Ground::new(run.name).await;
            let done = ground.run(&run.kills).await;
            let log = std::fs::read_to_string(ground.stage.folder.join("controller.log"));
            let log = log.unwrap_or_default();
            assert_status(run.name, &done, &log);
            assert_eq!(ground.tags(), expected(), "{}\n{log}", run.name);
            let mounts = ground.floats.requests(&upload("POST"));
            let mounted = mounts.iter().any(|entry| entry.query.contains("mount="));
            assert!(mounted, "{}: nothing was mounted", run.name);
            for registry in [&ground.floats, &ground.sources] {
                let dangled = registry.audit_trail();
                assert!(dangled.is_empty(), "{}: {dangled:?}", run.name);
            }
        })
        .await;
    println!("{count} crashes in {:.0?}", begun.elapsed());
}
