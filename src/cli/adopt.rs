//! `promotion-controller adopt-lease`.

use std::process::ExitCode;

use clap::Args;

use super::cluster;
use super::output::{fail, say};
use crate::controller::installation::{Adopted, adopt};
use crate::controller::lease;

/// Let the controllers of another Lease rule this cluster's promotion requests: as an administrator, when an installation moves.
#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Namespace of the Lease whose holder is to lead [default: the pod's, else the kubeconfig context's].
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
}

pub(super) async fn run(args: AdoptArgs) -> ExitCode {
    let AdoptArgs { lease_namespace } = args;
    let cluster = match cluster::connect(&cluster::Choice::default()).await {
        Ok(cluster) => cluster,
        Err(message) => return super::output::bad_input(&message),
    };
    let namespace = lease_namespace.unwrap_or(cluster.namespace);
    let lease = format!("{namespace}/{}", lease::NAME);
    match adopt(cluster.client, &namespace).await {
        Ok(Adopted::Already) => say(&format!("the definition names the Lease {lease} already")),
        Ok(Adopted::First) => say(&format!(
            "the definition now names the Lease {lease}; only its holder leads"
        )),
        Ok(Adopted::From(before)) => say(&format!(
            "the definition now names the Lease {lease}; the holder of {before} ends within {} s, and the next leader waits for that",
            lease::DURATION.as_secs()
        )),
        Err(message) => return fail(&format!("{}: {message}", cluster.server)),
    }
    ExitCode::SUCCESS
}
