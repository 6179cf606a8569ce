//! A request as the machine sees it: the spec, parsed, and what is durably recorded of its promotion.

use jiff::Timestamp;

use super::{FRESH_SECONDS, Phase, Reason};
use crate::image::{Digest, Float, Source, Stamp, Tag};

/// A promotion request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// What was asked for.
    pub spec: Spec,
    /// What is recorded.
    pub status: Status,
}

/// What was asked for, valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    /// At least one, each float once.
    pub images: Vec<ImageSpec>,
    /// Whether the floats move together.
    pub latch: Latch,
    /// What becomes of floats that have moved when the group fails.
    pub on_failure: OnFailure,
    /// Whether anything is written.
    pub mode: Mode,
    /// What is done about signatures and whatever else refers to an image.
    pub referrers: Referrers,
    /// How many launches of an image may fail.
    pub attempts: u32,
    /// Seconds from the first save to the deadline.
    pub deadline_seconds: i64,
    /// Held back.
    pub suspend: bool,
    /// To be ended.
    pub cancel: bool,
    /// What has to be removed before the floats may move, by name.
    pub gates: Vec<String>,
    /// What it displaces is taken back: nobody who reverts a float by its prune tags is to find it.
    pub undo: bool,
}

/// One image and its float.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageSpec {
    /// Where it is read.
    pub source: Source,
    /// Where it goes.
    pub float: Float,
    /// What the float has to be on, if that matters.
    pub replaces: Option<Replaces>,
    /// What keeps the float where it is. The request does not say it: it is looked up whenever a request is read.
    pub freeze: Option<Freeze>,
    /// `<float>_incoming` is removed once the float holds the image.
    pub remove_incoming: bool,
}

/// The operator of the installation keeps a float where it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Freeze {
    /// The float, until when and why.
    pub message: String,
    /// It cannot be read what is frozen: all goes on but the move.
    pub unreadable: bool,
}

/// What a float has to be on so that it may move. One that is at the source already is Unchanged, whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Replaces {
    /// Nothing: there is no such tag yet.
    Nothing,
    /// This digest.
    Digest(Digest),
}

impl ImageSpec {
    /// Whether it is promoted from another tag of its float's repository.
    #[must_use]
    pub fn is_within_one_repository(&self) -> bool {
        self.source.repository == *self.float.repository()
    }
}

/// When floats move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Latch {
    /// Not before every image is staged and backed up.
    Together,
    /// Each when it is ready.
    Independently,
}

/// What becomes of floats that have moved when their group fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnFailure {
    /// They stay.
    Hold,
    /// They go back.
    Rollback,
}

/// Whether anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Yes.
    Promote,
    /// No.
    Plan,
}

/// What is done about signatures and whatever else refers to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Referrers {
    /// Nothing.
    Ignore,
    /// They are copied; failures are reported.
    BestEffort,
    /// Every one that is found is copied before the image counts as staged.
    Require,
}

/// What is recorded of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// The place among all requests.
    pub order: Option<u64>,
    /// The floats may move: durable, never taken back.
    pub committed: bool,
    /// The floats that have moved are rolled back: durable as well.
    pub rollback: bool,
    /// When it claimed its floats.
    pub started: Option<Timestamp>,
    /// When it fails unless committed.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// The first float that was found to hold an image whose labels make its tags expire, and what to do about it.
    pub expiring: Option<String>,
    /// How far the tags of image streams are that follow its floats.
    pub references: References,
    /// In the order of the spec.
    pub images: Vec<Image>,
}

/// How far the tags of image streams are that follow a request's floats.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum References {
    /// There is none to set.
    #[default]
    None,
    /// Some wait for the floats, or are being set.
    Open,
    /// Each is set, or a newer request's. The text is for people.
    Set(String),
    /// Some could not be set; the first of them, for people.
    Failed(String),
}

