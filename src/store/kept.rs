//! What is kept of an object of the API server: neither annotations nor managed fields, which may be a megabyte each and which nobody
//! here reads.
//!
//! In comes an object in any state; out come its identity and, where they can be read, spec and status. Guaranteed: what is not kept is
//! passed over as it is read and takes no memory, and an object that cannot be read does not spoil the list that it is in.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::api::{PromotionRequest, PromotionRequestSpec, PromotionRequestStatus};

/// A request, or of one what these types keep.
#[derive(Debug, Clone)]
pub struct Kept<S = PromotionRequestSpec, T = PromotionRequestStatus> {
    /// Name, namespace, UID, versions and times.
    pub metadata: ObjectMeta,
    /// Spec and status, or why they cannot be read.
    pub content: Result<(S, Option<T>), String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

/// A field that can be read, or not.
struct Guarded<T>(Result<T, String>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Guarded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The schema bounds what is here.
        let value = serde_json::Value::deserialize(deserializer)?;
        let read = serde_path_to_error::deserialize(value);
        Ok(Self(read.map_err(|error| error.to_string())))
    }
}

impl<'de, S: DeserializeOwned, T: DeserializeOwned> Deserialize<'de> for Kept<S, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(bound = "S: DeserializeOwned, T: DeserializeOwned")]
        struct Object<S, T> {
            metadata: Metadata,
            spec: Option<Guarded<S>>,
            status: Option<Guarded<T>>,
        }
        let object = Object::deserialize(deserializer)?;
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
            generation,
            creation_timestamp,
            deletion_timestamp,
        } = object.metadata;
        let spec = object.spec.map_or(Err("it has no spec".into()), |s| s.0);
        let status = object.status.map(|status| status.0).transpose();
        Ok(Self {
            metadata: ObjectMeta {
                name,
                namespace,
                uid,
                resource_version,
                generation,
                creation_timestamp,
                deletion_timestamp,
                ..ObjectMeta::default()
            },
            content: spec.and_then(|spec| Ok((spec, status?))),
        })
    }
}

impl Kept {
    /// The request, without what is not kept.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn into_request(self) -> Result<PromotionRequest, String> {
        let (spec, status) = self.content?;
        Ok(PromotionRequest {
            metadata: self.metadata,
            spec,
            status,
        })
    }
}

impl<S, T> Resource for Kept<S, T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        PromotionRequest::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        PromotionRequest::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        PromotionRequest::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        PromotionRequest::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_and_managed_fields_are_passed_over_and_what_cannot_be_read_is_named() {
        let object = |spec: serde_json::Value| {
            json!({
                "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
                "metadata": {
                    "name": "r", "namespace": "ci", "uid": "u", "resourceVersion": "7", "generation": 2,
                    "annotations": {"a": "b"}, "labels": {"a": "b"},
                    "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
                },
                "spec": spec,
            })
        };
        let spec = json!({"images": [{"source": "quay.io/a/b:c", "float": "quay.io/a/b:d"}]});
        let kept: Kept = serde_json::from_value(object(spec)).unwrap();
        let request = kept.into_request().unwrap();
        assert_eq!(request.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(request.spec.images.len(), 1);
        assert!(
            request.metadata.annotations.is_none() && request.metadata.managed_fields.is_none()
        );
        let kept: Kept = serde_json::from_value(object(json!({"images": 7}))).unwrap();
        assert_eq!(kept.metadata.name.as_deref(), Some("r"));
        assert!(kept.into_request().unwrap_err().contains("images"));
    }
}
