//! One leader: a Lease that is renewed, trusted for a while, and released only when no write can land any more.
//!
//! The lease lasts 15 s. The leader renews it every 2 s, by a replace under its resourceVersion: one that wakes up late cannot extend
//! somebody else's lease. It trusts the lease for 10 s after it *sent* the last renewal that succeeded, by clocks that go on while the
//! machine sleeps. A follower takes a lease to have run out when the record has not changed for that long by its own monotonic clock, so
//! clocks need not agree.
//!
//! A new leader has to know when the last one can have sent its last tag write. There is none to wait for where the last leader marked
//! the lease as released, together with what it wrote a moment before, or where the lease came with the installation and nobody ever held it. A lease whose holder somebody erased
//! says neither.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::freeze_map::FOLLOWED;
pub use super::handover::RELEASED;
use super::handover::{self, HANDED_OVER, Inherited, Written, transitions};
use super::health::Health;
pub use super::installation::LEASE_NAME as NAME;
use super::installation::{Barred, Installation};
use crate::engine::leadership::{Leadership, RENEW_EVERY, TRUST, WRITE_MAX};
use crate::engine::moment::Moment;
use crate::metrics::{Call, Metrics};
use crate::store::call::{call, causes};

/// The annotation of a Lease that was made with the installation, before anybody held it.
pub const MADE: &str = "promotion-controller.ci.openshift.io/made";
/// How long a lease lasts without renewal, in seconds.
const DURATION_SECONDS: i32 = 15;
/// The same. So long a former leader may not know that it leads no more.
pub const DURATION: Duration = Duration::from_secs(15);
/// The longest lease of somebody else that is waited for: no controller of ours writes a longer one.
const DURATION_MAX: Duration = Duration::from_mins(1);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(3);
/// How long a leader may go on writing after its lease was deleted: until its next renewal is answered.
pub const UNAWARE: Duration = Duration::from_secs(5);
/// How often a release is tried.
const RELEASES: u32 = 3;
/// How long a release takes at most: each try is a write and a look.
pub const RELEASE: Duration = CALL.saturating_mul(2 * RELEASES);

/// How the lease was acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// There was none. An earlier one may have been deleted, and its holder may not know yet.
    New,
    /// Somebody erased its holder, who may not know yet.
    Erased,
    /// It was made with the installation, and nobody has ever held it.
    Unheld,
    /// Its holder released it, with nothing on the wire.
    Released,
    /// Its holder let it run out.
    Expired,
}

/// The lease was lost: this process must not go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the lease {namespace}/{NAME} is lost ({why}); ending, so that the next leader goes on alone"
)]
pub struct Lost {
    namespace: String,
    why: String,
}

/// The lease as this process sees it.
pub struct Elector {
    api: Api<Lease>,
    namespace: String,
    identity: String,
    leadership: Leadership,
    /// What was read or written last.
    record: Option<Lease>,
    /// Looked at before each renewal.
    installation: Option<Installation>,
    /// When a holder before this one can last have sent a tag write.
    last_sent: Option<Instant>,
    /// Which version of the freezes is followed: every renewal says it, and a change is a reason to renew.
    followed: watch::Receiver<Option<String>>,
    /// What the holder before this one handed over.
    inherited: Inherited,
    health: Health,
    metrics: Metrics,
}

