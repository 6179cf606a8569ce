//! Order among the requests that share a float: who may begin, who waits, who is superseded.
//!
//! [`Claims`] says who owns a float; it is held by the leader and rebuilt from status. [`Contender`]s are what is known of the
//! unfinished requests (from the watch cache, so possibly old): they order those who wait, and never say who owns.
//!
//! A request claims all its floats at once or none, so nobody holds one float while waiting for another: no deadlock. The
//! last created wins: a claim ends every older request on the float that is not committed, before anything is written.

use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use super::pool::registries;
use super::{Latch, Mode, Request};
use crate::image::Float;

/// How long an eligible request waits for an older one whose eligibility is unknown.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Identifies one object over its life.
pub type Uid = String;

/// Who owns which float.
#[derive(Debug, Clone, Default, Hash)]
pub struct Claims {
    owners: BTreeMap<Float, Uid>,
    /// The same by owner, so that a release looks only at its own floats.
    floats: BTreeMap<Uid, BTreeSet<Float>>,
}

/// What is known of an unfinished request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub struct Contender {
    /// Which object.
    pub uid: Uid,
    /// How messages name it: NAMESPACE/NAME.
    pub name: String,
    /// Its place.
    pub order: u64,
    /// Its images' floats.
    pub shares: Vec<Share>,
    /// The registries it names, [as a pool has them](registries).
    pub registries: String,
    /// Whether its floats move together: then it is superseded as a whole.
    pub together: bool,
    /// It claimed its floats once.
    pub started: bool,
    /// `spec.suspend` is set, or all that is left of it is frozen.
    pub suspended: bool,
    /// It has a gate left. One that waits at its gate is superseded by a newer one without, and delays a newer one that has gates itself:
    /// otherwise a float whose tests take longer than the next change would never move.
    pub gated: bool,
    /// Whether it may begin.
    pub standing: Standing,
}

/// One float of a contender.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub struct Share {
    /// The float.
    pub float: Float,
    /// Its image has ended.
    pub finished: bool,
    /// It may move: its image runs to its end.
    pub committed: bool,
    /// Nothing but its gates keeps it from moving.
    pub at_gate: bool,
    /// A freeze holds it back.
    pub frozen: bool,
}

/// Whether a request that has not claimed may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Not known yet.
    Undecided,
    /// It may.
    Eligible,
    /// It may not (suspended, its Secret is missing): it delays nobody.
    Ineligible,
    /// It has gates, and waits for an older one that is at its own: it delays only those that have gates as well.
    BehindGate,
    /// This version cannot read it, so that it is left alone: what it may have begun on is left to it.
    Unreadable,
}

/// What the claims say of a contender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may claim, once these have been ended on these floats.
    Claim(Vec<Rival>),
    /// It waits behind another one.
    Wait {
        /// That one's name.
        behind: String,
        /// Look again after this, if nothing else happens.
        after: Option<Duration>,
        /// That one waits at its gate, or behind one that does.
        gate: bool,
    },
    /// A newer request has begun on these floats.
    Superseded {
        /// That one's name.
        by: String,
        /// The floats.
        floats: Vec<Float>,
    },
}

/// An older request that a claim ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rival {
    /// Which object.
    pub uid: Uid,
    /// Its name.
    pub name: String,
    /// On these floats (of a group: as a whole).
    pub floats: Vec<Float>,
}

// === impl Claims ===

impl Claims {
    /// The owner of a float.
    #[must_use]
    pub fn owner(&self, float: &Float) -> Option<&Uid> {
        self.owners.get(float)
    }

