//! One request as a person reads it: its line in a table, and the tree of its images.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource as _;

use super::super::columns::{age, duration, or_dash};
use super::super::summary;
use crate::api::{ImageStatus, PromotionRequest};
use crate::machine::{Bytes, Phase, Reason};
use crate::store::requests::Listed;
use crate::store::{Key, Stored};

/// The columns of the table.
pub(super) const COLUMNS: [&str; 6] = ["NAME", "PHASE", "DONE", "FLOATS", "REASON", "AGE"];
/// What it has beside, if it is to be wide.
pub(super) const WIDE: [&str; 3] = ["BYTES", "NEXT", "MESSAGE"];

/// A request's line in the table; it begins with the namespace where there are several.
pub(super) fn row(listed: &Listed, namespaced: bool, wide: bool, now: Timestamp) -> Vec<String> {
    let key = listed.key();
    let mut row = Vec::new();
    if namespaced {
        row.push(key.namespace);
    }
    row.push(key.name);
    let age = or_dash(age_of(listed.stored.meta(), now));
    let object = match &listed.stored {
        Stored::Read(object) => object,
        Stored::Unreadable(unreadable) => {
            let floats = unreadable.floats.iter().map(ToString::to_string);
            let unknown = Reason::Unreadable.to_string();
            row.extend(["-".into(), "-".into(), some(floats), unknown, age]);
            if wide {
                row.extend(["-".into(), "-".into(), unreadable.why.clone()]);
            }
            return row;
        }
    };
    let floats = object.spec.images.iter().map(|image| image.float.clone());
    let status = object.status.clone().unwrap_or_default();
    let progressing = progressing(object);
    row.extend([
        status.phase.clone().unwrap_or_else(|| initial().into()),
        or_dash(status.progress.clone()),
        some(floats),
        or_dash(progressing.map(|condition| condition.reason.clone())),
        age,
    ]);
    if wide {
        row.extend([
            or_dash(copied(&status.images)),
            or_dash(next_try(&status.images, now)),
            or_dash(progressing.map(|condition| condition.message.clone())),
        ]);
    }
    row
}

/// The first of several, and how many more there are.
fn some(mut all: impl Iterator<Item = String>) -> String {
    let first = all.next().unwrap_or_else(|| "-".into());
    match all.count() {
        0 => first,
        more => format!("{first} +{more}"),
    }
}

/// The request, and below it its images. `speeds` has bytes a second of each image that is being copied, where that is known.
pub(super) fn tree(listed: &Listed, speeds: &[Option<u64>], now: Timestamp) -> Vec<String> {
    let key = listed.key();
    let object = match &listed.stored {
        Stored::Read(object) => object,
        Stored::Unreadable(unreadable) => return vec![format!("{key}  {}", unreadable.why)],
    };
    let mut lines = head(&key, object, listed.requested_by(), now);
    let status = object.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or(initial());
    let all = object.spec.images.len();
    for (index, spec) in object.spec.images.iter().enumerate() {
        let (branch, below) = if index + 1 == all {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let own = match status.images.get(index) {
            Some(image) if is_finished(image) => summary::lines(image, phase),
            Some(image) => vec![working(image, speeds.get(index).copied().flatten(), now)],
            None => vec![spec.float.clone()],
        };
        for (place, line) in own.iter().enumerate() {
            let lead = if place == 0 { branch } else { below };
            // The summary indents its lines below the request's.
            let line = line.strip_prefix("  ").unwrap_or(line);
            lines.push(format!("{lead}{line}"));
        }
    }
    lines
}

fn head(
    key: &Key,
    object: &PromotionRequest,
    requested_by: Option<&str>,
    now: Timestamp,
) -> Vec<String> {
    let status = object.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or(initial());
    let ended = status.completion_time.as_ref().map(|time| time.0);
    let when = match (ended, age_of(&object.metadata, now)) {
        (Some(ended), _) => Some(format!("ended {} ago", age(ended, now))),
        (None, created) => created.map(|age| format!("created {age} ago")),
    };
    let parts = [
        Some(format!("{key}  {phase}")),
        status.progress.map(|progress| format!("{progress} done")),
        when,
        requested_by.map(|user| format!("asked for by {user} (claimed)")),
    ];
    let head: Vec<String> = parts.into_iter().flatten().collect();
    let mut lines = vec![head.join(", ")];
    match progressing(object) {
        Some(condition) => {
            lines.push(format!("  {}: {}", condition.reason, condition.message));
        }
        None => lines.push("  no controller has taken it up yet".into()),
    }
    lines
}

/// The line of an image that is in work.
fn working(image: &ImageStatus, speed: Option<u64>, now: Timestamp) -> String {
    let one = std::slice::from_ref(image);
    let speed = speed.filter(|&speed| speed > 0);
    let left = image
        .copy_total
        .zip(image.copied_now)
        .map(|(all, now)| all - now);
    let left = left.zip(speed.and_then(|speed| i64::try_from(speed).ok()));
    let left = left.map(|(left, speed)| format!("{} left", duration(left / speed)));
    let speed = speed.map(|speed| format!("{}/s", Bytes(speed)));
    let copied: Vec<String> = copied(one).into_iter().chain(speed).chain(left).collect();
    let next = next_try(one, now).map(|next| format!("; next try in {next}"));
    let why = match (&image.reason, &image.message) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (reason, message) => reason.iter().chain(message).cloned().collect(),
    };
    let parts = [
        image.float.clone(),
        image.phase.clone(),
        copied.join(", "),
        why + next.as_deref().unwrap_or_default(),
    ];
    let said: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    said.join("  ")
}

