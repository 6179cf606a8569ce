//! Who of one namespace waits, and who of them goes first: by turns, and of streams the request that has the fewest places.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use crate::registry::host::limits::{Connection, FlowKey, Zone};
use crate::registry::host::progress::Progress;
use crate::turn::Turn;

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    /// For whom.
    pub(crate) flow: FlowKey,
    /// Whose turn it is within the namespace.
    pub(crate) turn: Turn,
    /// Requests that will be in flight: none where the caller has its place already.
    pub(crate) places: usize,
    /// The zone that it is paced with: none for the places of a stream, whose requests are paced themselves.
    pub(crate) paced: Option<Zone>,
    pub(crate) connection: Connection,
    /// Tag PUTs that may follow its answer at once, whose tokens are taken with its own.
    pub(crate) puts: u32,
    /// A tag PUT whose token was taken with that of the look it rests on.
    pub(crate) paid: bool,
}

/// A turn, and the number of the waiter among all.
pub(super) type Place = (Turn, u64);

#[derive(Debug)]
pub(super) struct Waiter<P> {
    pub(super) number: u64,
    pub(super) want: Want,
    pub(super) owner: oneshot::Sender<P>,
    /// Of a stream.
    pub(super) progress: Option<Progress>,
}

impl<P> Waiter<P> {
    pub(super) fn place(&self) -> Place {
        (self.want.turn, self.number)
    }
}

/// Those who wait for the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitClass {
    /// A place now, and a token of the pacing that is owed.
    Prompt,
    /// A place and a token.
    Request,
    /// A place, a token, and that the tag PUTs which may follow are not paced afterwards.
    Look,
    /// Places for a stream.
    Stream,
    /// A token alone.
    Token(Zone),
    /// The same of HTTP/1.1.
    Bulk,
}

pub(super) const CLASSES: usize = 7;

impl WaitClass {
    pub(super) const ALL: [Self; CLASSES] = [
        Self::Prompt,
        Self::Request,
        Self::Look,
        Self::Stream,
        Self::Token(Zone::Content),
        Self::Token(Zone::Tokens),
        Self::Bulk,
    ];

    pub(super) fn of(want: &Want) -> Self {
        match (want.paced, want.connection) {
            (None, _) => Self::Stream,
            (Some(_), Connection::Prompt) => Self::Prompt,
            (Some(_), Connection::Bulk) => Self::Bulk,
            (Some(zone), Connection::Shared) if want.places == 0 => Self::Token(zone),
            (Some(_), Connection::Shared) if want.puts > 0 => Self::Look,
            (Some(_), Connection::Shared) => Self::Request,
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Self::Prompt => 0,
            Self::Request => 1,
            Self::Look => 2,
            Self::Stream => 3,
            Self::Token(Zone::Content) => 4,
            Self::Token(Zone::Tokens) => 5,
            Self::Bulk => 6,
        }
    }

    /// The zone whose pacing holds it up.
    pub(super) fn zone(self) -> Option<Zone> {
        match self {
            Self::Request | Self::Look | Self::Bulk => Some(Zone::Content),
            Self::Token(zone) => Some(zone),
            Self::Prompt | Self::Stream => None,
        }
    }

    pub(super) fn needs_places(self) -> bool {
        !matches!(self, Self::Token(_) | Self::Bulk)
    }
}

/// Those of one namespace who wait, by class.
#[derive(Debug)]
pub(super) struct Waiting<P> {
    /// But for streams.
    classes: [BTreeMap<Place, Waiter<P>>; CLASSES],
    /// By request.
    streams: HashMap<u64, Streams<P>>,
    /// The requests whose streams wait, by the places that they have and the first of those who wait.
    order: BTreeMap<(usize, Place), u64>,
}

/// The streams of one request that wait.
#[derive(Debug)]
struct Streams<P> {
    /// The places that it has.
    held: usize,
    waiters: BTreeMap<Place, Waiter<P>>,
}

impl<P> Streams<P> {
    fn place(&self) -> Option<(usize, Place)> {
        let (place, _) = self.waiters.first_key_value()?;
        Some((self.held, *place))
    }
}

impl<P> Default for Waiting<P> {
    fn default() -> Self {
        Self {
            classes: std::array::from_fn(|_| BTreeMap::new()),
            streams: HashMap::new(),
            order: BTreeMap::new(),
        }
    }
}

impl<P> Waiting<P> {
    /// `held`: the places of streams that its request has.
    pub(super) fn join(&mut self, waiter: Waiter<P>, held: usize) {
        let place = waiter.place();
        match WaitClass::of(&waiter.want) {
            WaitClass::Stream => {
                let request = waiter.want.flow.request;
                let streams = self.streams.entry(request);
                streams.or_insert_with(|| Streams {
                    held,
                    waiters: BTreeMap::new(),
                });
                self.change(request, |streams| streams.waiters.insert(place, waiter));
            }
            class => {
                self.classes[class.index()].insert(place, waiter);
            }
        }
    }

    pub(super) fn first(&self, class: WaitClass) -> Option<&Waiter<P>> {
        let waiters = match class {
            WaitClass::Stream => {
                let (_, request) = self.order.first_key_value()?;
                &self.streams.get(request)?.waiters
            }
            class => &self.classes[class.index()],
        };
        waiters.first_key_value().map(|(_, waiter)| waiter)
    }

    /// Takes a waiter out, if it is there.
    pub(super) fn take(&mut self, want: &Want, number: u64) -> Option<Waiter<P>> {
        let place = (want.turn, number);
        match WaitClass::of(want) {
            WaitClass::Stream => {
                self.change(want.flow.request, |streams| streams.waiters.remove(&place))?
            }
            class => self.classes[class.index()].remove(&place),
        }
    }

    /// A request has so many places of streams by now.
    pub(super) fn holds(&mut self, request: u64, held: usize) {
        self.change(request, |streams| streams.held = held);
    }

    /// Changes the streams of a request, and puts it where it belongs.
    fn change<T>(&mut self, request: u64, change: impl FnOnce(&mut Streams<P>) -> T) -> Option<T> {
        let streams = self.streams.get_mut(&request)?;
        if let Some(place) = streams.place() {
            self.order.remove(&place);
        }
        let changed = change(streams);
        if let Some(place) = streams.place() {
            self.order.insert(place, request);
        } else {
            self.streams.remove(&request);
        }
        Some(changed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty() && self.classes.iter().all(BTreeMap::is_empty)
    }
}
