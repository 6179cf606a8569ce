//! Gates, and what becomes of a request whose client is gone.

use std::time::Duration;

use super::*;

const SOON: Duration = Duration::from_secs(5);

async fn reached(gate: &Gate) -> LoggedRequest {
    tokio::time::timeout(SOON, gate.reached()).await.unwrap()
}

#[tokio::test]
async fn a_request_parked_before_has_done_nothing_and_one_parked_after_has_done_it() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    for (spec, tag, done) in [
        (GateSpec::before(Matcher::put_manifest()), "a", false),
        (GateSpec::after(Matcher::put_manifest()), "b", true),
    ] {
        let gate = bench.registry.gate(spec);
        let put = tokio::spawn(bench.put_request("r", tag, &image.manifest).send());
        let entry = reached(&gate).await;
        assert_eq!(
            (entry.reference.as_str(), entry.phase),
            (tag, Phase::Received)
        );
        assert_eq!(bench.registry.tag("r", tag).is_some(), done);
        assert!(!put.is_finished());
        gate.open();
        assert_eq!(put.await.unwrap().unwrap().status(), 201);
    }
}

#[tokio::test]
async fn a_gate_stops_the_nth_and_no_other() {
    let bench = Bench::new().await;
    let gate = bench
        .registry
        .gate(GateSpec::before(Matcher::kind(RequestKind::Ping)).nth(3));
    for _ in 0..2 {
        assert_eq!(bench.send("GET", "/v2/").await.status(), 200);
    }
    assert_eq!(gate.state(), GateState::Waiting);
    let third = tokio::spawn(bench.ask("GET", "/v2/").send());
    assert_eq!(reached(&gate).await.seq, 3);
    assert_eq!(bench.send("GET", "/v2/").await.status(), 200);
    drop(gate);
    assert_eq!(third.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_gate_decides_what_becomes_of_a_write_whose_client_is_gone() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    for (tag, cut) in [("cut", true), ("late", false)] {
        let gate = bench
            .registry
            .gate(GateSpec::before(Matcher::put_manifest()));
        let put = tokio::spawn(bench.put_request("r", tag, &image.manifest).send());
        reached(&gate).await;
        put.abort();
        assert!(put.await.unwrap_err().is_cancelled());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(bench.registry.tag("r", tag), None);
        if cut {
            gate.cut();
        } else {
            gate.open();
        }
        let matcher = Matcher::put_manifest().reference(tag);
        let ended = bench.registry.wait_for(&matcher, 1, true);
        tokio::time::timeout(SOON, ended).await.unwrap();
        assert_eq!(bench.registry.tag("r", tag).is_some(), !cut);
    }
}

#[tokio::test]
async fn cutting_after_the_work_loses_the_answer() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    let gate = bench
        .registry
        .gate(GateSpec::after(Matcher::put_manifest()));
    let put = tokio::spawn(bench.put_request("r", "y", &image.manifest).send());
    reached(&gate).await;
    gate.cut();
    assert!(put.await.unwrap().is_err());
    assert_eq!(bench.registry.tag("r", "y"), Some(image.digest()));
}

#[tokio::test]
async fn the_log_tells_what_was_asked_and_answered_in_order() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    bench.send("GET", "/v2/r/manifests/x").await;
    bench.put("r", "y", &image.manifest).await;
    bench.send("HEAD", "/v2/r/manifests/none").await;
    let seen: Vec<_> = bench
        .registry
        .requests(&Matcher::default())
        .into_iter()
        .map(|entry| {
            (
                entry.seq,
                entry.method,
                entry.reference,
                entry.status,
                entry.bytes_in,
                entry.bytes_out,
            )
        })
        .collect();
    let length = image.manifest.bytes.len() as u64;
    let expected = [
        (1, "GET".to_owned(), "x".to_owned(), Some(200), 0, length),
        (2, "PUT".to_owned(), "y".to_owned(), Some(201), length, 0),
        (3, "HEAD".to_owned(), "none".to_owned(), Some(404), 0, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        bench
            .registry
            .requests_after(2, 9, &Matcher::default())
            .len(),
        1
    );
    bench.registry.reset_log();
    assert_eq!(bench.registry.count(&Matcher::default()), 0);
    assert!(bench.registry.counts().is_empty());
}

#[tokio::test]
async fn a_stopped_registry_cuts_its_connections() {
    let bench = Bench::new().await;
    bench.seed("r", "x", Shape::Oci, "x");
    let Bench { registry, client } = bench;
    let url = registry.url();
    registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Ping),
        Action::Hang { ms: 60_000 },
    ));
    let hung = tokio::spawn(client.get(format!("{url}/v2/")).send());
    registry
        .wait_for(&Matcher::kind(RequestKind::Ping), 1, false)
        .await;
    drop(registry);
    assert!(
        tokio::time::timeout(SOON, hung)
            .await
            .unwrap()
            .unwrap()
            .is_err()
    );
    assert!(client.get(format!("{url}/v2/")).send().await.is_err());
}
