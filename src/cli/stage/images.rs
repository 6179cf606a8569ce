//! The images of a file's requests, each source and repository once, and what becomes of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::api::PromotionRequest;
use crate::api::status::read;
use crate::cli::progress::Display;
use crate::cli::totals::Totals;
use crate::engine::{Staged, Staging};
use crate::image::{Digest, Float, Repository, Source};
use crate::machine::{Bytes, Fault, FaultClass, ImageSpec, Mode, Referrers, backoff};
use crate::policy::Policy;
use crate::registry::Progress;
use crate::store::Key;

/// Images in work at once; how fast a registry is asked is its budget's.
const AT_ONCE: usize = 16;
/// How often is looked at what is waited for, and how much is copied.
const TICK: Duration = Duration::from_millis(200);

/// What each source named when it was read.
pub(super) type Digests = HashMap<Source, Digest>;

/// How a run ended.
pub(super) enum Outcome {
    /// Every image is held in its float's repository.
    Staged(Digests),
    /// What failed was said.
    Failed,
    /// It was told to stop.
    Stopped,
}

/// What is staged: one pin serves all floats of its repository that get the same source.
#[derive(Default)]
pub(super) struct Images(Vec<Image>);

struct Image {
    spec: ImageSpec,
    /// As the strictest of its requests says.
    referrers: Referrers,
    attempts: u32,
    lasts: Duration,
    floats: Vec<(Key, Float)>,
    progress: Arc<Progress>,
    /// Whether it ended, and how.
    end: AtomicU8,
}

const OPEN: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// Why an image is not staged.
enum Unstaged {
    Stopped,
    Failed(String),
}

impl Images {
    /// Takes the images of a request.
    ///
    /// # Errors
    /// What cannot be staged, with its field and what to do.
    pub(super) fn add(&mut self, object: &PromotionRequest, policy: &Policy) -> Result<(), String> {
        let key = Key::from(object);
        let request = read(object).map_err(|error| error.to_string())?;
        policy
            .check(&request)
            .map_err(|error| format!("{key}: {error}"))?;
        let spec = request.spec;
        if spec.mode == Mode::Plan {
            return Err(format!(
                "{key}: spec.mode: is Plan, by which nothing is written; leave it out, or use preview"
            ));
        }
        if spec.cancel {
            return Err(format!("{key}: spec.cancel: is set; leave it out"));
        }
        for (index, image) in spec.images.into_iter().enumerate() {
            let repository = image.float.repository().clone();
            if image.source.repository == repository {
                return Err(format!(
                    "{key}: spec.images[{index}].source: is in its float's repository already, so nothing is to be staged; create \
                     the request as it is"
                ));
            }
            let image = Image {
                referrers: spec.referrers,
                attempts: spec.attempts,
                lasts: Duration::from_secs(spec.deadline_seconds.unsigned_abs()),
                floats: vec![(key.clone(), image.float.clone())],
                progress: Arc::default(),
                end: AtomicU8::new(OPEN),
                spec: image,
            };
            match self.0.iter_mut().find(|known| known.is_one_with(&image)) {
                Some(known) => known.join(image),
                None => self.0.push(image),
            }
        }
        Ok(())
    }

    /// Reads every source, then stages each image.
    pub(super) async fn stage(
        &self,
        staging: &Staging,
        stop: &CancellationToken,
        display: &Display,
    ) -> Outcome {
        let mut digests = Digests::new();
        let mut seen = HashSet::new();
        let sources: Vec<_> = self
            .0
            .iter()
            .filter(|i| seen.insert(&i.spec.source))
            .collect();
        let mut found = stream::iter(sources)
            .map(async |image| {
                let run = Run {
                    images: self,
                    image,
                    stop,
                    display,
                };
                let resolve = async || staging.resolve(&image.spec, &image.progress).await;
                (image, Box::pin(run.to_its_end(resolve)).await)
            })
            .buffer_unordered(AT_ONCE);
        let mut end = None;
        while let Some((image, digest)) = found.next().await {
            match digest {
                Ok(digest) => {
                    digests.insert(image.spec.source.clone(), digest);
                }
                Err(why) => end = Some(image.unstaged(why, display, end)),
            }
        }
        if let Some(end) = end {
            return end;
        }
        let mut found = stream::iter(&self.0)
            .map(async |image| {
                let Some(digest) = digests.get(&image.spec.source).copied() else {
                    return (image, Err(Unstaged::Stopped));
                };
                let run = Run {
                    images: self,
                    image,
                    stop,
                    display,
                };
                let stage = async || {
                    staging
                        .stage(&image.spec, digest, image.referrers, &image.progress)
                        .await
                };
                (
                    image,
                    run.to_its_end(stage).await.map(|staged| (digest, staged)),
                )
            })
            .buffer_unordered(AT_ONCE);
        let (mut end, mut already) = (None, 0);
        while let Some((image, staged)) = found.next().await {
            match staged {
                Ok((digest, staged)) => {
                    image.end.store(DONE, Ordering::Relaxed);
                    already += usize::from(staged.already);
                    image.say(digest, &staged, display);
                }
                Err(why) => end = Some(image.unstaged(why, display, end)),
            }
        }
        drop(found);
        display.line(&format!(
            "{} images, {already} of them there already, {} copied",
            self.0.len(),
            Bytes(self.totals().written)
        ));
        end.unwrap_or(Outcome::Staged(digests))
    }

