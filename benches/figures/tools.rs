//! The command lines that a staged script can be made of: `oc` as it was, `crane` and `regctl` as its likely heirs.
//!
//! `oc` is taken from PATH, and cannot be had otherwise here; the others are built where PATH has none.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::measure::Task;
use crate::promotion::{FLOATS, Promotion, SOURCES};
use crate::testbed::{Binary, binary};

const SCRIPT: &str = include_str!("staged.sh");

/// A tool that was found or built.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: &'static str,
    pub path: PathBuf,
    /// As it says itself.
    pub version: String,
}

/// The tools there are, and the names of those that there are not.
pub async fn find() -> (Vec<Tool>, Vec<&'static str>) {
    let mut tools = Vec::new();
    let mut missing = Vec::new();
    match on_path("oc") {
        Some(path) => tools.push(Tool::new("oc", path, &["version", "--client"])),
        None => missing.push("oc"),
    }
    tools.push(crane().await);
    tools.push(regctl().await);
    // Where it is not there: it has no release that can be built like the others.
    match on_path("skopeo") {
        Some(path) => tools.push(Tool::new("skopeo", path, &["--version"])),
        None => missing.push("skopeo"),
    }
    (tools, missing)
}

pub async fn regctl() -> Tool {
    let path = binary(Binary::Regctl).await.unwrap();
    Tool::new("regctl", path, &["version", "--format", "{{.VCSTag}}"])
}

pub async fn crane() -> Tool {
    let path = binary(Binary::Crane).await.unwrap();
    Tool::new("crane", path, &["version"])
}

impl Tool {
    fn new(name: &'static str, path: PathBuf, ask: &[&str]) -> Self {
        let said = std::process::Command::new(&path).args(ask).output();
        let said = said.map(|output| output.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let version = said.lines().next().unwrap_or_default().trim();
        let version = version.rsplit(' ').next().unwrap_or_default().to_owned();
        Self {
            name,
            path,
            version,
        }
    }

    /// `crane v0.22.1`
    pub fn label(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// The tool itself, as a command in `folder`, where its configuration is made.
    pub async fn task(&self, folder: &Path, hosts: &[&str], arguments: &[&str]) -> Task {
        self.configure(folder, hosts).await;
        at_home(Task::new(&self.path, arguments), folder)
    }

    /// The staged script with this tool.
    pub async fn script(&self, folder: &Path, host: &str, promotions: &[Promotion]) -> Task {
        self.configure(folder, &[host]).await;
        let mut list = String::new();
        for Promotion { tag, new, .. } in promotions {
            writeln!(list, "{host}/{SOURCES}@{new} {host}/{FLOATS}:{tag}").unwrap();
        }
        std::fs::write(folder.join("staged.sh"), SCRIPT).unwrap();
        std::fs::write(folder.join("images"), list).unwrap();
        let path = self.path.to_str().unwrap();
        let bash = on_path("bash").unwrap();
        at_home(
            Task::new(&bash, &["staged.sh", self.name, path, "images"]),
            folder,
        )
    }

    /// `crane` and `oc` speak plain HTTP to 127.0.0.1 by themselves, or are told on each call; `regctl` is told once.
    async fn configure(&self, folder: &Path, hosts: &[&str]) {
        if self.name != "regctl" {
            return;
        }
        for host in hosts {
            let status = tokio::process::Command::new(&self.path)
                .args(["registry", "set", "--skip-check", "--tls=disabled", host])
                .env("HOME", folder)
                .env("DOCKER_CONFIG", folder)
                .status()
                .await
                .unwrap();
            assert!(status.success(), "regctl registry set");
        }
    }
}

/// With the folder's `config.json` as its credentials.
fn at_home(task: Task, folder: &Path) -> Task {
    let config = folder.join("config.json");
    task.env("DOCKER_CONFIG", folder.to_str().unwrap())
        .env("REGISTRY_AUTH_FILE", config.to_str().unwrap())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
