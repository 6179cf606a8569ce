//! Whose operations are at work: the others wait, each as no more than its record.
//!
//! In come operations that were launched; out comes a [`Turn`], when one may begin, and it is given back with that value. What an
//! operation holds while it is at work is some tens of KiB, for a copy more: ten thousand at once would be a gigabyte, and no
//! registry serves more than a few of them at a time.
//!
//! There is one [`Line`] for each pair of registries and kind of work, so that nobody waits behind a registry that is down, nor a tag
//! behind large layers. Guaranteed for each line: of one request [`SHARE`] times the requests in flight per registry are at work at
//! the most; [`SHARES`] times as many in all, those above the first share of as many different requests; the request that was
//! given least goes first, and one that has just come is ahead of the others by [`HEAD_START`] turns; who has left takes nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::machine::claims::Uid;
use crate::machine::{ImageSpec, Step};

/// Operations at work, whomever they belong to, for each request that may be in flight: enough that there is always one to send, also
/// while others rest.
const SHARE: usize = 4;
/// So many times that, of requests that have nothing else at work: a small one does not wait for the end of large copies.
const SHARES: usize = 4;
/// How many turns a request that comes is ahead of those that are there: the steps of four images.
const HEAD_START: i64 = 16;
/// One turn, in what turns are counted in.
const ONE: i64 = 1 << 20;

/// All lines. Clones share them.
#[derive(Clone)]
pub(super) struct Turns {
    share: usize,
    lines: Arc<Mutex<HashMap<Line, Queue>>>,
}

/// What operations wait in one line for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Line {
    source: String,
    float: String,
    /// Whether blobs are copied.
    copies: bool,
}

/// While it lives, an operation is at work.
pub(super) struct Turn {
    turns: Turns,
    /// None: it is given back already.
    of: Option<(Line, Uid)>,
}

#[derive(Default)]
struct Queue {
    at_work: usize,
    requests: HashMap<Uid, Waiting>,
    tickets: u64,
    /// What each request would have been given, had all been given alike.
    level: i64,
}

/// One request in a line.
struct Waiting {
    at_work: usize,
    /// Turns, counted from the level at which it came. The level rises also while others are ahead, so that none waits for ever.
    given: i64,
    tickets: VecDeque<(u64, oneshot::Sender<Turn>)>,
}

// === impl Line ===

impl Line {
    /// Where a step of an image waits.
    pub(super) fn of(image: &ImageSpec, step: Step) -> Self {
        Self {
            source: image.source.repository.host().to_owned(),
            float: image.float.repository().host().to_owned(),
            copies: step == Step::Stage,
        }
    }
}

// === impl Turns ===

impl Turns {
    /// For registries that so many requests may be in flight to.
    pub(super) fn new(concurrency: usize) -> Self {
        Self {
            share: concurrency * SHARE,
            lines: Arc::default(),
        }
    }

    /// Waits until an operation of this request may begin.
    pub(super) async fn enter(&self, line: Line, uid: &str) -> Turn {
        let (ticket, turn) = oneshot::channel();
        self.with(&line, |queue| queue.join(uid, ticket));
        // Nobody drops a ticket whose owner waits.
        turn.await.unwrap_or_else(|_| Turn {
            turns: self.clone(),
            of: None,
        })
    }

