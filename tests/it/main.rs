//! The integration tests, one binary: what they share is started once.

#[path = "../testbed/mod.rs"]
mod testbed;

mod controller;
mod crd;
mod promote;
mod registry;
mod stage;
#[path = "testbed.rs"]
mod testbed_tests;
