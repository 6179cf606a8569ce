//! What is heard of requests: that they are there, have begun, ended or are gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Key;
use super::state::{Coordinator, Known};
use crate::image::Float;
use crate::log::{Time, WriteLog};
use crate::machine::Request;
use crate::machine::claims::{Contender, Share, Standing, Uid};
use crate::machine::pool::Pool;

/// How long a tombstone is kept: whoever read the request before does not bring it back.
const TOMBSTONE_LIFE: Duration = Duration::from_mins(1);

impl<T: Time, C: Clone, R: Default, O> Coordinator<T, C, R, O> {
    /// Records a request as read at `version`. False where a newer version is known, or a tombstone: no further event would come, so it
    /// would block others forever.
    pub fn note(&mut self, key: &Key, version: u64, mut contender: Contender, counts: C) -> bool {
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
                let named: BTreeSet<_> = contender.shares.iter().map(|s| &s.float).collect();
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
            let pool = Arc::clone(&known.pool);
            let before = std::mem::replace(&mut known.contender, contender.clone());
            known.counts = counts;
            let frozen = |share: &&Share| share.frozen;
            let count = |contender: &Contender| contender.shares.iter().filter(frozen).count();
            if count(&contender) > count(&before) {
                // Whoever waits behind it need not.
                let floats = contender.shares.iter().filter(frozen);
                self.wake_on(floats.map(|share| &share.float), &uid);
            }
            if contender.started && !before.started {
                self.backlog.is_not_ready(&pool, &uid);
                self.call_shelved(&pool);
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
        let shelved = self.backlog.get(&uid);
        if shelved.is_some_and(|known| known.version > version) {
            return false;
        }
        let shelved = shelved.map(|shelved| Arc::clone(&shelved.pool));
        let is_new = shelved.is_none();
        let pool =
            shelved.unwrap_or_else(|| self.pools.join(&key.namespace, &contender.registries));
        let readable = contender.standing != Standing::Unreadable;
        if readable && self.backlog.takes(&pool, &contender) {
            if is_new {
                self.by_key.entry(key.clone()).or_default().push(uid);
            }
            let news = (self.backlog).shelve((key, &pool), version, &contender, counts);
            self.call_shelved(&pool);
            return news;
        }
        if self.backlog.remove(&uid).is_some() {
            self.forget_key(key, &uid);
        }
        for newest in self.backlog.is_ready(&pool, &contender) {
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
            pool,
            contender,
            permitted: None,
            rivals: Vec::new(),
            counts,
            kept: R::default(),
        };
        self.known.insert(uid, known);
        true
    }

    /// Shelves a ready request, as read at `version`: it does not begin, so nobody waits for it.
    fn shelve(&mut self, uid: &str, version: u64, contender: &Contender, counts: C) {
        let Some(known) = self.unknow(uid) else {
            return;
        };
        let quota_key = known.quota_key();
        self.quota.withdraw(&quota_key, uid);
        self.quota.release(&quota_key, uid);
        self.call(&quota_key);
        self.wake_on(known.contender.floats(), uid);
        self.by_key
            .entry(known.key.clone())
            .or_default()
            .push(uid.to_owned());
        let of = (&known.key, &known.pool);
        self.backlog.shelve(of, version, contender, counts);
        self.call_shelved(&known.pool);
    }

    /// Shelves one of the newest of a pool, unless it is about to begin. It is reconciled, so that its status says so.
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
        self.woken.insert(key);
    }

    /// Wakes the shelved requests of a pool for which there is room now.
    fn call_shelved(&mut self, pool: &Pool) {
        self.woken.extend(self.backlog.call(pool));
    }

