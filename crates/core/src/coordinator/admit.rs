//! Whether a request has its floats to itself: entitlement, the claim, the limit of its namespace, and the release.
//!
//! Everything a claim ends is saved on the loser before the winner's claim is saved, and both before the first registry request under
//! the claim: the record outlives the winner.

use std::collections::BTreeSet;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

use jiff::Timestamp;

use super::backlog::FLOATS_MAX;
use super::reconcile::{Answer, Ask, Recorded};
use super::state::{Coordinator, Known};
use crate::image::Float;
use crate::log::{Time, WriteLog};
use crate::machine::claims::{PATIENCE, Rival, Standing, Uid, Verdict};
use crate::machine::pool::Pool;
use crate::machine::quota::QuotaKey;
use crate::machine::{Admission, Mode, Reason, Request};

const ANOTHER_HOLDS: &str = "another request holds a float";

impl<T: Time, C: Clone, R: Default, O> Coordinator<T, C, R, O> {
    // === entitlement ===

    /// Whether a request may work on a float, asked when it is launched there and when its claim is released alike: it is known, has
    /// the float to itself with nobody left to end there, and its image is neither at its end nor suspended before its commit. A plan needs
    /// no float.
    #[must_use]
    pub fn is_entitled(&self, uid: &str, float: &Float) -> bool {
        self.known.get(uid).is_some_and(|known| {
            let contested = || {
                known
                    .rivals
                    .iter()
                    .any(|rival| rival.floats.contains(float))
            };
            let holds = || self.claims.holds(uid, [float].into_iter());
            known.plans() || (known.contender.wants(float) && holds() && !contested())
        })
    }

    // === whether it may run ===

    /// Finds out whether a request may run, and claims its floats if it may begin: what is to be found out next, given what came of the
    /// last ([`Answer::Yes`] at first). And when its floats are released, where a write may land there until then.
    pub fn admit(
        &mut self,
        log: &WriteLog<T>,
        me: &mut Recorded,
        answer: Answer,
        now: T,
    ) -> (Option<Ask>, Option<T>) {
        let mut over_limit = false;
        let next = match answer {
            Answer::Yes => self.judge(me, now, &mut over_limit),
            Answer::Settled(admission, again) => {
                me.again = again;
                Break(admission)
            }
        };
        match next {
            Continue(ask) => {
                me.asked = Some(ask.clone());
                (Some(ask), None)
            }
            Break(admission) => {
                let holds = admission == Admission::Holds;
                me.admission = admission;
                let settle_at = (!holds).then(|| self.not_admitted(log, me, over_limit, now));
                (None, settle_at.flatten())
            }
        }
    }

    /// What comes after what was asked last.
    fn judge(
        &mut self,
        me: &mut Recorded,
        now: T,
        over_limit: &mut bool,
    ) -> ControlFlow<Admission, Ask> {
        match me.asked.take() {
            None => match self.backlog.beyond(&me.uid) {
                Some(pool) => me.waits(Reason::Queued, beyond(pool), None),
                None => Continue(Ask::Policy),
            },
            Some(Ask::Policy) => {
                if me.request.spec.suspend {
                    // Others still wait for its committed images; with the rest it delays nobody.
                    self.is_ineligible(&me.uid);
                }
                if let Some((reason, message)) = me.request.held_back() {
                    return me.waits(reason, message, None);
                }
                let paused = me
                    .contexts
                    .iter()
                    .find_map(|context| context.paused.clone());
                match paused.filter(|_| me.request.status.started.is_none()) {
                    Some(message) => me.waits(Reason::Paused, message, None),
                    None => Continue(Ask::Access),
                }
            }
            Some(Ask::End(rival)) => {
                self.rival_ended(&me.uid, &rival.uid);
                self.claim(me, now, over_limit)
            }
            Some(Ask::Access | Ask::Push) => self.claim(me, now, over_limit),
        }
    }

    // === the claim ===

