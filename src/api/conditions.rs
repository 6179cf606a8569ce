//! The conditions: Progressing, Staged, Complete and Failed, Reconciling and Stalled, from the first save to the end; Referenced, once
//! image stream tags are to be set, and Expiring where they apply.
//!
//! `Staged` is the safe point for whoever owns the sources: they may go away. One of `Complete` and `Failed` is True at every
//! end. `Reconciling` and `Stalled` say the same to tools that read kstatus: nothing is healthy while one of them is True. A condition's time
//! changes only when its status does. What there is to say stands in Progressing, and in Failed where it is True; the others are short.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::text::cut;
use super::{PromotionRequest, PromotionRequestStatus};
use crate::machine::{Bytes, Phase, Reason, References, Request, whole_second};

/// Every condition's type. All but the last two are there from the first save on.
pub const TYPES: [&str; 8] = [
    PROGRESSING,
    "Staged",
    "Complete",
    FAILED,
    "Reconciling",
    "Stalled",
    REFERENCED,
    EXPIRING,
];
/// The condition of an unsuccessful end: it says why.
const FAILED: &str = "Failed";
/// The condition that says what a request waits for, and since when.
const PROGRESSING: &str = "Progressing";
/// Precedes the time since when, at the end of a message.
const SINCE: &str = "; since ";
/// The room that it takes.
const SINCE_MAX: usize = 40;
/// The condition of a request one of whose images makes its tags expire. It is the record of that, too.
const EXPIRING: &str = "Expiring";
/// The condition of image stream tags that follow the floats. It is the record of how that went, too.
const REFERENCED: &str = "Referenced";
/// What is left once the floats are at their end.
const REFERENCES_LEFT: &str = "the floats are where they stay; setting image stream tags";
/// The longest message of a condition, in bytes.
const MESSAGE_MAX: usize = 1024;

/// What the conditions say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The phase of the whole.
    pub phase: Phase,
    /// Whether the sources may go away.
    pub staged: bool,
    /// Why the request is where it is: waiting, working or final.
    pub reason: Reason,
    /// One line for a person.
    pub message: String,
}

impl Summary {
    /// The summary of a record.
    #[must_use]
    pub fn of(request: &Request, waiting: Option<&(Reason, String)>) -> Self {
        let phase = request.phase();
        let staged = request.is_staged();
        if phase.is_finished() {
            let (reason, message) = verdict(request, phase);
            return Self::ended(phase, staged, reason, message);
        }
        let (reason, message) = match waiting {
            Some((reason, message)) => (*reason, message.clone()),
            None if request.is_rolling_back() => (Reason::RollingBack, rollback_progress(request)),
            None if phase.is_referencing() => (working(phase), REFERENCES_LEFT.into()),
            None => (working(phase), progress(request)),
        };
        Self {
            phase,
            staged,
            reason,
            message,
        }
    }

    /// The summary of an end.
    #[must_use]
    pub fn ended(phase: Phase, staged: bool, reason: Reason, message: String) -> Self {
        Self {
            phase,
            staged,
            reason,
            message,
        }
    }
}

/// The reason shown while an image works towards the next phase.
#[must_use]
pub fn working(phase: Phase) -> Reason {
    match phase {
        Phase::Pending => Reason::Pending,
        Phase::Incoming => Reason::Incoming,
        Phase::BackedUp => Reason::BackedUp,
        Phase::Latched => Reason::Latched,
        Phase::Posted => Reason::Posted,
        Phase::Planned => Reason::Planned,
        Phase::Failed => Reason::RegistryError,
        Phase::Cancelled => Reason::Cancelled,
        Phase::Referencing => Reason::Referencing,
    }
}

