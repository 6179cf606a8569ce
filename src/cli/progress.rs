//! What a person sees of a run: bars on a terminal, plain lines elsewhere. Everything goes to standard error.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::output::say;
use super::totals::{Speed, Totals, copied};
use crate::api::status::RunningCopy;
use crate::api::{ImageStatus, PromotionRequest};
use crate::engine::CHECKING_PUSH;
use crate::machine::{Phase, Reason};
use crate::store::{Event, Key};

/// A float's way, in phases.
const STEPS: u64 = 4;
/// Requests that have a bar at once: with the line of all they fit a small terminal.
const BARS_MAX: usize = 10;
/// How often a run without bars says how far it is.
const SAID_EVERY: Duration = Duration::from_secs(30);

/// The display of a run.
pub(super) struct Display {
    /// None: plain lines.
    bars: Option<MultiProgress>,
    /// Only what went wrong is said.
    quiet: bool,
    requests: HashMap<Key, Shown>,
    total: Mutex<Total>,
}

/// All of it in one line: the last bar, or said now and then.
struct Total {
    bar: Option<ProgressBar>,
    speed: Speed,
    said: String,
    said_at: Instant,
}

/// What is shown of a request.
struct Shown {
    /// While it is in work, and one of the first.
    bar: Option<ProgressBar>,
    images: Vec<ImageStatus>,
    reason: String,
    state: String,
    copies: Vec<RunningCopy>,
    speed: Speed,
}

// === impl Display ===

impl Display {
    /// Where it is quiet, nothing but warnings and failures is shown.
    pub(super) fn new(quiet: bool) -> Self {
        let bars = !quiet && std::io::stderr().is_terminal();
        Self::on(bars.then(MultiProgress::new), quiet)
    }

