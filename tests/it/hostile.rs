//! Whatever a registry, a Secret, a file or a spec says: time and memory are bounded, every end has a reason of the closed set,
//! no credential is sent where it does not belong, and no float moves but to what was asked for.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]
#![allow(
    clippy::too_many_lines,
    reason = "tables of what is said and what it comes to"
)]

mod files;
mod led;
pub mod liar;
mod memory;
mod secrets;
mod slow;
mod sources;
mod targets;
mod tokens;
