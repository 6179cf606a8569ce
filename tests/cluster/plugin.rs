//! `kubectl promotion`: what a person asks of requests and floats, with the real kubectl, API server, controller and registry.

mod freeze;
mod undo;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use promotion_controller::api::labels::{REQUESTED_BY, float_label};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::ground::Ground;
use crate::testbed::stage::{Stage, condition, object, phase, spec};
use crate::testbed::{Binary, RunDir, binary};

const PATIENCE: Duration = Duration::from_secs(90);

/// The program by the names that kubectl knows it by, and whose cluster it is to ask.
struct Plugin {
    folder: RunDir,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Plugin {
    async fn of(stage: &Stage) -> Self {
        Self::with(stage, stage.plane.kubeconfig()).await
    }

    async fn with(stage: &Stage, kubeconfig: &Path) -> Self {
        let folder = RunDir::create("plugin").unwrap();
        for name in ["kubectl-promotion", "kubectl_complete-promotion"] {
            let program = env!("CARGO_BIN_EXE_promotion-controller");
            std::os::unix::fs::symlink(program, folder.join(name)).unwrap();
        }
        Self {
            folder,
            kubectl: binary(Binary::Kubectl).await.unwrap(),
            kubeconfig: kubeconfig.to_owned(),
            namespace: stage.namespace.clone(),
        }
    }

    /// `kubectl promotion …`, in the test's namespace.
    async fn says(&self, arguments: &[&str]) -> Said {
        let namespace = ["-n", &self.namespace];
        self.kubectl(&[&["promotion"], arguments, &namespace].concat())
            .await
    }

    async fn kubectl(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(&self.kubectl);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", self.folder.path())
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.expect("it ends").unwrap();
        let said = Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        let head = said.out.lines().take(40).collect::<Vec<_>>().join("\n");
        println!("$ kubectl {}\n{head}\n{}", arguments.join(" "), said.err);
        said
    }
}

impl Said {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// It failed as bad input does, or as a cluster that refuses, and one line says why.
    #[track_caller]
    fn refuses(self, code: i32, words: &[&str]) {
        let said = self.exits(code);
        let error: Vec<&str> = said
            .err
            .lines()
            .filter(|l| l.starts_with("error: "))
            .collect();
        assert_eq!(error.len(), 1, "{said:#?}");
        for word in words {
            assert!(error[0].contains(word), "no '{word}': {said:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_submits_follows_and_looks_at_promotions_of_a_float() {
    let ground = Ground::new("plugin").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    let (old, float) = (ground.old("f_1"), ground.float("f_1"));
    let (first, source) = ground.source("one");
    let said = plugin
        .says(&["submit", &format!("{source}={float}"), "--wait"])
        .await
        .exits(0);
    for words in [
        "Posted, 1/1 done",
        &format!("promoted  {first}"),
        &format!("displaced {old}"),
    ] {
        assert!(said.out.contains(words), "no '{words}': {said:#?}");
    }
    let (second, source) = ground.source("two");
    let pair = format!("{source}={float}");
    plugin
        .says(&["submit", &pair, "--name=second", "--wait"])
        .await
        .exits(0);

    // What our own clients write on what they create.
    let made = ground.stage.get("second").await;
    let labels = made.metadata.labels.clone().unwrap();
    assert_eq!(
        labels.into_keys().collect::<Vec<_>>(),
        [float_label(&float)]
    );
    let user = made.metadata.annotations.clone().unwrap()[REQUESTED_BY].clone();
    let names: Vec<String> = ground
        .stage
        .list()
        .await
        .iter()
        .map(|o| o.metadata.name.clone().unwrap())
        .collect();
    let other = names.iter().find(|name| *name != "second").unwrap();
    assert!(other.starts_with("f-1-"), "{names:?}");

    let said = plugin.says(&["status"]).await.exits(0);
    let heading: Vec<&str> = said
        .out
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        heading,
        ["NAME", "PHASE", "DONE", "FLOATS", "REASON", "AGE"]
    );
    let row = said
        .out
        .lines()
        .find(|line| line.starts_with("second"))
        .unwrap();
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row[..5], ["second", "Posted", "1/1", &float, "Promoted"]);
    let said = plugin
        .says(&["status", "second", "-o", "json"])
        .await
        .exits(0);
    let shown: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(shown["metadata"]["uid"], json!(made.metadata.uid));

    let said = plugin
        .says(&["history", &float, "-o", "json"])
        .await
        .exits(0);
    let history: Value = serde_json::from_str(&said.out).unwrap();
    let held = history["history"].as_array().unwrap();
    let digests: Vec<&str> = held
        .iter()
        .map(|one| one["digest"].as_str().unwrap())
        .collect();
    assert_eq!(digests, [&second, &first, &old]);
    assert_eq!(held[0]["requestedBy"], json!(user));
    assert_eq!(held[1]["until"], held[0]["from"]);
    for one in &held[1..] {
        let pin = one["pin"].as_str().unwrap();
        assert_eq!(ground.at(pin).as_deref(), one["digest"].as_str(), "{pin}");
    }
    let said = plugin.says(&["history", &float]).await.exits(0);
    assert_eq!(said.out.lines().count(), 4, "{said:#?}");

    let plain = format!("--plain-http={}", ground.registry.host());
    let writes = ground.registry.tags("ci");
    let said = plugin.says(&["float", &float, &plain]).await.exits(0);
    for words in [
        "all is there",
        &second,
        "f_1__pre",
        "PINS",
        "REQUESTS, NEWEST FIRST",
        &format!("{user} (claimed)"),
    ] {
        assert!(said.out.contains(words), "no '{words}': {said:#?}");
    }
    assert_eq!(ground.registry.tags("ci"), writes);
    let said = plugin
        .says(&["float", &float, "--no-registry", "-o", "json"])
        .await
        .exits(0);
    let shown: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(shown["registry"], Value::Null);
    assert_eq!(shown["pins"].as_array().unwrap().len(), 2);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_are_opened_one_by_one_by_several_at_once_and_no_other_is_opened() {
    let ground = Ground::new("gates").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    ground.old("f");
    let (digest, mut images) = ground.request("one", "f");
    let gate = |name: &str| json!({"name": name});
    images["gates"] = json!(["a", "b", "c", "approval"].map(gate));
    ground.stage.create("r", &images).await;
    plugin
        .says(&["open-gate", "r", "d"])
        .await
        .refuses(2, &["r has no gate d (left: a, b, c, approval)"]);
    let open = async |name: &str| {
        let said = plugin.says(&["open-gate", "r", name]).await.exits(0);
        let line = format!("promotionrequest.ci.openshift.io/r gate {name} opened\n");
        assert_eq!(said.out, line);
    };
    futures::join!(open("a"), open("b"), open("c"));
    let left = ground.stage.get("r").await.spec.gates;
    let left: Vec<_> = left.iter().map(|gate| gate.name.as_str()).collect();
    assert_eq!(left, ["approval"]);
    open("approval").await;
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    assert_eq!(ground.at("f"), Some(digest));
    plugin
        .says(&["open-gate", "r", "approval"])
        .await
        .refuses(2, &["r has ended: it is Posted", "nothing was changed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_held_back_ended_and_asked_for_again_unless_it_would_move_its_float_back() {
    let ground = Ground::new("acts").await;
    let _controller = ground.controller(&[]);
    let plugin = Plugin::of(&ground.stage).await;
    ground.old("f");
    let (digest, images) = ground.request("one", "f");
    let mut suspended = images.clone();
    suspended["suspend"] = json!(true);
    ground.stage.create("r", &suspended).await;
    ground
        .stage
        .until("r", PATIENCE, |status| status.order.is_some())
        .await;
    plugin.says(&["resume", "r"]).await.exits(0);
    ground.stage.finished("r", PATIENCE).await;
    plugin
        .says(&["cancel", "r"])
        .await
        .refuses(2, &["r has ended: it is Posted", "nothing was changed"]);
    plugin
        .says(&["retry", "r"])
        .await
        .refuses(2, &["r is Posted: there is nothing to try again"]);

    ground.stage.create("s", &suspended).await;
    ground
        .stage
        .until("s", PATIENCE, |status| status.order.is_some())
        .await;
    plugin
        .says(&["retry", "s"])
        .await
        .refuses(2, &["s has not ended", "cancel it first"]);
    let said = plugin
        .says(&["cancel", "promotionrequest.ci.openshift.io/s"])
        .await
        .exits(0);
    assert_eq!(said.out, "promotionrequest.ci.openshift.io/s cancelled\n");
    plugin.says(&["status", "s", "--wait"]).await.exits(1);
    let ended = ground.stage.get("s").await;
    assert_eq!(phase(&ended), "Cancelled");

    // It asks for the same, and is neither suspended nor cancelled.
    let said = plugin
        .says(&["retry", "s", "--wait", "-o", "json"])
        .await
        .exits(0);
    let again: Value = serde_json::from_str(&said.out).unwrap();
    assert!(
        again["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("s-retry-")
    );
    assert_eq!(
        again["spec"]["images"][0]["source"],
        suspended["images"][0]["source"]
    );
    assert_eq!(
        condition(&ground.stage.get("r").await, "Complete").0,
        "True"
    );
    assert_eq!(ground.at("f"), Some(digest));

    // Since then somebody moved the float: trying again what failed before would move it back.
    let (_, newer) = ground.request("two", "f");
    ground.stage.create("newer", &newer).await;
    ground.stage.finished("newer", PATIENCE).await;
    let before = ground.stage.list().await.len();
    plugin
        .says(&["retry", "s"])
        .await
        .refuses(2, &["is newer than", "move it back"]);
    assert_eq!(ground.stage.list().await.len(), before);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_in_one_line_and_nothing_is_written() {
    let stage = Stage::new("refused").await;
    let plugin = Plugin::of(&stage).await;
    let float = "quay.io/o/ci:never";
    let digest = format!("sha256:{}", "a".repeat(64));
    stage
        .create("r", &spec(&[(&format!("x.io/s/a@{digest}"), float)]))
        .await;
    plugin
        .says(&["status", "absent"])
        .await
        .refuses(2, &["absent does not exist"]);
    plugin
        .says(&["cancel", "absent"])
        .await
        .refuses(2, &["absent does not exist"]);
    plugin
        .says(&["history", float])
        .await
        .refuses(2, &["has promoted to", "--all"]);
    plugin
        .says(&["history", float, "--all"])
        .await
        .refuses(2, &["has promoted to"]);
    plugin
        .says(&["float", "quay.io/o/ci:other", "--no-registry"])
        .await
        .refuses(2, &["has promoted to"]);
    plugin
        .says(&["submit", &format!("x.io/a={float}__pre")])
        .await
        .exits(2);
    plugin
        .says(&[
            "submit",
            "--name=Bad_Name",
            &format!("x.io/s/a@{digest}={float}"),
        ])
        .await
        .refuses(2, &["Bad_Name"]);
    let pair = format!("x.io/s/a@{digest}={float}");
    for (replaces, words) in [
        ("x.io/o/ci:g=None", "no image goes to x.io/o/ci:g"),
        (&*format!("{float}=sha256:7"), "spec.images[0].replaces"),
    ] {
        plugin
            .says(&["submit", &pair, "--replaces", replaces])
            .await
            .refuses(2, &[words]);
    }
    // It has not ended, nobody has promoted that float, and there is no such state file.
    plugin
        .says(&["undo", "r", "--apply", "--no-registry"])
        .await
        .refuses(2, &["has not ended"]);
    plugin
        .says(&["undo", "quay.io/o/ci:other", "--apply", "--no-registry"])
        .await
        .refuses(2, &["nothing to take back"]);
    plugin
        .says(&["--kubeconfig=/nowhere", "status"])
        .await
        .refuses(2, &["--kubeconfig /nowhere"]);
    plugin
        .says(&["--context=nowhere", "status"])
        .await
        .refuses(2, &["--context nowhere"]);

    let nobody = Plugin {
        kubeconfig: plugin.folder.join("nowhere"),
        ..Plugin::of(&stage).await
    };
    for arguments in [&["status"][..], &["undo", "r", "--apply"]] {
        let said = nobody.says(arguments).await;
        said.refuses(2, &["no cluster", "KUBECONFIG"]);
    }
    let token = stage
        .plane
        .service_account_token(&stage.namespace, "nobody")
        .await
        .unwrap();
    let kubeconfig = stage.plane.kubeconfig_for(&token).unwrap();
    let stranger = Plugin::with(&stage, &kubeconfig).await;
    for arguments in [
        &["status"][..],
        &["cancel", "r"],
        &["history", float],
        &["undo", "r", "--apply", "--no-registry"],
        &["undo", float, "--apply", "--no-registry"],
    ] {
        stranger
            .says(arguments)
            .await
            .refuses(1, &["forbidden", "promotionrequests-view"]);
    }
    stranger
        .says(&["submit", &pair])
        .await
        .refuses(1, &["forbidden", "promotionrequests-edit"]);
    let left = stage.list().await;
    assert_eq!(left.len(), 1);
    assert!(!left[0].spec.cancel && left[0].status.is_none(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_completes_the_plugins_command_line() {
    let stage = Stage::new("complete").await;
    let plugin = Plugin::of(&stage).await;
    let said = plugin
        .kubectl(&["__complete", "promotion", "sus"])
        .await
        .exits(0);
    let named = said
        .out
        .lines()
        .any(|line| line.split('\t').next() == Some("suspend"));
    assert!(named, "{said:#?}");
}

/// A page has 500. How many requests there are is `PLUGIN_REQUESTS`, for figures.
#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_a_labelled_float_in_one_and_nothing_is_watched() {
    let stage = Stage::new("pages").await;
    let (user, kubeconfig) = stage.plane.mighty_account("pages").await.unwrap();
    let wanted = std::env::var("PLUGIN_REQUESTS")
        .ok()
        .and_then(|n| n.parse().ok());
    let wanted: usize = wanted.unwrap_or(1_100);
    let requests = stage.requests();
    let digest = format!("sha256:{}", "a".repeat(64));
    let status = |n: usize, float: &str| {
        let time = "2026-01-01T00:00:00Z";
        json!({
            "order": n + 1, "phase": "Posted", "progress": "1/1", "completionTime": time,
            "images": [{"float": float, "phase": "Posted", "source": {"digest": digest}}],
        })
    };
    stream::iter(0..wanted)
        .for_each_concurrent(16, |n| {
            let (requests, digest, status) = (&requests, &digest, &status);
            async move {
                let float = format!("quay.io/o/ci:f{n}");
                let mut object = object(
                    &format!("r{n}"),
                    &spec(&[(&format!("x.io/s/a@{digest}"), &float)]),
                );
                if n % 100 == 7 {
                    object.metadata.labels = Some([(float_label(&float), String::new())].into());
                }
                let mut made = requests
                    .create(&PostParams::default(), &object)
                    .await
                    .unwrap();
                made.status = Some(serde_json::from_value(status(n, &float)).unwrap());
                requests
                    .replace_status(&format!("r{n}"), &PostParams::default(), &made)
                    .await
                    .unwrap();
            }
        })
        .await;
    assert_eq!(
        requests
            .list_metadata(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        wanted
    );
    let plugin = Plugin::with(&stage, &kubeconfig).await;
    let calls = async |arguments: &[&str], lines: usize| {
        let (begun, started) = (Timestamp::now(), std::time::Instant::now());
        let said = plugin.says(arguments).await.exits(0);
        println!(
            "{wanted} requests: {arguments:?} took {:.1?}",
            started.elapsed()
        );
        assert_eq!(said.out.lines().count(), lines, "{arguments:?}");
        let mut audited = stage.plane.audited().unwrap();
        audited.retain(|call| call.user() == user && call.received >= begun);
        let other = audited.iter().find(|call| call.verb != "list");
        assert!(other.is_none(), "{other:?}");
        audited.len()
    };
    assert_eq!(calls(&["status"], wanted + 1).await, wanted.div_ceil(500));
    assert_eq!(calls(&["history", "quay.io/o/ci:f107"], 2).await, 1);
    assert_eq!(
        calls(&["history", "quay.io/o/ci:f108", "--all"], 2).await,
        wanted.div_ceil(500)
    );
}
