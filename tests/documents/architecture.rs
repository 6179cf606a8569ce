//! What holds for the source as a whole: I/O stays in its modules, and nobody compares what has methods to ask.

mod circles;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each source file, by its path under its `src`, without comments and tests.
fn code() -> Vec<(String, String)> {
    let roots = ["crates/core/src", "src"];
    roots
        .into_iter()
        .flat_map(|src| code_of(&root().join(src)))
        .collect()
}

fn code_of(src: &Path) -> Vec<(String, String)> {
    let read = |file: PathBuf| {
        let module = file.strip_prefix(src).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.split("#[cfg(test)]").next().unwrap().lines();
        let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
        (module.to_owned(), lines.collect::<Vec<_>>().join("\n"))
    };
    sources(src).into_iter().map(read).collect()
}

#[test]
fn only_the_registry_layer_speaks_http_and_only_the_store_and_the_controller_the_kubernetes_api() {
    let mut wrong = Vec::new();
    for (module, code) in code() {
        for line in code.lines() {
            let names = |word: &str| line.contains(word);
            let http = names("reqwest") || names("oci_client");
            let api = names("kube::Api") || names("kube::api") || names("Api::");
            if http && !module.starts_with("registry/") {
                wrong.push(format!("{module}: {line}"));
            }
            if api && !module.starts_with("store/") && !module.starts_with("controller/") {
                wrong.push(format!("{module}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A phase, step or reason is asked by the methods of its own file, which are exhaustive: one that is added does not compile until
/// each of them has its answer. A comparison elsewhere would compile, and be wrong.
#[test]
fn no_phase_step_or_reason_is_compared_outside_its_own_file() {
    let mut wrong = Vec::new();
    for (module, code) in code() {
        let own = ["machine/phase.rs", "machine/step.rs", "machine/reason.rs"];
        if own.contains(&module.as_str()) {
            continue;
        }
        let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
        let operators = ["==", "!=", ">=", "<=", "<", ">"];
        // The model's mutations single out steps and reasons on purpose.
        let names = ["Phase::", "Step::", "Reason::", "ReasonKind::"];
        let names = if is_test(&module) {
            &names[..1]
        } else {
            &names
        };
        for name in names {
            for (at, _) in code.match_indices(name) {
                let (before, after) = (&code[..at], &code[at + name.len()..]);
                let before = before
                    .trim_end_matches("machine::")
                    .trim_end_matches("Some(");
                let left = operators
                    .iter()
                    .any(|o| before.ends_with(&format!(" {o} ")));
                let after = after
                    .trim_start_matches(char::is_alphanumeric)
                    .trim_start_matches(')');
                let right = operators
                    .iter()
                    .any(|o| after.starts_with(&format!(" {o} ")));
                let opened = before.rfind("matches!(");
                if left || right || opened.is_some_and(|open| !is_closed(&before[open + 8..])) {
                    let after: String = code[at..].chars().take(30).collect();
                    wrong.push(format!("{module}: {after}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether the first parenthesis of a text is closed in it.
fn is_closed(text: &str) -> bool {
    let mut open = 0;
    text.chars().any(|c| {
        open += i32::from(c == '(') - i32::from(c == ')');
        open == 0
    })
}

/// Whether a file is compiled for tests alone.
fn is_test(module: &str) -> bool {
    let tests = [
        "machine/model",
        "machine/samples",
        "machine/table",
        "steps/replay",
    ];
    module.ends_with("tests.rs") || tests.iter().any(|test| module.starts_with(test))
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
