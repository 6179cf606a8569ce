//! The reconcile loop: one request at a time from what is stored to what runs, and back.
//!
//! ```text
//! load fresh ─▶ collect ─▶ advance (pure) ─▶ admit (claims) ─▶ decide (pure) ─▶ save, checked
//!      ─▶ forget what was recorded ─▶ publish ─▶ launch exactly what was saved ─▶ come back when something is due
//! ```
//!
//! # Guarantees
//! - Nothing is launched that was not saved just before, on a freshly read object, by this reconcile.
//! - A save that would change nothing is not made.
//! - Operations are tasks of their own, keyed by UID: a long copy blocks nothing. What they found is dropped from memory only
//!   after it was saved.
//! - A bounded number of operations runs at once; the others wait in a queue and hold no more than their record.
//! - Losing this memory loses nothing: the next reconcile relaunches what the status says.

mod admission;
pub mod freeze;
mod launch;
pub mod leadership;
pub mod memory;
pub mod moment;
mod observe;
mod operation;
pub(crate) mod operation_queue;
mod pause;
mod push_checks;
mod reconcile;
mod references;
mod shared;
mod state;
mod stats;
mod telemetry;

pub use admission::CHECKING_PUSH;
pub use operation::forecast::forecast;
pub use operation::staging::{Staged, Staging};
pub use pause::Pause;
pub use reconcile::{Next, ReconcileError};
pub use shared::{Engine, Settings};
