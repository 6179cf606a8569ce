//! The cluster, as the kubeconfig or the pod says: the one client that everything here speaks to an API server with.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::controller::SILENCE;
use crate::store::call::causes;

/// How we call ourselves: what the API server's logs show, and, up to the slash, who it says has written a field.
const NAME: &str = concat!("promotion-controller/", env!("CARGO_PKG_VERSION"));

/// A client, and what belongs to it.
pub(super) struct Cluster {
    pub client: Client,
    /// The API server's address.
    pub server: String,
    /// The pod's namespace, or the kubeconfig context's.
    pub namespace: String,
}

/// Which cluster is meant; by default that of the kubeconfig's current context, or of the pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

/// The cluster that is meant.
///
/// # Errors
/// What has to be given.
pub(super) async fn connect(choice: &Choice) -> Result<Cluster, String> {
    let mut config = config(choice).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // A server, or what is between, that has gone silent: without this a list would wait for it for ever.
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(NAME)));
    let server = config.cluster_url.to_string();
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config)
        .map_err(|error| format!("the cluster's configuration cannot be used: {error}"))?;
    Ok(Cluster {
        client,
        server,
        namespace,
    })
}

async fn config(choice: &Choice) -> Result<kube::Config, String> {
    let Choice {
        kubeconfig,
        context,
    } = choice;
    let options = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    match (kubeconfig, context) {
        (None, None) => kube::Config::infer()
            .await
            .map_err(|error| format!("no cluster: {error}; set KUBECONFIG, or run in a pod")),
        (None, Some(context)) => kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|error| format!("--context {context}: {}", causes(&error))),
        (Some(file), _) => {
            let named = |error: &kube::config::KubeconfigError| {
                format!("--kubeconfig {}: {}", file.display(), causes(error))
            };
            let read = Kubeconfig::read_from(file).map_err(|error| named(&error))?;
            kube::Config::from_custom_kubeconfig(read, &options)
                .await
                .map_err(|error| named(&error))
        }
    }
}
