//! The documents say what the code says: reasons, phases, flags and tests by their names, and every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use promotion_controller::api::conditions;
use promotion_controller::cli::Cli;
use promotion_controller::machine::{Phase, Reason, ReasonKind};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap()
}

/// What a page says under a heading, up to the next one of the same level.
fn section(page: &str, heading: &str) -> String {
    let text = read(page);
    let rest = text.split_once(&format!("\n## {heading}\n"));
    let (_, rest) = rest.unwrap_or_else(|| panic!("{page} has no section {heading}"));
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The cells of each row whose first cell begins with a name in backticks.
fn rows(table: &str) -> Vec<Vec<String>> {
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(|c| c.trim().into()));
    cells.map(Iterator::collect).collect()
}

/// The names in backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn the_reference_names_every_reason_once_with_its_kind() {
    let word = |kind: ReasonKind| match kind {
        ReasonKind::Waiting => "waiting",
        ReasonKind::Retried => "retried",
        ReasonKind::Working => "working",
        ReasonKind::Terminal => "terminal",
        ReasonKind::Ended => "end",
        ReasonKind::Warning => "warning",
    };
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for row in rows(&section("docs/reference.md", "Reasons")) {
        for name in names(&row[0]) {
            let kind = row[1].clone();
            assert!(named.insert(name.into(), kind).is_none(), "{name} twice");
        }
    }
    let known = Reason::ALL.iter();
    let known = known.map(|r| (r.to_string(), word(r.kind()).to_owned()));
    assert_eq!(named, known.collect());
}

