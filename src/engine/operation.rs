//! One operation: a step of one image, carried out on the registry.
//!
//! In come the image's spec and record as they were saved; out comes an [`Outcome`]. Every step can be run again from the
//! start: what it would write is looked at first where it may have run before. Reads and copies are given up at once when the
//! operation is dropped; a tag write that was sent is always waited for.
//!
//! The order of requests within each step is what the promises rest on; the comments say which.

pub mod forecast;
mod labels;
mod referrers;
pub mod staging;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::leadership::{Leadership, WRITE_MAX};
use super::memory::Memory;
use super::moment::Moment;
use crate::image::{Digest, Reference, Repository, Stamp, Tag};
use crate::machine::{
    FRESH_SECONDS, Fault, FaultClass, Foreign, Image, ImageSpec, Mode, Outcome, Pin, Reason,
    Referrers, Step,
};
use crate::registry::{self, Credential, Manifest, Progress, Put, RegistryClient, TagLabels};
use crate::store::Access;

/// The pause before a read that contradicts our own write is repeated.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// The pause between the two looks at a float that is no longer at its source.
const LOOK_TWICE: Duration = Duration::from_secs(2);
/// How often it is checked whether the lease was renewed.
const LEASE_AGAIN: Duration = Duration::from_millis(50);
/// The oldest look that a tag write may rely on.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// The pauses before the second and third look at a source that is not there.
const SOURCE_LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// What an operation works with, beside its image.
#[derive(Clone)]
pub(super) struct Tools {
    pub registry: RegistryClient,
    pub memory: Arc<Memory>,
    pub leadership: Leadership,
}

impl Tools {
    /// Whether a tag write that is sent now ends while this process leads for certain.
    fn may_write(&self) -> bool {
        let timeout = self.registry.put_timeout().max(WRITE_MAX);
        self.leadership.covers(timeout)
    }
}

/// One step of one image.
pub(super) struct Operation {
    pub tools: Tools,
    pub access: Access,
    pub spec: ImageSpec,
    pub image: Image,
    pub mode: Mode,
    pub referrers: Referrers,
    pub step: Step,
    /// It may have run before.
    pub may_have_run: bool,
    pub cancel: CancellationToken,
    pub progress: Arc<Progress>,
    /// When what was read last was asked for, and when it was answered.
    pub read: Mutex<Option<(Moment, Moment)>>,
}

/// What an answered tag write found.
enum Written {
    Done,
    /// The registry does not have what the manifest refers to.
    ContentMissing(registry::Error),
}

/// How referrers are listed in the float's repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// By a tag where its registry does not list them: for the one writer of the repository.
    ByTagToo,
    /// By its registry alone: a tag's list is read, extended and written, which two at once must not do.
    ByRegistry,
}

/// Goes on with a value, or ends the operation with an outcome.
type Flow<T> = Result<T, Outcome>;

impl Operation {
    /// Runs the step to its outcome.
    pub async fn run(self) -> Outcome {
        let flow = match self.step {
            Step::Resolve if self.mode == Mode::Plan => Box::pin(self.forecast()).await,
            Step::Resolve => self.resolve().await,
            Step::Stage => Box::pin(self.stage()).await,
            Step::BackUp => self.back_up().await,
            Step::Confirm => self.confirm().await,
            Step::Latch => self.latch().await,
            Step::Post => self.post().await,
            Step::Verify => self.verify().await,
            Step::RollBack => self.roll_back().await,
        };
        flow.unwrap_or_else(|outcome| outcome)
    }

    async fn resolve(&self) -> Flow<Outcome> {
        let float = self.look(self.spec.float.tag()).await?;
        let (source, media_type) = match (&self.image.source, &self.spec.source.reference) {
            (Some(known), _) => (known.digest, known.media_type.clone()),
            (None, Reference::Digest(digest)) => {
                self.check_staged(*digest).await?;
                (*digest, None)
            }
            (None, Reference::Tag(_)) => {
                let manifest = self.source_manifest(&self.spec.source.reference).await?;
                (manifest.digest, Some(manifest.media_type))
            }
        };
        Ok(Outcome::Resolved {
            source,
            media_type,
            float: float.map(|m| m.digest),
        })
    }

