//! Where `promote` is tried: an embedded registry in the test's process, a folder, and the real binary run in it.

pub use super::PATIENCE;
use super::floats::audited;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use quaylike::{Digest, ImageSpec, Matcher, Options, Registry, RequestKind, Settings, Shape};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::RunDir;
pub use super::floats::{image, put};

/// A registry and a folder of a test's own.
pub struct Ground {
    pub registry: Registry,
    pub folder: RunDir,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A run under way; killed when dropped.
pub struct Running {
    pub child: Child,
    log: PathBuf,
    out: PathBuf,
}

impl Ground {
    /// A registry that looks for dangling tags after every change.
    pub async fn new() -> Self {
        Self::with(audited()).await
    }

    pub async fn with(options: Options) -> Self {
        let ground = Self {
            registry: Registry::start(options).await.unwrap(),
            folder: RunDir::create("promote").unwrap(),
        };
        std::fs::create_dir(ground.folder.join("home")).unwrap();
        ground
    }

    /// HOST/PATH on the registry.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.registry.host())
    }

    pub fn seed(&self, repository: &str, tag: &str, seed: &str) -> Digest {
        self.registry
            .seed_image(repository, tag, &image(seed))
            .unwrap()
    }

    /// The tags of a repository, the stamps of prune tags replaced by STAMP.
    pub fn tags(&self, repository: &str) -> Vec<(String, String)> {
        let tags = self.registry.tags(repository).into_iter();
        let mut tags: Vec<_> = tags
            .map(|(tag, digest)| {
                let tag = match tag.split_once("_prune_") {
                    Some((_, float)) => format!("STAMP_prune_{float}"),
                    None => tag,
                };
                (tag, digest.to_string())
            })
            .collect();
        tags.sort();
        tags
    }

    /// How often the registry was written to: tags, uploads, mounts.
    pub fn writes(&self) -> usize {
        self.registry.count(&Matcher {
            write: Some(true),
            ..Matcher::default()
        })
    }

    /// How often manifests were read.
    pub fn looks(&self) -> usize {
        self.registry.count(&Matcher {
            method: Some("GET".into()),
            kind: Some(RequestKind::Manifest),
            ..Matcher::default()
        })
    }

    /// Writes `requests.yaml` with these documents.
    pub fn documents(&self, documents: &[Value]) {
        let texts = documents
            .iter()
            .map(|d| serde_saphyr::to_string(d).unwrap());
        let text: Vec<String> = texts.collect();
        self.folder
            .write("requests.yaml", &text.join("---\n"))
            .unwrap();
    }

    /// The same, without the state of those before.
    pub fn documents_anew(&self, documents: &[Value]) {
        let _ = std::fs::remove_file(self.folder.join("requests.state.yaml"));
        self.documents(documents);
    }

    /// A request of images from `src/x` to `ci`, each (source, float) as `:TAG` or `@DIGEST` and a tag.
    pub fn request(&self, name: &str, images: &[(&str, &str)], more: &Value) -> Value {
        let images: Vec<Value> = images
            .iter()
            .map(|(source, float)| {
                json!({"source": self.at(&format!("src/x{source}")), "float": self.at(&format!("ci:{float}"))})
            })
            .collect();
        let mut spec = json!({"images": images});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        document(name, &spec)
    }

    /// `promote` on `requests.yaml`, in a clean environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.subcommand("promote", arguments)
    }

    /// A subcommand on `requests.yaml`, in a clean environment.
    pub fn subcommand(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
        let settles = |a: &&str| a.starts_with("--settle-seconds");
        let settle = (!arguments.iter().any(settles)).then_some("--settle-seconds=3");
        let lates = |a: &&str| a.starts_with("--late-seconds");
        let late = (!arguments.iter().any(lates)).then_some("--late-seconds=15");
        command
            .args([name, "-f", "requests.yaml"])
            .args(settle)
            .args(late)
            .arg(format!("--plain-http={}", self.registry.host()))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.join("home"))
            .env("XDG_RUNTIME_DIR", self.folder.join("home"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub async fn promote(&self, arguments: &[&str]) -> Run {
        ended(self.command(arguments)).await
    }

    /// Starts it and comes back at once.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_subcommand("promote", arguments)
    }

    /// The same with another subcommand.
    pub fn start_subcommand(&self, name: &str, arguments: &[&str]) -> Running {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let log = self.folder.join(&format!("{unique}.log"));
        let out = self.folder.join(&format!("{unique}.out"));
        let child = self
            .subcommand(name, arguments)
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Running { child, log, out }
    }

    /// What the state file says.
    pub fn state(&self) -> Value {
        let text = std::fs::read_to_string(self.folder.join("requests.state.yaml")).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    }

    /// Nothing has dangled at any time.
    pub fn assert_never_dangling(&self) {
        let trail = self.registry.audit_trail();
        assert!(trail.is_empty(), "{trail:?}");
        assert!(
            self.registry.dangling().is_empty(),
            "{:?}",
            self.registry.dangling()
        );
    }
}

impl Running {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log contains `text`.
    pub async fn says(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "never said {text}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as a crash would.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub async fn terminate(&self) {
        let id = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-TERM", &id]).status().await;
        assert!(kill.unwrap().success());
    }

    pub async fn ended(mut self) -> Run {
        let waited = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let Ok(status) = waited else {
            panic!("did not end:\n{}", self.log());
        };
        Run {
            code: status.unwrap().code(),
            stdout: std::fs::read_to_string(&self.out).unwrap(),
            stderr: self.log(),
        }
    }
}

impl Run {
    /// Asserts the exit code, showing what was said.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// The objects of `-o json`.
    pub fn items(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(list["kind"], "List");
        assert_eq!(list["apiVersion"], "v1");
        list["items"].as_array().unwrap().clone()
    }
}

pub async fn ended(mut command: Command) -> Run {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("the run ends").unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn document(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "ci.openshift.io/v1alpha1",
        "kind": "PromotionRequest",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// An object's phase and the reason of its end.
pub fn verdict(object: &Value) -> (&str, &str) {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|c| c["type"] == "Progressing");
    (
        object["status"]["phase"].as_str().unwrap(),
        condition.unwrap()["reason"].as_str().unwrap(),
    )
}
