//! Where floats go back to. Pure: from what requests tell.

use super::past::Touch;
use crate::api::PromotionRequest;
use crate::machine::Phase;

/// One float that is to go back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Back {
    /// The float, as the spec has it.
    pub(super) float: String,
    /// What it is to be on again.
    pub(super) to: String,
    /// The tag that pins it, where one is known.
    pub(super) pin: Option<String>,
    /// What it was moved to, and has to be on still.
    pub(super) from: String,
    /// The image stream tag that follows it.
    pub(super) stream_tag: Option<String>,
}

/// What takes back a request: every image of it that was committed and had displaced something, whatever became of it; and the floats
/// that were promoted for the first time, which have nothing to go back to.
///
/// # Errors
/// Why there is nothing to take back.
pub(super) fn of_request(object: &PromotionRequest) -> Result<(Vec<Back>, Vec<String>), String> {
    let phase = object.phase();
    if !phase.is_some_and(Phase::is_finished) {
        return Err("has not ended: there is nothing to take back yet; cancel it instead".into());
    }
    if phase.is_some_and(Phase::is_planned) {
        return Err("only planned: it moved no float".into());
    }
    if object.spec.undo {
        return Err(
            "is an undo: what it displaced was taken back. To go back one more, undo the float"
                .into(),
        );
    }
    let (mut back, mut first) = (Vec::new(), Vec::new());
    let images = object.status.iter().flat_map(|status| &status.images);
    let images = object.spec.images.iter().zip(images);
    let moved = images.filter(|(_, i)| i.unchanged != Some(true) && object.has_committed(i));
    for (spec, image) in moved {
        let Some(source) = &image.source else {
            continue;
        };
        match image.displaced.last() {
            Some(pin) => back.push(Back {
                float: image.float.clone(),
                to: pin.digest.clone(),
                pin: Some(pin.prune_tag.clone()),
                from: source.digest.clone(),
                stream_tag: spec.image_stream_tag.clone(),
            }),
            None => first.push(image.float.clone()),
        }
    }
    if back.is_empty() {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let why = conditions.into_iter().find(|c| c.type_ == "Progressing");
        let why = why.map_or_else(String::new, |c| format!(" ({}: {})", c.reason, c.message));
        return Err(format!(
            "moved no float off anything, so there is nothing to go back to{why}"
        ));
    }
    Ok((back, first))
}

