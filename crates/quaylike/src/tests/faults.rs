//! Every fault, seen from the client.

use std::time::{Duration, Instant};

use super::*;

const PATH: &str = "/v2/r/manifests/x";

fn always(action: Action) -> Rule {
    Rule::new(Matcher::kind(RequestKind::Manifest), action)
}

async fn attempt(bench: &Bench, method: &str) -> Result<Response, reqwest::Error> {
    let request = bench
        .ask(method, PATH)
        .header("accept", MANIFEST_TYPES.join(","));
    request.send().await
}

#[tokio::test]
async fn too_many_requests_come_as_a_page_with_and_without_retry_after() {
    let bench = Bench::new().await;
    bench.seed("r", "x", Shape::Oci, "x");
    for (retry_after, check) in [
        (None, (|text: &str| text.is_empty()) as fn(&str) -> bool),
        (Some(RetryAfter::Seconds(7)), |text| text == "7"),
        (Some(RetryAfter::Date(60)), |text| text.ends_with(" GMT")),
    ] {
        bench.registry.clear_rules();
        bench
            .registry
            .add_rule(always(Action::TooMany { retry_after }));
        let answer = bench.send("GET", PATH).await;
        assert_eq!(answer.status(), 429);
        assert!(check(header(&answer, "retry-after")), "{retry_after:?}");
        assert_eq!(header(&answer, "content-type"), "text/html");
        assert!(
            answer
                .text()
                .await
                .unwrap()
                .contains("429 Too Many Requests")
        );
    }
}

#[tokio::test]
async fn statuses_come_with_a_code_a_body_or_a_page_and_do_nothing() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    for status in [400, 401, 403, 408, 500, 502, 503, 504] {
        bench.registry.clear_rules();
        bench
            .registry
            .add_rule(always(Action::error(status, "CODE")));
        let answer = bench.put("r", "y", &image.manifest).await;
        assert_eq!(answer.status(), status);
        assert_eq!(error(answer).await.0, "CODE");
        bench.registry.clear_rules();
        bench.registry.add_rule(always(Action::page(status)));
        let answer = bench.put("r", "y", &image.manifest).await;
        assert_eq!(header(&answer, "content-type"), "text/html");
    }
    assert_eq!(bench.registry.tag("r", "y"), None);
}

#[tokio::test]
async fn read_only_refuses_writes_and_lets_reads_pass() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    bench
        .registry
        .add_rule(Rule::new(Matcher::default(), Action::ReadOnly));
    assert_eq!(bench.send("GET", PATH).await.status(), 200);
    let refused = bench.put("r", "y", &image.manifest).await;
    assert_eq!(refused.status(), 405);
    let (code, body) = error(refused).await;
    assert_eq!(code, "DENIED");
    assert_eq!(body["errors"][0]["detail"]["is_readonly"], true);
    assert_eq!(
        bench.send("POST", "/v2/r/blobs/uploads/").await.status(),
        405
    );
}

#[tokio::test]
async fn a_body_is_cut_after_so_many_bytes() {
    let bench = Bench::new().await;
    let digest = bench.registry.seed_blob("r", Blob::new(vec![1; 1 << 20]));
    for after in [0, 10, 500_000] {
        bench.registry.clear_rules();
        bench.registry.add_rule(Rule::new(
            Matcher::kind(RequestKind::Blob),
            Action::CutBody { after },
        ));
        let mut answer = bench.send("GET", &format!("/v2/r/blobs/{digest}")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.content_length(), Some(1 << 20));
        let mut received = 0;
        let end = loop {
            match answer.chunk().await {
                Ok(Some(piece)) => received += piece.len() as u64,
                other => break other,
            }
        };
        assert!(end.is_err());
        assert_eq!(received, after);
    }
}

#[tokio::test]
async fn one_byte_is_corrupted() {
    let bench = Bench::new().await;
    let digest = bench.registry.seed_blob("r", Blob::new("0123456789"));
    bench.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Blob),
        Action::Corrupt { at: 3 },
    ));
    let got = bench
        .send("GET", &format!("/v2/r/blobs/{digest}"))
        .await
        .bytes()
        .await
        .unwrap();
    let wrong: Vec<_> = (0..10)
        .filter(|at| got[*at] != b"0123456789"[*at])
        .collect();
    assert_eq!(wrong, [3]);
}

