//! What a person sees of a run: bars on a terminal, plain lines elsewhere. Everything goes to standard error.

use std::collections::HashMap;
use std::io::IsTerminal as _;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::output::say;
use crate::api::status::RunningCopy;
use crate::api::{ImageStatus, PromotionRequest};
use crate::engine::CHECKING_PUSH;
use crate::machine::{Phase, Reason};
use crate::store::{Event, Key};

/// A float's way, in phases.
const STEPS: u64 = 4;

/// The display of a run.
pub(super) struct Display {
    bars: Option<MultiProgress>,
    requests: HashMap<Key, Shown>,
}

/// What is shown of a request.
struct Shown {
    bar: Option<ProgressBar>,
    images: Vec<ImageStatus>,
    reason: String,
    state: String,
    /// Bytes that ended steps wrote.
    copied: u64,
}

// === impl Display ===

impl Display {
    pub(super) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            requests: HashMap::new(),
        }
    }

    /// A line of its own.
    pub(super) fn line(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// A bar for so many steps, on a terminal.
    pub(super) fn bar(&self, prefix: &str, steps: u64) -> Option<ProgressBar> {
        let bars = self.bars.as_ref()?;
        Some(bars.add(bar(prefix, steps)))
    }

    /// Begins with an unfinished object as an earlier run left it.
    pub(super) fn begin(&mut self, object: &PromotionRequest) {
        let key = Key::from(object);
        let status = object.status.clone().unwrap_or_default();
        if let Some(phase) = &status.phase {
            let progress = status.progress.as_deref().unwrap_or_default();
            self.line(&format!("{key}  goes on from {phase}, {progress} done"));
        }
        let bar = self.bar(&key.to_string(), object.spec.images.len() as u64 * STEPS);
        let mut shown = Shown {
            bar,
            images: status.images,
            reason: String::new(),
            state: status.phase.unwrap_or_else(|| "Pending".into()),
            copied: 0,
        };
        shown.draw(&[]);
        self.requests.insert(key, shown);
    }

    /// Shows what has changed with a save.
    pub(super) fn saved(&mut self, object: &PromotionRequest) {
        let key = Key::from(object);
        let (Some(status), Some(shown)) = (&object.status, self.requests.get_mut(&key)) else {
            return;
        };
        let mut lines = Vec::new();
        let old = std::mem::replace(&mut shown.images, status.images.clone());
        for (index, image) in status.images.iter().enumerate() {
            if let Some(news) = news(old.get(index), image) {
                lines.push(format!("{key}  {news}"));
            }
        }
        let progressing = status.conditions.iter().find(|c| c.type_ == "Progressing");
        // That push permission is being checked is not worth a line.
        let news = progressing.filter(|c| c.message != CHECKING_PUSH);
        if let Some(condition) = news.filter(|c| c.reason != shown.reason) {
            let waits = Reason::parse(&condition.reason).is_some_and(Reason::is_waiting);
            if waits && !of_an_image(&condition.message, &status.images) {
                lines.push(format!("{key}  waits: {}", condition.message));
            }
            shown.reason.clone_from(&condition.reason);
        }
        let phase = status.phase.clone().unwrap_or_default();
        let progress = status.progress.as_deref().unwrap_or_default();
        let waits = Reason::parse(&shown.reason).is_some_and(Reason::is_waiting);
        let why = if waits {
            format!(", {}", shown.reason)
        } else {
            String::new()
        };
        shown.state = format!("{progress} {phase}{why}");
        let copied = status.images.iter().filter_map(|i| i.bytes_copied);
        shown.copied = u64::try_from(copied.sum::<i64>()).unwrap_or_default();
        shown.draw(&[]);
        for line in lines {
            self.line(&line);
        }
    }

    /// Shows how much running steps have written.
    pub(super) fn copying(&mut self, key: &Key, copies: &[RunningCopy]) {
        if let Some(shown) = self.requests.get_mut(key) {
            shown.draw(copies);
        }
    }

    /// Shows what a person should look at.
    pub(super) fn event(&self, key: &Key, event: &Event) {
        if event.warning {
            self.line(&format!("warning: {key}: {}", event.note));
        }
    }

    /// Takes the bars away: what follows is the result.
    pub(super) fn end(&mut self) {
        for (_, shown) in self.requests.drain() {
            if let Some(bar) = shown.bar {
                bar.finish_and_clear();
            }
        }
    }
}

