//! One registry host: requests in flight, requests a second, and a pause while it is unavailable.
//!
//! There is one [`Host`] per registry and process; every request passes it. Guaranteed: at most `concurrency` requests are in flight,
//! not counting tokens, which have two places of their own, so that whoever holds a place can always renew a token. While the host is
//! unavailable, one request at a time probes it. If a registry leads to another address (for tokens, uploads), that address has separate
//! state for each registry that leads there, so no registry can slow down another by leading to it.
//!
//! Each credential has its own [`CredentialShare`] of a host, of the same size. If one credential hits a rate limit, only it slows down;
//! if credentials of several namespaces do, the host slows down. A limit of the token endpoint slows nothing else. A host that comes
//! back after a pause is asked as slowly as at first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::{BadAnswer, Breaker, BreakerPermit};
use super::limits::{Connection, Lane, Limit, Limits, Zone};
use super::paid::PaidPuts;
use super::progress::Progress;
use super::queue::{HostQueue, Permit, Want};
use crate::machine::Reason;
use crate::metrics;
use crate::registry::auth::credential::{Credential, CredentialKey};
use crate::registry::error::Error;

/// Token fetches in flight per host: quay limits its token endpoint to a burst of two.
const TOKENS: usize = 2;
/// How many credentials of a host are remembered before unused ones are forgotten.
const CREDENTIALS_MAX: usize = 64;
/// If credentials of several namespaces hit a limit within this time, it is the host's.
const SAME_LIMIT_WITHIN: Duration = Duration::from_mins(1);
/// How many such hits are remembered.
const LIMITED_MAX: usize = 16;

/// One address, `HOST:PORT`, and its state.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// Its label in metrics.
    pub(crate) label: metrics::Host,
    limits: Limits,
    pub(super) queue: Arc<HostQueue>,
    tokens: Arc<HostQueue>,
    /// Open while the host is unavailable or limits the rate.
    pub(super) all: Arc<Breaker>,
    /// Open while the host limits the rate of tokens.
    token_limit: Arc<Breaker>,
    /// Open while the host refuses writes.
    pub(super) writes: Arc<Breaker>,
    served: AtomicU64,
    credentials: Mutex<HashMap<CredentialKey, Arc<CredentialShare>>>,
    /// Who hit a limit lately: the namespace and its credential.
    limited: Mutex<VecDeque<(u64, CredentialKey, Instant)>>,
}

/// One credential's share of a host.
#[derive(Debug)]
struct CredentialShare {
    queue: Arc<HostQueue>,
    /// Open while the host limits the rate of this credential, by zone.
    limits: [Arc<Breaker>; 2],
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) progress: &'a Progress,
    credential: CredentialKey,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(progress: &'a Progress, credential: &Credential) -> Self {
        Self {
            progress,
            credential: credential.key(),
        }
    }

    /// Places and pacing for it.
    pub(crate) fn want(&self, places: usize, paced: Option<Zone>) -> Want {
        Want {
            flow: self.progress.flow(),
            turn: self.progress.turn(),
            places,
            paced,
            connection: Connection::Shared,
            puts: 0,
            paid: false,
        }
    }
}

/// What one request needs of its host before it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// What kind it is.
    pub(crate) lane: Lane,
    /// Whether the caller holds a place on the host already.
    pub(crate) placed: bool,
    pub(crate) connection: Connection,
    /// How many tag PUTs may follow its answer at once.
    pub(crate) puts: u32,
}

/// A request's place and pacing; the place is given back when dropped.
#[derive(Debug)]
pub(crate) struct HostPermit {
    /// Of the credential.
    own: Permit,
    /// Of the host.
    host: Permit,
    _token: Option<Permit>,
}

impl HostPermit {
    /// Nothing was sent: gives the pacing's token back.
    pub(crate) fn refund(self) {
        self.own.refund();
        self.host.refund();
    }

    /// It was answered: the tokens of the tag PUTs that may follow.
    pub(crate) fn answered(&mut self) -> Option<PaidPuts> {
        Permit::answered(&mut self.own, &mut self.host)
    }
}

impl Host {
    pub(crate) fn new(name: &str, label: metrics::Host, limits: Limits) -> Self {
        let breaker = || Arc::new(Breaker::new(limits.backoff_first, limits.backoff_max));
        Self {
            name: name.to_owned(),
            label,
            limits,
            queue: HostQueue::new(limits),
            tokens: HostQueue::unpaced(TOKENS),
            all: breaker(),
            token_limit: breaker(),
            writes: breaker(),
            served: AtomicU64::new(0),
            credentials: Mutex::default(),
            limited: Mutex::default(),
        }
    }

