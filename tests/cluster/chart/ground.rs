//! A release of the chart on a cluster without kubelets, which are played here: the container's arguments and environment are read
//! from the Deployment in the cluster, its volumes are laid out as files, and its token is asked for. Only addresses and paths
//! differ from those of a pod.

pub use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Volume};
use kube::Client;
use kube::api::{Api, PostParams};
use quaylike::{Auth, AuthMode, ImageSpec, Registry, Shape, User};
use serde_json::{Value, json};

use crate::testbed::helm::{Helm, chart, kubectl};
use crate::testbed::stage::{LOOK, Stage, spec};
use crate::testbed::{ControlPlane, RunDir, Supervised, free_port};

/// How the release and what belongs to it are named.
pub const NAME: &str = "promotion-controller";

/// A release of the chart, a namespace that it names, one that it does not, and a registry.
pub struct Ground {
    pub plane: &'static ControlPlane,
    helm: Helm,
    pub release: Stage,
    pub named: Stage,
    pub other: Stage,
    pub registry: Registry,
}

impl Ground {
    pub async fn new(plane: &'static ControlPlane) -> Self {
        let users = ["robot", "own"].into_iter();
        let auth = users.fold(Auth::new(AuthMode::Bearer), |auth, name| {
            auth.user(
                User::new(name, &format!("{name}-pw"))
                    .push("ci")
                    .pull("src"),
            )
        });
        let options = audited().auth(auth);
        let ground = Self {
            plane,
            helm: Helm::at(plane.kubeconfig()).await,
            release: Stage::bare_on(plane, "release").await,
            named: Stage::on(plane, "named").await,
            other: Stage::on(plane, "other").await,
            registry: Registry::start(options).await.unwrap(),
        };
        let host = ground.registry.host();
        for stage in [&ground.named, &ground.other] {
            stage.secret("push", &[(&host, "robot", "robot-pw")]).await;
        }
        ground
    }

    /// What a person who installs the chart would give.
    pub fn values(&self) -> Value {
        let host = self.registry.host();
        json!({
            "registries": ["127.0.0.1:*"],
            "image": {"repository": "registry.example.com/promotion-controller"},
            "plainHttp": [host],
            "namespaces": [self.named.namespace],
            "policy": {"rules": [{
                "name": "granted",
                "namespaces": [self.other.namespace],
                "sources": [format!("{host}/src/**")],
                "floats": [format!("{host}/ci:granted*")],
            }]},
            "registryConfig": "own-credentials",
            "registryCa": [{"host": "registry.example", "configMap": "example-ca", "key": "service-ca.crt"}],
            "settleSeconds": 3,
            "lateSeconds": 15,
            "sweepInterval": 1,
            "logLevel": "warn,promotion_controller=debug",
        })
    }

    pub async fn install(&self) {
        let ca = ("service-ca.crt".to_owned(), self.plane.ca_pem().to_owned());
        let mut config = ConfigMap::default();
        config.metadata.name = Some("example-ca".into());
        config.data = Some([ca].into());
        let configs: Api<ConfigMap> = self.released();
        configs
            .create(&PostParams::default(), &config)
            .await
            .unwrap();
        let host = self.registry.host();
        let own = [(host.as_str(), "own", "own-pw")];
        self.release.secret("own-credentials", &own).await;
        self.helm("install", &self.values()).await;
        // The definition is served a moment after it is there.
        let served = [
            "wait",
            "--for=condition=Established",
            "crd",
            "promotionrequests.ci.openshift.io",
        ];
        kubectl(self.plane, &served, "").await;
    }

    pub async fn helm(&self, verb: &str, values: &Value) {
        let folder = chart();
        let namespace = &self.release.namespace;
        let arguments = [verb, NAME, folder.to_str().unwrap(), "-n", namespace];
        self.helm.ok(&arguments, values).await;
    }

    pub async fn uninstall(self) {
        let namespace = &self.release.namespace;
        let arguments = ["uninstall", NAME, "-n", namespace];
        self.helm.ok(&arguments, &Value::Null).await;
    }

