//! What an image's labels do to the tags that it gets: told where they expire, refused where they could never be moved again.
//!
//! In come the manifest that is staged and the record of what its float was on; out come notices, or the end of the image. Registries
//! that do not act on labels are not asked; what cannot be read hinders nothing.

use super::{Flow, Operation};
use crate::image::Repository;
use crate::machine::{Class, Expiry, Fault, Notice, Outcome, Reason};
use crate::registry::{Credential, Manifest, TagLabels};

impl Operation {
    /// What the labels of the image do to its tags. Ends it where they make them immutable: its float could be promoted to once and
    /// never again, and neither could its `_incoming` be overwritten nor its prune tags be deleted.
    pub(super) async fn movable(&self, manifest: &Manifest) -> Flow<TagLabels> {
        let push = self.push()?;
        let labels = self.labels(self.repository(), manifest, &push, true);
        let labels = labels.await?;
        if labels.immutable {
            return Err(Outcome::Faulted(self.immutable()));
        }
        Ok(labels)
    }

    pub(super) fn immutable(&self) -> Fault {
        Fault {
            reason: Reason::TagImmutable,
            message: format!(
                "{}: its image has the label quay.immutable=true, by which no tag of it can be moved again; build it without \
                quay.immutable",
                self.spec.float
            ),
            class: Class::Terminal,
        }
    }

    /// Which tags of this image expire: those of the image itself, by its labels, and the pins of the one that its float was on.
    pub(super) async fn expiring(&self, labels: TagLabels) -> Flow<Vec<Notice>> {
        let (repository, push) = (self.repository(), self.push()?);
        let mut notices = Vec::new();
        if let Some(after) = labels.expires_after {
            notices.push(Expiry::Tags { after }.notice(&self.spec.float));
        }
        let displaced = self.image.displaced.last();
        if let Some(displaced) = displaced
            && let Some(manifest) = self.held(displaced.digest).await?
            && let Some(after) = self
                .labels(repository, &manifest, &push, true)
                .await?
                .expires_after
        {
            notices.push(Expiry::Pins { after }.notice(&self.spec.float));
        }
        Ok(notices)
    }

    /// What the labels of an image that `held` has do to tags of the float's repository.
    pub(super) async fn labels(
        &self,
        held: &Repository,
        manifest: &Manifest,
        credential: &Credential,
        push: bool,
    ) -> Flow<TagLabels> {
        let (registry, target) = (&self.tools.registry, self.repository());
        let labels = registry.tag_labels(target, held, manifest, credential, push, &self.activity);
        // Boxed: most images have none, and a step is kept for each image in work.
        let labels = Box::pin(labels);
        self.read(async { Ok(labels.await) }).await
    }
}
