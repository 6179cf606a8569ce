//! The steps over recorded answers: what a step asks next, or how it ends, as a function of the answers it got so far.
//!
//! A step under way is the list of its questions and answers: it can be cloned, compared and hashed. Its future is made anew for each
//! question and polled once; the first question without an answer is where it halts.
#![allow(clippy::expect_used, clippy::panic)]

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Flow, Put, StepIo, TagLabels, Unsettled, Work};
use crate::image::{Digest, Reference, Repository, Tag};
use crate::machine::{Fault, FaultClass, Image, ImageSpec, Launch, Notice, Outcome, Reason};

/// One request to a registry, or a question to the process's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Where is this tag?
    Look(Tag),
    /// What does the source's repository have there?
    Fetch(Reference),
    /// Is this digest there?
    Held(Digest),
    /// Bring this digest's content over from the source.
    Copy(Digest),
    /// Put this tag to this digest.
    Put(Tag, Digest),
    /// Does the registry delete tags alone?
    Deletes,
    /// Delete this tag.
    Delete(Tag),
    /// Of the memory: did we put this tag to this digest a moment ago?
    Wrote(Tag, Digest),
    /// Of the clock: does this tag's stamp say a time long past?
    Old(Tag),
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To a look or a fetch.
    At(Option<Digest>),
    /// It is there, it was copied, it was put, it was deleted.
    Yes,
    /// It is gone; its content is missing.
    No,
    /// The read failed, and is made again soon: nothing is known.
    Unknown,
    /// The read failed in a way that counts: a 404 that no registry says.
    Untyped,
    /// The read was refused for good.
    Denied,
    /// The write was refused for good.
    Refused,
    /// The write was refused because the tag cannot be moved.
    Immutable,
    /// The answer to the write was lost: it may have landed, or may land. The float is quiet for so many seconds.
    Lost(i64),
    /// The write was not sent: another one may land on the tag for so many seconds.
    Landing(i64),
    /// The write was not sent: its look was too old.
    NotSent,
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

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// What was launched.
    pub launch: Launch,
    /// The record it was launched from.
    pub image: Image,
    /// What it asked and was answered.
    pub said: Vec<(Ask, Answer)>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl Ask {
    /// The tag that it reads, which an old replica may show as it was.
    pub fn read_tag(&self) -> Option<&Tag> {
        match self {
            Self::Look(tag) | Self::Fetch(Reference::Tag(tag)) => Some(tag),
            _ => None,
        }
    }

    /// The tag that it writes, and what is put there; none: it is deleted.
    pub fn write(&self) -> Option<(&Tag, Option<Digest>)> {
        match self {
            Self::Put(tag, digest) => Some((tag, Some(*digest))),
            Self::Delete(tag) => Some((tag, None)),
            _ => None,
        }
    }

    /// Whether this process answers it itself.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Wrote(..) | Self::Old(_) => true,
            Self::Look(_)
            | Self::Fetch(_)
            | Self::Held(_)
            | Self::Copy(_)
            | Self::Put(..)
            | Self::Deletes
            | Self::Delete(_) => false,
        }
    }
}

impl Running {
    /// The next request, or the outcome.
    pub fn next(&self, spec: &ImageSpec) -> Halt {
        let replay = Replay {
            said: &self.said,
            at: Cell::new(0),
            open: RefCell::new(None),
        };
        let work = Work {
            io: &replay,
            spec,
            image: &self.image,
            may_have_run: self.launch.may_have_run,
        };
        let run = pin!(work.run(self.launch.step));
        match run.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Halt::End(outcome),
            Poll::Pending => {
                let open = replay.open.borrow_mut().take();
                Halt::Ask(open.expect("it waits for nothing but answers"))
            }
        }
    }
}

struct Replay<'a> {
    said: &'a [(Ask, Answer)],
    at: Cell<usize>,
    open: RefCell<Option<Ask>>,
}

impl Replay<'_> {
    async fn ask(&self, ask: Ask) -> Flow<Answer> {
        let Some((asked, answer)) = self.said.get(self.at.get()) else {
            self.open.replace(Some(ask));
            return pending().await;
        };
        assert_eq!(*asked, ask, "a step asks the same, given the same answers");
        self.at.set(self.at.get() + 1);
        match *answer {
            Answer::Unknown => Err(faulted(
                Reason::RegistryUnavailable,
                FaultClass::Wait { seconds: 1 },
            )),
            Answer::Untyped => Err(faulted(Reason::RegistryError, FaultClass::Attempt)),
            Answer::Denied => Err(faulted(Reason::QuotaExceeded, FaultClass::Terminal)),
            answer => Ok(answer),
        }
    }

    async fn at(&self, ask: Ask) -> Flow<Option<Digest>> {
        match self.ask(ask).await? {
            Answer::At(digest) => Ok(digest),
            answer => panic!("{answer:?} to a look"),
        }
    }

    async fn yes(&self, ask: Ask) -> Flow<bool> {
        match self.ask(ask).await? {
            Answer::Yes => Ok(true),
            Answer::No => Ok(false),
            answer => panic!("{answer:?} to a question"),
        }
    }
}

