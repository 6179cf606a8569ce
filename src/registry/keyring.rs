//! Credentials: a dockerconfigjson comes in, the credential of one repository comes out.
//!
//! Keys may be `host`, `host:port`, `host/namespace` or `host/namespace/repo`, with or without scheme or `/v1/`; the longest
//! matching path wins, as in `oc` and the kubelet. What this program cannot use (credential helpers, identity tokens) is an
//! error only where it would be used. Guaranteed: no secret in `Debug` or in an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credential::Credential;
use super::error::one_line;
use crate::image::{Repository, registry_name};

/// The most of an entry's key that messages show.
const SHOWN_MAX: usize = 100;

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
    /// An entry that does not decode to `user:password`.
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
    entries: BTreeMap<String, Entry>,
    creds_store: bool,
}

/// The value of one key, after normalisation.
#[derive(Clone)]
enum Entry {
    Usable(Credential),
    Unusable { key: String, problem: &'static str },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerEntry>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
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

    /// No credentials at all: everything is asked anonymously.
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
    /// Not JSON of that shape, or an entry whose `auth` does not decode.
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
        for (key, entry) in config.auths {
            let parsed = parse_entry(&key, entry, origin)?;
            let normal = normal_key(&key);
            // Of two spellings of one key, the normal one is meant.
            if normal == key || !entries.contains_key(&normal) {
                entries.insert(normal, parsed);
            }
        }
        for key in config.cred_helpers.into_keys() {
            entries.insert(
                normal_key(&key),
                Entry::Unusable {
                    key: one_line(&key, SHOWN_MAX),
                    problem: "a credential helper (credHelpers)",
                },
            );
        }
        Ok(Self::of(Ring {
            origin: origin.into(),
            entries,
            creds_store: config.creds_store.is_some_and(|store| !store.is_empty()),
        }))
    }

    /// The credential for `repository`: of the longest matching key, anonymous where none matches.
    ///
    /// # Errors
    /// The entry that matches is of a kind this program does not support.
    pub fn credential(&self, repository: &Repository) -> Result<Credential, KeyringError> {
        let unsupported = |entry: &str, problem| KeyringError::Unsupported {
            origin: self.ring.origin.to_string(),
            entry: entry.into(),
            problem,
        };
        if self
            .only
            .as_ref()
            .is_some_and(|only| !only.contains(repository))
        {
            return Ok(Credential::missing(&self.ring.origin));
        }
        let full = format!("{}/{}", normal_host(repository.host()), repository.path());
        let mut path = full.as_str();
        loop {
            match self.ring.entries.get(path) {
                Some(Entry::Usable(credential)) => return Ok(credential.clone()),
                Some(Entry::Unusable { key, problem }) => {
                    return Err(unsupported(&format!("entry {key}"), problem));
                }
                None => {}
            }
            match path.rfind('/') {
                Some(slash) => path = &path[..slash],
                None if self.ring.creds_store => {
                    return Err(unsupported("credsStore", "a credential store"));
                }
                None => {
                    return Ok(Credential::missing(&self.ring.origin));
                }
            }
        }
    }

    /// This keyring, with the entries of `other` where it has none of that key.
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

    /// What it has for these repositories, and for no other.
    #[must_use]
    pub fn only(&self, repositories: BTreeSet<Repository>) -> Self {
        Self {
            ring: Arc::clone(&self.ring),
            only: Some(Arc::new(repositories)),
        }
    }

