//! Requests that may not begin now, in any number: suspended ones, and those of a [`Pool`] beyond its first [`FLOATS_MAX`] floats.
//!
//! A request that has not begun is *ready* (in [`State::known`](super::state::State), with all that a claim needs) or *shelved*: only its
//! name, its order and sixteen bytes per float are kept. Whoever claims a float still finds, and ends, the older requests that are
//! shelved, so the order of creation holds. A shelved request cannot begin, so it delays nobody.
//!
//! Guaranteed: of the requests of a pool that are not suspended, the oldest are ready; as soon as one of them begins, ends, or is
//! suspended, the oldest of the shelved ones is called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Key;
use crate::image::{Digest, Float};
use crate::machine::claims::{Contender, Share, Standing, Uid};
use crate::machine::pool::Pool;

/// Floats of requests that wait ready to begin, of one pool.
pub const FLOATS_MAX: usize = 5_000;

/// A float by its digest: small, and nobody can choose two that collide.
type Mark = Digest;

/// The shelved requests, and how many are ready. `C` is what is counted of each.
#[derive(Debug, Clone, Hash)]
pub(super) struct Backlog<C> {
    shelved: BTreeMap<Uid, Shelved<C>>,
    /// Who names a float.
    floats: BTreeSet<(Mark, u64)>,
    numbers: BTreeMap<u64, Uid>,
    pools: BTreeMap<Arc<Pool>, Rows>,
}

/// Of one pool.
#[derive(Debug, Clone, Default, Hash)]
struct Rows {
    /// Those that are ready, and those that were called to be: by order, and the floats of each.
    ready: BTreeMap<(u64, Uid), usize>,
    /// The order of each.
    orders: BTreeMap<Uid, u64>,
    floats: usize,
    /// Shelved for no other reason than that there are too many, and not called.
    beyond: BTreeSet<(u64, Uid)>,
}

impl Rows {
    fn add(&mut self, (order, uid): (u64, Uid), weight: usize) {
        self.floats += weight;
        self.orders.insert(uid.clone(), order);
        self.ready.insert((order, uid), weight);
    }

    fn remove(&mut self, uid: &str) {
        let order = self.orders.remove(uid);
        let weight = order.and_then(|order| self.ready.remove(&(order, uid.to_owned())));
        self.floats -= weight.unwrap_or_default();
    }
}

/// A request that may not begin now.
#[derive(Debug, Clone, Hash)]
pub struct Shelved<C> {
    /// Its name.
    pub key: Key,
    /// The resourceVersion this was read at.
    pub version: u64,
    pub(super) pool: Arc<Pool>,
    /// What is counted of it.
    pub counts: C,
    order: u64,
    together: bool,
    suspended: bool,
    floats: Box<[Mark]>,
    number: u64,
}

impl<C> Default for Backlog<C> {
    fn default() -> Self {
        Self {
            shelved: BTreeMap::new(),
            floats: BTreeSet::new(),
            numbers: BTreeMap::new(),
            pools: BTreeMap::new(),
        }
    }
}

impl<C> Backlog<C> {
    /// Whether to shelve a request that has not begun. The newest ready ones make room for an older one.
    pub fn takes(&self, pool: &Pool, contender: &Contender) -> bool {
        if contender.started {
            return false;
        }
        if contender.suspended {
            return true;
        }
        let Some(rows) = self.pools.get(pool) else {
            return false;
        };
        let own = (contender.order, contender.uid.clone());
        if rows.beyond.first().is_some_and(|first| *first < own) {
            return true;
        }
        // The newest give way, as many as there have to be. If it was called, room is kept for it.
        let (mut floats, most) = (rows.floats, FLOATS_MAX.saturating_sub(weight(contender)));
        if let Some(order) = rows.orders.get(&contender.uid) {
            let kept = rows.ready.get(&(*order, contender.uid.clone()));
            floats -= kept.copied().unwrap_or_default();
        }
        let others = rows.ready.iter().rev();
        for (ready, weight) in others.filter(|((_, uid), _)| *uid != contender.uid) {
            if floats <= most {
                return false;
            }
            if *ready <= own {
                return true;
            }
            floats -= weight;
        }
        false
    }

    /// Marks a request as ready, or begun. Returns the newest ready ones beyond the limit: they are to be shelved.
    pub fn is_ready(&mut self, pool: &Arc<Pool>, contender: &Contender) -> Vec<Uid> {
        self.is_not_ready(pool, &contender.uid);
        if contender.started {
            return Vec::new();
        }
        let rows = self.pools.entry(Arc::clone(pool)).or_default();
        let own = (contender.order, contender.uid.clone());
        rows.add(own, weight(contender));
        let (mut over, mut newest) = (rows.floats, Vec::new());
        for ((_, uid), floats) in rows.ready.iter().rev() {
            if over <= FLOATS_MAX || *uid == contender.uid {
                break;
            }
            over -= floats;
            newest.push(uid.clone());
        }
        newest
    }

    /// A request is not ready any more, if it was.
    pub fn is_not_ready(&mut self, pool: &Pool, uid: &str) {
        let Some(rows) = self.pools.get_mut(pool) else {
            return;
        };
        rows.remove(uid);
        self.tidy(pool);
    }

