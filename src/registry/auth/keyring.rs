//! A parsed dockerconfigjson: gives the credential for a repository.
//!
//! Keys may be `host`, `host:port`, `host/namespace` or `host/namespace/repo`, with or without scheme or `/v1/`. The longest matching
//! path wins, as in `oc` and the kubelet. If no key names the host itself, a key with a glob in the host may match: `*`, `?` and `[…]`
//! match within one part between dots, the port must be equal, the path matches as in other keys. An entry that this program cannot use
//! (credential helper, identity token, malformed) is an error only for the repository that it would serve; an empty entry means no
//! credential. Guaranteed: neither `Debug` nor an error shows a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;

use super::credential::Credential;
use super::glob::fits;
use crate::image::{Repository, host_name};
use crate::registry::error::one_line;

/// The most of an entry's key that messages show.
const SHOWN_MAX: usize = 100;

/// Base64 with padding or without: docker and the kubelet take both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a dockerconfigjson, or one entry of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Not a dockerconfigjson at all.
    #[error(
        "{origin} is not a dockerconfigjson: {problem}; write {{\"auths\": {{HOST: {{\"auth\": …}}}}}}"
    )]
    Malformed {
        /// Where it was read.
        origin: String,
        /// What is wrong, and where; never the content.
        problem: String,
    },
    /// An entry that would be used and cannot be read.
    #[error("{origin}, entry {entry}: {problem}; write auth as base64 of USER:PASSWORD")]
    Entry {
        /// Where it was read.
        origin: String,
        /// The entry's key as written.
        entry: String,
        /// What is wrong.
        problem: String,
    },
    /// An entry that would be used, of a kind that is not supported.
    #[error("{origin}, {entry}: {problem} is not supported; write auth, or username and password")]
    Unsupported {
        /// Where it was read.
        origin: String,
        /// The entry's key as written.
        entry: String,
        /// What it holds.
        problem: &'static str,
    },
}

/// A parsed dockerconfigjson.
#[derive(Clone)]
pub struct Keyring {
    ring: Arc<Ring>,
    /// It answers for these repositories alone; none: for all.
    only: Option<Arc<BTreeSet<Repository>>>,
}

struct Ring {
    origin: Arc<str>,
    entries: BTreeMap<String, KeyringEntry>,
    creds_store: bool,
}

/// The value of one key, after normalisation.
#[derive(Clone)]
enum KeyringEntry {
    Usable(Credential),
    /// Nothing: the credential is in the store, where there is one, else there is none.
    Empty,
    Unusable(KeyringError),
}

/// What is understood of the file. Each entry is read for itself, so that one that is odd is no fault of the others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    auths: Option<BTreeMap<String, Value>>,
    creds_store: Option<Value>,
    cred_helpers: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct DockerEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Keyring {
    fn of(ring: Ring) -> Self {
        Self {
            ring: Arc::new(ring),
            only: None,
        }
    }

    /// No credentials: all requests are anonymous.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::of(Ring {
            origin: "".into(),
            entries: BTreeMap::new(),
            creds_store: false,
        })
    }

    /// Parses a dockerconfigjson. `origin` is how messages name it: `Secret ns/name`, `file X`.
    ///
    /// # Errors
    /// The JSON does not have that shape. A bad entry is reported when it would be used.
    pub fn parse(json: &[u8], origin: &str) -> Result<Self, KeyringError> {
        let config: DockerConfig =
            serde_json::from_slice(json).map_err(|error| KeyringError::Malformed {
                origin: origin.into(),
                // serde_json's own text may quote a value; where it stands is enough.
                problem: format!(
                    "{:?} error at line {}, column {}",
                    error.classify(),
                    error.line(),
                    error.column()
                ),
            })?;
        let mut entries = BTreeMap::new();
        for (key, entry) in config.auths.unwrap_or_default() {
            let parsed = parse_entry(&key, entry, origin);
            let normal = normal_key(&key);
            // Of two spellings of one key, the normal one is meant.
            if normal == key || !entries.contains_key(&normal) {
                entries.insert(normal, parsed);
            }
        }
        for key in config.cred_helpers.unwrap_or_default().into_keys() {
            let problem = "a credential helper (credHelpers)";
            let entry = KeyringEntry::Unusable(unsupported(origin, &key, problem));
            entries.insert(normal_key(&key), entry);
        }
        let no_store = |store: &Value| store.is_null() || store.as_str() == Some("");
        Ok(Self::of(Ring {
            origin: origin.into(),
            entries,
            creds_store: config.creds_store.is_some_and(|store| !no_store(&store)),
        }))
    }

    /// The credential for `repository`: of the longest matching key, or anonymous.
    ///
    /// # Errors
    /// The matching entry is malformed, or of an unsupported kind.
    pub fn credential(&self, repository: &Repository) -> Result<Credential, KeyringError> {
        let Ring {
            origin,
            creds_store,
            ..
        } = &*self.ring;
        let missing = || Ok(Credential::missing(origin));
        let served = self.only.as_ref();
        if served.is_some_and(|only| !only.contains(repository)) {
            return missing();
        }
        match self.ring.entry(repository) {
            Some(KeyringEntry::Usable(credential)) => Ok(credential.clone()),
            Some(KeyringEntry::Unusable(error)) => Err(error.clone()),
            Some(KeyringEntry::Empty) | None if *creds_store => Err(KeyringError::Unsupported {
                origin: origin.to_string(),
                entry: "credsStore".into(),
                problem: "a credential store",
            }),
            Some(KeyringEntry::Empty) | None => missing(),
        }
    }

    /// This keyring, extended by the entries of `other` with other keys.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let mut entries = other.ring.entries.clone();
        entries.extend(self.ring.entries.clone());
        Self::of(Ring {
            origin: format!("{} and {}", self.ring.origin, other.ring.origin).into(),
            entries,
            creds_store: self.ring.creds_store || other.ring.creds_store,
        })
    }

    /// This keyring, limited to these repositories.
    #[must_use]
    pub fn only(&self, repositories: BTreeSet<Repository>) -> Self {
        Self {
            ring: Arc::clone(&self.ring),
            only: Some(Arc::new(repositories)),
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.entries.is_empty() && !self.ring.creds_store
    }

    /// The first malformed entry, so that it can be reported before it is used.
    #[must_use]
    pub fn fault(&self) -> Option<&KeyringError> {
        self.ring.entries.values().find_map(|entry| match entry {
            KeyringEntry::Unusable(error @ KeyringError::Entry { .. }) => Some(error),
            _ => None,
        })
    }

    /// How messages name this keyring.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.ring.origin
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("origin", &self.ring.origin)
            .field("entries", &self.ring.entries.keys().collect::<Vec<_>>())
            .field("only", &self.only)
            .finish()
    }
}

