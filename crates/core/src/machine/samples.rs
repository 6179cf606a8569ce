//! Requests to try the machine on.
#![allow(clippy::unwrap_used)]

use jiff::{SignedDuration, Timestamp};

use super::{
    Admission, Fault, FaultClass, FloatTags, Image, ImageContext, ImageSpec, Inputs, Latch, Mode,
    OnFailure, Outcome, Phase, Pin, Reason, Referrers, Request, SourceFacts, Spec, Status, Step,
};
use crate::image::{Digest, Float, Stamp, Tag};

/// The time of the samples.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_770_000_000).unwrap()
}

/// So many seconds after [`now`].
pub fn at(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// The digest of this name.
pub fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

/// The float of image `index`.
pub fn float(index: usize) -> Float {
    format!("quay.io/openshift/ci:f{index}").parse().unwrap()
}

/// The prune tag of the first float, so many seconds after [`now`].
pub fn prune(seconds: i64) -> Tag {
    float(0).prune(Stamp::at(at(seconds)))
}

/// A digest of this name with the prune tag so many seconds after [`now`].
pub fn pin(name: &str, seconds: i64) -> Pin {
    Pin {
        digest: digest(name),
        tag: prune(seconds),
    }
}

/// The tag that would pin what the first float is taken back from, so many seconds after [`now`].
pub fn broken(seconds: i64) -> Tag {
    float(0).broken(Stamp::at(at(seconds)))
}

/// A digest of this name with the tag of a rescue so many seconds after [`now`].
pub fn rescued(name: &str, seconds: i64) -> Pin {
    Pin {
        digest: digest(name),
        tag: float(0).rescued(Stamp::at(at(seconds))),
    }
}

/// An image in this phase, resolved unless it is Pending.
pub fn image(phase: Phase) -> Image {
    let source = SourceFacts {
        digest: digest("new"),
        media_type: None,
    };
    Image {
        phase,
        source: Some(source).filter(|_| !phase.is_initial()),
        pinned: phase.awaits_latch().then(now),
        ..Image::default()
    }
}

/// A spec as it is where only the images and how they latch are given.
pub fn spec(images: Vec<ImageSpec>, latch: Latch) -> Spec {
    Spec {
        images,
        latch,
        on_failure: OnFailure::Hold,
        mode: Mode::Promote,
        referrers: Referrers::Ignore,
        attempts: 5,
        deadline_seconds: 7200,
        suspend: false,
        cancel: false,
        gates: Vec::new(),
        undo: false,
    }
}

/// The spec of image `index`.
pub fn image_spec(index: usize) -> ImageSpec {
    ImageSpec {
        source: format!("registry.ci/ci/src@{}", digest("new"))
            .parse()
            .unwrap(),
        float: float(index),
        replaces: None,
        freeze: None,
        remove_incoming: false,
    }
}

/// A request whose images are in these phases, with its deadline 7200 s after [`now`].
pub fn request(latch: Latch, phases: &[Phase]) -> Request {
    let status = Status {
        order: Some(7),
        started: Some(now()),
        deadline: Some(at(7200)),
        images: phases.iter().map(|phase| image(*phase)).collect(),
        ..Status::default()
    };
    let spec = spec((0..phases.len()).map(image_spec).collect(), latch);
    Request { spec, status }
}

/// Inputs at [`now`] by which a request has its floats to itself, and nothing of it runs.
pub fn inputs(images: usize) -> Inputs {
    Inputs {
        now: now(),
        stepped: 0,
        resource_version: 9,
        admission: Admission::Holds,
        launching: true,
        contexts: vec![ImageContext::default(); images],
    }
}

/// The same, with this step of image `index` running.
pub fn running(images: usize, index: usize, step: Step) -> Inputs {
    let mut inputs = inputs(images);
    inputs.contexts[index].running = Some(step);
    inputs
}

/// A fault.
pub fn fault(reason: Reason, class: FaultClass) -> Outcome {
    Outcome::Faulted(Fault {
        reason,
        message: "as answered".into(),
        class,
    })
}

/// What a float's tags are on, by the digests' seeds; none where empty. `__pre` is on an older image.
pub fn held(float: &str, incoming: &str, post1: &str) -> FloatTags {
    let some = |name: &str| (!name.is_empty()).then(|| digest(name));
    FloatTags {
        float: some(float),
        incoming: some(incoming),
        pre: Some(digest("older")),
        post1: some(post1),
    }
}
