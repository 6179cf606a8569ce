//! Labels that quay acts on when a tag is set: the tag's life, and whether it can be moved again.
//!
//! In: a manifest of the repository. Out: its annotations, else its config's labels; for an index those that all children have with
//! the same value.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::repository::Repository;
use crate::content::Digest;
use crate::manifest::OCI_MANIFEST;

/// The labels that count.
const COUNT: [&str; 2] = ["quay.expires-after", "quay.immutable"];
/// The largest config that is read.
const CONFIG_MAX: u64 = 4 << 20;

/// What labels do to a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TagRule {
    pub(super) life: Option<Duration>,
    pub(super) immutable: bool,
}

impl Repository {
    /// What a tag of this manifest is subject to.
    pub(super) fn tag_rule(&self, digest: Digest) -> TagRule {
        let labels = self.labels(digest);
        let life = labels.get(COUNT[0]).and_then(|value| life(value));
        let immutable = labels.get(COUNT[1]).is_some_and(|value| value == "true");
        TagRule { life, immutable }
    }

    fn labels(&self, digest: Digest) -> BTreeMap<&'static str, String> {
        let Some(kept) = self.manifests.get(&digest) else {
            return BTreeMap::new();
        };
        let manifest = &kept.content;
        if manifest.is_index() {
            let mut children = manifest.children.iter().map(|child| self.labels(*child));
            let mut shared = children.next().unwrap_or_default();
            for child in children {
                shared.retain(|name, value| child.get(name) == Some(&*value));
            }
            return shared;
        }
        let config = manifest
            .blobs
            .first()
            .and_then(|config| self.blobs.get(config));
        let config = config.filter(|config| config.content.length() <= CONFIG_MAX);
        let config: Vec<u8> = config.map_or_else(Vec::new, |config| {
            config.content.read(0..CONFIG_MAX).flatten().collect()
        });
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let mut labels = BTreeMap::new();
        for name in COUNT {
            let annotation = manifest.annotations.get(name);
            let annotation = annotation.filter(|_| manifest.media_type == OCI_MANIFEST);
            let value = annotation.unwrap_or(&config["config"]["Labels"][name]);
            if let Some(value) = value.as_str() {
                labels.insert(name, value.to_owned());
            }
        }
        labels
    }
}

/// The time that a value says: a number and a unit from seconds to weeks.
fn life(value: &str) -> Option<Duration> {
    let value = value.trim();
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * seconds))
}
