//! Memory for large manifests: one budget for all operations of the process.
//!
//! An operation that is about to read a manifest above [`SMALL_MAX`] gets a [`Hold`], which lives as long as the manifest. Small manifests
//! need none: the number of running operations bounds them.
//!
//! Guaranteed: at most [`RESERVATIONS`] operations hold large manifests, at most [`NAMESPACE_MAX`] of them in one namespace, each at most
//! [`LARGE_AT_ONCE`]. No deadlock: an operation waits for one reservation only, and while it has it waits for nothing else without a
//! limit (`wire::send` gives it [`PATIENCE`]). The namespace that holds least goes first, then whoever came first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::machine::Reason;
use crate::registry::error::Error;
use crate::shares::{Share, Shares};

/// A manifest up to this size needs no reservation, and is kept in the cache.
pub(crate) const SMALL_MAX: usize = 32 * 1024;
/// Operations that hold large manifests at once.
const RESERVATIONS: usize = 3;
/// Those of one namespace: they take time as well as memory.
const NAMESPACE_MAX: usize = 1;
/// Large manifests that one operation holds at once: a step's own, what a tag holds, and what it looks at meanwhile.
const LARGE_AT_ONCE: usize = 4;
/// How much less urgent than everything else it is to compute something of a large manifest: a tenth of a core is left to it.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// How long whoever holds a reservation waits for a registry at a time, and for one of its own manifests to be dropped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// All reservations, and what is computed of large manifests.
#[derive(Debug)]
pub(crate) struct Reserve {
    shares: Shares<u64>,
    /// Half of the cores, and there whoever else has something to do goes first.
    cores: Arc<Semaphore>,
}

/// One operation's reservation, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    _share: Share<u64>,
    manifests: Arc<Semaphore>,
}

/// While it lives, one large manifest may be held. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Hold(#[allow(dead_code, reason = "held, not read")] Arc<HoldParts>);

#[derive(Debug)]
struct HoldParts {
    _manifest: OwnedSemaphorePermit,
    _reservation: Arc<Reservation>,
}

impl PartialEq for Hold {
    /// Two manifests are equal whatever they are held by.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hold {}

impl Default for Reserve {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            shares: Shares::new(RESERVATIONS, NAMESPACE_MAX),
            cores: Arc::new(Semaphore::new((cores / 2).max(1))),
        }
    }
}

impl Reserve {
    /// Waits for a reservation for an operation of this namespace.
    pub(crate) async fn enter(&self, namespace: u64) -> Reservation {
        Reservation {
            _share: self.shares.enter(namespace).await,
            manifests: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }

    /// Computes something of a large manifest, which takes long enough to hold up everybody else, outside the runtime, in turn, and less
    /// urgently than all else.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let cores = Arc::clone(&self.cores);
        // In a task of its own, because whoever waits for it may be one of many in a stream that is not polled meanwhile: a core
        // given to it would be taken by nobody.
        let done = AbortOnDropHandle::new(tokio::spawn(async move {
            // Closed by nobody. It goes with the work, which goes on where nobody waits for it any more.
            let core = cores.acquire_owned().await;
            let (done, result) = oneshot::channel();
            // A thread of its own, because none becomes as urgent again as it was.
            let thread = std::thread::Builder::new().name("large-manifest".into());
            let started = thread.spawn(move || {
                let _core = core;
                // Of this thread alone, as only Linux has it. Where that is refused, it is as urgent as everything else.
                #[cfg(target_os = "linux")]
                let _ = rustix::process::nice(NICENESS);
                // Who waited may have left.
                let _ = done.send(work());
            });
            match started {
                Ok(_) => result.await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        }));
        let computed = done.await.map_err(|error| error.to_string()).flatten();
        computed.unwrap_or_else(|error| {
            let message = format!("a manifest could not be looked at: {error}");
            Err(Error::attempt(Reason::RegistryError, message))
        })
    }
}

impl Reservation {
    /// Waits until one more large manifest may be held.
    ///
    /// # Errors
    /// None of the others is dropped in time.
    pub(crate) async fn hold(self: Arc<Self>) -> Result<Hold, Error> {
        let manifest = Arc::clone(&self.manifests).acquire_owned();
        match timeout(PATIENCE, manifest).await {
            Ok(Ok(manifest)) => Ok(Hold(Arc::new(HoldParts {
                _manifest: manifest,
                _reservation: self,
            }))),
            // Closed by nobody.
            Ok(Err(_)) | Err(_) => Err(Error::wait(
                Reason::Queued,
                None,
                "waits for memory: its manifests are very large",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_is_computed_leaves_half_of_the_cores_to_others() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let reserve = Reserve::default();
        let (at_work, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works = (0..3 * cores).map(|_| {
            let (at_work, most) = (Arc::clone(&at_work), Arc::clone(&most));
            reserve.compute(move || {
                most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        });
        futures::future::try_join_all(works).await.unwrap();
        assert_eq!(most.load(Ordering::SeqCst), (cores / 2).max(1));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_is_computed_is_less_urgent_than_all_else() {
        let urgency = || Ok(rustix::process::getpriority_process(None).unwrap());
        let reserve = Reserve::default();
        assert!(reserve.compute(urgency).await.unwrap() > urgency().unwrap());
        let broken = reserve.compute(|| -> Result<(), Error> { panic!("broken") });
        assert!(broken.await.is_err());
        // And takes no core along.
        reserve.compute(|| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_computation_whose_waiter_is_not_polled_holds_up_no_other() {
        let reserve = Reserve::default();
        let slow = || {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        let cores = reserve.cores.available_permits();
        let mut idle: Vec<_> = (0..2 * cores)
            .map(|_| Box::pin(reserve.compute(slow)))
            .collect();
        for waiter in &mut idle {
            assert!(futures::poll!(waiter).is_pending());
        }
        let other = reserve.compute(|| Ok(()));
        timeout(Duration::from_secs(10), other)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_waits_for_itself_gives_up() {
        let reserve = Arc::new(Reserve::default());
        let reservation = Arc::new(reserve.enter(1).await);
        let mut held = Vec::new();
        for _ in 0..LARGE_AT_ONCE {
            held.push(Arc::clone(&reservation).hold().await.unwrap());
        }
        assert!(Arc::clone(&reservation).hold().await.is_err());
        held.pop();
        assert!(Arc::clone(&reservation).hold().await.is_ok());
    }
}