    async fn stage(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let incoming = self.spec.float.incoming();
        let repository = self.repository();
        if self.may_have_run
            && let Some(manifest) = self.look(&incoming).await?.filter(|m| m.digest == source)
        {
            let labels = self.movable(&manifest).await?;
            return self.staged(source, manifest, labels).await;
        }
        let (manifest, labels) = self.bring(source).await?;
        // The last thing before the PUT: what `_incoming` holds may be held by nothing else.
        self.clear(&incoming, source, None).await?;
        match self.put(&incoming, &manifest).await? {
            Written::Done => self.staged(source, manifest, labels).await,
            Written::ContentMissing(error) => {
                self.tools.registry.forget(repository);
                if self.spec.source.repository == *repository {
                    self.confirm_source(source).await?;
                }
                Err(Outcome::Faulted(fault(&error)))
            }
        }
    }

    /// Brings all that the source's manifest references; gives the manifest, which can be put then, and what its labels do.
    async fn bring(&self, source: Digest) -> Flow<(Manifest, TagLabels)> {
        let reference = Reference::Digest(source);
        let manifest = self.source_manifest(&reference).await?;
        let (pull, push) = (self.pull()?, self.push()?);
        let (from, to) = (&self.spec.source.repository, self.repository());
        // A large one is given back while blobs are on their way: others wait for the memory.
        let kept = (!manifest.is_large()).then(|| manifest.clone());
        let registry = &self.tools.registry;
        let copy = registry.copy(pull.at(from), manifest, push.at(to), &self.progress);
        if let Err(outcome) = self.read(copy).await {
            if is_incomplete(&outcome) {
                self.confirm_source(source).await?;
            }
            return Err(outcome);
        }
        let manifest = match kept {
            Some(manifest) => manifest,
            None => self.source_manifest(&reference).await?,
        };
        // Before the first tag of it is there, which could never be moved again.
        let labels = self.movable(&manifest).await?;
        Ok((manifest, labels))
    }

    /// `_incoming` holds the image. What refers to it follows now: it needs the image to be held, and the source to be there.
    async fn staged(&self, source: Digest, manifest: Manifest, labels: TagLabels) -> Flow<Outcome> {
        // Boxed: most images have none of it, and a step is kept for each image in work.
        let media_type = manifest.media_type.clone();
        drop(manifest);
        let mut notices = Vec::new();
        notices.extend(Box::pin(self.bring_referrers(source, Lists::ByTagToo)).await?);
        notices.extend(self.expiring(labels));
        Ok(Outcome::Staged {
            media_type,
            bytes: self.progress.bytes(),
            notices,
        })
    }

    /// A part of the source is missing: is all of it? Its manifest may only have been cached.
    async fn confirm_source(&self, source: Digest) -> Flow<()> {
        let repository = &self.spec.source.repository;
        self.tools
            .registry
            .forget_manifest(repository, source, &self.pull()?);
        self.source_manifest(&Reference::Digest(source))
            .await
            .map(|_| ())
    }

    async fn back_up(&self) -> Flow<Outcome> {
        let Some(Pin { digest, tag: prune }) = self.image.displaced.last() else {
            let notices = Vec::new();
            return Ok(Outcome::BackedUp { notices });
        };
        let Some(manifest) = self.held(*digest).await? else {
            return self.displaced_gone(*digest, None).await;
        };
        if let Written::ContentMissing(error) = self.pin(prune, &manifest).await? {
            return self.displaced_gone(*digest, Some(&error)).await;
        }
        let pre = self.spec.float.pre();
        if self.may_have_run && self.shows(&pre, *digest).await? {
            return self.backed_up(&manifest).await;
        }
        match self.put(&pre, &manifest).await? {
            Written::Done => self.backed_up(&manifest).await,
            Written::ContentMissing(error) => self.displaced_gone(*digest, Some(&error)).await,
        }
    }

    /// The displaced digest cannot be pinned, because it is gone: where is the float now? If it still shows that digest, nothing is
    /// gone, and nobody moved anything.
    async fn displaced_gone(&self, digest: Digest, why: Option<&registry::Error>) -> Flow<Outcome> {
        self.tools.registry.forget(self.repository());
        let float = self.look(self.spec.float.tag()).await?;
        let float = float.map(|m| m.digest);
        if float == Some(digest) {
            return Err(Outcome::Faulted(unpinnable("the float's own image", why)));
        }
        Ok(Outcome::DisplacedGone { float })
    }

