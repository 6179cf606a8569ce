//! A control plane that one test at a time has to itself: what a cluster has only once may be changed there.

use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::{ControlPlane, shared};

/// One such control plane, started by the first that comes.
pub struct Turns {
    turn: Mutex<()>,
    plane: OnceCell<ControlPlane>,
}

/// While it is held, the control plane is nobody else's.
pub type Turn = MutexGuard<'static, ()>;

impl Turns {
    pub const fn new() -> Self {
        Self {
            turn: Mutex::const_new(()),
            plane: OnceCell::const_new(),
        }
    }

    /// Waits for its turn; the control plane is as the one before left it.
    pub async fn take(&'static self) -> (Turn, &'static ControlPlane) {
        let turn = self.turn.lock().await;
        // Everything is built, by whoever needs it first.
        shared().await;
        let plane = self.plane.get_or_try_init(ControlPlane::start).await;
        (turn, plane.unwrap())
    }
}
