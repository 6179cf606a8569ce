//! Order among the requests that share a float: who may begin, who waits, who is superseded.
//!
//! [`Claims`] says who owns a float; it is held by the leader and rebuilt from status. [`Contender`]s are what is known of the
//! unfinished requests (from the watch cache, so possibly old): they order those who wait, and never say who owns.
//!
//! A request claims all its floats at once or none, so nobody holds one float while waiting for another: no deadlock. The
//! last created wins: a claim ends every older request on the float that is not committed, before anything is written.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::{Latch, Mode, Request};
use crate::image::Float;

/// How long a newer request waits for an older one of which it is not known whether it may begin, in seconds.
pub const UNDECIDED_SECONDS: i64 = 60;

/// Identifies one object over its life.
pub type Uid = String;

/// Who owns which float.
#[derive(Debug, Default)]
pub struct Claims {
    owners: HashMap<Float, Uid>,
}

/// What is known of an unfinished request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// Which object.
    pub uid: Uid,
    /// How messages name it: NAMESPACE/NAME.
    pub name: String,
    /// Its place.
    pub order: u64,
    /// Its images' floats.
    pub shares: Vec<Share>,
    /// Whether its floats move together: then it is superseded as a whole.
    pub together: bool,
    /// It claimed its floats once.
    pub started: bool,
    /// `spec.suspend` is set.
    pub suspended: bool,
    /// Whether it may begin.
    pub standing: Standing,
}

/// One float of a contender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The float.
    pub float: Float,
    /// Its image has ended.
    pub finished: bool,
    /// It may move: its image runs to its end.
    pub committed: bool,
}

/// Whether a request that has not claimed may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not known yet; first seen by this leader then.
    Undecided {
        /// When this leader first saw it.
        since: Timestamp,
    },
    /// It may.
    Eligible,
    /// It may not (suspended, its Secret is missing): it delays nobody.
    Ineligible,
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
        /// Look again then, if nothing else happens.
        until: Option<Timestamp>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
        self.owners
            .extend(floats.iter().map(|float| (float.clone(), uid.to_owned())));
        true
    }

    /// Takes every float from `uid` that `keep` does not keep; gives those that are free now.
    pub fn release(&mut self, uid: &str, mut keep: impl FnMut(&Float) -> bool) -> Vec<Float> {
        let gone = |float: &Float, owner: &mut Uid| owner == uid && !keep(float);
        self.owners
            .extract_if(gone)
            .map(|(float, _)| float)
            .collect()
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

    /// Whether `me`, eligible and not an owner, may claim, given the other unfinished requests on its floats.
    pub fn judge<'a>(
        &self,
        me: &Contender,
        others: impl Iterator<Item = &'a Contender> + Clone,
        now: Timestamp,
    ) -> Verdict {
        let others = others.filter(|other| other.uid != me.uid);
        if let Some(verdict) = overtaken(me, others.clone()) {
            return verdict;
        }
        if let Some(verdict) = self.blocked(me, others.clone(), now) {
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
        now: Timestamp,
    ) -> Option<Verdict> {
        let wait = |behind: &str, until| {
            Some(Verdict::Wait {
                behind: behind.into(),
                until,
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
        for other in others.filter(|other| other.order < me.order) {
            if !me.shared(other, |share| share.committed).is_empty() {
                return wait(&other.name, None);
            }
            if me.shared(other, |_| true).is_empty() {
                continue;
            }
            match other.standing {
                Standing::Eligible => return wait(&other.name, None),
                Standing::Ineligible => {}
                Standing::Undecided { since } => {
                    let until = since + SignedDuration::from_secs(UNDECIDED_SECONDS);
                    if now < until {
                        return wait(&other.name, Some(until));
                    }
                }
            }
        }
        None
    }
}

/// The floats of `me` on which a newer request has begun.
fn overtaken<'a>(me: &Contender, others: impl Iterator<Item = &'a Contender>) -> Option<Verdict> {
    for other in others.filter(|other| other.order > me.order && other.started) {
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

    /// What a request's record says of it as a contender. One that only plans contends for nothing.
    #[must_use]
    pub fn of(uid: &str, name: &str, order: u64, request: &Request, standing: Standing) -> Self {
        let promotes = request.spec.mode == Mode::Promote;
        let images = request.spec.images.iter().zip(&request.status.images);
        let shares = images.enumerate().filter(|_| promotes);
        let share = |(index, (spec, image)): (usize, (&super::ImageSpec, &super::Image))| Share {
            float: spec.float.clone(),
            finished: image.phase.is_finished(),
            committed: request.is_committed(index),
        };
        Self {
            uid: uid.into(),
            name: name.into(),
            order,
            shares: shares.map(share).collect(),
            together: request.spec.latch == Latch::Together,
            started: request.status.started.is_some(),
            suspended: request.spec.suspend,
            standing,
        }
    }

    /// The floats it owns by its record: begun, not ended, and not given up by a suspension before the commit.
    #[must_use]
    pub fn owned(&self) -> Vec<Float> {
        let owned = |share: &&Share| !share.finished && (share.committed || !self.suspended);
        let shares = self
            .shares
            .iter()
            .filter(|share| self.started && owned(share));
        shares.map(|share| share.float.clone()).collect()
    }
}
