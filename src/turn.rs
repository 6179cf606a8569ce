//! Whose turn it is among the requests of a namespace.
//!
//! A request has one [`Turn`] from its first operation to its end: the virtual time of its namespace then, and after it as many steps as
//! the request takes. That is when it would end, were all of the namespace served alike. The least goes first wherever operations wait: so
//! a small request does not wait behind a large one, and requests alike end one after another instead of all together at the end.
//!
//! Guaranteed: none ends later than that, but for some steps, so none waits for ever while smaller ones come. The virtual time
//! rises with every operation that lands, by one `n`th where `n` requests would not have ended yet: by what each of them would have been
//! served. Where an operation takes as long as any other, that is; streams of blobs are shared by their number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::machine::pool::Pool;

/// One step, in the unit of virtual time.
const STEP: u64 = 1 << 20;
/// Namespaces that have nothing launched are forgotten above this number, and above twice those left the last time.
const IDLE_MAX: usize = 64;

/// Who goes first within a namespace: the least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Turn(u64);

impl Turn {
    /// Of what comes before all steps.
    pub(crate) const FIRST: Self = Self(0);
}

/// What is launched of each pool. `K`: a request that waits until it may launch.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    namespaces: HashMap<String, Namespace<K>>,
    /// With so many namespaces, those are forgotten that have nothing launched.
    idle_max: usize,
    /// The latest virtual time of one that was forgotten: of none it goes back.
    latest: u64,
}

#[derive(Debug)]
struct Namespace<K> {
    now: u64,
    /// The turns of those that would not have ended yet, and how many have each.
    unended: BTreeMap<Turn, u64>,
    /// How many they are.
    count: u64,
    /// Those of its pools that have something launched, or held back.
    pools: HashMap<Arc<Pool>, Launched<K>>,
}

#[derive(Debug)]
struct Launched<K> {
    /// Operations that were launched and have not landed.
    operations: usize,
    held_back: BTreeSet<(Turn, K)>,
    /// The turn with which each is held back.
    turns: HashMap<K, Turn>,
}

impl<K> Default for Launched<K> {
    fn default() -> Self {
        Self {
            operations: 0,
            held_back: BTreeSet::new(),
            turns: HashMap::new(),
        }
    }
}

impl<K> Namespace<K> {
    fn at(now: u64) -> Self {
        Self {
            now,
            unended: BTreeMap::new(),
            count: 0,
            pools: HashMap::new(),
        }
    }

    fn add(&mut self, turn: Turn) {
        *self.unended.entry(turn).or_default() += 1;
        self.count += 1;
    }

    /// Whether one with this turn was among those that would not have ended.
    fn remove(&mut self, turn: Turn) -> bool {
        let Some(count) = self.unended.get_mut(&turn) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.unended.remove(&turn);
        }
        self.count -= 1;
        true
    }

    /// Those whose turn is over would have ended.
    fn pass(&mut self) {
        while let Some(first) = self.unended.first_entry()
            && *first.key() <= Turn(self.now)
        {
            self.count -= first.remove();
        }
    }
}

fn service(steps: usize) -> u64 {
    u64::try_from(steps)
        .unwrap_or(u64::MAX)
        .saturating_mul(STEP)
}

impl<K: Clone + Ord + Hash> Turns<K> {
    pub(crate) fn new() -> Self {
        Self {
            namespaces: HashMap::new(),
            idle_max: IDLE_MAX,
            latest: 0,
        }
    }

    /// How many operations of a pool were launched and have not landed.
    pub(crate) fn launched(&self, pool: &Pool) -> usize {
        let of = self.namespaces.get(&pool.namespace);
        let launched = of.and_then(|of| of.pools.get(pool));
        launched.map_or(0, |launched| launched.operations)
    }

    /// The turn of a request that begins now, and takes so many steps.
    pub(crate) fn begin(&mut self, namespace: &str, steps: usize) -> Turn {
        let of = self.of(namespace);
        let turn = Turn(of.now.saturating_add(service(steps)));
        of.add(turn);
        turn
    }

    /// A request has ended with so many of its steps unused.
    pub(crate) fn end(&mut self, namespace: &str, turn: Turn, unused: usize) {
        if let Some(of) = self.namespaces.get_mut(namespace)
            && unused > 0
            && of.remove(turn)
        {
            of.add(Turn(turn.0.saturating_sub(service(unused))));
            of.pass();
        }
    }

