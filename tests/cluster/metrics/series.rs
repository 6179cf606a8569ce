//! Whatever requests, registries and people say, a scrape stays as small as it is.

use crate::testbed::PATIENCE;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use promotion_controller::machine::{Phase, Reason, Step};
use promotion_controller::metrics::{FAMILIES, HOSTS_MAX, Type};
use serde_json::json;

use super::Scraped;
use super::scraped::Series;
use crate::testbed::free_port;
use crate::testbed::scripted::{Scripted, answer};
use crate::testbed::stage::{Stage, spec};

/// Hosts that a batch of requests names besides the registry that is on the list in full.
const HOSTS: usize = 36;
/// Requests of a batch that name the registry, and a host that is not on the list.
const OTHERS: usize = 12;

/// What every label but `host` may say.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let words = |text: &'static str| text.split(' ').collect::<BTreeSet<_>>();
    let codes = "200 201 202 204 206 307 400 401 403 404 405 408 409 413 416 429 500 502 503 504 1xx 2xx 3xx 4xx 5xx xxx error";
    BTreeMap::from([
        (
            "phase",
            Phase::ALL.iter().map(|phase| phase.as_str()).collect(),
        ),
        (
            "reason",
            Reason::ALL.iter().map(|reason| reason.as_str()).collect(),
        ),
        ("step", Step::ALL.iter().map(|step| step.as_str()).collect()),
        (
            "result",
            words("done waits failed refused dropped ok conflict gone timeout"),
        ),
        (
            "call",
            words("load save secret event lease definition list delete stream"),
        ),
        ("change", words("acquired lost released")),
        (
            "class",
            words("ping token manifest tag referrers blob upload"),
        ),
        ("code", words(codes)),
        ("requests", words("all writes")),
        ("version", words(env!("CARGO_PKG_VERSION"))),
        ("scope", words("all hosts")),
        ("state", words("in_force unreadable Set Superseded Failed")),
        ("zone", words("content tokens")),
        (
            "le",
            words(
                "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 15 60 180 600 1800 3600 7200 10800 +Inf",
            ),
        ),
    ])
}

/// Requests that name hosts nobody listens on, the registry, and hosts that are not on the list; each with text that has no place
/// in a label.
async fn batch(stage: &Stage, number: usize, registry: &str) {
    for index in 0..HOSTS {
        let nobody = format!("127.0.0.1:{}", 1000 * (number + 1) + index);
        let name = format!("evil-{number}-{index}-{}", "x".repeat(200));
        let float = format!("{nobody}/ci:Evil_{index}.{}", "y".repeat(80));
        let source = format!("{registry}/evil/{index}:z{index}");
        stage.create(&name, &spec(&[(&source, &float)])).await;
    }
    for index in 0..OTHERS {
        let source = format!("{registry}/evil/{index}:z{index}");
        let float = format!("{registry}/ci/evil{index}:tag{number}_{index}");
        stage
            .create(
                &format!("own-{number}-{index}"),
                &spec(&[(&source, &float)]),
            )
            .await;
        let elsewhere = format!("evil{index}.example.com/a:b");
        stage
            .create(
                &format!("other-{number}-{index}"),
                &spec(&[(&elsewhere, &float)]),
            )
            .await;
    }
}

/// How many codes answers are counted under.
fn codes(scraped: &Scraped) -> usize {
    let series = scraped.series.keys().map(|text| Series::parse(text));
    let labels = series.flat_map(|series| series.labels);
    let codes = labels.filter(|(name, _)| *name == "code");
    codes.map(|(_, code)| code).collect::<BTreeSet<_>>().len()
}

/// Checks every label of every series, and gives the hosts.
fn hosts(scraped: &Scraped) -> BTreeSet<String> {
    let allowed = allowed();
    let mut hosts = BTreeSet::new();
    for text in scraped.series.keys() {
        let series = Series::parse(text);
        let own = ["_bucket", "_sum", "_count"];
        let family = FAMILIES.iter().find(|family| {
            let name = family.name.strip_prefix("promotion_controller_").unwrap();
            let part = own.iter().any(|end| series.name == format!("{name}{end}"));
            series.name == name || (family.kind == Type::Histogram && part)
        });
        let family = family.unwrap_or_else(|| panic!("{text} is not declared"));
        for (label, value) in series.labels {
            assert!(label == "le" || family.labels.contains(&label), "{text}");
            if label == "host" {
                hosts.insert(value.to_owned());
            } else {
                assert!(allowed[label].contains(value), "{text}");
            }
        }
    }
    hosts
}

#[tokio::test(flavor = "multi_thread")]
async fn series_stay_few_whatever_names_hosts_and_answers_there_are() {
    let stage = Stage::new("series").await;
    // A registry that answers with every status in turn, and with words of its own.
    let turn = AtomicUsize::new(0);
    let server = Scripted::start(move |_| {
        let status = 200 + turn.fetch_add(37, Ordering::Relaxed) % 700;
        let evil = json!({"errors": [{"code": "EVIL\"}\n", "message": "evil{a=\"b\"} 1"}]});
        answer(
            u16::try_from(status).unwrap(),
            &[("www-authenticate", "Evil evil=\"evil\"")],
            evil.to_string().as_bytes(),
        )
    })
    .await;
    let registry = server.host();
    let port = free_port().unwrap();
    let _controller = stage.controller(&[
        &format!("--listen=127.0.0.1:{port}"),
        "--allow-registry=127.0.0.1:*",
        &format!("--allow-registry={registry}"),
        &format!("--plain-http={registry}"),
        "--registry-qps=0",
    ]);
    batch(&stage, 0, &registry).await;
    let refused = r#"promotions_total{reason="NotAllowed"}"#;
    let full = |scraped: &Scraped| scraped.sum(r#"registry_requests_total{host="other"}"#) > 0;
    let asked = |scraped: &Scraped| codes(scraped) > 6 && scraped.sum(refused) >= OTHERS as u64;
    let first = Scraped::until(port, PATIENCE, |scraped| full(scraped) && asked(scraped)).await;
    let known = hosts(&first);
    // Named in full, it has a series of its own beyond those that there is room for.
    assert_eq!(known.len(), HOSTS_MAX + 2, "{known:?}");
    assert!(known.contains(&registry) && known.contains("other"));

    batch(&stage, 1, &registry).await;
    let ended = 2 * OTHERS as u64;
    let second = Scraped::until(port, PATIENCE, |scraped| scraped.sum(refused) >= ended).await;
    assert_eq!(hosts(&second), known);
    let lower = second.text.to_lowercase();
    assert!(
        !lower.contains("evil") && !lower.contains(&stage.namespace),
        "{lower}"
    );
    println!(
        "{} series, then {}",
        first.series.len(),
        second.series.len()
    );
    assert!(second.series.len() < 3000, "{}", second.series.len());
}

/// The most series that there can be with the given hosts, were every label to take every value.
#[test]
fn the_most_series_that_there_can_be_are_bounded() {
    let allowed = allowed();
    let values = |label: &str| match label {
        "host" | "scope" => HOSTS_MAX + 1 + 3,
        label => allowed[label].len(),
    };
    let most: usize = FAMILIES
        .iter()
        .map(|family| {
            let labels: usize = family.labels.iter().map(|label| values(label)).product();
            labels
                * if family.kind == Type::Histogram {
                    16
                } else {
                    1
                }
        })
        .sum();
    println!("at most {most} series with 3 registries named in full");
    assert!(most < 20_000, "{most}");
}