    /// Looks at all that moving the float rests on: it was seen a while ago, and a pruner or somebody else may have come since.
    async fn confirm(&self) -> Flow<Outcome> {
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
            float: float.map(|m| m.digest),
            staged,
            pinned,
        })
    }

    async fn latch(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let float = self.spec.float.tag();
        let displaced = self.image.displaced.last().map(|pin| pin.digest);
        let Some(manifest) = self.held(source).await? else {
            return Ok(self.staged_gone(None));
        };
        // The look and the PUT follow each other directly: only a foreign write within this one request goes unseen.
        match self.look(float).await?.map(|m| m.digest) {
            Some(digest) if digest == source => return Ok(Outcome::Latched),
            float if !self.spec.may_replace(float) => return Ok(Outcome::Unmet { float }),
            Some(digest) if Some(digest) != displaced => return Ok(Outcome::Moved { to: digest }),
            _ => {}
        }
        match self.put(float, &manifest).await? {
            Written::Done => Ok(Outcome::Latched),
            Written::ContentMissing(error) => Ok(self.staged_gone(Some(&error))),
        }
    }

    /// What was staged is gone, or lacks content by what the registry says: staging it again mends both.
    fn staged_gone(&self, why: Option<&registry::Error>) -> Outcome {
        self.forget_staged();
        Outcome::StagedGone(why.map(fault))
    }

    /// Staging again must see for itself what is there, also whether the source still is.
    fn forget_staged(&self) {
        self.tools.registry.forget(self.repository());
        self.tools.registry.forget(&self.spec.source.repository);
    }

    async fn post(&self) -> Flow<Outcome> {
        let source = self.source()?;
        if !self.image.displaced.is_empty() {
            let post1 = self.spec.float.post1();
            let Some(manifest) = self.held(source).await? else {
                return self.promoted_gone(source, None).await;
            };
            // Backed up: the newest displaced digest, which `__post1` holds most often, has its prune tag.
            let backed_up = self.image.displaced.last().map(|pin| pin.digest);
            let there = self.clear(&post1, source, backed_up).await?;
            if !(there && self.may_have_run)
                && let Written::ContentMissing(error) = self.put(&post1, &manifest).await?
            {
                return self.promoted_gone(source, Some(&error)).await;
            }
        }
        let foreign = self.foreign(source).await?;
        Ok(Outcome::Posted { foreign })
    }

    /// The promoted image cannot be pinned, because it is gone: somebody else moved the float, or nothing is gone.
    async fn promoted_gone(&self, source: Digest, why: Option<&registry::Error>) -> Flow<Outcome> {
        self.tools.registry.forget(self.repository());
        match self.foreign(source).await? {
            None => Err(Outcome::Faulted(unpinnable("the promoted image", why))),
            foreign => Ok(Outcome::Posted { foreign }),
        }
    }

    /// Where somebody else moved the float, if two looks agree that it is not at the source.
    async fn foreign(&self, source: Digest) -> Flow<Option<Foreign>> {
        let float = self.spec.float.tag();
        let at_source =
            |found: &Option<Manifest>| found.as_ref().is_some_and(|m| m.digest == source);
        if at_source(&self.look(float).await?) {
            return Ok(None);
        }
        self.pause(LOOK_TWICE).await?;
        let found = self.look(float).await?;
        if at_source(&found) {
            return Ok(None);
        }
        Ok(Some(found.map_or(Foreign::Gone, |m| Foreign::To(m.digest))))
    }

    async fn verify(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let float = self.look(self.spec.float.tag()).await?;
        if float.is_some_and(|m| m.digest == source) {
            Ok(Outcome::Latched)
        } else {
            Ok(Outcome::NotLatched)
        }
    }

    /// Puts the float back, if it is at the source. What is displaced by that is pinned first, like anything else.
    async fn roll_back(&self) -> Flow<Outcome> {
        let source = self.source()?;
        let (Some(back), Some(prune)) = (self.image.displaced.last(), &self.image.rollback) else {
            return Ok(Outcome::NothingToRollBack);
        };
        let float = self.spec.float.tag();
        let at_source = |found: Option<Manifest>| found.filter(|m| m.digest == source);
        let found = self.look(float).await?;
        if found.as_ref().is_some_and(|m| m.digest == back.digest) {
            // Our own write, if what it displaced was pinned before: the tag is this rollback's alone. Whether this launch is the
            // first does not matter, and is not known for certain: one that waited, and then its process died, has left no trace.
            let pinned = self.shows(prune, source).await?;
            return Ok(if pinned {
                Outcome::RolledBack
            } else {
                Outcome::NothingToRollBack
            });
        }
        let Some(promoted) = at_source(found) else {
            return Ok(Outcome::NothingToRollBack);
        };
        let Some(manifest) = self.held(back.digest).await? else {
            return Err(self.nothing_to_go_back_to());
        };
        let pre = self.spec.float.pre();
        if let Written::ContentMissing(error) = self.pin(prune, &promoted).await? {
            return self.cannot_be_pinned(&error).await;
        }
        let there = self.may_have_run && self.shows(&pre, source).await?;
        if !there && let Written::ContentMissing(error) = self.put(&pre, &promoted).await? {
            return self.cannot_be_pinned(&error).await;
        }
        // As in the latch, the look and the PUT follow each other directly.
        if at_source(self.look(float).await?).is_none() {
            return Ok(Outcome::NothingToRollBack);
        }
        match self.put(float, &manifest).await? {
            Written::Done => Ok(Outcome::RolledBack),
            Written::ContentMissing(error) if self.still_shows(&back.tag, back.digest).await? => {
                Err(Outcome::Faulted(Fault {
                    class: FaultClass::Terminal,
                    ..fault(&error)
                }))
            }
            Written::ContentMissing(_) => Err(self.nothing_to_go_back_to()),
        }
    }

    /// The promoted image is gone, in whole or in part, from under its float: left, if the float is elsewhere by now.
    async fn cannot_be_pinned(&self, error: &registry::Error) -> Flow<Outcome> {
        if self
            .still_shows(self.spec.float.tag(), self.source()?)
            .await?
        {
            let fault = unpinnable("the promoted image", Some(error));
            return Err(Outcome::Faulted(Fault {
                class: FaultClass::Terminal,
                ..fault
            }));
        }
        Ok(Outcome::NothingToRollBack)
    }

    fn nothing_to_go_back_to(&self) -> Outcome {
        self.tools.registry.forget(self.repository());
        Outcome::Faulted(Fault {
            reason: Reason::BackupFailed,
            message: "the image it was on before is gone from the repository".into(),
            class: FaultClass::Terminal,
        })
    }

    // === what the steps are made of ===

    /// Looks at a tag that is about to be overwritten with `source`, and pins what it holds if nothing else may hold it
    /// (`pinned` is held for certain). Whether it holds `source` already.
    async fn clear(&self, tag: &Tag, source: Digest, pinned: Option<Digest>) -> Flow<bool> {
        let Some(found) = self.look(tag).await? else {
            return Ok(false);
        };
        if found.digest == source {
            return Ok(true);
        }
        if Some(found.digest) == pinned {
            return Ok(false);
        }
        let Some(pin) = self.image.pin(found.digest) else {
            return Err(Outcome::Unpinned {
                digest: found.digest,
            });
        };
        let Written::ContentMissing(error) = self.pin(&pin.tag, &found).await? else {
            return Ok(false);
        };
        // Overwritten is only what is seen to be gone: a registry's words may be taken for more than they say.
        self.tools.registry.forget(self.repository());
        match self.look(tag).await?.map(|m| m.digest) {
            None => Ok(false),
            Some(digest) if digest == source => Ok(true),
            Some(digest) if digest == found.digest => {
                let fault = unpinnable(&format!("the image on {tag}"), Some(&error));
                Err(Outcome::Faulted(fault))
            }
            Some(_) => Err(Outcome::Dropped),
        }
    }

    /// Puts a prune tag to a manifest's digest. A prune tag is never overwritten with another digest, and never written with a stamp
    /// by which a pruner might take it for old.
    async fn pin(&self, prune: &Tag, manifest: &Manifest) -> Flow<Written> {
        if self
            .tools
            .memory
            .wrote(self.repository(), prune, manifest.digest, Instant::now())
        {
            return Ok(Written::Done);
        }
        match self.look(prune).await? {
            Some(found) if found.digest == manifest.digest => Ok(Written::Done),
            None if !is_old(prune) => self.put(prune, manifest).await,
            _ => Err(Outcome::StampTaken { tag: prune.clone() }),
        }
    }

    async fn shows(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        Ok(self.look(tag).await?.is_some_and(|m| m.digest == digest))
    }

    /// Whether a tag still shows a digest that was refused for want of its content: then it is not gone, whatever a registry's words
    /// were taken for.
    async fn still_shows(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        self.tools.registry.forget(self.repository());
        self.shows(tag, digest).await
    }

    /// Where a tag of the float's repository is, read again while it contradicts our own last write.
    async fn look(&self, tag: &Tag) -> Flow<Option<Manifest>> {
        let credential = self.push()?;
        loop {
            let look = self.tools.registry.get_authoritative(
                self.repository(),
                tag,
                &credential,
                &self.progress,
            );
            let found = self.read(look).await?;
            if self.believes(self.repository(), tag, found.as_ref()) {
                return Ok(found);
            }
            self.pause(READ_AGAIN).await?;
        }
    }

    fn believes(&self, repository: &Repository, tag: &Tag, found: Option<&Manifest>) -> bool {
        let digest = found.map(|m| m.digest);
        !self
            .tools
            .memory
            .contradicts(repository, tag, digest, Instant::now())
    }

    /// The source's manifest. Absent means gone only after three looks.
    async fn source_manifest(&self, reference: &Reference) -> Flow<Manifest> {
        let repository = &self.spec.source.repository;
        let credential = self.pull()?;
        let mut pauses = SOURCE_LOOKS.iter();
        loop {
            let fetch = self
                .tools
                .registry
                .get(repository, reference, &credential, &self.progress);
            let found = self.read(fetch).await?;
            if let Reference::Tag(tag) = reference
                && !self.believes(repository, tag, found.as_ref())
            {
                self.pause(READ_AGAIN).await?;
                continue;
            }
            if let Some(manifest) = found {
                return Ok(manifest);
            }
            let Some(pause) = pauses.next() else {
                let read = self.image.source.as_ref();
                let read = read.is_some_and(|source| source.media_type.is_some());
                let found = if read {
                    "is gone (3 looks); build it again, or promote another"
                } else {
                    "is not found (3 looks); check the name, or build it again"
                };
                return Err(Outcome::Faulted(Fault {
                    reason: Reason::SourceGone,
                    message: format!("source {} {found}", self.spec.source),
                    class: FaultClass::Terminal,
                }));
            };
            self.pause(*pause).await?;
        }
    }

    /// A manifest of the float's repository.
    async fn held(&self, digest: Digest) -> Flow<Option<Manifest>> {
        let credential = self.push()?;
        let held =
            self.tools
                .registry
                .get_cached(self.repository(), digest, &credential, &self.progress);
        self.read(held).await
    }

    /// Writes a tag that was looked at just before. Whatever was sent is waited for; what was not answered keeps the float quiet
    /// until it shows or can land no more. Where the registry has to be waited for (rate limit, read-only, unavailable), the
    /// look would grow old: the step ends, waiting, and its next launch looks again.
    async fn put(&self, tag: &Tag, manifest: &Manifest) -> Flow<Written> {
        let (repository, memory) = (self.repository(), &self.tools.memory);
        let credential = self.push()?;
        let write = memory.write(&self.spec.float, tag, manifest.digest);
        let sent = AtomicBool::new(false);
        let gate = || {
            let open = !self.cancel.is_cancelled()
                && self.tools.may_write()
                && self.is_fresh()
                && write.enter(Instant::now());
            sent.fetch_or(open, Ordering::Relaxed);
            open
        };
        // Boxed: every step would be as large as what it has to send.
        let mut put = Box::pin(self.tools.registry.put_tag(
            repository,
            tag,
            manifest,
            &credential,
            gate,
            &self.progress,
        ));
        let started = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = &mut put => answer,
            () = self.cancel.cancelled() => {
                if !sent.load(Ordering::Relaxed) {
                    return Err(Outcome::Dropped);
                }
                put.as_mut().await
            }
        };
        match answer {
            Put::Written => {
                write.answered(Instant::now());
                tracing::debug!(%repository, %tag, digest = %manifest.digest, took = ?started.elapsed(), "wrote tag");
                Ok(Written::Done)
            }
            Put::ContentMissing(error) => {
                write.refused();
                Ok(Written::ContentMissing(error))
            }
            Put::Refused(error) => {
                write.refused();
                if error.reason.is_rejected() {
                    self.tools.registry.forget(repository);
                }
                Err(Outcome::Faulted(fault(&error)))
            }
            Put::Immutable(error) => {
                write.refused();
                match self.look(tag).await? {
                    Some(found) if found.digest == manifest.digest => Ok(Written::Done),
                    _ => Err(Outcome::Faulted(fault(&error))),
                }
            }
            // It stays in the record as it was entered.
            Put::Unknown(error) => Err(waits(error.message, memory.settle())),
            Put::NotSent => {
                write.refused();
                self.not_sent(tag, manifest.digest).await
            }
        }
    }

    /// The gate was closed: waits for what it was closed for. What was looked at before is looked at again by the next launch.
    async fn not_sent(&self, tag: &Tag, digest: Digest) -> Flow<Written> {
        let (repository, now) = (self.repository(), Instant::now());
        let memory = &self.tools.memory;
        if let Some(until) = memory.landing_until(repository, tag, Some(digest), now) {
            let message = format!(
                "{repository}:{tag}: an earlier write of another image was not answered and may land late; waits until it cannot"
            );
            return Err(waits(message, until.saturating_duration_since(now)));
        }
        while !self.tools.may_write() {
            self.pause(LEASE_AGAIN).await?;
        }
        Err(Outcome::Dropped)
    }

    /// Waits for a read or a copy, unless the operation is dropped.
    async fn read<T>(&self, work: impl Future<Output = Result<T, registry::Error>>) -> Flow<T> {
        let asked = Moment::now();
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Outcome::Dropped),
            result = work => {
                let read = Some((asked, Moment::now()));
                *self.read.lock() = read;
                result.map_err(|error| Outcome::Faulted(fault(&error)))
            }
        }
    }

    /// Whether what was read last, a look at the tag that is to be written most often, is fresh enough to write upon. An answer that
    /// waited for a machine that slept is not.
    fn is_fresh(&self) -> bool {
        let read = *self.read.lock();
        read.is_some_and(|(asked, answered)| {
            answered.elapsed() <= LOOK_MAX && asked.slept() <= LOOK_MAX
        })
    }

    async fn pause(&self, duration: Duration) -> Flow<()> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(Outcome::Dropped),
            () = sleep(duration) => Ok(()),
        }
    }

    fn repository(&self) -> &Repository {
        self.spec.float.repository()
    }

    /// The recorded source digest; a step that needs it is never launched before it is recorded.
    fn source(&self) -> Flow<Digest> {
        self.image
            .source
            .as_ref()
            .map(|source| source.digest)
            .ok_or(Outcome::Dropped)
    }

    fn pull(&self) -> Flow<Credential> {
        credential(&self.access.pull, &self.spec.source.repository).map_err(Outcome::Faulted)
    }

    fn push(&self) -> Flow<Credential> {
        credential(&self.access.push, self.repository()).map_err(Outcome::Faulted)
    }
}