/// What is recorded of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// What is true now.
    pub phase: Phase,
    /// Why it waits, was tried again, or ended.
    pub reason: Option<Reason>,
    /// The same for a person.
    pub message: String,
    /// The source, once resolved; its digest never changes again.
    pub source: Option<SourceFacts>,
    /// The float had the source digest already.
    pub unchanged: bool,
    /// This float may move (latch Independently).
    pub committed: bool,
    /// What the float showed before it moved, newest last.
    pub displaced: Vec<Pin>,
    /// What the float showed when a plan was made of it.
    pub would_displace: Option<Digest>,
    /// What other tags of the float held alone.
    pub rescued: Vec<Pin>,
    /// The prune tag for the promoted image, where the float is to be rolled back.
    pub rollback: Option<Tag>,
    /// When its pins were last seen in place, while it is backed up; none: its floats were free for others since.
    pub pinned: Option<Timestamp>,
    /// Bytes written.
    pub bytes: u64,
    /// Launches that failed or were cut off, with the one that runs.
    pub attempts: u32,
    /// Not before then is it launched again.
    pub next_attempt: Option<Timestamp>,
    /// Until then a tag write that was not answered may land.
    pub late_until: Option<Timestamp>,
}

/// A resolved source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceFacts {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, once its manifest was read.
    pub media_type: Option<String>,
}

/// A digest with the prune tag that pins it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pin {
    /// The digest.
    pub digest: Digest,
    /// Its prune tag.
    pub tag: Tag,
}

// === impl ImageSpec ===

impl ImageSpec {
    /// Whether the float may move off what a look at it showed.
    #[must_use]
    pub fn may_replace(&self, float: Option<Digest>) -> bool {
        match self.replaces {
            None => true,
            Some(Replaces::Nothing) => float.is_none(),
            Some(Replaces::Digest(digest)) => float == Some(digest),
        }
    }

    /// Why the float may not move off what a look at it showed; none: it may.
    #[must_use]
    pub fn unmet(&self, float: Option<Digest>) -> Option<String> {
        let replaces = self.replaces.filter(|_| !self.may_replace(float))?;
        let place = float.map_or_else(|| "is absent".into(), |digest| format!("is on {digest}"));
        Some(format!(
            "{} {place}, but replaces says {replaces}; see who moved it, then create another request",
            self.float
        ))
    }

    /// Whether a look at the float has to come directly before the commit, and not only the one that backing up rests on.
    #[must_use]
    pub const fn is_conditional(&self) -> bool {
        self.replaces.is_some()
    }

    /// The tag that pins what the float displaces: found by whoever reverts, or hidden from them where that is taken back.
    pub(super) fn displaced_tag(&self, undo: bool, stamp: Stamp) -> Tag {
        if undo {
            self.float.broken(stamp)
        } else {
            self.float.prune(stamp)
        }
    }
}

// === impl Replaces ===

impl std::fmt::Display for Replaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("None"),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

// === impl Request ===

