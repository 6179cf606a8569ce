//! Whether a request has its floats to itself: eligibility, the limit of its namespace, the claim, and the end of those it supersedes.
//!
//! Everything a claim ends is saved on the loser before the winner's claim is saved, and both before the first registry
//! request under the claim: the record outlives the winner.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::operation::{credential, fault};
use super::shared::{Engine, identity, left_alone};
use super::state::{PendingSave, PushCheck, SECRET_AGAIN};
use crate::api::{self, PromotionRequest};
use crate::coordinator::{Answer, Ask, Recorded, end_rival, superseded_by};
use crate::image::Repository;
use crate::machine::claims::Rival;
use crate::machine::{Admission, Fault, FaultClass, Phase, Reason, Request};
use crate::registry::{Progress, RegistryClient};
use crate::store::{Access, AccessError, Key, Store, StoreError};

/// How often a check looks whether its registry is known to be unavailable.
const LOOK: Duration = Duration::from_secs(2);
/// The longest pause before push permission is checked again.
const CHECK_PAUSE_MAX: Duration = Duration::from_mins(1);

/// What another's save, or the API server, may change in a moment is asked again after this.
const SOON: Duration = Duration::from_secs(1);

/// Why a request waits that is being checked for the first time.
pub const CHECKING_PUSH: &str = "checking push permission";
/// Why a request waits that is not checked yet.
const CHECKING_OTHERS: &str = "older requests of this namespace are checked first";

impl<S: Store> Engine<S> {
    /// Finds out whether a request may run, and claims its floats if it may begin. Gives what it acts with, if it may act.
    pub(super) async fn admit(
        &self,
        key: &Key,
        object: &PromotionRequest,
        me: &mut Recorded,
    ) -> Option<Access> {
        // If it is checked next it waits again; if not, it holds up nobody.
        let waited = self.lock().push_checks.withdraw(&me.uid);
        let (mut answer, mut access) = (Answer::Yes, None);
        loop {
            let now = Instant::now();
            let (ask, settle_at) =
                self.with_log(|coordinator, log| coordinator.admit(log, me, answer, now));
            self.settle_again(&me.uid, settle_at);
            answer = match ask {
                None => break,
                Some(Ask::Policy) => match self.inner.policy.check(&me.request) {
                    Ok(()) => Answer::Yes,
                    Err(message) => refused(Reason::NotAllowed, message, None),
                },
                Some(Ask::Access) => match self.access(key, object, me).await {
                    Ok(found) => {
                        access = Some(found);
                        Answer::Yes
                    }
                    Err(answer) => answer,
                },
                Some(Ask::Push) => self.check_push(key, me, access.as_ref()),
                Some(Ask::End(rival)) => self.supersede(key, &rival).await,
            };
        }
        if let Some(pool) = waited {
            self.with(|state| state.call_push_check(&pool));
        }
        access
    }

    /// What a request may act with.
    async fn access(
        &self,
        key: &Key,
        object: &PromotionRequest,
        me: &Recorded,
    ) -> Result<Access, Answer> {
        let (uid, error) = (
            &me.uid,
            match self.inner.store.access(object).await {
                Ok(access) => {
                    let waiting = self.lock().found(&key.namespace, &me.uid);
                    self.wake(waiting);
                    return Ok(access);
                }
                Err(error) => error,
            },
        );
        Err(match error {
            AccessError::NotFound(message) => {
                self.is_ineligible(uid);
                let after = self.lock().miss(&key.namespace, uid, secrets(object));
                let message = format!("{message}; next try within {} s", after.as_secs());
                // Those that came together do not come back together.
                let after = after.mul_f64(rand::random_range(0.8..1.0));
                waits(Reason::SecretNotFound, message, Some(after))
            }
            // This does not end committed images: they continue once the Secret can be read.
            AccessError::Invalid(message) => {
                refused(Reason::SecretInvalid, message, Some(SECRET_AGAIN))
            }
            AccessError::NotAllowed(message) => {
                // Committed images keep their grant and continue once the rest has ended.
                let goes_on = me.request.has_open_commit();
                refused(Reason::NotAllowed, message, goes_on.then_some(SOON))
            }
            AccessError::Unavailable(message) => waits(Reason::Queued, message, Some(SOON)),
        })
    }