impl Elector {
    /// An elector in `namespace`; `identity` must be new for every process.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String, leadership: Leadership) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.into(),
            identity,
            leadership,
            record: None,
            installation: None,
            last_sent: None,
            followed: watch::channel(None).1,
            inherited: Inherited::default(),
            health: Health::default(),
            metrics: Metrics::default(),
        }
    }

    /// The same, reporting to these.
    #[must_use]
    pub(super) fn telling(self, health: Health, metrics: Metrics) -> Self {
        Self {
            health,
            metrics,
            ..self
        }
    }

    /// The same, saying on the lease which version of the freezes is followed.
    #[must_use]
    pub(super) fn saying(self, followed: watch::Receiver<Option<String>>) -> Self {
        Self { followed, ..self }
    }

    /// The same, renewing only while the CRD names its Lease.
    #[must_use]
    pub(super) fn of(self, installation: Installation) -> Self {
        Self {
            installation: Some(installation),
            ..self
        }
    }

    /// Waits until the lease is ours.
    pub async fn acquire(&mut self) -> Acquired {
        let mut seen: Option<(Option<String>, Instant)> = None;
        let mut logged: Option<String> = None;
        loop {
            let looked = self.look().await;
            self.health.lease_tick(looked.is_ok());
            match looked {
                Ok(None) => match self.write(None).await {
                    Ok(()) => return self.acquired(Acquired::New, Instant::now()),
                    Err(refused) => self.not_taken(&refused),
                },
                Ok(Some(lease)) => {
                    let holder = holder(&lease);
                    let version = lease.metadata.resource_version.clone();
                    let changed = seen.as_ref().is_none_or(|(known, _)| *known != version);
                    if changed {
                        seen = Some((version, Instant::now()));
                    }
                    let since = seen.as_ref().map_or_else(Instant::now, |(_, since)| *since);
                    let expired = since.elapsed() >= lasts(&lease);
                    if let Some(how) = free(&lease, expired) {
                        self.inherited = handover::inherited(&lease);
                        match self.write(Some(lease)).await {
                            Ok(()) => return self.acquired(how, since),
                            Err(refused) => self.not_taken(&refused),
                        }
                    } else if logged != holder {
                        tracing::info!(
                            holder = holder.as_deref().unwrap_or_default(),
                            "waiting for the lease"
                        );
                        logged = holder;
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot read the lease {}/{NAME}: {error}", self.namespace);
                }
            }
            sleep(RENEW_EVERY).await;
        }
    }

    /// `since`: since when the record had not changed.
    fn acquired(&mut self, how: Acquired, since: Instant) -> Acquired {
        self.last_sent = match how {
            Acquired::Unheld | Acquired::Released => None,
            Acquired::New | Acquired::Erased => Some(Instant::now() + UNAWARE),
            // No write is sent later than this after the last renewal.
            Acquired::Expired => Some(since + TRUST.saturating_sub(WRITE_MAX)),
        };
        how
    }

    /// When an earlier leader can last have sent a tag write that may still be on its way. None: there is no such write.
    #[must_use]
    pub fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// What the process before wrote a moment ago. Nothing, unless it handed over.
    #[must_use]
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// For a process without election: takes a lease that came with the installation and that nobody ever held. False where there is
    /// no such lease: an earlier process may have written.
    pub async fn take_unheld(&mut self) -> bool {
        match self.look().await {
            Ok(Some(lease)) if free(&lease, false) == Some(Acquired::Unheld) => {
                self.write(Some(lease)).await.is_ok()
            }
            _ => false,
        }
    }

    /// Renews the lease until it is lost.
    pub async fn keep(&mut self) -> Lost {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = sleep(RENEW_EVERY) => {}
                Ok(()) = self.followed.changed() => {}
            }
            let ruled = match &self.installation {
                Some(installation) => installation.look().await.map(drop),
                None => Ok(()),
            };
            let written = match ruled {
                // Without the CRD there are no requests; once it is back it names a Lease again, or none.
                Ok(()) | Err(Barred::Undefined(_)) => self.write(self.record.clone()).await,
                Err(Barred::Another(why) | Barred::Unnamed(why)) => return self.lost(&why),
                Err(Barred::Unread(why)) => Err(Refused::Failed(why)),
            };
            self.health
                .lease_tick(!matches!(written, Err(Refused::Failed(_))));
            match written {
                Ok(()) => renewed = Instant::now(),
                Err(Refused::Conflict) => match self.look().await {
                    // Our own renewal landed, and its answer was lost.
                    Ok(Some(lease)) if holder(&lease).as_ref() == Some(&self.identity) => {
                        self.record = Some(lease);
                    }
                    Ok(_) => return self.lost("another process holds it"),
                    Err(error) => tracing::warn!("cannot read the lease: {error}"),
                },
                Err(Refused::Gone) => return self.lost("it was deleted"),
                Err(Refused::Failed(error)) => tracing::warn!("cannot renew the lease: {error}"),
            }
            if renewed.elapsed() >= DURATION {
                return self.lost("it could not be renewed");
            }
        }
    }

    /// Releases the lease and marks it so, with what was written a moment ago. To be called only when no tag write of this process, or
    /// of an earlier one, can still land: whoever finds the mark does not wait.
    pub async fn release(mut self, written: &Written) {
        self.leadership.lose();
        let mut record = self.record.take();
        for _ in 0..RELEASES {
            let Some(lease) = record.take() else {
                return;
            };
            match self.give_back(lease, written).await {
                Ok(()) => {
                    self.metrics.leadership("released");
                    tracing::info!("released the lease");
                    return;
                }
                Err(error) => tracing::warn!("cannot release the lease: {error}"),
            }
            // A renewal may have been on its way when this was called.
            let ours = |lease: &Lease| holder(lease).as_ref() == Some(&self.identity);
            record = self.look().await.ok().flatten().filter(ours);
        }
    }

    async fn give_back(&self, mut lease: Lease, written: &Written) -> Result<(), String> {
        handover::mark(&mut lease, written);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let params = PostParams::default();
        let given = call(
            &self.metrics,
            Call::Lease,
            CALL,
            self.api.replace(NAME, &params, &lease),
        )
        .await;
        let given = given.map_err(|_| "timed out".to_owned())?;
        given.map(|_| ()).map_err(|error| causes(&error))
    }

    /// Says why the lease could not be taken, unless another process was quicker.
    fn not_taken(&self, refused: &Refused) {
        let why = match refused {
            Refused::Conflict => return,
            Refused::Gone => "the namespace does not exist, or the lease was deleted just now",
            Refused::Failed(error) => error,
        };
        tracing::warn!("cannot take the lease {}/{NAME}: {why}", self.namespace);
    }

    fn lost(&self, why: &str) -> Lost {
        self.leadership.lose();
        self.metrics.leadership("lost");
        Lost {
            namespace: self.namespace.clone(),
            why: why.into(),
        }
    }

    async fn look(&self) -> Result<Option<Lease>, String> {
        let read = call(&self.metrics, Call::Lease, CALL, self.api.get_opt(NAME)).await;
        read.map_err(|_| "timed out".to_owned())?
            .map_err(|error| causes(&error))
    }

    /// Makes the lease ours, or renews it, under the resourceVersion it was read at.
    async fn write(&mut self, old: Option<Lease>) -> Result<(), Refused> {
        let sent = Moment::now();
        let now = MicroTime(Timestamp::now());
        let params = PostParams::default();
        let before = old
            .as_ref()
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let ours = before.holder_identity.as_ref() == Some(&self.identity);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now.clone()),
            acquire_time: if ours { before.acquire_time } else { Some(now) },
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        };
        let written = if let Some(mut lease) = old {
            lease.spec = Some(spec);
            let marks = lease.metadata.annotations.get_or_insert_default();
            marks.remove(RELEASED);
            marks.remove(HANDED_OVER);
            match &*self.followed.borrow() {
                Some(version) => marks.insert(FOLLOWED.into(), version.clone()),
                None => marks.remove(FOLLOWED),
            };
            let replace = self.api.replace(NAME, &params, &lease);
            call(&self.metrics, Call::Lease, CALL, replace).await
        } else {
            let metadata = ObjectMeta {
                name: Some(NAME.into()),
                ..ObjectMeta::default()
            };
            let lease = Lease {
                metadata,
                spec: Some(spec),
            };
            let create = self.api.create(&params, &lease);
            call(&self.metrics, Call::Lease, CALL, create).await
        };
        match written {
            Ok(Ok(lease)) => {
                self.record = Some(lease);
                self.leadership.trust(sent, TRUST);
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.code == 409 => {
                Err(Refused::Conflict)
            }
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Err(Refused::Gone),
            Ok(Err(error)) => Err(Refused::Failed(causes(&error))),
            Err(_) => Err(Refused::Failed("timed out".into())),
        }
    }
}

