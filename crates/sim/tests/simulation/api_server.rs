//! An API server in memory, as far as a controller asks one.
//!
//! In: requests, one at a time, and changes that somebody else makes. Out: answers, or a watch. One number counts all changes, as etcd's
//! revision does. A status is replaced under the resourceVersion that it was read at; a write that changes nothing is none.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

/// Kind, namespace, name.
pub type Key = (String, String, String);

/// The plural of what is promoted.
pub const REQUESTS: &str = "promotionrequests";
/// Where the controller's Lease is, and what the operator says.
pub const HOME: &str = "promotions";
/// Where image streams are.
pub const STREAMS: &str = "streams";

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub key: Key,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// What came of a request.
pub enum Answer {
    Whole(Response<Bytes>),
    Watch(Watch),
}

/// What a watch selects, and how far it has come.
#[derive(Clone, Debug)]
pub struct Watch {
    kind: String,
    namespace: String,
    terms: Vec<Term>,
    /// It has been told everything up to here.
    pub version: u64,
    /// Asked for by the client.
    pub seconds: u64,
}

/// One term of a field selector.
#[derive(Clone, Debug)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

#[derive(Default)]
pub struct ApiServer {
    version: u64,
    objects: BTreeMap<Key, Value>,
    changes: Vec<Change>,
    /// Changes before this one are forgotten: a watch from there is refused.
    forgotten: u64,
    /// The rest of lists that were answered in part.
    pages: BTreeMap<String, (u64, Vec<Value>)>,
    created: u64,
    paged: u64,
    /// What the definition says of its Lease, by the Lease that the asking process would take: a world may lie.
    pub two_installations: bool,
}

/// What a path names.
struct Target {
    group: String,
    version: String,
    kind: String,
    namespace: String,
    name: Option<String>,
    status: bool,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').peekable();
        let group = match parts.next()? {
            "api" => String::new(),
            "apis" => parts.next()?.to_owned(),
            _ => return None,
        };
        let version = parts.next()?.to_owned();
        let mut namespace = String::new();
        if parts.peek() == Some(&"namespaces") {
            parts.next();
            parts.next()?.clone_into(&mut namespace);
        }
        let kind = parts.next()?.to_owned();
        let name = parts.next().map(str::to_owned);
        let status = parts.next() == Some("status");
        Some(Self {
            group,
            version,
            kind,
            namespace,
            name,
            status,
        })
    }

    fn key(&self) -> Option<Key> {
        let name = self.name.clone()?;
        Some((self.kind.clone(), self.namespace.clone(), name))
    }

    fn kind_name(&self) -> &'static str {
        match self.kind.as_str() {
            REQUESTS => "PromotionRequest",
            "leases" => "Lease",
            "configmaps" => "ConfigMap",
            "secrets" => "Secret",
            "imagestreams" => "ImageStream",
            "customresourcedefinitions" => "CustomResourceDefinition",
            _ => "Event",
        }
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl Watch {
    /// A change as the watch shows it. An object that leaves the selection is shown as deleted.
    fn line(&self, change: &Change) -> Option<String> {
        let of = change.key.0 == self.kind
            && (self.namespace.is_empty() || change.key.1 == self.namespace);
        if !of {
            return None;
        }
        let selected = |object: &&Value| selects(&self.terms, object);
        let before = change.before.as_ref().filter(selected);
        let after = change.after.as_ref().filter(selected);
        let (kind, mut object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after.clone()),
            (Some(_), Some(after)) => ("MODIFIED", after.clone()),
            (Some(before), None) => {
                let shown = change.after.as_ref().unwrap_or(before);
                ("DELETED", shown.clone())
            }
        };
        object["metadata"]["resourceVersion"] = json!(change.version.to_string());
        Some(format!("{}\n", json!({"type": kind, "object": object})))
    }
}

