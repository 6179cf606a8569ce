//! The custom resource `promotionrequests.ci.openshift.io`, v1alpha1: what people write, and what they read back.
//!
//! The doc comments below are the descriptions in the CRD, so they speak to its readers. [`status`](self::status) turns the
//! object into the machine's terms and back; [`conditions`](self::conditions) says the same in conditions.
//!
//! Status fields that this version does not know are kept as they are: a newer controller's notes survive an older one's save.

pub mod conditions;
mod crd;
pub mod labels;
pub mod references;
mod rules;
pub mod status;
mod text;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::Phase;
pub use crd::{crd, crd_yaml};

/// Fields of a newer version, carried through untouched.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// What is to be promoted, and how.
#[expect(
    clippy::duplicated_attributes,
    reason = "columns of one type are no duplicates"
)]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "ci.openshift.io",
    version = "v1alpha1",
    kind = "PromotionRequest",
    plural = "promotionrequests",
    singular = "promotionrequest",
    shortname = "preq",
    category = "ci",
    namespaced,
    doc = "Promotes images to floating tags without ever leaving one dangling.",
    status = "PromotionRequestStatus",
    derive = "PartialEq",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Done", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Floats", type_ = "string", json_path = ".spec.images[*].float"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Progressing")].reason"#
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Started",
        type_ = "date",
        json_path = ".status.startTime",
        priority = 1
    ),
    printcolumn(
        name = "Bytes",
        type_ = "integer",
        json_path = ".status.images[*].copiedNow",
        priority = 1
    ),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.images[*].nextAttemptTime",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Progressing")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::unchanged("self.pullSecret").field_path(".pullSecret"),
    validation = rules::unchanged("self.pushSecret").field_path(".pushSecret"),
    validation = rules::unchanged("self.undo").field_path(".undo"),
    validation = rules::unchanged("self.incoming").field_path(".incoming"),
    validation = rules::only_removed("self.gates", "name").field_path(".gates"),
    validation = (
        rules::STREAM_NAMESPACE, rules::STREAM_NAMESPACE_MESSAGE
    ),
    validation = rules::unchanged("self.imageStreamNamespace").field_path(".imageStreamNamespace"),
    validation = (
        "self.onFailure != 'Rollback' || self.latch == 'Together'",
        "onFailure Rollback needs latch Together; set latch to Together, or onFailure to Hold"
    )
)]
pub struct PromotionRequestSpec {
    /// The images, 1 to 256, each with the float it goes to; no float twice. Cannot change.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["float".into()]), validation = rules::unchanging_in_order())]
    pub images: Vec<ImageSpec>,
    /// Whether all floats move together, once everything is staged and backed up, or each when it is ready.
    #[serde(default)]
    #[x_kube(validation = rules::unchanging())]
    pub latch: Latch,
    /// What happens to floats already moved when an image of the request fails after the commit. Rollback needs latch Together.
    #[serde(default)]
    #[x_kube(validation = rules::unchanging())]
    pub on_failure: OnFailure,
    /// Whether signatures, attestations and other referrers of an image are copied with it. Require fails the image if one of
    /// them cannot be copied; an image without referrers is fine.
    #[serde(default)]
    #[x_kube(validation = rules::unchanging())]
    pub referrers: Referrers,
    /// Promote, or only Plan: look at everything, write nothing.
    #[serde(default)]
    #[x_kube(validation = rules::unchanging())]
    pub mode: Mode,
    /// The Secret, in this namespace, to read sources with. Without it pushSecret serves, else no credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<SecretRef>,
    /// The Secret, in this namespace, to read and write the floats' repositories with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_secret: Option<SecretRef>,
    /// How often a step of an image may fail over its life; waiting for a registry does not count.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1, max = 20))]
    #[x_kube(validation = rules::unchanging())]
    pub attempts: i32,
    /// How long the request may take, queueing included, before it fails; a committed one has 600 s more.
    #[serde(default = "default_deadline_seconds")]
    #[schemars(range(min = 60, max = 86_400))]
    #[x_kube(validation = rules::unchanging())]
    pub deadline_seconds: i32,
    /// How long the finished request is kept.
    #[serde(default = "default_ttl_seconds")]
    #[schemars(range(min = 0, max = 7_776_000))]
    pub ttl_seconds_after_finished: i32,
    /// Holds the request back until it is committed; the deadline starts anew afterwards.
    #[serde(default)]
    pub suspend: bool,
    /// Ends the request unless it is committed already. Cannot be taken back.
    #[serde(default)]
    #[x_kube(validation = rules::forbidden(
        "self || !oldSelf",
        "cancel cannot be taken back; create another request instead"
    ))]
    pub cancel: bool,
    /// What has to be removed before the floats may move, at most 8: one entry for each test, scanner or person. The request is staged
    /// and backed up, then waits until none is left, at most until its deadline. Entries can be removed, never added.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gates: Vec<Gate>,
    /// Takes floats back: what they are moved off is pinned by tags that end in __broken, so that nobody who reverts a float by its
    /// prune tags comes upon it again. Cannot change.
    #[serde(default, skip_serializing_if = "is_default")]
    pub undo: bool,
    /// Keep, or Remove: the tag that an image was staged on is deleted once its float was seen to hold the image. For floats that are
    /// written once, each of which would leave one behind. Where the registry cannot delete a tag alone, it stays and that is told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub incoming: Incoming,
    /// The namespace of the image streams that imageStreamTag names. Cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub image_stream_namespace: Option<String>,
}

