//! Logs: plain lines on standard error.
//!
//! Guaranteed: whatever `RUST_LOG` says, libraries show no more than warnings, and the Kubernetes client, which quotes the Secrets
//! that it cannot read, no more than errors.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging at `level`, unless `RUST_LOG` says otherwise.
pub(super) fn start(level: &str) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},kube_client=error,kube_runtime=warn")));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A reader of the logs that goes away must not end what is being promoted.
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(lines.with_filter(discreet()).with_filter(filter))
        .init();
}

/// What may be shown at all: libraries log the heads of requests, the URLs they are sent to and what comes back.
fn discreet() -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("kube_client", LevelFilter::ERROR)
        .with_target(env!("CARGO_CRATE_NAME"), LevelFilter::TRACE)
}