impl StepIo for Replay<'_> {
    type Manifest = Digest;

    async fn look(&self, tag: &Tag) -> Flow<Option<Digest>> {
        self.at(Ask::Look(tag.clone())).await
    }

    async fn fetch(&self, reference: &Reference) -> Flow<Option<Digest>> {
        self.at(Ask::Fetch(reference.clone())).await
    }

    async fn check_granted(&self, _: Digest) -> Flow<()> {
        Ok(())
    }

    async fn held(&self, digest: Digest) -> Flow<Option<Digest>> {
        Ok(self.yes(Ask::Held(digest)).await?.then_some(digest))
    }

    async fn labels(&self, _: &Digest) -> Flow<TagLabels> {
        Ok(TagLabels::default())
    }

    async fn copy(&self, manifest: Digest) -> Flow<Option<Digest>> {
        if self.yes(Ask::Copy(manifest)).await? {
            return Ok(Some(manifest));
        }
        Err(faulted(Reason::SourceIncomplete, FaultClass::Attempt))
    }

    async fn put(&self, tag: &Tag, manifest: &Digest) -> Flow<Put> {
        let answer = self.ask(Ask::Put(tag.clone(), *manifest)).await?;
        Ok(written(answer))
    }

    async fn undeletable(&self) -> Flow<Option<String>> {
        let deletes = self.yes(Ask::Deletes).await?;
        Ok((!deletes).then(|| "as it was answered".into()))
    }

    async fn delete(&self, tag: &Tag) -> Flow<Put> {
        Ok(written(self.ask(Ask::Delete(tag.clone())).await?))
    }

    async fn bring_referrers(&self, _: Digest) -> Flow<Option<Notice>> {
        Ok(None)
    }

    async fn wrote(&self, tag: &Tag, digest: Digest) -> Flow<bool> {
        self.yes(Ask::Wrote(tag.clone(), digest)).await
    }

    async fn is_old(&self, prune: &Tag) -> Flow<bool> {
        self.yes(Ask::Old(prune.clone())).await
    }

    async fn pause(&self, _: Duration) -> Flow<()> {
        Ok(())
    }

    /// A look that is not believed is not answered: the world answers when it would be.
    fn believes(&self, _: &Repository, _: &Tag, _: Option<Digest>) -> bool {
        true
    }

    fn may_write(&self) -> bool {
        true
    }

    fn forget(&self, _: &Repository) {}

    fn forget_source(&self, _: Digest) {}

    fn bytes(&self) -> u64 {
        1
    }
}

/// What an answer says of a tag write.
fn written(answer: Answer) -> Put {
    let seconds = |seconds| Duration::from_secs(u64::try_from(seconds).expect("a time to come"));
    let said = "as it was answered";
    match answer {
        Answer::Yes => Put::Written,
        Answer::No => Put::ContentMissing(fault(Reason::ManifestRejected, FaultClass::Attempt)),
        Answer::Refused => Put::Refused(fault(Reason::QuotaExceeded, FaultClass::Terminal)),
        Answer::Immutable => Put::Immutable(fault(Reason::TagImmutable, FaultClass::Terminal)),
        Answer::Lost(quiet) => Put::Unsettled(Unsettled::Unknown(said.into(), seconds(quiet))),
        Answer::Landing(late) => Put::Unsettled(Unsettled::Landing(said.into(), seconds(late))),
        Answer::NotSent => Put::Unsettled(Unsettled::NotSent),
        Answer::At(_) | Answer::Unknown | Answer::Untyped | Answer::Denied => {
            panic!("{answer:?} to a write")
        }
    }
}

/// A fault as the registry's errors become one.
pub fn faulted(reason: Reason, class: FaultClass) -> Outcome {
    Outcome::Faulted(fault(reason, class))
}

fn fault(reason: Reason, class: FaultClass) -> Fault {
    Fault {
        reason,
        message: "as it was answered".into(),
        class,
    }
}
