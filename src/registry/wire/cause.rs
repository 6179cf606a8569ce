//! Why a connection failed, as far as that can be told.
//!
//! Guaranteed: no error shows a URL.

use std::error::Error as StdError;

use crate::registry::transport::WireError;

/// Why a request that was sent has no answer.
#[derive(Debug)]
pub(crate) enum NoReply {
    /// As the network had it; without its URL.
    Network(reqwest::Error),
    /// As what stands in its place had it.
    Wire(WireError),
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The certificate was not accepted.
    Untrusted,
    /// TLS was answered in another protocol, which is plain HTTP where nobody says otherwise.
    NotTls,
    /// The request could not be made.
    NotBuilt,
    /// No connection: nothing was sent.
    NotConnected,
    /// Anything else: timed out, reset.
    Otherwise,
}

impl NoReply {
    pub(crate) fn kind(&self) -> Broken {
        match self {
            Self::Network(error) => broken(error),
            Self::Wire(WireError::NotConnected) => Broken::NotConnected,
            Self::Wire(WireError::Closed | WireError::TimedOut) => Broken::Otherwise,
        }
    }

    /// The cause that helps.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Network(error) => describe(error),
            Self::Wire(error) => error.to_string(),
        }
    }
}

/// The kind of a failure, wherever in the chain of causes it says so.
fn broken(error: &reqwest::Error) -> Broken {
    match cause(error) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Broken::Untrusted
        }
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            Broken::NotTls
        }
        _ if error.is_builder() => Broken::NotBuilt,
        _ if error.is_connect() => Broken::NotConnected,
        _ => Broken::Otherwise,
    }
}

/// The first cause of that type in the chain of causes.
pub(crate) fn cause<T: StdError + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error hides the error it wraps from `source`.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost cause of an error, which is the one that helps.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".into();
    }
    let mut cause: &dyn StdError = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
