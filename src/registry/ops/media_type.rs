//! What a manifest is: its media type, from header, body and content.

use std::borrow::Cow;

use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::value::RawValue;

use super::first_of::FirstOf;
use crate::machine::Reason;
use crate::registry::error::{Error, one_line};

/// The fields that tell what a manifest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shape<'a> {
    pub(crate) schema_version: Option<i64>,
    media_type: Option<String>,
    /// Some write a list of nothing as null.
    #[serde(default, borrow, deserialize_with = "there")]
    manifests: Option<&'a RawValue>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
}

/// What a descriptor, or the first of a list, says that it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
}

/// A field that is there, also where it is null.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

pub(crate) fn unsupported(what: &str, why: &str) -> Error {
    let message =
        format!("{what} cannot be promoted: {why}; rebuild it as an OCI or docker schema 2 image");
    Error::terminal(Reason::UnsupportedManifest, message)
}

pub(crate) fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
    )
}

pub(crate) fn is_supported(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_IMAGE_INDEX_MEDIA_TYPE
            | IMAGE_MANIFEST_LIST_MEDIA_TYPE
            | OCI_IMAGE_MEDIA_TYPE
            | IMAGE_MANIFEST_MEDIA_TYPE
    )
}

impl Shape<'_> {
    /// The media type of what it holds, where nobody tells it: docker's where its config, or the first manifest it lists, is.
    fn media_type(&self) -> Option<&'static str> {
        let is_dockers = |entry: &RawValue| {
            let typed: Option<Typed> = serde_json::from_str(entry.get()).ok();
            let media_type = typed.and_then(|typed| typed.media_type);
            media_type.is_some_and(|media_type| media_type.starts_with("application/vnd.docker."))
        };
        if self.schema_version != Some(2) {
            return None;
        }
        let list = match (self.manifests, self.config) {
            (Some(list), None) => list,
            (Some(list), _) if list.get() != "null" => list,
            (_, Some(config)) if is_dockers(config) => return Some(IMAGE_MANIFEST_MEDIA_TYPE),
            (_, Some(_)) => return Some(OCI_IMAGE_MEDIA_TYPE),
            (None, None) => return None,
        };
        let listed: FirstOf<&RawValue, 0> = serde_json::from_str(list.get()).ok()?;
        Some(if listed.0.first().copied().is_some_and(is_dockers) {
            IMAGE_MANIFEST_LIST_MEDIA_TYPE
        } else {
            OCI_IMAGE_INDEX_MEDIA_TYPE
        })
    }
}

/// The media type that header and body agree on.
pub(crate) fn media_type(
    what: &str,
    shape: &Shape<'_>,
    content_type: Option<&str>,
) -> Result<String, Error> {
    let header = content_type
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .filter(|value| {
            !matches!(
                value.as_str(),
                "" | "application/json"
                    | "application/octet-stream"
                    | "binary/octet-stream"
                    | "text/plain"
            )
        });
    let body = shape.media_type.clone().filter(|body| !body.is_empty());
    let media_type = match (header, body) {
        (Some(header), Some(body)) if header != body => {
            let (header, body) = (one_line(&header, 60), one_line(&body, 60));
            return Err(unsupported(
                what,
                &format!("it is sent as '{header}' and says it is '{body}'"),
            ));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => match shape.media_type() {
            Some(held) => held.to_owned(),
            None => return Err(unsupported(what, "its media type is not told")),
        },
    };
    if !is_supported(&media_type) {
        return Err(unsupported(
            what,
            &format!("its media type is '{}'", one_line(&media_type, 80)),
        ));
    }
    let index = matches!(
        media_type.as_str(),
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
    );
    let lists = match shape.manifests.map(RawValue::get) {
        Some("null") => index,
        list => list.is_some(),
    };
    let holds = shape.config.is_some() || shape.layers.is_some();
    if lists != index || holds == index {
        return Err(unsupported(what, "its content is not of its media type"));
    }
    Ok(media_type)
}