    /// How far all of it is.
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for image in &self.0 {
            let (written, all) = (image.progress.bytes(), image.progress.expected());
            let end = image.end.load(Ordering::Relaxed);
            totals.all += 1;
            totals.done += usize::from(end == DONE);
            totals.failed += usize::from(end == FAILED);
            totals.unknown += usize::from(end == OPEN && all == 0);
            totals.written += written;
            totals.left += if end == OPEN {
                all.saturating_sub(written)
            } else {
                0
            };
        }
        totals
    }
}

impl Image {
    fn repository(&self) -> &Repository {
        self.spec.float.repository()
    }

    fn is_one_with(&self, other: &Self) -> bool {
        self.spec.source == other.spec.source && self.repository() == other.repository()
    }

    fn join(&mut self, other: Self) {
        self.attempts = self.attempts.max(other.attempts);
        self.lasts = self.lasts.max(other.lasts);
        self.referrers = match (self.referrers, other.referrers) {
            (Referrers::Require, _) | (_, Referrers::Require) => Referrers::Require,
            (Referrers::BestEffort, _) | (_, Referrers::BestEffort) => Referrers::BestEffort,
            (Referrers::Ignore, Referrers::Ignore) => Referrers::Ignore,
        };
        self.floats.extend(other.floats);
    }

    /// A line for each float, as `promote` has it for a phase.
    fn say(&self, digest: Digest, staged: &Staged, display: &Display) {
        let there = if staged.already {
            "  (was there already)"
        } else {
            ""
        };
        for (key, float) in &self.floats {
            display.line(&format!(
                "{key}  Staged    {float}  {}{there}",
                digest.short()
            ));
        }
        for notice in &staged.notices {
            display.warn(&format!("warning: {}", notice.message));
        }
    }

    /// Says why it is not staged; a stop explains nothing that failed before.
    fn unstaged(&self, why: Unstaged, display: &Display, end: Option<Outcome>) -> Outcome {
        match (why, end) {
            (Unstaged::Stopped, Some(Outcome::Failed)) => Outcome::Failed,
            (Unstaged::Stopped, _) => Outcome::Stopped,
            (Unstaged::Failed(why), _) => {
                self.end.store(FAILED, Ordering::Relaxed);
                for (key, float) in &self.floats {
                    display.warn(&format!("{key}  Failed    {float}: {why}"));
                }
                Outcome::Failed
            }
        }
    }
}

/// One image at work.
struct Run<'a> {
    images: &'a Images,
    image: &'a Image,
    stop: &'a CancellationToken,
    display: &'a Display,
}

impl Run<'_> {
    /// Tries until it is done, as a request's image is tried: so many attempts, waits for a registry not counted, and not longer than
    /// the request may take.
    async fn to_its_end<T>(&self, step: impl AsyncFn() -> Result<T, Fault>) -> Result<T, Unstaged> {
        let end = Instant::now() + self.image.lasts;
        let (mut failed, mut last) = (0, None);
        loop {
            let fault = match timeout_at(end, self.shown(step())).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(_)) if self.stop.is_cancelled() => return Err(Unstaged::Stopped),
                Ok(Err(fault)) => fault,
                Err(_) => return Err(Unstaged::Failed(self.late(last))),
            };
            let told = format!("{}: {}", fault.reason, fault.message);
            let seconds = match fault.class {
                FaultClass::Terminal => return Err(Unstaged::Failed(told)),
                FaultClass::Attempt => {
                    failed += 1;
                    if failed >= self.image.attempts {
                        let all = format!("{told} ({failed} attempts)");
                        return Err(Unstaged::Failed(all));
                    }
                    backoff(failed, rand::random())
                }
                FaultClass::Wait { seconds } => seconds,
            };
            self.say(&format!("tries again in {seconds} s: {told}"));
            last = Some(told);
            let wait = sleep(Duration::from_secs(seconds.unsigned_abs()));
            tokio::select! {
                () = self.stop.cancelled() => return Err(Unstaged::Stopped),
                _ = timeout_at(end, wait) => {}
            }
        }
    }

    /// Shows what a step waits for, and how much is copied.
    async fn shown<T>(&self, step: impl Future<Output = T>) -> T {
        tokio::pin!(step);
        let mut tick = interval(TICK);
        let mut told = String::new();
        loop {
            tokio::select! {
                done = &mut step => return done,
                _ = tick.tick() => {}
            }
            let totals = self.images.totals();
            self.display.all(["images", "staged"], &totals);
            if let Some(waiting) = self.image.progress.waiting()
                && waiting.message != told
            {
                self.say(&format!("waits: {}", waiting.message));
                told = waiting.message;
            }
        }
    }

    fn say(&self, what: &str) {
        self.display
            .line(&format!("{}  {what}", self.image.spec.source));
    }

    fn late(&self, last: Option<String>) -> String {
        let last = last.map_or_else(String::new, |last| format!("; last: {last}"));
        let seconds = self.image.lasts.as_secs();
        format!("not staged within its spec.deadlineSeconds of {seconds}{last}")
    }
}
