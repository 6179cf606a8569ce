//! What quay and the proxy in front of it remember: answers by digest, and how much was asked of late.
//!
//! In: reads and the time they happen at. Out: what was read before, for as long as it is remembered, whatever has become of the
//! content since; and whether one more request is within the rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::content::Digest;
use super::names::Kind;

/// Answers kept before those are dropped that are over.
const ANSWERS: usize = 10_000;
/// Requests for manifests, and for blobs, that may come at once beyond the rate, as quay's proxy has it.
const BURSTS: [f64; 2] = [10.0, 50.0];

/// Answers by repository and digest, each kept for a time.
#[derive(Debug)]
pub(super) struct Recall<T>(Mutex<HashMap<(String, Digest), (Instant, T)>>);

/// One bucket for the requests for manifests and blobs together.
#[derive(Debug, Default)]
pub(super) struct Bucket(Mutex<Option<(Instant, f64)>>);

// === impl Recall ===

impl<T> Default for Recall<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Recall<T> {
    /// What was read within `life`, else what `read` finds now. Only what is found is kept.
    pub(super) fn or_read<E>(
        &self,
        repository: &str,
        digest: Digest,
        life: Duration,
        now: Instant,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if life.is_zero() {
            return read();
        }
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < life;
        let mut answers = self.0.lock();
        let key = (repository.to_owned(), digest);
        if let Some((at, known)) = answers.get(&key)
            && fresh(at)
        {
            return Ok(known.clone());
        }
        let found = read()?;
        if answers.len() >= ANSWERS {
            answers.retain(|_, (at, _)| fresh(at));
        }
        answers.insert(key, (now, found.clone()));
        Ok(found)
    }
}

// === impl Bucket ===

impl Bucket {
    /// Whether a request is within the rate; one that is not leaves the bucket as it is.
    pub(super) fn admits(&self, kind: Kind, rate: u32, now: Instant) -> bool {
        let [manifests, blobs] = BURSTS;
        let burst = match kind {
            _ if rate == 0 => return true,
            Kind::Manifest => manifests,
            Kind::Blob | Kind::Upload => blobs,
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
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_kept_for_its_life_from_the_first_read() {
        let (recall, digest, begun) = (Recall::default(), Digest::of(b"x"), Instant::now());
        let life = Duration::from_mins(5);
        let read = |after: u64, finds: Result<u8, ()>| {
            let now = begun + Duration::from_secs(after);
            recall.or_read("r", digest, life, now, || finds)
        };
        assert_eq!(read(0, Err(())), Err(()), "absence is not kept");
        assert_eq!(read(0, Ok(1)), Ok(1));
        assert_eq!(read(299, Err(())), Ok(1));
        assert_eq!(read(300, Err(())), Err(()));
        let off = recall.or_read("r", digest, Duration::ZERO, begun, || Err(()));
        assert_eq!(off, Err(()));
    }

    #[test]
    fn manifests_and_blobs_fill_one_bucket_and_differ_in_their_bursts() {
        let (bucket, now) = (Bucket::default(), Instant::now());
        let admitted = |kind: Kind, now: Instant| {
            let asked = (0..200).filter(|_| bucket.admits(kind, 50, now));
            asked.count()
        };
        assert_eq!(admitted(Kind::Manifest, now), 11);
        assert_eq!(admitted(Kind::Blob, now), 40);
        let later = now + Duration::from_secs(1);
        assert_eq!(admitted(Kind::Manifest, later), 10);
        assert_eq!(admitted(Kind::Token, later), 200);
        assert!(bucket.admits(Kind::Manifest, 0, later));
    }
}
