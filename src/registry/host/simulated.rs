//! A hundred floats promoted at a registry with the buckets of quay's proxy, on virtual time, over the code that paces them.
//!
//! The order of requests is that of the steps, which are launched with saves as the engine launches them, and what follows a 429 that of
//! `wire::send`. Guaranteed: the same run each time, but for the pauses after a 429. Not here: tokens, other credentials, a registry that
//! is slower the more it is asked.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::admission::{Caller, Host, Needs};
use super::learnt_rate::tests::Bucket;
use super::limits::{Lane, Limit, Limits, Protocol, Rates, Zone};
use super::progress::Progress;
use crate::registry::auth::credential::Credential;

const FLOATS: usize = 100;
/// Blobs of each, which are mounted.
const BLOBS: usize = 4;
const LATENCY: Duration = Duration::from_millis(10);
/// quay's rate on HTTP/1.1, and on a connection of HTTP/2; and what may come at once beyond it, of manifests and of blobs.
const QUAY: [(f64, [f64; 2]); 2] = [(50.0, [10.0, 50.0]), (500.0, [50.0, 100.0])];
/// As in `ops::put`.
const PUT_PATIENCE: Duration = Duration::from_secs(1);
const BACKOFF: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Mount,
    /// A look that so many tag PUTs follow.
    Look(u32),
    TagPut,
}

/// The registry, and how it is asked.
struct World {
    host: Host,
    /// Of the address, and of its connections of HTTP/2: one for reads, one for writes but tag PUTs. None: no limit.
    buckets: Option<[Mutex<Bucket>; 3]>,
    spoken: Protocol,
    jitter: Mutex<StdRng>,
    start: Instant,
    /// By protocol.
    sent: [AtomicU32; 2],
    refused: AtomicU32,
}

/// What it came to.
#[derive(Debug)]
struct Figures {
    seconds: f64,
    /// Of the time that the buckets take for what was sent.
    ratio: f64,
    /// The part that was answered 429.
    refused: f64,
}

/// When the next steps are launched: with a save, of which there is one every two seconds while other floats are at work.
struct Saves {
    at_work: AtomicUsize,
    saved: watch::Sender<Instant>,
}

impl Saves {
    const INTERVAL: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self {
            at_work: AtomicUsize::new(FLOATS),
            saved: watch::Sender::new(Instant::now()),
        }
    }

    /// A step has ended.
    fn land(&self) {
        if self.at_work.fetch_sub(1, Relaxed) == 1 {
            self.saved.send_replace(Instant::now());
        }
    }

    /// Another one begins.
    fn launch(&self) {
        self.at_work.fetch_add(1, Relaxed);
    }

    /// A step has ended; the next begins after a save.
    async fn next(&self) {
        let mut saved = self.saved.subscribe();
        let due = *saved.borrow_and_update() + Self::INTERVAL;
        self.land();
        tokio::select! {
            _ = saved.changed() => {}
            () = sleep_until(due) => {
                self.saved.send_replace(Instant::now());
            }
        }
        self.launch();
    }
}

impl World {
    fn new(limited: bool, spoken: Protocol, seed: u64) -> Self {
        let limits = Limits {
            rates: Rates {
                qps: 40,
                qps_max: 1000,
            },
            concurrency: 16,
            backoff_first: BACKOFF,
            backoff_max: Duration::from_mins(1),
        };
        let [address, connection] = QUAY.map(|(rate, _)| rate);
        let buckets = [address, connection, connection].map(|rate| Mutex::new(Bucket::new(rate)));
        Self {
            host: Host::new("h", "h".into(), limits),
            buckets: limited.then_some(buckets),
            spoken,
            jitter: Mutex::new(StdRng::seed_from_u64(seed)),
            start: Instant::now(),
            sent: Default::default(),
            refused: AtomicU32::new(0),
        }
    }

    /// On the way to the registry, or back.
    async fn travel(&self) {
        let part = self.jitter.lock().random_range(0.25..0.75);
        sleep(LATENCY.mul_f64(part)).await;
    }

    fn admits(&self, kind: Kind, protocol: Protocol) -> bool {
        let Some(buckets) = &self.buckets else {
            return true;
        };
        let mount = usize::from(kind == Kind::Mount);
        let bucket = match protocol {
            Protocol::Http1 => &buckets[0],
            Protocol::Http2 => &buckets[1 + mount],
        };
        let burst = QUAY[protocol as usize].1[mount];
        bucket.lock().admits(self.start.elapsed(), burst)
    }

