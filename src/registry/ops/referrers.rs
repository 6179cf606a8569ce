//! Referrers: signatures, attestations and whatever else names a manifest as its subject.
//!
//! In comes a digest; out comes what its registry lists as referring to it, or that the registry has no such API. Where it has
//! none, a tag lists them (the specification's fallback): an index, read and extended here. Guaranteed: an outage, a limit or a
//! missing right never means that there is no API; how sure an answer is that means it is told with it; a list is read to its end,
//! on its own address, or it is an error; an entry that is in a list stays in it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE;
use reqwest::header::{CONTENT_TYPE, LINK};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::client::RegistryClient;
use super::get::named;
use super::manifest::{FirstOf, Manifest, digest_of, unsupported};
use crate::image::{Digest, Reference, Repository};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Remote;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::registry::host::reserve::{Hold, SMALL_MAX};
use crate::registry::wire::answer::Answer;
use crate::registry::wire::reply::MANIFEST_MAX;
use crate::registry::wire::reply::{ManifestBody, Reply};

/// The longest list of referrers.
const LISTED_MAX: usize = 100;
/// The pages it may come in.
const PAGES_MAX: usize = 20;
/// The longest list that is extended: others than this program write there too.
const EXTENDED_MAX: usize = 10_000;
/// The fields of such a list.
const FIELDS_MAX: usize = 100;

/// A referrer as a list names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Referrer {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The whole entry as it was written, for another list.
    entry: String,
    /// The memory that the list takes, where it is large.
    hold: Option<Hold>,
}

/// What a registry says of what refers to a manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum Listing {
    /// All that it lists.
    Of(Vec<Referrer>),
    /// It has no API for that, in its own words.
    Unsupported,
    /// It answers no list: a page, a bare 404 or 400, a redirect to somewhere else. Something between here and there may have.
    None,
}

/// What is read of a list; entries are not read further than they have to be.
#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    manifests: Option<FirstOf<&'a RawValue, LISTED_MAX>>,
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

/// What is read of a manifest that refers to another.
#[derive(Deserialize)]
struct Referring<'a> {
    #[serde(borrow)]
    subject: Option<Named<'a>>,
}

/// What is read of an entry.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
}

