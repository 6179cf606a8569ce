//! Staging by whoever may read the source, and what shows later that it was done: the image goes to its float's repository, where a
//! tag of its digest's name pins it.
//!
//! In come the image's spec and the caller's credentials; out comes the digest under which a request can name it there. Guaranteed:
//! the only tags written are the pin and those of cosign, the latter where they are absent. The pin's name decides its content, so
//! a run that was killed, frozen or answered late, and two at once, all write the same.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Lists, Operation, Tools};
use crate::engine::Settings;
use crate::engine::leadership::Leadership;
use crate::engine::memory::Memory;
use crate::image::{Digest, Tag};
use crate::machine::{
    Fault, FaultClass, Image, ImageSpec, Mode, Notice, Outcome, Reason, Referrers, SourceFacts,
    Step,
};
use crate::registry::{Progress, RegistryClient};
use crate::steps::{Flow, SOURCE_LOOKS, StepIo as _, TagLabels, Written};
use crate::store::Access;

/// What a run of staging works with.
pub struct Staging {
    tools: Tools,
    access: Access,
    /// The day that the pins' names say.
    now: Timestamp,
    cancel: CancellationToken,
}

/// An image that is held in its float's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The tag that holds it.
    pub pin: Tag,
    /// The pin was there.
    pub already: bool,
    /// What a person should know of it.
    pub notices: Vec<Notice>,
}

impl Staging {
    /// Contacts nothing yet. `now`: when the run began. `cancel` ends what is under way; a tag write that was sent is waited for.
    #[must_use]
    pub fn new(
        registry: RegistryClient,
        access: Access,
        settings: &Settings,
        now: Timestamp,
        cancel: CancellationToken,
    ) -> Self {
        let tools = Tools {
            registry,
            memory: Arc::new(Memory::new(settings.settle, settings.late)),
            leadership: Leadership::alone(),
        };
        Self {
            tools,
            access,
            now,
            cancel,
        }
    }

    /// The digest that a source names now. It is read, so it is there.
    ///
    /// # Errors
    /// Why it is not known: to be tried again, or not.
    pub async fn resolve(
        &self,
        image: &ImageSpec,
        progress: &Arc<Progress>,
    ) -> Result<Digest, Fault> {
        let operation = self.operation(image, None, Referrers::Ignore, progress);
        let read = operation
            .work()
            .source_manifest(&image.source.reference)
            .await;
        read.map(|manifest| manifest.digest).map_err(faulted)
    }

    /// Copies the digest of an image's source to its float's repository and pins it there. Can be run again from the start.
    ///
    /// # Errors
    /// Why it is not staged: to be tried again, or not.
    pub async fn stage(
        &self,
        image: &ImageSpec,
        digest: Digest,
        referrers: Referrers,
        progress: &Arc<Progress>,
    ) -> Result<Staged, Fault> {
        let operation = self.operation(image, Some(digest), referrers, progress);
        let staged = Box::pin(operation.stage_beside(digest.staged(self.now))).await;
        staged.map_err(faulted)
    }

    fn operation(
        &self,
        image: &ImageSpec,
        digest: Option<Digest>,
        referrers: Referrers,
        progress: &Arc<Progress>,
    ) -> Operation {
        let media_type = None;
        let source = digest.map(|digest| SourceFacts { digest, media_type });
        Operation {
            tools: self.tools.clone(),
            access: self.access.clone(),
            spec: image.clone(),
            image: Image {
                source,
                ..Image::default()
            },
            mode: Mode::Promote,
            referrers,
            step: Step::Stage,
            may_have_run: true,
            cancel: self.cancel.clone(),
            progress: Arc::clone(progress),
            read: Mutex::default(),
            ahead: Mutex::default(),
        }
    }
}

