//! Who goes next: the places and turns of one host, shared out between those who wait for them.
//!
//! In come a [`Want`] (how many places, which lane's turn, for whom) and the time; out comes a [`Permit`], when it is its turn.
//! The window of places halves when the host limits the rate and grows again, by one for each window of answers.
//!
//! Guaranteed: no more places are given than the window has; the party (promotion request) that was given least goes first, and one that
//! has just come is ahead of the others by [`HEAD_START`] grants at most, so that a small request passes hundreds of images and holds
//! nobody up for long; what rests on a look that must not grow old goes before all others; who has left takes nothing; a
//! ticket for two places is not passed for ever by those for one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::budget::{Lane, Limits, lock};
use super::pace::Pace;

/// How many grants a party that comes is ahead of those that are there: about the requests of four images.
const HEAD_START: u64 = 64;
/// The window is never smaller: a stream within one host takes two places, and one request must pass beside it.
pub(super) const WINDOW_MIN: usize = 3;
/// Parties that wait for nothing are forgotten, where that changes nothing, above this number.
const IDLE_MAX: usize = 64;

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    /// For whom.
    pub(super) party: u64,
    /// Requests that will be in flight: none where the caller has its place already.
    pub(super) places: usize,
    /// The lane whose turn is needed: none for the places of a stream, whose requests take turns themselves.
    pub(super) turn: Option<Lane>,
    /// Whether it goes before all others and takes its turn at once: it rests on a look that must not grow old.
    pub(super) prompt: bool,
}

/// Places and turns of one host.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
}

/// Places held, given back when dropped; and a turn, which is used unless it is [`given back`](Permit::unused).
#[derive(Debug)]
pub(super) struct Permit {
    queue: Option<Arc<Queue>>,
    want: Want,
    /// How often the window had been halved when it was given.
    halvings: u64,
}

#[derive(Debug)]
struct State {
    nominal: usize,
    window: f64,
    halvings: u64,
    in_flight: usize,
    /// Of those in flight, the places of streams.
    streams: usize,
    lanes: [Pace; 2],
    lines: HashMap<u64, Line>,
    /// How many tickets wait in each class, those of owners that have left among them.
    waiting: [usize; CLASSES],
    /// What the party that was given least had been given at the newest grant.
    level: u64,
    tickets: u64,
    /// When the queue is looked at again by itself.
    alarm: Option<Instant>,
}

/// The tickets of one party.
#[derive(Debug)]
struct Line {
    /// Grants, counted from the level at which it came.
    given: u64,
    tickets: [VecDeque<Ticket>; CLASSES],
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    want: Want,
    owner: oneshot::Sender<Permit>,
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
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let nominal = limits.concurrency.max(WINDOW_MIN);
        let lane = || Pace::new(limits.qps, Instant::now());
        let state = State {
            nominal,
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            window: nominal as f64,
            halvings: 0,
            in_flight: 0,
            streams: 0,
            lanes: [lane(), lane()],
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
    pub(super) async fn enter(self: &Arc<Self>, want: Want) -> Permit {
        let (owner, granted) = oneshot::channel();
        self.with(|state| state.join(want, owner));
        // Nobody drops a ticket whose owner waits.
        granted.await.unwrap_or(Permit {
            queue: None,
            want,
            halvings: 0,
        })
    }

    /// The host limits the rate: the window halves, and the lane is slower; once for all requests that were sent together.
    pub(super) fn limited(self: &Arc<Self>, lane: Lane, permit: &Permit) {
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
    pub(super) fn served(self: &Arc<Self>, lane: Lane) {
        self.with(|state| {
            #[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
            let nominal = state.nominal as f64;
            state.window = (state.window + 1.0 / state.window).min(nominal);
            state.lane(lane).recover();
        });
    }

    /// Places taken, tickets that wait, and places that there are.
    pub(super) fn load(&self) -> (usize, usize, usize) {
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
            };
            if let Err(mut permit) = ticket.owner.send(permit) {
                // Its owner left in this instant. The state is locked: what it took is given back by hand.
                permit.queue = None;
                state.leave(&ticket.want);
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
    /// Gives the turn back: nothing was sent.
    pub(super) fn unused(self) {
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
            queue.with(|state| state.leave(&self.want));
        }
    }
}

// === impl State ===

impl State {
    fn join(&mut self, want: Want, owner: oneshot::Sender<Permit>) {
        self.tickets += 1;
        let ticket = Ticket {
            number: self.tickets,
            want,
            owner,
        };
        let class = Class::of(&want).index();
        self.waiting[class] += 1;
        let start = self.level.saturating_sub(HEAD_START);
        if self.lines.len() >= IDLE_MAX && !self.lines.contains_key(&want.party) {
            self.lines
                .retain(|_, line| line.given > start || line.tickets.iter().any(|t| !t.is_empty()));
        }
        let line = self.lines.entry(want.party).or_insert_with(|| Line {
            given: start,
            tickets: Default::default(),
        });
        line.given = line.given.max(start);
        line.tickets[class].push_back(ticket);
    }

    /// The ticket that is given what it wants, which is taken for it.
    fn next(&mut self, now: Instant) -> Option<Ticket> {
        let mut classes = Class::ALL.map(|class| self.is_open(class, now));
        loop {
            let (party, class) = self.first(classes)?;
            let line = self.lines.get_mut(&party)?;
            let want = line.tickets[class.index()].front()?.want;
            if class == Class::Stream && self.streams + want.places > self.streams_max() {
                classes[class.index()] = false;
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
            self.level = self.level.max(line.given);
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
    fn first(&mut self, classes: [bool; CLASSES]) -> Option<(u64, Class)> {
        let mut first = None;
        for (party, line) in &mut self.lines {
            for class in Class::ALL {
                let tickets = &mut line.tickets[class.index()];
                if !classes[class.index()] {
                    continue;
                }
                while tickets.front().is_some_and(|t| t.owner.is_closed()) {
                    tickets.pop_front();
                    self.waiting[class.index()] -= 1;
                }
                let Some(ticket) = tickets.front() else {
                    continue;
                };
                let rank = (class != Class::Prompt, line.given, ticket.number);
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

    fn leave(&mut self, want: &Want) {
        self.in_flight -= want.places;
        if want.turn.is_none() {
            self.streams -= want.places;
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
