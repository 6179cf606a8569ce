//! What a float was on, and since when, as far as requests tell.
//!
//! In come the requests that name the float; out come the digests it was on, newest first. A request is swept some time after its end,
//! so the past reaches no further back than the oldest that is still there.

use jiff::Timestamp;

use super::touch::{self, order};
use crate::api::{ImageStatus, Mode, PinStatus, SecretRef};
use crate::image::{Stamp, Tag};
use crate::machine::Phase;
use crate::store::requests::{Listed, RequestError, Selection};
use crate::store::{Key, Stored};

use super::reach::Reach;
use crate::api::labels::float_label;

/// What one request says of one float.
#[derive(Debug, Clone)]
pub(super) struct Touch {
    pub(super) request: Key,
    pub(super) requested_by: Option<String>,
    pub(super) created: Option<Timestamp>,
    /// When it ended.
    pub(super) ended: Option<Timestamp>,
    /// The request's phase.
    pub(super) phase: String,
    /// What the request says that it is at.
    pub(super) message: String,
    /// The float's part of it; none if no controller has seen it.
    pub(super) image: Option<ImageStatus>,
    /// Whether it may still move the float.
    pub(super) waits: bool,
    /// Whether it took the float back.
    pub(super) undo: bool,
    /// What it read sources with.
    pub(super) pull: Option<SecretRef>,
    /// What it wrote floats with.
    pub(super) push: Option<SecretRef>,
    /// The namespace and the image stream tag that follows the float.
    pub(super) stream: Option<[String; 2]>,
    order: Option<i64>,
}

/// Where requests of a float are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that are labelled with it.
    Labelled,
    /// All that were asked for.
    All,
    /// All in every namespace that the caller may see, if that is all of them; else those of its own.
    Everywhere,
}

/// A digest that the float was on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) digest: String,
    /// Since when; none where that is not known.
    pub(super) from: Option<Timestamp>,
    /// None: as far as requests tell, it is on it now.
    pub(super) until: Option<Timestamp>,
    /// Who put it there; none where no request did that is still there.
    pub(super) request: Option<Key>,
    pub(super) requested_by: Option<String>,
    /// The tag that has held it since.
    pub(super) pin: Option<String>,
}

/// The requests that name the float and are no plans, newest first.
pub(super) async fn touches(
    reach: &Reach,
    float: &str,
    scope: Scope,
) -> Result<Vec<Touch>, RequestError> {
    let mut found: Vec<Touch> = Vec::new();
    let mut each =
        |page: Vec<Listed>| found.extend(page.iter().filter_map(|one| Touch::of(one, float)));
    let namespace = reach.namespace.as_deref();
    match scope {
        Scope::Labelled => {
            let label = float_label(float);
            let selection = Selection::Labelled(&label);
            reach.requests.pages(namespace, selection, each).await?;
        }
        Scope::All => {
            let all = Selection::All;
            reach.requests.pages(namespace, all, each).await?;
        }
        Scope::Everywhere => reach.everywhere(&mut each).await?,
    }
    Ok(newest_first(found))
}

/// What no controller has seen yet comes last in the order of requests, so it is the newest.
pub(super) fn newest_first(mut found: Vec<Touch>) -> Vec<Touch> {
    let place = |touch: &Touch| (touch.order.unwrap_or(i64::MAX), touch.created);
    found.sort_by_key(|touch| std::cmp::Reverse(place(touch)));
    found
}

impl Scope {
    /// With `--all`, or without.
    pub(super) fn of(all: bool) -> Self {
        if all { Self::All } else { Self::Labelled }
    }
}

// === impl Touch ===

impl Touch {
    pub(super) fn of(listed: &Listed, float: &str) -> Option<Self> {
        let object = match &listed.stored {
            Stored::Read(object) => object,
            Stored::Unreadable(unreadable) => {
                let named = touch::touches(&listed.stored, float);
                return named.then(|| Self {
                    request: listed.key(),
                    requested_by: listed.requested_by().map(str::to_owned),
                    created: created(listed),
                    ended: None,
                    phase: "-".into(),
                    message: unreadable.why.clone(),
                    image: None,
                    waits: !unreadable.finished,
                    undo: false,
                    pull: None,
                    push: None,
                    stream: None,
                    order: unreadable.order.and_then(|n| i64::try_from(n).ok()),
                });
            }
        };
        let index = object.spec.images.iter().position(|i| i.float == float)?;
        if object.spec.mode == Mode::Plan {
            return None;
        }
        let status = object.status.as_ref();
        let condition = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == "Progressing"));
        let phase = status.and_then(|s| s.phase.clone());
        Some(Self {
            request: listed.key(),
            requested_by: listed.requested_by().map(str::to_owned),
            created: created(listed),
            ended: status.and_then(|s| s.completion_time.as_ref()).map(|t| t.0),
            phase: phase.unwrap_or_else(|| Phase::Pending.as_str().into()),
            message: condition.map_or_else(String::new, |c| format!("{}: {}", c.reason, c.message)),
            image: status.and_then(|s| s.images.get(index).cloned()),
            waits: !object.is_finished(),
            undo: object.spec.undo,
            pull: object.spec.pull_secret.clone(),
            push: object.spec.push_secret.clone(),
            stream: object
                .spec
                .image_stream_namespace
                .as_ref()
                .and_then(|namespace| {
                    let tag = object.spec.images.get(index)?.image_stream_tag.clone()?;
                    Some([namespace.clone(), tag])
                }),
            order: order(object),
        })
    }

    /// The pins that it left: of what it displaced, newest first.
    pub(super) fn pins(&self) -> impl Iterator<Item = &PinStatus> {
        let image = self.image.iter();
        image.flat_map(|image| image.displaced.iter().rev().chain(&image.rescued))
    }

    /// The digest that it put the float on, if it did.
    pub(super) fn promoted(&self) -> Option<&str> {
        let image = self.image.as_ref()?;
        let posted = Phase::parse(&image.phase).is_some_and(Phase::is_posted);
        let moved = posted && image.unchanged != Some(true);
        image
            .source
            .as_ref()
            .filter(|_| moved)
            .map(|s| s.digest.as_str())
    }
}

