//! Image streams: tags that follow floats.
//!
//! In come the images of a request and the tags that are to refer to them; out comes what became of each. Guaranteed: only tags that a
//! rule grants are set, in the namespaces of the configuration, and of an image stream nothing else is changed. A stream is kept as
//! the server gave it and written back under its resourceVersion: nothing relies on how its list of tags is merged.

use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{GetParams, PostParams};
use kube::core::{Request, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::call::{call, causes};
use crate::image::{Digest, Float, Repository};
use crate::metrics::{Call, Metrics};
use crate::policy::{Rules, missing_stream_rule};
use crate::stream::{Mark, Put, Referred, Shown, StreamIo, StreamTag, Wanted, refer};

/// The API group and version of image streams.
const API: &str = "image.openshift.io/v1";
/// The longest a call may take.
const CALL: Duration = Duration::from_secs(15);
/// So long it is believed that the cluster has image streams.
const SERVED_FRESH: Duration = Duration::from_mins(1);
/// What a tag bears of the request that set it.
const ORDER: &str = "promotion.ci.openshift.io/order";
const UID: &str = "promotion.ci.openshift.io/uid";
const REPLACED: &str = "promotion.ci.openshift.io/replaced";

/// Which image streams may be written, and how images are pulled.
#[derive(Debug, Clone, Default)]
pub struct StreamSettings {
    /// The namespaces of the streams: the controller has rights there.
    pub namespaces: Vec<String>,
    /// The host from which a repository is pulled, where that is another than the one it is pushed to.
    pub pull_hosts: Vec<(Repository, String)>,
    /// Streams that are absent are created.
    pub create: bool,
}

/// The image streams of a cluster.
pub struct Streams {
    client: Client,
    settings: StreamSettings,
    metrics: Metrics,
    served: Mutex<Option<Instant>>,
}

/// Why tags could not be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Trying again would not help.
    #[error("{0}")]
    Refused(String),
    /// It may later.
    #[error("{0}")]
    Unavailable(String),
}

/// One stream.
struct Stream<'a> {
    streams: &'a Streams,
    namespace: &'a str,
    name: &'a str,
}

impl Streams {
    pub(super) fn new(client: Client, settings: StreamSettings, metrics: Metrics) -> Self {
        Self {
            client,
            settings,
            metrics,
            served: Mutex::default(),
        }
    }

    /// Says at the start if there are none where there should be.
    pub async fn announce(&self) {
        if self.settings.namespaces.is_empty() {
            return;
        }
        match self.check_served().await {
            Ok(()) => {
                let namespaces = self.settings.namespaces.join(", ");
                tracing::info!(namespaces, "image stream tags follow floats here");
            }
            Err(StreamError::Refused(why)) => tracing::error!("{why}"),
            Err(StreamError::Unavailable(why)) => tracing::warn!("{why}"),
        }
    }

    /// Whether requests of `namespace` may have this tag follow the float.
    ///
    /// # Errors
    /// Why not, and what to do; it begins with what is wrong, not with a field.
    pub fn grant(
        &self,
        rules: &Rules,
        namespace: &str,
        float: &Float,
        (streams, tag): (&str, &StreamTag),
    ) -> Result<(), String> {
        if !self.settings.namespaces.iter().any(|n| n == streams) {
            return Err(format!(
                "the controller sets no image streams in namespace {streams}; have it named in the chart value imageStreams.namespaces \
                 (--image-stream-namespace)"
            ));
        }
        let rules = rules.of(namespace);
        if rules
            .iter()
            .any(|rule| rule.grants_stream(float, streams, tag))
        {
            return Ok(());
        }
        let line = missing_stream_rule(namespace, float, streams, tag);
        Err(format!(
            "no rule lets namespace {namespace} set {streams}/{tag}; have this line added to the rules of the controller's --policy file: {line}"
        ))
    }

