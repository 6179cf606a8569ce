//! The state of one host's queue, with time as an argument.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fair_queue::FairQueue;
use crate::registry::host::limits::{FlowKey, Lane};
use crate::registry::host::progress::Progress;
use crate::registry::host::token_bucket::TokenBucket;

/// How many grants a new flow is ahead of those that are there: about the requests of four images.
pub(super) const NEW_FLOW_CREDIT: i64 = 64;
/// The window is never smaller: a stream within one host takes two places, and one request must pass beside it.
pub(super) const WINDOW_MIN: usize = 3;
/// Flows that wait for nothing are forgotten, where that changes nothing, above this number.
const IDLE_MAX: usize = 64;
/// How long a stream has its places before it may have to give way, and how often who waits looks for one that may.
const PREEMPT_AFTER: Duration = Duration::from_secs(3);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    /// For whom.
    pub(crate) flow: FlowKey,
    /// Requests that will be in flight: none where the caller has its place already.
    pub(crate) places: usize,
    /// The lane that paces it: none for the places of a stream, whose requests are paced themselves.
    pub(crate) paced: Option<Lane>,
    /// Whether it goes before all others, paced afterwards: it rests on a look that must not grow old.
    pub(crate) prompt: bool,
}

/// Places and pacing, and who waits for them: for a `P`.
#[derive(Debug)]
pub(super) struct State<P> {
    nominal: usize,
    window: f64,
    pub(super) halvings: u64,
    in_flight: usize,
    /// Of those in flight, the places of streams.
    streams: usize,
    pub(super) holders: Vec<StreamHolder>,
    lanes: [TokenBucket; 2],
    /// By namespace, and in each by promotion request.
    flows: FairQueue<u64, FairQueue<u64, Waiters<P>>>,
    /// How many wait in each class, those whose owners have left among them.
    waiting: [usize; CLASSES],
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

/// Those of one flow, by class.
type Waiters<P> = [VecDeque<Waiter<P>>; CLASSES];

#[derive(Debug)]
pub(super) struct Waiter<P> {
    pub(super) number: u64,
    pub(super) want: Want,
    pub(super) owner: oneshot::Sender<P>,
    /// Of a stream.
    pub(super) progress: Option<Progress>,
}

/// Those who wait for the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitClass {
    /// A place now, and a token of the pacing that is owed.
    Prompt,
    /// A place and a token.
    Request(Lane),
    /// Places for a stream.
    Stream,
    /// A token alone.
    Token(Lane),
}

const CLASSES: usize = 6;

impl WaitClass {
    const ALL: [Self; CLASSES] = [
        Self::Prompt,
        Self::Request(Lane::Manifests),
        Self::Request(Lane::Blobs),
        Self::Stream,
        Self::Token(Lane::Manifests),
        Self::Token(Lane::Blobs),
    ];

    fn of(want: &Want) -> Self {
        match want.paced.map(Lane::paced) {
            _ if want.prompt => Self::Prompt,
            None => Self::Stream,
            Some(lane) if want.places == 0 => Self::Token(lane),
            Some(lane) => Self::Request(lane),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Prompt => 0,
            Self::Request(Lane::Blobs) => 2,
            Self::Request(_) => 1,
            Self::Stream => 3,
            Self::Token(Lane::Blobs) => 5,
            Self::Token(_) => 4,
        }
    }

    /// The lane whose pacing holds it up.
    fn lane(self) -> Option<Lane> {
        match self {
            Self::Request(lane) | Self::Token(lane) => Some(lane),
            Self::Prompt | Self::Stream => None,
        }
    }

    fn needs_places(self) -> bool {
        !matches!(self, Self::Token(_))
    }
}

