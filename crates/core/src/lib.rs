//! What a promotion is, without I/O, clock, Kubernetes or registry: Cargo shows that none of them is here.
//!
//! # In reading order
//!
//! 1. [`machine`]: phases, steps and outcomes; what may run next ([`machine::decide`]), what an outcome changes
//!    ([`machine::advance`]), and who may have a float ([`machine::claims`]).
//! 2. [`steps`]: what each step asks the registry, in which order, and what each answer means. The promises rest on that order.
//! 3. [`log`]: what this process wrote lately, what of that may still land, and what must wait for it.
//! 4. [`coordinator`]: who works on what: requests heard of, claims, what is launched once a save is answered, when a float is released.
//! 5. [`dry_run`]: the same steps over a copy of a float's tags: what `mode: Plan` and `preview` announce.
//! 6. [`image`]: names of images, parsed once.
//! 7. [`stream`]: tags of image streams that follow floats.
//! 8. `machine/model.rs`: the model checker, which runs 1 to 4 through every state with every fault. Begin with its list of guards.
//!
//! The engine runs the same code: it loads and saves requests, keeps the time, and asks the registries what the steps ask.

pub mod coordinator;
pub mod dry_run;
pub mod image;
pub mod log;
pub mod machine;
mod named;
pub mod steps;
pub mod stream;