/// The digests that a float went through, the present one last. What an undo has taken back is not among them: going back twice goes back
/// one more. In come the requests that name the float, newest first.
pub(super) fn way(touches: &[Touch]) -> Vec<String> {
    let mut way: Vec<String> = Vec::new();
    let come_to = |way: &mut Vec<String>, digest: &str| {
        if way.last().is_none_or(|last| last != digest) {
            way.push(digest.to_owned());
        }
    };
    for touch in touches.iter().rev() {
        let Some(digest) = touch.promoted() else {
            continue;
        };
        if touch.undo {
            match way.iter().rposition(|known| known == digest) {
                Some(at) => way.truncate(at + 1),
                None => way = vec![digest.to_owned()],
            }
            continue;
        }
        for pin in touch.image.iter().flat_map(|image| &image.displaced) {
            come_to(&mut way, &pin.digest);
        }
        come_to(&mut way, digest);
    }
    way
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::store::requests::Listed;

    const FLOAT: &str = "x.io/o/ci:f";

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    fn touch(order: i64, undo: bool, source: char, displaced: &[char]) -> Touch {
        let pins: Vec<Value> = displaced
            .iter()
            .map(|c| json!({"digest": digest(*c), "pruneTag": format!("2026010100000{order}_prune_f")}))
            .collect();
        let mut value = json!({
            "metadata": {"name": format!("r{order}"), "namespace": "ci", "uid": format!("{order}")},
            "spec": {"images": [{"source": "x.io/s/a:b", "float": FLOAT}]},
            "status": {"order": order, "phase": "Posted", "images": [
                {"float": FLOAT, "phase": "Posted", "source": {"digest": digest(source)}, "displaced": pins},
            ]},
        });
        if undo {
            value["spec"]["undo"] = json!(true);
        }
        let listed: Listed = serde_json::from_value(value).unwrap();
        Touch::of(&listed, FLOAT).unwrap()
    }

    #[test]
    fn going_back_twice_goes_back_one_more_and_never_forward_to_what_was_taken_back() {
        let mut touches = vec![
            touch(1, false, 'b', &['a']),
            touch(2, false, 'c', &['b']),
            touch(3, true, 'b', &['c']),
        ];
        let way_of = |touches: &[Touch]| {
            let newest: Vec<Touch> = touches.iter().rev().cloned().collect();
            way(&newest)
        };
        assert_eq!(way_of(&touches), [digest('a'), digest('b')]);
        // One that comes after is undone as any.
        touches.push(touch(4, false, 'd', &['b']));
        assert_eq!(way_of(&touches), [digest('a'), digest('b'), digest('d')]);
        touches.push(touch(5, true, 'b', &['d']));
        touches.push(touch(6, true, 'a', &['b']));
        assert_eq!(way_of(&touches), [digest('a')]);
    }

    #[test]
    fn what_somebody_else_put_between_is_on_the_way_and_an_undo_without_a_past_begins_anew() {
        assert_eq!(
            way(&[touch(2, false, 'c', &['x', 'y']), touch(1, false, 'b', &[])]),
            ['b', 'x', 'y', 'c'].map(digest)
        );
        assert_eq!(way(&[touch(2, true, 'z', &['c'])]), [digest('z')]);
    }

    fn request(status: &Value, spec: &Value) -> PromotionRequest {
        let images: Vec<Value> = ["f", "g", "h", "i"]
            .iter()
            .map(|tag| json!({"source": "x.io/s/a:b", "float": format!("x.io/o/ci:{tag}")}))
            .collect();
        let mut value = json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": "r"}, "spec": {"images": images}, "status": status,
        });
        for (field, of) in spec.as_object().unwrap() {
            value["spec"][field] = of.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_committed_image_goes_back_whatever_became_of_it_and_one_in_place_before_stays() {
        let pin = json!([{"digest": digest('a'), "pruneTag": "1"}, {"digest": digest('b'), "pruneTag": "2"}]);
        let source = json!({"digest": digest('c')});
        let status = json!({"phase": "Failed", "committed": true, "images": [
            {"float": "x.io/o/ci:f", "phase": "Posted", "source": source, "displaced": pin},
            {"float": "x.io/o/ci:g", "phase": "Failed", "reason": "Held", "source": source, "displaced": pin},
            {"float": "x.io/o/ci:h", "phase": "Posted", "source": source, "unchanged": true},
            {"float": "x.io/o/ci:i", "phase": "Posted", "source": source},
        ]});
        let back = |tag: &str| Back {
            float: format!("x.io/o/ci:{tag}"),
            to: digest('b'),
            pin: Some("2".into()),
            from: digest('c'),
            stream_tag: (tag == "f").then(|| "stream:f".into()),
        };
        let mut object = request(&status, &json!({}));
        object.spec.images[0].image_stream_tag = Some("stream:f".into());
        let found = of_request(&object).unwrap();
        assert_eq!(
            found,
            (vec![back("f"), back("g")], vec!["x.io/o/ci:i".into()])
        );
    }

    #[test]
    fn what_is_unfinished_moved_nothing_or_is_an_undo_is_not_taken_back() {
        let refused =
            |status: Value, spec: Value| of_request(&request(&status, &spec)).unwrap_err();
        assert!(refused(json!({"phase": "Latched"}), json!({})).contains("has not ended"));
        assert!(refused(json!({"phase": "Planned"}), json!({})).contains("only planned"));
        assert!(refused(json!({"phase": "Posted"}), json!({"undo": true})).contains("is an undo"));
        let superseded = json!({"phase": "Failed", "conditions": [{
            "type": "Progressing", "status": "False", "reason": "Superseded", "message": "by ci/s",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        assert!(
            refused(superseded, json!({})).contains("nothing to go back to (Superseded: by ci/s)")
        );
    }
}
