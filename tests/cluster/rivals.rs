//! Rivals: many requests on few floats, requests that may not write, and somebody else who writes the floats at any instant.
//!
//! Orders of two requests, suspensions and deletions are in `claims.rs` and `traces/order.rs`, rights in `eligibility.rs`.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use promotion_controller::engine::Engine;
use promotion_controller::engine::leadership::Leadership;
use promotion_controller::machine::Reason;
use quaylike::{
    Action, Auth, AuthMode, Digest, GateSpec, Matcher, Registry, RequestKind, Rule, User,
};
use serde_json::json;

use crate::testbed::RunDir;
use crate::testbed::inside::{self, OnSave, Watched};
use crate::testbed::stage::{LOOK, Stage, condition, object, phase, spec};
use crate::traces::ground::image;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_requests_over_ten_floats_end_in_the_order_they_were_created_each_once() {
    const REQUESTS: usize = 50;
    const FLOATS: usize = 10;
    let stage = Stage::new("fifty").await;
    let registry = Registry::start(audited()).await.unwrap();
    let host = registry.host();
    for float in 0..FLOATS {
        let old = image(&format!("old {float}"));
        registry
            .seed_image("ci", &format!("f{float}"), &old)
            .unwrap();
    }
    let flag = format!("--plain-http={host}");
    let _controller = stage.controller(&[&flag, "--registry-qps=0"]);
    // Each names one float, every fifth two: its own and a neighbour's, in either order.
    let floats = |number: usize| {
        let (own, next) = (number % FLOATS, (number + 1) % FLOATS);
        match number % 10 {
            0 => vec![own, next],
            5 => vec![next, own],
            _ => vec![own],
        }
    };
    let clients: Vec<_> = (0..5).map(|_| stage.requests()).collect();
    let creations = (0..REQUESTS).map(|number| {
        let digest =
            registry.seed_image("src", &format!("s{number}"), &image(&format!("{number}")));
        let source = format!("{host}/src@{}", digest.unwrap());
        let names: Vec<_> = floats(number)
            .iter()
            .map(|f| format!("{host}/ci:f{f}"))
            .collect();
        let images: Vec<_> = names
            .iter()
            .map(|float| (source.as_str(), float.as_str()))
            .collect();
        let request = object(&format!("r{number}"), &spec(&images));
        let client = &clients[number % clients.len()];
        async move {
            let made = client
                .create(&kube::api::PostParams::default(), &request)
                .await
                .unwrap();
            let version: u64 = made.metadata.resource_version.unwrap().parse().unwrap();
            (version, number)
        }
    });
    let mut created = futures::future::join_all(creations).await;
    created.sort_unstable();
    let mut wanted: BTreeMap<usize, Vec<Digest>> = BTreeMap::new();
    for float in 0..FLOATS {
        wanted.insert(float, vec![image(&format!("old {float}")).digest()]);
    }
    for (_, number) in created {
        let done = stage.finished(&format!("r{number}"), PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", stage.log());
        for float in floats(number) {
            wanted
                .get_mut(&float)
                .unwrap()
                .push(image(&format!("{number}")).digest());
        }
    }
    for (float, wanted) in wanted {
        let changes = registry.history("ci", &format!("f{float}")).into_iter();
        let history: Vec<_> = changes.filter_map(|change| change.digest).collect();
        assert_eq!(history, wanted, "f{float}\n{}", stage.log());
        let suffix = format!("_prune_f{float}");
        let tags = registry.tags("ci").into_iter();
        let mut pinned: Vec<_> = tags.filter(|(tag, _)| tag.ends_with(&suffix)).collect();
        pinned.sort();
        let pinned: Vec<_> = pinned.into_iter().map(|(_, digest)| digest).collect();
        assert_eq!(pinned, wanted[..wanted.len() - 1], "f{float}");
    }
    assert_eq!(registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_may_not_push_neither_delay_nor_supersede_one_that_may() {
    let stage = Stage::new("rights").await;
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("alice", "alice-pw").push("ci").pull("src"))
        .user(
            User::new("bob", "bob-pw")
                .pull("ci")
                .pull("src")
                .pull("endless"),
        );
    let registry = Registry::start(audited().auth(auth)).await.unwrap();
    let host = registry.host();
    registry.seed_image("ci", "f", &image("old")).unwrap();
    let new = registry.seed_image("src", "new", &image("new")).unwrap();
    let never = registry
        .seed_image("endless", "x", &image("endless"))
        .unwrap();
    let hang = Action::Delay { ms: 600_000 };
    let endless = Matcher::default().repository("endless");
    registry.add_rule(Rule::new(endless, hang));
    stage.secret("alice", &[(&host, "alice", "alice-pw")]).await;
    stage.secret("bob", &[(&host, "bob", "bob-pw")]).await;
    stage.secret("wrong", &[(&host, "alice", "not-hers")]).await;
    let flag = format!("--plain-http={host}");
    let _controller = stage.controller(&[&flag]);
    let float = format!("{host}/ci:f");
    let request = |source: String, secret: &str| {
        let mut wanted = spec(&[(&source, &float)]);
        wanted["pushSecret"] = json!({"name": secret});
        wanted
    };
    let good = format!("{host}/src@{new}");
    let slow = format!("{host}/endless@{never}");
    let rivals = [
        ("wrong", request(good.clone(), "wrong")),
        ("reader", request(good.clone(), "bob")),
        ("endless", request(slow, "bob")),
    ];
    for (name, wanted) in &rivals {
        stage.create(&format!("older-{name}"), wanted).await;
    }
    let begun = std::time::Instant::now();
    stage.create("mine", &request(good, "alice")).await;
    for (name, wanted) in &rivals {
        stage.create(&format!("newer-{name}"), wanted).await;
    }
    let mine = stage.finished("mine", PATIENCE).await;
    assert_eq!(phase(&mine), "Posted", "{}", stage.log());
    // Far below the 60 s for which an undecided older request may be waited for.
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "{:?}",
        begun.elapsed()
    );
    for (name, _) in &rivals {
        for age in ["older", "newer"] {
            let ended = stage.finished(&format!("{age}-{name}"), PATIENCE).await;
            assert_eq!(phase(&ended), "Failed", "{}", stage.log());
            let reason = condition(&ended, "Failed").1;
            let wanted = if *name == "wrong" {
                "Unauthorized"
            } else {
                "PermissionDenied"
            };
            assert_eq!(reason, wanted, "{age}-{name}");
            assert!(ended.status.unwrap().start_time.is_none());
        }
    }
    assert_eq!(registry.tag("ci", "f"), Some(new));
    assert_eq!(registry.audit_trail(), []);
}

/// What somebody else does to the float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    Nothing,
    Moves,
    Deletes,
}

