//! Connections to the controller's own ports.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::metrics::scraped::get;
use crate::testbed::free_port;
use crate::testbed::stage::Stage;

const IDLE: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_hold_up_no_probe_and_no_scrape() {
    let _turn = super::ATTACKS.acquire().await.unwrap();
    let stage = Stage::new("idle").await;
    let (metrics, probes) = (free_port().unwrap(), free_port().unwrap());
    let controller = stage.controller(&[
        &format!("--listen=127.0.0.1:{metrics}"),
        &format!("--listen-probes=127.0.0.1:{probes}"),
    ]);
    controller.says(" ready").await;
    // What is served there, and nothing else.
    assert_eq!(get(probes, "/metrics").await.unwrap().0, 404);
    let mut idle = Vec::new();
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < Duration::from_secs(8) {
        while idle.len() < IDLE {
            idle.push(TcpStream::connect(("127.0.0.1", metrics)).await.unwrap());
        }
        for (port, path) in [
            (probes, "/livez"),
            (probes, "/readyz"),
            (metrics, "/metrics"),
        ] {
            let asked = Instant::now();
            let (code, text) = get(port, path).await.unwrap();
            assert_eq!(code, 200, "{path}: {text}");
            times.push(asked.elapsed());
        }
        idle.drain(..IDLE / 3);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "S3: probes and scrapes beside {IDLE} idle connections: {median:?}, the slowest {slowest:?}"
    );
    // A busy machine delays one or the other; connections that hold them up delay all.
    assert!(median < Duration::from_secs(2), "{median:?} of {times:?}");
}
