//! Objects as an API server has them: in this version's terms, or what can be said of those that are not.
//!
//! A newer version may have written what this one cannot read: a field of the spec, a phase, a shape. Such an object is left alone;
//! the floats that it names are read off it all the same, because it may have begun on them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::kept::Kept;
use crate::api::status::{LEFT_ALONE, ReadError};
use crate::api::{PromotionRequest, PromotionRequestSpec, PromotionRequestStatus};
use crate::image::Float;
use crate::machine::Phase;

/// An object of a list, a watch or a load.
#[derive(Debug, Clone)]
pub enum Stored {
    /// In this version's terms.
    Read(Box<PromotionRequest>),
    /// Not, or not all of its spec, in this version's terms.
    Unreadable(Box<Unreadable>),
}

/// An object that this version cannot read, as far as it concerns others.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What of it could be decoded.
    pub object: Option<Box<PromotionRequest>>,
    /// What cannot be read, and what to do.
    pub why: String,
    /// The floats that it names, unless it only plans.
    pub floats: Vec<Float>,
    /// Its place, if one is recorded.
    pub order: Option<u64>,
    /// It may have begun.
    pub started: bool,
    /// It has ended.
    pub finished: bool,
}

// === impl Stored ===

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Kept { metadata, content } = Kept::<Value, Value>::deserialize(deserializer)?;
        let (spec, status) = content.unwrap_or_default();
        let status = status.unwrap_or_default();
        let mut unknown = None;
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&spec, &mut track);
        let spec_read: Result<PromotionRequestSpec, _> =
            serde_ignored::deserialize(tracked, |path| {
                unknown = unknown.take().or(Some(path.to_string()));
            });
        let spec_read = spec_read.map_err(|error| format!("spec.{}: {error}", track.path()));
        let status_read: Result<Option<PromotionRequestStatus>, _> =
            serde_path_to_error::deserialize(&status);
        let status_read = status_read.map_err(|error| format!("status.{error}"));
        let read = spec_read.and_then(|spec| Ok((spec, status_read?)));
        let object = read.map(|(spec, status)| PromotionRequest {
            metadata: metadata.clone(),
            spec,
            status,
        });
        let (why, object) = match (object, unknown) {
            (Ok(object), None) => return Ok(Self::Read(Box::new(object))),
            (Ok(object), Some(field)) => {
                let why = format!("spec.{field} is a field that this version does not know");
                (why, Some(Box::new(object)))
            }
            (Err(why), _) => (why, None),
        };
        let why = format!("{why}; {LEFT_ALONE}");
        let unreadable = Unreadable::of(metadata, (&spec, &status), why, object);
        Ok(Self::Unreadable(Box::new(unreadable)))
    }
}

impl Resource for Stored {
    type DynamicType = ();
    type Scope = <PromotionRequest as Resource>::Scope;

    fn kind(version: &()) -> std::borrow::Cow<'_, str> {
        PromotionRequest::kind(version)
    }

    fn group(version: &()) -> std::borrow::Cow<'_, str> {
        PromotionRequest::group(version)
    }

    fn version(version: &()) -> std::borrow::Cow<'_, str> {
        PromotionRequest::version(version)
    }

    fn plural(version: &()) -> std::borrow::Cow<'_, str> {
        PromotionRequest::plural(version)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Read(object) => &object.metadata,
            Self::Unreadable(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Read(object) => &mut object.metadata,
            Self::Unreadable(unreadable) => &mut unreadable.metadata,
        }
    }
}

// === impl Unreadable ===

impl Unreadable {
    /// What an object that was read, and is not understood, says of itself.
    #[must_use]
    pub fn of_object(object: &PromotionRequest, error: &ReadError) -> Self {
        // What was read can be written.
        let spec = serde_json::to_value(&object.spec).unwrap_or_default();
        let status = serde_json::to_value(&object.status).unwrap_or_default();
        let (metadata, why) = (object.metadata.clone(), error.to_string());
        Self::of(
            metadata,
            (&spec, &status),
            why,
            Some(Box::new(object.clone())),
        )
    }

