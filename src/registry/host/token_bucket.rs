//! Pacing: a token bucket, filled at the rate that is learnt.
//!
//! Tells how long it is until the next token. Tokens are not handed out in advance, so the queue decides at the last moment who gets one.

use std::time::Duration;

use tokio::time::Instant;

use super::learnt_rate::LearntRate;
use super::limits::{Rates, Zone};

/// What a token may lack of a whole one: times are rounded to nanoseconds.
const ROUNDING: f64 = 1e-6;
/// What is not used for so long is not known any more.
const IDLE_MAX: Duration = Duration::from_mins(1);
/// However few may come at once, a fast rate is not held up by how seldom a clock ticks.
const TICK: f64 = 0.02;

/// A token bucket. Tokens that are taken although they are not due yet are owed: the next ones come later.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// None: no pacing.
    rate: Option<LearntRate>,
    /// So many may come at once.
    burst: f64,
    tokens: f64,
    last: Instant,
    used: Instant,
}

impl TokenBucket {
    pub(crate) fn new(rates: Rates, zone: Zone, now: Instant) -> Self {
        let rate = || LearntRate::new(rates.qps, rates.qps_max);
        Self {
            rate: (rates.qps > 0).then(rate),
            burst: zone.burst(),
            tokens: f64::MAX,
            last: now,
            used: now,
        }
    }

    /// What is kept to now; none: nothing.
    pub(crate) fn rate(&mut self, now: Instant) -> Option<f64> {
        Some(self.rate.as_mut()?.at(now))
    }

    /// How long it is until a token is due.
    pub(crate) fn due(&mut self, now: Instant) -> Duration {
        self.until(1.0, now)
    }

    /// How long it is until none is owed.
    pub(crate) fn owed(&mut self, now: Instant) -> Duration {
        self.until(0.0, now)
    }

    /// How long it is until there are so many tokens.
    fn until(&mut self, tokens: f64, now: Instant) -> Duration {
        let Some(learnt) = &mut self.rate else {
            return Duration::ZERO;
        };
        if now.saturating_duration_since(self.used) > IDLE_MAX {
            self.used = now;
            learnt.forget();
        }
        let rate = learnt.at(now);
        let gained = now.saturating_duration_since(self.last).as_secs_f64() * rate;
        self.last = now;
        // A quarter of a second's requests may come at once.
        let burst = (rate / 4.0).min(self.burst).max(rate * TICK).max(1.0);
        self.tokens = (self.tokens + gained).min(burst);
        let lacking = tokens - self.tokens;
        if lacking <= ROUNDING {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(lacking / rate)
        }
    }

    /// A token is taken, due or not.
    pub(crate) fn take(&mut self, now: Instant) {
        // What has come until now is there before this is owed.
        self.until(0.0, now);
        self.used = now;
        self.tokens -= 1.0;
    }

    /// A token was taken and not used.
    pub(crate) fn refund(&mut self) {
        self.tokens += 1.0;
    }

    /// The host served a request. `wanted`: whether others wait for a token.
    pub(crate) fn served(&mut self, now: Instant, wanted: bool) {
        if let Some(rate) = &mut self.rate {
            rate.served(now, wanted);
        }
    }

    /// The host limits the rate, of which `kept` was the one kept to; whether it is lowered, where there is one.
    pub(crate) fn limited(&mut self, now: Instant, kept: f64) -> bool {
        let slowed = self
            .rate
            .as_mut()
            .is_none_or(|rate| rate.limited(now, kept));
        if slowed {
            self.tokens = self.tokens.min(0.0);
        }
        slowed
    }

    /// The host comes back after a pause.
    pub(crate) fn restart(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.restart();
        }
    }

    /// Whether its rate is lower than where it begins.
    pub(crate) fn is_lowered(&self) -> bool {
        self.rate.as_ref().is_some_and(LearntRate::is_lowered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(qps: u32, now: Instant) -> TokenBucket {
        let rates = Rates { qps, qps_max: qps };
        TokenBucket::new(rates, Zone::Content, now)
    }

    /// Takes every token as soon as it is due; how long that takes in all.
    fn take(bucket: &mut TokenBucket, tokens: usize, start: Instant) -> Duration {
        let mut now = start;
        for _ in 0..tokens {
            now += bucket.due(now);
            bucket.take(now);
        }
        now - start
    }

    #[test]
    fn pacing_lets_a_burst_pass_and_then_keeps_the_rate() {
        let now = Instant::now();
        let mut bucket = fixed(40, now);
        assert_eq!(take(&mut bucket, 10, now), Duration::ZERO);
        let took = take(&mut bucket, 40, now).as_secs_f64();
        assert!((took - 1.0).abs() < 0.001, "{took}");
        assert_eq!(take(&mut fixed(0, now), 1000, now), Duration::ZERO);
        // However fast it is, no more come at once than a bucket takes.
        assert!(take(&mut fixed(500, now), 11, now) > Duration::ZERO);
    }

    #[test]
    fn a_token_that_is_owed_is_made_up_for_and_one_refunded_is_there_again() {
        let now = Instant::now();
        let mut bucket = fixed(40, now);
        take(&mut bucket, 10, now);
        bucket.take(now);
        assert_eq!(bucket.due(now), Duration::from_millis(50));
        bucket.refund();
        bucket.refund();
        assert_eq!(bucket.due(now), Duration::ZERO);
    }

    #[test]
    fn what_was_not_used_for_a_minute_is_not_known_any_more() {
        let now = Instant::now();
        let mut bucket = fixed(40, now);
        take(&mut bucket, 1, now);
        assert!(bucket.limited(now, f64::INFINITY));
        assert_eq!(bucket.rate(now), Some(20.0));
        let later = now + IDLE_MAX + Duration::from_secs(1);
        bucket.due(later);
        assert_eq!(bucket.rate(later), Some(40.0));
    }
}