    /// Claims the floats of the unfinished images for this request alone, if it may have them now. A plan needs none.
    fn claim(
        &mut self,
        me: &mut Recorded,
        now: T,
        over_limit: &mut bool,
    ) -> ControlFlow<Admission, Ask> {
        let holds = Break(Admission::Holds);
        let (uid, request) = (me.uid.clone(), &me.request);
        if request.spec.mode == Mode::Plan {
            *over_limit = !self.admit_plan(&uid);
            return if *over_limit {
                self.over_limit(me)
            } else {
                holds
            };
        }
        let floats = request.wanted_floats();
        let soon = Some(Duration::from_secs(1));
        let Some(known) = self.known.get_mut(&uid) else {
            return me.waits(Reason::Queued, "not known yet", soon);
        };
        if self.claims.holds(&uid, floats.iter()) {
            let rival = known.rivals.first().cloned();
            return rival.map_or(holds, |rival| Continue(Ask::End(rival)));
        }
        if request.spec.suspend {
            // What is committed was claimed before; nothing new is.
            return me.waits(Reason::Queued, ANOTHER_HOLDS, soon);
        }
        let Some(permitted) = known.permitted else {
            return Continue(Ask::Push);
        };
        let before = std::mem::replace(&mut known.contender.standing, Standing::Eligible);
        let (mine, quota_key) = (known.contender.clone(), known.quota_key());
        // By the clock that only goes on, and from its own permission: what an older one has not been told by then it was not told in
        // time that both had.
        let patience = PATIENCE.saturating_sub(now.max(permitted) - permitted);
        let shelved = self.backlog.sharers(&mine);
        let sharers = self.sharers(&mine).into_iter().chain(&shelved);
        match self.claims.judge(&mine, sharers, patience) {
            Verdict::Wait {
                behind,
                after,
                gate,
            } => {
                if gate {
                    self.stands(&uid, before, Standing::BehindGate);
                }
                let message = format!("waits for {behind}, which shares a float");
                me.waits(Reason::Queued, message, after)
            }
            Verdict::Superseded { by, floats } => {
                let images = request.images_losing(&floats);
                // Its remaining images are judged again at once.
                me.again = Some(Duration::ZERO);
                Break(Admission::Superseded(images, superseded_by(&by)))
            }
            Verdict::Claim(rivals) => {
                let older = rivals.iter().map(|rival| &rival.uid);
                if !self.quota.try_admit(&quota_key, &uid, mine.order, older) {
                    // It may not begin, so it must not block other namespaces.
                    self.stands(&uid, before, Standing::Ineligible);
                    *over_limit = true;
                    return self.over_limit(me);
                }
                if !self.claims.take(&uid, &floats) {
                    return me.waits(Reason::Queued, ANOTHER_HOLDS, soon);
                }
                // Whoever waited behind it waits for its float now.
                self.call(&quota_key);
                let first = rivals.first().cloned();
                if let Some(known) = self.known.get_mut(&uid) {
                    known.rivals = rivals;
                }
                first.map_or(holds, |rival| Continue(Ask::End(rival)))
            }
        }
    }

    /// It is over the limit of its pool, and is woken when it may begin.
    fn over_limit(&self, me: &mut Recorded) -> ControlFlow<Admission, Ask> {
        let (limit, known) = (self.quota.limit(), self.known.get(&me.uid));
        let what = known.map_or_else(String::new, |known| {
            let what = if known.plans() { "plans" } else { "requests" };
            format!(" {what} of {}", known.pool.place())
        });
        let message = format!(
            "over the limit of {limit} active{what} (--max-active-requests-per-namespace); waits for one of them to end"
        );
        me.waits(Reason::Queued, message, None)
    }

    /// One of those that a claim ends has ended on the floats, or is not there any more.
    pub(crate) fn rival_ended(&mut self, uid: &str, rival: &str) {
        if let Some(known) = self.known.get_mut(uid) {
            known.rivals.retain(|other| other.uid != rival);
        }
    }

    /// A plan needs no float, but is bounded by the limit of plans. False where it is over that.
    fn admit_plan(&mut self, uid: &str) -> bool {
        let Some(known) = self.known.get(uid) else {
            return true;
        };
        let (quota_key, order) = (known.quota_key(), known.contender.order);
        let admitted = (self.quota).try_admit(&quota_key, uid, order, std::iter::empty());
        if admitted {
            self.call(&quota_key);
        }
        admitted
    }

    /// Records that a request may push, as the registries said now. Those who share a float with it are to be asked again before its
    /// patience with them is over; gives those.
    pub fn permit(&mut self, uid: &str, now: T) -> Vec<Uid> {
        let Some(known) = self.known.get_mut(uid) else {
            return Vec::new();
        };
        known.permitted = Some(now);
        known.contender.standing = Standing::Eligible;
        let me = known.contender.clone();
        let sharers = self.sharers(&me).into_iter();
        sharers.map(|other| other.uid.clone()).collect()
    }

    /// A request cannot begin, for a reason that is its own: it delays nobody.
    pub fn is_ineligible(&mut self, uid: &str) {
        if let Some(known) = self.known.get(uid) {
            self.stands(uid, known.contender.standing, Standing::Ineligible);
        }
    }

    /// Records whether a request may begin, and wakes those who need not wait for it any more.
    fn stands(&mut self, uid: &str, before: Standing, standing: Standing) {
        let Some(known) = self.known.get_mut(uid) else {
            return;
        };
        known.contender.standing = standing;
        if before != standing {
            let floats: Vec<Float> = known.contender.floats().cloned().collect();
            self.wake_on(floats.iter(), uid);
        }
    }

