//! What an image's labels do to the tags that it gets. Registries that do not act on labels are not asked; what cannot be read hinders
//! nothing.

use super::Operation;
use crate::image::Repository;
use crate::registry::{Credential, Manifest};
use crate::steps::{Flow, TagLabels};

impl Operation {
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
