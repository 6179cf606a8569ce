//! The labels and annotations that quay acts on: `quay.expires-after` and `quay.immutable`. Pure; nothing else of a config or manifest is
//! kept.

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::manifest::{Blob, Descriptor, Manifest};
use crate::registry::error::one_line;
use crate::steps::TagLabels;

/// The most of a label's value that is shown.
const VALUE_MAX: usize = 40;
/// The longest value that is compared with those of other children.
const COMPARED_MAX: usize = 256;

/// The labels that count, as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelValues {
    pub(crate) expires_after: Option<String>,
    pub(crate) immutable: Option<String>,
}

/// What of a manifest says what its labels are. Nothing else of it is kept, however much there is.
#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    config: Option<Descriptor<'a>>,
    #[serde(borrow)]
    annotations: Option<Labels<'a>>,
}

#[derive(Deserialize)]
struct Config<'a> {
    #[serde(borrow)]
    config: Option<LabelledConfig<'a>>,
}

#[derive(Deserialize)]
struct LabelledConfig<'a> {
    #[serde(rename = "Labels", borrow)]
    labels: Option<Labels<'a>>,
}

/// The labels, or annotations, that count.
#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(rename = "quay.expires-after", borrow)]
    expires_after: Option<&'a RawValue>,
    #[serde(rename = "quay.immutable", borrow)]
    immutable: Option<&'a RawValue>,
}

impl Labels<'_> {
    /// Their values, where they are text.
    fn written(&self) -> LabelValues {
        let text = |value: Option<&RawValue>| {
            let value: String = serde_json::from_str(value?.get()).ok()?;
            Some(value.chars().take(COMPARED_MAX).collect())
        };
        LabelValues {
            expires_after: text(self.expires_after),
            immutable: text(self.immutable),
        }
    }
}

impl LabelValues {
    /// What both have with the same value.
    pub(crate) fn shared_with(self, other: &Self) -> Self {
        let shared = |own: Option<String>, other: &Option<String>| {
            own.filter(|own| Some(own) == other.as_ref())
        };
        Self {
            expires_after: shared(self.expires_after, &other.expires_after),
            immutable: shared(self.immutable, &other.immutable),
        }
    }

    /// Whether nothing else can add to them.
    pub(crate) fn is_complete(&self) -> bool {
        self.expires_after.is_some() && self.immutable.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and where they say nothing what `others` say.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            expires_after: self.expires_after.or(others.expires_after),
            immutable: self.immutable.or(others.immutable),
        }
    }

    pub(crate) fn meant(&self) -> TagLabels {
        let immutable = self.immutable.as_deref().map(str::trim);
        TagLabels {
            expires_after: self.expires_after.as_deref().and_then(meant),
            immutable: immutable.is_some_and(|value| value.eq_ignore_ascii_case("true")),
        }
    }
}

impl Manifest {
    /// The config of an image; none of an index, nor of an artifact that is no image.
    pub(crate) fn config(&self) -> Option<Blob> {
        let labelled: Labelled = serde_json::from_slice(&self.bytes).ok()?;
        let config = labelled.config.filter(|_| !self.is_index())?;
        let image = [IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE];
        image.contains(&&*config.media_type).then_some(())?;
        Some(Blob {
            digest: config.digest.parse().ok()?,
            size: u64::try_from(config.size).ok()?,
            elsewhere: false,
        })
    }

    /// The annotations that count: none but of an OCI image.
    pub(crate) fn annotated(&self) -> LabelValues {
        let labelled: Option<Labelled> = serde_json::from_slice(&self.bytes).ok();
        let annotations = labelled.and_then(|labelled| labelled.annotations);
        let annotations = annotations.filter(|_| self.media_type == OCI_IMAGE_MEDIA_TYPE);
        annotations.map_or_else(LabelValues::default, |annotations| annotations.written())
    }
}

/// The labels of a config that count.
pub(crate) fn written_in(config: &[u8]) -> LabelValues {
    let config: Option<Config> = serde_json::from_slice(config).ok();
    let labels = config.and_then(|config| config.config?.labels);
    labels.map_or_else(LabelValues::default, |labels| labels.written())
}

/// The value, if it says a time: an empty one takes a base image's label back, and quay ignores words.
fn meant(value: &str) -> Option<String> {
    let value = value.trim();
    value
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| one_line(value, VALUE_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::image::Digest;

    fn manifest(media_type: &str, config_type: &str, annotations: &str) -> Manifest {
        let digest = Digest::of(b"config");
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{config_type}","digest":"{digest}","size":6}},
            "layers":[],"annotations":{annotations}}}"#
        );
        Manifest::read("x", Bytes::from(body), Some(media_type), None, None).unwrap()
    }

    #[test]
    fn the_label_is_that_of_the_configs_labels_and_says_a_time() {
        let value_of = |config: &[u8]| written_in(config).meant().expires_after;
        let config = |value: &str| {
            value_of(
                format!(r#"{{"config":{{"Labels":{{"quay.expires-after":{value}}}}}}}"#).as_bytes(),
            )
        };
        assert_eq!(config(r#""2d""#), Some("2d".into()));
        assert_eq!(config(r#"" 3w ""#), Some("3w".into()));
        for none in [r#""""#, r#""never""#, "7", "null"] {
            assert_eq!(config(none), None, "{none}");
        }
        for none in [
            "{}",
            r#"{"config":{}}"#,
            r#"{"config":{"Labels":null}}"#,
            "x",
        ] {
            assert_eq!(value_of(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn labels_count_for_images_alone() {
        let annotated = r#"{"quay.expires-after":"1h","other":"x"}"#;
        let image = manifest(OCI_IMAGE_MEDIA_TYPE, IMAGE_CONFIG_MEDIA_TYPE, annotated);
        assert_eq!(image.annotated().expires_after.as_deref(), Some("1h"));
        let config = Blob {
            digest: Digest::of(b"config"),
            size: 6,
            elsewhere: false,
        };
        assert_eq!(image.config(), Some(config));
        let empty = "application/vnd.oci.empty.v1+json";
        assert_eq!(manifest(OCI_IMAGE_MEDIA_TYPE, empty, "{}").config(), None);
    }

    #[test]
    fn an_image_is_immutable_where_the_label_says_true() {
        for (value, immutable) in [
            (r#""true""#, true),
            (r#""True ""#, true),
            (r#""false""#, false),
            (r#""""#, false),
            ("true", false),
        ] {
            let config = format!(r#"{{"config":{{"Labels":{{"quay.immutable":{value}}}}}}}"#);
            let labels = written_in(config.as_bytes()).meant();
            assert_eq!(labels.immutable, immutable, "{value}");
            assert_eq!(labels.expires_after, None);
        }
    }

    #[test]
    fn an_index_has_what_its_children_have_with_the_same_value() {
        let written = |expires: &str, immutable: &str| LabelValues {
            expires_after: (!expires.is_empty()).then(|| expires.into()),
            immutable: (!immutable.is_empty()).then(|| immutable.into()),
        };
        for (one, other, shared) in [
            (
                written("2d", "true"),
                written("2d", "true"),
                written("2d", "true"),
            ),
            (
                written("2d", "true"),
                written("3d", "true"),
                written("", "true"),
            ),
            (written("2d", ""), written("", "true"), written("", "")),
        ] {
            assert_eq!(one.shared_with(&other), shared);
        }
    }
}
