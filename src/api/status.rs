//! The object in the machine's terms, and the machine's record in the object's status.
//!
//! [`read`] parses what is there, once; [`write`] puts a record back without touching what this version does not know. Read
//! after write gives the same record.

use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::text::cut;
use super::{
    Gate, ImageStatus, Incoming, Latch, Mode, OnFailure, PinStatus, PromotionRequest,
    PromotionRequestStatus, Referrers, SourceStatus, conditions, references,
};
use crate::image::{Float, Tag};
use crate::machine::{
    self, Image, ImageSpec, Phase, Pin, Reason, Replaces, Request, SourceFacts, Spec, Status,
};

/// The longest message of an image, in bytes.
const MESSAGE_MAX: usize = 256;
/// That of an image that is posted.
const POSTED_MESSAGE_MAX: usize = 160;
/// The most gates of a request.
const GATES_MAX: usize = 8;

/// What becomes of what cannot be read, and what to do.
pub(crate) const LEFT_ALONE: &str =
    "the request is left alone and keeps its floats: upgrade the controller, or delete the request";

/// Why an object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The spec cannot be carried out: the request ends as `InvalidSpec`.
    #[error("{field}: {message}")]
    Spec {
        /// The field's path.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The status was written by a newer version, or by hand: the request is left alone.
    #[error("status.{field}: {message}; {LEFT_ALONE}")]
    Status {
        /// The field's path below status.
        field: String,
        /// What is wrong.
        message: String,
    },
}

/// The object in the machine's terms.
///
/// # Errors
/// [`ReadError::Spec`] names the field that cannot be carried out, [`ReadError::Status`] the one that cannot be understood.
pub fn read(object: &PromotionRequest) -> Result<Request, ReadError> {
    let none = PromotionRequestStatus::default();
    let status = object.status.as_ref().unwrap_or(&none);
    for (index, image) in status.images.iter().enumerate() {
        read_phase(format_args!("images[{index}].phase"), &image.phase)?;
    }
    if let Some(phase) = &status.phase {
        read_phase(format_args!("phase"), phase)?;
    }
    let spec = read_spec(object)?;
    let status = read_status(object, status, &spec.images)?;
    Ok(Request { spec, status })
}

/// The record of a request whose tags are `references`.
///
/// # Errors
/// As [`read`].
pub fn record(
    object: &PromotionRequest,
    references: machine::References,
    now: Timestamp,
) -> Result<Request, ReadError> {
    let mut request = read(object)?;
    request.status.references = references;
    request.note_end(now);
    Ok(request)
}

fn read_spec(object: &PromotionRequest) -> Result<Spec, ReadError> {
    let spec = &object.spec;
    let invalid = |field: String, message: String| ReadError::Spec { field, message };
    if spec.images.is_empty() {
        return Err(invalid(
            "spec.images".into(),
            "is empty; name at least one image".into(),
        ));
    }
    if spec.on_failure == OnFailure::Rollback && spec.latch == Latch::Independently {
        let message = "is Rollback, which needs latch Together; set one of them otherwise".into();
        return Err(invalid("spec.onFailure".into(), message));
    }
    let mut images: Vec<ImageSpec> = Vec::with_capacity(spec.images.len());
    let mut floats = HashMap::with_capacity(spec.images.len());
    for (index, image) in spec.images.iter().enumerate() {
        let at = |name: &str| format!("spec.images[{index}].{name}");
        let parsed = ImageSpec {
            source: image
                .source
                .parse()
                .map_err(|e| invalid(at("source"), format!("{e}")))?,
            float: image
                .float
                .parse()
                .map_err(|e| invalid(at("float"), format!("{e}")))?,
            replaces: read_replaces(image.replaces.as_deref())
                .map_err(|message| invalid(at("replaces"), message))?,
            freeze: None,
            remove_incoming: spec.incoming == Incoming::Remove,
        };
        if let Some(same) = floats.insert(parsed.float.clone(), index) {
            let message = format!("is the same float as spec.images[{same}]; name each float once");
            return Err(invalid(at("float"), message));
        }
        images.push(parsed);
    }
    references::check(spec).map_err(|(field, message)| invalid(field, message))?;
    let number = |field: &str, value: i32| {
        u32::try_from(value).ok().filter(|&n| n > 0).ok_or_else(|| {
            invalid(
                format!("spec.{field}"),
                format!("is {value}; it must be at least 1"),
            )
        })
    };
    Ok(Spec {
        images,
        latch: match spec.latch {
            Latch::Together => machine::Latch::Together,
            Latch::Independently => machine::Latch::Independently,
        },
        on_failure: match spec.on_failure {
            OnFailure::Hold => machine::OnFailure::Hold,
            OnFailure::Rollback => machine::OnFailure::Rollback,
        },
        mode: match spec.mode {
            Mode::Promote => machine::Mode::Promote,
            Mode::Plan => machine::Mode::Plan,
        },
        referrers: match spec.referrers {
            Referrers::Ignore => machine::Referrers::Ignore,
            Referrers::BestEffort => machine::Referrers::BestEffort,
            Referrers::Require => machine::Referrers::Require,
        },
        attempts: number("attempts", spec.attempts)?,
        deadline_seconds: number("deadlineSeconds", spec.deadline_seconds)?.into(),
        suspend: spec.suspend,
        cancel: spec.cancel,
        gates: read_gates(&spec.gates).map_err(|(field, message)| invalid(field, message))?,
        undo: spec.undo,
    })
}

