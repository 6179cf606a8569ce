//! Whose operations are at work: the others wait, each as no more than its record.
//!
//! In come operations that were launched; out comes a [`Turn`], when one may begin, and it is given back with that value. What an
//! operation holds while it is at work is some tens of KiB, for a copy more: ten thousand at once would be a gigabyte, and no
//! registry serves more than a few of them at a time.
//!
//! There is one [`Line`] for each pair of registries and kind of work, so that nobody waits behind a registry that is down, nor a tag
//! behind large layers. Guaranteed for each line: of one request [`SHARE`] times the requests in flight per registry are at work at
//! the most; of one namespace [`SHARES`] times as many, those above the first share of as many different requests; the namespace
//! that was given least goes first, of it the request that was given least, and one that has just come is ahead of its namespace's
//! others by [`HEAD_START`] turns; who has left takes nothing.
//!
//! Lines are as many as there are names of registries, and names are free. So there is a bound on all lines together, [`LINES`] times
//! what one namespace may have in one line. Of it, as of a line, a namespace never takes the last part: each of `n` namespaces that are
//! there has at most one of `n + 1` equal parts, so that the next to come finds room.

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
/// So many times that, in all lines.
const LINES: usize = 4;
/// How many turns a request that comes is ahead of those of its namespace that are there: the steps of four images.
const HEAD_START: i64 = 16;
/// One turn, in what turns are counted in.
const ONE: i64 = 1 << 20;

/// All lines. Clones share them.
#[derive(Clone)]
pub(super) struct Turns {
    all: Arc<Mutex<Lines>>,
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
    of: Option<Place>,
}

/// Where an operation is at work.
#[derive(Clone)]
struct Place {
    line: Line,
    namespace: String,
    uid: Uid,
}

struct Lines {
    share: usize,
    queues: HashMap<Line, Queue>,
    at_work: usize,
    namespaces: HashMap<String, Load>,
}

/// What a namespace has in all lines.
#[derive(Default)]
struct Load {
    at_work: usize,
    /// Lines it is in.
    lines: usize,
    /// Of these, those in which the bound on all lines holds it up.
    held_up: VecDeque<Line>,
}

#[derive(Default)]
struct Queue {
    at_work: usize,
    namespaces: HashMap<String, Requests>,
    tickets: u64,
    /// What each namespace would have been given, had all been given alike.
    level: i64,
}

