//! `promotion-controller controller`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args};
use tokio::net::TcpListener;

use super::args::{RegistryArgs, unusable};
use super::cluster;
use super::output::{BAD_INPUT, bad_input};
use super::signals::signalled;
use super::telemetry::{self, LogArgs};
use crate::controller::{Config, Ended, run as run_controller};
use crate::engine::Settings;
use crate::image::Repository;
use crate::registry::{self, BuildError, RegistryClient};
use crate::store::credentials::CredentialFiles;
use crate::store::streams::StreamSettings;

/// Reconcile the promotion requests of a cluster.
#[derive(Debug, Args)]
pub(super) struct ControllerArgs {
    /// Reconcile only the requests of this namespace [default: all].
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Lead only while holding the Lease; false only for a single process.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, require_equals = true)]
    leader_elect: bool,
    /// Namespace of the Lease, and of the ConfigMap promotion-controller whose key paused stops work [default: the pod's, else the kubeconfig context's].
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// How often finished requests are deleted whose ttlSecondsAfterFinished has passed, about.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    sweep_interval: u32,
    /// Serve /metrics, /livez and /readyz here, over plain HTTP [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Serve /livez and /readyz here as well, out of reach of scrapers [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    listen_probes: Option<String>,
    /// Which namespaces may promote what with the controller's own credentials: a YAML file of rules, reloaded when it changes
    /// [default: none may].
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The controller's own credentials, a dockerconfigjson, reloaded when it changes [default: it has none].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// How many requests of a namespace may be active at once for the same registries, and as many plans; the others wait in order. 0: no
    /// limit.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_active_requests_per_namespace: u32,
    /// Set tags of image streams in this namespace, where requests name them and a rule of --policy grants them (repeatable).
    #[arg(long, value_name = "NAMESPACE")]
    image_stream_namespace: Vec<String>,
    /// Image streams refer to images of this repository at this host, which pulls are served from (repeatable) [default: the
    /// repository's own].
    #[arg(long, value_name = "REPOSITORY=HOST", value_parser = pull_host)]
    pull_host: Vec<(Repository, String)>,
    /// Create image streams that are absent.
    #[arg(long)]
    create_image_streams: bool,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) async fn run(args: ControllerArgs) -> ExitCode {
    let ControllerArgs {
        namespace,
        leader_elect,
        lease_namespace,
        sweep_interval,
        listen,
        listen_probes,
        policy,
        registry_config,
        max_active_requests_per_namespace,
        image_stream_namespace,
        pull_host,
        create_image_streams,
        log,
        registry,
    } = args;
    telemetry::start(&log, "info");
    if registry.allow_registry.is_empty() {
        tracing::warn!(
            "no --allow-registry: no registry may be contacted, every request will be NotAllowed"
        );
    }
    let (listener, probes) = match (
        bound("--listen", listen).await,
        bound("--listen-probes", listen_probes).await,
    ) {
        (Ok(listener), Ok(probes)) => (listener, probes),
        (Err(message), _) | (_, Err(message)) => return bad_input(&message),
    };
    match (&policy, &registry_config) {
        (None, Some(_)) => tracing::warn!(
            "--registry-config without --policy: no rule lets any request use these credentials"
        ),
        (Some(_), None) if image_stream_namespace.is_empty() => tracing::warn!(
            "--policy without --registry-config: its rules give the use of credentials, and there are none"
        ),
        _ => {}
    }
    let credentials = match CredentialFiles::read(policy, registry_config).await {
        Ok(credentials) => credentials,
        Err(message) => return bad_input(&message),
    };
    let cluster::Cluster {
        client,
        server,
        namespace: default_namespace,
    } = match cluster::connect(&cluster::Choice::default()).await {
        Ok(cluster) => cluster,
        Err(message) => return bad_input(&message),
    };
    let pause_namespace = lease_namespace.unwrap_or(default_namespace);
    let lease_namespace = leader_elect.then(|| pause_namespace.clone());
    let settings = Settings {
        namespace_max: usize::try_from(max_active_requests_per_namespace).unwrap_or(usize::MAX),
        ..registry.engine()
    };
    let policy = registry.listed();
    let registry = match registry_client(registry.registry(&policy)).await {
        Ok(registry) => registry,
        Err(error) => return bad_input(&unusable(&error)),
    };
    let host = std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| "promotion-controller".into());
    let identity = format!("{host}_{}", uuid::Uuid::new_v4());
    let config = Config {
        client,
        server,
        namespace,
        lease_namespace,
        pause_namespace,
        identity,
        registry,
        policy,
        credentials,
        streams: StreamSettings {
            namespaces: image_stream_namespace,
            pull_hosts: pull_host,
            create: create_image_streams,
        },
        engine: settings,
        sweep_interval: Duration::from_secs(sweep_interval.into()),
        listener,
        probes,
    };
    match Box::pin(run_controller(config, signalled())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => {
            tracing::error!("{ended}");
            match ended {
                Ended::Lost(_) => ExitCode::FAILURE,
                Ended::Refused(_) => ExitCode::from(BAD_INPUT),
            }
        }
    }
}

/// A client that trusts somebody: that no certificate will do is no fault of requests.
async fn registry_client(settings: registry::Settings) -> Result<RegistryClient, BuildError> {
    let client = RegistryClient::new(settings)?;
    client.load_trust().await?;
    Ok(client)
}

/// A repository, and the host that it is pulled from.
fn pull_host(text: &str) -> Result<(Repository, String), String> {
    let wrong = || format!("'{text}' is not REPOSITORY=HOST, as in quay.io/o/ci=quay-proxy.o.org");
    let (repository, host) = text.split_once('=').ok_or_else(wrong)?;
    let repository: Repository = repository.parse().map_err(|_| wrong())?;
    let pulled = format!("{host}/{}", repository.path());
    let pulled: Repository = pulled.parse().map_err(|_| wrong())?;
    if pulled.path() != repository.path() {
        return Err(wrong());
    }
    Ok((repository, host.to_owned()))
}

/// Listens on the address that a flag names, if it names one.
async fn bound(flag: &str, address: Option<String>) -> Result<Option<TcpListener>, String> {
    let Some(address) = address else {
        return Ok(None);
    };
    match TcpListener::bind(&address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(format!(
            "{flag}: {address} cannot be listened on ({error}); give another HOST:PORT"
        )),
    }
}
