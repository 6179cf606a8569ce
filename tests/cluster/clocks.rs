//! Clocks that do not agree: of two controllers, and of one with what is recorded on a float.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, Patch, PatchParams, PostParams};
use promotion_controller::controller::lease::{Acquired, Elector, NAME};
use promotion_controller::engine::leadership::Leadership;
use quaylike::{ImageSpec, Shape};
use serde_json::json;

use super::ground::{Ground, PATIENCE};
use crate::testbed::stage::{Stage, phase};

const LEASE: Duration = Duration::from_secs(15);
const HOUR: i64 = 3600;

/// Writes a lease as another process would whose clock is off by so many seconds.
async fn renew(stage: &Stage, off: i64, duration: u32) {
    let api: Api<Lease> = Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
    let now = Timestamp::now() + SignedDuration::from_secs(off);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NAME},
        "spec": {
            "holderIdentity": "another",
            "leaseDurationSeconds": duration,
            "acquireTime": format!("{now:.6}"),
            "renewTime": format!("{now:.6}"),
        },
    });
    let params = PatchParams::apply("another").force();
    api.patch(NAME, &params, &Patch::Apply(lease))
        .await
        .unwrap();
}

/// How long after another's last renewal the lease is taken. Before that the other renews it beyond its duration.
async fn taken_after(prefix: &str, off: i64, duration: u32) -> Duration {
    let stage = Stage::bare(prefix).await;
    renew(&stage, off, duration).await;
    let (client, leadership) = (stage.plane.client().unwrap(), Leadership::elected());
    let mut elector = Elector::new(client, &stage.namespace, "ours".into(), leadership.clone());
    let waiting = tokio::spawn(async move {
        let how = elector.acquire().await;
        (how, Instant::now())
    });
    let began = Instant::now();
    let mut last = began;
    while began.elapsed() < LEASE + Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        last = Instant::now();
        renew(&stage, off, duration).await;
        assert!(!waiting.is_finished(), "stolen: off by {off} s");
        assert!(!leadership.covers(Duration::ZERO));
    }
    let taken = tokio::time::timeout(PATIENCE, waiting).await;
    let (how, at) = taken.unwrap().unwrap();
    assert_eq!(how, Acquired::Expired);
    assert!(leadership.covers(Duration::ZERO));
    at - last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_neither_stolen_nor_waited_for_for_ever_whatever_its_times_say() {
    let (behind, ahead, endless) = tokio::join!(
        taken_after("behind", -9 * HOUR, 15),
        taken_after("ahead", 9 * HOUR, 15),
        taken_after("endless", 0, 1_000_000),
    );
    println!("taken {behind:.1?}, {ahead:.1?} and {endless:.1?} after the last renewal");
    for taken in [behind, ahead] {
        assert!(taken >= LEASE && taken < 2 * LEASE, "{taken:?}");
    }
    // No controller of ours writes such a record.
    assert!(endless >= 4 * LEASE && endless < 5 * LEASE, "{endless:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_rises_above_the_newest_on_the_float_though_the_clock_is_behind_it() {
    let ground = Ground::new("stamps").await;
    let image = |name: &str| ImageSpec::new(Shape::Oci, name);
    let [old, new] = ["old", "new"].map(|name| {
        let (tag, name) = if name == "new" {
            ("f_incoming", name)
        } else {
            ("kept", name)
        };
        ground.registry.seed_spec("ci", tag, &image(name)).unwrap()
    });
    let foreign = ground
        .registry
        .seed_spec("ci", "f", &image("foreign"))
        .unwrap();
    let float = ground.float("f");
    let (_, images) = ground.request("a", "f");
    // A leader whose clock was far ahead has begun; then somebody else moved the float.
    let mut begun = ground.stage.create("r", &images).await;
    begun.status = Some(
        serde_json::from_value(json!({
            "order": 1, "phase": "Incoming", "progress": "0/1",
            "startTime": Timestamp::now(), "deadlineTime": Timestamp::now() + SignedDuration::from_hours(1),
            "images": [{
                "float": float, "phase": "Incoming",
                "source": {"digest": new.to_string(), "mediaType": "application/vnd.oci.image.manifest.v1+json"},
                "displaced": [{"digest": old.to_string(), "pruneTag": "20990101000000_prune_f"}],
            }],
        }))
        .unwrap(),
    );
    let params = PostParams::default();
    ground
        .stage
        .requests()
        .replace_status("r", &params, &begun)
        .await
        .unwrap();
    let _controller = ground.controller(&[]);
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
    let displaced = &done.status.as_ref().unwrap().images[0].displaced;
    let pins: Vec<_> = displaced
        .iter()
        .map(|p| (p.prune_tag.as_str(), p.digest.clone()))
        .collect();
    let wanted = [
        ("20990101000000_prune_f", old.to_string()),
        ("20990101000001_prune_f", foreign.to_string()),
    ];
    assert_eq!(pins, wanted);
    for (tag, digest) in &wanted {
        assert_eq!(ground.at(tag).as_ref(), Some(digest));
    }
    assert_eq!(ground.history("f"), [foreign.to_string(), new.to_string()]);
    ground.assert_sound();
}
