//! Patterns: what a list or a rule means by a name.
//!
//! Names come in as they were parsed, part by part (host, repository path, tag or digest): a pattern never reaches from one part
//! into the next. In every part `*` stands for any run of characters within one label of a host, one segment of a path, one tag
//! or one namespace, `**` in hosts and paths also for their separators.
//!
//! Guaranteed: a match costs no more than the length of the pattern times that of the name.

use std::str::FromStr;

use crate::image::{
    Digest, Float, Reference, Repository, Source, TAG_MAX, Tag, host_name, registry_name,
    repository_path,
};
use crate::stream::StreamTag;

/// The longest pattern, in bytes: no name is longer.
const PATTERN_MAX: usize = 512;

/// A host, where `*` stands for any run of letters, digits and dashes within one label, and `**` also for dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(String);

/// A namespace; `*` stands for any run of its characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePattern(String);

/// A source: `HOST/PATH` for any tag or digest, `HOST/PATH:TAG` for tags alone, `HOST/PATH@DIGEST` or `HOST/PATH@*` for digests
/// alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePattern {
    repository: RepositoryPattern,
    reference: ReferencePattern,
}

/// A float: `HOST/PATH:TAG`, always with the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloatPattern {
    repository: RepositoryPattern,
    tag: TagPattern,
}

/// A tag of an image stream: `NAMESPACE/STREAM:TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTagPattern {
    namespace: NamespacePattern,
    stream: String,
    tag: TagPattern,
}

/// A repository: its host, and its path, where `*` stands for a run within one segment and `**` also for slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RepositoryPattern {
    host: HostPattern,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TagPattern(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum ReferencePattern {
    Any,
    Tag(TagPattern),
    AnyDigest,
    Digest(Digest),
}

/// A pattern that is none. The text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a host.
    #[error(
        "'{0}' is not a host pattern: write HOST[:PORT] in lower case, with * for one label's part or ** for several labels"
    )]
    Host(String),
    /// Not a namespace.
    #[error(
        "'{0}' is not a namespace pattern: write at most 63 of a-z, 0-9, - and *, where * stands for any part of the name"
    )]
    Namespace(String),
    /// Not a host and a path.
    #[error(
        "'{0}' is not HOST[:PORT]/PATH: write both in lower case, with * for a part of one segment or ** for several segments"
    )]
    Repository(String),
    /// Not a tag.
    #[error(
        "'{0}' ends in no tag pattern: write 1 to 128 of letters, digits, _, ., - and * after the colon"
    )]
    Tag(String),
    /// Neither a digest nor a star.
    #[error(
        "'{0}' ends in no digest pattern: write @* for any digest, or @sha256: and 64 lower-case hexadecimal digits, and no tag before it"
    )]
    Digest(String),
    /// A float without a tag.
    #[error("'{0}' says no tag: append :TAG, or :* for every tag of the repository")]
    NoTag(String),
    /// A float with a digest.
    #[error("'{0}' is no float pattern: write HOST[:PORT]/PATH:TAG, without a digest")]
    NotAFloat(String),
    /// Not a tag of an image stream.
    #[error(
        "'{0}' is no pattern of image stream tags: write NAMESPACE/STREAM:TAG, with * for any part of one of the three"
    )]
    StreamTag(String),
    /// Longer than any name.
    #[error("'{0}…' is longer than 512 characters: no name is; write a shorter one")]
    TooLong(String),
}

// === impl HostPattern ===

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:*[]".contains(c);
        if s.is_empty() || !s.chars().all(fits) {
            return Err(PatternError::Host(s.into()));
        }
        Ok(Self(host_name(s).into()))
    }
}

impl HostPattern {
    /// Whether a host, as parsed, is meant.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let means = |host: &str| matches(self.0.as_bytes(), host.as_bytes(), is_dot);
        means(host) || means(registry_name(host))
    }

    /// The one host that is meant, where it is only one.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|pattern| !pattern.contains('*'))
    }

    /// Whether a host is meant by name: stars alone match everybody and name nobody.
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        let name = match self.0.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => &self.0,
        };
        name.contains(|c: char| c.is_ascii_alphanumeric()) && self.matches(host)
    }
}

