//! TLS: private CAs, each for its own host; HTTP/2; and both through a proxy.

use promotion_controller::image::Repository;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Progress, Proxies, Put, Settings};
use quaylike::{ImageSpec, Shape};
use serde_json::json;

use crate::testbed::client::{client_with, fetched, open, repository, seeded, settings, tag};
use crate::testbed::command::{Ground, ended};
use crate::testbed::scripted::{Scripted, answer};
use crate::testbed::{Distribution, DistributionOptions};

async fn secured() -> Distribution {
    let options = DistributionOptions {
        tls: true,
        ..DistributionOptions::default()
    };
    Distribution::start(options).await.unwrap()
}

fn place(host: &str) -> Repository {
    format!("{host}/team/a").parse().unwrap()
}

#[tokio::test]
async fn a_private_ca_is_trusted_at_its_host_alone_and_http_2_is_spoken() {
    let (from, to, beside) = (open().await, secured().await, secured().await);
    let mut settings = settings(&[&from]);
    settings.put_timeout = std::time::Duration::from_secs(5);
    settings.registry_ca = vec![(to.host(), to.ca()), ("registry.test".into(), beside.ca())];
    let client = client_with(settings);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let manifest = seeded(&from, &client, "src/a", Shape::Index, &none).await;
    let (source, target) = (repository(&from, "src/a"), place(&to.host()));
    client
        .copy(none.at(&source), &manifest, none.at(&target), &progress)
        .await
        .unwrap();
    let put = client
        .put_tag(&target, &tag("x"), &manifest, &none, || true, &progress)
        .await;
    assert!(matches!(put, Put::Written), "{put:?}");
    let requests = to.log().requests().unwrap();
    assert!(requests.len() > 10, "{requests:?}");
    for request in requests {
        // A tag's PUT has a connection of its own, which is closed when it is given up.
        let sets_tag = request.method == "PUT" && request.path.ends_with("/manifests/x");
        let protocol = if sets_tag { "HTTP/1.1" } else { "HTTP/2.0" };
        assert_eq!(request.protocol, protocol, "{request:?}");
    }
    // Its CA is known, for another host.
    let error = client
        .get_authoritative(&place(&beside.host()), &tag("x"), &none, &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::CertificateUntrusted, Class::Terminal)
    );
    let remedy = format!("--registry-ca {}=FILE", beside.host());
    assert!(error.message.contains(&remedy), "{error}");
    assert_eq!(progress.waiting(), None);
}

#[tokio::test]
async fn large_blobs_have_connections_of_http_1_1_both_ways() {
    let (from, to) = (open().await, secured().await);
    let mut settings = settings(&[&from]);
    settings.registry_ca = vec![(to.host(), to.ca())];
    let client = client_with(settings);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let mut spec = ImageSpec::new(Shape::Oci, "large");
    (spec.layers, spec.layer_bytes) = (1, Some(4 << 20));
    from.seed_spec("src/a", "seed", &spec).unwrap();
    let manifest = fetched(&from, &client, "src/a", &none).await;
    let (source, there) = (repository(&from, "src/a"), place(&to.host()));
    let back = repository(&from, "src/b");
    for (from, to) in [(&source, &there), (&there, &back)] {
        let copy = client.copy(none.at(from), &manifest, none.at(to), &progress);
        copy.await.unwrap();
    }
    let requests = to.log().requests().unwrap().into_iter();
    let bodies = requests.filter(|request| {
        request.path.contains("/blobs/") && ["GET", "PUT"].contains(&request.method.as_str())
    });
    let mut bodies: Vec<_> = bodies.map(|body| (body.method, body.protocol)).collect();
    bodies.sort();
    // The layer and the config, each way.
    let expected = ["GET", "PUT"].map(|method| {
        ["HTTP/1.1", "HTTP/2.0"].map(|protocol| (method.to_owned(), protocol.to_owned()))
    });
    assert_eq!(bodies, expected.concat());
}

