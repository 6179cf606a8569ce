//! One reconcile of one request.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::admission::{CHECKING_PUSH, hosts};
use super::shared::{Engine, contender, identity, left_alone};
use super::state::{Deadline, PendingSave};
use super::stats::RequestStats;
use super::telemetry;
use crate::api::status::ReadError;
use crate::api::{self, PromotionRequest, conditions};
use crate::coordinator::{Collected, Decided, Finished, Load, Loaded, Object};
use crate::machine::{self, Notice, Outcome, Reason, Request, Waiting};
use crate::store::{Event, Key, Store, StoreError, Unreadable};

/// How often one reconcile retries a conflict at once.
const CONFLICTS: usize = 5;
/// Without a trusted lease nothing is saved; it is checked again after this.
const TRUST_AGAIN: Duration = Duration::from_millis(500);
/// That something is waited for is published only among the first of them.
const WAITS_MAX: u32 = 5;
/// The most events of a request in its life; the last is for its end.
const EVENTS_MAX: u32 = 10;

/// When to come back to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When something triggers it.
    Triggered,
    /// After so long, or when something triggers it.
    After(Duration),
}

/// Why a reconcile did not come to its end. What operations found is kept.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S: Store> Engine<S> {
    /// Takes one request one step on.
    ///
    /// # Errors
    /// Where the store cannot be reached; nothing is lost, try again.
    pub async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        let begun = self.reconcile_started(key);
        let mut unanswered = None;
        let result = self.reconcile_until(key, &mut unanswered).await;
        self.reconcile_ended(begun, result.is_ok());
        if let Some(record) = unanswered {
            let mut state = self.lock();
            if let Some(known) = state.known(&record.uid) {
                known.unanswered = Some(record);
            }
        }
        result
    }

    /// Reconciles until a save is answered, or nothing can be saved now. A save whose answer is lost is looked for in the object
    /// that is loaded next: if it is there, it has landed, and what follows from a save follows. Otherwise what it launched would
    /// count as cut off, and its events would never be published.
    async fn reconcile_until(
        &self,
        key: &Key,
        unanswered: &mut Option<Box<PendingSave>>,
    ) -> Result<Next, ReconcileError> {
        let mut lost = false;
        for _ in 0..CONFLICTS {
            // Looked up before the load: a request recreated under this name meanwhile is not gone.
            let named = self.lock().coordinator.named(key);
            let object = match self.inner.store.load(key).await {
                Err(StoreError::Unreadable(_, object)) => {
                    self.leave_alone(key, &object).await;
                    return Ok(Next::Triggered);
                }
                loaded => loaded?,
            };
            let id = object.as_ref().map(|object| identity(&object.metadata));
            if id == Some(None) {
                return Ok(Next::Triggered);
            }
            let (uid, version) = id.flatten().unwrap_or_default();
            if unanswered.is_none() {
                let mut state = self.lock();
                let known = state.known(&uid);
                *unanswered = known.and_then(|known| known.unanswered.take());
            }
            let loaded = object.as_ref().map(|object| Loaded {
                landed: unanswered
                    .as_ref()
                    .is_some_and(|sent| sent.uid == uid && sent.object.status == object.status),
                over: object.has_done_with_floats(),
            });
            let load = Loaded::leads_to(loaded, self.is_trusted());
            let result = match (load, object) {
                (Load::Gone, _) | (_, None) => {
                    *unanswered = None;
                    for uid in named {
                        self.forget(&uid);
                    }
                    return Ok(Next::Triggered);
                }
                (Load::Over, Some(object)) => {
                    self.ended(&uid);
                    if !object.is_finished() {
                        self.reference(key, &uid);
                    }
                    return Ok(Next::Triggered);
                }
                (Load::Landed, Some(object)) => {
                    if let Some(mut record) = unanswered.take() {
                        tracing::debug!(request = %key, "a save whose answer was lost has landed");
                        // The object may have been changed since.
                        if let Ok((request, _)) = self.read(key, &object) {
                            record.request = request;
                        }
                        self.recorded(key, &record, Some(&object)).await;
                    }
                    return Ok(Next::After(Duration::ZERO));
                }
                (Load::Later, Some(_)) => return Ok(Next::After(TRUST_AGAIN)),
                (Load::Open, Some(object)) => {
                    self.reconcile_once(key, (&uid, version), object, unanswered)
                        .await
                }
            };
            match result {
                Err(ReconcileError::Store(StoreError::Conflict(_))) => {}
                Err(ReconcileError::Store(StoreError::Gone(_))) => {
                    *unanswered = None;
                    self.forget(&uid);
                    return Ok(Next::Triggered);
                }
                Err(error) if lost || unanswered.is_none() => return Err(error),
                Err(_) => lost = true,
                result => return result,
            }
        }
        Err(StoreError::Conflict(key.clone()).into())
    }

    async fn reconcile_once(
        &self,
        key: &Key,
        (uid, version): (&str, u64),
        mut object: PromotionRequest,
        unanswered: &mut Option<Box<PendingSave>>,
    ) -> Result<Next, ReconcileError> {
        let before = object.clone();
        let (request, freezes) = match self.read(key, &object) {
            Ok(read) => read,
            Err(error) => match left_alone(&object, &error) {
                Some(unreadable) => {
                    self.leave_alone(key, &unreadable).await;
                    return Ok(Next::Triggered);
                }
                None => return self.refuse(key, object, &error).await,
            },
        };
        let now = super::shared::now();
        let Some(mut taken) = self.take_up(key, (uid, version), &object, request, now) else {
            return Ok(Next::Triggered);
        };
        self.retry_rotated_credentials(&object, uid, &mut taken)
            .await;
        let mut me = (self.memory()).log(|log| taken.record(log, now, rand::random));
        let access = self.admit(key, &object, &mut me).await;
        let launching = access.is_some() && self.may_launch(key, uid, &me.request);
        let stepped = self.stepped(uid, &me.request, now);
        let decided = self.with_log(|coordinator, log| {
            coordinator.decide(log, me, now, (version, launching, stepped))
        });
        let ignored = self.cancel_ignored(key, &decided);
        let (request, mut notices) = (decided.request, decided.notices);
        notices.extend(ignored);
        api::status::write(&mut object, &request, decided.waiting.as_ref(), now);
        let copies = self.copying(uid);
        api::status::show_copies(&mut object, &copies);
        // How far they are is saved again after the interval.
        let shown = (!copies.is_empty()).then_some(self.inner.settings.status_interval);
        let again = [decided.again, shown].into_iter().flatten().min();
        let requeue_at = again.map(|after| Instant::now() + after);
        let record = Box::new(PendingSave {
            uid: decided.uid,
            before,
            object,
            request,
            notices,
            round: decided.round,
            access,
        });
        let saved = if record.object.status == record.before.status {
            None
        } else {
            match self.save(key, &record.uid, &record.object).await {
                Ok(saved) => {
                    *unanswered = None;
                    Some(saved)
                }
                Err(error) => {
                    *unanswered = Some(record);
                    return Err(error.into());
                }
            }
        };
        self.recorded(key, &record, saved.as_ref()).await;
        if unanswered.is_none() {
            self.freezes_seen(&record.uid, freezes);
        }
        Ok(next(decided.wake, requeue_at))
    }

    /// Runs once a record is saved or unchanged.
    pub(super) async fn recorded(
        &self,
        key: &Key,
        record: &PendingSave,
        saved: Option<&PromotionRequest>,
    ) {
        self.carry_out(key, record, saved);
        if let Some(saved) = saved {
            self.tell(key, record, saved).await;
        }
    }

    /// Whether what was loaded before may be saved over. A leader that was frozen beyond its lease has outcomes of a state that the
    /// next leader has gone on from: it loads that one's object, and the resourceVersion alone would let it record them. Asked
    /// after the load: what the lease is lost later for, shows as a conflict.
    pub(super) fn is_trusted(&self) -> bool {
        self.inner.tools.leadership.covers(Duration::ZERO)
    }

    /// Takes a request up, with what its operations have found and what its images wait for.
    fn take_up(
        &self,
        key: &Key,
        (uid, version): (&str, u64),
        object: &PromotionRequest,
        request: Request,
        now: Timestamp,
    ) -> Option<Collected> {
        let loaded = Object {
            key,
            version,
            contender: contender(key, uid, version, &request),
            counts: RequestStats::of(object, &request),
        };
        let instant = Instant::now();
        let shown = |then| at(now, instant, then);
        let mut collected = self.with_log(|coordinator, log| {
            coordinator.take_up(log, request, loaded, instant, shown)
        })?;
        let state = self.lock();
        for index in 0..collected.contexts.len() {
            let hosts = hosts(collected.request(), index);
            collected.contexts[index].paused = state.pause.message_for(hosts);
        }
        for (index, operation) in state.coordinator.running(uid) {
            if let Some(context) = collected.contexts.get_mut(index) {
                let waiting = operation.kept.progress.waiting();
                context.waiting = waiting.map(|waiting| Waiting {
                    reason: waiting.reason,
                    until: shown(Instant::from_std(waiting.until)),
                    message: waiting.message,
                });
            }
        }
        drop(state);
        Some(collected)
    }

    /// A credential that was rejected because it was rotated is no failure: the step is relaunched.
    async fn retry_rotated_credentials(
        &self,
        object: &PromotionRequest,
        uid: &str,
        collected: &mut Collected,
    ) {
        let rejected =
            |h: &Finished| matches!(&h.outcome, Outcome::Faulted(f) if f.reason.may_be_rotated());
        if !collected.finished.iter().any(rejected) {
            return;
        }
        // What cannot be read now is admitted, or not, further on.
        let Ok(access) = self.inner.store.access_anew(object).await else {
            return;
        };
        let request = collected.request().clone();
        for ended in collected.finished.iter_mut().filter(|h| rejected(h)) {
            let Some(spec) = request.spec.images.get(ended.image) else {
                continue;
            };
            let (source, float) = (&spec.source.repository, spec.float.repository());
            let state = self.lock();
            let operation = state.coordinator.operation(uid, ended.image);
            let used = operation.filter(|o| o.id == ended.id);
            if used.is_some_and(|o| !access.is_same_for(&o.kept.access, source, float)) {
                ended.outcome = Outcome::Dropped;
            }
        }
    }

    /// Saves an object. Our own save can come back by the watch before it is answered: what is heard meanwhile is a trigger
    /// only if it was another's.
    pub(super) async fn save(
        &self,
        key: &Key,
        uid: &str,
        object: &PromotionRequest,
    ) -> Result<PromotionRequest, StoreError> {
        if let Some(known) = self.lock().known(uid) {
            known.saving = Some(0);
        }
        let saved = self.inner.store.save(object).await;
        let version = saved
            .as_ref()
            .ok()
            .and_then(|saved| identity(&saved.metadata))
            .map(|(_, version)| version);
        let mut state = self.lock();
        let Some(known) = state.known(uid) else {
            return saved;
        };
        let heard = known.saving.take().filter(|&heard| heard > 0);
        if version.is_some() {
            known.saved = version;
            // The status interval begins with the save, before what it launches can end.
            known.saved_at = Some(Instant::now());
        }
        drop(state);
        if heard.is_some() && heard != version {
            self.trigger(key.clone());
        }
        saved
    }

    fn cancel_ignored(&self, key: &Key, decided: &Decided) -> Option<Notice> {
        let mut state = self.lock();
        let known = state.known(&decided.uid)?;
        if !decided.cancel_ignored || known.cancel_warned {
            return None;
        }
        known.cancel_warned = true;
        Some(Notice {
            reason: Reason::CancelIgnored,
            message: format!("{key} is committed: images that have begun run to their end"),
        })
    }

    /// Tells what was saved: in metrics, log and events.
    async fn tell(&self, key: &Key, record: &PendingSave, saved: &PromotionRequest) {
        let PendingSave {
            uid,
            before,
            request,
            notices,
            ..
        } = record;
        let phase_entered_at = (self.lock().kept(uid))
            .map(|kept| std::mem::take(&mut kept.phase_entered_at))
            .unwrap_or_default();
        let record = telemetry::Saved {
            key,
            before,
            request,
            notices,
            phase_entered_at,
        };
        let phase_entered_at = record.report(self.metrics());
        let events = {
            let mut state = self.lock();
            match state.known(uid) {
                Some(known) => {
                    known.phase_entered_at = phase_entered_at;
                    let events = events(before, saved, request, notices, known.events_published);
                    known.events_published += u32::try_from(events.len()).unwrap_or(u32::MAX);
                    events
                }
                // It was forgotten meanwhile, most often by its own end: its events are still published.
                None => events(before, saved, request, notices, 0),
            }
        };
        if request.is_finished() {
            self.ended(uid);
            if !saved.is_finished() {
                self.reference(key, uid);
            }
        }
        for event in events {
            let (reason, why) = (event.reason.as_str(), event.note.as_str());
            if event.warning && !request.is_finished() {
                tracing::warn!(request = %key, reason, why, "warning");
            } else {
                tracing::debug!(request = %key, reason, why, "event");
            }
            self.metrics().event_published(event.reason);
            self.inner.store.publish(saved, event).await;
        }
    }

    /// Ends a request whose spec cannot be carried out.
    async fn refuse(
        &self,
        key: &Key,
        mut object: PromotionRequest,
        error: &ReadError,
    ) -> Result<Next, ReconcileError> {
        api::status::refuse(&mut object, error, super::shared::now());
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let saved = self.save(key, &uid, &object).await?;
        let note = error.to_string();
        let created = saved
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let (phase, reason) = (machine::Phase::Failed, Reason::InvalidSpec);
        telemetry::finished(self.metrics(), key, created, phase, reason, &note);
        self.metrics().event_published(reason);
        let event = Event {
            reason: Reason::InvalidSpec,
            note,
            warning: true,
        };
        self.inner.store.publish(&saved, event).await;
        self.ended(&uid);
        Ok(Next::Triggered)
    }

    /// Leaves a request alone that this version cannot read, and says so once. Its operations end, and their outcomes are kept until they
    /// can be recorded.
    async fn leave_alone(&self, key: &Key, found: &Unreadable) {
        self.observe_unreadable(found);
        let uid = found.metadata.uid.as_deref().unwrap_or_default();
        // Those behind it in a queue go on.
        self.with(|state| {
            state.coordinator.withdraw(uid);
            state.end_push_check(uid);
        });
        let news = {
            let mut state = self.lock();
            let Some(known) = state.known(uid) else {
                return;
            };
            let before = known.left_alone.replace(found.why.clone());
            before.as_ref() != Some(&found.why)
        };
        if !news {
            return;
        }
        tracing::error!(request = %key, "{}", found.why);
        self.metrics().event_published(Reason::Unreadable);
        if let Some(object) = &found.object {
            let event = Event {
                reason: Reason::Unreadable,
                note: found.why.clone(),
                warning: true,
            };
            self.inner.store.publish(object, event).await;
        }
    }

    /// How far the time of day has gone ahead of the time that passed since this leader first saw the request's deadline, in seconds.
    fn stepped(&self, uid: &str, request: &Request, now: Timestamp) -> i64 {
        let (mut state, since) = (self.lock(), Instant::now());
        let (Some(known), Some(at)) = (state.known(uid), request.status.deadline) else {
            return 0;
        };
        let new = Deadline {
            at,
            seen: now.min(at),
            since,
        };
        let seen = *known.deadline.get_or_insert(new);
        let deadline = if seen.at == at { seen } else { new };
        known.deadline = Some(deadline);
        let passed = i64::try_from((since - deadline.since).as_secs()).unwrap_or(i64::MAX);
        let shown = now.duration_since(deadline.seen).as_secs();
        // Both are cut to seconds.
        Some(shown - passed).filter(|&ahead| ahead > 1).unwrap_or(0)
    }
}

