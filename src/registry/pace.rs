//! Pacing: how many requests a second go to one host, slower after a 429 and faster again while it serves.
//!
//! In comes the time, out comes how long to wait for the next turn.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket that gives turns in advance: the wait grows with the queue.
#[derive(Debug)]
pub(super) struct Pace {
    nominal: f64,
    rate: f64,
    tokens: f64,
    last: Instant,
}

impl Pace {
    pub(super) fn new(qps: u32, now: Instant) -> Self {
        let nominal = f64::from(qps);
        Self {
            nominal,
            rate: nominal,
            tokens: Self::burst(nominal),
            last: now,
        }
    }

    /// A quarter of a second's requests may come at once.
    fn burst(rate: f64) -> f64 {
        (rate / 4.0).max(1.0)
    }

    /// How long to wait for the next turn.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        if self.nominal == 0.0 {
            return Duration::ZERO;
        }
        let gained = now.saturating_duration_since(self.last).as_secs_f64() * self.rate;
        self.last = now;
        self.tokens = (self.tokens + gained).min(Self::burst(self.rate)) - 1.0;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-self.tokens / self.rate)
    }

    pub(super) fn slow(&mut self) {
        if self.nominal > 0.0 {
            self.rate = (self.rate / 2.0).max(1.0);
            self.tokens = self.tokens.min(0.0);
        }
    }

    pub(super) fn recover(&mut self) {
        self.rate = (self.rate + self.nominal / 50.0).min(self.nominal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pacing_lets_a_burst_pass_and_then_keeps_the_rate() {
        let now = Instant::now();
        let mut pace = Pace::new(40, now);
        let waits: Vec<_> = (0..50).map(|_| pace.take(now)).collect();
        assert!(waits[..10].iter().all(Duration::is_zero));
        assert_eq!(waits[49], Duration::from_secs(1));
        assert!(Pace::new(0, now).take(now).is_zero());
    }

    #[test]
    fn a_limited_lane_is_slower_and_recovers() {
        let now = Instant::now();
        let mut pace = Pace::new(40, now);
        pace.slow();
        assert_eq!(pace.take(now), Duration::from_millis(50));
        for _ in 0..25 {
            pace.recover();
        }
        assert!((pace.rate - 40.0).abs() < 0.001);
        for _ in 0..20 {
            pace.slow();
        }
        assert!((pace.rate - 1.0).abs() < 0.001);
    }
}
