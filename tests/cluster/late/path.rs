//! `promote`, with the times it has by default, on a path that is cut and on a registry that is slow to do what it was told.

use crate::testbed::PATIENCE;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quaylike::{
    Action, Digest, Gate, GateSpec, ImageSpec, Matcher, Options, Registry, RegistryHandle,
    RequestKind, Rule, Shape, serve,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::testbed::floats::put;
use crate::testbed::stage::LOOK;
use crate::testbed::{Direction, Path, RunDir, Supervised};

/// The timeout of a tag PUT, by default.
const PUT: Duration = Duration::from_secs(8);

/// Two requests for one float, one after the other, from sources on the registry.
pub(super) struct Two {
    pub(super) folder: RunDir,
    old: Digest,
    first: Digest,
    pub(super) second: Digest,
}

impl Two {
    pub(super) fn new(registry: &RegistryHandle, host: &str) -> Self {
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

    /// Promotes both, one after the other, where `at` is.
    fn promote_at(&self, at: Option<(&str, String)>, host: &str) -> Supervised {
        let program = std::env::var("LATE_PROGRAM");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_promotion-controller").into());
        let mut words = vec![program];
        if let Some((runs, where_to)) = at {
            words.splice(0..0, [runs.to_owned(), where_to]);
        }
        self.promote(&words, &format!("--plain-http={host}"), &[])
    }

    /// Runs the program that `words` begin with.
    pub(super) fn promote(
        &self,
        words: &[String],
        flag: &str,
        environment: &[(&str, &str)],
    ) -> Supervised {
        let more = ["promote", "-f", "requests.yaml", flag].map(str::to_owned);
        let arguments = [&words[1..], &more].concat();
        let home = [("HOME", self.folder.path().to_str().unwrap())];
        let environment = [environment, &home].concat();
        let (program, folder) = (words[0].as_ref(), self.folder.path());
        Supervised::spawn("promote", program, &arguments, &environment, folder).unwrap()
    }

    /// Waits for a request at a gate, as long as the program runs.
    async fn reached(&self, gate: &Gate, run: &mut Supervised) {
        let end = Instant::now() + PATIENCE;
        while tokio::time::timeout(LOOK, gate.reached()).await.is_err() {
            run.still_running().unwrap();
            assert!(Instant::now() < end, "{}", run.log_tail());
        }
    }

    /// Asserts that both came to their ends, in their order, and that nothing moved the float after that.
    pub(super) async fn assert_ended(
        &self,
        registry: &RegistryHandle,
        run: &mut Supervised,
        case: &str,
    ) {
        let end = Instant::now() + PATIENCE;
        while !run.has_ended() && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        let code = run.exit_code();
        let told = || {
            format!(
                "{case}: {:?}\n{}",
                registry.history("ci", "f"),
                run.log_tail()
            )
        };
        assert_eq!(code, Some(0), "{}", told());
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
            let ready = |control: &RegistryHandle| _ = told.send((control.clone(), host));
            let stopped = async { _ = stopped.await };
            serve(listener, Options::default(), ready, stopped)
                .await
                .unwrap();
        });
    });
    let (registry, host) = registry.await.unwrap();
    let two = Two::new(&registry, &host);
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("f");
    // The second look at the float is the latch's. Its answer arrives, the PUT that follows at once does not.
    let latches = registry.gate(GateSpec::before(look).nth(2));
    let mut run = two.promote_at(Some(path.client()), &host);
    two.reached(&latches, &mut run).await;
    let looked = registry.requests(&Matcher::default()).last().unwrap().seq;
    path.cut(Direction::ToServer);
    latches.open();
    let sent = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    path.cut(Direction::ToClient);
    assert_eq!(registry.count(&put("f")), 0, "the path is cut");
    tokio::time::sleep(heal.saturating_sub(sent.elapsed())).await;
    path.heal();
    let case = format!("healed after {heal:?}");
    two.assert_ended(&registry, &mut run, &case).await;
    // The kernel sends what was not acknowledged again after 0.2 s, 0.4 s, … 12.8 s, also after the connection was closed.
    let again = sent + Duration::from_secs(45);
    tokio::time::sleep(again.saturating_duration_since(Instant::now())).await;
    assert_eq!(registry.tag("ci", "f"), Some(two.second), "{case}");
    // One PUT of each image arrives, each after a look of its own: the one that was given up has none.
    let float = Matcher::kind(RequestKind::Manifest)
        .repository("ci")
        .reference("f");
    let after = registry.requests_after(looked, usize::MAX, &float);
    let methods: Vec<_> = after.iter().map(|entry| entry.method.as_str()).collect();
    let puts = methods.iter().filter(|method| **method == "PUT").count();
    assert_eq!(puts, 2, "{case}: {methods:?}");
    assert_eq!(methods[0], "GET", "{case}: {methods:?}");
    assert!(
        !methods.windows(2).any(|two| two == ["PUT", "PUT"]),
        "{case}: {methods:?}"
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
    let heals = [9, 13, 20, 29].map(|seconds| heals_after(Duration::from_secs(seconds)));
    let mut heals: JoinSet<()> = heals.into_iter().collect();
    // All are seen to their ends: each tells by itself why it failed.
    let mut failed = 0;
    while let Some(ended) = heals.join_next().await {
        failed += usize::from(ended.is_err());
    }
    assert_eq!(failed, 0);
}

/// The registry does what it was told so long after its client has gone.
async fn works_on_for(works: Duration) {
    let registry = Registry::start(Options::default()).await.unwrap();
    let host = registry.host();
    let two = Two::new(&registry, &host);
    let lands = PUT + works;
    let ms = u64::try_from(lands.as_millis()).unwrap();
    registry.add_rule(Rule::new(put("f"), Action::HoldWrite { ms: Some(ms) }).times(1));
    let mut run = two.promote_at(None, &host);
    let case = format!("works on for {works:?}");
    two.assert_ended(&registry, &mut run, &case).await;
    // It has landed: the second request came after it.
    assert_eq!(registry.held_writes(), 0, "{case}");
    assert_eq!(registry.count(&put("f")), 3, "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_is_not_passed_on_while_a_registry_works_on_a_put_whose_client_has_gone() {
    join_all([13, 25].map(|seconds| works_on_for(Duration::from_secs(seconds)))).await;
}
