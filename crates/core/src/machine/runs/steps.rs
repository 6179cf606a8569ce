//! What a step does, as a function of the answers it got so far: the next request, or its outcome.
//!
//! In come an image's spec and record as they were saved and the answers to the requests made so far; out comes the next
//! request or the outcome. The order of requests is the one of `engine::operation`. A step holds no state of its own, so that
//! a world with steps under way can be cloned and compared.

use crate::image::{Digest, Reference, Tag};
use crate::machine::{
    Fault, FaultClass, Foreign, Image, ImageSpec, Launch, Outcome, Pin, Reason, Step,
};

/// One request to the float's registry, or a question to the process's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Where is this tag?
    Look(Tag),
    /// Is this digest there?
    Held(Digest),
    /// Bring this digest over from the source.
    Copy(Digest),
    /// Put this tag to this digest.
    Put(Tag, Digest),
    /// Of the memory: did we put this tag to this digest a moment ago?
    Wrote(Tag, Digest),
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To a look.
    At(Option<Digest>),
    /// It is there, it was copied, it was put.
    Yes,
    /// It is gone; its content is missing.
    No,
    /// The read failed: nothing is known.
    Unknown,
    /// The answer to the write was lost: it may have landed, or may land for so many seconds.
    Lost(i64),
}

/// What a look at a tag showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen(pub Option<Digest>);

/// Where a step comes to a halt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Halt {
    /// It needs an answer.
    Ask(Ask),
    /// It has ended.
    End(Outcome),
}

type Flow<T> = Result<T, Halt>;

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// What was launched.
    pub launch: Launch,
    /// The record it was launched from.
    pub image: Image,
    /// What it asked and was answered.
    pub said: Vec<(Ask, Answer)>,
    /// It is to be given up.
    pub dropped: bool,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl Running {
    /// The next request, or the outcome.
    pub fn next(&self, spec: &ImageSpec) -> Halt {
        let mut replay = Replay {
            spec,
            running: self,
            at: 0,
        };
        let flow = match self.launch.step {
            Step::Resolve => replay.resolve(),
            Step::Stage => replay.stage(),
            Step::BackUp => replay.back_up(),
            Step::Confirm => replay.confirm(),
            Step::Latch => replay.latch(),
            Step::Post => replay.post(),
            Step::Verify => replay.verify(),
            Step::RollBack => replay.roll_back(),
        };
        flow.map_or_else(|halt| halt, Halt::End)
    }

    /// What this step last saw at a tag, if it looked.
    pub fn saw(&self, tag: &Tag) -> Option<Seen> {
        self.said.iter().rev().find_map(|said| match said {
            (Ask::Look(t), Answer::At(digest)) if t == tag => Some(Seen(*digest)),
            _ => None,
        })
    }
}

struct Replay<'a> {
    spec: &'a ImageSpec,
    running: &'a Running,
    at: usize,
}

