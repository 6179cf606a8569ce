//! What an exploration begins with: the requests, the faults that may come, and the guard that is taken away, if one is.

use crate::image::{Digest, Float, Reference, Repository};
use crate::machine::{
    Freeze, ImageSpec, Latch, Mode, OnFailure, Referrers, Replaces, Request, Spec, Status,
};
use crate::steps::replay::Answer;

use super::promises::{End, Promise};
use super::world::{LATE, SETTLE};

/// The floats and the requests.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it shows.
    pub name: &'static str,
    /// Each float is on a digest of its own (`D0`, `D1`) at the start.
    pub exists: bool,
    /// The registry takes tags for missing content.
    pub lenient: bool,
    /// A tag that the registry refuses to the first request for good.
    pub refused: Option<&'static str>,
    /// `<float>__post1` holds an image of its own at the start.
    pub post1: bool,
    /// Launches of an image that may fail.
    pub attempts: u32,
    /// So many requests of a namespace may have begun at once; 0: any number.
    pub quota: usize,
    /// What the registry does when it is told to delete a tag.
    pub deletion: Deletion,
    /// In the order they are created.
    pub wishes: &'static [Wish],
}

/// What a registry does when it is told to delete a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It deletes that tag.
    OfTheTag,
    /// It deletes what the tag holds, with all its tags.
    OfTheImage,
}

/// A request.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub struct Wish {
    /// Float by number, and the digest to put there, by name (`pre`: what `<float>__pre` holds when it is resolved).
    pub images: &'static [(usize, &'static str)],
    /// When its floats move.
    pub latch: Latch,
    /// What becomes of floats that have moved when its group fails.
    pub on_failure: OnFailure,
    /// It begins suspended.
    pub suspended: bool,
    /// Its namespace.
    pub namespace: &'static str,
    /// What each of its floats has to be on, by name (`none`: nothing).
    pub replaces: Option<&'static str>,
    /// What it displaces is taken back.
    pub undo: bool,
    /// It has a gate.
    pub gate: bool,
    /// A freeze leaves it out.
    pub exempt: bool,
    /// Its `_incoming` tags are to be removed.
    pub remove: bool,
}

/// How often each kind of fault may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Faults {
    /// The process dies between any two requests, its last tag write on the wire or not; another begins.
    pub crash: u8,
    /// The lease of a frozen process runs out, and another takes over at once.
    pub replace: u8,
    /// The first one wakes up beside the other, with all that it had under way. No fault.
    pub awake: u8,
    /// The process ends by SIGTERM and releases its lease; another begins.
    pub handover: u8,
    /// A tag write lands, its answer is lost.
    pub lost: u8,
    /// A tag write is answered by silence, and lands later or never.
    pub late: u8,
    /// A read fails: 5xx, 429, 401.
    pub unknown: u8,
    /// A read by tag shows what was there before the last write.
    pub stale: u8,
    /// Somebody else puts a float to a digest of his own.
    pub moved: u8,
    /// Somebody else puts a float back to the digest it was on at the start.
    pub back: u8,
    /// Somebody else deletes a float.
    pub removed: u8,
    /// `spec.suspend` is set (unsetting it is free).
    pub suspend: u8,
    /// `spec.cancel` is set.
    pub cancel: u8,
    /// An object is deleted.
    pub delete: u8,
    /// Time passes to the deadline, or beyond its grace.
    pub deadline: u8,
    /// The deadline's grace, of those that are committed, ends at this very instant.
    pub overrun: u8,
    /// A tag write is refused for good.
    pub refused: u8,
    /// A tag write is refused as if content were missing, and nothing is.
    pub missing: u8,
    /// A tag write is refused because the tag cannot be moved, as it says.
    pub immutable: u8,
    /// A tag write is not sent: the look before it has become old.
    pub unsent: u8,
    /// A read is answered by a 404 that no registry says.
    pub untyped: u8,
    /// A read is answered by a no that is for good.
    pub denied: u8,
    /// The operator stops all work on a float (letting it go on is free).
    pub pause: u8,
    /// The leader hears that the operator froze a float (that it is let go is free).
    pub freeze: u8,
    /// A pruner takes the stamped tags of a float whose request is suspended.
    pub pruned: u8,
    /// What was pushed and not yet tagged is collected.
    pub expire: u8,
    /// The sources are gone.
    pub sources: u8,
    /// A save and its answer, and the answer to whether a request may push, are actions of their own. No fault.
    pub split: u8,
    /// So is a load, beside these. No fault.
    pub loads: u8,
    /// The answer to a save is lost; it lands, or has, or never does.
    pub silent: u8,
    /// A process of an older version takes over, which cannot read the first request (its end is free).
    pub older: u8,
    /// Asking whether a request may push takes longer than others wait for the answer.
    pub slow: u8,
}

