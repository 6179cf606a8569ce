//! Credentials: a dockerconfigjson comes in, the credential of one repository comes out.
//!
//! Keys may be `host`, `host:port`, `host/namespace` or `host/namespace/repo`, with or without scheme or `/v1/`; the longest
//! matching path wins, as in `oc` and the kubelet. Where no key names the host itself, one with a glob in the host may serve, as
//! the kubelet documents: each part between dots for itself, with `*`, `?` and `[…]`, the port as written, the path as in all
//! keys. What this program cannot use (credential helpers, identity tokens, an entry that cannot be read) is an error only where
//! it would be used; an empty entry is no credential. Guaranteed: no secret in `Debug` or in an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;

use super::credential::Credential;
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
    /// Not JSON of that shape. What is wrong with an entry is told to whom it would serve.
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

    /// The credential for `repository`: of the longest matching key, anonymous where none matches.
    ///
    /// # Errors
    /// The entry that matches cannot be read, or is of a kind this program does not support.
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

    /// What is wrong with an entry that cannot be read, for who can have it mended before it serves anybody.
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

/// Whether a key with a glob in its host serves a repository.
fn fits(key: &str, repository: &Repository) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    if !host.contains(['*', '?', '[', '\\']) {
        return false;
    }
    let below = |rest: &str| path.is_empty() || rest.is_empty() || rest.starts_with('/');
    let (glob, port) = split_port(host);
    let (name, own_port) = split_port(repository.host());
    let (globs, parts) = (glob.split('.'), name.split('.'));
    port == own_port
        && repository.path().strip_prefix(path).is_some_and(below)
        && globs.clone().count() == parts.clone().count()
        && globs
            .zip(parts)
            .all(|(glob, part)| matches(&glob.chars().collect::<Vec<_>>(), part))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether one part of a host's name is what a glob means: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before a character that means itself.
/// It takes no longer than the one's length times the other's. A glob that is none fits nothing.
fn matches(glob: &[char], part: &str) -> bool {
    let Some(tokens) = tokens(glob) else {
        return false;
    };
    let part: Vec<char> = part.chars().collect();
    // Which beginnings of the part fit the tokens so far.
    let mut fits = vec![false; part.len() + 1];
    fits[0] = true;
    for token in &tokens {
        if let Token::Any = token {
            let first = fits.iter().position(|fits| *fits).unwrap_or(fits.len());
            fits[first..].fill(true);
        } else {
            for at in (0..part.len()).rev() {
                fits[at + 1] = fits[at] && token.means(part[at]);
            }
            fits[0] = false;
        }
    }
    fits[part.len()]
}

/// What one place of a glob stands for.
enum Token {
    /// Any run.
    Any,
    /// Any one character.
    One,
    /// One of these, or none of these.
    In(bool, Vec<(char, char)>),
}

impl Token {
    fn means(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::In(of, ranges) => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) == *of
            }
        }
    }
}

/// A glob in its parts; none where it is no glob.
fn tokens(glob: &[char]) -> Option<Vec<Token>> {
    let mut chars = glob.iter().copied().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '[' => {
                let of = chars.next_if_eq(&'^').is_none();
                let mut ranges = Vec::new();
                while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                    let from = literal(&mut chars)?;
                    let to = match chars.next_if_eq(&'-') {
                        Some(_) => literal(&mut chars)?,
                        None => from,
                    };
                    ranges.push((from, to));
                }
                Token::In(of, ranges)
            }
            '\\' => {
                let c = chars.next()?;
                Token::In(true, vec![(c, c)])
            }
            c => Token::In(true, vec![(c, c)]),
        });
    }
    Some(tokens)
}

