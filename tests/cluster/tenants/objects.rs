//! Objects: very many, very large, of very many registries.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use kube::api::PostParams;
use serde_json::json;

use super::{MIB, PATIENCE, Tenants, within_memory};
use crate::metrics::scraped::Scraped;
use crate::testbed::free_port;
use crate::testbed::stage::{Stage, object, spec};

/// How many are created at once.
const AT_ONCE: usize = 8;
const IMAGES: usize = 256;

/// How many of them there are: as many as the finding had, or fewer, so that a run of all tests is not held up.
fn count(all: usize, few: usize) -> usize {
    if std::env::var_os("TENANTS_IN_FULL").is_some() {
        all
    } else {
        few
    }
}

/// Creates requests of so many images each, none of which is carried out.
async fn create(
    stage: &Stage,
    requests: usize,
    images: usize,
    more: serde_json::Value,
    annotation: &str,
) {
    let api = stage.requests();
    let params = PostParams::default();
    let created = stream::iter(0..requests).map(|n| {
        let images: Vec<_> = (0..images)
            .map(|m| json!({
                "source": format!("r{n}-{m}.registry.invalid/team/a-component-of-the-product:4.21"),
                "float": format!("quay.io/openshift/ci:ocp_4.21_component-number-{n}-{m}"),
            }))
            .collect();
        let mut spec = spec(&[]);
        spec["images"] = json!(images);
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let mut request = object(&format!("evil-{n:04}"), &spec);
        if !annotation.is_empty() {
            request.metadata.annotations =
                Some([("note".to_owned(), annotation.to_owned())].into());
        }
        let (api, params) = (&api, &params);
        async move { api.create(params, &request).await.map(|_| ()).unwrap() }
    });
    created.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

/// Waits until the controller has said something of that many of them.
async fn noted(stage: &Stage, requests: usize) {
    let begun = Instant::now();
    let name = format!("evil-{:04}", requests - 1);
    loop {
        let status = stage.get(&name).await.status;
        if status.is_some_and(|status| status.order.is_some()) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE * 4, "{}", stage.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_requests_of_256_images_each_take_little_memory_and_no_time() {
    let tenants = Tenants::new().await;
    let requests = count(2_000, 250);
    let first = tenants.controller(&[], &["--registry-qps=0"]);
    let alone = tenants.alone().await;
    first.kill();
    create(
        &tenants.evil,
        requests,
        IMAGES,
        json!({"suspend": true}),
        "",
    )
    .await;
    let controller = tenants.controller(&[], &["--registry-qps=0"]);
    noted(&tenants.evil, requests).await;
    // Whoever follows a killed process waits before it writes a float that it knows nothing of: not the attack's doing.
    tenants.promoted("after-the-wait").await;
    let attack = format!("S2, {requests} suspended requests");
    tenants.beside(&attack, alone).await;
    within_memory(&attack, &controller);
    let peak = controller.peak_memory().unwrap();
    // About 1.7 KiB for each image, as those take that may begin, would be 107 MiB more.
    assert!(requests > 250 || peak < 110 * MIB, "{} MiB", peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_1_26_mb_are_listed_one_after_the_other() {
    let tenants = Tenants::new().await;
    let requests = count(200, 60);
    // As JSON, six bytes each; as much as annotations may be.
    let annotation = "\u{1}".repeat(205 * 1024);
    create(
        &tenants.evil,
        requests,
        1,
        json!({"suspend": true}),
        &annotation,
    )
    .await;
    let controller = tenants.controller(&[], &["--registry-qps=0"]);
    noted(&tenants.evil, requests).await;
    let attack = format!("S2, {requests} requests of 1.26 MB");
    let alone = tenants.alone().await;
    tenants.beside(&attack, alone).await;
    within_memory(&attack, &controller);
    let peak = controller.peak_memory().unwrap();
    assert!(peak < 150 * MIB, "{} MiB", peak / MIB);
    // What is not kept here is kept there.
    let one = tenants.evil.get("evil-0000").await;
    let kept = one.metadata.annotations.unwrap();
    assert_eq!(kept["note"].len(), annotation.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_name_ten_thousand_registries_leave_room_for_others() {
    let tenants = Tenants::new().await;
    let flags = [
        "--registry-qps=0",
        "--allow-registry=*.registry.invalid",
        "--allow-registry=quay.io",
        "--allow-registry=127.0.0.1:*",
    ];
    let controller = tenants.controller(&[], &flags);
    let alone = tenants.alone().await;
    create(&tenants.evil, 40, IMAGES, json!({"mode": "Plan"}), "").await;
    noted(&tenants.evil, 40).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    tenants.beside("S8", alone).await;
    within_memory("S8", &controller);
}

/// Requests whose Secret is missing: what they cost the API server, and another namespace.
#[tokio::test(flavor = "multi_thread")]
async fn requests_whose_secret_is_missing_are_looked_at_rarely_and_hold_up_nobody() {
    const WATCHED: Duration = Duration::from_secs(20);
    let tenants = Tenants::new().await;
    let requests = count(5_000, 1_000);
    let port = free_port().unwrap();
    let listen = format!("--listen=127.0.0.1:{port}");
    let controller = tenants.controller(&[], &["--registry-qps=0", &listen]);
    let alone = tenants.alone().await;
    let missing = json!({"pushSecret": {"name": "missing"}});
    create(&tenants.evil, requests, 1, missing, "").await;
    noted(&tenants.evil, requests).await;
    let attack = format!("S9, {requests} requests without their Secret");
    tenants.beside(&attack, alone).await;
    // Once every one of them has been looked at, they come less and less often.
    let calls = async || {
        let scraped = Scraped::of(port).await.unwrap().series.into_iter();
        let calls = scraped.filter(|(series, _)| series.starts_with("api_requests_total{"));
        calls.map(|(_, count)| count).sum::<f64>()
    };
    let before = calls().await;
    tokio::time::sleep(WATCHED).await;
    let rate = (calls().await - before) / WATCHED.as_secs_f64();
    println!("{attack}: {rate:.1} calls a second for them");
    assert!(rate < 40.0, "{rate} calls a second");
    within_memory(&attack, &controller);
}
