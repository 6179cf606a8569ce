//! Which requests are counted together: those of a namespace that name the same registries, as sources or for their floats.
//!
//! A registry that is down keeps what waits for it, and may do so for hours. With one count for a namespace it would fill that, and hold up
//! what the namespace promotes elsewhere.
//!
//! Names of registries are free, and so would be pools. Guaranteed: a namespace has at most [`POOLS_MAX`] pools of registries, and one for
//! all others.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use crate::image::Repository;

/// Pools of a namespace, beside the one for all other registries.
const POOLS_MAX: usize = 8;

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool {
    /// The namespace.
    pub namespace: String,
    /// The registries, as [`registries`] names them; empty: all that have no pool of their own.
    pub registries: String,
}

/// The pools that have members, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pools(BTreeMap<Arc<Pool>, usize>);

/// The registries of these repositories, sorted and with commas between them.
pub fn registries<'a>(repositories: impl Iterator<Item = &'a Repository>) -> String {
    let mut hosts: Vec<_> = repositories.map(Repository::host).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts.join(",")
}

impl Pool {
    /// Of a namespace, for these registries.
    #[must_use]
    pub fn new(namespace: &str, registries: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            registries: registries.to_owned(),
        }
    }

    /// How messages name it: short, also where it has hundreds of registries.
    #[must_use]
    pub fn place(&self) -> String {
        let mut hosts = self.registries.split(',');
        match (hosts.next().unwrap_or_default(), hosts.count()) {
            ("", _) => "this namespace".into(),
            (host, 0) => format!("this namespace for {host}"),
            (host, more) => format!("this namespace for {host} and {more} more"),
        }
    }
}

impl Pools {
    /// A request that names these registries comes. It stays in its pool until it leaves.
    pub fn join(&mut self, namespace: &str, registries: &str) -> Arc<Pool> {
        let [shared, own] = ["", registries].map(|registries| Pool::new(namespace, registries));
        let all = (Included(&shared), Unbounded);
        let others = self.0.range::<Pool, _>(all).map(|(pool, _)| pool);
        let others = others.take_while(|pool| pool.namespace == namespace);
        let others = others.filter(|pool| ***pool != shared).count();
        let mine = if others < POOLS_MAX || self.0.contains_key(&own) {
            own
        } else {
            shared
        };
        let mine = self.0.entry(Arc::new(mine));
        let pool = Arc::clone(mine.key());
        *mine.or_default() += 1;
        pool
    }

    /// A request leaves its pool.
    pub fn leave(&mut self, pool: &Pool) {
        if let Some(members) = self.0.get_mut(pool) {
            *members -= 1;
            if *members == 0 {
                self.0.remove(pool);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn join(pools: &mut Pools, hosts: &[&str]) -> Arc<Pool> {
        let repositories = hosts.iter().map(|host| format!("{host}/ci").parse());
        let repositories: Vec<Repository> = repositories.map(Result::unwrap).collect();
        pools.join("a", &registries(repositories.iter()))
    }

    #[test]
    fn requests_on_the_same_registries_share_a_pool_and_the_pools_of_a_namespace_are_few() {
        let mut pools = Pools::default();
        let both = join(&mut pools, &["quay.io", "b.example", "quay.io"]);
        assert_eq!(both.registries, "b.example,quay.io");
        assert_eq!(both.place(), "this namespace for b.example and 1 more");
        assert_eq!(join(&mut pools, &["b.example", "quay.io"]), both);
        let quay = join(&mut pools, &["quay.io"]);
        assert_ne!(quay, both);
        let hosts: Vec<_> = (0..POOLS_MAX).map(|n| format!("{n}.example")).collect();
        let all: Vec<_> = hosts.iter().map(|host| join(&mut pools, &[host])).collect();
        let own = |pool: &&Arc<Pool>| !pool.registries.is_empty();
        assert_eq!(all.iter().filter(own).count(), POOLS_MAX - 2);
        assert_eq!(all[POOLS_MAX - 1], all[POOLS_MAX - 2]);
        assert_eq!(join(&mut pools, &["quay.io"]), quay);
        // A pool without members makes room.
        pools.leave(&both);
        pools.leave(&both);
        let late = join(&mut pools, &["late.example"]);
        assert_eq!(late.registries, "late.example");
        for pool in all.iter().chain([&quay, &quay, &late]) {
            pools.leave(pool);
        }
        assert_eq!(pools, Pools::default());
    }
}