    /// Work was stopped: requests start their patience with older ones anew, so that resuming lets no newer request pass.
    pub fn renew_patience(&mut self, now: T) {
        for known in self.known.values_mut() {
            known.permitted = known.permitted.map(|_| now);
        }
    }

    // === the limit of a namespace ===

    /// A request that cannot begin for a reason other than its namespace's limit lets the next one try; a plan that is held up counts no
    /// longer.
    pub fn withdraw(&mut self, uid: &str) {
        let Some(known) = self.known.get(uid) else {
            return;
        };
        let quota_key = known.quota_key();
        self.quota.withdraw(&quota_key, uid);
        if quota_key.plans {
            self.quota.release(&quota_key, uid);
        }
        self.call(&quota_key);
    }

    /// Wakes those who may begin now, of what is counted together.
    pub(super) fn call(&mut self, quota_key: &QuotaKey) {
        let called = self.quota.call(quota_key);
        let known = called.iter().filter_map(|uid| self.known.get(uid));
        self.woken.extend(known.map(|known| known.key.clone()));
    }

    // === the release ===

    /// Releases the floats that a request is no longer entitled to, once none of its operations is left to record and none of our
    /// writes can land there. Some: release again then.
    pub fn settle(&mut self, log: &WriteLog<T>, uid: &str, now: T) -> Option<T> {
        let keep = |me: &Self, float: &Float| me.is_entitled(uid, float);
        self.release(log, uid, now, keep)
    }

    /// A request may not go on: it holds up nobody, and gives back a claim that is not saved. Some: [`Self::settle`] then.
    fn not_admitted(
        &mut self,
        log: &WriteLog<T>,
        me: &Recorded,
        over_limit: bool,
        now: T,
    ) -> Option<T> {
        if !over_limit {
            self.withdraw(&me.uid);
        }
        let claimed = me.request.status.started.is_none();
        claimed.then(|| self.release(log, &me.uid, now, |_, _| false))?
    }

    fn release(
        &mut self,
        log: &WriteLog<T>,
        uid: &str,
        now: T,
        keep: impl Fn(&Self, &Float) -> bool,
    ) -> Option<T> {
        let known = self.known.get(uid);
        // What has ended and is not recorded yet is work as well, as long as there is a record.
        let operations = self.operations.get(uid).into_iter();
        let operations = operations.flat_map(|all| all.by_image.values());
        let open = operations.filter(|o| o.outcome.is_none() || known.is_some());
        let open: BTreeSet<Float> = open.map(|o| o.float.clone()).collect();
        let quota_key = known.map(Known::quota_key);
        let kept = |float: &&Float| open.contains(float) || keep(self, float);
        let kept: BTreeSet<Float> = self.claims.floats(uid).filter(kept).cloned().collect();
        let mut again: Option<T> = None;
        let freed = self.claims.release(uid, |float| {
            if kept.contains(float) {
                return true;
            }
            let late = log.late_until(float, now);
            again = [again, late].into_iter().flatten().min();
            late.is_some()
        });
        if open.is_empty() && quota_key.is_none() {
            self.operations.remove(uid);
        }
        self.wake_on(freed.iter(), uid);
        // One that has no float any more is not active. One that plans is until its end.
        if let Some(quota_key) = quota_key.filter(|key| !key.plans && !self.claims.owns_any(uid)) {
            self.quota.release(&quota_key, uid);
            self.call(&quota_key);
        }
        again
    }
}

/// Ends a request on the floats that a newer one claims. False where it cannot be ended, because it is committed there: the newer one
/// waits. `version` is its place if it has none yet.
pub fn end_rival(
    request: &mut Request,
    rival: &Rival,
    version: u64,
    message: &str,
    now: Timestamp,
) -> bool {
    let images = request.images_losing(&rival.floats);
    let begun = |&i: &usize| request.is_committed(i) && request.is_open(i);
    if images.iter().any(begun) {
        return false;
    }
    request.status.supersede(&images, version, message);
    request.note_end(now);
    true
}

/// Why a request that is kept small waits. It does not say how many are before it: that changes whenever one of them ends, and each save
/// that says so is heard of again.
fn beyond(pool: &Pool) -> String {
    format!(
        "older requests of {} wait before it, with as many floats as are kept ready ({FLOATS_MAX}); \
         it comes as they begin or end, the oldest first",
        pool.place()
    )
}

/// Why a request, or a part of it, has ended.
#[must_use]
pub fn superseded_by(name: &str) -> String {
    format!("superseded by {name}, which was created later and has begun on this float")
}
