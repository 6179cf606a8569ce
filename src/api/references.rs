//! Tags of image streams, as a spec names them and a status tells of them.

use std::collections::HashMap;

use promotion_core::named;

use super::text::cut;
use super::{PromotionRequest, PromotionRequestSpec, ReferenceStatus, conditions};
use crate::machine::{Phase, References};
use crate::stream::{Referred, StreamTag};

/// The longest note of what a tag was, in bytes: the largest object has room for no more.
const REPLACED_MAX: usize = 96;
/// The longest namespace.
const NAMESPACE_MAX: usize = 63;

named! {
    /// What became of a tag.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum ReferenceState {
        /// It refers to the promoted image.
        Set,
        /// A newer request has set it, or the float moved on: it is left.
        Superseded,
        /// It could not be set.
        Failed,
    }
}

/// Checks the tags that a spec names; the field and what is wrong with it.
pub(super) fn check(spec: &PromotionRequestSpec) -> Result<(), (String, String)> {
    let mut seen: HashMap<StreamTag, usize> = HashMap::new();
    for (index, image) in spec.images.iter().enumerate() {
        let Some(text) = &image.image_stream_tag else {
            continue;
        };
        let field = format!("spec.images[{index}].imageStreamTag");
        let tag: StreamTag = text.parse().map_err(|e| (field.clone(), format!("{e}")))?;
        if let Some(same) = seen.insert(tag, index) {
            let message = format!(
                "is the same stream tag as spec.images[{same}]'s; name each stream tag once"
            );
            return Err((field, message));
        }
    }
    let field = || "spec.imageStreamNamespace".to_owned();
    let Some(namespace) = &spec.image_stream_namespace else {
        let message =
            "is missing; imageStreamTag needs it: name the namespace of the image streams";
        return if seen.is_empty() {
            Ok(())
        } else {
            Err((field(), message.into()))
        };
    };
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = namespace.len() <= NAMESPACE_MAX
        && namespace.starts_with(edge)
        && namespace.ends_with(edge)
        && namespace.chars().all(|c| edge(c) || c == '-');
    if !fits {
        let message = format!(
            "'{}' is no name of a namespace; write 1 to 63 lower-case letters, digits and '-'",
            cut(namespace, NAMESPACE_MAX + 1)
        );
        return Err((field(), message));
    }
    if seen.is_empty() {
        let message =
            "has no meaning here: no image has an imageStreamTag; add one, or leave it out";
        return Err((field(), message.into()));
    }
    Ok(())
}

/// How far the tags are, by a status.
pub(super) fn read(object: &PromotionRequest) -> References {
    let named = tags(object).next().is_some();
    if !named || object.spec.mode == super::Mode::Plan {
        return References::None;
    }
    if open(object).next().is_some() {
        return References::Open;
    }
    let states = || states(object);
    let said = conditions::referenced(object).unwrap_or_default();
    if states().any(|state| state == ReferenceState::Failed.as_str()) {
        References::Failed(said)
    } else if states().next().is_some() {
        References::Set(said)
    } else {
        References::None
    }
}

/// The tags that a spec names, with their images' places.
fn tags(object: &PromotionRequest) -> impl Iterator<Item = (usize, StreamTag)> {
    let images = object.spec.images.iter().enumerate();
    images.filter_map(|(index, image)| {
        let tag = image.image_stream_tag.as_deref()?.parse().ok()?;
        Some((index, tag))
    })
}

/// The tags that are still to be set, or may be once their floats have moved.
pub fn open(object: &PromotionRequest) -> impl Iterator<Item = (usize, StreamTag)> {
    let status = |index: usize| object.status.as_ref()?.images.get(index);
    tags(object).filter(move |(index, _)| {
        status(*index).is_none_or(|image| {
            let phase = Phase::parse(&image.phase);
            image.reference.is_none() && !phase.is_some_and(Phase::is_unsuccessful)
        })
    })
}

fn states(object: &PromotionRequest) -> impl Iterator<Item = &str> {
    let images = object.status.iter().flat_map(|status| &status.images);
    images.filter_map(|image| Some(image.reference.as_ref()?.state.as_str()))
}

/// Notes what became of the tag of an image.
pub fn note(object: &mut PromotionRequest, index: usize, became: &Result<Referred, String>) {
    let image = object.status.as_mut().and_then(|s| s.images.get_mut(index));
    let Some(image) = image else {
        return;
    };
    let (state, replaced) = match became {
        Ok(Referred::Set(replaced)) => (ReferenceState::Set, replaced.as_deref()),
        Ok(Referred::Superseded) => (ReferenceState::Superseded, None),
        Err(_) => (ReferenceState::Failed, None),
    };
    // The end of what it was tells more than the beginning: its digest.
    let replaced = replaced.map(|text| {
        let skip = text.len().saturating_sub(REPLACED_MAX);
        let start = (skip..=text.len()).find(|&at| text.is_char_boundary(at));
        text[start.unwrap_or(text.len())..].to_owned()
    });
    image.reference = Some(ReferenceStatus {
        state: state.as_str().into(),
        replaced,
    });
}

