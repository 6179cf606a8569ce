//! `promote`, the real binary, on embedded registries.

mod access;
mod again;
mod dry_run;
mod incoming;
mod input;
mod labels;
mod referrers;
mod resume;
mod serve;
mod undo;

use std::path::Path;

use serde_json::json;
use tokio::process::Command;

use crate::testbed::command::{Ground, document, ended, verdict};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/example.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_readme_promotes_twice_in_a_row_and_shows_every_phase() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("example.yaml");
    std::fs::copy(EXAMPLE, &file).unwrap();
    for _ in 0..2 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
        command
            .args(["promote", "--embedded-registry", "-o", "json", "-f"])
            .arg(&file);
        let run = ended(command).await.exits(0);
        let items = run.items();
        assert_eq!(items.len(), 2);
        let images: Vec<_> = items
            .iter()
            .flat_map(|item| item["status"]["images"].as_array().unwrap())
            .collect();
        assert_eq!(images.len(), 4);
        let firsts: Vec<_> = images.iter().map(|i| i["firstPromotion"] == true).collect();
        assert_eq!(firsts, [false, true, false, false]);
        assert_eq!(
            images[2]["source"]["mediaType"],
            "application/vnd.oci.image.index.v1+json"
        );
        for item in &items {
            assert_eq!(verdict(item), ("Posted", "Promoted"));
        }
        for image in images {
            let float = image["float"].as_str().unwrap();
            let digest = image["source"]["digest"].as_str().unwrap();
            let lines: Vec<_> = run.stderr.lines().filter(|l| l.contains(float)).collect();
            let mut shown = lines.iter();
            for phase in ["Pending", "Incoming", "BackedUp", "Latched", "Posted"] {
                let found = shown.any(|l| l.contains(phase) && l.contains(&digest[..19]));
                assert!(found, "{phase} of {float}:\n{}", run.stderr);
            }
            let tag = float.split(':').next_back().unwrap();
            let table = |name: &str, digest: &str| {
                let listed = |l: &&str| {
                    let words: Vec<_> = l.split_whitespace().collect();
                    words == [name, digest]
                };
                assert_eq!(
                    run.stderr.lines().filter(listed).count(),
                    1,
                    "{name} {digest}:\n{}",
                    run.stderr
                );
            };
            table(tag, digest);
            table(&format!("{tag}_incoming"), digest);
            for pin in image["displaced"].as_array().into_iter().flatten() {
                let old = pin["digest"].as_str().unwrap();
                table(pin["pruneTag"].as_str().unwrap(), old);
                table(&format!("{tag}__pre"), old);
                table(&format!("{tag}__post1"), digest);
            }
        }
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// A line without the time in its prune tag, and the spaces that line it up.
fn timeless(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let stamp = word.get(..14).unwrap_or_default();
        let stamped = !stamp.is_empty() && stamp.bytes().all(|c| c.is_ascii_digit());
        &word[if stamped { 14 } else { 0 }..]
    });
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_that_the_readme_shows_is_what_is_printed() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, rest) = readme.split_once("--embedded-registry\n").unwrap();
    let (_, shown) = rest.split_once("```text\n").unwrap();
    let shown: Vec<&str> = shown.split("```").next().unwrap().lines().collect();
    assert_eq!(shown.len(), 8, "{shown:#?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("example.yaml");
    std::fs::copy(EXAMPLE, &file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
    command
        .args(["promote", "--embedded-registry", "-f"])
        .arg(&file);
    let run = ended(command).await.exits(0);
    let mut printed = run.stderr.lines().map(timeless);
    for line in shown {
        let wanted = timeless(line);
        assert!(
            printed.any(|line| line == wanted),
            "not in its place: {line}\n{}",
            run.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_output_alone_is_on_standard_output_and_reads_back_as_a_list() {
    let ground = Ground::new().await;
    ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    let run = ground.promote(&["-o", "yaml"]).await.exits(0);
    let list: serde_json::Value = serde_saphyr::from_str(&run.stdout).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(verdict(&list["items"][0]), ("Posted", "Promoted"));
    assert!(!run.stderr.contains("kind:"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_on_one_float_run_in_their_order_and_the_last_one_wins() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let new: Vec<_> = ["1", "2", "3"]
        .map(|n| ground.seed("src/x", n, n))
        .into_iter()
        .collect();
    let request = |n: &str| {
        ground.request(
            &format!("request-{n}"),
            &[(&format!(":{n}"), "a")],
            &json!({}),
        )
    };
    ground.documents(&[request("1"), request("2"), request("3")]);
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    let displaced: Vec<_> = run
        .items()
        .iter()
        .map(|item| {
            assert_eq!(verdict(item), ("Posted", "Promoted"));
            item["status"]["images"][0]["displaced"][0]["digest"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        displaced,
        [old.to_string(), new[0].to_string(), new[1].to_string()]
    );
    let history = ground.registry.history("ci", "a");
    let moves: Vec<_> = history.iter().filter_map(|change| change.digest).collect();
    assert_eq!(moves, [old, new[0], new[1], new[2]]);
    let tag = |name: &str, digest: &dyn ToString| (name.to_owned(), digest.to_string());
    let mut expected = vec![
        tag("STAMP_prune_a", &old),
        tag("STAMP_prune_a", &new[0]),
        tag("STAMP_prune_a", &new[1]),
        tag("a", &new[2]),
        tag("a__post1", &new[2]),
        tag("a__pre", &new[1]),
        tag("a_incoming", &new[2]),
    ];
    expected.sort();
    assert_eq!(ground.tags("ci"), expected);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_in_the_group_of_its_float_is_made_once_and_never_overwritten() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let [one, two] = ["1", "2"].map(|n| ground.seed("src/x", n, n));
    let request = |n: &str, replaces: &dyn ToString| {
        let source = format!(":{n}");
        let images = [(source.as_str(), "a"), (source.as_str(), "v1")];
        let mut request = ground.request(&format!("r{n}"), &images, &json!({}));
        request["spec"]["images"][0]["replaces"] = json!(replaces.to_string());
        request["spec"]["images"][1]["replaces"] = json!("None");
        request
    };
    ground.documents(&[request("1", &old), request("2", &one)]);
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Posted", "Promoted"));
    assert_eq!(verdict(&items[1]), ("Failed", "PreconditionFailed"));
    for tag in ["a", "v1"] {
        assert_eq!(ground.registry.tag("ci", tag), Some(one), "{tag}");
    }
    // What failed did not move, and is not tried again on what has changed.
    ground.promote(&[]).await.exits(1);
    assert_eq!(ground.registry.tag("ci", "v1"), Some(one));
    assert_ne!(one, two);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_stops_at_a_gate_and_the_next_one_goes_on_where_it_was_removed() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    let gated = |gates: &serde_json::Value| {
        let request = ground.request("one", &[(":a", "a")], &json!({"gates": gates}));
        ground.documents(&[request]);
    };
    for gates in [
        json!([{"name": "x"}, {"name": "tests"}]),
        json!([{"name": "tests"}]),
    ] {
        gated(&gates);
        let run = ground.promote(&["-o", "json"]).await.exits(1);
        assert_eq!(verdict(&run.items()[0]), ("BackedUp", "AwaitingApproval"));
        assert!(run.stderr.contains("tests"), "{}", run.stderr);
        assert_eq!(ground.registry.tag("ci", "a"), Some(old));
        assert_eq!(ground.registry.tag("ci", "a_incoming"), Some(new));
    }
    let written = ground.writes();
    gated(&json!([]));
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    // The float and its `__post1`: everything else was there.
    assert_eq!(ground.writes() - written, 2);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_writes_nothing_and_ends_planned() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("plan", &[(":a", "a")], &json!({"mode": "Plan"}))]);
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Planned", "Planned"));
    assert_eq!(ground.writes(), 0);
    assert_eq!(ground.tags("ci"), [("a".to_owned(), old.to_string())]);
    assert!(
        run.stderr.contains(&format!("would be {new}")),
        "{}",
        run.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_suspended_document_is_left_and_the_others_go_on() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "cancelled", "old");
    let new = ground.seed("src/x", "a", "new");
    ground.documents(&[
        ground.request(
            "cancelled",
            &[(":a", "cancelled")],
            &json!({"cancel": true}),
        ),
        ground.request(
            "suspended",
            &[(":a", "suspended")],
            &json!({"suspend": true}),
        ),
        ground.request("other", &[(":a", "other")], &json!({})),
    ]);
    for _ in 0..2 {
        let run = ground.promote(&["-o", "json"]).await.exits(1);
        let items = run.items();
        assert_eq!(verdict(&items[0]), ("Cancelled", "Cancelled"));
        assert_eq!(verdict(&items[1]), ("Pending", "Suspended"));
        assert_eq!(verdict(&items[2]), ("Posted", "Promoted"));
        assert!(
            run.stderr.contains("suspended  Pending, Suspended"),
            "{}",
            run.stderr
        );
    }
    let tag = |name: &str, digest: &dyn ToString| (name.to_owned(), digest.to_string());
    let expected = [
        tag("cancelled", &old),
        tag("other", &new),
        tag("other_incoming", &new),
    ];
    assert_eq!(ground.tags("ci"), expected);
    // Taken back, the suspension is over.
    ground.documents(&[
        ground.request("suspended", &[(":a", "suspended")], &json!({})),
        ground.request("other", &[(":a", "other")], &json!({})),
    ]);
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!(ground.tags("ci").len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_a_cluster_are_ignored_and_that_is_said() {
    let ground = Ground::new().await;
    ground.seed("src/x", "a", "new");
    let more = json!({"pullSecret": {"name": "pull"}, "pushSecret": {"name": "push"}});
    ground.documents(&[ground.request("one", &[(":a", "a")], &more)]);
    let run = ground.promote(&[]).await.exits(0);
    let said = "one: pullSecret and pushSecret are ignored without a cluster";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(run.stdout.is_empty(), "{}", run.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_to_read_what_a_run_says() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    let mut command = ground.command(&["-o", "yaml"]);
    command
        .env("RUST_LOG", "debug")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let status = tokio::time::timeout(crate::testbed::command::PATIENCE, child.wait()).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(0));
    assert_eq!(ground.registry.tag("ci", "a"), Some(new));
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_images_can_be_promoted_by_digest_on_the_embedded_registry() {
    let images = quaylike::built_in().unwrap();
    let (_, _, image) = &images[3];
    let ground = Ground::new().await;
    let source = format!("registry.example/x/y@{}", image.digest());
    ground.documents(&[document(
        "one",
        &json!({"images": [{"source": source, "float": "quay.io/a/b:c"}]}),
    )]);
    let run = ground
        .promote(&["--embedded-registry", "-o", "json"])
        .await
        .exits(0);
    let digest = image.digest().to_string();
    assert_eq!(
        run.items()[0]["status"]["images"][0]["source"]["digest"],
        digest
    );
    assert!(
        run.stderr.contains("stands in for quay.io"),
        "{}",
        run.stderr
    );
    assert!(!Path::new(&ground.folder.join("requests.state.yaml")).exists());

    // As on quay, an index of indexes is refused.
    let nested = format!("registry.example/x/y@{}", images[4].2.digest());
    ground.documents(&[document(
        "one",
        &json!({"images": [{"source": nested, "float": "quay.io/a/b:c"}]}),
    )]);
    let run = ground
        .promote(&["--embedded-registry", "-o", "json"])
        .await
        .exits(1);
    let image = &run.items()[0]["status"]["images"][0];
    assert_eq!(image["reason"], "UnsupportedManifest");
}