    /// A credential's share.
    fn share_of(&self, credential: CredentialKey) -> Arc<CredentialShare> {
        let mut shares = self.credentials.lock();
        if shares.len() >= CREDENTIALS_MAX && !shares.contains_key(&credential) {
            shares.retain(|_, share| Arc::strong_count(share) > 1 || share.is_used());
        }
        let share = shares.entry(credential).or_insert_with(|| {
            let (first, max) = (self.limits.backoff_first, self.limits.backoff_max);
            Arc::new(CredentialShare {
                queue: HostQueue::new(self.limits),
                limits: Zone::ALL.map(|_| Arc::new(Breaker::new(first, max))),
            })
        });
        Arc::clone(share)
    }

    /// Waits until the host is available, and takes writes if this is one; an error if that takes too long.
    pub(crate) async fn admit(
        &self,
        zone: Zone,
        write: bool,
        deadline: Option<Instant>,
        caller: Caller<'_>,
    ) -> Result<Admission, Error> {
        let progress = caller.progress;
        // The credential's breaker first: whoever probes for all must not wait for its own limit.
        let own = self.share_of(caller.credential);
        let own = own.limits[zone as usize].pass(deadline, progress).await?;
        let narrower = match zone {
            Zone::Tokens => Some(&self.token_limit),
            Zone::Content => write.then_some(&self.writes),
        };
        let narrower = match narrower {
            Some(breaker) => Some(breaker.pass(deadline, progress).await?),
            None => None,
        };
        let all = self.all.pass(deadline, progress).await?;
        Ok(Admission { own, all, narrower })
    }

    /// Waits until the host is available, without sending anything.
    pub(crate) async fn until_available(&self, write: bool, caller: Caller<'_>) {
        // A permit that is dropped leaves the probe to the next.
        let _ = self.admit(Zone::Content, write, None, caller).await;
    }

    /// Waits for a place and the pacing for one request.
    pub(crate) async fn acquire(&self, needs: Needs, caller: Caller<'_>) -> HostPermit {
        let token = if needs.lane == Lane::Tokens {
            let want = caller.want(1, Some(needs.lane.zone()));
            Some(self.tokens.acquire(want).await)
        } else {
            None
        };
        let placed = needs.placed || token.is_some();
        let zone = Some(needs.lane.zone());
        let own = Arc::clone(&self.share_of(caller.credential).queue);
        let paid = if needs.connection == Connection::Prompt {
            caller.progress.take_paid([&*own, &*self.queue])
        } else {
            None
        };
        let want = Want {
            connection: needs.connection,
            puts: needs.puts,
            paid: paid.is_some(),
            ..caller.want(usize::from(!placed), zone)
        };
        let mut permit = HostPermit {
            own: own.acquire(want).await,
            host: self.queue.acquire(want).await,
            _token: token,
        };
        if let Some([own, host]) = paid {
            permit.own.paid_at(own);
            permit.host.paid_at(host);
        }
        permit
    }

    /// The host gave a useful answer.
    pub(crate) fn serves(&self, limit: Limit, caller: Caller<'_>, admission: Admission) {
        self.served.fetch_add(1, Relaxed);
        let share = self.share_of(caller.credential);
        let back = admission.good();
        if back.own {
            share.queue.restart();
        }
        if back.host {
            self.restart();
        }
        // What holds up a credential alone would hold it up at the host next.
        let wanted = share.queue.served(limit, false);
        self.queue.served(limit, wanted);
    }

    /// The host limits the rate of a credential, which slows down; so does everybody if credentials of other namespaces hit a limit too.
    pub(crate) fn limits(
        &self,
        limit: Limit,
        caller: Caller<'_>,
        permit: &HostPermit,
        admission: &Admission,
        after: Option<Duration>,
    ) {
        let Limit { zone, apart, .. } = limit;
        let bad = |message: String| BadAnswer {
            reason: Reason::RateLimited,
            message,
            after,
            certain: false,
        };
        let share = self.share_of(caller.credential);
        // The slower of the two is the one that was kept to.
        let own = share.queue.rate(zone, apart);
        let kept = own.min(self.queue.rate(zone, apart));
        let slowed = share.queue.limited(limit, &permit.own, kept);
        if self.others_are_limited(caller) {
            let slowed = self.queue.limited(limit, &permit.host, f64::INFINITY);
            let breaker = admission.of_the_host(zone);
            if slowed || after.is_some() || breaker.is_probe() {
                breaker.bad(bad(format!("{} limits the rate", self.name)));
            }
        }
        // What the slowing was too late for says nothing more; what is refused at the lower rate too does.
        if slowed || after.is_some() || admission.own.is_probe() {
            let message = format!("{} limits the rate of its credential", self.name);
            admission.own.bad(bad(message));
        }
    }