    /// Whether `uid` owns every one of `floats`.
    pub fn holds<'a>(&self, uid: &str, mut floats: impl Iterator<Item = &'a Float>) -> bool {
        floats.all(|float| self.owner(float).is_some_and(|owner| owner == uid))
    }

    /// Gives `floats` to `uid`, all or none. False where another one owns any of them.
    pub fn take(&mut self, uid: &str, floats: &[Float]) -> bool {
        let free = |float: &Float| self.owner(float).is_none_or(|owner| owner == uid);
        if !floats.iter().all(free) {
            return false;
        }
        if !floats.is_empty() {
            let owned = self.floats.entry(uid.to_owned()).or_default();
            owned.extend(floats.iter().cloned());
        }
        self.owners
            .extend(floats.iter().map(|float| (float.clone(), uid.to_owned())));
        true
    }

    /// Takes every float from `uid` that `keep` does not keep; gives those that are free now.
    pub fn release(&mut self, uid: &str, mut keep: impl FnMut(&Float) -> bool) -> Vec<Float> {
        let Some(owned) = self.floats.get_mut(uid) else {
            return Vec::new();
        };
        let released: Vec<_> = owned.extract_if(.., |float| !keep(float)).collect();
        if owned.is_empty() {
            self.floats.remove(uid);
        }
        for float in &released {
            self.owners.remove(float);
        }
        released
    }

    /// Whether `uid` owns any float.
    #[must_use]
    pub fn owns_any(&self, uid: &str) -> bool {
        self.floats.contains_key(uid)
    }

    /// The floats that `uid` owns.
    pub fn floats(&self, uid: &str) -> impl Iterator<Item = &Float> {
        self.floats.get(uid).into_iter().flatten()
    }

    /// How many floats are owned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether nobody owns any float.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whether `me`, eligible and not an owner, may claim, given the other unfinished requests on its floats. `patience` is what is
    /// left of [`PATIENCE`] since it was found eligible.
    pub fn judge<'a>(
        &self,
        me: &Contender,
        others: impl Iterator<Item = &'a Contender> + Clone,
        patience: Duration,
    ) -> Verdict {
        let others = others.filter(|other| other.uid != me.uid);
        if let Some(verdict) = overtaken(me, others.clone()) {
            return verdict;
        }
        if let Some(verdict) = self.blocked(me, others.clone(), patience) {
            return verdict;
        }
        let older = others.filter(|other| other.order < me.order);
        let rivals = older.map(|other| Rival {
            uid: other.uid.clone(),
            name: other.name.clone(),
            floats: me.shared(other, |share| !share.committed),
        });
        Verdict::Claim(rivals.filter(|rival| !rival.floats.is_empty()).collect())
    }

    /// What keeps `me` from claiming: a float that is owned, or an older request that may begin first.
    fn blocked<'a>(
        &self,
        me: &Contender,
        others: impl Iterator<Item = &'a Contender> + Clone,
        patience: Duration,
    ) -> Option<Verdict> {
        let wait = |behind: &str, after| {
            Some(Verdict::Wait {
                behind: behind.into(),
                after,
                gate: false,
            })
        };
        let wait_at_gate = |behind: &str| {
            Some(Verdict::Wait {
                behind: behind.into(),
                after: None,
                gate: true,
            })
        };
        for share in me.shares.iter().filter(|share| !share.finished) {
            if let Some(owner) = self.owner(&share.float).filter(|owner| **owner != me.uid) {
                let other = others.clone().find(|other| other.uid == *owner);
                return wait(
                    other.map_or("a request that has just ended", |o| &o.name),
                    None,
                );
            }
        }
        for other in others {
            // Whatever its order: it may be active.
            let begun = other.standing == Standing::Unreadable && other.started;
            if begun && !me.shared(other, |_| true).is_empty() {
                return wait(&other.name, None);
            }
            if other.order > me.order {
                continue;
            }
            if !me.shared(other, |share| share.committed).is_empty() {
                return wait(&other.name, None);
            }
            let at_gate = me.shared(other, |share| share.at_gate && !share.frozen);
            let contested = me.shared(other, |share| !other.holds_back(share));
            if contested.is_empty() {
                if me.gated && other.gated && !other.suspended && !at_gate.is_empty() {
                    return wait_at_gate(&other.name);
                }
                continue;
            }
            match other.standing {
                Standing::Eligible | Standing::Unreadable => return wait(&other.name, None),
                Standing::BehindGate if me.gated => return wait_at_gate(&other.name),
                Standing::Ineligible | Standing::BehindGate => {}
                Standing::Undecided if patience.is_zero() => {}
                Standing::Undecided => return wait(&other.name, Some(patience)),
            }
        }
        None
    }
}

