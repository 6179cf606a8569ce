//! Many requests at once: how often each asks the API server.
//!
//! In small what `cargo bench -- scale` measures, with the same ruler: the API server's own audit log.

use crate::testbed::PATIENCE;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use promotion_controller::api::PromotionRequestStatus;
use quaylike::{
    Action, Auth, AuthMode, ImageSpec, Matcher, Options, Registry, RequestKind, Rule, Shape, User,
    When,
};
use serde_json::json;

use crate::testbed::stage::{Controller, Stage, phase, spec};

const REQUESTS: usize = 20;
const FLOATS: usize = 10;
/// Of each request, and one more for each status interval from its start to its end: one that waits is not saved.
const WRITES: u64 = 8;
const READS: u64 = 10;
const INTERVAL: i64 = 2;
/// Of the controller, most of it the program itself.
const MEMORY: u64 = 150 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_requests_takes_eight_status_writes_and_ten_reads_at_the_most() {
    let stage = Stage::new("many").await;
    let (user, kubeconfig) = stage.plane.mighty_account("many").await.unwrap();
    let bot = User::new("bot", "secret").push("ci").pull("src");
    let auth = Auth::new(AuthMode::Bearer).user(bot);
    let registry = Registry::start(Options::default().auth(auth))
        .await
        .unwrap();
    let host = registry.host();
    stage.secret("push", &[(&host, "bot", "secret")]).await;
    let plain = format!("--plain-http={host}");
    let controller = stage.controller_through(&kubeconfig, &[&plain, "--registry-qps=0"]);
    let begun = Timestamp::now();
    for n in 0..REQUESTS {
        let pairs: Vec<(String, String)> = (0..FLOATS)
            .map(|m| {
                let (tag, from) = (format!("f{n}-{m}"), format!("src/r{n}"));
                let seeded = |repository: &str, seed: &str| {
                    let image = ImageSpec::new(Shape::Oci, &format!("{seed} {tag}"));
                    registry.seed_spec(repository, &tag, &image).unwrap()
                };
                seeded("ci", "old");
                let new = seeded(&from, "new");
                (format!("{host}/{from}@{new}"), format!("{host}/ci:{tag}"))
            })
            .collect();
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
        let mut spec = spec(&pairs);
        spec["pushSecret"] = json!({"name": "push"});
        stage.create(&format!("r{n}"), &spec).await;
    }
    let mut lives = BTreeMap::new();
    for n in 0..REQUESTS {
        let name = format!("r{n}");
        let done = stage.finished(&name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{name}");
        let status = done.status.unwrap();
        let (start, end) = (
            status.start_time.unwrap().0,
            status.completion_time.unwrap().0,
        );
        lives.insert(name, end.duration_since(start).as_secs());
    }
    let mut audited = stage.plane.audited().unwrap();
    audited.retain(|request| request.user() == user && request.received >= begun);
    let count = |verb: &str, resource: &str, name: &str| {
        let asked = audited.iter().filter(|request| {
            request.verb == verb && request.resource() == resource && request.name() == name
        });
        asked.count() as u64
    };
    for (name, life) in lives {
        let more = u64::try_from(life / INTERVAL).unwrap();
        let writes = count("update", "promotionrequests/status", &name);
        let reads = count("get", "promotionrequests", &name);
        assert!(
            (1..=WRITES + more).contains(&writes),
            "{name}: {writes} writes in {life} s"
        );
        assert!(
            (1..=READS + more).contains(&reads),
            "{name}: {reads} reads in {life} s"
        );
    }
    let memory = controller.peak_memory().unwrap();
    assert!(memory < MEMORY, "{memory}");
    // Once a minute.
    let minutes = u64::try_from(Timestamp::now().duration_since(begun).as_secs() / 60).unwrap();
    assert!((1..=1 + minutes).contains(&count("get", "secrets", "push")));
}

/// As many of 250 floats are kept ready to begin, and as many more than that wait behind them, still when those are gone.
const READY: usize = 20;
const BEHIND: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_only_waits_is_saved_once_whatever_ends_before_it() {
    let stage = Stage::new("queue").await;
    let (user, kubeconfig) = stage.plane.mighty_account("queue").await.unwrap();
    let _controller = stage.controller_through(&kubeconfig, &[]);
    let begun = Timestamp::now();
    let name = |n: usize| format!("r{n}");
    for n in 0..2 * READY + BEHIND {
        let image = |m: usize| {
            let source = format!("localhost:5000/src@sha256:{:064x}", n * 250 + m);
            json!({"source": source, "float": format!("localhost:5000/ci:f{n}-{m}")})
        };
        let images: Vec<_> = (0..250).map(image).collect();
        let secret = json!({"name": "missing"});
        stage
            .create(&name(n), &json!({"images": images, "pushSecret": secret}))
            .await;
    }
    for n in 0..READY {
        stage.delete(&name(n)).await;
    }
    // Those that took their places say what they wait for now.
    let waits = |wanted: &'static str| {
        move |status: &PromotionRequestStatus| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.type_ == "Progressing" && c.reason == wanted)
        }
    };
    stage
        .until(&name(2 * READY - 1), PATIENCE, waits("SecretNotFound"))
        .await;
    for n in 2 * READY..2 * READY + BEHIND {
        stage.until(&name(n), PATIENCE, waits("Queued")).await;
        let writes = || {
            let audited = stage.plane.audited().unwrap();
            let of_it = audited.iter().filter(|request| {
                request.user() == user
                    && request.received >= begun
                    && request.resource() == "promotionrequests/status"
                    && request.name() == name(n)
            });
            of_it.count()
        };
        // The log may come a moment after what it tells of.
        let waited = Instant::now();
        while writes() == 0 && waited.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(writes(), 1, "{}", name(n));
    }
}