#[tokio::test]
async fn hanging_comes_after_the_work_and_delaying_before_it() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    let hurried = |tag: &str| {
        let request = bench.put_request("r", tag, &image.manifest);
        request.timeout(Duration::from_millis(100)).send()
    };
    bench.registry.add_rule(always(Action::Hang { ms: 300 }));
    assert!(hurried("hung").await.unwrap_err().is_timeout());
    assert_eq!(bench.registry.tag("r", "hung"), Some(image.digest()));
    bench.registry.clear_rules();
    bench.registry.add_rule(always(Action::Delay { ms: 300 }));
    assert!(hurried("delayed").await.unwrap_err().is_timeout());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(bench.registry.tag("r", "delayed"), None);
    let last = bench
        .registry
        .requests(&Matcher::put_manifest())
        .pop()
        .unwrap();
    assert_eq!((last.phase, last.status), (Phase::Dropped, None));
    let started = Instant::now();
    assert_eq!(bench.send("GET", PATH).await.status(), 200);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_dropped_connection_does_nothing_and_a_lost_answer_does_the_work() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    for (action, tag, done) in [
        (Action::DropConnection, "a", false),
        (Action::LoseAnswer, "b", true),
    ] {
        bench.registry.clear_rules();
        bench.registry.add_rule(always(action));
        let lost = bench.put_request("r", tag, &image.manifest).send().await;
        assert!(!lost.unwrap_err().is_timeout());
        assert_eq!(bench.registry.tag("r", tag).is_some(), done);
    }
    bench.registry.clear_rules();
    assert_eq!(bench.send("GET", PATH).await.status(), 200);
}

#[tokio::test]
async fn a_stale_read_gives_the_previous_digest_or_nothing() {
    let bench = Bench::new().await;
    let old = bench.seed("r", "x", Shape::Oci, "old");
    tokio::time::sleep(Duration::from_millis(310)).await;
    let new = bench.seed("r", "x", Shape::Oci, "new");
    bench.seed("r", "fresh", Shape::Oci, "new");
    bench
        .registry
        .add_rule(always(Action::StaleRead { ms: 300 }));
    let digest = |response: &Response| header(response, "docker-content-digest").to_owned();
    assert_eq!(
        digest(&bench.send("HEAD", PATH).await),
        old.digest().to_string()
    );
    let got = bench.send("GET", PATH).await;
    assert_eq!(got.bytes().await.unwrap(), old.manifest.bytes);
    let absent = bench.send("GET", "/v2/r/manifests/fresh").await;
    assert_eq!(error(absent).await.0, "MANIFEST_UNKNOWN");
    tokio::time::sleep(Duration::from_millis(310)).await;
    assert_eq!(
        digest(&bench.send("HEAD", PATH).await),
        new.digest().to_string()
    );
}

#[tokio::test]
async fn a_blob_read_is_redirected_to_a_listener_that_needs_no_credential() {
    let auth = Auth::new(AuthMode::Basic).user(User::new("bot", "p").push(""));
    let bench = Bench::with(Options::default().auth(auth)).await;
    let digest = bench.registry.seed_blob("deep/r", Blob::new("0123456789"));
    bench.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Blob),
        Action::Redirect { base: None },
    ));
    let path = format!("/v2/deep/r/blobs/{digest}");
    let ask = |path: &str| bench.ask("GET", path).basic_auth("bot", Some("p")).send();
    let away = ask(&path).await.unwrap();
    assert_eq!(away.status(), 307);
    let location = header(&away, "location").to_owned();
    assert!(!location.contains(&bench.registry.host()));
    let got = bench
        .ask("GET", &location)
        .header("range", "bytes=4-5")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (got.status().as_u16(), got.text().await.unwrap().as_str()),
        (206, "45")
    );
    let entry = &bench
        .registry
        .requests(&Matcher::kind(RequestKind::Storage))[0];
    assert_eq!(
        (entry.repository.as_str(), entry.authorization),
        ("deep/r", false)
    );
    bench.registry.clear_rules();
    assert_eq!(ask(&path).await.unwrap().status(), 200);
    bench
        .registry
        .update(|settings| settings.redirect_blobs = true);
    assert_eq!(ask(&path).await.unwrap().status(), 307);
    let base = Some("http://127.0.0.1:1".to_owned());
    bench.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Blob),
        Action::Redirect { base },
    ));
    let away = ask(&path).await.unwrap();
    assert!(header(&away, "location").starts_with("http://127.0.0.1:1/storage/deep/r/sha256:"));
}

#[tokio::test]
async fn an_immutable_tag_may_be_made_and_not_moved_or_removed() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    bench.registry.add_rule(always(Action::ImmutableTag));
    let refused = bench.put("r", "x", &image.manifest).await;
    assert_eq!(refused.status(), 409);
    assert_eq!(error(refused).await.0, "TAG_IMMUTABLE");
    assert_eq!(bench.send("DELETE", PATH).await.status(), 409);
    assert_eq!(bench.put("r", "new", &image.manifest).await.status(), 201);
    assert_eq!(bench.registry.tags("r").len(), 2);
}

