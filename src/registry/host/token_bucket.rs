//! Pacing: a token bucket, slower after a 429 and faster again while the host serves.
//!
//! Tells how long it is until the next token. Tokens are not handed out in advance, so the queue decides at the last moment who gets one.

use std::time::Duration;

use tokio::time::Instant;

/// What a token may lack of a whole one: times are rounded to nanoseconds.
const ROUNDING: f64 = 1e-6;

/// A token bucket. Tokens that are taken although they are not due yet are owed: the next ones come later.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    nominal: f64,
    rate: f64,
    tokens: f64,
    last: Instant,
}

impl TokenBucket {
    /// `qps` tokens a second; 0: always.
    pub(crate) fn new(qps: u32, now: Instant) -> Self {
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

    /// How long it is until a token is due.
    pub(crate) fn due(&mut self, now: Instant) -> Duration {
        if self.nominal == 0.0 {
            return Duration::ZERO;
        }
        let gained = now.saturating_duration_since(self.last).as_secs_f64() * self.rate;
        self.last = now;
        self.tokens = (self.tokens + gained).min(Self::burst(self.rate));
        let lacking = 1.0 - self.tokens;
        if lacking <= ROUNDING {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(lacking / self.rate)
        }
    }

    /// A token is taken, due or not.
    pub(crate) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// A token was taken and not used.
    pub(crate) fn refund(&mut self) {
        self.tokens += 1.0;
    }

    /// The host limits the rate.
    pub(crate) fn slow(&mut self) {
        if self.nominal > 0.0 {
            self.rate = (self.rate / 2.0).max(1.0);
            self.tokens = self.tokens.min(0.0);
        }
    }

    /// The host serves.
    pub(crate) fn recover(&mut self) {
        self.rate = (self.rate + self.nominal / 50.0).min(self.nominal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes every token as soon as it is due; how long that takes in all.
    fn take(bucket: &mut TokenBucket, tokens: usize, start: Instant) -> Duration {
        let mut now = start;
        for _ in 0..tokens {
            now += bucket.due(now);
            bucket.take();
        }
        now - start
    }

    #[test]
    fn pacing_lets_a_burst_pass_and_then_keeps_the_rate() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(40, now);
        assert_eq!(take(&mut bucket, 10, now), Duration::ZERO);
        let took = take(&mut bucket, 40, now).as_secs_f64();
        assert!((took - 1.0).abs() < 0.001, "{took}");
        assert_eq!(
            take(&mut TokenBucket::new(0, now), 1000, now),
            Duration::ZERO
        );
    }

    #[test]
    fn a_token_that_is_owed_is_made_up_for_and_one_refunded_is_there_again() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(40, now);
        take(&mut bucket, 10, now);
        bucket.take();
        assert_eq!(bucket.due(now), Duration::from_millis(50));
        bucket.refund();
        bucket.refund();
        assert_eq!(bucket.due(now), Duration::ZERO);
    }

    #[test]
    fn a_limited_lane_is_slower_and_recovers() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(40, now);
        bucket.slow();
        assert_eq!(bucket.due(now), Duration::from_millis(50));
        for _ in 0..25 {
            bucket.recover();
        }
        assert!((bucket.rate - 40.0).abs() < 0.001);
        for _ in 0..20 {
            bucket.slow();
        }
        assert!((bucket.rate - 1.0).abs() < 0.001);
    }
}
