//! The controller with the chart's own ServiceAccount: its whole job is possible, and nothing else.
//!
//! What a kubelet would do is done here: the container's arguments and environment are read from the Deployment in the cluster,
//! its volumes are laid out as files, and its token is asked for. Only addresses and paths differ from those of a pod.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Volume};
use kube::Client;
use kube::api::{Api, PostParams};
use promotion_controller::api::PromotionRequestStatus;
use promotion_controller::controller::END;
use promotion_controller::embedded::{
    Auth, AuthMode, Embedded, ImageSpec, Options, Settings, Shape, User,
};
use serde_json::{Value, json};

use super::helm::{Helm, chart, clear, cluster, kubectl};
use crate::stage::{LOOK, Stage, condition, phase, spec};
use crate::testbed::{ControlPlane, RunDir, Signal, Supervised, free_port};

const PATIENCE: Duration = Duration::from_mins(2);
const NAME: &str = "promotion-controller";

/// A release of the chart, a namespace that it names, one that it does not, and a registry.
struct Ground {
    plane: &'static ControlPlane,
    helm: Helm,
    release: Stage,
    named: Stage,
    other: Stage,
    registry: Embedded,
}

impl Ground {
    async fn new(plane: &'static ControlPlane) -> Self {
        clear(plane).await;
        let users = ["robot", "own"].into_iter();
        let auth = users.fold(Auth::new(AuthMode::Bearer), |auth, name| {
            auth.user(
                User::new(name, &format!("{name}-pw"))
                    .push("ci")
                    .pull("src"),
            )
        });
        let settings = Settings {
            audit: true,
            ..Settings::default()
        };
        let options = Options::default().settings(settings).auth(auth);
        let ground = Self {
            plane,
            helm: Helm::at(plane.kubeconfig()).await,
            release: Stage::on(plane, "release").await,
            named: Stage::on(plane, "named").await,
            other: Stage::on(plane, "other").await,
            registry: Embedded::start(options).await.unwrap(),
        };
        let host = ground.registry.host();
        for stage in [&ground.named, &ground.other] {
            stage.secret("push", &[(&host, "robot", "robot-pw")]).await;
        }
        ground
    }

    /// What a person who installs the chart would give.
    fn values(&self) -> Value {
        let host = self.registry.host();
        json!({
            "registries": ["127.0.0.1:*"],
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
            "sweepInterval": 1,
            "logLevel": "warn,promotion_controller=debug",
        })
    }

