//! Names of images: parsed once at the edge, then trusted.
//!
//! In come the strings of a spec; out come [`Source`] and [`Float`], whose parts need no further check. The grammar is the one
//! of the OCI distribution specification ("Pulling manifests": repository names, tags, digests), narrowed to what the custom
//! resource admits: a host is always written out, there is no default tag, and digests are sha256.
//!
//! Names are normalised (a default port is dropped, Docker Hub has one name, and its own images lie in `library`), so that two
//! spellings of one tag are one float.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The longest tag the OCI specification allows, in bytes.
pub const TAG_MAX: usize = 128;
/// The longest tag of a float: its longest pin is 30 bytes longer and must fit [`TAG_MAX`].
pub const FLOAT_TAG_MAX: usize = 98;
/// The longest tag of a float that an earlier version admitted: a request on one is carried to its end.
const OPEN_FLOAT_TAG_MAX: usize = 107;

const PRUNE: &str = "_prune_";
const STAMP_LEN: usize = 14;
const RESERVED_PREFIXES: [&str; 4] = [
    "rc_payload__",
    "preserved__rc_payload__",
    "remove__rc_payload__",
    "art__",
];
const RESERVED_SUFFIXES: [&str; 3] = ["_incoming", "__pre", "__post1"];
const RESCUED: &str = "__rescued";
const BROKEN: &str = "__broken";
const STAGED: &str = "__staged";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Why a string is not the name it should be. The text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not `HOST[:PORT]/REPOSITORY…`.
    #[error(
        "'{0}' is not HOST[:PORT]/REPOSITORY; write the registry's host in full, in lower case"
    )]
    Repository(String),
    /// Not a tag of the OCI grammar.
    #[error(
        "'{0}' is not a tag: 1 to 128 of letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
    )]
    Tag(String),
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("'{0}' is not a digest: write sha256: and 64 lower-case hexadecimal digits")]
    Digest(String),
    /// A source with neither tag nor digest.
    #[error("'{0}' names no image: append :TAG or @sha256:DIGEST, there is no default tag")]
    Unnamed(String),
    /// A float without a tag, or with a digest.
    #[error("'{0}' is not a float: write HOST[:PORT]/REPOSITORY:TAG, without a digest")]
    NotAFloat(String),
    /// A float whose pins' names would be too long.
    #[error(
        "the tag of '{0}' is longer than 98 characters, so that the names of its pins would not fit 128; choose a shorter tag"
    )]
    FloatTooLong(String),
    /// A float that collides with tags this program or the release tooling makes.
    #[error("the tag of '{0}' is reserved for pins and release payloads; choose another float")]
    Reserved(String),
}

/// A sha256 digest of a manifest or blob.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest whose raw bytes these are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of `content`, computed here.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(content).into())
    }

    /// The 64 hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from(HEX[usize::from(digit)]));
            }
        }
        hex
    }

    /// The tag that lists what refers to this digest where the registry has no API for that (the specification's fallback).
    #[must_use]
    pub fn referrers_tag(&self) -> Tag {
        Tag(format!("sha256-{}", self.hex()).into())
    }

    /// The tags at which cosign keeps what it attaches to this digest: signatures, attestations, SBOMs.
    #[must_use]
    pub fn cosign_tags(&self) -> [Tag; 3] {
        ["sig", "att", "sbom"].map(|kind| Tag(format!("sha256-{}.{kind}", self.hex()).into()))
    }

    /// Pins this digest where a job has staged it: `<YYYYMMDD>000000_prune_<64 hex>__staged`. The name decides the content, so
    /// whoever writes it, however late, writes the same; and a pruner removes it by its age like any prune tag.
    #[must_use]
    pub fn staged(&self, time: Timestamp) -> Tag {
        Tag(format!("{}{PRUNE}{}{STAGED}", Stamp::day(time), self.hex()).into())
    }

    /// `sha256:` and the first twelve digits, for logs and messages.
    #[must_use]
    pub fn short(&self) -> String {
        format!("sha256:{}", &self.hex()[..12])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let err = || ParseError::Digest(s.into());
        let hex = s.strip_prefix("sha256:").ok_or_else(err)?.as_bytes();
        if hex.len() != 64 {
            return Err(err());
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(err()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// A tag of the OCI grammar, shared by its copies, at most [`TAG_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        let mut bytes = s.bytes();
        let valid = s.len() <= TAG_MAX
            && bytes.next().is_some_and(word)
            && bytes.all(|c| word(c) || c == b'.' || c == b'-');
        if valid {
            Ok(Self(s.into()))
        } else {
            Err(ParseError::Tag(s.into()))
        }
    }
}

/// A repository on a registry: `HOST[:PORT]/PATH`, normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: Arc<str>,
    path: Arc<str>,
}

