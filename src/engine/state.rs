//! What the engine knows beside the objects: requests in work, their operations, who contends for which float, who owns it.
//!
//! Plain data behind one lock that is never held over an await. Losing all of it loses nothing: status has what matters.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::account::{Entered, Facts};
use super::brake::Brake;
use super::reconcile::Record;
use crate::image::Float;
use crate::machine::claims::{Claims, Contender, Standing, Uid};
use crate::machine::seats::{Room, Seats};
use crate::machine::{Outcome, Reason, Step};
use crate::registry::Activity;
use crate::store::{Access, Key};

/// For so long a request that has left is remembered: whoever read it before does not bring it back.
const LEFT: Duration = Duration::from_mins(1);

/// Everything in memory.
#[derive(Default)]
pub(super) struct State {
    pub claims: Claims,
    /// How many of a namespace may have begun at once.
    pub seats: Seats,
    /// The unfinished requests that are known.
    pub known: HashMap<Uid, Known>,
    /// Which of them have a name: one, most often.
    by_key: HashMap<Key, Vec<Uid>>,
    /// Which of them name a float.
    by_float: HashMap<Float, HashSet<Uid>>,
    /// What runs, also of requests that are gone meanwhile.
    pub flights: HashMap<Uid, Flight>,
    /// Requests that have ended or were deleted of late. A UID never comes back.
    left: HashMap<Uid, Entered>,
    /// The same, the oldest first.
    leaving: VecDeque<(Uid, Instant)>,
    /// What the operator has stopped.
    pub brake: Brake,
    /// Nothing more is launched.
    pub draining: bool,
    next_flight: u64,
}

/// An unfinished request.
pub(super) struct Known {
    pub key: Key,
    /// The resourceVersion this was read at: older readings do not replace it.
    pub version: u64,
    pub contender: Contender,
    /// It has taken floats, and has not yet ended all whom that supersedes: it may not begin.
    pub claiming: bool,
    /// Whether it may begin, as far as it was asked.
    pub asked: Asked,
    /// The resourceVersion of our own last save.
    pub saved: Option<u64>,
    /// A save is on its way, and the newest resourceVersion heard of meanwhile, or 0: our own save coming back, most often.
    pub saving: Option<u64>,
    /// A save that was sent and whose answer was lost.
    pub unanswered: Option<Box<Record>>,
    /// When it was saved last.
    pub saved_at: Option<Instant>,
    /// A trigger is set for later.
    pub triggered: bool,
    /// Events told.
    pub told: u32,
    /// Told once that the cancel came too late.
    pub told_cancel: bool,
    /// What is told of it at a scrape.
    pub facts: Facts,
    /// When its images entered their phases.
    pub entered: Entered,
}

/// The answer to whether a request may begin.
#[derive(Default)]
pub(super) enum Asked {
    /// Not asked yet.
    #[default]
    Not,
    /// Being asked.
    Running(CancellationToken, Arc<Activity>),
    /// It may.
    Yes,
    /// It may not, for good.
    No(Reason, String),
    /// It may not, or it is not known, for now: ask again then.
    NotNow {
        reason: Reason,
        message: String,
        tries: u32,
        again: Instant,
    },
}

/// The operations of a request.
#[derive(Default)]
pub(super) struct Flight {
    pub operations: BTreeMap<usize, InFlight>,
}

/// An operation, running or ended and not yet recorded.
pub(super) struct InFlight {
    pub id: u64,
    pub step: Step,
    pub float: Float,
    /// What it acts with.
    pub access: Access,
    pub cancel: CancellationToken,
    pub activity: Arc<Activity>,
    pub started: Instant,
    pub outcome: Option<Outcome>,
}

impl Known {
    /// With whom it is counted. One that only plans contends for nothing.
    pub fn room(&self) -> Room {
        Room {
            namespace: self.key.namespace.clone(),
            plans: self.contender.shares.is_empty(),
        }
    }
}

impl State {
    pub fn new(seats: Seats) -> Self {
        Self {
            seats,
            ..Self::default()
        }
    }

    /// Those of a room who are to come now, as there are seats.
    pub fn call(&mut self, room: &Room) -> Vec<Key> {
        let called = self.seats.call(room);
        let known = called.iter().filter_map(|uid| self.known.get(uid));
        known.map(|known| known.key.clone()).collect()
    }

    /// A request has no float any more: its seat is free. One that plans keeps its own to its end.
    pub fn leave_seat(&mut self, uid: &str) -> Vec<Key> {
        let Some(known) = self.known.get(uid) else {
            return Vec::new();
        };
        let room = known.room();
        let floats = known.contender.shares.iter().map(|share| &share.float);
        let mut owners = floats.filter_map(|float| self.claims.owner(float));
        if room.plans || owners.any(|owner| owner == uid) {
            return Vec::new();
        }
        self.seats.leave(&room, uid);
        self.call(&room)
    }

