//! What one registry host is asked to bear: requests in flight, requests a second, and a pause while it is unavailable.
//!
//! There is one [`Host`] for each registry, for the whole process; every request passes it. Guaranteed: never more than
//! `concurrency` requests in flight (tokens apart, which have two places of their own, so that who holds a place can always
//! renew a token); while the host is unavailable, one request at a time asks whether it is well again. Where a registry leads to another
//! address (for tokens, uploads), what that one answers is kept apart for each registry that leads there: nobody has another's
//! registry left alone by leading to it.
//!
//! Each credential has a [`CredentialShare`] of its own at a host, of the same size. A limit on the rate that one credential meets slows that
//! credential; the host is slowed when credentials of several namespaces meet it.
//!
//! Places are taken in one order, so that no two copies wait for each other: hosts by name, at each the credential's and then the
//! host's, for a stream at last that of the process; whoever holds one place waits for nothing else but places further on in that
//! order.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{BadAnswer, Breaker, BreakerPermit};
use super::limits::{Lane, Limits, lock};
use super::progress::{Progress, Waiting};
use super::queue::{HostQueue, Permit, Want};
use crate::machine::Reason;
use crate::metrics::{self, Metrics, RegistryState, Scrape};
use crate::registry::auth::credential::{Credential, CredentialKey};
use crate::registry::error::Error;

/// Token fetches in flight per host: quay limits its token endpoint to a burst of two.
const TOKENS: usize = 2;
/// How many hosts are remembered before those nobody uses are forgotten.
const HOSTS_MAX: usize = 1024;
/// How many credentials of one host are, likewise.
const CREDENTIALS_MAX: usize = 64;
/// Credentials that meet a limit within this time meet one of the host.
const SAME_LIMIT_WITHIN: Duration = Duration::from_mins(1);
/// How many such meetings are remembered.
const LIMITED_MAX: usize = 16;
/// Requests in flight whose share for streams is what the whole process may have of them: each keeps up to 2 MiB.
const PROCESS_CONCURRENCY: usize = 64;

/// An address, and the registry that led there if it is not its own.
type HostKey = (String, Option<String>);

/// All hosts spoken to so far.
#[derive(Debug)]
pub(crate) struct Hosts {
    limits: Limits,
    metrics: Metrics,
    /// The hosts that the configuration names in full.
    named: HashSet<String>,
    known: Mutex<HashMap<HostKey, Arc<Host>>>,
    /// The streams of the process.
    streams: Arc<HostQueue>,
}

/// One address, `HOST:PORT`, and its state.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// What it is counted as.
    pub(crate) label: metrics::Host,
    limits: Limits,
    queue: Arc<HostQueue>,
    tokens: Arc<HostQueue>,
    /// Open while the host is unavailable or limits the rate.
    all: Arc<Breaker>,
    /// Open while the host refuses writes.
    writes: Arc<Breaker>,
    served: AtomicU64,
    credentials: Mutex<HashMap<CredentialKey, Arc<CredentialShare>>>,
    /// Who met a limit of late: the namespace and its credential.
    limited: Mutex<VecDeque<(u64, CredentialKey, Instant)>>,
}

/// What one credential is given of a host.
#[derive(Debug)]
struct CredentialShare {
    queue: Arc<HostQueue>,
    /// Open while the host limits the rate of this credential.
    all: Arc<Breaker>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) progress: &'a Progress,
    credential: CredentialKey,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(progress: &'a Progress, credential: &Credential) -> Self {
        Self {
            progress,
            credential: credential.key(),
        }
    }

    fn want(&self, places: usize, paced: Option<Lane>, prompt: bool) -> Want {
        Want {
            flow: self.progress.flow(),
            places,
            paced,
            prompt,
        }
    }
}

/// What one request needs of its host before it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// What kind it is.
    pub(crate) lane: Lane,
    /// Whether the caller holds a place on the host already.
    pub(crate) placed: bool,
    /// Whether it rests on a look that must not grow old.
    pub(crate) prompt: bool,
}

