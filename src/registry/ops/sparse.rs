//! Registries that accept an index whose children they do not have (quay's sparse indexes): there a tag that is set proves nothing.
//!
//! To make sure that everything below an index is there, each child is put again: a GET or HEAD by digest may be answered by a cache.
//! Other registries are not asked.

use super::client::RegistryClient;
use super::manifest::Manifest;
use crate::image::Repository;
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;

impl RegistryClient {
    /// Whether all below a manifest that a repository has is there, as far as its PUT would not tell.
    pub(crate) async fn is_whole(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let endpoint = self.endpoint(repository)?;
        let access = Access::new(&endpoint, credential, repository, true);
        if !self.takes_sparse(&access, manifest, progress).await? {
            return Ok(true);
        }
        // Boxed: few indexes need it.
        let own = credential.at(repository);
        let copy = self.copy(own, manifest, own, progress);
        let Err(error) = Box::pin(copy).await else {
            return Ok(true);
        };
        match error.reason {
            Reason::SourceIncomplete | Reason::ManifestRejected => Ok(false),
            // One that is there and would not be promoted: it is held as it is.
            Reason::UnsupportedManifest => Ok(true),
            _ => Err(error),
        }
    }

    /// Whether a registry would take this manifest without what it lists.
    pub(crate) async fn takes_sparse(
        &self,
        access: &Access<'_>,
        manifest: &Manifest,
        progress: &Progress,
    ) -> Result<bool, Error> {
        if !manifest.is_index() || !self.is_quay(access) {
            return Ok(false);
        }
        let key = access.endpoint.address.clone();
        if let Some(known) = self.0.sparse.get(&key) {
            return Ok(known);
        }
        let sparse = self.transport().greets_sparse(access, progress).await;
        let sparse = sparse?;
        self.0.sparse.insert(key, sparse);
        Ok(sparse)
    }
}