    /// Shelves a request as read at `version`. False where it was shelved at that version already.
    pub fn shelve(
        &mut self,
        (key, pool): (&Key, &Arc<Pool>),
        version: u64,
        contender: &Contender,
        counts: C,
    ) -> bool {
        let known = self.shelved.get(&contender.uid);
        if known.is_some_and(|known| known.version >= version) {
            return false;
        }
        self.remove(&contender.uid);
        let newest = self.numbers.last_key_value();
        let number = newest.map_or(0, |(number, _)| number + 1);
        let open = contender.shares.iter().filter(|share| !share.finished);
        let floats: Box<[Mark]> = open.map(|share| mark(&share.float)).collect();
        let marks = floats.iter().map(|mark| (*mark, number));
        self.floats.extend(marks);
        self.numbers.insert(number, contender.uid.clone());
        if !contender.suspended {
            let rows = self.pools.entry(Arc::clone(pool)).or_default();
            rows.beyond.insert((contender.order, contender.uid.clone()));
        }
        let shelved = Shelved {
            key: key.clone(),
            version,
            pool: Arc::clone(pool),
            counts,
            order: contender.order,
            together: contender.together,
            suspended: contender.suspended,
            floats,
            number,
        };
        self.shelved.insert(contender.uid.clone(), shelved);
        true
    }

    /// Takes a request off the shelf, if it was there.
    pub fn remove(&mut self, uid: &str) -> Option<Shelved<C>> {
        let shelved = self.shelved.remove(uid)?;
        self.numbers.remove(&shelved.number);
        for mark in &shelved.floats {
            self.floats.remove(&(*mark, shelved.number));
        }
        if let Some(rows) = self.pools.get_mut(&shelved.pool) {
            rows.beyond.remove(&(shelved.order, uid.to_owned()));
            rows.remove(uid);
        }
        self.tidy(&shelved.pool);
        Some(shelved)
    }

    /// Calls the oldest shelved requests of a pool that fit now. Each is called once: its room is kept until it comes.
    pub fn call(&mut self, pool: &Pool) -> Vec<Key> {
        let mut called = Vec::new();
        let Some(rows) = self.pools.get_mut(pool) else {
            return called;
        };
        while let Some(first) = rows.beyond.pop_first() {
            let Some(shelved) = self.shelved.get(&first.1) else {
                continue;
            };
            let weight = shelved.floats.len().max(1);
            if rows.floats > 0 && rows.floats + weight > FLOATS_MAX {
                rows.beyond.insert(first);
                break;
            }
            rows.add(first, weight);
            called.push(shelved.key.clone());
        }
        called
    }

    /// The pool of a request that is shelved for no other reason than that there are too many.
    pub fn beyond(&self, uid: &str) -> Option<&Pool> {
        let shelved = self.shelved.get(uid);
        Some(&*shelved.filter(|shelved| !shelved.suspended)?.pool)
    }

    /// The shelved requests that share a float with `contender`, each with the floats that they share.
    pub fn sharers(&self, contender: &Contender) -> Vec<Contender> {
        let mut found: BTreeMap<u64, Vec<Share>> = BTreeMap::new();
        for share in &contender.shares {
            let mark = mark(&share.float);
            for (_, number) in self.floats.range((mark, 0)..=(mark, u64::MAX)) {
                found.entry(*number).or_default().push(Share {
                    float: share.float.clone(),
                    finished: false,
                    committed: false,
                    // It has not begun.
                    at_gate: false,
                    frozen: false,
                });
            }
        }
        let sharers = found.into_iter().filter_map(|(number, shares)| {
            let uid = self.numbers.get(&number)?;
            let shelved = self.shelved.get(uid)?;
            Some(Contender {
                uid: uid.clone(),
                name: shelved.key.to_string(),
                order: shelved.order,
                shares,
                registries: shelved.pool.registries.clone(),
                together: shelved.together,
                started: false,
                suspended: shelved.suspended,
                gated: false,
                standing: Standing::Ineligible,
            })
        });
        sharers.collect()
    }

    pub fn get(&self, uid: &str) -> Option<&Shelved<C>> {
        self.shelved.get(uid)
    }

    pub fn all(&self) -> impl Iterator<Item = &Shelved<C>> {
        self.shelved.values()
    }

    /// Makes states alike that differ in versions alone, for the model.
    #[cfg(test)]
    pub fn forget_versions(&mut self) {
        self.shelved.values_mut().for_each(|s| s.version = 0);
    }

    fn tidy(&mut self, pool: &Pool) {
        let empty = |rows: &Rows| rows.ready.is_empty() && rows.beyond.is_empty();
        if self.pools.get(pool).is_some_and(empty) {
            self.pools.remove(pool);
        }
    }
}

fn mark(float: &Float) -> Mark {
    Digest::of(float.to_string().as_bytes())
}

/// The weight of a request in floats; a plan has none and counts as one.
fn weight(contender: &Contender) -> usize {
    contender.shares.len().max(1)
}
