//! Where an upload may be sent, by the look of its `Location`, and what may be deleted.
//!
//! Pure. Guaranteed: a path that any server might read as a manifest's counts as one, however it is spelt.

use percent_encoding::percent_decode_str;
use reqwest::Url;

use crate::image::Tag;
use crate::registry::auth::access::Access;

/// How often a URL is decoded: each server on the way may do it once more.
const DECODED_MAX: usize = 8;

/// Whether `url` is an upload session of the repository that is written to, at its registry's own address: what may be given up
/// with a DELETE. What it could be besides, it is not: the session's name is made of plain characters.
pub(crate) fn is_own_upload(access: &Access<'_>, url: &Url) -> bool {
    let uploads = format!("/v2/{}/blobs/uploads/", access.repository.path());
    let session = url.path().strip_prefix(&uploads);
    access.endpoint.is_at(url)
        && session.is_some_and(|session| {
            session.split('/').all(|part| {
                let plain = |c: u8| c.is_ascii_alphanumeric() || b"._~=-".contains(&c);
                !part.is_empty() && part.bytes().all(plain)
            })
        })
}

/// Whether `url` is a tag of the repository that is written to, at its registry's own address, and nothing else: what may be deleted. No
/// digest is a tag.
pub(crate) fn is_own_tag(access: &Access<'_>, url: &Url) -> bool {
    let manifests = format!("/v2/{}/manifests/", access.repository.path());
    let tag = url.path().strip_prefix(&manifests);
    access.endpoint.is_at(url)
        && url.query().is_none()
        && tag.is_some_and(|tag| tag.parse::<Tag>().is_ok())
}

/// Whether `url` could be read as a manifest's: `v2` and, later, `manifests` among its words.
pub(crate) fn is_like_a_manifest(url: &Url) -> bool {
    follow(&words(url), &["v2", "manifests"])
}

/// Whether `url` could be read as a place in any registry's API. A storage has `v2` in its paths too, and no `uploads`.
pub(crate) fn is_like_a_registry(url: &Url) -> bool {
    let words = words(url);
    words.first().is_some_and(|first| first == "v2")
        || follow(&words, &["v2", "manifests"])
        || follow(&words, &["v2", "blobs", "uploads"])
}

fn follow(words: &[String], wanted: &[&str]) -> bool {
    let mut words = words.iter();
    wanted.iter().all(|wanted| words.any(|word| word == wanted))
}