    /// Ends an older request on the floats that `winner` claims. Where it cannot be ended, the winner waits.
    async fn supersede(&self, winner: &Key, rival: &Rival) -> Answer {
        let Some(key) = self.lock().coordinator.key_of(&rival.uid) else {
            return Answer::Yes;
        };
        let waits = |message: String| waits(Reason::Queued, message, Some(SOON));
        let mut object = match self.inner.store.load(&key).await {
            Ok(Some(object)) => object,
            Ok(None) => return Answer::Yes,
            Err(error) => return waits(format!("waits for {key}: {error}")),
        };
        if object.metadata.uid.as_deref() != Some(&rival.uid) || object.has_done_with_floats() {
            return Answer::Yes;
        }
        if !self.is_trusted() {
            return waits("waits for the lease".into());
        }
        let mut request = match self.read(&key, &object) {
            Ok((request, _)) => request,
            Err(error) if left_alone(&object, &error).is_none() => return Answer::Yes,
            Err(error) => return waits(format!("waits for {key}: {error}")),
        };
        let before = object.clone();
        let version = identity(&object.metadata).map_or(1, |(_, version)| version);
        let message = superseded_by(&winner.to_string());
        if !end_rival(&mut request, rival, version, &message, super::shared::now()) {
            return waits(format!("waits for {key}, which is committed"));
        }
        api::status::write(&mut object, &request, None, super::shared::now());
        match self.save(&key, &rival.uid, &object).await {
            Ok(saved) => {
                let record = PendingSave::alone(&rival.uid, before, object, request);
                self.recorded(&key, &record, Some(&saved)).await;
                Answer::Yes
            }
            Err(StoreError::Gone(_)) => Answer::Yes,
            Err(StoreError::Conflict(_)) => {
                waits(format!("waits for {key}, which is being changed"))
            }
            Err(error) => waits(format!("waits for {key}: {error}")),
        }
    }

    /// Asks whether the request's own credential may push everywhere. Until then it waits, or for good it may not.
    fn check_push(&self, key: &Key, me: &Recorded, access: Option<&Access>) -> Answer {
        let (uid, request, now) = (&me.uid, &me.request, Instant::now());
        let mut state = self.lock();
        let known = state.coordinator.known(uid);
        let Some((known, access)) = known.zip(access) else {
            return waits(Reason::Queued, CHECKING_PUSH, None);
        };
        let (tries, refused, why) = match &known.kept.push_check {
            PushCheck::No(reason, message) => {
                return refused(*reason, message.clone(), None);
            }
            PushCheck::Running { progress, why, .. } => {
                let waiting = self.waits_for(progress, &repositories(request));
                return checking(waiting.or_else(|| why.clone()), CHECKING_PUSH);
            }
            PushCheck::NotNow {
                reason,
                message,
                retry_at,
                ..
            } if *retry_at > now => {
                return waits(*reason, message.clone(), Some(*retry_at - now));
            }
            PushCheck::NotNow {
                reason,
                message,
                tries,
                refused,
                ..
            } => (*tries, *refused, Some((*reason, message.clone()))),
            PushCheck::Not | PushCheck::Yes => (0, 0, None),
        };
        let left = request.spec.attempts.saturating_sub(refused);
        let cancel = CancellationToken::new();
        let progress = Arc::new(Progress::of(&key.namespace, uid));
        let order = known.contender.order;
        let repositories = repositories(request);
        let pool = Arc::clone(&known.pool);
        if !state.push_checks.begin(&pool, uid, order) {
            drop(state);
            let waiting = self.waits_for(&progress, &repositories);
            return checking(waiting.or(why), CHECKING_OTHERS);
        }
        let checking = checking(why.clone(), CHECKING_PUSH);
        if let Some(known) = state.known(uid) {
            known.push_check = PushCheck::Running {
                _stop: cancel.clone().drop_guard(),
                progress: Arc::clone(&progress),
                why,
            };
        }
        drop(state);
        self.with(|state| state.call_push_check(&pool));
        self.expect(request, access, &progress);
        let (engine, key, uid) = (self.clone(), key.clone(), uid.clone());
        let mut access = access.clone();
        tokio::spawn(async move {
            let answer = loop {
                let check = engine.run_push_check(&key, &access, &repositories, &progress);
                let answer = tokio::select! {
                    biased;
                    answer = check => answer,
                    () = cancel.cancelled() => return,
                };
                match &answer {
                    Err(fault) if fault.reason.may_be_rotated() => {
                        match engine.rotated(&key, &uid, &access, &repositories).await {
                            Some(renewed) => access = renewed,
                            None => break answer,
                        }
                    }
                    _ => break answer,
                }
            };
            engine.push_checked(&key, &uid, (tries, refused, left), answer);
        });
        checking
    }

