//! What promotions cost: requests, tokens, rounds, saves and loads, as `counts.json` has them. Costs that rise fail here; for those that
//! fall, that file and docs/figures.md follow.

use std::time::{Duration, Instant};

use promotion_controller::engine::leadership::Leadership;
use promotion_controller::registry::Keyring;
use quaylike::{
    Auth, AuthMode, Dialect, Image, ImageSpec, LoggedRequest, Matcher, Options, Registry,
    RequestKind, Settings, Shape, User,
};
use serde::Deserialize;
use serde_json::json;

use crate::testbed::inside::{self, OnSave, STATUS_INTERVAL};
use crate::testbed::stage::{LOOK, object, phase, spec};
use crate::testbed::{PATIENCE, RunDir};

/// A promotion from another repository of the registry, 4 blobs an image, all mounted.
#[derive(Deserialize)]
struct Case {
    name: String,
    index: bool,
    #[serde(default)]
    quay: bool,
    floats: usize,
    existing: bool,
    /// All, the first of the registry among them, but for tokens.
    requests: u64,
    tokens: u64,
    /// Requests that come one after another, each after the answer to the one before: as often a registry's latency is waited for.
    rounds: usize,
    /// Status writes at the most, and one more for each interval between two of them.
    saves: usize,
    /// Reads of the object, in the same way.
    loads: usize,
}

/// Long enough that what is sent at once arrives before the first answer.
const LATENCY: Duration = Duration::from_millis(40);

fn image(shape: Shape, seed: &str) -> Image {
    let mut spec = ImageSpec::new(shape, seed);
    spec.layers = 3;
    spec.build().unwrap()
}

async fn count(case: &Case) {
    let bot = User::new("bot", "secret").push("ci").pull("src");
    let settings = Settings {
        dialect: if case.quay {
            Dialect::Quay
        } else {
            Dialect::Distribution
        },
        latency: LATENCY,
        ..Settings::default()
    };
    let options = Options::default().settings(settings);
    let options = options.auth(Auth::new(AuthMode::Bearer).user(bot));
    let registry = Registry::start(options).await.unwrap();
    registry.create_repository("ci");
    let host = registry.host();
    let shape = if case.index { Shape::Index } else { Shape::Oci };
    let mut images = Vec::new();
    for n in 0..case.floats {
        let new = image(shape, &format!("new {n}"));
        registry.seed_image("src", &format!("s{n}"), &new).unwrap();
        if case.existing {
            let old = image(Shape::Oci, &format!("old {n}"));
            registry.seed_image("ci", &format!("f{n}"), &old).unwrap();
        }
        let source = format!("{host}/src@{}", new.digest());
        images.push((source, format!("{host}/ci:f{n}")));
    }
    let pairs: Vec<_> = images.iter().map(|(from, to)| (&**from, &**to)).collect();
    let config = json!({"auths": {&host: {"username": "bot", "password": "secret"}}});
    let keyring = Keyring::parse(config.to_string().as_bytes(), "config.json").unwrap();
    let folder = RunDir::create("counts").unwrap();
    let began = Instant::now();
    let engine = inside::start_as(
        keyring,
        vec![object("one", &spec(&pairs))],
        &folder.join("state.yaml"),
        vec![host],
        Duration::from_secs(3),
        Leadership::alone(),
        OnSave::Nothing,
    );
    while !inside::is_over(&engine) {
        assert!(
            began.elapsed() < PATIENCE,
            "{:#?}",
            engine.store().objects()
        );
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(
        phase(&engine.store().objects()[0]),
        "Posted",
        "{}",
        case.name
    );
    let counts = registry.counts();
    let tokens = counts.get(&RequestKind::Token).copied().unwrap_or_default();
    let requests = counts.values().sum::<u64>() - tokens;
    let name = &case.name;
    assert_eq!(
        (requests, tokens),
        (case.requests, case.tokens),
        "{name}: {counts:?}"
    );
    let rounds = rounds(&registry.requests(&Matcher::default()));
    assert!(rounds <= case.rounds, "{name}: {rounds} rounds");
    let intervals = usize::try_from(began.elapsed().as_millis() / STATUS_INTERVAL.as_millis());
    let (saves, loads) = (engine.store().saves(), engine.store().loads());
    let more = intervals.unwrap();
    assert!(saves <= case.saves + more, "{name}: {saves} saves");
    assert!(loads <= case.loads + more, "{name}: {loads} loads");
}

/// The longest chain of requests of which each arrived after the answer to the one before.
fn rounds(requests: &[LoggedRequest]) -> usize {
    let mut chains: Vec<(i64, usize)> = Vec::new();
    for request in requests {
        let before = chains.iter().filter(|(end, _)| *end <= request.time);
        let longest = before.map(|(_, length)| *length).max().unwrap_or_default();
        let took = i64::try_from(request.micros / 1000).unwrap();
        chains.push((request.time + took, longest + 1));
    }
    chains
        .iter()
        .map(|(_, length)| *length)
        .max()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn promotions_cost_what_is_written_down() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("counts.json")).unwrap();
    for case in &cases {
        count(case).await;
    }
}
