//! A freeze that comes while a save is on its way: it is not followed before it is known what that save did.

use std::time::Duration;

use promotion_controller::engine::freeze::Freezes;

use super::*;

/// How long something that must not happen is waited for.
const A_WHILE: Duration = Duration::from_millis(500);

impl Within {
    async fn holding(wanted: Wanted, lost: bool) -> Self {
        let specs = |registry: &Registry| {
            registry.seed_image(FLOATS, "f", &image("old")).unwrap();
            vec![("one", spec(registry, "a", "f"))]
        };
        let on_save = if lost {
            OnSave::LoseAnswer(wanted)
        } else {
            OnSave::HoldAnswer(wanted)
        };
        let within = Self::saving(specs, Leadership::alone(), on_save).await;
        let stopped = tokio::time::timeout(PATIENCE, within.engine.store().stopped());
        stopped.await.unwrap();
        within
    }

    fn freeze(&self, reason: &str) {
        let text = format!("{}/{FLOATS}:* {reason}", self.registry.host());
        self.engine.freeze(Freezes::parse(&text, "here"));
    }

    /// Whether the freezes are followed in a while; then, once all goes on, they are.
    async fn follows_only_after_the_save(&self) {
        let early = tokio::time::timeout(A_WHILE, self.engine.freezes_followed()).await;
        assert!(
            early.is_err(),
            "a save that is on its way may let the float move"
        );
        self.engine.store().go_on();
        let followed = tokio::time::timeout(PATIENCE, self.engine.freezes_followed()).await;
        assert!(followed.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_is_followed_once_no_save_from_before_it_can_let_a_float_move() {
    let committed: Wanted = |object| {
        object
            .status
            .as_ref()
            .is_some_and(|s| s.committed == Some(true))
    };
    for lost in [false, true] {
        // The save that commits is done, and its answer is not there: it was in time, and the request runs to its end.
        let within = Within::holding(committed, lost).await;
        within.freeze("too late for one");
        within.follows_only_after_the_save().await;
        assert_eq!(phase(&within.ended("one").await), "Posted");
        // The one before it was not: nothing is let move any more.
        let staged: Wanted = |object| phase(object) == "Incoming";
        let within = Within::holding(staged, lost).await;
        within.freeze("in time");
        within.follows_only_after_the_save().await;
        let frozen = within.until("one", |object| {
            let images = object.status.iter().flat_map(|status| &status.images);
            images
                .into_iter()
                .any(|image| image.reason.as_deref() == Some("FloatFrozen"))
        });
        assert_eq!(frozen.await.status.unwrap().committed, None);
        let there = within.registry.tag(FLOATS, "f");
        assert_eq!(there, Some(image("old").digest()));
        within.engine.freeze(Freezes::default());
        assert_eq!(phase(&within.ended("one").await), "Posted");
    }
}
