//! Credentials without a cluster: the file that is named, or the usual ones of podman and docker.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::files;
use crate::registry::Keyring;

/// The credentials of `named`, else of `$REGISTRY_AUTH_FILE`, else of the usual files that are there, the first one with an entry
/// winning; else none.
///
/// # Errors
/// Where a file that was named, or that is there, cannot be used.
pub(super) fn find(named: Option<&Path>) -> Result<Keyring, String> {
    if let Some(path) = named {
        return read(path, "--registry-config");
    }
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return read(&path, "REGISTRY_AUTH_FILE");
    }
    let mut found: Option<Keyring> = None;
    for path in usual() {
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            _ => continue,
        }
        let keyring = read(&path, "usual credentials (--registry-config names others)")?;
        found = Some(found.map_or_else(|| keyring.clone(), |first| first.or(&keyring)));
    }
    Ok(found.unwrap_or_else(Keyring::anonymous))
}

fn read(path: &Path, named_by: &str) -> Result<Keyring, String> {
    let json = files::read(path, files::SMALL).map_err(|error| {
        format!(
            "{named_by}: cannot read {}: {error}; name a readable file",
            path.display()
        )
    })?;
    Keyring::parse(&json, &format!("file {}", path.display()))
        .map_err(|error| format!("{named_by}: {error}"))
}

/// Where podman and docker keep credentials, in the order in which podman looks.
fn usual() -> Vec<PathBuf> {
    let home = variable("HOME");
    let runtime = variable("XDG_RUNTIME_DIR").or_else(|| {
        let user = std::fs::metadata("/proc/self").ok()?.uid();
        Some(PathBuf::from(format!("/run/containers/{user}")))
    });
    let in_runtime = match variable("XDG_RUNTIME_DIR") {
        Some(_) => "containers/auth.json",
        None => "auth.json",
    };
    let config =
        variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.map(|home| home.join(".docker")));
    let places = [
        runtime.map(|dir| dir.join(in_runtime)),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    places.into_iter().flatten().collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
