//! One token for all that a promotion request needs of a registry with one credential.
//!
//! In comes what a request will ask for, before it does. Where the registry grants it, one token replaces one for each set of
//! repositories. Guaranteed: such a token serves the one request alone that it was asked for; where it is refused, or says that a right
//! is missing, the token for what is needed decides. A request of few repositories asks for what an earlier one wanted too by itself,
//! which is kept for all that follow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::image::Repository;
use crate::registry::auth::access::{Access, scope};
use crate::registry::auth::credential::CredentialKey;
use crate::registry::host::limits::FlowKey;

/// Scopes of one token, and the length of all of them: they go into a URL.
const SCOPES_MAX: usize = 24;
const LENGTH_MAX: usize = 3 * 1024;

/// So few repositories are worth a token for each.
const SMALL_MAX: usize = 3;

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct WideKey {
    pub(crate) flow: FlowKey,
    /// Of the registry.
    pub(crate) address: String,
    pub(crate) credential: CredentialKey,
}

/// What it is asked for.
#[derive(Debug)]
pub(crate) struct WideToken {
    /// Whether each is written to.
    repositories: BTreeMap<Repository, bool>,
    given_up: AtomicBool,
}

impl WideToken {
    /// As much of `repositories` as one token is asked for; those that are written to first.
    pub(crate) fn new(repositories: &BTreeMap<Repository, bool>) -> Self {
        let (written, read): (Vec<_>, Vec<_>) = repositories.iter().partition(|(_, push)| **push);
        let mut length = 0;
        let all = written.into_iter().chain(read).take(SCOPES_MAX);
        let fits = all.take_while(|(repository, _)| {
            length += repository.path().len();
            length <= LENGTH_MAX
        });
        Self {
            repositories: fits.map(|(name, push)| (name.clone(), *push)).collect(),
            given_up: AtomicBool::new(false),
        }
    }

    /// Whether it stands for the token that `access` needs.
    pub(crate) fn covers(&self, access: &Access<'_>) -> bool {
        let own = self.repositories.get(access.repository);
        let also = access
            .also
            .is_none_or(|also| self.repositories.contains_key(also));
        !self.given_up.load(Relaxed)
            && self.repositories.len() > 1
            && own.is_some_and(|push| *push || !access.push)
            && also
    }

    /// Whether tokens that others can use too are worth more.
    pub(crate) fn is_small(&self) -> bool {
        self.repositories.len() <= SMALL_MAX
    }

    /// It is of no use with this registry.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }

    pub(crate) fn scopes(&self) -> Vec<String> {
        let scopes = self.repositories.iter();
        scopes.map(|(name, push)| scope(name, *push)).collect()
    }

    pub(crate) fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.repositories.keys()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use reqwest::Url;

    use super::*;
    use crate::registry::auth::credential::Credential;
    use crate::registry::endpoint::Endpoint;

    #[test]
    fn it_covers_what_it_was_asked_for_and_is_never_too_long_for_a_url() {
        let named = |n: usize| format!("r.io/{}/{n:03}", "x".repeat(200)).parse().unwrap();
        let mut all: BTreeMap<Repository, bool> = (0..100).map(|n| (named(n), false)).collect();
        let float: Repository = "r.io/z/float".parse().unwrap();
        all.insert(float.clone(), true);
        let wide = WideToken::new(&all);
        let scopes = wide.scopes();
        assert!(scopes.iter().map(String::len).sum::<usize>() < 4 * 1024);
        assert!(scopes.contains(&"repository:z/float:pull,push".to_owned()));
        let endpoint = Endpoint::new("r.io", Url::parse("https://r.io/").unwrap());
        let none = Credential::anonymous();
        let (source, beyond) = (named(0), named(99));
        let access = |repository, push| Access::new(&endpoint, &none, repository, push);
        assert!(wide.covers(&access(&float, true)) && wide.covers(&access(&source, false)));
        assert!(!wide.covers(&access(&source, true)) && !wide.covers(&access(&beyond, false)));
        let mount = |also| Access {
            also: Some(also),
            ..access(&float, true)
        };
        assert!(wide.covers(&mount(&source)) && !wide.covers(&mount(&beyond)));
        wide.give_up();
        assert!(!wide.covers(&access(&float, true)));
    }
}