/// The names of the gates, each once. The API server checks the same.
fn read_gates(gates: &[Gate]) -> Result<Vec<String>, (String, String)> {
    if gates.len() > GATES_MAX {
        let message = format!(
            "has {} entries; at most {GATES_MAX} are allowed",
            gates.len()
        );
        return Err(("spec.gates".into(), message));
    }
    let mut names: Vec<String> = Vec::with_capacity(gates.len());
    for (index, Gate { name }) in gates.iter().enumerate() {
        let field = format!("spec.gates[{index}].name");
        let inner = |c: char| c.is_ascii_alphanumeric() || "./-".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let ends = edge(name.chars().next()) && edge(name.chars().last());
        if !ends || !name.chars().all(inner) || name.len() > 63 {
            let message = format!(
                "'{}' must be 1 to 63 letters, digits, '-', '.' and '/', with a letter or digit at both ends",
                cut(name, 64)
            );
            return Err((field, message));
        }
        if names.contains(name) {
            return Err((field, format!("'{name}' stands twice; name each gate once")));
        }
        names.push(name.clone());
    }
    Ok(names)
}

fn read_replaces(text: Option<&str>) -> Result<Option<Replaces>, String> {
    match text {
        None => Ok(None),
        Some("None") => Ok(Some(Replaces::Nothing)),
        Some(text) => match text.parse() {
            Ok(digest) => Ok(Some(Replaces::Digest(digest))),
            Err(error) => Err(format!(
                "{error}; write sha256:DIGEST, or None for a tag that does not exist yet"
            )),
        },
    }
}

fn read_status(
    object: &PromotionRequest,
    status: &PromotionRequestStatus,
    images: &[ImageSpec],
) -> Result<Status, ReadError> {
    let odd = |field: String, message: &str| ReadError::Status {
        field,
        message: message.into(),
    };
    if !status.images.is_empty() && status.images.len() != images.len() {
        return Err(odd(
            "images".into(),
            "has not one entry for each image of the spec",
        ));
    }
    let mut record = Status::new(images.len());
    let floats = images.iter().map(|image| &image.float);
    let read = record.images.iter_mut().zip(&status.images).zip(floats);
    for (index, ((read, from), float)) in read.enumerate() {
        if object
            .spec
            .images
            .get(index)
            .is_none_or(|spec| spec.float != from.float)
        {
            return Err(odd(format!("images[{index}].float"), "is not the spec's"));
        }
        *read = read_image(from, float)
            .map_err(|(field, message)| odd(format!("images[{index}].{field}"), &message))?;
    }
    let order = status.order.map(u64::try_from).transpose();
    record.order = order.map_err(|_| odd("order".into(), "is negative"))?;
    record.committed = status.committed.unwrap_or_default();
    record.rollback = status.rollback.unwrap_or_default();
    record.started = status.start_time.as_ref().map(|t| t.0);
    record.deadline = status.deadline_time.as_ref().map(|t| t.0);
    record.completed = status.completion_time.as_ref().map(|t| t.0);
    record.expiring = conditions::expiring(&status.conditions);
    record.references = references::read(object);
    Ok(record)
}

fn read_phase(field: fmt::Arguments<'_>, name: &str) -> Result<Phase, ReadError> {
    Phase::parse(name).ok_or_else(|| ReadError::Status {
        field: field.to_string(),
        message: format!("'{}' is a phase of a newer version", cut(name, 64)),
    })
}