// === impl NamespacePattern ===

impl FromStr for NamespacePattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-*".contains(c);
        if s.is_empty() || s.len() > 63 || !s.chars().all(fits) || s.contains("**") {
            return Err(PatternError::Namespace(cut(s)));
        }
        Ok(Self(s.into()))
    }
}

impl NamespacePattern {
    /// Whether a namespace is meant.
    #[must_use]
    pub fn matches(&self, namespace: &str) -> bool {
        matches(self.0.as_bytes(), namespace.as_bytes(), |_| false)
    }
}

// === impl StreamTagPattern ===

impl FromStr for StreamTagPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        check_length(s)?;
        let wrong = || PatternError::StreamTag(s.into());
        let (namespace, rest) = s.split_once('/').ok_or_else(wrong)?;
        let (stream, tag) = rest.split_once(':').ok_or_else(wrong)?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.*".contains(c);
        if stream.is_empty() || !stream.chars().all(fits) || stream.contains("**") {
            return Err(wrong());
        }
        Ok(Self {
            namespace: namespace.parse().map_err(|_| wrong())?,
            stream: stream.into(),
            tag: TagPattern::parse(tag, s).map_err(|_| wrong())?,
        })
    }
}

impl StreamTagPattern {
    /// Whether this tag, of a stream in `namespace`, is meant.
    #[must_use]
    pub fn matches(&self, namespace: &str, tag: &StreamTag) -> bool {
        self.namespace.matches(namespace)
            && matches(self.stream.as_bytes(), tag.stream.as_bytes(), |_| false)
            && self.tag.matches(&tag.tag)
    }
}

// === impl SourcePattern ===

impl FromStr for SourcePattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        check_length(s)?;
        if let Some((repository, digest)) = s.split_once('@') {
            let wrong = || PatternError::Digest(s.into());
            let reference = match digest {
                "*" => ReferencePattern::AnyDigest,
                digest => ReferencePattern::Digest(digest.parse().map_err(|_| wrong())?),
            };
            let (repository, tag) = split_tag(repository);
            if tag.is_some() {
                return Err(wrong());
            }
            let repository = RepositoryPattern::parse(repository, s)?;
            return Ok(Self {
                repository,
                reference,
            });
        }
        let (repository, tag) = split_tag(s);
        Ok(Self {
            repository: RepositoryPattern::parse(repository, s)?,
            reference: match tag {
                Some(tag) => ReferencePattern::Tag(TagPattern::parse(tag, s)?),
                None => ReferencePattern::Any,
            },
        })
    }
}

impl SourcePattern {
    /// Whether a source is meant.
    #[must_use]
    pub fn matches(&self, source: &Source) -> bool {
        let named = match (&self.reference, &source.reference) {
            (ReferencePattern::Any, _) | (ReferencePattern::AnyDigest, Reference::Digest(_)) => {
                true
            }
            (ReferencePattern::Digest(meant), Reference::Digest(digest)) => meant == digest,
            (ReferencePattern::Tag(meant), Reference::Tag(tag)) => meant.matches(tag),
            // What a digest is of has nothing to do with what a tag holds.
            (ReferencePattern::Tag(_), Reference::Digest(_))
            | (ReferencePattern::AnyDigest | ReferencePattern::Digest(_), Reference::Tag(_)) => {
                false
            }
        };
        named && self.repository.matches(&source.repository)
    }
}

// === impl FloatPattern ===

impl FromStr for FloatPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        check_length(s)?;
        if s.contains('@') {
            return Err(PatternError::NotAFloat(s.into()));
        }
        let (repository, tag) = split_tag(s);
        let repository = RepositoryPattern::parse(repository, s)?;
        let tag = tag.ok_or_else(|| PatternError::NoTag(s.into()))?;
        Ok(Self {
            repository,
            tag: TagPattern::parse(tag, s)?,
        })
    }
}

