//! The state of one host's queue, with time as an argument.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::waiting::{CLASSES, Place, WaitClass, Waiter, Waiting, Want};
use crate::fair_queue::FairQueue;
use crate::registry::host::limits::{FlowKey, Limit, Protocol, Rates, Slowings, Zone};
use crate::registry::host::progress::Progress;
use crate::registry::host::token_bucket::TokenBucket;

/// How many grants a new namespace is ahead of those that are there: about the requests of four images.
const NEW_NAMESPACE_CREDIT: i64 = 64;
/// The window is never smaller: a stream within one host takes two places, and one request must pass beside it.
pub(super) const WINDOW_MIN: usize = 3;
/// Namespaces that wait for nothing are forgotten, where that changes nothing, above this number, and above twice those left the last time.
const IDLE_MAX: usize = 64;
/// How long a stream has its places before it may have to give way, and how often who waits looks for one that may.
const PREEMPT_AFTER: Duration = Duration::from_secs(3);

/// Places and pacing, and who waits for them: for a `P`.
#[derive(Debug)]
pub(super) struct State<P> {
    nominal: usize,
    window: f64,
    /// How often each bucket was slowed.
    pub(super) slowings: Slowings,
    in_flight: usize,
    /// Of those in flight, the places of streams.
    streams: usize,
    holders: Vec<StreamHolder>,
    /// By zone, and in each by protocol.
    buckets: [[TokenBucket; 2]; 2],
    /// What is spoken in each zone, connections of their own apart.
    spoken: [Protocol; 2],
    /// By namespace; those of which somebody waits in a class are on its list.
    namespaces: FairQueue<u64, Waiting<P>, CLASSES, Place>,
    /// With so many namespaces, those that wait for nothing are forgotten.
    idle_max: usize,
    /// How many wait.
    waiting: usize,
    waiters: u64,
    /// When the queue is looked at again by itself.
    pub(super) alarm: Option<Instant>,
}

/// A stream that has its places.
#[derive(Debug)]
pub(super) struct StreamHolder {
    pub(super) number: u64,
    pub(super) want: Want,
    pub(super) since: Instant,
    pub(super) progress: Progress,
    /// What its operation had written then.
    pub(super) before: u64,
    pub(super) preempted: CancellationToken,
}

impl<P> State<P> {
    pub(super) fn new(nominal: usize, rates: Rates, now: Instant) -> Self {
        Self {
            nominal,
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            window: nominal as f64,
            slowings: Slowings::default(),
            in_flight: 0,
            streams: 0,
            holders: Vec::new(),
            buckets: Zone::ALL.map(|zone| [(); 2].map(|()| TokenBucket::new(rates, zone, now))),
            spoken: [Protocol::Http1; 2],
            namespaces: FairQueue::new(NEW_NAMESPACE_CREDIT),
            idle_max: IDLE_MAX,
            waiting: 0,
            waiters: 0,
            alarm: None,
        }
    }

    pub(super) fn is_used(&self) -> bool {
        let lowered = || self.buckets.iter().flatten().any(TokenBucket::is_lowered);
        self.in_flight > 0 || self.is_waited_for() || self.window() < self.nominal || lowered()
    }

    pub(super) fn load(&self) -> (usize, usize, usize) {
        (self.in_flight, self.waiting, self.window())
    }

    /// The rate that a zone is kept to.
    pub(super) fn rate(&mut self, zone: Zone, apart: bool, now: Instant) -> Option<f64> {
        self.bucket(zone, apart).rate(now)
    }

    /// Takes note of what is spoken.
    fn hear(&mut self, limit: Limit) -> Protocol {
        let spoken = &mut self.spoken[limit.zone as usize];
        if let Some(protocol) = limit.protocol
            && !limit.apart
        {
            *spoken = protocol;
        }
        limit.protocol.unwrap_or(*spoken)
    }

    /// A request that was sent when it had been slowed `slowings` times was answered 429; whether it is slowed by that.
    pub(super) fn limited(
        &mut self,
        limit: Limit,
        slowings: &Slowings,
        kept: f64,
        now: Instant,
    ) -> bool {
        let (zone, protocol) = (limit.zone as usize, self.hear(limit) as usize);
        if slowings[zone][protocol] != self.slowings[zone][protocol]
            || !self.buckets[zone][protocol].limited(now, kept)
        {
            return false;
        }
        self.slowings[zone][protocol] += 1;
        if limit.zone == Zone::Content {
            #[allow(clippy::cast_precision_loss, reason = "a small constant")]
            let least = WINDOW_MIN as f64;
            self.window = (self.window / 2.0).max(least);
        }
        true
    }

