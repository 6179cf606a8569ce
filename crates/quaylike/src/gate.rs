//! Gates and held writes: requests that stop at a chosen moment until a test lets them go on.
//!
//! In: a [`GateSpec`] (which request, and whether before its work or between work and answer), and held writes. Out: the request
//! that has reached the gate, parked there; a test can kill its client exactly then. The work of a request parked at
//! [`Moment::After`] is done. One parked at [`Moment::Before`] has done nothing: [`Gate::cut`] keeps it so, [`Gate::open`] does the
//! work late, even if the client is no longer there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::faults::Matcher;
use super::log::LoggedRequest;

/// Where in a request's life a gate stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// It has arrived and nothing was done.
    #[default]
    Before,
    /// It was executed and not answered.
    After,
}

/// A gate to be set up. It stops one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSpec {
    /// Which requests count.
    #[serde(default, rename = "match")]
    pub matcher: Matcher,
    /// Which of them it stops, counted from 1.
    #[serde(default = "first")]
    pub nth: u64,
    /// Where.
    #[serde(default)]
    pub moment: Moment,
}

/// The state of a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GateState {
    /// Its request has not come.
    Waiting,
    /// Its request stands at it.
    Parked {
        /// The request.
        entry: LoggedRequest,
    },
    /// It is open: the request goes on, or is cut off.
    Open {
        /// Whether the connection was cut instead of going on.
        cut: bool,
    },
}

/// A gate set up by a test. Dropping it opens it.
#[derive(Debug)]
pub struct Gate {
    pub(super) id: u64,
    pub(super) gates: Arc<Gates>,
}

/// All gates.
#[derive(Debug, Default)]
pub(super) struct Gates {
    gates: Mutex<(u64, Vec<Arc<ActiveGate>>)>,
}

#[derive(Debug)]
pub(super) struct ActiveGate {
    id: u64,
    spec: GateSpec,
    counted: Mutex<u64>,
    state: watch::Sender<GateState>,
}

/// Late writes waiting to be applied.
#[derive(Debug)]
pub(super) struct HeldWrites {
    released: watch::Sender<u64>,
    waiting: Arc<AtomicUsize>,
}

fn first() -> u64 {
    1
}

// === impl GateSpec ===

impl GateSpec {
    /// Stops the first request that matches before it is executed.
    #[must_use]
    pub fn before(matcher: Matcher) -> Self {
        Self {
            matcher,
            nth: 1,
            moment: Moment::Before,
        }
    }

    /// Stops the first request that matches after it was executed and before it is answered.
    #[must_use]
    pub fn after(matcher: Matcher) -> Self {
        Self {
            matcher,
            nth: 1,
            moment: Moment::After,
        }
    }

    /// Stops the nth instead of the first.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.nth = nth;
        self
    }
}

// === impl Gate ===

impl Gate {
    /// Its number, as the control API names it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits until its request stands at it.
    pub async fn reached(&self) -> LoggedRequest {
        match self.gates.find(self.id) {
            Some(gate) => gate.parked().await,
            None => std::future::pending().await,
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> GateState {
        self.gates
            .state(self.id)
            .unwrap_or(GateState::Open { cut: false })
    }

    /// Lets the request go on.
    pub fn open(&self) {
        self.gates.open(self.id, false);
    }

    /// Cuts the request's connection. One parked [`Moment::Before`] is never executed.
    pub fn cut(&self) {
        self.gates.open(self.id, true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.gates.remove(Some(self.id));
    }
}

// === impl Gates ===

impl Gates {
    pub(super) fn add(&self, spec: GateSpec) -> u64 {
        let mut gates = self.gates.lock();
        gates.0 += 1;
        let id = gates.0;
        gates.1.push(Arc::new(ActiveGate {
            id,
            spec,
            counted: Mutex::new(0),
            state: watch::Sender::new(GateState::Waiting),
        }));
        id
    }

    /// Opens one gate, or all, and forgets it.
    pub(super) fn remove(&self, id: Option<u64>) {
        let mut gates = self.gates.lock();
        gates.1.retain(|gate| {
            let stays = id.is_some_and(|id| id != gate.id);
            if !stays {
                gate.open(false);
            }
            stays
        });
    }

    pub(super) fn find(&self, id: u64) -> Option<Arc<ActiveGate>> {
        let gates = self.gates.lock();
        gates.1.iter().find(|gate| gate.id == id).cloned()
    }

    pub(super) fn state(&self, id: u64) -> Option<GateState> {
        Some(self.find(id)?.state.borrow().clone())
    }

    /// Opens a gate; false where there is none of this number.
    pub(super) fn open(&self, id: u64, cut: bool) -> bool {
        let found = self.find(id);
        if let Some(gate) = &found {
            gate.open(cut);
        }
        found.is_some()
    }

    /// Whether any gate counts this request.
    pub(super) fn any_matches(&self, entry: &LoggedRequest) -> bool {
        let gates = self.gates.lock();
        let mut specs = gates.1.iter().map(|gate| &gate.spec);
        specs.any(|spec| spec.matcher.matches(entry))
    }

    /// Parks a request at each gate that it is the one for. False: its connection is to be cut.
    pub(super) async fn pass(&self, moment: Moment, entry: &LoggedRequest) -> bool {
        let gates: Vec<Arc<ActiveGate>> = {
            let gates = self.gates.lock();
            gates
                .1
                .iter()
                .filter(|gate| gate.stops(moment, entry))
                .cloned()
                .collect()
        };
        for gate in gates {
            if !gate.park(entry).await {
                return false;
            }
        }
        true
    }
}

impl ActiveGate {
    fn stops(&self, moment: Moment, entry: &LoggedRequest) -> bool {
        if self.spec.moment != moment || !self.spec.matcher.matches(entry) {
            return false;
        }
        let mut counted = self.counted.lock();
        *counted += 1;
        *counted == self.spec.nth
    }

    async fn park(&self, entry: &LoggedRequest) -> bool {
        let mut state = self.state.subscribe();
        self.state.send_if_modified(|state| {
            let waiting = *state == GateState::Waiting;
            if waiting {
                *state = GateState::Parked {
                    entry: entry.clone(),
                };
            }
            waiting
        });
        let open = state
            .wait_for(|state| matches!(state, GateState::Open { .. }))
            .await;
        !matches!(open.as_deref(), Ok(GateState::Open { cut: true }))
    }

    /// Waits until a request stands here. For ever, where the gate was opened before one came.
    pub(super) async fn parked(&self) -> LoggedRequest {
        let mut state = self.state.subscribe();
        let parked = match state
            .wait_for(|state| matches!(state, GateState::Parked { .. }))
            .await
        {
            Ok(parked) => parked.clone(),
            Err(_) => GateState::Waiting,
        };
        match parked {
            GateState::Parked { entry } => entry,
            _ => std::future::pending().await,
        }
    }

    fn open(&self, cut: bool) {
        self.state.send_replace(GateState::Open { cut });
    }
}

// === impl HeldWrites ===

impl HeldWrites {
    pub(super) fn new() -> Self {
        Self {
            released: watch::Sender::new(0),
            waiting: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Waits for the next release, or for `limit`.
    pub(super) async fn wait(&self, limit: Option<Duration>) {
        let mut released = self.released.subscribe();
        let now = *released.borrow();
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let release = released.wait_for(|round| *round > now);
        match limit {
            Some(limit) => drop(tokio::time::timeout(limit, release).await),
            None => drop(release.await),
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many writes are held now.
    pub(super) fn count(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Lets all go that are held now.
    pub(super) fn release(&self) {
        self.released.send_modify(|round| *round += 1);
    }
}
