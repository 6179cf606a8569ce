//! The binaries of the real components: where they are looked for, and how they are built.
//!
//! Enters: which binary. Leaves: a path to run. Guaranteed: the versions are those pinned in the Go modules
//! under `go/`; each is built once for all test binaries (a file lock) and moved into place whole; a missing
//! Go toolchain is an error that says what to install.
//!
//! A further binary is a further directory under `go/` (a `go.mod` with a `tool` line and its `go.sum`) and a
//! variant of [`Binary`].

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;
use super::run_dir::{lock, target};

/// A program of the testbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// The API server.
    KubeApiserver,
    /// The controllers of Kubernetes itself: deletion of namespaces, aggregation of roles.
    KubeControllerManager,
    /// The API server's database.
    Etcd,
    /// The command line of Kubernetes; one on PATH is preferred.
    Kubectl,
    /// CNCF distribution.
    Registry,
    /// Helm 3.
    Helm,
    /// Prometheus' checks of rules and their unit tests; one on PATH is preferred.
    Promtool,
    /// go-containerregistry's command line: a peer in the benchmarks.
    Crane,
    /// regclient's command line: a peer in the benchmarks.
    Regctl,
}

/// How a binary is built.
struct Recipe {
    name: &'static str,
    /// The directory under `go/`, and its `go.mod`.
    module: &'static str,
    go_mod: &'static str,
    /// The Go module whose version is the binary's.
    versioned: &'static str,
    package: &'static str,
    /// What is left out of the build, or put in.
    tags: &'static str,
    /// Variables for the linker's `-X`, and what of the version each is to hold.
    version_variables: &'static [(&'static str, Part)],
    /// About how long a build without a cache takes on two cores.
    minutes: u8,
}

/// Something of a version `1.35.4`.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// `v1.35.4`
    Whole,
    /// `1`
    Major,
    /// `35`
    Minor,
}

impl Part {
    fn of(self, version: &str) -> String {
        let mut numbers = version.split('.');
        match self {
            Self::Whole => format!("v{version}"),
            Self::Major => numbers.next().unwrap_or_default().to_owned(),
            Self::Minor => numbers.nth(1).unwrap_or_default().to_owned(),
        }
    }
}

const KUBERNETES: &str = include_str!("go/kubernetes/go.mod");
const KUBERNETES_VARIABLES: &[(&str, Part)] = &[
    ("k8s.io/component-base/version.gitVersion", Part::Whole),
    ("k8s.io/component-base/version.gitMajor", Part::Major),
    ("k8s.io/component-base/version.gitMinor", Part::Minor),
    ("k8s.io/client-go/pkg/version.gitVersion", Part::Whole),
];

impl Binary {
    fn recipe(self) -> Recipe {
        let kubernetes = |name, package, minutes| Recipe {
            name,
            module: "kubernetes",
            go_mod: KUBERNETES,
            versioned: "k8s.io/kubernetes",
            package,
            tags: "",
            version_variables: KUBERNETES_VARIABLES,
            minutes,
        };
        match self {
            Self::KubeApiserver => {
                kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 6)
            }
            Self::KubeControllerManager => kubernetes(
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                6,
            ),
            Self::Kubectl => kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl", 3),
            Self::Etcd => Recipe {
                name: "etcd",
                module: "etcd",
                go_mod: include_str!("go/etcd/go.mod"),
                versioned: "go.etcd.io/etcd/server/v3",
                package: "go.etcd.io/etcd/server/v3",
                tags: "",
                version_variables: &[],
                minutes: 1,
            },
            Self::Registry => Recipe {
                name: "registry",
                module: "registry",
                go_mod: include_str!("go/registry/go.mod"),
                versioned: "github.com/distribution/distribution/v3",
                package: "github.com/distribution/distribution/v3/cmd/registry",
                tags: "",
                version_variables: &[(
                    "github.com/distribution/distribution/v3/version.version",
                    Part::Whole,
                )],
                minutes: 4,
            },
            Self::Helm => Recipe {
                name: "helm",
                module: "helm",
                go_mod: include_str!("go/helm/go.mod"),
                versioned: "helm.sh/helm/v3",
                package: "helm.sh/helm/v3/cmd/helm",
                tags: "",
                version_variables: &[("helm.sh/helm/v3/internal/version.version", Part::Whole)],
                minutes: 3,
            },
            Self::Promtool => Recipe {
                name: "promtool",
                module: "promtool",
                go_mod: include_str!("go/promtool/go.mod"),
                versioned: "github.com/prometheus/prometheus",
                package: "github.com/prometheus/prometheus/cmd/promtool",
                // Service discovery is most of it, and not needed.
                tags: "remove_all_sd",
                version_variables: &[],
                minutes: 2,
            },
            Self::Crane => Recipe {
                name: "crane",
                module: "crane",
                go_mod: include_str!("go/crane/go.mod"),
                versioned: "github.com/google/go-containerregistry",
                package: "github.com/google/go-containerregistry/cmd/crane",
                tags: "",
                version_variables: &[(
                    "github.com/google/go-containerregistry/cmd/crane/cmd.Version",
                    Part::Whole,
                )],
                minutes: 1,
            },
            Self::Regctl => Recipe {
                name: "regctl",
                module: "regctl",
                go_mod: include_str!("go/regctl/go.mod"),
                versioned: "github.com/regclient/regclient",
                package: "github.com/regclient/regclient/cmd/regctl",
                tags: "",
                version_variables: &[(
                    "github.com/regclient/regclient/internal/version.vcsTag",
                    Part::Whole,
                )],
                minutes: 1,
            },
        }
    }

    /// Whether any release on PATH will do: these are used as a person would, and nothing of them is pinned.
    fn is_command_line(self) -> bool {
        matches!(
            self,
            Self::Kubectl | Self::Helm | Self::Promtool | Self::Crane | Self::Regctl
        )
    }
}

