//! CNCF distribution registries.
//!
//! Enters: how clients are to prove who they are. Leaves: a registry on 127.0.0.1 with an empty store of its own,
//! which deletes tags and manifests and logs each request. Guaranteed: it keeps its port and its content over
//! restarts and garbage collections, and ends with the test binary.
//!
//! Distribution has no referrers API (404) and collects only while it is stopped. It keeps an untagged manifest
//! whose digest any other of its repositories still holds, so floats want a registry of their own.

use super::PATIENCE;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::access_log::USER_AGENT;
use super::credentials::Certificates;
use super::net::{LOOK, http_client, https_client, locked, wait_ready};
use super::tokens::{ISSUER, SERVICE};
use super::{
    AccessLog, Binary, Error, RegistryClient, RunDir, Signal, Supervised, TokenServer, binary,
    free_port,
};

/// For requests in flight when the registry is stopped.
const GRACE: Duration = Duration::from_secs(10);

/// How clients prove who they are.
#[derive(Debug, Clone, Default)]
pub enum RegistryAuth {
    /// Not at all: everybody may do everything.
    #[default]
    Open,
    /// By bearer tokens of this server, which several registries may share.
    Token(Arc<TokenServer>),
}

/// How a registry is started.
#[derive(Debug, Clone, Default)]
pub struct DistributionOptions {
    /// How clients prove who they are.
    pub auth: RegistryAuth,
    /// Whether it speaks TLS, with a certificate of [`Distribution::ca`].
    pub tls: bool,
}

/// A running registry. Dropping it ends it and removes its content.
#[derive(Debug)]
pub struct Distribution {
    process: Mutex<Supervised>,
    program: PathBuf,
    port: u16,
    log: AccessLog,
    directory: RunDir,
    certificates: Option<Certificates>,
}

impl Distribution {
    /// Starts a registry; well under a second when the binary is there.
    pub async fn start(options: DistributionOptions) -> Result<Self, Error> {
        let program = binary(Binary::Registry).await?;
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match Self::attempt(program.clone(), &options).await {
                // Somebody else took the port.
                Err(Error::Ended { .. }) if attempts > 0 => {}
                outcome => return outcome,
            }
        }
    }

    async fn attempt(program: PathBuf, options: &DistributionOptions) -> Result<Self, Error> {
        let directory = RunDir::create("registry")?;
        let port = free_port()?;
        if let RegistryAuth::Token(server) = &options.auth {
            directory.write("jwks.json", &server.jwks().to_string())?;
        }
        // The collector refuses a store in which nothing was pushed yet.
        for part in ["blobs", "repositories"] {
            let path = directory.join("store/docker/registry/v2").join(part);
            std::fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        let certificates = if options.tls {
            Some(Certificates::create(&directory)?)
        } else {
            None
        };
        if let Some(certificates) = &certificates {
            directory.write("ca.crt", &certificates.ca_pem)?;
        }
        // JSON is YAML.
        directory.write("config.yml", &configuration(port, options).to_string())?;
        let registry = Self {
            process: Mutex::new(serve(&program, &directory)?),
            program,
            port,
            log: AccessLog::new(directory.join("registry.out")),
            directory,
            certificates,
        };
        registry.wait().await?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`, as in an image reference.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:PORT`, or https
    pub fn url(&self) -> String {
        let tls = if self.certificates.is_some() { "s" } else { "" };
        format!("http{tls}://{}", self.host())
    }

    /// The PEM file of the certificate authority it is to be trusted by, where it speaks TLS.
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The requests it answered.
    pub fn log(&self) -> &AccessLog {
        &self.log
    }

    /// A client without credentials, for seeding and looking.
    pub fn client(&self) -> Result<RegistryClient, Error> {
        RegistryClient::new(&self.url(), None)
    }

    /// A client of that account.
    pub fn client_of(&self, user: &str, password: &str) -> Result<RegistryClient, Error> {
        RegistryClient::new(&self.url(), Some((user, password)))
    }

    /// Ends the registry: its port answers nobody until [`Self::resume`].
    pub async fn halt(&self) {
        locked(&self.process).signal(Signal::Terminate);
        let asked = Instant::now();
        while !locked(&self.process).has_ended() && asked.elapsed() < GRACE {
            tokio::time::sleep(LOOK).await;
        }
        locked(&self.process).kill();
    }

    /// Starts a halted registry again on its port.
    pub async fn resume(&self) -> Result<(), Error> {
        *locked(&self.process) = serve(&self.program, &self.directory)?;
        self.wait().await
    }

    /// Halts the registry, collects every manifest without a tag and every blob without a manifest, and starts
    /// it again. Returns the collector's report.
    pub async fn garbage_collect(&self) -> Result<String, Error> {
        self.halt().await;
        let arguments = ["garbage-collect", "--delete-untagged", "config.yml"];
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .current_dir(self.directory.path())
            .env("OTEL_TRACES_EXPORTER", "none")
            .kill_on_drop(true)
            .output()
            .await
            .map_err(Error::file("run", &self.program))?;
        self.resume().await?;
        if !output.status.success() {
            return Err(Error::Command {
                command: format!("registry {}", arguments.join(" ")),
                status: output.status,
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether a tag that is listed points to anything. A PUT that a halt cut, and nobody answered, leaves one that does not.
    pub fn is_put(&self, repository: &str, tag: &str) -> bool {
        let tags = format!("store/docker/registry/v2/repositories/{repository}/_manifests/tags");
        let link = self.directory.join(&tags).join(tag).join("current/link");
        std::fs::metadata(link).is_ok_and(|link| link.len() > 0)
    }

    async fn wait(&self) -> Result<(), Error> {
        let client = match &self.certificates {
            Some(certificates) => https_client(&certificates.ca_der)?,
            None => http_client()?,
        };
        let ping = client
            .get(format!("{}/v2/", self.url()))
            .header("user-agent", USER_AGENT);
        wait_ready(&self.process, ping, &[200, 401], PATIENCE).await
    }
}

fn serve(program: &std::path::Path, directory: &RunDir) -> Result<Supervised, Error> {
    Supervised::spawn(
        "registry",
        program,
        &["serve".to_owned(), "config.yml".to_owned()],
        // Otherwise it looks for a collector of traces on this machine.
        &[("OTEL_TRACES_EXPORTER", "none")],
        directory.path(),
    )
}

fn configuration(port: u16, options: &DistributionOptions) -> Value {
    let mut configuration = json!({
        "version": 0.1,
        "log": { "level": "info" },
        "storage": {
            "filesystem": { "rootdirectory": "store" },
            "delete": { "enabled": true },
        },
        "http": {
            "addr": format!("127.0.0.1:{port}"),
            "secret": "signs the state of uploads",
        },
    });
    if options.tls {
        configuration["http"]["tls"] = json!({ "certificate": "server.crt", "key": "server.key" });
    }
    if let RegistryAuth::Token(server) = &options.auth {
        configuration["auth"] = json!({ "token": {
            "realm": server.realm(),
            "service": SERVICE,
            "issuer": ISSUER,
            "jwks": "jwks.json",
            "signingalgorithms": ["EdDSA"],
        }});
    }
    configuration
}
