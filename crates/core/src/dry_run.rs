//! The dry run: what promoting an image would write. The steps that a promotion runs run here over a copy of the float's tags, so that
//! what is announced is what would be done.
//!
//! In come the digests that the tags hold; out come the writes, in their order. Nothing is asked of anybody.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use jiff::Timestamp;

use crate::image::{Digest, Float, Reference, Repository, Source, Stamp, Tag};
use crate::machine::{
    self, Admission, Copying, FloatTags, Forecast, Image, ImageContext, ImageSpec, Inputs, Latch,
    Mode, Notice, OnFailure, Referrers, Request, SourceFacts, Spec, Status, Write, WrittenTag,
};
use crate::steps::{Flow, Put, StepIo, TagLabels, Work};

/// More launches than a promotion takes that nothing disturbs: each of five tags may hold an image that has to be recorded first.
const LAUNCHES_MAX: usize = 20;

/// The float's tags, and what was written to them.
#[derive(Debug)]
struct Overlay<'a> {
    float: &'a Float,
    tags: Mutex<Tags>,
}

#[derive(Debug, Default)]
struct Tags {
    held: BTreeMap<Tag, Digest>,
    writes: Vec<Write>,
}

/// What promoting `source` to the float of `spec` would do.
#[must_use]
pub fn forecast(
    spec: &ImageSpec,
    source: Digest,
    media_type: Option<String>,
    held: FloatTags,
    copying: Copying,
) -> Forecast {
    Forecast {
        source,
        media_type,
        held,
        copying,
        writes: writes(spec, Image::default(), source, held),
        expiring: Vec::new(),
    }
}

/// What is left to do of an image that an earlier run has staged, as it is recorded.
#[must_use]
pub fn rest(spec: &ImageSpec, source: SourceFacts, image: &Image, held: FloatTags) -> Forecast {
    let image = Image {
        // Here nothing is waited for, and no launch was cut off.
        attempts: 0,
        next_attempt: None,
        late_until: None,
        ..image.clone()
    };
    Forecast {
        source: source.digest,
        media_type: source.media_type,
        held,
        copying: Copying::default(),
        writes: writes(spec, image, source.digest, held),
        expiring: Vec::new(),
    }
}

fn writes(spec: &ImageSpec, image: Image, source: Digest, held: FloatTags) -> Vec<Write> {
    let overlay = Overlay::of(&spec.float, held);
    if image.phase.is_backed_up() {
        let pins = image.displaced.iter().chain(&image.rescued);
        let pins = pins.map(|pin| (pin.tag.clone(), pin.digest));
        overlay.lock().held.extend(pins);
    }
    let mut request = request(spec, source);
    request.status.images = vec![image];
    for _ in 0..LAUNCHES_MAX {
        let inputs = inputs();
        let decision = machine::decide(&mut request, &inputs);
        let Some(launch) = decision.launches.first() else {
            break;
        };
        let outcome = {
            let work = Work {
                io: &overlay,
                spec: &request.spec.images[launch.image],
                image: &request.status.images[launch.image],
                may_have_run: launch.may_have_run,
            };
            let run = pin!(work.run(launch.step));
            match run.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcome) => outcome,
                // Nothing here is waited for.
                Poll::Pending => break,
            }
        };
        let context = machine::Context {
            now: inputs.now,
            newest_stamp: None,
            jitter: 0.5,
        };
        machine::advance(&mut request, launch.image, outcome, &context);
    }
    std::mem::take(&mut overlay.lock().writes)
}

/// The promotion as a request of its own.
fn request(spec: &ImageSpec, source: Digest) -> Request {
    let source = Source {
        repository: spec.float.repository().clone(),
        reference: Reference::Digest(source),
    };
    let image = ImageSpec {
        source,
        float: spec.float.clone(),
        replaces: None,
        freeze: None,
        remove_incoming: spec.remove_incoming,
    };
    Request {
        spec: Spec {
            images: vec![image],
            latch: Latch::Independently,
            on_failure: OnFailure::Hold,
            mode: Mode::Promote,
            referrers: Referrers::Ignore,
            attempts: 5,
            deadline_seconds: 1,
            suspend: false,
            cancel: false,
            gates: Vec::new(),
            undo: false,
        },
        status: Status::new(1),
    }
}

