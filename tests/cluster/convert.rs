//! What `convert` prints is a request that the API server takes.

use std::process::Command;

use promotion_controller::api::crd_yaml;
use serde_json::{Value, json};

use crate::testbed::script::{meant, sample};
use crate::testbed::{RunDir, shared};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_taken_by_the_api_server_with_all_that_was_said() {
    let plane = shared().await;
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let namespace = plane.namespace("convert").await.unwrap();
    let folder = RunDir::create("convert").unwrap();
    folder
        .write("Promote_4.21.sh", &sample("promote.sh"))
        .unwrap();
    let file = folder.join("Promote_4.21.sh");
    let ran = Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .arg("convert")
        .args([
            file.to_str().unwrap(),
            "-n",
            &namespace,
            "--push-secret=pusher",
            "--pull-secret=puller",
            "--latch=independently",
            "-oyaml",
        ])
        .env_clear()
        .output()
        .unwrap();
    let stdout = String::from_utf8(ran.stdout).unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(!stdout.contains(['#', '>']), "{stdout}");
    let applied = plane
        .kubectl_with_input(
            &["apply", "--dry-run=server", "-o", "json", "-f", "-"],
            &stdout,
        )
        .await
        .unwrap();
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    let object: Value = serde_json::from_slice(&applied.stdout).unwrap();
    assert_eq!(object["metadata"]["name"], "promote-4.21");
    assert_eq!(object["metadata"]["namespace"], namespace.as_str());
    let spec = &object["spec"];
    let meant = meant("promote.sh");
    assert_eq!(spec["images"], meant["images"]);
    assert_eq!(spec["imageStreamNamespace"], meant["imageStreamNamespace"]);
    assert_eq!(
        (
            &spec["pushSecret"],
            &spec["pullSecret"],
            &spec["latch"],
            &spec["mode"]
        ),
        (
            &json!({"name": "pusher"}),
            &json!({"name": "puller"}),
            &json!("Independently"),
            &json!("Promote")
        )
    );
}
