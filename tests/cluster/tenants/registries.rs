//! Registries that lead elsewhere, and sources that are slow.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use promotion_controller::image::{Reference, Repository};
use promotion_controller::registry::{Credential, Progress, RegistryClient, Settings};

use super::Tenants;
use crate::testbed::scripted::{Image, OCI, Say, Scripted, answer, digest, head, unknown};
use crate::testbed::stage::spec;

/// A registry without accounts that has one image, and says at `/busy` that it is asked too much.
async fn victim() -> Scripted {
    let image = Image::new("victim");
    Scripted::start(move |asked| {
        if asked.split(' ').nth(1).unwrap().starts_with("/busy") {
            return answer(429, &[("retry-after", "600")], b"");
        }
        if asked.starts_with("POST /down") || asked.starts_with("PUT /down") {
            return answer(405, &[], b"METHOD NOT ALLOWED");
        }
        image.honest(asked)
    })
    .await
}

fn client(hosts: &[&Scripted]) -> RegistryClient {
    crate::testbed::install_tls();
    RegistryClient::new(Settings {
        plain_http: hosts.iter().map(|host| host.host()).collect(),
        ..Settings::default()
    })
    .unwrap()
}

fn repository(host: &Scripted, path: &str) -> Repository {
    format!("{}/{path}", host.host()).parse().unwrap()
}

/// That `victim` answers at once.
async fn answers(client: &RegistryClient, victim: &Scripted) {
    let begun = Instant::now();
    let reference = Reference::Tag("t".parse().unwrap());
    let progress = Progress::of("good", "request");
    let repository = repository(victim, "src/x");
    let credential = Credential::anonymous();
    let found = client.get(&repository, &reference, &credential, &progress);
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    assert!(found.unwrap().unwrap().is_some());
    let took = begun.elapsed();
    println!("S5: the registry that was led to answered after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_leads_to_another_does_not_rest_it() {
    let victim = victim().await;
    let realm = format!(
        r#"Bearer realm="http://{}/busy",service="x""#,
        victim.host()
    );
    let evil = Scripted::start(move |_| answer(401, &[("www-authenticate", &realm)], b"")).await;
    let location = format!("http://{}/down", victim.host());
    let uploads = Scripted::start(move |asked| {
        if asked.starts_with("POST") {
            return answer(202, &[("location", &location)], b"");
        }
        if asked.contains("/v2/ ") {
            answer(200, &[], b"")
        } else {
            unknown()
        }
    })
    .await;
    let client = client(&[&victim, &evil, &uploads]);
    answers(&client, &victim).await;
    let attack = |client: RegistryClient, repository: Repository, n: usize| {
        tokio::spawn(async move {
            let progress = Progress::of("evil", &n.to_string());
            let credential = Credential::anonymous();
            let reference = Reference::Tag("t".parse().unwrap());
            let _ = client
                .get(&repository, &reference, &credential, &progress)
                .await;
            let _ = client.may_push(&repository, &credential, &progress).await;
        })
    };
    let attacks: Vec<_> = (0..20)
        .flat_map(|n| [(&evil, n), (&uploads, n)])
        .map(|(host, n)| attack(client.clone(), repository(host, &format!("x/{n}")), n))
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        answers(&client, &victim).await;
    }
    let led = victim
        .heads()
        .iter()
        .filter(|head| head.contains("/busy"))
        .count();
    assert!(led > 0, "it was led there");
    for attack in attacks {
        attack.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_behind_a_redirect_that_is_asked_too_much_does_not_rest_the_registry() {
    let page = victim().await;
    let elsewhere = format!("http://{}/busy", page.host());
    let image = Image::new("front");
    let front = Scripted::start(move |asked| {
        if asked.contains("/referrers/") || asked.contains("/manifests/away") {
            return answer(303, &[("location", &elsewhere)], b"");
        }
        image.honest(asked)
    })
    .await;
    let client = client(&[&page, &front]);
    let away = tokio::spawn({
        let (client, repository) = (client.clone(), repository(&front, "src/x"));
        async move {
            let progress = Progress::of("evil", "request");
            let reference = Reference::Tag("away".parse().unwrap());
            let credential = Credential::anonymous();
            let _ = client
                .get(&repository, &reference, &credential, &progress)
                .await;
        }
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        answers(&client, &front).await;
    }
    assert!(!page.heads().is_empty());
    away.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_sources_leave_streams_to_another_namespace() {
    let tenants = Tenants::new().await;
    // Images of one large layer each, which comes byte by byte.
    let images: Vec<Image> = (0..40)
        .map(|n| {
            let seed = format!("evil {n}");
            let layer = seed.repeat(100_000).into_bytes();
            Image {
                layer: layer.clone(),
                ..Image::new(&seed)
            }
            .with(|manifest| manifest["layers"] = serde_json::json!([Image::layer(&layer)]))
        })
        .collect();
    let mut served: HashMap<String, Say> = HashMap::new();
    let mut names = Vec::new();
    for image in images {
        names.push(digest(&image.manifest));
        served.insert(
            digest(&image.manifest),
            answer(200, &[("content-type", OCI)], &image.manifest),
        );
        served.insert(digest(&image.config), answer(200, &[], &image.config));
        let length = image.layer.len().to_string();
        let slow = Say::Drip(
            head(200, &[("content-length", &length)]),
            image.layer.clone(),
            Duration::from_millis(20),
        );
        served.insert(digest(&image.layer), slow);
    }
    let slow = Scripted::start(move |asked| {
        let path = asked.split(' ').nth(1).unwrap();
        if path == "/v2/" {
            return answer(200, &[], b"");
        }
        served
            .get(path.rsplit('/').next().unwrap())
            .cloned()
            .unwrap_or_else(unknown)
    })
    .await;
    let controller = tenants.controller(&[&slow.host()], &["--registry-qps=0"]);
    let alone = tenants.alone().await;
    let to = tenants.registry.host();
    let pairs: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, digest)| {
            (
                format!("{}/x@{digest}", slow.host()),
                format!("{to}/evil:{n}"),
            )
        })
        .collect();
    let pairs: Vec<_> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
    tenants.evil.create("slow", &spec(&pairs)).await;
    // Until no further layer begins.
    let begun = || {
        slow.heads()
            .iter()
            .filter(|head| head.contains("/blobs/"))
            .count()
    };
    let mut before = 0;
    while begun() == 0 || begun() > before {
        before = begun();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    tenants.beside("S6", alone).await;
    // The others say what they wait for.
    let waits = tenants.evil.until("slow", super::PATIENCE, |status| {
        let said = status
            .images
            .iter()
            .filter_map(|image| image.message.as_deref());
        said.chain(
            status
                .conditions
                .iter()
                .map(|condition| condition.message.as_str()),
        )
        .any(|message| message.contains("places for blobs"))
    });
    waits.await;
    super::within_memory("S6", &controller);
}
