//! How a Lease was left says what its next holder has to wait for.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use promotion_controller::controller::handover::Written;
use promotion_controller::controller::lease::{Acquired, Elector, MADE, NAME, RELEASED};
use promotion_controller::engine::leadership::Leadership;
use tokio::time::Instant;

use crate::testbed::stage::Stage;

fn elector(stage: &Stage, identity: &str) -> Elector {
    let client = stage.plane.client().unwrap();
    let leadership = Leadership::elected();
    Elector::new(client, &stage.namespace, identity.into(), leadership)
}

fn leases(stage: &Stage) -> Api<Lease> {
    Api::namespaced(stage.plane.client().unwrap(), &stage.namespace)
}

async fn change(stage: &Stage, change: impl FnOnce(&mut Lease)) {
    let mut lease = leases(stage).get(NAME).await.unwrap();
    change(&mut lease);
    let params = PostParams::default();
    leases(stage).replace(NAME, &params, &lease).await.unwrap();
}

fn made() -> Lease {
    let marks = [(MADE.to_owned(), "true".to_owned())];
    let metadata = ObjectMeta {
        name: Some(NAME.into()),
        annotations: Some(marks.into()),
        ..ObjectMeta::default()
    };
    Lease {
        metadata,
        spec: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_released_says_so_and_one_whose_holder_was_erased_does_not() {
    let stage = Stage::bare("lease-marks").await;
    let mut first = elector(&stage, "first");
    assert_eq!(first.acquire().await, Acquired::New);
    assert!(first.last_sent().unwrap() > Instant::now());
    first.release(&Written::default()).await;
    let mut second = elector(&stage, "second");
    assert_eq!(second.acquire().await, Acquired::Released);
    assert_eq!(second.last_sent(), None);
    // Somebody erases the holder, who does not know it yet: it writes on until its next renewal is answered.
    for holder in [None, Some(String::new())] {
        change(&stage, |lease| {
            lease.spec.as_mut().unwrap().holder_identity = holder;
        })
        .await;
        let mut next = elector(&stage, "next");
        assert_eq!(next.acquire().await, Acquired::Erased);
        let wait = next.last_sent().unwrap() - Instant::now();
        assert!(wait > Duration::from_secs(4), "{wait:?}");
    }
    // A mark that is older than the last change of hands says nothing of the present holder.
    change(&stage, |lease| {
        let marks = lease.metadata.annotations.get_or_insert_default();
        marks.insert(RELEASED.into(), "1".into());
        lease.spec.as_mut().unwrap().holder_identity = None;
    })
    .await;
    let mut last = elector(&stage, "last");
    assert_eq!(last.acquire().await, Acquired::Erased);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_made_with_the_installation_is_waited_for_only_once_it_was_held() {
    let stage = Stage::bare("lease-made").await;
    let params = PostParams::default();
    leases(&stage).create(&params, &made()).await.unwrap();
    let mut first = elector(&stage, "first");
    assert_eq!(first.acquire().await, Acquired::Unheld);
    assert_eq!(first.last_sent(), None);
    // Made again, by an upgrade that finds its mark gone, it has been held all the same.
    change(&stage, |lease| {
        let marks = lease.metadata.annotations.get_or_insert_default();
        marks.insert(MADE.into(), "true".into());
        lease.spec.as_mut().unwrap().holder_identity = None;
    })
    .await;
    assert_eq!(elector(&stage, "next").acquire().await, Acquired::Erased);
    // One that nobody marked was made by nobody knows whom.
    change(&stage, |lease| {
        lease.metadata.annotations = None;
        lease.spec = Some(LeaseSpec::default());
    })
    .await;
    assert_eq!(elector(&stage, "last").acquire().await, Acquired::Erased);
}
