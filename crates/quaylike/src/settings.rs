//! What a test may switch, at the start or at run time.
//!
//! In and out as JSON under `/_control/settings`, durations in milliseconds. An unknown field is an error.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::auth::Auth;

/// How a registry is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// What may be switched at run time.
    pub settings: Settings,
    /// Who may do what.
    pub auth: Auth,
    /// Whether `/_control/` answers. Whoever reaches the listener may use it.
    pub control_api: bool,
    /// Requests kept in the log.
    pub log_entries: usize,
}

/// The registry that it behaves like where registries differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// quay: `MANIFEST_INVALID` names the first unknown blob, a GET by tag converts to schema 1, tag pages of at most 100.
    #[default]
    Quay,
    /// CNCF distribution: `MANIFEST_BLOB_UNKNOWN` for each unknown blob, 400 without a fitting `Accept`.
    Distribution,
    /// Harbor: as distribution; a manifest that is not there is `NOT_FOUND`, an immutable tag a 412 `PRECONDITION`.
    Harbor,
    /// ECR: as distribution; an immutable tag is a 400 `TAG_INVALID`.
    Ecr,
}

/// What a DELETE of a tag does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deletion {
    /// It deletes that tag, as on quay and distribution.
    #[default]
    OfTheTag,
    /// It deletes what the tag holds, and so all tags of it.
    OfTheImage,
    /// It is refused.
    Refused,
}

/// What may be switched at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)]
pub struct Settings {
    /// The registry that it behaves like.
    pub dialect: Dialect,
    /// What a DELETE of a tag does.
    pub deletion: Deletion,
    /// Delete content the moment nothing holds it.
    pub collect: bool,
    /// How long content pushed without a tag is held.
    #[serde(rename = "hold_ms", with = "millis")]
    pub hold: Duration,
    /// Refuse manifests whose blobs or children are missing.
    pub check: bool,
    /// Whether there is a referrers API: without it a subject holds nothing, and its referrers need a tag that lists them.
    pub referrers: bool,
    /// Whether a PUT of a manifest with a subject is answered with `OCI-Subject`, where there is a referrers API; quay: no.
    pub oci_subject: bool,
    /// Referrers on one page.
    pub referrers_page: usize,
    /// Keep only digest and length of pushed blobs over 64 KiB; reading one back is a 500.
    pub discard_blobs: bool,
    /// Redirect every blob GET to the second listener, as quay.io does to its object storage.
    pub redirect_blobs: bool,
    /// How long a read of a manifest by digest is answered from a cache; quay: 300 s.
    #[serde(rename = "stale_manifests_ms", with = "millis")]
    pub stale_manifests: Duration,
    /// The same for blobs; quay: 60 s.
    #[serde(rename = "stale_blobs_ms", with = "millis")]
    pub stale_blobs: Duration,
    /// Take an index whose children are missing, and say so at `/v2/`: quay's sparse indexes.
    pub sparse: bool,
    /// A digest resolves only where a tag or a grace holds it or an index that lists it, as on quay: not what is two levels below.
    pub one_level: bool,
    /// Act on the labels `quay.expires-after` and `quay.immutable` of images whose tags are set, in quay's dialect.
    pub labels: bool,
    /// Requests a second for manifests and blobs together on HTTP/1.1, beyond which 429 is answered; none at 0. Quay: 50. On each
    /// connection of HTTP/2 it is ten times that; tag lists have a tenth of it, tokens more than twice.
    pub rate: u32,
    /// Look for dangling tags after every change. Costs a walk over the repository for each.
    pub audit: bool,
    /// Waited before every request.
    #[serde(rename = "latency_ms", with = "millis")]
    pub latency: Duration,
    /// Life of a bearer token.
    #[serde(rename = "token_life_ms", with = "millis")]
    pub token_life: Duration,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            auth: Auth::default(),
            control_api: true,
            log_entries: 200_000,
        }
    }
}

impl Options {
    /// With this authentication.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// With these settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            dialect: Dialect::Quay,
            deletion: Deletion::OfTheTag,
            collect: true,
            hold: Duration::from_hours(1),
            check: true,
            referrers: true,
            oci_subject: true,
            referrers_page: 100,
            discard_blobs: false,
            redirect_blobs: false,
            stale_manifests: Duration::ZERO,
            stale_blobs: Duration::ZERO,
            sparse: false,
            one_level: false,
            labels: true,
            rate: 0,
            audit: false,
            latency: Duration::ZERO,
            token_life: Duration::from_hours(1),
        }
    }
}

impl Settings {
    /// Whether labels act on tags: quay alone knows them.
    pub(super) fn has_labels(&self) -> bool {
        self.labels && self.dialect == Dialect::Quay
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        // Bounded so that adding it to a clock cannot overflow.
        let bounded = u64::deserialize(deserializer)?.min(100 * 365 * 86_400_000);
        Ok(Duration::from_millis(bounded))
    }
}