impl Repository {
    /// The registry, `HOST` or `HOST:PORT`, in lower case, without the port 443 or 80; `docker.io` whichever way it was spelt.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path on its registry, at least one segment.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl FromStr for Repository {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let err = || ParseError::Repository(s.into());
        let (host, path) = s.split_once('/').ok_or_else(err)?;
        let host = parse_host(host).ok_or_else(err)?;
        if s.len() > 255 || !path.split('/').all(is_path_segment) {
            return Err(err());
        }
        let path = repository_path(&host, path).into();
        let host = host.into();
        Ok(Self { host, path })
    }
}

/// `HOST[:PORT]`, normalised; none where it is not one.
fn parse_host(s: &str) -> Option<String> {
    let (name, port) = match s.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (s, None),
    };
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let edges = alnum(*bytes.first()?) && alnum(*bytes.last()?);
    if !edges || !bytes.iter().all(|&c| alnum(c) || c == b'.' || c == b'-') {
        return None;
    }
    match port {
        None => Some(registry_name(name).into()),
        Some(port) if port.len() <= 5 && port.bytes().all(|c| c.is_ascii_digit()) => {
            match port.parse::<u16>().ok()? {
                0 => None,
                80 | 443 => Some(registry_name(name).into()),
                port => Some(format!("{name}:{port}")),
            }
        }
        Some(_) => None,
    }
}

/// The one name of a registry that has several: Docker Hub has three.
#[must_use]
pub fn registry_name(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        _ => host,
    }
}

/// As [`registry_name`], of a host with or without its port: one that is a default is dropped. Which of the two it is, whoever
/// configures the registry says; both at once are spoken on no registry that is known.
#[must_use]
pub fn host_name(host: &str) -> &str {
    let bare = host.strip_suffix(":443").or(host.strip_suffix(":80"));
    registry_name(bare.unwrap_or(host))
}

/// The whole path of a repository, or of a pattern of one: Docker Hub's own images lie in `library`, which nobody writes.
#[must_use]
pub fn repository_path<'a>(host: &str, path: &'a str) -> Cow<'a, str> {
    if host == "docker.io" && !path.contains('/') && !path.contains("**") {
        Cow::Owned(format!("library/{path}"))
    } else {
        Cow::Borrowed(path)
    }
}

/// One segment of a repository's path: runs of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_path_segment(s: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |run: &str| {
        matches!(run, "." | "_" | "__") || (!run.is_empty() && run.bytes().all(|c| c == b'-'))
    };
    let mut rest = s;
    loop {
        let word = rest.trim_start_matches(alnum);
        if word.len() == rest.len() {
            return false;
        }
        if word.is_empty() {
            return true;
        }
        let next = word.find(alnum).unwrap_or(word.len());
        if !separator(&word[..next]) {
            return false;
        }
        rest = &word[next..];
    }
}

/// Where an image is read from: by digest where one is given (then the tag is only a remark), else by tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The repository that is read.
    pub repository: Repository,
    /// How the image is named in it.
    pub reference: Reference,
}

/// A manifest within a repository, as a registry's URL names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// By tag: what it answers can change.
    Tag(Tag),
    /// By digest: what it answers cannot change.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

impl FromStr for Source {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (named, digest) = match s.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse()?)),
            None => (s, None),
        };
        let (repository, tag) = split_tag(named);
        let repository = repository.parse()?;
        let tag = tag.map(str::parse).transpose()?;
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => return Err(ParseError::Unnamed(s.into())),
        };
        Ok(Self {
            repository,
            reference,
        })
    }
}

/// Splits `HOST:PORT/PATH:TAG` before its tag, if it has one: the last colon after the last slash.
fn split_tag(s: &str) -> (&str, Option<&str>) {
    let path = s.rfind('/').unwrap_or(0);
    match s[path..].rfind(':') {
        Some(colon) => (&s[..path + colon], Some(&s[path + colon + 1..])),
        None => (s, None),
    }
}

/// A moving tag that this program writes, with the names of the pins derived from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Float {
    repository: Repository,
    tag: Tag,
}

impl Float {
    /// The repository the float and all its pins lie in.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The moving tag itself.
    #[must_use]
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// Pins the staged image: `<float>_incoming`.
    #[must_use]
    pub fn incoming(&self) -> Tag {
        Tag(format!("{}_incoming", self.tag).into())
    }

