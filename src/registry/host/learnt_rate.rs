//! How fast one zone of a host may be asked, found by asking it.
//!
//! In come answers and the time they come at; out comes a rate. It grows with every answer while requests wait for it. A 429 halves it
//! for [`SLOW_FOR`]; then it is a little below what drew the 429, and stays there until [`PROBE_AFTER`] has passed without another: then
//! it may rise by half again. A bucket is full whenever it draws a 429, so what was served between two of them tells its rate. Where the
//! rate had been borne for long, requests that came at once filled the bucket: that 429 and the next leave the rate as it was.
//!
//! Guaranteed: never above what was configured as the most, never below one a second. A rate that may not grow stays where it began but
//! for what 429s take from it.

use std::time::Duration;

use tokio::time::Instant;

/// Each answer raises the rate by this part of it: from 40 to 1000 within seventy answers.
const GROWTH: f64 = 0.05;
/// How long the rate is halved. What a bucket took beyond its rate has run out of it by then; longer would waste what a fast one gives.
const SLOW_FOR: Duration = Duration::from_millis(300);
/// So many 429s of requests sent at the halved rate halve it again: one may be due to a bucket that is still full.
const SLOW_REFUSALS: u32 = 2;
/// What the rate comes back to, of what drew the 429.
const BELOW: f64 = 0.95;
/// How long a rate that drew a 429 is kept to.
const PROBE_AFTER: Duration = Duration::from_mins(1);
/// A rate that was borne for so long is not what draws a 429: requests that keep to no rate came at once. It is halved for a moment, and
/// comes back.
const BORNE: Duration = Duration::from_secs(5);
/// How far it may rise beyond that in each such time.
const PROBE: f64 = 1.5;
/// The lowest rate.
const LEAST: f64 = 1.0;

/// A rate and what it rests on.
#[derive(Debug, Clone)]
pub(super) struct LearntRate {
    start: f64,
    max: f64,
    rate: f64,
    /// What it may grow to.
    ceiling: f64,
    slow: Option<Slow>,
    limited: Option<Limited>,
}

/// While the rate is halved.
#[derive(Debug, Clone)]
struct Slow {
    until: Instant,
    refusals: u32,
    /// The rate had been borne for long: what is refused meanwhile is of requests that came at once, too, and tells nothing of it.
    borne: bool,
}

/// The last 429 that lowered the rate.
#[derive(Debug, Clone)]
struct Limited {
    at: Instant,
    /// Since when the ceiling stands.
    kept_since: Instant,
    served: f64,
    /// The rate had been borne for long. A bucket that takes more blobs at once than manifests can be so full that it refuses
    /// manifests for a second and longer: the next 429 tells nothing of the rate either.
    forgives_next: bool,
}

impl LearntRate {
    /// Begins at `start` and grows up to `max`.
    pub(super) fn new(start: u32, max: u32) -> Self {
        let (start, max) = (f64::from(start), f64::from(max.max(start)));
        Self {
            start,
            max,
            rate: start,
            ceiling: max,
            slow: None,
            limited: None,
        }
    }

    /// Requests a second, now.
    pub(super) fn at(&mut self, now: Instant) -> f64 {
        if let Some(slow) = &self.slow
            && slow.until <= now
        {
            self.slow = None;
            self.rate = self.ceiling;
        }
        if let Some(limited) = &mut self.limited
            && limited.kept_since + PROBE_AFTER <= now
        {
            limited.kept_since = now;
            self.ceiling = (self.ceiling * PROBE).min(self.max);
        }
        self.rate
    }

    /// A request was served. `wanted`: whether others wait for the rate.
    pub(super) fn served(&mut self, now: Instant, wanted: bool) {
        let rate = self.at(now);
        if let Some(limited) = &mut self.limited {
            limited.served += 1.0;
        }
        if wanted && self.slow.is_none() {
            self.rate = (rate * (1.0 + GROWTH)).min(self.ceiling).max(rate);
        }
    }