/// The final reason and message: the first image that failed of itself speaks for the request.
fn verdict(request: &Request, phase: Phase) -> (Reason, String) {
    let images = || request.status.images.iter().zip(&request.spec.images);
    let all = request.status.images.len();
    let unchanged = request.status.images.iter().filter(|i| i.unchanged).count();
    match phase {
        Phase::Planned => (
            Reason::Planned,
            format!("images looked at: {all}; nothing was written"),
        ),
        Phase::Cancelled => {
            let moved = request.status.images.iter();
            let moved = moved.filter(|i| i.phase.is_posted() && !i.unchanged);
            let message = format!("cancelled; floats that had moved before: {}", moved.count());
            (Reason::Cancelled, message)
        }
        Phase::Failed => {
            let Some((image, spec)) = speaker(request).and_then(|index| images().nth(index)) else {
                if let References::Failed(why) = &request.status.references {
                    return (Reason::ReferenceFailed, why.clone());
                }
                return (Reason::RegistryError, String::new());
            };
            let reason = image.reason.unwrap_or(Reason::RegistryError);
            let failed = || images().filter(|(image, _)| image.phase.is_failed());
            // What only its group's failure ended did not fail.
            let own = failed()
                .filter(|(image, _)| image.has_failed_itself())
                .count();
            let held = failed().filter(|(image, _)| image.reason.is_some_and(Reason::is_held));
            let (own, held) = match (own, held.count()) {
                (0, _) => (failed().count(), 0),
                counts => counts,
            };
            let mut message = format!("{own} of {all} images failed");
            if held > 0 {
                let _ = write!(message, ", {held} held back");
            }
            if request.status.rollback {
                let _ = write!(message, "; {}", rollback_result(request));
            }
            let (float, why) = (spec.float.to_string(), &image.message);
            if names(why, &float) {
                let _ = write!(message, "; {why}");
            } else {
                let _ = write!(message, "; {float}: {why}");
            }
            (reason, message)
        }
        Phase::Pending
        | Phase::Incoming
        | Phase::BackedUp
        | Phase::Latched
        | Phase::Posted
        | Phase::Referencing
            if unchanged == all =>
        {
            (
                Reason::Unchanged,
                format!("floats at their source before: {all}; nothing was written"),
            )
        }
        Phase::Pending
        | Phase::Incoming
        | Phase::BackedUp
        | Phase::Latched
        | Phase::Posted
        | Phase::Referencing => (
            Reason::Promoted,
            format!(
                "floats moved to their source: {}; there before: {unchanged}",
                all - unchanged
            ),
        ),
    }
}

/// Whether a text names a float, and not just another tag that begins as it does.
fn names(text: &str, float: &str) -> bool {
    let in_tag = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let mut found = text.match_indices(float);
    found.any(|(at, _)| !text[at + float.len()..].starts_with(in_tag))
}

/// The failed image that speaks for the request.
fn speaker(request: &Request) -> Option<usize> {
    let images = &request.status.images;
    let own = images
        .iter()
        .position(crate::machine::Image::has_failed_itself);
    own.or_else(|| images.iter().position(|image| image.phase.is_failed()))
}

/// The final reason of a request that failed for one that only a newer version knows, which ended the image that speaks for it.
fn of_a_newer_version(status: &PromotionRequestStatus, request: &Request) -> Option<String> {
    let index = speaker(request).filter(|_| request.phase().is_failed())?;
    let unknown = request.status.images[index].reason.is_none();
    status.images.get(index)?.reason.clone().filter(|_| unknown)
}

/// What a rollback is at.
fn rollback_progress(request: &Request) -> String {
    let left = request.status.images.iter();
    let left = left.filter(|i| i.rollback.is_some()).count();
    let failed = request.failed_float().map(ToString::to_string);
    let failed = failed.unwrap_or_default();
    format!(
        "{failed} failed; {}, to be looked at: {left}",
        rollback_result(request)
    )
}

/// What has become of a rollback so far, beside what the image that failed says of itself.
fn rollback_result(request: &Request) -> String {
    let images = || request.status.images.iter().zip(&request.spec.images);
    let all = |reason| images().filter(move |(image, _)| image.reason == Some(reason));
    let back = all(Reason::RolledBack).count();
    let behind = all(Reason::NotRolledBack).count();
    let mut text = format!("other floats rolled back: {back}");
    if let Some((_, spec)) = all(Reason::NotRolledBack).next() {
        let _ = write!(text, ", not rolled back: {behind}, {} first", spec.float);
    }
    text
}

