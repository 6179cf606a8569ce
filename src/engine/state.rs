//! What the engine keeps in memory: the [`Coordinator`], and what only the engine needs to know of requests and operations.
//!
//! Plain data behind one lock that is never held over an await. Losing all of it loses nothing: status has what matters.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::freeze::Freezes;
use super::pause::Pause;
use super::push_checks::PushChecks;
use super::stats::{PhaseTimes, RequestStats};
use crate::api::PromotionRequest;
use crate::coordinator::{self, Round};
use crate::machine::claims::Uid;
use crate::machine::pool::Pool;
use crate::machine::{Notice, Reason, Request};
use crate::registry::Progress;
use crate::store::{Access, Key};
use crate::turn::{Turn, Turns};

/// A Secret that is missing is looked for again after this, then less often; one that cannot be used, where what is committed waits
/// for it, as often.
pub(super) const SECRET_AGAIN: Duration = Duration::from_secs(10);
/// The longest that takes, where few wait.
const SECRET_AGAIN_MAX: Duration = Duration::from_mins(1);
/// So much longer for each request of the namespace that waits for one.
const SECRET_EACH: Duration = Duration::from_millis(200);
/// The longest that takes.
const SECRET_CROWD_MAX: Duration = Duration::from_mins(5);

/// Who works on what, with what the engine keeps.
pub(super) type Coordinator =
    coordinator::Coordinator<Instant, RequestStats, Kept, OperationHandle>;

/// An unfinished request that may begin, or has begun.
pub(super) type Known = coordinator::Known<Instant, RequestStats, Kept>;

/// Everything in memory.
pub(super) struct State {
    pub coordinator: Coordinator,
    /// Which requests are checked for push permission, some of each pool.
    pub push_checks: PushChecks,
    /// The requests whose Secret is missing, and how often it was by now, by namespace.
    missing: HashMap<String, Missing>,
    /// What is launched of each pool, and whose turn it is.
    pub turns: Turns<Key>,
    /// Requests whose image stream tags are being set: they are known here no more.
    pub referencing: HashSet<Uid>,
    /// What the operator has stopped.
    pub pause: Pause,
    /// Which floats the operator keeps where they are.
    pub freezes: Freezes,
    /// How often that has changed.
    pub freeze_changes: u64,
}

/// What the engine keeps of a request, beside how it contends.
#[derive(Default)]
pub(super) struct Kept {
    /// Whether it may push, as far as that was checked.
    pub push_check: PushCheck,
    /// From when it launches something, or would.
    pub turn: Option<Turn>,
    /// Steps that were left then, less those that have landed since.
    pub steps_left: usize,
    /// The resourceVersion of our own last save.
    pub saved: Option<u64>,
    /// A save is on its way, and the newest resourceVersion heard of meanwhile, or 0: our own save coming back, most often.
    pub saving: Option<u64>,
    /// A save that was sent and whose answer was lost.
    pub unanswered: Option<Box<PendingSave>>,
    /// When it was saved last.
    pub saved_at: Option<Instant>,
    /// A trigger is set for later.
    pub triggered: bool,
    /// The deadline that it was last seen with.
    pub deadline: Option<Deadline>,
    /// The change of the freezes under which it was last decided what may run, and recorded.
    pub freeze_seen: u64,
    /// Why it was left alone, as it was last logged.
    pub left_alone: Option<String>,
    /// Events published.
    pub events_published: u32,
    /// An event said that the cancel came too late.
    pub cancel_warned: bool,
    /// When its images entered their phases: also after its end, which may come back by the watch before it is answered.
    pub phase_entered_at: PhaseTimes,
}

/// What one reconcile of a request saves, and what follows from its having been saved.
pub(super) struct PendingSave {
    pub uid: String,
    /// As it was loaded.
    pub before: PromotionRequest,
    /// As it is saved.
    pub object: PromotionRequest,
    pub request: Request,
    pub notices: Vec<Notice>,
    pub round: Round,
    /// What is launched acts with this; none: nothing is.
    pub access: Option<Access>,
}

