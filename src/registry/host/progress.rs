//! What an operation shows while it runs.
//!
//! The registry layer writes, the engine reads: bytes that reached the target, and what the operation waits for. An operation may wait in
//! several places at once (eight blobs of one image); the wait that ends last is shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::limits::{FlowKey, Slowings};
use super::paid::{Giver, PaidPuts};
use super::reserve::{Hold, Reservation, Reserve};
use crate::machine::Reason;
use crate::registry::error::Error;
use crate::turn::Turn;

/// A wait for our own limits is shown once it has lasted so long.
pub(crate) const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// The progress of one operation, shared with its observer.
#[derive(Debug, Default, Clone)]
pub struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    flow: FlowKey,
    turn: Turn,
    bytes: AtomicU64,
    expected: AtomicU64,
    waited: AtomicU64,
    waits: Mutex<Vec<(u64, Waiting)>>,
    changed: Notify,
    /// Its reservation for large manifests, while it holds any.
    reservation: Mutex<Weak<Reservation>>,
    /// It waits for one.
    reserving: tokio::sync::Mutex<()>,
    /// The tokens of the tag PUTs that may follow its last look.
    paid: Mutex<Option<PaidPuts>>,
}

/// What an operation waits for, and until when.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// `RateLimited`, `RegistryUnavailable` or `RegistryReadOnly`; `Queued` if other images use what it needs.
    pub reason: Reason,
    /// One line that names the host.
    pub message: String,
    /// When the host is asked again.
    pub until: Instant,
}

impl Progress {
    /// For what a promotion request does: hosts share their places fairly among namespaces, and within each go by turns. It goes first.
    #[must_use]
    pub fn of(namespace: &str, request: &str) -> Self {
        Self::in_turn(namespace, request, Turn::FIRST)
    }

    /// The same for an operation, in its turn.
    pub(crate) fn in_turn(namespace: &str, request: &str, turn: Turn) -> Self {
        Self(Arc::new(State {
            flow: FlowKey::of(namespace, request),
            turn,
            ..State::default()
        }))
    }

    /// Whom it works for.
    pub(crate) fn flow(&self) -> FlowKey {
        self.0.flow
    }

    /// When its turn comes within its namespace.
    pub(crate) fn turn(&self) -> Turn {
        self.0.turn
    }

    /// Waits until one more large manifest may be held: at first for the operation's reservation.
    pub(crate) async fn hold(&self, reserve: &Arc<Reserve>) -> Result<Hold, Error> {
        let reservation = {
            let _one = self.0.reserving.lock().await;
            match self.reservation() {
                Some(reservation) => reservation,
                None => self.reserve(reserve).await,
            }
        };
        reservation.hold().await
    }

    async fn reserve(&self, reserve: &Arc<Reserve>) -> Arc<Reservation> {
        let entering = reserve.enter(self.0.flow.namespace);
        tokio::pin!(entering);
        let reservation = tokio::select! {
            biased;
            reservation = &mut entering => reservation,
            () = tokio::time::sleep(SHOWN_AFTER) => {
                let _shown = self.wait(Waiting {
                    reason: Reason::Queued,
                    message: "waits for memory: other images with manifests above 32 KiB are in work".into(),
                    until: Instant::now(),
                });
                entering.await
            }
        };
        let reservation = Arc::new(reservation);
        *self.0.reservation.lock() = Arc::downgrade(&reservation);
        reservation
    }

    fn reservation(&self) -> Option<Arc<Reservation>> {
        self.0.reservation.lock().upgrade()
    }

    /// Whether it holds large manifests, for which others wait.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reservation().is_some()
    }

    /// The tag PUTs that may follow what was answered have their tokens, if any may; those of the look before are others'.
    pub(crate) fn pay(&self, paid: Option<PaidPuts>) {
        if paid.is_some() {
            let before = std::mem::replace(&mut *self.0.paid.lock(), paid);
            drop(before);
        }
    }

    /// No tag PUT follows the last look any more.
    pub fn end_puts(&self) {
        let before = self.0.paid.lock().take();
        drop(before);
    }

    /// Takes the tokens of a tag PUT that are of these two, if the look before it left it some.
    pub(crate) fn take_paid(&self, from: [&dyn Giver; 2]) -> Option<[Slowings; 2]> {
        self.0.paid.lock().as_mut()?.take(from)
    }

    /// Bytes of blobs written to the target so far, not counting what has to be sent again.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that its copies write in all, as far as is known: what is found at the target is taken off as it is found.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.0.expected.load(Ordering::Relaxed)
    }

    /// The wait that ends last, while there is one.
    #[must_use]
    pub fn waiting(&self) -> Option<Waiting> {
        let waits = self.0.lock();
        waits
            .iter()
            .map(|(_, wait)| wait)
            .max_by_key(|wait| wait.until)
            .cloned()
    }

    /// Resolves when [`Progress::waiting`] has changed, or a copy has begun, since the last call resolved. For one observer.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    pub(crate) fn wrote(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A copy begins that writes so much, unless some of it is there.
    pub(crate) fn expects(&self, bytes: u64) {
        self.0.expected.fetch_add(bytes, Ordering::Relaxed);
        self.0.changed.notify_one();
    }

    /// So much of what was expected need not be written.
    pub(crate) fn spares(&self, bytes: u64) {
        self.0.expected.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn retract(&self, bytes: u64) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Shows a wait until the guard is dropped.
    pub(crate) fn wait(&self, waiting: Waiting) -> WaitGuard {
        let number = self.0.waited.fetch_add(1, Ordering::Relaxed);
        self.0.lock().push((number, waiting));
        self.0.changed.notify_one();
        WaitGuard {
            shared: Arc::clone(&self.0),
            number,
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Waiting)>> {
        self.waits.lock()
    }
}

/// While it lives, the wait is shown.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    shared: Arc<State>,
    number: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.shared
            .lock()
            .retain(|(number, _)| *number != self.number);
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_longest_wait_is_shown_and_every_end_is_told() {
        let progress = Progress::default();
        let now = Instant::now();
        let wait = |secs, message: &str| Waiting {
            reason: Reason::RateLimited,
            message: message.into(),
            until: now + Duration::from_secs(secs),
        };
        let short = progress.wait(wait(1, "short"));
        let long = progress.wait(wait(9, "long"));
        progress.changed().await;
        assert_eq!(progress.waiting().unwrap().message, "long");
        drop(long);
        progress.changed().await;
        assert_eq!(progress.waiting().unwrap().message, "short");
        drop(short);
        progress.changed().await;
        assert_eq!(progress.waiting(), None);
    }
}
