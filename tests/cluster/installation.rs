//! Of all controllers that could write the same floats, those of one Lease may lead, whatever way each was installed in.

use crate::testbed::PATIENCE;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams};
use promotion_controller::api::crd_yaml;
use promotion_controller::controller::installation::{ADOPTED_FROM, DEFINITION, LEASE};
use quaylike::{GateSpec, ImageSpec, Matcher, Options, Registry, Shape};
use serde_json::{Value, json};

use crate::testbed::stage::{Controller, LOOK, Stage, name_lease, phase, spec};
use crate::testbed::{ControlPlane, free_port};

const PROGRAM: &str = env!("CARGO_BIN_EXE_promotion-controller");

/// A controller of an installation whose Lease is in `namespace`.
fn of(stage: &Stage, namespace: &str, more: &[&str]) -> Controller {
    let lease = format!("--lease-namespace={namespace}");
    let mut arguments = vec!["--leader-elect=true", &lease];
    arguments.extend(more);
    stage.controller(&arguments)
}

/// What an administrator says.
async fn adopt(kubeconfig: &Path, namespace: &str) -> Output {
    tokio::process::Command::new(PROGRAM)
        .args(["adopt-lease", "--lease-namespace", namespace])
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn annotation(plane: &ControlPlane, name: &str) -> Option<String> {
    let api: Api<CustomResourceDefinition> = Api::all(plane.client().unwrap());
    let definition = api.get_metadata(DEFINITION).await.unwrap();
    definition.metadata.annotations?.get(name).cloned()
}

fn full(namespace: &str) -> String {
    format!("{namespace}/promotion-controller")
}

fn seed(registry: &Registry, path: &str, tag: &str, name: &str) -> String {
    let image = ImageSpec::new(Shape::Oci, name).build().unwrap();
    registry.seed_image(path, tag, &image).unwrap().to_string()
}

fn promotion(registry: &Registry, name: &str) -> (String, Value) {
    let digest = seed(registry, "src/x", name, name);
    let host = registry.host();
    let source = format!("{host}/src/x@{digest}");
    (digest, spec(&[(&source, &format!("{host}/ci:f"))]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_controller_with_another_lease_or_none_does_not_start_and_says_what_to_do() {
    let stage = Stage::elected("one").await;
    let mut first = of(&stage, &stage.namespace, &[]);
    first.says("leading").await;
    let other = Stage::on(stage.plane, "two").await;
    let named = full(&stage.namespace);
    let adopting = format!(
        "run `promotion-controller adopt-lease --lease-namespace {}`",
        other.namespace
    );
    let mut second = of(&other, &other.namespace, &[]);
    assert_eq!(second.ended().await, 2, "{}", second.log());
    let third = Stage::on(stage.plane, "three").await;
    let mut unelected = third.controller(&[]);
    assert_eq!(unelected.ended().await, 2, "{}", unelected.log());
    for (log, remedy) in [
        (second.log(), adopting.as_str()),
        (unelected.log(), "Leave out --leader-elect=false"),
    ] {
        assert!(log.contains(&named) && log.contains(remedy), "{log}");
        assert!(!log.contains("leading"), "{log}");
    }
    // The second has taken no Lease, and the first goes on.
    assert!(is_unheld(&stage, &other.namespace).await);
    assert_eq!(first.exit_code(), None, "{}", first.log());
    // One of the same installation waits as ever.
    let third = of(&stage, &stage.namespace, &[]);
    third.says("waiting for the lease").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_ends_when_another_lease_is_adopted_and_the_next_finishes_what_it_left() {
    let registry = Registry::start(Options::default()).await.unwrap();
    let stage = Stage::elected("from").await;
    let next = Stage::on(stage.plane, "to").await;
    let plain = format!("--plain-http={}", registry.host());
    let old = seed(&registry, "ci", "f", "old");
    let mut leader = of(&stage, &stage.namespace, &[&plain]);
    leader.says("leading").await;
    let mut standby = of(&stage, &stage.namespace, &[&plain]);
    let latch = Matcher::put_manifest().repository("ci").reference("f");
    let gate = registry.gate(GateSpec::before(latch.clone()));
    let (new, images) = promotion(&registry, "new");
    stage.create("r", &images).await;
    tokio::time::timeout(PATIENCE, gate.reached())
        .await
        .unwrap();

    let kubeconfig = stage.plane.kubeconfig();
    let missing = adopt(kubeconfig, "nowhere").await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        words(&missing).contains("the namespace nowhere does not exist"),
        "{}",
        words(&missing)
    );
    let adopted = Instant::now();
    let done = adopt(kubeconfig, &next.namespace).await;
    assert!(done.status.success(), "{}", words(&done));
    assert!(
        words(&done).contains(&full(&stage.namespace)),
        "{}",
        words(&done)
    );
    assert_eq!(
        annotation(stage.plane, LEASE).await,
        Some(full(&next.namespace))
    );
    assert_eq!(
        annotation(stage.plane, ADOPTED_FROM).await,
        Some(full(&stage.namespace))
    );
    let again = adopt(kubeconfig, &next.namespace).await;
    assert!(words(&again).contains("already"), "{}", words(&again));

    // Requests of the same namespace, another Lease.
    let mut heir = of(&stage, &next.namespace, &[&plain]);
    assert_eq!(leader.ended().await, 1, "{}", leader.log());
    let ended = adopted.elapsed();
    assert!(ended < Duration::from_mins(1), "{ended:?}");
    assert!(
        leader
            .log()
            .contains("belongs to the installation whose Lease is"),
        "{}",
        leader.log()
    );
    // Who waited for the dead lease takes it and finds that it is worth nothing.
    assert_eq!(standby.ended().await, 2, "{}", standby.log());
    gate.open();
    let done = next_request(&stage, &registry, &latch, adopted).await;
    println!("the former leader ended {ended:.1?}, the next wrote {done:.1?} after the adoption");
    assert!(done >= Duration::from_secs(15 + 3), "{done:?}");
    assert_eq!(phase(&stage.finished("r", PATIENCE).await), "Posted");
    assert_eq!(registry.tag("ci", "f").unwrap().to_string(), new);
    assert_eq!(registry.tag("ci", "f__pre").unwrap().to_string(), old);
    assert_eq!(heir.exit_code(), None, "{}", heir.log());
}

/// When the next tag is written that the former leader had not begun with.
async fn next_request(
    stage: &Stage,
    registry: &Registry,
    latch: &Matcher,
    since: Instant,
) -> Duration {
    let known = registry.requests(&Matcher::default());
    let last = known.last().map_or(0, |entry| entry.seq);
    let end = Instant::now() + PATIENCE;
    let after = Matcher::put_manifest().tag(true);
    loop {
        let written = registry.requests_after(last, usize::MAX, &after);
        if written.iter().any(|entry| entry.status == Some(201)) {
            return since.elapsed();
        }
        assert!(Instant::now() < end, "{latch:?}: {}", stage.log());
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_lease_is_named_or_no_definition_is_there_nobody_leads_and_it_is_said_once() {
    let stage = Stage::elected("unnamed").await;
    name_lease(stage.plane, Value::Null).await;
    let mut waiting = of(&stage, &stage.namespace, &[]);
    let remedy = format!(
        "names no Lease, so another installation could lead beside this one: run `promotion-controller adopt-lease --lease-namespace {}`",
        stage.namespace
    );
    waiting.says(&remedy).await;
    let api: Api<CustomResourceDefinition> = Api::all(stage.plane.client().unwrap());
    api.delete(DEFINITION, &DeleteParams::default())
        .await
        .unwrap();
    waiting.says("does not exist: apply the CRD").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        waiting.log().matches("ERROR").count(),
        2,
        "{}",
        waiting.log()
    );
    assert!(!waiting.log().contains("leading"), "{}", waiting.log());
    assert!(is_unheld(&stage, &stage.namespace).await);
    let refused = adopt(stage.plane.kubeconfig(), &stage.namespace).await;
    assert!(
        words(&refused).contains("apply the CRD"),
        "{}",
        words(&refused)
    );

    stage.plane.apply_crds(&crd_yaml()).await.unwrap();
    let first = adopt(stage.plane.kubeconfig(), &stage.namespace).await;
    assert!(first.status.success(), "{}", words(&first));
    assert_eq!(annotation(stage.plane, ADOPTED_FROM).await, None);
    waiting.says("leading").await;
    // A leader whose name is taken away does not know whether somebody else was given it.
    name_lease(stage.plane, Value::Null).await;
    assert_eq!(waiting.ended().await, 1, "{}", waiting.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_election_a_controller_ends_when_an_installation_comes() {
    let stage = Stage::elected("alone").await;
    name_lease(stage.plane, Value::Null).await;
    let mut alone = stage.controller(&[]);
    alone.says("ready").await;
    stage.rules().await;
    let since = Instant::now();
    assert_eq!(alone.ended().await, 2, "{}", alone.log());
    assert!(since.elapsed() < Duration::from_mins(1));
    assert!(
        alone.log().contains("this one has no election"),
        "{}",
        alone.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_not_given_back_before_what_it_inherited_has_settled() {
    let stage = Stage::elected("inherited").await;
    let leases: Api<Lease> = Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
    // Without one that says that nobody ever held it, earlier writes may still land.
    leases
        .delete("promotion-controller", &DeleteParams::default())
        .await
        .unwrap();
    let mut first = of(&stage, &stage.namespace, &["--settle-seconds=12"]);
    first.says("ready").await;
    first.signal(crate::testbed::Signal::Terminate);
    assert_eq!(first.ended().await, 0, "{}", first.log());
    let lease = leases.get("promotion-controller").await.unwrap();
    let holder = lease.spec.unwrap().holder_identity.unwrap_or_default();
    assert_ne!(holder, "", "{}", first.log());
    let second = of(&stage, &stage.namespace, &["--settle-seconds=12"]);
    second.says("Expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_closed_untrusted_or_refuses_is_named_with_the_cause_once() {
    let stage = Stage::elected("causes").await;
    let config = std::fs::read_to_string(stage.plane.kubeconfig()).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let server = stage.plane.server().to_owned();
    let closed = format!("https://127.0.0.1:{}", free_port().unwrap());
    let mut elsewhere = config.clone();
    elsewhere["clusters"][0]["cluster"]["server"] = json!(closed);
    let mut untrusting = config.clone();
    untrusting["clusters"][0]["cluster"]
        .as_object_mut()
        .unwrap()
        .remove("certificate-authority-data");
    let mut nobody = config;
    nobody["users"][0]["user"]["token"] = json!("nobody");
    for (name, config, address, cause) in [
        ("closed", elsewhere, &closed, "Connection refused"),
        ("untrusted", untrusting, &server, "UnknownIssuer"),
        ("unknown", nobody, &server, "Unauthorized"),
    ] {
        let at = Stage::on(stage.plane, name).await;
        let kubeconfig = at.folder.write("kubeconfig", &config.to_string()).unwrap();
        let lease = format!("--lease-namespace={}", stage.namespace);
        let arguments = ["--leader-elect=true", &lease];
        let controller = at.controller_through(&kubeconfig, &arguments);
        controller.says(cause).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let log = controller.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(address.as_str()), "{log}");
        let refused = adopt(&kubeconfig, &stage.namespace).await;
        assert!(
            words(&refused).contains(address.as_str()) && words(&refused).contains(cause),
            "{}",
            words(&refused)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_controller_writes_bears_its_name() {
    let registry = Registry::start(Options::default()).await.unwrap();
    let stage = Stage::elected("manager").await;
    let plain = format!("--plain-http={}", registry.host());
    let _controller = of(&stage, &stage.namespace, &[&plain]);
    let (_, images) = promotion(&registry, "new");
    stage.create("r", &images).await;
    let done = stage.finished("r", PATIENCE).await;
    let managers = done.metadata.managed_fields.unwrap();
    let status = managers
        .iter()
        .find(|m| m.subresource.as_deref() == Some("status"));
    assert_eq!(
        status.unwrap().manager.as_deref(),
        Some("promotion-controller")
    );
    let leases: Api<Lease> = Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
    let lease = leases.get("promotion-controller").await.unwrap();
    // Who made it is not who holds it.
    let managers = lease.metadata.managed_fields.unwrap();
    let names: Vec<_> = managers
        .iter()
        .filter(|m| m.fields_v1.as_ref().unwrap().0.get("f:spec").is_some())
        .filter_map(|m| m.manager.as_deref())
        .collect();
    assert_eq!(names, ["promotion-controller"]);
    let events = stage.events_until("r", "Promoted", PATIENCE).await;
    for event in events {
        let managers = event.metadata.managed_fields.unwrap();
        assert!(
            managers
                .iter()
                .all(|m| m.manager.as_deref() == Some("promotion-controller")),
            "{managers:?}"
        );
    }
}

/// Whether nobody has ever held the Lease of a namespace.
async fn is_unheld(stage: &Stage, namespace: &str) -> bool {
    let leases: Api<Lease> = Api::namespaced(stage.plane.client().unwrap(), namespace);
    let lease = leases.get_opt("promotion-controller").await.unwrap();
    let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
    spec.holder_identity.is_none() && spec.lease_transitions.is_none()
}
