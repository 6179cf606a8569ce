//! A real controller is scraped while it promotes, and afterwards.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::time::Duration;

use quaylike::{GateSpec, ImageSpec, Matcher, Registry, Shape};

use super::Scraped;
use crate::testbed::free_port;
use crate::testbed::stage::{Stage, phase, spec};

async fn registry() -> Registry {
    Registry::start(audited()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_what_is_there_and_then_what_was_done() {
    let stage = Stage::new("scrape").await;
    let (source, target) = (registry().await, registry().await);
    let (from, to) = (source.host(), target.host());
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    source.seed_image("src/x", "new", &image("new")).unwrap();
    target.seed_image("ci", "a", &image("old")).unwrap();
    let port = free_port().unwrap();
    let controller = stage.controller(&[
        &format!("--listen=127.0.0.1:{port}"),
        &format!("--plain-http={from}"),
        &format!("--plain-http={to}"),
        // Time for a tag write to stand at its gate.
        "--settle-seconds=8",
        "--status-interval=1",
    ]);
    let put = Matcher::put_manifest().repository("ci").reference("a");
    let gate = target.gate(GateSpec::before(put));
    let images = [
        (format!("{from}/src/x:new"), format!("{to}/ci:a")),
        (format!("{from}/src/x:new"), format!("{to}/ci:first")),
    ];
    let images: Vec<_> = images
        .iter()
        .map(|(s, f)| (s.as_str(), f.as_str()))
        .collect();
    stage.create("line", &spec(&images)).await;
    stage.reached(&gate).await;

    let during = Scraped::until(port, PATIENCE, |scraped| {
        scraped.sum(r#"images{phase="Posted"}"#) == 1
    })
    .await;
    let limit = format!(r#"registry_requests_limit{{host="{to}"}}"#);
    let in_flight = format!(r#"registry_requests_in_flight{{host="{to}"}}"#);
    for (series, value) in [
        ("leader", 1),
        (r#"leadership_changes_total{change="acquired"}"#, 1),
        ("requests{reason=\"BackedUp\"}", 1),
        (r#"images{phase="BackedUp"}"#, 1),
        (r#"images{phase="Latched"}"#, 0),
        (r#"operations_in_flight{step="Latch"}"#, 1),
        (r#"operations_in_flight{step="Post"}"#, 0),
        (&limit, 16),
        (&in_flight, 1),
        ("reconcile_queue_depth", 0),
        ("overdue_seconds", 0),
        ("promotions_total{phase=\"Posted\",reason=\"Promoted\"}", 0),
    ] {
        assert_eq!(during.sum(series), value, "{series}:\n{}", during.text);
    }
    // The one series that is there before anything happened, so that the first move is a rise.
    assert!(during.series.contains_key("foreign_moves_total"));
    let asked = during.sum("oldest_request_age_seconds");
    assert!(asked < 60, "{asked}");

    // It is not in a phase for long, and the next second is one that a scrape shows.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    gate.open();
    let done = stage.finished("line", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", controller.log());
    // The last that is told of a request.
    let told = r#"events_total{reason="Promoted"}"#;
    let after = Scraped::until(port, PATIENCE, |scraped| scraped.sum(told) == 1).await;
    let status = done.status.unwrap();
    let copied: i64 = status
        .images
        .iter()
        .filter_map(|image| image.bytes_copied)
        .sum();
    assert!(copied > 0);
    let tags = target.count(&Matcher::put_manifest().tag(true));
    let all = source.count(&Matcher::default()) + target.count(&Matcher::default());
    let of = |name: &str, host: &str| format!(r#"{name}{{host="{host}"}}"#);
    let table = [
        (
            r#"registry_requests_total{class="tag",code="201"}"#,
            tags as u64,
        ),
        ("registry_requests_total", all as u64),
        (
            &of("registry_requests_total", &from),
            source.count(&Matcher::default()) as u64,
        ),
        (
            &of("registry_copied_bytes_total", &from),
            u64::try_from(copied).unwrap(),
        ),
        ("registry_requests_in_flight", 0),
        ("registry_waits_total", 0),
        (r#"promotions_total{phase="Posted",reason="Promoted"}"#, 1),
        ("promotions_total", 1),
        (r#"promotion_duration_seconds_count{phase="Posted"}"#, 1),
        ("promotion_queue_duration_seconds_count", 1),
        (r#"image_phase_duration_seconds_count{phase="Pending"}"#, 2),
        (r#"image_phase_duration_seconds_count{phase="Incoming"}"#, 2),
        (r#"image_phase_duration_seconds_count{phase="BackedUp"}"#, 2),
        (r#"image_phase_duration_seconds_count{phase="Latched"}"#, 2),
        ("image_phase_duration_seconds_count", 8),
        (
            r#"operation_duration_seconds_count{step="Stage",result="done"}"#,
            2,
        ),
        (
            r#"operation_duration_seconds_count{step="Latch",result="done"}"#,
            2,
        ),
        (r#"operation_duration_seconds_count{result="failed"}"#, 0),
        ("attempts_total", 0),
        ("foreign_moves_total", 0),
        ("images", 0),
        ("requests", 0),
        ("operations_in_flight", 0),
        ("oldest_request_age_seconds", 0),
        ("reconcile_errors_total", 0),
        (r#"api_requests_total{call="save",result="refused"}"#, 0),
        (
            concat!(
                r#"build_info{version=""#,
                env!("CARGO_PKG_VERSION"),
                r#""}"#
            ),
            1,
        ),
    ];
    for (series, wanted) in table {
        let found = after.sum(series);
        assert_eq!(found, wanted, "{series}:\n{}", after.text);
    }
    // It stood at the gate, backed up, for longer than a second.
    let stay = after.sum(r#"image_phase_duration_seconds_sum{phase="BackedUp"}"#);
    assert!(stay >= 1, "{stay}");
    let saved = after.sum(r#"api_requests_total{call="save",result="ok"}"#);
    assert!((4..=10).contains(&saved), "{saved}");
    assert!(after.sum(r#"api_requests_total{call="load",result="ok"}"#) >= saved);
    assert!(after.sum(r#"api_requests_total{call="event",result="ok"}"#) >= 3);
    // The one that saved last may be about to end.
    let reconciled = after.sum("reconcile_duration_seconds_count");
    assert!(reconciled + 1 >= saved, "{reconciled} of {saved}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_counted_by_its_reason() {
    let stage = Stage::new("scrape-wrong").await;
    let registry = registry().await;
    let host = registry.host();
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    for tag in ["a", "b"] {
        registry.seed_image("src/x", tag, &image(tag)).unwrap();
    }
    registry.seed_image("ci", "a", &image("old")).unwrap();
    let port = free_port().unwrap();
    let controller = stage.controller(&[
        &format!("--listen=127.0.0.1:{port}"),
        &format!("--plain-http={host}"),
    ]);
    // Somebody else moves a float, between its backup and the latch.
    let pre = Matcher::put_manifest().repository("ci").reference("a__pre");
    let gate = registry.gate(GateSpec::after(pre));
    let of = |source: &str, float: &str| {
        let (source, float) = (
            format!("{host}/src/x:{source}"),
            format!("{host}/ci:{float}"),
        );
        spec(&[(&source, &float)])
    };
    stage.create("moved", &of("a", "a")).await;
    stage.reached(&gate).await;
    registry.seed_image("ci", "a", &image("foreign")).unwrap();
    gate.open();
    let done = stage.finished("moved", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", controller.log());
    // A source is not there; a registry is not on the list; a spec cannot be carried out.
    stage.create("gone", &of("none", "c")).await;
    let elsewhere = spec(&[("example.com/x:a", &format!("{host}/ci:d"))]);
    stage.create("elsewhere", &elsewhere).await;
    for name in ["gone", "elsewhere"] {
        let done = stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Failed", "{name}");
    }
    let failed = |reason: &str| format!(r#"promotions_total{{phase="Failed",reason="{reason}"}}"#);
    let after = Scraped::until(port, PATIENCE, |scraped| {
        scraped.sum("promotions_total") == 3
    })
    .await;
    for (series, value) in [
        (failed("SourceGone"), 1),
        (failed("NotAllowed"), 1),
        ("foreign_moves_total".into(), 1),
        (r#"attempts_total{reason="FloatMoved"}"#.into(), 1),
        (r#"events_total{reason="FloatMoved"}"#.into(), 1),
        (
            r#"operation_duration_seconds_count{step="Resolve",result="refused"}"#.into(),
            1,
        ),
    ] {
        assert_eq!(after.sum(&series), value, "{series}:\n{}", after.text);
    }
}
