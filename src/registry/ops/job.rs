//! One image on its way from one repository to another.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::known::BlobKey;
use crate::image::Digest;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Remote;
use crate::registry::endpoint::Endpoint;
use crate::registry::host::progress::Progress;

/// One image on its way from one repository to another.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) from: Remote<'a>,
    pub(crate) to: Remote<'a>,
    pub(crate) from_at: Arc<Endpoint>,
    pub(crate) to_at: Arc<Endpoint>,
    pub(crate) progress: &'a Progress,
    /// Whether the target is written to, or only looked at.
    pub(crate) writes: bool,
    /// Whether mounting is still worth a try.
    pub(crate) mounts: AtomicBool,
    /// The configs whose labels count for the tags of this image.
    pub(crate) configs: Mutex<HashSet<Digest>>,
    /// Whether its labels will be asked for.
    pub(crate) labelled: bool,
    /// Of the configs, the one that is read first for them.
    pub(crate) first_config: Mutex<Option<Digest>>,
}

impl Job<'_> {
    pub(crate) fn source(&self) -> Access<'_> {
        Access::new(
            &self.from_at,
            self.from.credential,
            self.from.repository,
            false,
        )
    }

    pub(crate) fn target(&self) -> Access<'_> {
        Access::new(
            &self.to_at,
            self.to.credential,
            self.to.repository,
            self.writes,
        )
    }

    pub(crate) fn blob_key(&self, digest: Digest) -> BlobKey {
        BlobKey::of(&self.target(), digest)
    }
}
