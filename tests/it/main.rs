//! The integration tests, one binary: what they share is started once.

#[path = "../testbed/mod.rs"]
mod testbed;

mod apply;
mod architecture;
mod bounded;
mod chaos;
mod chart;
mod claims;
mod cluster;
mod controller;
mod convert;
mod crash;
mod crd;
mod dialect;
mod docs;
mod election;
mod eligibility;
mod entitled;
mod fair;
mod hostile;
mod image;
mod inside;
mod installation;
mod job;
mod late;
mod lifecycle;
mod many;
mod metrics;
mod points;
mod policy;
mod preview;
mod promote;
mod registry;
mod rivals;
mod rollback;
mod stage;
mod status;
mod tenants;
#[path = "testbed.rs"]
mod testbed_tests;
mod traces;
