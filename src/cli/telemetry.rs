//! Logs: lines on standard error, for people or for programs.
//!
//! Guaranteed: whatever `RUST_LOG` says, libraries show no more than warnings, and the Kubernetes client, which quotes the Secrets
//! that it cannot read, no more than errors. A line as JSON is one object with `timestamp`, `level`, `target`, `message` and the fields
//! of the line, a panic included.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// How logs are written.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct LogArgs {
    /// Format of the log, on standard error.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging at `level`, unless `RUST_LOG` says otherwise.
pub(super) fn start(args: &LogArgs, level: &str) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},kube_client=error,kube_runtime=warn")));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A reader of the logs that goes away must not end what is being promoted.
        .log_internal_errors(false);
    let lines = match args.log_format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => {
            std::panic::set_hook(Box::new(log_panic));
            lines
                .with_ansi(false)
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed()
        }
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(library_log_ceiling()).with_filter(filter))
        .init();
}

/// Says in a line like any other that there is a defect.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(tracing::field::display);
    let why = panic.payload_as_str().unwrap_or_default();
    tracing::error!(place, why, "panicked");
}

/// What may be shown at all: libraries log the heads of requests, the URLs they are sent to and what comes back.
fn library_log_ceiling() -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("kube_client", LevelFilter::ERROR)
        // What these say of each call that fails is logged by the caller, with its cause, and once.
        .with_target("kube_client::client::builder", LevelFilter::OFF)
        .with_target("rustls_platform_verifier", LevelFilter::OFF)
        .with_target(env!("CARGO_CRATE_NAME"), LevelFilter::TRACE)
}
