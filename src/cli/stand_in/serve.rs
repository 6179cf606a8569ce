//! `promotion-controller registry`: the embedded registry as a process of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::output::{bad_input, fail};
use crate::cli::signals::signalled;
use crate::cli::telemetry;
use quaylike::{Options, built_in};

/// The command that only a program with the embedded registry has.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum StandInCommand {
    /// Serve the embedded registry: like quay, but in memory, and deleting at once what no tag holds.
    Registry(ServeArgs),
}

impl StandInCommand {
    pub async fn run(self) -> ExitCode {
        let Self::Registry(args) = self;
        serve(args).await
    }
}

/// Serve the embedded registry.
#[derive(Debug, Args)]
pub(in crate::cli) struct ServeArgs {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
}

async fn serve(args: ServeArgs) -> ExitCode {
    telemetry::start(&telemetry::LogArgs::default(), "info");
    let ServeArgs { listen } = args;
    let listener = match tokio::net::TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            return bad_input(&format!(
                "--listen: cannot listen on {listen}: {error}; choose another address"
            ));
        }
    };
    let images = match built_in() {
        Ok(images) => images,
        Err(error) => return fail(&error.to_string()),
    };
    let address = listener.local_addr().unwrap_or(listen);
    let seed = |control: &quaylike::RegistryHandle| {
        for (repository, tag, image) in &images {
            if let Err(error) = control.seed_image(repository, tag, image) {
                tracing::warn!("cannot seed {repository}:{tag}: {error}");
            }
        }
        // Whoever started it may have gone on without listening to it.
        let _ = writeln!(std::io::stdout().lock(), "listening on {address}");
    };
    match quaylike::serve(listener, Options::default(), seed, signalled()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}