/// The words of a path and query, in any case and encoding.
fn words(url: &Url) -> Vec<String> {
    let mut text = url[url::Position::BeforePath..].to_owned();
    for _ in 0..DECODED_MAX {
        let decoded = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if decoded == text {
            break;
        }
        text = decoded;
    }
    let text = text.to_ascii_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c));
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::registry::auth::credential::Credential;
    use crate::registry::endpoint::Endpoints;
    use crate::registry::settings::Settings;

    fn at(path: &str) -> Url {
        let base = Url::parse("https://quay.io/v2/team/a/blobs/uploads/").unwrap();
        base.join(path).unwrap()
    }

    #[test]
    fn what_may_be_deleted_is_a_tag_of_the_same_repository_and_never_a_digest() {
        let repository = "quay.io/team/a".parse().unwrap();
        let endpoints = Endpoints::new(&Settings::default()).unwrap();
        let endpoint = endpoints.of(&repository).unwrap();
        let credential = Credential::anonymous();
        let access = Access::new(&endpoint, &credential, &repository, true);
        let may = |path: &str| is_own_tag(&access, &at(path));
        assert!(may("/v2/team/a/manifests/x_incoming"));
        let digest = format!("/v2/team/a/manifests/sha256:{}", "0".repeat(64));
        for other in [
            digest.as_str(),
            "/v2/team/a/manifests/sha256%3A00",
            "/v2/team/b/manifests/x",
            "/v2/team/a/manifests/x/y",
            "/v2/team/a/manifests/",
            "/v2/team/a/manifests/x?y=z",
            "/v2/team/a/blobs/x",
            "https://other.io/v2/team/a/manifests/x",
        ] {
            assert!(!may(other), "{other}");
        }
    }

    #[test]
    fn what_may_be_given_up_is_a_session_of_the_same_repository_in_plain_letters() {
        let repository = "quay.io/team/a".parse().unwrap();
        let endpoints = Endpoints::new(&Settings::default()).unwrap();
        let endpoint = endpoints.of(&repository).unwrap();
        let credential = Credential::anonymous();
        let access = Access::new(&endpoint, &credential, &repository, true);
        for own in [
            "1",
            "a-b_c.d~e=?_state=%2F..%2F",
            "1/2",
            "/v2/team/a/blobs/uploads/u",
        ] {
            assert!(is_own_upload(&access, &at(own)), "{own}");
        }
        for other in [
            "",
            "?x",
            "..",
            "../uploads",
            "%2e%2e/%2e%2e/manifests/t",
            "1%2f..%2f..%2fmanifests",
            "1//2",
            "1;x",
            "1\\2%5c",
            "/v2/team/b/blobs/uploads/1",
            "/v2/team/a/manifests/t",
            "/v2//team/a/blobs/uploads/1",
            "/V2/team/a/blobs/uploads/1",
            "//quay.io:444/v2/team/a/blobs/uploads/1",
            "http://quay.io/v2/team/a/blobs/uploads/1",
            "https://quay.io.example/v2/team/a/blobs/uploads/1",
        ] {
            assert!(!is_own_upload(&access, &at(other)), "{other}");
        }
    }

    #[test]
    fn storage_is_told_from_a_manifest() {
        for storage in [
            "https://s3.example/docker/registry/v2/repositories/team/a/_uploads/1/data?X-Amz-Signature=a%2Fb",
            "https://s3.example/docker/registry/v2/repositories/team/a/_manifests/x",
            "https://gcs.example/upload?upload_id=v2",
            "/artifacts-uploads/namespaces/x/repositories/y/uploads/z",
            "https://s3.example/docker/registry/v2/blobs/sha256/00/0",
            "/manifests/v2/x",
        ] {
            assert!(!is_like_a_registry(&at(storage)), "{storage}");
            assert!(!is_like_a_manifest(&at(storage)), "{storage}");
        }
        for registry in [
            "/v2/team/a/blobs/uploads/1?_state=abc",
            "https://v.example/V2/",
            "https://v.example/%76%32%2fx",
            "https://v.example/artifactory/api/docker/x/v2/team/a/blobs/uploads/1",
        ] {
            assert!(is_like_a_registry(&at(registry)), "{registry}");
            assert!(!is_like_a_manifest(&at(registry)), "{registry}");
        }
    }

    proptest! {
        #[test]
        fn a_manifest_is_one_however_it_is_spelt(
            before in "(/|/x/|/x/\\.\\./|/\\?|/\\?p=|//)", between in "(/|//|%2f|%2F|%252f|%25252f|\\\\|/;x/|/\\./)",
            upper: bool, encoded in 0_usize..4, after in "(/t|%2ft|\\?t|#t|;x/t|)",
        ) {
            let spelt = |word: &str| {
                let word = if upper { word.to_uppercase() } else { word.to_owned() };
                match encoded {
                    0 => word,
                    rounds => {
                        let again = "25".repeat(rounds - 1);
                        let letters = word.bytes().map(|c| format!("%{again}{c:02x}"));
                        letters.collect::<Vec<_>>().concat()
                    }
                }
            };
            let path = format!("https://v.example{before}{}{between}team/a{between}{}{after}", spelt("v2"), spelt("manifests"));
            let url = Url::parse(&path).unwrap();
            prop_assert!(is_like_a_manifest(&url) && is_like_a_registry(&url), "{path}");
        }
    }
}
