//! Helm, as a person runs it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use super::{Binary, ControlPlane, RunDir, binary};

/// The chart's folder.
pub fn chart() -> PathBuf {
    root().join("charts/promotion-controller")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Helm with a home of its own, at a cluster or at none.
pub struct Helm {
    program: PathBuf,
    home: RunDir,
    kubeconfig: PathBuf,
}

impl Helm {
    /// For what needs no cluster.
    pub async fn alone() -> Self {
        Self::at(Path::new("/dev/null")).await
    }

    pub async fn at(kubeconfig: &Path) -> Self {
        Self {
            program: binary(Binary::Helm).await.unwrap(),
            home: RunDir::create("helm").unwrap(),
            kubeconfig: kubeconfig.into(),
        }
    }

    pub async fn run(&self, arguments: &[&str], values: &Value) -> Output {
        let mut all: Vec<&str> = arguments.to_vec();
        let file = format!("{}.json", uuid::Uuid::new_v4().simple());
        let file = self.home.write(&file, &values.to_string()).unwrap();
        if !values.is_null() {
            all.extend(["--values", file.to_str().unwrap()]);
        }
        tokio::process::Command::new(&self.program)
            .args(all)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", self.home.join("cache"))
            .env("HELM_CONFIG_HOME", self.home.join("config"))
            .env("HELM_DATA_HOME", self.home.join("data"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
    }

    /// What helm prints.
    ///
    /// # Panics
    /// With its words, if it fails.
    pub async fn ok(&self, arguments: &[&str], values: &Value) -> String {
        let output = self.run(arguments, values).await;
        assert!(
            output.status.success(),
            "helm {arguments:?} with {values}: {}",
            words(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What helm says when it refuses.
    ///
    /// # Panics
    /// If it does not.
    pub async fn refused(&self, arguments: &[&str], values: &Value) -> String {
        let output = self.run(arguments, values).await;
        assert!(
            !output.status.success(),
            "helm {arguments:?} takes {values}: {}",
            words(&output)
        );
        words(&output)
    }

    /// The chart's manifests in a namespace.
    pub async fn template(&self, namespace: &str, values: &Value) -> String {
        let chart = chart();
        let arguments = [
            "template",
            "promotion-controller",
            chart.to_str().unwrap(),
            "--namespace",
            namespace,
        ];
        self.ok(&arguments, values).await
    }
}

fn words(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(err).into_owned() + &String::from_utf8_lossy(out)
}

/// The objects of manifests.
pub fn objects(manifests: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifests).unwrap();
    let objects = documents.into_iter().filter(|object| !object.is_null());
    objects.collect()
}

/// The objects of a kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|o| o["kind"] == kind).collect()
}

/// The one object of a kind.
pub fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}: {found:#?}");
    found[0]
}

/// Strings of a list.
pub fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().unwrap().iter();
    items.map(|item| item.as_str().unwrap().into()).collect()
}

/// Runs kubectl as the administrator.
///
/// # Panics
/// With its words, if it fails.
pub async fn kubectl(plane: &ControlPlane, arguments: &[&str], input: &str) -> String {
    let output = plane.kubectl_with_input(arguments, input).await.unwrap();
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        words(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}
