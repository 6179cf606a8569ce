//! Shares the places and the pacing of one host among those who wait.
//!
//! A [`Want`] says how many places, paced with which zone, for whom; the answer is a [`Permit`]. The window of places halves when the
//! host limits the rate, and grows again by one for each window of answers.
//!
//! Guaranteed: no more places are granted than the window has. The namespace that was served least goes first, within it whoever's
//! [turn](crate::turn) it is. A tag PUT goes before all others, because the look it rests on must
//! not grow old; its token is taken when that look goes. Whoever stopped waiting takes nothing. Whoever waits for two places is not
//! overtaken for ever by those who wait for one. To wait, to be granted and to leave look at that flow and, in O(log n), at who goes first:
//! never at all who wait.
//!
//! A stream lasts as long as its source and target take. So no namespace gets all places for streams: alone it leaves a quarter free, and
//! of `n` namespaces each has at most one of `n + 1` equal parts. If a waiting stream has less than its part, the slowest of those that
//! have more gives way.

mod state;
mod waiting;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::limits::{Limit, Limits, Rates, Slowings, Zone};
use super::paid::{Given, Giver, PaidPuts};
use super::progress::{Progress, SHOWN_AFTER, Waiting};
use crate::machine::Reason;
use state::{State, StreamHolder, WINDOW_MIN};
pub(crate) use waiting::Want;

/// Places and pacing of one host.
#[derive(Debug)]
pub(crate) struct HostQueue {
    state: Mutex<State<Permit>>,
}

/// Places held, given back when dropped; and a token of the pacing, which is used unless it is [refunded](Permit::refund).
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Option<Arc<HostQueue>>,
    want: Want,
    /// How often each bucket had been slowed when it was granted.
    slowings: Slowings,
    number: u64,
    /// Of a stream: others wait for its places.
    preempted: Option<CancellationToken>,
}

/// While it lives, somebody waits, or was granted what was wanted.
struct Queued<'a> {
    queue: &'a Arc<HostQueue>,
    want: Want,
    number: u64,
    granted: oneshot::Receiver<Permit>,
}

// === impl HostQueue ===

