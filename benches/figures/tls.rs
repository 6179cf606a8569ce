//! TLS before a registry, where HTTP/2 is offered.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Signs what servers of 127.0.0.1 show.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// A new one; writes its certificate to `ca.crt` in `folder`.
    pub fn new(folder: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ca.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.crt"), certificate.pem()).unwrap();
        Self(Issuer::new(ca, key))
    }

    /// An address where the registry at `to` speaks TLS.
    pub async fn before(&self, to: SocketAddr) -> String {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(acceptor.clone(), near, to));
            }
        });
        host
    }
}

async fn pass(acceptor: TlsAcceptor, near: TcpStream, to: SocketAddr) {
    let _ = near.set_nodelay(true);
    let Ok(mut near) = acceptor.accept(near).await else {
        return;
    };
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    let _ = far.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}