// === impl Shown ===

impl Shown {
    fn draw(&mut self, copies: &[RunningCopy]) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(self.images.iter().map(steps).sum());
        let running: u64 = copies.iter().map(|copy| copy.bytes).sum();
        let left = copies
            .iter()
            .map(|copy| copy.total.saturating_sub(copy.bytes));
        let written = self.copied + running;
        let said = match (written, left.sum::<u64>()) {
            (0, 0) => String::new(),
            (_, 0) => format!(", {} copied", HumanBytes(written)),
            (_, left) => {
                let all = HumanBytes(written + left);
                format!(", {} of {all} copied", HumanBytes(written))
            }
        };
        bar.set_message(format!("{}{said}", self.state));
    }
}

/// What of an image is worth a line.
fn news(old: Option<&ImageStatus>, image: &ImageStatus) -> Option<String> {
    let resolved = image.source.is_some();
    let same = |o: &ImageStatus| {
        o.phase == image.phase && o.reason == image.reason && o.source.is_some() == resolved
    };
    let nothing_yet = is_initial(image) && image.reason.is_none() && !resolved;
    if old.map_or(nothing_yet, same) {
        return None;
    }
    // The reason of a pause is gone again: that was said when it came.
    if old.is_some_and(|o| {
        o.phase == image.phase && image.reason.is_none() && o.source.is_some() == resolved
    }) {
        return None;
    }
    let digest = image.source.as_ref().map(|s| short(&s.digest));
    let digest = digest.map_or_else(String::new, |digest| format!("  {digest}"));
    let note = note(old, image).map_or_else(String::new, |note| format!("  ({note})"));
    let (phase, float) = (&image.phase, &image.float);
    Some(format!("{phase:<9} {float}{digest}{note}"))
}

/// Whether nothing is recorded of it yet.
fn is_initial(image: &ImageStatus) -> bool {
    Phase::parse(&image.phase).is_some_and(Phase::is_initial)
}

fn note(old: Option<&ImageStatus>, image: &ImageStatus) -> Option<String> {
    if let Some(message) = &image.message {
        return Some(message.clone());
    }
    if image.unchanged == Some(true) {
        return Some("was there already".into());
    }
    let just_resolved = image.source.is_some() && old.is_none_or(|o| o.source.is_none());
    if just_resolved && is_initial(image) {
        return Some(match image.displaced.last() {
            Some(pin) => format!("the float is on {}", short(&pin.digest)),
            None => "first promotion".into(),
        });
    }
    None
}

/// Whether a condition only repeats what an image's line says.
fn of_an_image(message: &str, images: &[ImageStatus]) -> bool {
    images.iter().any(|i| i.message.as_deref() == Some(message))
}

/// The beginning of a digest, enough to tell it from others.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// How far an image has come; what has ended has come all the way.
fn steps(image: &ImageStatus) -> u64 {
    match Phase::parse(&image.phase) {
        None | Some(Phase::Pending) => 0,
        Some(Phase::Incoming) => 1,
        Some(Phase::BackedUp) => 2,
        Some(Phase::Latched) => 3,
        Some(
            Phase::Posted | Phase::Planned | Phase::Failed | Phase::Cancelled | Phase::Referencing,
        ) => STEPS,
    }
}

fn bar(prefix: &str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}").map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.progress_chars("=> "),
    );
    ProgressBar::new(steps)
        .with_prefix(prefix.to_owned())
        .with_style(style)
}