    /// Pins the newest displaced image: `<float>__pre`.
    #[must_use]
    pub fn pre(&self) -> Tag {
        Tag(format!("{}__pre", self.tag).into())
    }

    /// Pins the promoted image a second time, against foreign overwrites of the float: `<float>__post1`.
    #[must_use]
    pub fn post1(&self) -> Tag {
        Tag(format!("{}__post1", self.tag).into())
    }

    /// Pins one displaced image for good: `<YYYYMMDDHHMMSS>_prune_<float>`, in UTC. Whoever reverts a float takes the newest of
    /// these, so only what the float itself showed gets one.
    #[must_use]
    pub fn prune(&self, stamp: Stamp) -> Tag {
        self.stamped(stamp, "")
    }

    /// Pins for good what another tag of the float held alone: `<YYYYMMDDHHMMSS>_prune_<float>__rescued`.
    #[must_use]
    pub fn rescued(&self, stamp: Stamp) -> Tag {
        self.stamped(stamp, RESCUED)
    }

    /// Pins for good what a rollback takes the float back from: `<YYYYMMDDHHMMSS>_prune_<float>__broken`.
    #[must_use]
    pub fn broken(&self, stamp: Stamp) -> Tag {
        self.stamped(stamp, BROKEN)
    }

    fn stamped(&self, stamp: Stamp, suffix: &str) -> Tag {
        // A longer tag was admitted by an earlier version: its pins keep the one name they had.
        let fits = self.tag.as_str().len() <= FLOAT_TAG_MAX;
        let suffix = if fits { suffix } else { "" };
        Tag(format!("{stamp}{PRUNE}{}{suffix}", self.tag).into())
    }

    /// Whether a tag is a stamped pin of this float, of whatever kind and time.
    #[must_use]
    pub fn is_stamped(&self, tag: &Tag) -> bool {
        let fits = self.tag.as_str().len() <= FLOAT_TAG_MAX;
        let kinds = if fits {
            &["", RESCUED, BROKEN][..]
        } else {
            &[""]
        };
        Stamp::of(tag).is_some_and(|stamp| {
            let kind = tag.as_str().strip_prefix(self.prune(stamp).as_str());
            kind.is_some_and(|kind| kinds.contains(&kind))
        })
    }

    /// A float that is named now: all its pins' names fit, and it is no pin of another float.
    ///
    /// # Errors
    /// What is no float, and what only an earlier version admitted.
    pub fn new(text: &str) -> Result<Self, ParseError> {
        let float: Self = text.parse()?;
        let name = float.tag.as_str();
        if name.len() > FLOAT_TAG_MAX {
            return Err(ParseError::FloatTooLong(text.into()));
        }
        if [RESCUED, BROKEN].iter().any(|s| name.ends_with(s)) {
            return Err(ParseError::Reserved(text.into()));
        }
        Ok(float)
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// A float of a request that is there, which may be one that only an earlier version admitted; [`Float::new`] for others.
impl FromStr for Float {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (repository, tag) = split_tag(s);
        let Some(tag) = tag.filter(|_| !s.contains('@')) else {
            return Err(ParseError::NotAFloat(s.into()));
        };
        let repository = repository.parse()?;
        let tag: Tag = tag.parse()?;
        let name = tag.as_str();
        if name.len() > OPEN_FLOAT_TAG_MAX {
            return Err(ParseError::FloatTooLong(s.into()));
        }
        if RESERVED_PREFIXES.iter().any(|p| name.starts_with(p))
            || RESERVED_SUFFIXES.iter().any(|s| name.ends_with(s))
            || prune_stamp(name).is_some()
        {
            return Err(ParseError::Reserved(s.into()));
        }
        Ok(Self { repository, tag })
    }
}

/// The 14 digits before `_prune_`, where a tag begins with them.
fn prune_stamp(tag: &str) -> Option<&str> {
    let (stamp, _) = tag.split_once(PRUNE)?;
    (stamp.len() == STAMP_LEN && stamp.bytes().all(|c| c.is_ascii_digit())).then_some(stamp)
}

/// The second in a prune tag's name, UTC. An external pruner deletes such tags by this age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(i64);

impl Stamp {
    /// The second that `time` lies in.
    #[must_use]
    pub fn at(time: Timestamp) -> Self {
        Self(time.as_second())
    }

    /// The first second, in UTC, of the day that `time` lies in.
    #[must_use]
    pub fn day(time: Timestamp) -> Self {
        Self(time.as_second().div_euclid(86_400) * 86_400)
    }