    /// Sends until it is served; false for a tag PUT before which the tag is to be looked at again.
    async fn send(&self, kind: Kind, caller: Caller<'_>) -> bool {
        let prompt = kind == Kind::TagPut;
        let write = prompt || kind == Kind::Mount;
        let needs = Needs {
            lane: Lane::Manifests,
            placed: false,
            prompt,
            bulk: false,
            puts: if let Kind::Look(puts) = kind { puts } else { 0 },
        };
        let protocol = if prompt { Protocol::Http1 } else { self.spoken };
        let limit = Limit {
            zone: Zone::Content,
            protocol: Some(protocol),
            apart: prompt,
        };
        let deadline = prompt.then(|| Instant::now() + PUT_PATIENCE);
        let before = self.host.served();
        let mut failures = 0;
        loop {
            let admitted = self.host.admit(Zone::Content, write, deadline, caller);
            let Ok(admission) = admitted.await else {
                return false;
            };
            let mut permit = self.host.acquire(needs, caller).await;
            if admission.is_stale() {
                permit.refund();
                continue;
            }
            self.sent[protocol as usize].fetch_add(1, Relaxed);
            self.travel().await;
            let within = self.admits(kind, protocol);
            self.travel().await;
            if within {
                self.host.serves(limit, caller, admission);
                caller.progress.pay(permit.answered());
                return true;
            }
            self.refused.fetch_add(1, Relaxed);
            self.host.limits(limit, caller, &permit, &admission, None);
            drop((permit, admission));
            failures += 1;
            let (zone, served) = (Zone::Content, self.host.served());
            let pause = if self.host.is_backing_off_from(zone, write, caller) && served == before {
                Duration::ZERO
            } else {
                (BACKOFF * failures / 2).mul_f64(self.jitter.lock().random_range(0.5..1.0))
            };
            if deadline.is_some_and(|deadline| Instant::now() + pause > deadline) {
                return false;
            }
            sleep(pause).await;
        }
    }

    /// A look, and the tag PUTs that follow it.
    async fn put(&self, puts: u32, caller: Caller<'_>) {
        'anew: loop {
            self.send(Kind::Look(puts), caller).await;
            for _ in 0..puts {
                if !self.send(Kind::TagPut, caller).await {
                    sleep(Duration::from_secs(1)).await;
                    continue 'anew;
                }
            }
            return caller.progress.end_puts();
        }
    }

    /// An existing float, which moves once all are backed up.
    async fn float(&self, together: &Barrier, saves: &Saves) {
        let (progress, none) = (Progress::of("team", "request"), Credential::anonymous());
        let caller = Caller::new(&progress, &none);
        self.send(Kind::Read, caller).await;
        self.send(Kind::Read, caller).await;
        saves.next().await;
        join_all((0..BLOBS).map(|_| self.send(Kind::Mount, caller))).await;
        self.put(1, caller).await;
        saves.next().await;
        self.put(2, caller).await;
        saves.land();
        together.wait().await;
        saves.launch();
        self.put(1, caller).await;
        saves.next().await;
        self.put(1, caller).await;
        self.send(Kind::Read, caller).await;
        saves.land();
    }

    async fn play(limited: bool, spoken: Protocol, seed: u64) -> Figures {
        let (world, together) = (Self::new(limited, spoken, seed), Barrier::new(FLOATS));
        let saves = Saves::new();
        join_all((0..FLOATS).map(|_| world.float(&together, &saves))).await;
        let sent = [0, 1].map(|protocol: usize| f64::from(world.sent[protocol].load(Relaxed)));
        let own = f64::max(sent[0] / QUAY[0].0, sent[1] / QUAY[1].0);
        let seconds = world.start.elapsed().as_secs_f64();
        Figures {
            seconds,
            ratio: seconds / own,
            refused: f64::from(world.refused.load(Relaxed)) / (sent[0] + sent[1]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_without_a_limit_is_asked_as_fast_as_it_answers() {
    let figures = World::play(false, Protocol::Http1, 0).await;
    assert!(figures.seconds <= 2.2, "{figures:?}");
}

#[tokio::test(start_paused = true)]
async fn behind_quays_buckets_little_time_is_lost_and_few_requests_are_refused() {
    for spoken in [Protocol::Http1, Protocol::Http2] {
        let mut all = Vec::new();
        for seed in 0..9 {
            all.push(World::play(true, spoken, seed).await);
        }
        let median = |of: fn(&Figures) -> f64| {
            let mut all: Vec<_> = all.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        assert!(median(|of| of.ratio) <= 1.15, "{spoken:?}: {all:#?}");
        assert!(median(|of| of.refused) <= 0.01, "{spoken:?}: {all:#?}");
    }
}
