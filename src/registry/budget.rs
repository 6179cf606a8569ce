//! What one registry host is asked to bear: requests in flight, requests a second, and rest while it is unwell.
//!
//! There is one [`Host`] for each address, for the whole process; every request passes it. Guaranteed: never more than
//! `concurrency` requests in flight (tokens apart, which have two places of their own, so that who holds a place can always
//! renew a token); while the host is unwell, one request at a time asks whether it is well again.
//!
//! Places are taken in one order, so that no two copies wait for each other: hosts by name, and whoever holds one place waits for
//! nothing else but places further on in that order.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::activity::Activity;
use super::breaker::{Bad, Breaker, Ticket};
use super::error::Error;
use super::queue::{Permit, Queue, Want};
use crate::machine::Reason;
use crate::metrics::{self, Metrics, RegistryState, Scrape};

/// Token fetches in flight per host: quay limits its token endpoint to a burst of two.
const TOKENS: usize = 2;
/// How many hosts are remembered before those nobody uses are forgotten.
const HOSTS_MAX: usize = 1024;

/// What kind of request it is, for pacing: quay limits manifests and blobs apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Manifests,
    Blobs,
    /// Tokens and pings: paced with the manifests, in places of their own.
    Tokens,
}

impl Lane {
    /// The lane whose turns it takes.
    pub(super) fn paced(self) -> Self {
        match self {
            Self::Manifests | Self::Tokens => Self::Manifests,
            Self::Blobs => Self::Blobs,
        }
    }
}

/// The limits of every host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests a second in each lane; 0: no pacing.
    pub(super) qps: u32,
    /// Requests in flight.
    pub(super) concurrency: usize,
    /// The first rest of an unwell host.
    pub(super) rest_first: Duration,
    /// Its longest rest.
    pub(super) rest_max: Duration,
}

/// All hosts spoken to so far.
#[derive(Debug)]
pub(super) struct Hosts {
    limits: Limits,
    metrics: Metrics,
    /// The hosts that the configuration names in full.
    named: HashSet<String>,
    known: Mutex<HashMap<String, Arc<Host>>>,
}

/// One address, `HOST:PORT`, and its state.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    /// What it is counted as.
    pub(super) label: metrics::Host,
    queue: Arc<Queue>,
    tokens: Arc<Semaphore>,
    /// Open while the host is unwell or limits the rate.
    all: Arc<Breaker>,
    /// Open while the host refuses writes.
    writes: Arc<Breaker>,
    served: AtomicU64,
}

/// What one request needs of its host before it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// What kind it is.
    pub(super) lane: Lane,
    /// Whether the caller holds a place on the host already.
    pub(super) placed: bool,
    /// Whether it rests on a look that must not grow old.
    pub(super) prompt: bool,
}

/// A request's place and turn; the place is given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: Permit,
    _token: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Nothing was sent: its turn is another's.
    pub(super) fn unused(self) {
        self.permit.unused();
    }
}

