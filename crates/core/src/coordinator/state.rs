//! What a process keeps in memory: requests, their operations, the contenders for each float and its owner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Key;
use super::backlog::{Backlog, Shelved};
use crate::image::Float;
use crate::machine::claims::{Claims, Contender, Rival, Uid};
use crate::machine::pool::{Pool, Pools};
use crate::machine::quota::{NamespaceQuota, QuotaKey};
use crate::machine::{Outcome, Step};

/// Everything in memory. `T` is a clock's time; `C` is what its driver counts of each request, `R` what it keeps of each that may begin,
/// and `O` of each operation.
#[derive(Debug, Clone, Hash)]
pub struct Coordinator<T, C, R, O> {
    pub(super) claims: Claims,
    /// Which requests are counted together: all that are known or shelved.
    pub(super) pools: Pools,
    /// How many of a pool may have begun at once.
    pub(super) quota: NamespaceQuota,
    /// The unfinished requests that are known.
    pub(super) known: BTreeMap<Uid, Known<T, C, R>>,
    /// Which of them have a name: one, most often.
    pub(super) by_key: BTreeMap<Key, Vec<Uid>>,
    /// Which of them name a float.
    pub(super) by_float: BTreeMap<Float, BTreeSet<Uid>>,
    /// Floats that were owned when this process took over, until their owner is reloaded: only that shows which writes may still be on
    /// the wire.
    pub(super) inherited: BTreeMap<Float, Uid>,
    /// What runs, also of requests that are gone meanwhile.
    pub(super) operations: BTreeMap<Uid, Operations<O>>,
    /// Requests that have ended or were deleted of late, and what is still kept of them. A UID never comes back.
    pub(super) tombstones: BTreeMap<Uid, R>,
    /// The same, the oldest first.
    pub(super) tombstone_order: VecDeque<(Uid, T)>,
    /// Requests that may not begin now, kept small.
    pub(super) backlog: Backlog<C>,
    /// Requests to reconcile because of what was heard or done.
    pub(super) woken: BTreeSet<Key>,
    /// Requests that may not begin any more, or have ended.
    pub(super) dropped: Vec<(Key, Uid)>,
    /// Nothing more is launched.
    pub(super) draining: bool,
    pub(super) next_operation: u64,
}

/// An unfinished request.
#[derive(Debug, Clone, Hash)]
pub struct Known<T, C, R> {
    /// Its name.
    pub key: Key,
    /// The resourceVersion this was read at: older readings do not replace it.
    pub version: u64,
    /// What it is counted with.
    pub pool: Arc<Pool>,
    /// As it contends for its floats.
    pub contender: Contender,
    /// Since when it is known that it may push; time for which work was stopped does not count.
    pub permitted: Option<T>,
    /// Those that its claim has still to end: until then their floats are not its own.
    pub(crate) rivals: Vec<Rival>,
    /// What is counted of it.
    pub counts: C,
    /// What its driver keeps of it.
    pub kept: R,
}

/// The operations of a request.
#[derive(Debug, Clone, Hash)]
pub struct Operations<O> {
    /// By the index of their image.
    pub by_image: BTreeMap<usize, InFlight<O>>,
    /// The images of which this process has launched anything.
    pub launched: BTreeSet<usize>,
}

/// An operation, running or ended and not yet recorded.
#[derive(Debug, Clone, Hash)]
pub struct InFlight<O> {
    /// A number no other operation of this process has.
    pub id: u64,
    /// What it does.
    pub step: Step,
    /// On which float.
    pub float: Float,
    /// What it came to, if it has ended.
    pub outcome: Option<Outcome>,
    /// What its driver keeps of it.
    pub kept: O,
}

// === impl Known ===

impl<T, C, R> Known<T, C, R> {
    /// The quota it counts against.
    pub fn quota_key(&self) -> QuotaKey {
        QuotaKey {
            pool: Arc::clone(&self.pool),
            plans: self.plans(),
        }
    }

    /// Whether it only plans: it contends for nothing.
    pub(super) fn plans(&self) -> bool {
        self.contender.shares.is_empty()
    }
}

// === impl Operations ===

impl<O> Default for Operations<O> {
    fn default() -> Self {
        Self {
            by_image: BTreeMap::new(),
            launched: BTreeSet::new(),
        }
    }
}

// === impl Coordinator ===

impl<T, C, R, O> Coordinator<T, C, R, O> {
    /// Nothing is known yet. At most `namespace_max` requests of a pool may have begun at once; 0: any number.
    #[must_use]
    pub fn new(namespace_max: usize) -> Self {
        Self {
            claims: Claims::default(),
            pools: Pools::default(),
            quota: NamespaceQuota::new(namespace_max),
            known: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_float: BTreeMap::new(),
            inherited: BTreeMap::new(),
            operations: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            tombstone_order: VecDeque::new(),
            backlog: Backlog::default(),
            woken: BTreeSet::new(),
            dropped: Vec::new(),
            draining: false,
            next_operation: 0,
        }
    }

    /// A request that may begin, or has begun.
    #[must_use]
    pub fn known(&self, uid: &str) -> Option<&Known<T, C, R>> {
        self.known.get(uid)
    }