fn progress(request: &Request) -> String {
    let retried = |i: &&crate::machine::Image| {
        !i.phase.is_finished() && i.reason.is_some_and(Reason::is_retried)
    };
    let images = &request.status.images;
    let count = |phase: Phase| images.iter().filter(|i| i.phase == phase).count();
    let mut parts: Vec<String> = Vec::new();
    for phase in Phase::ALL {
        let n = count(phase);
        if n > 0 {
            parts.push(format!("{n} {}", phase.as_str()));
        }
    }
    let mut text = format!("images: {}", parts.join(", "));
    if let Some(image) = images.iter().find(retried) {
        text.push_str("; to be tried again: ");
        text.push_str(&image.message);
        if let Some(next) = image.next_attempt {
            let _ = write!(text, "; next try {}", whole_second(next));
        }
    }
    text
}

/// Writes the summary of a record into the conditions.
pub(super) fn write(
    status: &mut PromotionRequestStatus,
    request: &Request,
    waiting: Option<&(Reason, String)>,
    now: Timestamp,
    generation: Option<i64>,
) {
    let mut summary = Summary::of(request, waiting);
    if waiting.is_some() && !summary.phase.is_finished() {
        let since =
            waits_since(&status.conditions, summary.reason).unwrap_or_else(|| whole_second(now));
        let said = cut(&summary.message, MESSAGE_MAX - SINCE_MAX);
        summary.message = format!("{said}{SINCE}{since}");
    }
    let unknown_reason = of_a_newer_version(status, request);
    let reason = unknown_reason.as_deref().unwrap_or(summary.reason.as_str());
    set_all(&mut status.conditions, &summary, reason, now, generation);
    let referenced = match &request.status.references {
        References::None => None,
        References::Open => summary
            .phase
            .is_referencing()
            .then_some((false, reason, "")),
        References::Set(said) => Some((true, reason, said.as_str())),
        References::Failed(why) => {
            let failed = Reason::ReferenceFailed.as_str();
            Some((false, failed, why.as_str()))
        }
    };
    if let Some((truth, reason, message)) = referenced {
        place(
            &mut status.conditions,
            (REFERENCED, truth),
            (reason, message),
            now,
            generation,
        );
    }
    if let Some(message) = &request.status.expiring {
        place(
            &mut status.conditions,
            (EXPIRING, true),
            (Reason::Expiring.as_str(), message),
            now,
            generation,
        );
    }
}

/// Since when a request waits for this reason, as its condition says.
fn waits_since(conditions: &[Condition], reason: Reason) -> Option<Timestamp> {
    let known = conditions.iter().find(|c| c.type_ == PROGRESSING)?;
    let (_, since) = known.message.rsplit_once(SINCE)?;
    since
        .parse()
        .ok()
        .filter(|_| known.reason == reason.as_str())
}

/// What a request waits for since a save, if it waited for something else, or nothing, before.
pub(crate) fn begins_to_wait(
    before: &PromotionRequest,
    saved: &PromotionRequest,
) -> Option<(Reason, String)> {
    let of = |object: &PromotionRequest| {
        let conditions = &object.status.as_ref()?.conditions;
        let condition = conditions.iter().find(|c| c.type_ == PROGRESSING)?;
        let reason = Reason::parse(&condition.reason).filter(|reason| reason.is_waiting())?;
        Some((reason, condition.message.clone()))
    };
    let (reason, note) = of(saved)?;
    let same = of(before).is_some_and(|(known, _)| known.as_str() == reason.as_str());
    (!same).then_some((reason, note))
}

/// What the condition says of tags that expire, where it is there.
pub(super) fn expiring(conditions: &[Condition]) -> Option<String> {
    let condition = conditions.iter().find(|c| c.type_ == EXPIRING)?;
    (condition.status == "True").then(|| condition.message.clone())
}

/// What the condition says of image stream tags, where it is there.
pub(super) fn referenced(object: &PromotionRequest) -> Option<String> {
    referenced_of(object).map(|condition| condition.message.clone())
}

/// Since when a request sets its image stream tags.
pub(crate) fn referencing_since(object: &PromotionRequest) -> Option<Timestamp> {
    let condition = referenced_of(object).filter(|c| c.status == "False");
    condition.map(|condition| condition.last_transition_time.0)
}

fn referenced_of(object: &PromotionRequest) -> Option<&Condition> {
    let mut conditions = object.status.iter().flat_map(|s| &s.conditions);
    conditions.find(|c| c.type_ == REFERENCED)
}

