//! A circuit breaker: requests pass while the host is available; otherwise one at a time, after pauses that double.
//!
//! One bad answer among good ones counts for that request only. Two in a row count for the host, and so does one that says when to come
//! back, or a connection that cannot be made. Guaranteed: failures of requests that were sent together count once; a probe that nobody
//! waits for any more does not block the others.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::progress::{Progress, WaitGuard, Waiting};
use crate::machine::Reason;
use crate::registry::error::Error;

/// The longest `Retry-After` that is believed.
const AFTER_MAX: Duration = Duration::from_mins(10);

/// So many bad answers in a row mean that the host is unavailable.
const ROW: u32 = 2;

/// Lets requests pass while the host is available; otherwise one at a time, after pauses that double.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: Mutex<BreakerState>,
    changed: Notify,
}

/// The breaker's state, with time as an argument.
#[derive(Debug)]
struct BreakerState {
    first: Duration,
    max: Duration,
    /// Counts openings, so that ten failures of requests sent together count as one.
    generation: u64,
    /// Bad answers since the last good one, while all is well.
    row: u32,
    open: Option<Open>,
}

/// A bad answer.
#[derive(Debug)]
pub(crate) struct BadAnswer {
    /// A waiting reason.
    pub(crate) reason: Reason,
    /// One line that names the host.
    pub(crate) message: String,
    /// When the host wants to be asked again, if it says so.
    pub(crate) after: Option<Duration>,
    /// Whether it certainly says something about the host.
    pub(crate) certain: bool,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    length: Duration,
    probing: bool,
    reason: Reason,
    message: String,
}

/// Permission to send one request; tells the breaker how it went.
#[derive(Debug)]
pub(crate) struct BreakerPermit {
    breaker: Arc<Breaker>,
    generation: u64,
    probe: bool,
    /// The wait stays shown until the probe has its answer.
    _shown: Option<WaitGuard>,
}

impl Open {
    fn waiting(&self) -> Waiting {
        Waiting {
            reason: self.reason,
            message: self.message.clone(),
            until: self.until.into_std(),
        }
    }
}

impl BreakerState {
    /// Whether a request that goes is a probe; or what it waits for: until then, or until the probe of another has its answer.
    fn ask(&mut self, now: Instant) -> Result<bool, (Waiting, Instant, bool)> {
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        if now < open.until || open.probing {
            return Err((open.waiting(), open.until, open.probing));
        }
        open.probing = true;
        Ok(true)
    }

    /// A request of this generation was answered well; whether that ends a pause.
    fn good(&mut self, generation: u64) -> bool {
        if generation != self.generation {
            return false;
        }
        self.row = 0;
        self.open.take().is_some()
    }

    /// A request of this generation was answered badly.
    fn bad(&mut self, generation: u64, now: Instant, bad: BadAnswer) {
        let BadAnswer {
            reason,
            message,
            after,
            certain,
        } = bad;
        if generation != self.generation {
            return;
        }
        self.row += 1;
        if self.open.is_none() && !certain && after.is_none() && self.row < ROW {
            return;
        }
        self.generation += 1;
        self.row = 0;
        let length = self
            .open
            .as_ref()
            .map_or(self.first, |open| (open.length * 2).min(self.max));
        let pause = after
            .unwrap_or(length)
            .clamp(length.min(self.first), AFTER_MAX);
        self.open = Some(Open {
            until: now + pause,
            length,
            probing: false,
            reason,
            message,
        });
    }
}

impl Breaker {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self {
            state: Mutex::new(BreakerState {
                first,
                max,
                generation: 0,
                row: 0,
                open: None,
            }),
            changed: Notify::new(),
        }
    }

    /// Whether it is open.
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    /// What is waited for, while it is open.
    pub(crate) fn unavailable(&self) -> Option<Waiting> {
        self.state.lock().open.as_ref().map(Open::waiting)
    }

    pub(crate) async fn pass(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        progress: &Progress,
    ) -> Result<BreakerPermit, Error> {
        let mut shown: Option<(Waiting, WaitGuard)> = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = Instant::now();
            let (asked, generation) = {
                let mut state = self.state.lock();
                (state.ask(now), state.generation)
            };
            let (waiting, until, probing) = match asked {
                Ok(probe) => {
                    let shown = shown.filter(|_| probe).map(|(_, guard)| guard);
                    return Ok(BreakerPermit {
                        breaker: Arc::clone(self),
                        generation,
                        probe,
                        _shown: shown,
                    });
                }
                Err(waits) => waits,
            };
            // Another's probe may take long: wait for it until the deadline.
            let wake = if probing { deadline } else { Some(until) };
            let patient = match (deadline, probing) {
                (None, _) => true,
                (Some(deadline), true) => now < deadline,
                (Some(deadline), false) => until <= deadline,
            };
            if !patient {
                let after = Some(until.saturating_duration_since(now));
                return Err(Error::wait(waiting.reason, after, waiting.message));
            }
            // Show changes only.
            if shown.as_ref().is_none_or(|(known, _)| *known != waiting) {
                let guard = progress.wait(waiting.clone());
                shown = Some((waiting, guard));
            }
            tokio::select! {
                biased;
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                () = changed => {}
            }
        }
    }
}

