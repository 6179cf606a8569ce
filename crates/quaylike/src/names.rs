//! The kind, repository and reference of a request, read from its path.
//!
//! In: method and path of a request. Out: a [`Target`]. Repository names nest to any depth, so paths are read from their end.

use serde::{Deserialize, Serialize};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// `/v2/`
    Ping,
    /// `/v2/auth` as at quay, or `/token`: the token endpoint.
    Token,
    /// `/v2/<repository>/manifests/<reference>`
    Manifest,
    /// `/v2/<repository>/blobs/<digest>`
    Blob,
    /// `/v2/<repository>/blobs/uploads/…`, mounts too.
    Upload,
    /// `/v2/<repository>/tags/list`
    Tags,
    /// `/v2/<repository>/referrers/<digest>`
    Referrers,
    /// The second listener, to which blob reads are redirected.
    Storage,
    /// Anything else.
    Other,
}

/// A request's kind and what it names; names that do not apply are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: RequestKind,
    pub(super) repository: String,
    pub(super) reference: String,
}

impl Target {
    /// Reads the path of the registry's own listener.
    pub(super) fn parse(path: &str) -> Self {
        if path == "/token" {
            return Self::bare(RequestKind::Token);
        }
        let Some(rest) = path.strip_prefix("/v2") else {
            return Self::bare(RequestKind::Other);
        };
        match rest {
            "" | "/" => return Self::bare(RequestKind::Ping),
            "/auth" => return Self::bare(RequestKind::Token),
            _ => {}
        }
        let rest = decoded(rest.strip_prefix('/').unwrap_or(rest));
        let of = |kind, repository: &str, reference: &str| Self {
            kind,
            repository: repository.to_owned(),
            reference: reference.to_owned(),
        };
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return of(RequestKind::Tags, repository, "");
        }
        if let Some(repository) = rest
            .strip_suffix("/blobs/uploads/")
            .or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return of(RequestKind::Upload, repository, "");
        }
        let Some((head, last)) = rest.rsplit_once('/') else {
            return Self::bare(RequestKind::Other);
        };
        for (suffix, kind) in [
            ("/blobs/uploads", RequestKind::Upload),
            ("/manifests", RequestKind::Manifest),
            ("/blobs", RequestKind::Blob),
            ("/referrers", RequestKind::Referrers),
        ] {
            if let Some(repository) = head.strip_suffix(suffix) {
                return of(kind, repository, last);
            }
        }
        Self::bare(RequestKind::Other)
    }

    /// Reads the path of the second listener, `/storage/<repository>/<digest>`.
    pub(super) fn of_storage(path: &str) -> Self {
        let rest = decoded(path.strip_prefix("/storage/").unwrap_or_default());
        let (repository, reference) = rest.rsplit_once('/').unwrap_or_default();
        Self {
            kind: RequestKind::Storage,
            repository: repository.to_owned(),
            reference: reference.to_owned(),
        }
    }

    fn bare(kind: RequestKind) -> Self {
        Self {
            kind,
            repository: String::new(),
            reference: String::new(),
        }
    }
}

/// Whether this is a repository name by the distribution spec's grammar, at most 255 bytes.
#[must_use]
pub fn is_repository(name: &str) -> bool {
    name.len() <= 255 && name.split('/').all(is_component)
}

/// Whether this is a tag by the distribution spec's grammar.
#[must_use]
pub fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends =
        bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain);
    // Separators are one dot, one or two underscores, or any number of dashes.
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

/// Undoes percent-encoding. What does not decode stays as it is, and then matches no grammar.
fn decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() {
            tail.get(2..).unwrap_or_default()
        } else {
            tail
        };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> (RequestKind, String, String) {
        let target = Target::parse(path);
        (target.kind, target.repository, target.reference)
    }

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, kind, repository, reference) in [
            ("/v2/", RequestKind::Ping, "", ""),
            ("/v2/auth", RequestKind::Token, "", ""),
            ("/token", RequestKind::Token, "", ""),
            (
                "/v2/a/b/c/manifests/latest",
                RequestKind::Manifest,
                "a/b/c",
                "latest",
            ),
            (
                "/v2/a/manifests/sha256%3Aab",
                RequestKind::Manifest,
                "a",
                "sha256:ab",
            ),
            ("/v2/a/blobs/uploads/", RequestKind::Upload, "a", ""),
            ("/v2/a/blobs/uploads", RequestKind::Upload, "a", ""),
            ("/v2/a/blobs/uploads/1-2", RequestKind::Upload, "a", "1-2"),
            (
                "/v2/a/b/blobs/sha256:ab",
                RequestKind::Blob,
                "a/b",
                "sha256:ab",
            ),
            (
                "/v2/tags/list/tags/list",
                RequestKind::Tags,
                "tags/list",
                "",
            ),
            (
                "/v2/a/referrers/sha256:ab",
                RequestKind::Referrers,
                "a",
                "sha256:ab",
            ),
            ("/v2/_catalog", RequestKind::Other, "", ""),
            ("/health", RequestKind::Other, "", ""),
        ] {
            assert_eq!(
                read(path),
                (kind, repository.into(), reference.into()),
                "{path}"
            );
        }
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "a/b/c", "a-b/c__d.e", "0--1"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in ["", "/a", "a/", "A", "a..b", "a_-b", "-a", "a b", "../x"] {
            assert!(!is_repository(bad), "{bad}");
        }
        let longest = "t".repeat(128);
        for good in ["_a", "A.b-c", longest.as_str()] {
            assert!(is_tag(good), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", &"t".repeat(129)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}
