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
use super::state::{PushCheck, SECRET_AGAIN};
use crate::api::{self, PromotionRequest};
use crate::coordinator::{Claim, FLOATS_MAX, end_rival};
use crate::image::Repository;
use crate::machine::claims::Rival;
use crate::machine::{Admission, Fault, FaultClass, Mode, Phase, Reason, Request};
use crate::registry::{self, Progress, RegistryClient};
use crate::store::{Access, AccessError, Key, Store, StoreError};

/// How often a check looks whether its registry is known to be unavailable.
const LOOK: Duration = Duration::from_secs(2);
/// The longest pause before push permission is checked again.
const CHECK_PAUSE_MAX: Duration = Duration::from_mins(1);

/// Why a request waits that is being checked for the first time.
pub const CHECKING_PUSH: &str = "checking push permission";
/// Why a request waits that is not checked yet.
const CHECKING_OTHERS: &str =
    "older requests of this namespace are checked first (--max-active-requests-per-namespace)";

/// What the engine found out about a request's admission.
pub(super) struct AdmissionCheck {
    pub admission: Admission,
    pub access: Option<Access>,
    /// Look again then.
    pub requeue_at: Option<Instant>,
    /// It is over its namespace's limit, and waits for nothing else.
    pub over_limit: bool,
}

impl AdmissionCheck {
    fn of(admission: Admission) -> Self {
        Self {
            admission,
            access: None,
            requeue_at: None,
            over_limit: false,
        }
    }

    fn waits(reason: Reason, message: impl Into<String>, after: Option<Duration>) -> Self {
        let requeue_at = after.map(|after| Instant::now() + after);
        Self {
            admission: Admission::Waits(reason, message.into()),
            access: None,
            requeue_at,
            over_limit: false,
        }
    }
}

impl<S: Store> Engine<S> {
    /// Finds out whether a request may run, and claims its floats if it may begin.
    pub(super) async fn admit(
        &self,
        key: &Key,
        uid: &str,
        object: &PromotionRequest,
        request: &Request,
    ) -> Result<AdmissionCheck, StoreError> {
        // If it is checked next it waits again; if not, it holds up nobody.
        let waited = self.lock().push_checks.withdraw(&key.namespace, uid);
        let check = self.judge(key, uid, object, request).await;
        if waited {
            self.with(|state| state.call_push_check(&key.namespace));
        }
        let check = check?;
        if check.admission != Admission::Holds {
            let (now, over_limit) = (Instant::now(), check.over_limit);
            let again = self.with_log(|coordinator, log| {
                coordinator.not_admitted(log, uid, request, over_limit, now)
            });
            self.settle_again(uid, again);
        }
        Ok(check)
    }

    async fn judge(
        &self,
        key: &Key,
        uid: &str,
        object: &PromotionRequest,
        request: &Request,
    ) -> Result<AdmissionCheck, StoreError> {
        if let Some(before) = self.lock().coordinator.shelved_behind(uid) {
            return Ok(AdmissionCheck::waits(Reason::Queued, beyond(before), None));
        }
        if let Err(message) = self.inner.policy.check(request) {
            return Ok(AdmissionCheck::of(Admission::Refused(
                Reason::NotAllowed,
                message,
            )));
        }
        if request.spec.suspend {
            // Others still wait for its committed images; with the rest it delays nobody.
            self.is_ineligible(uid);
        }
        if let Some((reason, message)) = request.held_back() {
            return Ok(AdmissionCheck::waits(reason, message, None));
        }
        if request.status.started.is_none()
            && let Some(message) = self.paused(request)
        {
            return Ok(AdmissionCheck::waits(Reason::Paused, message, None));
        }
        let access = match self.inner.store.access(object).await {
            Ok(access) => access,
            Err(AccessError::NotFound(message)) => {
                self.is_ineligible(uid);
                let after = self.lock().miss(&key.namespace, uid, secrets(object));
                let message = format!("{message}; next try within {} s", after.as_secs());
                // Those that came together do not come back together.
                let after = after.mul_f64(rand::random_range(0.8..1.0));
                return Ok(AdmissionCheck::waits(
                    Reason::SecretNotFound,
                    message,
                    Some(after),
                ));
            }
            Err(AccessError::Invalid(message)) => {
                let mut check =
                    AdmissionCheck::of(Admission::Refused(Reason::SecretInvalid, message));
                // This does not end committed images: they continue once the Secret can be read.
                check.requeue_at = Some(Instant::now() + SECRET_AGAIN);
                return Ok(check);
            }
            Err(AccessError::NotAllowed(message)) => {
                let mut check = AdmissionCheck::of(Admission::Refused(Reason::NotAllowed, message));
                // Committed images keep their grant and continue once the rest has ended.
                let goes_on = request.has_open_commit();
                check.requeue_at = goes_on.then(|| Instant::now() + Duration::from_secs(1));
                return Ok(check);
            }
            Err(AccessError::Unavailable(message)) => {
                return Ok(AdmissionCheck::waits(
                    Reason::Queued,
                    message,
                    Some(Duration::from_secs(1)),
                ));
            }
        };
        let waiting = self.lock().found(&key.namespace, uid);
        self.wake(waiting);
        let mut check = if request.spec.mode == Mode::Plan {
            if self.with(|state| state.coordinator.admit_plan(uid)) {
                AdmissionCheck::of(Admission::Holds)
            } else {
                self.over_limit("plans")
            }
        } else {
            self.claim(key, uid, request, &access).await?
        };
        check.access = Some(access);
        Ok(check)
    }

