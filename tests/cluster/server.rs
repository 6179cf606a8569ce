//! The API server goes away and comes back, with its definitions or without, and a namespace is deleted.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use promotion_controller::api::{PromotionRequest, crd, crd_yaml};
use quaylike::{Digest, Gate, GateSpec, Matcher};
use serde_json::{Value, json};

use super::ground::{Ground, PATIENCE, alone, until, waits_for};
use super::relay::{Call, Fault, Relay};
use crate::testbed::ControlPlane;
use crate::testbed::floats::put;
use crate::testbed::stage::{Controller, EVERYWHERE, LOOK, Stage, phase};

const CRD: &str = "promotionrequests.ci.openshift.io";

async fn until_queued(stage: &Stage, name: &str) {
    let end = Instant::now() + PATIENCE;
    while !waits_for(&stage.get(name).await, "Queued") {
        assert!(Instant::now() < end, "{name}:\n{}", stage.log());
        tokio::time::sleep(LOOK).await;
    }
}

/// Requests whose first steps stand at gates: nothing of theirs is recorded beyond what was launched.
struct Begun {
    gates: Vec<Gate>,
    olds: Vec<String>,
    news: Vec<String>,
}

impl Begun {
    /// One request for each write of a promotion, standing before it.
    async fn start(ground: &Ground) -> Self {
        let writes = |tag: &str| {
            [
                put(&format!("{tag}_incoming")),
                put(&format!("{tag}__pre")),
                put(tag),
                put(&format!("{tag}__post1")),
            ]
        };
        let mut begun = Self {
            gates: Vec::new(),
            olds: Vec::new(),
            news: Vec::new(),
        };
        for number in 0..4 {
            let tag = format!("f{number}");
            begun.olds.push(ground.old(&tag));
            let write = writes(&tag)[number].clone();
            begun
                .gates
                .push(ground.registry.gate(GateSpec::before(write)));
            let (new, images) = ground.request(&format!("s{number}"), &tag);
            begun.news.push(new);
            ground.stage.create(&format!("r{number}"), &images).await;
        }
        for gate in &begun.gates {
            ground.stage.reached(gate).await;
        }
        begun
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_killed_during_promotions_delays_them_and_a_single_process_goes_on() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "restart").await).await;
    // Time for a tag write to stand at its gate.
    let mut controller = ground.controller(&["--leader-elect=false", "--settle-seconds=12"]);
    let begun = Begun::start(&ground).await;
    plane.kill_apiserver();
    for gate in &begun.gates {
        gate.open();
    }
    // What the writes came to cannot be recorded, for longer than any call takes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let latest = ground.registry.requests(&Matcher::default());
    let asked = latest.len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let latest = ground.registry.requests(&Matcher::default());
    assert_eq!(
        latest.len(),
        asked,
        "something was launched that could not be saved"
    );
    plane.start_apiserver().await.unwrap();
    let back = Instant::now();
    for (number, (old, new)) in begun.olds.iter().zip(&begun.news).enumerate() {
        let done = ground.stage.finished(&format!("r{number}"), PATIENCE).await;
        ground.assert_promoted_once(&done, &format!("f{number}"), old, new);
    }
    println!(
        "all Posted {:.1?} after the server was back",
        back.elapsed()
    );
    let (new, images) = ground.request("later", "f0");
    ground.stage.create("later", &images).await;
    let done = ground.stage.finished("later", PATIENCE).await;
    println!(
        "a later one {:.1?} after the server was back",
        back.elapsed()
    );
    assert_eq!(phase(&done), "Posted");
    assert_eq!(ground.at("f0"), Some(new));
    assert_eq!(controller.exit_code(), None);
    ground.assert_sound();
}

