//! Who goes next: the places and turns of one host, shared out between those who wait for them.
//!
//! In come a [`Want`] (how many places, which lane's turn, for whom) and the time; out comes a [`Permit`], when it is its turn.
//! The window of places halves when the host limits the rate and grows again, by one for each window of answers.
//!
//! Guaranteed: no more places are given than the window has; the namespace that was given least goes first, of it the party (promotion
//! request) that was given least, and one that has just come is ahead of the others by [`HEAD_START`] grants at most, so that a small
//! request passes hundreds of images and holds nobody up for long; what rests on a look that must not grow old goes before all others;
//! who has left takes nothing; a ticket for two places is not passed for ever by those for one.
//!
//! Streams last as long as their source and target like. So a namespace never has all places for them: alone it leaves a quarter, and
//! of `n` none has more than one of `n + 1` equal parts. Whoever waits, and has less than that, takes from who has more: the slowest
//! gives way.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use tokio_util::sync::CancellationToken;

use super::budget::{Lane, Limits, lock};
use super::progress::{NOBODY, Progress, SHOWN_AFTER, Waiting};
use super::token_bucket::Pace;
use crate::machine::Reason;

/// How many grants a party that comes is ahead of those that are there: about the requests of four images.
const HEAD_START: u64 = 64;
/// The window is never smaller: a stream within one host takes two places, and one request must pass beside it.
pub(crate) const WINDOW_MIN: usize = 3;
/// Parties that wait for nothing are forgotten, where that changes nothing, above this number.
const IDLE_MAX: usize = 64;
/// How long a stream has its places before it may have to give way, and how often who waits looks for one that may.
const WAY: Duration = Duration::from_secs(3);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    /// For whose namespace.
    pub(crate) namespace: u64,
    /// For whom of it.
    pub(crate) party: u64,
    /// Requests that will be in flight: none where the caller has its place already.
    pub(crate) places: usize,
    /// The lane whose turn is needed: none for the places of a stream, whose requests take turns themselves.
    pub(crate) turn: Option<Lane>,
    /// Whether it goes before all others and takes its turn at once: it rests on a look that must not grow old.
    pub(crate) prompt: bool,
}

/// Places and turns of one host.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
}

/// Places held, given back when dropped; and a turn, which is used unless it is [`given back`](Permit::unused).
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Option<Arc<Queue>>,
    want: Want,
    /// How often the window had been halved when it was given.
    halvings: u64,
    number: u64,
    /// Others wait for its places.
    wanted: CancellationToken,
}

#[derive(Debug)]
struct State {
    nominal: usize,
    window: f64,
    halvings: u64,
    in_flight: usize,
    /// Of those in flight, the places of streams.
    streams: usize,
    holders: Vec<Holder>,
    lanes: [Pace; 2],
    namespaces: HashMap<u64, Namespace>,
    lines: HashMap<u64, Line>,
    /// How many tickets wait in each class, those of owners that have left among them.
    waiting: [usize; CLASSES],
    /// What the namespace that was given least had been given at the newest grant.
    level: u64,
    tickets: u64,
    /// When the queue is looked at again by itself.
    alarm: Option<Instant>,
}

/// A stream that has its places.
#[derive(Debug)]
struct Holder {
    number: u64,
    want: Want,
    since: Instant,
    progress: Progress,
    /// What its operation had written then.
    before: u64,
    wanted: CancellationToken,
}

/// What a namespace was given.
#[derive(Debug)]
struct Namespace {
    given: u64,
    /// What the party that was given least had been given at the newest grant to this namespace.
    level: u64,
}

/// The tickets of one party.
#[derive(Debug)]
struct Line {
    namespace: u64,
    /// Grants, counted from the level at which it came.
    given: u64,
    tickets: [VecDeque<Ticket>; CLASSES],
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    want: Want,
    owner: oneshot::Sender<Permit>,
    /// Of a stream.
    progress: Option<Progress>,
}

/// Tickets that wait for the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A place now, and a turn that is owed.
    Prompt,
    /// A place and a turn.
    Request(Lane),
    /// Places for a stream.
    Stream,
    /// A turn alone.
    Turn(Lane),
}

const CLASSES: usize = 6;

impl Class {
    const ALL: [Self; CLASSES] = [
        Self::Prompt,
        Self::Request(Lane::Manifests),
        Self::Request(Lane::Blobs),
        Self::Stream,
        Self::Turn(Lane::Manifests),
        Self::Turn(Lane::Blobs),
    ];

    fn of(want: &Want) -> Self {
        match want.turn.map(Lane::paced) {
            _ if want.prompt => Self::Prompt,
            None => Self::Stream,
            Some(lane) if want.places == 0 => Self::Turn(lane),
            Some(lane) => Self::Request(lane),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Prompt => 0,
            Self::Request(Lane::Blobs) => 2,
            Self::Request(_) => 1,
            Self::Stream => 3,
            Self::Turn(Lane::Blobs) => 5,
            Self::Turn(_) => 4,
        }
    }

