//! What is saved is launched only by who still has the float to itself when the save is answered.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::time::Duration;

use promotion_controller::api::PromotionRequest;
use promotion_controller::engine::leadership::Leadership;
use promotion_controller::store::Key;
use quaylike::{Matcher, Registry};

use crate::testbed::RunDir;
use crate::testbed::command::image;
use crate::testbed::inside::{self, OnSave, Wanted};
use crate::testbed::stage::{LOOK, object, phase, spec};

/// The save that launches the older request's backup.
fn backs_up(object: &PromotionRequest) -> bool {
    let images = object.status.as_ref().map(|status| &status.images);
    let image = images.and_then(|images| images.first());
    Key::from(object).name == "older"
        && image.is_some_and(|i| i.phase == "Incoming" && i.attempts == Some(1))
}

/// The older request is deleted, and the newer one has the float, while what follows the older one's save is held back.
async fn deleted_before_the_answer(on_save: fn(Wanted) -> OnSave) {
    let registry = Registry::start(audited());
    let registry = registry.await.unwrap();
    let host = registry.host();
    let old = registry.seed_image("ci", "f", &image("old")).unwrap();
    let sources = ["a", "b"].map(|tag| registry.seed_image("src", tag, &image(tag)).unwrap());
    let [older, newer] =
        sources.map(|digest| spec(&[(&format!("{host}/src@{digest}"), &format!("{host}/ci:f"))]));
    let folder = RunDir::create("entitled").unwrap();
    let engine = inside::start(
        vec![object("older", &older), object("newer", &newer)],
        &folder.join("state.yaml"),
        vec![host],
        Duration::from_millis(300),
        Leadership::alone(),
        on_save(backs_up),
    );
    let store = engine.store();
    let held = tokio::time::timeout(PATIENCE, store.stopped()).await;
    assert!(held.is_ok(), "{:#?}", store.objects());

    let older = store.objects().remove(0);
    store.delete(&Key::from(&older));
    engine.forget(older.metadata.uid.as_deref().unwrap());
    let newer = || store.objects().remove(1);
    let begun = async {
        while newer().status.unwrap().start_time.is_none() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let begun = tokio::time::timeout(PATIENCE, begun).await;
    assert!(begun.is_ok(), "{:#?}", newer());
    store.go_on();
    let over = async {
        while phase(&newer()) != "Posted" {
            tokio::time::sleep(LOOK).await;
        }
    };
    let over = tokio::time::timeout(PATIENCE, over).await;
    assert!(over.is_ok(), "{:#?}", newer());

    assert_eq!(registry.tags("ci")["f"], sources[1]);
    assert_eq!(registry.tags("ci")["f__pre"], old);
    let puts = |tag: &str| {
        let tag = Matcher::put_manifest()
            .repository("ci")
            .reference_suffix(tag);
        registry.count(&tag)
    };
    assert_eq!(puts("f__pre"), 1, "the deleted request backed up as well");
    assert_eq!(registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_deleted_before_its_save_is_answered_launches_nothing() {
    deleted_before_the_answer(OnSave::HoldAnswer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_deleted_before_its_save_is_found_to_have_landed_launches_nothing() {
    deleted_before_the_answer(OnSave::LoseAnswer).await;
}