/// A guard that is taken away, to see that the promise it serves breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Latch puts the float without a look.
    LatchWithoutLook,
    /// `BackUp` reports success and writes nothing.
    BackUpSkipped,
    /// `BackUp` writes the prune tag and leaves `<float>__pre` alone.
    PreSkipped,
    /// The prune stamp is the present second, and its tag is put without a look.
    StampReused,
    /// What `_incoming` and `__post1` hold alone is overwritten.
    RescueSkipped,
    /// An unanswered write keeps nothing quiet: the claim is released at once.
    NoFence,
    /// A write without an answer keeps its float for the settle time, and not for as long as it may land.
    LateIgnored,
    /// Another digest is put to a tag where one may still land.
    OtherDigestSent,
    /// A new process launches at once.
    NoQuietStart,
    /// A new process takes every float that is owned for one with nothing on the wire.
    AllSpared,
    /// The lease is released without the newest writes in it.
    HandoverForgets,
    /// A read that contradicts our own write is believed.
    NoMemory,
    /// A launch from an old reading of the object, without a save.
    StaleLaunch,
    /// A launch of what was not saved.
    LaunchBeforeSave,
    /// A leader that was frozen beyond its lease wakes up, loads an object and saves what a step of its own had found. That may be
    /// true no more: "backed up" was said of a digest that has been displaced itself since. The load is fresh and the save is
    /// checked, so nothing but a look at the lease between the two keeps it from that.
    FormerSaves,
    /// The same sends a tag write, whose look was made while it led.
    FormerWrites,
    /// An older request is heard of only after a newer one has begun (a watch tells creations in their order).
    HeardOutOfOrder,
    /// Stage reports success and leaves `<float>_incoming` alone.
    IncomingSkipped,
    /// Those that a claim supersedes are not ended.
    SupersededUnrecorded,
    /// Only the first of them is.
    RivalsForgotten,
    /// Every request is admitted at once.
    NoClaims,
    /// A cancel acts on what is committed.
    CommitIgnored,
    /// A group commits with its first image that is backed up.
    CommitEarly,
    /// Each float of a group moves once it is backed up itself.
    LatchOnItsOwn,
    /// A read that failed is taken for absent.
    UnknownIsAbsent,
    /// A displaced digest that comes back is listed, and pinned, again.
    ListedAgain,
    /// A latch that has landed before is taken for a foreign move.
    LandedIsMoved,
    /// A claim is never released.
    ClaimKept,
    /// Only images that are recorded as latched are looked at when floats are taken back.
    OnlyLatchedExamined,
    /// Floats are taken back while a write of ours may still land on one.
    IntentUnsettled,
    /// What other tags of the float held is listed as displaced from the float.
    RescuedIsDisplaced,
    /// A float is taken back from an image that no prune tag holds.
    PromotedUnpinned,
    /// A float is taken back without a look.
    TakenBackWithoutLook,
    /// A request that takes floats back has given up its claim.
    ReleasedEarly,
    /// A refusal for want of content is believed without another look.
    RefusalBelieved,
    /// What was seen of a float and its pins counts for ever.
    Unconfirmed,
    /// A float moves whatever it is on, also where `replaces` says otherwise.
    ReplacesIgnored,
    /// What an undo displaces is pinned like anything else.
    UndoShown,
    /// A request commits although a gate is left.
    GateIgnored,
    /// What waits at a gate keeps its claim.
    GateKeepsClaim,
    /// A request commits although its float is frozen.
    FreezeIgnored,
    /// One image of a group is frozen, and the others move.
    FreezeOfOne,
    /// What is frozen keeps its claim.
    FreezeKeepsClaim,
    /// A gated request does not queue behind another that waits at its gate: it supersedes it.
    GatedPasses,
    /// A launch does not ask whether its request still has its claim.
    Unentitled,
    /// A leader of an older version has not heard of what it cannot read.
    UnreadUnheard,
    /// The time that an older request has to be permitted is counted from before the newer one was.
    PatienceSpent,
    /// Whether the registry deletes tags alone is not tried before one is deleted.
    DeletionUntried,
    /// `<float>_incoming` is deleted without a look at the float.
    RemovedUnseen,
    /// `<float>_incoming` is deleted while a write of ours may still land there.
    RemovedEarly,
    /// A deletion is not entered in the log of own writes.
    RemovalUnentered,
    /// A save lands whatever its object has become since it was loaded.
    SaveUnchecked,
    /// The same on every look, and a move uses no attempt: it goes on for ever.
    MovesUncounted,
}

