//! What tests do with a control plane: clients, namespaces, definitions, service accounts, kubectl.
//!
//! A client belongs to the runtime it was made under, so each test has its own, for all it asks: a connection costs more than most
//! requests.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;

use super::net::install_tls;
use super::{Binary, ControlPlane, Error, binary};

/// How long a definition may take to be served.
const ESTABLISHED_WITHIN: Duration = Duration::from_mins(1);

impl ControlPlane {
    /// The address of the API server, `https://127.0.0.1:PORT`.
    pub fn server(&self) -> &str {
        &self.endpoint.server
    }

    /// The certificate authority of [`Self::server`], PEM.
    pub fn ca_pem(&self) -> &str {
        &self.endpoint.ca_pem
    }

    /// The bearer token of the administrator, a member of `system:masters`.
    pub fn admin_token(&self) -> &str {
        &self.credentials.admin_token
    }

    /// The administrator's configuration.
    pub fn config(&self) -> Result<kube::Config, Error> {
        self.config_for(self.admin_token())
    }

    /// The configuration of whoever holds `token`.
    pub fn config_for(&self, token: &str) -> Result<kube::Config, Error> {
        self.endpoint.config(token)
    }

    /// The administrator's client, bound to the current runtime.
    pub fn client(&self) -> Result<kube::Client, Error> {
        self.client_for(self.admin_token())
    }

    /// The client of whoever holds `token`, bound to the current runtime.
    pub fn client_for(&self, token: &str) -> Result<kube::Client, Error> {
        let key = (Handle::current().id(), token.to_owned());
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        install_tls();
        let client = kube::Client::try_from(self.config_for(token)?)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// The administrator's kubeconfig file.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Writes a kubeconfig file for whoever holds `token`.
    pub fn kubeconfig_for(&self, token: &str) -> Result<PathBuf, Error> {
        let name = format!("{}.kubeconfig", uuid::Uuid::new_v4().simple());
        self.directory
            .write(&name, &self.endpoint.kubeconfig(token))
    }

    /// Makes a namespace whose name begins with `prefix` and is used by nobody else.
    pub async fn namespace(&self, prefix: &str) -> Result<String, Error> {
        let namespaces: Api<Namespace> = Api::all(self.client()?);
        let wanted = Namespace {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let made = namespaces.create(&PostParams::default(), &wanted).await?;
        made.metadata.name.ok_or_else(|| Error::Cluster {
            what: "namespace",
            reason: "the API server gave it no name".to_owned(),
        })
    }

    /// Applies every custom resource definition of `yaml` (one or more documents) and waits until all are served.
    pub async fn apply_crds(&self, yaml: &str) -> Result<(), Error> {
        let definitions: Vec<CustomResourceDefinition> = serde_saphyr::from_multiple(yaml)
            .map_err(|error| Error::Cluster {
                what: "CustomResourceDefinition",
                reason: error.to_string(),
            })?;
        let api: Api<CustomResourceDefinition> = Api::all(self.client()?);
        let parameters = PatchParams::apply("testbed").force();
        for definition in definitions {
            let name = definition.metadata.name.clone().unwrap_or_default();
            api.patch(&name, &parameters, &Patch::Apply(&definition))
                .await?;
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(ESTABLISHED_WITHIN, established)
                .await
                .map_err(|_| Error::Timeout {
                    what: format!("serving of CustomResourceDefinition {name}"),
                    waited: ESTABLISHED_WITHIN,
                })?
                .map_err(|error| Error::Cluster {
                    what: "CustomResourceDefinition",
                    reason: error.to_string(),
                })?;
        }
        Ok(())
    }

    /// A token of one hour for a service account, which is made if it is not there. It has the rights that
    /// RBAC objects give it and no others.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<String, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client()?, namespace);
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let parameters = PatchParams::apply("testbed");
        accounts
            .patch(name, &parameters, &Patch::Apply(&account))
            .await?;
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let made = accounts
            .create_token_request(name, &PostParams::default(), &wanted)
            .await?;
        made.status
            .and_then(|status| status.token)
            .ok_or_else(|| Error::Cluster {
                what: "TokenRequest",
                reason: "the answer has no token".to_owned(),
            })
    }

    /// The name and kubeconfig of a service account that may do everything, and whose requests the audit log tells apart.
    pub async fn mighty_account(&self, name: &str) -> Result<(String, PathBuf), Error> {
        let namespace = "default";
        let token = self.service_account_token(namespace, name).await?;
        let binding = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        });
        self.apply(&binding.to_string()).await?;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Ok((user, self.kubeconfig_for(&token)?))
    }

    /// Runs kubectl as the administrator and waits for its end, whatever its exit status.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.kubectl_with_input(arguments, "").await
    }

    /// As [`Self::kubectl`], with `input` on standard input (`apply -f -`).
    pub async fn kubectl_with_input(
        &self,
        arguments: &[&str],
        input: &str,
    ) -> Result<Output, Error> {
        let program = binary(Binary::Kubectl).await?;
        let mut child = tokio::process::Command::new(&program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(self.directory.join("kubectl-cache"))
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::file("run", &program))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input says so by its exit status.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        output.map_err(Error::file("run", &program))
    }

    /// Applies YAML of any kinds with kubectl; an error shows what kubectl said.
    pub async fn apply(&self, yaml: &str) -> Result<(), Error> {
        let output = self.kubectl_with_input(&["apply", "-f", "-"], yaml).await?;
        if !output.status.success() {
            return Err(Error::Command {
                command: "kubectl apply -f -".to_owned(),
                status: output.status,
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(())
    }
}