    async fn install(&self) {
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

    async fn helm(&self, verb: &str, values: &Value) {
        let folder = chart();
        let namespace = &self.release.namespace;
        let arguments = [verb, NAME, folder.to_str().unwrap(), "-n", namespace];
        self.helm.ok(&arguments, values).await;
    }

    fn released<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.plane.client().unwrap(), &self.release.namespace)
    }

    /// A token of the ServiceAccount that the Deployment names.
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

    async fn client(&self) -> Client {
        self.plane.client_for(&self.token().await).unwrap()
    }

    /// Starts the Deployment's container as a pod of this name.
    async fn pod(&self, name: &str) -> Pod {
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
        // TEMPORARY: until every flag is there.
        let help = std::process::Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
            .args(["controller", "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        arguments.retain(|a| !a.starts_with("--") || help.contains(a.split('=').next().unwrap()));
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        for argument in &mut arguments {
            if argument == "--listen=0.0.0.0:8080" {
                *argument = format!("--listen={listen}");
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
    fn request(&self, name: &str) -> (String, Value) {
        let (digest, source) = self.source(name);
        let float = format!("{}/ci:{name}", self.registry.host());
        let mut spec = spec(&[(&source, &float)]);
        spec["pushSecret"] = json!({"name": "push"});
        (digest, spec)
    }

    fn at(&self, tag: &str) -> Option<String> {
        self.registry
            .tag("ci", tag)
            .map(|digest| digest.to_string())
    }
}

/// A controller as a pod would run it.
struct Pod {
    process: Supervised,
    folder: RunDir,
    grace: Duration,
    listen: String,
}

impl Pod {
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("pod.log")).unwrap_or_default()
    }

    /// What it answers at a path of its probes, if it listens.
    async fn probe(&self, path: &str) -> Option<u16> {
        let url = format!("http://{}{path}", self.listen);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).send().await.ok()?;
        Some(answer.status().as_u16())
    }

    /// Waits until the log says something.
    async fn until_said(&self, words: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < end, "not '{words}':\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a status says that its request waits, and why.
fn waits(status: &PromotionRequestStatus, reason: &str) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|c| c.type_ == "Progressing" && c.reason == reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_rights_of_the_chart_the_controller_does_its_whole_job() {
    let (_turn, plane) = cluster().await;
    let ground = Ground::new(plane).await;
    ground.install().await;
    let old = ImageSpec::new(Shape::Oci, "old");
    let old = ground
        .registry
        .seed_spec("ci", "f", &old)
        .unwrap()
        .to_string();
    let mut leader = ground.pod("pod-0").await;
    leader.until_said("claims rebuilt").await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(leader.probe(path).await, Some(200), "{path}");
    }
    let leases: Api<Lease> = ground.released();
    let holder = async || {
        leases
            .get(NAME)
            .await
            .unwrap()
            .spec
            .unwrap()
            .holder_identity
    };
    assert!(holder().await.unwrap().starts_with("pod-0_"));

    // Secret, status, events.
    let (new, images) = ground.request("f");
    ground.named.create("r", &images).await;
    let done = ground.named.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("f"), Some(new));
    assert_eq!(ground.at("f__pre"), Some(old));
    let events = ground.named.events_until("r", "Promoted", PATIENCE).await;
    let reasons: BTreeSet<&str> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
    assert!(
        reasons.is_superset(&BTreeSet::from(["Incoming", "Latched", "Promoted"])),
        "{reasons:?}"
    );

    // The sweep.
    ground
        .named
        .patch("r", &json!({"spec": {"ttlSecondsAfterFinished": 0}}))
        .await;
    let end = Instant::now() + PATIENCE;
    while !ground.named.list().await.is_empty() {
        assert!(Instant::now() < end, "the request stays:\n{}", leader.log());
        tokio::time::sleep(LOOK).await;
    }

    // A namespace that was not named: its requests are heard of and told what is missing.
    let (new, images) = ground.request("g");
    ground.other.create("r", &images).await;
    let waiting = ground
        .other
        .until("r", PATIENCE, |s| waits(s, "SecretNotFound"))
        .await;
    let (_, _, message) = condition(&waiting, "Progressing");
    let secret = format!(
        "the controller may not read Secret {}/push",
        ground.other.namespace
    );
    assert!(message.contains(&secret), "{message}");
    assert_eq!(ground.at("g"), None);
    // With the right to, it goes on by itself.
    let mut values = ground.values();
    values["namespaces"] = json!([ground.named.namespace, ground.other.namespace]);
    ground.helm("upgrade", &values).await;
    let done = ground.other.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("g"), Some(new));

    // The controller's own credentials, which are mounted and not read through the API: to whom the policy gives them.
    let (new, mut images) = ground.request("granted");
    images.as_object_mut().unwrap().remove("pushSecret");
    ground.other.create("granted", &images).await;
    ground.named.create("not-granted", &images).await;
    let done = ground.other.finished("granted", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("granted"), Some(new));
    let refused = ground.named.finished("not-granted", PATIENCE).await;
    assert_eq!(condition(&refused, "Failed").1, "NotAllowed");

    // The brake, as the notes of the chart tell it.
    let namespace = ground.release.namespace.as_str();
    let pause = [
        "create",
        "configmap",
        NAME,
        "--from-literal=paused=all",
        "-n",
        namespace,
    ];
    kubectl(plane, &pause, "").await;
    leader.until_said("paused").await;
    let (new, images) = ground.request("p");
    ground.named.create("p", &images).await;
    let waiting = ground
        .named
        .until("p", PATIENCE, |s| waits(s, "Paused"))
        .await;
    assert_eq!(phase(&waiting), "Pending");
    assert_eq!(ground.at("p"), None);
    kubectl(plane, &["delete", "configmap", NAME, "-n", namespace], "").await;
    let done = ground.named.finished("p", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("p"), Some(new));

    // Another replica takes over within what a rolling update gives the first.
    let second = ground.pod("pod-1").await;
    second.until_said("waiting for the lease").await;
    assert_eq!(second.probe("/readyz").await, Some(200));
    let began = Instant::now();
    leader.process.signal(Signal::Terminate);
    while leader.process.exit_code().is_none() {
        assert!(began.elapsed() < leader.grace, "{}", leader.log());
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(leader.process.exit_code(), Some(0), "{}", leader.log());
    assert!(leader.grace >= END + Duration::from_secs(3));
    let (new, images) = ground.request("h");
    ground.named.create("after", &images).await;
    let done = ground.named.finished("after", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", second.log());
    assert_eq!(ground.at("h"), Some(new));
    assert!(holder().await.unwrap().starts_with("pod-1_"));

    // Nothing else was asked for and refused.
    for log in [leader.log(), second.log()] {
        let refused: Vec<&str> = log
            .lines()
            .filter(|line| line.to_lowercase().contains("forbidden"))
            .collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }
    let trail = ground.registry.audit_trail();
    assert!(trail.is_empty(), "{trail:?}");
    drop(second);
    ground
        .helm
        .ok(&["uninstall", NAME, "-n", namespace], &Value::Null)
        .await;
    clear(plane).await;
}

// === what it may do, and what not ===

/// A right: verb, group, resource, and the name it is narrowed to.
type Right = (String, String, String, String);

/// Every right that whoever asks has in a namespace, as the API server lists them.
async fn rights(client: &Client, namespace: &str) -> BTreeSet<Right> {
    let api: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.into()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    assert!(!status.incomplete);
    let mut rights = BTreeSet::new();
    for rule in status.resource_rules {
        let names = rule.resource_names.unwrap_or_default();
        let names = if names.is_empty() {
            vec![String::new()]
        } else {
            names
        };
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for name in &names {
                        rights.insert((
                            verb.clone(),
                            group.clone(),
                            resource.clone(),
                            name.clone(),
                        ));
                    }
                }
            }
        }
    }
    rights
}

