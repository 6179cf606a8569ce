//! Requests that may not begin now, in any number: suspended ones, and those of a namespace beyond its first [`FLOATS_MAX`] floats.
//!
//! A request that has not begun is *ready* (in [`State::known`](super::state::State), with all that a claim needs) or *shelved*: only its
//! name, its order and sixteen bytes per float are kept. Whoever claims a float still finds, and ends, the older requests that are
//! shelved, so the order of creation holds. A shelved request cannot begin, so it delays nobody.
//!
//! Guaranteed: of the requests of a namespace that are not suspended, the oldest are ready; as soon as one of them begins, ends, or is
//! suspended, the oldest of the shelved ones is called.

use std::collections::{BTreeMap, BTreeSet};

use super::Key;
use crate::image::{Digest, Float};
use crate::machine::claims::{Contender, Share, Standing, Uid};

/// Floats of requests that wait ready to begin, of one namespace.
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
    namespaces: BTreeMap<String, Rows>,
}

/// Of one namespace.
#[derive(Debug, Clone, Default, Hash)]
struct Rows {
    /// By order, and the floats of each.
    ready: BTreeMap<(u64, Uid), usize>,
    /// The order of each.
    orders: BTreeMap<Uid, u64>,
    floats: usize,
    /// Shelved for no other reason than that there are too many.
    beyond: BTreeSet<(u64, Uid)>,
    /// How many of these begin with the same digits of their order.
    ranks: Ranks,
}

/// A request that may not begin now.
#[derive(Debug, Clone, Hash)]
pub struct Shelved<C> {
    /// Its name.
    pub key: Key,
    /// The resourceVersion this was read at.
    pub version: u64,
    /// What is counted of it.
    pub counts: C,
    order: u64,
    together: bool,
    suspended: bool,
    floats: Box<[Mark]>,
    number: u64,
}

/// Counts numbers, so that how many are smaller than one is known without looking at each: by the digits that they begin with.
#[derive(Debug, Clone, Default, Hash)]
struct Ranks(BTreeMap<(u32, u64), usize>);

impl Ranks {
    /// How many bits each digit has.
    const DIGIT: u32 = 4;

    fn digits(number: u64) -> impl Iterator<Item = (u32, u64)> {
        let shifts = (0..u64::BITS).step_by(Self::DIGIT as usize);
        shifts.map(move |shift| (shift, number >> shift))
    }

    fn add(&mut self, number: u64) {
        for digits in Self::digits(number) {
            *self.0.entry(digits).or_default() += 1;
        }
    }

    fn remove(&mut self, number: u64) {
        for digits in Self::digits(number) {
            if let Some(count) = self.0.get_mut(&digits) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&digits);
                }
            }
        }
    }

    fn before(&self, number: u64) -> usize {
        let smaller = Self::digits(number).flat_map(|(shift, digits)| {
            let first = digits >> Self::DIGIT << Self::DIGIT;
            self.0.range((shift, first)..(shift, digits))
        });
        smaller.map(|(_, count)| count).sum()
    }
}

impl<C> Default for Backlog<C> {
    fn default() -> Self {
        Self {
            shelved: BTreeMap::new(),
            floats: BTreeSet::new(),
            numbers: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        }
    }
}

impl<C> Backlog<C> {
    /// Whether to shelve a request that has not begun. The newest ready ones make room for an older one.
    pub fn takes(&self, key: &Key, contender: &Contender) -> bool {
        if contender.started {
            return false;
        }
        if contender.suspended {
            return true;
        }
        let Some(rows) = self.namespaces.get(&key.namespace) else {
            return false;
        };
        let own = (contender.order, contender.uid.clone());
        if rows.beyond.first().is_some_and(|first| *first < own) {
            return true;
        }
        // The newest give way, as many as there have to be.
        let (mut floats, most) = (rows.floats, FLOATS_MAX.saturating_sub(weight(contender)));
        for (ready, weight) in rows.ready.iter().rev() {
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
    pub fn is_ready(&mut self, key: &Key, contender: &Contender) -> Vec<Uid> {
        self.is_not_ready(key, &contender.uid);
        if contender.started {
            return Vec::new();
        }
        let rows = self.namespaces.entry(key.namespace.clone()).or_default();
        let own = (contender.order, contender.uid.clone());
        rows.floats += weight(contender);
        rows.orders.insert(contender.uid.clone(), contender.order);
        rows.ready.insert(own, weight(contender));
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
    pub fn is_not_ready(&mut self, key: &Key, uid: &str) {
        let Some(rows) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        if let Some(order) = rows.orders.remove(uid) {
            let floats = rows.ready.remove(&(order, uid.to_owned()));
            rows.floats -= floats.unwrap_or_default();
        }
        self.tidy(&key.namespace);
    }

    /// Shelves a request as read at `version`. False where it was shelved at that version already.
    pub fn shelve(&mut self, key: &Key, version: u64, contender: &Contender, counts: C) -> bool {
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
            let rows = self.namespaces.entry(key.namespace.clone()).or_default();
            rows.beyond.insert((contender.order, contender.uid.clone()));
            rows.ranks.add(contender.order);
        }
        let shelved = Shelved {
            key: key.clone(),
            version,
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
        if let Some(rows) = self.namespaces.get_mut(&shelved.key.namespace)
            && rows.beyond.remove(&(shelved.order, uid.to_owned()))
        {
            rows.ranks.remove(shelved.order);
        }
        self.tidy(&shelved.key.namespace);
        Some(shelved)
    }

    /// The oldest shelved requests of a namespace that fit now.
    pub fn call(&self, namespace: &str) -> Vec<Key> {
        let Some(rows) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        let mut floats = rows.floats;
        let beyond = rows
            .beyond
            .iter()
            .filter_map(|(_, uid)| self.shelved.get(uid));
        let called = beyond.take_while(|shelved| {
            let fits = floats == 0 || floats + shelved.floats.len().max(1) <= FLOATS_MAX;
            floats += shelved.floats.len().max(1);
            fits
        });
        called.map(|shelved| shelved.key.clone()).collect()
    }

    /// How many requests of its namespace are ahead of one that is shelved for the limit; none where it is not.
    pub fn before(&self, uid: &str) -> Option<usize> {
        let shelved = self.shelved.get(uid).filter(|shelved| !shelved.suspended)?;
        let rows = self.namespaces.get(&shelved.key.namespace)?;
        Some(rows.ready.len() + rows.ranks.before(shelved.order))
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

    fn tidy(&mut self, namespace: &str) {
        let empty = |rows: &Rows| rows.ready.is_empty() && rows.beyond.is_empty();
        if self.namespaces.get(namespace).is_some_and(empty) {
            self.namespaces.remove(namespace);
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
