//! Whether this process may write tags now.
//!
//! The lease is trusted for a while after each renewal; a tag write is sent only if its whole timeout fits in what is left, so
//! that no write of ours is on the wire when somebody else may lead.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the lease is trusted after a renewal was sent.
pub const TRUST: Duration = Duration::from_secs(10);
/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);

/// The longest timeout of a write: what is trusted just before a renewal.
pub const WRITE_MAX: Duration = Duration::from_secs(8);

/// The right to write, shared with whoever renews it. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Leadership {
    trusted_until: Option<Arc<Mutex<Option<Instant>>>>,
}

impl Leadership {
    /// For a single process without an election: it always leads.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            trusted_until: None,
        }
    }

    /// For an election: nothing is trusted before the first renewal.
    #[must_use]
    pub fn elected() -> Self {
        Self {
            trusted_until: Some(Arc::default()),
        }
    }

    /// The lease was renewed: it is trusted until then.
    pub fn trust(&self, until: Instant) {
        if let Some(cell) = &self.trusted_until {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
    }

    /// The lease is lost: nothing is trusted any more.
    pub fn lose(&self) {
        if let Some(cell) = &self.trusted_until {
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Whether something that takes at most `timeout` ends while the lease is trusted.
    #[must_use]
    pub fn covers(&self, timeout: Duration) -> bool {
        let Some(cell) = &self.trusted_until else {
            return true;
        };
        let until = *cell.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() + timeout <= until)
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
        leadership.trust(Instant::now() + Duration::from_secs(10));
        assert!(leadership.covers(timeout));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(leadership.covers(timeout));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!leadership.covers(timeout));
        leadership.trust(Instant::now() + Duration::from_secs(10));
        leadership.lose();
        assert!(!leadership.covers(timeout));
        assert!(Leadership::alone().covers(timeout));
    }
}
