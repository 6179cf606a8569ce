//! Resolve and Stage: which image it is, and that the float's repository holds it.

use std::time::Duration;

use super::{Flow, Manifest, READ_AGAIN, StepIo, TagLabels, Work, Written};
use crate::image::{Digest, Float, Reference};
use crate::machine::{Expiry, Fault, FaultClass, Notice, Outcome, Reason};

/// The pauses before the second and third look at a source that is not there.
pub const SOURCE_LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

impl<I: StepIo> Work<'_, I> {
    pub(super) async fn resolve(&self) -> Flow<Outcome> {
        let float = self.look(self.spec.float.tag()).await?;
        let (source, media_type) = match (&self.image.source, &self.spec.source.reference) {
            (Some(known), _) => (known.digest, known.media_type.clone()),
            (None, Reference::Digest(digest)) => {
                self.io.check_granted(*digest).await?;
                (*digest, None)
            }
            (None, reference @ Reference::Tag(_)) => {
                let manifest = self.source_manifest(reference).await?;
                (manifest.digest(), Some(manifest.media_type().to_owned()))
            }
        };
        Ok(Outcome::Resolved {
            source,
            media_type,
            float: float.map(|m| m.digest()),
        })
    }

    pub(super) async fn stage(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let incoming = self.spec.float.incoming();
        if self.may_have_run
            && let Some(manifest) = self.look(&incoming).await?.filter(|m| m.digest() == source)
        {
            let labels = self.movable(&manifest).await?;
            return self.staged(source, manifest, labels).await;
        }
        let (manifest, labels) = self.bring(source).await?;
        // The last thing before the PUT: what `_incoming` holds may be held by nothing else.
        self.clear(&incoming, source, None).await?;
        match self.write(&incoming, &manifest).await? {
            Written::Done => self.staged(source, manifest, labels).await,
            Written::ContentMissing(fault) => {
                self.io.forget(self.repository());
                if self.spec.is_within_one_repository() {
                    self.confirm_source(source).await?;
                }
                Err(Outcome::Faulted(fault))
            }
        }
    }

    /// Brings all that the source's manifest references; gives the manifest, which can be put then, and what its labels do.
    ///
    /// # Errors
    /// It is not there as a whole, its tags could not be moved again, or the step cannot go on.
    pub async fn bring(&self, source: Digest) -> Flow<(I::Manifest, TagLabels)> {
        let reference = Reference::Digest(source);
        let manifest = self.source_manifest(&reference).await?;
        let kept = match self.io.copy(manifest).await {
            Ok(kept) => kept,
            Err(outcome) => {
                if is_incomplete(&outcome) {
                    self.confirm_source(source).await?;
                }
                return Err(outcome);
            }
        };
        let manifest = match kept {
            Some(manifest) => manifest,
            None => self.source_manifest(&reference).await?,
        };
        // Before the first tag of it is there, which could never be moved again.
        let labels = self.movable(&manifest).await?;
        Ok((manifest, labels))
    }

    /// `_incoming` holds the image. What refers to it follows now: it needs the image to be held, and the source to be there.
    async fn staged(
        &self,
        source: Digest,
        manifest: I::Manifest,
        labels: TagLabels,
    ) -> Flow<Outcome> {
        let media_type = manifest.media_type().to_owned();
        drop(manifest);
        let mut notices = Vec::new();
        // Boxed: most images have none of it, and a step is kept for each image in work.
        notices.extend(Box::pin(self.io.bring_referrers(source)).await?);
        notices.extend(self.expiring(labels));
        Ok(Outcome::Staged {
            media_type,
            bytes: self.io.bytes(),
            notices,
        })
    }

    /// That the tags of the image expire.
    #[must_use]
    pub fn expiring(&self, labels: TagLabels) -> Option<Notice> {
        let after = labels.expires_after?;
        Some(Expiry::Tags { after }.notice(&self.spec.float))
    }

    /// What the labels of the image do to its tags. Ends it where they make them immutable: its float could be promoted to once and
    /// never again, and neither could its `_incoming` be overwritten nor its prune tags be deleted.
    ///
    /// # Errors
    /// They do, or the step cannot go on.
    pub async fn movable(&self, manifest: &I::Manifest) -> Flow<TagLabels> {
        let labels = self.io.labels(manifest).await?;
        if labels.immutable {
            return Err(immovable(&self.spec.float));
        }
        Ok(labels)
    }

    /// A part of the source is missing: is all of it? Its manifest may only have been cached.
    async fn confirm_source(&self, source: Digest) -> Flow<()> {
        self.io.forget_source(source);
        let manifest = self.source_manifest(&Reference::Digest(source)).await;
        manifest.map(|_| ())
    }

    /// The source's manifest. Absent means gone only after three looks.
    ///
    /// # Errors
    /// It is gone, or the step cannot go on.
    pub async fn source_manifest(&self, reference: &Reference) -> Flow<I::Manifest> {
        let mut pauses = SOURCE_LOOKS.iter();
        loop {
            let found = self.io.fetch(reference).await?;
            if let Reference::Tag(tag) = reference {
                let digest = found.as_ref().map(Manifest::digest);
                if !self.io.believes(&self.spec.source.repository, tag, digest) {
                    self.io.pause(READ_AGAIN).await?;
                    continue;
                }
            }
            if let Some(manifest) = found {
                return Ok(manifest);
            }
            let Some(pause) = pauses.next() else {
                return Err(self.source_gone());
            };
            self.io.pause(*pause).await?;
        }
    }

    fn source_gone(&self) -> Outcome {
        let source = self.image.source.as_ref();
        let read = source.is_some_and(|source| source.media_type.is_some());
        let found = if read {
            "is gone (3 looks); build it again, or promote another"
        } else {
            "is not found (3 looks); check the name, or build it again"
        };
        Outcome::Faulted(Fault {
            reason: Reason::SourceGone,
            message: format!("source {} {found}", self.spec.source),
            class: FaultClass::Terminal,
        })
    }
}

/// The end of an image whose labels make its tags immutable.
#[must_use]
pub fn immovable(float: &Float) -> Outcome {
    Outcome::Faulted(Fault {
        reason: Reason::TagImmutable,
        message: format!(
            "{float}: its image has the label quay.immutable=true, by which no tag of it can be moved again; build it without \
            quay.immutable"
        ),
        class: FaultClass::Terminal,
    })
}

/// Whether a copy found that the source misses a part.
fn is_incomplete(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Faulted(fault) if fault.reason.is_incomplete())
}
