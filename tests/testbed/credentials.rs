//! Keys and certificates of one part of the testbed, made at its start and trusted by nothing else.
//!
//! Leaves: a certificate authority, a certificate for 127.0.0.1, the key pair that signs service account tokens,
//! and the administrator's token. All keys are P-256, which takes no time where RSA would take a second.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::{Error, RunDir};

/// A certificate for 127.0.0.1 and localhost, and the authority that signed it.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The certificate authority, DER.
    pub ca_der: Vec<u8>,
    /// The same, PEM.
    pub ca_pem: String,
    /// The server's certificate, a PEM file.
    pub server_certificate: PathBuf,
    /// Its key, a PEM file.
    pub server_key: PathBuf,
}

impl Certificates {
    /// Makes them and writes the server's into `directory`.
    pub fn create(directory: &RunDir) -> Result<Self, Error> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let server_key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?
            .signed_by(&server_key, &issuer)?;
        Ok(Self {
            ca_der: ca_certificate.der().to_vec(),
            ca_pem: ca_certificate.pem(),
            server_certificate: directory.write("server.crt", &server.pem())?,
            server_key: directory.write("server.key", &server_key.serialize_pem())?,
        })
    }
}

/// What the API server is started with.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The certificate authority, DER.
    pub ca_der: Vec<u8>,
    /// The same, PEM.
    pub ca_pem: String,
    /// `--tls-cert-file`.
    pub server_certificate: PathBuf,
    /// `--tls-private-key-file`.
    pub server_key: PathBuf,
    /// `--service-account-key-file`.
    pub account_public_key: PathBuf,
    /// `--service-account-signing-key-file`.
    pub account_key: PathBuf,
    /// `--token-auth-file`.
    pub tokens: PathBuf,
    /// The token of `admin`, a member of `system:masters`.
    pub admin_token: String,
}

impl Credentials {
    /// Makes everything and writes it into `directory`.
    pub fn create(directory: &RunDir) -> Result<Self, Error> {
        let Certificates {
            ca_der,
            ca_pem,
            server_certificate,
            server_key,
        } = Certificates::create(directory)?;
        let account = KeyPair::generate()?;
        let admin_token = uuid::Uuid::new_v4().simple().to_string();
        Ok(Self {
            server_certificate,
            server_key,
            account_public_key: directory.write("sa.pub", &account.public_key_pem())?,
            account_key: directory.write("sa.key", &account.serialize_pem())?,
            tokens: directory.write(
                "tokens.csv",
                &format!("{admin_token},admin,admin,system:masters\n"),
            )?,
            ca_der,
            ca_pem,
            admin_token,
        })
    }
}