    /// The second after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The second itself; none where it is beyond all times.
    #[must_use]
    pub fn time(self) -> Option<Timestamp> {
        Timestamp::from_second(self.0).ok()
    }

    /// The stamp of a prune tag; none where the tag is no prune tag or its digits are no date.
    #[must_use]
    pub fn of(tag: &Tag) -> Option<Self> {
        let text = prune_stamp(tag.as_str())?;
        let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
        let time = civil.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Some(Self(time.as_second()))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::from_second(self.0).unwrap_or(Timestamp::UNIX_EPOCH);
        write!(f, "{}", time.strftime("%Y%m%d%H%M%S"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_source_by_tag_and_digest_is_read_by_digest() {
        let s: Source = format!("quay.io/openshift/ci:x@sha256:{HEX}")
            .parse()
            .unwrap();
        assert_eq!(
            s.reference,
            Reference::Digest(format!("sha256:{HEX}").parse().unwrap())
        );
        assert_eq!(s.to_string(), format!("quay.io/openshift/ci@sha256:{HEX}"));
    }

    #[test]
    fn a_port_is_not_a_tag() {
        assert!(matches!(
            "localhost:5000/a/b".parse::<Source>(),
            Err(ParseError::Unnamed(_))
        ));
        let s: Source = "localhost:5000/a/b:c".parse().unwrap();
        assert_eq!(s.repository.host(), "localhost:5000");
    }

    #[test]
    fn the_default_port_is_dropped_so_that_one_float_has_one_name() {
        for name in ["index.docker.io", "registry-1.docker.io:443"] {
            let hub: Float = format!("{name}/o/r:t").parse().unwrap();
            assert_eq!(hub, "docker.io/o/r:t".parse().unwrap());
        }
        let b: Float = "quay.io/o/r:t".parse().unwrap();
        for port in ["443", "80", "0443", "080"] {
            let a: Float = format!("quay.io:{port}/o/r:t").parse().unwrap();
            assert_eq!(a, b);
        }
        let other: Float = "quay.io:8080/o/r:t".parse().unwrap();
        assert_ne!(other, b);
    }

    #[test]
    fn an_image_of_docker_hub_has_one_name() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io:443"] {
            let short: Source = format!("{name}/busybox:t").parse().unwrap();
            assert_eq!(short.to_string(), "docker.io/library/busybox:t");
            let short: Float = format!("{name}/busybox:t").parse().unwrap();
            assert_eq!(short, "docker.io/library/busybox:t".parse().unwrap());
        }
        for own in ["docker.io/o/busybox:t", "quay.io/busybox:t"] {
            assert_eq!(own.parse::<Source>().unwrap().to_string(), own);
        }
    }

    #[test]
    fn bad_names_are_refused_with_what_to_change() {
        for bad in [
            "",
            "quay.io",
            "quay.io/",
            "quay.io/a//b:t",
            "Quay.io/a:t",
            "quay.io/A:t",
            "quay.io/a:",
            "quay.io/a:.t",
            "quay.io/a:ü",
            "quay.io/a__-b:t",
            "quay.io/a___b:t",
            "quay.io:0/a:t",
            "quay.io:99999/a:t",
            "-quay.io/a:t",
            "quay.io/a:t@sha256:00",
            "quay.io/../v2/_catalog:t",
        ] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
            assert!(bad.parse::<Float>().is_err(), "{bad}");
        }
        let long = |length| format!("quay.io/a:{}", "t".repeat(length));
        for refused in [Float::new(&long(99)), long(108).parse()] {
            assert!(matches!(refused, Err(ParseError::FloatTooLong(_))));
        }
        for reserved in [
            "x_incoming",
            "x__pre",
            "x__post1",
            "rc_payload__1",
            "preserved__rc_payload__1",
            "remove__rc_payload__1",
            "art__x",
            "20260101000000_prune_x",
            "x__rescued",
            "x__broken",
        ] {
            let float = format!("quay.io/a:{reserved}");
            assert!(
                matches!(Float::new(&float), Err(ParseError::Reserved(_))),
                "{float}"
            );
        }
    }