/// What a promotion came to between whose requests somebody else touched the float.
struct Outcome {
    requests: u64,
    /// Somebody else came directly before the write of the float: the exception of promise 2.
    unseen: bool,
    reached: bool,
}

/// Waits for the last event, which is told after the save that ends the request. Whether it came.
async fn all_told(engine: &Engine<Watched>) -> bool {
    let told = async {
        while engine.store().told(Reason::Promoted) + engine.store().told(Reason::Unchanged) == 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.is_ok()
}

/// One promotion; before its nth request somebody else touches the float.
async fn disturbed(foreign: Foreign, nth: u64) -> Outcome {
    let registry = Registry::start(audited()).await.unwrap();
    let host = registry.host();
    let old = registry.seed_image("ci", "f", &image("old")).unwrap();
    let new = registry.seed_image("src", "new", &image("new")).unwrap();
    let theirs = image("theirs").digest();
    let mut wanted = spec(&[(&format!("{host}/src@{new}"), &format!("{host}/ci:f"))]);
    wanted["attempts"] = json!(20);
    let gate = registry.gate(GateSpec::before(Matcher::default()).nth(nth));
    let folder = RunDir::create("rivals").unwrap();
    let engine = inside::start(
        vec![object("one", &wanted)],
        &folder.join("state.yaml"),
        vec![host],
        Duration::from_millis(300),
        Leadership::alone(),
        OnSave::Nothing,
    );
    let over = async {
        while !inside::is_over(&engine) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::pin!(over);
    let stopped = tokio::select! {
        entry = gate.reached() => Some(entry),
        () = &mut over => None,
    };
    // Nothing waits for the cleaning up after an upload session: the promotion goes on meanwhile, past this instant.
    let cleaning = stopped.as_ref().is_some_and(|e| e.method == "DELETE");
    let foreign = if cleaning { Foreign::Nothing } else { foreign };
    let put = Matcher::put_manifest().repository("ci").reference("f");
    let look = Matcher::kind(RequestKind::Manifest).method("GET");
    let look = look.repository("ci").reference("f");
    let (mut unseen, mut resolved) = (false, false);
    if let Some(entry) = &stopped {
        unseen = put.matches(entry);
        resolved = registry.count(&look) > usize::from(look.matches(entry));
        match foreign {
            Foreign::Nothing => {}
            Foreign::Moves => drop(registry.seed_image("ci", "f", &image("theirs")).unwrap()),
            Foreign::Deletes => registry.delete_tag("ci", "f").unwrap(),
        }
        gate.open();
        let ended = tokio::time::timeout(PATIENCE, over).await;
        assert!(
            ended.is_ok(),
            "{foreign:?} {nth}: {:#?}",
            engine.store().objects()
        );
    }
    let end = engine.store().objects().remove(0);
    let told = format!("{foreign:?} before {nth}, {stopped:?}: {:#?}", end.status);
    assert_eq!(phase(&end), "Posted", "{told}");
    let image = &end.status.as_ref().unwrap().images[0];
    let tags = registry.tags("ci");
    for pin in &image.displaced {
        assert_eq!(tags[&pin.prune_tag].to_string(), pin.digest, "{told}");
    }
    let displaced: Vec<_> = image
        .displaced
        .iter()
        .map(|pin| pin.digest.clone())
        .collect();
    let there = registry.tag("ci", "f");
    match (foreign, there) {
        // It came after the latch, and is left as it is.
        (Foreign::Moves, Some(there)) if there == theirs => {}
        (Foreign::Deletes, None) => {}
        (_, there) => {
            assert_eq!(there, Some(new), "{told}");
            let seen = displaced.contains(&theirs.to_string());
            let late = foreign == Foreign::Moves && stopped.is_some() && !unseen;
            assert_eq!(seen, late, "{told}");
            if seen {
                assert_eq!(tags["f__pre"], theirs, "{told}");
            }
        }
    }
    // Before it was looked at for the first time, theirs is the one that is displaced, like any other.
    let moved = match foreign {
        Foreign::Nothing => false,
        Foreign::Moves => resolved && !unseen,
        Foreign::Deletes => there.is_none(),
    };
    assert!(all_told(&engine).await, "{told}");
    let warned = engine.store().told(Reason::FloatMoved);
    assert_eq!(warned, usize::from(moved), "{told}");
    if foreign == Foreign::Nothing || tags.values().any(|digest| *digest == old) {
        assert!(displaced.contains(&old.to_string()), "{told}");
    }
    assert_eq!(registry.audit_trail(), [], "{told}");
    Outcome {
        requests: u64::try_from(registry.count(&Matcher::default())).unwrap(),
        unseen,
        reached: stopped.is_some(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_who_moves_or_deletes_a_float_at_any_instant_loses_nothing_that_could_be_seen()
 {
    let calm = disturbed(Foreign::Nothing, u64::MAX).await;
    for foreign in [Foreign::Moves, Foreign::Deletes] {
        let points = (1..=calm.requests).map(|nth| disturbed(foreign, nth));
        let outcomes: Vec<_> = futures::stream::iter(points)
            .buffer_unordered(6)
            .collect()
            .await;
        let unseen = outcomes.iter().filter(|o| o.unseen).count();
        assert_eq!(unseen, 1, "of {} points", outcomes.len());
        assert!(outcomes.iter().filter(|o| o.reached).count() + 3 >= outcomes.len());
    }
}
