//! `BackUp`: what the float is on is held by two pins before the float may move.

use super::{Flow, Manifest, StepIo, Work, Written, unpinnable};
use crate::image::Digest;
use crate::machine::{Expiry, Fault, Outcome, Pin};

impl<I: StepIo> Work<'_, I> {
    pub(super) async fn back_up(&self) -> Flow<Outcome> {
        let Some(Pin { digest, tag: prune }) = self.image.displaced.last() else {
            let notices = Vec::new();
            return Ok(Outcome::BackedUp { notices });
        };
        let Some(manifest) = self.io.held(*digest).await? else {
            return self.displaced_gone(*digest, None).await;
        };
        if let Written::ContentMissing(fault) = self.pin(prune, &manifest).await? {
            return self.displaced_gone(*digest, Some(&fault)).await;
        }
        let pre = self.spec.float.pre();
        if self.may_have_run && self.shows(&pre, *digest).await? {
            return self.backed_up(&manifest).await;
        }
        match self.write(&pre, &manifest).await? {
            Written::Done => self.backed_up(&manifest).await,
            Written::ContentMissing(fault) => self.displaced_gone(*digest, Some(&fault)).await,
        }
    }

    /// Both pins hold what the float was on.
    async fn backed_up(&self, displaced: &I::Manifest) -> Flow<Outcome> {
        let expiring = |after| Expiry::Pins { after };
        Ok(Outcome::BackedUp {
            notices: self.expiring_pins(displaced, expiring).await,
        })
    }

    /// The displaced digest cannot be pinned, because it is gone: where is the float now? If it still shows that digest, nothing is
    /// gone, and nobody moved anything.
    async fn displaced_gone(&self, digest: Digest, why: Option<&Fault>) -> Flow<Outcome> {
        self.io.forget(self.repository());
        let float = self.look(self.spec.float.tag()).await?;
        let float = float.map(|m| m.digest());
        if float == Some(digest) {
            return Err(Outcome::Faulted(unpinnable("the float's own image", why)));
        }
        Ok(Outcome::DisplacedGone { float })
    }
}
