//! `promote --dry-run` says what `promote` would do, from where an earlier run ended; `--quiet` says only what went wrong.

use quaylike::{GateSpec, Matcher};
use serde_json::{Value, json};

use super::resume::ground;
use crate::testbed::command::{Ground, Run, put};

/// Each image's verdict and the tags that would be written.
fn announced(run: &Run) -> Vec<(String, Vec<String>)> {
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let requests = report["requests"].as_array().unwrap().iter();
    let images = requests.flat_map(|request| request["images"].as_array().unwrap());
    let tag = |tag: &Value| tag["tag"].as_str().unwrap().to_owned();
    images
        .map(|image| {
            let tags = image["tags"].as_array().unwrap().iter().map(tag);
            (
                image["verdict"].as_str().unwrap().to_owned(),
                tags.collect(),
            )
        })
        .collect()
}

fn files(ground: &Ground) -> Vec<String> {
    let files = std::fs::read_dir(ground.folder.path()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_announces_what_is_left_to_do_and_writes_nothing_not_even_its_state() {
    let ground = ground().await;
    let dry = async || ground.promote(&["--dry-run", "-o", "json"]).await.exits(0);
    let promote = |tags: &[&str]| {
        let tags = tags.iter().map(|&tag| tag.to_owned());
        ("Promote".to_owned(), tags.collect::<Vec<_>>())
    };
    let before = files(&ground);
    let prune = "YYYYMMDDHHMMSS_prune_a";
    assert_eq!(
        announced(&dry().await),
        [
            promote(&["a_incoming", prune, "a__pre", "a", "a__post1"]),
            promote(&["first_incoming", "first"]),
        ]
    );
    assert_eq!(ground.writes(), 0);
    assert_eq!(files(&ground), before);

    // A run is killed at its latch; the source is gone since.
    let gate = ground.registry.gate(GateSpec::before(put("a")));
    let running = ground.start(&[]);
    gate.reached().await;
    running.kill().await;
    gate.cut();
    let state = |ground: &Ground| std::fs::read(ground.folder.join("requests.state.yaml")).unwrap();
    let (recorded, writes) = (state(&ground), ground.writes());
    let run = dry().await;
    assert_eq!(announced(&run)[0], promote(&["a", "a__post1"]), "{run:?}");
    assert_eq!((state(&ground), ground.writes()), (recorded, writes));

    // And nothing is left when it is done.
    ground.promote(&[]).await.exits(0);
    let (writes, table) = (
        ground.writes(),
        ground.promote(&["--dry-run"]).await.exits(0),
    );
    assert!(table.stderr.contains("ci:a  is in place"), "{table:?}");
    assert!(
        table
            .stdout
            .contains("0 would be promoted, 0 already in place; nothing was written"),
        "{table:?}"
    );
    assert_eq!(ground.writes(), writes);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_of_what_would_fail_ends_as_a_preview_does_and_bad_input_as_a_run() {
    let ground = ground().await;
    ground.documents(&[ground.request("one", &[(":gone", "a")], &json!({}))]);
    let run = ground.promote(&["--dry-run"]).await.exits(1);
    assert!(
        run.stdout.contains("Fail") && run.stdout.contains("SourceGone"),
        "{run:?}"
    );
    ground
        .folder
        .write("requests.state.yaml", "kind: Other\n")
        .unwrap();
    let run = ground.promote(&["--dry-run"]).await.exits(2);
    assert!(run.stderr.contains("is not a state file"), "{run:?}");
    let wrote = Matcher {
        write: Some(true),
        ..Matcher::default()
    };
    assert_eq!(ground.registry.count(&wrote), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_run_says_nothing_unless_something_fails() {
    let ground = ground().await;
    let run = ground.promote(&["--quiet"]).await.exits(0);
    assert_eq!((&*run.stdout, &*run.stderr), ("", ""));
    ground.documents_anew(&[
        ground.request("good", &[(":a", "b")], &json!({})),
        ground.request("bad", &[(":gone", "c")], &json!({"attempts": 1})),
    ]);
    let run = ground.promote(&["-q", "-o", "json"]).await.exits(1);
    assert_eq!(run.items().len(), 2);
    assert!(run.stderr.contains("bad  Failed, SourceGone"), "{run:?}");
    assert!(!run.stderr.contains("good"), "{run:?}");
}
