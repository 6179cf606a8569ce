//! What `promote` did is taken back from its state file, with no cluster.

use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, ended, verdict};

/// Promotes two documents on the same floats, one after the other.
async fn promoted() -> (Ground, [[String; 2]; 3]) {
    let ground = Ground::new().await;
    let seed =
        |repository: &str, tag: &str, seed: &str| ground.seed(repository, tag, seed).to_string();
    let old = ["a", "b"].map(|tag| seed("ci", tag, &format!("old {tag}")));
    let one = ["a1", "b1"].map(|tag| seed("src/x", tag, tag));
    let two = ["a2", "b2"].map(|tag| seed("src/x", tag, tag));
    let document = |name: &str, sources: [&str; 2]| {
        let images = [(sources[0], "a"), (sources[1], "b")];
        ground.request(name, &images, &json!({}))
    };
    ground.documents(&[
        document("one", [":a1", ":b1"]),
        document("two", [":a2", ":b2"]),
    ]);
    ground.promote(&[]).await.exits(0);
    (ground, [old, one, two])
}

fn at(ground: &Ground) -> [String; 2] {
    ["a", "b"].map(|tag| ground.registry.tag("ci", tag).unwrap().to_string())
}

async fn undo(ground: &Ground, arguments: &[&str]) -> Run {
    ended(ground.subcommand("undo", arguments)).await
}

/// Carries out what an undo printed, with a state of its own.
async fn carry_out(ground: &Ground, undo: &Run) -> Run {
    let requests = std::fs::read_to_string(ground.folder.join("requests.yaml")).unwrap();
    ground.folder.write("requests.yaml", &undo.stdout).unwrap();
    let _ = std::fs::remove_file(ground.folder.join("undo.state.yaml"));
    let run = ground
        .promote(&["-o", "json", "--state=undo.state.yaml"])
        .await;
    ground.folder.write("requests.yaml", &requests).unwrap();
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn what_promote_moved_goes_back_together_and_a_float_by_itself() {
    let (ground, [old, one, two]) = promoted().await;
    let writes = ground.writes();
    let printed = undo(&ground, &["two"]).await.exits(0);
    assert_eq!(ground.writes(), writes);
    let document: Value = serde_saphyr::from_str(&printed.stdout).unwrap();
    let name = document["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("two-undo-"), "{name}");
    assert_eq!(document["spec"]["undo"], true);
    assert_eq!(document["spec"]["images"][0]["replaces"], two[0]);
    let run = carry_out(&ground, &printed).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!(at(&ground), one);
    let pin = run.items()[0]["status"]["images"][0]["displaced"][0]["pruneTag"].clone();
    assert!(pin.as_str().unwrap().ends_with("_prune_a__broken"), "{pin}");

    // Not twice; and what that file does not tell of is somebody else's move.
    let again = undo(&ground, &["two"]).await.exits(2);
    assert!(again.stderr.contains("taken back already"), "{again:?}");
    let float = ground.at("ci:a");
    let moved = undo(&ground, &[&float]).await.exits(2);
    assert!(
        moved.stderr.contains("somebody else has moved it since"),
        "{moved:?}"
    );
    // By its digest it goes wherever it is to go.
    let to = format!("--to={}", old[0]);
    let printed = undo(&ground, &[&float, &to]).await.exits(0);
    carry_out(&ground, &printed).await.exits(0);
    assert_eq!(at(&ground), [old[0].clone(), one[1].clone()]);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_from_a_file_is_refused_as_one_in_a_cluster_is() {
    let (ground, [_, _, two]) = promoted().await;
    let foreign = ground.seed("ci", "b", "foreign").to_string();
    let refused = async |arguments: &[&str], words: &[&str]| {
        let writes = ground.writes();
        let run = undo(&ground, arguments).await.exits(2);
        assert!(run.stdout.is_empty(), "{run:?}");
        for word in words {
            assert!(run.stderr.contains(word), "no '{word}': {run:?}");
        }
        assert_eq!(ground.writes(), writes);
    };
    refused(&["two"], &["ci:b is on", &foreign, "--partial"]).await;
    refused(&["none"], &["no request none"]).await;
    refused(&[&ground.at("ci:never")], &["nothing to take back"]).await;
    refused(&["two", "--apply"], &["--apply", "--file"]).await;
    refused(
        &["two", "--state=none.yaml"],
        &["none.yaml does not exist", "--state"],
    )
    .await;
    let part = undo(&ground, &["two", "--partial"]).await.exits(0);
    assert!(part.stderr.contains("left out: "), "{part:?}");
    carry_out(&ground, &part).await.exits(0);
    let now = at(&ground);
    assert!(now[0] != two[0] && now[1] == foreign, "{now:?}");

    // A first promotion, one that is held back, and one that failed before it moved anything.
    ground.documents_anew(&[
        ground.request("first", &[(":a1", "c")], &json!({})),
        ground.request("held", &[(":a1", "d")], &json!({"suspend": true})),
        ground.request("failed", &[(":gone", "a")], &json!({"attempts": 1})),
    ]);
    ground.promote(&[]).await.exits(1);
    refused(&["first"], &["moved no float off anything"]).await;
    refused(&["held"], &["has not ended"]).await;
    refused(&["failed"], &["nothing to go back to", "SourceGone"]).await;
}