    /// After a pause, of the host or of everything: those who wait do not all go at once.
    pub(crate) fn restart(&self) {
        self.queue.restart();
        for share in self.credentials.lock().values() {
            share.queue.restart();
        }
    }

    /// The rate that a zone is kept to, where it is paced: that of the host, or of its credentials together.
    pub(crate) fn rate(&self, zone: Zone) -> Option<f64> {
        let shares = self.credentials.lock();
        let own: f64 = shares
            .values()
            .map(|share| share.queue.rate(zone, false))
            .sum();
        drop(shares);
        let host = self.queue.rate(zone, false);
        let rate = if own > 0.0 { own.min(host) } else { host };
        rate.is_finite().then_some(rate)
    }

    /// Whether a credential of another namespace hit a limit lately; remembers that this one did.
    fn others_are_limited(&self, caller: Caller<'_>) -> bool {
        let (now, namespace) = (Instant::now(), caller.progress.flow().namespace);
        let mut limited = self.limited.lock();
        limited.retain(|(_, key, at)| *at + SAME_LIMIT_WITHIN > now && *key != caller.credential);
        let others = limited.iter().any(|(other, ..)| *other != namespace);
        // The oldest of its own namespace goes first, so that one with many credentials displaces nobody else.
        if limited.len() >= LIMITED_MAX {
            let own = limited.iter().position(|(other, ..)| *other == namespace);
            limited.remove(own.unwrap_or_default());
        }
        limited.push_back((namespace, caller.credential, now));
        others
    }

    /// The host takes no writes.
    pub(crate) fn read_only(&self, admission: Admission) {
        if let Some(writes) = admission.narrower {
            writes.bad(BadAnswer {
                reason: Reason::RegistryReadOnly,
                message: format!("{} is read-only", self.name),
                after: None,
                certain: true,
            });
        }
        admission.own.good();
        admission.all.good();
    }

    /// Whether requests of this kind have to wait.
    pub(crate) fn is_backing_off(&self, write: bool) -> bool {
        self.all.is_open() || (write && self.writes.is_open())
    }

    /// Whether requests of this kind and caller have to wait.
    pub(crate) fn is_backing_off_from(&self, zone: Zone, write: bool, caller: Caller<'_>) -> bool {
        self.is_backing_off(write)
            || (zone == Zone::Tokens && self.token_limit.is_open())
            || self.share_of(caller.credential).limits[zone as usize].is_open()
    }

    /// How many useful answers this host gave.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// The queues in which a stream of `caller` waits that has so many ends here.
    pub(crate) fn stream(
        &self,
        ends: usize,
        caller: Caller<'_>,
    ) -> [(Arc<HostQueue>, usize, &str); 2] {
        let own = Arc::clone(&self.share_of(caller.credential).queue);
        [
            (own, ends, &self.name),
            (Arc::clone(&self.queue), ends, &self.name),
        ]
    }
}

impl CredentialShare {
    /// Whether it has anything to remember.
    fn is_used(&self) -> bool {
        self.limits.iter().any(|limit| limit.is_open()) || self.queue.is_used()
    }
}

/// Permission to send one request; tells the breakers how it went.
#[derive(Debug)]
pub(crate) struct Admission {
    own: BreakerPermit,
    all: BreakerPermit,
    /// Of the writes, or of the tokens.
    narrower: Option<BreakerPermit>,
}

/// What a good answer brings back.
struct Back {
    /// The credential.
    own: bool,
    /// The host.
    host: bool,
}

impl Admission {
    fn good(self) -> Back {
        let narrower = self.narrower.is_some_and(BreakerPermit::good);
        Back {
            own: self.own.good(),
            host: self.all.good() || narrower,
        }
    }

    /// What says that the host limits the rate of everybody.
    fn of_the_host(&self, zone: Zone) -> &BreakerPermit {
        let narrower = self.narrower.as_ref();
        let tokens = narrower.filter(|_| zone == Zone::Tokens);
        tokens.unwrap_or(&self.all)
    }

    /// The host is unavailable (for certain, or so it seems), and may have said for how long.
    pub(crate) fn unavailable(self, message: String, after: Option<Duration>, certain: bool) {
        self.all.bad(BadAnswer {
            reason: Reason::RegistryUnavailable,
            message,
            after,
            certain,
        });
    }

    /// Whether the host has become unavailable since then: waiting for a place can take long.
    pub(crate) fn is_stale(&self) -> bool {
        self.own.is_stale()
            || self.all.is_stale()
            || self.narrower.as_ref().is_some_and(BreakerPermit::is_stale)
    }
}
