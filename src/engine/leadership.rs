//! Whether this process may write tags now.
//!
//! The lease is trusted for a while after each renewal; a tag write is sent only if its whole timeout fits in what is left, so
//! that no write of ours is on the wire when somebody else may lead.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::moment::Moment;

/// How long the lease is trusted after a renewal was sent.
pub const TRUST: Duration = Duration::from_secs(10);
/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);

/// The longest timeout of a write: what is trusted just before a renewal.
pub const WRITE_MAX: Duration = Duration::from_secs(8);

/// The total timeout of a tag write: it leaves two seconds of the settle time, and fits in what the lease is trusted for between two
/// renewals.
#[must_use]
pub fn write_timeout(settle: Duration) -> Duration {
    let settling = settle.saturating_sub(Duration::from_secs(2));
    settling.min(WRITE_MAX)
}

/// Trust in the lease.
#[derive(Debug, Clone, Copy)]
struct Trust {
    since: Moment,
    lasts: Duration,
}

/// The right to write, shared with whoever renews it. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Leadership {
    trusted: Option<Arc<Mutex<Option<Trust>>>>,
}

impl Leadership {
    /// For a single process without an election: it always leads.
    #[must_use]
    pub fn alone() -> Self {
        Self { trusted: None }
    }

    /// For an election: nothing is trusted before the first renewal.
    #[must_use]
    pub fn elected() -> Self {
        Self {
            trusted: Some(Arc::default()),
        }
    }

    /// The lease was renewed: it is trusted for `lasts` since then, by every clock that may have run while this process did not.
    pub fn trust(&self, since: Moment, lasts: Duration) {
        if let Some(cell) = &self.trusted {
            let trust = Trust { since, lasts };
            *cell.lock() = Some(trust);
        }
    }

    /// The lease is lost: nothing is trusted any more.
    pub fn lose(&self) {
        if let Some(cell) = &self.trusted {
            *cell.lock() = None;
        }
    }

    /// Whether something that takes at most `timeout` ends while the lease is trusted.
    #[must_use]
    pub fn covers(&self, timeout: Duration) -> bool {
        let Some(cell) = &self.trusted else {
            return true;
        };
        let trust = *cell.lock();
        trust.is_some_and(|trust| trust.since.elapsed() + timeout <= trust.lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_is_covered_only_while_its_whole_timeout_is_trusted() {
        let timeout = Duration::from_secs(8);
        let leadership = Leadership::elected();
        assert!(!leadership.covers(timeout));
        leadership.trust(Moment::now(), TRUST);
        assert!(leadership.covers(timeout));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(leadership.covers(timeout));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!leadership.covers(timeout));
        leadership.trust(Moment::now(), TRUST);
        leadership.lose();
        assert!(!leadership.covers(timeout));
        assert!(Leadership::alone().covers(timeout));
    }

    /// The monotonic clock stands still in a sleep of the machine, and in most pauses of a virtual one: for two seconds after waking
    /// it would still say that the lease is fresh.
    #[test]
    fn a_lease_is_not_trusted_after_a_sleep_that_the_monotonic_clock_did_not_see() {
        let leadership = Leadership::elected();
        let (now, slept) = (Moment::now(), Duration::from_mins(1));
        leadership.trust(now, TRUST);
        assert!(leadership.covers(Duration::ZERO));
        for since in [now.before_a_sleep(slept), now.before_a_pause(slept)] {
            leadership.trust(since, TRUST);
            assert!(!leadership.covers(Duration::ZERO));
        }
    }
}
