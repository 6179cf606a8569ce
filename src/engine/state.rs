//! What the engine keeps in memory: requests, their operations, the contenders for each float and its owner.
//!
//! Plain data behind one lock that is never held over an await. Losing all of it loses nothing: status has what matters.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backlog::Backlog;
use super::freeze::Freezes;
use super::pause::Pause;
use super::push_checks::PushChecks;
use super::stats::{PhaseTimes, RequestStats};
use crate::api::PromotionRequest;
use crate::image::Float;
use crate::machine::claims::{Claims, Contender, Share, Standing, Uid};
use crate::machine::quota::{NamespaceQuota, QuotaKey};
use crate::machine::{Launch, Notice, Outcome, Reason, Request, Step};
use crate::registry::Progress;
use crate::store::{Access, Key};

/// How long a tombstone is kept: whoever read the request before does not bring it back.
const TOMBSTONE_LIFE: Duration = Duration::from_mins(1);

/// A Secret that is missing is looked for again after this, then less often; one that cannot be used, where what is committed waits
/// for it, as often.
pub(super) const SECRET_AGAIN: Duration = Duration::from_secs(10);
/// The longest that takes, where few wait.
const SECRET_AGAIN_MAX: Duration = Duration::from_mins(1);
/// So much longer for each request of the namespace that waits for one.
const SECRET_EACH: Duration = Duration::from_millis(200);
/// The longest that takes.
const SECRET_CROWD_MAX: Duration = Duration::from_mins(5);

/// Everything in memory.
#[derive(Default)]
pub(super) struct State {
    pub claims: Claims,
    /// How many of a namespace may have begun at once.
    pub quota: NamespaceQuota,
    /// Which requests are checked for push permission, up to the limit of each namespace.
    pub push_checks: PushChecks,
    /// The requests whose Secret is missing, and how often it was by now, by namespace.
    missing: HashMap<String, HashMap<Uid, Missing>>,
    /// The unfinished requests that are known.
    pub known: HashMap<Uid, Known>,
    /// Which of them have a name: one, most often.
    by_key: HashMap<Key, Vec<Uid>>,
    /// Which of them name a float.
    by_float: HashMap<Float, HashSet<Uid>>,
    /// Floats that were owned when this process took over, until their owner is reloaded: only that shows which writes may still be on
    /// the wire.
    pub inherited: HashMap<Float, Uid>,
    /// Requests whose image stream tags are being set: they are known here no more.
    pub referencing: HashSet<Uid>,
    /// What runs, also of requests that are gone meanwhile.
    pub operations: HashMap<Uid, Operations>,
    /// How many operations of each namespace were launched and have not landed.
    pub launched: HashMap<String, usize>,
    /// Requests that launch nothing until fewer operations of their namespace are left, in order of arrival.
    pub held_back: HashMap<String, VecDeque<Key>>,
    /// Requests that have ended or were deleted of late. A UID never comes back.
    tombstones: HashMap<Uid, PhaseTimes>,
    /// The same, the oldest first.
    tombstone_order: VecDeque<(Uid, Instant)>,
    /// Requests that may not begin now, kept small.
    pub backlog: Backlog,
    /// Requests to reconcile because of what was noted.
    pub woken: Vec<Key>,
    /// What the operator has stopped.
    pub pause: Pause,
    /// Which floats the operator keeps where they are.
    pub freezes: Freezes,
    /// How often that has changed.
    pub freeze_changes: u64,
    /// Nothing more is launched.
    pub draining: bool,
    next_operation: u64,
}

