//! The handle: everything a test may look at or change.
//!
//! In and out: plain values. Changes happen at once, as another writer's would, past faults, gates and log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::auth::Auth;
use super::content::{Blob, Digest};
use super::faults::{ActiveRule, Matcher, Rule};
use super::gate::{Gate, GateSpec};
use super::log::{LoggedRequest, Phase};
use super::manifest::Manifest;
use super::names::RequestKind;
use super::seed::{Image, ImageSpec};
use super::settings::Settings;
use super::state::RegistryState;
use super::store::{Dangling, StoreError, TagChange};

/// A handle to a registry. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct RegistryHandle {
    registry: Arc<RegistryState>,
}

/// Switches.
impl RegistryHandle {
    pub(super) fn new(registry: Arc<RegistryState>) -> Self {
        Self { registry }
    }

    /// The settings now.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.registry.settings()
    }

    /// Changes settings from the next request on. Turning `collect` on drops at once what nothing holds.
    pub fn update(&self, change: impl FnOnce(&mut Settings)) -> Settings {
        self.registry.update(change)
    }

    /// Replaces users, rights and mode. Tokens that were issued keep what they grant.
    pub fn set_auth(&self, auth: Auth) {
        self.registry.authority.set(auth);
    }

    /// Makes every bearer token invalid that was issued so far.
    pub fn revoke_tokens(&self) {
        self.registry.authority.revoke();
    }

    /// Makes a repository that everybody may pull from, or stops that.
    pub fn set_public(&self, repository: &str, public: bool) {
        self.registry.store().set_public(repository, public);
    }
}

/// Faults, gates and late writes.
impl RegistryHandle {
    /// Adds a fault and returns its number.
    #[allow(clippy::must_use_candidate)] // the effect is the point
    pub fn add_rule(&self, rule: Rule) -> u64 {
        self.registry.faults.add(rule)
    }

    /// Takes a fault away.
    pub fn remove_rule(&self, id: u64) {
        self.registry.faults.remove(Some(id));
    }

    /// Takes all faults away.
    pub fn clear_rules(&self) {
        self.registry.faults.remove(None);
    }

    /// The faults in force and how often each was injected.
    #[must_use]
    pub fn rules(&self) -> Vec<ActiveRule> {
        self.registry.faults.list()
    }

    /// Sets up a gate.
    #[must_use]
    pub fn gate(&self, spec: GateSpec) -> Gate {
        Gate {
            id: self.registry.gates.add(spec),
            gates: self.registry.gates.clone(),
        }
    }

    /// How many late writes wait now.
    #[must_use]
    pub fn held_writes(&self) -> usize {
        self.registry.held.count()
    }

    /// Applies the late writes that wait now.
    pub fn release_held(&self) {
        self.registry.held.release();
    }
}

/// The log.
impl RegistryHandle {
    /// The requests on the log that match, oldest first.
    #[must_use]
    pub fn requests(&self, matcher: &Matcher) -> Vec<LoggedRequest> {
        self.requests_after(0, usize::MAX, matcher)
    }

    /// At most `limit` requests with a number above `seq` that match, oldest first.
    #[must_use]
    pub fn requests_after(&self, seq: u64, limit: usize, matcher: &Matcher) -> Vec<LoggedRequest> {
        self.registry
            .log
            .entries(seq, limit, |entry| matcher.matches(entry))
    }

    /// How many requests on the log match.
    #[must_use]
    pub fn count(&self, matcher: &Matcher) -> usize {
        self.requests(matcher).len()
    }

    /// Requests by kind since the last reset, also those that have left the log.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<RequestKind, u64> {
        self.registry.log.counts()
    }

    /// The most requests that were under way at once since the last reset.
    #[must_use]
    pub fn peak_in_flight(&self) -> usize {
        self.registry.log.peak()
    }

    /// Waits for the nth request on the log that matches, counted from 1, and with `answered` for its answer.
    pub async fn wait_for(&self, matcher: &Matcher, nth: usize, answered: bool) -> LoggedRequest {
        let wanted = |entry: &LoggedRequest| {
            matcher.matches(entry) && (!answered || entry.phase == Phase::Answered)
        };
        self.registry.log.nth(nth, wanted).await
    }

    /// Empties the log and the counts.
    pub fn reset_log(&self) {
        self.registry.log.reset();
    }
}

/// The content, as another writer sees and changes it.
impl RegistryHandle {
    /// Makes sure that a repository exists.
    pub fn create_repository(&self, repository: &str) {
        self.registry.store().create(repository);
    }

    /// Whether a repository exists.
    #[must_use]
    pub fn has_repository(&self, repository: &str) -> bool {
        self.registry.store().exists(repository)
    }