/// The floats of `me` on which a newer request has begun.
fn overtaken<'a>(me: &Contender, others: impl Iterator<Item = &'a Contender>) -> Option<Verdict> {
    let begun = |other: &&Contender| other.started && other.standing != Standing::Unreadable;
    for other in others.filter(|other| other.order > me.order).filter(begun) {
        let floats = me.shared(other, |_| true);
        if !floats.is_empty() {
            return Some(Verdict::Superseded {
                by: other.name.clone(),
                floats,
            });
        }
    }
    None
}

// === impl Contender ===

impl Contender {
    /// The unfinished floats of `self` on which `other` has an unfinished image that `filter` lets through.
    fn shared(&self, other: &Self, filter: impl Fn(&Share) -> bool) -> Vec<Float> {
        let mine = self.shares.iter().filter(|share| !share.finished);
        mine.filter(|mine| {
            let same = |theirs: &&Share| theirs.float == mine.float && !theirs.finished;
            other.shares.iter().filter(same).any(&filter)
        })
        .map(|share| share.float.clone())
        .collect()
    }

    /// A request as a contender, by its record. A plan contends for nothing.
    #[must_use]
    pub fn of(uid: &str, name: &str, order: u64, request: &Request, standing: Standing) -> Self {
        let promotes = request.spec.mode == Mode::Promote;
        let images = request.spec.images.iter().zip(&request.status.images);
        let shares = images.enumerate().filter(|_| promotes);
        let share = |(index, (spec, _)): (usize, (&super::ImageSpec, &super::Image))| Share {
            float: spec.float.clone(),
            finished: !request.is_open(index),
            committed: request.is_committed(index),
            at_gate: request.awaits_gate(index),
            frozen: request.is_frozen(index),
        };
        let shares: Vec<Share> = shares.map(share).collect();
        let repositories = request.spec.images.iter();
        let repositories = repositories.flat_map(|i| [&i.source.repository, i.float.repository()]);
        let mut open = shares.iter().filter(|share| !share.finished).peekable();
        let frozen = open.peek().is_some() && open.all(|share| share.frozen);
        Self {
            uid: uid.into(),
            name: name.into(),
            order,
            shares,
            registries: registries(repositories),
            together: request.spec.latch == Latch::Together,
            started: request.status.started.is_some(),
            suspended: request.spec.suspend || frozen,
            gated: !request.spec.gates.is_empty(),
            standing,
        }
    }

    /// A request that this version cannot read, as one that is committed on its floats: whoever comes later waits for it, and where it
    /// may have `started` everybody does.
    #[must_use]
    pub fn unreadable(uid: &str, name: &str, order: u64, floats: &[Float], started: bool) -> Self {
        let share = |float: &Float| Share {
            float: float.clone(),
            finished: false,
            committed: true,
            at_gate: false,
            frozen: false,
        };
        Self {
            uid: uid.into(),
            name: format!(
                "{name} (unreadable for this version: upgrade the controller, or delete that request)"
            ),
            order,
            shares: floats.iter().map(share).collect(),
            registries: registries(floats.iter().map(Float::repository)),
            together: true,
            started,
            suspended: false,
            gated: false,
            standing: Standing::Unreadable,
        }
    }

    /// The floats of its images.
    pub fn floats(&self) -> impl Iterator<Item = &Float> {
        self.shares.iter().map(|share| &share.float)
    }

    /// Whether it has work left on a float: its image has not ended, and is not held back before its commit.
    #[must_use]
    pub fn wants(&self, float: &Float) -> bool {
        self.wanted().any(|wanted| wanted == float)
    }