    fn of(
        metadata: ObjectMeta,
        (spec, status): (&Value, &Value),
        why: String,
        object: Option<Box<PromotionRequest>>,
    ) -> Self {
        // What a newer mode comes to is not known.
        let plans = spec["mode"] == "Plan";
        let mut floats: Vec<Float> = Vec::new();
        for images in [spec, status]
            .map(|part| &part["images"])
            .into_iter()
            .filter(|_| !plans)
        {
            for image in images.as_array().into_iter().flatten() {
                let float = image["float"].as_str().and_then(|float| float.parse().ok());
                floats.extend(float.filter(|float| !floats.contains(float)));
            }
        }
        let images = status["images"].as_array().into_iter().flatten();
        let mut phases = images
            .map(|image| &image["phase"])
            .chain([&status["phase"]]);
        let is_known = |phase: &Value| match phase {
            Value::Null => true,
            phase => phase.as_str().and_then(Phase::parse).is_some(),
        };
        Self {
            metadata,
            object,
            why,
            floats,
            order: status["order"].as_u64(),
            started: !status["startTime"].is_null() || !phases.all(is_known),
            finished: !status["completionTime"].is_null(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use serde_json::json;

    use super::*;
    use crate::api::{crd, status};

    fn object() -> Value {
        json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": "r", "namespace": "ci", "uid": "u", "resourceVersion": "7"},
            "spec": {
                "images": [{"source": "registry.ci/a/b:x", "float": "quay.io/o/ci:f"}],
                "pullSecret": {"name": "s"}, "pushSecret": {"name": "s"}, "gates": [{"name": "g"}],
            },
        })
    }

    /// Wherever a schema has an object.
    fn places(schema: &Value, at: &str, found: &mut Vec<String>) {
        if schema["type"] == "object" {
            found.push(at.to_owned());
        }
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            places(of, &format!("{at}/{name}"), found);
        }
        if schema["items"].is_object() {
            places(&schema["items"], &format!("{at}/0"), found);
        }
    }

    fn unreadable(value: &Value) -> Unreadable {
        match serde_json::from_value(value.clone()).unwrap() {
            Stored::Unreadable(unreadable) => *unreadable,
            Stored::Read(object) => {
                Unreadable::of_object(&object, &status::read(&object).unwrap_err())
            }
        }
    }

    #[test]
    fn a_field_that_this_version_does_not_know_is_found_wherever_a_spec_may_have_one() {
        let Stored::Read(plain) = serde_json::from_value(object()).unwrap() else {
            panic!("it is readable");
        };
        status::read(&plain).unwrap();
        let schema = serde_json::to_value(crd()).unwrap();
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        let mut all = Vec::new();
        places(schema.pointer(spec).unwrap(), "/spec", &mut all);
        assert_eq!(all.len(), 5, "{all:?}");
        for place in all {
            let mut newer = object();
            newer.pointer_mut(&place).unwrap()["novelty"] = json!([{"name": "tests"}]);
            let found = unreadable(&newer);
            assert!(
                found.why.contains("novelty") && found.why.contains("upgrade"),
                "{found:?}"
            );
            assert_eq!(found.floats, ["quay.io/o/ci:f".parse().unwrap()]);
            assert!(!found.started && !found.finished);
        }
    }

    #[test]
    fn what_cannot_even_be_decoded_still_names_its_floats_and_its_place() {
        let mut odd = object();
        odd["spec"]["images"][0]["source"] = json!({"oci": "registry.ci/a/b:x"});
        odd["spec"]["latch"] = json!("Someday");
        let images = odd["spec"]["images"].as_array_mut().unwrap();
        images.push(json!({"float": "quay.io/o/ci:g"}));
        images.push(json!({"float": "sftp://not/a/float"}));
        odd["status"] =
            json!({"order": 5, "startTime": "2026-01-01T00:00:00Z", "phase": "Pending"});
        let found = unreadable(&odd);
        let floats: Vec<Float> = ["f", "g"]
            .map(|f| format!("quay.io/o/ci:{f}").parse().unwrap())
            .into();
        assert_eq!(
            (found.floats, found.order, found.started),
            (floats, Some(5), true)
        );
        assert_eq!(found.metadata.uid.as_deref(), Some("u"));
        assert!(found.why.contains("spec."), "{}", found.why);
    }

    #[test]
    fn a_phase_of_a_newer_version_may_have_begun_and_a_completion_has_ended() {
        let mut odd = object();
        odd["status"] =
            json!({"phase": "Signed", "images": [{"float": "quay.io/o/ci:f", "phase": "Signed"}]});
        let found = unreadable(&odd);
        assert!(
            found.started && !found.finished && found.why.contains("Signed"),
            "{found:?}"
        );
        odd["status"]["completionTime"] = json!("2026-01-01T00:00:00Z");
        assert!(unreadable(&odd).finished);
        odd["spec"]["mode"] = json!("Plan");
        assert_eq!(unreadable(&odd).floats, []);
        odd["spec"]["mode"] = json!("Rehearse");
        assert_eq!(unreadable(&odd).floats.len(), 1);
    }
}