/// A deadline, and what the clocks said when it was first seen.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    pub at: Timestamp,
    /// The time of day then, or the deadline where that had passed: each leader gives the whole grace.
    pub seen: Timestamp,
    pub since: Instant,
}

/// The Secrets a request names, one of them missing.
type Named = (Option<String>, Option<String>);

/// The requests of a namespace whose Secret is missing.
#[derive(Default)]
struct Missing {
    /// What each names, and how often it was looked for.
    requests: HashMap<Uid, (Named, u32)>,
    /// The same by what they name, as far as they are to be woken.
    by_secrets: HashMap<Named, HashSet<Uid>>,
}

/// Whether a request may push, by the registries' answers.
#[derive(Default)]
pub(super) enum PushCheck {
    /// Not checked yet.
    #[default]
    Not,
    /// Being checked.
    Running {
        /// Dropped, it stops the check.
        _stop: DropGuard,
        progress: Arc<Progress>,
        /// Why it is not known yet, where it was checked before.
        why: Option<(Reason, String)>,
    },
    /// It may.
    Yes,
    /// It may not, for good.
    No(Reason, String),
    /// It may not, or it is not known, for now: ask again then.
    NotNow {
        reason: Reason,
        message: String,
        tries: u32,
        /// How many of them the registry refused, rather than being unavailable.
        refused: u32,
        retry_at: Instant,
    },
}

/// What the engine keeps of an operation.
#[derive(Clone)]
pub(super) struct OperationHandle {
    /// What it acts with.
    pub access: Access,
    pub cancel: CancellationToken,
    pub progress: Arc<Progress>,
    pub started: Instant,
}

impl PendingSave {
    /// A save from which nothing follows but that it is told.
    pub fn alone(
        uid: &str,
        before: PromotionRequest,
        object: PromotionRequest,
        request: Request,
    ) -> Self {
        Self {
            uid: uid.to_owned(),
            before,
            object,
            request,
            notices: Vec::new(),
            round: Round::default(),
            access: None,
        }
    }
}

impl Missing {
    fn remove(&mut self, uid: &str) -> Option<(Named, u32)> {
        let (named, tries) = self.requests.remove(uid)?;
        if let Some(same) = self.by_secrets.get_mut(&named) {
            same.remove(uid);
            if same.is_empty() {
                self.by_secrets.remove(&named);
            }
        }
        Some((named, tries))
    }
}

impl State {
    pub fn new(namespace_max: usize) -> Self {
        Self {
            coordinator: Coordinator::new(namespace_max),
            push_checks: PushChecks::default(),
            missing: HashMap::new(),
            turns: Turns::new(),
            referencing: HashSet::new(),
            pause: Pause::default(),
            freezes: Freezes::default(),
            freeze_changes: 0,
        }
    }

    /// The requests to reconcile because of what was heard or done.
    pub fn take_woken(&mut self) -> Vec<Key> {
        for (key, uid) in self.coordinator.take_dropped() {
            self.misses_no_more(&key.namespace, &uid);
            self.end_push_check(&uid);
        }
        self.coordinator.take_woken()
    }

    /// What is kept of a request, also for a while after its end.
    pub fn kept(&mut self, uid: &str) -> Option<&mut Kept> {
        self.coordinator.kept(uid)
    }

    /// The same of one that has not ended.
    pub fn known(&mut self, uid: &str) -> Option<&mut Kept> {
        let known = self.coordinator.known_mut(uid)?;
        Some(&mut known.kept)
    }

    /// The turn of a request that launches something, or would.
    pub fn turn(&mut self, key: &Key, uid: &str, request: &Request) -> Turn {
        let Some(known) = self.coordinator.known_mut(uid) else {
            return Turn::FIRST;
        };
        let kept = &mut known.kept;
        *kept.turn.get_or_insert_with(|| {
            kept.steps_left = request.steps_left();
            self.turns.begin(&key.namespace, kept.steps_left)
        })
    }

    /// An operation of a request has landed; gives who may launch now, where fewer than `most` of its pool are left.
    pub fn landed(&mut self, pool: &Pool, uid: &str, most: usize) -> Option<Key> {
        if let Some(kept) = self.known(uid) {
            kept.steps_left = kept.steps_left.saturating_sub(1);
        }
        self.turns.land(pool, most)
    }

