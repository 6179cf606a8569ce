//! Which requests touched a float, and in which order.

use crate::api::{Mode, PromotionRequest};
use crate::image::Float;
use crate::machine::Phase;
use crate::store::Stored;
use kube::Resource as _;

/// Whether a request may have moved this float, or may still do so.
pub(super) fn touches(stored: &Stored, float: &str) -> bool {
    match stored {
        Stored::Read(object) => has_touched(object, float),
        Stored::Unreadable(unreadable) => {
            let named = |known: &Float| known.to_string() == float;
            unreadable.floats.iter().any(named)
        }
    }
}

fn has_touched(object: &PromotionRequest, float: &str) -> bool {
    let Some(index) = object.spec.images.iter().position(|i| i.float == float) else {
        return false;
    };
    if object.spec.mode == Mode::Plan {
        return false;
    }
    if !object.is_finished() {
        return true;
    }
    let image = object.status.iter().find_map(|s| s.images.get(index));
    image.is_some_and(|image| {
        let posted = Phase::parse(&image.phase).is_some_and(Phase::is_posted);
        posted || object.has_committed(image)
    })
}

/// Whether a request comes after another in the order of requests. One that no controller has seen comes after those that one has.
pub(super) fn is_newer(stored: &Stored, than: &PromotionRequest) -> bool {
    let order = match stored {
        Stored::Read(object) => order(object),
        Stored::Unreadable(unreadable) => unreadable.order.and_then(|n| i64::try_from(n).ok()),
    };
    let meta = stored.meta();
    if meta.uid == than.metadata.uid {
        return false;
    }
    match (order, self::order(than)) {
        (Some(this), Some(other)) => this > other,
        (None, Some(_)) => true,
        (Some(_), None) => false,
        (None, None) => meta.creation_timestamp >= than.metadata.creation_timestamp,
    }
}

/// Its place in the order of requests; none before a controller has seen it.
pub(super) fn order(object: &PromotionRequest) -> Option<i64> {
    object.status.as_ref()?.order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn stored(order: Option<i64>, phase: &str, more: &Value) -> Stored {
        let mut object = json!({
            "metadata": {"name": "r", "namespace": "ci", "uid": format!("{order:?}{phase}")},
            "spec": {"images": [{"source": "x.io/s/a:b", "float": "x.io/o/ci:f"}]},
            "status": {"order": order, "phase": phase, "images": [{"float": "x.io/o/ci:f", "phase": phase}]},
        });
        for (pointer, value) in more.as_object().unwrap() {
            let (place, field) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(place).unwrap()[field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_float_is_touched_by_what_is_unfinished_promoted_or_was_committed_and_by_no_plan() {
        let touched =
            |phase: &str, more: Value| touches(&stored(Some(1), phase, &more), "x.io/o/ci:f");
        assert!(touched("Pending", json!({})));
        assert!(touched("Posted", json!({})));
        assert!(touched("Failed", json!({"/status/committed": true})));
        assert!(!touched("Failed", json!({})));
        assert!(!touched(
            "Failed",
            json!({"/status/committed": true, "/spec/latch": "Independently"})
        ));
        assert!(!touched("Pending", json!({"/spec/mode": "Plan"})));
        assert!(touched("Pending", json!({"/spec/novelty": 1})));
        assert!(!touches(
            &stored(Some(1), "Posted", &json!({})),
            "x.io/o/ci:other"
        ));
    }

    #[test]
    fn the_order_is_the_controllers_and_what_none_has_seen_comes_last() {
        let object = |order| match stored(order, "Posted", &json!({})) {
            Stored::Read(object) => *object,
            Stored::Unreadable(_) => unreachable!(),
        };
        let newer = |this, than| is_newer(&stored(this, "Pending", &json!({})), &object(than));
        assert!(newer(Some(2), Some(1)) && !newer(Some(1), Some(2)));
        assert!(newer(None, Some(2)) && !newer(Some(2), None));
    }
}
