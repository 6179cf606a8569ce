//! `promote`, with the times it has by default, on a path that is cut and on a registry that is slow to do what it was told.

use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quaylike::{
    Action, Control, Digest, Embedded, GateSpec, ImageSpec, Kind, Matcher, Options, Rule, Shape,
    serve,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::stage::LOOK;
use crate::testbed::{Direction, Path, RunDir};

const PATIENCE: Duration = Duration::from_mins(3);
/// The timeout of a tag PUT, by default.
const PUT: Duration = Duration::from_secs(8);
/// How long a read may be stale, by default.
const SETTLE: Duration = Duration::from_secs(10);

/// Two requests for one float, one after the other, from sources on the registry.
struct Two {
    folder: RunDir,
    old: Digest,
    first: Digest,
    second: Digest,
}

fn put() -> Matcher {
    Matcher::put_manifest().repository("ci").reference("f")
}

impl Two {
    fn new(registry: &Control, host: &str) -> Self {
        let seed = |repository: &str, tag: &str, name: &str| {
            let image = ImageSpec::new(Shape::Oci, name);
            registry.seed_spec(repository, tag, &image).unwrap()
        };
        let folder = RunDir::create("late").unwrap();
        let two = Self {
            old: seed("ci", "f", "old"),
            first: seed("src/x", "one", "one"),
            second: seed("src/x", "two", "two"),
            folder,
        };
        let document = |name: &str, digest: Digest| {
            let image = json!({"source": format!("{host}/src/x@{digest}"), "float": format!("{host}/ci:f")});
            json!({
                "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
                "metadata": {"name": name}, "spec": {"images": [image]},
            })
        };
        let documents = [document("one", two.first), document("two", two.second)];
        let texts = documents.map(|d| serde_saphyr::to_string(&d).unwrap());
        two.folder
            .write("requests.yaml", &texts.join("---\n"))
            .unwrap();
        two
    }

    /// Promotes both, one after the other.
    fn promote(&self, before: &[&str], host: &str) -> Child {
        let program = std::env::var("LATE_PROGRAM");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_promotion-controller").into());
        let plain = format!("--plain-http={host}");
        let mut words: Vec<&str> = before.to_vec();
        words.extend([&program, "promote", "-f", "requests.yaml", &plain]);
        let log = std::fs::File::create(self.folder.join("promote.log")).unwrap();
        Command::new(words[0])
            .args(&words[1..])
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("promote.log")).unwrap_or_default()
    }

    /// Asserts that both came to their ends, in their order, and that nothing moved the float after that.
    async fn assert_ended(&self, registry: &Control, mut run: Child, case: &str) {
        let ended = tokio::time::timeout(PATIENCE, run.wait()).await;
        let told = || format!("{case}: {:?}\n{}", registry.history("ci", "f"), self.log());
        assert!(ended.is_ok(), "{}", told());
        assert!(ended.unwrap().unwrap().success(), "{}", told());
        let history = registry.history("ci", "f").into_iter();
        let mut history: Vec<_> = history.filter_map(|change| change.digest).collect();
        history.dedup();
        assert_eq!(history, [self.old, self.first, self.second], "{}", told());
        let tag = |tag: &str| registry.tag("ci", tag).unwrap();
        assert_eq!(tag("f"), self.second, "{}", told());
        assert_eq!(tag("f__pre"), self.first, "{}", told());
        assert_eq!(tag("f_incoming"), self.second, "{}", told());
        assert_eq!(tag("f__post1"), self.second, "{}", told());
    }
}

/// The latch of the first request goes onto a path that has just been cut; the path heals so long after.
async fn heals_after(heal: Duration) {
    let path = Path::new();
    let (told, registry) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = path.at_server(move |address| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((address, 0)).await.unwrap();
            let host = listener.local_addr().unwrap().to_string();
            let ready = |control: &Control| _ = told.send((control.clone(), host));
            let stopped = async { _ = stopped.await };
            serve(listener, Options::default(), ready, stopped)
                .await
                .unwrap();
        });
    });
    let (registry, host) = registry.await.unwrap();
    let two = Two::new(&registry, &host);
    let look = Matcher::kind(Kind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("f");
    // The second look at the float is the latch's. Its answer arrives, the PUT that follows at once does not.
    let resolves = registry.gate(GateSpec::before(look.clone()));
    let run = two.promote(&path.client(), &host);
    let reached = |gate: quaylike::Gate| async {
        let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
        assert!(reached.is_ok(), "{}", two.log());
        gate
    };
    let resolves = reached(resolves).await;
    let latches = registry.gate(GateSpec::before(look));
    resolves.open();
    let latches = reached(latches).await;
    path.cut(Direction::ToServer);
    latches.open();
    let sent = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    path.cut(Direction::ToClient);
    assert_eq!(registry.count(&put()), 0, "the path is cut");
    tokio::time::sleep(heal.saturating_sub(sent.elapsed())).await;
    path.heal();
    let healed = Instant::now();
    // Whatever comes before this is the PUT that was given up: the next one is not sent sooner.
    let next = sent + SETTLE;
    while Instant::now() < next.min(healed + Duration::from_secs(20)) {
        assert_eq!(
            registry.count(&put()),
            0,
            "healed after {heal:?}: the PUT that was given up after {PUT:?} landed {:.1?} after its sending",
            sent.elapsed()
        );
        tokio::time::sleep(LOOK).await;
    }
    two.assert_ended(&registry, run, &format!("healed after {heal:?}"))
        .await;
    // The kernel sends what was not acknowledged again after 0.2 s, 0.4 s, … 12.8 s, also after the connection was closed.
    let again = sent + Duration::from_secs(45);
    tokio::time::sleep(again.saturating_duration_since(Instant::now())).await;
    assert_eq!(
        registry.tag("ci", "f"),
        Some(two.second),
        "healed after {heal:?}"
    );
    assert_eq!(
        registry.count(&put()),
        2,
        "healed after {heal:?}: one PUT of each image arrives"
    );
    println!(
        "healed after {heal:?}: both promoted {:.1?} after the PUT was sent",
        sent.elapsed()
    );
    drop(stop);
    server.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_was_given_up_on_a_cut_path_never_lands_when_the_path_heals() {
    join_all([9, 13, 20, 29].map(|seconds| heals_after(Duration::from_secs(seconds)))).await;
}

/// The registry does what it was told so long after its client has gone.
async fn works_on_for(works: Duration) {
    let registry = Embedded::start(Options::default()).await.unwrap();
    let host = registry.host();
    let two = Two::new(&registry, &host);
    let lands = PUT + works;
    let ms = u64::try_from(lands.as_millis()).unwrap();
    registry.add_rule(Rule::new(put(), Action::HoldWrite { ms: Some(ms) }).times(1));
    let run = two.promote(&[], &host);
    let case = format!("works on for {works:?}");
    two.assert_ended(&registry, run, &case).await;
    // It has landed: the second request came after it.
    assert_eq!(registry.held_writes(), 0, "{case}");
    assert_eq!(registry.count(&put()), 3, "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_is_not_passed_on_while_a_registry_works_on_a_put_whose_client_has_gone() {
    join_all([13, 25].map(|seconds| works_on_for(Duration::from_secs(seconds)))).await;
}