    fn forget_key(&mut self, key: &Key, uid: &str) {
        if let Some(uids) = self.by_key.get_mut(key) {
            uids.retain(|other| other != uid);
            if uids.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Forgets a request that has ended or is gone: it contends for nothing any more, and whoever waited for it is woken. What it owns is
    /// released when nothing of it runs there any more ([`Self::settle`]).
    pub fn forget(&mut self, uid: &str, now: T) -> Option<Known<T, C, R>> {
        self.bury(uid, now);
        if let Some(shelved) = self.backlog.remove(uid) {
            self.forget_key(&shelved.key, uid);
            self.pools.leave(&shelved.pool);
            self.call_shelved(&shelved.pool);
        }
        let known = self.unknow(uid)?;
        self.pools.leave(&known.pool);
        self.call_shelved(&known.pool);
        self.wake_on(known.contender.floats(), uid);
        let quota_key = known.quota_key();
        self.quota.release(&quota_key, uid);
        self.quota.withdraw(&quota_key, uid);
        self.call(&quota_key);
        Some(known)
    }

    /// Takes a request out of those that are known.
    fn unknow(&mut self, uid: &str) -> Option<Known<T, C, R>> {
        let known = self.known.remove(uid)?;
        self.forget_key(&known.key, uid);
        self.backlog.is_not_ready(&known.pool, uid);
        self.dropped.push((known.key.clone(), uid.to_owned()));
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

    fn bury(&mut self, uid: &str, now: T) {
        let old = |(_, at): &(Uid, T)| *at + TOMBSTONE_LIFE <= now;
        while self.tombstone_order.front().is_some_and(old) {
            if let Some((uid, _)) = self.tombstone_order.pop_front() {
                self.tombstones.remove(&uid);
            }
        }
        if !self.tombstones.contains_key(uid) {
            self.tombstones.insert(uid.to_owned(), R::default());
            self.tombstone_order.push_back((uid.to_owned(), now));
        }
    }

    // === a takeover ===

    /// Whoever of those known has begun and not ended owns its floats. Gives those that do not get them, because another one that has
    /// begun owns them.
    pub fn rebuild(&mut self) -> Vec<Key> {
        // Of two that have begun on one float the older one continues, under every leader.
        let mut all: Vec<_> = self.known.values().collect();
        all.sort_unstable_by_key(|known| (known.contender.order, &known.contender.uid));
        let mut waiting = Vec::new();
        for known in all {
            if known.contender.standing == Standing::Unreadable {
                continue;
            }
            let (owned, quota_key) = (known.contender.owned(), known.quota_key());
            if !owned.is_empty() && !self.claims.take(&known.contender.uid, &owned) {
                waiting.push(known.key.clone());
                self.inherited.retain(|float, _| !owned.contains(float));
            } else if !owned.is_empty() || (quota_key.plans && known.contender.started) {
                let uid = &known.contender.uid;
                self.quota.occupy(&quota_key, uid);
                let floats = owned.into_iter().map(|float| (float, uid.clone()));
                self.inherited.extend(floats);
            }
        }
        waiting
    }

    /// Looks at a request that owned floats when this process took over, once the process before can send nothing more. A float is
    /// passed on only when no write can land there, so what may be on the wire is its owner's; where that has no launch open, and no
    /// write without an answer, there is nothing to wait for.
    pub(super) fn spare(&mut self, log: &mut WriteLog<T>, uid: &str, request: &Request, now: T) {
        if self.inherited.is_empty() || !log.may_spare(now) {
            return;
        }
        let specs = request.spec.images.iter();
        let mine = |float: &&Float| self.inherited.get(float).is_some_and(|owner| owner == uid);
        let inherited: Vec<Float> = specs.map(|s| &s.float).filter(mine).cloned().collect();
        for float in &inherited {
            self.inherited.remove(float);
        }
        let Some(known) = self.known.get(uid) else {
            return;
        };
        let owned = known.contender.owned();
        let images = request.spec.images.iter().zip(&request.status.images);
        for (spec, image) in images {
            let float = &spec.float;
            if image.is_at_rest() && inherited.contains(float) && owned.contains(float) {
                log.spare(float);
            }
        }
    }
}
