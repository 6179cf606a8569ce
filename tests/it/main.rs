//! The integration tests, one binary: what they share is started once.

#[path = "../testbed/mod.rs"]
mod testbed;

mod controller;
mod crash;
mod crd;
mod house;
mod election;
mod registry;
mod stage;
#[path = "testbed.rs"]
mod testbed_tests;
mod traces;