/// Requests on a registry that is down, more than are checked at once, and the limit of their namespace.
const DOWN: usize = 80;
const LIMIT: usize = 4;

/// A registry that answers 503 to some of what it is asked, and one that is well.
struct Two {
    stage: Stage,
    down: Registry,
    well: Registry,
    rule: u64,
    user: String,
    _controller: Controller,
}

impl Two {
    async fn start(name: &str, refused: Matcher) -> Self {
        let stage = Stage::new(name).await;
        let (user, kubeconfig) = stage.plane.mighty_account(name).await.unwrap();
        let down = Registry::start(Options::default()).await.unwrap();
        let well = Registry::start(Options::default()).await.unwrap();
        let plain = [&down, &well].map(|registry| format!("--plain-http={}", registry.host()));
        let limit = format!("--max-active-requests-per-namespace={LIMIT}");
        let controller = stage.controller_through(&kubeconfig, &[&plain[0], &plain[1], &limit]);
        let rule = down.add_rule(Rule {
            matcher: refused,
            when: When::Always,
            left: None,
            action: Action::page(503),
        });
        let two = Self {
            stage,
            down,
            well,
            rule,
            user,
            _controller: controller,
        };
        for n in 0..DOWN {
            two.create(&two.down, &name_of(n)).await;
            if n == 0 {
                two.waits(&name_of(n), &["RegistryUnavailable"]).await;
            }
        }
        two
    }

    /// Of one float, which is named after the request.
    async fn create(&self, registry: &Registry, name: &str) {
        let new = ImageSpec::new(Shape::Oci, name);
        let new = registry.seed_spec("src", name, &new).unwrap();
        let host = registry.host();
        let images = spec(&[(&format!("{host}/src@{new}"), &format!("{host}/ci:{name}"))]);
        self.stage.create(name, &images).await;
    }

    /// Until a request waits for one of these reasons.
    async fn waits(&self, name: &str, reasons: &[&str]) {
        let waits = |status: &PromotionRequestStatus| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.type_ == "Progressing" && reasons.contains(&&*c.reason))
        };
        self.stage.until(name, PATIENCE, waits).await;
    }

    async fn posted(&self, name: &str) {
        let done = self.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{name}");
    }

    /// A request on the registry that is well ends; the others end when theirs is.
    async fn end(self) {
        self.create(&self.well, "newcomer").await;
        self.posted("newcomer").await;
        self.down.remove_rule(self.rule);
        for n in 0..DOWN {
            self.posted(&name_of(n)).await;
        }
    }
}

fn name_of(n: usize) -> String {
    format!("r{n}")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_a_registry_that_is_down_ask_the_api_server_nothing() {
    let two = Two::start("down", Matcher::default()).await;
    for n in 0..DOWN {
        two.waits(&name_of(n), &["RegistryUnavailable"]).await;
    }
    // Whoever finds out that it is still down tells nobody what they do not know.
    let begun = Timestamp::now();
    let asked = || two.down.count(&Matcher::default());
    let (before, waited) = (asked(), Instant::now());
    while asked() == before {
        assert!(waited.elapsed() < PATIENCE, "nobody asks whether it is up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The log tells in order: what they asked before this is there.
    two.create(&two.well, "first").await;
    two.posted("first").await;
    let mut audited = two.stage.plane.audited().unwrap();
    audited.retain(|request| {
        let waits = request.name().starts_with('r');
        request.user() == two.user && request.received >= begun && waits
    });
    assert!(audited.is_empty(), "{audited:?}");
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_work_on_a_registry_that_is_down_hold_up_none_on_another() {
    let manifests = Matcher {
        kind: Some(RequestKind::Manifest),
        ..Matcher::default()
    };
    let two = Two::start("at-work", manifests).await;
    for n in 0..DOWN {
        two.waits(&name_of(n), &["RegistryUnavailable", "Queued"])
            .await;
    }
    let begun = two.stage.list().await;
    let begun = begun.iter().filter(|object| {
        let status = object.status.as_ref();
        status.is_some_and(|status| status.start_time.is_some())
    });
    assert_eq!(begun.count(), LIMIT);
    two.end().await;
}
