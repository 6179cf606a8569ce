//! The commands that ask a cluster about its requests and floats, or change them: of this program, and, where it is called
//! `kubectl-promotion`, of kubectl.

mod act;
mod back;
mod float;
mod follow;
mod freeze;
mod held;
mod history;
mod open_gate;
mod past;
mod reach;
mod records;
mod retry;
mod status;
mod submit;
mod touch;
mod tree;
mod undo;

use std::process::ExitCode;

use clap::{Args as _, FromArgMatches as _, Subcommand};

use reach::{ClusterArgs, Stop};

/// How kubectl finds its plugin: `kubectl promotion`.
pub(super) const PLUGIN: &str = "kubectl-promotion";

/// What is asked of a cluster's requests.
#[derive(Debug, Subcommand)]
pub(super) enum RequestsCommand {
    /// Show where a request stands, or all of them.
    Status(status::StatusArgs),
    /// Show what a float holds, the pins of what was on it, the requests that touched it, and what waits for it.
    Float(float::FloatArgs),
    /// Show what a float was on, from when until when, and who moved it.
    History(history::HistoryArgs),
    /// Create a request that promotes images to floats.
    Submit(submit::SubmitArgs),
    /// Ask again for what a request that failed or was cancelled asked for.
    Retry(retry::RetryArgs),
    /// Take floats back to what they were on: of a request all that it moved, together or not at all; or one float. Prints the request
    /// that does it; --apply creates it.
    Undo(undo::UndoArgs),
    /// End a request, unless its floats may have moved already.
    Cancel(act::ActArgs),
    /// Hold a request back until it is resumed, unless its floats may have moved already.
    Suspend(act::ActArgs),
    /// Let a suspended request go on.
    Resume(act::ActArgs),
    /// Remove a gate of a request; it goes on once none is left.
    OpenGate(open_gate::OpenGateArgs),
    /// Keep floats where they are: no request moves them until they are let go. A request that was committed before runs to its end.
    Freeze(freeze::FreezeArgs),
    /// Let floats go that were frozen by this pattern.
    Unfreeze(freeze::UnfreezeArgs),
    /// Show which floats are frozen, until when and why.
    Frozen(freeze::FrozenArgs),
}

impl RequestsCommand {
    /// What this process is asked as a plugin. Ends the process where that cannot be read.
    pub(super) fn of_plugin() -> Self {
        let matches = plugin().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    pub(super) async fn run(self) -> ExitCode {
        let end = match self {
            Self::Status(args) => status::run(args).await,
            Self::Float(args) => Box::pin(float::run(args)).await,
            Self::History(args) => history::run(args).await,
            Self::Submit(args) => submit::run(args).await,
            Self::Retry(args) => retry::run(args).await,
            Self::Undo(args) => Box::pin(undo::run(args)).await,
            Self::Cancel(args) => act::run(args, act::Act::Cancel).await,
            Self::Suspend(args) => act::run(args, act::Act::Suspend).await,
            Self::Resume(args) => act::run(args, act::Act::Resume).await,
            Self::OpenGate(args) => open_gate::run(args).await,
            Self::Freeze(args) => freeze::run(args).await,
            Self::Unfreeze(args) => freeze::unfreeze(args).await,
            Self::Frozen(args) => freeze::frozen(args).await,
        };
        end.unwrap_or_else(Stop::exit)
    }
}

/// The command line of the plugin. Its options may stand before the subcommand too, as with kubectl.
pub(super) fn plugin() -> clap::Command {
    let command = clap::Command::new(PLUGIN)
        .bin_name("kubectl promotion")
        .version(env!("CARGO_PKG_VERSION"))
        .about("See promotion requests and the floats that they move, and act on them")
        .max_term_width(120)
        .subcommand_required(true)
        .arg_required_else_help(true);
    RequestsCommand::augment_subcommands(ClusterArgs::augment_args(command))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_plugins_command_line_is_well_formed_and_options_may_stand_before_or_after() {
        plugin().debug_assert();
        for line in [
            ["kubectl-promotion", "-n", "ci", "status", "r"],
            ["kubectl-promotion", "status", "-n", "ci", "r"],
            ["kubectl-promotion", "status", "r", "-n", "ci"],
        ] {
            let matches = plugin().try_get_matches_from(line).unwrap();
            let command = RequestsCommand::from_arg_matches(&matches).unwrap();
            let said = format!("{command:?}");
            assert!(said.contains("namespace: Some(\"ci\")"), "{line:?}: {said}");
        }
    }
}
