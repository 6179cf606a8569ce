//! `preview`, the real binary: that it only reads, that what it announces is what is then written, and what it says of everything
//! that would fail.

pub mod shadow;

use quaylike::{
    Action, Auth, AuthMode, ImageBuilder, Layer, Matcher, Options, RequestKind, Rule, User,
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::testbed::command::{Ground, Run, ended, image, verdict};
use crate::testbed::{Distribution, DistributionOptions, Image, ImageKind};

/// The command on `requests.yaml`, in a clean environment.
async fn preview(ground: &Ground, arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
    command
        .args(["preview", "-f", "requests.yaml"])
        .arg(format!("--plain-http={}", ground.registry.host()))
        .args(arguments)
        .current_dir(ground.folder.path())
        .env_clear()
        .env("HOME", ground.folder.join("home"))
        .kill_on_drop(true);
    ended(command).await
}

/// The only request's images as `-o json` has them.
fn images(run: &Run) -> Vec<Value> {
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let requests = report["requests"].as_array().unwrap();
    assert_eq!(requests.len(), 1);
    requests[0]["images"].as_array().unwrap().clone()
}

fn assert_only_read(ground: &Ground) {
    for request in ground.registry.requests(&Matcher::default()) {
        assert!(
            matches!(request.method.as_str(), "GET" | "HEAD"),
            "{request:?}"
        );
    }
}

/// Bearer tokens as at quay: `bot` may push to `ci`, `viewer` only pull, both pull sources.
async fn guarded() -> Ground {
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("bot", "pw").pull("").push("ci"))
        .user(User::new("viewer", "pw").pull(""));
    let ground = Ground::with(Options::default().auth(auth)).await;
    for user in ["bot", "viewer"] {
        let auths =
            json!({"auths": {ground.registry.host(): {"username": user, "password": "pw"}}});
        ground
            .folder
            .write(&format!("{user}.json"), &auths.to_string())
            .unwrap();
    }
    ground
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_is_not_on_what_replaces_says_is_announced_as_a_failure() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    ground.seed("ci", "b", "other");
    ground.seed("src/x", "a", "new");
    let mut request = ground.request("one", &[(":a", "a"), (":a", "b"), (":a", "c")], &json!({}));
    for (image, replaces) in [
        (0, old.to_string()),
        (1, old.to_string()),
        (2, "None".into()),
    ] {
        request["spec"]["images"][image]["replaces"] = json!(replaces);
    }
    ground.documents(&[request]);
    let run = preview(&ground, &["-ojson"]).await.exits(1);
    let reasons: Vec<_> = images(&run).iter().map(|i| i["reason"].clone()).collect();
    let unmet = json!("PreconditionFailed");
    assert_eq!(reasons, [Value::Null, unmet, Value::Null]);
    assert_only_read(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_only_reads_and_asks_for_the_right_to_write_only_where_the_repository_is_there() {
    let ground = guarded().await;
    let old = ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    ground.registry.create_repository("ci/new");
    let mut request = ground.request("one", &[(":a", "a")], &json!({}));
    let more = json!({"source": ground.at("src/x:a"), "float": ground.at("ci/new:b")});
    request["spec"]["images"].as_array_mut().unwrap().push(more);
    ground.documents(&[request]);
    let before = ground.registry.snapshot();
    let run = preview(&ground, &["-ojson", "--registry-config=bot.json"])
        .await
        .exits(0);
    let images = images(&run);
    let pushes: Vec<_> = images
        .iter()
        .map(|image| image["push"].as_str().unwrap())
        .collect();
    assert_eq!(pushes, ["Granted", "NotKnown"]);
    assert_eq!(images[0]["verdict"], "Promote");
    assert_eq!(images[0]["sourceDigest"], new.to_string());
    assert_eq!(images[0]["floatDigest"], old.to_string());
    assert_eq!(images[1]["floatDigest"], Value::Null);
    assert_only_read(&ground);
    let asked = ground.registry.requests(&Matcher::kind(RequestKind::Token));
    let asked: Vec<_> = asked
        .iter()
        .filter(|token| token.query.contains("push"))
        .collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(!asked[0].query.contains("new"), "{asked:?}");
    assert_eq!(ground.registry.snapshot(), before);

    let run = preview(&ground, &["-ojson", "--registry-config=viewer.json"])
        .await
        .exits(1);
    let image = &self::images(&run)[0];
    assert_eq!(
        (&image["verdict"], &image["push"], &image["reason"]),
        (&json!("Fail"), &json!("Denied"), &json!("PermissionDenied"))
    );
    assert_only_read(&ground);
    let table = preview(&ground, &["--registry-config=viewer.json"])
        .await
        .exits(1);
    assert!(
        table
            .stdout
            .contains("1 would be promoted, 0 already in place, 1 would fail; nothing was written"),
        "{}",
        table.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_asks_for_no_right_to_write_and_puts_the_same_finding_in_the_message() {
    let ground = guarded().await;
    let old = ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("one", &[(":a", "a"), (":a", "b")], &json!({}))]);
    let run = preview(&ground, &["-ojson", "--registry-config=bot.json"])
        .await
        .exits(0);
    let announced: Vec<_> = images(&run)
        .iter()
        .map(|image| image["message"].clone())
        .collect();
    let float = format!("float is at {}", &old.to_string()[..19]);
    assert_eq!(
        announced,
        [
            json!(format!(
                "would mount 3 of 3 blobs (317 B); write _incoming, 1 prune tag, __pre, float, __post1; {float}"
            )),
            json!("would mount 3 of 3 blobs (317 B); write _incoming, float; float does not exist"),
        ]
    );
    ground.registry.reset_log();
    ground.documents(&[ground.request(
        "one",
        &[(":a", "a"), (":a", "b")],
        &json!({"mode": "Plan"}),
    )]);
    let run = ground
        .promote(&["-ojson", "--registry-config=bot.json"])
        .await
        .exits(0);
    let object = &run.items()[0];
    assert_eq!(verdict(object), ("Planned", "Planned"));
    let planned = object["status"]["images"].as_array().unwrap();
    let messages: Vec<_> = planned
        .iter()
        .map(|image| image["message"].clone())
        .collect();
    assert_eq!(messages, announced);
    assert_only_read(&ground);
    let asked = ground.registry.requests(&Matcher::kind(RequestKind::Token));
    assert!(
        asked.iter().all(|token| !token.query.contains("push")),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_blobs_are_counted_where_they_are() {
    let ground = Ground::new().await;
    let from = quaylike::Registry::start(Options::default()).await.unwrap();
    let build = |seed: &str, layers: &[(&str, u64)]| {
        let builder = ImageBuilder::oci(seed);
        let layers = layers.iter().map(|(seed, size)| Layer::sized(seed, *size));
        layers.fold(builder, ImageBuilder::layer).build().unwrap()
    };
    let image = build(
        "new",
        &[("base", 3000), ("middle", 2_500_000), ("top", 500_000)],
    );
    from.seed_image("src/x", "a", &image).unwrap();
    // The float's image shares the base.
    ground
        .registry
        .seed_image("ci", "a", &build("old", &[("base", 3000)]))
        .unwrap();
    let mut request = ground.request("one", &[(":a", "a")], &json!({}));
    request["spec"]["images"][0]["source"] = json!(format!("{}/src/x:a", from.host()));
    ground.documents(&[request]);
    let plain = format!("--plain-http={}", from.host());
    let run = preview(&ground, &["-ojson", &plain]).await.exits(0);
    let copy = images(&run)[0]["copy"].clone();
    let config = copy["missing"]["bytes"].as_u64().unwrap() - 3_000_000;
    assert!(config > 0 && config < 1000, "{copy}");
    assert_eq!(
        copy,
        json!({
            "present": {"blobs": 1, "bytes": 3000},
            "mountable": {"blobs": 0, "bytes": 0},
            "missing": {"blobs": 3, "bytes": 3_000_000 + config},
            "manifests": {"present": 0, "missing": 0},
        })
    );
    assert_only_read(&ground);
    let run = ground.promote(&["-ojson", &plain]).await.exits(0);
    let copied = run.items()[0]["status"]["images"][0]["bytesCopied"].as_u64();
    assert_eq!(copied, Some(3_000_000 + config));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_is_said_of_each_image_and_the_others_are_looked_at() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "good", "good");
    ground.seed("src/x", "broken", "broken");
    let lost = image("broken").blobs.last().unwrap().0;
    assert!(ground.registry.lose_blob("src/x", lost));
    let mut request = ground.request(
        "one",
        &[(":good", "a"), (":gone", "b"), (":broken", "c")],
        &json!({}),
    );
    let odd = json!({"source": "elsewhere.example/x:y", "float": ground.at("ci:d")});
    request["spec"]["images"].as_array_mut().unwrap().push(odd);
    ground.documents(&[request]);
    let host = ground.registry.host();
    let listed = format!("--allow-registry={host}");
    let run = preview(&ground, &["-ojson", &listed]).await.exits(1);
    let verdicts: Vec<_> = images(&run)
        .iter()
        .map(|image| {
            (
                image["verdict"].as_str().unwrap().to_owned(),
                image["reason"].as_str().map(str::to_owned),
            )
        })
        .collect();
    let fail = |reason: &str| ("Fail".to_owned(), Some(reason.to_owned()));
    assert_eq!(
        verdicts,
        [
            ("Promote".to_owned(), None),
            fail("SourceGone"),
            fail("SourceIncomplete"),
            fail("NotAllowed")
        ]
    );
    let refused = images(&run)[3]["message"].as_str().unwrap().to_owned();
    assert!(
        refused.contains("spec.images[3].source") && refused.contains("elsewhere.example"),
        "{refused}"
    );
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["inTheWay"], 3);
    assert_only_read(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_in_time_is_said_to_be_so_and_bad_input_is_not_looked_at() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    let down = Rule::new(Matcher::kind(RequestKind::Manifest), Action::page(503));
    ground.registry.add_rule(down);
    let run = preview(&ground, &["-ojson", "--timeout=2"]).await.exits(1);
    let image = &images(&run)[0];
    assert_eq!(
        (&image["verdict"], &image["reason"]),
        (&json!("NotKnown"), &json!("RegistryUnavailable"))
    );
    ground.registry.clear_rules();
    ground.registry.reset_log();
    for (arguments, said) in [
        (
            ["--against=missing", "-ojson"],
            "--against: missing: cannot be read",
        ),
        (
            ["--registry-config=missing", "-ojson"],
            "--registry-config: cannot read missing",
        ),
        (["--plain-http=a/b", "-ojson"], "--plain-http"),
    ] {
        let run = preview(&ground, &arguments).await.exits(2);
        assert!(
            run.stdout.is_empty() && run.stderr.contains(said),
            "{}",
            run.stderr
        );
    }
    ground.documents(&[json!({"kind": "Pod"})]);
    let run = preview(&ground, &[]).await.exits(2);
    assert!(run.stderr.contains("document 1"), "{}", run.stderr);
    assert_eq!(ground.registry.requests(&Matcher::default()).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_would_not_run_and_floats_named_twice_are_told() {
    let ground = Ground::new().await;
    ground.seed("src/x", "a", "new");
    let request = |name: &str, more: Value| ground.request(name, &[(":a", "a")], &more);
    ground.documents(&[
        request("held", json!({"suspend": true})),
        request("ended", json!({"cancel": true})),
        request("runs", json!({})),
    ]);
    let run = preview(&ground, &["-ojson"]).await.exits(1);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let image = |at: usize| &report["requests"][at]["images"][0];
    assert_eq!(
        (&image(0)["verdict"], &image(0)["reason"]),
        (&json!("Fail"), &json!("Suspended"))
    );
    assert_eq!(
        (&image(1)["verdict"], &image(1)["reason"]),
        (&json!("Fail"), &json!("Cancelled"))
    );
    assert_eq!(image(2)["verdict"], "Promote");
    let said = image(2)["message"].as_str().unwrap();
    assert!(said.contains("ended moves this float first"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_distribution_too_a_preview_only_reads_and_announces_what_is_written() {
    let registry = Distribution::start(DistributionOptions::default())
        .await
        .unwrap();
    let client = registry.client().unwrap();
    let new = client
        .push("src/x", "a", &Image::new(ImageKind::OciIndex, "new"))
        .await
        .unwrap();
    let old = client
        .push("ci", "a", &Image::new(ImageKind::Oci, "old"))
        .await
        .unwrap();
    let ground = Ground::new().await;
    let at = |path: &str| format!("{}/{path}", registry.host());
    let spec = json!({"images": [{"source": at("src/x:a"), "float": at("ci:a")}]});
    ground.documents(&[crate::testbed::command::document("one", &spec)]);
    let plain = format!("--plain-http={}", registry.host());
    let seen = registry.log().requests().unwrap().len();
    let run = preview(&ground, &["-ojson", &plain]).await.exits(0);
    for request in &registry.log().requests().unwrap()[seen..] {
        assert!(
            matches!(request.method.as_str(), "GET" | "HEAD"),
            "{request:?}"
        );
    }
    let image = images(&run)[0].clone();
    assert_eq!(
        image["copy"]["manifests"],
        json!({"present": 0, "missing": 2})
    );
    let mut announced: Vec<_> = image["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| {
            (
                tag["tag"].as_str().unwrap().to_owned(),
                tag["digest"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    announced.sort();
    ground.promote(&[&plain]).await.exits(0);
    let mut written = Vec::new();
    for tag in client.tags("ci").await.unwrap() {
        let digest = client.digest("ci", &tag).await.unwrap().unwrap();
        let named = match tag.split_once("_prune_") {
            Some((_, float)) => format!("YYYYMMDDHHMMSS_prune_{float}"),
            None => tag,
        };
        written.push((named, digest));
    }
    written.sort();
    assert_eq!(written, announced);
    let holds = |digest: &str| announced.iter().filter(|(_, d)| d == digest).count();
    assert_eq!((holds(&new), holds(&old)), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_can_be_tried_without_a_registry() {
    let ground = Ground::new().await;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/example.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
    command
        .args(["preview", "--embedded-registry", "-f", example])
        .current_dir(ground.folder.path());
    let run = ended(command).await.exits(0);
    assert!(
        run.stdout
            .ends_with("4 would be promoted, 0 already in place; nothing was written\n"),
        "{}",
        run.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_or_speaks_plain_http_is_told_within_seconds_with_the_remedy()
{
    let ground = Ground::new().await;
    ground.seed("src/x", "a", "new");
    let closed = format!("127.0.0.1:{}", crate::testbed::free_port().unwrap());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let host = ground.registry.host();
    let plain = format!("give --plain-http {host}");
    for (host, cause) in [
        (&closed, "Connection refused"),
        (&host, plain.as_str()),
        (&silent, "is not reachable"),
    ] {
        let image = json!({"source": format!("{host}/src/x:a"), "float": format!("{host}/ci:a")});
        let request = json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": "one"}, "spec": {"images": [image], "attempts": 2},
        });
        ground.documents_anew(&[request]);
        let begun = std::time::Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
        command
            .args(["preview", "-f", "requests.yaml", "-ojson"])
            .current_dir(ground.folder.path())
            .env_clear()
            .env("HOME", ground.folder.join("home"))
            .kill_on_drop(true);
        let run = ended(command).await.exits(1);
        let took = begun.elapsed();
        println!("{cause}: told after {took:.1?}");
        assert!(took < std::time::Duration::from_secs(25), "{took:?}");
        assert!(run.stdout.contains(cause), "{}", run.stdout);
    }
    // The command that promotes says it too.
    let other = Ground::new().await;
    other.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    let begun = std::time::Instant::now();
    let running = other.start(&[]);
    running.says(&plain).await;
    println!("promote: told after {:.1?}", begun.elapsed());
    running.terminate().await;
    running.ended().await.exits(1);
}