impl FloatPattern {
    /// Whether a float is meant.
    #[must_use]
    pub fn matches(&self, float: &Float) -> bool {
        self.tag.matches(float.tag()) && self.repository.matches(float.repository())
    }
}

// === impl RepositoryPattern ===

impl RepositoryPattern {
    /// Parses `HOST/PATH`, a part of `whole`.
    fn parse(s: &str, whole: &str) -> Result<Self, PatternError> {
        let wrong = || PatternError::Repository(whole.into());
        let (host, path) = s.split_once('/').ok_or_else(wrong)?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-*".contains(c);
        let segment = |s: &str| !s.is_empty() && s.chars().all(fits);
        if !path.split('/').all(segment) || s.contains("***") {
            return Err(wrong());
        }
        let host: HostPattern = host.parse().map_err(|_| wrong())?;
        let path = repository_path(&host.0, path).into();
        Ok(Self { host, path })
    }

    fn matches(&self, repository: &Repository) -> bool {
        let path = repository.path().as_bytes();
        self.host.matches(repository.host()) && matches(self.path.as_bytes(), path, is_slash)
    }
}

// === impl TagPattern ===

impl TagPattern {
    /// Parses what follows the colon of `whole`.
    fn parse(s: &str, whole: &str) -> Result<Self, PatternError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
        let edge = |c: char| c.is_ascii_alphanumeric() || "_*".contains(c);
        let begins = s.chars().next().is_some_and(edge);
        if !begins || s.len() > TAG_MAX || !s.chars().all(fits) || s.contains("**") {
            return Err(PatternError::Tag(whole.into()));
        }
        Ok(Self(s.into()))
    }

    fn matches(&self, tag: &Tag) -> bool {
        matches(self.0.as_bytes(), tag.as_str().as_bytes(), |_| false)
    }
}

fn check_length(s: &str) -> Result<(), PatternError> {
    if s.len() > PATTERN_MAX {
        return Err(PatternError::TooLong(cut(s)));
    }
    Ok(())
}

/// The beginning of what may be any text.
fn cut(s: &str) -> String {
    s.chars().take(64).collect()
}

/// Splits a pattern before its tag, if it has one: the last colon after the last slash.
fn split_tag(s: &str) -> (&str, Option<&str>) {
    let Some(path) = s.rfind('/') else {
        return (s, None);
    };
    match s[path..].rfind(':') {
        Some(colon) => (&s[..path + colon], Some(&s[path + colon + 1..])),
        None => (s, None),
    }
}

fn is_dot(c: u8) -> bool {
    matches!(c, b'.' | b':')
}

fn is_slash(c: u8) -> bool {
    c == b'/'
}

/// Glob on bytes, where one star does not cross a `fence`. In one pass over the pattern: names come from specs and redirects, and
/// no pattern may make one of them costly.
fn matches(pattern: &[u8], text: &[u8], fence: impl Fn(u8) -> bool) -> bool {
    // Most patterns differ at their beginning.
    let literal = pattern.iter().take_while(|c| **c != b'*').count();
    let (Some(text), pattern) = (text.strip_prefix(&pattern[..literal]), &pattern[literal..])
    else {
        return false;
    };
    if pattern.is_empty() {
        return text.is_empty();
    }
    // Of which beginnings of the text, by length, the pattern so far is a match.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    let mut rest = pattern;
    loop {
        rest = match rest {
            [] => return ends[text.len()],
            [b'*', b'*', rest @ ..] => {
                for n in 0..text.len() {
                    ends[n + 1] |= ends[n];
                }
                rest
            }
            [b'*', rest @ ..] => {
                for n in 0..text.len() {
                    ends[n + 1] |= ends[n] && !fence(text[n]);
                }
                rest
            }
            [c, rest @ ..] => {
                for n in (0..text.len()).rev() {
                    ends[n + 1] = ends[n] && text[n] == *c;
                }
                ends[0] = false;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests;