/// The path of `wanted`, built first when it is nowhere to be found; that takes minutes.
pub async fn binary(wanted: Binary) -> Result<PathBuf, Error> {
    tokio::task::spawn_blocking(move || locate_or_build(wanted)).await?
}

fn locate_or_build(wanted: Binary) -> Result<PathBuf, Error> {
    let recipe = wanted.recipe();
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").filter(|_| wanted.is_command_line());
    let found = assets
        .into_iter()
        .chain(path.iter().flat_map(std::env::split_paths))
        .map(|directory| directory.join(recipe.name))
        .find(|candidate| is_executable(candidate));
    if let Some(found) = found {
        return Ok(found);
    }

    let version = recipe.version()?;
    let cache = target().join("bin");
    let cached = cache.join(format!("{}-{version}", recipe.name));
    if is_executable(&cached) {
        return Ok(cached);
    }
    fs::create_dir_all(&cache).map_err(Error::file("create", &cache))?;
    // One lock for all: two builds at once would only take turns at the cores.
    let _turn = lock(&cache.join(".lock"))?;
    if !is_executable(&cached) {
        recipe.build(Path::new("go"), &version, &cached)?;
    }
    Ok(cached)
}

/// Builds `wanted` with the Go toolchain at `toolchain` and moves it to `into` when it is whole.
pub fn build(wanted: Binary, toolchain: &Path, into: &Path) -> Result<(), Error> {
    let recipe = wanted.recipe();
    recipe.build(toolchain, &recipe.version()?, into)
}

impl Recipe {
    /// The pinned version without its `v`.
    fn version(&self) -> Result<String, Error> {
        self.go_mod_line(&format!("{} v", self.versioned))
    }

    /// What follows `prefix` on the first line of the `go.mod` that has it, up to the next space.
    fn go_mod_line(&self, prefix: &str) -> Result<String, Error> {
        self.go_mod
            .lines()
            .map(|line| line.trim_start().trim_start_matches("require "))
            .find_map(|line| line.strip_prefix(prefix)?.split_whitespace().next())
            .map(str::to_owned)
            .ok_or_else(|| Error::Module {
                module: self.module,
                line: format!("{prefix}…"),
            })
    }

    fn build(&self, toolchain: &Path, version: &str, cached: &Path) -> Result<(), Error> {
        let module = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/testbed/go")
            .join(self.module);
        let go = || {
            let mut go = Command::new(toolchain);
            // No C compiler is needed, and the result does not depend on whether there is one.
            go.current_dir(&module).env("CGO_ENABLED", "0");
            go
        };
        let missing = |reason: String| -> Result<Error, Error> {
            Ok(Error::Go {
                binary: self.name,
                version: version.to_owned(),
                reason,
                minimum: self.go_mod_line("go ")?,
                cached: cached.to_owned(),
            })
        };
        // Asked inside the module, so that a toolchain older than its `go` line is refused here as well.
        match go().args(["env", "GOVERSION"]).output() {
            Ok(answer) if answer.status.success() => {}
            Ok(answer) => {
                let reason = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
                return Err(missing(reason)?);
            }
            Err(error) => return Err(missing(format!("`{}`: {error}", toolchain.display()))?),
        }

        tell(&format!(
            "testbed: building {} {version} (once; about {} min on two cores, plus downloads) into {}",
            self.name,
            self.minutes,
            cached.display()
        ));
        let began = std::time::Instant::now();
        let unfinished = cached.with_file_name(format!(".{}.unfinished", self.name));
        let ldflags = self
            .version_variables
            .iter()
            .fold("-s -w".to_owned(), |flags, (variable, part)| {
                format!("{flags} -X {variable}={}", part.of(version))
            });
        let status = go()
            .args(["build", "-mod=readonly", "-trimpath", "-tags", self.tags])
            .args(["-ldflags", &ldflags])
            .arg("-o")
            .arg(&unfinished)
            .arg(self.package)
            .stdout(std::process::Stdio::null())
            .status()
            .map_err(Error::file("run", toolchain))?;
        if !status.success() {
            let _ = fs::remove_file(&unfinished);
            return Err(Error::Build {
                binary: self.name,
                module,
                status,
            });
        }
        fs::rename(&unfinished, cached).map_err(Error::file("move into place", cached))?;
        tell(&format!(
            "testbed: built {} {version} in {} s",
            self.name,
            began.elapsed().as_secs()
        ));
        Ok(())
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Straight to standard error: `eprintln!` is held back by the test harness until the test failed.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