/// What there is to say of all tags, once none is open; `failed` is the first that could not be set, with its cause.
#[must_use]
pub fn ended(object: &PromotionRequest, failed: Option<&str>) -> References {
    let count = |state: ReferenceState| states(object).filter(|&s| s == state.as_str()).count();
    let all = states(object).count();
    if all == 0 {
        return References::None;
    }
    let (set, left) = (
        count(ReferenceState::Set),
        count(ReferenceState::Superseded),
    );
    let mut said = format!("image stream tags set: {set} of {all}");
    if left > 0 {
        said = format!("{said}; left to newer requests: {left}");
    }
    match failed {
        Some(failed) => References::Failed(format!("{said}; {failed}")),
        None => References::Set(said),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::super::status::{read, record, write};
    use super::*;

    fn object(images: &[Option<&str>], namespace: Option<&str>) -> PromotionRequest {
        let images = images.iter().enumerate().map(|(n, tag)| {
            let mut image = json!({"source": "x.io/a/b:c", "float": format!("x.io/a/b:f{n}")});
            if let Some(tag) = tag {
                image["imageStreamTag"] = json!(tag);
            }
            image
        });
        let mut spec = json!({"images": images.collect::<Vec<Value>>()});
        if let Some(namespace) = namespace {
            spec["imageStreamNamespace"] = json!(namespace);
        }
        serde_json::from_value(json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "x"},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn stream_tags_that_cannot_be_meant_are_named_with_their_field_before_anything_is_done() {
        let long = "n".repeat(64);
        for (images, namespace, field, words) in [
            (
                &[Some("cli")][..],
                Some("ocp"),
                "spec.images[0].imageStreamTag",
                "STREAM:TAG",
            ),
            (
                &[None, Some("s:a"), Some("s:a")],
                Some("ocp"),
                "spec.images[2].imageStreamTag",
                "spec.images[1]",
            ),
            (
                &[Some("s:a")],
                None,
                "spec.imageStreamNamespace",
                "is missing",
            ),
            (
                &[None],
                Some("ocp"),
                "spec.imageStreamNamespace",
                "no image has",
            ),
            (
                &[Some("s:a")],
                Some("../x"),
                "spec.imageStreamNamespace",
                "no name of a namespace",
            ),
            (
                &[Some("s:a")],
                Some(&long),
                "spec.imageStreamNamespace",
                "no name of a namespace",
            ),
        ] {
            let error = read(&object(images, namespace)).unwrap_err().to_string();
            assert!(error.starts_with(field) && error.contains(words), "{error}");
        }
        read(&object(&[Some("s:a"), None, Some("s:b")], Some("ocp"))).unwrap();
    }

    #[test]
    fn a_request_refers_once_its_floats_are_done_and_what_became_of_it_is_read_back() {
        let now = jiff::Timestamp::from_second(1).unwrap();
        let mut object = object(&[Some("s:a"), Some("s:b"), None], Some("ocp"));
        let mut request = read(&object).unwrap();
        assert_eq!(request.status.references, References::Open);
        for image in &mut request.status.images {
            image.phase = Phase::Posted;
        }
        assert_eq!(request.phase(), Phase::Referencing);
        write(&mut object, &request, None, now);
        assert!(object.has_done_with_floats() && !object.is_finished());
        assert_eq!(
            open(&object).map(|(index, _)| index).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(read(&object).unwrap(), request);

        let long = format!("x.io/{}@sha256:{}", "r".repeat(200), "0".repeat(64));
        note(&mut object, 0, &Ok(Referred::Set(Some(long.clone()))));
        assert_eq!(read(&object).unwrap().status.references, References::Open);
        let image = |object: &PromotionRequest| object.status.as_ref().unwrap().images[0].clone();
        let replaced = image(&object).reference.unwrap().replaced.unwrap();
        assert!(replaced.len() == REPLACED_MAX && long.ends_with(&replaced));
        for (became, phase) in [
            (Ok(Referred::Superseded), Phase::Posted),
            (Err("no".into()), Phase::Failed),
        ] {
            let mut object = object.clone();
            note(&mut object, 1, &became);
            let failed = became.as_ref().err().map(String::as_str);
            let ended = ended(&object, failed);
            let request = record(&object, ended, now).unwrap();
            assert_eq!(request.phase(), phase);
            write(&mut object, &request, None, now);
            assert!(object.is_finished() && open(&object).next().is_none());
            assert_eq!(read(&object).unwrap(), request);
        }
    }
}