/// What of these was copied, where anything was.
fn copied(images: &[ImageStatus]) -> Option<String> {
    let sum = |of: fn(&ImageStatus) -> Option<i64>| {
        let bytes: i64 = images.iter().filter_map(of).sum();
        u64::try_from(bytes).unwrap_or_default()
    };
    let (now, total) = (sum(|i| i.copied_now), sum(|i| i.copy_total));
    let copied = Bytes(sum(|i| i.bytes_copied) + now);
    match (copied.0, total) {
        (0, 0) => None,
        (_, 0) => Some(copied.to_string()),
        (_, total) => Some(format!("{copied} of {}", Bytes(copied.0 - now + total))),
    }
}

/// In how long the first of these is tried again, if that is still to come.
fn next_try(images: &[ImageStatus], now: Timestamp) -> Option<String> {
    let open = images.iter().filter(|image| !is_finished(image));
    let times = open.filter_map(|image| image.next_attempt_time.as_ref());
    let next = times.map(|time| time.0).min()?;
    (next > now).then(|| duration(next.as_second() - now.as_second()))
}

/// The condition that says what the request is at.
fn progressing(object: &PromotionRequest) -> Option<&Condition> {
    let conditions = &object.status.as_ref()?.conditions;
    conditions.iter().find(|c| c.type_ == "Progressing")
}

fn is_finished(image: &ImageStatus) -> bool {
    Phase::parse(&image.phase).is_some_and(Phase::is_finished)
}

/// The phase of a request that has no status yet.
fn initial() -> &'static str {
    Phase::Pending.as_str()
}

fn age_of(metadata: &ObjectMeta, now: Timestamp) -> Option<String> {
    let created = metadata.creation_timestamp.as_ref()?;
    Some(age(created.0, now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn listed(images: &[Value], status: &Value) -> Listed {
        serde_json::from_value(json!({
            "metadata": {
                "name": "r", "namespace": "ci", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"ci.openshift.io/requested-by": "ann"},
            },
            "spec": {"images": images},
            "status": status,
        }))
        .unwrap()
    }

    fn image(tag: &str) -> Value {
        json!({"source": "x.io/s/a:b", "float": format!("x.io/o/ci:{tag}")})
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn progressing(reason: &str, message: &str) -> Value {
        json!([{
            "type": "Progressing", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }])
    }

    #[test]
    fn the_tree_shows_what_each_image_is_at_what_it_waits_for_and_where_it_ended() {
        let images = ["a", "b", "c"].map(image);
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let status = json!({
            "phase": "Pending", "progress": "1/3",
            "conditions": progressing("RegistryUnavailable", "x.io is down; next try 2026-01-01T00:01:12Z"),
            "images": [
                {"float": "x.io/o/ci:a", "phase": "Posted", "source": {"digest": digest('a')},
                 "displaced": [{"digest": digest('b'), "pruneTag": "20260101000000_prune_a"}]},
                {"float": "x.io/o/ci:b", "phase": "Pending", "copiedNow": 3 << 20, "copyTotal": 9 << 20},
                {"float": "x.io/o/ci:c", "phase": "Pending", "reason": "RegistryUnavailable", "message": "x.io is down",
                 "nextAttemptTime": "2026-01-01T00:01:12Z"},
            ],
        });
        let now = at("2026-01-01T00:01:00Z");
        let shown = tree(&listed(&images, &status), &[None, Some(1 << 20)], now);
        let wanted = format!(
            "ci/r  Pending, 1/3 done, created 60s ago, asked for by ann (claimed)\n  \
             RegistryUnavailable: x.io is down; next try 2026-01-01T00:01:12Z\n\
             ├─ x.io/o/ci:a  Posted\n\
             │    promoted  {}\n\
             │    displaced {}, kept as 20260101000000_prune_a\n\
             ├─ x.io/o/ci:b  Pending  3.0 MiB of 9.0 MiB, 1.0 MiB/s, 6s left\n\
             └─ x.io/o/ci:c  Pending  RegistryUnavailable: x.io is down; next try in 12s",
            digest('a'),
            digest('b'),
        );
        assert_eq!(shown.join("\n"), wanted);
    }

    #[test]
    fn a_request_that_no_controller_has_seen_and_one_of_a_newer_version_are_shown_too() {
        let now = at("2026-01-01T00:01:00Z");
        let unseen = listed(&["a", "b"].map(image), &json!(null));
        let row = row(&unseen, true, false, now);
        assert_eq!(
            row,
            ["ci", "r", "Pending", "-", "x.io/o/ci:a +1", "-", "60s"]
        );
        assert!(tree(&unseen, &[], now)[1].contains("no controller"));
        let newer: Listed = serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "ci"},
            "spec": {"images": [image("a")], "novelty": 1},
        }))
        .unwrap();
        let row = super::row(&newer, false, true, now);
        assert_eq!(row[..5], ["r", "-", "-", "x.io/o/ci:a", "Unreadable"]);
        assert!(row[8].contains("novelty"), "{row:?}");
    }
}
