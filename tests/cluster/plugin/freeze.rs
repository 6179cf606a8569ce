//! Floats are kept where they are.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use promotion_controller::machine::Reason;
use quaylike::GateSpec;
use serde_json::{Value, json};

use super::{PATIENCE, Plugin};
use crate::ground::{Ground, waits_for};
use crate::testbed::floats::put;
use crate::testbed::stage::{Stage, condition, phase, spec};

const FREEZES: &str = "promotion-controller-freezes";

struct Frozen {
    ground: Ground,
    plugin: Plugin,
}

impl Frozen {
    async fn new(prefix: &str) -> Self {
        let ground = Ground::of(Stage::elected(prefix).await).await;
        let plugin = Plugin::of(&ground.stage).await;
        Self { ground, plugin }
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(
            self.ground.stage.plane.client().unwrap(),
            &self.ground.stage.namespace,
        )
    }

    /// What is written there.
    async fn text(&self) -> Option<String> {
        let map = self.maps().get_opt(FREEZES).await.unwrap()?;
        map.data?.remove("freezes")
    }

    /// As somebody does with an editor.
    async fn write(&self, text: &str) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": FREEZES}, "data": {"freezes": text},
        });
        let params = PatchParams::apply("editor").force();
        let map = Patch::Apply(&map);
        self.maps().patch(FREEZES, &params, &map).await.unwrap();
    }

    /// Waits until a request waits for a freeze, and gives why.
    async fn waits(&self, name: &str) -> String {
        let frozen = Reason::FloatFrozen.as_str();
        let stage = &self.ground.stage;
        let object = stage.until(name, PATIENCE, |status| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| c.type_ == "Progressing" && c.reason == frozen)
        });
        condition(&object.await, "Progressing").2.to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_float_is_moved_by_nobody_until_it_is_let_go_and_what_was_committed_ends() {
    let frozen = Frozen::new("freeze").await;
    let (ground, plugin) = (&frozen.ground, &frozen.plugin);
    let _controller = ground.controller(&["--leader-elect=true", "--settle-seconds=10"]);
    let old = ground.old("f");
    let float = ground.float("f");
    let pattern = ground.float("*");
    // One request is committed, and its latch is on its way.
    let (first, images) = ground.request("a", "f");
    let gate = ground.registry.gate(GateSpec::before(put("f")));
    ground.stage.create("begun", &images).await;
    ground.stage.reached(&gate).await;
    let said = plugin
        .says(&[
            "freeze",
            &pattern,
            "--until",
            "2h",
            "--reason",
            "release day",
        ])
        .await
        .exits(0);
    assert!(
        said.err
            .contains("/begun was committed before: it runs to its end"),
        "{said:#?}"
    );
    assert!(
        said.out.starts_with(&format!("frozen: {pattern} until=")),
        "{said:#?}"
    );
    gate.open();
    let begun = ground.stage.finished("begun", PATIENCE).await;
    ground.assert_promoted_once(&begun, "f", &old, &first);
    // The next one waits, says why, and delays nobody on another float.
    let (second, images) = ground.request("b", "f");
    ground.stage.create("next", &images).await;
    let why = frozen.waits("next").await;
    assert!(
        why.starts_with("frozen until 2") && why.contains(": release day (freeze of "),
        "{why}"
    );
    let writes = ground.registry.tags("ci");
    let said = plugin
        .says(&["float", &float, "--no-registry", "--all"])
        .await
        .exits(0);
    assert!(
        said.out.contains(&format!("FROZEN: {pattern} until=")),
        "{said:#?}"
    );
    let said = plugin.says(&["frozen", "-o", "json"]).await.exits(0);
    let shown: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        (&shown["followed"], &shown["freezes"][0]["reason"]),
        (&json!(true), &json!("release day"))
    );
    // Frozen anew, it is one freeze.
    plugin
        .says(&["freeze", &pattern, "--reason", "for good"])
        .await
        .exits(0);
    assert_eq!(
        frozen.text().await.unwrap(),
        format!("{pattern} for good\n")
    );
    let why = ground.stage.until("next", PATIENCE, |status| {
        status.images[0]
            .message
            .as_deref()
            .is_some_and(|message| message.starts_with("frozen: for good"))
    });
    assert_eq!(
        why.await.status.unwrap().images[0].reason.as_deref(),
        Some("FloatFrozen")
    );
    assert_eq!(ground.registry.tags("ci"), writes);
    plugin.says(&["unfreeze", &pattern]).await.exits(0);
    let next = ground.stage.finished("next", PATIENCE).await;
    assert_eq!((phase(&next), ground.at("f")), ("Posted", Some(second)));
    assert!(!waits_for(&next, "FloatFrozen"));
    plugin.says(&["frozen"]).await.exits(0);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_cannot_be_read_lets_no_float_move_and_staging_goes_on() {
    let frozen = Frozen::new("freeze-spoilt").await;
    let (ground, plugin) = (&frozen.ground, &frozen.plugin);
    let old = ground.old("f");
    frozen.write("# ours\n\nthe nightly builds, please\n").await;
    let controller = ground.controller(&["--leader-elect=true"]);
    let (new, images) = ground.request("a", "f");
    ground.stage.create("r", &images).await;
    let why = frozen.waits("r").await;
    let place = format!("line 3 of ConfigMap {}/{FREEZES}", ground.stage.namespace);
    assert!(why.contains(&place), "{why}");
    let held = ground.stage.until("r", PATIENCE, |status| {
        status.phase.as_deref() == Some("BackedUp")
    });
    assert_eq!(held.await.status.unwrap().committed, None);
    assert_eq!(
        (ground.at("f_incoming"), ground.at("f")),
        (Some(new.clone()), Some(old))
    );
    // Nothing is added to what nobody can read.
    let pattern = ground.float("*");
    plugin
        .says(&["freeze", &pattern, "--reason", "x"])
        .await
        .refuses(2, &["line 3", "cannot be read", "nothing was changed"]);
    plugin
        .says(&["frozen"])
        .await
        .refuses(1, &["no float is let move: line 3"]);
    // Corrected while nobody leads.
    controller.kill();
    frozen
        .write("# ours\nexample.com/nightly/x:* the nightly builds, please\n")
        .await;
    let _next = ground.controller(&["--leader-elect=true"]);
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!((phase(&done), ground.at("f")), ("Posted", Some(new)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_freezes_its_floats_for_everybody_else_and_a_freeze_ends_by_itself() {
    let frozen = Frozen::new("freeze-undo").await;
    let (ground, plugin) = (&frozen.ground, &frozen.plugin);
    let _controller = ground.controller(&["--leader-elect=true"]);
    let plain = format!("--plain-http={}", ground.registry.host());
    let old = ["a", "b"].map(|tag| ground.old(tag));
    let images = ["a", "b"].map(|tag| (ground.source(&format!("new{tag}")).1, ground.float(tag)));
    let pairs: Vec<(&str, &str)> = images.iter().map(|(s, f)| (&**s, &**f)).collect();
    ground.stage.create("one", &spec(&pairs)).await;
    assert_eq!(
        phase(&ground.stage.finished("one", PATIENCE).await),
        "Posted"
    );
    let said = plugin
        .says(&["undo", "one", "--apply", "--freeze", "--wait", &plain])
        .await
        .exits(0);
    let at = || ["a", "b"].map(|tag| ground.at(tag).unwrap());
    assert_eq!(at(), old);
    for tag in ["a", "b"] {
        let line = format!(
            "frozen: {} except={}/one-undo-",
            ground.float(tag),
            ground.stage.namespace
        );
        assert!(said.err.contains(&line), "{said:#?}");
    }
    // What is still on its way does not move them again; what has an end of its own lets go by itself.
    ground.stage.create("late", &spec(&pairs[..1])).await;
    let why = frozen.waits("late").await;
    assert!(why.starts_with("frozen: taken back by an undo"), "{why}");
    assert_eq!(at(), old);
    let float = ground.float("a");
    let soon = jiff::Timestamp::now() + Duration::from_secs(5);
    frozen
        .write(&format!("{float} until={soon} nearly over\n"))
        .await;
    let late = ground.stage.finished("late", PATIENCE).await;
    assert_eq!(phase(&late), "Posted");
}

/// Who may freeze floats need not see anybody's requests.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_freeze_and_nothing_else_freezes() {
    let frozen = Frozen::new("freezer").await;
    let (plane, namespace) = (frozen.ground.stage.plane, &frozen.ground.stage.namespace);
    let _controller = frozen.ground.controller(&["--leader-elect=true"]);
    let token = plane
        .service_account_token(namespace, "freezer")
        .await
        .unwrap();
    let rules = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "update", "create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]},
    ]);
    let about = json!({"name": "freezer", "namespace": namespace});
    let rbac = "rbac.authorization.k8s.io";
    for object in [
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": about, "rules": rules}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": about,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "freezer"},
            "subjects": [{"kind": "ServiceAccount", "name": "freezer", "namespace": namespace}],
        }),
    ] {
        plane.apply(&object.to_string()).await.unwrap();
    }
    let kubeconfig = plane.kubeconfig_for(&token).unwrap();
    let freezer = Plugin::with(&frozen.ground.stage, &kubeconfig).await;
    let here = format!("--lease-namespace={namespace}");
    let pattern = frozen.ground.float("*");
    let said = freezer
        .says(&["freeze", &pattern, "--reason", "x", &here])
        .await
        .exits(0);
    assert!(said.err.contains("cannot be seen"), "{said:#?}");
    freezer.says(&["frozen", &here]).await.exits(0);
    freezer.says(&["unfreeze", &pattern, &here]).await.exits(0);
    assert_eq!(frozen.text().await.as_deref(), Some(""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_frozen_is_refused_and_nothing_is_written() {
    let frozen = Frozen::new("freeze-refused").await;
    let (ground, plugin) = (&frozen.ground, &frozen.plugin);
    let pattern = ground.float("*");
    let refused: [(&[&str], &str); 6] = [
        (&["freeze", "quay.io/o/ci", "--reason", "x"], "says no tag"),
        (
            &["freeze", "ci:*", "--reason", "x"],
            "is not HOST[:PORT]/PATH",
        ),
        (&["freeze", &pattern, "--reason", " "], "say why"),
        (
            &["freeze", &pattern, "--reason", "until=x"],
            "does not begin with until=",
        ),
        (&["unfreeze", "quay.io/o/ci"], "says no tag"),
        (&["unfreeze", &pattern], "there is no freeze of"),
    ];
    for (arguments, words) in refused {
        plugin.says(arguments).await.refuses(2, &[words]);
    }
    let said = plugin
        .says(&["freeze", &pattern, "--until", "yesterday", "--reason", "x"])
        .await;
    assert!(said.exits(2).err.contains("2026-12-24T18:00:00Z"));
    let token = ground
        .stage
        .plane
        .service_account_token(&ground.stage.namespace, "nobody");
    let kubeconfig = ground
        .stage
        .plane
        .kubeconfig_for(&token.await.unwrap())
        .unwrap();
    let stranger = Plugin::with(&ground.stage, &kubeconfig).await;
    let here = format!("--lease-namespace={}", ground.stage.namespace);
    stranger
        .says(&["freeze", &pattern, "--reason", "x"])
        .await
        .refuses(1, &["forbidden", "--lease-namespace"]);
    stranger
        .says(&["freeze", &pattern, "--reason", "x", &here])
        .await
        .refuses(1, &["forbidden", "Role promotion-controller-freeze"]);
    assert_eq!(frozen.text().await, None);
    // A float that nobody promoted may be frozen all the same; without a controller that is not enough.
    plugin
        .says(&["freeze", &pattern, "--reason", "x"])
        .await
        .refuses(1, &["no controller has said", "floats may still move"]);
    plugin
        .says(&["frozen"])
        .await
        .refuses(1, &["floats may still move"]);
    assert_eq!(frozen.text().await, Some(format!("{pattern} x\n")));
}
