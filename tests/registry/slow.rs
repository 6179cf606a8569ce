//! Registries that are slow on purpose: each keeps places that others need, and none keeps them for long.

use std::time::{Duration, Instant};

use promotion_controller::image::Reference;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Error, Progress};
use quaylike::{ImageSpec, Shape};

use super::targets::settings;
use super::tokens::{at, credential};
use crate::testbed::PATIENCE;
use crate::testbed::client::{client_with, fetched, open, repository};
use crate::testbed::scripted::{Image, OCI, Say, Scripted, answer, digest, head, unknown};

const EVERY: Duration = Duration::from_millis(20);

/// Copies the image that a source serves, but for what `lie` answers.
async fn copied(
    lie: impl Fn(&Image, &str) -> Option<Say> + Send + Sync + 'static,
) -> Result<(), Error> {
    let image = Image::new("new");
    let source =
        Scripted::start(move |head| lie(&image, head).unwrap_or_else(|| image.honest(head))).await;
    let to = open().await;
    let host = source.host();
    let client = client_with(settings(&[&host, &to.host()]));
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let (from, target) = (at(&host, "src/x"), repository(&to, "ci"));
    let tag = Reference::Tag("t".parse().unwrap());
    let copying = async {
        let manifest = client.get(&from, &tag, &none, &progress).await?.unwrap();
        client
            .copy(none.at(&from), &manifest, none.at(&target), &progress)
            .await
    };
    let copied = tokio::time::timeout(PATIENCE, copying).await;
    copied.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()))
}

fn is_layer(image: &Image, head: &str) -> bool {
    head.starts_with("GET") && head.contains(&digest(&image.layer))
}

fn slow(error: &Error) {
    let is = (error.reason, error.class);
    assert_eq!(is, (Reason::RegistryError, Class::Attempt), "{error}");
}

#[tokio::test]
async fn a_manifest_that_trickles_ends_with_its_request() {
    let error = copied(|image, asked| {
        let say = Say::Drip(
            head(200, &[("content-type", OCI)]),
            image.manifest.clone(),
            EVERY,
        );
        asked.contains("/manifests/").then_some(say)
    });
    slow(&error.await.unwrap_err());
}

#[tokio::test]
async fn a_blob_that_trickles_is_given_up_and_one_that_is_only_slow_is_not() {
    // A byte now and then, so that no single read stands still: six windows of 200 ms, and the pauses between them.
    let error = copied(|image, asked| {
        is_layer(image, asked).then(|| Say::Drip(head(200, &[]), image.layer.clone(), EVERY))
    });
    let error = error.await.unwrap_err();
    slow(&error);
    assert!(error.message.contains("too slow"), "{error}");
    // All that there is, and then nothing: the connection is held open.
    let whole = copied(|image, asked| {
        is_layer(image, asked).then(|| {
            let first = [
                head(200, &[("content-length", "3000")]),
                image.layer.clone(),
            ]
            .concat();
            Say::Drip(first, vec![0], Duration::from_hours(1))
        })
    });
    whole.await.unwrap();
}

#[tokio::test]
async fn a_blob_of_many_windows_is_taken_at_a_hundred_kilobytes_in_each() {
    let image = {
        let mut image = Image::new("new");
        image.layer = vec![7; 600_000];
        let layer = Image::layer(&image.layer);
        image.with(|manifest| manifest["layers"] = serde_json::json!([layer]))
    };
    let (layer, served) = (image.layer.clone(), image.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let storage = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        stream
            .write_all(&head(200, &[("content-length", "600000")]))
            .await
            .unwrap();
        for piece in layer.chunks(50_000) {
            tokio::time::sleep(Duration::from_millis(80)).await;
            stream.write_all(piece).await.unwrap();
        }
    });
    let began = Instant::now();
    let to = open().await;
    let source = Scripted::start(move |asked| {
        if is_layer(&served, asked) {
            return answer(307, &[("location", &format!("http://{storage}/x"))], b"");
        }
        served.honest(asked)
    })
    .await;
    let host = source.host();
    let mut settings = settings(&[&host, &to.host(), &storage.to_string()]);
    settings.request_timeout = Duration::from_secs(5);
    let client = client_with(settings);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let (from, target) = (at(&host, "src/x"), repository(&to, "ci"));
    let tag = Reference::Tag("t".parse().unwrap());
    let manifest = client
        .get(&from, &tag, &none, &progress)
        .await
        .unwrap()
        .unwrap();
    client
        .copy(none.at(&from), &manifest, none.at(&target), &progress)
        .await
        .unwrap();
    assert!(began.elapsed() > Duration::from_millis(900), "it was slow");
    assert_eq!(
        progress.bytes(),
        (image.layer.len() + image.config.len()) as u64
    );
}

