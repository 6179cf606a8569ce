//! The process's [log of its own tag writes](WriteLog), by the runtime's clock and behind one lock.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::image::{Digest, Float, Repository, Tag};
use crate::log::WriteLog;
use crate::registry::SingleFlight;

/// What this process knows of its own tag writes.
#[derive(Debug)]
pub struct Memory {
    log: Mutex<WriteLog<Instant>>,
    /// Tags that belong to no float alone: one writes at a time.
    pub(super) tag_locks: SingleFlight<(Repository, Tag)>,
}

/// A write of one tag, as it is entered in the log.
#[derive(Debug)]
pub(super) struct Write<'a> {
    memory: &'a Memory,
    float: &'a Float,
    tag: &'a Tag,
    digest: Option<Digest>,
    sent: Mutex<Option<Instant>>,
}

// === impl Memory ===

impl Memory {
    /// Nothing is known yet. `settle` is how long a write may take to show, `late` how long after its
    /// sending one without an answer may land.
    #[must_use]
    pub fn new(settle: Duration, late: Duration) -> Self {
        Self {
            log: Mutex::new(WriteLog::new(settle, late)),
            tag_locks: SingleFlight::new(),
        }
    }

    /// Asks the log, or enters something. By a closure, because a guard would live to the end of its statement, and a second question
    /// there would wait for it for ever.
    pub fn log<R>(&self, ask: impl FnOnce(&mut WriteLog<Instant>) -> R) -> R {
        ask(&mut self.log.lock())
    }

    /// A write of `tag`, in the float's repository, that is about to be sent; without a digest it is deleted.
    pub(super) fn write<'a>(
        &'a self,
        float: &'a Float,
        tag: &'a Tag,
        digest: Option<Digest>,
    ) -> Write<'a> {
        Write {
            memory: self,
            float,
            tag,
            digest,
            sent: Mutex::default(),
        }
    }
}

// === impl Write ===

impl Write<'_> {
    /// What it puts there; none: it deletes the tag.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Enters it as sent now. False where another write may still land on the tag. To be called directly before each sending.
    pub(super) fn enter(&self, now: Instant) -> bool {
        let mut sent = self.sent.lock();
        let entered =
            (self.memory).log(|log| log.enter(self.float, self.tag, self.digest, *sent, now));
        if entered {
            *sent = Some(now);
        }
        entered
    }

    /// Whether it was sent, once at least.
    pub(super) fn is_sent(&self) -> bool {
        self.sent.lock().is_some()
    }

    /// It was answered: the tag holds the digest, or is gone.
    pub(super) fn answered(&self, now: Instant) {
        if let Some(sent) = *self.sent.lock() {
            self.memory
                .log(|log| log.answered(self.float, self.tag, self.digest, sent, now));
        }
    }

    /// It was refused, or no byte of it was sent: nothing was written.
    pub(super) fn refused(&self) {
        if let Some(sent) = *self.sent.lock() {
            self.memory
                .log(|log| log.refused(self.float, self.tag, self.digest, sent));
        }
    }
}