    /// Changes a line, then gives what can be given.
    fn with(&self, line: &Line, change: impl FnOnce(&mut Queue)) {
        let mut lines = self.lock();
        let queue = lines.entry(line.clone()).or_default();
        change(queue);
        while let Some((uid, ticket)) = queue.next(self.share) {
            let turn = Turn {
                turns: self.clone(),
                of: Some((line.clone(), uid)),
            };
            if let Err(mut turn) = ticket.send(turn)
                && let Some((_, uid)) = turn.of.take()
            {
                // Its owner left in this instant. The lines are locked: the turn is given back by hand.
                queue.leave(&uid);
            }
        }
        if queue.requests.is_empty() {
            lines.remove(line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Line, Queue>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((line, uid)) = self.of.take() {
            self.turns.with(&line, |queue| queue.leave(&uid));
        }
    }
}

// === impl Queue ===

impl Queue {
    fn join(&mut self, uid: &str, ticket: oneshot::Sender<Turn>) {
        self.tickets += 1;
        let ahead = if self.requests.is_empty() {
            0
        } else {
            HEAD_START
        };
        let start = self.level - ahead * ONE;
        let request = self.requests.entry(uid.to_owned());
        let request = request.or_insert_with(|| Waiting {
            at_work: 0,
            given: start,
            tickets: VecDeque::new(),
        });
        request.tickets.push_back((self.tickets, ticket));
    }

    /// The ticket whose turn it is; it is taken to be at work.
    fn next(&mut self, share: usize) -> Option<(Uid, oneshot::Sender<Turn>)> {
        if self.at_work >= share * SHARES {
            return None;
        }
        let mut first = None;
        self.requests.retain(|_, request| {
            while request.tickets.front().is_some_and(|(_, t)| t.is_closed()) {
                request.tickets.pop_front();
            }
            request.at_work > 0 || !request.tickets.is_empty()
        });
        for (uid, request) in &self.requests {
            let Some((number, _)) = request.tickets.front() else {
                continue;
            };
            if self.at_work >= share && request.at_work > 0 {
                continue;
            }
            let rank = (request.given, *number);
            if first.is_none_or(|(best, _)| rank < best) {
                first = Some((rank, uid));
            }
        }
        let uid = first?.1.clone();
        let request = self.requests.get_mut(&uid)?;
        let (_, ticket) = request.tickets.pop_front()?;
        request.given += ONE;
        request.at_work += 1;
        self.at_work += 1;
        self.level += ONE / i64::try_from(self.requests.len()).unwrap_or(i64::MAX);
        Some((uid, ticket))
    }

    fn leave(&mut self, uid: &str) {
        self.at_work -= 1;
        if let Some(request) = self.requests.get_mut(uid) {
            request.at_work -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;

    use futures::FutureExt as _;

    use super::*;

    type Entering<'a> = Pin<Box<dyn Future<Output = Turn> + 'a>>;

    /// Operations of one request. Polled outside a runtime: in it, a task that polls a lot is told that nothing is ready.
    struct Operations<'a> {
        waiting: Vec<Entering<'a>>,
        at_work: Vec<Turn>,
    }

    impl<'a> Operations<'a> {
        fn launch(turns: &'a Turns, line: &Line, uid: &'a str, count: usize) -> Self {
            let enter = || Box::pin(turns.enter(line.clone(), uid)) as Entering;
            let mut launched = Self {
                waiting: (0..count).map(|_| enter()).collect(),
                at_work: Vec::new(),
            };
            launched.at_work();
            launched
        }

        /// How many are at work by now.
        fn at_work(&mut self) -> usize {
            let at_work = &mut self.at_work;
            self.waiting.retain_mut(|one| match one.now_or_never() {
                Some(turn) => {
                    at_work.push(turn);
                    false
                }
                None => true,
            });
            self.at_work.len()
        }
    }

    fn line(source: &str, step: Step) -> Line {
        let float = "quay.io/openshift/ci:f".parse().unwrap();
        let source = format!("{source}.example/a/b:c").parse().unwrap();
        Line::of(&ImageSpec { source, float }, step)
    }

    #[test]
    fn a_line_is_shared_alike_and_has_room_for_the_first_of_many_requests() {
        let turns = Turns::new(2);
        let stage = line("build", Step::Stage);
        let mut one = Operations::launch(&turns, &stage, "one", 20);
        assert_eq!(one.at_work(), 8);
        let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let others = names.iter();
        let others = others.map(|name| Operations::launch(&turns, &stage, name, 2));
        let mut others: Vec<_> = others.collect();
        let at_work = |others: &mut [Operations]| -> Vec<usize> {
            others.iter_mut().map(Operations::at_work).collect()
        };
        let begun = at_work(&mut others);
        assert_eq!(begun.iter().sum::<usize>(), 24);
        assert!(begun.iter().all(|&count| count <= 1));
        // Where the first has nothing at work, it is one of many.
        one.at_work.clear();
        let begun = at_work(&mut others);
        assert_eq!(begun.iter().sum::<usize>() + one.at_work(), 32);
        assert!(begun.iter().all(|&count| count <= 1));
        // Whoever ends makes room until all have been at work, and nothing is left behind.
        while one.at_work() + at_work(&mut others).iter().sum::<usize>() > 0 {
            one.at_work.clear();
            for other in &mut others {
                other.at_work.clear();
            }
        }
        assert!(one.waiting.is_empty() && others.iter().all(|o| o.waiting.is_empty()));
        assert!(turns.lock().is_empty());
    }

    #[test]
    fn a_small_request_passes_a_large_one() {
        let turns = Turns::new(1);
        let latch = line("build", Step::Latch);
        let mut large = Operations::launch(&turns, &latch, "large", 100);
        assert_eq!(large.at_work(), 4);
        let mut small = Operations::launch(&turns, &latch, "small", 3);
        assert_eq!(small.at_work(), 1);
        for _ in 0..2 {
            large.at_work.pop();
            // What is above the share goes to who has nothing at work.
            large.at_work.pop();
            small.at_work();
        }
        assert_eq!((large.at_work(), small.at_work()), (1, 3));
    }

    #[test]
    fn a_large_request_has_its_turns_however_many_small_ones_come() {
        let turns = Turns::new(1);
        let latch = line("build", Step::Latch);
        let names: Vec<String> = (0..200).map(|n| format!("new {n}")).collect();
        let others: Vec<String> = (0..15).map(|n| format!("long {n}")).collect();
        let long = others.iter();
        let long = long.map(|name| Operations::launch(&turns, &latch, name, 1));
        let long: Vec<_> = long.collect();
        // One place is left, and what it is ahead by is used up.
        let mut large = Operations::launch(&turns, &latch, "large", 60);
        for _ in 0..20 {
            assert_eq!(large.at_work(), 1);
            large.at_work.clear();
        }
        let mut left = Vec::new();
        let mut older = Operations::launch(&turns, &latch, "first", 10);
        for name in &names {
            // There is always a newer one that waits as well.
            let mut newer = Operations::launch(&turns, &latch, name, 10);
            while !older.waiting.is_empty() {
                for operations in [&mut older, &mut newer, &mut large] {
                    operations.at_work.clear();
                }
                assert_eq!(older.at_work() + newer.at_work() + large.at_work(), 1);
            }
            left.push(large.waiting.len());
            older = newer;
        }
        assert_eq!(left[5], left[0]);
        assert_eq!(left[199], 0);
        drop((long, older));
    }

    #[test]
    fn nobody_waits_behind_another_registry_nor_a_tag_behind_copies() {
        let turns = Turns::new(1);
        let mut down = Operations::launch(&turns, &line("down", Step::Stage), "a", 10);
        let mut well = Operations::launch(&turns, &line("well", Step::Stage), "a", 10);
        let mut tags = Operations::launch(&turns, &line("down", Step::BackUp), "a", 10);
        let at_work = [&mut down, &mut well, &mut tags].map(Operations::at_work);
        assert_eq!(at_work, [4, 4, 4]);
    }

    #[test]
    fn who_has_left_takes_nothing() {
        let turns = Turns::new(1);
        let post = line("build", Step::Post);
        let mut first = Operations::launch(&turns, &post, "first", 6);
        let left = Operations::launch(&turns, &post, "left", 20);
        let mut last = Operations::launch(&turns, &post, "last", 1);
        drop(left);
        first.at_work.clear();
        assert_eq!((first.at_work(), last.at_work()), (2, 1));
        drop((first, last));
        assert!(turns.lock().is_empty());
    }
}