    /// A request was answered 429 while this rate, or a lower one of somebody else, was kept to; whether it becomes lower by that.
    pub(super) fn limited(&mut self, now: Instant, kept: f64) -> bool {
        let mut drew = self.at(now).min(kept);
        let (mut borne, mut forgives_next) = (false, false);
        if let Some(slow) = &mut self.slow {
            slow.refusals += 1;
            if slow.refusals < SLOW_REFUSALS {
                return false;
            }
            borne = slow.borne;
            let last = self.limited.as_ref();
            forgives_next = last.is_some_and(|last| last.forgives_next);
        } else if let Some(last) = &self.limited {
            let since = now - last.at;
            forgives_next = now - last.kept_since >= BORNE && drew >= self.ceiling;
            borne = forgives_next || last.forgives_next;
            if !borne && since < PROBE_AFTER / 6 {
                // The bucket may have been empty for a while, so that more could have been served.
                let served = (last.served / since.as_secs_f64()).max(drew / 2.0);
                drew = f64::midpoint(drew, served.min(drew));
            }
        }
        if !borne {
            self.ceiling = (drew * BELOW).max(LEAST);
        }
        self.rate = (drew / 2.0).max(LEAST);
        self.slow = Some(Slow {
            until: now + SLOW_FOR,
            refusals: 0,
            borne,
        });
        self.limited = Some(Limited {
            at: now,
            kept_since: now,
            served: 0.0,
            forgives_next,
        });
        true
    }

    /// The host comes back after a pause: not all at once. What it bears at the most is still believed.
    pub(super) fn restart(&mut self) {
        self.slow = None;
        self.rate = self.start.min(self.ceiling);
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        self.ceiling = self.max;
        self.limited = None;
        self.restart();
    }