    #[test]
    fn only_what_the_float_showed_is_pinned_under_the_name_that_a_revert_looks_for() {
        let float = Float::new("quay.io/a:x").unwrap();
        let stamp = Stamp::at("2026-03-04T05:06:07Z".parse().unwrap());
        let names = [
            float.prune(stamp),
            float.rescued(stamp),
            float.broken(stamp),
        ];
        assert_eq!(
            names.each_ref().map(Tag::as_str),
            [
                "20260304050607_prune_x",
                "20260304050607_prune_x__rescued",
                "20260304050607_prune_x__broken"
            ]
        );
        for name in &names {
            assert!(float.is_stamped(name), "{name}");
            assert_eq!(Stamp::of(name), Some(stamp));
        }
        for other in [
            "20260304050607_prune_xy",
            "20269904050607_prune_x",
            "x__pre",
            "20260304050607_prune_x__pre",
        ] {
            assert!(!float.is_stamped(&other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn a_float_that_an_earlier_version_admitted_keeps_the_names_its_pins_had() {
        let stamp = Stamp::at("2026-03-04T05:06:07Z".parse().unwrap());
        for length in [99, 107] {
            let tag = "t".repeat(length);
            let float: Float = format!("quay.io/a:{tag}").parse().unwrap();
            for pin in [
                float.prune(stamp),
                float.rescued(stamp),
                float.broken(stamp),
            ] {
                assert_eq!(pin.as_str(), format!("20260304050607_prune_{tag}"));
                assert!(float.is_stamped(&pin));
            }
        }
    }

    #[test]
    fn derived_tags_are_those_of_the_script_and_fit() {
        let tag = "t".repeat(FLOAT_TAG_MAX);
        let float: Float = format!("quay.io/a:{tag}").parse().unwrap();
        let stamp = Stamp::at("2026-03-04T05:06:07Z".parse().unwrap());
        let prune = float.prune(stamp);
        assert_eq!(prune.as_str(), format!("20260304050607_prune_{tag}"));
        assert_eq!(float.rescued(stamp).as_str().len(), TAG_MAX);
        assert_eq!(Stamp::of(&prune), Some(stamp));
        assert_eq!(stamp.next().to_string(), "20260304050608");
        assert_eq!(float.incoming().as_str(), format!("{tag}_incoming"));
        assert_eq!(float.pre().as_str(), format!("{tag}__pre"));
        assert_eq!(float.post1().as_str(), format!("{tag}__post1"));
    }

    #[test]
    fn the_pin_of_a_staged_digest_names_its_day_and_its_content_and_is_no_float() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        for second in ["2026-03-04T00:00:00Z", "2026-03-04T23:59:59Z"] {
            let pin = digest.staged(second.parse().unwrap());
            assert_eq!(pin.as_str(), format!("20260304000000_prune_{HEX}__staged"));
            assert_eq!(pin.as_str().parse::<Tag>().unwrap(), pin);
            assert!(Stamp::of(&pin).is_some());
            let float = format!("quay.io/a:{pin}").parse::<Float>();
            assert!(matches!(float, Err(ParseError::Reserved(_))));
        }
    }

    #[test]
    fn a_digest_is_what_sha256_says() {
        assert_eq!(
            Digest::of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_reads_back_as_itself(s in "\\PC{0,80}") {
            if let Ok(source) = s.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            }
            if let Ok(float) = s.parse::<Float>() {
                prop_assert_eq!(float.to_string().parse::<Float>().unwrap(), float);
            }
        }

        #[test]
        fn a_tag_is_of_the_grammar_and_so_are_the_tags_derived_from_a_float(text in "[a-zA-Z0-9_.-]{0,140}|\\PC{0,20}", second in 0..253_402_300_799_i64) {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let fits = (1..=TAG_MAX).contains(&text.len())
                && text.starts_with(word)
                && text.chars().all(|c| word(c) || c == '.' || c == '-');
            prop_assert_eq!(text.parse::<Tag>().is_ok(), fits);
            if let Ok(float) = format!("quay.io/a:{text}").parse::<Float>() {
                let stamp = Stamp::at(Timestamp::from_second(second).unwrap());
                let stamped = [float.prune(stamp), float.rescued(stamp), float.broken(stamp)];
                for tag in [float.incoming(), float.pre(), float.post1()].into_iter().chain(stamped) {
                    prop_assert_eq!(tag.as_str().parse::<Tag>().unwrap(), tag);
                }
            }
        }

        #[test]
        fn a_digest_reads_back_and_nothing_else_is_one(bytes: [u8; 32], text in "(sha256|SHA256|sha512)?:?[0-9a-fA-F]{60,66}") {
            let digest = Digest::from_bytes(bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn names_of_the_grammar_read_back(s in "[a-z0-9]([a-z0-9.-]{0,9}[a-z0-9])?(:[1-9][0-9]{0,3})?(/[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){1,3}:[a-z0-9_][a-zA-Z0-9.-]{0,9}") {
            let float: Float = s.parse().unwrap();
            prop_assert_eq!(float.to_string().parse::<Float>().unwrap(), float);
        }
    }
}