/// An unfinished request.
pub(super) struct Known {
    pub key: Key,
    /// The resourceVersion this was read at: older readings do not replace it.
    pub version: u64,
    pub contender: Contender,
    /// Whether it may push, as far as that was checked.
    pub push_check: PushCheck,
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
    /// What a scrape counts of it.
    pub counts: RequestStats,
    /// When its images entered their phases.
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
    /// What was collected: images' indices and operations' numbers.
    pub collected: Vec<(usize, u64)>,
    pub drops: Vec<usize>,
    pub launches: Vec<Launch>,
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

struct Missing {
    secrets: Named,
    tries: u32,
}

/// Whether a request may push, by the registries' answers.
#[derive(Default)]
pub(super) enum PushCheck {
    /// Not checked yet.
    #[default]
    Not,
    /// Being checked, and why it is not known yet, where it was checked before.
    Running(CancellationToken, Arc<Progress>, Option<(Reason, String)>),
    /// It may, since then; work that was stopped meanwhile does not count.
    Yes(Instant),
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

/// The operations of a request.
#[derive(Default)]
pub(super) struct Operations {
    pub by_image: BTreeMap<usize, InFlight>,
    /// The images of which this process has launched anything.
    pub launched: HashSet<usize>,
}

/// An operation, running or ended and not yet recorded.
pub(super) struct InFlight {
    pub id: u64,
    pub step: Step,
    pub float: Float,
    /// What it acts with.
    pub access: Access,
    pub cancel: CancellationToken,
    pub progress: Arc<Progress>,
    pub started: Instant,
    pub outcome: Option<Outcome>,
}

impl Known {
    /// The quota it counts against.
    pub fn quota_key(&self) -> QuotaKey {
        QuotaKey {
            namespace: self.key.namespace.clone(),
            plans: self.plans(),
        }
    }

    /// Whether it only plans: it contends for nothing.
    fn plans(&self) -> bool {
        self.contender.shares.is_empty()
    }
}

impl State {
    pub fn new(namespace_max: usize) -> Self {
        Self {
            quota: NamespaceQuota::new(namespace_max),
            push_checks: PushChecks::new(namespace_max),
            ..Self::default()
        }
    }

    /// Whether a request may work on a float, asked when it is launched there and when its claim is released alike: it is known, has
    /// the float to itself, and its image is neither at its end nor suspended before its commit. A plan needs no float.
    pub fn is_entitled(&self, uid: &str, float: &Float) -> bool {
        let owns = || self.claims.owner(float).is_some_and(|owner| owner == uid);
        let wants = |known: &Known| known.plans() || (known.contender.wants(float) && owns());
        self.known.get(uid).is_some_and(wants)
    }

    /// Those who may begin now, of what is counted together.
    pub fn call(&mut self, quota_key: &QuotaKey) -> Vec<Key> {
        let called = self.quota.call(quota_key);
        let known = called.iter().filter_map(|uid| self.known.get(uid));
        known.map(|known| known.key.clone()).collect()
    }

    /// A request has no float any more: it is not active. One that plans is until its end.
    pub fn release_quota(&mut self, uid: &str) -> Vec<Key> {
        let Some(known) = self.known.get(uid) else {
            return Vec::new();
        };
        let quota_key = known.quota_key();
        let floats = known.contender.shares.iter().map(|share| &share.float);
        let mut owners = floats.filter_map(|float| self.claims.owner(float));
        if quota_key.plans || owners.any(|owner| owner == uid) {
            return Vec::new();
        }
        self.quota.release(&quota_key, uid);
        self.call(&quota_key)
    }

    /// A number no other operation of this process has.
    pub fn next_operation(&mut self) -> u64 {
        self.next_operation += 1;
        self.next_operation
    }

    /// Whoever of those known has begun and not ended owns its floats.
    pub fn rebuild(&mut self) {
        // Of two that have begun on one float the older one continues, under every leader.
        let mut all: Vec<_> = self.known.values().collect();
        all.sort_unstable_by_key(|known| (known.contender.order, &known.contender.uid));
        for known in all {
            if known.contender.standing == Standing::Unreadable {
                continue;
            }
            let (owned, quota_key) = (known.contender.owned(), known.quota_key());
            if !owned.is_empty() && !self.claims.take(&known.contender.uid, &owned) {
                tracing::error!(request = %known.key, "two requests have begun on one float; this one waits");
                self.inherited.retain(|float, _| !owned.contains(float));
            } else if !owned.is_empty() || (quota_key.plans && known.contender.started) {
                let uid = &known.contender.uid;
                self.quota.occupy(&quota_key, uid);
                let floats = owned.into_iter().map(|float| (float, uid.clone()));
                self.inherited.extend(floats);
            }
        }
    }

