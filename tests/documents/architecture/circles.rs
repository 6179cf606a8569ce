//! Which file refers to which. An arrow: what a file says outside its tests, by `use` or by a path, is defined in another one.
//! Re-exports are followed, so that a `mod.rs` that only lists is in nobody's way.

use std::collections::{BTreeMap, BTreeSet};

/// An item's path from the crate's root, or a module's.
type Path = Vec<String>;

/// A crate's files by their modules.
struct Crate {
    files: BTreeMap<Path, File>,
}

struct File {
    name: String,
    code: String,
    /// What it imports or re-exports, by the name it has here, and whether it is re-exported.
    imports: Vec<(String, Path, bool)>,
}

#[test]
fn no_files_refer_to_each_other_in_a_circle() {
    for root in ["src", "crates/core/src", "crates/quaylike/src"] {
        let mut all = super::code_of(&super::root().join(root));
        all.retain(|(name, _)| !super::is_test(name));
        let known = Crate::of(all);
        let mut left = known.arrows();
        assert!(left.len() > 20, "{root}: {left:?}");
        // A file that refers to none of the rest, or that none of the rest refers to, is in no circle.
        loop {
            let (from, to): (BTreeSet<_>, BTreeSet<_>) = left.iter().cloned().unzip();
            let before = left.len();
            left.retain(|(a, b)| from.contains(b) && to.contains(a));
            if left.len() == before {
                break;
            }
        }
        assert!(left.is_empty(), "{root}: {left:#?}");
    }
}

impl Crate {
    fn of(all: Vec<(String, String)>) -> Self {
        let module = |name: &str| -> Path {
            let parts = name.trim_end_matches(".rs").split('/').map(str::to_owned);
            let own = |part: &String| !["mod", "lib", "main"].contains(&part.as_str());
            parts.filter(own).collect()
        };
        let modules: BTreeSet<Path> = all.iter().map(|(name, _)| module(name)).collect();
        let files = all.into_iter().filter(|(name, _)| name != "main.rs");
        let files = files.map(|(name, code)| {
            let here = module(&name);
            let (imports, code) = imports(&here, &code, &modules);
            (
                here,
                File {
                    name,
                    code,
                    imports,
                },
            )
        });
        Self {
            files: files.collect(),
        }
    }

    fn arrows(&self) -> BTreeSet<(String, String)> {
        let modules: BTreeSet<Path> = self.files.keys().cloned().collect();
        let mut arrows = BTreeSet::new();
        for (here, file) in &self.files {
            let words: Vec<&str> = file.code.split(|c: char| !is_of_path(c)).collect();
            let mut targets: Vec<Path> = Vec::new();
            for (name, path, public) in &file.imports {
                // What is only passed on is no arrow, nor is a module: only what is named in it.
                let used = !public
                    || words
                        .iter()
                        .any(|word| word.split("::").next() == Some(name));
                if used && !modules.contains(path) {
                    targets.push(path.clone());
                }
            }
            for word in words.iter().filter(|word| word.contains("::")) {
                let (first, rest) = word.split_once("::").unwrap();
                let imported = file.imports.iter().find(|(name, ..)| name == first);
                let path = match imported {
                    Some((_, path, _)) => {
                        let rest = rest.split("::").map(str::to_owned);
                        Some(path.iter().cloned().chain(rest).collect())
                    }
                    None => absolute(here, word, &modules),
                };
                targets.extend(path.filter(|path| !modules.contains(path)));
            }
            let to = targets.iter().map(|path| self.defining(path, 0));
            let others = to.flatten().filter(|to| *to != file.name);
            arrows.extend(others.map(|to| (file.name.clone(), to.to_owned())));
        }
        arrows
    }

    /// The file that defines what a path names.
    fn defining(&self, path: &[String], depth: usize) -> Option<&str> {
        let modules = (0..=path.len()).rev();
        let known = modules.filter_map(|length| Some((length, self.files.get(&path[..length])?)));
        let (length, file) = known.into_iter().next()?;
        let passed_on = path.get(length).and_then(|name| {
            let mut public = file.imports.iter().filter(|(.., public)| *public);
            public.find(|(known, ..)| known == name)
        });
        match passed_on {
            Some((_, from, _)) if depth < 9 => {
                let full: Path = from.iter().chain(&path[length + 1..]).cloned().collect();
                self.defining(&full, depth + 1)
            }
            _ => Some(&file.name),
        }
    }
}

fn is_of_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

/// The imports of a file, and its code without them.
fn imports(
    here: &[String],
    code: &str,
    modules: &BTreeSet<Path>,
) -> (Vec<(String, Path, bool)>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    let mut left = code;
    while let Some(at) = left.match_indices("use ").map(|(at, _)| at).find(|at| {
        let before = left[..*at].trim_end_matches(|c| c != '\n');
        let line = left[before.len()..*at].trim();
        line.is_empty() || line.starts_with("pub")
    }) {
        let line = left[..at].rfind('\n').map_or(0, |at| at + 1);
        let public = left[line..at].contains("pub");
        let end = left[at..].find(';').map_or(left.len(), |end| at + end);
        rest.push_str(&left[..line]);
        let mut paths = Vec::new();
        expand("", left[at + 4..end].trim(), &mut paths);
        for path in paths {
            let (path, alias) = path.split_once(" as ").unwrap_or((&path, ""));
            let path = path.trim_end_matches("::self");
            if let Some(full) = absolute(here, path, modules) {
                let last = path.rsplit("::").next().unwrap_or_default();
                let name = if alias.is_empty() { last } else { alias.trim() };
                found.push((name.to_owned(), full, public));
            }
        }
        left = left.get(end + 1..).unwrap_or_default();
    }
    rest.push_str(left);
    let declares = |line: &&str| line.contains("mod ") && line.ends_with(';');
    let lines: Vec<&str> = rest.lines().filter(|line| !declares(line)).collect();
    (found, lines.join("\n"))
}

/// Each path of a tree like `a::{b, c::{d}}`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some(open) = tree.find('{') else {
        paths.push(format!("{prefix}{}", tree.trim()));
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            let part = inner[start..at].trim();
            if !part.is_empty() {
                expand(&prefix, part, paths);
            }
            start = at + 1;
        }
    }
}

/// A path from the crate's root; none where it leads out of the crate.
fn absolute(here: &[String], path: &str, modules: &BTreeSet<Path>) -> Option<Path> {
    let mut parts: Vec<String> = path
        .split("::")
        .map(|part| part.trim().to_owned())
        .collect();
    if parts[0] == "crate" {
        return Some(parts.split_off(1));
    }
    let mut base = here.to_vec();
    let child: Path = here.iter().chain(&parts[..1]).cloned().collect();
    if !["super", "self"].contains(&parts[0].as_str()) && !modules.contains(&child) {
        return None;
    }
    while parts
        .first()
        .is_some_and(|part| part == "super" || part == "self")
    {
        if parts.remove(0) == "super" {
            base.pop();
        }
    }
    base.extend(parts);
    Some(base)
}
