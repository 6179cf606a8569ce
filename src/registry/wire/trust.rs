//! Which certificates are trusted: those that the system trusts vouch for, and some more.
//!
//! Reading the system's bundle costs more than all else that a process does before its first request. Guaranteed: that is done once, beside
//! the first connection that needs it, and never for plain HTTP.

use std::sync::{Arc, Once, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_platform_verifier::Verifier;

use crate::registry::error::BuildError;

/// What the system trusts, and these roots.
#[derive(Debug)]
pub(crate) struct Trust {
    provider: Arc<CryptoProvider>,
    roots: Vec<CertificateDer<'static>>,
    begun: Once,
    loaded: OnceLock<Result<Verifier, rustls::Error>>,
}

impl Trust {
    pub(crate) fn new(roots: Vec<CertificateDer<'static>>) -> Result<Arc<Self>, BuildError> {
        let provider = CryptoProvider::get_default().cloned();
        let provider =
            provider.ok_or_else(|| BuildError::Client("no TLS provider is installed".into()))?;
        Ok(Arc::new(Self {
            provider,
            roots,
            begun: Once::new(),
            loaded: OnceLock::new(),
        }))
    }

    /// TLS with that trust.
    pub(crate) fn config(self: &Arc<Self>) -> Result<ClientConfig, BuildError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| BuildError::Client(error.to_string()))?;
        Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Self>::clone(self))
            .with_no_client_auth())
    }

    /// Reads the system's bundle, beside what the caller does; once.
    pub(crate) fn begin_to_load(self: &Arc<Self>) {
        self.begun.call_once(|| {
            let trust = Arc::clone(self);
            tokio::task::spawn_blocking(move || trust.read().map(drop));
        });
    }

    /// Reads it now.
    ///
    /// # Errors
    /// There is nothing in it, and no root of our own.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<(), BuildError> {
        let trust = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || trust.read().map(drop));
        let read = read.await.map_err(|error| error.to_string());
        let read = read.and_then(|read| read.map_err(|error| error.to_string()));
        read.map_err(BuildError::Client)
    }

    /// What was read; waits for whoever reads it.
    fn read(&self) -> Result<&Verifier, rustls::Error> {
        let read = || {
            let roots = self.roots.iter().cloned();
            Verifier::new_with_extra_roots(roots, Arc::clone(&self.provider))
        };
        self.loaded.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    /// The same at a connection: without it no certificate is trusted.
    fn verifier(&self) -> Result<&Verifier, rustls::Error> {
        let untrusted = |error| CertificateError::Other(OtherError(Arc::new(error)));
        self.read().map_err(|error| untrusted(error).into())
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.verifier()?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