/// A request's place and pacing; the place is given back when dropped.
#[derive(Debug)]
pub(crate) struct HostPermit {
    /// Of the credential.
    own: Permit,
    /// Of the host.
    host: Permit,
    _token: Option<Permit>,
}

impl HostPermit {
    /// Nothing was sent: its token of the pacing is another's.
    pub(crate) fn refund(self) {
        self.own.refund();
        self.host.refund();
    }
}

impl Hosts {
    /// `named`: the addresses, `HOST:PORT`, that the configuration names in full.
    pub(crate) fn new(limits: Limits, metrics: Metrics, named: HashSet<String>) -> Self {
        Self {
            limits,
            metrics,
            named,
            known: Mutex::new(HashMap::new()),
            streams: HostQueue::new(Limits {
                concurrency: PROCESS_CONCURRENCY,
                ..limits
            }),
        }
    }

    /// Tells what each is asked to bear now.
    pub(crate) fn publish(&self, scrape: &Scrape<'_>) {
        let known = lock(&self.known);
        let own = known.iter().filter(|((_, led_by), _)| led_by.is_none());
        let hosts: Vec<_> = own.map(|(_, host)| Arc::clone(host)).collect();
        drop(known);
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

    /// What requests to the host of this name wait for, while it is left alone.
    pub(crate) fn unavailable(&self, name: &str) -> Option<Waiting> {
        let host = lock(&self.known).get(&(name.to_owned(), None)).cloned()?;
        host.all.unavailable()
    }

    /// The state of the host of this name, made where there is none; as the registry `led_by` leads there, if it is not its own.
    pub(crate) fn get(&self, name: &str, led_by: Option<String>) -> Arc<Host> {
        let mut hosts = lock(&self.known);
        let key = (name.to_owned(), led_by);
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&key) {
            // One that is left alone is kept: forgetting it would be asking it at once.
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || host.is_backing_off(true));
        }
        let host = hosts.entry(key).or_insert_with(|| {
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
        let breaker = || Arc::new(Breaker::new(limits.backoff_first, limits.backoff_max));
        Self {
            name: name.to_owned(),
            label: name.into(),
            limits,
            queue: HostQueue::new(limits),
            tokens: HostQueue::unpaced(TOKENS),
            all: breaker(),
            writes: breaker(),
            served: AtomicU64::new(0),
            credentials: Mutex::default(),
            limited: Mutex::default(),
        }
    }

    /// What a credential is given.
    fn share_of(&self, credential: CredentialKey) -> Arc<CredentialShare> {
        let mut shares = lock(&self.credentials);
        if shares.len() >= CREDENTIALS_MAX && !shares.contains_key(&credential) {
            shares.retain(|_, share| Arc::strong_count(share) > 1 || share.is_used());
        }
        let share = shares.entry(credential).or_insert_with(|| {
            let (first, max) = (self.limits.backoff_first, self.limits.backoff_max);
            Arc::new(CredentialShare {
                queue: HostQueue::new(self.limits),
                all: Arc::new(Breaker::new(first, max)),
            })
        });
        Arc::clone(share)
    }

    /// Waits until the host is well (and takes writes, if it is to be written to), or says that it takes too long.
    pub(crate) async fn admit(
        &self,
        write: bool,
        deadline: Option<Instant>,
        caller: Caller<'_>,
    ) -> Result<Admission, Error> {
        let progress = caller.progress;
        // The credential's first: whoever probes for all must not wait for what is its own.
        let own = self.share_of(caller.credential);
        let own = own.all.pass(deadline, progress).await?;
        let writes = if write {
            Some(self.writes.pass(deadline, progress).await?)
        } else {
            None
        };
        let all = self.all.pass(deadline, progress).await?;
        Ok(Admission { own, all, writes })
    }

    /// Waits until the host may be asked again, without asking.
    pub(crate) async fn until_available(&self, write: bool, caller: Caller<'_>) {
        // A ticket that is dropped leaves the probe to the next.
        let _ = self.admit(write, None, caller).await;
    }

    /// Waits for a place and the pacing for one request.
    pub(crate) async fn acquire(&self, needs: Needs, caller: Caller<'_>) -> HostPermit {
        let token = if needs.lane == Lane::Tokens {
            let want = caller.want(1, Some(needs.lane), needs.prompt);
            Some(self.tokens.acquire(want).await)
        } else {
            None
        };
        let placed = needs.placed || token.is_some();
        let want = caller.want(usize::from(!placed), Some(needs.lane), needs.prompt);
        let own = self.share_of(caller.credential).queue.acquire(want).await;
        HostPermit {
            own,
            host: self.queue.acquire(want).await,
            _token: token,
        }
    }

    /// The host answered with something of use.
    pub(crate) fn serves(&self, lane: Lane, caller: Caller<'_>, admission: Admission) {
        self.served.fetch_add(1, Relaxed);
        admission.own.good();
        admission.all.good();
        if let Some(writes) = admission.writes {
            writes.good();
        }
        self.share_of(caller.credential).queue.served(lane);
        self.queue.served(lane);
    }

    /// The host limits the rate of a credential, which asks for less from now on, and is left alone where it says so or told again. So does
    /// everybody where others have met a limit as well.
    pub(crate) fn limits(
        &self,
        lane: Lane,
        caller: Caller<'_>,
        permit: &HostPermit,
        admission: Admission,
        after: Option<Duration>,
    ) {
        let bad = |message: String| BadAnswer {
            reason: Reason::RateLimited,
            message,
            after,
            certain: false,
        };
        let share = self.share_of(caller.credential);
        share.queue.limited(lane, &permit.own);
        if self.others_are_limited(caller) {
            self.queue.limited(lane, &permit.host);
            let message = format!("{} limits the rate", self.name);
            admission.all.bad(bad(message));
        }
        let message = format!("{} limits the rate of its credential", self.name);
        admission.own.bad(bad(message));
    }

    /// Whether a credential of another namespace has met a limit of late; that this one has is remembered.
    fn others_are_limited(&self, caller: Caller<'_>) -> bool {
        let (now, namespace) = (Instant::now(), caller.progress.flow().namespace);
        let mut limited = lock(&self.limited);
        limited.retain(|(_, key, at)| *at + SAME_LIMIT_WITHIN > now && *key != caller.credential);
        let others = limited.iter().any(|(other, ..)| *other != namespace);
        // The oldest of its own namespace goes first: one that has many credentials drives nobody else out.
        if limited.len() >= LIMITED_MAX {
            let own = limited.iter().position(|(other, ..)| *other == namespace);
            limited.remove(own.unwrap_or_default());
        }
        limited.push_back((namespace, caller.credential, now));
        others
    }

    /// The host takes no writes.
    pub(crate) fn read_only(&self, admission: Admission) {
        admission.own.good();
        admission.all.good();
        if let Some(writes) = admission.writes {
            writes.bad(BadAnswer {
                reason: Reason::RegistryReadOnly,
                message: format!("{} is read-only", self.name),
                after: None,
                certain: true,
            });
        }
    }

    /// Whether it is left alone by requests of this kind.
    pub(crate) fn is_backing_off(&self, write: bool) -> bool {
        self.all.is_open() || (write && self.writes.is_open())
    }

    /// Whether it is left alone by requests of this kind and caller.
    pub(crate) fn is_backing_off_from(&self, write: bool, caller: Caller<'_>) -> bool {
        self.is_backing_off(write) || self.share_of(caller.credential).all.is_open()
    }

    /// How many answers of use this host has given.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Where a stream of `caller` waits that has so many ends here.
    fn stream(&self, ends: usize, caller: Caller<'_>) -> [(Arc<HostQueue>, usize, &str); 2] {
        let own = Arc::clone(&self.share_of(caller.credential).queue);
        [
            (own, ends, &self.name),
            (Arc::clone(&self.queue), ends, &self.name),
        ]
    }
}

impl CredentialShare {
    /// Whether it has anything to remember.
    fn is_used(&self) -> bool {
        self.all.is_open() || self.queue.is_used()
    }
}

/// The places of a stream.
#[derive(Debug)]
pub(crate) struct StreamPlaces(Vec<Permit>);

impl StreamPlaces {
    /// Resolves when others, who have less, wait for one of the places.
    pub(crate) async fn preempted(&self) {
        let preempted = self.0.iter().map(|permit| Box::pin(permit.preempted()));
        futures::future::select_all(preempted).await;
    }
}

impl Hosts {
    /// Places for a stream from one host to another, in the order that excludes a circle.
    pub(crate) async fn stream_places(
        &self,
        (from, puller): (&Host, Caller<'_>),
        (to, pusher): (&Host, Caller<'_>),
    ) -> StreamPlaces {
        let mut queues = Vec::new();
        match from.name.cmp(&to.name) {
            Ordering::Equal => queues.extend(to.stream(2, pusher)),
            Ordering::Less => {
                queues.extend(from.stream(1, puller));
                queues.extend(to.stream(1, pusher));
            }
            Ordering::Greater => {
                queues.extend(to.stream(1, pusher));
                queues.extend(from.stream(1, puller));
            }
        }
        queues.push((Arc::clone(&self.streams), 1, "this controller"));
        'anew: loop {
            let mut places = StreamPlaces(Vec::with_capacity(queues.len()));
            for (queue, ends, name) in &queues {
                let want = pusher.want(*ends, None, false);
                let permit = queue.acquire_stream(want, name, pusher.progress);
                let permit = if places.0.is_empty() {
                    permit.await
                } else {
                    tokio::select! {
                        biased;
                        permit = permit => permit,
                        () = places.preempted() => continue 'anew,
                    }
                };
                places.0.push(permit);
            }
            return places;
        }
    }
}

/// Leave to send one request; what became of it is told to the breakers through it.
#[derive(Debug)]
pub(crate) struct Admission {
    own: BreakerPermit,
    all: BreakerPermit,
    writes: Option<BreakerPermit>,
}

impl Admission {
    /// The host is unavailable (for certain, or so it seems), and may have said for how long.
    pub(crate) fn unavailable(self, message: String, after: Option<Duration>, certain: bool) {
        self.all.bad(BadAnswer {
            reason: Reason::RegistryUnavailable,
            message,
            after,
            certain,
        });
    }

