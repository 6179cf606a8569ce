//! Who works on what: the orchestration of all requests of one process, without I/O or clock.
//!
//! ```text
//!   loaded, saved  ─▶ [reconcile] the order of one reconcile: read this first
//!   heard of       ─▶ [hear]      known requests, tombstones, the backlog; what a new leader inherits
//!   may it begin?  ─▶ [admit]     claims, namespace limit, the 60 s, who is superseded
//!   what runs      ─▶ [round]     outcomes collected and recorded, launches that are still entitled
//! ```
//!
//! [`Coordinator`] is a plain value behind one lock of the engine, which loads, saves, asks for rights and runs operations. Losing all of it loses nothing: status has what matters.

mod admit;
mod backlog;
mod hear;
mod key;
mod reconcile;
mod round;
mod state;

pub use admit::{end_rival, superseded_by};
pub use backlog::Shelved;
pub use key::Key;
pub use reconcile::{Answer, Answered, Ask, Collected, Decided, Load, Loaded, Object, Recorded};
pub use round::{Ended, Finished, Launched, Round};
pub use state::{Coordinator, InFlight, Known, Operations};

#[cfg(test)]
mod tests;