    /// Puts an image in and points a tag at it.
    ///
    /// # Errors
    /// [`StoreError::ContentUnknown`] never for images of this module's builders.
    pub fn seed_image(
        &self,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> Result<Digest, StoreError> {
        image.put(
            &mut self.registry.store(),
            repository,
            Some(tag),
            Instant::now(),
        )?;
        Ok(image.digest())
    }

    /// Puts an image in without a tag: held for the grace.
    ///
    /// # Errors
    /// [`StoreError::ContentUnknown`] never for images of this module's builders.
    pub fn seed_untagged(&self, repository: &str, image: &Image) -> Result<Digest, StoreError> {
        image.put(&mut self.registry.store(), repository, None, Instant::now())?;
        Ok(image.digest())
    }

    /// Builds an image by its description and puts it in.
    ///
    /// # Errors
    /// The text says what is wrong with the description.
    pub fn seed_spec(
        &self,
        repository: &str,
        tag: &str,
        spec: &ImageSpec,
    ) -> Result<Digest, String> {
        let image = spec.build().map_err(|error| error.to_string())?;
        self.seed_image(repository, tag, &image)
            .map_err(|error| error.to_string())
    }

    /// Puts a blob in, held for the grace.
    pub fn seed_blob(&self, repository: &str, blob: Blob) -> Digest {
        let digest = blob.digest();
        let mut store = self.registry.store();
        store.put_blob(repository, digest, blob, Instant::now());
        digest
    }

    /// Points a tag at a digest that the repository has.
    ///
    /// # Errors
    /// Repository or digest do not resolve.
    pub fn set_tag(&self, repository: &str, tag: &str, digest: Digest) -> Result<(), StoreError> {
        self.registry
            .store()
            .set_tag(repository, tag, digest, Instant::now())
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// Repository or tag do not exist.
    pub fn delete_tag(&self, repository: &str, tag: &str) -> Result<(), StoreError> {
        self.registry
            .store()
            .delete_tag(repository, tag, Instant::now())
    }

    /// Breaks the storage: loses a blob, whatever holds it. False where there was none.
    #[must_use]
    pub fn lose_blob(&self, repository: &str, digest: Digest) -> bool {
        self.registry.store().lose_blob(repository, digest)
    }

    /// Breaks the storage: loses a manifest, whatever holds it. False where there was none.
    #[must_use]
    pub fn lose_manifest(&self, repository: &str, digest: Digest) -> bool {
        self.registry.store().lose_manifest(repository, digest)
    }

    /// The digest of a tag.
    #[must_use]
    pub fn tag(&self, repository: &str, tag: &str) -> Option<Digest> {
        let mut store = self.registry.store();
        let tags = store.tags(repository, Instant::now()).ok()?;
        tags.get(tag).copied()
    }

    /// The tags of a repository with their digests; empty where there is no such repository.
    #[must_use]
    pub fn tags(&self, repository: &str) -> BTreeMap<String, Digest> {
        let mut store = self.registry.store();
        store
            .tags(repository, Instant::now())
            .cloned()
            .unwrap_or_default()
    }

    /// Repository, tag, digest: the whole of what tags say.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, BTreeMap<String, Digest>> {
        self.registry.store().snapshot()
    }

    /// The changes of a tag, oldest first, at most the newest 256.
    #[must_use]
    pub fn history(&self, repository: &str, tag: &str) -> Vec<TagChange> {
        self.registry.store().history(repository, tag)
    }

    /// The manifest that a tag names.
    #[must_use]
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<Arc<Manifest>> {
        self.registry
            .store()
            .tagged(repository, tag, Instant::now())
            .ok()
    }

    /// The manifest of a digest, while it resolves.
    #[must_use]
    pub fn manifest(&self, repository: &str, digest: Digest) -> Option<Arc<Manifest>> {
        self.registry
            .store()
            .manifest(repository, digest, Instant::now())
            .ok()
    }

    /// The blob of a digest, while it resolves.
    #[must_use]
    pub fn blob(&self, repository: &str, digest: Digest) -> Option<Blob> {
        self.registry
            .store()
            .blob(repository, digest, Instant::now())
            .ok()
    }

    /// Upload sessions that are open.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.registry.uploads.count()
    }

    /// Every tag from which something does not resolve now.
    #[must_use]
    pub fn dangling(&self) -> Vec<Dangling> {
        let mut store = self.registry.store();
        store.expire(Instant::now());
        store.dangling()
    }

    /// Every tag that dangled at any instant while [`Settings::audit`] was on.
    #[must_use]
    pub fn audit_trail(&self) -> Vec<Dangling> {
        self.registry.store().audit_trail()
    }

    /// Forgets what the running audit has found.
    pub fn clear_audit_trail(&self) {
        self.registry.store().clear_audit_trail();
    }
}
