//! Whatever the API server does: nothing is lost, and nothing is promoted twice.
//!
//! [`faults`] lets single requests of the controller fail on their way, [`server`] takes the whole API server, its definitions or
//! a namespace away, [`deletion`] a request at each of its writes. [`pause`] is how an operator stops it all. [`clocks`] is about clocks that do not agree, [`sweep`] about
//! what becomes of finished requests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

mod clocks;
mod deletion;
mod faults;
pub mod ground;
mod pause;
pub mod relay;
mod server;
mod sweep;
