//! Requests in the Kubernetes API.
//!
//! Loads are quorum reads (no resourceVersion is asked for), saves replace the status under the resourceVersion that was
//! loaded, and every call has one timeout around all its retries. Secrets are read one by one, by name, at most once a minute, and
//! anew where a registry rejects what was read. What has no `pushSecret` may use the controller's own credentials as far as a rule
//! lets it.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::core::{Request, Status};
use kube::runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::call::{call, causes};
use super::credentials::CredentialFiles;
use super::kept::Kept;
use super::streams::{StreamError, StreamSettings, Streams};
use super::{Access, AccessError, Event, Key, Store, StoreError, Stored};
use crate::api::{self, PromotionRequest, references};
use crate::image::Float;
use crate::metrics::{Call, Metrics};
use crate::registry::{Keyring, SingleFlight};
use crate::stream::StreamTag;

/// The longest a call may take, its retries included.
const CALL: Duration = Duration::from_secs(15);
/// A Secret that was read serves this long.
const SECRET_FRESH: Duration = Duration::from_mins(1);
/// A Secret that was missing is looked for again after this.
const SECRET_MISSING: Duration = Duration::from_secs(5);
/// That one could not be read is reported to all who waited for it, instead of each asking a server that does not answer.
const SECRET_UNREAD: Duration = Duration::from_millis(500);
/// The type and key of the Secrets that are understood.
const SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
const SECRET_KEY: &str = ".dockerconfigjson";

/// The largest Secret that is read: whoever names it decides how large it is, and what is read of it is kept while the request is in work.
const SECRET_MAX: usize = 128 * 1024;
/// What is remembered of all Secrets, in bytes as they are written; the largest go first.
const SECRETS_MAX: usize = 4 * 1024 * 1024;

type SecretName = (String, String);
/// What a Secret held, or why it cannot be used, until when that is believed, and how large it is.
type Secrets = HashMap<SecretName, (Result<Keyring, AccessError>, Instant, usize)>;

/// Requests in the Kubernetes API.
pub struct Cluster {
    client: Client,
    recorder: Recorder,
    secrets: Mutex<Secrets>,
    credentials: CredentialFiles,
    streams: Streams,
    metrics: Metrics,
    /// Many requests want the same Secret at once: one reads it.
    reading: SingleFlight<SecretName>,
}

impl Cluster {
    /// The cluster behind `client`; events are published as `reporter`; `credentials` says what the controller has itself, and for whom; tags of `streams` follow floats; calls are
    /// counted in `metrics`.
    #[must_use]
    pub fn new(
        client: Client,
        reporter: Reporter,
        credentials: CredentialFiles,
        streams: StreamSettings,
        metrics: Metrics,
    ) -> Self {
        let recorder = Recorder::new(client.clone(), reporter);
        let streams = Streams::new(client.clone(), streams, metrics.clone());
        Self {
            client,
            recorder,
            secrets: Mutex::default(),
            credentials,
            streams,
            metrics,
            reading: SingleFlight::new(),
        }
    }

    /// Says at the start if there are no image streams where there should be.
    pub async fn announce_streams(&self) {
        self.streams.announce().await;
    }

    fn api(&self, key: &Key) -> Api<Stored> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Replaces an object's status. What is not kept of its metadata stays as it is: the server takes nothing else from a write of
    /// the status.
    async fn replace_status(&self, key: &Key, object: &PromotionRequest) -> kube::Result<Kept> {
        let content = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let path = PromotionRequest::url_path(&(), Some(&key.namespace));
        let params = PostParams::default();
        let request = Request::new(path).replace_subresource("status", &key.name, &params, content);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request(request).await
    }

    /// Whether the tags of image streams that a request names may follow its floats: known before anything is contacted. What is
    /// committed runs to its end; its tags are checked again when they are set.
    async fn check_streams(&self, object: &PromotionRequest) -> Result<(), AccessError> {
        let Some(streams) = &object.spec.image_stream_namespace else {
            return Ok(());
        };
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let request = api::status::read(object);
        let request = request.map_err(|error| AccessError::Unavailable(error.to_string()))?;
        let open = references::open(object)
            .filter(|(index, _)| request.is_open(*index) && !request.is_committed_in_fact(*index));
        let mut any = false;
        for (index, tag) in open {
            any = true;
            let float = &request.spec.images[index].float;
            let granted = self.grants(namespace, float, (streams, &tag));
            granted.map_err(|why| {
                AccessError::NotAllowed(format!("spec.images[{index}].imageStreamTag: {why}"))
            })?;
        }
        if any {
            let served = self.streams.check_served().await;
            served.map_err(|error| match error {
                StreamError::Refused(why) => AccessError::NotAllowed(why),
                StreamError::Unavailable(why) => AccessError::Unavailable(why),
            })?;
        }
        Ok(())
    }

