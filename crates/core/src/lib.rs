//! What a promotion is, without I/O, clock, Kubernetes or registry: Cargo shows that none of them is here.
//!
//! # In reading order
//!
//! 1. [`machine`]: phases, steps and outcomes, what may run next, and who may have a float.
//! 2. [`steps`]: what each step asks the registry, and in which order.
//! 3. [`dry_run`]: the same steps over a copy of a float's tags: what `mode: Plan` and `preview` announce.
//! 4. [`log`]: what this process wrote lately, what of that may still land, and what must wait for it.
//! 5. [`image`]: names of images, parsed once.
//!
//! The tests run the same code as the controller does: an exhaustive table, random runs, and a model checker with every fault
//! that it can meet.

pub mod dry_run;
pub mod image;
pub mod log;
pub mod machine;
mod named;
pub mod steps;