impl HostQueue {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Self::of(limits.concurrency.max(WINDOW_MIN), limits.rates)
    }

    /// So many places, and no pacing.
    pub(crate) fn unpaced(places: usize) -> Arc<Self> {
        Self::of(places, Rates { qps: 0, qps_max: 0 })
    }

    fn of(nominal: usize, rates: Rates) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(nominal, rates, Instant::now())),
        })
    }

    /// Waits for what is wanted.
    pub(crate) async fn acquire(self: &Arc<Self>, want: Want) -> Permit {
        if let Some(slowings) = self.state.lock().take_at_once(&want, Instant::now()) {
            return self.permit(want, slowings, 0);
        }
        let mut queued = Queued::join(self, want, None);
        let granted = (&mut queued.granted).await;
        // Nobody drops a waiter whose owner waits.
        granted.unwrap_or_else(|_| Permit::none(want))
    }

    /// Waits for places of a stream, shows that, and takes them from who has too many. `name`: whose places they are.
    pub(crate) async fn acquire_stream(
        self: &Arc<Self>,
        want: Want,
        name: &str,
        progress: &Progress,
    ) -> Permit {
        let mut queued = Queued::join(self, want, Some(progress.clone()));
        let mut shown = None;
        loop {
            tokio::select! {
                biased;
                permit = &mut queued.granted => return permit.unwrap_or_else(|_| Permit::none(want)),
                () = tokio::time::sleep(SHOWN_AFTER) => {}
            }
            let places = {
                let mut state = self.state.lock();
                state.preempt_for(&want, Instant::now());
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
        self.state.lock().is_used()
    }

    /// The rate that a zone is kept to, or what has connections of its own there (`apart`); infinite where it is not paced.
    pub(crate) fn rate(&self, zone: Zone, apart: bool) -> f64 {
        let rate = self.state.lock().rate(zone, apart, Instant::now());
        rate.unwrap_or(f64::INFINITY)
    }

    /// The host limits the rate, of which `kept` was the one kept to: the zone is slower, and the window of a zone that needs places
    /// halves; once for all requests that were sent together. Whether it did so now.
    pub(crate) fn limited(&self, limit: Limit, permit: &Permit, kept: f64) -> bool {
        let mut state = self.state.lock();
        state.limited(limit, &permit.slowings, kept, Instant::now())
    }

    /// The host serves: the window grows, and the zone's rate while it holds up requests, here or elsewhere (`wanted`), up to what is
    /// configured. Whether it holds up any.
    pub(crate) fn served(self: &Arc<Self>, limit: Limit, mut wanted: bool) -> bool {
        self.with(|state| wanted = state.served(limit, wanted, Instant::now()));
        wanted
    }

    /// After a pause, of the host or of everything: those who wait do not all go at once.
    pub(crate) fn restart(&self) {
        self.state.lock().restart();
    }

    /// Places taken, requests that wait, and places that there are.
    pub(crate) fn load(&self) -> (usize, usize, usize) {
        self.state.lock().load()
    }

    /// Changes the state, then grants what can be granted.
    fn with(self: &Arc<Self>, change: impl FnOnce(&mut State<Permit>)) {
        let mut state = self.state.lock();
        change(&mut state);
        if !state.is_waited_for() {
            return;
        }
        let now = Instant::now();
        while let Some(waiter) = state.next(now) {
            let mut permit = self.permit(waiter.want, state.slowings, waiter.number);
            if let Some(progress) = waiter.progress {
                let preempted = permit.preempted.insert(CancellationToken::new()).clone();
                state.hold(StreamHolder {
                    number: waiter.number,
                    want: waiter.want,
                    since: now,
                    before: progress.bytes(),
                    progress,
                    preempted,
                });
            }
            // It is received: whoever leaves leaves the queue first.
            let _ = waiter.owner.send(permit);
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

    fn permit(self: &Arc<Self>, want: Want, slowings: Slowings, number: u64) -> Permit {
        Permit {
            queue: Some(Arc::clone(self)),
            want,
            slowings,
            number,
            preempted: None,
        }
    }

    /// Looks at the queue again when the pacing lets somebody go.
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

impl Giver for HostQueue {
    fn take_back(self: Arc<Self>, puts: u32) {
        self.with(|state| state.refund_puts(puts));
    }
}

// === impl Queued ===

impl<'a> Queued<'a> {
    fn join(queue: &'a Arc<HostQueue>, want: Want, progress: Option<Progress>) -> Self {
        let (owner, granted) = oneshot::channel();
        let mut number = 0;
        queue.with(|state| number = state.join(want, owner, progress));
        Self {
            queue,
            want,
            number,
            granted,
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.granted.is_terminated() {
            return;
        }
        self.queue
            .with(|state| drop(state.take(&self.want, self.number)));
        if let Ok(permit) = self.granted.try_recv() {
            permit.refund();
        }
    }
}

// === impl Permit ===

impl Permit {
    fn none(want: Want) -> Self {
        Self {
            queue: None,
            want,
            slowings: Slowings::default(),
            number: 0,
            preempted: None,
        }
    }

    /// Resolves when others, who have less, wait for the places of this stream.
    pub(crate) async fn preempted(&self) {
        match &self.preempted {
            Some(preempted) => preempted.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Its token was taken when the buckets had been slowed so often.
    pub(crate) fn paid_at(&mut self, slowings: Slowings) {
        self.slowings = slowings;
    }

    /// What the look that held these permits leaves to the tag PUTs that may follow it, if any may: it was answered.
    pub(crate) fn answered(own: &mut Self, host: &mut Self) -> Option<PaidPuts> {
        let puts = own.want.puts;
        let given = [own.give()?, host.give()?];
        (puts > 0).then(|| PaidPuts::new(puts, given))
    }

    fn give(&mut self) -> Option<Given> {
        self.want.puts = 0;
        Some((self.queue.clone()?, self.slowings))
    }

    /// Nothing was sent: the token of the pacing is another's.
    pub(crate) fn refund(self) {
        if let Some(queue) = &self.queue {
            queue.with(|state| state.refund(&self.want));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        if self.want.places > 0 || self.want.puts > 0 {
            queue.with(|state| {
                state.release(&self.want, self.number);
                state.refund_puts(self.want.puts);
            });
        }
    }
}

#[cfg(test)]
mod tests;