    /// Records a request as read at `version`. False where a newer version is known, or a tombstone: no further event would come, so it
    /// would block others forever.
    pub fn note(
        &mut self,
        key: &Key,
        version: u64,
        mut contender: Contender,
        counts: RequestStats,
    ) -> bool {
        let uid = contender.uid.clone();
        if let Some(known) = self.known.get_mut(&uid) {
            if known.version > version {
                return false;
            }
            let begins = contender.started || self.claims.owns_any(&uid);
            if contender.suspended && !begins {
                self.shelve(&uid, version, &contender, counts);
                return true;
            }
            if contender.standing == Standing::Unreadable {
                // It may name fewer than it did.
                let named: HashSet<_> = contender.shares.iter().map(|share| &share.float).collect();
                let before = known.contender.shares.iter();
                let before: Vec<_> = before
                    .filter(|share| !named.contains(&share.float))
                    .cloned()
                    .collect();
                contender.shares.extend(before);
                contender.started |= known.contender.started;
            } else if known.contender.standing != Standing::Unreadable {
                contender.standing = known.contender.standing;
            }
            known.version = version;
            let before = std::mem::replace(&mut known.contender, contender.clone());
            known.counts = counts;
            if contender.started && !before.started {
                self.backlog.is_not_ready(key, &uid);
                self.woken.extend(self.backlog.call(&key.namespace));
            }
            let frozen = |share: &&Share| share.frozen;
            let count = |contender: &Contender| contender.shares.iter().filter(frozen).count();
            if count(&contender) > count(&before) {
                // Whoever waits behind it need not.
                let floats = contender.shares.iter().filter(frozen);
                let waiting = self.keys_on(floats.map(|share| &share.float), &uid);
                self.woken.extend(waiting);
            }
            // Floats change only where an object becomes readable, or stops being so.
            if before.shares.len() != contender.shares.len() {
                self.unindex(&before);
                self.index(&contender);
            }
            return true;
        }
        if self.tombstones.contains_key(&uid) {
            return false;
        }
        let shelved = self.backlog.get(&uid).map(|shelved| shelved.version);
        if shelved.is_some_and(|known| known > version) {
            return false;
        }
        let readable = contender.standing != Standing::Unreadable;
        if readable && self.backlog.takes(key, &contender) {
            if shelved.is_none() {
                self.by_key.entry(key.clone()).or_default().push(uid);
            }
            return self.backlog.shelve(key, version, &contender, counts);
        }
        if self.backlog.remove(&uid).is_some() {
            self.forget_key(key, &uid);
        }
        for newest in self.backlog.is_ready(key, &contender) {
            self.shelve_known(&newest);
        }
        self.by_key
            .entry(key.clone())
            .or_default()
            .push(uid.clone());
        self.index(&contender);
        let known = Known {
            key: key.clone(),
            version,
            contender,
            push_check: PushCheck::Not,
            saved: None,
            saving: None,
            unanswered: None,
            saved_at: None,
            triggered: false,
            deadline: None,
            freeze_seen: 0,
            left_alone: None,
            events_published: 0,
            cancel_warned: false,
            counts,
            phase_entered_at: PhaseTimes::new(),
        };
        self.known.insert(uid, known);
        true
    }

