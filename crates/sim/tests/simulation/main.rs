//! The whole controller on virtual time and one seed: lease, watch, sweep, pause, engine, store and the whole registry layer as they
//! ship; API server and registries are played here.
//!
//! In reading order: [`clock`] (what a process is told of time and chance), [`draws`], [`api_server`], [`registries`], [`process`] (one
//! controller), [`faults`], [`world`] (who steps them all), [`monitors`] (what must hold at every instant), [`scene`] (what happens in
//! a run), [`scenarios`] and [`hunt`] (the tests).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

mod api_server;
mod clock;
mod draws;
mod faults;
mod hunt;
mod monitors;
mod process;
mod registries;
mod scenarios;
mod scene;
mod world;
