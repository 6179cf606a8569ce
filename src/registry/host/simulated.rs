//! A hundred floats at a registry with the buckets of quay's proxy, on virtual time.
//!
//! They are promoted over the code that queues and paces them; the module `day` plays a day of a million. The order of requests is that of
//! the steps, which are launched with saves as the engine launches them, and what follows a 429 that of `wire::send`. Guaranteed: the same
//! run each time, but for the pauses after a 429. Not here: tokens, other credentials, a registry that is slower the more it is asked.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
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
use super::limits::{Connection, Lane, Limit, Limits, Protocol, Rates, Zone};
use super::progress::Progress;
use crate::engine::operation_queue::{OperationQueue, Permit, QueueKey};
use crate::machine::pool::Pool;
use crate::machine::{FRESH_SECONDS, ImageSpec, Phase, Step};
use crate::registry::auth::credential::Credential;
use crate::turn::{Turn, Turns};

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
pub(super) struct World {
    host: Host,
    operations: OperationQueue,
    turns: Mutex<Turns<()>>,
    /// Any image: all are at the same registry.
    image: ImageSpec,
    /// Of the address, and of its connections of HTTP/2: one for reads, one for writes but tag PUTs. None: no limit.
    buckets: Option<[Mutex<Bucket>; 3]>,
    spoken: Protocol,
    jitter: Mutex<StdRng>,
    start: Instant,
    /// By protocol.
    pub(super) sent: [AtomicU32; 2],
    pub(super) refused: AtomicU32,
    /// Floats whose pins were so old when all of their request were backed up that they would be looked at again.
    pub(super) aged: AtomicU32,
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

/// A request for promotion. The next steps of its floats are launched with a save, of which there is one every two seconds while other
/// floats are at work.
pub(super) struct Request {
    world: Arc<World>,
    pool: Arc<Pool>,
    uid: String,
    /// Whether its floats are there; new ones have nothing to back up.
    existing: bool,
    at_work: AtomicUsize,
    turn: Turn,
    saved: watch::Sender<Instant>,
    /// They move once all are backed up.
    together: Barrier,
}

impl Request {
    const SAVED_EVERY: Duration = Duration::from_secs(2);

    pub(super) fn new(
        world: &Arc<World>,
        pool: &Arc<Pool>,
        uid: &str,
        floats: usize,
        existing: bool,
    ) -> Self {
        let steps = floats * Phase::Pending.steps_left();
        let turn = world.turns.lock().begin(&pool.namespace, steps);
        let request = Self {
            world: Arc::clone(world),
            pool: Arc::clone(pool),
            uid: uid.to_owned(),
            existing,
            at_work: AtomicUsize::new(0),
            turn,
            saved: watch::Sender::new(Instant::now()),
            together: Barrier::new(floats),
        };
        for _ in 0..floats {
            request.launch();
        }
        request
    }

    /// Waits until a step may run.
    async fn begin(&self, step: Step) -> Permit {
        let key = QueueKey::of(&self.world.image, step);
        let operations = &self.world.operations;
        (operations.acquire(key, &self.pool, &self.uid, self.turn)).await
    }

    /// A step has ended.
    fn land(&self, permit: Permit) {
        drop(permit);
        let mut turns = self.world.turns.lock();
        turns.land(&self.pool, usize::MAX);
        drop(turns);
        if self.at_work.fetch_sub(1, Relaxed) == 1 {
            self.saved.send_replace(Instant::now());
        }
    }

    /// Another one begins.
    fn launch(&self) {
        self.at_work.fetch_add(1, Relaxed);
        (self.world.turns.lock()).launch(&self.pool);
    }

    /// A step has ended; the next begins after a save.
    async fn end(&self, permit: Permit) {
        let mut saved = self.saved.subscribe();
        let due = *saved.borrow_and_update() + Self::SAVED_EVERY;
        self.land(permit);
        tokio::select! {
            _ = saved.changed() => {}
            () = sleep_until(due) => {
                self.saved.send_replace(Instant::now());
            }
        }
        self.launch();
    }

    /// Promotes one of its floats.
    pub(super) async fn float(&self) {
        let world = &self.world;
        let progress = Progress::in_turn(&self.pool.namespace, &self.uid, self.turn);
        let none = Credential::anonymous();
        let caller = Caller::new(&progress, &none);
        let permit = self.begin(Step::Resolve).await;
        world.send(Kind::Read, caller).await;
        world.send(Kind::Read, caller).await;
        self.end(permit).await;
        let permit = self.begin(Step::Stage).await;
        join_all((0..BLOBS).map(|_| world.send(Kind::Mount, caller))).await;
        world.put(1, caller).await;
        self.end(permit).await;
        let permit = self.begin(Step::BackUp).await;
        if self.existing {
            world.put(2, caller).await;
        }
        let pinned = Instant::now();
        self.land(permit);
        self.together.wait().await;
        let aged = pinned.elapsed() > Duration::from_secs(FRESH_SECONDS.unsigned_abs());
        world.aged.fetch_add(aged.into(), Relaxed);
        self.launch();
        let permit = self.begin(Step::Latch).await;
        world.put(1, caller).await;
        self.end(permit).await;
        let permit = self.begin(Step::Post).await;
        if self.existing {
            world.put(1, caller).await;
        }
        world.send(Kind::Read, caller).await;
        self.land(permit);
    }
}

impl World {
    pub(super) fn new(limited: bool, spoken: Protocol, seed: u64) -> Self {
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
        let image = ImageSpec {
            source: "h/builds/app:new".parse().unwrap(),
            float: "h/ci:app".parse().unwrap(),
            replaces: None,
            freeze: None,
            remove_incoming: false,
        };
        Self {
            host: Host::new("h", "h".into(), limits),
            operations: OperationQueue::new(limits.concurrency),
            turns: Mutex::new(Turns::new()),
            image,
            buckets: limited.then_some(buckets),
            spoken,
            jitter: Mutex::new(StdRng::seed_from_u64(seed)),
            start: Instant::now(),
            sent: Default::default(),
            refused: AtomicU32::new(0),
            aged: AtomicU32::new(0),
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
            connection: if prompt {
                Connection::Prompt
            } else {
                Connection::Shared
            },
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

    async fn play(limited: bool, spoken: Protocol, seed: u64) -> Figures {
        let world = Arc::new(Self::new(limited, spoken, seed));
        let pool = Arc::new(Pool::new("team", "quay.io"));
        let request = Request::new(&world, &pool, "request", FLOATS, true);
        join_all((0..FLOATS).map(|_| request.float())).await;
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
    println!("{figures:?}");
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
        let [seconds, ratio] = [median(|of| of.seconds), median(|of| of.ratio)];
        let refused = median(|of| of.refused);
        println!("{spoken:?}: {seconds:.1} s, {ratio:.2}, {refused:.4} refused");
        assert!(ratio <= 1.15, "{spoken:?}: {all:#?}");
        assert!(refused <= 0.01, "{spoken:?}: {all:#?}");
    }
}