    pub fn released<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.plane.client().unwrap(), &self.release.namespace)
    }

    /// A token of the account that the Deployment names.
    async fn token(&self) -> String {
        let deployment: Deployment = self.released().get(NAME).await.unwrap();
        let pod = deployment.spec.template.spec.unwrap();
        let account = pod.service_account_name.unwrap();
        let namespace = &self.release.namespace;
        self.plane
            .service_account_token(namespace, &account)
            .await
            .unwrap()
    }

    pub async fn client(&self) -> Client {
        self.plane.client_for(&self.token().await).unwrap()
    }

    /// Starts the Deployment's container as a pod of this name.
    pub async fn pod(&self, name: &str) -> Pod {
        let deployment: Deployment = self.released().get(NAME).await.unwrap();
        let pod = deployment.spec.template.spec.unwrap();
        let container = &pod.containers[0];
        let mut arguments = container.args.clone().unwrap();
        let folder = RunDir::create(name).unwrap();
        for mount in container.volume_mounts.iter().flatten() {
            let volumes = pod.volumes.iter().flatten();
            let volume = volumes.into_iter().find(|v| v.name == mount.name).unwrap();
            let files = folder.join(&mount.name);
            self.lay_out(volume, &files).await;
            for argument in &mut arguments {
                *argument = argument.replace(&mount.mount_path, files.to_str().unwrap());
            }
        }
        assert!(
            !arguments.iter().any(|a| a.contains("/etc/")),
            "{arguments:?}"
        );
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let metrics = format!("127.0.0.1:{}", free_port().unwrap());
        for argument in &mut arguments {
            if argument == "--listen=0.0.0.0:8080" {
                *argument = format!("--listen={metrics}");
            }
            if argument == "--listen-probes=0.0.0.0:8081" {
                *argument = format!("--listen-probes={listen}");
            }
        }
        let kubeconfig = self.plane.kubeconfig_for(&self.token().await).unwrap();
        let mut environment = vec![
            ("KUBECONFIG", kubeconfig.to_str().unwrap()),
            ("HOSTNAME", name),
        ];
        for variable in container.env.iter().flatten() {
            environment.push((&variable.name, variable.value.as_deref().unwrap()));
        }
        let program = Path::new(env!("CARGO_BIN_EXE_promotion-controller"));
        let process =
            Supervised::spawn("pod", program, &arguments, &environment, folder.path()).unwrap();
        let grace = pod.termination_grace_period_seconds.unwrap();
        Pod {
            process,
            folder,
            grace: Duration::from_secs(grace.try_into().unwrap()),
            listen,
            metrics,
        }
    }

    /// A volume's files, as a kubelet makes them.
    async fn lay_out(&self, volume: &Volume, into: &Path) {
        std::fs::create_dir(into).unwrap();
        let (content, items) = if let Some(source) = &volume.config_map {
            let config: ConfigMap = self.released().get(&source.name).await.unwrap();
            let data = config.data.unwrap_or_default();
            let data = data.into_iter().map(|(key, text)| (key, text.into_bytes()));
            (data.collect::<Vec<_>>(), source.items.clone())
        } else {
            let source = volume.secret.as_ref().unwrap();
            let name = source.secret_name.as_deref().unwrap();
            let secret: Secret = self.released().get(name).await.unwrap();
            let data = secret.data.unwrap_or_default();
            let data = data.into_iter().map(|(key, bytes)| (key, bytes.0));
            (data.collect(), source.items.clone())
        };
        for (key, bytes) in content {
            let path = match &items {
                None => Some(&key),
                Some(items) => items.iter().find(|i| i.key == key).map(|i| &i.path),
            };
            if let Some(path) = path {
                std::fs::write(into.join(path), bytes).unwrap();
            }
        }
    }

    fn source(&self, name: &str) -> (String, String) {
        let spec = ImageSpec::new(Shape::Oci, name);
        let repository = format!("src/{name}");
        let digest = self.registry.seed_spec(&repository, "x", &spec).unwrap();
        let reference = format!("{}/{repository}@{digest}", self.registry.host());
        (digest.to_string(), reference)
    }

    /// A spec that promotes a source of this name with the Secret `push`, and the source's digest.
    pub fn request(&self, name: &str) -> (String, Value) {
        let (digest, source) = self.source(name);
        let float = format!("{}/ci:{name}", self.registry.host());
        let mut spec = spec(&[(&source, &float)]);
        spec["pushSecret"] = json!({"name": "push"});
        (digest, spec)
    }

    pub fn at(&self, tag: &str) -> Option<String> {
        self.registry
            .tag("ci", tag)
            .map(|digest| digest.to_string())
    }
}

/// A controller as a pod would run it.
pub struct Pod {
    pub process: Supervised,
    folder: RunDir,
    pub grace: Duration,
    listen: String,
    metrics: String,
}

impl Pod {
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("pod.log")).unwrap_or_default()
    }

    /// What it answers at a path of its probes, or of its metrics, if it listens.
    pub async fn probe(&self, path: &str) -> Option<u16> {
        let at = if path == "/metrics" {
            &self.metrics
        } else {
            &self.listen
        };
        let url = format!("http://{at}{path}");
        let client = crate::testbed::http_builder().build().unwrap();
        let answer = client.get(url).send().await.ok()?;
        Some(answer.status().as_u16())
    }

    /// Waits until the log says something.
    pub async fn until_said(&self, words: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < end, "not '{words}':\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }
}