    /// A Secret's credentials, from memory if they were read within the last minute.
    async fn keyring(&self, namespace: &str, name: &str) -> Result<Keyring, AccessError> {
        let id = (namespace.to_owned(), name.to_owned());
        if let Some(known) = self.known_secret(&id) {
            return known;
        }
        let _turn = self.reading.enter(&id).await;
        if let Some(known) = self.known_secret(&id) {
            return known;
        }
        let asked = Instant::now();
        let (read, size) = self.read_secret(namespace, name).await;
        let until = match &read {
            Ok(_) => asked + SECRET_FRESH,
            Err(AccessError::NotFound(_) | AccessError::Invalid(_)) => asked + SECRET_MISSING,
            Err(AccessError::Unavailable(_)) => Instant::now() + SECRET_UNREAD,
            Err(AccessError::NotAllowed(_)) => return read,
        };
        let mut secrets = self.secrets();
        secrets.retain(|_, (_, until, _)| *until > asked);
        secrets.insert(id, (read.clone(), until, size));
        bound(&mut secrets);
        read
    }

    fn known_secret(&self, id: &SecretName) -> Option<Result<Keyring, AccessError>> {
        let secrets = self.secrets();
        let (known, until, _) = secrets.get(id)?;
        (*until > Instant::now()).then(|| known.clone())
    }

    fn secrets(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock()
    }

    /// What a Secret holds, and how large it is.
    async fn read_secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> (Result<Keyring, AccessError>, usize) {
        let content = match self.secret_content(namespace, name).await {
            Ok(content) => content,
            Err(error) => return (Err(error), 0),
        };
        let (origin, size) = (format!("Secret {namespace}/{name}"), content.len());
        let read = if size > SECRET_MAX {
            Err(format!(
                "{origin} is larger than 128 KiB; leave the entries of other registries out of it"
            ))
        } else {
            Keyring::parse(&content, &origin).map_err(|error| error.to_string())
        };
        (read.map_err(AccessError::Invalid), size.min(SECRET_MAX))
    }

    async fn secret_content(&self, namespace: &str, name: &str) -> Result<Vec<u8>, AccessError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let origin = format!("Secret {namespace}/{name}");
        let unavailable =
            |why: String| AccessError::Unavailable(format!("cannot read {origin}: {why}"));
        let secret = call(&self.metrics, Call::Secret, CALL, api.get_opt(name)).await;
        let secret = secret.map_err(|_| unavailable("timed out".into()))?;
        let secret = secret.map_err(|error| match &error {
            kube::Error::Api(status) if status.is_forbidden() => AccessError::NotFound(format!(
                "the controller may not get {origin}; have {namespace} named in the chart value namespaces, or allNamespaces set; \
                 where that is so, its RoleBinding in {namespace} is missing or names another account"
            )),
            // Its text may quote what it could not read.
            kube::Error::SerdeError(_) => unavailable("it cannot be read".into()),
            _ => unavailable(causes(&error)),
        })?;
        let secret = secret
            .ok_or_else(|| AccessError::NotFound(format!("{origin} does not exist; create it")))?;
        if secret.type_.as_deref() != Some(SECRET_TYPE) {
            return Err(AccessError::Invalid(format!(
                "{origin} is not of type {SECRET_TYPE}; create it anew with that type"
            )));
        }
        let data = secret.data.and_then(|mut data| data.remove(SECRET_KEY));
        let data = data.map(|data| data.0);
        data.ok_or_else(|| AccessError::Invalid(format!("{origin} has no key {SECRET_KEY}")))
    }
}

impl Store for Cluster {
    async fn load(&self, key: &Key) -> Result<Option<PromotionRequest>, StoreError> {
        let api = self.api(key);
        let loaded = call(&self.metrics, Call::Load, CALL, api.get(&key.name)).await;
        let failed = |message: String| StoreError::Failed {
            verb: "load",
            key: key.clone(),
            message,
        };
        match loaded.map_err(|_| failed("timed out".into()))? {
            Ok(Stored::Read(object)) => Ok(Some(*object)),
            Ok(Stored::Unreadable(object)) => Err(StoreError::Unreadable(key.clone(), object)),
            Err(kube::Error::Api(status)) if is_gone(&status, key) => Ok(None),
            Err(error) => Err(failed(causes(&error))),
        }
    }

    async fn save(&self, object: &PromotionRequest) -> Result<PromotionRequest, StoreError> {
        let key = Key::from(object);
        let save = self.replace_status(&key, object);
        let saved = call(&self.metrics, Call::Save, CALL, save).await;
        let failed = |message: String| StoreError::Failed {
            verb: "save",
            key: key.clone(),
            message,
        };
        let saved = saved.map_err(|_| failed("timed out".into()))?;
        let saved = saved.map_err(|error| match &error {
            kube::Error::Api(status) if status.is_conflict() => StoreError::Conflict(key.clone()),
            kube::Error::Api(status) if is_gone(status, &key) => StoreError::Gone(key.clone()),
            _ => failed(causes(&error)),
        })?;
        saved.into_request().map_err(failed)
    }