/// Something that is asked of the API server.
#[derive(Debug, Clone, Copy)]
struct Ask {
    verb: &'static str,
    /// The path of the API, and the resource with its subresource: `api/v1`, `pods/exec`.
    api: &'static str,
    resource: &'static str,
    name: &'static str,
}

/// Asks it and returns the code of the answer.
async fn ask(client: &Client, ask: &Ask, namespace: &str, user: Option<&str>) -> u16 {
    let mut path = format!("/{}", ask.api);
    if !namespace.is_empty() {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    let (resource, sub) = ask.resource.split_once('/').unwrap_or((ask.resource, ""));
    path.push_str(&format!("/{resource}"));
    // What is created has no name, unless it is created under something that has.
    let nameless = match ask.verb {
        "list" | "watch" => true,
        "create" => sub.is_empty(),
        _ => ask.name.is_empty(),
    };
    if !nameless {
        path.push_str(&format!("/{}", ask.name));
    }
    if !sub.is_empty() {
        path.push_str(&format!("/{sub}"));
    }
    let selected = format!("fieldSelector=metadata.name%3D{}", ask.name);
    let (method, query) = match ask.verb {
        "get" => ("GET", String::new()),
        "list" if ask.name.is_empty() => ("GET", String::new()),
        "list" => ("GET", selected),
        "watch" if ask.name.is_empty() => ("GET", "watch=true&timeoutSeconds=1".into()),
        "watch" => ("GET", format!("watch=true&timeoutSeconds=1&{selected}")),
        "create" => ("POST", String::new()),
        "update" => ("PUT", String::new()),
        "patch" => ("PATCH", String::new()),
        "delete" | "deletecollection" => ("DELETE", String::new()),
        other => panic!("{other}"),
    };
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("{path}?{query}"));
    if let Some(user) = user {
        request = request.header("Impersonate-User", user);
    }
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if method == "GET" { "" } else { "{}" };
    let request = request
        .header("Content-Type", kind)
        .body(body.as_bytes().to_vec())
        .unwrap();
    match client.request_text(request).await {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{ask:?}: {error}"),
    }
}