    /// Whether somebody has to let one of its images go on before the commit: it needs no float meanwhile, and delays nobody.
    fn holds_back(&self, share: &Share) -> bool {
        !share.committed && (self.suspended || share.at_gate || share.frozen)
    }

    /// The floats it owns by its record: what it wants, once it has begun.
    #[must_use]
    pub fn owned(&self) -> Vec<Float> {
        let wanted = self.wanted().filter(|_| self.started);
        wanted.cloned().collect()
    }

    fn wanted(&self) -> impl Iterator<Item = &Float> {
        let open = |share: &&Share| !share.finished && !self.holds_back(share);
        self.shares.iter().filter(open).map(|share| &share.float)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use jiff::Timestamp;

    use super::*;
    use crate::machine::{ImageSpec, Phase, Reason, Spec, Status, samples};

    fn float(name: &str) -> Float {
        format!("quay.io/openshift/ci:{name}").parse().unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_770_000_000).unwrap()
    }

    /// An unfinished, eligible request that has not begun; the order is its name.
    fn contender(order: u64, floats: &[&str]) -> Contender {
        let share = |name: &&str| Share {
            float: float(name),
            finished: false,
            committed: false,
            at_gate: false,
            frozen: false,
        };
        Contender {
            uid: order.to_string(),
            name: format!("ci/r{order}"),
            order,
            shares: floats.iter().map(share).collect(),
            registries: "quay.io".into(),
            together: true,
            started: false,
            suspended: false,
            gated: false,
            standing: Standing::Eligible,
        }
    }

    fn judge(claims: &Claims, me: &Contender, others: &[Contender]) -> Verdict {
        claims.judge(me, others.iter(), PATIENCE)
    }

    fn waits_for(verdict: &Verdict) -> Option<&str> {
        match verdict {
            Verdict::Wait { behind, .. } => Some(behind),
            _ => None,
        }
    }

    fn ended(verdict: Verdict) -> Vec<(Uid, Vec<Float>)> {
        match verdict {
            Verdict::Claim(rivals) => rivals.into_iter().map(|r| (r.uid, r.floats)).collect(),
            verdict => panic!("no claim: {verdict:?}"),
        }
    }

    #[test]
    fn floats_are_claimed_all_at_once_or_none() {
        let mut claims = Claims::default();
        assert!(claims.take("1", &[float("a")]));
        assert!(!claims.take("2", &[float("b"), float("a")]));
        assert_eq!(claims.owner(&float("b")), None);
        assert_eq!((claims.len(), claims.is_empty()), (1, false));
        assert!(claims.take("1", &[float("a"), float("b")]));
        assert!(claims.holds("1", [float("a"), float("b")].iter()));
        assert!(!claims.holds("2", [float("a")].iter()));
    }

    #[test]
    fn a_release_frees_what_is_not_kept_and_nothing_of_others() {
        let mut claims = Claims::default();
        claims.take("1", &[float("a"), float("b")]);
        claims.take("2", &[float("c")]);
        assert_eq!(
            claims.release("1", |kept| *kept == float("a")),
            [float("b")]
        );
        assert_eq!(claims.owner(&float("a")), Some(&"1".to_owned()));
        assert_eq!(claims.owner(&float("c")), Some(&"2".to_owned()));
        assert_eq!(claims.release("1", |_| false), [float("a")]);
        assert!(claims.take("3", &[float("a"), float("b")]));
    }

    #[test]
    fn two_spellings_of_one_float_are_one_claim() {
        let mut claims = Claims::default();
        claims.take("1", &["quay.io:443/openshift/ci:a".parse().unwrap()]);
        assert!(!claims.take("2", &[float("a")]));
    }

    #[test]
    fn a_request_claims_when_its_floats_are_free_and_nobody_is_older() {
        let newer = contender(2, &["a"]);
        let elsewhere = contender(1, &["b"]);
        let me = contender(1, &["a"]);
        assert_eq!(
            judge(&Claims::default(), &me, &[newer, elsewhere, me.clone()]),
            Verdict::Claim(vec![])
        );
    }

