//! The registry layer and the engine on registries in this process. Starts no process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test that meets an error has failed, and tables are long"
)]

#[path = "../testbed/mod.rs"]
mod testbed;

mod answers;
mod challenges;
mod client;
mod collected;
mod counts;
mod entitled;
mod hops;
mod led;
mod rate;
mod slow;
mod targets;
mod tokens;
mod wide_tokens;