impl ApiServer {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.objects.get(&key)
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let kind = kind.to_owned();
        let all = self.objects.iter().filter(move |(key, _)| key.0 == kind);
        all.map(|(_, object)| object)
    }

    /// The namespace of the object of a kind that has this name.
    pub fn namespace_of(&self, kind: &str, name: &str) -> String {
        let mut keys = self.objects.keys();
        let found = keys.find(|key| key.0 == kind && key.2 == name);
        found.map(|key| key.1.clone()).unwrap_or_default()
    }

    /// Who holds the Lease.
    pub fn holders(&self) -> impl Iterator<Item = &str> {
        self.all("leases")
            .filter_map(|lease| lease["spec"]["holderIdentity"].as_str())
    }

    /// Changes after a version.
    pub fn changes_after(&self, version: u64) -> &[Change] {
        let from = self
            .changes
            .partition_point(|change| change.version <= version);
        &self.changes[from..]
    }

    /// What a watch has not been told yet; it is told now.
    pub fn tell(&self, watch: &mut Watch) -> Vec<String> {
        let changes = self.changes_after(watch.version);
        let lines = changes
            .iter()
            .filter_map(|change| watch.line(change))
            .collect();
        watch.version = self.version;
        lines
    }

    /// That nothing up to here is missing from a watch.
    pub fn bookmark(watch: &Watch) -> String {
        let kind = if watch.kind == REQUESTS {
            "PromotionRequest"
        } else {
            "ConfigMap"
        };
        let api = if watch.kind == REQUESTS {
            "ci.openshift.io/v1alpha1"
        } else {
            "v1"
        };
        let metadata = json!({"resourceVersion": watch.version.to_string()});
        let object = json!({"kind": kind, "apiVersion": api, "metadata": metadata});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }

    /// Forgets what changed, as a compaction does.
    pub fn compact(&mut self) {
        self.forgotten = self.version;
        self.pages.clear();
    }

    /// Creates an object.
    pub fn create(&mut self, kind: &str, mut object: Value, now: Timestamp) -> Value {
        self.created += 1;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("uid-{}", self.created));
        metadata["creationTimestamp"] = json!(now.to_string());
        metadata["generation"] = json!(1);
        let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
        let key = (kind.to_owned(), text("namespace"), text("name"));
        self.put(key, Some(object)).unwrap_or_default()
    }

    /// Changes an object as a user does.
    pub fn edit(&mut self, kind: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.get(&key).cloned() {
            let spec = object["spec"].clone();
            edit(&mut object);
            if object["spec"] != spec {
                let generation = object["metadata"]["generation"].as_u64().unwrap_or(1);
                object["metadata"]["generation"] = json!(generation + 1);
            }
            self.put(key, Some(object));
        }
    }

    /// Deletes an object.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if self.objects.contains_key(&key) {
            self.put(key, None);
        }
    }

    fn put(&mut self, key: Key, object: Option<Value>) -> Option<Value> {
        let before = self.objects.get(&key).cloned();
        if let (Some(before), Some(after)) = (&before, &object)
            && without_version(before) == without_version(after)
        {
            return Some(before.clone());
        }
        self.version += 1;
        let after = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            object
        });
        match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        self.changes.push(Change {
            version: self.version,
            key,
            before,
            after: after.clone(),
        });
        after
    }

    /// Answers a request; `lease` is the one that the asking process would take.
    pub fn answer(&mut self, request: &Request<Bytes>, lease: &str, now: Timestamp) -> Answer {
        if request.uri().path() == "/apis/image.openshift.io/v1" {
            return Answer::Whole(whole(200, &json!({"kind": "APIResourceList"})));
        }
        let Some(target) = Target::of(request.uri().path()) else {
            return Answer::Whole(failure(404, "NotFound", "no such path", &Value::Null));
        };
        let query = Query::of(request.uri().query().unwrap_or_default());
        let accept = request.headers().get(http::header::ACCEPT);
        let accept = accept.and_then(|accept| accept.to_str().ok());
        let partial = accept.is_some_and(|accept| accept.contains("PartialObjectMetadata"));
        if target.name.is_none() && *request.method() == Method::GET {
            return if query.get("watch").is_some() {
                self.watch(&target, &query)
            } else {
                Answer::Whole(self.list(&target, &query, partial))
            };
        }
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        Answer::Whole(match *request.method() {
            Method::GET => self.read(&target, partial, lease),
            Method::POST => self.post(&target, body, now),
            Method::PUT => self.replace(&target, &body),
            Method::PATCH => whole(200, &body),
            Method::DELETE => self.remove(&target, &body),
            _ => failure(405, "MethodNotAllowed", "not allowed", &Value::Null),
        })
    }

    fn read(&self, target: &Target, partial: bool, lease: &str) -> Response<Bytes> {
        let found = target.key().and_then(|key| self.objects.get(&key));
        let Some(object) = found else {
            return not_found(target);
        };
        let mut object = object.clone();
        if self.two_installations && target.kind == "customresourcedefinitions" {
            object["metadata"]["annotations"]["ci.openshift.io/lease"] =
                json!(format!("{lease}/promotion-controller"));
        }
        whole(200, &if partial { partial_of(&object) } else { object })
    }

    fn post(&mut self, target: &Target, mut body: Value, now: Timestamp) -> Response<Bytes> {
        body["metadata"]["namespace"] = json!(target.namespace);
        body["kind"] = json!(target.kind_name());
        body["apiVersion"] = json!(target.api_version());
        if target.kind == "events" {
            return whole(201, &body);
        }
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        if self.get(&target.kind, &target.namespace, name).is_some() {
            return failure(
                409,
                "AlreadyExists",
                "it exists already",
                &json!({"name": name}),
            );
        }
        whole(201, &self.create(&target.kind, body, now))
    }

    fn replace(&mut self, target: &Target, body: &Value) -> Response<Bytes> {
        let Some((key, found)) = target
            .key()
            .and_then(|key| Some((key.clone(), self.objects.get(&key)?.clone())))
        else {
            return not_found(target);
        };
        let details = json!({"name": target.name, "group": target.group, "kind": target.kind});
        let (ours, theirs) = (&found["metadata"], &body["metadata"]);
        if theirs["resourceVersion"] != ours["resourceVersion"] {
            let message = "the object has been modified; please apply your changes to the latest version and try again";
            return failure(409, "Conflict", message, &details);
        }
        if theirs["uid"].is_string() && theirs["uid"] != ours["uid"] {
            return failure(409, "Conflict", "Precondition failed: UID", &details);
        }
        let mut next = found.clone();
        if target.status {
            next["status"] = body["status"].clone();
        } else {
            next["spec"] = body["spec"].clone();
            next["metadata"]["annotations"] = theirs["annotations"].clone();
        }
        whole(200, &self.put(key, Some(next)).unwrap_or_default())
    }

    fn remove(&mut self, target: &Target, body: &Value) -> Response<Bytes> {
        let Some((key, found)) = target
            .key()
            .and_then(|key| Some((key.clone(), self.objects.get(&key)?.clone())))
        else {
            return not_found(target);
        };
        for field in ["uid", "resourceVersion"] {
            let wanted = &body["preconditions"][field];
            if wanted.is_string() && *wanted != found["metadata"][field] {
                return failure(
                    409,
                    "Conflict",
                    "Precondition failed",
                    &json!({"name": key.2}),
                );
            }
        }
        self.put(key, None);
        whole(
            200,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        )
    }

    fn list(&mut self, target: &Target, query: &Query, partial: bool) -> Response<Bytes> {
        let rest = match query.get("continue") {
            Some(token) => self.pages.remove(token),
            None => Some((self.version, self.selected(target, &query.terms()))),
        };
        let Some((version, mut items)) = rest else {
            let message = "The provided continue parameter is too old";
            return failure(410, "Expired", message, &Value::Null);
        };
        let limit = query.get("limit").and_then(|limit| limit.parse().ok());
        let rest = items.split_off(limit.unwrap_or(usize::MAX).min(items.len()));
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if !rest.is_empty() {
            self.paged += 1;
            let token = format!("{version}-{}", self.paged);
            metadata["continue"] = json!(token);
            self.pages.insert(token, (version, rest));
        }
        let (kind, api) = if partial {
            items = items.iter().map(partial_of).collect();
            ("PartialObjectMetadata", "meta.k8s.io/v1".into())
        } else {
            (target.kind_name(), target.api_version())
        };
        whole(
            200,
            &json!({"kind": format!("{kind}List"), "apiVersion": api, "metadata": metadata, "items": items}),
        )
    }

    fn selected(&self, target: &Target, terms: &[Term]) -> Vec<Value> {
        let of = |key: &Key| {
            key.0 == target.kind && (target.namespace.is_empty() || key.1 == target.namespace)
        };
        let all = self.objects.iter().filter(|(key, _)| of(key));
        let all = all.map(|(_, object)| object.clone());
        all.filter(|object| selects(terms, object)).collect()
    }

    fn watch(&self, target: &Target, query: &Query) -> Answer {
        let version = query.get("resourceVersion").and_then(|v| v.parse().ok());
        let version = version.unwrap_or(self.version);
        if version < self.forgotten {
            return Answer::Whole(failure(
                410,
                "Expired",
                "too old resource version",
                &Value::Null,
            ));
        }
        let seconds = query.get("timeoutSeconds").and_then(|s| s.parse().ok());
        Answer::Watch(Watch {
            kind: target.kind.clone(),
            namespace: target.namespace.clone(),
            terms: query.terms(),
            version,
            seconds: seconds.unwrap_or(300),
        })
    }
}