fn created(listed: &Listed) -> Option<Timestamp> {
    use kube::Resource as _;
    listed
        .stored
        .meta()
        .creation_timestamp
        .as_ref()
        .map(|t| t.0)
}

/// When a pin was made, as its name says.
pub(super) fn stamped(tag: &str) -> Option<Timestamp> {
    Stamp::of(&tag.parse::<Tag>().ok()?).and_then(Stamp::time)
}

/// What the float was on, newest first: what requests put it on, and what they found that none of them had put there.
pub(super) fn past(touches: &[Touch]) -> Vec<Held> {
    let mut held: Vec<Held> = Vec::new();
    // Until when the one before was there, and what pins it.
    let mut until: Option<Timestamp> = None;
    let mut pins: Vec<PinStatus> = Vec::new();
    for touch in touches {
        let Some(digest) = touch.promoted() else {
            continue;
        };
        foreign(&mut held, &mut pins, until, Some(digest));
        let pin = pins.iter().position(|pin| pin.digest == digest);
        held.push(Held {
            digest: digest.into(),
            from: touch.ended,
            until,
            request: Some(touch.request.clone()),
            requested_by: touch.requested_by.clone(),
            pin: pin.map(|at| pins.swap_remove(at).prune_tag),
        });
        until = touch.ended;
        let image = touch.image.iter();
        pins = image
            .flat_map(|image| image.displaced.iter().rev().cloned())
            .collect();
    }
    foreign(&mut held, &mut pins, until, None);
    held
}

/// What was displaced, newest first, and was put there by no request that is known.
fn foreign(
    held: &mut Vec<Held>,
    pins: &mut Vec<PinStatus>,
    until: Option<Timestamp>,
    known: Option<&str>,
) {
    let (own, others): (Vec<_>, Vec<_>) =
        pins.drain(..).partition(|pin| known == Some(&pin.digest));
    held.extend(others.into_iter().map(|pin| Held {
        digest: pin.digest,
        from: None,
        until,
        request: None,
        requested_by: None,
        pin: Some(pin.prune_tag),
    }));
    *pins = own;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    const FLOAT: &str = "x.io/o/ci:f";

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn touch(order: i64, phase: &str, source: char, displaced: &[char]) -> Touch {
        let pins: Vec<Value> = displaced
            .iter()
            .map(|c| json!({"digest": digest(*c), "pruneTag": format!("2026010100000{order}_prune_f")}))
            .collect();
        let listed: Listed = serde_json::from_value(json!({
            "metadata": {"name": format!("r{order}"), "namespace": "ci", "uid": format!("{order}")},
            "spec": {"images": [{"source": "x.io/s/a:b", "float": FLOAT}]},
            "status": {
                "order": order, "phase": phase, "completionTime": format!("2026-01-01T00:00:0{order}Z"),
                "images": [{"float": FLOAT, "phase": phase, "source": {"digest": digest(source)}, "displaced": pins}],
            },
        }))
        .unwrap();
        Touch::of(&listed, FLOAT).unwrap()
    }

    #[test]
    fn the_past_is_what_requests_put_there_and_what_they_found_with_the_pin_of_each() {
        // A was there, r1 put b; somebody put x; r3 put c, while d came between; r4 failed.
        let touches = [
            touch(4, "Failed", 'e', &['c']),
            touch(3, "Posted", 'c', &['x', 'd']),
            touch(1, "Posted", 'b', &['a']),
        ];
        let past = past(&touches);
        let said = past.iter().map(|held| {
            let second = |time: Option<Timestamp>| time.map(|t| t.as_second() % 60);
            let request = held.request.as_ref().map(|key| key.name.as_str());
            let times = (second(held.from), second(held.until));
            (held.digest.clone(), times, request, held.pin.is_some())
        });
        assert_eq!(
            said.collect::<Vec<_>>(),
            [
                (digest('c'), (Some(3), None), Some("r3"), false),
                (digest('d'), (None, Some(3)), None, true),
                (digest('x'), (None, Some(3)), None, true),
                (digest('b'), (Some(1), Some(3)), Some("r1"), false),
                (digest('a'), (None, Some(1)), None, true),
            ]
        );
        assert_eq!(past[4].pin.as_deref(), Some("20260101000001_prune_f"));
        assert_eq!(
            stamped(past[4].pin.as_ref().unwrap()),
            "2026-01-01T00:00:01Z".parse().ok()
        );
    }

    #[test]
    fn what_the_next_request_displaced_is_the_pin_of_the_one_before() {
        let touches = [
            touch(2, "Posted", 'c', &['b']),
            touch(1, "Posted", 'b', &[]),
        ];
        let past = past(&touches);
        assert_eq!(past.len(), 2);
        assert_eq!(past[1].pin.as_deref(), Some("20260101000002_prune_f"));
        assert_eq!(past[1].until, past[0].from);
    }
}
