//! Every order of events of two requests that set one tag, one of them under two leaders: reads, writes, conflicts, crashes, lost
//! answers, writes that land late, and what others do to the stream meanwhile. The processes run [`refer`] itself.
#![allow(clippy::panic)]
#![allow(
    clippy::disallowed_types,
    reason = "the order in which states are visited decides nothing"
)]

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::pending;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::{Mark, Put, Referred, Shown, StreamIo, Wanted, refer};

/// The stream: its version, one tag, and something beside it that is not ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Stream {
    version: u8,
    image: Option<String>,
    mark: Option<Mark>,
    beside: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Stream(Stream),
    Put(Put),
}

/// A process at work for a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    order: u64,
    said: Vec<Answer>,
    /// How it ended; an error is tried again for as long as anything else happens, so it is no end.
    end: Option<Referred>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    stream: Stream,
    processes: Vec<Process>,
    /// Writes whose senders no longer wait: each may land, or never.
    wire: Vec<Stream>,
    /// How many answers may still be lost.
    losses: u8,
    /// What others may still do.
    others: u8,
    /// The last to touch the tag was somebody else.
    foreign: bool,
}

/// What keeps the promises; each can be taken away.
#[derive(Debug, Clone, Copy)]
struct Guards {
    marks: bool,
    versions: bool,
}

enum Ask {
    Look,
    Put(Stream),
}

struct Replay<'a> {
    said: &'a [Answer],
    at: Cell<usize>,
    open: RefCell<Option<Ask>>,
    guards: Guards,
}

impl Replay<'_> {
    async fn ask(&self, ask: Ask) -> Answer {
        let Some(answer) = self.said.get(self.at.get()) else {
            self.open.replace(Some(ask));
            return pending().await;
        };
        self.at.set(self.at.get() + 1);
        answer.clone()
    }
}

impl StreamIo for Replay<'_> {
    type Stream = Stream;
    type Error = ();

    async fn look(&self) -> Result<Stream, ()> {
        match self.ask(Ask::Look).await {
            Answer::Stream(stream) => Ok(stream),
            Answer::Put(put) => panic!("{put:?} to a look"),
        }
    }

    fn shown(&self, stream: &Stream, _: &str) -> Shown {
        Shown {
            mark: stream.mark.clone().filter(|_| self.guards.marks),
            image: stream.image.clone(),
            replaced: None,
            is_ours: true,
        }
    }

    fn set(&self, stream: &mut Stream, wanted: &Wanted, mark: &Mark, _: Option<&str>) {
        stream.image = Some(wanted.image.clone());
        stream.mark = Some(mark.clone());
    }

    async fn put(&self, stream: Stream) -> Result<Put, ()> {
        match self.ask(Ask::Put(stream)).await {
            Answer::Put(put) => Ok(put),
            Answer::Stream(stream) => panic!("{stream:?} to a write"),
        }
    }

    fn busy(&self) {}
}

impl Process {
    fn new(order: u64) -> Self {
        Self {
            order,
            said: Vec::new(),
            end: None,
        }
    }

    /// What it asks next, or how it ends.
    fn next(&self, guards: Guards) -> Result<Ask, Result<Referred, ()>> {
        let replay = Replay {
            said: &self.said,
            at: Cell::new(0),
            open: RefCell::new(None),
            guards,
        };
        let mark = Mark {
            order: self.order,
            uid: self.order.to_string(),
        };
        let wanted = [Wanted {
            tag: "t".into(),
            image: self.order.to_string(),
        }];
        let run = pin!(refer(&replay, &wanted, &mark));
        match run.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => Err(end.map(|mut referred| referred.remove(0))),
            Poll::Pending => match replay.open.borrow_mut().take() {
                Some(ask) => Ok(ask),
                None => panic!("it waits for nothing but answers"),
            },
        }
    }
}

impl World {
    fn new() -> Self {
        Self {
            stream: Stream::default(),
            // The second is the next leader's, at the same request: the first may be frozen at any point.
            processes: [1, 1, 2].map(Process::new).into(),
            wire: Vec::new(),
            losses: 2,
            others: 2,
            foreign: false,
        }
    }

    /// A write arrives: whether it is taken. Err: a promise is broken.
    fn land(&mut self, written: &Stream, guards: Guards) -> Result<bool, String> {
        if written.version != self.stream.version && guards.versions {
            return Ok(false);
        }
        let order = |stream: &Stream| stream.mark.as_ref().map_or(0, |mark| mark.order);
        if order(written) < order(&self.stream) {
            return Err(format!("{written:?} takes the place of {:?}", self.stream));
        }
        if written.beside != self.stream.beside {
            return Err(format!(
                "{written:?} undoes what others did: {:?}",
                self.stream
            ));
        }
        self.foreign = false;
        self.stream = Stream {
            version: self.stream.version + 1,
            ..written.clone()
        };
        Ok(true)
    }

    /// Somebody else's change.
    fn touched(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        next.others -= 1;
        next.stream.version += 1;
        change(&mut next);
        next
    }