#[tokio::test]
async fn a_refusal_that_trickles_is_read_for_ten_seconds_at_most() {
    let began = Instant::now();
    let error = copied(|image, asked| {
        is_layer(image, asked).then(|| Say::Drip(head(403, &[]), vec![b'<'], EVERY))
    });
    let error = error.await.unwrap_err();
    assert_eq!(error.reason, Reason::PermissionDenied, "{error}");
    let took = began.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
}

#[tokio::test]
async fn a_head_that_trickles_or_never_ends_is_the_hosts_illness_and_waited_for_by_name() {
    for say in [
        Say::Drip(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".to_vec(), EVERY),
        Say::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".repeat(1000)),
        Say::Endless(Vec::new(), b"HTTP/1.1 103 X\r\n\r\n".repeat(1000)),
        Say::Endless(Vec::new(), b"nothing".repeat(1000)),
        Say::Bytes(b"HTTP/1.1 200".to_vec()),
        Say::Bytes(Vec::new()),
    ] {
        let registry = Scripted::start(move |asked| {
            if asked.starts_with("GET /v2/ ") {
                return answer(200, &[], b"");
            }
            say.clone()
        })
        .await;
        let host = registry.host();
        let client = client_with(settings(&[&host]));
        let (none, progress) = (Credential::anonymous(), Progress::default());
        let (repository, tag) = (at(&host, "team/a"), "t".parse().unwrap());
        let looking = client.get_authoritative(&repository, &tag, &none, &progress);
        let seen = async {
            loop {
                if let Some(waiting) = progress.waiting() {
                    return waiting;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            found = looking => panic!("{found:?}"),
            waiting = seen => {
                assert_eq!(waiting.reason, Reason::RegistryUnavailable);
                assert!(waiting.message.contains(&host), "{}", waiting.message);
            }
            () = tokio::time::sleep(Duration::from_secs(4)) => panic!("nothing is shown"),
        }
    }
}

#[tokio::test]
async fn a_target_that_hardly_takes_an_upload_is_given_up() {
    let from = open().await;
    let mut spec = ImageSpec::new(Shape::Oci, "big");
    (spec.layers, spec.layer_bytes) = (1, Some(32 * 1024 * 1024));
    from.seed_spec("src/a", "seed", &spec).unwrap();
    let target = Scripted::start(|asked| match asked.split(' ').next().unwrap() {
        "GET" if asked.starts_with("GET /v2/ ") => answer(200, &[], b""),
        "POST" => answer(202, &[("location", "/v2/team/a/blobs/uploads/1")], b""),
        // Enough that there is always progress to see.
        "PUT" if asked.contains("33554432") => Say::Sip(1024, Duration::from_millis(50)),
        "PUT" => answer(201, &[], b""),
        _ => unknown(),
    })
    .await;
    let host = target.host();
    let client = client_with(settings(&[&from.host(), &host]));
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let manifest = fetched(&from, &client, "src/a", &none).await;
    let (source, to, who) = (
        repository(&from, "src/a"),
        at(&host, "team/a"),
        credential(&host),
    );
    let copying = client.copy(none.at(&source), &manifest, who.at(&to), &progress);
    // Four uploads, a window of one second each; the first takes what buffers hold.
    let copied = tokio::time::timeout(PATIENCE, copying).await;
    let error = copied.expect("it ends").unwrap_err();
    slow(&error);
    assert!(error.message.contains("stands still"), "{error}");
    assert!(
        progress.bytes() < 1000,
        "what was not kept is not counted, but the config is: {}",
        progress.bytes()
    );
}
