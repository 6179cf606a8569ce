//! `registry`: the embedded registry as a process of its own.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::testbed::command::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_serves_its_images_and_ends_when_told_to() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .args(["registry", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
    let line = line.unwrap().unwrap().unwrap();
    let address = line.strip_prefix("listening on ").unwrap();
    for (repository, tag, image) in quaylike::built_in().unwrap() {
        let url = format!("http://{address}/v2/{repository}/manifests/{tag}");
        let accept = quaylike::MANIFEST_TYPES.join(", ");
        let answer = crate::testbed::http_builder()
            .build()
            .unwrap()
            .get(url)
            .header("accept", accept)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{repository}:{tag}");
        let digest = answer.headers()["docker-content-digest"].to_str().unwrap();
        assert_eq!(digest, image.digest().to_string());
    }
    let id = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &id]).status().await;
    assert!(kill.unwrap().success());
    let status = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(0));
    // The port is free again, and taken it is refused.
    let listener = std::net::TcpListener::bind(address).unwrap();
    let taken = Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .args(["registry", "--listen", address])
        .output();
    let taken = tokio::time::timeout(PATIENCE, taken)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(taken.status.code(), Some(2));
    let said = String::from_utf8(taken.stderr).unwrap();
    assert!(
        said.contains("--listen") && said.contains(address),
        "{said}"
    );
    drop(listener);
}
