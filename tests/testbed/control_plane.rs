//! One API server with its database: start, restart, end.
//!
//! Enters: nothing. Leaves: a ready API server of the pinned release on 127.0.0.1 with RBAC, an administrator's
//! token and no controllers (a namespace that is deleted stays; see
//! [`ControlPlane::start_controllers`]). Guaranteed: its processes end with the test binary.
//!
//! What tests do with it is in `cluster.rs`.

use super::PATIENCE;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime;
use tokio::sync::OnceCell;

use super::credentials::Credentials;
use super::kubeconfig::Endpoint;
use super::net::{http_client, https_client, locked, wait_ready};
use super::{Binary, Error, RunDir, Signal, Supervised, audit, binary, free_port};

/// Memory is cheaper here than the processor's time: Go collects when the heap is five times what is in use.
const COLLECT_SELDOM: [(&str, &str); 1] = [("GOGC", "400")];

/// A running control plane. Dropping it ends its processes and removes its data.
pub struct ControlPlane {
    // In the order in which they are to end.
    controllers: Mutex<Option<Supervised>>,
    apiserver: Mutex<Supervised>,
    etcd: Mutex<Supervised>,
    apiserver_program: PathBuf,
    apiserver_arguments: Vec<String>,
    pub(super) clients: Mutex<HashMap<(runtime::Id, String), kube::Client>>,
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Credentials,
    pub(super) directory: RunDir,
    pub(super) kubeconfig: PathBuf,
}

/// The control plane that all tests of one binary use, started by the first that asks.
///
/// A test that stops, freezes or restarts its API server starts a [`ControlPlane`] of its own.
///
/// # Panics
///
/// When it cannot be started; there is no use in going on then.
pub async fn shared() -> &'static ControlPlane {
    static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
    SHARED
        .get_or_try_init(start_after_building)
        .await
        .expect("the shared control plane starts")
}

/// Everything the tests run is built before the first of them begins: a build beside them would take their time away.
async fn start_after_building() -> Result<ControlPlane, Error> {
    for wanted in [
        Binary::Etcd,
        Binary::KubeApiserver,
        Binary::KubeControllerManager,
        Binary::Kubectl,
        Binary::Registry,
        Binary::Helm,
    ] {
        binary(wanted).await?;
    }
    ControlPlane::start().await
}

