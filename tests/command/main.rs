//! The program as a command: promote, preview, convert, and all else that needs child processes but no cluster.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test that meets an error has failed, and tables are long"
)]

#[path = "../testbed/mod.rs"]
mod testbed;

mod alerts;
mod bounded;
mod chart;
mod convert;
mod dialect;
mod distribution;
mod files;
mod instructions;
mod memory;
mod packages;
mod preview;
mod promote;
mod referrers;
mod sources;
mod stage;
mod tls;