    /// Whether the host became unavailable since: waiting for a place can take long.
    pub(crate) fn is_stale(&self) -> bool {
        self.own.is_stale()
            || self.all.is_stale()
            || self.writes.as_ref().is_some_and(BreakerPermit::is_stale)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn caller(progress: &Progress) -> Caller<'_> {
        Caller::new(progress, &Credential::anonymous())
    }

    async fn places(from: &Arc<Host>, to: &Arc<Host>, progress: &Progress) -> StreamPlaces {
        let hosts = Hosts::new(limits(), Metrics::default(), HashSet::new());
        let caller = caller(progress);
        hosts.stream_places((from, caller), (to, caller)).await
    }

    fn limits() -> Limits {
        Limits {
            qps: 40,
            concurrency: 4,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_mins(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_rest_one_request_probes_and_the_others_wait_for_its_answer() {
        let host = Arc::new(Host::new("h", limits()));
        let progress = Progress::default();
        let first = host.admit(false, None, caller(&progress)).await.unwrap();
        first.unavailable("h answered 503".into(), None, true);
        let start = Instant::now();
        let probe = host.admit(false, None, caller(&progress)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        let other = tokio::spawn({
            let (host, progress) = (Arc::clone(&host), progress.clone());
            async move {
                host.admit(false, None, caller(&progress))
                    .await
                    .map(|_| Instant::now())
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!other.is_finished());
        assert_eq!(
            progress.waiting().unwrap().reason,
            Reason::RegistryUnavailable
        );
        host.serves(Lane::Manifests, caller(&progress), probe);
        assert_eq!(
            other.await.unwrap().unwrap() - start,
            Duration::from_millis(1300)
        );
        assert_eq!(progress.waiting(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_leaves_its_turn_to_the_next() {
        let host = Host::new("h", limits());
        let progress = Progress::default();
        let first = host.admit(false, None, caller(&progress)).await.unwrap();
        first.unavailable("x".into(), None, true);
        drop(host.admit(false, None, caller(&progress)).await.unwrap());
        let start = Instant::now();
        assert!(host.admit(false, None, caller(&progress)).await.is_ok());
        assert!(start.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_only_host_is_read_all_the_same() {
        let host = Host::new("h", limits());
        let progress = Progress::default();
        let write = host.admit(true, None, caller(&progress)).await.unwrap();
        host.read_only(write);
        let start = Instant::now();
        assert!(host.admit(false, None, caller(&progress)).await.is_ok());
        assert!(start.elapsed().is_zero());
        let error = host
            .admit(true, Some(start), caller(&progress))
            .await
            .unwrap_err();
        assert_eq!(error.reason, Reason::RegistryReadOnly);
        assert!(host.admit(true, None, caller(&progress)).await.is_ok());
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
                let progress = Progress::default();
                let _places = places(from, to, &progress).await;
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
        let progress = Progress::default();
        let mut held = Vec::new();
        while let Ok(places) =
            tokio::time::timeout(Duration::from_secs(1), places(&a, &b, &progress)).await
        {
            held.push(places);
        }
        assert_eq!(held.len(), 3);
        let needs = Needs {
            lane: Lane::Manifests,
            placed: false,
            prompt: false,
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(1), b.acquire(needs, caller(&progress)))
                .await
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_one_credential_meets_rests_that_credential_alone() {
        let host = Arc::new(Host::new("h", limits()));
        let key = |name: &str| Credential::new(name.into(), "x".into(), "", "");
        let (evil, good) = (Progress::of("evil", "1"), Progress::of("good", "1"));
        let needs = Needs {
            lane: Lane::Manifests,
            placed: false,
            prompt: false,
        };
        let met = async |caller: Caller<'_>| {
            let admission = host.admit(false, None, caller).await.unwrap();
            let place = host.acquire(needs, caller).await;
            let after = Some(Duration::from_mins(10));
            host.limits(Lane::Manifests, caller, &place, admission, after);
        };
        // However many credentials a namespace has.
        let keys = ["a", "b", "c"].map(key);
        for key in &keys {
            met(Caller::new(&evil, key)).await;
        }
        let start = Instant::now();
        let own = key("good");
        let own = Caller::new(&good, &own);
        let admission = host.admit(true, None, own).await.unwrap();
        assert!(start.elapsed().is_zero() && !host.is_backing_off(true));
        host.serves(Lane::Manifests, own, admission);
        let mine = Caller::new(&evil, &keys[0]);
        let patience = Some(start + Duration::from_secs(1));
        let error = host.admit(false, patience, mine).await.unwrap_err();
        assert_eq!(error.reason, Reason::RateLimited);
        // Others meet it as well: it is the host's.
        met(own).await;
        assert!(host.is_backing_off(false));
    }

    #[test]
    fn what_a_registry_leads_to_is_kept_apart_from_the_registry_there() {
        let hosts = Hosts::new(limits(), Metrics::default(), HashSet::new());
        let own = hosts.get("victim:443", None);
        let led = hosts.get("victim:443", Some("evil:443".into()));
        assert!(!Arc::ptr_eq(&own, &led));
        assert!(Arc::ptr_eq(&own, &hosts.get("victim:443", None)));
    }
}