impl Faults {
    /// None.
    pub const NONE: Self = Self {
        crash: 0,
        replace: 0,
        awake: 0,
        handover: 0,
        lost: 0,
        late: 0,
        unknown: 0,
        stale: 0,
        moved: 0,
        back: 0,
        removed: 0,
        suspend: 0,
        cancel: 0,
        delete: 0,
        deadline: 0,
        overrun: 0,
        refused: 0,
        missing: 0,
        immutable: 0,
        unsent: 0,
        untyped: 0,
        denied: 0,
        pause: 0,
        freeze: 0,
        pruned: 0,
        expire: 0,
        sources: 0,
        split: 0,
        loads: 0,
        silent: 0,
        older: 0,
        slow: 0,
    };

    /// How often a kind of fault may come, by its name.
    pub fn count(&mut self, kind: &str) -> Option<&mut u8> {
        Some(match kind {
            "crash" => &mut self.crash,
            "replace" => &mut self.replace,
            "awake" => &mut self.awake,
            "handover" => &mut self.handover,
            "lost" => &mut self.lost,
            "late" => &mut self.late,
            "unknown" => &mut self.unknown,
            "stale" => &mut self.stale,
            "moved" => &mut self.moved,
            "back" => &mut self.back,
            "removed" => &mut self.removed,
            "suspend" => &mut self.suspend,
            "cancel" => &mut self.cancel,
            "delete" => &mut self.delete,
            "expire" => &mut self.expire,
            "sources" => &mut self.sources,
            "slow" => &mut self.slow,
            "split" => &mut self.split,
            "loads" => &mut self.loads,
            "silent" => &mut self.silent,
            "older" => &mut self.older,
            "deadline" => &mut self.deadline,
            "overrun" => &mut self.overrun,
            "refused" => &mut self.refused,
            "missing" => &mut self.missing,
            "immutable" => &mut self.immutable,
            "unsent" => &mut self.unsent,
            "untyped" => &mut self.untyped,
            "denied" => &mut self.denied,
            "pause" => &mut self.pause,
            "freeze" => &mut self.freeze,
            "pruned" => &mut self.pruned,
            _ => return None,
        })
    }

    /// The count of the fault that an answer is.
    pub fn of(&mut self, answer: Answer) -> &mut u8 {
        match answer {
            Answer::Unknown => &mut self.unknown,
            Answer::Untyped => &mut self.untyped,
            Answer::Denied => &mut self.denied,
            Answer::Refused => &mut self.refused,
            Answer::No => &mut self.missing,
            Answer::Immutable => &mut self.immutable,
            Answer::NotSent => &mut self.unsent,
            Answer::At(_) | Answer::Yes | Answer::Lost(_) | Answer::Landing(_) => {
                unreachable!("{answer:?} is no such fault")
            }
        }
    }

    /// Whether somebody else writes floats.
    pub fn foreign(&self) -> bool {
        self.moved + self.back + self.removed > 0
    }

    /// Whether they must not show in the tags at the end: crashes, lost answers, failed and old reads.
    pub fn heal(&self) -> bool {
        let acts = self.suspend + self.cancel + self.delete + self.deadline;
        let acts = acts
            + self.freeze
            + self.overrun
            + self.refused
            + self.missing
            + self.immutable
            + self.pruned;
        !self.foreign() && acts + self.sources + self.slow + self.denied == 0
    }
}