/// Every field of a JSON object, in its order and as it was written.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom("too many fields"));
                    }
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl RegistryClient {
    /// What a registry lists as referring to `subject`. `push`: it is read to be written to; `anew`: it is asked although it was
    /// found to have no API for that.
    ///
    /// # Errors
    /// An outage, a missing right, a list that is none or not whole; more than 100 referrers.
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
        let mut url = endpoint.url(&format!("{}/referrers/{subject}", repository.path()));
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

    /// Brings a referrer's manifest and all that it references to another repository, and puts it there by its digest. Whether
    /// that registry says that it took note of its subject: where it does not, a tag has to list it.
    ///
    /// # Errors
    /// As [`RegistryClient::copy`], and as the PUT is refused.
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

impl Manifest {
    /// Whether it refers to the manifest of this digest.
    #[must_use]
    pub fn refers_to(&self, subject: Digest) -> bool {
        let referring: Option<Referring> = serde_json::from_slice(&self.bytes).ok();
        let named = referring.and_then(|referring| referring.subject?.digest);
        named.is_some_and(|digest| digest.parse::<Digest>().is_ok_and(|named| named == subject))
    }

    /// The referrers that this index lists: the content of a fallback tag.
    ///
    /// # Errors
    /// It is no OCI index, or lists more than 100.
    pub fn referrers(&self, what: &str) -> Result<Vec<Referrer>, Error> {
        if self.media_type != OCI_IMAGE_INDEX_MEDIA_TYPE {
            return Err(no_list(what));
        }
        let mut listed = entries(what, &self.bytes)?;
        for referrer in &mut listed {
            referrer.hold.clone_from(&self.hold);
        }
        Ok(listed)
    }
}

/// The list of a fallback tag with these entries added, everything else as it is; none where nothing is to be added. `what` names
/// the tag.
///
/// # Errors
/// What the tag holds is no list, or grows larger than a manifest may be.
pub fn list_with(
    what: &str,
    list: Option<&Manifest>,
    added: &[Referrer],
) -> Result<Option<Manifest>, Error> {
    let empty = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE_INDEX_MEDIA_TYPE}","manifests":[]}}"#
    );
    let text = match list {
        Some(list) if list.media_type == OCI_IMAGE_INDEX_MEDIA_TYPE => &list.bytes,
        Some(_) => return Err(no_list(what)),
        None => empty.as_bytes(),
    };
    let fields: Fields = serde_json::from_slice(text).map_err(|_| no_list(what))?;
    let listed = fields.0.iter().find(|(name, _)| name == "manifests");
    let (_, listed) = listed.ok_or_else(|| no_list(what))?;
    let listed: Option<FirstOf<&RawValue, EXTENDED_MAX>> =
        serde_json::from_str(listed.get()).map_err(|_| no_list(what))?;
    let listed = listed.map_or_else(Vec::new, |listed| listed.0);
    if listed.len() > EXTENDED_MAX {
        return Err(too_many(what, "their list names more than 10,000"));
    }
    let known: HashSet<Digest> = listed
        .iter()
        .filter_map(|entry| digest_text(entry)?.parse().ok())
        .collect();
    let mut missing = added
        .iter()
        .filter(|referrer| !known.contains(&referrer.digest))
        .peekable();
    if missing.peek().is_none() {
        return Ok(None);
    }
    let entries = listed.iter().map(|entry| entry.get());
    let entries: Vec<&str> = entries
        .chain(missing.map(|referrer| referrer.entry.as_str()))
        .collect();
    let entries = format!("[{}]", entries.join(","));
    let fields = fields.0.iter().map(|(name, value)| {
        let value = if name == "manifests" {
            &entries
        } else {
            value.get()
        };
        format!("{}:{value}", serde_json::Value::from(name.as_str()))
    });
    let bytes = Bytes::from(format!("{{{}}}", fields.collect::<Vec<_>>().join(",")));
    if bytes.len() > MANIFEST_MAX {
        return Err(too_many(what, "their list would be larger than 4 MiB"));
    }
    Ok(Some(Manifest {
        digest: Digest::of(&bytes),
        media_type: OCI_IMAGE_INDEX_MEDIA_TYPE.into(),
        bytes,
        hold: list.and_then(|list| list.hold.clone()),
    }))
}

/// The entries of a list, each digest once.
fn entries(what: &str, bytes: &[u8]) -> Result<Vec<Referrer>, Error> {
    let listed: Listed = serde_json::from_slice(bytes).map_err(|_| no_list(what))?;
    let listed = listed.manifests.map_or_else(Vec::new, |listed| listed.0);
    if listed.len() > LISTED_MAX {
        return Err(too_many(what, "more than 100"));
    }
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in listed {
        let digest = digest_of(what, &digest_text(entry).unwrap_or_default())?;
        if seen.insert(digest) {
            let entry = entry.get().to_owned();
            found.push(Referrer {
                digest,
                entry,
                hold: None,
            });
        }
    }
    Ok(found)
}

/// Whether an answer can mean that there is no API. One that came from elsewhere, by another path than the API's, is a web page's.
fn may_be_no_api(reply: &Reply) -> bool {
    match reply.status().as_u16() {
        201..=400 | 404..=406 | 410 | 501 => true,
        _ => reply.elsewhere && is_astray(&reply.response),
    }
}