/// The requests of one namespace in a line.
#[derive(Default)]
struct Requests {
    at_work: usize,
    /// Turns, counted from the level at which it came.
    given: i64,
    waiting: HashMap<Uid, Waiting>,
    /// What each request would have been given, had all been given alike.
    level: i64,
    held_up: bool,
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
            all: Arc::new(Mutex::new(Lines {
                share: concurrency * SHARE,
                queues: HashMap::new(),
                at_work: 0,
                namespaces: HashMap::new(),
            })),
        }
    }

    /// Waits until an operation of this request may begin.
    pub(super) async fn enter(&self, line: Line, namespace: &str, uid: &str) -> Turn {
        let (ticket, turn) = oneshot::channel();
        {
            let mut lines = self.lock();
            lines.join(&line, namespace, uid, ticket);
            lines.give(&line, self);
        }
        // Nobody drops a ticket whose owner waits.
        turn.await.unwrap_or_else(|_| Turn {
            turns: self.clone(),
            of: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = self.of.take() {
            let mut lines = self.turns.lock();
            lines.leave(&place);
            lines.give(&place.line, &self.turns);
            lines.give_held_up(&self.turns);
        }
    }
}

// === impl Lines ===

impl Lines {
    /// How many of one namespace may be at work in a line.
    fn most(&self) -> usize {
        self.share * SHARES
    }

    fn join(&mut self, line: &Line, namespace: &str, uid: &str, ticket: oneshot::Sender<Turn>) {
        let queue = self.queues.entry(line.clone()).or_default();
        if queue.join(namespace, uid, ticket) {
            let load = self.namespaces.entry(namespace.to_owned()).or_default();
            load.lines += 1;
        }
    }

    fn leave(&mut self, place: &Place) {
        self.at_work -= 1;
        if let Some(load) = self.namespaces.get_mut(&place.namespace) {
            load.at_work -= 1;
        }
        if let Some(queue) = self.queues.get_mut(&place.line) {
            queue.leave(&place.namespace, &place.uid);
        }
    }

    /// Whether a namespace may have one more at work in all.
    fn has_room(&self, namespace: &str) -> bool {
        let most = self.most() * LINES;
        let part = most / (self.namespaces.len() + 1);
        let load = self.namespaces.get(namespace);
        self.at_work < most && load.is_none_or(|load| load.at_work < part.max(1))
    }

    /// Gives what can be given in a line.
    fn give(&mut self, line: &Line, turns: &Turns) {
        let (share, most) = (self.share, self.most());
        while let Some(queue) = self.queues.get_mut(line) {
            for namespace in queue.tidy() {
                self.forget(&namespace);
            }
            let Some(queue) = self.queues.get(line) else {
                return;
            };
            if queue.namespaces.is_empty() {
                self.queues.remove(line);
                return;
            }
            let Some(namespace) = queue.first(share, most).cloned() else {
                return;
            };
            let room = self.has_room(&namespace);
            let Some(queue) = self.queues.get_mut(line) else {
                return;
            };
            if !room {
                // The others of this line go on.
                let load = self.namespaces.entry(namespace.clone()).or_default();
                load.held_up.push_back(line.clone());
                queue.hold_up(&namespace, true);
                continue;
            }
            let Some((uid, ticket)) = queue.take(&namespace, share) else {
                return;
            };
            let place = Place {
                line: line.clone(),
                namespace,
                uid,
            };
            self.at_work += 1;
            let load = self.namespaces.entry(place.namespace.clone()).or_default();
            load.at_work += 1;
            let turn = Turn {
                turns: turns.clone(),
                of: Some(place.clone()),
            };
            if let Err(mut turn) = ticket.send(turn) {
                // Its owner left in this instant. The lines are locked: the turn is given back by hand.
                turn.of = None;
                self.leave(&place);
            }
        }
    }

    /// Gives what can be given where the bound on all lines held namespaces up: to who has least.
    fn give_held_up(&mut self, turns: &Turns) {
        loop {
            let held_up = self.namespaces.iter();
            let held_up = held_up.filter(|(_, load)| !load.held_up.is_empty());
            let Some((namespace, _)) = held_up.min_by_key(|(_, load)| load.at_work) else {
                return;
            };
            if !self.has_room(namespace) {
                return;
            }
            let namespace = namespace.clone();
            let load = self.namespaces.get_mut(&namespace);
            let Some(line) = load.and_then(|load| load.held_up.pop_front()) else {
                return;
            };
            if let Some(queue) = self.queues.get_mut(&line) {
                queue.hold_up(&namespace, false);
            }
            self.give(&line, turns);
        }
    }

    /// A namespace has left a line.
    fn forget(&mut self, namespace: &str) {
        if let Some(load) = self.namespaces.get_mut(namespace) {
            load.lines -= 1;
            if load.lines == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }
}

// === impl Queue ===

impl Queue {
    /// Whether the namespace is new here.
    fn join(&mut self, namespace: &str, uid: &str, ticket: oneshot::Sender<Turn>) -> bool {
        self.tickets += 1;
        let (level, mut new) = (self.level, false);
        let requests = self.namespaces.entry(namespace.to_owned());
        let requests = requests.or_insert_with(|| {
            new = true;
            Requests {
                given: level,
                ..Requests::default()
            }
        });
        let ahead = if requests.waiting.is_empty() {
            0
        } else {
            HEAD_START
        };
        let start = requests.level - ahead * ONE;
        let request = requests.waiting.entry(uid.to_owned());
        let request = request.or_insert_with(|| Waiting {
            at_work: 0,
            given: start,
            tickets: VecDeque::new(),
        });
        request.tickets.push_back((self.tickets, ticket));
        new
    }

    /// Forgets who has left; gives the namespaces of which nothing is here any more.
    fn tidy(&mut self) -> Vec<String> {
        for requests in self.namespaces.values_mut() {
            requests.tidy();
        }
        let gone = self
            .namespaces
            .extract_if(|_, requests| requests.waiting.is_empty() && !requests.held_up);
        gone.map(|(namespace, _)| namespace).collect()
    }

    /// The namespace whose turn it is.
    fn first(&self, share: usize, most: usize) -> Option<&String> {
        if self.at_work >= 2 * most {
            return None;
        }
        let part = (2 * most / (self.namespaces.len() + 1)).max(1);
        let mut first = None;
        for (name, requests) in &self.namespaces {
            if requests.held_up || requests.at_work >= part {
                continue;
            }
            let Some((rank, _)) = requests.first(share) else {
                continue;
            };
            let rank = (requests.given, rank);
            if first.is_none_or(|(best, _)| rank < best) {
                first = Some((rank, name));
            }
        }
        first.map(|(_, name)| name)
    }

    /// The next ticket of a namespace; it is taken to be at work.
    fn take(&mut self, namespace: &str, share: usize) -> Option<(Uid, oneshot::Sender<Turn>)> {
        let others = i64::try_from(self.namespaces.len()).unwrap_or(i64::MAX);
        let requests = self.namespaces.get_mut(namespace)?;
        let taken = requests.take(share)?;
        requests.given += ONE;
        self.at_work += 1;
        self.level += ONE / others;
        Some(taken)
    }

    fn hold_up(&mut self, namespace: &str, held_up: bool) {
        if let Some(requests) = self.namespaces.get_mut(namespace) {
            requests.held_up = held_up;
        }
    }

    fn leave(&mut self, namespace: &str, uid: &str) {
        self.at_work -= 1;
        if let Some(requests) = self.namespaces.get_mut(namespace) {
            requests.at_work -= 1;
            if let Some(request) = requests.waiting.get_mut(uid) {
                request.at_work -= 1;
            }
        }
    }
}

// === impl Requests ===

impl Requests {
    fn tidy(&mut self) {
        self.waiting.retain(|_, request| {
            while request.tickets.front().is_some_and(|(_, t)| t.is_closed()) {
                request.tickets.pop_front();
            }
            request.at_work > 0 || !request.tickets.is_empty()
        });
    }

    /// The request whose turn it is, and its rank.
    fn first(&self, share: usize) -> Option<((i64, u64), &Uid)> {
        let mut first = None;
        for (uid, request) in &self.waiting {
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
        first
    }

    fn take(&mut self, share: usize) -> Option<(Uid, oneshot::Sender<Turn>)> {
        let uid = self.first(share)?.1.clone();
        let others = i64::try_from(self.waiting.len()).unwrap_or(i64::MAX);
        let request = self.waiting.get_mut(&uid)?;
        let (_, ticket) = request.tickets.pop_front()?;
        request.given += ONE;
        request.at_work += 1;
        self.at_work += 1;
        self.level += ONE / others;
        Some((uid, ticket))
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
            let enter =
                || Box::pin(turns.enter(line.clone(), self::namespace(uid), uid)) as Entering;
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

    /// A request is named `NAMESPACE/NAME`, or is of the one that all others are of.
    fn namespace(uid: &str) -> &str {
        uid.split_once('/').map_or("ci", |(namespace, _)| namespace)
    }

    impl Lines {
        fn is_empty(&self) -> bool {
            self.queues.is_empty() && self.namespaces.is_empty() && self.at_work == 0
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
    fn a_namespace_that_invents_registries_leaves_room_for_others() {
        let turns = Turns::new(1);
        // Sixteen in each line, were there no bound on all.
        let lines: Vec<Line> = (0..40)
            .map(|n| line(&format!("r{n}"), Step::Stage))
            .collect();
        let names: Vec<String> = (0..40).map(|n| format!("evil/{n}")).collect();
        let mut evil: Vec<_> = lines
            .iter()
            .flat_map(|line| names.iter().map(move |name| (line, name)))
            .map(|(line, name)| Operations::launch(&turns, line, name, 1))
            .collect();
        let at_work =
            |all: &mut [Operations]| all.iter_mut().map(Operations::at_work).sum::<usize>();
        // Half of 64: it may be joined by another.
        assert_eq!(at_work(&mut evil), 32);
        let mut good = Operations::launch(&turns, &lines[0], "good/1", 20);
        assert_eq!(good.at_work(), 4);
        let mut ended = 0;
        while !good.waiting.is_empty() {
            good.at_work.clear();
            good.at_work();
            ended += 1;
        }
        assert!(ended <= 6, "it is held up by none");
        good.at_work.clear();
        // What is freed goes round: every one of the others begins in the end.
        while !evil.iter().all(|one| one.waiting.is_empty()) {
            assert!(at_work(&mut evil) <= 32);
            for one in &mut evil {
                one.at_work.clear();
            }
            assert!(at_work(&mut evil) > 0);
        }
        drop((good, evil));
        assert!(turns.lock().is_empty());
    }

    #[test]
    fn a_namespace_of_many_requests_has_no_more_turns_than_one_of_few() {
        let turns = Turns::new(1);
        let latch = line("build", Step::Latch);
        let names: Vec<String> = (0..100).map(|n| format!("many/{n}")).collect();
        let mut many: Vec<_> = names
            .iter()
            .map(|name| Operations::launch(&turns, &latch, name, 5))
            .collect();
        let begun = many.iter_mut().map(Operations::at_work).sum::<usize>();
        assert_eq!(begun, 16);
        let mut one = Operations::launch(&turns, &latch, "one/1", 8);
        assert_eq!(one.at_work(), 4, "a share of its own, at once");
        for other in &mut many {
            other.at_work.clear();
        }
        assert_eq!(one.at_work(), 4, "and no more than that");
        drop((one, many));
        assert!(turns.lock().is_empty());
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