    /// Whether nothing at all is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.entries.is_empty() && !self.ring.creds_store
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

fn parse_entry(key: &str, entry: DockerEntry, origin: &str) -> Result<Entry, KeyringError> {
    let key = &*one_line(key, SHOWN_MAX);
    let bad = |problem: &str| KeyringError::Entry {
        origin: origin.into(),
        entry: key.into(),
        problem: problem.into(),
    };
    let filled = |text: Option<String>| text.filter(|t| !t.is_empty());
    let unusable = |problem| Entry::Unusable {
        key: key.into(),
        problem,
    };
    if filled(entry.identitytoken).is_some() {
        return Ok(unusable("an identity token"));
    }
    if filled(entry.registrytoken).is_some() {
        return Ok(unusable("a registry token"));
    }
    let (user, password) = match (
        filled(entry.auth),
        filled(entry.username),
        filled(entry.password),
    ) {
        (Some(auth), _, _) => {
            let bytes = STANDARD
                .decode(auth.trim())
                .map_err(|_| bad("auth is not base64"))?;
            let text = String::from_utf8(bytes).map_err(|_| bad("auth is not text"))?;
            let (user, password) = text.split_once(':').ok_or_else(|| bad("auth has no ':'"))?;
            // Docker pads with NULs; it strips them itself.
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (None, Some(user), Some(password)) => (user, password),
        (None, None, None) => return Ok(unusable("an entry without auth")),
        _ => return Err(bad("username or password is missing")),
    };
    if user.is_empty() || user.contains(':') {
        return Err(bad("the user name is empty or holds a ':'"));
    }
    Ok(Entry::Usable(Credential::new(user, password, origin, key)))
}

/// `key` without scheme, trailing `/v1/` or `/v2/` and default port, the host in lower case.
fn normal_key(key: &str) -> String {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let bare = rest
        .strip_suffix("/v1/")
        .or_else(|| rest.strip_suffix("/v2/"))
        .unwrap_or(rest);
    let bare = match bare
        .strip_suffix("/v1")
        .or_else(|| bare.strip_suffix("/v2"))
    {
        Some(host) if rest.len() < key.len() => host,
        _ => bare,
    };
    let bare = bare.trim_end_matches('/');
    match bare.split_once('/') {
        Some((host, path)) => format!("{}/{path}", normal_host(host)),
        None => normal_host(bare),
    }
}

/// One name for one registry.
fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    registry_name(host).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn auth(user: &str) -> String {
        format!(
            r#"{{"auth":"{}"}}"#,
            STANDARD.encode(format!("{user}:s3cret-{user}"))
        )
    }

    fn ring(entries: &[(&str, &str)]) -> Keyring {
        let body: Vec<_> = entries
            .iter()
            .map(|(k, u)| format!("\"{k}\":{}", auth(u)))
            .collect();
        Keyring::parse(
            format!(r#"{{"auths":{{{}}}}}"#, body.join(",")).as_bytes(),
            "Secret a/b",
        )
        .unwrap()
    }

    fn user(ring: &Keyring, repository: &str) -> Option<String> {
        let credential = ring.credential(&repository.parse().unwrap()).unwrap();
        credential.secret().map(|(user, _)| user.to_owned())
    }

    #[test]
    fn the_longest_matching_path_wins() {
        let ring = ring(&[
            ("quay.io", "host"),
            ("quay.io/openshift", "ns"),
            ("quay.io/openshift/ci", "repo"),
        ]);
        assert_eq!(user(&ring, "quay.io/openshift/ci").as_deref(), Some("repo"));
        assert_eq!(
            user(&ring, "quay.io/openshift/ci-extra").as_deref(),
            Some("ns")
        );
        assert_eq!(
            user(&ring, "quay.io/openshift-x/ci").as_deref(),
            Some("host")
        );
        assert_eq!(user(&ring, "other.io/openshift/ci"), None);
    }

    #[test]
    fn every_spelling_of_a_host_is_that_host() {
        for key in [
            "https://quay.io/v1/",
            "https://quay.io/v2",
            "http://quay.io",
            "quay.io:443",
            "Quay.io",
            "quay.io/",
        ] {
            assert_eq!(
                user(&ring(&[(key, "u")]), "quay.io/a/b").as_deref(),
                Some("u"),
                "{key}"
            );
        }
        assert_eq!(
            user(
                &ring(&[("https://index.docker.io/v1/", "u")]),
                "docker.io/library/x"
            )
            .as_deref(),
            Some("u")
        );
        assert_eq!(user(&ring(&[("reg.io:5000", "u")]), "reg.io/a"), None);
        assert_eq!(
            user(&ring(&[("reg.io:5000/a", "u")]), "reg.io:5000/a").as_deref(),
            Some("u")
        );
    }

    #[test]
    fn what_is_not_supported_is_an_error_only_where_it_would_be_used() {
        let json = format!(
            r#"{{"auths":{{"quay.io":{},"tok.io":{{"identitytoken":"t0ken"}}}},"credHelpers":{{"gcr.io":"gcloud"}},"credsStore":"desktop"}}"#,
            auth("u")
        );
        let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
        assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"));
        for (repository, named) in [
            ("tok.io/a", "entry tok.io"),
            ("gcr.io/a", "entry gcr.io"),
            ("x.io/a", "credsStore"),
        ] {
            let error = ring
                .credential(&repository.parse().unwrap())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(named) && error.contains("Secret a/b"),
                "{error}"
            );
            assert!(!error.contains("t0ken"), "{error}");
        }
    }

    #[test]
    fn a_bad_entry_is_named_and_not_quoted() {
        for auth in ["%%%", "bm9jb2xvbg==", "Og=="] {
            let json = format!(r#"{{"auths":{{"quay.io/x":{{"auth":"{auth}"}}}}}}"#);
            let error = Keyring::parse(json.as_bytes(), "Secret a/b")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("quay.io/x") && !error.contains(auth),
                "{error}"
            );
        }
        let error = Keyring::parse(br#"{"auths":{"quay.io":"s3cret"}}"#, "Secret a/b")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Secret a/b") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn the_first_of_two_keyrings_wins_where_both_have_a_key() {
        let both =
            ring(&[("quay.io", "first")]).or(&ring(&[("quay.io", "second"), ("x.io/a", "second")]));
        assert_eq!(user(&both, "quay.io/a").as_deref(), Some("first"));
        assert_eq!(user(&both, "x.io/a").as_deref(), Some("second"));
        assert_eq!(both.origin(), "Secret a/b and Secret a/b");
    }

    #[test]
    fn debug_shows_keys_only() {
        let ring = ring(&[("quay.io", "robot")]);
        let credential = ring.credential(&"quay.io/a".parse().unwrap()).unwrap();
        let shown = format!("{ring:?} {credential:?} {:?}", credential.key());
        assert!(shown.contains("quay.io"), "{shown}");
        assert!(
            !shown.contains("robot") && !shown.contains("s3cret"),
            "{shown}"
        );
    }

    /// The host that a key names, by hand.
    fn host_of(key: &str) -> String {
        let bare = key
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let host = bare
            .split('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        match host.trim_end_matches(":443") {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
            host => host.into(),
        }
    }

    fn keys() -> impl Strategy<Value = Vec<String>> {
        let hosts = "(https?://)?(quay\\.io|QUAY\\.io|quay\\.io\\.evil\\.io|evil\\.io|uay\\.io|index\\.docker\\.io|docker\\.io|x)";
        let key = format!("{hosts}(:443|:5000)?(/v1/?|/v2/?|/|/a|/a/b|/quay\\.io)?");
        let key = proptest::string::string_regex(&key).unwrap();
        proptest::collection::vec(prop_oneof![9 => key, 1 => "\\PC{0,20}"], 0..6)
    }

    proptest! {
        #[test]
        fn a_repository_is_given_the_credential_of_its_own_host_or_none(
            keys in keys(), host in "quay\\.io|evil\\.io|docker\\.io|x|quay\\.io:5000", path in "a|a/b|a/b/c|quay\\.io|v1|v2/a",
        ) {
            let entries: serde_json::Map<_, _> = keys
                .iter()
                .enumerate()
                .map(|(n, key)| (key.clone(), serde_json::json!({"username": "robot", "password": format!("s3cret-{n}")})))
                .collect();
            let json = serde_json::json!({"auths": entries}).to_string();
            let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
            let repository: Repository = format!("{host}/{path}").parse().unwrap();
            let credential = ring.credential(&repository).unwrap();
            if let Some((_, password)) = credential.secret() {
                let number: usize = password.trim_start_matches("s3cret-").parse().unwrap();
                prop_assert_eq!(host_of(&keys[number]), host, "{}", &keys[number]);
            }
            let shown = format!("{ring:?} {credential:?} {} {:?}", credential.named(), credential.key());
            prop_assert!(!shown.contains("s3cret"), "{shown}");
        }

        #[test]
        fn anything_at_all_is_a_keyring_or_refused_without_being_quoted(
            entry in prop_oneof![
                Just(serde_json::json!("s3cret")), Just(serde_json::json!(["s3cret"])), Just(serde_json::json!({"auth": {"s3cret": 1}})),
                Just(serde_json::json!({"auth": "s3cret"})), Just(serde_json::json!({"username": "s3cret"})),
                Just(serde_json::json!({"password": "s3cret", "username": ["s3cret"]})), Just(serde_json::json!({"identitytoken": "s3cret"})),
                Just(serde_json::json!({"auth": STANDARD.encode("s3cret")})), Just(serde_json::json!({"auth": STANDARD.encode(":s3cret")})),
                Just(serde_json::json!({"auth": STANDARD.encode([0xff, 0xfe])})),
            ],
            key in "\\PC{0,200}", cut in 0_usize..300, noise: Vec<u8>,
        ) {
            let mut json = serde_json::json!({"auths": {key: entry}}).to_string().into_bytes();
            for _ in 0..2 {
                for json in [&json, &noise] {
                    let shown = match Keyring::parse(json, "Secret a/b") {
                        Ok(ring) => format!("{ring:?} {:?}", ring.credential(&"quay.io/a".parse().unwrap())),
                        Err(error) => format!("{error} {error:?}"),
                    };
                    prop_assert!(!shown.contains("s3cret"), "{shown}");
                }
                json.truncate(cut);
            }
        }
    }
}
