//! What a person sees of a run: bars on a terminal, plain lines elsewhere. Everything goes to standard error.

use std::collections::HashMap;
use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::api::PromotionRequest;
use crate::store::Key;

/// The display of a run.
pub(super) struct Display {
    bars: Option<MultiProgress>,
    requests: HashMap<Key, Shown>,
}

/// What is shown of a request.
struct Shown {
    bar: Option<ProgressBar>,
    phases: Vec<(String, Option<String>)>,
    reason: String,
}

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
            Some(bars) => bars.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Shows what has changed of an object since the last call.
    pub(super) fn show(&mut self, object: &PromotionRequest, bytes: u64) {
        let key = Key::of(object);
        let Some(status) = &object.status else { return };
        let bars = self.bars.as_ref();
        let all = object.spec.images.len() as u64;
        let shown = self.requests.entry(key.clone()).or_insert_with(|| Shown {
            bar: bars.map(|bars| bars.add(bar(&key, all))),
            phases: Vec::new(),
            reason: String::new(),
        });
        let mut lines = Vec::new();
        shown
            .phases
            .resize(status.images.len(), (String::new(), None));
        for (old, image) in shown.phases.iter_mut().zip(&status.images) {
            let new = (image.phase.clone(), image.reason.clone());
            if *old == new || (image.phase == "Pending" && image.reason.is_none()) {
                continue;
            }
            *old = new;
            let digest = image
                .source
                .as_ref()
                .map(|s| s.digest.chars().take(19).collect::<String>());
            let mut line = format!("{key}  {:<9} {}", image.phase, image.float);
            if let Some(digest) = digest {
                line.push_str(&format!("  {digest}"));
            }
            if let Some(note) = image
                .message
                .as_ref()
                .or(image.reason.as_ref().filter(|r| *r != "Promoted"))
            {
                line.push_str(&format!("  ({note})"));
            }
            lines.push(line);
        }
        let progressing = status.conditions.iter().find(|c| c.type_ == "Progressing");
        let reason = progressing.map(|c| c.reason.clone()).unwrap_or_default();
        if reason != shown.reason {
            let waits = crate::machine::Reason::parse(&reason)
                .is_some_and(|r| r.kind() == crate::machine::Kind::Waiting);
            if let Some(condition) = progressing.filter(|_| waits) {
                lines.push(format!("{key}  waits: {}", condition.message));
            }
            shown.reason.clone_from(&reason);
        }
        if let Some(bar) = &shown.bar {
            let posted = status
                .images
                .iter()
                .filter(|i| i.phase == "Posted" || i.phase == "Planned")
                .count() as u64;
            bar.set_position(posted);
            let copied = status
                .images
                .iter()
                .filter_map(|i| i.bytes_copied)
                .sum::<i64>();
            let copied = bytes + u64::try_from(copied).unwrap_or_default();
            bar.set_message(format!("{reason}  {}", indicatif::HumanBytes(copied)));
            if status.completion_time.is_some() {
                bar.finish();
            }
        }
        for line in lines {
            self.line(&line);
        }
    }
}

fn bar(key: &Key, images: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}").map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.progress_chars("=> "),
    );
    ProgressBar::new(images)
        .with_prefix(key.to_string())
        .with_style(style)
}
