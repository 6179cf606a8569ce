//! The control API, as a test of another process uses it.

use serde_json::json;

use super::*;

impl Bench {
    async fn control(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.ask(method, &format!("/_control/{path}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.bytes().await.unwrap();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }
}

#[tokio::test]
async fn settings_change_field_by_field_and_typos_are_refused() {
    let bench = Bench::new().await;
    let change = json!({"hold_ms": 250, "dialect": "distribution"});
    let (status, shown) = bench.control("POST", "settings", Some(change)).await;
    assert_eq!(
        (status, &shown["hold_ms"], &shown["collect"]),
        (200, &json!(250), &json!(true))
    );
    assert_eq!(bench.registry.settings().dialect, Dialect::Distribution);
    let (status, shown) = bench
        .control("POST", "settings", Some(json!({"holds": 1})))
        .await;
    assert_eq!(status, 400);
    assert!(shown["error"].as_str().unwrap().contains("holds"));
    assert_eq!(
        bench.control("GET", "settings", None).await.1["hold_ms"],
        250
    );
}

#[tokio::test]
async fn rules_are_added_seen_and_removed() {
    let bench = Bench::new().await;
    let rule = json!({
        "match": {"kind": "ping", "method": "GET"}, "when": {"every": 2}, "left": 1,
        "action": {"status": {"status": 503}},
    });
    let (status, added) = bench.control("POST", "rules", Some(rule)).await;
    assert_eq!(status, 200);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(bench.send("GET", "/v2/").await.status().as_u16());
    }
    assert_eq!(seen, [200, 503, 200, 200]);
    let (_, rules) = bench.control("GET", "rules", None).await;
    assert_eq!(
        (
            &rules[0]["matched"],
            &rules[0]["injected"],
            &rules[0]["left"]
        ),
        (&json!(4), &json!(1), &json!(0))
    );
    let path = format!("rules/{}", added["id"]);
    assert_eq!(bench.control("DELETE", &path, None).await.0, 204);
    assert_eq!(bench.control("GET", "rules", None).await.1, json!([]));
    for action in [
        json!("drop_connection"),
        json!("read_only"),
        json!("lose_answer"),
        json!("tag_expired"),
        json!("immutable_tag"),
        json!("refuse_mount"),
        json!("lie_mount"),
        json!("no_location"),
        json!("redirect_write"),
        json!({"too_many": {"retry_after": {"date": 3}}}),
        json!({"cut_body": {"after": 3}}),
        json!({"hold_write": {}}),
        json!({"stale_read": {"ms": 3}}),
        json!({"redirect": {}}),
        json!({"lie_digest": {}}),
        json!({"lie_length": {"by": -3}}),
        json!({"endless": {}}),
        json!({"hang": {"ms": 3}}),
        json!({"delay": {"ms": 3}}),
        json!({"corrupt": {"at": 3}}),
    ] {
        let (status, answer) = bench
            .control("POST", "rules", Some(json!({"action": action})))
            .await;
        assert_eq!(status, 200, "{answer}");
    }
    let unknown = json!({"action": "read_only", "match": {"path": "x"}});
    assert_eq!(bench.control("POST", "rules", Some(unknown)).await.0, 400);
    assert_eq!(bench.control("DELETE", "rules", None).await.0, 204);
    assert!(bench.registry.rules().is_empty());
}

#[tokio::test]
async fn gates_are_awaited_by_long_poll() {
    let bench = Bench::new().await;
    let spec = json!({"match": {"kind": "ping"}, "nth": 1, "moment": "after"});
    let id = bench.control("POST", "gates", Some(spec)).await.1["id"].clone();
    let path = format!("gates/{id}");
    assert_eq!(
        bench.control("GET", &path, None).await.1,
        json!({"state": "waiting"})
    );
    let ping = tokio::spawn(bench.ask("GET", "/v2/").send());
    let (_, parked) = bench
        .control("GET", &format!("{path}?wait_ms=5000"), None)
        .await;
    assert_eq!(
        (&parked["state"], &parked["entry"]["kind"]),
        (&json!("parked"), &json!("ping"))
    );
    assert_eq!(
        bench.control("POST", &format!("{path}/open"), None).await.0,
        204
    );
    assert_eq!(ping.await.unwrap().unwrap().status(), 200);
    assert_eq!(bench.control("GET", &path, None).await.1["state"], "open");
    assert_eq!(bench.control("DELETE", "gates", None).await.0, 204);
    assert_eq!(bench.control("GET", &path, None).await.0, 404);
}

#[tokio::test]
async fn a_foreign_writer_seeds_moves_and_looks() {
    let bench = Bench::new().await;
    let image = json!({"shape": "nested", "seed": "s", "labels": {"quay.expires-after": "1d"}});
    let seed = json!({"repository": "r", "tag": "x", "image": image});
    let digest = bench.control("POST", "seed", Some(seed)).await.1["digest"].clone();
    let tag = json!({"repository": "r", "tag": "y", "digest": digest});
    assert_eq!(bench.control("POST", "tag", Some(tag)).await.0, 204);
    let untag = json!({"repository": "r", "tag": "x"});
    assert_eq!(
        bench.control("POST", "untag", Some(untag.clone())).await.0,
        204
    );
    assert_eq!(bench.control("POST", "untag", Some(untag)).await.0, 404);
    assert_eq!(
        bench.control("GET", "snapshot", None).await.1,
        json!({"r": {"y": digest}})
    );
    let (_, history) = bench
        .control("GET", "history?repository=r&tag=x", None)
        .await;
    assert_eq!(
        (&history[0]["digest"], &history[1]["digest"]),
        (&digest, &Value::Null)
    );
    let (_, manifest) = bench
        .control("GET", "manifest?repository=r&reference=y", None)
        .await;
    let child = manifest["manifests"][0]["digest"].clone();
    assert_eq!(bench.control("GET", "dangling", None).await.1, json!([]));
    let lose = json!({"repository": "r", "digest": child});
    assert_eq!(
        bench.control("POST", "lose", Some(lose)).await.1,
        json!({"lost": true})
    );
    for path in ["dangling", "audit"] {
        let (_, found) = bench.control("GET", path, None).await;
        assert_eq!(
            (&found[0]["tag"], &found[0]["missing"]),
            (&json!("y"), &child)
        );
    }
    assert_eq!(bench.control("DELETE", "audit", None).await.0, 204);
    assert_eq!(bench.control("GET", "audit", None).await.1, json!([]));
}

#[tokio::test]
async fn the_log_is_read_searched_awaited_and_reset() {
    let bench = Bench::new().await;
    bench.send("GET", "/v2/").await;
    bench.send("GET", "/v2/r/manifests/x").await;
    let (_, log) = bench.control("GET", "log?after=1", None).await;
    assert_eq!(
        (log.as_array().unwrap().len(), &log[0]["reference"]),
        (1, &json!("x"))
    );
    let (_, found) = bench
        .control("POST", "log/find", Some(json!({"kind": "manifest"})))
        .await;
    assert_eq!(found[0]["status"], 404);
    let (_, counts) = bench.control("GET", "counts", None).await;
    assert_eq!(counts["counts"], json!({"ping": 1, "manifest": 1}));
    let wait = json!({"match": {"kind": "ping"}, "nth": 2, "answered": true, "wait_ms": 5000});
    let late = async {
        bench.send("GET", "/v2/").await;
    };
    let ((_, entry), ()) = tokio::join!(bench.control("POST", "log/wait", Some(wait)), late);
    assert_eq!(
        (&entry["seq"], &entry["phase"]),
        (&json!(3), &json!("answered"))
    );
    let never = json!({"match": {"kind": "token"}, "nth": 1, "wait_ms": 10});
    assert_eq!(bench.control("POST", "log/wait", Some(never)).await.0, 204);
    assert_eq!(bench.control("DELETE", "log", None).await.0, 204);
    assert_eq!(bench.control("GET", "log", None).await.1, json!([]));
}

#[tokio::test]
async fn users_are_replaced_and_tokens_revoked() {
    let bench = Bench::new().await;
    let auth = json!({"mode": "basic", "users": [{"name": "a", "password": "b", "grants": [{"pull": true}]}]});
    assert_eq!(bench.control("POST", "auth", Some(auth)).await.0, 204);
    assert_eq!(bench.send("GET", "/v2/").await.status(), 401);
    let ping = bench
        .ask("GET", "/v2/")
        .basic_auth("a", Some("b"))
        .send()
        .await
        .unwrap();
    assert_eq!(ping.status(), 200);
    assert_eq!(bench.control("POST", "tokens/revoke", None).await.0, 204);
    assert_eq!(
        bench.control("GET", "held", None).await.1,
        json!({"held": 0})
    );
    assert_eq!(bench.control("POST", "held/release", None).await.0, 204);
    assert_eq!(bench.control("POST", "nonsense", None).await.0, 404);
}

#[tokio::test]
async fn a_registry_without_control_has_no_control() {
    let options = Options {
        control_api: false,
        ..Options::default()
    };
    let bench = Bench::with(options).await;
    assert_eq!(bench.control("GET", "settings", None).await.0, 404);
}

#[tokio::test]
async fn serving_ends_with_its_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let ready = |control: &RegistryHandle| control.create_repository("r");
        serve(listener, Options::default(), ready, async {
            drop(stopped.await);
        })
        .await
    });
    assert_eq!(client().get(&url).send().await.unwrap().status(), 200);
    stop.send(()).unwrap();
    served.await.unwrap().unwrap();
    assert!(client().get(&url).send().await.is_err());
}
