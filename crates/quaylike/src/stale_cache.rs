//! Quay's cache of answers by digest, which goes on answering after the content was deleted.
//!
//! In: reads and the time they happen at. Out: what was read before, for as long as it is kept, or what is read now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::content::Digest;

/// Answers kept before those are dropped that are over.
const ANSWERS: usize = 10_000;

/// Answers by repository and digest, each kept for a time.
#[derive(Debug)]
pub(super) struct StaleCache<T>(Mutex<HashMap<(String, Digest), (Instant, T)>>);

impl<T> Default for StaleCache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> StaleCache<T> {
    /// What was read within `life`, else what `read` finds now. Only what is found is kept.
    pub(super) fn get_or_read<E>(
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_kept_for_its_life_from_the_first_read() {
        let (cache, digest, begun) = (StaleCache::default(), Digest::of(b"x"), Instant::now());
        let life = Duration::from_mins(5);
        let read = |after: u64, finds: Result<u8, ()>| {
            let now = begun + Duration::from_secs(after);
            cache.get_or_read("r", digest, life, now, || finds)
        };
        assert_eq!(read(0, Err(())), Err(()), "absence is not kept");
        assert_eq!(read(0, Ok(1)), Ok(1));
        assert_eq!(read(299, Err(())), Ok(1));
        assert_eq!(read(300, Err(())), Err(()));
        let off = cache.get_or_read("r", digest, Duration::ZERO, begun, || Err(()));
        assert_eq!(off, Err(()));
    }
}