enum Refused {
    Conflict,
    Gone,
    Failed(String),
}

fn holder(lease: &Lease) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity
        .clone()
        .filter(|holder| !holder.is_empty())
}

/// How it can be taken now. None: it is held.
fn free(lease: &Lease, expired: bool) -> Option<Acquired> {
    let marks = lease.metadata.annotations.as_ref();
    let mark = |name: &str| marks.and_then(|marks| marks.get(name));
    if holder(lease).is_some() {
        return expired.then_some(Acquired::Expired);
    }
    // An older number of transitions is of an earlier release.
    let released = mark(RELEASED).is_some_and(|mark| *mark == transitions(lease).to_string());
    if released || handover::is_handed_over(lease) {
        return Some(Acquired::Released);
    }
    let held = lease.spec.as_ref().is_some_and(|spec| {
        spec.lease_transitions.is_some() || spec.acquire_time.is_some() || spec.renew_time.is_some()
    });
    if mark(MADE).is_some() && !held {
        return Some(Acquired::Unheld);
    }
    Some(Acquired::Erased)
}

fn lasts(lease: &Lease) -> Duration {
    let seconds = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_duration_seconds);
    let seconds = seconds.and_then(|s| u64::try_from(s).ok());
    let named = seconds.map_or(DURATION, Duration::from_secs);
    named.clamp(DURATION, DURATION_MAX)
}
