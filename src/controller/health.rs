//! Whether this process is ready and alive.
//!
//! **Ready**: the process does what it can. One that waits for the lease is ready while the API server answers it; otherwise a
//! Deployment of two would never roll out. A leader is ready once its claims are rebuilt from a list of all requests, and until its watch
//! has been broken for [`PATIENCE`]. A process that is ending is not ready. **Alive** fails only where a restart helps: the loop that waits
//! for the lease or renews it stands still, or requests are due and no reconcile has ended for [`STALLED`]. It does not depend on what the
//! API server or a registry answers: every call to them has a time limit.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long the API server may be silent, or the watch be broken, before a process is not ready; and how long the loop of the lease
/// may stand still before it is dead. A turn of it takes eleven seconds at the longest.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long reconciles that are due may all stand still.
pub const STALLED: Duration = Duration::from_mins(10);
/// Interruptions of a watch further apart than this are not one: silence is noticed after 40 s, a refusal within three.
const TOGETHER: Duration = Duration::from_secs(90);

/// What a process reports of itself. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    role: Role,
    /// The last turn of the lease's loop, where there is an election.
    lease_tick: Option<Instant>,
    /// When the API server last answered it.
    answered: Option<Instant>,
    /// The definition names no Lease, or is not there.
    barred: bool,
    /// The first and the last of the interruptions that the watch has not recovered from.
    interrupted: Option<(Instant, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Waits for the lease.
    Waiting,
    /// Leads, and has not rebuilt its claims.
    Beginning,
    /// Leads.
    Leading,
    /// Launches nothing more.
    Ending,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            role: Role::Waiting,
            lease_tick: None,
            answered: None,
            barred: false,
            interrupted: None,
        })))
    }
}

impl Health {
    /// The lease's loop has made a turn; whether the API server answered.
    pub fn lease_tick(&self, answered: bool) {
        let now = Instant::now();
        let mut state = self.lock();
        state.lease_tick = Some(now);
        if answered {
            state.answered = Some(now);
        }
    }

    /// Whether this process may not even wait for the lease.
    pub fn barred(&self, barred: bool) {
        self.lock().barred = barred;
    }

    /// This process leads.
    pub fn leads(&self) {
        self.lock().role = Role::Beginning;
    }

    /// The claims are rebuilt.
    pub fn rebuilt(&self) {
        self.lock().role = Role::Leading;
    }

    /// This process was asked to end.
    pub fn ends(&self) {
        self.lock().role = Role::Ending;
    }

    /// The watch broke off, or could not begin.
    pub fn interrupted(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let first = state.interrupted.filter(|(_, last)| *last + TOGETHER > now);
        state.interrupted = Some((first.map_or(now, |(first, _)| first), now));
    }

    /// The watch reported something.
    pub fn heard(&self) {
        self.lock().interrupted = None;
    }

    /// Whether this process leads and its claims are rebuilt.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        matches!(self.lock().role, Role::Beginning | Role::Leading)
    }

    /// # Errors
    /// Why it is not ready.
    pub fn ready(&self) -> Result<(), &'static str> {
        self.lock().ready(Instant::now())
    }

    /// `stalled`: for how long reconciles have been due without one ending.
    ///
    /// # Errors
    /// Why it should be restarted.
    pub fn alive(&self, stalled: Option<Duration>) -> Result<(), &'static str> {
        self.lock().alive(Instant::now(), stalled)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn ready(&self, now: Instant) -> Result<(), &'static str> {
        let broken = self
            .interrupted
            .is_some_and(|(first, last)| now >= first + PATIENCE && now < last + TOGETHER);
        match self.role {
            Role::Ending => Err("ending"),
            Role::Waiting if self.answered.is_none_or(|at| now >= at + PATIENCE) => {
                Err("waiting for the lease, and the API server does not answer")
            }
            Role::Waiting if self.barred => Err(
                "waiting for the definition to be there and to name this Lease; the log says how",
            ),
            Role::Beginning => Err("leading, and the requests are not listed yet"),
            Role::Leading if broken => Err("leading, and the watch is interrupted"),
            Role::Waiting | Role::Leading => Ok(()),
        }
    }

    fn alive(&self, now: Instant, stalled: Option<Duration>) -> Result<(), &'static str> {
        if self.role == Role::Ending {
            return Ok(());
        }
        if self.lease_tick.is_some_and(|at| now >= at + PATIENCE) {
            return Err("the lease loop is stuck");
        }
        if stalled.is_some_and(|stalled| stalled >= STALLED) {
            return Err("requests are due, but no reconcile completes");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_process_that_waits_for_the_lease_is_ready_while_the_api_server_answers() {
        let health = Health::default();
        assert!(health.ready().is_err());
        health.lease_tick(false);
        assert!(health.ready().is_err());
        health.lease_tick(true);
        assert_eq!(health.ready(), Ok(()));
        for _ in 0..29 {
            advance(2 * SECOND).await;
            health.lease_tick(false);
        }
        assert_eq!(health.ready(), Ok(()));
        advance(2 * SECOND).await;
        assert!(health.ready().is_err());
        // That is no reason to restart it.
        assert_eq!(health.alive(None), Ok(()));
        health.lease_tick(true);
        assert_eq!(health.ready(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_ready_once_its_claims_are_rebuilt_and_until_it_ends() {
        let health = Health::default();
        health.lease_tick(true);
        health.leads();
        assert!(health.ready().is_err() && health.is_leading());
        health.rebuilt();
        assert!(health.ready().is_ok() && health.is_leading());
        health.ends();
        assert!(health.ready().is_err() && !health.is_leading());
        advance(2 * STALLED).await;
        assert_eq!(health.alive(Some(STALLED)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_stays_broken_for_a_minute_makes_a_leader_not_ready_and_never_dead() {
        let health = Health::default();
        health.leads();
        health.rebuilt();
        // Now and then, as with every restart of an API server.
        for _ in 0..5 {
            health.interrupted();
            assert_eq!(health.ready(), Ok(()));
            advance(2 * TOGETHER).await;
        }
        // Each attempt is met by silence.
        for _ in 0..2 {
            health.interrupted();
            assert_eq!(health.ready(), Ok(()));
            advance(43 * SECOND).await;
        }
        assert!(health.ready().is_err());
        health.interrupted();
        assert!(health.ready().is_err());
        assert_eq!(health.alive(None), Ok(()));
        health.heard();
        assert_eq!(health.ready(), Ok(()));
        // It recovers without an event, because nothing changes.
        for _ in 0..100 {
            health.interrupted();
            advance(SECOND).await;
        }
        assert!(health.ready().is_err());
        advance(TOGETHER).await;
        assert_eq!(health.ready(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_whose_loops_stand_still_is_dead() {
        let health = Health::default();
        // Without an election there is no loop.
        advance(2 * PATIENCE).await;
        assert_eq!(health.alive(None), Ok(()));
        health.lease_tick(true);
        advance(59 * SECOND).await;
        assert_eq!(health.alive(Some(599 * SECOND)), Ok(()));
        assert!(health.alive(Some(STALLED)).is_err());
        advance(SECOND).await;
        assert!(health.alive(None).is_err());
        health.lease_tick(false);
        assert_eq!(health.alive(None), Ok(()));
    }
}