const CORE: &str = "api/v1";
const OURS: &str = "apis/ci.openshift.io/v1alpha1";
const LEASES: &str = "apis/coordination.k8s.io/v1";
const EVENTS: &str = "apis/events.k8s.io/v1";
const RBAC: &str = "apis/rbac.authorization.k8s.io/v1";
const CRDS: &str = "apis/apiextensions.k8s.io/v1";

const REFUSED: bool = false;
const ALLOWED: bool = true;

/// What is asked with the chart's own token: verb, API, resource, namespace, name, and whether it may.
const TABLE: &[(&str, &str, &str, &str, &str, bool)] = &[
    // Secrets: one by one, where the values say so.
    ("get", CORE, "secrets", "named", "push", ALLOWED),
    ("get", CORE, "secrets", "other", "push", REFUSED),
    (
        "get",
        CORE,
        "secrets",
        "release",
        "own-credentials",
        REFUSED,
    ),
    ("get", CORE, "secrets", "kube-system", "push", REFUSED),
    ("list", CORE, "secrets", "", "", REFUSED),
    ("list", CORE, "secrets", "named", "", REFUSED),
    ("list", CORE, "secrets", "named", "push", REFUSED),
    ("list", CORE, "secrets", "release", "", REFUSED),
    ("watch", CORE, "secrets", "", "", REFUSED),
    ("watch", CORE, "secrets", "named", "", REFUSED),
    ("create", CORE, "secrets", "named", "", REFUSED),
    ("update", CORE, "secrets", "named", "push", REFUSED),
    ("patch", CORE, "secrets", "named", "push", REFUSED),
    ("delete", CORE, "secrets", "named", "push", REFUSED),
    ("deletecollection", CORE, "secrets", "named", "", REFUSED),
    // Requests: everything but what they ask for.
    ("list", OURS, "promotionrequests", "", "", ALLOWED),
    ("watch", OURS, "promotionrequests", "", "", ALLOWED),
    ("get", OURS, "promotionrequests", "other", "r", ALLOWED),
    (
        "update",
        OURS,
        "promotionrequests/status",
        "other",
        "r",
        ALLOWED,
    ),
    (
        "delete",
        OURS,
        "promotionrequests",
        "other",
        "none",
        ALLOWED,
    ),
    ("create", OURS, "promotionrequests", "named", "", REFUSED),
    ("update", OURS, "promotionrequests", "other", "r", REFUSED),
    ("patch", OURS, "promotionrequests", "other", "r", REFUSED),
    (
        "patch",
        OURS,
        "promotionrequests/status",
        "other",
        "r",
        REFUSED,
    ),
    (
        "deletecollection",
        OURS,
        "promotionrequests",
        "other",
        "",
        REFUSED,
    ),
    // Leases: its own, which it does not delete.
    ("create", LEASES, "leases", "release", "", ALLOWED),
    ("get", LEASES, "leases", "release", NAME, ALLOWED),
    ("update", LEASES, "leases", "release", NAME, ALLOWED),
    ("get", LEASES, "leases", "release", "another", REFUSED),
    ("update", LEASES, "leases", "release", "another", REFUSED),
    ("patch", LEASES, "leases", "release", NAME, REFUSED),
    ("delete", LEASES, "leases", "release", NAME, REFUSED),
    ("list", LEASES, "leases", "release", "", REFUSED),
    ("get", LEASES, "leases", "named", NAME, REFUSED),
    ("create", LEASES, "leases", "named", "", REFUSED),
    (
        "update",
        LEASES,
        "leases",
        "kube-system",
        "kube-controller-manager",
        REFUSED,
    ),
    // The ConfigMap that pauses it: read, and no other.
    ("get", CORE, "configmaps", "release", NAME, ALLOWED),
    ("list", CORE, "configmaps", "release", NAME, ALLOWED),
    ("watch", CORE, "configmaps", "release", NAME, ALLOWED),
    ("list", CORE, "configmaps", "release", "", REFUSED),
    ("watch", CORE, "configmaps", "release", "", REFUSED),
    ("get", CORE, "configmaps", "release", "example-ca", REFUSED),
    ("get", CORE, "configmaps", "named", NAME, REFUSED),
    ("create", CORE, "configmaps", "release", "", REFUSED),
    ("update", CORE, "configmaps", "release", NAME, REFUSED),
    ("delete", CORE, "configmaps", "release", NAME, REFUSED),
    // Events are told and never read.
    ("create", EVENTS, "events", "other", "", ALLOWED),
    ("patch", EVENTS, "events", "other", "r", ALLOWED),
    ("list", EVENTS, "events", "", "", REFUSED),
    ("delete", EVENTS, "events", "named", "e", REFUSED),
    ("create", CORE, "events", "named", "", REFUSED),
    // Nothing that gives more rights.
    ("create", RBAC, "rolebindings", "named", "", REFUSED),
    ("create", RBAC, "clusterrolebindings", "", "", REFUSED),
    ("patch", RBAC, "clusterroles", "", NAME, REFUSED),
    ("patch", RBAC, "roles", "release", NAME, REFUSED),
    (
        "create",
        CORE,
        "serviceaccounts/token",
        "release",
        NAME,
        REFUSED,
    ),
    ("get", CORE, "serviceaccounts", "release", NAME, REFUSED),
    // Nothing of the cluster.
    (
        "get",
        CRDS,
        "customresourcedefinitions",
        "",
        "promotionrequests.ci.openshift.io",
        REFUSED,
    ),
    (
        "patch",
        CRDS,
        "customresourcedefinitions",
        "",
        "promotionrequests.ci.openshift.io",
        REFUSED,
    ),
    ("list", CORE, "pods", "", "", REFUSED),
    ("create", CORE, "pods", "named", "", REFUSED),
    ("list", CORE, "namespaces", "", "", REFUSED),
    ("delete", CORE, "namespaces", "", "named", REFUSED),
    ("list", CORE, "nodes", "", "", REFUSED),
];

