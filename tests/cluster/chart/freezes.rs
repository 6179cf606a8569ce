//! Who may freeze floats, and what the API server takes for a freeze.

use std::time::Instant;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use promotion_controller::controller::freeze_map::NAME as FREEZES;
use promotion_controller::engine::freeze::FreezeLine;
use serde_json::json;

use super::ground::{Ground, NAME, PATIENCE};
use crate::testbed::helm::kubectl;
use crate::testbed::stage::LOOK;

/// Lines as they must not be: the policy knows them all, and the controller refuses them too.
const SPOILT: [&str; 10] = [
    "everything, please",
    "quay.io/o/ci x",
    "quay.io/o/ci:*",
    "quay.io/o/ci@sha256:* x",
    "quay.io/o/ci:* until=tomorrow x",
    "quay.io/o/ci:* until=2026-12-24T18:00:00Z",
    "quay.io/o/ci:* except=r",
    "quay.io/o/ci:* except=ci/r until=2026-12-24T18:00:00Z x",
    "quay.io/o/ci:* until=2026-12-24T18:00:00Z except=ci/r except=ci/q x",
    "# ours\n\nquay.io/o/ci:a x\nquay.io/o/ci:b",
];

async fn write(client: &Client, ground: &Ground, name: &str, text: &str) -> Result<(), String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &ground.release.namespace);
    let (params, change) = (PatchParams::default(), json!({"data": {"freezes": text}}));
    let patched = api.patch(name, &params, &Patch::Merge(&change)).await;
    patched.map(drop).map_err(|error| error.to_string())
}

/// The ConfigMap is there, takes what can be read from whom the Role is bound to, and keeps it through an upgrade.
pub async fn are_written_by_whom_the_role_is_bound_to(ground: &Ground) {
    let (plane, namespace) = (ground.plane, &ground.release.namespace);
    let admin = plane.client().unwrap();
    let read = async || ground.released::<ConfigMap>().get(FREEZES).await.unwrap();
    assert_eq!(read().await.data, None);
    // The policy acts a moment after it is there.
    let end = Instant::now() + PATIENCE;
    for text in SPOILT {
        let refused = loop {
            match write(&admin, ground, FREEZES, text).await {
                Err(refused) => break refused,
                Ok(()) => assert!(Instant::now() < end, "{text} is taken"),
            }
            tokio::time::sleep(LOOK).await;
        };
        assert!(
            refused.contains("each line of the key freezes is PATTERN"),
            "{refused}"
        );
        let mut lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert!(
            lines.any(|line| line.parse::<FreezeLine>().is_err()),
            "{text}"
        );
    }
    let token = plane
        .service_account_token(namespace, "freezer")
        .await
        .unwrap();
    let freezer = plane.client_for(&token).unwrap();
    let text = "# ours\n\nquay.io/o/ci:4.2*_a until=2026-12-24T18:00:00Z except=ci/r.1 why, ask #us\n\
        127.0.0.1:5000/**:latest it's broken: see https://example.com/?a=b\n";
    let refused = write(&freezer, ground, FREEZES, text).await.unwrap_err();
    assert!(refused.contains("forbidden"), "{refused}");
    let account = format!("--serviceaccount={namespace}:freezer");
    let bind = [
        "create",
        "rolebinding",
        "freezer",
        "--role=promotion-controller-freeze",
        &account,
        "-n",
        namespace,
    ];
    kubectl(plane, &bind, "").await;
    while let Err(refused) = write(&freezer, ground, FREEZES, text).await {
        assert!(Instant::now() < end, "{refused}");
        tokio::time::sleep(LOOK).await;
    }
    // To pause takes another right.
    let refused = write(&freezer, ground, NAME, text).await.unwrap_err();
    assert!(refused.contains("forbidden"), "{refused}");
    ground.helm("upgrade", &ground.values()).await;
    assert_eq!(read().await.data.unwrap()["freezes"], text);
    // What is called otherwise is nobody's business.
    let other = [
        "create",
        "configmap",
        "notes",
        "--from-literal=freezes=everything, please",
        "-n",
        namespace,
    ];
    kubectl(plane, &other, "").await;
}