/// One event for each change of phase, each notice and each cause that is waited for from now on, within the bound; the last one is always
/// published.
fn events(
    before: &PromotionRequest,
    saved: &PromotionRequest,
    request: &Request,
    notices: &[Notice],
    published: u32,
) -> Vec<Event> {
    let mut events: Vec<Event> = notices
        .iter()
        .map(|notice| Event {
            reason: notice.reason,
            note: notice.message.clone(),
            warning: true,
        })
        .collect();
    let old = before.status.as_ref();
    let rollback = old.and_then(|status| status.rollback) == Some(true);
    if request.status.rollback && !rollback {
        let failed = request.failed_float().map(ToString::to_string);
        events.push(Event {
            reason: Reason::RollingBack,
            note: format!(
                "{} failed; rolling back the floats that have moved",
                failed.unwrap_or_default()
            ),
            warning: true,
        });
    }
    let old = old.and_then(|status| status.phase.as_deref());
    let phase = request.phase();
    if old != Some(phase.as_str()) {
        let summary = conditions::Summary::of(request, None);
        let warning = phase.is_failed();
        if phase.is_finished() {
            // The end says it as well, and better.
            events.retain(|event| event.reason != summary.reason);
        }
        events.push(Event {
            reason: summary.reason,
            note: summary.message,
            warning,
        });
    }
    if published < WAITS_MAX
        && let Some((reason, note)) = conditions::begins_to_wait(before, saved)
        && note.split(';').next() != Some(CHECKING_PUSH)
    {
        events.push(Event {
            reason,
            note,
            warning: false,
        });
    }
    let left = EVENTS_MAX.saturating_sub(published) as usize;
    let left = if phase.is_finished() {
        left.max(1)
    } else {
        left.saturating_sub(1)
    };
    let skip = events.len().saturating_sub(left);
    events.split_off(skip)
}

