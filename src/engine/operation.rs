//! One operation: a step of one image, carried out on the registry. What it asks, and in which order, stands in
//! [`promotion_core::steps`]; here is how each question is asked.
//!
//! Reads and copies are given up at once when the operation is dropped; a tag write that was sent is always waited for. Right before a
//! tag write is sent the gate is asked: whether the operation goes on, this process leads for long enough, the look before it is
//! fresh, and no other digest may still land on the tag.

pub mod forecast;
mod labels;
mod referrers;
pub mod staging;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::leadership::{Leadership, WRITE_MAX};
use super::memory::{Memory, Write};
use super::moment::Moment;
use crate::image::{Digest, Reference, Repository, Tag};
use crate::machine::{
    Fault, FaultClass, Image, ImageSpec, Mode, Notice, Outcome, Reason, Referrers, Step,
};
use crate::registry::{self, Credential, Manifest, Progress, RegistryClient};
use crate::steps::{self, Flow, Put, StepIo, TagLabels, Unsettled, Work, is_old};
use crate::store::Access;

/// The oldest look that a tag write may rely on.
const LOOK_MAX: Duration = Duration::from_secs(5);

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
    /// Labels that are read beside the pins.
    pub ahead: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// How referrers are listed in the float's repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// By a tag where its registry does not list them: for the one writer of the repository.
    ByTagToo,
    /// By its registry alone: a tag's list is read, extended and written, which two at once must not do.
    ByRegistry,
}

impl Operation {
    /// Runs the step to its outcome.
    pub async fn run(self) -> Outcome {
        match self.mode {
            Mode::Plan => {
                let forecast = Box::pin(self.forecast()).await;
                forecast.unwrap_or_else(|outcome| outcome)
            }
            Mode::Promote => {
                let outcome = self.work().run(self.step).await;
                self.progress.end_puts();
                outcome
            }
        }
    }

    fn work(&self) -> Work<'_, Self> {
        Work {
            io: self,
            spec: &self.spec,
            image: &self.image,
            may_have_run: self.may_have_run,
        }
    }

    /// The gate was closed: what for.
    fn not_sent(&self, tag: &Tag, digest: Option<Digest>) -> Unsettled {
        let (repository, now) = (self.repository(), Instant::now());
        let memory = &self.tools.memory;
        match memory.log(|log| log.landing_until(repository, tag, digest, now)) {
            Some(until) => Unsettled::Landing(
                format!(
                    "{repository}:{tag}: another write of before was not answered and may land late; waits until it cannot"
                ),
                until.saturating_duration_since(now),
            ),
            None => Unsettled::NotSent,
        }
    }

    /// Asked directly before a tag write is sent.
    fn may_send(&self, write: &Write<'_>) -> bool {
        !self.cancel.is_cancelled()
            && self.tools.may_write()
            && self.is_fresh()
            && write.enter(Instant::now())
    }

    /// Sends a tag write. What was sent is waited for; what was not answered keeps the float quiet until it shows or can land no more.
    async fn settle(
        &self,
        tag: &Tag,
        write: &Write<'_>,
        mut sending: Pin<Box<impl Future<Output = registry::Put>>>,
    ) -> Flow<Put> {
        let (repository, memory) = (self.repository(), &self.tools.memory);
        let started = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = &mut sending => answer,
            () = self.cancel.cancelled() => {
                if !write.is_sent() {
                    return Err(Outcome::Dropped);
                }
                sending.as_mut().await
            }
        };
        // What the answer means to the step stands in the steps; here, what it means to the record of our writes.
        let refused = match answer {
            registry::Put::Written => {
                write.answered(Instant::now());
                let digest = write.digest().map(tracing::field::display);
                tracing::debug!(%repository, %tag, digest, took = ?started.elapsed(), "wrote tag");
                return Ok(Put::Written);
            }
            // It stays in the record as it was entered.
            registry::Put::Unknown(error) => {
                let quiet = memory.log(|log| log.settle());
                return Ok(Put::Unsettled(Unsettled::Unknown(error.message, quiet)));
            }
            registry::Put::ContentMissing(error) => Put::ContentMissing(fault(&error)),
            registry::Put::Refused(error) => Put::Refused(fault(&error)),
            registry::Put::Immutable(error) => Put::Immutable(fault(&error)),
            registry::Put::NotSent => Put::Unsettled(self.not_sent(tag, write.digest())),
        };
        write.refused();
        Ok(refused)
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

    fn repository(&self) -> &Repository {
        self.spec.float.repository()
    }

    fn pull(&self) -> Flow<Credential> {
        credential(&self.access.pull, &self.spec.source.repository).map_err(Outcome::Faulted)
    }

    fn push(&self) -> Flow<Credential> {
        credential(&self.access.push, self.repository()).map_err(Outcome::Faulted)
    }
}

impl steps::Manifest for Manifest {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn media_type(&self) -> &str {
        &self.media_type
    }
}