    async fn access(&self, object: &PromotionRequest) -> Result<Access, AccessError> {
        self.check_streams(object).await?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let pull = match &object.spec.pull_secret {
            Some(secret) => Some(self.keyring(namespace, &secret.name).await?),
            None => None,
        };
        let Some(secret) = &object.spec.push_secret else {
            let credentials = self.credentials.now();
            if credentials.keyring.is_empty() {
                let push = credentials.keyring.clone();
                let pull = pull.unwrap_or_else(|| push.clone());
                return Ok(Access::unconditional(pull, push));
            }
            let request = api::status::read(object);
            let request = request.map_err(|error| AccessError::Unavailable(error.to_string()))?;
            return credentials.access(namespace, &request, pull);
        };
        let push = self.keyring(namespace, &secret.name).await?;
        let pull = pull.unwrap_or_else(|| push.clone());
        Ok(Access::unconditional(pull, push))
    }

    async fn access_anew(&self, object: &PromotionRequest) -> Result<Access, AccessError> {
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let spec = &object.spec;
        for secret in [&spec.push_secret, &spec.pull_secret].into_iter().flatten() {
            let id = (namespace.to_owned(), secret.name.clone());
            self.secrets().remove(&id);
        }
        if spec.push_secret.is_none() {
            self.credentials.renew().await;
        }
        self.access(object).await
    }

    fn streams(&self) -> Option<&Streams> {
        Some(&self.streams)
    }

    fn grants(
        &self,
        namespace: &str,
        float: &Float,
        tag: (&str, &StreamTag),
    ) -> Result<(), String> {
        let rules = &self.credentials.now().rules;
        self.streams.grant(rules, namespace, float, tag)
    }

    async fn publish(&self, object: &PromotionRequest, event: Event) {
        let reference = object.object_ref(&());
        let ended = object
            .status
            .as_ref()
            .is_some_and(|status| status.completion_time.is_some());
        let event = KubeEvent {
            type_: if event.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: event.reason.as_str().into(),
            note: Some(event.note.chars().take(1000).collect())
                .filter(|note: &String| !note.is_empty()),
            // Events that differ in their note alone are counted as one, with the first note: the end is another action, so
            // that its note is always published.
            action: if ended { "End" } else { "Promote" }.into(),
            secondary: None,
        };
        let publish = self.recorder.publish(&event, &reference);
        match call(&self.metrics, Call::Event, CALL, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(request = %Key::from(object), "cannot publish an event: {}", causes(&error));
            }
            Err(_) => {
                tracing::warn!(request = %Key::from(object), "cannot publish an event: timed out");
            }
        }
    }
}

/// Forgets the largest Secrets, as far as there is more than may be remembered.
fn bound(secrets: &mut Secrets) {
    let mut all: usize = secrets.values().map(|(.., size)| size + 1024).sum();
    while all > SECRETS_MAX {
        let largest = secrets.iter().max_by_key(|(_, (.., size))| *size);
        let Some((largest, size)) = largest.map(|(id, (.., size))| (id.clone(), *size)) else {
            return;
        };
        secrets.remove(&largest);
        all = all.saturating_sub(size + 1024);
    }
}

/// Whether an answer says that this object is not there. Another 404 says that nothing of its kind is served: the definition is
/// missing, or the server is only starting. Nobody has deleted the object by that.
fn is_gone(status: &Status, key: &Key) -> bool {
    let named = status.details.as_ref().map(|details| &details.name);
    status.is_not_found() && named == Some(&key.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn large_secrets_drive_out_none_but_large_ones() {
        let now = Instant::now();
        let mut secrets = Secrets::new();
        for (namespace, size) in [("good", 2_000), ("evil", SECRET_MAX)] {
            for n in 0..200 {
                let id = (namespace.to_owned(), n.to_string());
                secrets.insert(id, (Ok(Keyring::anonymous()), now, size));
                bound(&mut secrets);
            }
        }
        let good = secrets.keys().filter(|(namespace, _)| namespace == "good");
        assert_eq!(good.count(), 200);
        assert!(secrets.len() < 240, "{}", secrets.len());
    }

    #[test]
    fn only_a_404_that_names_the_object_says_that_it_is_gone() {
        let key = Key {
            namespace: "ci".into(),
            name: "r".into(),
        };
        let gone = |details: serde_json::Value, reason: &str| {
            let status =
                json!({"status": "Failure", "reason": reason, "code": 404, "details": details});
            is_gone(&serde_json::from_value(status).unwrap(), &key)
        };
        let named = |name: &str| json!({"name": name, "group": "ci.openshift.io", "kind": "promotionrequests"});
        assert!(gone(named("r"), "NotFound"));
        // Of another object, of the whole kind, of a path.
        assert!(!gone(named("ci"), "NotFound"));
        assert!(!gone(json!({}), "NotFound"));
        assert!(!gone(json!(null), "Failed to parse error data"));
    }
}