fn inputs() -> Inputs {
    Inputs {
        // The time shows in the names of prune tags alone, which are not announced.
        now: Timestamp::UNIX_EPOCH,
        stepped: 0,
        resource_version: 1,
        admission: Admission::Holds,
        launching: true,
        contexts: vec![ImageContext::default()],
    }
}

// === impl Overlay ===

impl<'a> Overlay<'a> {
    fn of(float: &'a Float, held: FloatTags) -> Self {
        let tags = [
            (float.tag().clone(), held.float),
            (float.incoming(), held.incoming),
            (float.pre(), held.pre),
            (float.post1(), held.post1),
        ];
        let tags = tags.into_iter();
        let tags = Tags {
            held: tags
                .filter_map(|(tag, digest)| Some((tag, digest?)))
                .collect(),
            writes: Vec::new(),
        };
        Self {
            float,
            tags: Mutex::new(tags),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tags> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepIo for Overlay<'_> {
    type Manifest = Digest;

    async fn look(&self, tag: &Tag) -> Flow<Option<Digest>> {
        Ok(self.lock().held.get(tag).copied())
    }

    async fn fetch(&self, reference: &Reference) -> Flow<Option<Digest>> {
        match reference {
            Reference::Digest(digest) => Ok(Some(*digest)),
            Reference::Tag(tag) => self.look(tag).await,
        }
    }

    async fn check_granted(&self, _: Digest) -> Flow<()> {
        Ok(())
    }

    async fn held(&self, digest: Digest) -> Flow<Option<Digest>> {
        Ok(Some(digest))
    }

    async fn labels(&self, _: &Digest) -> Flow<TagLabels> {
        Ok(TagLabels::default())
    }

    async fn copy(&self, manifest: Digest) -> Flow<Option<Digest>> {
        Ok(Some(manifest))
    }

    async fn put(&self, tag: &Tag, manifest: &Digest) -> Flow<Put> {
        let written = match Stamp::of(tag) {
            Some(stamp) => WrittenTag::Prune {
                rescue: self.float.rescued(stamp) == *tag,
            },
            None => WrittenTag::Named(tag.clone()),
        };
        let mut tags = self.lock();
        let holds = tags.held.insert(tag.clone(), *manifest);
        tags.writes.push(Write {
            tag: written,
            digest: Some(*manifest),
            holds,
        });
        Ok(Put::Written)
    }

    /// Whether it can be done shows when it is tried.
    async fn undeletable(&self) -> Flow<Option<String>> {
        Ok(None)
    }

    async fn delete(&self, tag: &Tag) -> Flow<Put> {
        let mut tags = self.lock();
        let holds = tags.held.remove(tag);
        tags.writes.push(Write {
            tag: WrittenTag::Named(tag.clone()),
            digest: None,
            holds,
        });
        Ok(Put::Written)
    }

    async fn bring_referrers(&self, _: Digest) -> Flow<Option<Notice>> {
        Ok(None)
    }

    async fn wrote(&self, _: &Tag, _: Digest) -> Flow<bool> {
        Ok(false)
    }

    async fn is_old(&self, _: &Tag) -> Flow<bool> {
        Ok(false)
    }

    async fn pause(&self, _: Duration) -> Flow<()> {
        Ok(())
    }

    fn believes(&self, _: &Repository, _: &Tag, _: Option<Digest>) -> bool {
        true
    }

    fn may_write(&self) -> bool {
        true
    }

    fn forget(&self, _: &Repository) {}

    fn forget_source(&self, _: Digest) {}

    fn bytes(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::samples::{digest, float, held, image_spec};
    use crate::machine::{Phase, Pin};

    /// `TAG=DIGEST` for each write, in order.
    fn written(held: FloatTags) -> Vec<String> {
        written_of(&image_spec(0), held)
    }

    fn written_of(spec: &ImageSpec, held: FloatTags) -> Vec<String> {
        let names = ["new", "old", "lost", "gone"].map(|name| (digest(name), name));
        let name = |digest: Option<Digest>| match digest {
            Some(digest) => names.iter().find(|(known, _)| *known == digest).unwrap().1,
            None => "",
        };
        let writes = writes(spec, Image::default(), digest("new"), held).into_iter();
        writes
            .map(|write| {
                let tag = match write.tag {
                    WrittenTag::Named(tag) => tag.to_string(),
                    WrittenTag::Prune { rescue: true } => "rescue".into(),
                    WrittenTag::Prune { rescue: false } => "prune".into(),
                };
                format!("{tag}={}", name(write.digest))
            })
            .collect()
    }

    #[test]
    fn the_tags_that_would_be_written_are_those_of_the_steps() {
        let usual = [
            "f0_incoming=new",
            "prune=old",
            "f0__pre=old",
            "f0=new",
            "f0__post1=new",
        ];
        assert_eq!(written(held("new", "lost", "gone")), [""; 0]);
        assert_eq!(written(held("", "", "")), ["f0_incoming=new", "f0=new"]);
        for (incoming, post1) in [("", ""), ("new", "new"), ("new", "old")] {
            assert_eq!(
                written(held("old", incoming, post1)),
                usual,
                "{incoming} {post1}"
            );
        }
        assert_eq!(
            written(held("old", "old", "old")),
            [
                "prune=old",
                "f0_incoming=new",
                "f0__pre=old",
                "f0=new",
                "f0__post1=new"
            ]
        );
        assert_eq!(
            written(held("old", "lost", "gone")),
            [
                "rescue=lost",
                "f0_incoming=new",
                "prune=old",
                "f0__pre=old",
                "f0=new",
                "rescue=gone",
                "f0__post1=new"
            ]
        );
        assert_eq!(
            written(held("old", "lost", "lost")),
            [
                "rescue=lost",
                "f0_incoming=new",
                "prune=old",
                "f0__pre=old",
                "f0=new",
                "f0__post1=new"
            ]
        );
        assert_eq!(
            written(held("", "lost", "gone")),
            ["rescue=lost", "f0_incoming=new", "f0=new"]
        );
    }

    #[test]
    fn where_incoming_is_to_be_removed_that_is_the_last_write() {
        let spec = ImageSpec {
            remove_incoming: true,
            ..image_spec(0)
        };
        let last = |held| written_of(&spec, held).pop();
        assert_eq!(last(held("", "", "")).unwrap(), "f0_incoming=");
        assert_eq!(last(held("old", "lost", "gone")).unwrap(), "f0_incoming=");
        assert_eq!(last(held("new", "new", "new")), None);
    }

    #[test]
    fn of_an_image_that_is_staged_only_what_is_left_is_announced() {
        let source = SourceFacts {
            digest: digest("new"),
            media_type: None,
        };
        let pin = Pin {
            digest: digest("old"),
            tag: float(0).prune(Stamp::at(Timestamp::UNIX_EPOCH)),
        };
        let left = |phase, held| {
            let image = Image {
                phase,
                source: Some(source.clone()),
                displaced: vec![pin.clone()],
                // None of these is waited for.
                attempts: 3,
                next_attempt: Some(Timestamp::MAX),
                late_until: Some(Timestamp::MAX),
                ..Image::default()
            };
            let writes = rest(&image_spec(0), source.clone(), &image, held).writes;
            let tags = writes.into_iter().map(|write| match write.tag {
                WrittenTag::Named(tag) => tag.to_string(),
                WrittenTag::Prune { .. } => "prune".into(),
            });
            tags.collect::<Vec<_>>()
        };
        let staged = FloatTags {
            pre: Some(digest("old")),
            ..held("old", "new", "")
        };
        let all = ["prune", "f0__pre", "f0", "f0__post1"];
        assert_eq!(left(Phase::Incoming, staged), all);
        assert_eq!(left(Phase::BackedUp, staged), ["f0", "f0__post1"]);
        assert_eq!(left(Phase::Latched, held("new", "new", "")), ["f0__post1"]);
        assert_eq!(left(Phase::Posted, held("new", "new", "new")), [""; 0]);
    }

    #[test]
    fn what_a_tag_holds_now_stands_beside_what_it_would_hold() {
        let held = held("old", "new", "");
        let writes = writes(&image_spec(0), Image::default(), digest("new"), held);
        let holds: Vec<_> = writes.iter().map(|write| write.holds).collect();
        let some = |name| Some(digest(name));
        assert_eq!(holds, [some("new"), None, some("older"), some("old"), None]);
    }
}