/// All that stays the same in one exploration.
#[derive(Debug)]
pub struct Setup {
    /// The requests.
    pub scenario: Scenario,
    /// The faults that may come.
    pub faults: Faults,
    /// The guard that is taken away.
    pub mutation: Option<Mutation>,
    /// The floats, by number.
    pub floats: Vec<Float>,
    /// Each decision is made twice, to see that the second changes nothing.
    pub repeats: bool,
    /// How the undisturbed run ends.
    pub undisturbed: Option<End>,
    /// Digests by name, for traces.
    names: Vec<(Digest, String)>,
}

/// What an exploration found to be broken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broken {
    /// Which promise.
    pub promise: Promise,
    /// How.
    pub what: String,
}

/// What is known of a frozen float.
pub fn freeze() -> Freeze {
    Freeze {
        message: "frozen".into(),
        unreadable: false,
    }
}

/// The digest of this name.
pub fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

// === impl Setup ===

impl Setup {
    /// A setup of this scenario.
    pub fn new(scenario: Scenario, faults: Faults, mutation: Option<Mutation>) -> Self {
        let float = |number: usize| format!("quay.io/ci/ci:f{number}").parse();
        let floats = (0..2).map(|n| float(n).expect("a float")).collect();
        let wished = scenario.wishes.iter().flat_map(|wish| wish.images);
        let others = ["D0", "D1", "F0", "F1", "G0", "G1", "P0", "P1"];
        let names = wished.map(|(_, name)| *name).chain(others);
        let names = names.map(|name| (digest(name), name.to_owned())).collect();
        Self {
            scenario,
            faults,
            mutation,
            floats,
            repeats: false,
            undisturbed: None,
            names,
        }
    }

    /// Whether a save and its answer are actions of their own.
    pub fn splits(&self) -> bool {
        self.faults.split > 0
    }

    /// For how long a process takes a write without an answer to be able to land.
    pub fn late(&self) -> i64 {
        if self.mutation == Some(Mutation::LateIgnored) {
            SETTLE
        } else {
            LATE
        }
    }

    /// The name of a digest.
    pub fn name(&self, digest: Digest) -> &str {
        let known = self.names.iter().find(|(known, _)| *known == digest);
        known.map_or("?", |(_, name)| name)
    }

    /// The digests that have a name.
    pub fn names(&self) -> impl Iterator<Item = (&Digest, &str)> {
        self.names
            .iter()
            .map(|(digest, name)| (digest, name.as_str()))
    }

    /// The number of a float.
    pub fn number(&self, float: &Float) -> usize {
        let at = self.floats.iter().position(|known| known == float);
        at.expect("one of the two")
    }

    /// The requests as they are created.
    pub fn requests(&self) -> impl Iterator<Item = Request> + '_ {
        self.scenario.wishes.iter().map(|wish| self.request(wish))
    }

    fn request(&self, wish: &Wish) -> Request {
        let image = |(number, name): &(usize, &str)| {
            let float = self.floats[*number].clone();
            let (host, reference) = if *name == "pre" {
                ("quay.io", Reference::Tag(float.pre()))
            } else {
                ("registry.ci", Reference::Digest(digest(name)))
            };
            let repository: Repository = format!("{host}/ci/ci").parse().expect("a repository");
            let source = crate::image::Source {
                repository,
                reference,
            };
            let replaces = wish.replaces.map(|name| match name {
                "none" => Replaces::Nothing,
                name => Replaces::Digest(digest(name)),
            });
            ImageSpec {
                source,
                float,
                replaces,
                freeze: None,
                remove_incoming: wish.remove,
            }
        };
        let images: Vec<ImageSpec> = wish.images.iter().map(image).collect();
        let status = Status::new(images.len());
        let spec = Spec {
            images,
            latch: wish.latch,
            on_failure: wish.on_failure,
            mode: Mode::Promote,
            referrers: Referrers::Ignore,
            attempts: self.scenario.attempts,
            deadline_seconds: 7200,
            suspend: wish.suspended,
            cancel: false,
            gates: wish.gate.then(|| "tests".to_owned()).into_iter().collect(),
            undo: wish.undo,
        };
        Request { spec, status }
    }
}
