//! A day of floats, hour by hour.
//!
//! In: how many, and whether they are there already. Out: a table with a row for each hour, those after midnight too until all are Posted.
//! Requests are created at random within the hours of [`PROFILE`], wait for the limit of their namespace and run. Not here: deadlines, and
//! what the API server takes.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt;
use std::iter::empty;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::limits::Protocol;
use super::simulated::{Request, World};
use crate::machine::claims::Uid;
use crate::machine::pool::Pool;
use crate::machine::quota::{NamespaceQuota, QuotaKey};

/// What of the day's floats is created in each hour of UTC, in thousandths: most while both Europe and America work.
const PROFILE: [usize; 24] = [
    30, 26, 24, 22, 22, 23, 27, 34, 42, 47, 47, 46, 50, 58, 66, 70, 68, 63, 56, 48, 40, 34, 30, 27,
];
/// Of a hundred requests so many have so many floats.
const SIZES: [(u32, usize); 3] = [(70, 1), (27, 10), (3, 100)];
/// The nth asks for one nth of what the first asks for.
const NAMESPACES: u32 = 100;
/// Those after it are small.
const LARGE: usize = 50;
/// The default of `--max-active-requests-per-namespace`.
const ACTIVE: usize = 200;
/// The default of `deadlineSeconds`.
const DEADLINE: Duration = Duration::from_hours(2);

/// What a day is made of.
#[derive(Clone, Copy)]
struct Day {
    floats: usize,
    existing: bool,
    /// An hour, or less to see that it works.
    hour: Duration,
}

/// A request that will be created.
struct Asked {
    at: Duration,
    namespace: usize,
    floats: usize,
}

/// Where a day is played.
struct Played {
    day: Day,
    world: Arc<World>,
    begun: Instant,
    /// Who is active, and whom to wake who is not.
    quota: Mutex<(NamespaceQuota, HashMap<Uid, oneshot::Sender<()>>)>,
    tally: Mutex<Tally>,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    unfinished: usize,
    aged: u32,
    hours: Vec<Hour>,
}

#[derive(Default)]
struct Hour {
    created: usize,
    posted: usize,
    most_unfinished: usize,
    /// By the end of it.
    sent: u32,
    refused: u32,
    /// From creation to Posted, of the floats that were created in it: of all, and of the small namespaces.
    waits: [Vec<Duration>; 2],
}

impl Day {
    fn requests(self) -> Vec<Asked> {
        let mut random = StdRng::seed_from_u64(1);
        let shares = (1..=NAMESPACES).map(|n| 1.0 / f64::from(n));
        let namespaces = WeightedIndex::new(shares).unwrap();
        let sizes = WeightedIndex::new(SIZES.map(|(share, _)| share)).unwrap();
        let mut all = Vec::new();
        for (hour, part) in (0..).zip(PROFILE) {
            let mut left = self.floats * part / 1000;
            while left > 0 {
                let floats = SIZES[random.sample(&sizes)].1.min(left);
                left -= floats;
                all.push(Asked {
                    at: self.hour * hour + self.hour.mul_f64(random.random()),
                    namespace: random.sample(&namespaces),
                    floats,
                });
            }
        }
        all.sort_by_key(|asked| asked.at);
        all
    }

    async fn play(self) -> Tally {
        let played = Arc::new(Played {
            day: self,
            world: Arc::new(World::new(true, Protocol::Http2, 1)),
            begun: Instant::now(),
            quota: Mutex::new((NamespaceQuota::new(ACTIVE), HashMap::new())),
            tally: Mutex::default(),
        });
        let mut all = Vec::new();
        let requests = self.requests().into_iter();
        let mut requests = (0..).zip(requests).peekable();
        for hour in 1.. {
            let end = self.hour * hour;
            while let Some((order, asked)) = requests.next_if(|(_, asked)| asked.at < end) {
                sleep_until(played.begun + asked.at).await;
                all.push(tokio::spawn(Arc::clone(&played).run(order, asked)));
            }
            sleep_until(played.begun + end).await;
            if played.turn() && requests.peek().is_none() {
                break;
            }
        }
        for request in all {
            request.await.unwrap();
        }
        let mut tally = played.tally.lock();
        std::mem::take(&mut *tally)
    }
}

impl Played {
    /// From its creation to its end.
    async fn run(self: Arc<Self>, order: u64, asked: Asked) {
        self.change(asked.at, |tally, hour| {
            tally.unfinished += asked.floats;
            tally.hours[hour].created += asked.floats;
        });
        let (key, uid) = (
            QuotaKey {
                pool: Arc::new(Pool::new(&asked.namespace.to_string(), "quay.io")),
                plans: false,
            },
            order.to_string(),
        );
        self.active(&key, &uid, order).await;
        let (world, existing) = (&self.world, self.day.existing);
        let request = Request::new(world, &key.pool, &uid, asked.floats, existing);
        let floats = (0..asked.floats).map(|_| async {
            request.float().await;
            self.posted(&asked);
        });
        join_all(floats).await;
        let mut quota = self.quota.lock();
        let (quota, waiting) = &mut *quota;
        quota.release(&key, &uid);
        for called in quota.call(&key) {
            waiting.remove(&called);
        }
    }