    /// Whether the cluster has image streams at all.
    ///
    /// # Errors
    /// It has none; or that cannot be found out now.
    pub(super) async fn check_served(&self) -> Result<(), StreamError> {
        if self
            .served
            .lock()
            .is_some_and(|at| at.elapsed() < SERVED_FRESH)
        {
            return Ok(());
        }
        let path = format!("/apis/{API}");
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(|error| unavailable("image streams", &error))?;
        let answer = self.request("image streams", request).await?;
        let value: Value = answer.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => StreamError::Refused(format!(
                "this cluster has no image streams ({API} is not served); leave imageStreamTag out"
            )),
            error => unavailable("which APIs the cluster has", &error),
        })?;
        drop(value);
        *self.served.lock() = Some(Instant::now());
        Ok(())
    }

    /// An image as it is pulled.
    #[must_use]
    pub fn pull_spec(&self, float: &Repository, digest: Digest) -> String {
        let mut hosts = self.settings.pull_hosts.iter();
        let host = hosts.find(|(repository, _)| repository == float);
        let host = host.map_or(float.host(), |(_, host)| host.as_str());
        format!("{host}/{}@{digest}", float.path())
    }

    /// Lets tags of one stream refer to these images; what became of each.
    ///
    /// # Errors
    /// None of them is known to be set.
    pub async fn set(
        &self,
        namespace: &str,
        name: &str,
        wanted: &[Wanted],
        mark: &Mark,
    ) -> Result<Vec<Referred>, StreamError> {
        let stream = Stream {
            streams: self,
            namespace,
            name,
        };
        refer(&stream, wanted, mark).await
    }

    /// Asks the API server about something.
    async fn request(
        &self,
        what: &str,
        request: http::Request<Vec<u8>>,
    ) -> Result<kube::Result<Value>, StreamError> {
        let asked = self.client.request(request);
        let answer = call(&self.metrics, Call::Stream, CALL, asked).await;
        answer.map_err(|_| {
            StreamError::Unavailable(format!("{what}: the API server does not answer"))
        })
    }
}

impl Stream<'_> {
    fn path(&self) -> Request {
        let namespace = self.namespace;
        Request::new(format!("/apis/{API}/namespaces/{namespace}/imagestreams"))
    }

    fn named(&self) -> String {
        format!("image stream {}/{}", self.namespace, self.name)
    }

    /// What an answer other than the wanted one means.
    fn error(&self, error: &kube::Error) -> StreamError {
        let (named, namespace) = (self.named(), self.namespace);
        let kube::Error::Api(status) = error else {
            return unavailable(&named, error);
        };
        let Status { code, message, .. } = &**status;
        match code {
            404 if is_this(status, self.name) => StreamError::Refused(format!(
                "{named} does not exist; create it (oc create imagestream {} -n {namespace}), then create another request",
                self.name
            )),
            404 => StreamError::Refused(format!(
                "this cluster has no image streams ({API} is not served)"
            )),
            403 => StreamError::Refused(format!(
                "the controller may not get or update {named} ({message}); have {namespace} named in the chart value imageStreams.namespaces"
            )),
            400 | 422 => StreamError::Refused(format!("{named} is refused: {message}")),
            _ => unavailable(&named, error),
        }
    }
}