/// Says how far copies have come, where a request works.
pub(super) fn add_copies(conditions: &mut [Condition], bytes: u64, total: u64) {
    let working = |c: &&mut Condition| {
        c.type_ == PROGRESSING && Reason::parse(&c.reason).is_some_and(Reason::is_working)
    };
    if let Some(condition) = conditions.iter_mut().find(working) {
        let said = format!(
            "{}; copied {} of {}",
            condition.message,
            Bytes(bytes),
            Bytes(total)
        );
        condition.message = cut(&said, MESSAGE_MAX);
    }
}

/// Sets these conditions; others are left.
pub(super) fn set(
    conditions: &mut Vec<Condition>,
    summary: &Summary,
    now: Timestamp,
    generation: Option<i64>,
) {
    set_all(
        conditions,
        summary,
        summary.reason.as_str(),
        now,
        generation,
    );
}

fn set_all(
    conditions: &mut Vec<Condition>,
    summary: &Summary,
    reason: &str,
    now: Timestamp,
    generation: Option<i64>,
) {
    let finished = summary.phase.is_finished();
    let complete = summary.phase.is_complete();
    let failed = finished && !complete;
    let truths = [
        !finished,
        summary.staged,
        complete,
        failed,
        !finished,
        failed,
    ];
    for (kind, truth) in TYPES.into_iter().zip(truths) {
        let says = kind == PROGRESSING || (kind == FAILED && truth);
        let message = if says { summary.message.as_str() } else { "" };
        place(
            conditions,
            (kind, truth),
            (reason, message),
            now,
            generation,
        );
    }
}

