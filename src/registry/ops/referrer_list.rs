//! Lists of referrers, as a registry answers them and as a fallback tag holds them.
//!
//! Guaranteed: an entry stays in a list as it was written.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::first_of::FirstOf;
use super::manifest::{Manifest, digest_of};
use super::media_type::unsupported;
use crate::image::Digest;
use crate::machine::Reason;
use crate::registry::error::Error;
use crate::registry::host::reserve::Hold;
use crate::registry::wire::reply::MANIFEST_MAX;

/// The longest list of referrers.
pub(crate) const LISTED_MAX: usize = 100;
/// The longest list that is extended: others than this program write there too.
const EXTENDED_MAX: usize = 10_000;
/// The fields of such a list.
const FIELDS_MAX: usize = 100;

/// A referrer, as listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Referrer {
    /// The digest of its manifest.
    pub digest: Digest,
    /// The whole entry as it was written, for another list.
    pub(crate) entry: String,
    /// The memory that the list takes, where it is large.
    pub(crate) hold: Option<Hold>,
}

/// What is read of a list; entries are not read further than they have to be.
#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    manifests: Option<FirstOf<&'a RawValue, LISTED_MAX>>,
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
    /// It is not an OCI index, or lists more than 100.
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
pub(crate) fn entries(what: &str, bytes: &[u8]) -> Result<Vec<Referrer>, Error> {
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

fn digest_text(entry: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Named>(entry.get()).ok()?.digest
}

fn no_list(what: &str) -> Error {
    unsupported(what, "it is no list of referrers")
}

pub(crate) fn too_many(what: &str, why: &str) -> Error {
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

    proptest! {
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
        crate::cost::is_cheap(|| {
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
        });
    }
}