    /// Lets one token be had for all that a request needs of a registry.
    fn expect(&self, request: &Request, access: &Access, progress: &Progress) {
        let images = request.spec.images.iter();
        let remotes = images.flat_map(|image| {
            let (float, source) = (image.float.repository(), &image.source.repository);
            let push = access.push.credential(float).ok();
            let pull = access.pull.credential(source).ok();
            let push = push.map(|credential| (float, credential, true));
            push.into_iter()
                .chain(pull.map(|credential| (source, credential, false)))
        });
        let remotes: Vec<_> = remotes.collect();
        let wanted = remotes.iter();
        let wanted =
            wanted.map(|(repository, credential, push)| (credential.at(repository), *push));
        self.inner.tools.registry.expect(progress, wanted);
    }

    /// Runs the check; meanwhile the status shows what it waits for.
    async fn run_push_check(
        &self,
        key: &Key,
        access: &Access,
        repositories: &[Repository],
        progress: &Arc<Progress>,
    ) -> Result<(), Fault> {
        let registry = &self.inner.tools.registry;
        let check = may_push(registry, access, repositories, progress);
        tokio::pin!(check);
        let mut shown = None;
        loop {
            tokio::select! {
                biased;
                answer = &mut check => return answer,
                () = progress.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let waiting = self.waits_for(progress, repositories);
            if waiting != shown {
                shown = waiting;
                self.trigger(key.clone());
            }
        }
    }

    /// Why a check has no answer yet: what it waits for itself, or, where it waits for others that ask the same registry, what is
    /// known of that.
    fn waits_for(
        &self,
        progress: &Progress,
        repositories: &[Repository],
    ) -> Option<(Reason, String)> {
        let registry = &self.inner.tools.registry;
        let waiting = progress.waiting().or_else(|| {
            let mut asked = repositories.iter();
            asked.find_map(|repository| registry.unavailable(repository))
        })?;
        Some((waiting.reason, next_try(&waiting.message)))
    }

    /// What the request may use now, if that is something else than what was just rejected.
    async fn rotated(
        &self,
        key: &Key,
        uid: &str,
        rejected: &Access,
        repositories: &[Repository],
    ) -> Option<Access> {
        let object = self.inner.store.load(key).await.ok()??;
        if object.metadata.uid.as_deref() != Some(uid) {
            return None;
        }
        let access = self.inner.store.access_anew(&object).await.ok()?;
        let same = |float| access.is_same_for(rejected, float, float);
        (!repositories.iter().all(same)).then_some(access)
    }

    /// Keeps the result of [`Self::check_push`] and wakes the requests that may continue.
    fn push_checked(
        &self,
        key: &Key,
        uid: &str,
        (tries, refused, left): (u32, u32, u32),
        answer: Result<(), Fault>,
    ) {
        let push_check = match answer {
            Ok(()) => PushCheck::Yes,
            // Its own reconcile ends it, which wakes those who wait; before that it would be ended as superseded.
            Err(Fault {
                reason,
                message,
                class: FaultClass::Terminal,
            }) => PushCheck::No(reason, message),
            // A refusal for as often as the request allows is one for good.
            Err(Fault {
                reason,
                message,
                class: FaultClass::Attempt,
            }) if left <= 1 => PushCheck::No(reason, message),
            Err(Fault {
                reason,
                message,
                class,
            }) => {
                let pause = Duration::from_secs(1 << tries.min(6)).min(CHECK_PAUSE_MAX);
                PushCheck::NotNow {
                    reason,
                    message: next_try(&message),
                    tries: tries + 1,
                    refused: refused + u32::from(class == FaultClass::Attempt),
                    retry_at: Instant::now() + pause,
                }
            }
        };
        self.with(|state| {
            state.end_push_check(uid);
            let yes = matches!(push_check, PushCheck::Yes);
            if let Some(known) = state.known(uid) {
                known.push_check = push_check;
            }
            if yes {
                state.permitted(uid);
            }
        });
        self.trigger(key.clone());
    }

    /// A request may not begin; so it delays nobody.
    fn is_ineligible(&self, uid: &str) {
        self.with(|state| state.coordinator.is_ineligible(uid));
    }
}

fn waits(reason: Reason, message: impl Into<String>, again: Option<Duration>) -> Answer {
    Answer::Settled(Admission::Waits(reason, message.into()), again)
}

fn refused(reason: Reason, message: String, again: Option<Duration>) -> Answer {
    Answer::Settled(Admission::Refused(reason, message), again)
}

/// Push permission is being checked, or will be; `why` says what it waits for, if that is known.
fn checking(why: Option<(Reason, String)>, unknown: &str) -> Answer {
    let (reason, message) = why.unwrap_or_else(|| (Reason::Queued, unknown.to_owned()));
    waits(reason, message, None)
}

/// Why it is not known yet whether a request may push, and what is done about it. No time: it would change with every try.
fn next_try(why: &str) -> String {
    let most = CHECK_PAUSE_MAX.as_secs();
    format!("{why}; next try within {most} s")
}

/// The repositories of a request's floats.
fn repositories(request: &Request) -> Vec<Repository> {
    let floats = request.spec.images.iter().map(|image| &image.float);
    let repositories: BTreeSet<_> = floats.map(|float| float.repository().clone()).collect();
    repositories.into_iter().collect()
}

/// The names of the Secrets that an object names.
fn secrets(object: &PromotionRequest) -> (Option<String>, Option<String>) {
    let name = |secret: &Option<api::SecretRef>| secret.as_ref().map(|secret| secret.name.clone());
    (
        name(&object.spec.pull_secret),
        name(&object.spec.push_secret),
    )
}

/// Asks the registries, one after the other, whether the credential may push.
async fn may_push(
    registry: &RegistryClient,
    access: &Access,
    repositories: &[Repository],
    progress: &Progress,
) -> Result<(), Fault> {
    for repository in repositories {
        let credential = credential(&access.push, repository)?;
        let answer = registry.may_push(repository, &credential, progress).await;
        answer.map_err(|error| fault(&error))?;
    }
    Ok(())
}

/// The registries an image still needs: the source's only until it is staged.
pub(super) fn hosts(request: &Request, index: usize) -> impl Iterator<Item = &str> {
    let spec = request.spec.images.get(index);
    let phase = request.status.images.get(index).map(|image| image.phase);
    let source = spec.filter(|_| phase.is_some_and(Phase::reads_source));
    let source = source.map(|spec| spec.source.repository.host());
    let float = spec.map(|spec| spec.float.repository().host());
    source.into_iter().chain(float)
}