    /// Waits until it is among those of its namespace that may be active.
    async fn active(&self, key: &QuotaKey, uid: &Uid, order: u64) {
        loop {
            let called = {
                let mut quota = self.quota.lock();
                if quota.0.try_admit(key, uid, order, empty()) {
                    return;
                }
                let (call, called) = oneshot::channel();
                quota.1.insert(uid.clone(), call);
                called
            };
            // Whoever is called is dropped there.
            let _ = called.await;
        }
    }

    fn posted(&self, asked: &Asked) {
        let now = self.begun.elapsed();
        let waited = now.saturating_sub(asked.at);
        self.change(now, |tally, hour| {
            tally.unfinished -= 1;
            tally.hours[hour].posted += 1;
            let waits = &mut tally.hours[self.hour(asked.at)].waits;
            waits[0].push(waited);
            if asked.namespace >= LARGE {
                waits[1].push(waited);
            }
        });
    }

    /// An hour is over; whether all are Posted.
    fn turn(&self) -> bool {
        let world = &self.world;
        let sent = world.sent.iter().map(|sent| sent.load(Relaxed)).sum();
        let refused = world.refused.load(Relaxed);
        let just_now = self
            .begun
            .elapsed()
            .saturating_sub(Duration::from_millis(1));
        self.change(just_now, |tally, hour| {
            tally.aged = world.aged.load(Relaxed);
            (tally.hours[hour].sent, tally.hours[hour].refused) = (sent, refused);
            tally.unfinished == 0
        })
    }

    fn hour(&self, at: Duration) -> usize {
        usize::try_from(at.as_millis() / self.day.hour.as_millis()).unwrap()
    }

    fn change<T>(&self, now: Duration, change: impl FnOnce(&mut Tally, usize) -> T) -> T {
        let (mut tally, hour) = (self.tally.lock(), self.hour(now));
        while tally.hours.len() <= hour {
            let most_unfinished = tally.unfinished;
            tally.hours.push(Hour {
                most_unfinished,
                ..Hour::default()
            });
        }
        let changed = change(&mut tally, hour);
        let unfinished = tally.unfinished;
        let most = &mut tally.hours[hour].most_unfinished;
        *most = unfinished.max(*most);
        changed
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| hour, UTC | floats created | Posted | registry requests | answered 429 | unfinished at the most | created to Posted: median \
             | 99 of 100 | in the {} small namespaces: median | 99 of 100 |",
            NAMESPACES as usize - LARGE
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        let mut before = (0, 0);
        for (number, hour) in self.hours.iter().enumerate() {
            let (sent, refused) = (hour.sent - before.0, hour.refused - before.1);
            before = (hour.sent, hour.refused);
            write!(f, "| {} | {}", number % 24, hour.created)?;
            write!(f, " | {} | {sent} | {refused}", hour.posted)?;
            write!(f, " | {}", hour.most_unfinished)?;
            for waits in &hour.waits {
                for part in [50, 99] {
                    let wait = part_of(waits, part).map(shown).unwrap_or_default();
                    write!(f, " | {wait}")?;
                }
            }
            writeln!(f, " |")?;
        }
        let waits = self.hours.iter().flat_map(|hour| &hour.waits[0]);
        let late = waits.filter(|wait| **wait > DEADLINE).count();
        let aged = self.aged;
        writeln!(
            f,
            "\nLater than the default deadline: {late}. With pins older than an hour when they could move: {aged}."
        )
    }
}

/// What so many of a hundred waited at the most.
fn part_of(waits: &[Duration], part: usize) -> Option<Duration> {
    let mut sorted = waits.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * part / 100).copied()
}

fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{:.1} s", time.as_secs_f64()),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// The same on a small scale: in hours of some seconds.
#[tokio::test(start_paused = true)]
async fn a_day_in_which_more_is_asked_for_than_one_address_may_send_goes_on_at_its_rate() {
    let day = Day {
        floats: 2_000,
        existing: true,
        hour: Duration::from_secs(6),
    };
    let tally = day.play().await;
    println!("{tally}");
    let posted: usize = tally.hours.iter().map(|hour| hour.posted).sum();
    assert_eq!(posted, day.floats);
    // Five tag PUTs each, of which there may be 50 a second.
    let hours = u32::try_from(tally.hours.len()).unwrap();
    assert!(day.hour * hours <= Duration::from_secs(200).mul_f64(1.15));
    let last = tally.hours.last().unwrap();
    assert!(last.sent >= 16 * 2_000 && last.refused * 100 <= last.sent);
}

async fn million(parts: usize, existing: bool) {
    let day = Day {
        floats: 1_000_000 / parts,
        existing,
        hour: Duration::from_hours(1),
    };
    let (floats, existing) = (day.floats, if existing { "existing" } else { "new" });
    println!("{floats} {existing} floats:\n\n{}", day.play().await);
}

#[tokio::test(start_paused = true)]
#[ignore = "takes two minutes of a release build"]
async fn a_day_of_one_controller() {
    million(1, true).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes a minute of a release build"]
async fn a_day_of_one_of_two_controllers() {
    million(2, true).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes a minute and a half of a release build"]
async fn a_day_of_first_promotions() {
    million(1, false).await;
}