impl Request {
    /// Whether nothing more will happen to its floats.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.status.images.iter().all(|i| i.phase.is_finished()) && !self.is_rolling_back()
    }

    /// Whether the float of image `index` may still change. A float that may be rolled back stays open until the whole request ends:
    /// otherwise another request could begin on it and see it rolled back.
    #[must_use]
    pub fn is_open(&self, index: usize) -> bool {
        let image = self.status.images.get(index);
        let taken_back = self.spec.on_failure == OnFailure::Rollback && !self.is_finished();
        image.is_some_and(|image| !image.phase.is_finished() || taken_back)
    }

    /// Whether the float of image `index` may move: from here on only its end stops it.
    #[must_use]
    pub fn is_committed(&self, index: usize) -> bool {
        match self.spec.latch {
            Latch::Together => self.status.committed,
            Latch::Independently => self
                .status
                .images
                .get(index)
                .is_some_and(|image| image.committed),
        }
    }

    /// Whether the float of image `index` could be let move now, as far as the phases say: it is backed up, and so is its group.
    #[must_use]
    pub(super) fn is_ready(&self, index: usize) -> bool {
        let images = &self.status.images;
        match self.spec.latch {
            Latch::Together => images.iter().all(|i| i.phase.is_backed_up()),
            Latch::Independently => images.get(index).is_some_and(|i| i.phase.awaits_latch()),
        }
    }

    /// Whether nothing but its gates keeps image `index` from moving its float, as far as the phases say.
    #[must_use]
    pub fn awaits_gate(&self, index: usize) -> bool {
        !self.spec.gates.is_empty() && self.is_ready(index) && !self.is_committed(index)
    }

    /// What keeps image `index` from being let move: in a group, what is frozen of any float that has still to move.
    pub(super) fn freeze(&self, index: usize) -> Option<&Freeze> {
        let together = self.spec.latch == Latch::Together;
        let images = self.spec.images.iter().zip(&self.status.images);
        // Most often none is: that is told first, as every image of a group asks.
        let frozen = images.enumerate().filter_map(|(other, (spec, image))| {
            let freeze = spec.freeze.as_ref()?;
            ((together || other == index) && !image.phase.is_finished()).then_some(freeze)
        });
        frozen.min_by_key(|freeze| freeze.unreadable)
    }

    /// Whether a freeze holds image `index` back: it is not committed, and its float, or one of its group, is frozen.
    #[must_use]
    pub fn is_frozen(&self, index: usize) -> bool {
        let holds = |freeze: &Freeze| !freeze.unreadable || self.is_ready(index);
        self.freeze(index).is_some_and(holds) && !self.is_committed(index)
    }

    /// Whether somebody has to let image `index` go on before it is committed. Its float is free for others meanwhile.
    #[must_use]
    pub fn is_held_back(&self, index: usize) -> bool {
        let suspended = self.spec.suspend && !self.is_committed(index);
        suspended || self.is_frozen(index) || self.awaits_gate(index)
    }

    /// The floats it needs to go on: those of its unfinished images; while it is held back, of the committed ones.
    #[must_use]
    pub fn wanted_floats(&self) -> Vec<Float> {
        let images = self.spec.images.iter().enumerate();
        let open = images.filter(|(index, _)| self.is_open(*index) && !self.is_held_back(*index));
        open.map(|(_, spec)| spec.float.clone()).collect()
    }

    /// The images that lose these floats: all of a group.
    #[must_use]
    pub fn images_losing(&self, floats: &[Float]) -> Vec<usize> {
        let images = self.spec.images.iter().enumerate();
        let together = self.spec.latch == Latch::Together;
        let lost = images.filter(|(_, image)| together || floats.contains(&image.float));
        lost.map(|(index, _)| index).collect()
    }

    /// Why nothing of it goes on before somebody lets it, and what to do; none where something can.
    #[must_use]
    pub fn held_back(&self) -> Option<(Reason, String)> {
        let open = (0..self.status.images.len()).filter(|&index| self.is_open(index));
        let open: Vec<usize> = open.collect();
        if open.is_empty() || !open.iter().all(|&index| self.is_held_back(index)) {
            return None;
        }
        if self.spec.suspend {
            let message = "spec.suspend is set; set it to false to resume".into();
            return Some((Reason::Suspended, message));
        }
        let mut frozen = open.into_iter().filter(|&index| self.is_frozen(index));
        if let Some(freeze) = frozen.find_map(|index| self.freeze(index)) {
            return Some((Reason::FloatFrozen, freeze.message.clone()));
        }
        let message = format!(
            "everything is staged and backed up; waits until each of these is removed from spec.gates, at most until the deadline: {}",
            self.spec.gates.join(", ")
        );
        Some((Reason::AwaitingApproval, message))
    }

    /// Whether image `index` is committed and its phases agree: it, and in a group every open image, is backed up or further.
    #[must_use]
    pub fn is_committed_in_fact(&self, index: usize) -> bool {
        let together = self.spec.latch == Latch::Together;
        let images = self.status.images.iter().enumerate();
        let mut meant = images.filter(|(other, _)| together || *other == index);
        self.is_committed(index)
            && meant.all(|(_, i)| i.phase.is_backed_up() || i.phase.is_finished())
    }

    /// Whether any float may still move: that image runs to its end.
    #[must_use]
    pub fn has_open_commit(&self) -> bool {
        (0..self.status.images.len()).any(|index| self.is_open(index) && self.is_committed(index))
    }

    /// How many steps of its images are left, if none is tried again.
    #[must_use]
    pub fn steps_left(&self) -> usize {
        let images = self.status.images.iter();
        images.map(|image| image.phase.steps_left()).sum()
    }

    /// The float that failed first in the order of the spec, if the images latch together and one failed.
    #[must_use]
    pub fn failed_float(&self) -> Option<&Float> {
        if self.spec.latch != Latch::Together {
            return None;
        }
        let index = self
            .status
            .images
            .iter()
            .position(Image::has_failed_itself)?;
        self.spec.images.get(index).map(|image| &image.float)
    }

    /// The phase of the whole: the least advanced unfinished image's, Latched while floats are taken back; then Failed, Cancelled,
    /// Planned or Posted. What is left after the floats is Referencing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.is_rolling_back() {
            return Phase::Latched;
        }
        let floats = Phase::of_all(self.status.images.iter().map(|i| i.phase));
        match &self.status.references {
            References::Open if floats.is_finished() && self.has_promoted() => Phase::Referencing,
            References::Failed(_) if floats.is_complete() => Phase::Failed,
            References::None | References::Open | References::Set(_) | References::Failed(_) => {
                floats
            }
        }
    }

    /// Notes its end, once its floats are at theirs and no tag of an image stream is still to be set.
    pub fn note_end(&mut self, now: Timestamp) {
        if self.phase().is_finished() {
            self.status.completed.get_or_insert(now);
        }
    }

    /// Whether a tag of an image stream waits to be set to image `index`, or is being set.
    #[must_use]
    pub fn awaits_reference(&self, index: usize) -> bool {
        let image = self.status.images.get(index);
        self.status.references == References::Open && image.is_some_and(|i| i.phase.is_posted())
    }

    /// Whether any float of it is at its source.
    fn has_promoted(&self) -> bool {
        self.status.images.iter().any(|i| i.phase.is_posted())
    }

    /// Whether every source may go away: each image is held in the float's repository, or needed nothing.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        self.status.images.iter().all(|i| i.phase.is_staged())
    }
}