impl Hosts {
    /// `named`: the addresses, `HOST:PORT`, that the configuration names in full.
    pub(super) fn new(limits: Limits, metrics: Metrics, named: HashSet<String>) -> Self {
        Self {
            limits,
            metrics,
            named,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Tells what each is asked to bear now.
    pub(super) fn tell(&self, scrape: &Scrape<'_>) {
        let hosts: Vec<_> = lock(&self.known).values().cloned().collect();
        for host in hosts {
            let (in_flight, queued, limit) = host.queue.load();
            let state = RegistryState {
                rests: host.all.is_open(),
                refuses_writes: host.writes.is_open(),
                in_flight,
                queued,
                limit,
            };
            scrape.registry(&host.label, state);
        }
    }

    /// The state of the host of this name, made where there is none.
    pub(super) fn get(&self, name: &str) -> Arc<Host> {
        let mut hosts = lock(&self.known);
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let host = hosts.entry(name.to_owned()).or_insert_with(|| {
            let label = self.metrics.host(name, self.named.contains(name));
            Arc::new(Host {
                label,
                ..Host::new(name, self.limits)
            })
        });
        Arc::clone(host)
    }
}

impl Host {
    fn new(name: &str, limits: Limits) -> Self {
        let breaker = || Arc::new(Breaker::new(limits.rest_first, limits.rest_max));
        Self {
            name: name.to_owned(),
            label: name.into(),
            queue: Queue::new(limits),
            tokens: Arc::new(Semaphore::new(TOKENS)),
            all: breaker(),
            writes: breaker(),
            served: AtomicU64::new(0),
        }
    }

    /// Waits until the host is well (and takes writes, if it is to be written to), or says that it takes too long.
    pub(super) async fn admit(
        &self,
        write: bool,
        deadline: Option<Instant>,
        activity: &Activity,
    ) -> Result<Admission, Error> {
        let writes = if write {
            Some(self.writes.pass(deadline, activity).await?)
        } else {
            None
        };
        let all = self.all.pass(deadline, activity).await?;
        Ok(Admission { all, writes })
    }

    /// Waits until the host may be asked again, without asking.
    pub(super) async fn well(&self, write: bool, activity: &Activity) {
        // A ticket that is dropped leaves the probe to the next.
        let _ = self.admit(write, None, activity).await;
    }

    /// Waits for a place and a turn for one request.
    pub(super) async fn enter(&self, entry: Entry, activity: &Activity) -> Place {
        let token = if entry.lane == Lane::Tokens {
            // None only if the semaphore were closed, which nobody does.
            Arc::clone(&self.tokens).acquire_owned().await.ok()
        } else {
            None
        };
        let placed = entry.placed || token.is_some();
        let want = Want {
            party: activity.party(),
            places: usize::from(!placed),
            turn: Some(entry.lane),
            prompt: entry.prompt,
        };
        Place {
            permit: self.queue.enter(want).await,
            _token: token,
        }
    }

    /// The host answered with something of use.
    pub(super) fn serves(&self, lane: Lane, admission: Admission) {
        self.served.fetch_add(1, Ordering::Relaxed);
        admission.all.good();
        if let Some(writes) = admission.writes {
            writes.good();
        }
        self.queue.served(lane);
    }

    /// The host limits the rate: it is asked for less from now on, and rests where it says so or says it again.
    pub(super) fn limits(
        &self,
        lane: Lane,
        place: &Place,
        admission: Admission,
        after: Option<Duration>,
    ) {
        self.queue.limited(lane, &place.permit);
        admission.all.bad(Bad {
            reason: Reason::RateLimited,
            message: format!("{} limits the rate", self.name),
            after,
            certain: false,
        });
    }

    /// The host takes no writes.
    pub(super) fn read_only(&self, admission: Admission) {
        admission.all.good();
        if let Some(writes) = admission.writes {
            writes.bad(Bad {
                reason: Reason::RegistryReadOnly,
                message: format!("{} is read-only", self.name),
                after: None,
                certain: true,
            });
        }
    }

    /// Whether it rests from requests of this kind.
    pub(super) fn rests(&self, write: bool) -> bool {
        self.all.is_open() || (write && self.writes.is_open())
    }

    /// How many answers of use this host has given.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits for the places of a stream that has so many ends here.
    async fn stream(&self, ends: usize, activity: &Activity) -> Permit {
        let want = Want {
            party: activity.party(),
            places: ends,
            turn: None,
            prompt: false,
        };
        self.queue.enter(want).await
    }
}

/// Places for a stream from one host to another, in the order that excludes a circle.
pub(super) async fn stream_places(
    from: &Arc<Host>,
    to: &Arc<Host>,
    activity: &Activity,
) -> Vec<Permit> {
    if from.name == to.name {
        return vec![to.stream(2, activity).await];
    }
    let (first, second) = if from.name < to.name {
        (from, to)
    } else {
        (to, from)
    };
    vec![
        first.stream(1, activity).await,
        second.stream(1, activity).await,
    ]
}

/// Leave to send one request; what became of it is told to the breakers through it.
#[derive(Debug)]
pub(super) struct Admission {
    all: Ticket,
    writes: Option<Ticket>,
}

impl Admission {
    /// The host is unwell (for certain, or so it seems), and may have said for how long.
    pub(super) fn unwell(self, message: String, after: Option<Duration>, certain: bool) {
        self.all.bad(Bad {
            reason: Reason::RegistryUnavailable,
            message,
            after,
            certain,
        });
    }

    /// Whether the host became unwell since: waiting for a place can take long.
    pub(super) fn is_stale(&self) -> bool {
        self.all.is_stale() || self.writes.as_ref().is_some_and(Ticket::is_stale)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limits() -> Limits {
        Limits {
            qps: 40,
            concurrency: 4,
            rest_first: Duration::from_secs(1),
            rest_max: Duration::from_mins(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_rest_one_request_probes_and_the_others_wait_for_its_answer() {
        let host = Arc::new(Host::new("h", limits()));
        let activity = Activity::default();
        let first = host.admit(false, None, &activity).await.unwrap();
        first.unwell("h answered 503".into(), None, true);
        let start = Instant::now();
        let probe = host.admit(false, None, &activity).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        let other = tokio::spawn({
            let (host, activity) = (Arc::clone(&host), activity.clone());
            async move {
                host.admit(false, None, &activity)
                    .await
                    .map(|_| Instant::now())
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!other.is_finished());
        assert_eq!(
            activity.waiting().unwrap().reason,
            Reason::RegistryUnavailable
        );
        host.serves(Lane::Manifests, probe);
        assert_eq!(
            other.await.unwrap().unwrap() - start,
            Duration::from_millis(1300)
        );
        assert_eq!(activity.waiting(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_leaves_its_turn_to_the_next() {
        let host = Host::new("h", limits());
        let activity = Activity::default();
        let first = host.admit(false, None, &activity).await.unwrap();
        first.unwell("x".into(), None, true);
        drop(host.admit(false, None, &activity).await.unwrap());
        let start = Instant::now();
        assert!(host.admit(false, None, &activity).await.is_ok());
        assert!(start.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_only_host_is_read_all_the_same() {
        let host = Host::new("h", limits());
        let activity = Activity::default();
        let write = host.admit(true, None, &activity).await.unwrap();
        host.read_only(write);
        let start = Instant::now();
        assert!(host.admit(false, None, &activity).await.is_ok());
        assert!(start.elapsed().is_zero());
        let error = host.admit(true, Some(start), &activity).await.unwrap_err();
        assert_eq!(error.reason, Reason::RegistryReadOnly);
        assert!(host.admit(true, None, &activity).await.is_ok());
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn streams_both_ways_between_two_hosts_never_wait_for_each_other() {
        let (a, b) = (
            Arc::new(Host::new("a", limits())),
            Arc::new(Host::new("b", limits())),
        );
        let mut tasks = Vec::new();
        for n in 0..60 {
            let (a, b) = (Arc::clone(&a), Arc::clone(&b));
            tasks.push(tokio::spawn(async move {
                let (from, to) = match n % 4 {
                    0 => (&a, &b),
                    1 => (&b, &a),
                    2 => (&a, &a),
                    _ => (&b, &b),
                };
                let activity = Activity::default();
                let _places = stream_places(from, to, &activity).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }));
        }
        let all = futures::future::join_all(tasks);
        assert!(
            tokio::time::timeout(Duration::from_mins(1), all)
                .await
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn streams_leave_room_for_a_request() {
        let (a, b) = (
            Arc::new(Host::new("a", limits())),
            Arc::new(Host::new("b", limits())),
        );
        let activity = Activity::default();
        let mut held = Vec::new();
        while let Ok(places) =
            tokio::time::timeout(Duration::from_secs(1), stream_places(&a, &b, &activity)).await
        {
            held.push(places);
        }
        assert_eq!(held.len(), 3);
        let entry = Entry {
            lane: Lane::Manifests,
            placed: false,
            prompt: false,
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(1), b.enter(entry, &activity))
                .await
                .is_ok()
        );
    }
}
