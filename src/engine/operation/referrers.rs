//! What refers to an image goes with it: signatures, attestations, SBOMs, and what refers to those.
//!
//! In comes the digest that was just staged; when this returns, the float's repository has what the source's lists. Every part
//! looks first, so that a second run writes what is missing and nothing else.
//!
//! Guaranteed: a look-up that fails is no "none"; a tag that holds another digest than the source's is left as it is, because no
//! write of ours takes the last tag from a digest; a list of referrers loses no entry.

use std::collections::HashSet;

use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::{Lists, Operation, fault};
use crate::image::{Digest, Reference, Tag};
use crate::machine::{Fault, FaultClass, Notice, Outcome, Reason, Referrers};
use crate::registry::{self, Listing, Manifest, Referrer, list_with};
use crate::steps::{Flow, LOOK_TWICE, READ_AGAIN, StepIo, Written};

/// Referrers of one image, those of its referrers included.
const REFERRERS_MAX: usize = 100;
/// Referrers of referrers.
const DEPTH_MAX: usize = 2;
/// Referrers of one manifest that are looked at at once.
const AT_ONCE: usize = 4;

/// What could not be copied, where that is no failure.
#[derive(Default)]
struct Trouble {
    first: Option<String>,
    count: usize,
    /// Two looks apart agreed that the source's registry has no API for referrers.
    unlisted: bool,
}

/// What refers to one manifest, in the source's repository.
#[derive(Default)]
struct Around {
    /// As the registry, or a tag in its stead, lists it.
    listed: Vec<Referrer>,
    /// By the names that cosign gives.
    named: Vec<(Tag, Digest)>,
    /// Nothing was found, and nothing but 404s says so.
    unseen: bool,
}

impl Operation {
    /// Copies what refers to the source; a notice where some of it could not be, and need not.
    pub(super) async fn bring_what_refers_to(
        &self,
        source: Digest,
        lists: Lists,
    ) -> Flow<Option<Notice>> {
        if self.referrers == Referrers::Ignore || self.spec.source.repository == *self.repository()
        {
            return Ok(None);
        }
        let mut trouble = Trouble::default();
        let mut seen = HashSet::from([source]);
        let mut level = vec![source];
        for depth in 0..=DEPTH_MAX {
            let mut next = Vec::new();
            for subject in level {
                let around = Box::pin(self.around(subject, &mut trouble)).await?;
                if depth == 0 && around.unseen {
                    let there = Box::pin(self.is_source_there(source)).await;
                    self.tolerate(there, &mut trouble)?;
                }
                let listed = around.listed.iter().map(|referrer| referrer.digest);
                let named = around.named.iter().map(|(_, digest)| *digest);
                let found: Vec<Digest> = listed.chain(named).filter(|d| seen.insert(*d)).collect();
                if let Err(outcome) = within(source, depth, seen.len() - 1, &found) {
                    self.tolerate::<()>(Err(outcome), &mut trouble)?;
                    return Ok(self.notice(trouble));
                }
                next.extend(found);
                let brought = self.bring_around(subject, around, lists, &mut trouble);
                Box::pin(brought).await?;
            }
            level = next;
        }
        Ok(self.notice(trouble))
    }

