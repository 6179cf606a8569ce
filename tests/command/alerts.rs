//! The documents say what the code says: `docs/metrics.md`, the alert rules, the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use promotion_controller::metrics::{Declared, FAMILIES, Metrics, Type};
use serde_json::{Value, json};

use crate::testbed::{Binary, RunDir, binary};

const PREFIX: &str = "promotion_controller_";
/// The sections of the runbook.
const RUNBOOK: [&str; 9] = [
    "registry-down",
    "registry-read-only",
    "credential-rotated",
    "controller-down",
    "float-stuck",
    "foreign-writer",
    "crd-rollback",
    "paused",
    "frozen",
];
/// What a scrape adds to every series, and the grouping of histograms.
const ADDED: [&str; 6] = ["namespace", "cluster", "pod", "job", "instance", "le"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn alerts() -> Vec<Value> {
    let rules: Value =
        serde_saphyr::from_str(&read("charts/promotion-controller/files/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    rules.cloned().collect()
}

/// Every query of the dashboard, with the title of its panel.
fn queries() -> Vec<(String, String)> {
    let text = read("charts/promotion-controller/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            queries.push((
                title.to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    queries
}

/// Every name that a family is scraped under, and its labels.
fn names() -> BTreeMap<String, BTreeSet<&'static str>> {
    let parts = |family: &Declared| match family.kind {
        Type::Histogram => vec!["_bucket", "_sum", "_count"],
        Type::Counter | Type::Gauge => vec![""],
    };
    let mut names = BTreeMap::new();
    for family in FAMILIES {
        for part in parts(family) {
            let labels = family.labels.iter().copied().collect();
            names.insert(format!("{}{part}", family.name), labels);
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What a query names that is not there: metrics, labels that its metrics have not.
fn strangers(query: &str) -> Vec<String> {
    let names = names();
    let mut strangers = Vec::new();
    let mut labels: BTreeSet<&str> = BTreeSet::new();
    for (at, _) in query.match_indices(PREFIX) {
        let rest = &query[at..];
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        let Some(own) = names.get(&name) else {
            strangers.push(name);
            continue;
        };
        labels.extend(own.iter().copied());
        let matchers = rest[name.len()..].strip_prefix('{');
        let matchers = matchers
            .and_then(|rest| rest.split('}').next())
            .unwrap_or_default();
        for (at, quoted) in matchers.split('"').enumerate() {
            if at % 2 == 0 {
                let label = quoted.trim_matches(|c: char| !is_word(c));
                if !label.is_empty() && !own.contains(label) && !ADDED.contains(&label) {
                    strangers.push(format!("{name}: {label}"));
                }
            }
        }
    }
    for word in [" by (", " on ("] {
        for part in query.split(word).skip(1) {
            for label in part.split(')').next().unwrap().split(',').map(str::trim) {
                if !labels.contains(label) && !ADDED.contains(&label) {
                    strangers.push(format!("by {label}"));
                }
            }
        }
    }
    strangers
}

#[test]
fn strangers_are_found_in_a_query() {
    let good = r#"sum by (host, code) (rate(promotion_controller_registry_requests_total{namespace=~"a",code!~"2..|x"}[5m]))"#;
    assert_eq!(strangers(good), Vec::<String>::new());
    for (bad, stranger) in [
        ("promotion_controller_paws", "promotion_controller_paws"),
        (
            "promotion_controller_promotion_duration_seconds",
            "promotion_controller_promotion_duration_seconds",
        ),
        (
            r#"promotion_controller_leader{host="a"}"#,
            "promotion_controller_leader: host",
        ),
        (
            r#"promotion_controller_images{phase="a",step="b"}"#,
            "promotion_controller_images: step",
        ),
        ("sum by (step) (promotion_controller_images)", "by step"),
    ] {
        assert_eq!(strangers(bad), [stranger], "{bad}");
    }
}

#[test]
fn the_document_of_the_metrics_has_every_family_as_it_is_declared() {
    let row = |family: &Declared| {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        format!(
            "| `{}` | {} | {} | {} |",
            family.name,
            family.kind.as_str(),
            labels.join(" "),
            family.help
        )
    };
    let wanted: Vec<String> = FAMILIES.iter().map(row).collect();
    let document = read("docs/metrics.md");
    let found: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `promotion_"))
        .collect();
    assert_eq!(
        found,
        wanted,
        "docs/metrics.md has to say:\n{}\n",
        wanted.join("\n")
    );
}

#[test]
fn families_are_named_as_prometheus_wants_and_each_once() {
    let mut names = BTreeSet::new();
    for family in FAMILIES {
        assert!(names.insert(family.name), "{} twice", family.name);
        assert!(family.name.starts_with(PREFIX), "{}", family.name);
        assert_eq!(
            family.kind == Type::Counter,
            family.name.ends_with("_total"),
            "{}",
            family.name
        );
        assert_eq!(
            family.kind == Type::Histogram,
            family.name.ends_with("_seconds") && family.name.contains("duration")
                || family.name.ends_with("wait_seconds"),
            "{}",
            family.name
        );
        assert!(
            !family.help.ends_with('.'),
            "{}: the encoder ends the sentence",
            family.name
        );
    }
}

#[test]
fn every_alert_names_what_is_there_and_says_what_to_do() {
    let alerts = alerts();
    assert!(alerts.len() >= 12);
    let mut sections = BTreeSet::new();
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        let expr = alert["expr"].as_str().unwrap();
        assert!(expr.contains(PREFIX), "{name}");
        assert_eq!(strangers(expr), Vec::<String>::new(), "{name}");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning"].contains(&severity),
            "{name}: {severity}"
        );
        let annotation = |key: &str| {
            alert["annotations"][key]
                .as_str()
                .unwrap_or_else(|| panic!("{name} has no {key}"))
        };
        assert!(
            annotation("summary").len() < 100 && annotation("description").len() > 40,
            "{name}"
        );
        let section = annotation("runbook")
            .strip_prefix("docs/runbook.md#")
            .unwrap();
        sections.insert(section.to_owned());
    }
    let known: BTreeSet<String> = RUNBOOK.iter().map(|&section| section.to_owned()).collect();
    assert_eq!(sections, known);
    let page = read("docs/runbook.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors: BTreeSet<String> = headings
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    assert!(anchors.is_superset(&known), "{anchors:?}");
}

#[test]
fn every_query_of_the_dashboard_names_what_is_there() {
    let queries = queries();
    assert!(queries.len() >= 30);
    let mut shown = BTreeSet::new();
    for (title, query) in &queries {
        assert!(query.contains(PREFIX), "{title}");
        assert_eq!(strangers(query), Vec::<String>::new(), "{title}: {query}");
        shown.extend(
            FAMILIES
                .iter()
                .map(|family| family.name)
                .filter(|name| query.contains(name)),
        );
    }
    let all: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(shown, all, "what is measured is shown");
    let text = read("charts/promotion-controller/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let rows = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|panel| panel["type"] == "row");
    let rows: Vec<&str> = rows.map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Promotions", "Registry", "Controller"]);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!(variables[0]["type"], "datasource");
}

fn promtool(path: &Path, arguments: &[&str], stdin: &str) {
    use std::io::Write as _;
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.status.success(), "{arguments:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_alerts_their_tests_the_queries_and_a_scrape() {
    let path: PathBuf = binary(Binary::Promtool).await.unwrap();
    let file = |name: &str| root().join(name).to_str().unwrap().to_owned();
    let alerts = file("charts/promotion-controller/files/alerts.yaml");
    promtool(&path, &["check", "rules", "--lint-fatal", &alerts], "");
    promtool(
        &path,
        &["test", "rules", &file("tests/command/alerts_test.yaml")],
        "",
    );
    let rules: Vec<Value> = queries()
        .iter()
        .enumerate()
        .map(|(index, (_, query))| {
            let query = query
                .replace("$__rate_interval", "5m")
                .replace("$__range", "1h");
            json!({"record": format!("query:{index}"), "expr": query})
        })
        .collect();
    let folder = RunDir::create("dashboard").unwrap();
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let rules = folder.write("rules.yaml", &rules.to_string()).unwrap();
    promtool(&path, &["check", "rules", rules.to_str().unwrap()], "");
    promtool(&path, &["check", "metrics"], &Metrics::default().render());
}
