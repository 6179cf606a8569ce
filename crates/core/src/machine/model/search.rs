//! The search: breadth first over every state that can be reached, each once, so that the first violation found has the
//! shortest trace.
//!
//! A library (stateright) was considered. It checks "eventually" only on ways that do not join or come back, by its own words,
//! and keeps no graph; that every request ends is read off the graph here: without further faults no state but an end is without a
//! successor, and no way comes back. States are told apart by 64 bits of their hash: with a million states the chance that any
//! two are confused is below one in ten million.

#[expect(
    clippy::disallowed_types,
    reason = "the states that were seen are looked up, never walked"
)]
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::promises::Promise;
use super::setup::Broken;

/// What can be searched.
pub trait Model: Clone + Hash {
    /// One indivisible step.
    type Action: Copy;
    /// The steps that may come now, and what they lead to.
    fn successors(&self, out: &mut Vec<(Self::Action, Self)>);
    /// Whether an action is a fault: that an end is reached must not depend on one.
    fn is_fault(action: Self::Action) -> bool;
    /// What is broken in this state; `last`: nothing but faults can follow.
    fn broken(&self, last: bool) -> Option<Broken>;
    /// Whether something was overwritten that nobody could see.
    fn unseen(&self) -> bool;
    /// The action as a line of a trace.
    fn describe(&self, action: Self::Action) -> String;
}

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// The longest shortest way to a state.
    pub depth: usize,
    /// States in which something was overwritten that nobody could see.
    pub unseen: usize,
    /// The first violation, with its trace.
    pub violation: Option<(Broken, String)>,
    /// Not all was searched: the bound on states was met.
    pub cut: bool,
}

/// A hash is its own hash.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only hashes are hashed")
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The 64 bits that tell a value from others: folded multiplication, because the standard hasher is slow where it is not
/// optimized.
struct Folding(u64);

impl Hasher for Folding {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0xf39c_c060_5ced_c835) * 0x9e37_79b9_7f4a_7c15;
        #[allow(clippy::cast_possible_truncation)]
        let (low, high) = (product as u64, (product >> 64) as u64);
        self.0 = low.rotate_left(23) ^ high;
    }
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// What tells a value from others.
pub fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = Folding(0x2545_f491_4f6c_dd1d);
    value.hash(&mut hasher);
    hasher.finish()
}

/// Searches everything that can be reached from `start`, up to `bound` states.
pub fn search<M: Model>(start: &M, bound: usize) -> Found {
    #[expect(clippy::disallowed_types, reason = "as above")]
    let mut seen: HashMap<u64, u32, BuildHasherDefault<Same>> = HashMap::default();
    let mut parents: Vec<(u32, u32)> = vec![(0, 0)];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut queue = VecDeque::from([(0_u32, start.clone(), 0_usize)]);
    let mut found = Found {
        states: 1,
        steps: 0,
        depth: 0,
        unseen: 0,
        violation: None,
        cut: false,
    };
    seen.insert(fingerprint(start), 0);
    let mut next = Vec::new();
    while let Some((id, state, depth)) = queue.pop_front() {
        found.depth = depth;
        found.unseen += usize::from(state.unseen());
        let here = fingerprint(&state);
        state.successors(&mut next);
        let ways = next.drain(..).enumerate();
        let ways = ways.map(|(index, (action, after))| (index, action, fingerprint(&after), after));
        // What changes nothing does not happen.
        let ways: Vec<_> = ways.filter(|(_, _, hash, _)| *hash != here).collect();
        let last = ways.iter().all(|(_, action, ..)| M::is_fault(*action));
        if let Some(broken) = state.broken(last) {
            let trace = trace(start, &parents, id);
            found.violation = Some((broken, trace));
            break;
        }
        for (index, action, hash, successor) in ways {
            found.steps += 1;
            let new = u32::try_from(parents.len()).expect("fewer states");
            let known = *seen.entry(hash).or_insert(new);
            if !M::is_fault(action) {
                edges.push((id, known));
            }
            if known == new {
                parents.push((id, u32::try_from(index).expect("fewer actions")));
                queue.push_back((new, successor, depth + 1));
            }
        }
        if parents.len() > bound {
            found.cut = true;
            break;
        }
    }
    found.states = parents.len();
    if found.violation.is_none()
        && !found.cut
        && let Some(id) = circle(parents.len(), &edges)
    {
        let what = "from here on nothing but repetition follows, without a fault".into();
        let promise = Promise::Ends;
        found.violation = Some((Broken { promise, what }, trace(start, &parents, id)));
    }
    found
}

/// A state from which a way without faults leads back to itself: what is left when states without predecessors are taken away.
fn circle(states: usize, edges: &[(u32, u32)]) -> Option<u32> {
    let mut before = vec![0_u32; states];
    let mut after: Vec<Vec<u32>> = vec![Vec::new(); states];
    for &(from, to) in edges {
        before[to as usize] += 1;
        after[from as usize].push(to);
    }
    let mut free: Vec<usize> = (0..states).filter(|&id| before[id] == 0).collect();
    while let Some(id) = free.pop() {
        for &to in &after[id] {
            before[to as usize] -= 1;
            if before[to as usize] == 0 {
                free.push(to as usize);
            }
        }
    }
    // Every state that is left has a predecessor that is left: going back, the first that comes again is on the circle.
    let mut at = (0..states).find(|&id| before[id] > 0)?;
    let mut been = vec![false; states];
    while !been[at] {
        been[at] = true;
        let from = |&(from, to): &(u32, u32)| {
            (to as usize == at && before[from as usize] > 0).then_some(from as usize)
        };
        at = edges.iter().find_map(from)?;
    }
    u32::try_from(at).ok()
}

/// The way to a state, one action per line.
fn trace<M: Model>(start: &M, parents: &[(u32, u32)], mut id: u32) -> String {
    let mut way = Vec::new();
    while id != 0 {
        let (parent, index) = parents[id as usize];
        way.push(index);
        id = parent;
    }
    let (mut state, mut lines, mut next) = (start.clone(), String::new(), Vec::new());
    for (number, index) in way.into_iter().rev().enumerate() {
        next.clear();
        state.successors(&mut next);
        let (action, successor) = next.swap_remove(index as usize);
        let _ = writeln!(lines, "{:4}  {}", number + 1, state.describe(action));
        state = successor;
    }
    lines
}