    /// A failure is the image's, or only noted. Waiting is neither.
    fn tolerate<T>(&self, result: Flow<T>, trouble: &mut Trouble) -> Flow<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Outcome::Faulted(fault)) if !matches!(fault.class, FaultClass::Wait { .. }) => {
                if self.referrers == Referrers::Require {
                    return Err(failed(fault.message));
                }
                trouble.count += 1;
                trouble.first.get_or_insert(fault.message);
                Ok(None)
            }
            Err(outcome) => Err(outcome),
        }
    }

    fn notice(&self, trouble: Trouble) -> Option<Notice> {
        let float = &self.spec.float;
        let count = trouble.count;
        trouble.first.map(|first| Notice {
            reason: Reason::ReferrersFailed,
            message: format!(
                "{float}: what refers to its image was not all copied ({count} failed): {first}"
            ),
        })
    }

    // === the source ===

    async fn around(&self, subject: Digest, trouble: &mut Trouble) -> Flow<Around> {
        let [signature, attestation, sbom] = subject.cosign_tags();
        let (listed, signature, attestation, sbom) = futures::join!(
            self.listed(subject, trouble.unlisted),
            self.named_at_source(signature),
            self.named_at_source(attestation),
            self.named_at_source(sbom),
        );
        let mut around = Around::default();
        let listed = self.tolerate(listed, trouble)?;
        trouble.unlisted |= matches!(listed, Some((_, false)));
        for found in [signature, attestation, sbom] {
            around
                .named
                .extend(self.tolerate(found, trouble)?.flatten());
        }
        around.unseen = matches!(&listed, Some((listed, false)) if listed.is_empty());
        around.unseen &= around.named.is_empty();
        around.listed = listed.unwrap_or_default().0;
        Ok(around)
    }

    /// What the source's registry lists, and whether it has the API for that. `unlisted`: it was found to have none.
    async fn listed(&self, subject: Digest, unlisted: bool) -> Flow<(Vec<Referrer>, bool)> {
        let (from, pull) = (&self.spec.source.repository, self.pull()?);
        let registry = &self.tools.registry;
        let required = self.referrers == Referrers::Require;
        // An answer that says so without a registry's words is believed where another, later, says the same.
        let mut unsure = required && !unlisted;
        loop {
            let listed =
                registry.referrers(pull.at(from), subject, false, required, &self.progress);
            match self.read(listed).await? {
                Listing::Of(listed) => return Ok((listed, true)),
                Listing::None if unsure => unsure = false,
                Listing::None | Listing::Unsupported => break,
            }
            self.pause(LOOK_TWICE).await?;
        }
        let Some((tag, list)) = self.at_source(subject.referrers_tag()).await? else {
            return Ok((Vec::new(), false));
        };
        // GitLab: the tag of a digest's name is that digest.
        if list.digest == subject || !list.is_index() {
            return Ok((Vec::new(), false));
        }
        let listed = judged(list.referrers(&format!("{from}:{tag}")))?;
        let named: Vec<_> = stream::iter(listed)
            .map(|referrer| self.referring(subject, referrer))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let named: Flow<Vec<_>> = named.into_iter().collect();
        Ok((named?.into_iter().flatten().collect(), false))
    }

    /// An entry of a tag's list, if what it names refers to `subject`. What is not there is reported when it is copied.
    async fn referring(&self, subject: Digest, referrer: Referrer) -> Flow<Option<Referrer>> {
        let (from, pull) = (&self.spec.source.repository, self.pull()?);
        let reference = Reference::Digest(referrer.digest);
        let registry = &self.tools.registry;
        let fetch = registry.get(from, &reference, &pull, &self.progress);
        let manifest = self.read(fetch).await?;
        let refers = manifest.is_none_or(|manifest| manifest.refers_to(subject));
        Ok(refers.then_some(referrer))
    }

    /// The digest at a tag of the source's repository. The manifest is read again when it is brought: it may be large.
    async fn named_at_source(&self, tag: Tag) -> Flow<Option<(Tag, Digest)>> {
        let found = self.at_source(tag).await?;
        Ok(found.map(|(tag, manifest)| (tag, manifest.digest)))
    }

    /// What a tag of the source's repository holds, read again while it contradicts our own last write.
    async fn at_source(&self, tag: Tag) -> Flow<Option<(Tag, Manifest)>> {
        let (from, pull) = (&self.spec.source.repository, self.pull()?);
        let reference = Reference::Tag(tag.clone());
        loop {
            let registry = &self.tools.registry;
            let fetch = registry.get(from, &reference, &pull, &self.progress);
            let found = self.read(fetch).await?;
            let digest = found.as_ref().map(|m| m.digest);
            if self.believes(from, &tag, digest) {
                return Ok(found.map(|manifest| (tag, manifest)));
            }
            self.pause(READ_AGAIN).await?;
        }
    }

    /// Where nothing but 404s was seen, the source itself must not be one of them.
    async fn is_source_there(&self, source: Digest) -> Flow<()> {
        let (from, pull) = (&self.spec.source.repository, self.pull()?);
        let registry = &self.tools.registry;
        registry.forget_manifest(from, source, &pull);
        let reference = Reference::Digest(source);
        let fetch = registry.get(from, &reference, &pull, &self.progress);
        match self.read(fetch).await? {
            Some(_) => Ok(()),
            None => Err(failed(format!(
                "{} went away while its referrers were looked for",
                self.spec.source
            ))),
        }
    }

    // === the float's repository ===

    /// Brings what refers to one manifest.
    async fn bring_around(
        &self,
        subject: Digest,
        around: Around,
        lists: Lists,
        trouble: &mut Trouble,
    ) -> Flow<()> {
        for (tag, digest) in &around.named {
            let named = self.bring_named(tag, *digest).await;
            self.tolerate(named, trouble)?;
        }
        if around.listed.is_empty() {
            return Ok(());
        }
        let there = self.there(subject).await;
        let Some((there, listing)) = self.tolerate(there, trouble)? else {
            return Ok(());
        };
        if !listing && lists == Lists::ByRegistry {
            self.tolerate::<()>(Err(self.unlisted()), trouble)?;
            return Ok(());
        }
        let missing = around.listed.into_iter();
        let missing = missing.filter(|referrer| !there.contains(&referrer.digest));
        let mut unlisted = Vec::new();
        // One after the other: each may be as large as a manifest may be.
        for referrer in missing {
            let brought = self.bring_listed(referrer).await;
            unlisted.extend(self.tolerate(brought, trouble)?.flatten());
        }
        // A registry that lists them itself needs no tag for it, also where it does not say so when it takes them (quay).
        if !listing && !unlisted.is_empty() {
            unlisted.sort_by_key(|referrer| referrer.digest);
            let list = self.list(subject, &unlisted).await;
            self.tolerate(list, trouble)?;
        }
        Ok(())
    }

    /// What is listed in the float's repository already, and whether its registry lists it itself.
    async fn there(&self, subject: Digest) -> Flow<(HashSet<Digest>, bool)> {
        let (to, push) = (self.repository(), self.push()?);
        let registry = &self.tools.registry;
        let anew = self.referrers == Referrers::Require;
        let listed = registry.referrers(push.at(to), subject, true, anew, &self.progress);
        let (listed, lists) = match self.read(listed).await? {
            Listing::Of(listed) => (listed, true),
            Listing::Unsupported | Listing::None => {
                let tag = subject.referrers_tag();
                let listed = match self.list_at(subject, &tag).await? {
                    Some(list) => judged(list.referrers(&format!("{to}:{tag}")))?,
                    None => Vec::new(),
                };
                (listed, false)
            }
        };
        let digests = listed.iter().map(|referrer| referrer.digest);
        Ok((digests.collect(), lists))
    }

    /// Whether the float's registry lists what refers to a manifest; none where it does not know the manifest and says no more.
    pub(super) async fn lists_referrers(&self, subject: Digest) -> Flow<Option<bool>> {
        let (to, push) = (self.repository(), self.push()?);
        let registry = &self.tools.registry;
        let listed = registry.referrers(push.at(to), subject, true, true, &self.progress);
        Ok(match self.read(listed).await? {
            Listing::Of(_) => Some(true),
            Listing::Unsupported => Some(false),
            Listing::None => registry
                .is_known_without_referrers(push.at(to))
                .then_some(false),
        })
    }

    /// Why referrers cannot be staged.
    pub(super) fn unlisted(&self) -> Outcome {
        let host = self.repository().host();
        Outcome::Faulted(Fault {
            reason: Reason::ReferrersFailed,
            message: format!(
                "{host} has no referrers API, and the tag that would list them must have one writer; stage with referrers: Ignore, \
                 or let promote or the controller copy the image and its referrers"
            ),
            class: FaultClass::Terminal,
        })
    }

    /// The list at a tag of the float's repository. The subject itself is none: on GitLab every tag of a digest's name is that.
    async fn list_at(&self, subject: Digest, tag: &Tag) -> Flow<Option<Manifest>> {
        let list = self.work().look(tag).await?;
        Ok(list.filter(|list| list.digest != subject))
    }

    /// Copies one referrer; gives it back where a tag has to list it.
    async fn bring_listed(&self, referrer: Referrer) -> Flow<Option<Referrer>> {
        let (from, to) = (&self.spec.source.repository, self.repository());
        let (pull, push) = (self.pull()?, self.push()?);
        let registry = &self.tools.registry;
        let manifest = self.referrer(referrer.digest).await?;
        let copy = registry.copy_referrer(pull.at(from), manifest, push.at(to), &self.progress);
        let noted = self.read(copy).await?;
        Ok((!noted).then_some(referrer))
    }

    /// The manifest of what the source's repository names as a referrer.
    async fn referrer(&self, digest: Digest) -> Flow<Manifest> {
        let (from, pull) = (&self.spec.source.repository, self.pull()?);
        let reference = Reference::Digest(digest);
        let registry = &self.tools.registry;
        let fetch = registry.get(from, &reference, &pull, &self.progress);
        self.read(fetch).await?.ok_or_else(|| {
            failed(format!(
                "{from}@{digest} is listed as a referrer and is not there"
            ))
        })
    }

    /// Adds referrers to the tag that lists them where the registry does not.
    async fn list(&self, subject: Digest, unlisted: &[Referrer]) -> Flow<()> {
        let tag = subject.referrers_tag();
        let what = format!("{}:{tag}", self.repository());
        let _turn = self.turn(&tag).await?;
        let list = self.list_at(subject, &tag).await?;
        match judged(list_with(&what, list.as_ref(), unlisted))? {
            Some(list) => self.write(&tag, &list).await,
            None => Ok(()),
        }
    }

    /// Copies what cosign keeps at a tag, under the same name.
    async fn bring_named(&self, tag: &Tag, digest: Digest) -> Flow<()> {
        let (from, to) = (&self.spec.source.repository, self.repository());
        let (pull, push) = (self.pull()?, self.push()?);
        let _turn = self.turn(tag).await?;
        if self.is_named(tag, digest).await? {
            return Ok(());
        }
        let registry = &self.tools.registry;
        let manifest = self.referrer(digest).await?;
        let copy = registry.copy(pull.at(from), manifest, push.at(to), &self.progress);
        self.read(copy).await?;
        let manifest = self.referrer(digest).await?;
        // Copying may take long: the look and the PUT follow each other directly.
        if self.is_named(tag, digest).await? {
            return Ok(());
        }
        self.write(tag, &manifest).await
    }

    /// Whether a tag holds this manifest; an error where it holds another.
    async fn is_named(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        match self.work().look(tag).await? {
            Some(found) if found.digest == digest => Ok(true),
            Some(found) => Err(failed(format!(
                "{}:{tag} holds {}, not the source's {}, and is left as it is; bring the two together or remove that tag",
                self.repository(),
                found.digest.short(),
                digest.short(),
            ))),
            None => Ok(false),
        }
    }

    async fn write(&self, tag: &Tag, manifest: &Manifest) -> Flow<()> {
        match self.work().write(tag, manifest).await? {
            Written::Done => Ok(()),
            Written::ContentMissing(fault) => {
                self.tools.registry.forget(self.repository());
                Err(Outcome::Faulted(fault))
            }
        }
    }

    /// Waits until no other image of the same digest writes this tag, and none of ours may still land there.
    async fn turn(&self, tag: &Tag) -> Flow<impl Drop> {
        let memory = &self.tools.memory;
        let key = (self.repository().clone(), tag.clone());
        let turn = self
            .read(async { Ok(memory.tag_locks.enter(&key).await) })
            .await?;
        loop {
            let now = Instant::now();
            let landing = memory.log(|log| log.landing_until(&key.0, tag, None, now));
            let Some(until) = landing else {
                return Ok(turn);
            };
            self.pause(until.saturating_duration_since(now)).await?;
        }
    }
}

/// Whether what was found at this depth is within what is copied.
fn within(source: Digest, depth: usize, count: usize, found: &[Digest]) -> Flow<()> {
    let source = source.short();
    if depth == DEPTH_MAX && !found.is_empty() {
        let message =
            format!("what refers to {source} is referred to more than {DEPTH_MAX} levels deep");
        return Err(failed(format!(
            "{message}; promote it with referrers: BestEffort or Ignore"
        )));
    }
    if count > REFERRERS_MAX {
        let message = format!("{source} has more than {REFERRERS_MAX} referrers");
        return Err(failed(format!(
            "{message}; remove those that are no longer needed"
        )));
    }
    Ok(())
}

fn failed(message: String) -> Outcome {
    Outcome::Faulted(Fault {
        reason: Reason::ReferrersFailed,
        message,
        class: FaultClass::Attempt,
    })
}

fn judged<T>(result: Result<T, registry::Error>) -> Flow<T> {
    result.map_err(|error| Outcome::Faulted(fault(&error)))
}