    #[test]
    fn a_request_waits_for_the_owner_of_any_of_its_floats_whatever_the_order() {
        let mut claims = Claims::default();
        claims.take("9", &[float("b")]);
        let me = contender(1, &["a", "b"]);
        let verdict = judge(&claims, &me, &[contender(9, &["b"])]);
        assert_eq!(waits_for(&verdict), Some("ci/r9"));
        assert!(
            waits_for(&judge(&claims, &me, &[])).is_some(),
            "an owner that is gone has not settled"
        );
    }

    #[test]
    fn a_float_whose_image_has_ended_is_not_waited_for() {
        let mut claims = Claims::default();
        claims.take("9", &[float("b")]);
        let mut me = contender(1, &["a", "b"]);
        me.shares[1].finished = true;
        assert_eq!(
            judge(&claims, &me, &[contender(9, &["b"])]),
            Verdict::Claim(vec![])
        );
        let mut older = contender(1, &["a"]);
        older.shares[0].finished = true;
        assert_eq!(
            judge(&Claims::default(), &contender(2, &["a"]), &[older]),
            Verdict::Claim(vec![])
        );
    }

    #[test]
    fn a_newer_request_waits_for_an_older_eligible_one() {
        let verdict = judge(
            &Claims::default(),
            &contender(2, &["a", "b"]),
            &[contender(1, &["b", "c"])],
        );
        assert_eq!(waits_for(&verdict), Some("ci/r1"));
    }

    #[test]
    fn an_undecided_older_request_is_waited_for_sixty_seconds_and_then_superseded() {
        let mut older = contender(1, &["a"]);
        let me = contender(2, &["a"]);
        older.standing = Standing::Undecided;
        for left in [PATIENCE, Duration::from_secs(1)] {
            let verdict = Claims::default().judge(&me, [&older].into_iter(), left);
            let wait = Verdict::Wait {
                behind: "ci/r1".into(),
                after: Some(left),
                gate: false,
            };
            assert_eq!(verdict, wait);
        }
        let verdict = Claims::default().judge(&me, [&older].into_iter(), Duration::ZERO);
        assert_eq!(ended(verdict), [("1".into(), vec![float("a")])]);
    }

    #[test]
    fn an_unreadable_request_is_waited_for_by_newer_ones_and_by_all_where_it_may_have_begun() {
        for started in [false, true] {
            let odd = Contender::unreadable("2", "ci/r2", 2, &[float("a")], started);
            let verdict = Claims::default().judge(
                &contender(3, &["a", "b"]),
                [&odd].into_iter(),
                Duration::ZERO,
            );
            let behind = waits_for(&verdict).unwrap();
            assert!(
                behind.contains("ci/r2") && behind.contains("upgrade the controller"),
                "{behind}"
            );
            assert!(matches!(verdict, Verdict::Wait { after: None, .. }));
            // It ends nobody: an older one waits, if it has to, and is not superseded.
            let older = judge(
                &Claims::default(),
                &contender(1, &["a"]),
                std::slice::from_ref(&odd),
            );
            assert_eq!(waits_for(&older).is_some(), started, "{older:?}");
            assert_eq!(started, matches!(older, Verdict::Wait { .. }));
            let elsewhere = judge(&Claims::default(), &contender(3, &["b"]), &[odd]);
            assert_eq!(elsewhere, Verdict::Claim(vec![]));
        }
    }

    #[test]
    fn an_ineligible_older_request_delays_nobody_and_is_superseded() {
        let mut older = contender(1, &["a", "b"]);
        older.standing = Standing::Ineligible;
        let verdict = judge(&Claims::default(), &contender(2, &["b", "c"]), &[older]);
        assert_eq!(ended(verdict), [("1".into(), vec![float("b")])]);
    }