/// Sets one condition.
fn place(
    conditions: &mut Vec<Condition>,
    (kind, truth): (&str, bool),
    (reason, message): (&str, &str),
    now: Timestamp,
    generation: Option<i64>,
) {
    let status = if truth { "True" } else { "False" };
    let old = conditions.iter_mut().find(|c| c.type_ == kind);
    let same = old.as_ref().filter(|c| c.status == status);
    let since = same.map_or_else(
        || Time(whole_second(now)),
        |c| c.last_transition_time.clone(),
    );
    let new = Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: cut(message, MESSAGE_MAX),
        last_transition_time: since,
        observed_generation: generation,
    };
    match old {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::status::{read, write};
    use super::*;
    use crate::api::PromotionRequest;

    #[test]
    fn a_wait_says_since_when_and_time_alone_changes_nothing() {
        let mut object: PromotionRequest = serde_json::from_value(serde_json::json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
            "spec": {"images": [{"source": "x.io/a/b:c", "float": "x.io/a/b:d"}]},
        }))
        .unwrap();
        let request = read(&object).unwrap();
        let mut said = |second: i64, waiting: Option<(Reason, &str)>| {
            let now = Timestamp::from_millisecond(second * 1000 + 7).unwrap();
            let waiting = waiting.map(|(reason, message)| (reason, message.to_owned()));
            write(&mut object, &request, waiting.as_ref(), now);
            object.status.as_ref().unwrap().conditions[0]
                .message
                .clone()
        };
        let since = |second| format!("; since {}", Timestamp::from_second(second).unwrap());
        let down = Some((Reason::RegistryUnavailable, "x.io is down"));
        let first = said(10, down);
        assert_eq!(first, format!("x.io is down{}", since(10)));
        assert_eq!(said(20, down), first);
        let other = said(
            30,
            Some((Reason::RegistryUnavailable, "y.io is down; since ever")),
        );
        assert_eq!(other, format!("y.io is down; since ever{}", since(10)));
        assert!(said(40, Some((Reason::Queued, "waits"))).ends_with(&since(40)));
        assert!(!said(50, None).contains("since"));
        assert!(said(60, down).ends_with(&since(60)));
        // However much there is to say.
        let long = "x".repeat(5000);
        let cut = said(70, Some((Reason::RegistryUnavailable, &long)));
        assert!(
            cut.len() <= MESSAGE_MAX && cut.ends_with(&since(60)),
            "{cut}"
        );
        assert_eq!(said(80, Some((Reason::RegistryUnavailable, &long))), cut);
    }

    #[test]
    fn that_tags_expire_is_a_condition_and_read_back_from_it() {
        let mut object: PromotionRequest = serde_json::from_value(serde_json::json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
            "spec": {"images": [{"source": "x.io/a/b:c", "float": "x.io/a/b:d"}]},
        }))
        .unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let kinds = |object: &PromotionRequest| -> Vec<String> {
            let conditions = &object.status.as_ref().unwrap().conditions;
            conditions.iter().map(|c| c.type_.clone()).collect()
        };
        let always = &TYPES[..6];
        let mut request = read(&object).unwrap();
        write(&mut object, &request, None, at(1));
        assert_eq!(kinds(&object), always);
        request.status.expiring = Some("x.io/a/b:d expires".into());
        write(&mut object, &request, None, at(2));
        write(&mut object, &request, None, at(3));
        assert_eq!(kinds(&object), [always, &[EXPIRING]].concat());
        let conditions = &object.status.as_ref().unwrap().conditions;
        let since = conditions[6].last_transition_time.0;
        assert_eq!(
            (since.as_second(), conditions[6].status.as_str()),
            (2, "True")
        );
        assert_eq!(read(&object).unwrap(), request);
    }

    #[test]
    fn a_failure_is_told_apart_from_those_held_back_with_it_and_names_its_float_once() {
        let image = |tag: usize| serde_json::json!({"source": "x.io/a/b:c", "float": format!("x.io/a/b:{tag}")});
        let object: PromotionRequest = serde_json::from_value(serde_json::json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
            "spec": {"images": [image(0), image(1), image(2), image(3)]},
        }))
        .unwrap();
        let mut request = read(&object).unwrap();
        let phases = [Phase::Failed, Phase::Failed, Phase::Posted, Phase::Failed];
        for (image, phase) in request.status.images.iter_mut().zip(phases) {
            image.phase = phase;
        }
        let float = request.spec.images[1].float.to_string();
        let images = &mut request.status.images;
        for image in [0, 3] {
            images[image].reason = Some(Reason::Held);
        }
        images[1].reason = Some(Reason::FloatMoved);
        for (message, told) in [
            ("denied".to_owned(), format!("{float}: denied")),
            (format!("{float}: denied"), format!("{float}: denied")),
            (
                format!("moved {float} (last x)"),
                format!("moved {float} (last x)"),
            ),
            (
                format!("{float}_incoming: denied"),
                format!("{float}: {float}_incoming: denied"),
            ),
        ] {
            request.status.images[1].message = message;
            let summary = Summary::of(&request, None);
            assert_eq!(
                summary.message,
                format!("1 of 4 images failed, 2 held back; {told}")
            );
        }
    }

    #[test]
    fn an_image_that_failed_for_a_reason_of_a_newer_version_keeps_it_and_speaks_with_it() {
        let image = |tag: &str| serde_json::json!({"source": "x.io/a/b:c", "float": format!("x.io/a/b:{tag}")});
        let mut object: PromotionRequest = serde_json::from_value(serde_json::json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
            "spec": {"images": [image("d"), image("e")]},
            "status": {"images": [
                {"float": "x.io/a/b:d", "phase": "Failed", "reason": "SignatureInvalid", "message": "not by us"},
                {"float": "x.io/a/b:e", "phase": "Pending", "reason": "SignerAway"},
            ]},
        }))
        .unwrap();
        let reasons = |object: &PromotionRequest| -> Vec<Option<String>> {
            let images = object.status.iter().flat_map(|status| &status.images);
            images.map(|image| image.reason.clone()).collect()
        };
        let unknown = Some("SignatureInvalid".to_owned());
        let mut request = read(&object).unwrap();
        let now = Timestamp::from_second(1).unwrap();
        write(&mut object, &request, None, now);
        // What the other waits for now is this version's to say.
        assert_eq!(reasons(&object), [unknown.clone(), None]);
        let of = |object: &PromotionRequest, kind: &str| {
            let conditions = &object.status.as_ref().unwrap().conditions;
            let found = conditions.iter().find(|c| c.type_ == kind).unwrap();
            (found.reason.clone(), found.message.clone())
        };
        assert_eq!(of(&object, "Progressing").0, "Pending");

        let image = &mut request.status.images[1];
        (image.phase, image.reason) = (Phase::Failed, Some(Reason::Held));
        write(&mut object, &request, None, now);
        assert_eq!(reasons(&object), [unknown, Some("Held".into())]);
        let (reason, message) = of(&object, "Failed");
        assert_eq!(reason, "SignatureInvalid");
        assert_eq!(
            message,
            "1 of 2 images failed, 1 held back; x.io/a/b:d: not by us"
        );
    }
}
