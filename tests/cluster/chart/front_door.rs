//! The install commands of the README and of docs/operations.md, exactly as they stand there, on an empty cluster; and one way after another.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use promotion_controller::controller::installation::{DEFINITION, LEASE};

use super::ground::PATIENCE;
use super::lifecycle::copy_folder;
use crate::testbed::helm::{kubectl, root};
use crate::testbed::stage::LOOK;
use crate::testbed::{Binary, ControlPlane, RunDir, Supervised, binary, shared};

const PROGRAM: &str = env!("CARGO_BIN_EXE_promotion-controller");
const IMAGE: &str = "registry.example.com/ci/promotion-controller:0.1.0";

/// The console blocks of a page's section.
fn blocks(page: &str, heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```console\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap().to_owned());
    blocks.collect()
}

/// What installs: Helm in the README; kustomize and a checkout on the page of operations.
fn sections() -> [String; 3] {
    let mut all = blocks("README.md", "Install");
    all.extend(blocks("docs/operations.md", "Install without Helm"));
    let blocks: [String; 3] = all.try_into().unwrap();
    assert!(blocks[0].contains("helm upgrade --install "), "{blocks:#?}");
    assert!(blocks[1].contains("kubectl apply -k "), "{blocks:#?}");
    assert!(blocks[2].contains("cargo run "), "{blocks:#?}");
    blocks
}

/// A person with a checkout, the usual programs and an empty cluster.
struct Person {
    plane: ControlPlane,
    folder: RunDir,
}

impl Person {
    async fn new() -> Self {
        shared().await;
        let folder = RunDir::create("checkout").unwrap();
        for part in ["charts", "crds", "deploy"] {
            copy_folder(&root().join(part), &folder.join(part));
        }
        let bin = folder.join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, wanted) in [("helm", Binary::Helm), ("kubectl", Binary::Kubectl)] {
            std::os::unix::fs::symlink(binary(wanted).await.unwrap(), bin.join(name)).unwrap();
        }
        // What is built from the checkout is there already. Images are neither built nor pushed here: what was to be is noted.
        script(
            &bin.join("cargo"),
            &format!("shift 3; exec {PROGRAM} \"$@\""),
        );
        script(&bin.join("docker"), "echo \"$@\" >> docker.log");
        Self {
            plane: ControlPlane::start().await.unwrap(),
            folder,
        }
    }

    fn command(&self, script: &str) -> (PathBuf, Vec<String>, Vec<(String, String)>) {
        let path = std::env::var("PATH").unwrap();
        let home = |name: &str| self.folder.join(name).display().to_string();
        let environment = [
            ("KUBECONFIG", self.plane.kubeconfig().display().to_string()),
            ("PATH", format!("{}:{path}", home("bin"))),
            ("HELM_CACHE_HOME", home("cache")),
            ("HELM_CONFIG_HOME", home("config")),
            ("HELM_DATA_HOME", home("data")),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        let arguments = ["-euc", script].map(str::to_owned);
        ("/bin/bash".into(), arguments.into(), environment.into())
    }

    /// Types commands, and stops at the first that fails.
    async fn types(&self, script: &str) -> Output {
        let (program, arguments, environment) = self.command(script);
        tokio::process::Command::new(program)
            .args(arguments)
            .envs(environment)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    }

    async fn succeeds(&self, script: &str) {
        let output = self.types(script).await;
        assert!(output.status.success(), "{script}: {}", words(&output));
    }

    async fn fails(&self, script: &str) -> String {
        let output = self.types(script).await;
        assert!(!output.status.success(), "{script}: {}", words(&output));
        words(&output)
    }

    /// Types a command that goes on for ever.
    fn starts(&self, name: &str, line: &str) -> Running {
        let (program, arguments, environment) = self.command(&format!("exec {line}"));
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let path = self.folder.path();
        Running {
            process: Supervised::spawn(name, &program, &arguments, &environment, path).unwrap(),
            log: self.folder.join(&format!("{name}.log")),
        }
    }

    /// What a pod of the Deployment would run, without its ports.
    async fn pod(&self, name: &str) -> Running {
        let api: Api<Deployment> =
            Api::namespaced(self.plane.client().unwrap(), "promotion-controller");
        let deployment = api.get("promotion-controller").await.unwrap();
        let pod = deployment.spec.template.spec.unwrap();
        assert_eq!(pod.containers[0].image.as_deref(), Some(IMAGE));
        let arguments = pod.containers[0].args.clone().unwrap();
        let arguments = arguments.iter().filter(|a| !a.starts_with("--listen"));
        let arguments: Vec<&str> = arguments.map(String::as_str).collect();
        self.starts(name, &format!("{PROGRAM} {}", arguments.join(" ")))
    }

    async fn leads(&self, running: &mut Running, namespace: &str) {
        running.says("leading").await;
        let api: Api<Lease> = Api::namespaced(self.plane.client().unwrap(), namespace);
        let lease = api.get("promotion-controller").await.unwrap();
        assert!(lease.spec.unwrap().holder_identity.is_some());
    }

    async fn lease(&self) -> String {
        let path = format!(
            "jsonpath={{.metadata.annotations.{}}}",
            LEASE.replace('.', r"\.")
        );
        kubectl(&self.plane, &["get", "crd", DEFINITION, "-o", &path], "").await
    }
}

fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

struct Running {
    process: Supervised,
    log: PathBuf,
}

impl Running {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn says(&mut self, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(what) {
            assert!(Instant::now() < end, "not '{what}':\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends by itself, refused, and never led.
    async fn is_refused(&mut self) {
        self.says("together they would write the same floats").await;
        let end = Instant::now() + PATIENCE;
        while self.process.exit_code().is_none() {
            assert!(Instant::now() < end, "{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
        assert_eq!(self.process.exit_code(), Some(2), "{}", self.log());
        assert!(!self.log().contains("leading"), "{}", self.log());
    }
}

/// All lines but the last, and the last.
fn split(block: &str) -> (&str, &str) {
    block.trim_end().rsplit_once('\n').unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helm_commands_of_the_readme_install_on_an_empty_cluster_and_once_more() {
    let [helm, _, checkout] = sections();
    let person = Person::new().await;
    // Without the namespace nothing at all is written.
    let unnamed: Vec<&str> = helm
        .lines()
        .filter(|l| !l.starts_with("kubectl create"))
        .collect();
    let refused = person.fails(&unnamed.join("\n")).await;
    assert!(refused.contains("kubectl create namespace ci"), "{refused}");
    let crds = kubectl(&person.plane, &["get", "crd", "-o", "name"], "").await;
    assert_eq!(crds, "");

    person.succeeds(&helm).await;
    let docker = std::fs::read_to_string(person.folder.join("docker.log")).unwrap();
    assert!(docker.contains(&format!("push {IMAGE}")), "{docker}");
    assert_eq!(
        person.lease().await,
        "promotion-controller/promotion-controller"
    );
    let mut pod = person.pod("pod").await;
    person.leads(&mut pod, "promotion-controller").await;
    let again = helm.replace("kubectl create namespace ci\n", "");
    person.succeeds(&again).await;

    // A checkout beside it.
    let (prepare, run) = split(&checkout);
    let refused = person.fails(prepare).await;
    assert!(refused.contains("already has a value"), "{refused}");
    person.starts("checkout", run).is_refused().await;
    assert_eq!(
        person.lease().await,
        "promotion-controller/promotion-controller"
    );
    assert_eq!(pod.process.exit_code(), None, "{}", pod.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kustomize_commands_of_the_page_install_on_an_empty_cluster_and_once_more() {
    let [_, kustomize, _] = sections();
    let person = Person::new().await;
    person.succeeds(&kustomize).await;
    assert_eq!(
        person.lease().await,
        "promotion-controller/promotion-controller"
    );
    let mut pod = person.pod("pod").await;
    person.leads(&mut pod, "promotion-controller").await;
    let again = kustomize.replace("kubectl create namespace ci\n", "");
    person.succeeds(&again).await;
    assert_eq!(pod.process.exit_code(), None, "{}", pod.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_checkout_commands_of_the_page_no_other_way_makes_a_second_leader() {
    let [helm, kustomize, checkout] = sections();
    let person = Person::new().await;
    let (prepare, run) = split(&checkout);
    person.succeeds(prepare).await;
    let mut running = person.starts("checkout", run);
    person.leads(&mut running, "default").await;
    // The same once more waits for the same Lease.
    person.succeeds(prepare).await;
    person
        .starts("again", run)
        .says("waiting for the lease")
        .await;

    let refused = person.fails(&helm).await;
    assert!(
        refused.contains("adopt-lease --lease-namespace promotion-controller"),
        "{refused}"
    );
    let all = [
        "get",
        "deployments,validatingadmissionpolicies",
        "-A",
        "-o",
        "name",
    ];
    assert_eq!(kubectl(&person.plane, &all, "").await, "");
    let kustomize = kustomize.replace("kubectl create namespace ci\n", "");
    let refused = person.fails(&kustomize).await;
    assert!(refused.contains("already has a value"), "{refused}");
    person.pod("pod").await.is_refused().await;
    assert_eq!(person.lease().await, "default/promotion-controller");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(running.process.exit_code(), None, "{}", running.log());
}