    fn of(&mut self, namespace: &str) -> &mut Namespace<K> {
        if self.namespaces.len() >= self.idle_max && !self.namespaces.contains_key(namespace) {
            let latest = &mut self.latest;
            self.namespaces.retain(|_, of| {
                *latest = of.now.max(*latest);
                !of.pools.is_empty()
            });
            self.idle_max = IDLE_MAX.max(2 * self.namespaces.len());
        }
        let of = self.namespaces.entry(namespace.to_owned());
        of.or_insert_with(|| Namespace::at(self.latest))
    }

    fn launched_of(&mut self, pool: &Arc<Pool>) -> &mut Launched<K> {
        let of = self.of(&pool.namespace);
        of.pools.entry(Arc::clone(pool)).or_default()
    }

    /// An operation is launched.
    pub(crate) fn launch(&mut self, pool: &Arc<Pool>) {
        self.launched_of(pool).operations += 1;
    }

    /// An operation has landed; gives who of those held back may launch now, where fewer than `most` of its pool are left.
    pub(crate) fn land(&mut self, pool: &Pool, most: usize) -> Option<K> {
        let of = self.namespaces.get_mut(&pool.namespace)?;
        of.now += STEP / of.count.max(1);
        of.pass();
        let launched = of.pools.get_mut(pool)?;
        launched.operations -= 1;
        let next = if launched.operations < most {
            launched.held_back.pop_first()
        } else {
            None
        };
        if let Some((_, key)) = &next {
            launched.turns.remove(key);
        }
        if launched.operations == 0 && launched.held_back.is_empty() {
            of.pools.remove(pool);
        }
        next.map(|(_, key)| key)
    }

