//! The command line: parses, sets up, and hands over.

mod adopt;
mod args;
mod cluster;
mod columns;
mod completion;
mod controller;
mod convert;
mod credentials;
mod output;
mod preview;
mod progress;
mod promote;
mod requests;
mod run;
mod signals;
mod stage;
mod stand_in;
mod summary;
mod telemetry;
mod totals;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use output::fail;

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
    /// Copy the sources of a file's requests to their floats' repositories, pin them there, and print the requests that promote them
    /// from there. For where the sources can be read: it needs no cluster, moves no float, and may run beside a controller.
    Stage(stage::StageArgs),
    /// Say what the promotion requests of a file would do, and write nothing.
    Preview(preview::PreviewArgs),
    /// Turn `oc image mirror` mappings, or the scripts that run it, into promotion requests.
    Convert(convert::ConvertArgs),
    /// Print the CRD.
    Crd,
    /// Print what completes this program's command line in a shell.
    Completion(completion::CompletionArgs),
    /// Write the man pages of this program and of its kubectl plugin.
    Man(completion::ManArgs),
    #[command(flatten)]
    Requests(requests::RequestsCommand),
    #[command(flatten)]
    StandIn(stand_in::StandInCommand),
}

/// Threads on which names of hosts are resolved. A name whose server is silent takes one for many seconds, and one namespace may have half
/// as many operations at work.
const THREADS_MAX: usize = 1024;

/// The name that the program is called by.
fn called() -> Option<String> {
    let path = PathBuf::from(std::env::args_os().next()?);
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// Parses the command line, by the name that the program is called by, and runs it.
#[must_use]
pub fn main() -> ExitCode {
    let command = match called().as_deref() {
        Some(requests::PLUGIN) => Command::Requests(requests::RequestsCommand::of_plugin()),
        Some(completion::HOOK) => return completion::answer(requests::plugin()),
        _ => Cli::parse().command,
    };
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
            Command::Stage(args) => Box::pin(stage::run(args)).await,
            Command::Preview(args) => Box::pin(preview::run(args)).await,
            Command::Convert(args) => convert::run(&args),
            Command::Crd => {
                print!("{}", crate::api::crd_yaml());
                ExitCode::SUCCESS
            }
            Command::Completion(args) => completion::print(&args, Cli::command()),
            Command::Man(args) => {
                completion::write_pages(&args, vec![Cli::command(), requests::plugin()])
            }
            Command::Requests(command) => Box::pin(command.run()).await,
            Command::StandIn(command) => command.run().await,
        }
    });
    // Operations that a lost lease forbids to go on must not: nothing is waited for.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