/// The time that `then` is, by the clock that shows `now` at `instant`. What is past stays where it was: it is being tried, and that
/// time goes on is no news.
fn at(now: Timestamp, instant: Instant, then: Instant) -> Timestamp {
    let past = instant.saturating_duration_since(then);
    let past = jiff::SignedDuration::try_from(past).unwrap_or(jiff::SignedDuration::ZERO);
    let base = now.checked_sub(past).unwrap_or(Timestamp::MIN);
    later(base, then.saturating_duration_since(instant))
}

fn later(now: Timestamp, duration: Duration) -> Timestamp {
    // A whole second more, because times in status are whole seconds.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 4);
    let rounded = i64::from(duration.subsec_nanos() > 0);
    now.checked_add(jiff::SignedDuration::from_secs(seconds + rounded))
        .unwrap_or(Timestamp::MAX)
}

fn next(wake: Option<Timestamp>, requeue_at: Option<Instant>) -> Next {
    let now = Timestamp::now();
    let wake = wake.map(|at| Duration::try_from(now.duration_until(at)).unwrap_or_default());
    let requeue_at = requeue_at.map(|at| at.saturating_duration_since(Instant::now()));
    match [wake, requeue_at].into_iter().flatten().min() {
        Some(after) => Next::After(after.max(Duration::from_millis(10))),
        None => Next::Triggered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_is_the_same_however_often_it_is_computed_also_once_it_has_passed() {
        let (start, begun) = (Timestamp::UNIX_EPOCH, Instant::now());
        let then = begun + Duration::from_secs(8);
        for seconds in 0..20 {
            let instant = begun + Duration::from_secs(seconds);
            let now = later(start, Duration::from_secs(seconds));
            assert_eq!(at(now, instant, then).as_second(), 8, "{seconds}");
        }
    }
}
