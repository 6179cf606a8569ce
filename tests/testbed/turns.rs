//! Control planes that one test at a time has to itself: what a cluster has only once may be changed there.

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ControlPlane, shared};

/// A few such control planes, each started by the first that finds none free.
pub struct Turns {
    permits: Semaphore,
    free: Mutex<Vec<&'static ControlPlane>>,
}

/// While it is held, the control plane is nobody else's.
pub struct Turn {
    turns: &'static Turns,
    plane: &'static ControlPlane,
    _permit: SemaphorePermit<'static>,
}

impl Turns {
    /// At most so many tests at once.
    pub const fn of(planes: usize) -> Self {
        Self {
            permits: Semaphore::const_new(planes),
            free: Mutex::new(Vec::new()),
        }
    }

    /// Waits for its turn; the control plane is as the one before left it.
    pub async fn take(&'static self) -> (Turn, &'static ControlPlane) {
        let permit = self.permits.acquire().await.unwrap();
        // Everything is built, by whoever needs it first.
        shared().await;
        let free = self.free.lock().pop();
        let plane = match free {
            Some(plane) => plane,
            None => Box::leak(Box::new(ControlPlane::start().await.unwrap())),
        };
        let turn = Turn {
            turns: self,
            plane,
            _permit: permit,
        };
        (turn, plane)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the permit goes.
        self.turns.free.lock().push(self.plane);
    }
}
