//! What a step asks of the world: registries, the record of our own writes, time.

use std::time::Duration;

use super::Flow;
use crate::image::{Digest, Reference, Repository, Tag};
use crate::machine::{Fault, Notice};

/// A manifest, as far as the order of requests depends on it. The engine's has the bytes, the model's is a digest.
pub trait Manifest {
    /// The digest of its bytes.
    fn digest(&self) -> Digest;
    /// What it is.
    fn media_type(&self) -> &str;
}

/// Where there are no bytes, a digest is all there is of an image.
impl Manifest for Digest {
    fn digest(&self) -> Digest {
        *self
    }

    fn media_type(&self) -> &'static str {
        "application/vnd.oci.image.manifest.v1+json"
    }
}

/// What an image's labels do to its tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagLabels {
    /// The lifetime of each tag, as written in `quay.expires-after`; none: no expiry.
    pub expires_after: Option<String>,
    /// `quay.immutable`: a tag cannot be moved once it is set.
    pub immutable: bool,
}

/// What became of a tag write, a deletion included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// The tag holds the digest; or is gone, as it was to be.
    Written,
    /// Nothing was written: the registry says that it does not have what the manifest refers to.
    ContentMissing(Fault),
    /// Nothing was written, for another reason.
    Refused(Fault),
    /// Nothing was written: the registry says that the tag cannot be moved.
    Immutable(Fault),
    /// Nobody knows yet what the tag will hold.
    Unsettled(Unsettled),
}

/// Why it is not known what came of a tag write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsettled {
    /// There was no answer: it may have landed, or may land still. Its float is quiet for so long.
    Unknown(String, Duration),
    /// It was not sent: another write of before may land on the tag for so long.
    Landing(String, Duration),
    /// It was not sent: the look before it is too old, or the right to write is no longer certain.
    NotSent,
}

/// The world, as a step asks it one thing at a time. Each method ends with an outcome where the step cannot go on: it was given up,
/// a read failed, there is no credential.
///
/// Its futures are driven as they are, never behind a `dyn`: where the implementation's are `Send`, so are the steps'.
#[allow(async_fn_in_trait)]
pub trait StepIo {
    /// What a manifest is here.
    type Manifest: Manifest;

    /// Where a tag of the float's repository is; none only where the registry itself says so to who may push.
    async fn look(&self, tag: &Tag) -> Flow<Option<Self::Manifest>>;

    /// What the source's repository has there; none only where the registry itself says so.
    async fn fetch(&self, reference: &Reference) -> Flow<Option<Self::Manifest>>;

    /// Ends the step where a source that is named by digest may not be promoted. Where that hangs on what it was staged as, its pins
    /// are looked at.
    async fn check_granted(&self, source: Digest) -> Flow<()>;

    /// A manifest of the float's repository, by digest; none also where a part of it is missing.
    async fn held(&self, digest: Digest) -> Flow<Option<Self::Manifest>>;

    /// What the labels of an image that the float's repository has do to its tags there.
    async fn labels(&self, manifest: &Self::Manifest) -> Flow<TagLabels>;

    /// Brings a manifest's content, and not yet itself, from the source's repository to the float's. Gives it back, unless it is so
    /// large that others waited for its memory meanwhile.
    async fn copy(&self, manifest: Self::Manifest) -> Flow<Option<Self::Manifest>>;

    /// Puts a tag of the float's repository. To be called directly after the look that it rests on.
    async fn put(&self, tag: &Tag, manifest: &Self::Manifest) -> Flow<Put>;

    /// Why no tag of the float's repository is deleted: its registry cannot, or takes the image with it. None: it deletes tags alone.
    async fn undeletable(&self) -> Flow<Option<String>>;

    /// Deletes a tag of the float's repository, and nothing else. To be called directly after the look that it rests on.
    async fn delete(&self, tag: &Tag) -> Flow<Put>;

    /// Brings what refers to the image after it; a notice where some of it could not be, and need not. Its requests, tag writes among
    /// them, are its own: they touch none of the float's tags.
    async fn bring_referrers(&self, source: Digest) -> Flow<Option<Notice>>;

    /// Whether we put a tag to this digest a moment ago, and nothing else since.
    async fn wrote(&self, tag: &Tag, digest: Digest) -> Flow<bool>;

    /// Whether a prune tag's stamp says a time long past.
    async fn is_old(&self, prune: &Tag) -> Flow<bool>;

    /// Waits.
    async fn pause(&self, duration: Duration) -> Flow<()>;

    /// Whether what a tag was seen on may be, after our own writes; else an old replica answered.
    fn believes(&self, repository: &Repository, tag: &Tag, digest: Option<Digest>) -> bool;

    /// Whether this process may write tags, for longer than a write takes.
    fn may_write(&self) -> bool;

    /// Forgets what is known of a repository's content: the next read asks its registry.
    fn forget(&self, repository: &Repository);

    /// Forgets the source's manifest.
    fn forget_source(&self, digest: Digest);

    /// The bytes written to the float's repository so far.
    fn bytes(&self) -> u64;
}
