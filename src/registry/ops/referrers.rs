//! Referrers: signatures, attestations and whatever else names a manifest as its subject.
//!
//! Tells what a registry lists as referring to a digest, or that it has no such API; then a tag lists them (the specification's fallback),
//! which is read and extended. Guaranteed: an outage, a rate limit or a missing right never means that there is no API. A list is read to
//! its end, on its own address, or it is an error. An entry that is in a list stays in it.

use std::borrow::Cow;

use oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE;
use reqwest::header::{CONTENT_TYPE, LINK};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::client::RegistryClient;
use super::get::named;
use super::manifest::Manifest;
use super::referrer_list::{LISTED_MAX, Referrer, entries, too_many};
use crate::image::{Digest, Reference};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Remote;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::registry::host::reserve::{Hold, SMALL_MAX};
use crate::registry::wire::answer::Answer;
use crate::registry::wire::reply::{MANIFEST_MAX, ManifestBody, Reply};
use crate::registry::wire::send::is_astray;

/// The most pages of a list.
const PAGES_MAX: usize = 20;

/// What a registry answers when asked for referrers.
#[derive(Debug, Clone, PartialEq)]
pub enum Listing {
    /// All that it lists.
    Of(Vec<Referrer>),
    /// It has no API for that, in its own words.
    Unsupported,
    /// It answers no list: a page, a bare 404 or 400, a redirect to somewhere else. Something between here and there may have.
    None,
}

/// What of an answer tells that it means a list, whatever it is: then it has to be one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meant<'a> {
    #[serde(borrow, default)]
    media_type: Option<Cow<'a, str>>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl RegistryClient {
    /// What a registry lists as referring to `subject`. `push`: with the right to push; `anew`: ask even if no API was found before.
    ///
    /// # Errors
    /// An outage, a missing right, an invalid or incomplete list, more than 100 referrers.
    pub async fn referrers(
        &self,
        remote: Remote<'_>,
        subject: Digest,
        push: bool,
        anew: bool,
        progress: &Progress,
    ) -> Result<Listing, Error> {
        let Remote {
            repository,
            credential,
        } = remote;
        let endpoint = self.endpoint(repository)?;
        let key = (credential.key(), repository.clone());
        if !anew && self.0.unlisted.contains_key(&key) {
            return Ok(Listing::None);
        }
        let reference = Reference::Digest(subject);
        let what = format!("the referrers of {}", named(repository, &reference));
        let access = Access::new(&endpoint, credential, repository, push);
        let mut url = endpoint.url(format_args!("{}/referrers/{subject}", repository.path()));
        let (mut found, mut hold): (Vec<Referrer>, Option<Hold>) = (Vec::new(), None);
        let mut page = 0;
        while page < PAGES_MAX {
            let mut request =
                self.manifest_request(Method::GET, &what, &reference, &access, progress);
            request.url = url.clone();
            let reply = self.transport().send(&mut request).await?;
            if page == 0 && may_be_no_api(&reply) {
                let told = reply.words(&what).await?;
                // What is not there, or unavailable, says nothing about the registry.
                let passing = matches!(told.status.as_u16(), 429 | 500 | 502..=599);
                if !passing && !told.says_absent() && !is_unknown_subject(&told) {
                    self.0.unlisted.insert(key, ());
                }
                return Ok(if told.has_code("UNSUPPORTED") {
                    Listing::Unsupported
                } else {
                    Listing::None
                });
            }
            if reply.status() != StatusCode::OK {
                return Err(reply.refusal(&what).await);
            }
            let next = next_page(&reply, &endpoint, &what);
            let content_type = content_type(&reply);
            let bytes = match reply.manifest_body(&what, hold.is_some()).await? {
                ManifestBody::All(bytes) => bytes,
                _ if page == 0 && content_type.as_deref() == Some("text/html") => {
                    return Ok(Listing::None);
                }
                ManifestBody::Large => {
                    hold = Some(progress.hold(&self.0.reserve).await?);
                    continue;
                }
                ManifestBody::TooLarge => {
                    return Err(too_many(&what, "their list is larger than 4 MiB"));
                }
            };
            if page == 0 && !means_list(content_type.as_deref(), &bytes) {
                self.0.unlisted.insert(key, ());
                return Ok(Listing::None);
            }
            let next = next?;
            found.extend(entries(&what, &bytes)?);
            if found.len() > LISTED_MAX {
                return Err(too_many(&what, "more than 100"));
            }
            let length: usize = found.iter().map(|referrer| referrer.entry.len()).sum();
            if length > MANIFEST_MAX {
                return Err(too_many(&what, "their list is larger than 4 MiB"));
            }
            if length > SMALL_MAX && hold.is_none() {
                hold = Some(progress.hold(&self.0.reserve).await?);
            }
            page += 1;
            let Some(next) = next else {
                let hold = hold.filter(|_| length > SMALL_MAX);
                for referrer in &mut found {
                    referrer.hold.clone_from(&hold);
                }
                return Ok(Listing::Of(found));
            };
            url = next;
        }
        Err(too_many(&what, "more than 20 pages"))
    }

    /// Whether a repository's registry was found to have no API for that, lately and for certain: what it does not hold says nothing.
    #[must_use]
    pub fn is_known_without_referrers(&self, remote: Remote<'_>) -> bool {
        let key = (remote.credential.key(), remote.repository.clone());
        self.0.unlisted.contains_key(&key)
    }

    /// Copies a referrer and all that it references to another repository, and puts it there by its digest. Tells whether that registry
    /// acknowledges the subject; if it does not, a tag has to list the referrer.
    ///
    /// # Errors
    /// As [`RegistryClient::copy`]; or the PUT is refused.
    pub async fn copy_referrer(
        &self,
        from: Remote<'_>,
        manifest: Manifest,
        to: Remote<'_>,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let digest = manifest.digest;
        let kept = (!manifest.is_large()).then(|| manifest.clone());
        self.copy(from, manifest, to, progress).await?;
        let manifest = match kept {
            Some(manifest) => manifest,
            None => self.referrer(from, digest, progress).await?,
        };
        let job = self.job(from, to, progress)?;
        self.put_by_digest(&job, &manifest).await
    }

    /// A referrer's manifest, which was there before its blobs were brought.
    async fn referrer(
        &self,
        from: Remote<'_>,
        digest: Digest,
        progress: &Progress,
    ) -> Result<Manifest, Error> {
        let reference = Reference::Digest(digest);
        let found = self
            .get(from.repository, &reference, from.credential, progress)
            .await?;
        found.ok_or_else(|| {
            let what = named(from.repository, &reference);
            let message = format!("{what}: it went away while it was copied");
            Error::attempt(Reason::SourceIncomplete, message)
        })
    }
}

