//! Interruptions: whatever ended a run, the next one goes on, and the tags in the end are those of a run without one.

use std::time::Duration;

use futures::future::join_all;
use quaylike::{GateSpec, Image, ImageSpec, Matcher, Moment, RegistryHandle, RequestKind, Shape};
use serde_json::json;

use crate::testbed::command::{Ground, Run, put, verdict};
use crate::testbed::floats::put_suffix;

/// What becomes of the write at which a run is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is never done.
    Lost,
    /// It is done after the process is gone.
    Late,
    /// It was done, and its answer never came.
    Done,
}

const TAGS: [&str; 7] = [
    "a_incoming",
    "_prune_a",
    "a__pre",
    "a",
    "a__post1",
    "first_incoming",
    "first",
];

/// A float that exists, and one that is promoted for the first time.
pub async fn ground() -> Ground {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new-a");
    ground.seed("src/x", "first", "new-first");
    let images = [(":a", "a"), (":first", "first")];
    ground.documents(&[ground.request("one", &images, &json!({"attempts": 20}))]);
    ground
}

/// Kills a run at a write, and compares what the next run comes to.
async fn interrupted(matcher: Matcher, fate: Fate, expected: &[(String, String)]) {
    let ground = ground().await;
    let spec = if fate == Fate::Done {
        GateSpec::after(matcher.clone())
    } else {
        GateSpec::before(matcher.clone())
    };
    let gate = ground.registry.gate(spec);
    let running = ground.start(&[]);
    let reached = tokio::time::timeout(crate::testbed::command::PATIENCE, gate.reached()).await;
    assert!(reached.is_ok(), "{matcher:?} {fate:?}:\n{}", running.log());
    running.kill().await;
    if fate == Fate::Late {
        gate.open();
    } else {
        gate.cut();
    }
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    let at = format!("{matcher:?} {fate:?}:\n{}", run.stderr);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"), "{at}");
    assert_eq!(ground.tags("ci"), expected, "{at}");
    let history: Vec<_> = ground.registry.history("ci", "a");
    assert_eq!(
        history.iter().rev().find_map(|c| c.digest),
        ground.registry.tag("src/x", "a"),
        "{at}"
    );
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_at_any_write_is_taken_up_to_the_same_tags() {
    let whole = ground().await;
    whole.promote(&[]).await.exits(0);
    let expected = whole.tags("ci");
    assert_eq!(expected.len(), 7);
    let mut points = Vec::new();
    for fate in [Fate::Lost, Fate::Late, Fate::Done] {
        let prune = |tag: &str| tag.starts_with('_').then(|| put_suffix(tag));
        points.extend(TAGS.map(|tag| (prune(tag).unwrap_or_else(|| put(tag)), fate)));
        let upload = Matcher {
            method: Some("POST".into()),
            kind: Some(RequestKind::Upload),
            repository: Some("ci".into()),
            ..Matcher::default()
        };
        points.push((upload, fate));
    }
    assert_eq!(points.len(), 24);
    // What they do most is wait.
    let runs = points
        .into_iter()
        .map(|(matcher, fate)| interrupted(matcher, fate, &expected));
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_lands_late_does_not_take_a_float_back_from_a_later_document() {
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let [one, two] = ["1", "2"].map(|n| ground.seed("src/x", n, n));
    let request = |n: &str| {
        let source = format!(":{n}");
        ground.request(
            &format!("r{n}"),
            &[(&source, "a")],
            &json!({"attempts": 20}),
        )
    };
    ground.documents(&[request("1"), request("2")]);
    let gate = ground.registry.gate(GateSpec::before(put("a")));
    let running = ground.start(&["--settle-seconds=8"]);
    gate.reached().await;
    running.kill().await;
    ground.registry.reset_log();
    let second = ground.start(&["--settle-seconds=8", "-o", "json"]);
    second
        .says("waiting 21 s for tag writes of the earlier run to settle")
        .await;
    // Well within the time in which it may land, and long after a run that does not wait would be through.
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Whether it may push is asked meanwhile, with an upload that is taken back; no tag is read or written.
    let tags = Matcher {
        kind: Some(RequestKind::Manifest),
        ..Matcher::default()
    };
    assert_eq!(ground.registry.count(&tags), 0, "{}", second.log());
    gate.open();
    let run = second.ended().await.exits(0);
    for item in run.items() {
        assert_eq!(verdict(&item), ("Posted", "Promoted"));
    }
    let history = ground.registry.history("ci", "a");
    let moves: Vec<_> = history.iter().filter_map(|c| c.digest).collect();
    assert_eq!(moves, [old, one, two]);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_run_records_the_write_that_was_sent_and_is_taken_up() {
    let whole = ground().await;
    whole.promote(&[]).await.exits(0);
    let ground = ground().await;
    let gate = ground.registry.gate(GateSpec::before(put("a__pre")));
    let running = ground.start(&[]);
    gate.reached().await;
    running.terminate().await;
    running
        .says("tag writes that were sent are waited for")
        .await;
    // As coreutils' timeout does, to the process and to its group.
    running.terminate().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    gate.open();
    let run = running.ended().await.exits(1);
    assert!(run.stderr.contains("call it again"), "{}", run.stderr);
    let status = &ground.state()["requests"][0]["status"];
    assert_eq!(status["images"][0]["attempts"], json!(null), "{status}");
    assert_eq!(status["images"][0]["phase"], "BackedUp", "{status}");
    assert!(ground.registry.tag("ci", "a__pre").is_some());
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert!(
        run.stderr.contains("waiting")
            && run
                .stderr
                .contains("tag writes of the earlier run to settle"),
        "{}",
        run.stderr
    );
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!(ground.tags("ci"), whole.tags("ci"));
    ground.assert_never_dangling();
}

/// How many requests a registry was sent, once the other images wait for the one that is held.
async fn at_rest(registry: &RegistryHandle) -> usize {
    let count = || registry.requests(&Matcher::default()).len();
    let (mut requests, mut calm) = (count(), 0);
    while calm < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        calm = if count() == requests { calm + 1 } else { 0 };
        requests = count();
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_on_one_state_is_told_who_has_it() {
    let ground = ground().await;
    let gate = ground.registry.gate(GateSpec::before(put("a_incoming")));
    let running = ground.start(&[]);
    gate.reached().await;
    let requests = at_rest(&ground.registry).await;
    let second = ground.promote(&[]).await.exits(2);
    let who = format!("is in use by process {}", running.child.id().unwrap());
    assert!(second.stderr.contains(&who), "{}", second.stderr);
    assert_eq!(
        ground.registry.requests(&Matcher::default()).len(),
        requests
    );
    gate.open();
    running.ended().await.exits(0);
    // Afterwards it is free.
    ground.promote(&[]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_saved_for_a_while_stops_nothing_for_good() {
    let ground = ground().await;
    let folder = ground.folder.join("states");
    std::fs::create_dir(&folder).unwrap();
    let before = ground.registry.tag("ci", "a");
    let gate = ground.registry.gate(GateSpec::before(put("a_incoming")));
    let running = ground.start(&["--state=states/s.yaml", "-o", "json"]);
    gate.reached().await;
    std::fs::rename(&folder, ground.folder.join("away")).unwrap();
    gate.open();
    running.says("nothing goes on until then").await;
    // The pins' names are recorded before; that the float may move is not.
    at_rest(&ground.registry).await;
    assert_eq!(ground.registry.tag("ci", "a"), before);
    std::fs::rename(ground.folder.join("away"), &folder).unwrap();
    let run = running.ended().await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    let state = std::fs::read_to_string(folder.join("s.yaml")).unwrap();
    assert!(state.contains("phase: Posted"), "{state}");
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn children_collected_between_their_push_and_that_of_their_index_are_brought_again() {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    let index = ImageSpec::new(Shape::Index, "new").build().unwrap();
    ground.registry.seed_image("src/x", "a", &index).unwrap();
    let hold = |hold| ground.registry.update(|settings| settings.hold = hold).hold;
    hold(Duration::from_secs(1));
    // The last request before the PUT of the index: its children are pushed, and held by nothing but their grace.
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci");
    let gate = ground.registry.gate(GateSpec {
        matcher: look.reference("a_incoming"),
        nth: 1,
        moment: Moment::Before,
    });
    ground.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    let running = ground.start(&["-o", "json"]);
    gate.reached().await;
    let children: Vec<_> = index.children.iter().map(Image::digest).collect();
    let there = |digest| ground.registry.manifest("ci", digest).is_some();
    assert!(children.iter().all(|child| there(*child)));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!children.iter().any(|child| there(*child)));
    hold(Duration::from_hours(1));
    gate.open();
    let run = running.ended().await.exits(0);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Posted", "Promoted"), "{}", run.stderr);
    assert_eq!(items[0]["status"]["images"][0]["attempts"], 1);
    for child in &children {
        let pushes = ground.registry.count(&put(&child.to_string()));
        assert_eq!(pushes, 2, "nothing is remembered wrongly");
    }
    assert_eq!(ground.registry.tag("ci", "a"), Some(index.digest()));
    ground.assert_never_dangling();
}

/// The command of [`Ground::command`] with the documents on standard input.
async fn piped(ground: &Ground, arguments: &[&str]) -> Run {
    let text = std::fs::read(ground.folder.join("requests.yaml")).unwrap();
    let mut command = ground.command(arguments);
    let args: Vec<_> = command.as_std().get_args().map(ToOwned::to_owned).collect();
    let args = args.into_iter().map(|argument| {
        if argument == "requests.yaml" {
            "-".into()
        } else {
            argument
        }
    });
    let mut anew = tokio::process::Command::new(command.as_std().get_program());
    anew.args(args)
        .current_dir(ground.folder.path())
        .env_clear()
        .env("HOME", ground.folder.join("home"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    command = anew;
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, &text)
        .await
        .unwrap();
    drop(input);
    let output = tokio::time::timeout(crate::testbed::command::PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_standard_input_is_kept_only_where_it_is_named() {
    let ground = ground().await;
    let files = || {
        let names = std::fs::read_dir(ground.folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names
            .filter(|name| name != "home" && name != ".lock")
            .collect();
        names.sort();
        names
    };
    piped(&ground, &[]).await.exits(0);
    assert_eq!(files(), ["requests.yaml"]);
    // Another input does not meet the state of the first.
    let other = ground.request("two", &[(":a", "z")], &json!({}));
    ground.documents(&[other]);
    piped(&ground, &[]).await.exits(0);
    piped(&ground, &["--state=kept.yaml"]).await.exits(0);
    assert_eq!(files(), ["kept.yaml", "kept.yaml.lock", "requests.yaml"]);
}
