//! The Helm chart: what it renders, what it refuses, and what it does on a real API server.
//!
//! [`render`] needs no cluster, [`admitted`] asks the API server about every object of every option, [`lifecycle`] installs,
//! upgrades, goes back and uninstalls. [`job`] runs the controller with the chart's own service account and nothing else, and [`rights`]
//! tries what that may do and what not, [`freezes`] what the API server takes for a freeze. [`front_door`] follows the README.

mod admitted;
mod freezes;
mod front_door;
mod ground;
mod job;
mod lifecycle;
mod rights;