/// Whether an answer can mean that there is no API. One that came from elsewhere, by another path than the API's, is a web page's.
fn may_be_no_api(reply: &Reply) -> bool {
    match reply.status().as_u16() {
        201..=400 | 404..=406 | 410 | 501 => true,
        _ => reply.elsewhere && is_astray(&reply.response),
    }
}

/// How quay says that it does not hold the subject.
fn is_unknown_subject(told: &Answer) -> bool {
    told.status.as_u16() == 400 && told.has_code("MANIFEST_INVALID")
}

fn content_type(reply: &Reply) -> Option<String> {
    let value = reply.header(CONTENT_TYPE.as_str())?;
    let value = value.split(';').next().unwrap_or(value);
    Some(value.trim().to_ascii_lowercase())
}

/// Whether an answer means to be a list: by its header, or by what it says of itself.
fn means_list(content_type: Option<&str>, bytes: &[u8]) -> bool {
    if content_type == Some(OCI_IMAGE_INDEX_MEDIA_TYPE) {
        return true;
    }
    let Ok(meant) = serde_json::from_slice::<Meant>(bytes) else {
        return false;
    };
    match meant.media_type {
        Some(own) => own == OCI_IMAGE_INDEX_MEDIA_TYPE,
        None => meant.manifests.is_some(),
    }
}

/// Where a list goes on: on the registry's own address, or nowhere.
fn next_page(reply: &Reply, endpoint: &Endpoint, what: &str) -> Result<Option<Url>, Error> {
    let Some(target) = reply.header(LINK.as_str()).and_then(next_link) else {
        return Ok(None);
    };
    let url = reply.response.url().join(target).ok();
    let url = url.filter(|url| endpoint.is_at(url));
    url.map(Some).ok_or_else(|| {
        let message = format!("{what}: their list goes on at another address; not followed");
        Error::attempt(Reason::RegistryError, message)
    })
}

/// The target of a `Link` header's part with `rel="next"`.
fn next_link(value: &str) -> Option<&str> {
    let mut rest = value;
    loop {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let (parameters, following) = after.split_at(end);
        let next = parameters.split([';', ',']).any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel") && value.split(' ').any(|rel| rel == "next")
        });
        if next {
            return Some(target);
        }
        rest = following;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        for (value, next) in [
            (r#"</v2/a?n=1>; rel="next""#, Some("/v2/a?n=1")),
            ("<x>; rel=next", Some("x")),
            (r#"<a>; rel="prev", <b>; title="z"; rel="next""#, Some("b")),
            (r#"<a>; rel="prev""#, None),
            ("nothing", None),
        ] {
            assert_eq!(next_link(value), next, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_link_leads_on_or_nowhere(text in "\\PC{0,80}|(<|>|;|,|rel|=|next|\"| |a){0,30}") {
            if let Some(target) = next_link(&text) {
                prop_assert!(text.contains(&format!("<{target}>")), "{target}");
            }
        }
    }

    #[test]
    fn a_link_as_long_as_headers_can_be_is_read_at_once() {
        crate::cost::is_cheap(|| {
            assert!(next_link(&"<a>; rel=x, ".repeat(40_000)).is_none());
        });
    }
}