    /// Shelves a ready request, as read at `version`: it does not begin, so nobody waits for it.
    fn shelve(&mut self, uid: &str, version: u64, contender: &Contender, counts: RequestStats) {
        let Some(known) = self.unknow(uid) else {
            return;
        };
        if let PushCheck::Running(cancel, ..) = &known.push_check {
            cancel.cancel();
        }
        let quota_key = known.quota_key();
        let next = self.end_push_check(&quota_key.namespace, uid);
        self.woken.extend(next);
        self.quota.withdraw(&quota_key, uid);
        self.quota.release(&quota_key, uid);
        let called = self.call(&quota_key);
        self.woken.extend(called);
        let floats = known.contender.shares.iter().map(|share| &share.float);
        let waiting = self.keys_on(floats, uid);
        self.woken.extend(waiting);
        self.by_key
            .entry(known.key.clone())
            .or_default()
            .push(uid.to_owned());
        self.backlog.shelve(&known.key, version, contender, counts);
        self.woken.extend(self.backlog.call(&known.key.namespace));
    }

    /// Shelves one of the newest of a namespace, unless it is about to begin. It is reconciled, so that its status says so.
    fn shelve_known(&mut self, uid: &str) {
        let Some(known) = self.known.get(uid) else {
            return;
        };
        if known.contender.started || self.claims.owns_any(uid) {
            return;
        }
        let (key, contender) = (known.key.clone(), known.contender.clone());
        let (version, counts) = (known.version, known.counts.clone());
        self.shelve(uid, version, &contender, counts);
        self.woken.push(key);
    }

    fn forget_key(&mut self, key: &Key, uid: &str) {
        if let Some(uids) = self.by_key.get_mut(key) {
            uids.retain(|other| other != uid);
            if uids.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Forgets a request that has ended or is gone.
    pub fn forget(&mut self, uid: &str) -> Option<Known> {
        let known = self.known.get_mut(uid);
        let phase_entered_at = known.map(|known| std::mem::take(&mut known.phase_entered_at));
        self.bury(uid, phase_entered_at);
        if let Some(shelved) = self.backlog.remove(uid) {
            self.forget_key(&shelved.key, uid);
        }
        let known = self.unknow(uid)?;
        self.woken.extend(self.backlog.call(&known.key.namespace));
        Some(known)
    }

    /// Takes a request out of those that are known.
    fn unknow(&mut self, uid: &str) -> Option<Known> {
        let known = self.known.remove(uid)?;
        self.forget_key(&known.key, uid);
        self.backlog.is_not_ready(&known.key, uid);
        self.found(&known.key.namespace, uid);
        self.unindex(&known.contender);
        Some(known)
    }

    fn index(&mut self, contender: &Contender) {
        for share in &contender.shares {
            let uids = self.by_float.entry(share.float.clone()).or_default();
            uids.insert(contender.uid.clone());
        }
    }

    fn unindex(&mut self, contender: &Contender) {
        for share in &contender.shares {
            if let Some(uids) = self.by_float.get_mut(&share.float) {
                uids.remove(&contender.uid);
                if uids.is_empty() {
                    self.by_float.remove(&share.float);
                }
            }
        }
    }

    /// When the images of a request entered their phases: its own end may come back by the watch before it is answered.
    pub fn take_phase_entered_at(&mut self, uid: &str) -> PhaseTimes {
        let known = self
            .known
            .get_mut(uid)
            .map(|known| &mut known.phase_entered_at);
        let phase_entered_at = known.or(self.tombstones.get_mut(uid));
        phase_entered_at.map(std::mem::take).unwrap_or_default()
    }

    fn bury(&mut self, uid: &str, phase_entered_at: Option<PhaseTimes>) {
        let now = Instant::now();
        while self
            .tombstone_order
            .front()
            .is_some_and(|(_, at)| *at + TOMBSTONE_LIFE <= now)
        {
            if let Some((uid, _)) = self.tombstone_order.pop_front() {
                self.tombstones.remove(&uid);
            }
        }
        match self.tombstones.entry(uid.to_owned()) {
            Entry::Vacant(place) => {
                place.insert(phase_entered_at.unwrap_or_default());
                self.tombstone_order.push_back((uid.to_owned(), now));
            }
            Entry::Occupied(mut place) => {
                if let Some(phase_entered_at) = phase_entered_at {
                    place.insert(phase_entered_at);
                }
            }
        }
    }

    /// How a request is named.
    pub fn key_of(&self, uid: &str) -> Option<Key> {
        let known = self.known.get(uid).map(|known| &known.key);
        let shelved = || self.backlog.get(uid).map(|shelved| &shelved.key);
        known.or_else(shelved).cloned()
    }

    /// The requests of this name, as far as they are known.
    pub fn named(&self, key: &Key) -> Vec<Uid> {
        self.by_key.get(key).cloned().unwrap_or_default()
    }

    /// The requests that share a float with `contender`, itself included.
    pub fn sharers<'a>(&'a self, contender: &Contender) -> Vec<&'a Contender> {
        let floats = contender.shares.iter().map(|share| &share.float);
        let uids: HashSet<&Uid> = floats
            .filter_map(|f| self.by_float.get(f))
            .flatten()
            .collect();
        uids.into_iter()
            .filter_map(|uid| self.known.get(uid))
            .map(|k| &k.contender)
            .collect()
    }

