//! A program without the embedded registry: no flag, no command, nothing that stands in.

use std::collections::HashMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::api::PromotionRequest;
use crate::image::Repository;

/// No flag.
#[derive(Debug, Args)]
pub(in crate::cli) struct StandInArgs {}

/// No command.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum StandInCommand {}

/// No registry ever stands in.
pub(in crate::cli) enum StandIns {}

impl StandInArgs {
    #[allow(clippy::unused_self)]
    pub fn is_set(&self) -> bool {
        false
    }

    #[allow(clippy::unused_async, clippy::unnecessary_wraps, clippy::unused_self)]
    pub async fn start(&self, _: &[PromotionRequest]) -> Result<Option<StandIns>, String> {
        Ok(None)
    }
}

impl StandInCommand {
    #[allow(clippy::unused_async)]
    pub async fn run(self) -> ExitCode {
        match self {}
    }
}

impl StandIns {
    pub fn rewrite(&self) -> HashMap<String, String> {
        match *self {}
    }

    pub fn tags(&self, _: &[PromotionRequest]) -> Vec<(Repository, Vec<(String, String)>)> {
        match *self {}
    }
}
