//! All hosts, and streams between them.
//!
//! Guaranteed: no two copies wait for each other, because places are taken in one order: hosts by name, at each the credential's and then
//! the host's, at last that of the process. Whoever holds a place waits only for places further on in that order.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::admission::{Caller, Host};
use super::limits::{Limits, Zone};
use super::progress::Waiting;
use super::queue::{HostQueue, Permit};
use crate::metrics::{Metrics, RegistryState, Scrape};

/// How many hosts are remembered before unused ones are forgotten.
const HOSTS_MAX: usize = 1024;
/// The limit of the process, of which streams get their share: each stream keeps up to 2 MiB.
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

/// The places of a stream.
#[derive(Debug)]
pub(crate) struct StreamPlaces(Vec<Permit>);

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

    /// Publishes the state of each host.
    pub(crate) fn publish(&self, scrape: &Scrape<'_>) {
        let known = self.known.lock();
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
            for zone in Zone::ALL {
                if let Some(rate) = host.rate(zone) {
                    scrape.registry_rate(&host.label, zone.as_str(), rate);
                }
            }
        }
    }

    /// After a pause of everything.
    pub(crate) fn restart(&self) {
        for host in self.known.lock().values() {
            host.restart();
        }
    }

    /// What requests to the host of this name wait for while it is unavailable.
    pub(crate) fn unavailable(&self, name: &str) -> Option<Waiting> {
        let host = self.known.lock().get(&(name.to_owned(), None)).cloned()?;
        host.all.unavailable()
    }

    /// The host of this name, made if there is none; `led_by`: the registry that leads there, if it is not its own.
    pub(crate) fn get(&self, name: &str, led_by: Option<String>) -> Arc<Host> {
        let mut hosts = self.known.lock();
        let key = (name.to_owned(), led_by);
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&key) {
            // One that is unavailable is kept: forgetting it would mean asking it at once.
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || host.is_backing_off(true));
        }
        let host = hosts.entry(key).or_insert_with(|| {
            let label = self.metrics.host(name, self.named.contains(name));
            Arc::new(Host::new(name, label, self.limits))
        });
        Arc::clone(host)
    }
}

impl StreamPlaces {
    /// Resolves when others, who have less, wait for one of these places.
    pub(crate) async fn preempted(&self) {
        let preempted = self.0.iter().map(|permit| Box::pin(permit.preempted()));
        futures::future::select_all(preempted).await;
    }
}

impl Hosts {
    /// Places for a stream from one host to another, in the order that excludes a deadlock.
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
                let want = pusher.want(*ends, None);
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
