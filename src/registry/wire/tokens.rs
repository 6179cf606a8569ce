//! What is remembered of challenges and tokens.
//!
//! Guaranteed: memory is bounded; what one credential was granted is kept for that credential only. One task at a time fetches a token;
//! the others are shown what it waits for, and one of them goes on if it is dropped.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::request::Failure;
use super::wide_token::{WideKey, WideToken};
use crate::image::Repository;
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::challenge::Challenge;
use crate::registry::auth::credential::CredentialKey;
use crate::registry::auth::token::Token;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;
use crate::registry::host::limits::FlowKey;
use crate::registry::host::progress::{Progress, WaitGuard, Waiting};

/// How long a stream keeps its places while its hosts are unavailable: others need them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// What nobody used for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_hours(1);
/// Tokens kept.
const TOKENS_MAX: u64 = 5_000;
/// Registries whose challenges are kept.
const GREETINGS_MAX: u64 = 5_000;
/// How often a task that waits for another shows what that one waits for.
const WORKER_LOOK: Duration = Duration::from_millis(500);
/// Repositories whose challenges are kept.
const CHALLENGES_MAX: u64 = 10_000;

/// What registries asked for, and the tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// By address.
    greetings: moka::sync::Cache<String, Arc<Greeting>>,
    /// By repository, and whether it was to be written to.
    challenges: moka::sync::Cache<(Repository, bool), Challenge>,
    pub(crate) cells: moka::sync::Cache<TokenKey, Arc<Exclusive<Cell>>>,
    /// For one request each.
    pub(crate) wide: moka::sync::Cache<WideKey, Arc<WideCell>>,
    /// Which request wanted a token first.
    pub(crate) first: moka::sync::Cache<TokenKey, FlowKey>,
}

/// Used by one task at a time; the others are shown what that one waits for.
#[derive(Debug, Default)]
pub(crate) struct Exclusive<T> {
    inner: tokio::sync::Mutex<T>,
    worker: Mutex<Option<Progress>>,
}

/// What a registry asked for at the first request.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    pub(crate) challenge: OnceLock<Challenge>,
    /// Held by the one that asks.
    pub(crate) ping: Exclusive<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    pub(crate) address: String,
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) credential: CredentialKey,
    pub(crate) scopes: String,
}

#[derive(Debug, Default)]
pub(crate) struct Cell {
    pub(crate) token: Option<Arc<Token>>,
    /// The last refusal: whoever waited meanwhile takes it instead of asking again.
    pub(crate) refused: Option<(Instant, Error)>,
}

/// What one token is asked for, and that token.
#[derive(Debug)]
pub(crate) struct WideCell {
    pub(crate) wanted: WideToken,
    pub(crate) cell: Exclusive<Cell>,
}

impl Tokens {
    pub(crate) fn new() -> Self {
        Self {
            greetings: kept(GREETINGS_MAX),
            challenges: kept(CHALLENGES_MAX),
            cells: kept(TOKENS_MAX),
            wide: kept(TOKENS_MAX),
            first: kept(TOKENS_MAX),
        }
    }

    /// Remembers what a 401 asked for.
    pub(crate) fn learn(&self, access: &Access<'_>, challenge: &Challenge) {
        let key = (access.repository.clone(), access.push);
        if self.challenges.get(&key).as_ref() != Some(challenge) {
            self.challenges.insert(key, challenge.clone());
        }
    }

    /// The challenge to expect, if known.
    pub(crate) fn known(&self, access: &Access<'_>) -> Option<Challenge> {
        let key = (access.repository.clone(), access.push);
        let own = self.challenges.get(&key);
        own.or_else(|| self.greeting(access.endpoint).challenge.get().cloned())
    }

    pub(crate) fn greeting(&self, endpoint: &Endpoint) -> Arc<Greeting> {
        self.greetings
            .get_with_by_ref(&endpoint.address, Arc::default)
    }
}

/// A cache of so many, which forgets what nobody uses.
fn kept<K, V>(most: u64) -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(most)
        .eviction_policy(EvictionPolicy::lru())
        .time_to_idle(IDLE_MAX)
        .build()
}

impl<T> Exclusive<T> {
    /// Waits for another task, but not beyond `patience`.
    pub(crate) async fn lock(
        &self,
        patience: Option<Duration>,
        endpoint: &Endpoint,
        progress: &Progress,
    ) -> Result<MutexGuard<'_, T>, Failure> {
        let deadline = patience.map(|patience| Instant::now() + patience.max(PATIENCE));
        let mut locked = std::pin::pin!(self.inner.lock());
        let mut shown: Option<(Waiting, WaitGuard)> = None;
        loop {
            let look = Instant::now() + WORKER_LOOK;
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            if let Ok(guard) = tokio::time::timeout_at(until, &mut locked).await {
                *self.worker.lock() = Some(progress.clone());
                return Ok(guard);
            }
            let waits = self.worker.lock().as_ref().and_then(Progress::waiting);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let (reason, message) = waits.map_or_else(
                    || {
                        let message = format!("a token of {} is being waited for", endpoint.name);
                        (Reason::RegistryUnavailable, message)
                    },
                    |waits| (waits.reason, waits.message),
                );
                return Err(Failure::Restart(Error::wait(reason, None, message)));
            }
            if shown.as_ref().map(|(known, _)| known) != waits.as_ref() {
                shown = waits.map(|waits| (waits.clone(), progress.wait(waits)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use reqwest::Url;

    use super::*;
    use crate::registry::auth::credential::Credential;

    #[test]
    fn however_many_registries_and_repositories_there_are_few_are_remembered() {
        let (tokens, none) = (Tokens::new(), Credential::anonymous());
        for n in 0..30_000 {
            let base = Url::parse(&format!("https://r{n}.io/")).unwrap();
            let endpoint = Endpoint::new(&format!("r{n}.io"), base);
            let repository = format!("r{n}.io/a/b").parse().unwrap();
            let access = Access::new(&endpoint, &none, &repository, true);
            let greeting = tokens.greeting(&endpoint);
            greeting.challenge.get_or_init(|| Challenge::Open);
            tokens.learn(&access, &Challenge::Basic);
            assert_eq!(tokens.known(&access), Some(Challenge::Basic));
        }
        tokens.greetings.run_pending_tasks();
        tokens.challenges.run_pending_tasks();
        assert!(tokens.greetings.entry_count() <= GREETINGS_MAX);
        assert!(tokens.challenges.entry_count() <= CHALLENGES_MAX);
    }
}