    #[test]
    fn a_committed_older_request_is_waited_for_even_where_it_is_ineligible() {
        for standing in [Standing::Ineligible, Standing::Undecided] {
            let mut older = contender(1, &["a", "b"]);
            (older.standing, older.started) = (standing, true);
            older
                .shares
                .iter_mut()
                .for_each(|share| share.committed = true);
            let verdict = judge(&Claims::default(), &contender(2, &["a"]), &[older]);
            assert_eq!(waits_for(&verdict), Some("ci/r1"));
        }
    }

    #[test]
    fn a_request_that_is_older_than_a_started_one_is_superseded_and_never_queued() {
        let mut claims = Claims::default();
        claims.take("2", &[float("a")]);
        let mut newer = contender(2, &["a"]);
        newer.started = true;
        let me = contender(1, &["a", "b"]);
        let superseded = Verdict::Superseded {
            by: "ci/r2".into(),
            floats: vec![float("a")],
        };
        assert_eq!(judge(&claims, &me, &[newer.clone()]), superseded);
        newer.suspended = true;
        newer.standing = Standing::Ineligible;
        assert_eq!(judge(&Claims::default(), &me, &[newer.clone()]), superseded);
        newer.shares[0].finished = true;
        assert_eq!(
            judge(&Claims::default(), &me, &[newer]),
            Verdict::Claim(vec![])
        );
    }

    #[test]
    fn a_newer_request_that_has_not_begun_supersedes_nobody() {
        assert_eq!(
            judge(
                &Claims::default(),
                &contender(1, &["a"]),
                &[contender(2, &["a"])]
            ),
            Verdict::Claim(vec![])
        );
    }

    /// Trace F8: suspended after it began, overtaken, resumed. The record is on the loser, so that it does not matter whether
    /// the winner is still there.
    #[test]
    fn a_request_that_is_suspended_before_its_commit_gives_its_floats_up_and_is_overtaken() {
        let mut older = contender(1, &["a"]);
        (older.started, older.suspended, older.standing) = (true, true, Standing::Ineligible);
        assert_eq!(older.owned(), []);
        let verdict = judge(&Claims::default(), &contender(2, &["a"]), &[older.clone()]);
        assert_eq!(ended(verdict), [("1".into(), vec![float("a")])]);
        let mut newer = contender(2, &["a"]);
        newer.started = true;
        (older.suspended, older.standing) = (false, Standing::Eligible);
        assert!(matches!(
            judge(&Claims::default(), &older, &[newer]),
            Verdict::Superseded { .. }
        ));
        assert_eq!(
            judge(&Claims::default(), &older, &[]),
            Verdict::Claim(vec![]),
            "resumed undisturbed"
        );
    }

    #[test]
    fn a_committed_request_keeps_its_floats_although_it_is_suspended() {
        let mut me = contender(1, &["a", "b"]);
        (me.started, me.suspended) = (true, true);
        me.shares[1].committed = true;
        assert_eq!(me.owned(), [float("b")]);
        me.suspended = false;
        assert_eq!(me.owned(), [float("a"), float("b")]);
        me.shares[0].finished = true;
        assert_eq!(me.owned(), [float("b")]);
        me.started = false;
        assert_eq!(me.owned(), []);
    }

    /// Trace F11: {a, b} seen late and {b, a}. Whoever claims has both; the other owns nothing while it waits.
    #[test]
    fn groups_over_the_same_floats_in_any_order_do_not_wait_for_each_other() {
        let (mut one, mut two) = (contender(1, &["a", "b"]), contender(2, &["b", "a"]));
        one.standing = Standing::Undecided;
        let mut claims = Claims::default();
        let verdict = claims.judge(&two, [&one].into_iter(), Duration::ZERO);
        assert_eq!(ended(verdict).len(), 1);
        assert!(claims.take("2", &[float("b"), float("a")]));
        two.started = true;
        one.standing = Standing::Eligible;
        assert!(matches!(
            judge(&claims, &one, &[two]),
            Verdict::Superseded { .. }
        ));
        assert!(!claims.take("1", &[float("a"), float("b")]));
        assert_eq!(claims.release("1", |_| false), []);
    }

