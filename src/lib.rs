//! Promotes container images to floating tags without ever leaving one dangling.
//!
//! ```text
//!  PromotionRequest ── spec.images: [{source, float}, …]
//!        │
//!        ▼        each reconcile runs one idempotent step per float and saves its result before the next
//!   Pending ──resolve, stage──▶ Incoming ──back up──▶ BackedUp ──latch──▶ Latched ──post──▶ Posted
//! ```
//!
//! # In reading order
//!
//! 1. [`machine`]: what a promotion is. Pure: no I/O, no clock, no Kubernetes, no registry.
//! 2. [`steps`]: what each step asks the registry, and in which order.
//! 3. [`image`]: names of images, parsed once.
//! 4. [`api`]: the custom resource, and its status as the machine's record.
//! 5. [`engine`]: the reconcile loop of every request: load, advance, decide, save, launch.
//! 6. [`registry`]: the only module that speaks to registries.
//! 7. [`store`]: where requests live, in the Kubernetes API or in a file.
//! 8. [`controller`]: the engine on a cluster: lease, watch, queue.
//! 9. [`metrics`]: what is counted of all this.
//! 10. [`policy`] and [`cli`]: what is allowed, and the command line.
//!
//! The crate `quaylike` is the registry in memory, for trying things out and for the tests.

pub mod api;
pub mod cli;
pub mod controller;
#[cfg(test)]
mod cost;
pub mod engine;
mod fair_queue;
mod files;
pub mod metrics;
pub mod policy;
pub mod registry;
mod shares;
pub mod store;
mod turn;

pub use promotion_core::{coordinator, dry_run, image, log, machine, steps, stream};
