//! `RollBack`: the float goes back to where it was taken from.

use super::{Flow, Manifest, StepIo, Work, Written, unpinnable};
use crate::machine::{Fault, FaultClass, Outcome, Reason};

impl<I: StepIo> Work<'_, I> {
    /// Puts the float back, if it is at the source. What is displaced by that is pinned first, like anything else.
    pub(super) async fn roll_back(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let (Some(back), Some(prune)) = (self.image.displaced.last(), &self.image.rollback) else {
            return Ok(Outcome::NothingToRollBack);
        };
        let float = self.spec.float.tag();
        let found = self.look(float).await?;
        if found.as_ref().is_some_and(|m| m.digest() == back.digest) {
            // Our own write, if what it displaced was pinned before: the tag is this rollback's alone. Whether this launch is the
            // first does not matter, and is not known for certain: one that waited, and then its process died, has left no trace.
            let pinned = self.shows(prune, source).await?;
            return Ok(if pinned {
                Outcome::RolledBack
            } else {
                Outcome::NothingToRollBack
            });
        }
        let Some(promoted) = found.filter(|m| m.digest() == source) else {
            return Ok(Outcome::NothingToRollBack);
        };
        let Some(manifest) = self.io.held(back.digest).await? else {
            return Err(self.nothing_to_go_back_to());
        };
        let pre = self.spec.float.pre();
        if let Written::ContentMissing(fault) = self.pin(prune, &promoted).await? {
            return self.cannot_be_pinned(&fault).await;
        }
        let there = self.may_have_run && self.shows(&pre, source).await?;
        if !there && let Written::ContentMissing(fault) = self.write(&pre, &promoted).await? {
            return self.cannot_be_pinned(&fault).await;
        }
        // As in the latch, the look and the PUT follow each other directly.
        if !self.shows(float, source).await? {
            return Ok(Outcome::NothingToRollBack);
        }
        match self.write(float, &manifest).await? {
            Written::Done => Ok(Outcome::RolledBack),
            Written::ContentMissing(fault) if self.still_shows(&back.tag, back.digest).await? => {
                Err(terminal(fault))
            }
            Written::ContentMissing(_) => Err(self.nothing_to_go_back_to()),
        }
    }

    /// The promoted image is gone, in whole or in part, from under its float: left, if the float is elsewhere by now.
    async fn cannot_be_pinned(&self, fault: &Fault) -> Flow<Outcome> {
        let (float, source) = (self.spec.float.tag(), self.source()?);
        if self.still_shows(float, source).await? {
            return Err(terminal(unpinnable("the promoted image", Some(fault))));
        }
        Ok(Outcome::NothingToRollBack)
    }

    fn nothing_to_go_back_to(&self) -> Outcome {
        self.io.forget(self.repository());
        Outcome::Faulted(Fault {
            reason: Reason::BackupFailed,
            message: "the image it was on before is gone from the repository".into(),
            class: FaultClass::Terminal,
        })
    }
}

fn terminal(fault: Fault) -> Outcome {
    let class = FaultClass::Terminal;
    Outcome::Faulted(Fault { class, ..fault })
}
