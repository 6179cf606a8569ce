//! The cluster, as the kubeconfig or the pod says.

use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use kube::Client;

use crate::controller::SILENCE;

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

/// The cluster of the kubeconfig, or of the pod.
///
/// # Errors
/// What has to be given.
pub(super) async fn infer() -> Result<Cluster, String> {
    let mut config = kube::Config::infer()
        .await
        .map_err(|error| format!("no cluster: {error}; set KUBECONFIG, or run in a pod"))?;
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
