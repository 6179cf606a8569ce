//! Who kills, freezes and ends replicas at random, and keeps count of what that does to the lead.
//!
//! Enters: a seed, from which every choice is drawn. Leaves: each loss of the lead with the moment at which it passed on. The
//! first three strikes are a kill, a freeze beyond the lease and a request to end, each on the leader, in any order.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::replicas::Replicas;
use crate::testbed::Signal;

/// How often the lease is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A leader that goes on and still leads after this has not lost its lease.
const AWAKE: Duration = Duration::from_secs(4);

/// A leader that was struck so that another had to follow.
pub struct Fall {
    pub how: Signal,
    /// In milliseconds since 1970.
    pub at: i64,
    /// When another held the lease.
    pub followed: Option<i64>,
    /// Somebody was struck before that.
    pub disturbed: bool,
}

/// How often what was done.
#[derive(Debug, Default)]
pub struct Strikes {
    pub kills: usize,
    pub freezes: usize,
    pub ends: usize,
}

/// The adversary at work.
pub struct Adversary {
    draws: StdRng,
    planned: Vec<Signal>,
    holder: Option<String>,
    pub strikes: Strikes,
    pub falls: Vec<Fall>,
}

impl Adversary {
    pub fn new(seed: u64) -> Self {
        let mut draws = StdRng::seed_from_u64(seed);
        let mut planned = vec![Signal::Kill, Signal::Freeze, Signal::Terminate];
        planned.shuffle(&mut draws);
        Self {
            draws,
            planned,
            holder: None,
            strikes: Strikes::default(),
            falls: Vec::new(),
        }
    }

    /// Strikes until `end`.
    pub async fn rage(&mut self, replicas: &mut Replicas<'_>, end: Instant) {
        let mut due = Instant::now() + self.between(2.0, 5.0);
        while Instant::now() < end {
            let led = self.holder.clone();
            let leader = self.watch(replicas).await;
            if self.holder != led {
                // A new leader has a while to work.
                due = Instant::now() + self.between(2.0, 6.0);
            }
            if Instant::now() >= due {
                due = Instant::now() + self.strike(replicas, leader);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks who leads, and tends to the replicas.
    pub async fn watch(&mut self, replicas: &mut Replicas<'_>) -> Option<usize> {
        replicas.tend();
        let (leader, holder) = replicas.leader().await;
        if holder.is_some() && holder != self.holder {
            replicas.note(&format!("{} leads", holder.as_deref().unwrap_or_default()));
            self.holder = holder;
            if let Some(fall) = self.falls.iter_mut().find(|fall| fall.followed.is_none()) {
                fall.followed = Some(Timestamp::now().as_millisecond());
            }
        }
        let thawed = leader.and_then(|leader| replicas.pair[leader].thawed);
        if thawed.is_some_and(|at| at.elapsed() > AWAKE) {
            self.falls
                .retain(|fall| fall.followed.is_some() || fall.how != Signal::Freeze);
        }
        leader
    }

    /// Does one thing and says when to do the next.
    fn strike(&mut self, replicas: &mut Replicas<'_>, leader: Option<usize>) -> Duration {
        // One that is frozen or on its way out does not lead for long.
        let falling = self
            .falls
            .last()
            .is_some_and(|fall| fall.followed.is_none());
        let awake = leader.filter(|&leader| replicas.pair[leader].frozen.is_none() && !falling);
        let Some(leader) = awake else {
            if self.draws.random_bool(0.05) {
                let victim = self.draws.random_range(0..2);
                self.strikes.kills += 1;
                replicas.strike(victim, Signal::Kill, Duration::ZERO);
                if let Some(fall) = self.falls.last_mut() {
                    fall.disturbed |= fall.followed.is_none();
                }
            }
            return Duration::from_secs(2);
        };
        let follower = 1 - leader;
        let planned = self.planned.pop();
        let signal = planned.unwrap_or_else(|| match self.draws.random_range(0..100) {
            0..40 => Signal::Kill,
            40..75 => Signal::Freeze,
            _ => Signal::Terminate,
        });
        let victim = match (planned, signal) {
            (None, Signal::Kill | Signal::Freeze) if self.draws.random_bool(0.25) => follower,
            _ => leader,
        };
        let frozen = match planned {
            Some(_) => self.between(18.0, 25.0),
            None => self.between(1.0, 25.0),
        };
        match signal {
            Signal::Kill => self.strikes.kills += 1,
            Signal::Freeze => self.strikes.freezes += 1,
            Signal::Terminate | Signal::Thaw => self.strikes.ends += 1,
        }
        replicas.strike(victim, signal, frozen);
        if victim == leader {
            self.falls.push(Fall {
                how: signal,
                at: Timestamp::now().as_millisecond(),
                followed: None,
                disturbed: false,
            });
        }
        self.between(2.0, 6.0)
    }

    fn between(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.draws.random_range(from..to))
    }
}
