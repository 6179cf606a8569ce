//! The rate limit of quay's proxy.
//!
//! In: requests and the time they happen at. Out: whether one more is within the rate.

use std::time::Instant;

use parking_lot::Mutex;

use super::names::RequestKind;

/// Requests for manifests, and for blobs, that may come at once beyond the rate, as quay's proxy has it.
const BURSTS: [f64; 2] = [10.0, 50.0];

/// One bucket for the requests for manifests and blobs together.
#[derive(Debug, Default)]
pub(super) struct TokenBucket(Mutex<Option<(Instant, f64)>>);

impl TokenBucket {
    /// Whether a request is within the rate; one that is not leaves the bucket as it is.
    pub(super) fn admits(&self, kind: RequestKind, rate: u32, now: Instant) -> bool {
        let [manifests, blobs] = BURSTS;
        let burst = match kind {
            _ if rate == 0 => return true,
            RequestKind::Manifest => manifests,
            RequestKind::Blob | RequestKind::Upload => blobs,
            _ => return true,
        };
        let mut filled = self.0.lock();
        let (at, level) = filled.unwrap_or((now, -1.0));
        let drained = now.saturating_duration_since(at).as_secs_f64() * f64::from(rate);
        let level = (level - drained).max(-1.0) + 1.0;
        let within = level <= burst;
        if within {
            *filled = Some((now, level));
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn manifests_and_blobs_fill_one_bucket_and_differ_in_their_bursts() {
        let (bucket, now) = (TokenBucket::default(), Instant::now());
        let admitted = |kind: RequestKind, now: Instant| {
            let asked = (0..200).filter(|_| bucket.admits(kind, 50, now));
            asked.count()
        };
        assert_eq!(admitted(RequestKind::Manifest, now), 11);
        assert_eq!(admitted(RequestKind::Blob, now), 40);
        let later = now + Duration::from_secs(1);
        assert_eq!(admitted(RequestKind::Manifest, later), 10);
        assert_eq!(admitted(RequestKind::Token, later), 200);
        assert!(bucket.admits(RequestKind::Manifest, 0, later));
    }
}
