//! A request followed to its end: a tree that is drawn anew on a terminal, lines elsewhere. Everything goes to standard error.

use kube::Resource as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::super::output::say;
use super::super::progress::Display;
use super::super::totals::Speed;
use super::reach::{Reach, Stop};
use super::tree::tree;
use crate::api::PromotionRequest;
use crate::machine::Phase;
use crate::store::Stored;
use crate::store::requests::{Listed, RequestError};

/// How often the request is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A cluster that does not answer for so long is not asked again.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where the request is shown while it is followed.
enum Screen {
    Terminal(ProgressBar),
    Lines(Display),
}

/// Looks at a request until it has ended, and gives it as it is then.
///
/// # Errors
/// Where it is deleted, cannot be read, or the cluster does not answer for a minute.
pub(super) async fn to_end(reach: &Reach, first: Listed) -> Result<Listed, Stop> {
    let key = first.key();
    let uid = first.stored.meta().uid.clone();
    let mut screen = Screen::new(&first);
    let mut speeds: Vec<Speed> = Vec::new();
    let mut current = first;
    let mut silent: Option<Instant> = None;
    let end = loop {
        let object = match &current.stored {
            Stored::Read(object) => object,
            Stored::Unreadable(unreadable) => {
                break Err(Stop::Failed(format!("{key}: {}", unreadable.why)));
            }
        };
        if object.is_finished() {
            break Ok(());
        }
        note(&mut speeds, object, Instant::now());
        let speeds: Vec<_> = speeds.iter().map(Speed::per_second).collect();
        screen.show(&current, &speeds);
        sleep(LOOK).await;
        match reach.requests.get(&key).await {
            Ok(listed) if listed.stored.meta().uid == uid => {
                silent = None;
                current = listed;
            }
            Ok(_) | Err(RequestError::Absent(_)) => {
                break Err(Stop::Failed(format!("{key} was deleted before it ended")));
            }
            Err(RequestError::Failed(why)) => {
                let since = *silent.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    break Err(Stop::Failed(why));
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    screen.end(&current);
    end.map(|()| current)
}

/// How it ended, as an exit code: that of `promote`.
pub(super) fn code(listed: &Listed) -> ExitCode {
    let phase = listed.object().and_then(PromotionRequest::phase);
    if phase.is_some_and(Phase::is_complete) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

// === impl Screen ===

impl Screen {
    fn new(first: &Listed) -> Self {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{msg}");
            return Self::Terminal(
                bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())),
            );
        }
        let mut display = Display::new(false);
        if let Stored::Read(object) = &first.stored {
            display.begin(object);
        }
        Self::Lines(display)
    }

    fn show(&mut self, listed: &Listed, speeds: &[Option<u64>]) {
        match (self, &listed.stored) {
            (Self::Terminal(bar), _) => {
                bar.set_message(tree(listed, speeds, Timestamp::now()).join("\n"));
                bar.tick();
            }
            (Self::Lines(display), Stored::Read(object)) => display.saved(object),
            (Self::Lines(_), Stored::Unreadable(unreadable)) => say(&unreadable.why),
        }
    }

    fn end(mut self, last: &Listed) {
        if let (Self::Lines(_), Stored::Read(_)) = (&self, &last.stored) {
            self.show(last, &[]);
        }
        match self {
            Self::Terminal(bar) => bar.finish_and_clear(),
            Self::Lines(mut display) => display.end(),
        }
    }
}

/// Notes how far each image is.
fn note(speeds: &mut Vec<Speed>, object: &PromotionRequest, now: Instant) {
    let images = object.status.iter().flat_map(|status| &status.images);
    let bytes = images.map(|image| image.copied_now.unwrap_or_default());
    for (index, bytes) in bytes.enumerate() {
        if speeds.len() <= index {
            speeds.push(Speed::default());
        }
        speeds[index].note(u64::try_from(bytes).unwrap_or_default(), now);
    }
}