fn read_image(from: &ImageStatus, float: &Float) -> Result<Image, (&'static str, String)> {
    let source = from.source.as_ref().map(|source| {
        let digest = source
            .digest
            .parse()
            .map_err(|e| ("source.digest", format!("{e}")))?;
        Ok::<_, (&'static str, String)>(SourceFacts {
            digest,
            media_type: source.media_type.clone(),
        })
    });
    // Referencing is a phase of requests.
    let phase = Phase::parse(&from.phase).filter(|phase| !phase.is_referencing());
    Ok(Image {
        phase: phase.ok_or(("phase", "is unknown".to_owned()))?,
        reason: from.reason.as_deref().and_then(Reason::parse),
        message: from.message.clone().unwrap_or_default(),
        source: source.transpose()?,
        unchanged: from.unchanged.unwrap_or_default(),
        committed: from.committed.unwrap_or_default(),
        displaced: read_pins(&from.displaced, float).map_err(|e| ("displaced", e))?,
        would_displace: from
            .would_displace
            .as_ref()
            .map(|digest| {
                digest
                    .parse()
                    .map_err(|e| ("wouldDisplace", format!("{e}")))
            })
            .transpose()?,
        rescued: read_pins(&from.rescued, float).map_err(|e| ("rescued", e))?,
        rollback: from
            .rollback_tag
            .as_ref()
            .map(|tag| read_stamped(tag, float).map_err(|e| ("rollbackTag", e)))
            .transpose()?,
        pinned: from.pinned_time.as_ref().map(|t| t.0),
        bytes: from
            .bytes_copied
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default(),
        attempts: from
            .attempts
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        next_attempt: from.next_attempt_time.as_ref().map(|t| t.0),
        late_until: from.late_until.as_ref().map(|t| t.0),
    })
}

fn read_pins(from: &[PinStatus], float: &Float) -> Result<Vec<Pin>, String> {
    let pin = |pin: &PinStatus| {
        let digest = pin.digest.parse().map_err(|e| format!("{e}"))?;
        let tag = read_stamped(&pin.prune_tag, float)?;
        Ok(Pin { digest, tag })
    };
    from.iter().map(pin).collect()
}

/// A tag that a step may write and a pruner may delete, so it is no other tag than this float's stamped ones.
fn read_stamped(text: &str, float: &Float) -> Result<Tag, String> {
    let tag: Tag = text.parse().map_err(|e| format!("{e}"))?;
    if float.is_stamped(&tag) {
        return Ok(tag);
    }
    let own = float.tag();
    Err(format!(
        "'{tag}' is no prune tag of this float (YYYYMMDDHHMMSS_prune_{own})"
    ))
}

/// Puts a record into the object's status. `waiting` is what the request as a whole waits for; what changes in a condition changed
/// `now`.
pub fn write(
    object: &mut PromotionRequest,
    request: &Request,
    waiting: Option<&(Reason, String)>,
    now: Timestamp,
) {
    let mut status = object.status.take().unwrap_or_default();
    let record = &request.status;
    status.observed_generation = object.metadata.generation;
    status.order = record.order.and_then(|order| i64::try_from(order).ok());
    status.committed = record.committed.then_some(true);
    status.rollback = record.rollback.then_some(true);
    status.phase = Some(request.phase().as_str().into());
    let done = record.images.iter().filter(|i| i.phase.is_complete());
    status.progress = Some(format!("{}/{}", done.count(), record.images.len()));
    status.start_time = record.started.map(time);
    status.deadline_time = record.deadline.map(time);
    status.completion_time = record.completed.map(time);
    status
        .images
        .resize_with(record.images.len(), ImageStatus::default);
    for (index, (to, image)) in status.images.iter_mut().zip(&record.images).enumerate() {
        if let Some(spec) = object.spec.images.get(index) {
            to.float.clone_from(&spec.float);
        }
        let repository = request.spec.images.get(index).map(|i| i.float.repository());
        let promoted = repository
            .zip(image.source.as_ref())
            .filter(|_| image.phase.is_posted());
        to.promoted =
            promoted.map(|(repository, source)| format!("{repository}@{}", source.digest));
        write_image(to, image);
    }
    conditions::write(
        &mut status,
        request,
        waiting,
        now,
        object.metadata.generation,
    );
    object.status = Some(status);
}

/// A copy that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningCopy {
    /// The image's place in the spec.
    pub image: usize,
    /// What it has written.
    pub bytes: u64,
    /// What it writes in all, as far as is known.
    pub total: u64,
}