impl StepIo for Operation {
    type Manifest = Manifest;

    async fn look(&self, tag: &Tag) -> Flow<Option<Manifest>> {
        let (registry, push) = (&self.tools.registry, self.push()?);
        let (repository, puts) = (self.repository(), self.step.writes_after_look());
        let look = registry.get_before_puts(repository, tag, puts, &push, &self.progress);
        self.read(look).await
    }

    async fn fetch(&self, reference: &Reference) -> Flow<Option<Manifest>> {
        let (registry, pull) = (&self.tools.registry, self.pull()?);
        let from = &self.spec.source.repository;
        let fetch = registry.get(from, reference, &pull, &self.progress);
        self.read(fetch).await
    }

    async fn check_granted(&self, source: Digest) -> Flow<()> {
        self.check_staged(source).await
    }

    async fn held(&self, digest: Digest) -> Flow<Option<Manifest>> {
        let (registry, push) = (&self.tools.registry, self.push()?);
        let held = registry.get_cached(self.repository(), digest, &push, &self.progress);
        let held = self.read(held).await?;
        if self.step.pins_displaced()
            && let Some(manifest) = &held
        {
            self.read_labels_ahead(manifest, push);
        }
        Ok(held)
    }

    async fn labels(&self, manifest: &Manifest) -> Flow<TagLabels> {
        let push = self.push()?;
        self.labels_of(self.repository(), manifest, &push, true)
            .await
    }

    async fn copy(&self, manifest: Manifest) -> Flow<Option<Manifest>> {
        let (pull, push) = (self.pull()?, self.push()?);
        // A large one is given back while blobs are on their way: others wait for the memory.
        let kept = (!manifest.is_large()).then(|| manifest.clone());
        let from = pull.at(&self.spec.source.repository);
        let to = push.at(self.repository());
        let registry = &self.tools.registry;
        let copy = registry.copy_labelled(from, manifest, to, &self.progress);
        self.read(copy).await?;
        Ok(kept)
    }

    async fn put(&self, tag: &Tag, manifest: &Manifest) -> Flow<Put> {
        let (registry, push) = (&self.tools.registry, self.push()?);
        let write = self
            .tools
            .memory
            .write(&self.spec.float, tag, Some(manifest.digest));
        let gate = || self.may_send(&write);
        let put = registry.put_tag(
            self.repository(),
            tag,
            manifest,
            &push,
            gate,
            &self.progress,
        );
        // Boxed: every step would be as large as what it has to send.
        self.settle(tag, &write, Box::pin(put)).await
    }

    async fn undeletable(&self) -> Flow<Option<String>> {
        let (registry, push) = (&self.tools.registry, self.push()?);
        let gate = || !self.cancel.is_cancelled() && self.tools.may_write();
        let tried = registry.undeletable(self.repository(), &push, gate, &self.progress);
        match self.read(Box::pin(tried)).await {
            // Nothing depends on a tag that stays.
            Err(Outcome::Faulted(fault)) if !matches!(fault.class, FaultClass::Wait { .. }) => {
                Ok(Some(fault.message))
            }
            known => known,
        }
    }

    async fn delete(&self, tag: &Tag) -> Flow<Put> {
        let (registry, push) = (&self.tools.registry, self.push()?);
        let write = self.tools.memory.write(&self.spec.float, tag, None);
        let gate = || self.may_send(&write);
        let deletion = registry.delete_tag(self.repository(), tag, &push, gate, &self.progress);
        self.settle(tag, &write, Box::pin(deletion)).await
    }

    async fn bring_referrers(&self, source: Digest) -> Flow<Option<Notice>> {
        self.bring_what_refers_to(source, Lists::ByTagToo).await
    }

    async fn wrote(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        let (memory, now) = (&self.tools.memory, Instant::now());
        Ok(memory.log(|log| log.wrote(self.repository(), tag, digest, now)))
    }

    async fn is_old(&self, prune: &Tag) -> Flow<bool> {
        Ok(is_old(prune, Timestamp::now()))
    }

    async fn pause(&self, duration: Duration) -> Flow<()> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Outcome::Dropped),
            () = sleep(duration) => Ok(()),
        }
    }

    fn believes(&self, repository: &Repository, tag: &Tag, digest: Option<Digest>) -> bool {
        let (memory, now) = (&self.tools.memory, Instant::now());
        !memory.log(|log| log.contradicts(repository, tag, digest, now))
    }

    fn may_write(&self) -> bool {
        self.tools.may_write()
    }

    fn forget(&self, repository: &Repository) {
        self.tools.registry.forget(repository);
    }

    fn forget_source(&self, digest: Digest) {
        // Without a credential there was nothing to keep.
        if let Ok(pull) = self.pull() {
            let from = &self.spec.source.repository;
            self.tools.registry.forget_manifest(from, digest, &pull);
        }
    }

    fn bytes(&self) -> u64 {
        self.progress.bytes()
    }
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
