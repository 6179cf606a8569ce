//! What the steps are made of: a tag is looked at, pinned, cleared, written, deleted.

use std::time::Duration;

use super::{Flow, Manifest, Put, READ_AGAIN, StepIo, Unsettled, Work, unpinnable, waits};
use crate::image::{Digest, Tag};
use crate::machine::{Expiry, Fault, FaultClass, Notice, Outcome};

/// How often it is checked whether the right to write is certain again.
const RIGHT_AGAIN: Duration = Duration::from_millis(50);

/// What an answered tag write found.
#[derive(Debug)]
pub enum Written {
    /// The tag holds the digest.
    Done,
    /// The registry does not have what the manifest refers to.
    ContentMissing(Fault),
}

impl<I: StepIo> Work<'_, I> {
    /// Looks at a tag that is about to be overwritten with `source`, and pins what it holds if nothing else may hold it
    /// (`pinned` is held for certain). Whether it holds `source` already.
    pub(super) async fn clear(
        &self,
        tag: &Tag,
        source: Digest,
        pinned: Option<Digest>,
    ) -> Flow<bool> {
        let Some(manifest) = self.look(tag).await? else {
            return Ok(false);
        };
        let found = manifest.digest();
        if found == source {
            return Ok(true);
        }
        if Some(found) == pinned {
            return Ok(false);
        }
        let Some(pin) = self.image.pin(found) else {
            let expiring = |after| Expiry::Rescued { after };
            return Err(Outcome::Unpinned {
                digest: found,
                notices: self.expiring_pins(&manifest, expiring).await,
            });
        };
        let Written::ContentMissing(fault) = self.pin(&pin.tag, &manifest).await? else {
            return Ok(false);
        };
        // Overwritten is only what is seen to be gone: a registry's words may be taken for more than they say.
        self.io.forget(self.repository());
        match self.look(tag).await?.map(|m| m.digest()) {
            None => Ok(false),
            Some(digest) if digest == source => Ok(true),
            Some(digest) if digest == found => {
                let fault = unpinnable(&format!("the image on {tag}"), Some(&fault));
                Err(Outcome::Faulted(fault))
            }
            Some(_) => Err(Outcome::Dropped),
        }
    }

    /// Puts a prune tag to a manifest's digest. A prune tag is never overwritten with another digest, and never written with a stamp
    /// by which a pruner might take it for old.
    pub(super) async fn pin(&self, prune: &Tag, manifest: &I::Manifest) -> Flow<Written> {
        let digest = manifest.digest();
        if self.io.wrote(prune, digest).await? {
            return Ok(Written::Done);
        }
        match self.look(prune).await? {
            Some(found) if found.digest() == digest => Ok(Written::Done),
            None if !self.io.is_old(prune).await? => self.write(prune, manifest).await,
            _ => Err(Outcome::StampTaken { tag: prune.clone() }),
        }
    }

    /// That pins of an image expire, as far as its labels can be read: they are told of as they are recorded, also where the step is
    /// given up meanwhile.
    pub(super) async fn expiring_pins(
        &self,
        manifest: &I::Manifest,
        which: impl FnOnce(String) -> Expiry,
    ) -> Vec<Notice> {
        let labels = self.io.labels(manifest).await.unwrap_or_default();
        let expiring = labels.expires_after.map(which);
        let notice = expiring.map(|expiry| expiry.notice(&self.spec.float));
        notice.into_iter().collect()
    }

    pub(super) async fn shows(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        let found = self.look(tag).await?;
        Ok(found.is_some_and(|m| m.digest() == digest))
    }

    /// Whether a tag still shows a digest that was refused for want of its content: then it is not gone, whatever a registry's words
    /// were taken for.
    pub(super) async fn still_shows(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        self.io.forget(self.repository());
        self.shows(tag, digest).await
    }

    /// Where a tag of the float's repository is, read again while it contradicts our own last write.
    ///
    /// # Errors
    /// The step cannot go on.
    pub async fn look(&self, tag: &Tag) -> Flow<Option<I::Manifest>> {
        loop {
            let found = self.io.look(tag).await?;
            let digest = found.as_ref().map(Manifest::digest);
            if self.io.believes(self.repository(), tag, digest) {
                return Ok(found);
            }
            self.io.pause(READ_AGAIN).await?;
        }
    }

    /// Writes a tag that was looked at just before. Where the registry has to be waited for (rate limit, read-only, unavailable), the
    /// look would grow old: the step ends, waiting, and its next launch looks again.
    ///
    /// # Errors
    /// The step cannot go on.
    pub async fn write(&self, tag: &Tag, manifest: &I::Manifest) -> Flow<Written> {
        match self.io.put(tag, manifest).await? {
            Put::Written => Ok(Written::Done),
            Put::ContentMissing(fault) => Ok(Written::ContentMissing(fault)),
            Put::Refused(fault) => {
                if fault.reason.is_rejected() {
                    self.io.forget(self.repository());
                }
                Err(Outcome::Faulted(fault))
            }
            // An earlier write of ours may have landed, and made it so.
            Put::Immutable(fault) => {
                if self.shows(tag, manifest.digest()).await? {
                    return Ok(Written::Done);
                }
                Err(Outcome::Faulted(fault))
            }
            Put::Unsettled(why) => Err(self.unsettled(why).await?),
        }
    }

    /// Deletes a tag that was looked at just before; why it stays, where the registry keeps it.
    pub(super) async fn delete(&self, tag: &Tag) -> Flow<Option<String>> {
        match self.io.delete(tag).await? {
            Put::Written => Ok(None),
            Put::Refused(fault) | Put::Immutable(fault) | Put::ContentMissing(fault) => {
                match fault.class {
                    FaultClass::Wait { .. } => Err(Outcome::Faulted(fault)),
                    FaultClass::Attempt | FaultClass::Terminal => Ok(Some(fault.message)),
                }
            }
            Put::Unsettled(why) => Err(self.unsettled(why).await?),
        }
    }

    /// How a step ends that has a write in the air, or could not send it.
    async fn unsettled(&self, why: Unsettled) -> Flow<Outcome> {
        match why {
            Unsettled::Unknown(message, quiet) => Ok(waits(message, quiet)),
            Unsettled::Landing(message, late) => Ok(waits(message, late)),
            // What was looked at before is looked at again by the next launch.
            Unsettled::NotSent => {
                while !self.io.may_write() {
                    self.io.pause(RIGHT_AGAIN).await?;
                }
                Ok(Outcome::Dropped)
            }
        }
    }
}