impl Ring {
    /// The entry that serves a repository: of the longest path below its host, else of the last key whose glob fits, in the order in
    /// which the kubelet tries them.
    fn entry(&self, repository: &Repository) -> Option<&KeyringEntry> {
        let full = format!("{}/{}", normal_host(repository.host()), repository.path());
        let above = std::iter::successors(Some(full.as_str()), |path| {
            path.rfind('/').map(|slash| &path[..slash])
        });
        let mut own = above.filter_map(|path| self.entries.get(path));
        own.next().or_else(|| {
            let mut keys = self.entries.iter().rev();
            keys.find(|(key, _)| fits(key, repository))
                .map(|(_, entry)| entry)
        })
    }
}

fn unsupported(origin: &str, key: &str, problem: &'static str) -> KeyringError {
    KeyringError::Unsupported {
        origin: origin.into(),
        entry: format!("entry {}", one_line(key, SHOWN_MAX)),
        problem,
    }
}

fn parse_entry(key: &str, entry: Value, origin: &str) -> KeyringEntry {
    let shown = &*one_line(key, SHOWN_MAX);
    let bad = |problem: &str| {
        KeyringEntry::Unusable(KeyringError::Entry {
            origin: origin.into(),
            entry: shown.into(),
            problem: problem.into(),
        })
    };
    let entry = match serde_json::from_value::<Option<DockerEntry>>(entry) {
        Ok(Some(entry)) => entry,
        Ok(None) => return KeyringEntry::Empty,
        Err(_) => return bad("it is not an object of texts"),
    };
    let filled = |text: Option<String>| text.filter(|t| !t.is_empty());
    if filled(entry.identitytoken).is_some() {
        return KeyringEntry::Unusable(unsupported(origin, key, "an identity token"));
    }
    if filled(entry.registrytoken).is_some() {
        return KeyringEntry::Unusable(unsupported(origin, key, "a registry token"));
    }
    let (user, password) = match (
        filled(entry.auth),
        filled(entry.username),
        filled(entry.password),
    ) {
        (Some(auth), _, _) => {
            // Some tools break it into lines.
            let auth: String = auth.split_ascii_whitespace().collect();
            let Ok(bytes) = BASE64.decode(auth) else {
                return bad("auth is not base64");
            };
            let Ok(text) = String::from_utf8(bytes) else {
                return bad("auth is not text");
            };
            let Some((user, password)) = text.split_once(':') else {
                return bad("auth has no ':'");
            };
            // Docker pads with NULs; it strips them itself.
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (None, Some(user), Some(password)) => (user, password),
        (None, None, None) => return KeyringEntry::Empty,
        _ => return bad("username or password is missing"),
    };
    if user.is_empty() || user.contains(':') {
        return bad("the user name is empty or holds a ':'");
    }
    KeyringEntry::Usable(Credential::new(user, password, origin, shown))
}

/// `key` without scheme, default port and the version of the API, which docker writes; the host in lower case.
fn normal_key(key: &str) -> String {
    let schemeless = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let bare = schemeless.unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Without a scheme it is the API's where nothing follows it; else it may be a namespace of that name.
    let path = match path.split_once('/') {
        Some(("v1" | "v2", rest)) if schemeless.is_some() || rest.is_empty() => rest,
        None if schemeless.is_some() && matches!(path, "v1" | "v2") => "",
        _ => path,
    };
    match path.trim_end_matches('/') {
        "" => normal_host(host),
        path => format!("{}/{path}", normal_host(host)),
    }
}

/// One name for one registry.
fn normal_host(host: &str) -> String {
    host_name(&host.to_ascii_lowercase()).into()
}

#[cfg(test)]
mod tests;