/// A field that is left out where it says nothing. None of those added later has a default in the schema: a controller that does not
/// know the field would leave every request alone.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_attempts() -> i32 {
    5
}

fn default_deadline_seconds() -> i32 {
    7200
}

fn default_ttl_seconds() -> i32 {
    604_800
}

/// One image and its float.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Where the image is read: HOST[:PORT]/REPOSITORY@sha256:DIGEST, or :TAG, which is resolved once.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = (rules::SOURCE, rules::SOURCE_MESSAGE))]
    pub source: String,
    /// The moving tag it goes to: HOST[:PORT]/REPOSITORY:TAG, the tag at most 98 characters.
    #[schemars(length(min = 1, max = 363))]
    #[x_kube(
        validation = (rules::FLOAT, rules::FLOAT_MESSAGE),
        validation = (rules::FLOAT_NOT_RESERVED, rules::FLOAT_NOT_RESERVED_MESSAGE),
        validation = (rules::FLOAT_NOT_DERIVED, rules::FLOAT_NOT_DERIVED_MESSAGE)
    )]
    pub float: String,
    /// What the float has to be on: sha256:DIGEST, or None where there must be no such tag yet. It is looked at before the commit, and
    /// again before the float moves; on anything else the image fails. A float that is at the source already stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    #[x_kube(validation = (rules::REPLACES, rules::REPLACES_MESSAGE))]
    pub replaces: Option<String>,
    /// The tag of an image stream, STREAM:TAG, that is set to the promoted image once the floats have moved: a reference, by digest. A
    /// rule of the controller's policy has to grant it. Each stream tag once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 128))]
    #[x_kube(validation = (rules::STREAM_TAG, rules::STREAM_TAG_MESSAGE))]
    pub image_stream_tag: Option<String>,
}

/// What somebody removes when the floats may move, as far as it is theirs to say.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Gate {
    /// Its name: letters, digits, '-', '.' and '/'.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = (rules::GATE, rules::GATE_MESSAGE))]
    pub name: String,
}

/// A Secret of type kubernetes.io/dockerconfigjson in the request's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// When the floats of a request move.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latch {
    /// None before every image is staged and backed up.
    #[default]
    Together,
    /// Each as soon as it is staged and backed up.
    Independently,
}

/// What becomes of floats already moved when another image fails.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// They stay.
    #[default]
    Hold,
    /// Each that is still at its source goes back to what it was on, if it was on anything; what could not be taken back is named.
    Rollback,
}

/// What becomes of the tag that an image was staged on.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Incoming {
    /// It stays; the next promotion of its float overwrites it.
    #[default]
    Keep,
    /// It is deleted once the float was seen to hold the image.
    Remove,
}

/// What is done about referrers.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Referrers {
    /// Nothing.
    #[default]
    Ignore,
    /// Copied where possible; a warning where it is not.
    BestEffort,
    /// Every one that is found is copied before the image counts as staged, or the image fails. That none is found is no failure.
    Require,
}

/// Whether anything is written.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Yes.
    #[default]
    Promote,
    /// No: the request ends as Planned.
    Plan,
}

