//! The real components the integration tests and benchmarks run against: kube-apiserver with etcd,
//! kubectl, promtool, and CNCF distribution registries with token authentication.
//!
//! Enters: nothing but the machine. Binaries come from `KUBEBUILDER_ASSETS`, from `target/testbed/bin`, or
//! are built once from the Go modules beside this file. Leaves: running parts on 127.0.0.1, on ports that
//! were free. Guaranteed: whatever a test binary started ends with it, also when it is killed, and no part
//! is bound to one test's runtime.
//!
//! This module is compiled into each binary that needs it (`#[path = "…/testbed/mod.rs"] mod testbed;`).

#![allow(
    dead_code,
    unused_imports,
    reason = "each binary that includes the testbed uses a part of it"
)]

mod access_log;
mod audit;
mod binaries;
pub mod chart_options;
pub mod client;
mod cluster;
pub mod command;
mod control_plane;
mod credentials;
mod distribution;
mod error;
mod example;
pub mod floats;
pub mod helm;
mod image_kinds;
mod images;
pub mod inside;
mod kubeconfig;
mod net;
mod path;
mod registry_client;
mod run_dir;
pub mod script;
pub mod scripted;
pub mod served;
pub mod stage;
mod supervised;
mod tokens;
mod turns;

/// So long a test waits for what has to come before it fails: no promise of the product, and long enough for a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_mins(5);

pub use access_log::{AccessLog, LoggedRequest};
pub use audit::AuditedRequest;
pub use binaries::{Binary, binary, build};
pub use control_plane::{ControlPlane, shared};
pub use distribution::{Distribution, DistributionOptions, RegistryAuth};
pub use error::Error;
pub use example::{example, go_in, unformatted};
pub use image_kinds::ImageKind;
pub use images::{Image, digest_of};
pub use net::{free_port, http_builder, install_tls};
pub use path::{Direction, Path};
pub use registry_client::{PulledManifest, RegistryClient};
pub use run_dir::RunDir;
pub use supervised::{Signal, Supervised};
pub use tokens::{Grant, IssuedToken, Right, TokenServer};
pub use turns::{Turn, own_plane};