    /// Whether it is lower than where it begins.
    pub(super) fn is_lowered(&self) -> bool {
        self.rate < self.start
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn served(rate: &mut LearntRate, now: Instant, answers: usize, wanted: bool) -> f64 {
        for _ in 0..answers {
            rate.served(now, wanted);
        }
        rate.at(now)
    }

    fn near(rate: f64, expected: f64) {
        assert!((rate - expected).abs() < 0.01, "{rate}, not {expected}");
    }

    #[test]
    fn it_grows_only_while_requests_wait_for_it_and_up_to_the_most() {
        let (mut rate, now) = (LearntRate::new(40, 1000), Instant::now());
        near(served(&mut rate, now, 1000, false), 40.0);
        near(served(&mut rate, now, 1, true), 42.0);
        near(served(&mut rate, now, 100, true), 1000.0);
        let mut fixed = LearntRate::new(40, 40);
        near(served(&mut fixed, now, 100, true), 40.0);
    }

    #[test]
    fn a_429_halves_it_for_a_moment_and_then_it_stays_below_what_drew_it() {
        let (mut rate, now) = (LearntRate::new(100, 1000), Instant::now());
        assert!(rate.limited(now, f64::INFINITY));
        near(served(&mut rate, now, 100, true), 50.0);
        let later = now + SLOW_FOR;
        near(rate.at(later), 95.0);
        near(served(&mut rate, later, 100, true), 95.0);
        near(rate.at(now + PROBE_AFTER - SECOND), 95.0);
        // Once a minute it tries whether there is more.
        near(served(&mut rate, now + PROBE_AFTER, 100, true), 95.0 * 1.5);
        let two = now + PROBE_AFTER * 2;
        near(served(&mut rate, two, 100, true), 95.0 * 1.5 * 1.5);
    }

    #[test]
    fn one_429_at_the_halved_rate_may_be_the_full_buckets_and_two_are_not() {
        let (mut rate, now) = (LearntRate::new(100, 1000), Instant::now());
        assert!(rate.limited(now, f64::INFINITY));
        assert!(!rate.limited(now, f64::INFINITY));
        near(rate.at(now), 50.0);
        assert!(rate.limited(now, f64::INFINITY));
        near(rate.at(now), 25.0);
        for _ in 0..40 {
            rate.limited(now, f64::INFINITY);
        }
        near(rate.at(now), LEAST);
        near(rate.at(now + SLOW_FOR), LEAST);
    }

    #[test]
    fn what_was_served_between_two_429s_tells_the_rate() {
        let (mut rate, now) = (LearntRate::new(100, 1000), Instant::now());
        rate.limited(now, f64::INFINITY);
        let again = now + SECOND;
        served(&mut rate, again, 70, false);
        assert!(rate.limited(again, f64::INFINITY));
        near(rate.at(again + SLOW_FOR), f64::midpoint(95.0, 70.0) * BELOW);
        // Where it was another that paced, that was the rate.
        let (mut other, now) = (LearntRate::new(1000, 1000), Instant::now());
        other.limited(now, 80.0);
        near(other.at(now + SLOW_FOR), 76.0);
    }

    /// Tag writes are sent at once, whatever the rate: now and then they fill a bucket whose rate is kept to.
    #[test]
    fn a_rate_that_was_borne_for_a_while_comes_back_after_a_429() {
        let (mut rate, now) = (LearntRate::new(100, 1000), Instant::now());
        rate.limited(now, f64::INFINITY);
        let mut at = now;
        for _ in 0..10 {
            at += BORNE;
            near(rate.at(at), 95.0);
            assert!(rate.limited(at, f64::INFINITY));
            near(rate.at(at), 47.5);
            // Others that came at once were refused as well.
            assert!(!rate.limited(at, 47.5));
            assert!(rate.limited(at, 47.5));
            near(rate.at(at + SLOW_FOR), 95.0);
        }
        // It was full beyond what it takes of these, and still is.
        at += BORNE / 3;
        served(&mut rate, at, 38, true);
        assert!(rate.limited(at, f64::INFINITY));
        assert!(!rate.limited(at, f64::INFINITY));
        assert!(rate.limited(at, f64::INFINITY));
        near(rate.at(at + SLOW_FOR), 95.0);
        // One that has become slower goes on drawing them.
        at += BORNE / 3;
        assert!(rate.limited(at, f64::INFINITY));
        assert!(rate.at(at + SLOW_FOR) < 95.0 * BELOW + 0.01);
    }

    #[test]
    fn after_a_pause_it_begins_low_and_after_a_long_one_anew() {
        let (mut rate, now) = (LearntRate::new(40, 1000), Instant::now());
        served(&mut rate, now, 40, true);
        rate.limited(now, 200.0);
        let later = now + SLOW_FOR;
        near(rate.at(later), 190.0);
        rate.restart();
        near(rate.at(later), 40.0);
        near(served(&mut rate, later, 100, true), 190.0);
        rate.forget();
        near(rate.at(later), 40.0);
        near(served(&mut rate, later, 100, true), 1000.0);
    }

    /// A leaky bucket as nginx has it.
    pub(in crate::registry::host) struct Bucket {
        rate: f64,
        level: f64,
        at: Duration,
    }

    impl Bucket {
        pub(in crate::registry::host) fn new(rate: f64) -> Self {
            Self {
                rate,
                level: -1.0,
                at: Duration::ZERO,
            }
        }

        pub(in crate::registry::host) fn admits(&mut self, at: Duration, burst: f64) -> bool {
            let level = self.level - at.saturating_sub(self.at).as_secs_f64() * self.rate;
            let level = level.max(-1.0) + 1.0;
            if level <= burst {
                (self.level, self.at) = (level, at);
            }
            level <= burst
        }
    }

    /// How long so many requests take, one after another at the rate that is learnt and answered at once, and how many are refused.
    fn learn(limit: f64, burst: f64, requests: usize) -> (Duration, usize) {
        let (mut rate, start) = (LearntRate::new(40, 1000), Instant::now());
        let mut bucket = Bucket::new(limit);
        let (mut at, mut served, mut refused) = (Duration::ZERO, 0, 0);
        while served < requests {
            at += Duration::from_secs_f64(1.0 / rate.at(start + at));
            if bucket.admits(at, burst) {
                served += 1;
                rate.served(start + at, true);
            } else {
                refused += 1;
                rate.limited(start + at, f64::INFINITY);
            }
        }
        (at, refused)
    }

    #[test]
    fn buckets_of_many_rates_are_found_with_few_429s_and_little_is_wasted() {
        for (limit, burst) in [
            (10.0, 10.0),
            (20.0, 5.0),
            (50.0, 10.0),
            (50.0, 50.0),
            (70.0, 10.0),
            (100.0, 20.0),
            (120.0, 2.0),
            (200.0, 10.0),
            (500.0, 50.0),
            (700.0, 100.0),
        ] {
            let requests = 4000;
            let (took, refused) = learn(limit, burst, requests);
            #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
            let own = (requests as f64) / limit;
            let ratio = took.as_secs_f64() / own;
            let shown =
                format!("{limit}/s, burst {burst}: {ratio:.2} of its time, {refused} refused");
            assert!(ratio <= 1.15 && refused * 100 <= requests, "{shown}");
        }
        let (took, refused) = learn(1e9, 1.0, 1600);
        assert!(
            took < Duration::from_millis(2300) && refused == 0,
            "{took:?}"
        );
    }
}