impl ControlPlane {
    /// Starts a control plane; about 3 s when the binaries are there.
    pub async fn start() -> Result<Self, Error> {
        let etcd = binary(Binary::Etcd).await?;
        let apiserver = binary(Binary::KubeApiserver).await?;
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match Self::attempt(etcd.clone(), apiserver.clone()).await {
                // Somebody else took one of the ports.
                Err(Error::Ended { .. }) if attempts > 0 => {}
                outcome => return outcome,
            }
        }
    }

    async fn attempt(etcd_program: PathBuf, apiserver_program: PathBuf) -> Result<Self, Error> {
        let directory = RunDir::create("control-plane")?;
        let credentials = Credentials::create(&directory)?;
        let etcd_url = format!("http://127.0.0.1:{}", free_port()?);
        let port = free_port()?;

        let etcd = Supervised::spawn(
            "etcd",
            &etcd_program,
            &etcd_arguments(&etcd_url, free_port()?),
            &COLLECT_SELDOM,
            directory.path(),
        )?;
        let etcd = Mutex::new(etcd);
        let health = http_client()?.get(format!("{etcd_url}/health"));
        wait_ready(&etcd, health, &[200], PATIENCE).await?;

        let endpoint = Endpoint {
            server: format!("https://127.0.0.1:{port}"),
            ca_der: credentials.ca_der.clone(),
            ca_pem: credentials.ca_pem.clone(),
        };
        let kubeconfig = directory.write(
            "admin.kubeconfig",
            &endpoint.kubeconfig(&credentials.admin_token),
        )?;
        let mut apiserver_arguments =
            apiserver_arguments(&etcd_url, port, &credentials, &directory);
        apiserver_arguments.extend(audit::arguments(&directory)?);
        let apiserver = Supervised::spawn(
            "kube-apiserver",
            &apiserver_program,
            &apiserver_arguments,
            &COLLECT_SELDOM,
            directory.path(),
        )?;
        let plane = Self {
            controllers: Mutex::new(None),
            apiserver: Mutex::new(apiserver),
            etcd,
            apiserver_program,
            apiserver_arguments,
            clients: Mutex::default(),
            endpoint,
            credentials,
            directory,
            kubeconfig,
        };
        plane.wait_apiserver().await?;
        locked(&plane.etcd).still_running()?;
        Ok(plane)
    }

    /// Kills the API server; its port answers nobody until [`Self::start_apiserver`]. Objects are kept.
    pub fn kill_apiserver(&self) {
        locked(&self.apiserver).kill();
    }

    /// Starts the API server again on its port and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<(), Error> {
        let started = Supervised::spawn(
            "kube-apiserver",
            &self.apiserver_program,
            &self.apiserver_arguments,
            &COLLECT_SELDOM,
            self.directory.path(),
        )?;
        *locked(&self.apiserver) = started;
        self.wait_apiserver().await
    }

    /// Kills the API server and starts it again: open watches break, objects and tokens stay.
    pub async fn restart_apiserver(&self) -> Result<(), Error> {
        self.kill_apiserver();
        self.start_apiserver().await
    }

    /// Freezes the API server: connections stay open and nothing answers.
    pub fn freeze_apiserver(&self) {
        locked(&self.apiserver).signal(Signal::Freeze);
    }

    /// Lets a frozen API server go on.
    pub fn thaw_apiserver(&self) {
        locked(&self.apiserver).signal(Signal::Thaw);
    }

    /// Starts Kubernetes' own controllers of these names, for example `namespace` (finishes the deletion of
    /// namespaces) and `clusterrole-aggregation`. Those of an earlier call are ended.
    pub async fn start_controllers(&self, names: &[&str]) -> Result<(), Error> {
        let program = binary(Binary::KubeControllerManager).await?;
        let port = free_port()?;
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--controllers={}", names.join(",")),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!(
                "--cert-dir={}",
                self.directory.join("controller-certs").display()
            ),
        ];
        let started = Supervised::spawn(
            "kube-controller-manager",
            &program,
            &arguments,
            &[],
            self.directory.path(),
        )?;
        *locked(&self.controllers) = Some(started);
        Ok(())
    }

    /// Ends the controllers of [`Self::start_controllers`].
    pub fn stop_controllers(&self) {
        *locked(&self.controllers) = None;
    }

    /// Whether the API server answers.
    pub async fn serves(&self) -> bool {
        let Ok(client) = self.client() else {
            return false;
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), client.apiserver_version());
        matches!(asked.await, Ok(Ok(_)))
    }

    /// Ends the processes and removes the data.
    pub async fn stop(self) -> Result<(), Error> {
        tokio::task::spawn_blocking(move || drop(self)).await?;
        Ok(())
    }

    async fn wait_apiserver(&self) -> Result<(), Error> {
        let readyz = https_client(&self.endpoint.ca_der)?
            .get(format!("{}/readyz", self.endpoint.server))
            .bearer_auth(&self.credentials.admin_token);
        wait_ready(&self.apiserver, readyz, &[200], PATIENCE).await
    }
}

fn etcd_arguments(client_url: &str, peer_port: u16) -> Vec<String> {
    let peer_url = format!("http://127.0.0.1:{peer_port}");
    [
        "--data-dir=etcd".to_owned(),
        format!("--listen-client-urls={client_url}"),
        format!("--advertise-client-urls={client_url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        // Nothing is to outlive the test binary.
        "--unsafe-no-fsync".to_owned(),
    ]
    .into()
}

fn apiserver_arguments(
    etcd_url: &str,
    port: u16,
    credentials: &Credentials,
    directory: &RunDir,
) -> Vec<String> {
    let file = |flag: &str, path: &PathBuf| format!("--{flag}={}", path.display());
    vec![
        format!("--etcd-servers={etcd_url}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        file("cert-dir", &directory.join("certs")),
        file("tls-cert-file", &credentials.server_certificate),
        file("tls-private-key-file", &credentials.server_key),
        "--service-account-issuer=https://localhost".to_owned(),
        file("service-account-key-file", &credentials.account_public_key),
        file("service-account-signing-key-file", &credentials.account_key),
        file("token-auth-file", &credentials.tokens),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        // It wants a default ServiceAccount in each namespace, which a controller would make.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ]
}