    /// A number no other operation of this process has.
    pub fn next_flight(&mut self) -> u64 {
        self.next_flight += 1;
        self.next_flight
    }

    /// Takes note of a request as it was read at `version`. False where it is known as newer already, or has left since: it would
    /// hold up others for ever, because nothing more is heard of it.
    pub fn note(
        &mut self,
        key: &Key,
        version: u64,
        mut contender: Contender,
        facts: Facts,
        now: Timestamp,
    ) -> bool {
        let uid = contender.uid.clone();
        if let Some(known) = self.known.get_mut(&uid) {
            if known.version > version {
                return false;
            }
            contender.standing = known.contender.standing;
            known.version = version;
            known.contender = contender;
            known.facts = facts;
            return true;
        }
        if self.left.contains_key(&uid) {
            return false;
        }
        contender.standing = Standing::Undecided { since: now };
        self.by_key
            .entry(key.clone())
            .or_default()
            .push(uid.clone());
        for share in &contender.shares {
            self.by_float
                .entry(share.float.clone())
                .or_default()
                .insert(uid.clone());
        }
        let known = Known {
            key: key.clone(),
            version,
            contender,
            claiming: false,
            asked: Asked::Not,
            saved: None,
            saving: None,
            unanswered: None,
            saved_at: None,
            triggered: false,
            told: 0,
            told_cancel: false,
            facts,
            entered: Entered::new(),
        };
        self.known.insert(uid, known);
        true
    }

    /// Forgets a request that has ended or is gone.
    pub fn forget(&mut self, uid: &str) -> Option<Known> {
        let mut known = self.known.remove(uid);
        let entered = known
            .as_mut()
            .map(|known| std::mem::take(&mut known.entered));
        self.remember_left(uid, entered);
        let known = known?;
        if let Some(uids) = self.by_key.get_mut(&known.key) {
            uids.retain(|other| other != uid);
            if uids.is_empty() {
                self.by_key.remove(&known.key);
            }
        }
        for share in &known.contender.shares {
            if let Some(uids) = self.by_float.get_mut(&share.float) {
                uids.remove(uid);
                if uids.is_empty() {
                    self.by_float.remove(&share.float);
                }
            }
        }
        Some(known)
    }

    /// When the images of a request entered their phases: its own end may come back by the watch before it is answered.
    pub fn take_entered(&mut self, uid: &str) -> Entered {
        let known = self.known.get_mut(uid).map(|known| &mut known.entered);
        let entered = known.or(self.left.get_mut(uid));
        entered.map(std::mem::take).unwrap_or_default()
    }

    fn remember_left(&mut self, uid: &str, entered: Option<Entered>) {
        let now = Instant::now();
        while self
            .leaving
            .front()
            .is_some_and(|(_, at)| *at + LEFT <= now)
        {
            if let Some((uid, _)) = self.leaving.pop_front() {
                self.left.remove(&uid);
            }
        }
        match self.left.entry(uid.to_owned()) {
            Entry::Vacant(place) => {
                place.insert(entered.unwrap_or_default());
                self.leaving.push_back((uid.to_owned(), now));
            }
            Entry::Occupied(mut place) => {
                if let Some(entered) = entered {
                    place.insert(entered);
                }
            }
        }
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

    /// The operations of a request that still run.
    pub fn running(&self, uid: &str) -> impl Iterator<Item = (usize, &InFlight)> {
        let operations = self.flights.get(uid).map(|flight| &flight.operations);
        let all = operations.into_iter().flatten();
        all.filter(|(_, o)| o.outcome.is_none())
            .map(|(index, o)| (*index, o))
    }

    /// How many operations run in all.
    pub fn running_in_all(&self) -> usize {
        let operations = self
            .flights
            .values()
            .flat_map(|flight| flight.operations.values());
        operations.filter(|o| o.outcome.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::claims::Share;

    #[test]
    fn a_request_that_has_left_does_not_contend_again_for_who_read_it_before() {
        let float: Float = "quay.io/openshift/ci:ocp_4.21_cli".parse().unwrap();
        let (now, key) = (
            Timestamp::UNIX_EPOCH,
            Key {
                namespace: "ci".into(),
                name: "r".into(),
            },
        );
        let contender = |uid: &str| Contender {
            uid: uid.into(),
            name: "ci/r".into(),
            order: 1,
            shares: vec![Share {
                float: float.clone(),
                finished: false,
                committed: false,
            }],
            together: true,
            started: false,
            suspended: false,
            standing: Standing::Undecided { since: now },
        };
        let mut state = State::default();
        assert!(state.note(&key, 1, contender("old"), Facts::default(), now));
        assert!(state.forget("old").is_some());
        assert!(!state.note(&key, 2, contender("old"), Facts::default(), now));
        assert!(state.sharers(&contender("old")).is_empty());
        // Created anew under its name it is another request.
        assert!(state.note(&key, 3, contender("new"), Facts::default(), now));
        assert_eq!(state.named(&key), ["new"]);
    }
}
