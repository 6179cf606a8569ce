//! The controller with the chart's own service account: its whole job is possible, and it asks for nothing that it may not have.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use promotion_controller::api::PromotionRequestStatus;
use promotion_controller::controller::END;
use quaylike::{ImageSpec, Shape};
use serde_json::json;

use super::ground::{Ground, NAME, PATIENCE, Pod};
use crate::testbed::Signal;
use crate::testbed::helm::kubectl;
use crate::testbed::own_plane;
use crate::testbed::stage::{LOOK, condition, phase};

#[tokio::test(flavor = "multi_thread")]
async fn with_the_rights_of_the_chart_the_controller_does_its_whole_job() {
    let (_turn, plane) = own_plane().await;
    let ground = Ground::new(plane).await;
    ground.install().await;
    let leader = ground.pod("pod-0").await;
    leader.until_said(r#""ready""#).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(leader.probe(path).await, Some(200), "{path}");
    }
    assert!(holder(&ground).await.starts_with("pod-0_"));
    it_promotes_tells_and_sweeps(&ground, &leader).await;
    it_says_which_secret_it_may_not_read_and_goes_on_when_it_may(&ground, &leader).await;
    it_uses_its_own_credentials_for_whom_the_policy_names(&ground, &leader).await;
    it_stops_while_it_is_paused(&ground, &leader).await;
    let logs = it_hands_over(&ground, leader).await;
    // Nothing else was asked for and refused.
    let refused: Vec<&str> = logs
        .lines()
        .filter(|line| line.to_lowercase().contains("forbidden"))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let trail = ground.registry.audit_trail();
    assert!(trail.is_empty(), "{trail:?}");
    ground.uninstall().await;
}

/// Who holds the lease.
async fn holder(ground: &Ground) -> String {
    let leases: Api<Lease> = ground.released();
    let lease = leases.get(NAME).await.unwrap();
    lease.spec.unwrap().holder_identity.unwrap_or_default()
}

/// Whether a status says that its request waits, and why.
fn waits(status: &PromotionRequestStatus, reason: &str) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|c| c.type_ == "Progressing" && c.reason == reason)
}

async fn it_promotes_tells_and_sweeps(ground: &Ground, leader: &Pod) {
    let old = ImageSpec::new(Shape::Oci, "old");
    let old = ground.registry.seed_spec("ci", "f", &old).unwrap();
    let (new, images) = ground.request("f");
    ground.named.create("r", &images).await;
    let done = ground.named.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("f"), Some(new));
    assert_eq!(ground.at("f__pre"), Some(old.to_string()));
    let events = ground.named.events_until("r", "Promoted", PATIENCE).await;
    let reasons: BTreeSet<&str> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
    let wanted = BTreeSet::from(["Incoming", "Latched", "Promoted"]);
    assert!(reasons.is_superset(&wanted), "{reasons:?}");
    let over = json!({"spec": {"ttlSecondsAfterFinished": 0}});
    ground.named.patch("r", &over).await;
    let end = Instant::now() + PATIENCE;
    while !ground.named.list().await.is_empty() {
        assert!(Instant::now() < end, "the request stays:\n{}", leader.log());
        tokio::time::sleep(LOOK).await;
    }
}

/// Requests of a namespace that was not named are heard of and told what is missing.
async fn it_says_which_secret_it_may_not_read_and_goes_on_when_it_may(
    ground: &Ground,
    leader: &Pod,
) {
    let (new, images) = ground.request("g");
    ground.other.create("r", &images).await;
    let waiting = ground
        .other
        .until("r", PATIENCE, |s| waits(s, "SecretNotFound"))
        .await;
    let (_, _, message) = condition(&waiting, "Progressing");
    let secret = format!("may not get Secret {}/push", ground.other.namespace);
    assert!(message.contains(&secret), "{message}");
    assert_eq!(ground.at("g"), None);
    let mut values = ground.values();
    values["namespaces"] = json!([ground.named.namespace, ground.other.namespace]);
    ground.helm("upgrade", &values).await;
    let done = ground.other.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("g"), Some(new));
}

/// They are mounted, and not read through the API.
async fn it_uses_its_own_credentials_for_whom_the_policy_names(ground: &Ground, leader: &Pod) {
    let (new, mut images) = ground.request("granted");
    images.as_object_mut().unwrap().remove("pushSecret");
    ground.other.create("granted", &images).await;
    ground.named.create("not-granted", &images).await;
    let done = ground.other.finished("granted", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("granted"), Some(new));
    let refused = ground.named.finished("not-granted", PATIENCE).await;
    assert_eq!(condition(&refused, "Failed").1, "NotAllowed");
}

/// As the notes of the chart tell it.
async fn it_stops_while_it_is_paused(ground: &Ground, leader: &Pod) {
    let here = ["-n", ground.release.namespace.as_str()];
    let pause = ["create", "configmap", NAME, "--from-literal=paused=all"];
    kubectl(ground.plane, &[&pause[..], &here].concat(), "").await;
    leader.until_said("paused").await;
    let (new, images) = ground.request("p");
    ground.named.create("p", &images).await;
    let waiting = ground
        .named
        .until("p", PATIENCE, |s| waits(s, "Paused"))
        .await;
    assert_eq!(phase(&waiting), "Pending");
    assert_eq!(ground.at("p"), None);
    let go_on = ["delete", "configmap", NAME];
    kubectl(ground.plane, &[&go_on[..], &here].concat(), "").await;
    let done = ground.named.finished("p", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", leader.log());
    assert_eq!(ground.at("p"), Some(new));
}

/// Another replica takes over within what a rolling update gives the first. Returns what both have logged.
async fn it_hands_over(ground: &Ground, mut leader: Pod) -> String {
    let second = ground.pod("pod-1").await;
    second.until_said("waiting for the lease").await;
    assert_eq!(second.probe("/readyz").await, Some(200));
    assert!(leader.grace >= END + Duration::from_secs(3));
    let began = Instant::now();
    leader.process.signal(Signal::Terminate);
    while leader.process.exit_code().is_none() {
        assert!(began.elapsed() < leader.grace, "{}", leader.log());
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(leader.process.exit_code(), Some(0), "{}", leader.log());
    let (new, images) = ground.request("h");
    ground.named.create("after", &images).await;
    let done = ground.named.finished("after", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", second.log());
    assert_eq!(ground.at("h"), Some(new));
    assert!(holder(ground).await.starts_with("pod-1_"));
    leader.log() + &second.log()
}