    /// The registry answers: those who share a float with `contender` and were to be checked again later are checked now, before its
    /// patience with them is over. Gives their keys.
    pub fn recheck_push(&mut self, contender: &Contender) -> Vec<Key> {
        let uids: Vec<Uid> = self
            .sharers(contender)
            .iter()
            .map(|c| c.uid.clone())
            .collect();
        let mut keys = Vec::new();
        for uid in uids {
            if let Some(known) = self.known.get_mut(&uid)
                && let PushCheck::NotNow { retry_at, .. } = &mut known.push_check
            {
                *retry_at = Instant::now();
                keys.push(known.key.clone());
            }
        }
        keys
    }

    /// A Secret is missing: how long to wait before looking again. The more requests of a namespace wait, the longer: looking costs more
    /// and is less urgent.
    pub fn miss(&mut self, namespace: &str, uid: &str, secrets: Named) -> Duration {
        let all = self.missing.entry(namespace.to_owned()).or_default();
        let missing = all.entry(uid.to_owned()).or_insert(Missing {
            secrets: secrets.clone(),
            tries: 0,
        });
        missing.secrets = secrets;
        let pause = SECRET_AGAIN
            .saturating_mul(1 << missing.tries.min(3))
            .min(SECRET_AGAIN_MAX);
        missing.tries += 1;
        let crowd = u32::try_from(all.len()).unwrap_or(u32::MAX);
        pause
            .max(SECRET_EACH.saturating_mul(crowd))
            .min(SECRET_CROWD_MAX)
    }

    /// The Secrets of a request exist now: returns the requests that waited for the same ones.
    pub fn found(&mut self, namespace: &str, uid: &str) -> Vec<Key> {
        let Some(all) = self.missing.get_mut(namespace) else {
            return Vec::new();
        };
        let Some(found) = all.remove(uid) else {
            return Vec::new();
        };
        let same = all
            .iter()
            .filter(|(_, missing)| missing.secrets == found.secrets);
        let keys = same
            .filter_map(|(uid, _)| self.known.get(uid))
            .map(|known| known.key.clone());
        let keys = keys.collect();
        if all.is_empty() {
            self.missing.remove(namespace);
        }
        keys
    }

    /// A request was checked, or is gone: gives who is next.
    pub fn end_push_check(&mut self, namespace: &str, uid: &str) -> Option<Key> {
        self.push_checks.end(namespace, uid);
        self.next_push_check(namespace)
    }

    /// Who is checked next.
    pub fn next_push_check(&self, namespace: &str) -> Option<Key> {
        let known = self.known.get(self.push_checks.next(namespace)?)?;
        Some(known.key.clone())
    }

