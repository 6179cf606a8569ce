//! What an image's labels do to the tags that it gets. Registries that do not act on labels are not asked; what cannot be read hinders
//! nothing.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::Operation;
use crate::image::Repository;
use crate::registry::{Credential, Manifest};
use crate::steps::{Flow, TagLabels};

impl Operation {
    /// Reads the labels of an image of the float's repository meanwhile, so that they are known when they are asked for.
    pub(super) fn read_labels_ahead(&self, manifest: &Manifest, push: Credential) {
        if manifest.is_large() {
            return;
        }
        let (registry, progress) = (self.tools.registry.clone(), Arc::clone(&self.progress));
        let (repository, manifest) = (self.repository().clone(), manifest.clone());
        let reading = tokio::spawn(async move {
            let held = push.at(&repository);
            let labels = registry.tag_expiry(&repository, held, &manifest, true, &progress);
            labels.await;
        });
        *self.ahead.lock() = Some(AbortOnDropHandle::new(reading));
    }

    /// What the labels of an image that `held` has do to tags of the float's repository.
    pub(super) async fn labels_of(
        &self,
        held: &Repository,
        manifest: &Manifest,
        credential: &Credential,
        push: bool,
    ) -> Flow<TagLabels> {
        let (registry, target) = (&self.tools.registry, self.repository());
        let labels =
            registry.tag_expiry(target, credential.at(held), manifest, push, &self.progress);
        // Boxed: most images have none, and a step is kept for each image in work.
        let labels = Box::pin(labels);
        self.read(async { Ok(labels.await) }).await
    }
}
