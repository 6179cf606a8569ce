//! Ways to present oneself to a control plane: a `kube::Config`, or a kubeconfig file for other processes.
//!
//! Enters: the server's address, its certificate authority and a bearer token. Leaves: the same, in the form
//! the user of it reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::AuthInfo;
use serde_json::json;

use super::Error;

/// What a client needs to know of one control plane.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `https://127.0.0.1:PORT`
    pub server: String,
    /// DER.
    pub ca_der: Vec<u8>,
    /// PEM.
    pub ca_pem: String,
}

impl Endpoint {
    /// The configuration of a client whose bearer token is `token`.
    pub fn config(&self, token: &str) -> Result<kube::Config, Error> {
        let server = self.server.parse().map_err(|error| Error::Cluster {
            what: "address of the API server",
            reason: format!("{error}"),
        })?;
        let auth: AuthInfo =
            serde_json::from_value(json!({ "token": token })).map_err(|error| Error::Cluster {
                what: "bearer token",
                reason: error.to_string(),
            })?;
        let mut config = kube::Config::new(server);
        config.root_cert = Some(vec![self.ca_der.clone()]);
        config.auth_info = auth;
        Ok(config)
    }

    /// A kubeconfig file's content. JSON is YAML.
    pub fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testbed",
            "clusters": [{
                "name": "testbed",
                "cluster": {
                    "server": self.server,
                    "certificate-authority-data": STANDARD.encode(&self.ca_pem),
                },
            }],
            "users": [{ "name": "testbed", "user": { "token": token } }],
            "contexts": [{
                "name": "testbed",
                "context": { "cluster": "testbed", "user": "testbed", "namespace": "default" },
            }],
        })
        .to_string()
    }
}