    /// The keys of the requests that name one of `floats`, except `uid`.
    pub fn keys_on<'a>(&self, floats: impl Iterator<Item = &'a Float>, uid: &str) -> Vec<Key> {
        let uids: HashSet<&Uid> = floats
            .filter_map(|f| self.by_float.get(f))
            .flatten()
            .collect();
        let others = uids.into_iter().filter(|other| *other != uid);
        others
            .filter_map(|other| self.known.get(other))
            .map(|k| k.key.clone())
            .collect()
    }

    /// An operation of a namespace has landed; gives who may launch now, where fewer than `most` are left.
    pub fn landed(&mut self, namespace: &str, most: usize) -> Option<Key> {
        let launched = self.launched.get_mut(namespace)?;
        *launched -= 1;
        let left = *launched;
        if left == 0 {
            self.launched.remove(namespace);
        }
        if left >= most {
            return None;
        }
        let held_back = self.held_back.get_mut(namespace)?;
        let next = held_back.pop_front();
        if held_back.is_empty() {
            self.held_back.remove(namespace);
        }
        next
    }

    /// The operations of a request that still run.
    pub fn running(&self, uid: &str) -> impl Iterator<Item = (usize, &InFlight)> {
        let operations = self
            .operations
            .get(uid)
            .map(|operations| &operations.by_image);
        let all = operations.into_iter().flatten();
        all.filter(|(_, o)| o.outcome.is_none())
            .map(|(index, o)| (*index, o))
    }