/// A character of a class, which a backslash may stand before.
fn literal(chars: &mut impl Iterator<Item = char>) -> Option<char> {
    match chars.next()? {
        '\\' => chars.next(),
        c => Some(c),
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use base64::engine::general_purpose::STANDARD;
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
            let error = refused(&json, "quay.io/x/y");
            assert!(
                error.contains("quay.io/x") && !error.contains(auth),
                "{error}"
            );
        }
        let error = refused(r#"{"auths":{"quay.io":"s3cret"}}"#, "quay.io/a");
        assert!(
            error.contains("Secret a/b, entry quay.io") && !error.contains("s3cret"),
            "{error}"
        );
    }

    fn refused(json: &str, repository: &str) -> String {
        let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
        let credential = ring.credential(&repository.parse().unwrap());
        credential.unwrap_err().to_string()
    }

    #[test]
    fn auth_is_read_as_docker_and_the_kubelet_read_it() {
        for password in [
            "p",
            "pw",
            "p4s",
            "a-password-that-is-longer-than-one-line-of-seventy-six-columns-of-base64",
        ] {
            let whole = STANDARD.encode(format!("bot:{password}"));
            let bare = whole.trim_end_matches('=');
            let wrap = |by: usize, with: &str| {
                let lines = whole.as_bytes().chunks(by).map(String::from_utf8_lossy);
                lines.collect::<Vec<_>>().join(with)
            };
            for auth in [
                whole.clone(),
                bare.to_owned(),
                format!("{whole}\n"),
                format!(" {bare}\r\n"),
                wrap(76, "\n"),
                wrap(64, "\r\n"),
                wrap(10, "\n  "),
            ] {
                let json = serde_json::json!({"auths": {"quay.io": {"auth": auth}}}).to_string();
                let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
                let credential = ring.credential(&"quay.io/a".parse().unwrap()).unwrap();
                assert_eq!(credential.secret(), Some(("bot", password)), "{auth:?}");
            }
        }
    }

    #[test]
    fn an_odd_entry_is_a_fault_for_its_own_hosts_alone_and_an_empty_one_is_no_credential() {
        let good = auth("u");
        for odd in [
            r#""s3cret""#,
            "[]",
            "7",
            "true",
            r#"{"auth":"%%%"}"#,
            r#"{"auth":7}"#,
            r#"{"auth":{}}"#,
            r#"{"username":"u"}"#,
            r#"{"password":["p"],"username":"u"}"#,
            r#"{"auth":"Og=="}"#,
        ] {
            let json = format!(r#"{{"auths":{{"odd.io":{odd},"quay.io":{good}}}}}"#);
            let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
            assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"), "{odd}");
            assert_eq!(user(&ring, "other.io/a"), None, "{odd}");
            let error = refused(&json, "odd.io/a");
            assert!(error.contains("entry odd.io"), "{odd}: {error}");
        }
        for empty in [
            "{}",
            "null",
            r#"{"auth":""}"#,
            r#"{"auth":null}"#,
            r#"{"email":"a@b"}"#,
            r#"{"username":"","password":""}"#,
        ] {
            let json = format!(r#"{{"auths":{{"empty.io":{empty},"quay.io":{good}}}}}"#);
            let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
            assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"), "{empty}");
            assert_eq!(user(&ring, "empty.io/a"), None, "{empty}");
        }
        for nothing in [
            "{}",
            r#"{"auths":null}"#,
            r#"{"auths":{}}"#,
            r#"{"auths":{},"credHelpers":null,"credsStore":null}"#,
            r#"{"auths":null,"credsStore":"","HttpHeaders":{"x":1}}"#,
        ] {
            let ring = Keyring::parse(nothing.as_bytes(), "Secret a/b").unwrap();
            assert!(ring.is_empty(), "{nothing}");
            assert_eq!(user(&ring, "quay.io/a"), None, "{nothing}");
        }
        // Docker keeps an empty entry for what its store has.
        let stored = r#"{"auths":{"quay.io":{}},"credsStore":"desktop"}"#;
        assert!(refused(stored, "quay.io/a").contains("credsStore"));
    }

    #[test]
    fn a_glob_serves_the_hosts_that_the_kubelet_means_by_it() {
        for (key, serves, not) in [
            (
                "*.example.com",
                &["a.example.com/x", "a-b.example.com/x/y"][..],
                &[
                    "example.com/x",
                    "a.b.example.com/x",
                    "a.example.com:5000/x",
                    "a.example.com.evil.io/x",
                ][..],
            ),
            (
                "*.*.example.com",
                &["a.b.example.com/x"],
                &["a.example.com/x"],
            ),
            ("*.*", &["a.io/x"], &["a.b.io/x", "localhost/x"]),
            ("*", &["localhost/x"], &["a.io/x", "localhost:5000/x"]),
            (
                "prefix.*.io",
                &["prefix.kubernetes.io/x"],
                &["other.kubernetes.io/x"],
            ),
            (
                "*-good.kubernetes.io",
                &["prefix-good.kubernetes.io/x"],
                &["good.kubernetes.io/x"],
            ),
            (
                "sub*.reg.io",
                &["sub.reg.io/x", "subdomain.reg.io/x"],
                &["asub.reg.io/x"],
            ),
            (
                "*.example.com:5000",
                &["a.example.com:5000/x"],
                &["a.example.com/x", "a.example.com:5001/x"],
            ),
            (
                "*.example.com:443",
                &["a.example.com/x"],
                &["a.example.com:5000/x"],
            ),
            (
                "https://*.example.com/v1/",
                &["a.example.com/x"],
                &["b.io/x"],
            ),
            (
                "*.example.com/team",
                &["a.example.com/team", "a.example.com/team/x"],
                &["a.example.com/teams", "a.example.com/x"],
            ),
            ("reg?.io", &["reg1.io/x"], &["reg.io/x", "reg12.io/x"]),
            ("reg[0-9].io", &["reg7.io/x"], &["rega.io/x"]),
            ("reg[^0-9].io", &["rega.io/x"], &["reg7.io/x"]),
            ("REG*.IO", &["reg7.io/x"], &["rug.io/x"]),
            ("reg\\*.io", &[], &["reg7.io/x"]),
            ("reg[.io", &[], &["reg7.io/x", "reg.io/x"]),
            ("reg[].io", &[], &["reg7.io/x"]),
            ("**.io", &["a.io/x"], &["a.b.io/x"]),
        ] {
            let key = key.replace('\\', "\\\\");
            let ring = ring(&[(&key, "u")]);
            for repository in serves {
                assert_eq!(
                    user(&ring, repository).as_deref(),
                    Some("u"),
                    "{key} {repository}"
                );
            }
            for repository in not {
                assert_eq!(user(&ring, repository), None, "{key} {repository}");
            }
        }
        // A key without a glob goes first, whatever its path.
        let ring = ring(&[
            ("*.example.com/team/app", "glob"),
            ("a.example.com", "own"),
            ("*.example.com", "any"),
            ("b*.example.com", "b"),
        ]);
        for (repository, who) in [
            ("a.example.com/team/app", "own"),
            ("c.example.com/team/app", "glob"),
            ("c.example.com/x", "any"),
            ("b1.example.com/x", "b"),
        ] {
            assert_eq!(
                user(&ring, repository).as_deref(),
                Some(who),
                "{repository}"
            );
        }
    }

    #[test]
    fn a_glob_as_long_as_a_secret_takes_no_longer_than_its_length() {
        let begun = std::time::Instant::now();
        for glob in [
            "*a".repeat(40_000),
            "[a-".repeat(30_000),
            "*?".repeat(40_000),
        ] {
            let ring = ring(&[(&format!("{glob}.io"), "u")]);
            assert_eq!(user(&ring, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab.io/x"), None);
        }
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
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
                let glob = keys[number].contains(['*', '?', '[']);
                prop_assert!(glob || host_of(&keys[number]) == host, "{}", &keys[number]);
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