impl<P> State<P> {
    pub(super) fn new(nominal: usize, qps: u32, now: Instant) -> Self {
        let lane = || TokenBucket::new(qps, now);
        Self {
            nominal,
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            window: nominal as f64,
            halvings: 0,
            in_flight: 0,
            streams: 0,
            holders: Vec::new(),
            lanes: [lane(), lane()],
            flows: FairQueue::new(NEW_FLOW_CREDIT),
            waiting: [0; CLASSES],
            waiters: 0,
            alarm: None,
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.in_flight > 0 || self.waiting != [0; CLASSES] || self.window() < self.nominal
    }

    pub(super) fn load(&self) -> (usize, usize, usize) {
        (self.in_flight, self.waiting.iter().sum(), self.window())
    }

    pub(super) fn limited(&mut self, lane: Lane, halvings: u64) {
        if halvings != self.halvings {
            return;
        }
        self.halvings += 1;
        #[allow(clippy::cast_precision_loss, reason = "a small constant")]
        let least = WINDOW_MIN as f64;
        self.window = (self.window / 2.0).max(least);
        self.lane(lane).slow();
    }

    pub(super) fn served(&mut self, lane: Lane) {
        #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
        let nominal = self.nominal as f64;
        self.window = (self.window + 1.0 / self.window).min(nominal);
        self.lane(lane).recover();
    }

    pub(super) fn join(
        &mut self,
        want: Want,
        owner: oneshot::Sender<P>,
        progress: Option<Progress>,
    ) {
        self.waiters += 1;
        let waiter = Waiter {
            number: self.waiters,
            want,
            owner,
            progress,
        };
        if self.flows.iter().map(|(_, _, of)| of.len()).sum::<usize>() >= IDLE_MAX {
            self.forget_idle();
        }
        let FlowKey { namespace, request } = want.flow;
        let class = WaitClass::of(&want).index();
        self.waiting[class] += 1;
        let namespace = self
            .flows
            .join(namespace, || FairQueue::new(NEW_FLOW_CREDIT));
        let waiters = namespace.join(request, Waiters::default);
        waiters[class].push_back(waiter);
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
            let (want, class) = self.first(classes, &full)?;
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
            let waiters = self.flows.grant(&namespace)?.grant(&want.flow.request)?;
            let waiter = waiters[class.index()].pop_front()?;
            self.waiting[class.index()] -= 1;
            self.in_flight += want.places;
            if want.paced.is_none() {
                self.streams += want.places;
            }
            if let Some(lane) = want.paced {
                self.lane(lane).take();
            }
            if self.waiting == [0; CLASSES] {
                self.flows.clear();
            }
            return Some(waiter);
        }
    }

    /// Whether those of this class could go, places apart.
    fn is_open(&mut self, class: WaitClass, now: Instant) -> bool {
        if self.waiting[class.index()] == 0 {
            return false;
        }
        match class {
            WaitClass::Stream => self.streams < self.streams_max(),
            class => class
                .lane()
                .is_none_or(|lane| self.lane(lane).due(now).is_zero()),
        }
    }

    /// What is wanted by who goes first among these classes.
    fn first(&mut self, classes: [bool; CLASSES], full: &[u64]) -> Option<(Want, WaitClass)> {
        let mut first = None;
        for (namespace, served, requests) in self.flows.iter_mut() {
            let is_full = full.contains(namespace);
            for (_, own_served, waiters) in requests.iter_mut() {
                for class in WaitClass::ALL {
                    let waiters = &mut waiters[class.index()];
                    if !classes[class.index()] || (class == WaitClass::Stream && is_full) {
                        continue;
                    }
                    while waiters.front().is_some_and(|w| w.owner.is_closed()) {
                        waiters.pop_front();
                        self.waiting[class.index()] -= 1;
                    }
                    let Some(waiter) = waiters.front() else {
                        continue;
                    };
                    let later = class != WaitClass::Prompt;
                    let rank = (later, served, own_served, waiter.number);
                    if first.is_none_or(|(best, _, _)| rank < best) {
                        first = Some((rank, waiter.want, class));
                    }
                }
            }
        }
        first.map(|(_, want, class)| (want, class))
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
            let Some(lane) = class.lane() else { continue };
            if self.waiting[class.index()] == 0 || (full && class.needs_places()) {
                continue;
            }
            let wait = self.lane(lane).due(now);
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
        }
    }

    /// Forgets flows that wait for nothing, where that changes nothing, and namespaces that have none.
    fn forget_idle(&mut self) {
        for (_, _, requests) in self.flows.iter_mut() {
            requests.forget_idle(|waiters| waiters.iter().all(VecDeque::is_empty));
        }
        self.flows.forget_idle(FairQueue::is_empty);
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
        let stream = WaitClass::Stream.index();
        let waiting = self.flows.iter().filter(|(_, _, requests)| {
            let mut waiters = requests.iter();
            waiters.any(|(_, _, waiters)| !waiters[stream].is_empty())
        });
        let waiting = waiting.map(|(namespace, ..)| *namespace);
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

    pub(super) fn refund(&mut self, want: &Want) {
        if let Some(lane) = want.paced {
            self.lane(lane).refund();
        }
        if let Some(requests) = self.flows.get_mut(&want.flow.namespace) {
            requests.refund(&want.flow.request);
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut TokenBucket {
        match lane {
            Lane::Manifests | Lane::Tokens => &mut self.lanes[0],
            Lane::Blobs => &mut self.lanes[1],
        }
    }

    /// Whether nothing is held and nothing is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.load().0 == 0
            && self.streams == 0
            && self.flows.is_empty()
            && self.waiting == [0; CLASSES]
    }
}