#[tokio::test(flavor = "multi_thread")]
async fn of_the_api_the_controller_may_use_what_it_needs_and_nothing_else() {
    let (_turn, plane) = cluster().await;
    let ground = Ground::new(plane).await;
    ground.install().await;
    let (_, images) = ground.request("f");
    ground.other.create("r", &images).await;
    let client = ground.client().await;
    let real = |namespace: &str| match namespace {
        "named" => ground.named.namespace.clone(),
        "other" => ground.other.namespace.clone(),
        "release" => ground.release.namespace.clone(),
        namespace => namespace.to_owned(),
    };
    let mut wrong = Vec::new();
    for &(verb, api, resource, namespace, name, allowed) in TABLE {
        let asked = Ask {
            verb,
            api,
            resource,
            name,
        };
        let code = ask(&client, &asked, &real(namespace), None).await;
        if (code != 403) != allowed {
            wrong.push(format!("{asked:?} in {namespace}: {code}"));
        }
        // Everybody else's rights are not its own either.
        if !allowed {
            let code = ask(&client, &asked, &real(namespace), Some("admin")).await;
            assert_eq!(code, 403, "as admin, {asked:?} in {namespace}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = TABLE.iter().filter(|row| !row.5).count();
    println!("{} allowed, {refused} refused", TABLE.len() - refused);
    assert!(refused >= 12);

    // Every right there is, in each namespace: what is not in the list is not allowed.
    let right = |verb: &str, group: &str, resource: &str, name: &str| {
        [verb, group, resource, name].map(str::to_owned).into()
    };
    let mut everywhere: BTreeSet<Right> = BTreeSet::new();
    for verb in ["get", "list", "watch", "delete"] {
        everywhere.insert(right(verb, "ci.openshift.io", "promotionrequests", ""));
    }
    everywhere.insert(right(
        "update",
        "ci.openshift.io",
        "promotionrequests/status",
        "",
    ));
    for verb in ["create", "patch"] {
        everywhere.insert(right(verb, "events.k8s.io", "events", ""));
    }
    // Those of everybody who is known to the API server.
    for resource in ["selfsubjectaccessreviews", "selfsubjectrulesreviews"] {
        everywhere.insert(right("create", "authorization.k8s.io", resource, ""));
    }
    everywhere.insert(right(
        "create",
        "authentication.k8s.io",
        "selfsubjectreviews",
        "",
    ));
    assert_eq!(rights(&client, &ground.other.namespace).await, everywhere);
    assert_eq!(rights(&client, "kube-system").await, everywhere);
    let secrets = right("get", "", "secrets", "");
    let mut named = everywhere.clone();
    named.insert(secrets.clone());
    assert_eq!(rights(&client, &ground.named.namespace).await, named);
    let mut release = everywhere.clone();
    release.insert(right("create", "coordination.k8s.io", "leases", ""));
    for verb in ["get", "update"] {
        release.insert(right(verb, "coordination.k8s.io", "leases", NAME));
    }
    for verb in ["get", "list", "watch"] {
        release.insert(right(verb, "", "configmaps", NAME));
    }
    assert_eq!(rights(&client, &ground.release.namespace).await, release);

    // Everywhere, if the values say so: and still one by one.
    let mut values = ground.values();
    values["allNamespaces"] = json!(true);
    ground.helm("upgrade", &values).await;
    everywhere.insert(secrets);
    let end = Instant::now() + PATIENCE;
    while rights(&client, "kube-system").await != everywhere {
        assert!(
            Instant::now() < end,
            "{:#?}",
            rights(&client, "kube-system").await
        );
        tokio::time::sleep(LOOK).await;
    }
    people(&ground).await;
    let namespace = &ground.release.namespace;
    ground
        .helm
        .ok(&["uninstall", NAME, "-n", namespace], &Value::Null)
        .await;
    clear(plane).await;
}

/// Who has view sees requests, who has edit or admin makes them, and status is nobody's but the controller's.
async fn people(ground: &Ground) {
    let (plane, namespace) = (ground.plane, &ground.named.namespace);
    plane
        .start_controllers(&["clusterrole-aggregation"])
        .await
        .unwrap();
    for (user, role) in [("vera", "view"), ("eddy", "edit"), ("ada", "admin")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        let name = format!("people-{}", user.trim_start_matches("--user="));
        let bind = [
            "create",
            "rolebinding",
            &name,
            &role,
            &user,
            "-n",
            namespace,
        ];
        kubectl(plane, &bind, "").await;
    }
    let (_, images) = ground.request("p");
    ground.named.create("p", &images).await;
    let admin = plane.client().unwrap();
    let row = |verb, resource, name| Ask {
        verb,
        api: OURS,
        resource,
        name,
    };
    // The roles are put together a moment after they are there.
    let end = Instant::now() + PATIENCE;
    let edit = row("patch", "promotionrequests", "p");
    while ask(&admin, &edit, namespace, Some("ada")).await == 403 {
        assert!(Instant::now() < end, "admin does not take the role in");
        tokio::time::sleep(LOOK).await;
    }
    let all = "promotionrequests";
    let status = "promotionrequests/status";
    for (asked, users) in [
        (row("get", all, "p"), "vera eddy ada"),
        (row("list", all, ""), "vera eddy ada"),
        (row("watch", all, ""), "vera eddy ada"),
        (row("get", status, "p"), "vera eddy ada"),
        (row("create", all, ""), "eddy ada"),
        (row("update", all, "p"), "eddy ada"),
        (row("patch", all, "p"), "eddy ada"),
        (row("delete", all, "none"), "eddy ada"),
        (row("deletecollection", all, ""), "eddy ada"),
        (row("update", status, "p"), ""),
        (row("patch", status, "p"), ""),
    ] {
        for user in ["vera", "eddy", "ada", "nobody"] {
            let code = ask(&admin, &asked, namespace, Some(user)).await;
            let may = users.split(' ').any(|one| one == user);
            assert_eq!(code != 403, may, "{user}: {asked:?}: {code}");
            let elsewhere = ask(&admin, &asked, &ground.other.namespace, Some(user)).await;
            assert_eq!(elsewhere, 403, "{user} elsewhere: {asked:?}");
        }
    }
}
