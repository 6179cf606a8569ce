//! Keys and states of what the client remembers of registries' content.

use crate::image::{Digest, Repository};
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::CredentialKey;

/// A manifest as one credential was shown it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ManifestKey {
    pub(crate) credential: CredentialKey,
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// A blob of a repository, as one credential brings it there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BlobKey {
    pub(crate) credential: CredentialKey,
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// What is known of a blob that was to be brought to a repository. Child manifests are not remembered: they are put each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobState {
    /// It is there. Else the registry refused a manifest for want of content since, and what a HEAD says of it is not believed.
    pub(crate) there: bool,
    /// The registry said last that it mounted it.
    pub(crate) mounted: bool,
}

impl BlobKey {
    pub(crate) fn of(access: &Access<'_>, digest: Digest) -> Self {
        Self {
            credential: access.credential.key(),
            repository: access.repository.clone(),
            digest,
        }
    }
}
