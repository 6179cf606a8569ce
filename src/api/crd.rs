//! The CRD.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use super::PromotionRequest;

/// The CRD as it is applied to a cluster.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    PromotionRequest::crd()
}