    /// A float whose tests take longer than the time to the next change would never move otherwise. Nobody without gates waits for it,
    /// or for one that waits for it.
    #[test]
    fn one_at_its_gate_delays_those_with_gates_alone_and_so_do_those_behind_it() {
        let mut first = contender(1, &["a"]);
        (first.started, first.gated) = (true, true);
        first.shares[0].at_gate = true;
        assert_eq!(first.owned(), []);
        let mut second = contender(2, &["a", "b"]);
        second.gated = true;
        let none = Claims::default();
        let wait = |behind: &str| Verdict::Wait {
            behind: behind.into(),
            after: None,
            gate: true,
        };
        assert_eq!(judge(&none, &second, &[first.clone()]), wait("ci/r1"));
        second.standing = Standing::BehindGate;
        let mut third = contender(3, &["b"]);
        let passed = judge(&none, &third, &[second.clone()]);
        assert_eq!(ended(passed), [("2".into(), vec![float("b")])]);
        third.gated = true;
        assert_eq!(judge(&none, &third, &[second.clone()]), wait("ci/r2"));
        let free = contender(4, &["a"]);
        let passed = judge(&none, &free, &[first.clone(), second.clone()]);
        assert_eq!(ended(passed).len(), 2);
        // Suspended it delays nobody at all.
        first.suspended = true;
        second.standing = Standing::Eligible;
        assert_eq!(ended(judge(&none, &second, &[first])).len(), 1);
    }

    /// Trace V7: under Independently a claim ends only the image that it takes, and waits only for that one.
    #[test]
    fn under_independently_a_claim_goes_image_by_image() {
        let mut older = contender(1, &["a", "b"]);
        (older.together, older.started, older.suspended) = (false, true, true);
        older.standing = Standing::Ineligible;
        older.shares[0].committed = true;
        let others = [older];
        let verdict = judge(&Claims::default(), &contender(2, &["b"]), &others);
        assert_eq!(ended(verdict), [("1".into(), vec![float("b")])]);
        let verdict = judge(&Claims::default(), &contender(3, &["a"]), &others);
        assert_eq!(waits_for(&verdict), Some("ci/r1"));
        let verdict = judge(&Claims::default(), &contender(4, &["a", "b"]), &others);
        assert_eq!(waits_for(&verdict), Some("ci/r1"), "all its floats at once");
    }

    fn request(latch: Latch, mode: Mode) -> Request {
        let image = |name: &str| ImageSpec {
            source: "registry.ci/ci/src:x".parse().unwrap(),
            float: float(name),
            replaces: None,
            freeze: None,
            remove_incoming: false,
        };
        let images = vec![image("a"), image("b")];
        let spec = Spec {
            mode,
            suspend: true,
            ..samples::spec(images, latch)
        };
        let mut status = Status::new(2);
        status.started = Some(now());
        Request { spec, status }
    }

    fn shares(request: &Request) -> Vec<(bool, bool)> {
        let me = Contender::of("1", "ci/r1", 1, request, Standing::Eligible);
        assert!(me.started && me.suspended);
        me.shares
            .iter()
            .map(|share| (share.finished, share.committed))
            .collect()
    }

    #[test]
    fn a_contender_is_committed_as_a_whole_together_and_image_by_image_independently() {
        let mut group = request(Latch::Together, Mode::Promote);
        group.status.committed = true;
        group.status.images[0].end(Phase::Posted, Reason::Promoted, "");
        assert_eq!(shares(&group), [(true, true), (false, true)]);
        let mut each = request(Latch::Independently, Mode::Promote);
        each.status.images[1].committed = true;
        assert_eq!(shares(&each), [(false, false), (false, true)]);
    }

    #[test]
    fn a_request_that_only_plans_contends_for_nothing() {
        assert_eq!(shares(&request(Latch::Together, Mode::Plan)), []);
    }
}
