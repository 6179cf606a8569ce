//! Called again after an end: what was promoted is looked at, what failed or was cancelled is tried again.

use quaylike::GateSpec;
use serde_json::{Value, json};

use crate::testbed::command::{Ground, image, put, verdict};

fn tag(name: &str, digest: &dyn ToString) -> (String, String) {
    (name.to_owned(), digest.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_posted_each_float_is_looked_at_once_and_nothing_is_written() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    let images = [(":a", "a"), (":a", "b")];
    ground.documents(&[ground.request("one", &images, &json!({}))]);
    ground.promote(&[]).await.exits(0);
    let before = ground.tags("ci");
    ground.registry.reset_log();
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!((ground.looks(), ground.writes()), (2, 0));
    assert_eq!(run.stderr.matches("is in place").count(), 2);
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    assert!(!run.stderr.contains("waiting"), "{}", run.stderr);
    assert_eq!(ground.tags("ci"), before);

    // Somebody else moves one float and removes the other: two warnings, still nothing written.
    let foreign = ground.seed("ci", "a", "foreign");
    ground.registry.delete_tag("ci", "b").unwrap();
    ground.registry.reset_log();
    let run = ground.promote(&[]).await.exits(0);
    assert_eq!((ground.looks(), ground.writes()), (2, 0));
    let moved = format!("was promoted to {new} and is on {foreign} now");
    assert!(run.stderr.contains(&moved), "{}", run.stderr);
    assert!(
        run.stderr
            .contains(&format!("b was promoted to {new} and is gone")),
        "{}",
        run.stderr
    );
    assert_eq!(run.stderr.matches("warning: ").count(), 2);

    // Another state promotes anew: the foreign digest is displaced and pinned.
    let run = ground
        .promote(&["--state=other.yaml", "-o", "json"])
        .await
        .exits(0);
    let status = run.items()[0]["status"].clone();
    assert_eq!(
        status["images"][0]["displaced"][0]["digest"],
        foreign.to_string()
    );
    assert_eq!(ground.registry.tag("ci", "a"), Some(new));
    assert_eq!(ground.registry.tag("ci", "b"), Some(new));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failure_it_goes_on_from_what_is_pinned() {
    let ground = Ground::new().await;
    let old = [
        ground.seed("ci", "a", "old-a"),
        ground.seed("ci", "b", "old-b"),
    ];
    let new = [ground.seed("src/x", "a", "new-a"), image("new-b").digest()];
    let (source_a, source_b) = (format!("@{}", new[0]), format!("@{}", new[1]));
    let images = [(source_a.as_str(), "a"), (source_b.as_str(), "b")];
    ground.documents(&[ground.request("one", &images, &json!({}))]);
    let failed = ground.promote(&["-o", "json"]).await.exits(1);
    assert_eq!(verdict(&failed.items()[0]), ("Failed", "SourceGone"));
    let recorded = failed.items()[0]["status"]["images"].clone();
    assert_eq!(recorded[0]["reason"], "Held");
    assert_eq!(ground.registry.tag("ci", "a"), Some(old[0]));
    assert_eq!(ground.registry.tag("ci", "b"), Some(old[1]));

    ground.seed("src/x", "b", "new-b");
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Posted", "Promoted"));
    for (image, before) in [0, 1].map(|i| (&items[0]["status"]["images"][i], &recorded[i])) {
        assert_eq!(image["displaced"], before["displaced"]);
        assert_eq!(image["source"]["digest"], before["source"]["digest"]);
    }
    let expected: Vec<_> = ["a", "b"]
        .iter()
        .zip(old.iter().zip(&new))
        .flat_map(|(float, (old, new))| {
            [
                tag(float, new),
                tag(&format!("{float}_incoming"), new),
                tag(&format!("{float}__post1"), new),
                tag(&format!("{float}__pre"), old),
                tag(&format!("STAMP_prune_{float}"), old),
            ]
        })
        .collect();
    let mut expected = expected;
    expected.sort();
    assert_eq!(ground.tags("ci"), expected);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cancellation_it_goes_on_from_what_is_pinned() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let new = ground.seed("src/x", "a", "new");
    let request = |more: Value| ground.documents(&[ground.request("one", &[(":a", "a")], &more)]);
    request(json!({}));
    let gate = ground.registry.gate(GateSpec::after(put("a__pre")));
    let running = ground.start(&[]);
    gate.reached().await;
    running.kill().await;
    gate.cut();
    request(json!({"cancel": true}));
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    assert_eq!(verdict(&run.items()[0]), ("Cancelled", "Cancelled"));
    assert_eq!(ground.registry.tag("ci", "a"), Some(old));
    let pinned = run.items()[0]["status"]["images"][0]["displaced"].clone();
    request(json!({}));
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!(run.items()[0]["status"]["images"][0]["displaced"], pinned);
    let expected = [
        tag("STAMP_prune_a", &old),
        tag("a", &new),
        tag("a__post1", &new),
        tag("a__pre", &old),
        tag("a_incoming", &new),
    ];
    assert_eq!(ground.tags("ci"), expected);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_superseded_by_a_later_document_that_has_begun_on_its_float() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    let last = ground.seed("src/x", "last", "last");
    let gone = image("gone").digest();
    let first = ground.request("first", &[(&format!("@{gone}"), "a")], &json!({}));
    let second = ground.request("second", &[(":last", "a")], &json!({}));
    ground.documents(&[first.clone(), second.clone()]);
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    assert_eq!(verdict(&run.items()[0]), ("Failed", "SourceGone"));
    assert_eq!(verdict(&run.items()[1]), ("Posted", "Promoted"));

    ground.seed("src/x", "gone", "gone");
    let superseded = |item: &Value| {
        assert_eq!(verdict(item), ("Failed", "Superseded"));
        let message = &item["status"]["images"][0]["message"];
        assert!(
            message.as_str().unwrap().contains("superseded by second"),
            "{message}"
        );
    };
    ground.registry.reset_log();
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    superseded(&run.items()[0]);
    assert_eq!(ground.writes(), 0);

    // Also where the later document is not in the file any more, and a new one is put before it.
    let fresh = ground.request("fresh", &[(&format!("@{gone}"), "a")], &json!({}));
    ground.documents(&[first]);
    superseded(&ground.promote(&["-o", "json"]).await.exits(1).items()[0]);
    ground.documents(&[fresh, second]);
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    superseded(&run.items()[0]);
    assert_eq!(verdict(&run.items()[1]), ("Posted", "Promoted"));
    assert_eq!(ground.registry.tag("ci", "a"), Some(last));
    assert_eq!(ground.writes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_put_behind_an_earlier_one_is_promoted_after_it() {
    let ground = Ground::new().await;
    let [one, two] = ["1", "2"].map(|n| ground.seed("src/x", n, n));
    let request =
        |n: &str| ground.request(&format!("r{n}"), &[(&format!(":{n}"), "a")], &json!({}));
    ground.documents(&[request("1")]);
    ground.promote(&[]).await.exits(0);
    // What the state says of a document that is not in the file any more is kept and older than what is new.
    ground.documents(&[request("1"), request("2")]);
    ground.promote(&[]).await.exits(0);
    assert_eq!(ground.registry.tag("ci", "a"), Some(two));
    ground.documents(&[request("2")]);
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    let names: Vec<_> = ground.state()["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].clone())
        .collect();
    assert_eq!(names, ["r1", "r2"]);
    let history = ground.registry.history("ci", "a");
    let moves: Vec<_> = history.iter().filter_map(|c| c.digest).collect();
    assert_eq!(moves, [one, two]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_and_left_out_while_a_later_document_moved_its_float_stays_behind_it() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let sources = ["0", "1", "2"].map(|n| ground.seed("src/x", n, n));
    let request = |n: &str, float: &str| {
        ground.request(&format!("r{n}"), &[(&format!(":{n}"), float)], &json!({}))
    };
    let [r0, r1, r2] = [request("0", "z"), request("1", "a"), request("2", "a")];
    ground.documents(&[r0.clone(), r1.clone()]);
    let gate = ground.registry.gate(GateSpec::before(put("a")));
    let running = ground.start(&[]);
    gate.reached().await;
    running.kill().await;
    gate.cut();
    assert_eq!(ground.state()["requests"][1]["status"]["committed"], true);
    ground.documents(&[r0.clone(), r2.clone()]);
    ground.promote(&[]).await.exits(0);
    ground.documents(&[r0, r1, r2]);
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Posted", "Promoted"));
    assert_eq!(verdict(&items[1]), ("Failed", "Superseded"));
    assert_eq!(verdict(&items[2]), ("Posted", "Promoted"));
    let history = ground.registry.history("ci", "a");
    let moves: Vec<_> = history.iter().filter_map(|c| c.digest).collect();
    assert_eq!(moves, [old, sources[2]]);
    ground.assert_never_dangling();
}
