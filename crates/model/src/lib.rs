//! Runs the model checker and the random runs of `src/machine`.
//!
//! Cargo sets the optimization level by package, and the model visits 1.4 million states: this package is those very files, optimized.
#![allow(
    dead_code,
    reason = "much of this is there for the rest of the program"
)]

#[path = "../../../src/image.rs"]
pub mod image;
#[path = "../../../src/machine/mod.rs"]
pub mod machine;
#[path = "../../../src/named.rs"]
mod named;