/// Restarts a controller that has ended, as its Deployment does, until the work is done. Gives how often.
async fn supervised<T>(
    start: impl Fn() -> Controller,
    work: impl Future<Output = T>,
) -> (T, usize) {
    let mut work = std::pin::pin!(work);
    let (mut controller, mut restarts) = (start(), 0);
    loop {
        tokio::select! {
            done = &mut work => return (done, restarts),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        if let Some(code) = controller.exit_code() {
            assert_eq!(code, 1, "{}", controller.log());
            restarts += 1;
            controller = start();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_its_lease_with_the_api_server_ends_and_the_next_one_finishes() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "outage").await).await;
    ground.stage.rules().await;
    let lease = format!("--lease-namespace={}", ground.stage.namespace);
    let start = || ground.controller(&["--leader-elect=true", "--settle-seconds=12", &lease]);
    let work = async {
        let begun = Begun::start(&ground).await;
        plane.kill_apiserver();
        for gate in &begun.gates {
            gate.open();
        }
        // Longer than the lease lasts.
        tokio::time::sleep(Duration::from_secs(20)).await;
        plane.start_apiserver().await.unwrap();
        let back = Instant::now();
        let mut done = Vec::new();
        for number in 0..begun.gates.len() {
            done.push(ground.stage.finished(&format!("r{number}"), PATIENCE).await);
        }
        println!(
            "all Posted {:.1?} after the server was back",
            back.elapsed()
        );
        (begun, done)
    };
    let ((begun, done), restarts) = supervised(start, work).await;
    println!("the controller was restarted {restarts} times");
    assert!(restarts >= 1, "{}", ground.stage.log());
    assert!(ground.stage.log().contains("is lost"));
    for (number, done) in done.iter().enumerate() {
        let (tag, old, new) = (
            format!("f{number}"),
            &begun.olds[number],
            &begun.news[number],
        );
        assert_eq!(phase(done), "Posted");
        assert_eq!(ground.history(&tag), [old.clone(), new.clone()]);
        // The write that stood at the gate was not sent again either.
        assert_eq!(ground.puts(&tag), 1, "{tag}");
        for (suffix, digest) in [("__pre", old), ("__post1", new)] {
            let history = ground.history(&format!("{tag}{suffix}"));
            assert_eq!(history, std::slice::from_ref(digest), "{tag}{suffix}");
        }
        let displaced = &done.status.as_ref().unwrap().images[0].displaced;
        assert_eq!(displaced.len(), 1);
        assert_eq!(ground.at(&displaced[0].prune_tag).as_ref(), Some(old));
    }
    ground.assert_sound();
}

fn definitions(plane: &ControlPlane) -> Api<CustomResourceDefinition> {
    Api::all(plane.client().unwrap())
}

async fn delete_definition(plane: &ControlPlane) {
    let api = definitions(plane);
    api.delete(CRD, &DeleteParams::default()).await.unwrap();
    let end = Instant::now() + PATIENCE;
    while api.get_opt(CRD).await.unwrap().is_some() {
        assert!(Instant::now() < end, "the definition stays");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_is_missing_at_first_or_made_anew_is_waited_for() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "definition").await).await;
    delete_definition(plane).await;
    let mut controller = ground.controller(&["--settle-seconds=8"]);
    until("a word about it", PATIENCE, || {
        ground.stage.log().contains("does not exist: apply the CRD")
    })
    .await;
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let served = Instant::now();
    let old = ground.old("f");
    let (a, first) = ground.request("a", "f");
    ground.stage.create("r", &first).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    println!(
        "promoted {:.1?} after the definition was served",
        served.elapsed()
    );
    ground.assert_promoted_once(&done, "f", &old, &a);

    // It goes, with every request, while one of them writes.
    let (b, second) = ground.request("b", "f");
    let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
    ground.stage.create("second", &second).await;
    ground.stage.reached(&gate).await;
    delete_definition(plane).await;
    gate.open();
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let served = Instant::now();
    let (c, third) = ground.request("c", "f");
    ground.stage.create("second", &third).await;
    let done = ground.stage.finished("second", PATIENCE).await;
    println!(
        "promoted {:.1?} after the definition was served again",
        served.elapsed()
    );
    assert_eq!(phase(&done), "Posted");
    assert_eq!(ground.history("f"), [old, a, c]);
    assert!(!ground.history("f").contains(&b));
    assert_eq!(controller.exit_code(), None);
    ground.assert_sound();
}

/// The definition, admitting anything.
fn lax() -> String {
    let mut definition = serde_json::to_value(crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "status": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"phase": {"type": "string"}},
            },
        },
    });
    definition.to_string()
}

fn untyped(stage: &Stage) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<PromotionRequest>(&());
    Api::namespaced_with(stage.plane.client().unwrap(), &stage.namespace, &resource)
}

