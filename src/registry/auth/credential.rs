//! A user and a password, or nothing.
//!
//! Guaranteed: `Debug` shows no secret; two credentials are equal if they send the same, wherever they were read.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::image::Repository;

/// What is sent to a registry to prove who asks: nothing, or a user and a password. Two are equal where the same is sent.
#[derive(Clone)]
pub struct Credential {
    basic: Option<Arc<Basic>>,
    /// The keyring it was looked up in, for messages.
    origin: Option<Arc<str>>,
}

/// A repository, and the credential that it is spoken to with.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// As whom.
    pub credential: &'a Credential,
}

struct Basic {
    user: String,
    password: String,
    key: [u8; 32],
    entry: String,
}

/// A keyed hash of what a credential sends, under a key that this process made for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CredentialKey([u8; 32]);

static PROCESS_KEY: LazyLock<[u8; 64]> = LazyLock::new(rand::random);

impl Credential {
    /// Nothing is sent.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            basic: None,
            origin: None,
        }
    }

    /// A repository as it is seen with this credential.
    #[must_use]
    pub fn at<'a>(&'a self, repository: &'a Repository) -> Remote<'a> {
        Remote {
            repository,
            credential: self,
        }
    }

    /// Whether nothing is sent.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.basic.is_none()
    }

    pub(crate) fn new(user: String, password: String, origin: &str, entry: &str) -> Self {
        let mut mac = Hmac::<Sha256>::new(&(*PROCESS_KEY).into());
        mac.update(&(user.len() as u64).to_be_bytes());
        mac.update(user.as_bytes());
        mac.update(password.as_bytes());
        let key = mac.finalize().into_bytes().into();
        let basic = Basic {
            user,
            password,
            key,
            entry: entry.into(),
        };
        Self {
            basic: Some(Arc::new(basic)),
            origin: Some(origin.into()),
        }
    }

    /// Anonymous, because `origin` has no entry.
    pub(crate) fn missing(origin: &Arc<str>) -> Self {
        Self {
            basic: None,
            origin: Some(Arc::clone(origin)).filter(|origin| !origin.is_empty()),
        }
    }

    /// What tells this credential from others without telling anything about it.
    pub(crate) fn key(&self) -> CredentialKey {
        CredentialKey(self.basic.as_ref().map_or([0; 32], |basic| basic.key))
    }

    /// User and password, where there are any.
    pub(crate) fn secret(&self) -> Option<(&str, &str)> {
        self.basic
            .as_ref()
            .map(|basic| (basic.user.as_str(), basic.password.as_str()))
    }

    /// How messages name it: `the credential of Secret ns/name, entry quay.io`.
    pub(crate) fn named(&self) -> String {
        let origin = self.origin.as_deref();
        match (&self.basic, origin) {
            (None, None) => "anonymous (no credentials are given)".into(),
            (None, Some(origin)) => format!("anonymous (no matching entry in {origin})"),
            (Some(basic), origin) => {
                let origin = origin.unwrap_or_default();
                format!("the credential of {origin}, entry {}", basic.entry)
            }
        }
    }
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Credential {}

impl Hash for Credential {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.named())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_what_is_sent_not_where_it_is_from() {
        let a = Credential::new("u".into(), "p".into(), "Secret a/a", "quay.io");
        let b = Credential::new("u".into(), "p".into(), "Secret b/b", "quay.io/x");
        let c = Credential::new("u".into(), "q".into(), "Secret a/a", "quay.io");
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(a, Credential::anonymous());
        assert_ne!(
            Credential::new("up".into(), "x".into(), "", ""),
            Credential::new("u".into(), "px".into(), "", "")
        );
    }
}
