//! Requests as a person or a job asks for them: lists in pages, one object, a change of its spec, a new one.
//!
//! What comes is the object as the API server has it, and in this version's terms as far as it can be read. Guaranteed: a list holds one
//! page at a time, nothing is watched, and what is created is validated strictly: a definition that does not know a field of it refuses it.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::api::{Api, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{Request, Status};
use kube::{Client, Resource as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::call::causes;
use super::{Key, Stored};
use crate::api::PromotionRequest;
use crate::api::labels::REQUESTED_BY;
use crate::machine::Phase;

/// The longest a call may take.
const CALL: Duration = Duration::from_secs(30);
/// Objects listed at once.
const PAGE: u32 = 500;

/// The requests of a cluster.
pub struct Requests {
    client: Client,
}

/// Which requests a list gives.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// Every one.
    All,
    /// Those that have not ended.
    Unfinished,
    /// Those with a label of this key.
    Labelled(&'a str),
}

/// A request as it is in the cluster.
#[derive(Debug, Clone)]
pub struct Listed {
    /// All of it.
    pub raw: Value,
    /// In this version's terms, or what can be said of it.
    pub stored: Stored,
}

/// Why the cluster did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such request.
    #[error("the request {0} does not exist")]
    Absent(Key),
    /// The caller has no right to this.
    #[error(
        "{0}; {remedy}",
        remedy = "ask for the ClusterRole promotionrequests-view (to see) or promotionrequests-edit (to change) there"
    )]
    Forbidden(String),
    /// The API server takes no such object.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else was first, or the server cannot be reached, or answers something else.
    #[error("{0}")]
    Failed(String),
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    items: Vec<Listed>,
}

// === impl Listed ===

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        let stored = Stored::deserialize(&raw).map_err(serde::de::Error::custom)?;
        Ok(Self { raw, stored })
    }
}

impl Listed {
    /// Who asked, as the request claims.
    #[must_use]
    pub fn requested_by(&self) -> Option<&str> {
        self.raw["metadata"]["annotations"][REQUESTED_BY].as_str()
    }

    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> Key {
        super::key_of(self.stored.meta())
    }

    /// The request, as far as it could be decoded.
    #[must_use]
    pub fn object(&self) -> Option<&PromotionRequest> {
        match &self.stored {
            Stored::Read(object) => Some(object),
            Stored::Unreadable(unreadable) => unreadable.object.as_deref(),
        }
    }
}

// === impl Requests ===

impl Requests {
    /// Those of the cluster behind `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Gives the requests of a namespace, or of all, to `each`, as many at once as a page has.
    ///
    /// # Errors
    /// As [`RequestError`] says; the pages before have been given.
    pub async fn pages(
        &self,
        namespace: Option<&str>,
        selection: Selection<'_>,
        mut each: impl FnMut(Vec<Listed>),
    ) -> Result<(), RequestError> {
        let request = Request::new(PromotionRequest::url_path(&(), namespace));
        let mut params = selection.params().limit(PAGE);
        loop {
            let page: Page = self.call(request.list(&params), None).await?;
            each(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// One request.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn get(&self, key: &Key) -> Result<Listed, RequestError> {
        let request = Request::new(PromotionRequest::url_path(&(), Some(&key.namespace)));
        let request = request.get(&key.name, &GetParams::default());
        self.call(request, Some(key)).await
    }

    /// Merges a change into a request.
    ///
    /// # Errors
    /// As [`RequestError`] says.
    pub async fn change(&self, key: &Key, change: &Value) -> Result<Listed, RequestError> {
        let request = Request::new(PromotionRequest::url_path(&(), Some(&key.namespace)));
        let params = PatchParams::default();
        let request = request.patch(&key.name, &params, &Patch::Merge(change));
        self.call(request, Some(key)).await
    }

    /// Creates a request, as it is or not at all.
    ///
    /// # Errors
    /// As [`RequestError`] says; also where the server has left out something of what it was given.
    pub async fn create(&self, object: &PromotionRequest) -> Result<Listed, RequestError> {
        let namespace = object.metadata.namespace.as_deref();
        let content =
            serde_json::to_vec(object).map_err(|error| RequestError::Invalid(error.to_string()))?;
        let request = Request::new(PromotionRequest::url_path(&(), namespace));
        let request = request.create(&PostParams::default(), content);
        let created: Listed = self.call(request.and_then(strictly), None).await?;
        let same = created
            .object()
            .is_some_and(|read| read.spec == object.spec);
        if !same {
            let key = created.key();
            return Err(RequestError::Failed(format!(
                "{key} was created, but not as asked: something changed its spec; look at it, and cancel it if it must not run"
            )));
        }
        Ok(created)
    }

    /// The caller's name, where the API server says it.
    pub async fn user(&self) -> Option<String> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let (params, question) = (PostParams::default(), SelfSubjectReview::default());
        let review = api.create(&params, &question);
        let review = tokio::time::timeout(CALL, review).await.ok()?.ok()?;
        review.status?.user_info?.username
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        key: Option<&Key>,
    ) -> Result<T, RequestError> {
        let request = request.map_err(|error| RequestError::Invalid(causes(&error)))?;
        let answer = tokio::time::timeout(CALL, self.client.request(request)).await;
        let answer = answer
            .map_err(|_| RequestError::Failed(format!("no answer within {} s", CALL.as_secs())))?;
        answer.map_err(|error| classify(&error, key))
    }
}

impl Selection<'_> {
    fn params(self) -> ListParams {
        match self {
            Self::All => ListParams::default(),
            Self::Labelled(label) => ListParams::default().labels(label),
            Self::Unfinished => ListParams::default().fields(&unfinished()),
        }
    }
}

/// Selects those that have not ended.
pub(crate) fn unfinished() -> String {
    let finished = Phase::ALL.into_iter().filter(|phase| phase.is_finished());
    let each = finished.map(|phase| format!("status.phase!={}", phase.as_str()));
    each.collect::<Vec<_>>().join(",")
}

/// The same, refused where the definition does not know a field.
fn strictly(
    request: http::Request<Vec<u8>>,
) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
    let (mut head, body) = request.into_parts();
    let uri = format!("{}&fieldValidation=Strict", head.uri);
    let parsed = uri.parse::<http::Uri>().map_err(http::Error::from);
    head.uri = parsed.map_err(kube::core::request::Error::BuildRequest)?;
    Ok(http::Request::from_parts(head, body))
}

fn classify(error: &kube::Error, key: Option<&Key>) -> RequestError {
    let kube::Error::Api(status) = error else {
        return RequestError::Failed(causes(error));
    };
    let Status { message, .. } = &**status;
    let named = status.details.as_ref().map(|details| details.name.as_str());
    match (status.code, key) {
        (404, Some(key)) if named == Some(&key.name) => RequestError::Absent(key.clone()),
        (404, _) if named.is_none_or(str::is_empty) => {
            RequestError::Failed("the API server serves no PromotionRequests; apply the CRD".into())
        }
        (401, _) => RequestError::Failed(
            "the API server does not accept the kubeconfig's credentials; log in again".into(),
        ),
        (403, _) => RequestError::Forbidden(message.clone()),
        (400 | 422, _) => RequestError::Invalid(message.clone()),
        _ => RequestError::Failed(message.clone()),
    }
}
