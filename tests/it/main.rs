//! The integration tests, one binary: what they share is started once.

#[path = "../testbed/mod.rs"]
mod testbed;

mod crd;
