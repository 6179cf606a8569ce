//! The engine with a store that can be made to fail, and a lease that is not trusted: what no process on a cluster shows from outside.

#[path = "frozen.rs"]
mod frozen;

use std::time::Duration;

use promotion_controller::api::PromotionRequest;
use promotion_controller::engine::Engine;
use promotion_controller::engine::leadership::{Leadership, WRITE_MAX, write_timeout};
use promotion_controller::engine::moment::Moment;
use quaylike::{GateSpec, Matcher, Options, Registry, RequestKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ground::{FLOATS, PATIENCE, SETTLE, SOURCES, image};
use crate::testbed::RunDir;
use crate::testbed::inside::{self, OnSave, Wanted, Watched};
use crate::testbed::stage::{LOOK, condition, object, phase};

/// An engine at work on these requests.
struct Within {
    engine: Engine<Watched>,
    registry: Registry,
    _folder: RunDir,
}

impl Within {
    async fn start(
        specs: impl FnOnce(&Registry) -> Vec<(&'static str, Value)>,
        leadership: Leadership,
        refuse: Option<Wanted>,
    ) -> Self {
        let on_save = refuse.map_or_else(OnSave::default, OnSave::Refuse);
        Self::saving(specs, leadership, on_save).await
    }

    async fn saving(
        specs: impl FnOnce(&Registry) -> Vec<(&'static str, Value)>,
        leadership: Leadership,
        on_save: OnSave,
    ) -> Self {
        let registry = Registry::start(Options::default()).await.unwrap();
        let folder = RunDir::create("within").unwrap();
        let specs = specs(&registry);
        let objects = specs.iter().map(|(name, spec)| object(name, spec));
        let engine = inside::start(
            objects.collect(),
            &folder.join("state.yaml"),
            vec![registry.host()],
            SETTLE,
            leadership,
            on_save,
        );
        Self {
            engine,
            registry,
            _folder: folder,
        }
    }

    fn get(&self, name: &str) -> PromotionRequest {
        let mut objects = self.engine.store().objects().into_iter();
        objects
            .find(|object| object.metadata.name.as_deref() == Some(name))
            .unwrap()
    }

    async fn ended(&self, name: &str) -> PromotionRequest {
        let ended = |object: &PromotionRequest| {
            let mut status = object.status.iter();
            status.any(|status| status.completion_time.is_some())
        };
        self.until(name, ended).await
    }

    async fn until(
        &self,
        name: &str,
        wanted: impl Fn(&PromotionRequest) -> bool,
    ) -> PromotionRequest {
        let end = Instant::now() + PATIENCE;
        loop {
            let object = self.get(name);
            if wanted(&object) {
                return object;
            }
            assert!(Instant::now() < end, "{name}: {:#?}", object.status);
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Within {
    /// Asserts that a request ends Posted, and that the float `f` and its staging tag alone hold this image.
    async fn promotes_for_the_first_time(&self, name: &str, seed: &str) {
        assert_eq!(phase(&self.ended(name).await), "Posted");
        let digest = image(seed).digest();
        let expected = [("f".to_owned(), digest), ("f_incoming".to_owned(), digest)];
        assert_eq!(self.registry.tags(FLOATS), expected.into());
    }
}

fn spec(registry: &Registry, seed: &str, float: &str) -> Value {
    let digest = registry.seed_image(SOURCES, seed, &image(seed)).unwrap();
    let host = registry.host();
    json!({"images": [{
        "source": format!("{host}/{SOURCES}@{digest}"), "float": format!("{host}/{FLOATS}:{float}"),
    }]})
}

/// F8 (R9): the save that ends an older request fails: the newer one had its floats by then, and began without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_does_not_begin_before_every_one_it_supersedes_is_recorded_as_ended() {
    let specs = |registry: &Registry| {
        let mut older = spec(registry, "a", "f");
        older["suspend"] = json!(true);
        vec![("older", older), ("newer", spec(registry, "b", "f"))]
    };
    let superseded: Wanted = |object| phase(object) == "Failed";
    let within = Within::start(specs, Leadership::alone(), Some(superseded)).await;
    let newer = within.ended("newer").await;
    assert_eq!(phase(&newer), "Posted");
    let older = within.get("older");
    assert_eq!(phase(&older), "Failed", "{:#?}", older.status);
    assert_eq!(condition(&older, "Failed").1, "Superseded");
    assert!(within.engine.store().has_refused());
    let b = image("b").digest();
    let tags = within.registry.tags(FLOATS);
    let expected = [("f".to_owned(), b), ("f_incoming".to_owned(), b)];
    assert_eq!(tags, expected.into());
}

/// A lease that is not trusted for a whole PUT keeps every tag from being written, and nothing is asked again and again; once it is, all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_leases_trust_no_tag_is_written_and_nothing_spins() {
    let specs = |registry: &Registry| vec![("one", spec(registry, "a", "f"))];
    let leadership = Leadership::elected();
    leadership.trust(Moment::now(), PATIENCE);
    let within = Within::start(specs, leadership.clone(), None).await;
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .reference("f_incoming");
    let gate = within.registry.gate(GateSpec::before(look));
    let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
    assert!(reached.is_ok());
    leadership.lose();
    gate.open();
    let asked = within.registry.count(&Matcher::default());
    // The absence of something takes time to show.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let more = within.registry.count(&Matcher::default()) - asked;
    assert!(more <= 2, "{more} requests while nothing could be written");
    assert!(within.registry.tags(FLOATS).is_empty());
    leadership.trust(Moment::now(), PATIENCE);
    within.promotes_for_the_first_time("one", "a").await;
}

/// A lease that is trusted for less than a PUT may take keeps tags from being written just as well, however often it is renewed.
#[tokio::test(flavor = "multi_thread")]
async fn no_tag_is_written_with_less_than_its_timeout_left_of_the_leases_trust() {
    let specs = |registry: &Registry| vec![("one", spec(registry, "a", "f"))];
    let leadership = Leadership::elected();
    let just_less = WRITE_MAX.saturating_sub(Duration::from_millis(1));
    leadership.trust(Moment::now(), just_less);
    let within = Within::start(specs, leadership.clone(), None).await;
    let writes = Matcher::put_manifest().tag(true);
    let begun = Instant::now();
    while begun.elapsed() < SETTLE {
        leadership.trust(Moment::now(), just_less);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It was at the point of writing: it has looked at what it is about to overwrite.
    let looks = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .reference("f_incoming");
    assert!(within.registry.count(&looks) > 0);
    assert_eq!(within.registry.requests(&writes), []);
    leadership.trust(Moment::now(), PATIENCE);
    within.promotes_for_the_first_time("one", "a").await;
}

/// Found by the model: a leader that was frozen beyond its lease recorded what it had found before, and the next leader, which had gone on,
/// latched upon it. What is found without the lease's trust is not recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_lease_ran_out_saves_nothing_that_it_found_before() {
    let specs = |registry: &Registry| vec![("one", spec(registry, "a", "f"))];
    let leadership = Leadership::elected();
    leadership.trust(Moment::now(), PATIENCE);
    let within = Within::start(specs, leadership.clone(), None).await;
    let gate = within.registry.gate(GateSpec::after(
        Matcher::put_manifest().reference("f_incoming"),
    ));
    let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
    assert!(reached.is_ok());
    leadership.lose();
    let before = (within.engine.store().saves(), within.get("one").status);
    gate.open();
    // The absence of something takes time to show.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = (within.engine.store().saves(), within.get("one").status);
    assert_eq!(before, after);
    leadership.trust(Moment::now(), PATIENCE);
    assert_eq!(phase(&within.ended("one").await), "Posted");
}

/// The longest settle time still lets a PUT fit between two renewals.
#[test]
fn every_settle_time_leaves_room_for_a_write_between_two_renewals() {
    for seconds in 3..=12 {
        let settle = Duration::from_secs(seconds);
        let timeout = write_timeout(settle);
        assert!(timeout + Duration::from_secs(2) <= settle);
        assert!(timeout + Duration::from_secs(2) <= Duration::from_secs(10));
        assert!(!timeout.is_zero());
    }
}
