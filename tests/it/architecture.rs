//! I/O stays in its modules.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn only_the_registry_layer_speaks_http_and_only_the_store_and_the_controller_the_kubernetes_api() {
    let mut wrong = Vec::new();
    for file in sources(&root().join("src")) {
        let module = file
            .strip_prefix(root().join("src"))
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            let names = |word: &str| line.contains(word);
            let http = names("reqwest") || names("oci_client");
            let api = names("kube::Api") || names("kube::api") || names("Api::");
            if http && !module.starts_with("registry/") {
                wrong.push(format!("{module}: {line}"));
            }
            if api && !module.starts_with("store/") && !module.starts_with("controller/") {
                wrong.push(format!("{module}: {line}"));
            }
            let outside = [
                "kube",
                "tokio",
                "crate::engine",
                "crate::registry",
                "crate::store",
                "crate::api",
            ];
            if module.starts_with("machine/")
                && outside.iter().any(|word| names(&format!("use {word}")))
            {
                wrong.push(format!("{module}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().unwrap() != "tests" {
                files.extend(sources(&path));
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}