#[tokio::test]
async fn harbor_and_ecr_say_in_their_own_words_what_is_absent_and_what_must_not_move() {
    for (dialect, immutable, absent) in [
        (Dialect::Harbor, (412, "PRECONDITION"), "NOT_FOUND"),
        (Dialect::Ecr, (400, "TAG_INVALID"), "MANIFEST_UNKNOWN"),
    ] {
        let bench = Bench::new().await;
        bench.registry.update(|settings| settings.dialect = dialect);
        let image = bench.seed("r", "x", Shape::Oci, "x");
        let gone = bench.send("GET", "/v2/r/manifests/gone").await;
        assert_eq!(gone.status(), 404);
        assert_eq!(error(gone).await.0, absent);
        bench.registry.add_rule(always(Action::ImmutableTag));
        let refused = bench.put("r", "x", &image.manifest).await;
        assert_eq!(refused.status(), immutable.0);
        assert_eq!(error(refused).await.0, immutable.1);
    }
}

#[tokio::test]
async fn a_write_is_redirected_once_to_where_it_is_taken() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    bench.registry.add_rule(always(Action::RedirectWrite));
    let led = bench.put("r", "new", &image.manifest).await;
    assert_eq!(led.status(), 307);
    let next = header(&led, "location").to_owned();
    assert_eq!(next, "/v2/r/manifests/new?&moved=1");
    assert_eq!(bench.registry.tags("r").len(), 1);
    let put = bench.put("r", "new?moved=1", &image.manifest).await;
    assert_eq!(put.status(), 201);
    assert_eq!(bench.registry.tags("r").len(), 2);
    bench.registry.clear_rules();
    let uploads = || Matcher::kind(RequestKind::Upload);
    bench
        .registry
        .add_rule(Rule::new(uploads(), Action::LieMount));
    let path = format!("/v2/r2/blobs/uploads/?mount={}&from=r", image.blobs[0].0);
    assert_eq!(bench.send("POST", &path).await.status(), 201);
    let blob = format!("/v2/r2/blobs/{}", image.blobs[0].0);
    assert_eq!(bench.send("HEAD", &blob).await.status(), 404);
    bench.registry.clear_rules();
    bench
        .registry
        .add_rule(Rule::new(uploads(), Action::NoLocation));
    let begun = bench.send("POST", "/v2/r/blobs/uploads/").await;
    assert_eq!(begun.status(), 202);
    assert!(begun.headers().get("location").is_none());
}

#[tokio::test]
async fn headers_lie() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    bench
        .registry
        .add_rule(always(Action::LieDigest { digest: None }));
    for method in ["GET", "HEAD"] {
        let told = attempt(&bench, method).await.unwrap();
        assert_eq!(
            header(&told, "docker-content-digest"),
            Digest::of(b"").to_string()
        );
    }
    let put = bench.put("r", "x", &image.manifest).await;
    assert_eq!(
        header(&put, "docker-content-digest"),
        Digest::of(b"").to_string()
    );
    bench.registry.clear_rules();
    let length = image.manifest.bytes.len() as u64;
    bench.registry.add_rule(always(Action::LieLength { by: 5 }));
    let head = attempt(&bench, "HEAD").await.unwrap();
    assert_eq!(header(&head, "content-length"), (length + 5).to_string());
    assert!(attempt(&bench, "GET").await.unwrap().bytes().await.is_err());
    bench.registry.clear_rules();
    bench
        .registry
        .add_rule(always(Action::LieLength { by: -5 }));
    let got = attempt(&bench, "GET").await.unwrap().bytes().await.unwrap();
    assert_eq!(got, image.manifest.bytes[..image.manifest.bytes.len() - 5]);
}

#[tokio::test]
async fn bodies_grow_without_end() {
    let bench = Bench::new().await;
    bench.seed("r", "x", Shape::Oci, "x");
    bench.registry.add_rule(
        always(Action::Endless {
            bytes: Some(5 << 20),
        })
        .times(1),
    );
    assert_eq!(
        attempt(&bench, "GET")
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
            .len(),
        5 << 20
    );
    bench.registry.clear_rules();
    bench
        .registry
        .add_rule(always(Action::Endless { bytes: None }));
    let mut endless = attempt(&bench, "GET").await.unwrap();
    let mut received = 0;
    while received < 32 << 20 {
        received += endless.chunk().await.unwrap().unwrap().len();
    }
    drop(endless);
    bench.registry.clear_rules();
    assert_eq!(bench.send("GET", PATH).await.status(), 200);
}

#[tokio::test]
async fn an_expired_tag_has_its_own_code() {
    let bench = Bench::new().await;
    bench.registry.create_repository("r");
    bench.registry.add_rule(always(Action::TagExpired));
    let gone = bench.send("GET", PATH).await;
    assert_eq!(gone.status(), 404);
    assert_eq!(error(gone).await.0, "TAG_EXPIRED");
}