    /// Why none of it begins, where the operator paused any of its registries.
    fn paused(&self, request: &Request) -> Option<String> {
        let state = self.lock();
        let hosts = (0..request.spec.images.len()).flat_map(|index| hosts(request, index));
        state.pause.message_for(hosts)
    }

    /// The floats of the unfinished images, for this request alone.
    async fn claim(
        &self,
        key: &Key,
        uid: &str,
        request: &Request,
        access: &Access,
    ) -> Result<AdmissionCheck, StoreError> {
        let claim = self.with(|state| state.coordinator.claim(uid, request, Instant::now()));
        let soon = Some(Duration::from_secs(1));
        Ok(match claim {
            Claim::Holds => AdmissionCheck::of(Admission::Holds),
            Claim::AskPermission => self.check_push(key, uid, request, access),
            Claim::Soon(why) => AdmissionCheck::waits(Reason::Queued, why, soon),
            Claim::Behind { name, after } => {
                let message = format!("waits for {name}, which shares a float");
                AdmissionCheck::waits(Reason::Queued, message, after)
            }
            Claim::OverLimit => self.over_limit("requests"),
            Claim::Superseded { images, by } => AdmissionCheck {
                // Its remaining images, if any, are judged again at once.
                requeue_at: Some(Instant::now()),
                ..AdmissionCheck::of(Admission::Superseded(images, superseded_by(&by)))
            },
            Claim::Ends(rivals) => {
                for rival in rivals {
                    let ended = self.supersede(key, &rival).await;
                    if !matches!(ended, Ok(Ok(()))) {
                        // A claim is valid only after its rivals were superseded: judge again.
                        let now = Instant::now();
                        let again = self
                            .with_log(|coordinator, log| coordinator.withdraw_claim(log, uid, now));
                        self.settle_again(uid, again);
                    }
                    if let Err(check) = ended? {
                        return Ok(check);
                    }
                    self.lock().coordinator.rival_ended(uid, &rival.uid);
                }
                AdmissionCheck::of(Admission::Holds)
            }
        })
    }

    /// It is over its namespace's limit, and is woken when it may begin.
    fn over_limit(&self, what: &str) -> AdmissionCheck {
        let limit = self.lock().coordinator.namespace_max();
        let message = format!(
            "over its namespace's limit of {limit} active {what} (--max-active-requests-per-namespace); waits for one of them to end"
        );
        AdmissionCheck {
            over_limit: true,
            ..AdmissionCheck::waits(Reason::Queued, message, None)
        }
    }