    fn on(bars: Option<MultiProgress>, quiet: bool) -> Self {
        let total = Total {
            bar: None,
            speed: Speed::default(),
            said: String::new(),
            said_at: Instant::now(),
        };
        Self {
            bars,
            quiet,
            requests: HashMap::new(),
            total: Mutex::new(total),
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line about what goes well.
    pub(super) fn line(&self, line: &str) {
        if !self.quiet {
            self.warn(line);
        }
    }

    /// A line about what does not.
    pub(super) fn warn(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Begins with an unfinished object as an earlier run left it.
    pub(super) fn begin(&mut self, object: &PromotionRequest) {
        let key = Key::from(object);
        let status = object.status.clone().unwrap_or_default();
        if let Some(phase) = &status.phase {
            let progress = status.progress.as_deref().unwrap_or_default();
            self.line(&format!("{key}  goes on from {phase}, {progress} done"));
        }
        let mut images = status.images;
        // What no run has seen yet counts too.
        images.resize_with(object.spec.images.len(), || ImageStatus {
            phase: Phase::Pending.as_str().into(),
            ..ImageStatus::default()
        });
        let shown = Shown {
            bar: None,
            images,
            reason: String::new(),
            state: status.phase.unwrap_or_else(|| "Pending".into()),
            copies: Vec::new(),
            speed: Speed::default(),
        };
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
        // What a step has written is recorded now; until the next look it would count twice.
        let written = |images: &[ImageStatus], index: usize| images.get(index)?.bytes_copied;
        let images = &shown.images;
        shown
            .copies
            .retain(|copy| written(images, copy.image) == written(&old, copy.image));
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
        let ended = object.is_finished();
        if ended && let Some(bar) = shown.bar.take() {
            bar.finish_and_clear();
        }
        if ended && self.bars.is_some() {
            lines.push(format!(
                "{key}  ended {phase}, {progress} done, {}",
                shown.reason
            ));
        }
        let has_begun = status.start_time.is_some() && !ended;
        if has_begun && shown.bar.is_none() {
            self.give_bar(&key);
        }
        if let Some(shown) = self.requests.get(&key) {
            shown.draw();
        }
        if !lines.is_empty() {
            self.line(&lines.join("\n"));
        }
    }

    /// Gives a request in work a bar above the line of all, unless so many have one that they would not fit.
    fn give_bar(&mut self, key: &Key) {
        let shown = self.requests.values();
        let given = shown.filter(|shown| shown.bar.is_some()).count();
        let (Some(bars), Some(shown)) = (&self.bars, self.requests.get_mut(key)) else {
            return;
        };
        if given < BARS_MAX {
            let new = bar(
                "{prefix} [{bar:24}] {wide_msg}",
                shown.images.len() as u64 * STEPS,
            );
            let new = new.with_prefix(key.to_string());
            shown.bar = Some(bars.insert(given, new));
        }
    }

    /// Shows how much running steps have written.
    pub(super) fn copying(&mut self, key: &Key, copies: Vec<RunningCopy>) {
        if let Some(shown) = self.requests.get_mut(key) {
            shown.copies = copies;
            shown.speed.note(shown.written(), Instant::now());
            shown.draw();
        }
    }

    /// Shows how far all requests are.
    pub(super) fn all_requests(&self) {
        let mut totals = Totals::default();
        for shown in self.requests.values() {
            shown.add_to(&mut totals);
        }
        self.all(["floats", "done"], &totals);
    }

    /// Shows how far all is, on a terminal; elsewhere says it now and then. `what` has a noun and a verb.
    pub(super) fn all(&self, what: [&str; 2], totals: &Totals) {
        if self.quiet {
            return;
        }
        let mut total = self.total.lock();
        let now = Instant::now();
        total.speed.note(totals.written, now);
        let said = totals.said(what, total.speed.per_second());
        if let Some(bars) = &self.bars {
            let all = totals.all as u64;
            let new = || bars.add(bar("[{bar:24}] {wide_msg}", all));
            let bar = total.bar.get_or_insert_with(new);
            bar.set_position((totals.done + totals.failed) as u64);
            bar.set_message(said);
        } else if total.said_at + SAID_EVERY <= now {
            total.said_at = now;
            if total.said != said {
                say(&said);
                total.said = said;
            }
        }
    }

    /// Shows what a person should look at.
    pub(super) fn event(&self, key: &Key, event: &Event) {
        if event.warning {
            self.warn(&format!("warning: {key}: {}", event.note));
        }
    }

    /// Takes the bars away: what follows is the result.
    pub(super) fn end(&mut self) {
        for bar in self.requests.drain().filter_map(|(_, shown)| shown.bar) {
            bar.finish_and_clear();
        }
        self.end_all();
    }

    /// Takes the line of all away.
    pub(super) fn end_all(&self) {
        if let Some(bar) = self.total.lock().bar.take() {
            bar.finish_and_clear();
        }
    }
}

// === impl Shown ===

impl Shown {
    /// Bytes that steps wrote, those that run among them.
    fn written(&self) -> u64 {
        let ended = self.images.iter().filter_map(|image| image.bytes_copied);
        let ended = u64::try_from(ended.sum::<i64>()).unwrap_or_default();
        ended + self.copies.iter().map(|copy| copy.bytes).sum::<u64>()
    }

    fn add_to(&self, totals: &mut Totals) {
        let count = |is: fn(Phase) -> bool| {
            let phases = self
                .images
                .iter()
                .filter_map(|image| Phase::parse(&image.phase));
            phases.filter(|&phase| is(phase)).count()
        };
        let left = |copy: &RunningCopy| copy.total.saturating_sub(copy.bytes);
        totals.all += self.images.len();
        totals.done += count(Phase::is_complete);
        totals.failed += count(Phase::is_unsuccessful);
        totals.unknown += count(Phase::is_initial).saturating_sub(self.copies.len());
        totals.written += self.written();
        totals.left += self.copies.iter().map(left).sum::<u64>();
    }

    fn draw(&self) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(self.images.iter().map(steps).sum());
        let mut own = Totals::default();
        self.add_to(&mut own);
        let speed = self.speed.per_second();
        let copied = copied(own.written, own.left, own.unknown == 0, speed);
        let failed = (own.failed > 0).then(|| format!("{} failed", own.failed));
        let parts = [Some(self.state.clone()), failed, copied];
        bar.set_message(parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
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

/// How far an image has come; one that failed or was cancelled has come nowhere.
fn steps(image: &ImageStatus) -> u64 {
    match Phase::parse(&image.phase) {
        None | Some(Phase::Pending | Phase::Failed | Phase::Cancelled) => 0,
        Some(Phase::Incoming) => 1,
        Some(Phase::BackedUp) => 2,
        Some(Phase::Latched) => 3,
        Some(Phase::Posted | Phase::Planned | Phase::Referencing) => STEPS,
    }
}

fn bar(template: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(template).map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.progress_chars("=> "),
    );
    ProgressBar::new(length).with_style(style)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use indicatif::ProgressDrawTarget;
    use serde_json::{Value, json};

    use super::*;

    fn object(name: usize, status: &Value) -> PromotionRequest {
        let images: Vec<Value> = ["a", "b"]
            .iter()
            .map(|tag| json!({"source": "x.io/s/a:b", "float": format!("x.io/o/ci:{tag}{name}")}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": format!("r{name}"), "namespace": "ci"},
            "spec": {"images": images}, "status": status,
        }))
        .unwrap()
    }

    /// Two images in these phases, of a request that has begun.
    fn status(phase: &str, images: [&str; 2]) -> Value {
        let images = images.map(|phase| json!({"float": "x.io/o/ci:f", "phase": phase}));
        json!({"phase": phase, "progress": "0/2", "startTime": "2026-01-01T00:00:00Z", "images": images})
    }

    #[test]
    fn a_terminal_shows_what_is_in_work_and_all_of_it_in_one_line_and_a_failure_is_no_full_bar() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut display = Display::on(Some(bars), false);
        for name in 0..14 {
            display.begin(&object(name, &Value::Null));
        }
        let given = |display: &Display| {
            let shown = display.requests.iter();
            let mut given: Vec<_> = shown
                .filter_map(|(key, shown)| Some((key.name.clone(), shown.bar.clone()?)))
                .collect();
            given.sort_by(|one, other| one.0.cmp(&other.0));
            given
        };
        assert!(given(&display).is_empty(), "none has begun");
        for name in 0..12 {
            display.saved(&object(name, &status("Pending", ["Incoming", "Failed"])));
        }
        let ten = given(&display);
        assert_eq!(ten.len(), BARS_MAX);
        let (name, bar) = &ten[0];
        assert_eq!((bar.position(), bar.length()), (1, Some(8)), "{name}");
        assert_eq!(bar.message(), "0/2 Pending, 1 failed");
        let copy = RunningCopy {
            image: 0,
            bytes: 3 << 20,
            total: 9 << 20,
        };
        display.copying(&Key::from(&object(0, &Value::Null)), vec![copy]);
        assert_eq!(
            bar.message(),
            "0/2 Pending, 1 failed, 3.0 MiB of 9.0 MiB copied"
        );
        // Recorded as written, it counts once.
        let mut recorded = status("Incoming", ["Incoming", "Failed"]);
        recorded["images"][0]["bytesCopied"] = json!(9 << 20);
        display.saved(&object(0, &recorded));
        assert_eq!(bar.message(), "0/2 Incoming, 1 failed, 9.0 MiB copied");
        display.all_requests();
        let total = display.total.lock().bar.clone().unwrap();
        assert_eq!(
            total.message(),
            "0 of 28 floats done, 12 failed; 9.0 MiB copied"
        );
        // Whoever ends makes room.
        display.saved(&object(0, &status("Failed", ["Failed", "Failed"])));
        assert!(bar.is_finished());
        let left: Vec<_> = given(&display).into_iter().map(|(name, _)| name).collect();
        assert!(
            left.len() == BARS_MAX - 1 && !left.contains(name),
            "{left:?}"
        );
        let begun = given(&display);
        let waiting = (1..12).find(|n| !begun.iter().any(|(name, _)| *name == format!("r{n}")));
        display.saved(&object(
            waiting.unwrap(),
            &status("Incoming", ["Incoming"; 2]),
        ));
        assert_eq!(given(&display).len(), BARS_MAX);
        display.end();
        assert!(total.is_finished());
    }
}