impl Operation {
    async fn stage_beside(&self, pin: Tag) -> Flow<Staged> {
        let source = self.work().source()?;
        let mut listing = None;
        if self.referrers == Referrers::Require {
            listing = self.lists_referrers(source).await?;
            if listing == Some(false) {
                return Err(self.unlisted());
            }
        }
        let (labels, already) = match self.pinned(&pin, source).await? {
            Some(labels) => (labels, true),
            None => (self.pin_beside(&pin, source).await?, false),
        };
        // Most registries answer for what they do not have; of quay it is known only now.
        if self.referrers == Referrers::Require
            && listing.is_none()
            && self.lists_referrers(source).await? != Some(true)
        {
            return Err(self.unlisted());
        }
        let mut notices = Vec::new();
        notices.extend(Box::pin(self.bring_what_refers_to(source, Lists::ByRegistry)).await?);
        notices.extend(self.work().expiring(labels));
        Ok(Staged {
            pin,
            already,
            notices,
        })
    }

    async fn pin_beside(&self, pin: &Tag, source: Digest) -> Flow<TagLabels> {
        let (manifest, labels) = self.work().bring(source).await?;
        // A copy may take long: the look and the PUT follow each other directly.
        if let Some(labels) = self.pinned(pin, source).await? {
            return Ok(labels);
        }
        match self.work().write(pin, &manifest).await? {
            Written::Done => Ok(labels),
            Written::ContentMissing(fault) => {
                self.tools.registry.forget(self.repository());
                Err(Outcome::Faulted(fault))
            }
        }
    }

    /// The labels of the image, if the pin holds it.
    async fn pinned(&self, pin: &Tag, source: Digest) -> Flow<Option<TagLabels>> {
        match self.work().look(pin).await? {
            Some(found) if found.digest == source => self.work().movable(&found).await.map(Some),
            Some(found) => Err(Outcome::Faulted(Fault {
                reason: Reason::DigestMismatch,
                message: format!(
                    "{}:{pin} holds {}, which its name denies; remove that tag",
                    self.repository(),
                    found.digest.short()
                ),
                class: FaultClass::Terminal,
            })),
            None => Ok(None),
        }
    }
}

/// The days, from today, whose pins show that a digest is staged: a request may wait for a day, and clocks differ at midnight.
const STAGED_DAYS: [i64; 4] = [0, -1, -2, 1];

impl Operation {
    /// Refuses a digest that may be promoted only if it is staged, and is not: that a repository has it says nothing of whose it is.
    pub(super) async fn check_staged(&self, digest: Digest) -> Flow<()> {
        if !self.access.if_staged.contains(&self.spec.source) {
            return Ok(());
        }
        let mut pauses = SOURCE_LOOKS.iter();
        while !self.is_staged(digest).await? {
            // It may have been staged a moment ago, where reads lag behind writes.
            let Some(pause) = pauses.next() else {
                return Err(self.not_staged());
            };
            self.pause(*pause).await?;
        }
        Ok(())
    }

    async fn is_staged(&self, digest: Digest) -> Flow<bool> {
        let now = Timestamp::now();
        for days in STAGED_DAYS {
            let day = now.checked_add(SignedDuration::from_hours(24 * days));
            let pin = digest.staged(day.unwrap_or(now));
            let held = if self.mode == Mode::Plan {
                self.peek(&pin).await?
            } else {
                self.work()
                    .look(&pin)
                    .await?
                    .map(|manifest| manifest.digest)
            };
            if held == Some(digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn not_staged(&self) -> Outcome {
        Outcome::Faulted(Fault {
            reason: Reason::NotAllowed,
            message: format!(
                "source {} is in the float's repository, where ownPins lets only what was staged in the last days be promoted; stage it \
                 again, or have a rule name it in its sources",
                self.spec.source
            ),
            class: FaultClass::Terminal,
        })
    }
}

/// An outcome of what only reads, copies and pins.
fn faulted(outcome: Outcome) -> Fault {
    match outcome {
        Outcome::Faulted(fault) => fault,
        // It was stopped, or a look grew old before its PUT.
        _ => Fault {
            reason: Reason::RegistryUnavailable,
            message: "given up in between".into(),
            class: FaultClass::Wait { seconds: 1 },
        },
    }
}