    /// Ends an older request on the floats that `winner` claims. Err: it cannot be ended, the winner waits.
    async fn supersede(
        &self,
        winner: &Key,
        rival: &Rival,
    ) -> Result<Result<(), AdmissionCheck>, StoreError> {
        let Some(key) = self.lock().coordinator.key_of(&rival.uid) else {
            return Ok(Ok(()));
        };
        let waits = |message: String| {
            AdmissionCheck::waits(Reason::Queued, message, Some(Duration::from_secs(1)))
        };
        let loaded = match self.inner.store.load(&key).await {
            Err(error @ StoreError::Unreadable(..)) => {
                return Ok(Err(waits(format!("waits for {error}"))));
            }
            loaded => loaded?,
        };
        let Some(mut object) = loaded else {
            return Ok(Ok(()));
        };
        if object.metadata.uid.as_deref() != Some(&rival.uid) || object.has_done_with_floats() {
            return Ok(Ok(()));
        }
        if !self.is_trusted() {
            return Ok(Err(waits("waits for the lease".into())));
        }
        let mut request = match self.read(&key, &object) {
            Ok((request, _)) => request,
            Err(error) if left_alone(&object, &error).is_none() => return Ok(Ok(())),
            Err(error) => return Ok(Err(waits(format!("waits for {key}: {error}")))),
        };
        let before = object.clone();
        let version = identity(&object.metadata).map_or(1, |(_, version)| version);
        let message = superseded_by(&winner.to_string());
        if !end_rival(&mut request, rival, version, &message, super::shared::now()) {
            return Ok(Err(waits(format!("waits for {key}, which is committed"))));
        }
        api::status::write(&mut object, &request, None, super::shared::now());
        match self.save(&key, &rival.uid, &object).await {
            Ok(saved) => {
                self.saved(&key, &before, &saved, &request, &[]).await;
                Ok(Ok(()))
            }
            Err(StoreError::Gone(_)) => Ok(Ok(())),
            Err(StoreError::Conflict(_)) => Ok(Err(waits(format!(
                "waits for {key}, which is being changed"
            )))),
            Err(error) => Err(error),
        }
    }

    /// Asks whether the request's own credential may push everywhere. Until then it waits, or for good it may not.
    fn check_push(
        &self,
        key: &Key,
        uid: &str,
        request: &Request,
        access: &Access,
    ) -> AdmissionCheck {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(known) = state.coordinator.known(uid) else {
            return AdmissionCheck::waits(Reason::Queued, CHECKING_PUSH, None);
        };
        let (tries, refused, why) = match &known.kept.push_check {
            PushCheck::No(reason, message) => {
                return AdmissionCheck::of(Admission::Refused(*reason, message.clone()));
            }
            PushCheck::Running { progress, why, .. } => {
                let waiting = self
                    .waits_for(progress, &repositories(request))
                    .map(|w| (w.reason, next_try(&w.message)));
                return checking(waiting.as_ref().or(why.as_ref()));
            }
            PushCheck::NotNow {
                reason,
                message,
                retry_at,
                ..
            } if *retry_at > now => {
                return AdmissionCheck::waits(*reason, message.clone(), Some(*retry_at - now));
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
        let waits = checking(why.as_ref());
        let left = request.spec.attempts.saturating_sub(refused);
        let cancel = CancellationToken::new();
        let progress = Arc::new(Progress::of(&key.namespace, uid));
        let order = known.contender.order;
        if !state
            .push_checks
            .begin(&key.namespace, uid, order, &progress)
        {
            drop(state);
            return AdmissionCheck::waits(Reason::Queued, CHECKING_OTHERS, None);
        }
        if let Some(known) = state.known(uid) {
            known.push_check = PushCheck::Running {
                _stop: cancel.clone().drop_guard(),
                progress: Arc::clone(&progress),
                why,
            };
        }
        drop(state);
        self.with(|state| state.call_push_check(&key.namespace));
        self.expect(request, access, &progress);
        let repositories = repositories(request);
        let (engine, key, uid) = (self.clone(), key.clone(), uid.to_owned());
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
        waits
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
                // One that waits for a registry lets another begin.
                self.with(|state| state.call_push_check(&key.namespace));
                self.trigger(key.clone());
            }
        }
    }

    /// Why a check has no answer yet: what it waits for itself, or, where it waits for another that asks the same registry, what is
    /// known of that.
    fn waits_for(
        &self,
        progress: &Progress,
        repositories: &[Repository],
    ) -> Option<registry::Waiting> {
        let registry = &self.inner.tools.registry;
        let own = progress.waiting();
        own.or_else(|| {
            repositories
                .iter()
                .find_map(|repository| registry.unavailable(repository))
        })
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
            state.end_push_check(&key.namespace, uid);
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

/// Push permission is being checked; `why` says what it waits for, if that is known.
fn checking(why: Option<&(Reason, String)>) -> AdmissionCheck {
    match why {
        Some((reason, message)) => AdmissionCheck::waits(*reason, message.clone(), None),
        None => AdmissionCheck::waits(Reason::Queued, CHECKING_PUSH, None),
    }
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

fn beyond(before: usize) -> String {
    format!(
        "{before} requests of this namespace wait before it, with as many floats as are kept ready ({FLOATS_MAX}); \
         it comes as they begin or end, the oldest first"
    )
}

fn superseded_by(name: &str) -> String {
    format!("superseded by {name}, which was created later and has begun on this float")
}