// === impl Status ===

impl Status {
    /// A status with nothing recorded, for `images` images.
    #[must_use]
    pub fn new(images: usize) -> Self {
        Self {
            images: vec![Image::default(); images],
            ..Self::default()
        }
    }

    /// Ends these images, and the whole if nothing else is left.
    pub fn supersede(&mut self, images: &[usize], version: u64, message: &str) {
        self.order.get_or_insert(version);
        for &index in images {
            if let Some(image) = self
                .images
                .get_mut(index)
                .filter(|i| !i.phase.is_finished())
            {
                image.phase = Phase::Failed;
                image.reason = Some(Reason::Superseded);
                image.message = message.into();
                image.next_attempt = None;
            }
        }
    }
}

// === impl Image ===

impl Default for Image {
    fn default() -> Self {
        Self {
            phase: Phase::Pending,
            reason: None,
            message: String::new(),
            source: None,
            unchanged: false,
            committed: false,
            displaced: Vec::new(),
            would_displace: None,
            rescued: Vec::new(),
            rollback: None,
            pinned: None,
            bytes: 0,
            attempts: 0,
            next_attempt: None,
            late_until: None,
        }
    }
}

impl Image {
    /// The pin of `digest`, if this request has one.
    #[must_use]
    pub fn pin(&self, digest: Digest) -> Option<&Pin> {
        self.displaced
            .iter()
            .chain(&self.rescued)
            .find(|pin| pin.digest == digest)
    }

    /// Whether, by the record, none of its writes is on the wire: no launch that writes is open and no write may land late. A failed
    /// launch counts as open; the first step, before anything is resolved, only reads.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        (self.attempts == 0 || self.source.is_none()) && self.late_until.is_none()
    }

    /// Whether it failed itself, and not with its group.
    #[must_use]
    pub fn has_failed_itself(&self) -> bool {
        self.phase.is_failed() && !self.reason.is_some_and(Reason::is_of_the_group)
    }

    /// The newest stamp among this image's prune tags.
    #[must_use]
    pub fn newest_stamp(&self) -> Option<Stamp> {
        let pins = self.displaced.iter().chain(&self.rescued);
        let tags = pins.map(|pin| &pin.tag).chain(&self.rollback);
        tags.filter_map(Stamp::of).max()
    }

    /// Whether its pins were seen in place lately enough that its float may move.
    pub(super) fn is_pinned(&self, now: Timestamp) -> bool {
        self.pinned
            .is_some_and(|seen| now.duration_since(seen).as_secs() < FRESH_SECONDS)
    }

    /// Enters a phase.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.pinned = None;
    }

    /// Ends the image.
    pub(super) fn end(&mut self, phase: Phase, reason: Reason, message: impl Into<String>) {
        self.enter(phase);
        self.reason = Some(reason);
        self.message = message.into();
        self.next_attempt = None;
    }
}