/// Shows the copies that run, in a status that was just written. They are no part of the record: what is lost of a copy that is cut off, is
/// copied again.
pub fn show_copies(object: &mut PromotionRequest, copies: &[RunningCopy]) {
    let Some(status) = &mut object.status else {
        return;
    };
    let number = |bytes: u64| i64::try_from(bytes).ok();
    for copy in copies {
        if let Some(image) = status.images.get_mut(copy.image) {
            image.copied_now = number(copy.bytes);
            image.copy_total = number(copy.total.max(copy.bytes));
        }
    }
    let bytes: u64 = copies.iter().map(|copy| copy.bytes).sum();
    let total: u64 = copies.iter().map(|copy| copy.total.max(copy.bytes)).sum();
    if total > 0 {
        conditions::add_copies(&mut status.conditions, bytes, total);
    }
}

fn write_image(to: &mut ImageStatus, image: &Image) {
    let ended = image.phase.is_finished() && to.phase == image.phase.as_str();
    // A newer version's reason for an end is kept: this version knows no better one.
    let unknown_reason = |name: &String| ended && Reason::parse(name).is_none();
    let unknown_reason = to.reason.take().filter(unknown_reason);
    to.phase = image.phase.as_str().into();
    to.reason = image
        .reason
        .map(|reason| reason.as_str().into())
        .or(unknown_reason);
    // What is posted says so by `promoted`; a whole message beside it would not fit the largest object.
    let most = if image.phase.is_posted() {
        POSTED_MESSAGE_MAX
    } else {
        MESSAGE_MAX
    };
    let told = !image.message.is_empty();
    to.message = told.then(|| cut(&image.message, most));
    to.source = image.source.as_ref().map(|source| SourceStatus {
        digest: source.digest.to_string(),
        media_type: source.media_type.clone(),
        unknown: to.source.take().map(|old| old.unknown).unwrap_or_default(),
    });
    to.unchanged = image.unchanged.then_some(true);
    let there = image.unchanged || image.would_displace.is_some() || !image.displaced.is_empty();
    let first = image.source.is_some() && !there;
    to.first_promotion = first.then_some(true);
    to.committed = image.committed.then_some(true);
    write_pins(&mut to.displaced, &image.displaced);
    to.would_displace = image.would_displace.map(|digest| digest.to_string());
    write_pins(&mut to.rescued, &image.rescued);
    to.rollback_tag = image.rollback.as_ref().map(ToString::to_string);
    to.pinned_time = image.pinned.map(time);
    (to.copied_now, to.copy_total) = (None, None);
    to.bytes_copied = i64::try_from(image.bytes).ok().filter(|&n| n > 0);
    to.attempts = i32::try_from(image.attempts).ok().filter(|&n| n > 0);
    to.next_attempt_time = image.next_attempt.map(time);
    to.late_until = image.late_until.map(time);
}

fn write_pins(to: &mut Vec<PinStatus>, pins: &[Pin]) {
    let old = std::mem::take(to);
    *to = pins
        .iter()
        .map(|pin| {
            let digest = pin.digest.to_string();
            let known = old.iter().find(|o| o.digest == digest);
            PinStatus {
                unknown: known.map(|o| o.unknown.clone()).unwrap_or_default(),
                digest,
                prune_tag: pin.tag.to_string(),
            }
        })
        .collect();
}

/// Ends a request whose spec cannot be read: every image is Failed, nothing else is recorded.
pub fn refuse(object: &mut PromotionRequest, error: &ReadError, now: Timestamp) {
    let mut status = object.status.take().unwrap_or_default();
    status.observed_generation = object.metadata.generation;
    status.phase = Some(Phase::Failed.as_str().into());
    status.progress = Some(format!("0/{}", object.spec.images.len()));
    status.completion_time = Some(time(now));
    let message = cut(&error.to_string(), MESSAGE_MAX);
    let mut known = std::mem::take(&mut status.images);
    status.images = object
        .spec
        .images
        .iter()
        .map(|image| ImageStatus {
            float: image.float.clone(),
            phase: Phase::Failed.as_str().into(),
            reason: Some(Reason::InvalidSpec.as_str().into()),
            message: Some(message.clone()),
            unknown: known
                .iter_mut()
                .find(|old| old.float == image.float)
                .map(|old| std::mem::take(&mut old.unknown))
                .unwrap_or_default(),
            ..ImageStatus::default()
        })
        .collect();
    let end = conditions::Summary::ended(Phase::Failed, false, Reason::InvalidSpec, message);
    conditions::set(
        &mut status.conditions,
        &end,
        now,
        object.metadata.generation,
    );
    object.status = Some(status);
}

/// Lets the status of a finished request speak of its spec's present generation. False where it does, or is unfinished.
pub fn follow_generation(object: &mut PromotionRequest) -> bool {
    let (generation, finished) = (object.metadata.generation, object.is_finished());
    let Some(status) = &mut object.status else {
        return false;
    };
    if status.observed_generation == generation || !finished {
        return false;
    }
    status.observed_generation = generation;
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
    true
}

