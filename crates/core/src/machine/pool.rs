//! Which requests are counted together: those of a namespace whose floats are on the same registries.
//!
//! A registry that is down keeps what waits for it, and may do so for hours. With one count for a namespace it would fill that, and hold up
//! what the namespace promotes elsewhere.
//!
//! Names of registries are free, and so would be pools. Guaranteed: a namespace has at most [`POOLS_MAX`] pools of its registries, and
//! one for all others.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use crate::image::Float;

/// Pools of a namespace, beside the one for all other registries.
const POOLS_MAX: usize = 4;

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool {
    /// The namespace.
    pub namespace: String,
    /// The registries, sorted and with commas between them; empty: all that have no pool of their own, and none.
    pub registries: String,
}

/// The pools that have members, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pools(BTreeMap<Arc<Pool>, usize>);

impl Pool {
    /// How messages name it.
    #[must_use]
    pub fn place(&self) -> String {
        match &*self.registries {
            "" => "this namespace".into(),
            registries => format!("this namespace on {registries}"),
        }
    }
}

impl Pools {
    /// A request with these floats comes. It stays in its pool until it leaves.
    pub fn join<'a>(
        &mut self,
        namespace: &str,
        floats: impl Iterator<Item = &'a Float>,
    ) -> Arc<Pool> {
        let mut hosts: Vec<_> = floats.map(|float| float.repository().host()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let pool = |registries| Pool {
            namespace: namespace.to_owned(),
            registries,
        };
        let shared = pool(String::new());
        let own = pool(hosts.join(","));
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
        let floats = hosts.iter().map(|host| format!("{host}/ci:f").parse());
        let floats: Vec<Float> = floats.map(Result::unwrap).collect();
        pools.join("a", floats.iter())
    }

    #[test]
    fn requests_on_the_same_registries_share_a_pool_and_the_pools_of_a_namespace_are_few() {
        let mut pools = Pools::default();
        let both = join(&mut pools, &["quay.io", "b.example", "quay.io"]);
        assert_eq!(both.registries, "b.example,quay.io");
        assert_eq!(join(&mut pools, &["b.example", "quay.io"]), both);
        let quay = join(&mut pools, &["quay.io"]);
        assert_ne!(quay, both);
        join(&mut pools, &["1.example"]);
        join(&mut pools, &["2.example"]);
        let shared = ["3.example", "4.example"].map(|host| join(&mut pools, &[host]));
        assert_eq!(shared[0].registries, "");
        assert_eq!(shared[1], shared[0]);
        assert_eq!(join(&mut pools, &["quay.io"]), quay);
        // A pool without members makes room.
        pools.leave(&both);
        pools.leave(&both);
        let third = join(&mut pools, &["3.example"]);
        assert_eq!(third.registries, "3.example");
        let all = [&quay, &quay, &shared[0], &shared[1], &third];
        for pool in all {
            pools.leave(pool);
        }
        for host in ["1.example", "2.example"] {
            let pool = join(&mut pools, &[host]);
            pools.leave(&pool);
            pools.leave(&pool);
        }
        assert_eq!(pools, Pools::default());
    }
}