impl StreamIo for Stream<'_> {
    type Stream = Value;
    type Error = StreamError;

    async fn look(&self) -> Result<Value, StreamError> {
        let request = self.path().get(self.name, &GetParams::default());
        let request = request.map_err(|error| unavailable(&self.named(), &error))?;
        match self.streams.request(&self.named(), request).await? {
            Ok(stream) => Ok(stream),
            Err(kube::Error::Api(status))
                if status.code == 404
                    && is_this(&status, self.name)
                    && self.streams.settings.create =>
            {
                let metadata = json!({"name": self.name, "namespace": self.namespace});
                Ok(json!({"apiVersion": API, "kind": "ImageStream", "metadata": metadata}))
            }
            Err(error) => Err(self.error(&error)),
        }
    }

    fn shown(&self, stream: &Value, tag: &str) -> Shown {
        let tags = stream["spec"]["tags"].as_array();
        let Some(found) = tags.and_then(|tags| tags.iter().find(|one| one["name"] == tag)) else {
            return Shown::default();
        };
        let note = |key: &str| found["annotations"][key].as_str();
        let mark = note(ORDER).and_then(|order| order.parse().ok());
        let from = &found["from"];
        let refers = found["reference"] == true
            && found["importPolicy"]["importMode"] == "PreserveOriginal"
            && found["referencePolicy"]["type"] == "Source";
        Shown {
            mark: mark.map(|order| Mark {
                order,
                uid: note(UID).unwrap_or_default().into(),
            }),
            image: from["name"].as_str().map(ToOwned::to_owned),
            replaced: note(REPLACED).map(ToOwned::to_owned),
            is_ours: refers && from["kind"] == "DockerImage",
        }
    }

    fn set(&self, stream: &mut Value, wanted: &Wanted, mark: &Mark, replaced: Option<&str>) {
        let spec = object(&mut stream["spec"]);
        let tags = spec.entry("tags").or_insert_with(|| json!([]));
        if !tags.is_array() {
            *tags = json!([]);
        }
        let Some(tags) = tags.as_array_mut() else {
            return;
        };
        let at = tags
            .iter()
            .position(|one| one["name"] == wanted.tag.as_str());
        let at = at.unwrap_or_else(|| {
            tags.push(json!({"name": wanted.tag}));
            tags.len() - 1
        });
        let tag = object(&mut tags[at]);
        tag.insert(
            "from".into(),
            json!({"kind": "DockerImage", "name": wanted.image}),
        );
        tag.insert("reference".into(), true.into());
        tag.insert(
            "importPolicy".into(),
            json!({"importMode": "PreserveOriginal"}),
        );
        tag.insert("referencePolicy".into(), json!({"type": "Source"}));
        // The server counts what changes; an old number would say that nothing did.
        tag.remove("generation");
        let notes = object(tag.entry("annotations").or_insert_with(|| json!({})));
        notes.insert(ORDER.into(), mark.order.to_string().into());
        notes.insert(UID.into(), mark.uid.as_str().into());
        match replaced {
            Some(replaced) => notes.insert(REPLACED.into(), replaced.into()),
            None => notes.remove(REPLACED),
        };
    }

    async fn put(&self, stream: Value) -> Result<Put, StreamError> {
        let params = PostParams::default();
        let content = serde_json::to_vec(&stream);
        let content = content.map_err(|error| unavailable(&self.named(), &error))?;
        let request = if stream["metadata"]["resourceVersion"].is_string() {
            self.path().replace(self.name, &params, content)
        } else {
            self.path().create(&params, content)
        };
        let request = request.map_err(|error| unavailable(&self.named(), &error))?;
        match self.streams.request(&self.named(), request).await {
            Ok(Ok(_)) => Ok(Put::Written),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(Put::LookAgain),
            // Deleted since it was read: where it is missing, a look says so.
            Ok(Err(kube::Error::Api(status)))
                if is_this(&status, self.name) && status.code == 404 =>
            {
                Ok(Put::LookAgain)
            }
            Ok(Err(error @ kube::Error::Api(_))) => Err(self.error(&error)),
            // It may be in.
            Ok(Err(_)) | Err(_) => Ok(Put::LookAgain),
        }
    }

    fn busy(&self) -> StreamError {
        StreamError::Unavailable(format!(
            "{} is changed by others all the time",
            self.named()
        ))
    }
}

/// An object, whatever was there.
fn object(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("it was just made one"),
    }
}

/// Whether an answer is about this object, and not about its kind.
fn is_this(status: &Status, name: &str) -> bool {
    status.details.as_ref().is_some_and(|d| d.name == name)
}

fn unavailable(what: &str, error: &(dyn std::error::Error + 'static)) -> StreamError {
    StreamError::Unavailable(format!("cannot find out about {what}: {}", causes(error)))
}