/// Where a request stands.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PromotionRequestStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The place in the order of requests: the resourceVersion at which a controller first saw this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub order: Option<i64>,
    /// Set once and for all when the floats may move: from here on the request runs to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<bool>,
    /// Set when floats already moved are being rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<bool>,
    /// The least advanced phase of the unfinished images; Referencing while image stream tags are set; then Failed, Cancelled, Posted or
    /// Planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub phase: Option<String>,
    /// Finished images of all, as in 2/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub progress: Option<String>,
    /// When the request claimed its floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it fails unless it is committed by then; during a rollback, when that ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Progressing, Staged, Complete and Failed, and for tools that read kstatus Reconciling and Stalled; Referenced and Expiring if they
    /// apply. What there is to say, Progressing says, and Failed where it is True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Each image, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub images: Vec<ImageStatus>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// Where one image stands.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The float, as in the spec.
    #[schemars(length(max = 363))]
    pub float: String,
    /// What is true of it now.
    #[schemars(length(max = 32))]
    pub phase: String,
    /// Why it waits or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The same, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
    /// What the source named when it was resolved; never changes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The float had the source digest already; nothing was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<bool>,
    /// There was no float before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_promotion: Option<bool>,
    /// Set once and for all when this float may move, with latch Independently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<bool>,
    /// The tag that pins the promoted image, until it is known whether its float was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), regex(pattern = rules::PRUNE_TAG))]
    pub rollback_tag: Option<String>,
    /// What the float showed before it moved, newest last, each with the tag that pins it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub displaced: Vec<PinStatus>,
    /// What the float showed, with mode Plan: no tag pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = "^sha256:[a-f0-9]{64}$"))]
    pub would_displace: Option<String>,
    /// What only other tags of the float still held, with the tag that pins it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rescued: Vec<PinStatus>,
    /// When the pins of a backed-up image were last seen in place. They are checked again before the float moves if that was an
    /// hour ago, or if this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_time: Option<Time>,
    /// The promoted image, by digest: HOST/REPOSITORY@sha256:DIGEST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 330))]
    pub promoted: Option<String>,
    /// What became of its image stream tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferenceStatus>,
    /// Bytes written to the float's repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes_copied: Option<i64>,
    /// Bytes that the copy which runs now has written; absent when none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub copied_now: Option<i64>,
    /// Bytes that this copy writes in all, as far as is known: what is found at the target is taken off as it is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub copy_total: Option<i64>,
    /// Launches that failed or were cut off, over the image's life; the running one counts until it succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempts: Option<i32>,
    /// When it is tried again, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
    /// Until when an unanswered tag write may still land.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_until: Option<Time>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// A source, resolved.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its digest.
    #[schemars(length(max = 71), regex(pattern = "^sha256:[a-f0-9]{64}$"))]
    pub digest: String,
    /// Its media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub media_type: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// What became of a tag of an image stream.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceStatus {
    /// Set, Superseded (a newer request has set it, or the float moved on) or Failed.
    #[schemars(length(max = 16))]
    pub state: String,
    /// The end of what it referred to before, if to anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 96))]
    pub replaced: Option<String>,
}

/// A digest and the tag that pins it.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PinStatus {
    /// The digest.
    #[schemars(length(max = 71), regex(pattern = "^sha256:[a-f0-9]{64}$"))]
    pub digest: String,
    /// The prune tag that pins it, in the float's repository.
    #[schemars(length(max = 128), regex(pattern = rules::PRUNE_TAG))]
    pub prune_tag: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl PromotionRequest {
    /// The phase of the whole, where it has one that this version knows.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        Phase::parse(self.status.as_ref()?.phase.as_deref()?)
    }

    /// Whether nothing more will happen, by its status.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.phase().is_some_and(Phase::is_finished)
    }

    /// Whether nothing more will happen to its floats, by its status.
    #[must_use]
    pub fn has_done_with_floats(&self) -> bool {
        self.phase().is_some_and(Phase::has_done_with_floats)
    }

    /// Whether the float of this image of it may have moved, or still may whatever is asked.
    #[must_use]
    pub fn has_committed(&self, image: &ImageStatus) -> bool {
        let committed = match self.spec.latch {
            Latch::Together => self.status.as_ref().and_then(|status| status.committed),
            Latch::Independently => image.committed,
        };
        committed == Some(true)
    }
}
