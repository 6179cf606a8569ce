//! What the engine hears of requests: that they are there, have begun, ended or are gone; and when their floats are free again.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::freeze::Freezes;
use super::pause::Pause;
use super::shared::{Engine, contender, identity, left_alone};
use super::state::Known;
use super::stats::RequestStats;
use super::telemetry;
use crate::api::PromotionRequest;
use crate::api::status::RunningCopy;
use crate::machine::claims::Contender;
use crate::store::{Key, Store, Unreadable, key_of};

/// How often it is asked whether the freezes are followed.
const FOLLOWED_AGAIN: Duration = Duration::from_millis(50);

impl<S: Store> Engine<S> {
    /// Takes note of an unfinished object, as read from a list, a watch or a load: it contends for its floats from now on.
    /// True if a reconcile is due: not for our own save coming back, nor for known versions.
    #[allow(
        clippy::must_use_candidate,
        reason = "noting is the purpose, the answer a convenience"
    )]
    pub fn observe(&self, object: &PromotionRequest) -> bool {
        let Some((uid, version)) = identity(&object.metadata) else {
            return false;
        };
        if object.has_done_with_floats() {
            return !object.is_finished() && !self.lock().referencing.contains(&uid);
        }
        let key = Key::from(object);
        let request = match self.read(&key, object) {
            Ok((request, _)) => request,
            Err(error) => match left_alone(object, &error) {
                Some(unreadable) => return self.observe_unreadable(&unreadable),
                None => return true,
            },
        };
        let contender = contender(&key, &uid, version, &request);
        let counts = RequestStats::of(object, &request);
        self.with(|state| {
            let own = state.known(&uid).is_some_and(|kept| {
                if let Some(heard) = &mut kept.saving {
                    // Whether it is our own shows when the save is answered.
                    *heard = version.max(*heard);
                }
                kept.saving.is_some() || kept.saved == Some(version)
            });
            state.coordinator.note(&key, version, contender, counts) && !own
        })
    }

    /// Takes note of an object that this version cannot read: it blocks the floats that it names. True where a reconcile is due.
    #[allow(
        clippy::must_use_candidate,
        reason = "noting is the purpose, the answer a convenience"
    )]
    pub fn observe_unreadable(&self, object: &Unreadable) -> bool {
        let Some((uid, version)) = identity(&object.metadata) else {
            return false;
        };
        if object.finished {
            self.ended(&uid);
            return false;
        }
        let key = key_of(&object.metadata);
        let order = object.order.unwrap_or(version);
        let contender = Contender::unreadable(
            &uid,
            &key.to_string(),
            order,
            &object.floats,
            object.started,
        );
        let counts = RequestStats::default();
        self.with(|state| state.coordinator.note(&key, version, contender, counts))
    }

    /// Takes over from an earlier leader: before anything is launched, every observed request that has begun and not ended owns its floats.
    pub fn rebuild(&self) {
        let mut state = self.lock();
        for request in state.coordinator.rebuild() {
            tracing::error!(%request, "two requests have begun on one float; this one waits");
        }
        tracing::info!(
            requests = state.coordinator.all_known().count(),
            floats = state.coordinator.claims().len(),
            "claims rebuilt from status"
        );
    }

    /// An object was deleted or has ended. Its operations are cancelled; tag writes that were sent are still waited for.
    pub fn forget(&self, uid: &str) {
        let Some(known) = self.ended(uid) else {
            return;
        };
        // While a save of ours is on its way it may be that, come back before its answer, that ended it.
        if known.kept.saving.is_none() && known.kept.unanswered.is_none() {
            telemetry::deleted(&known.key, &known.contender);
        }
    }

    /// Forgets a request that has ended or was deleted, and wakes those who waited for it.
    pub(super) fn ended(&self, uid: &str) -> Option<Known> {
        let known = self.with(|state| {
            let mut known = state.coordinator.forget(uid, Instant::now())?;
            state.cancel(uid);
            if let Some(turn) = known.kept.turn {
                let unused = known.kept.steps_left;
                state.turns.end(&known.key.namespace, turn, unused);
            }
            let phases = std::mem::take(&mut known.kept.phase_entered_at);
            if let Some(kept) = state.kept(uid) {
                kept.phase_entered_at = phases;
            }
            Some(known)
        })?;
        self.settle_claims(uid);
        Some(known)
    }

    /// Pauses or resumes work for every request. Requests that waited meanwhile start their patience with older ones anew, so that
    /// resuming lets no newer request pass.
    pub fn pause(&self, pause: Pause) {
        let message = pause.message().map(ToOwned::to_owned);
        {
            let mut state = self.lock();
            if state.pause == pause {
                return;
            }
            state.pause = pause;
            self.inner.tools.registry.restart();
            state.coordinator.renew_patience(Instant::now());
        }
        if let Some(message) = message {
            tracing::warn!("{message}");
        } else {
            tracing::info!("nothing is paused");
        }
        self.reconsider();
    }

    /// Keeps floats where they are, or lets them go. What is committed runs to its end.
    pub fn freeze(&self, freezes: Freezes) {
        {
            let mut state = self.lock();
            if state.freezes == freezes {
                return;
            }
            if let Some(why) = freezes.unreadable() {
                tracing::error!("{why}");
            }
            tracing::info!(freezes = freezes.lines().len(), "freezes read");
            state.freezes = freezes;
            state.freeze_changes += 1;
        }
        self.reconsider();
    }

    /// A request was decided on under these freezes, and no save of an earlier decision can land any more.
    pub(super) fn freezes_seen(&self, uid: &str, change: u64) {
        if let Some(known) = self.lock().known(uid) {
            known.freeze_seen = known.freeze_seen.max(change);
        }
    }

    /// Waits until no frozen float can be let move any more: each request at work on one was decided on under these freezes. A request
    /// that was committed before runs to its end.
    pub async fn freezes_followed(&self) {
        while !self.follows_freezes() {
            tokio::time::sleep(FOLLOWED_AGAIN).await;
        }
    }

    fn follows_freezes(&self) -> bool {
        let (state, now) = (self.lock(), Timestamp::now());
        let mut at_work = state.coordinator.all_known().filter(|known| {
            known.contender.started && known.kept.freeze_seen < state.freeze_changes
        });
        at_work.all(|Known { contender, .. }| {
            let open = contender
                .shares
                .iter()
                .filter(|s| !s.finished && !s.committed);
            let mut floats = open.map(|share| &share.float);
            !floats.any(|float| state.freezes.holds(float, &contender.name, now))
        })
    }

    /// Launches nothing more, gives up reads and copies, and lets tag writes end.
    pub fn drain(&self) {
        let mut state = self.lock();
        state.coordinator.drain();
        for (_, operation) in state.coordinator.operations() {
            operation.kept.cancel.cancel();
        }
    }

    /// How many operations have not been recorded yet, whether they run or have ended.
    #[must_use]
    pub fn unrecorded(&self) -> usize {
        self.lock().coordinator.unrecorded()
    }

    /// The copies of an object that run now, by image.
    #[must_use]
    pub fn copying(&self, uid: &str) -> Vec<RunningCopy> {
        let state = self.lock();
        let running = state.coordinator.running(uid);
        let copies = running.map(|(image, operation)| RunningCopy {
            image,
            bytes: operation.kept.progress.bytes(),
            total: operation.kept.progress.expected(),
        });
        copies.filter(|copy| copy.total > 0).collect()
    }

    /// Releases the floats that a request is no longer entitled to, once none of its operations runs and none of our writes can land there.
    pub(super) fn settle_claims(&self, uid: &str) {
        let now = Instant::now();
        let again = self.with_log(|coordinator, log| coordinator.settle(log, uid, now));
        self.settle_again(uid, again);
    }

    /// The same later, where a write of ours may land until then.
    pub(super) fn settle_again(&self, uid: &str, again: Option<Instant>) {
        if let Some(again) = again {
            let (engine, uid) = (self.clone(), uid.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep_until(again).await;
                engine.settle_claims(&uid);
            });
        }
    }
}
