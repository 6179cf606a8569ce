//! The controller on a real kube-apiserver and etcd.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test that meets an error has failed, and tables are long"
)]

#[path = "../testbed/mod.rs"]
mod testbed;

mod apply;
mod chaos;
mod chart;
mod claims;
mod clocks;
mod controller;
mod convert;
mod crd;
mod deletion;
mod election;
mod eligibility;
mod fair;
mod faults;
mod ground;
mod installation;
mod job;
mod late;
mod lifecycle;
mod many;
mod metrics;
mod pause;
mod plugin;
mod points;
mod policy;
mod references;
mod relay;
mod rivals;
mod rollback;
mod said;
mod secrets;
mod server;
mod status;
mod sweep;
mod tenants;
mod testbed_tests;
mod traces;
