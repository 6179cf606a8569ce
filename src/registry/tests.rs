#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The parts, each of which knows only itself and those before it.
const PARTS: [&str; 9] = [
    "error",
    "transport",
    "settings",
    "single_flight",
    "endpoint",
    "auth",
    "host",
    "wire",
    "ops",
];

/// Every file's code without its tests, by its path without the ending. Those that only list modules are left out.
fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if !path.ends_with("mod.rs") && !path.ends_with("tests.rs") {
            let code = fs::read_to_string(&path).unwrap();
            let (code, _) = code
                .split_once("#[cfg(test)]\nmod tests")
                .unwrap_or((&code, ""));
            let name = path.strip_prefix(&root).unwrap().with_extension("");
            found.insert(name.display().to_string(), code.to_owned());
        }
    }
}

/// The files that a file names by their paths, or is made of.
fn arrows(file: &str, code: &str, files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = |rest: &str| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        rest[..end.unwrap_or(rest.len())].replace("::", "/")
    };
    let from_root = code.split("crate::registry::").skip(1).map(path);
    let from_folder = code.split("super::").skip(1);
    let from_folder = from_folder.map(|rest| format!("{folder}/{}", path(rest)));
    let named = from_root.chain(from_folder).filter_map(|path| {
        let path = path.trim_start_matches('/');
        let prefixes = std::iter::successors(Some(path), |path| Some(path.rsplit_once('/')?.0));
        prefixes
            .map(str::to_owned)
            .find(|prefix| files.contains_key(prefix))
    });
    let parts = files
        .keys()
        .filter(|part| part.starts_with(&format!("{file}/")));
    let named = named.filter(|named| named != file);
    named.chain(parts.cloned()).collect()
}

#[test]
fn each_part_knows_only_those_before_it_and_no_files_form_a_circle() {
    let mut files = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry");
    sources(&root, &mut files);
    let mut left: BTreeMap<_, _> = files
        .iter()
        .map(|(file, code)| (file.clone(), arrows(file, code, &files)))
        .collect();
    let place = |file: &str| {
        let part = file.split('/').next();
        PARTS.iter().position(|known| Some(*known) == part)
    };
    for (file, named) in &left {
        assert!(place(file).is_some(), "{file} belongs to no part");
        let back: Vec<_> = named.iter().filter(|n| place(n) > place(file)).collect();
        assert!(back.is_empty(), "{file} knows {back:?}");
    }
    assert!(left.values().map(BTreeSet::len).sum::<usize>() > 100);
    // Whoever names nobody who is left is in no circle.
    loop {
        let before = left.len();
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, named| named.iter().any(|name| names.contains(name)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "a circle among {left:#?}");
}
