//! What is kept of requests for logs and numbers alone.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::api::PromotionRequest;
use crate::machine::{Phase, Reason, Request};
use crate::store::Key;

/// What a scrape counts of an unfinished request.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestStats {
    pub created: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub reason: Option<Reason>,
    /// How many of its images are in each phase, in the order of [`Phase::ALL`].
    pub phases: [u16; Phase::ALL.len()],
}

/// When the images of a request entered their phases, as far as this process saw it.
pub(super) type PhaseTimes = Vec<Option<Instant>>;

/// Who waits for a reconcile since when, and when the last one ended.
#[derive(Debug)]
pub(super) struct WorkQueue {
    pub waiting: HashMap<Key, Instant>,
    pub ended: Instant,
}

impl RequestStats {
    pub fn of(object: &PromotionRequest, request: &Request) -> Self {
        let mut phases = [0; Phase::ALL.len()];
        for image in &request.status.images {
            phases[image.phase as usize] += 1;
        }
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let progressing = conditions.into_iter().find(|c| c.type_ == "Progressing");
        Self {
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0),
            deadline: request.status.deadline,
            reason: progressing.and_then(|condition| Reason::parse(&condition.reason)),
            phases,
        }
    }
}

impl Default for WorkQueue {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            ended: Instant::now(),
        }
    }
}

impl WorkQueue {
    pub fn add(&mut self, key: &Key) {
        if !self.waiting.contains_key(key) {
            self.waiting.insert(key.clone(), Instant::now());
        }
    }

    /// For how long requests have been due without a reconcile that ended.
    pub fn stalled(&self, now: Instant) -> Option<Duration> {
        let oldest = self.waiting.values().min()?;
        Some(now.saturating_duration_since(self.ended.max(*oldest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_stalled_since_it_was_due_or_since_a_reconcile_ended() {
        let second = Duration::from_secs(1);
        let key = |name: &str| Key {
            namespace: "ci".into(),
            name: name.into(),
        };
        let mut queue = WorkQueue::default();
        tokio::time::advance(5 * second).await;
        assert_eq!(queue.stalled(Instant::now()), None);
        queue.add(&key("a"));
        tokio::time::advance(2 * second).await;
        queue.add(&key("a"));
        queue.add(&key("b"));
        tokio::time::advance(second).await;
        assert_eq!(queue.stalled(Instant::now()), Some(3 * second));
        queue.waiting.remove(&key("a"));
        assert_eq!(queue.stalled(Instant::now()), Some(second));
        queue.ended = Instant::now();
        assert_eq!(queue.stalled(Instant::now()), Some(Duration::ZERO));
    }
}