    /// A request was served. `wanted`: the rate holds up somebody elsewhere. Whether it does so, here or there.
    pub(super) fn served(&mut self, limit: Limit, wanted: bool, now: Instant) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
        let nominal = self.nominal as f64;
        let (zone, protocol) = (limit.zone, self.hear(limit));
        if zone == Zone::Content {
            self.window = (self.window + 1.0 / self.window).min(nominal);
        }
        let wanted = self.is_wanted(zone, protocol, now) || wanted;
        self.buckets[zone as usize][protocol as usize].served(now, wanted);
        wanted
    }

    /// Whether a bucket holds up anybody who waits.
    fn is_wanted(&mut self, zone: Zone, protocol: Protocol, now: Instant) -> bool {
        let spoken = self.spoken[zone as usize] == protocol;
        let waiting = |class: &WaitClass| self.namespaces.first(class.index()).is_some();
        let mut classes = WaitClass::ALL.into_iter().filter(waiting);
        let any = classes.any(|class| class.zone() == Some(zone) && class != WaitClass::Bulk);
        let apart = zone == Zone::Content && protocol == Protocol::Http1;
        let looks = apart && waiting(&WaitClass::Look);
        let bulk = apart && waiting(&WaitClass::Bulk);
        let bucket = &mut self.buckets[zone as usize][protocol as usize];
        let due = ((any && spoken) || bulk) && !bucket.due(now).is_zero();
        due || (looks && !bucket.owed(now).is_zero())
    }

    /// The host comes back after a pause.
    pub(super) fn restart(&mut self) {
        for bucket in self.buckets.iter_mut().flatten() {
            bucket.restart();
        }
    }

    /// Whether anybody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting > 0
    }

    /// Takes what is wanted where nobody waits and nothing holds it up: how often each bucket had been slowed then. Not for a stream.
    pub(super) fn take_at_once(&mut self, want: &Want, now: Instant) -> Option<Slowings> {
        let held_up = self.is_waited_for()
            || !self.due_in(WaitClass::of(want), now).is_zero()
            || (want.places > 0 && !self.has_room(want.places));
        (!held_up).then(|| {
            self.hand_out(want, now);
            self.slowings
        })
    }

    /// Places, and tokens of the pacing, are somebody's now.
    fn hand_out(&mut self, want: &Want, now: Instant) {
        self.in_flight += want.places;
        let Some(zone) = want.paced else {
            self.streams += want.places;
            return;
        };
        if !want.paid {
            self.bucket(zone, want.connection.is_apart()).take(now);
        }
        for _ in 0..want.puts {
            self.bucket(zone, true).take(now);
        }
    }

    /// The number of the waiter.
    pub(super) fn join(
        &mut self,
        want: Want,
        owner: oneshot::Sender<P>,
        progress: Option<Progress>,
    ) -> u64 {
        self.waiters += 1;
        self.waiting += 1;
        let waiter = Waiter {
            number: self.waiters,
            want,
            owner,
            progress,
        };
        if self.namespaces.len() >= self.idle_max {
            self.namespaces.forget_idle(Waiting::is_empty);
            self.idle_max = IDLE_MAX.max(2 * self.namespaces.len());
        }
        let held = self.places_of_request(want.flow);
        let namespace = want.flow.namespace;
        let waiting = self.namespaces.join(namespace, Waiting::default);
        waiting.join(waiter, held);
        self.list(namespace);
        self.waiters
    }

    /// Puts a namespace where it belongs: others of it wait first.
    fn list(&mut self, namespace: u64) {
        if let Some(waiting) = self.namespaces.get_mut(&namespace) {
            let places = WaitClass::ALL.map(|class| Some(waiting.first(class)?.place()));
            self.namespaces.list(&namespace, places);
        }
    }

    /// The waiter that is granted what it wants, which is taken for it.
    pub(super) fn next(&mut self, now: Instant) -> Option<Waiter<P>> {
        let mut classes = WaitClass::ALL.map(|class| self.is_open(class, now));
        let share = if classes[WaitClass::Stream.index()] {
            self.stream_share()
        } else {
            0
        };
        // Namespaces that have their share of the places for streams.
        let mut full = Vec::new();
        loop {
            // Most often the rate lets nobody go: then nobody is looked at.
            if classes == [false; CLASSES] {
                return None;
            }
            let (number, want) = self.first(classes, &full)?;
            let class = WaitClass::of(&want);
            if class == WaitClass::Stream && self.streams + want.places > self.streams_max() {
                classes[class.index()] = false;
                continue;
            }
            let namespace = want.flow.namespace;
            if class == WaitClass::Stream && self.places_of(namespace) + want.places > share {
                full.push(namespace);
                continue;
            }
            if want.places > 0 && !self.has_room(want.places) {
                // Nobody passes it by: only who needs no place goes on.
                for class in WaitClass::ALL
                    .into_iter()
                    .filter(|class| class.needs_places())
                {
                    classes[class.index()] = false;
                }
                continue;
            }
            self.namespaces.grant(&namespace)?;
            let waiter = self.take(&want, number)?;
            self.hand_out(&want, now);
            if !self.is_waited_for() {
                self.namespaces.clear();
            }
            return Some(waiter);
        }
    }

    /// Whether those of this class could go, places apart.
    fn is_open(&mut self, class: WaitClass, now: Instant) -> bool {
        if self.namespaces.first(class.index()).is_none() {
            return false;
        }
        match class {
            WaitClass::Stream => self.streams < self.streams_max(),
            class => self.due_in(class, now).is_zero(),
        }
    }

    /// Who goes first among these classes, and wants what.
    fn first(&mut self, classes: [bool; CLASSES], full: &[u64]) -> Option<(u64, Want)> {
        let open = WaitClass::ALL.into_iter().filter(|c| classes[c.index()]);
        let first = open.filter_map(|class| {
            let mut listed = self.namespaces.listed(class.index());
            let may_go = |namespace| class != WaitClass::Stream || !full.contains(namespace);
            let (rank, namespace) = listed.find(|(_, namespace)| may_go(namespace))?;
            Some(((class != WaitClass::Prompt, rank), *namespace, class))
        });
        let (_, namespace, class) = first.min_by_key(|(rank, ..)| *rank)?;
        let waiter = self.namespaces.get_mut(&namespace)?.first(class)?;
        Some((waiter.number, waiter.want))
    }

    /// Takes a waiter out of the queue, if it is there.
    pub(super) fn take(&mut self, want: &Want, number: u64) -> Option<Waiter<P>> {
        let namespace = want.flow.namespace;
        let waiter = self.namespaces.get_mut(&namespace)?.take(want, number)?;
        self.waiting -= 1;
        self.list(namespace);
        Some(waiter)
    }

    fn has_room(&self, places: usize) -> bool {
        self.in_flight + places <= self.window()
    }

    /// A quarter of the window is kept free of streams, so that tags are written while large layers move.
    pub(super) fn streams_max(&self) -> usize {
        (self.window() * 3 / 4).max(2)
    }

    /// The window in whole places.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between three and a few hundred"
    )]
    fn window(&self) -> usize {
        // What is added bit by bit must reach the whole.
        (self.window + 1e-6) as usize
    }

    /// When the pacing next lets somebody go who waits.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        let full = !self.has_room(1);
        let mut due = None;
        for class in WaitClass::ALL {
            let nobody = self.namespaces.first(class.index()).is_none();
            if nobody || (full && class.needs_places()) {
                continue;
            }
            let wait = self.due_in(class, now);
            // What is due already waits for something else.
            if !wait.is_zero() {
                due = [due, Some(now + wait)].into_iter().flatten().min();
            }
        }
        due
    }

    pub(super) fn release(&mut self, want: &Want, number: u64) {
        self.in_flight -= want.places;
        if want.paced.is_none() {
            self.streams -= want.places;
            self.holders.retain(|holder| holder.number != number);
            self.count_streams(want.flow);
        }
    }

    /// A stream has its places.
    pub(super) fn hold(&mut self, holder: StreamHolder) {
        let flow = holder.want.flow;
        self.holders.push(holder);
        self.count_streams(flow);
    }

    /// Puts the streams of a request where they belong: it has more places, or fewer.
    fn count_streams(&mut self, flow: FlowKey) {
        let held = self.places_of_request(flow);
        if let Some(waiting) = self.namespaces.get_mut(&flow.namespace) {
            waiting.holds(flow.request, held);
            self.list(flow.namespace);
        }
    }

    /// The places for streams that a request has.
    pub(super) fn places_of_request(&self, flow: FlowKey) -> usize {
        let holders = self.holders.iter().filter(|h| h.want.flow == flow);
        holders.map(|holder| holder.want.places).sum()
    }

    /// The places for streams that a namespace has.
    pub(super) fn places_of(&self, namespace: u64) -> usize {
        let holders = self
            .holders
            .iter()
            .filter(|h| h.want.flow.namespace == namespace);
        holders.map(|holder| holder.want.places).sum()
    }

    /// How many of them each of those that have or want some may have: at least what one stream takes.
    fn stream_share(&self) -> usize {
        let most = self.streams_max();
        // Of so many each has the least already.
        let waiting = self.namespaces.listed(WaitClass::Stream.index()).take(most);
        let waiting = waiting.map(|(_, namespace)| *namespace);
        let holding = self.holders.iter().map(|holder| holder.want.flow.namespace);
        let namespaces: HashSet<u64> = waiting.chain(holding).collect();
        let share = match namespaces.len() {
            0 | 1 if namespaces.iter().all(|name| *name == FlowKey::NOBODY) => most,
            0 | 1 => most - most / 4,
            n => most / (n + 1),
        };
        share.max(2)
    }

    /// A stream of `want` waits: the slowest of those that have more than their share gives way to it, if it has less.
    pub(super) fn preempt_for(&mut self, want: &Want, now: Instant) {
        let share = self.stream_share();
        if self
            .holders
            .iter()
            .any(|holder| holder.preempted.is_cancelled())
        {
            // One is leaving already.
            return;
        }
        let mut flows: HashMap<FlowKey, usize> = HashMap::new();
        for holder in &self.holders {
            *flows.entry(holder.want.flow).or_default() += holder.want.places;
        }
        let namespace = want.flow.namespace;
        let mine = self.places_of(namespace);
        let own = flows.get(&want.flow).copied().unwrap_or_default();
        let over = |holder: &&StreamHolder| {
            if holder.want.flow.namespace == namespace {
                // Within a namespace: who has least against who has most.
                return flows[&holder.want.flow] > own + want.places;
            }
            mine + want.places <= share && self.places_of(holder.want.flow.namespace) > share
        };
        let old = self
            .holders
            .iter()
            .filter(|holder| holder.since + PREEMPT_AFTER <= now);
        let slowest = old.filter(over).min_by_key(|holder| {
            let brought = holder.progress.bytes().saturating_sub(holder.before);
            brought * 1000
                / u64::try_from((now - holder.since).as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1)
        });
        if let Some(slowest) = slowest {
            slowest.preempted.cancel();
        }
    }

    /// So many tag PUTs that were taken into account did not follow.
    pub(super) fn refund_puts(&mut self, puts: u32) {
        for _ in 0..puts {
            self.bucket(Zone::Content, true).refund();
        }
    }

    pub(super) fn refund(&mut self, want: &Want) {
        if let Some(zone) = want.paced {
            self.bucket(zone, want.connection.is_apart()).refund();
        }
    }

    /// How long it is until the pacing lets one of a class go. Tag PUTs are not held up, because the looks that they rest on are: these
    /// wait until none is owed, also where their own protocol has another bucket.
    fn due_in(&mut self, class: WaitClass, now: Instant) -> Duration {
        let Some(zone) = class.zone() else {
            return Duration::ZERO;
        };
        let own = self.bucket(zone, class == WaitClass::Bulk).due(now);
        match class {
            WaitClass::Look => own.max(self.bucket(zone, true).owed(now)),
            _ => own,
        }
    }

    fn bucket(&mut self, zone: Zone, apart: bool) -> &mut TokenBucket {
        let spoken = self.spoken[zone as usize];
        let protocol = if apart { Protocol::Http1 } else { spoken };
        &mut self.buckets[zone as usize][protocol as usize]
    }

    /// Whether nothing is held and nothing is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.load().0 == 0 && self.streams == 0 && self.namespaces.is_empty() && self.waiting == 0
    }
}
