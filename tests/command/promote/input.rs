//! Bad input: exit code 2, the field and the remedy are named, and no registry is asked anything.

use promotion_controller::image::Digest;
use quaylike::Matcher;
use serde_json::{Value, json};

use crate::testbed::command::{Ground, document, image};

/// Runs with these arguments, which must be refused with all of these words before anything happens.
async fn refused(ground: &Ground, arguments: &[&str], words: &[&str]) {
    let run = ground.promote(arguments).await.exits(2);
    for word in words {
        assert!(
            run.stderr.contains(word),
            "{arguments:?}: no '{word}' in:\n{}",
            run.stderr
        );
    }
    assert!(run.stdout.is_empty(), "{}", run.stdout);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    let asked = ground.registry.requests(&Matcher::default());
    assert!(asked.is_empty(), "{asked:?}");
}

async fn ground() -> Ground {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new");
    ground
}

fn changed(good: &Value, pointer: &str, value: Value) -> Value {
    let mut bad = good.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = bad.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        parent => parent[field] = value,
    }
    bad
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn every_bad_document_is_refused_with_its_field_and_a_remedy() {
    let ground = ground().await;
    let good = ground.request("one", &[(":a", "a")], &json!({}));
    let image = good["spec"]["images"][0].clone();
    let many: Vec<_> = (0..257)
        .map(|n| json!({"source": image["source"], "float": ground.at(&format!("ci:f{n}"))}))
        .collect();
    let table: [(&str, Value, &[&str]); 31] = [
        (
            "/spec/images/0/source",
            json!("no reference"),
            &["spec.images[0].source"],
        ),
        (
            "/spec/images/0/source",
            json!(7),
            &["spec.images[0].source", "a string"],
        ),
        (
            "/spec/images/0/float",
            json!("quay.io/a/b@sha256:1"),
            &["spec.images[0].float"],
        ),
        (
            "/spec/images/0/float",
            json!("quay.io/a/b"),
            &["spec.images[0].float"],
        ),
        (
            "/spec/images/0/float",
            json!(null),
            &["spec.images[0].float"],
        ),
        (
            "/spec/images/0/float",
            json!(format!("quay.io/a/b:{}", "t".repeat(99))),
            &["spec.images[0].float", "98"],
        ),
        (
            "/spec/images/0/float",
            json!("quay.io/a/b:c__broken"),
            &["spec.images[0].float", "reserved"],
        ),
        (
            "/spec/images/0/replaces",
            json!("sha256:abc"),
            &["spec.images[0].replaces", "or None"],
        ),
        (
            "/spec/images/0/replaces",
            json!("none"),
            &["spec.images[0].replaces", "or None"],
        ),
        (
            "/spec/gates",
            json!([{"name": "a b"}]),
            &["spec.gates[0].name", "letters"],
        ),
        (
            "/spec/gates",
            json!([{"name": "a"}, {"name": "a"}]),
            &["spec.gates[1].name", "once"],
        ),
        (
            "/spec/gates",
            json!(
                (0..9)
                    .map(|n| json!({"name": n.to_string()}))
                    .collect::<Vec<_>>()
            ),
            &["spec.gates", "at most 8"],
        ),
        ("/spec/undo", json!("yes"), &["spec.undo", "a boolean"]),
        (
            "/spec/images/0",
            json!({"source": image["source"]}),
            &["spec.images[0]", "float"],
        ),
        (
            "/spec/images",
            json!([image, image]),
            &["spec.images[1].float", "once"],
        ),
        ("/spec/images", json!([]), &["spec.images", "at least one"]),
        ("/spec/images", json!(many), &["spec.images", "256"]),
        (
            "/spec/images/0/tag",
            json!("x"),
            &["spec.images.0.tag", "no such field"],
        ),
        ("/spec/imagse", json!([]), &["spec.imagse", "no such field"]),
        ("/spce", json!({}), &["spce", "no such field"]),
        (
            "/metadata/nmae",
            json!("x"),
            &["metadata.nmae", "no such field"],
        ),
        (
            "/spec/latch",
            json!("Sometimes"),
            &["spec.latch", "Independently"],
        ),
        ("/spec/attempts", json!(0), &["spec.attempts", "1 to 20"]),
        (
            "/spec/deadlineSeconds",
            json!(1),
            &["spec.deadlineSeconds", "60 to 86400"],
        ),
        (
            "/spec/onFailure",
            json!("Undo"),
            &["spec.onFailure", "Rollback"],
        ),
        ("/spec", json!(null), &["spec"]),
        ("/kind", json!("Promotion"), &["kind", "PromotionRequest"]),
        (
            "/apiVersion",
            json!("v1"),
            &["apiVersion", "ci.openshift.io/v1alpha1"],
        ),
        (
            "/metadata/name",
            json!(null),
            &["metadata.name", "is missing"],
        ),
        ("/metadata/name", json!("A/b"), &["metadata.name", "a-z"]),
        (
            "/metadata/namespace",
            json!("a/b"),
            &["metadata.namespace", "a-z"],
        ),
    ];
    for (pointer, value, words) in table {
        let second = changed(&good, pointer, value);
        let mut first = good.clone();
        first["metadata"]["name"] = json!("zero");
        ground.documents(&[first, second]);
        let mut all = vec!["requests.yaml: document 2"];
        all.extend(words);
        refused(&ground, &[], &all).await;
    }
    ground.documents(&[good.clone(), good]);
    let words = ["document 2 (one)", "metadata.name", "name each once"];
    refused(&ground, &[], &words).await;
    // Nothing was begun, so nothing was left.
    let state = ground.folder.join("requests.state.yaml");
    assert!(!state.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_yaml_is_refused_with_its_place() {
    let ground = ground().await;
    let deep = "[".repeat(100_000);
    let bomb = (0..9).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        format!(
            "{text}a{}: &a{} [*a{n}, *a{n}, *a{n}, *a{n}, *a{n}, *a{n}, *a{n}, *a{n}]\n",
            n + 1,
            n + 1
        )
    });
    for text in [
        "spec: {",
        "a: b: c",
        "\tx",
        "%",
        deep.as_str(),
        bomb.as_str(),
    ] {
        ground.folder.write("requests.yaml", text).unwrap();
        refused(&ground, &[], &["requests.yaml"]).await;
    }
    for text in ["", "---\n---\n", "# nothing\n"] {
        ground.folder.write("requests.yaml", text).unwrap();
        refused(&ground, &[], &["requests.yaml", "holds no document"]).await;
    }
    std::fs::write(ground.folder.join("requests.yaml"), [0xff, 0xfe, 0, 7]).unwrap();
    refused(
        &ground,
        &[],
        &["cannot read requests.yaml", "name a readable file"],
    )
    .await;
    let huge = std::fs::File::create(ground.folder.join("requests.yaml")).unwrap();
    huge.set_len(1 << 40).unwrap();
    refused(&ground, &[], &["requests.yaml", "64 MiB"]).await;
    std::fs::remove_file(ground.folder.join("requests.yaml")).unwrap();
    refused(
        &ground,
        &[],
        &["cannot read requests.yaml", "name a readable file"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_this_files_is_refused_and_left_as_it_is() {
    let ground = ground().await;
    let good = ground.request("one", &[(":a", "a")], &json!({}));
    ground.documents(std::slice::from_ref(&good));
    let other = |name: &str, hash: &str| {
        let text = format!(
            "kind: PromotionState\nrequests:\n- name: {name}\n  specHash: {hash}\n  status: {{phase: Posted}}\n"
        );
        let seal = Digest::of(text.as_bytes());
        format!("{text}# whole as written: {seal}\n")
    };
    let (mut cut, altered) = (
        other("one", "x"),
        other("one", "x").replace("Posted", "Latched"),
    );
    cut.truncate(cut.find("  status").unwrap());
    let table = [
        (other("two", "x"), "holds the state of other requests (two)"),
        (
            other("one", "x"),
            "holds the state of another request of the name one",
        ),
        ("kind: [".into(), "is not a state file"),
        ("kind: Deployment\n".into(), "kind is 'Deployment'"),
        (
            "kind: PromotionState\nrequests: 7\n".into(),
            "truncated or modified",
        ),
        ("\u{0}\u{1}garbage".into(), "is not a state file"),
        (cut, "truncated or modified"),
        (altered, "truncated or modified"),
    ];
    let state = ground.folder.join("requests.state.yaml");
    for (text, word) in table {
        std::fs::write(&state, &text).unwrap();
        refused(
            &ground,
            &[],
            &["requests.state.yaml", word, "another --state"],
        )
        .await;
        assert_eq!(std::fs::read_to_string(&state).unwrap(), text);
    }
    for odd in [
        "nowhere/state.yaml",
        "/proc/state.yaml",
        "/dev/null",
        "home",
        "requests.yaml",
    ] {
        refused(&ground, &["--state", odd], &[odd, "another --state"]).await;
    }
    std::os::unix::fs::symlink("nothing", ground.folder.join("link")).unwrap();
    refused(
        &ground,
        &["--state=link"],
        &["link to nothing", "another --state"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_argument_is_refused_with_its_name() {
    let ground = ground().await;
    let good = ground.request("one", &[(":a", "a")], &json!({}));
    ground.documents(std::slice::from_ref(&good));
    ground.folder.write("bad.json", "{\"auths\": 7}").unwrap();
    ground.folder.write("empty.pem", "").unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    ground.folder.write("broken.pem", broken).unwrap();
    let table: [(&[&str], &[&str]); 15] = [
        (
            &["--registry-config=none.json"],
            &["--registry-config", "none.json", "readable"],
        ),
        // They never end, and are not read for ever.
        (
            &["--registry-config=/dev/zero"],
            &["--registry-config", "/dev/zero", "larger than 1 MiB"],
        ),
        (
            &["--registry-ca=quay.io=/dev/zero"],
            &["--registry-ca quay.io=/dev/zero", "larger than 1 MiB"],
        ),
        (
            &["--registry-config=home"],
            &["--registry-config", "readable"],
        ),
        (
            &["--registry-config=bad.json"],
            &["--registry-config", "bad.json", "dockerconfigjson"],
        ),
        (&["--plain-http=http://x y"], &["--plain-http", "HOST:PORT"]),
        (
            &["--registry-ca=quay.io=none.pem"],
            &["--registry-ca quay.io=none.pem", "cannot be read", "PEM"],
        ),
        (
            &["--registry-ca=quay.io:444=empty.pem"],
            &[
                "--registry-ca quay.io:444=empty.pem",
                "no certificate",
                "PEM",
            ],
        ),
        (
            &["--registry-ca=quay.io=bad.json"],
            &["--registry-ca quay.io=bad.json", "no certificate"],
        ),
        (
            &["--registry-ca=quay.io=broken.pem"],
            &["--registry-ca quay.io=broken.pem", "cannot be used", "PEM"],
        ),
        (
            &["--registry-ca=quay.io"],
            &["--registry-ca", "HOST:PORT=FILE"],
        ),
        (
            &["--registry-ca=a/b=empty.pem"],
            &["--registry-ca", "HOST:PORT"],
        ),
        (&["--cluster-range=10.0.0.0"], &["--cluster-range"]),
        (
            &["--allow-registry=quay.io"],
            &["spec.images[0].source", "--allow-registry", "one"],
        ),
        (&["--settle-seconds=99"], &["--settle-seconds"]),
    ];
    for (arguments, words) in table {
        let known: &[&str] = if arguments[0].contains("settle") {
            &words[..0]
        } else {
            words
        };
        refused(&ground, arguments, known).await;
    }
}

#[test]
fn the_help_and_the_reference_say_what_promote_orders_and_what_not() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .args(["promote", "--help"])
        .output()
        .unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/reference.md")).unwrap();
    for text in [String::from_utf8(help.stdout).unwrap(), page] {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains("it keeps no order with a controller"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_embedded_registry_cannot_stand_in_for_is_refused() {
    let ground = ground().await;
    let digest = image("none of its own").digest();
    let source = format!("registry.example/x/y@{digest}");
    let images = json!({"images": [{"source": source, "float": "quay.io/a/b:c"}]});
    let mut request = document("one", &images);
    ground.documents(std::slice::from_ref(&request));
    let known = quaylike::built_in().unwrap()[0].2.digest();
    let words = [&source, "by tag", &known.to_string()].map(str::to_owned);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    refused(&ground, &["--embedded-registry"], &words).await;
    request["spec"]["images"][0]["source"] = json!("registry.example/x/y:z");
    for (name, what) in [("embedded-first", "float"), ("embedded-index", "source")] {
        let name = format!("promotion-controller/{name}");
        request["metadata"]["annotations"] = json!({&name: "quay.io/a/b:typo"});
        ground.documents(std::slice::from_ref(&request));
        let what = format!("is no {what} of this request");
        refused(&ground, &["--embedded-registry"], &[&name, "typo", &what]).await;
    }
}
