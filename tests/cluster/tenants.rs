//! What one namespace can take from another: nothing that it creates takes the controller past its memory limit, or more than
//! doubles twice the time that another namespace's request takes.
//!
//! Each test has a control plane to itself, so that its controller may look at all namespaces.

mod connections;
mod cores;
mod manifests;
mod objects;
mod registries;

use crate::testbed::PATIENCE;
use std::time::{Duration, Instant};

use quaylike::{ImageSpec, Options, Registry, Shape};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::cores::Cores;
use crate::ground::alone;
use crate::testbed::Turn;
use crate::testbed::stage::{Controller, EVERYWHERE, Stage, phase, spec};

const MIB: u64 = 1024 * 1024;
/// The limit of the chart's container.
const MEMORY: u64 = 256 * MIB;
/// Images of the request that is measured.
const IMAGES: usize = 6;
/// So often a time is taken at most: a busy machine only adds to it, so that the best counts.
const TRIES: usize = 16;

/// Two namespaces, and a registry that both use.
struct Tenants {
    _turn: (SemaphorePermit<'static>, Turn),
    evil: Stage,
    good: Stage,
    registry: Registry,
    /// Where the good namespace's images come from.
    sources: Registry,
    /// Where the controller has a core to itself.
    cores: Option<&'static Cores>,
}

/// Attacks at once: each takes all of a core that it can get.
static ATTACKS: Semaphore = Semaphore::const_new(2);

impl Tenants {
    async fn new() -> Self {
        let attack = ATTACKS.acquire().await.unwrap();
        // Before anything else is started.
        let cores = Cores::apart();
        let (turn, plane) = alone().await;
        Self {
            _turn: (attack, turn),
            evil: Stage::on(plane, "evil").await,
            good: Stage::on(plane, "good").await,
            registry: Registry::start(Options::default()).await.unwrap(),
            sources: Registry::start(Options::default()).await.unwrap(),
            cores,
        }
    }

    /// A controller for all namespaces that speaks plain HTTP to these hosts as well.
    fn controller(&self, hosts: &[&str], more: &[&str]) -> Controller {
        let mut flags = vec![
            EVERYWHERE.to_owned(),
            format!("--plain-http={}", self.registry.host()),
            format!("--plain-http={}", self.sources.host()),
        ];
        flags.extend(hosts.iter().map(|host| format!("--plain-http={host}")));
        flags.extend(more.iter().map(|&flag| flag.to_owned()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let start = || self.good.controller(&flags);
        match self.cores {
            Some(cores) => cores.for_controller(start),
            None => start(),
        }
    }

    /// A request of existing floats of the good namespace.
    fn request(&self, name: &str) -> Value {
        let (from, to) = (self.sources.host(), self.registry.host());
        let seeded = |registry: &Registry, repository: &str, tag: &str, seed: String| {
            let spec = ImageSpec::new(Shape::Index, &seed);
            registry.seed_spec(repository, tag, &spec).unwrap()
        };
        let pairs: Vec<(String, String)> = (0..IMAGES)
            .map(|n| {
                let tag = format!("{name}-{n}");
                seeded(&self.registry, "ci", &tag, format!("old {tag}"));
                let new = seeded(&self.sources, "src", &tag, format!("new {tag}"));
                (format!("{from}/src@{new}"), format!("{to}/ci:{tag}"))
            })
            .collect();
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
        spec(&pairs)
    }

    /// How long a request of the good namespace takes from its creation to its end.
    async fn promoted(&self, name: &str) -> Duration {
        let request = self.request(name);
        let begun = Instant::now();
        self.good.create(name, &request).await;
        let done = self.good.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", self.good.log());
        begun.elapsed()
    }

    /// The time of one of the good namespace's requests alone.
    async fn alone(&self) -> Duration {
        let mut best = Duration::MAX;
        for n in 0..TRIES / 4 {
            best = best.min(self.promoted(&format!("alone-{n}")).await);
        }
        best
    }

    /// That such a request takes no more than three times as long beside the attack: each of some, where the controller has a core to itself,
    /// and otherwise one of them.
    async fn beside(&self, attack: &str, alone: Duration) {
        let mut times = Vec::new();
        let mut beside = Duration::MAX;
        let limit = alone * 3;
        while times.len() < TRIES && (beside > limit || self.cores.is_some()) {
            let took = self.promoted(&format!("beside-{}", times.len())).await;
            beside = beside.min(took);
            times.push(took);
        }
        println!(
            "{attack}: another namespace's request took {beside:.2?} beside it ({times:.2?}), {alone:.2?} alone"
        );
        let held = match self.cores {
            Some(_) => times.iter().all(|took| *took <= limit),
            None => beside <= limit,
        };
        assert!(held, "{attack}: {times:?} beside, {alone:?} alone");
    }
}

/// That a controller has stayed within its limit so far.
fn within_memory(attack: &str, controller: &Controller) {
    let peak = controller.peak_memory().unwrap();
    println!("{attack}: {} MiB at the highest", peak / MIB);
    assert!(peak < MEMORY, "{attack}: {} MiB", peak / MIB);
}
