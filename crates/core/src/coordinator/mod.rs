//! Who works on what: the orchestration of all requests of one process, without I/O or clock.
//!
//! ```text
//!   heard of, loaded ─▶ [hear]  known requests, tombstones, the backlog; what a new leader inherits
//!   may it begin?    ─▶ [admit] claims, namespace limit, the 60 s, who is superseded
//!   decide           ─▶ [round] outcomes collected, contexts for `decide`, what to do once it is saved
//!   saved            ─▶ [round] outcomes forgotten, steps given up, launches that are still entitled
//!   ended            ─▶ [round] the outcome kept until it is recorded; floats released
//! ```
//!
//! [`Coordinator`] is a plain value behind one lock of the engine, which loads, saves, asks for rights and runs operations. Losing all of it loses nothing: status has what matters.

mod admit;
mod backlog;
mod hear;
mod key;
mod round;
mod state;

pub use admit::{Claim, end_rival};
pub use backlog::{FLOATS_MAX, Shelved};
pub use key::Key;
pub use round::{Ended, Finished, Launched, Round, record};
pub use state::{Coordinator, InFlight, Known, Operations};

#[cfg(test)]
mod tests;