    /// The lane without whose turn it does not go.
    fn lane(self) -> Option<Lane> {
        match self {
            Self::Request(lane) | Self::Turn(lane) => Some(lane),
            Self::Prompt | Self::Stream => None,
        }
    }

    fn needs_places(self) -> bool {
        !matches!(self, Self::Turn(_))
    }
}

// === impl Queue ===

impl Queue {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Self::of(limits.concurrency.max(WINDOW_MIN), limits.qps)
    }

    /// So many places, and no pacing.
    pub(crate) fn unpaced(places: usize) -> Arc<Self> {
        Self::of(places, 0)
    }

    fn of(nominal: usize, qps: u32) -> Arc<Self> {
        let lane = || Pace::new(qps, Instant::now());
        let state = State {
            nominal,
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            window: nominal as f64,
            halvings: 0,
            in_flight: 0,
            streams: 0,
            holders: Vec::new(),
            lanes: [lane(), lane()],
            namespaces: HashMap::new(),
            lines: HashMap::new(),
            waiting: [0; CLASSES],
            level: 0,
            tickets: 0,
            alarm: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Waits for what is wanted.
    pub(crate) async fn enter(self: &Arc<Self>, want: Want) -> Permit {
        let (owner, granted) = oneshot::channel();
        self.with(|state| state.join(want, owner, None));
        // Nobody drops a ticket whose owner waits.
        granted.await.unwrap_or_else(|_| Permit::none(want))
    }

    /// Waits for places of a stream, shows that, and takes them from who has too many. `name`: whose places they are.
    pub(crate) async fn enter_stream(
        self: &Arc<Self>,
        want: Want,
        name: &str,
        progress: &Progress,
    ) -> Permit {
        let (owner, mut granted) = oneshot::channel();
        self.with(|state| state.join(want, owner, Some(progress.clone())));
        let mut shown = None;
        loop {
            tokio::select! {
                biased;
                permit = &mut granted => return permit.unwrap_or_else(|_| Permit::none(want)),
                () = tokio::time::sleep(SHOWN_AFTER) => {}
            }
            let places = {
                let mut state = lock(&self.state);
                state.make_way(&want, Instant::now());
                state.streams_max()
            };
            shown.get_or_insert_with(|| {
                progress.wait(Waiting {
                    reason: Reason::Queued,
                    message: format!(
                        "waits for one of the {places} places for blobs at {name}, which other images have"
                    ),
                    until: std::time::Instant::now(),
                })
            });
        }
    }

    /// Whether anybody has or wants anything of it, or its limits are lowered.
    pub(crate) fn is_used(&self) -> bool {
        let state = lock(&self.state);
        state.in_flight > 0 || state.waiting != [0; CLASSES] || state.window() < state.nominal
    }

    /// The host limits the rate: the window halves, and the lane is slower; once for all requests that were sent together.
    pub(crate) fn limited(self: &Arc<Self>, lane: Lane, permit: &Permit) {
        let mut state = lock(&self.state);
        if permit.halvings != state.halvings {
            return;
        }
        state.halvings += 1;
        #[allow(clippy::cast_precision_loss, reason = "a small constant")]
        let least = WINDOW_MIN as f64;
        state.window = (state.window / 2.0).max(least);
        state.lane(lane).slow();
    }

    /// The host serves: the window and the lane's rate grow, up to what is configured.
    pub(crate) fn served(self: &Arc<Self>, lane: Lane) {
        self.with(|state| {
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            let nominal = state.nominal as f64;
            state.window = (state.window + 1.0 / state.window).min(nominal);
            state.lane(lane).recover();
        });
    }

    /// Places taken, tickets that wait, and places that there are.
    pub(crate) fn load(&self) -> (usize, usize, usize) {
        let state = lock(&self.state);
        let queued = state.waiting.iter().sum();
        (state.in_flight, queued, state.window())
    }

    /// Changes the state, then gives what can be given.
    fn with(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let now = Instant::now();
        while let Some(ticket) = state.next(now) {
            let permit = Permit {
                queue: Some(Arc::clone(self)),
                want: ticket.want,
                halvings: state.halvings,
                number: ticket.number,
                wanted: CancellationToken::new(),
            };
            if let Some(progress) = ticket.progress {
                state.holders.push(Holder {
                    number: ticket.number,
                    want: ticket.want,
                    since: now,
                    before: progress.bytes(),
                    progress,
                    wanted: permit.wanted.clone(),
                });
            }
            if let Err(mut permit) = ticket.owner.send(permit) {
                // Its owner left in this instant. The state is locked: what it took is given back by hand.
                permit.queue = None;
                state.leave(&ticket.want, ticket.number);
                state.unused(&ticket.want);
            }
        }
        let due = state.due(now);
        if let Some(due) = due
            && state.alarm.is_none_or(|alarm| due < alarm)
        {
            state.alarm = Some(due);
            drop(state);
            self.ring_at(due);
        }
    }

    /// Looks at the queue again when a turn is due.
    fn ring_at(self: &Arc<Self>, due: Instant) {
        // Places may be given back when the runtime has ended: then nobody waits any more.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let queue = Arc::downgrade(self);
        runtime.spawn(async move {
            sleep_until(due).await;
            if let Some(queue) = queue.upgrade() {
                queue.with(|state| {
                    if state.alarm == Some(due) {
                        state.alarm = None;
                    }
                });
            }
        });
    }
}

// === impl Permit ===

impl Permit {
    fn none(want: Want) -> Self {
        Self {
            queue: None,
            want,
            halvings: 0,
            number: 0,
            wanted: CancellationToken::new(),
        }
    }

    /// Resolves when others, who have less, wait for the places of this stream.
    pub(crate) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }

    /// Gives the turn back: nothing was sent.
    pub(crate) fn unused(self) {
        if let Some(queue) = &self.queue {
            queue.with(|state| state.unused(&self.want));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take()
            && self.want.places > 0
        {
            queue.with(|state| state.leave(&self.want, self.number));
        }
    }
}

// === impl State ===

impl State {
    fn join(&mut self, want: Want, owner: oneshot::Sender<Permit>, progress: Option<Progress>) {
        self.tickets += 1;
        let ticket = Ticket {
            number: self.tickets,
            want,
            owner,
            progress,
        };
        let class = Class::of(&want).index();
        self.waiting[class] += 1;
        if self.lines.len() >= IDLE_MAX && !self.lines.contains_key(&want.party) {
            self.forget_idle();
        }
        let start = self.level.saturating_sub(HEAD_START);
        let namespace = self.namespaces.entry(want.namespace);
        let namespace = namespace.or_insert(Namespace {
            given: start,
            level: 0,
        });
        namespace.given = namespace.given.max(start);
        let start = namespace.level.saturating_sub(HEAD_START);
        let line = self.lines.entry(want.party).or_insert_with(|| Line {
            namespace: want.namespace,
            given: start,
            tickets: Default::default(),
        });
        line.given = line.given.max(start);
        line.tickets[class].push_back(ticket);
    }

    /// The ticket that is given what it wants, which is taken for it.
    fn next(&mut self, now: Instant) -> Option<Ticket> {
        let mut classes = Class::ALL.map(|class| self.is_open(class, now));
        let part = if classes[Class::Stream.index()] {
            self.part()
        } else {
            0
        };
        // Namespaces that have their part of the places for streams.
        let mut full = Vec::new();
        loop {
            let (party, class) = self.first(classes, &full)?;
            let line = self.lines.get_mut(&party)?;
            let want = line.tickets[class.index()].front()?.want;
            if class == Class::Stream && self.streams + want.places > self.streams_max() {
                classes[class.index()] = false;
                continue;
            }
            if class == Class::Stream && self.places_of(want.namespace) + want.places > part {
                full.push(want.namespace);
                continue;
            }
            if want.places > 0 && !self.has_room(want.places) {
                // Nobody passes it by: only who needs no place goes on.
                for class in Class::ALL.into_iter().filter(|class| class.needs_places()) {
                    classes[class.index()] = false;
                }
                continue;
            }
            let line = self.lines.get_mut(&party)?;
            let ticket = line.tickets[class.index()].pop_front()?;
            if let Some(namespace) = self.namespaces.get_mut(&want.namespace) {
                self.level = self.level.max(namespace.given);
                namespace.given += 1;
                namespace.level = namespace.level.max(line.given);
            }
            line.given += 1;
            self.waiting[class.index()] -= 1;
            self.in_flight += want.places;
            if want.turn.is_none() {
                self.streams += want.places;
            }
            if let Some(lane) = want.turn {
                self.lane(lane).take();
            }
            if self.waiting == [0; CLASSES] {
                self.lines.clear();
                self.namespaces.clear();
            }
            return Some(ticket);
        }
    }

    /// Whether tickets of this class could go, places apart.
    fn is_open(&mut self, class: Class, now: Instant) -> bool {
        if self.waiting[class.index()] == 0 {
            return false;
        }
        match class {
            Class::Stream => self.streams < self.streams_max(),
            class => class
                .lane()
                .is_none_or(|lane| self.lane(lane).due(now).is_zero()),
        }
    }

    /// The party and class that go first among these classes.
    fn first(&mut self, classes: [bool; CLASSES], full: &[u64]) -> Option<(u64, Class)> {
        let mut first = None;
        for (party, line) in &mut self.lines {
            let namespace = self.namespaces.get(&line.namespace);
            let given = namespace.map_or(0, |namespace| namespace.given);
            for class in Class::ALL {
                let tickets = &mut line.tickets[class.index()];
                let is_full = class == Class::Stream && full.contains(&line.namespace);
                if !classes[class.index()] || is_full {
                    continue;
                }
                while tickets.front().is_some_and(|t| t.owner.is_closed()) {
                    tickets.pop_front();
                    self.waiting[class.index()] -= 1;
                }
                let Some(ticket) = tickets.front() else {
                    continue;
                };
                let rank = (class != Class::Prompt, given, line.given, ticket.number);
                if first.is_none_or(|(best, _, _)| rank < best) {
                    first = Some((rank, *party, class));
                }
            }
        }
        first.map(|(_, party, class)| (party, class))
    }

    fn has_room(&self, places: usize) -> bool {
        self.in_flight + places <= self.window()
    }

    /// A quarter of the window is kept free of streams, so that tags are written while large layers move.
    fn streams_max(&self) -> usize {
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

    /// When the next turn is due that somebody waits for.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        let full = !self.has_room(1);
        let mut due = None;
        for class in Class::ALL {
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

    fn leave(&mut self, want: &Want, number: u64) {
        self.in_flight -= want.places;
        if want.turn.is_none() {
            self.streams -= want.places;
            self.holders.retain(|holder| holder.number != number);
        }
    }

    /// Forgets parties that wait for nothing, where that changes nothing, and namespaces that have none.
    fn forget_idle(&mut self) {
        let namespaces = &self.namespaces;
        self.lines.retain(|_, line| {
            let level = namespaces.get(&line.namespace).map_or(0, |n| n.level);
            line.given > level.saturating_sub(HEAD_START)
                || line.tickets.iter().any(|tickets| !tickets.is_empty())
        });
        let (lines, start) = (&self.lines, self.level.saturating_sub(HEAD_START));
        self.namespaces.retain(|name, namespace| {
            namespace.given > start || lines.values().any(|line| line.namespace == *name)
        });
    }

    /// The places for streams that a namespace has.
    fn places_of(&self, namespace: u64) -> usize {
        let holders = self
            .holders
            .iter()
            .filter(|h| h.want.namespace == namespace);
        holders.map(|holder| holder.want.places).sum()
    }

    /// How many of them each of those that have or want some may have: at least what one stream takes.
    fn part(&self) -> usize {
        let most = self.streams_max();
        let stream = Class::Stream.index();
        let waiting = self
            .lines
            .values()
            .filter(|line| !line.tickets[stream].is_empty());
        let waiting = waiting.map(|line| line.namespace);
        let holding = self.holders.iter().map(|holder| holder.want.namespace);
        let parties: HashSet<u64> = waiting.chain(holding).collect();
        let part = match parties.len() {
            0 | 1 if parties.iter().all(|party| *party == NOBODY) => most,
            0 | 1 => most - most / 4,
            n => most / (n + 1),
        };
        part.max(2)
    }

    /// A stream of `want` waits: the slowest of those that have more than their part gives way to it, if it has less.
    fn make_way(&mut self, want: &Want, now: Instant) {
        let part = self.part();
        if self
            .holders
            .iter()
            .any(|holder| holder.wanted.is_cancelled())
        {
            // One is leaving already.
            return;
        }
        let party = |want: &Want| (want.namespace, want.party);
        let mut parties: HashMap<(u64, u64), usize> = HashMap::new();
        for holder in &self.holders {
            *parties.entry(party(&holder.want)).or_default() += holder.want.places;
        }
        let mine = self.places_of(want.namespace);
        let own = parties.get(&party(want)).copied().unwrap_or_default();
        let over = |holder: &&Holder| {
            if holder.want.namespace == want.namespace {
                // Within a namespace: who has least against who has most.
                return parties[&party(&holder.want)] > own + want.places;
            }
            mine + want.places <= part && self.places_of(holder.want.namespace) > part
        };
        let old = self
            .holders
            .iter()
            .filter(|holder| holder.since + WAY <= now);
        let slowest = old.filter(over).min_by_key(|holder| {
            let brought = holder.progress.bytes().saturating_sub(holder.before);
            brought * 1000
                / u64::try_from((now - holder.since).as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1)
        });
        if let Some(slowest) = slowest {
            slowest.wanted.cancel();
        }
    }

    fn unused(&mut self, want: &Want) {
        if let Some(lane) = want.turn {
            self.lane(lane).give_back();
        }
        if let Some(line) = self.lines.get_mut(&want.party) {
            line.given = line.given.saturating_sub(1);
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut Pace {
        match lane {
            Lane::Manifests | Lane::Tokens => &mut self.lanes[0],
            Lane::Blobs => &mut self.lanes[1],
        }
    }
}

#[cfg(test)]
mod tests;