/// Makes an object ready for another run without a cluster: the deadline starts anew; images that failed or were cancelled
/// begin again from what is recorded of them. Images are superseded where `superseded_by` names a later request that has begun on
/// their float, also committed ones: it was promoted without this one. Of a group that is not committed, all are.
///
/// # Errors
/// As [`read`].
pub fn reset(
    object: &mut PromotionRequest,
    superseded_by: impl Fn(&Float) -> Option<String>,
    now: Timestamp,
) -> Result<(), ReadError> {
    let mut request = read(object)?;
    if request.is_rolling_back() {
        // The rollback comes before anything else.
        request.status.deadline = None;
        write(object, &request, None, now);
        return Ok(());
    }
    let images = request.spec.images.iter();
    let mut by: Vec<_> = images.map(|image| superseded_by(&image.float)).collect();
    let overtaken: Vec<_> = by.iter().map(Option::is_some).collect();
    if request.spec.mode == machine::Mode::Plan {
        by.fill(None);
    } else if request.spec.latch == machine::Latch::Together {
        let any = by.iter().flatten().next().cloned();
        by.fill(any);
    }
    let ended = |image: &Image| image.phase.is_unsuccessful();
    let again = request.status.images.iter().any(ended);
    let begun = object.status.as_ref().is_some_and(|s| s.phase.is_some());
    let superseded = by.iter().any(Option::is_some);
    if (!begun && !superseded) || (request.is_finished() && !again) {
        return Ok(());
    }
    let committed: Vec<_> = (0..by.len()).map(|i| request.is_committed(i)).collect();
    request.status.completed = None;
    request.status.deadline = None;
    request.status.committed &= !again;
    request.status.rollback &= !again;
    let kept = committed
        .into_iter()
        .zip(overtaken)
        .map(|(committed, overtaken)| committed && !overtaken);
    for ((image, by), kept) in request.status.images.iter_mut().zip(by).zip(kept) {
        let failed = ended(image);
        if again {
            image.rollback = None;
        }
        if failed {
            image.attempts = 0;
            image.next_attempt = None;
            image.committed = false;
            image.message.clear();
            image.reason = None;
            image.phase = Phase::Pending;
        }
        let open = failed || !(kept || image.phase.is_finished());
        if let Some(by) = by.filter(|_| open) {
            image.phase = Phase::Failed;
            image.pinned = None;
            image.reason = Some(Reason::Superseded);
            image.message =
                format!("superseded by {by}, a later document that has begun on this float");
            image.next_attempt = None;
        }
    }
    if request.is_finished() {
        request.status.completed = Some(now);
    }
    write(object, &request, None, now);
    Ok(())
}

fn time(at: Timestamp) -> Time {
    Time(machine::whole_second(at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_that_names_a_tag_that_is_no_pin_of_its_float_is_left_alone() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let with = |image: serde_json::Value| {
            let mut status = serde_json::json!({"float": "x.io/a/b:f", "phase": "Incoming"});
            let fields = status.as_object_mut().unwrap();
            fields.extend(image.as_object().unwrap().clone());
            let object: PromotionRequest = serde_json::from_value(serde_json::json!({
                "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
                "spec": {"images": [{"source": "x.io/a/b:c", "float": "x.io/a/b:f"}]},
                "status": {"images": [status]},
            }))
            .unwrap();
            read(&object)
        };
        let pins = |tag: &str| serde_json::json!([{"digest": digest, "pruneTag": tag}]);
        let own = ["", "__rescued", "__broken"].map(|end| format!("20260101000000_prune_f{end}"));
        for tag in &own {
            for field in ["displaced", "rescued"] {
                assert!(with(serde_json::json!({field: pins(tag)})).is_ok(), "{tag}");
            }
            assert!(
                with(serde_json::json!({"rollbackTag": tag})).is_ok(),
                "{tag}"
            );
        }
        let other = [
            "f",
            "latest",
            "20260101000000_prune_g",
            "20261301000000_prune_f",
            "f__pre",
        ];
        for tag in other {
            for (field, value) in [
                ("displaced", pins(tag)),
                ("rescued", pins(tag)),
                ("rollbackTag", serde_json::json!(tag)),
            ] {
                let error = with(serde_json::json!({field: value})).unwrap_err();
                assert!(matches!(error, ReadError::Status { .. }), "{error}");
                let (error, place) = (error.to_string(), format!("images[0].{field}"));
                assert!(error.contains(&place) && error.contains(tag), "{error}");
            }
        }
    }
}