    /// How many operations run in all.
    pub fn running_in_all(&self) -> usize {
        let operations = self
            .operations
            .values()
            .flat_map(|operations| operations.by_image.values());
        operations.filter(|o| o.outcome.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::claims::Share;

    #[test]
    fn a_missing_secret_is_looked_for_less_and_less_often_and_more_rarely_where_many_wait() {
        let mut state = State::default();
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

    #[test]
    fn a_request_with_a_tombstone_does_not_contend_again_for_who_read_it_before() {
        let float: Float = "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap();
        let key = Key {
            namespace: "ci".into(),
            name: "r".into(),
        };
        let contender = |uid: &str| Contender {
            uid: uid.into(),
            name: "ci/r".into(),
            order: 1,
            shares: vec![Share {
                float: float.clone(),
                finished: false,
                committed: false,
                at_gate: false,
                frozen: false,
            }],
            together: true,
            started: false,
            suspended: false,
            gated: false,
            standing: Standing::Undecided,
        };
        let mut state = State::default();
        assert!(state.note(&key, 1, contender("old"), RequestStats::default()));
        assert!(state.forget("old").is_some());
        assert!(!state.note(&key, 2, contender("old"), RequestStats::default()));
        assert!(state.sharers(&contender("old")).is_empty());
        // Created anew under its name it is another request.
        assert!(state.note(&key, 3, contender("new"), RequestStats::default()));
        assert_eq!(state.named(&key), ["new"]);
    }

    /// One of a namespace, of so many floats.
    fn request(namespace: &str, order: u64, floats: usize) -> (Key, Contender) {
        let key = Key {
            namespace: namespace.into(),
            name: format!("r{order}"),
        };
        let share = |n: usize| Share {
            float: format!("quay.io/{namespace}/ci:{order}-{n}")
                .parse()
                .unwrap(),
            finished: false,
            committed: false,
            at_gate: false,
            frozen: false,
        };
        let contender = Contender {
            uid: format!("{namespace}-{order}"),
            name: key.to_string(),
            order,
            shares: (0..floats).map(share).collect(),
            together: true,
            started: false,
            suspended: false,
            gated: false,
            standing: Standing::Eligible,
        };
        (key, contender)
    }

    fn note(state: &mut State, (key, contender): &(Key, Contender), version: u64) -> bool {
        let counts = RequestStats::default();
        state.note(key, version, contender.clone(), counts)
    }

    #[test]
    fn of_a_namespace_the_oldest_are_ready_and_the_others_come_in_their_order() {
        let mut state = State::default();
        let requests: Vec<_> = (0..40).map(|n| request("ci", 100 + n, 250)).collect();
        // Listed by name, or by chance.
        for n in (0..40).map(|n| n * 7 % 40) {
            note(&mut state, &requests[n], 1);
        }
        note(&mut state, &request("other", 1, 250), 1);
        let ready = |state: &State| -> Vec<bool> {
            let known = |one: &(Key, Contender)| state.known.contains_key(&one.1.uid);
            requests.iter().map(known).collect()
        };
        let oldest = |count: usize| (0..40).map(|n| n < count).collect::<Vec<_>>();
        assert_eq!(ready(&state), oldest(20));
        assert_eq!(state.backlog.before(&requests[39].1.uid), Some(39));
        // Nothing is noted twice.
        assert!(!note(&mut state, &requests[39], 1));
        state.woken.clear();
        // One begins, one ends: two are called, and come.
        let mut begun = requests[3].clone();
        begun.1.started = true;
        note(&mut state, &begun, 2);
        state.forget(&requests[0].1.uid);
        let called = std::mem::take(&mut state.woken);
        assert!(called.contains(&requests[20].0) && called.contains(&requests[21].0));
        for n in [20, 21, 22] {
            note(&mut state, &requests[n], 1);
        }
        let ready = ready(&state);
        assert!(ready[20] && ready[21] && !ready[22] && !ready[0]);
        // A newer one passes none of those that wait.
        let newest = request("ci", 999, 1);
        note(&mut state, &newest, 1);
        assert!(!state.known.contains_key(&newest.1.uid));
        assert_eq!(state.named(&newest.0), std::slice::from_ref(&newest.1.uid));
        state.forget(&newest.1.uid);
        assert!(state.named(&newest.0).is_empty());
    }

    #[test]
    fn of_two_that_have_begun_on_one_float_the_older_one_owns_it_after_a_takeover() {
        for round in 0..20 {
            let mut state = State::default();
            let mut both = [1, 2].map(|order| request("ci", order, 1));
            both[1].1.shares = both[0].1.shares.clone();
            for one in &mut both {
                one.1.started = true;
                note(&mut state, one, 1);
            }
            state.rebuild();
            let float = &both[0].1.shares[0].float;
            let owner = state.claims.owner(float).map(String::as_str);
            assert_eq!(owner, Some("ci-1"), "{round}");
            // What the newer one has on the wire is not known: it is waited for.
            assert!(!state.inherited.contains_key(float), "{round}");
        }
    }

    #[test]
    fn who_claims_a_float_finds_the_older_requests_that_are_shelved() {
        let mut state = State::default();
        let mut older = request("ci", 1, 3);
        older.1.suspended = true;
        note(&mut state, &older, 1);
        assert!(state.known.is_empty());
        let mut newer = request("ci", 2, 1);
        newer.1.shares[0].float = older.1.shares[1].float.clone();
        let found = state.backlog.sharers(&newer.1);
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].uid, found[0].shares.len()), (&older.1.uid, 1));
        let verdict = state.claims.judge(&newer.1, found.iter(), Duration::ZERO);
        assert!(
            matches!(verdict, crate::machine::claims::Verdict::Claim(rivals) if rivals.len() == 1)
        );
        assert_eq!(state.key_of(&older.1.uid), Some(older.0.clone()));
        // Resumed, it contends like all others, in its old place; suspended again, nobody waits for it.
        older.1.suspended = false;
        note(&mut state, &older, 2);
        assert!(state.known.contains_key(&older.1.uid));
        assert!(state.backlog.sharers(&newer.1).is_empty());
        note(&mut state, &newer, 2);
        older.1.suspended = true;
        note(&mut state, &older, 3);
        assert!(!state.known.contains_key(&older.1.uid));
        assert!(state.woken.contains(&newer.0));
        state.forget(&older.1.uid);
        assert!(state.backlog.sharers(&newer.1).is_empty());
    }
}