    /// The same, to keep something of it.
    pub fn known_mut(&mut self, uid: &str) -> Option<&mut Known<T, C, R>> {
        self.known.get_mut(uid)
    }

    /// All of these.
    pub fn all_known(&self) -> impl Iterator<Item = &Known<T, C, R>> {
        self.known.values()
    }

    /// The same, to keep something of them.
    pub fn all_known_mut(&mut self) -> impl Iterator<Item = &mut Known<T, C, R>> {
        self.known.values_mut()
    }

    /// Those that may not begin now.
    pub fn shelved(&self) -> impl Iterator<Item = &Shelved<C>> {
        self.backlog.all()
    }

    /// What its driver keeps of a request, also for a while after its end.
    pub fn kept(&mut self, uid: &str) -> Option<&mut R> {
        let known = self.known.get_mut(uid).map(|known| &mut known.kept);
        known.or(self.tombstones.get_mut(uid))
    }

    /// The operations of all requests, each with its request.
    pub fn operations(&self) -> impl Iterator<Item = (&Uid, &InFlight<O>)> {
        let all = self.operations.iter();
        all.flat_map(|(uid, operations)| operations.by_image.values().map(move |o| (uid, o)))
    }

    /// The operation of an image.
    #[must_use]
    pub fn operation(&self, uid: &str, image: usize) -> Option<&InFlight<O>> {
        self.operations.get(uid)?.by_image.get(&image)
    }

    /// The operations of a request that still run.
    pub fn running(&self, uid: &str) -> impl Iterator<Item = (usize, &InFlight<O>)> {
        let operations = self.operations.get(uid);
        let all = operations.into_iter().flat_map(|all| &all.by_image);
        all.filter(|(_, o)| o.outcome.is_none())
            .map(|(index, o)| (*index, o))
    }

    /// Who owns which float.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The limit of a namespace.
    #[must_use]
    pub fn namespace_max(&self) -> usize {
        self.quota.limit()
    }

    /// How a request is named.
    #[must_use]
    pub fn key_of(&self, uid: &str) -> Option<Key> {
        let known = self.known.get(uid).map(|known| &known.key);
        let shelved = || self.backlog.get(uid).map(|shelved| &shelved.key);
        known.or_else(shelved).cloned()
    }

    /// The requests of this name, as far as they are known.
    #[must_use]
    pub fn named(&self, key: &Key) -> Vec<Uid> {
        self.by_key.get(key).cloned().unwrap_or_default()
    }

    /// The requests that share a float with `contender`, itself included.
    #[must_use]
    pub fn sharers(&self, contender: &Contender) -> Vec<&Contender> {
        let uids: BTreeSet<&Uid> = self.naming(contender.floats()).collect();
        let known = uids.into_iter().filter_map(|uid| self.known.get(uid));
        known.map(|known| &known.contender).collect()
    }

    /// Wakes the requests that name one of `floats`, except `uid`.
    pub(super) fn wake_on<'a>(&mut self, floats: impl Iterator<Item = &'a Float>, uid: &str) {
        let others = self.naming(floats).filter(|other| *other != uid);
        let known = others.filter_map(|other| self.known.get(other));
        let keys: Vec<Key> = known.map(|known| known.key.clone()).collect();
        self.woken.extend(keys);
    }

    fn naming<'a, 'f>(
        &'a self,
        floats: impl Iterator<Item = &'f Float>,
    ) -> impl Iterator<Item = &'a Uid> {
        floats.filter_map(|f| self.by_float.get(f)).flatten()
    }

    /// Wakes a request.
    pub fn wake(&mut self, key: Key) {
        self.woken.insert(key);
    }

    /// The requests to reconcile because of what was heard or done.
    pub fn take_woken(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.woken).into_iter().collect()
    }

    /// The requests that may not begin any more, or have ended: nothing waits for them.
    pub fn take_dropped(&mut self) -> Vec<(Key, Uid)> {
        std::mem::take(&mut self.dropped)
    }

    /// Nothing more is launched.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing more is launched.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }
}

#[cfg(test)]
impl<T: crate::log::Time, C, R, O> Coordinator<T, C, R, O> {
    /// Makes states alike that behave alike, for the model. `past` stands for any time whose patience is over; `quiet`: no save is under
    /// way, so that no old version and no old number comes back.
    pub fn simplify(&mut self, now: T, past: T, quiet: bool) {
        self.woken.clear();
        self.dropped.clear();
        for known in self.known.values_mut() {
            let over = |at: T| at + crate::machine::claims::PATIENCE <= now;
            let simple = |at: T| if over(at) { past } else { at };
            known.permitted = known.permitted.map(simple);
        }
        if !quiet {
            return;
        }
        self.known.values_mut().for_each(|known| known.version = 0);
        self.backlog.forget_versions();
        self.tombstones.clear();
        self.tombstone_order.clear();
        self.next_operation = 0;
        let operations = self.operations.values_mut();
        for operation in operations.flat_map(|all| all.by_image.values_mut()) {
            self.next_operation += 1;
            operation.id = self.next_operation;
        }
    }

    /// Puts back what was released, for the model.
    pub fn keep(&mut self, claims: Claims) {
        self.claims = claims;
    }
}