/// Whether a redirect of the API led to something that is none.
pub(crate) fn is_astray(response: &Response) -> bool {
    !response.url().path().contains("/referrers/")
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

fn digest_text(entry: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Named>(entry.get()).ok()?.digest
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

fn no_list(what: &str) -> Error {
    unsupported(what, "it is no list of referrers")
}

fn too_many(what: &str, why: &str) -> Error {
    let message = format!("{what}: {why}; remove those that are no longer needed");
    Error::terminal(Reason::TooLarge, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn list(names: &[&str]) -> Manifest {
        let manifests: Vec<Value> = names.iter().map(|name| entry(name)).collect();
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": manifests,
            "annotations": {"kept": "yes"},
        });
        let bytes = Bytes::from(document.to_string());
        Manifest::read("x", bytes, None, None, None).unwrap()
    }

    fn entry(name: &str) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7,
            "digest": Digest::of(name.as_bytes()).to_string(), "artifactType": "application/x",
        })
    }

    fn names(manifest: &Manifest) -> Vec<Digest> {
        let found = manifest.referrers("x").unwrap();
        found.iter().map(|referrer| referrer.digest).collect()
    }

    #[test]
    fn a_list_keeps_what_it_has_and_gets_what_it_lacks() {
        let added = list(&["a", "b", "b"]).referrers("x").unwrap();
        assert_eq!(added.len(), 2);
        let merged = list_with("x", Some(&list(&["own", "a"])), &added).unwrap();
        let merged = merged.unwrap();
        assert_eq!(
            names(&merged),
            ["own", "a", "b"].map(|name| Digest::of(name.as_bytes()))
        );
        assert!(String::from_utf8_lossy(&merged.bytes).contains("kept"));
        assert_eq!(list_with("x", Some(&merged), &added).unwrap(), None);
        let first = list_with("x", None, &added).unwrap().unwrap();
        assert_eq!(
            names(&first),
            ["a", "b"].map(|name| Digest::of(name.as_bytes()))
        );
        assert_eq!(first.digest, Digest::of(&first.bytes));
    }

    #[test]
    fn a_list_of_nothing_may_be_written_as_null() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE_INDEX_MEDIA_TYPE}","manifests":null}}"#
        );
        let empty = Manifest::read("x", text.into(), Some("application/json"), None, None).unwrap();
        assert_eq!(empty.referrers("x").unwrap(), []);
        let added = list(&["a"]).referrers("x").unwrap();
        let merged = list_with("x", Some(&empty), &added).unwrap().unwrap();
        assert_eq!(names(&merged), [Digest::of(b"a")]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let image = Manifest {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            ..list(&["a"])
        };
        assert!(image.referrers("x").is_err());
        assert!(list_with("x", Some(&image), &list(&["a"]).referrers("x").unwrap()).is_err());
        let long: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        assert_eq!(
            list(&long).referrers("x").unwrap_err().reason,
            Reason::TooLarge
        );
    }

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

        #[test]
        fn any_bytes_are_a_list_or_refused(noise: Vec<u8>, field in "\\PC{0,10}", inner in "\\[\\]|\\{\\}|7|\\[7\\]|\\[\\{\\}\\]|\\[\\{\"digest\":7\\}\\]|\\[\\{\"digest\":\"x\"\\}\\]") {
            let near = format!(r#"{{"schemaVersion":2,{}:1,"manifests":{inner}}}"#, Value::from(field));
            for bytes in [noise, near.into_bytes()] {
                let _ = entries("x", &bytes);
                let list = Manifest { bytes: bytes.into(), ..list(&[]) };
                let added = super::tests::list(&["new"]).referrers("x").unwrap();
                if let Ok(Some(merged)) = list_with("x", Some(&list), &added) {
                    let merged: Value = serde_json::from_slice(&merged.bytes).unwrap();
                    let before: Value = serde_json::from_slice(&list.bytes).unwrap();
                    let (merged, before) = (merged["manifests"].as_array().unwrap(), before["manifests"].as_array().unwrap());
                    prop_assert_eq!(&merged[..before.len()], &before[..]);
                    prop_assert_eq!(&merged[before.len()], &entry("new"));
                }
            }
        }
    }

    #[test]
    fn a_list_of_any_length_costs_no_more_than_its_bytes() {
        let begun = std::time::Instant::now();
        let filling = r#"{"a":0},"#.repeat(400_000);
        let long = format!(r#"{{"schemaVersion":2,"manifests":[{filling}{{}}]}}"#);
        assert_eq!(
            entries("x", long.as_bytes()).unwrap_err().reason,
            Reason::TooLarge
        );
        let long = Manifest {
            bytes: long.into(),
            ..list(&[])
        };
        assert_eq!(
            list_with("x", Some(&long), &[]).unwrap_err().reason,
            Reason::TooLarge
        );
        let wide: Vec<_> = (0..200_000).map(|n| format!(r#""{n}":0,"#)).collect();
        let wide = wide.concat();
        let wide = Manifest {
            bytes: format!(r#"{{{wide}"manifests":[]}}"#).into(),
            ..list(&[])
        };
        assert!(list_with("x", Some(&wide), &[]).is_err());
        assert!(next_link(&"<a>; rel=x, ".repeat(40_000)).is_none());
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }
}