    /// The registry answers: those who share a float with a request that may push, and were to be checked again later, are checked now,
    /// before its patience with them is over.
    pub fn permitted(&mut self, uid: &str) {
        let now = Instant::now();
        for sharer in self.coordinator.permit(uid, now) {
            if let Some(known) = self.coordinator.known_mut(&sharer)
                && let PushCheck::NotNow { retry_at, .. } = &mut known.kept.push_check
            {
                *retry_at = now;
                let key = known.key.clone();
                self.coordinator.wake(key);
            }
        }
    }

    /// A Secret is missing: how long to wait before looking again. The more requests of a namespace wait, the longer: looking costs more
    /// and is less urgent.
    pub fn miss(&mut self, namespace: &str, uid: &str, secrets: Named) -> Duration {
        let all = self.missing.entry(namespace.to_owned()).or_default();
        let tries = all.remove(uid).map_or(0, |(_, tries)| tries);
        let same = all.by_secrets.entry(secrets.clone()).or_default();
        same.insert(uid.to_owned());
        all.requests.insert(uid.to_owned(), (secrets, tries + 1));
        let pause = SECRET_AGAIN
            .saturating_mul(1 << tries.min(3))
            .min(SECRET_AGAIN_MAX);
        let crowd = u32::try_from(all.requests.len()).unwrap_or(u32::MAX);
        pause
            .max(SECRET_EACH.saturating_mul(crowd))
            .min(SECRET_CROWD_MAX)
    }

    /// The Secrets of a request exist now: returns the requests that waited for the same ones.
    pub fn found(&mut self, namespace: &str, uid: &str) -> Vec<Key> {
        let named = self.misses_no_more(namespace, uid);
        let same = named.and_then(|named| {
            let all = self.missing.get_mut(namespace)?;
            all.by_secrets.remove(&named)
        });
        let same = same.into_iter().flatten();
        let known = same.filter_map(|uid| self.coordinator.known(&uid));
        known.map(|known| known.key.clone()).collect()
    }

    /// A request waits for no Secret any more: what it waited for.
    fn misses_no_more(&mut self, namespace: &str, uid: &str) -> Option<Named> {
        let all = self.missing.get_mut(namespace)?;
        let (named, _) = all.remove(uid)?;
        if all.requests.is_empty() {
            self.missing.remove(namespace);
        }
        Some(named)
    }

    /// A request was checked, or is gone: who is next is woken.
    pub fn end_push_check(&mut self, uid: &str) {
        if let Some(pool) = self.push_checks.end(uid) {
            self.call_push_check(&pool);
        }
    }

    /// Wakes whoever is checked next.
    pub fn call_push_check(&mut self, pool: &Pool) {
        let next = self.push_checks.next(pool);
        if let Some(key) = next.and_then(|uid| self.coordinator.key_of(uid)) {
            self.coordinator.wake(key);
        }
    }

    /// Cancels what runs of a request.
    pub fn cancel(&self, uid: &str) {
        for (_, operation) in self.coordinator.running(uid) {
            operation.kept.cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_missing_secret_is_looked_for_less_and_less_often_and_more_rarely_where_many_wait() {
        let mut state = State::new(0);
        let secrets = |name: &str| (None, Some(name.to_owned()));
        let pauses: Vec<u64> = (0..5)
            .map(|_| state.miss("a", "1", secrets("s")).as_secs())
            .collect();
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
        let last = (0..5000)
            .map(|n| state.miss("b", &n.to_string(), secrets("s")))
            .max();
        assert_eq!(last, Some(SECRET_CROWD_MAX));
        let again: f64 = (0..5000)
            .map(|n| {
                state
                    .miss("b", &n.to_string(), secrets("s"))
                    .as_secs_f64()
                    .recip()
            })
            .sum();
        assert!(again < 20.0, "{again} a second");
        assert_eq!(
            state.miss("a", "2", secrets("t")),
            SECRET_AGAIN,
            "others are others"
        );
        state.found("a", "1");
        assert_eq!(state.miss("a", "1", secrets("s")), SECRET_AGAIN);
    }
}
