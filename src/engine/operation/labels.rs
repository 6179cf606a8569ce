//! What an image's labels do to the tags that it gets: reported where they expire, refused where they could never be moved again.
//!
//! In come the manifest that is staged and the record of what its float was on; out come notices, or the end of the image. Registries
//! that do not act on labels are not asked; what cannot be read hinders nothing.

use super::{Flow, Operation};
use crate::image::Repository;
use crate::machine::{Expiry, Fault, FaultClass, Notice, Outcome, Reason};
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
            class: FaultClass::Terminal,
        }
    }

    /// That the tags of the image expire.
    pub(super) fn expiring(&self, labels: TagLabels) -> Option<Notice> {
        let after = labels.expires_after?;
        Some(Expiry::Tags { after }.notice(&self.spec.float))
    }

    /// Both pins hold what the float was on; whether they expire. They are written: that is recorded also where the step is given up
    /// meanwhile.
    pub(super) async fn backed_up(&self, displaced: &Manifest) -> Flow<Outcome> {
        let push = self.push()?;
        let labels = self.labels(self.repository(), displaced, &push, true);
        let after = labels.await.unwrap_or_default().expires_after;
        let notices = after.map(|after| Expiry::Pins { after }.notice(&self.spec.float));
        Ok(Outcome::BackedUp {
            notices: notices.into_iter().collect(),
        })
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
        let labels =
            registry.tag_expiry(target, credential.at(held), manifest, push, &self.progress);
        // Boxed: most images have none, and a step is kept for each image in work.
        let labels = Box::pin(labels);
        self.read(async { Ok(labels.await) }).await
    }
}
