//! Confirm, Latch, Verify and Post: the float moves, and what it was moved to is held.

use super::{Flow, LOOK_TWICE, Manifest, StepIo, Work, Written, unpinnable};
use crate::image::Digest;
use crate::machine::{Fault, Foreign, Outcome, Pin};

impl<I: StepIo> Work<'_, I> {
    /// Looks at all that moving the float rests on: it was seen a while ago, and a pruner or somebody else may have come since.
    pub(super) async fn confirm(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let float = self.look(self.spec.float.tag()).await?;
        let staged = self.shows(&self.spec.float.incoming(), source).await?;
        if !staged {
            self.forget_staged();
        }
        let newest = self.image.displaced.last();
        let pinned = match newest {
            Some(Pin { digest, tag }) => {
                self.shows(tag, *digest).await?
                    && self.shows(&self.spec.float.pre(), *digest).await?
            }
            None => true,
        };
        Ok(Outcome::Confirmed {
            float: float.map(|m| m.digest()),
            staged,
            pinned,
        })
    }

    pub(super) async fn latch(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let float = self.spec.float.tag();
        let displaced = self.image.displaced.last().map(|pin| pin.digest);
        let Some(manifest) = self.io.held(source).await? else {
            return Ok(self.staged_gone(None));
        };
        // The look and the PUT follow each other directly: only a foreign write within this one request goes unseen.
        match self.look(float).await?.map(|m| m.digest()) {
            Some(digest) if digest == source => return Ok(Outcome::Latched),
            float if !self.spec.may_replace(float) => return Ok(Outcome::Unmet { float }),
            Some(digest) if Some(digest) != displaced => return Ok(Outcome::Moved { to: digest }),
            _ => {}
        }
        match self.write(float, &manifest).await? {
            Written::Done => Ok(Outcome::Latched),
            Written::ContentMissing(fault) => Ok(self.staged_gone(Some(fault))),
        }
    }

    /// What was staged is gone, or lacks content by what the registry says: staging it again mends both.
    fn staged_gone(&self, why: Option<Fault>) -> Outcome {
        self.forget_staged();
        Outcome::StagedGone(why)
    }

    /// Staging again must see for itself what is there, also whether the source still is.
    fn forget_staged(&self) {
        self.io.forget(self.repository());
        self.io.forget(&self.spec.source.repository);
    }

    /// Only looks.
    pub(super) async fn verify(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let latched = self.shows(self.spec.float.tag(), source).await?;
        Ok(if latched {
            Outcome::Latched
        } else {
            Outcome::NotLatched
        })
    }

    pub(super) async fn post(&self) -> Flow<Outcome> {
        let source = self.source()?;
        // Backed up: the newest displaced digest, which `__post1` holds most often, has its prune tag.
        if let Some(backed_up) = self.image.displaced.last().map(|pin| pin.digest) {
            let post1 = self.spec.float.post1();
            let Some(manifest) = self.io.held(source).await? else {
                return self.promoted_gone(source, None).await;
            };
            let there = self.clear(&post1, source, Some(backed_up)).await?;
            if !(there && self.may_have_run)
                && let Written::ContentMissing(fault) = self.write(&post1, &manifest).await?
            {
                return self.promoted_gone(source, Some(&fault)).await;
            }
        }
        if self.spec.remove_incoming {
            return self.remove_incoming(source).await;
        }
        let foreign = self.foreign(source).await?;
        let kept = None;
        Ok(Outcome::Posted { foreign, kept })
    }

    /// `_incoming` goes once the float itself was seen to hold the image. Where somebody else moved the float it may be the last tag of
    /// the image, and stays.
    async fn remove_incoming(&self, source: Digest) -> Flow<Outcome> {
        let incoming = self.spec.float.incoming();
        let there = self.look(&incoming).await?.map(|m| m.digest());
        let undeletable = match there {
            Some(digest) if digest == source => self.io.undeletable().await?,
            Some(_) => Some("somebody else put another image there".into()),
            None => None,
        };
        // This look and the DELETE follow each other directly.
        let foreign = self.foreign(source).await?;
        let kept = match (&foreign, undeletable) {
            (_, _) if there.is_none() => None,
            (Some(_), _) => Some("somebody else moved the float".into()),
            (None, None) => self.delete(&incoming).await?,
            (None, why) => why,
        };
        Ok(Outcome::Posted { foreign, kept })
    }

    /// The promoted image cannot be pinned, because it is gone: somebody else moved the float, or nothing is gone.
    async fn promoted_gone(&self, source: Digest, why: Option<&Fault>) -> Flow<Outcome> {
        self.io.forget(self.repository());
        match self.foreign(source).await? {
            None => Err(Outcome::Faulted(unpinnable("the promoted image", why))),
            foreign => Ok(Outcome::Posted {
                foreign,
                kept: None,
            }),
        }
    }

    /// Where somebody else moved the float, if two looks agree that it is not at the source.
    async fn foreign(&self, source: Digest) -> Flow<Option<Foreign>> {
        let float = self.spec.float.tag();
        if self.shows(float, source).await? {
            return Ok(None);
        }
        self.io.pause(LOOK_TWICE).await?;
        let found = self.look(float).await?.map(|m| m.digest());
        if found == Some(source) {
            return Ok(None);
        }
        Ok(Some(found.map_or(Foreign::Gone, Foreign::To)))
    }
}
