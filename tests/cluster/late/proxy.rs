//! A CONNECT proxy between the program and the registry: what was sent is acknowledged by the proxy, so that neither the timeout of the
//! connection nor its end takes it back. It may land when the proxy passes it on: L alone keeps the float until then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use quaylike::{Options, Registry};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::path::Two;
use crate::testbed::stage::LOOK;

/// The registry's name; the proxy knows where it is.
const NAME: &str = "registry.test";
/// The PUT of the float that the proxy holds back.
const HELD: &[u8] = b"PUT /v2/ci/manifests/f ";

/// A CONNECT proxy, and the registry's TLS behind it.
#[derive(Clone)]
struct Proxy {
    tls: TlsAcceptor,
    registry: SocketAddr,
    /// How long after its client has gone the first PUT is passed on.
    later: Duration,
    /// How far that PUT is: taken, and passed on.
    held: Arc<AtomicUsize>,
}

const TAKEN: usize = 1;
const PASSED_ON: usize = 2;

/// A certificate of the name, and the CA that signed it, as PEM.
fn certified() -> (TlsAcceptor, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let signed = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let signed = signed
        .signed_by(&key, &Issuer::new(params, ca_key))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], private)
        .unwrap();
    (TlsAcceptor::from(Arc::new(tls)), ca.pem())
}

impl Proxy {
    async fn serve(self, mut client: TcpStream) {
        let mut connect = Vec::new();
        while !connect.ends_with(b"\r\n\r\n") {
            client.read_buf(&mut connect).await.unwrap();
        }
        assert!(connect.starts_with(format!("CONNECT {NAME}:443 ").as_bytes()));
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let Ok(client) = self.tls.accept(client).await else {
            return;
        };
        let registry = TcpStream::connect(self.registry).await.unwrap();
        let (mut client, mut answered) = tokio::io::split(client);
        let (mut answers, mut registry) = registry.into_split();
        let answers = tokio::spawn(async move {
            let _ = copy(&mut answers, &mut answered).await;
        });
        let mut sent = Vec::new();
        while client.read_buf(&mut sent).await.unwrap_or(0) > 0 {
            if sent.starts_with(HELD) && self.held.fetch_max(TAKEN, Ordering::SeqCst) == 0 {
                // All of it is taken, and nothing passed on before the client has given up.
                while client.read_buf(&mut sent).await.unwrap_or(0) > 0 {}
                tokio::time::sleep(self.later).await;
                self.held.store(PASSED_ON, Ordering::SeqCst);
            }
            registry.write_all(&sent).await.unwrap();
            sent.clear();
        }
        drop(registry);
        answers.await.unwrap();
    }
}

async fn passed_on_after(later: Duration) {
    let registry = Registry::start(Options::default()).await.unwrap();
    let (tls, ca) = certified();
    let proxy = Proxy {
        tls,
        registry: registry.host().parse().unwrap(),
        later,
        held: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let held = Arc::clone(&proxy.held);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(proxy.clone().serve(client));
        }
    });
    let two = Two::new(&registry, NAME);
    two.folder.write("ca.pem", &ca).unwrap();
    let program = env!("CARGO_BIN_EXE_promotion-controller").to_owned();
    let flag = format!("--registry-ca={NAME}=ca.pem");
    let environment = [("HTTPS_PROXY", address.as_str()), ("NO_PROXY", "")];
    let mut run = two.promote(&[program], &flag, &environment);
    let case = format!("passed on {later:?} after its client had gone");
    two.assert_ended(&registry, &mut run, &case).await;
    assert_eq!(held.load(Ordering::SeqCst), PASSED_ON, "{case}");
    // What comes once the program has ended is too late for `assert_ended` to see.
    tokio::time::sleep(LOOK).await;
    assert_eq!(registry.tag("ci", "f"), Some(two.second), "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_is_not_passed_on_while_a_proxy_may_still_pass_a_put_on() {
    join_all([13, 25].map(|seconds| passed_on_after(Duration::from_secs(seconds)))).await;
}