#[tokio::test]
async fn a_refused_mount_opens_a_session() {
    let bench = Bench::new().await;
    let digest = bench.registry.seed_blob("from", Blob::new("text"));
    bench.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Upload),
        Action::RefuseMount,
    ));
    let path = format!("/v2/r/blobs/uploads/?mount={digest}&from=from");
    assert_eq!(bench.send("POST", &path).await.status(), 202);
}

#[tokio::test]
async fn a_held_write_lands_when_released_though_its_client_is_gone() {
    let bench = Bench::new().await;
    let old = bench.seed("r", "x", Shape::Oci, "old");
    let new = bench.seed("r", "y", Shape::Oci, "new");
    bench
        .registry
        .add_rule(always(Action::HoldWrite { ms: None }).times(1));
    let put = bench
        .put_request("r", "x", &new.manifest)
        .timeout(Duration::from_millis(100));
    assert!(put.send().await.unwrap_err().is_timeout());
    assert_eq!(bench.registry.held_writes(), 1);
    assert_eq!(bench.registry.tag("r", "x"), Some(old.digest()));
    bench.registry.release_held();
    let landed = async {
        while bench.registry.tag("r", "x") != Some(new.digest()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), landed)
        .await
        .unwrap();
    assert_eq!(bench.registry.held_writes(), 0);
    bench
        .registry
        .add_rule(always(Action::HoldWrite { ms: Some(50) }).times(1));
    assert_eq!(bench.put("r", "z", &new.manifest).await.status(), 201);
}

#[tokio::test]
async fn latency_delays_every_request() {
    let bench = Bench::new().await;
    bench
        .registry
        .update(|settings| settings.latency = Duration::from_millis(50));
    let started = Instant::now();
    bench.send("GET", "/v2/").await;
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn rules_fail_the_requests_they_name() {
    let bench = Bench::new().await;
    bench.seed("r", "x", Shape::Oci, "x");
    let failed = async |rule: Rule| {
        bench.registry.clear_rules();
        let id = bench.registry.add_rule(rule);
        let mut numbers = Vec::new();
        for number in 1..=6 {
            if bench.send("GET", PATH).await.status() == 503 {
                numbers.push(number);
            }
        }
        let rules = bench.registry.rules();
        assert_eq!((rules[0].id, rules[0].matched), (id, 6));
        assert_eq!(rules[0].injected, numbers.len() as u64);
        numbers
    };
    let rule = || always(Action::page(503));
    assert_eq!(failed(rule()).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(failed(rule().times(2)).await, [1, 2]);
    assert_eq!(failed(rule().when(When::Nth(3))).await, [3]);
    assert_eq!(failed(rule().when(When::From(5))).await, [5, 6]);
    assert_eq!(failed(rule().when(When::Every(2)).times(2)).await, [2, 4]);
    let drawn = When::Probability { p: 0.5, seed: 3 };
    let first = failed(rule().when(drawn)).await;
    assert_eq!(failed(rule().when(drawn)).await, first);
    let never = When::Probability { p: 0.0, seed: 3 };
    assert!(failed(rule().when(never)).await.is_empty());
}

#[tokio::test]
async fn matchers_pick_by_every_field() {
    let bench = Bench::new().await;
    let image = bench.seed("a/b", "x__pre", Shape::Oci, "x");
    bench.send("GET", "/v2/a/b/manifests/x__pre").await;
    bench
        .send("HEAD", &format!("/v2/a/b/manifests/{}", image.digest()))
        .await;
    bench
        .put("a/b", "20260101000000_prune_x", &image.manifest)
        .await;
    let count = |matcher: Matcher| bench.registry.count(&matcher);
    let kind = || Matcher::kind(RequestKind::Manifest);
    assert_eq!(count(kind()), 3);
    assert_eq!(count(kind().method("put")), 1);
    assert_eq!(count(kind().tag(true)), 2);
    assert_eq!(count(kind().reference_suffix("__pre")), 1);
    assert_eq!(count(kind().reference_contains("_prune_")), 1);
    assert_eq!(count(kind().reference("x__pre")), 1);
    assert_eq!(count(kind().repository("a")), 0);
    let repository_prefix = Some("a/".to_owned());
    assert_eq!(
        count(Matcher {
            repository_prefix,
            ..kind()
        }),
        3
    );
    let reference_prefix = Some("sha256:".to_owned());
    assert_eq!(
        count(Matcher {
            reference_prefix,
            ..kind()
        }),
        1
    );
    assert_eq!(
        count(Matcher {
            write: Some(true),
            ..kind()
        }),
        1
    );
    let credential = Some(String::new());
    assert_eq!(
        count(Matcher {
            credential,
            ..kind()
        }),
        3
    );
    assert_eq!(bench.registry.counts()[&RequestKind::Manifest], 3);
}
