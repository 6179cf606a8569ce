//! A run at work: every unfinished request is taken to its end, and what becomes of it is shown.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinError;
use tokio::time::{Instant, Interval, interval};
use tokio_util::task::AbortOnDropHandle;

use super::progress::Display;
use crate::api::PromotionRequest;
use crate::api::status::read;
use crate::controller::queue;
use crate::engine::Engine;
use crate::store::Key;
use crate::store::file::{FileStore, Update};

/// How often bytes are counted, and a stop looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long operations may take to end after the first signal.
const DRAIN: Duration = Duration::from_secs(30);
/// After a state could not be saved for so long, the run gives up.
const UNSAVED_MAX: Duration = Duration::from_mins(1);
/// How long the last word about an ended request may take after its end was saved.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How carrying out a file ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is left to do.
    Done,
    /// A signal came first.
    Interrupted,
    /// The state could not be saved.
    Unsaved,
}

/// What is awaited of the requests of a run.
#[derive(Default)]
struct Awaited {
    /// Their end was not saved yet.
    open: HashMap<Key, String>,
    /// They ended, and its last event was not published yet.
    unpublished: HashSet<Key>,
    /// Since when every end is saved.
    ended: Option<Instant>,
    /// Since when the state cannot be saved.
    unsaved: Option<Instant>,
}

impl Awaited {
    /// Takes note of an update and shows it.
    fn note(&mut self, update: &Update, display: &mut Display) {
        match update {
            Update::Saved(object) => {
                self.unsaved = None;
                display.saved(object);
                let key = Key::from(object.as_ref());
                if is_over(object) && self.open.remove(&key).is_some() && object.is_finished() {
                    self.unpublished.insert(key);
                }
            }
            Update::NotSaved(error) => {
                if self.unsaved.is_none() {
                    display.warn(&format!(
                        "{error}; nothing goes on until then, trying again"
                    ));
                }
                self.unsaved.get_or_insert_with(Instant::now);
            }
            Update::Published { key, event, last } => {
                if *last {
                    self.unpublished.remove(key);
                } else {
                    display.event(key, event);
                }
            }
        }
    }

    /// Whether nothing more will come.
    fn over(&mut self) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        let ended = *self.ended.get_or_insert_with(Instant::now);
        self.unpublished.is_empty() || ended.elapsed() > LAST_WORD
    }
}

/// Runs every unfinished request to its end.
pub(super) async fn carry_out(
    engine: &Engine<FileStore>,
    mut keys: UnboundedReceiver<Key>,
    mut updates: UnboundedReceiver<Update>,
    display: &mut Display,
    mut stop: impl Future<Output = ()> + Unpin,
) -> End {
    let objects = engine.store().objects();
    for object in &objects {
        engine.observe(object);
    }
    engine.rebuild();
    let mut awaited = Awaited::default();
    for object in objects.iter().filter(|o| !o.is_finished()) {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        display.begin(object);
        awaited.open.insert(Key::from(object), uid);
        engine.trigger(Key::from(object));
    }
    let names = queue::names_of(&objects);
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
    // On a worker, where what it launches and what ends is at hand; what is shown meanwhile holds up nothing.
    let mut work = AbortOnDropHandle::new(tokio::spawn(queue::drive(engine.clone(), names, keys)));
    let mut tick: Interval = interval(TICK);
    let mut draining: Option<Instant> = None;
    while !awaited.over() {
        tokio::select! {
            Some(update) = updates.recv() => awaited.note(&update, display),
            // It ends with the engine, which this function outlives not.
            ended = &mut work => match ended.map_err(JoinError::into_panic) {
                Ok(()) => return End::Interrupted,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            () = &mut stop, if draining.is_none() => {
                display.line("stopping: tag writes that were sent are waited for");
                engine.drain();
                draining = Some(Instant::now() + DRAIN);
            }
            _ = tick.tick() => {
                for (key, uid) in &awaited.open {
                    display.copying(key, engine.copying(uid));
                }
                display.all_requests();
                if draining.is_some_and(|until| engine.unrecorded() == 0 || Instant::now() > until) {
                    return End::Interrupted;
                }
                if draining.is_none() && awaited.unsaved.is_some_and(|since| since.elapsed() > UNSAVED_MAX) {
                    return End::Unsaved;
                }
            }
        }
    }
    while let Ok(update) = updates.try_recv() {
        awaited.note(&update, display);
    }
    End::Done
}

/// Whether this run can do nothing more for a request: it ended, or somebody has to let it go on in the file before its floats may move.
fn is_over(object: &PromotionRequest) -> bool {
    // Where nobody can hold it back, it need not be read for that.
    let may_be = object.spec.suspend || !object.spec.gates.is_empty();
    let held_back = || may_be && read(object).is_ok_and(|request| request.held_back().is_some());
    object.status.is_some() && (object.is_finished() || held_back())
}