/// The arguments of a request.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of(text: &str) -> Self {
        let decoded = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn terms(&self) -> Vec<Term> {
        let terms = self.get("fieldSelector").unwrap_or_default().split(',');
        let term = |term: &str| {
            let (field, value) = term.split_once('=')?;
            let equal = !field.ends_with('!');
            Some(Term {
                field: field.trim_end_matches('!').to_owned(),
                equal,
                value: value.to_owned(),
            })
        };
        terms.filter_map(term).collect()
    }
}

fn selects(terms: &[Term], object: &Value) -> bool {
    terms.iter().all(|term| {
        let path = format!("/{}", term.field.replace('.', "/"));
        let value = object.pointer(&path).and_then(Value::as_str);
        (value.unwrap_or_default() == term.value) == term.equal
    })
}

fn without_version(object: &Value) -> Map<String, Value> {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = Value::Null;
    object.as_object().cloned().unwrap_or_default()
}

fn partial_of(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn not_found(target: &Target) -> Response<Bytes> {
    let details = json!({"name": target.name, "group": target.group, "kind": target.kind});
    let name = target.name.as_deref().unwrap_or_default();
    failure(
        404,
        "NotFound",
        &format!("{} \"{name}\" not found", target.kind),
        &details,
    )
}

/// A refusal.
pub fn failure(code: u16, reason: &str, message: &str, details: &Value) -> Response<Bytes> {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !details.is_null() {
        status["details"] = details.clone();
    }
    whole(code, &status)
}

fn whole(code: u16, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}