    /// A request launches nothing before fewer operations of its pool are left.
    pub(crate) fn hold_back(&mut self, pool: &Arc<Pool>, key: &K, turn: Turn) {
        let launched = self.launched_of(pool);
        if let Some(before) = launched.turns.insert(key.clone(), turn) {
            launched.held_back.remove(&(before, key.clone()));
        }
        launched.held_back.insert((turn, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const NAMESPACE: &str = "ci";
    /// Each image takes so many.
    const STEPS: usize = 5;

    fn pool() -> Arc<Pool> {
        on("quay.io")
    }

    fn on(registry: &str) -> Arc<Pool> {
        Arc::new(Pool::new(NAMESPACE, registry))
    }

    /// A request of so many images, each of which takes its steps one after another.
    struct Request {
        turn: Turn,
        images: usize,
        steps_left: usize,
        /// Of the step that its images are at, those that have not landed.
        launched: usize,
    }

    impl Request {
        fn launch(&mut self, turns: &mut Turns<()>) {
            self.launched = self.images;
            for _ in 0..self.images {
                turns.launch(&pool());
            }
        }
    }

    /// When each request ends, if one operation runs at a time, by turns: requests were created at these times, with so many images.
    fn by_turns(asked: &[(usize, usize)]) -> Vec<usize> {
        let mut turns = Turns::new();
        let mut requests: Vec<Request> = Vec::new();
        let mut ends = vec![0; asked.len()];
        let mut now = 0;
        while ends.contains(&0) {
            for &(created, images) in &asked[requests.len()..] {
                if created <= now {
                    let mut request = Request {
                        turn: turns.begin(NAMESPACE, images * STEPS),
                        images,
                        steps_left: images * STEPS,
                        launched: 0,
                    };
                    request.launch(&mut turns);
                    requests.push(request);
                }
            }
            now += 1;
            let unfinished = requests.iter_mut().enumerate();
            let unfinished = unfinished.filter(|(_, request)| request.steps_left > 0);
            let Some((number, request)) = unfinished.min_by_key(|(_, request)| request.turn) else {
                continue;
            };
            request.steps_left -= 1;
            request.launched -= 1;
            turns.land(&pool(), usize::MAX);
            if request.steps_left == 0 {
                ends[number] = now;
            } else if request.launched == 0 {
                request.launch(&mut turns);
            }
        }
        assert_eq!(turns.launched(&pool()), 0);
        ends
    }

    /// The same, if all were served alike: an operation of each in turn.
    fn alike(asked: &[(usize, usize)]) -> Vec<usize> {
        let mut left: Vec<usize> = asked.iter().map(|(_, images)| images * STEPS).collect();
        let mut ends = vec![0; asked.len()];
        let mut now = 0;
        while ends.contains(&0) {
            let mut any = false;
            for number in 0..asked.len() {
                if asked[number].0 <= now && left[number] > 0 {
                    any = true;
                    now += 1;
                    left[number] -= 1;
                    if left[number] == 0 {
                        ends[number] = now;
                    }
                }
            }
            now += usize::from(!any);
        }
        ends
    }

    fn mean(asked: &[(usize, usize)], ends: &[usize]) -> f64 {
        let waits = asked
            .iter()
            .zip(ends)
            .map(|((created, _), end)| end - created);
        let count = u32::try_from(asked.len()).unwrap();
        f64::from(u32::try_from(waits.sum::<usize>()).unwrap()) / f64::from(count)
    }

    #[test]
    fn of_requests_created_at_once_one_ends_after_another_in_half_of_the_time() {
        let asked = [(0, 10); 100];
        let ends = by_turns(&asked);
        assert!(
            ends.iter().enumerate().all(|(n, end)| *end == (n + 1) * 50),
            "{ends:?}"
        );
        let ratio = mean(&asked, &ends) / mean(&asked, &alike(&asked));
        assert!(ratio < 0.52, "{ratio}");
    }

    #[test]
    fn a_small_request_passes_large_ones_that_have_begun() {
        let asked = [(0, 250), (0, 250), (300, 2)];
        assert_eq!(by_turns(&asked)[2], 310);
    }

    #[test]
    fn requests_that_end_early_hold_back_nobodys_time_and_idle_namespaces_are_forgotten() {
        let mut turns = Turns::<()>::new();
        for _ in 0..1000 {
            let turn = turns.begin(NAMESPACE, 1280);
            turns.launch(&pool());
            turns.land(&pool(), usize::MAX);
            turns.end(NAMESPACE, turn, 1279);
        }
        let of = turns.of(NAMESPACE);
        assert!(of.count <= 1 && of.unended.len() <= 1, "{of:?}");
        let before = turns.begin(NAMESPACE, 1);
        for other in 0..1000 {
            turns.begin(&other.to_string(), 1);
        }
        assert!(turns.namespaces.len() <= IDLE_MAX);
        assert!(turns.begin(NAMESPACE, 1) >= before);
    }

    #[test]
    fn of_those_held_back_the_least_turn_is_called_first_and_each_once() {
        let mut turns = Turns::new();
        turns.launch(&pool());
        turns.launch(&pool());
        let [large, small] = [5, 1].map(|steps| turns.begin(NAMESPACE, steps));
        for (key, turn) in [("large", large), ("small", small), ("large", large)] {
            turns.hold_back(&pool(), &key, turn);
        }
        assert_eq!(turns.land(&pool(), 1), None);
        assert_eq!(turns.land(&pool(), 1), Some("small"));
        turns.launch(&pool());
        assert_eq!(turns.land(&pool(), 1), Some("large"));
        turns.launch(&pool());
        // Those on another registry are counted apart.
        turns.launch(&on("other.example"));
        assert_eq!(turns.launched(&on("other.example")), 1);
        assert_eq!(turns.land(&on("other.example"), 1), None);
        assert_eq!(turns.land(&pool(), 1), None);
        assert!(turns.of(NAMESPACE).pools.is_empty());
    }

    #[test]
    fn a_large_request_ends_however_many_small_ones_come() {
        // Small ones take all that there is.
        let mut asked = vec![(0, 100)];
        asked.extend((0..2000).map(|n| (n * 10, 2)));
        let (ends, alike) = (by_turns(&asked), alike(&asked));
        assert!(ends[0] <= alike[0], "{} {}", ends[0], alike[0]);
    }

    #[test]
    fn no_request_ends_later_than_if_all_were_served_alike_but_for_some_steps() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let mut at = 0;
            let asked: Vec<(usize, usize)> = (0..60)
                .map(|_| {
                    let images = [1, 1, 2, 10, 10, 40][random.random_range(0..6)];
                    at += random.random_range(0..100);
                    (at, images)
                })
                .collect();
            let (ends, alike) = (by_turns(&asked), alike(&asked));
            assert!(mean(&asked, &ends) <= mean(&asked, &alike));
            for (end, alike) in ends.iter().zip(&alike) {
                assert!(*end <= alike + 2 * STEPS, "{ends:?}");
            }
        }
    }
}