    fn successors(&self, guards: Guards) -> Result<Vec<Self>, String> {
        let mut all = Vec::new();
        for (index, process) in self.processes.iter().enumerate() {
            if process.end.is_some() {
                continue;
            }
            let with = |change: &dyn Fn(&mut Process)| {
                let mut next = self.clone();
                change(&mut next.processes[index]);
                next
            };
            match process.next(guards) {
                Err(Ok(end)) => all.push(with(&|p| p.end = Some(end.clone()))),
                Err(Err(())) => all.push(with(&|p| p.said.clear())),
                Ok(Ask::Look) => {
                    let seen = Answer::Stream(self.stream.clone());
                    all.push(with(&|p| p.said.push(seen.clone())));
                }
                Ok(Ask::Put(stream)) => {
                    let mut next = self.clone();
                    // Who has to look again remembers nothing of the round before.
                    if next.land(&stream, guards)? {
                        next.processes[index].said.push(Answer::Put(Put::Written));
                    } else {
                        next.processes[index].said.clear();
                    }
                    all.push(next);
                    if self.losses > 0 {
                        let mut lost = with(&|p| p.said.clear());
                        lost.losses -= 1;
                        lost.wire.push(stream);
                        all.push(lost);
                    }
                }
            }
            // It crashes, and begins again.
            all.push(with(&|p| p.said.clear()));
        }
        for index in 0..self.wire.len() {
            let mut next = self.clone();
            let written = next.wire.remove(index);
            next.land(&written, guards)?;
            all.push(next);
        }
        if self.others > 0 {
            all.push(self.touched(|w| w.stream.beside += 1));
            all.push(self.touched(|w| {
                w.stream.image = Some("theirs".into());
                w.foreign = true;
            }));
            // The whole tag, with its mark.
            all.push(self.touched(|w| {
                (w.stream.image, w.stream.mark) = (None, None);
                w.foreign = true;
            }));
        }
        Ok(all)
    }

    /// The same world, where versions say only which came first, and what can never land is gone.
    fn canonical(mut self, guards: Guards) -> Self {
        let now = self.stream.version;
        self.wire
            .retain(|write| write.version == now || !guards.versions);
        let known = |process: &Process| {
            process
                .said
                .iter()
                .filter_map(|answer| match answer {
                    Answer::Stream(stream) => Some(stream.version),
                    Answer::Put(_) => None,
                })
                .collect::<Vec<_>>()
        };
        let mut versions: Vec<u8> = self.processes.iter().flat_map(known).collect();
        versions.extend(self.wire.iter().map(|write| write.version));
        versions.push(now);
        versions.sort_unstable();
        versions.dedup();
        let rank = |version: &mut u8| {
            let place = versions.iter().position(|known| known == version);
            *version = place
                .and_then(|place| u8::try_from(place).ok())
                .unwrap_or(u8::MAX);
        };
        for process in &mut self.processes {
            for answer in &mut process.said {
                if let Answer::Stream(stream) = answer {
                    rank(&mut stream.version);
                }
            }
        }
        self.wire
            .iter_mut()
            .for_each(|write| rank(&mut write.version));
        rank(&mut self.stream.version);
        self
    }

    /// What is promised once everybody has ended.
    fn end(&self) -> Result<(), String> {
        let ended = self.processes.iter().all(|p| p.end.is_some());
        let newest = self.processes[2].end == Some(Referred::Superseded);
        if newest {
            return Err(format!("the newest was superseded: {self:?}"));
        }
        // Who wiped the mark as well lets an older request set the tag: the remedy after a restore.
        let marked = self.stream.mark.as_ref().is_some_and(|m| m.order == 2);
        let right = self.stream.image.as_deref() == Some("2");
        if ended && marked && !right && !self.foreign {
            return Err(format!("the tag is on no request's image: {self:?}"));
        }
        if ended && self.others == 2 && !(marked && right) {
            return Err(format!(
                "nobody touched it, and it is not on the newest: {self:?}"
            ));
        }
        Ok(())
    }
}

/// Visits every world; how many there are, or what is broken.
fn explore(guards: Guards) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let mut open = vec![World::new()];
    while let Some(world) = open.pop() {
        let world = world.canonical(guards);
        if !seen.insert(world.clone()) {
            continue;
        }
        world.end()?;
        open.extend(world.successors(guards)?);
    }
    Ok(seen.len())
}

#[test]
fn the_newest_request_has_the_tag_in_the_end_whatever_crash_or_late_write_came_between() {
    let worlds = explore(Guards {
        marks: true,
        versions: true,
    });
    let worlds = worlds.unwrap_or_else(|broken| panic!("{broken}"));
    println!("references: {worlds} states");
    assert!(worlds > 10_000, "{worlds}");
}

#[test]
fn without_its_mark_or_its_version_a_late_write_takes_the_newer_ones_place() {
    for (marks, versions) in [(false, true), (true, false)] {
        let broken = explore(Guards { marks, versions });
        assert!(broken.is_err(), "marks {marks}, versions {versions}");
    }
}
