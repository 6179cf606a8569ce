//! The command line: parses, sets up, and hands over.

mod adopt;
mod cluster;
mod controller;
mod convert;
mod credentials;
mod preview;
mod progress;
mod promote;
mod run;
mod stand_in;
mod summary;
mod telemetry;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::engine;
use crate::policy::{HostPattern, Policy};
use crate::registry::{BuildError, Settings};

/// Something is wrong with what was given: nothing was done.
const BAD_INPUT: u8 = 2;

/// Promotes container images to floating tags without ever leaving one dangling.
#[derive(Debug, Parser)]
#[command(name = "promotion-controller", version, about, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reconcile the promotion requests of a cluster.
    Controller(controller::ControllerArgs),
    /// Hand this cluster's promotion requests to the controllers of another Lease.
    AdoptLease(adopt::AdoptArgs),
    /// Carry out the promotion requests of a file, without a cluster. It orders the requests of one state file; it keeps no order
    /// with a controller, nor with a promote that has another state file: let only one of them write a float.
    Promote(promote::PromoteArgs),
    /// Say what the promotion requests of a file would do, and write nothing.
    Preview(preview::PreviewArgs),
    /// Turn `oc image mirror` mappings, or the scripts that run it, into promotion requests.
    Convert(convert::ConvertArgs),
    /// Print the CRD.
    Crd,
    #[command(flatten)]
    StandIn(stand_in::StandInCommand),
}

/// How registries are spoken to.
#[derive(Debug, Clone, Args)]
struct RegistryArgs {
    /// Use plain HTTP with this registry (repeatable).
    #[arg(long, value_name = "HOST[:PORT]")]
    plain_http: Vec<String>,
    /// A registry that may be contacted; * matches within a label, ** across dots (repeatable). The controller contacts no
    /// other; promote contacts any if there is no list. Hosts at internal addresses, or behind a proxy, must be listed
    /// literally, token and storage hosts included.
    #[arg(long, value_name = "PATTERN")]
    allow_registry: Vec<HostPattern>,
    /// Trust the CA certificates of this PEM file at this registry only, besides the system's (repeatable).
    #[arg(long, value_name = "HOST[:PORT]=FILE", value_parser = host_and_file)]
    registry_ca: Vec<(String, PathBuf)>,
    /// A network with public addresses that is internal, such as that of pods or services: no registry may lead there
    /// (repeatable).
    #[arg(long, value_name = "CIDR")]
    cluster_range: Vec<IpNet>,
    /// Manifest requests per second, and blob requests per second, to each registry; 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 40)]
    registry_qps: u32,
    /// Requests in flight to each registry.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(3..=256))]
    registry_concurrency: u16,
    /// How long a tag write may take to show in reads; its timeout is two seconds less.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u8).range(3..=12))]
    settle_seconds: u8,
    /// How long a tag write may still land after it was given up unanswered; nobody else gets its float before.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u8).range(15..=120))]
    late_seconds: u8,
    /// A working request is saved at most this often.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=60))]
    status_interval: u8,
}

impl RegistryArgs {
    fn engine(&self) -> engine::Settings {
        engine::Settings {
            settle: Duration::from_secs(self.settle_seconds.into()),
            late: Duration::from_secs(self.late_seconds.into()),
            status_interval: Duration::from_secs(self.status_interval.into()),
            namespace_max: 0,
        }
    }

    fn registry(&self, policy: &Policy) -> Settings {
        Settings {
            plain_http: self.plain_http.clone(),
            allowed: policy.registries.clone(),
            cluster_ranges: self.cluster_range.clone(),
            registry_ca: self.registry_ca.clone(),
            qps: self.registry_qps,
            concurrency: self.registry_concurrency.into(),
            put_timeout: engine::leadership::write_timeout(self.engine().settle),
            ..Settings::default()
        }
    }

    /// Only the registries of the list.
    fn listed(&self) -> Policy {
        Policy {
            registries: Some(self.allow_registry.clone()),
        }
    }

    /// The registries of the list, or all where there is none.
    fn listed_or_all(&self) -> Policy {
        if self.allow_registry.is_empty() {
            Policy::default()
        } else {
            self.listed()
        }
    }
}

fn host_and_file(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((host, file)) if !host.is_empty() && !file.is_empty() => {
            Ok((host.into(), file.into()))
        }
        _ => Err("write HOST=FILE or HOST:PORT=FILE"),
    }
}

/// Says which flag has to be corrected.
fn unusable(error: &BuildError) -> String {
    match error {
        BuildError::Address(_) => format!("--plain-http: {error}; correct it"),
        BuildError::Client(_) | BuildError::Ca { .. } => error.to_string(),
    }
}

/// Threads on which names of hosts are resolved. A name whose server is silent takes one for many seconds, and one namespace may have half
/// as many operations at work.
const THREADS_MAX: usize = 1024;

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    // Both kube and the registries' client take the provider that is installed; without one rustls would panic.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return fail("a TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(THREADS_MAX)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let code = runtime.block_on(async {
        match command {
            Command::Controller(args) => Box::pin(controller::run(args)).await,
            Command::AdoptLease(args) => adopt::run(args).await,
            Command::Promote(args) => Box::pin(promote::run(args)).await,
            Command::Preview(args) => Box::pin(preview::run(args)).await,
            Command::Convert(args) => convert::run(&args),
            Command::Crd => {
                print!("{}", crate::api::crd_yaml());
                ExitCode::SUCCESS
            }
            Command::StandIn(command) => command.run().await,
        }
    });
    // Operations that a lost lease forbids to go on must not: nothing is waited for.
    runtime.shutdown_background();
    code
}

/// Says what is wrong with what was given.
fn bad_input(message: &str) -> ExitCode {
    say(&format!("error: {message}"));
    ExitCode::from(BAD_INPUT)
}

fn fail(message: &str) -> ExitCode {
    say(&format!("error: {message}"));
    ExitCode::FAILURE
}

/// A line on standard error. Nobody has to read it: a pipe that was closed must not end what is being promoted.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Signals within this time are one: some programs send each twice, to a process and to its group.
const REPEATED: Duration = Duration::from_secs(1);

/// Resolves at the first SIGTERM or SIGINT; a second one, later than [`REPEATED`], ends the process.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    let repeated = tokio::time::Instant::now() + REPEATED;
    tokio::spawn(async move {
        loop {
            next().await;
            if tokio::time::Instant::now() >= repeated {
                break;
            }
        }
        say("ended at once; what was in flight is taken up by the next run");
        std::process::exit(1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