impl Replay<'_> {
    fn ask(&mut self, ask: Ask) -> Flow<Answer> {
        let said = self.running.said.get(self.at);
        self.at += 1;
        match said {
            None => Err(Halt::Ask(ask)),
            Some((asked, answer)) => {
                assert_eq!(*asked, ask, "a step asks the same, given the same answers");
                match *answer {
                    Answer::Unknown => Err(wait(1)),
                    Answer::Lost(seconds) => Err(wait(seconds)),
                    answer => Ok(answer),
                }
            }
        }
    }

    fn look(&mut self, tag: &Tag) -> Flow<Option<Digest>> {
        match self.ask(Ask::Look(tag.clone()))? {
            Answer::At(digest) => Ok(digest),
            answer => unreachable!("{answer:?} to a look"),
        }
    }

    fn yes(&mut self, ask: Ask) -> Flow<bool> {
        Ok(self.ask(ask)? == Answer::Yes)
    }

    fn resolve(&mut self) -> Flow<Outcome> {
        let float = self.look(self.spec.float.tag())?;
        let source = match (&self.running.image.source, &self.spec.source.reference) {
            (Some(known), _) => known.digest,
            (None, Reference::Digest(digest)) => *digest,
            (None, Reference::Tag(tag)) => match self.look(tag)? {
                Some(digest) => digest,
                None => return Ok(source_gone()),
            },
        };
        Ok(Outcome::Resolved {
            source,
            media_type: None,
            float,
        })
    }

    fn stage(&mut self) -> Flow<Outcome> {
        let (source, incoming) = (self.source(), self.spec.float.incoming());
        let staged = Outcome::Staged {
            media_type: "application/json".into(),
            bytes: 1,
            notices: Vec::new(),
        };
        if self.running.launch.may_have_run && self.look(&incoming)? == Some(source) {
            return Ok(staged);
        }
        if !self.yes(Ask::Copy(source))? {
            return Ok(source_gone());
        }
        self.clear(&incoming, source, None)?;
        if self.yes(Ask::Put(incoming, source))? {
            return Ok(staged);
        }
        Ok(faulted(Reason::ManifestRejected, FaultClass::Attempt))
    }

    fn back_up(&mut self) -> Flow<Outcome> {
        let Some(Pin { digest, tag }) = self.running.image.displaced.last() else {
            return Ok(backed_up());
        };
        if !self.yes(Ask::Held(*digest))? || !self.pin(tag, *digest)? {
            return self.displaced_gone(*digest);
        }
        let pre = self.spec.float.pre();
        if self.running.launch.may_have_run && self.look(&pre)? == Some(*digest) {
            return Ok(backed_up());
        }
        if self.yes(Ask::Put(pre, *digest))? {
            return Ok(backed_up());
        }
        self.displaced_gone(*digest)
    }

    fn displaced_gone(&mut self, digest: Digest) -> Flow<Outcome> {
        let float = self.look(self.spec.float.tag())?;
        if float == Some(digest) {
            return Ok(faulted(Reason::BackupFailed, FaultClass::Attempt));
        }
        Ok(Outcome::DisplacedGone { float })
    }

    fn confirm(&mut self) -> Flow<Outcome> {
        let float = self.look(self.spec.float.tag())?;
        let staged = self.look(&self.spec.float.incoming())? == Some(self.source());
        let pinned = match self.running.image.displaced.last() {
            Some(Pin { digest, tag }) => {
                self.look(tag)? == Some(*digest)
                    && self.look(&self.spec.float.pre())? == Some(*digest)
            }
            None => true,
        };
        Ok(Outcome::Confirmed {
            float,
            staged,
            pinned,
        })
    }

    fn latch(&mut self) -> Flow<Outcome> {
        let (source, float) = (self.source(), self.spec.float.tag());
        let displaced = self.running.image.displaced.last().map(|pin| pin.digest);
        if !self.yes(Ask::Held(source))? {
            return Ok(Outcome::StagedGone(None));
        }
        match self.look(float)? {
            Some(digest) if digest == source => return Ok(Outcome::Latched),
            float if !self.spec.may_replace(float) => return Ok(Outcome::Unmet { float }),
            Some(digest) if Some(digest) != displaced => return Ok(Outcome::Moved { to: digest }),
            _ => {}
        }
        let put = self.yes(Ask::Put(float.clone(), source))?;
        Ok(if put {
            Outcome::Latched
        } else {
            Outcome::StagedGone(None)
        })
    }

    fn post(&mut self) -> Flow<Outcome> {
        let source = self.source();
        if let Some(newest) = self.running.image.displaced.last().map(|pin| pin.digest) {
            let post1 = self.spec.float.post1();
            if !self.yes(Ask::Held(source))? {
                return self.promoted_gone(source);
            }
            let there = self.clear(&post1, source, Some(newest))?;
            let skip = there && self.running.launch.may_have_run;
            if !skip && !self.yes(Ask::Put(post1, source))? {
                return self.promoted_gone(source);
            }
        }
        let foreign = self.foreign(source)?;
        Ok(Outcome::Posted { foreign })
    }

    fn promoted_gone(&mut self, source: Digest) -> Flow<Outcome> {
        Ok(match self.foreign(source)? {
            None => faulted(Reason::BackupFailed, FaultClass::Attempt),
            foreign => Outcome::Posted { foreign },
        })
    }

    fn foreign(&mut self, source: Digest) -> Flow<Option<Foreign>> {
        let mut found = None;
        for _ in 0..2 {
            found = self.look(self.spec.float.tag())?;
            if found == Some(source) {
                return Ok(None);
            }
        }
        Ok(Some(found.map_or(Foreign::Gone, Foreign::To)))
    }

    fn verify(&mut self) -> Flow<Outcome> {
        let at_source = self.look(self.spec.float.tag())? == Some(self.source());
        Ok(if at_source {
            Outcome::Latched
        } else {
            Outcome::NotLatched
        })
    }

    fn roll_back(&mut self) -> Flow<Outcome> {
        let (source, float) = (self.source(), self.spec.float.tag());
        let image = &self.running.image;
        let (Some(back), Some(prune)) = (image.displaced.last(), image.rollback.clone()) else {
            return Ok(Outcome::NothingToRollBack);
        };
        let (back, may_have_run) = (back.digest, self.running.launch.may_have_run);
        let found = self.look(float)?;
        if found == Some(back) {
            let pinned = self.look(&prune)? == Some(source);
            return Ok(if pinned {
                Outcome::RolledBack
            } else {
                Outcome::NothingToRollBack
            });
        }
        if found != Some(source) {
            return Ok(Outcome::NothingToRollBack);
        }
        if !self.yes(Ask::Held(back))? {
            return Ok(faulted(Reason::BackupFailed, FaultClass::Terminal));
        }
        let pre = self.spec.float.pre();
        if !self.pin(&prune, source)? {
            return self.cannot_be_pinned();
        }
        let there = may_have_run && self.look(&pre)? == Some(source);
        if !there && !self.yes(Ask::Put(pre, source))? {
            return self.cannot_be_pinned();
        }
        if self.look(float)? != Some(source) {
            return Ok(Outcome::NothingToRollBack);
        }
        Ok(if self.yes(Ask::Put(float.clone(), back))? {
            Outcome::RolledBack
        } else {
            faulted(Reason::BackupFailed, FaultClass::Terminal)
        })
    }

    fn cannot_be_pinned(&mut self) -> Flow<Outcome> {
        if self.look(self.spec.float.tag())? != Some(self.source()) {
            return Ok(Outcome::NothingToRollBack);
        }
        Ok(faulted(Reason::BackupFailed, FaultClass::Terminal))
    }

    fn clear(&mut self, tag: &Tag, source: Digest, pinned: Option<Digest>) -> Flow<bool> {
        let Some(found) = self.look(tag)? else {
            return Ok(false);
        };
        if found == source {
            return Ok(true);
        }
        if Some(found) == pinned {
            return Ok(false);
        }
        let Some(pin) = self.running.image.pin(found) else {
            return Err(Halt::End(Outcome::Unpinned { digest: found }));
        };
        if self.pin(&pin.tag, found)? {
            return Ok(false);
        }
        match self.look(tag)? {
            None => Ok(false),
            Some(digest) if digest == source => Ok(true),
            Some(digest) if digest == found => {
                let refused = faulted(Reason::BackupFailed, FaultClass::Attempt);
                Err(Halt::End(refused))
            }
            Some(_) => Err(Halt::End(Outcome::Dropped)),
        }
    }

    fn pin(&mut self, prune: &Tag, digest: Digest) -> Flow<bool> {
        if self.yes(Ask::Wrote(prune.clone(), digest))? {
            return Ok(true);
        }
        match self.look(prune)? {
            Some(found) if found == digest => Ok(true),
            Some(_) => Err(Halt::End(Outcome::StampTaken { tag: prune.clone() })),
            None => self.yes(Ask::Put(prune.clone(), digest)),
        }
    }

    fn source(&self) -> Digest {
        let source = self.running.image.source.as_ref();
        source
            .expect("a step that needs the source follows Resolve")
            .digest
    }
}

fn wait(seconds: i64) -> Halt {
    let class = FaultClass::Wait { seconds };
    Halt::End(faulted(Reason::RegistryUnavailable, class))
}

fn backed_up() -> Outcome {
    Outcome::BackedUp {
        notices: Vec::new(),
    }
}

fn source_gone() -> Outcome {
    faulted(Reason::SourceGone, FaultClass::Terminal)
}

/// A fault as the registry's errors become one.
pub fn faulted(reason: Reason, class: FaultClass) -> Outcome {
    Outcome::Faulted(Fault {
        reason,
        message: "as it was answered".into(),
        class,
    })
}
