//! What holds for the whole: the documents say what the code says, and I/O stays in its modules.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use promotion_controller::api::conditions;
use promotion_controller::machine::{Kind, Phase, Reason};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

#[test]
fn the_readme_names_every_reason_once_with_its_kind() {
    let word = |kind: Kind| match kind {
        Kind::Waiting => "waiting",
        Kind::Retried => "retried",
        Kind::Working => "working",
        Kind::Terminal => "terminal",
        Kind::Ended => "end",
        Kind::Warning => "warning",
    };
    let readme = readme();
    let table = readme
        .split("\n## Reasons\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (reasons, kind) = (cells.next().unwrap(), cells.next().unwrap());
        for name in reasons.split('`').filter(|name| !name.trim().is_empty()) {
            assert!(
                named.insert(name.into(), kind.into()).is_none(),
                "{name} twice"
            );
        }
    }
    let known: BTreeMap<String, String> = Reason::ALL
        .iter()
        .map(|r| (r.to_string(), word(r.kind()).to_owned()))
        .collect();
    assert_eq!(named, known);
}

#[test]
fn the_readme_names_every_phase_and_every_condition_once() {
    let readme = readme();
    let section = readme.split("\n## Phases and conditions\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let (phases, others) = section.split_once("\n| Condition |").unwrap();
    // What the first cell of each row names.
    let named = |table: &str| -> Vec<String> {
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let cells = rows.map(|row| row.split(" |").next().unwrap());
        let names = cells.flat_map(|cell| cell.split(['`', ',', ' ']));
        let names = names.filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    assert_eq!(named(phases), Phase::ALL.map(Phase::as_str));
    assert_eq!(named(others), conditions::TYPES);
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

#[test]
fn every_test_that_the_readme_and_the_security_page_name_is_there() {
    let readme = readme();
    let promises = readme.split("\n## What is promised\n").nth(1).unwrap();
    let promises = promises.split("\n## ").next().unwrap();
    let security = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "tests"] {
        for file in sources(&root().join(folder)) {
            code.push_str(&std::fs::read_to_string(file).unwrap());
        }
    }
    for page in [promises, &security] {
        let named = page.split('`').skip(1).step_by(2);
        let tests = named.filter(|name| name.len() > 20 && !name.contains([' ', '/', '.']));
        let tests: Vec<&str> = tests.collect();
        assert!(tests.len() >= 15, "{tests:?}");
        for test in tests {
            assert!(
                code.contains(&format!("fn {test}(")),
                "there is no test {test}"
            );
        }
    }
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

#[test]
fn the_example_is_what_the_command_line_reads() {
    let objects =
        promotion_controller::store::file::read_requests(&root().join("deploy/example.yaml"))
            .unwrap();
    assert_eq!(objects.len(), 2);
}