/// A tag shows an image that cannot be pinned by another one: in the registry's words, where it had any.
fn unpinnable(image: &str, why: Option<&registry::Error>) -> Fault {
    let why = why.map_or("it is not found by its digest", |why| &why.message);
    Fault {
        reason: Reason::BackupFailed,
        message: format!(
            "{image} is incomplete, so it cannot be pinned; push it again, or remove its tag ({why})"
        ),
        class: FaultClass::Attempt,
    }
}

/// Whether a prune tag's stamp says another time than that of its writing.
fn is_old(prune: &Tag) -> bool {
    let fresh = Timestamp::now() - SignedDuration::from_secs(FRESH_SECONDS);
    Stamp::of(prune).is_some_and(|stamp| stamp < Stamp::at(fresh))
}

/// The step waits this long for the registry and uses no attempt.
fn waits(message: String, wait: Duration) -> Outcome {
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = i64::try_from(whole).unwrap_or(i64::MAX);
    Outcome::Faulted(Fault {
        reason: Reason::RegistryUnavailable,
        message,
        class: FaultClass::Wait { seconds },
    })
}

/// Whether a copy found that the source misses a part.
fn is_incomplete(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Faulted(fault) if fault.reason.is_incomplete())
}

/// The credential for a repository, or why the Secret cannot be used for it.
pub(super) fn credential(
    keyring: &registry::Keyring,
    repository: &Repository,
) -> Result<Credential, Fault> {
    keyring.credential(repository).map_err(|error| Fault {
        reason: Reason::SecretInvalid,
        message: error.to_string(),
        class: FaultClass::Terminal,
    })
}

/// A registry's error as the machine counts it.
pub(super) fn fault(error: &registry::Error) -> Fault {
    let class = match error.class {
        registry::Class::Attempt => FaultClass::Attempt,
        registry::Class::Terminal => FaultClass::Terminal,
        registry::Class::Wait { after } => FaultClass::Wait {
            seconds: after.map_or(1, |after| {
                i64::try_from(after.as_secs()).unwrap_or(i64::MAX).max(1)
            }),
        },
    };
    Fault {
        reason: error.reason,
        message: error.message.clone(),
        class,
    }
}
