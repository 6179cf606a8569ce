//! Whether a controller is ready and alive, from its start to its end.

use crate::testbed::PATIENCE;
use std::time::{Duration, Instant};

use quaylike::{GateSpec, ImageSpec, Matcher, Options, Registry, Shape};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Scraped;
use super::scraped::get;
use crate::testbed::stage::{Controller, LOOK, Stage, phase, spec};
use crate::testbed::{Signal, free_port};

async fn until_answers(port: u16, path: &str, wanted: (u16, &str)) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = get(port, path).await;
        let found = answer.as_ref().map(|(code, text)| (*code, text.trim()));
        if found == Some(wanted) {
            return;
        }
        assert!(Instant::now() < end, "{path} is {answer:?}, not {wanted:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn answers(port: u16, path: &str) -> (u16, String) {
    let (code, text) = get(port, path).await.unwrap();
    (code, text.trim().to_owned())
}

fn ok() -> (u16, String) {
    (200, "ok".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_and_who_waits_for_the_lease_are_ready_and_one_that_ends_is_not() {
    let stage = Stage::elected("health").await;
    let registry = Registry::start(Options::default()).await.unwrap();
    let host = registry.host();
    let image = ImageSpec::new(Shape::Oci, "new").build().unwrap();
    registry.seed_image("src/x", "a", &image).unwrap();
    let start = |port: u16| -> Controller {
        stage.controller(&[
            "--leader-elect=true",
            &format!("--lease-namespace={}", stage.namespace),
            &format!("--listen=127.0.0.1:{port}"),
            &format!("--plain-http={host}"),
        ])
    };
    let (first, second) = (free_port().unwrap(), free_port().unwrap());
    let mut leader = start(first);
    let leads = |scraped: &Scraped| scraped.sum("leader") == 1;
    Scraped::until(first, PATIENCE, leads).await;
    until_answers(first, "/readyz", (200, "ok")).await;
    let _waiting = start(second);
    until_answers(second, "/readyz", (200, "ok")).await;
    assert_eq!(answers(first, "/livez").await, ok());
    assert_eq!(answers(second, "/livez").await, ok());
    let waiting = Scraped::of(second).await.unwrap();
    assert!(waiting.series.contains_key("leader") && !leads(&waiting));
    assert!(waiting.sum(r#"api_requests_total{call="lease",result="ok"}"#) >= 1);
    assert_eq!(answers(first, "/other").await.0, 404);

    // The leader ends only when its tag PUT has been answered.
    let float = format!("{host}/ci:a");
    let gate = registry.gate(GateSpec::before(Matcher::put_manifest()));
    stage
        .create("line", &spec(&[(&format!("{host}/src/x:a"), &float)]))
        .await;
    stage.reached(&gate).await;
    leader.signal(Signal::Terminate);
    until_answers(first, "/readyz", (503, "ending")).await;
    assert_eq!(answers(first, "/livez").await, ok());
    gate.open();
    let next = Scraped::until(second, PATIENCE, leads).await;
    assert_eq!(
        next.sum(r#"leadership_changes_total{change="acquired"}"#),
        1
    );
    until_answers(second, "/readyz", (200, "ok")).await;
    assert_eq!(leader.ended().await, 0, "{}", leader.log());
    assert_eq!(phase(&stage.finished("line", PATIENCE).await), "Posted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_without_an_api_server_is_alive_and_not_ready() {
    let stage = Stage::new("health-alone").await;
    // Nobody listens there.
    let closed = free_port().unwrap();
    let config = std::fs::read_to_string(stage.plane.kubeconfig()).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["clusters"][0]["cluster"]["server"] = format!("https://127.0.0.1:{closed}").into();
    let kubeconfig = stage
        .folder
        .write("kubeconfig", &config.to_string())
        .unwrap();
    // Without an election too: whether an installation rules here is not known.
    for elects in ["true", "false"] {
        let why = "waiting for the lease, and the API server does not answer";
        let port = free_port().unwrap();
        let listen = format!("--listen=127.0.0.1:{port}");
        let elect = format!("--leader-elect={elects}");
        let arguments = [elect.as_str(), "--lease-namespace=default", &listen];
        let _controller = stage.controller_through(&kubeconfig, &arguments);
        until_answers(port, "/readyz", (503, why)).await;
        assert_eq!(answers(port, "/livez").await, ok());
        let scraped = Scraped::of(port).await.unwrap();
        assert_eq!(scraped.sum("build_info"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_slowly_or_too_much_is_cut_off_and_an_address_that_is_none_is_said() {
    let stage = Stage::new("health-slow").await;
    let port = free_port().unwrap();
    let _controller = stage.controller(&[&format!("--listen=127.0.0.1:{port}")]);
    until_answers(port, "/livez", (200, "ok")).await;
    let connect = async || TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut slow, mut large, mut body) = (connect().await, connect().await, connect().await);
    let begun = Instant::now();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    // It may be cut off while this is sent.
    let head = format!(
        "GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    let _ = large.write_all(head.as_bytes()).await;
    let mut said = Vec::new();
    let _ = large.read_to_end(&mut said).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!said.contains("200 OK"), "{said}");
    // A body that never comes is not waited for.
    let head = b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    body.write_all(head).await.unwrap();
    let mut said = [0; 12];
    body.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 405");
    let mut said = Vec::new();
    let _ = slow.read_to_end(&mut said).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
    assert!(!String::from_utf8_lossy(&said).contains("200 OK"));
    assert_eq!(answers(port, "/livez").await, ok());

    let mut refused = stage.controller(&[&format!("--listen=127.0.0.1:{port}")]);
    let end = Instant::now() + PATIENCE;
    let code = loop {
        if let Some(code) = refused.exit_code() {
            break code;
        }
        assert!(Instant::now() < end, "it runs");
        tokio::time::sleep(LOOK).await;
    };
    assert_eq!(code, 2);
    assert!(
        stage.log().contains("error: --listen: 127.0.0.1:"),
        "{}",
        stage.log()
    );
}