#[test]
fn the_concepts_name_every_phase_and_every_condition_once() {
    let section = section("docs/concepts.md", "Phases and conditions");
    let (phases, others) = section.split_once("\n| Condition |").unwrap();
    let named = |table: &str| -> Vec<String> {
        let first = rows(table).into_iter().map(|row| row[0].clone());
        first
            .flat_map(|cell| names(&cell).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    assert_eq!(named(phases), Phase::ALL.map(Phase::as_str));
    assert_eq!(named(others), conditions::TYPES);
}

#[test]
fn every_test_that_the_pages_name_is_there() {
    let mut code = String::new();
    for folder in ["src", "tests", "crates"] {
        for file in files(&root().join(folder), "rs") {
            code.push_str(&std::fs::read_to_string(file).unwrap());
        }
    }
    for page in [
        "docs/verification.md",
        "docs/security.md",
        "docs/testing.md",
    ] {
        let page = read(page);
        let tests = names(&page).filter(|name| name.len() > 20 && !name.contains([' ', '/', '.']));
        let tests: Vec<&str> = tests.collect();
        assert!(tests.len() >= 15, "{tests:?}");
        for test in tests {
            let function = format!("fn {test}(");
            assert!(code.contains(&function), "there is no test {test}");
        }
    }
}

#[test]
fn the_example_is_what_the_command_line_reads() {
    let objects =
        promotion_controller::store::file::read_requests(&root().join("deploy/example.yaml"))
            .unwrap();
    assert_eq!(objects.len(), 2);
}

/// Files of this extension, in the folder and below it.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

/// Every page that people read here.
fn pages() -> Vec<PathBuf> {
    let folders = ["docs", "charts", "examples", "deploy", "crates"];
    let mut pages: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| files(&root().join(folder), "md"))
        .collect();
    let top = std::fs::read_dir(root()).unwrap();
    let top = top.map(|entry| entry.unwrap().path());
    pages.extend(top.filter(|path| path.extension().is_some_and(|e| e == "md")));
    assert!(pages.len() >= 10, "{pages:?}");
    pages
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let mut code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
        } else if !code {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// Headings as GitHub makes anchors of them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchors = headings.map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    });
    anchors.collect()
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (place, _) in prose(&text).match_indices("](") {
            let prose = prose(&text);
            let link = prose[place + 2..].split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let there = target.exists()
                && (anchor.is_empty()
                    || anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !there {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(links >= 30, "{links} links");
}

#[test]
fn the_reference_lists_every_flag_once_with_its_default() {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for command in Cli::command().get_subcommands() {
        for flag in command.get_arguments() {
            let Some(name) = flag.get_long().filter(|&name| name != "help") else {
                continue;
            };
            let values = flag.get_default_values().first();
            let default = values.map(|value| value.to_str().unwrap().to_owned());
            let default = default.filter(|_| flag.get_action().takes_values());
            // A flag of several commands may differ in its default: each stands on the page.
            let at = format!("{} --{name}", command.get_name());
            known.insert(at, default.unwrap_or_default());
        }
    }
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for row in rows(&section("docs/reference.md", "Flags")) {
        let flag = names(&row[0])
            .next()
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        let default = names(&row[1]).next().unwrap_or_default().to_owned();
        for command in row[2].split(',').map(str::trim) {
            let at = format!("{command} {flag}");
            assert!(
                named.insert(at.clone(), default.clone()).is_none(),
                "{at} twice"
            );
        }
    }
    assert_eq!(named, known);
}

/// A number with its unit, in seconds where it is a time.
fn number(words: &str) -> Option<i64> {
    let (number, unit) = words.split_once(' ').unwrap_or((words, ""));
    let unit = match unit {
        "" | "s" => 1,
        "h" => 3600,
        "days" => 24 * 3600,
        _ => return None,
    };
    Some(number.parse::<i64>().ok()? * unit)
}

/// `default (least to most)`, where a cell says that.
fn range(cell: &str) -> Option<[i64; 3]> {
    let (default, rest) = cell.split_once(" (")?;
    let (least, most) = rest.split_once(')')?.0.split_once(" to ")?;
    Some([number(default)?, number(least)?, number(most)?])
}

/// The cells of each row of a section of the limits.
fn limits(heading: &str) -> Vec<Vec<String>> {
    let limits = section("docs/reference.md", "Limits");
    let (_, rest) = limits.split_once(&format!("\n### {heading}\n")).unwrap();
    let table = rest.split("\n### ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(|c| c.trim().into()));
    cells.map(Iterator::collect).collect()
}

#[test]
fn the_limits_of_a_request_are_those_of_the_definition() {
    let definition = serde_json::to_value(promotion_controller::api::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let fields = &schema["properties"]["spec"]["properties"];
    let mut found = BTreeSet::new();
    for row in limits("Set in the request") {
        let Some(field) = names(&row[2]).next() else {
            continue;
        };
        let field = field.strip_prefix("spec.").unwrap();
        // The schema has them as floating-point numbers.
        let known = ["default", "minimum", "maximum"]
            .map(|key| fields[field][key].as_f64().unwrap().to_string());
        let said = range(&row[1]).unwrap_or_else(|| panic!("{row:?}"));
        let said = said.map(|number| number.to_string());
        assert_eq!(said, known, "{row:?}");
        found.insert(field.to_owned());
    }
    let bounded = fields.as_object().unwrap().iter();
    let bounded = bounded.filter(|(_, field)| field["maximum"].is_number());
    assert_eq!(found, bounded.map(|(name, _)| name.clone()).collect());
    let images = fields["images"]["maxItems"].to_string();
    let fixed = limits("Fixed: the request and its images");
    let row = fixed.iter().find(|row| row[0] == "images of a request");
    assert_eq!(row.unwrap()[1], images);
}

#[test]
fn the_limits_of_the_flags_are_those_of_the_command_line() {
    use clap::Parser as _;
    let mut checked = 0;
    for row in limits("Set by whoever runs the controller") {
        let Some([default, least, most]) = range(&row[1]) else {
            continue;
        };
        let flag = names(&row[2]).next().unwrap();
        let commands = if flag == "--timeout" {
            &["preview", "--file=x"][..]
        } else {
            &["controller"]
        };
        let takes = |value: i64| {
            let flag = format!("{flag}={value}");
            let arguments = [&["promotion-controller"], commands, &[&flag]].concat();
            Cli::try_parse_from(arguments).is_ok()
        };
        let bounds = [least - 1, least, most, most + 1].map(takes);
        assert_eq!(bounds, [false, true, true, false], "{row:?}");
        let listed = rows(&section("docs/reference.md", "Flags"));
        let listed = listed
            .iter()
            .find(|row| names(&row[0]).next() == Some(flag));
        assert_eq!(listed.unwrap()[1], format!("`{default}`"), "{row:?}");
        checked += 1;
    }
    assert!(checked >= 6, "{checked}");
}