async fn replace_spec(stage: &Stage, name: &str, spec: &Value) {
    untyped(stage)
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": spec })),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_left_alone_keeps_its_floats_and_hinders_nobody_else() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "unreadable").await).await;
    plane.apply_crds(&lax()).await.unwrap();
    let relay = Relay::start(plane, &ground.stage.folder).await;
    let unreadable = json!({"images": "all of them"});
    let object = json!({
        "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
        "metadata": {"name": "unreadable"}, "spec": unreadable,
    });
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let params = PostParams::default();
    untyped(&ground.stage)
        .create(&params, &object)
        .await
        .unwrap();
    let mut controller = ground.controller_through(&relay.kubeconfig, &["--settle-seconds=8"]);
    let told = |name: &str| {
        let log = ground.stage.log();
        log.lines().any(|line| {
            line.contains(&format!("/{name}")) && line.contains("the request is left alone")
        })
    };
    until("the complaint", PATIENCE, || told("unreadable")).await;

    // One that has begun becomes so.
    let old = ground.old("f");
    let (a, first) = ground.request("a", "f");
    let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
    ground.stage.create("first", &first).await;
    ground.stage.reached(&gate).await;
    let whole = untyped(&ground.stage).get("first").await.unwrap().data["spec"].clone();
    replace_spec(&ground.stage, "first", &unreadable).await;
    gate.open();
    until("the complaint", PATIENCE, || told("first")).await;
    // A list shows it as well as a watch did.
    let lists = || {
        relay
            .seen(Call::List)
            .iter()
            .filter(|s| s.status == Some(200))
            .count()
    };
    let before = lists();
    relay.add(Call::Watch, Fault::Expired, 1, 1);
    relay.drop_watches();
    until("a list", PATIENCE, || lists() > before).await;
    let (b, second) = ground.request("b", "f");
    ground.stage.create("second", &second).await;
    let (c, other) = ground.request("c", "g");
    ground.stage.create("other", &other).await;
    let done = ground.stage.finished("other", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    assert_eq!(ground.at("g"), Some(c));
    until_queued(&ground.stage, "second").await;
    assert_eq!(ground.history("f"), std::slice::from_ref(&old));

    replace_spec(&ground.stage, "first", &whole).await;
    for name in ["first", "second"] {
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{name}");
    }
    assert_eq!(ground.history("f"), [old, a, b]);
    let left = untyped(&ground.stage).get("unreadable").await.unwrap();
    assert_eq!(left.data, json!({"spec": unreadable}));
    assert_eq!(controller.exit_code(), None);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_deleted_under_a_request_gives_its_floats_to_those_who_wait() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "leaving").await).await;
    let other = Stage::on(plane, "staying").await;
    plane.start_controllers(&["namespace"]).await.unwrap();
    let mut controller = ground.controller(&[EVERYWHERE, "--settle-seconds=8"]);
    let old = ground.old("f");
    let (a, first) = ground.request("a", "f");
    let (b, second) = ground.request("b", "f");
    let gate = ground.registry.gate(GateSpec::after(put("f")));
    ground.stage.create("first", &first).await;
    ground.stage.reached(&gate).await;
    other.create("second", &second).await;
    until_queued(&other, "second").await;
    let namespaces: Api<Namespace> = Api::all(plane.client().unwrap());
    let name = &ground.stage.namespace;
    namespaces
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while namespaces.get_opt(name).await.unwrap().is_some() {
        assert!(Instant::now() < end, "the namespace stays");
        tokio::time::sleep(LOOK).await;
    }
    gate.open();
    let done = other.finished("second", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
    assert_eq!(ground.history("f"), [old.clone(), a.clone(), b.clone()]);
    let tags = ground.registry.tags("ci");
    for digest in [old, a] {
        let pinned = |(tag, held): (&String, &Digest)| {
            tag.ends_with("_prune_f") && held.to_string() == digest
        };
        assert!(tags.iter().any(pinned), "{tags:?}");
    }
    assert_eq!(controller.exit_code(), None);
    ground.assert_sound();
}

/// Our definition as a newer version has it: one more field in each part of status.
fn newer() -> String {
    let mut newer = serde_json::to_value(crd()).unwrap();
    let field = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status";
    let image = format!("{status}/properties/images/items");
    for part in [
        status.to_owned(),
        image.clone(),
        format!("{image}/properties/source"),
        format!("{image}/properties/displaced/items"),
    ] {
        let properties = newer.pointer_mut(&format!("{part}/properties")).unwrap();
        properties["newer"] = field.clone();
    }
    newer.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_version_noted_is_there_after_a_whole_promotion() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "newer").await).await;
    plane.apply_crds(&newer()).await.unwrap();
    let _controller = ground.controller(&["--settle-seconds=8"]);
    let old = ground.old("f");
    let (new, images) = ground.request("a", "f");
    let gate = ground.registry.gate(GateSpec::before(put("f__pre")));
    ground.stage.create("r", &images).await;
    ground.stage.reached(&gate).await;
    let api = untyped(&ground.stage);
    let mut noted = api.get("r").await.unwrap();
    let note = |part: &str| json!({"by": part, "list": [3, 1, 2]});
    let paths = [
        "/status",
        "/status/images/0",
        "/status/images/0/source",
        "/status/images/0/displaced/0",
    ];
    for path in paths {
        noted.data.pointer_mut(path).unwrap()["newer"] = note(path);
    }
    api.replace_status("r", &PostParams::default(), &noted)
        .await
        .unwrap();
    gate.open();
    let done = ground.stage.finished("r", PATIENCE).await;
    ground.assert_promoted_once(&done, "f", &old, &new);
    let left = api.get("r").await.unwrap();
    for path in paths {
        assert_eq!(
            left.data.pointer(path).unwrap()["newer"],
            note(path),
            "{path}"
        );
    }
    ground.assert_sound();
}