impl BreakerPermit {
    pub(crate) fn is_stale(&self) -> bool {
        self.breaker.state.lock().generation != self.generation
    }

    /// Whether it was let through to find out whether a pause is over.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe
    }

    /// A good answer; whether it ends a pause.
    pub(crate) fn good(mut self) -> bool {
        self.probe = false;
        let ended = self.breaker.state.lock().good(self.generation);
        self.breaker.changed.notify_waiters();
        ended
    }

    /// A bad answer. Dropping the permit then changes nothing more.
    pub(crate) fn bad(&self, bad: BadAnswer) {
        self.breaker
            .state
            .lock()
            .bad(self.generation, Instant::now(), bad);
        self.breaker.changed.notify_waiters();
    }
}

impl Drop for BreakerPermit {
    /// If a probe is dropped without an answer, the next request probes.
    fn drop(&mut self) {
        if !self.probe {
            return;
        }
        let mut state = self.breaker.state.lock();
        if state.generation == self.generation
            && let Some(open) = &mut state.open
        {
            open.probing = false;
        }
        drop(state);
        self.breaker.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn state() -> BreakerState {
        BreakerState {
            first: Duration::from_secs(1),
            max: Duration::from_mins(1),
            generation: 0,
            row: 0,
            open: None,
        }
    }

    fn bad(after: Option<Duration>, certain: bool) -> BadAnswer {
        BadAnswer {
            reason: Reason::RegistryUnavailable,
            message: "x".into(),
            after,
            certain,
        }
    }

    fn fail(state: &mut BreakerState, now: Instant) -> Duration {
        let generation = state.generation;
        state.bad(generation, now, bad(None, true));
        state.open.as_ref().unwrap().until - now
    }

    #[test]
    fn backoffs_double_from_one_second_to_sixty_and_a_good_answer_ends_them() {
        let (mut state, now) = (state(), Instant::now());
        let lengths: Vec<u64> = (0..8).map(|_| fail(&mut state, now).as_secs()).collect();
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 60, 60]);
        state.good(state.generation);
        assert_eq!(fail(&mut state, now).as_secs(), 1);
    }

    #[test]
    fn failures_of_requests_sent_together_count_once() {
        let (mut state, now) = (state(), Instant::now());
        for _ in 0..10 {
            state.bad(0, now, bad(None, false));
        }
        assert_eq!(state.open.as_ref().unwrap().length.as_secs(), 1);
    }

    #[test]
    fn one_bad_answer_among_good_ones_is_not_the_hosts() {
        let (mut state, now) = (state(), Instant::now());
        for _ in 0..5 {
            state.bad(0, now, bad(None, false));
            assert!(state.open.is_none());
            state.good(0);
        }
        state.bad(0, now, bad(None, false));
        state.bad(0, now, bad(None, false));
        assert!(state.open.is_some());
    }

    #[test]
    fn a_late_good_answer_of_before_does_not_close_it() {
        let (mut state, now) = (state(), Instant::now());
        fail(&mut state, now);
        state.good(0);
        assert!(state.open.is_some());
    }

    #[test]
    fn retry_after_is_honoured_and_capped() {
        let (mut state, now) = (state(), Instant::now());
        state.bad(0, now, bad(Some(Duration::from_secs(7)), false));
        assert_eq!(
            state.open.as_ref().unwrap().until - now,
            Duration::from_secs(7)
        );
        state.bad(1, now, bad(Some(Duration::from_hours(9)), false));
        assert_eq!(state.open.as_ref().unwrap().until - now, AFTER_MAX);
    }
}