#[tokio::test]
async fn a_private_ca_is_trusted_through_a_proxy() {
    let to = secured().await;
    let behind = to.host().parse().unwrap();
    let proxy = Scripted::proxy(Some(behind), |_| answer(502, &[], "")).await;
    let client = |allowed: &str| {
        client_with(Settings {
            registry_ca: vec![("localhost:7".into(), to.ca())],
            allowed: Some(vec![allowed.parse().unwrap()]),
            proxies: Proxies::Given {
                proxy: format!("http://bot:pr0xy-s3cret@{}", proxy.host()),
                except: String::new(),
            },
            ..Settings::default()
        })
    };
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let found = client("localhost:7")
        .get_authoritative(&place("localhost:7"), &tag("x"), &none, &progress)
        .await
        .unwrap();
    assert_eq!(found, None);
    let heads = proxy.heads();
    assert!(heads[0].starts_with("CONNECT localhost:7 "), "{heads:?}");
    assert!(
        heads[0].contains("proxy-authorization: Basic "),
        "{heads:?}"
    );
    let requests = to.log().requests().unwrap();
    assert!(
        requests
            .iter()
            .all(|request| request.protocol == "HTTP/2.0"),
        "{requests:?}"
    );
    // One that is not named is not asked for, one whose certificate is another's not believed.
    let connections = proxy.connections();
    let error = client("**")
        .get_authoritative(&place("localhost:8"), &tag("x"), &none, &progress)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::NotAllowed, "{error}");
    assert_eq!(proxy.connections(), connections);
    let error = client("localhost:*")
        .get_authoritative(&place("localhost:8"), &tag("x"), &none, &progress)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::CertificateUntrusted, "{error}");
    assert!(!error.message.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_given_as_ca_is_explained() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, certificate.pem()).unwrap();
    let client = client_with(Settings {
        registry_ca: vec![(host.clone(), file)],
        ..Settings::default()
    });
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let (target, name) = (place(&host), tag("x"));
    let error = client.get_authoritative(&target, &name, &none, &progress);
    let error = error.await.unwrap_err();
    let is = (error.reason, error.class);
    assert_eq!(is, (Reason::CertificateUntrusted, Class::Terminal));
    assert!(error.message.contains("CaUsedAsEndEntity"), "{error}");
    assert!(error.message.contains("self-signed"), "{error}");
    assert!(error.message.contains("CA:TRUE"), "{error}");
}

/// Where the system trusts nobody.
const NOBODY: &str = "/nowhere/certificates.pem";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_system_trusts_is_read_only_for_a_connection_that_needs_it() {
    let (ground, secured) = (Ground::new().await, secured().await);
    ground.seed("src/x", "a", "new");
    let promote = async || {
        let mut command = ground.command(&["-o", "json"]);
        command.env("SSL_CERT_FILE", NOBODY);
        ended(command).await
    };
    let request = ground.request("one", &[(":a", "f")], &json!({}));
    ground.documents(std::slice::from_ref(&request));
    promote().await.exits(0);
    let mut beyond = request;
    beyond["spec"]["images"][0]["source"] = json!(format!("{}/team/a:x", secured.host()));
    ground.documents_anew(&[beyond]);
    let run = promote().await.exits(1);
    let image = &run.items()[0]["status"]["images"][0];
    assert_eq!(image["reason"], "CertificateUntrusted", "{image}");
    let message = image["message"].as_str().unwrap();
    assert!(message.contains("No CA certificates"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_does_not_begin_where_the_system_trusts_nobody() {
    let ground = Ground::new().await;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a", "namespace": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "a", "user": {}}],
    });
    ground
        .folder
        .write("kubeconfig", &config.to_string())
        .unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
    command
        .args(["controller", "--allow-registry=**"])
        .current_dir(ground.folder.path())
        .env_clear()
        .env("KUBECONFIG", "kubeconfig")
        .env("SSL_CERT_FILE", NOBODY)
        .kill_on_drop(true);
    let run = ended(command).await.exits(2);
    assert!(run.stderr.contains("No CA certificates"), "{}", run.stderr);
}
