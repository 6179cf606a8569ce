//! Image stream tags that follow floats, on a real API server that serves a resource of the shape of an `ImageStream`.

use std::path::Path;
use std::time::Instant;

use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use promotion_controller::api::{PromotionRequest, ReferenceStatus};
use promotion_controller::policy::Rules;
use quaylike::Matcher;
use serde_json::{Value, json};

use crate::ground::{Ground, alone};
use crate::relay::{Call, Fault, Relay};
use crate::testbed::stage::{Controller, LOOK, Stage, condition, phase};
use crate::testbed::{ControlPlane, PATIENCE};

/// The part of an `ImageStream` that counts here, with its bounds. A tag named `forbidden` stands for what an admission refuses.
const IMAGE_STREAMS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: imagestreams.image.openshift.io}
spec:
  group: image.openshift.io
  names: {kind: ImageStream, listKind: ImageStreamList, plural: imagestreams, singular: imagestream, shortNames: [is]}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              dockerImageRepository: {type: string}
              lookupPolicy: {type: object, properties: {local: {type: boolean}}}
              tags:
                type: array
                maxItems: 1000
                x-kubernetes-list-type: atomic
                x-kubernetes-validations:
                - {rule: "!self.exists(t, t.name == 'forbidden')", message: "no such tag"}
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string, maxLength: 128}
                    annotations: {type: object, additionalProperties: {type: string}}
                    from: {type: object, properties: {kind: {type: string}, name: {type: string}, namespace: {type: string}}}
                    reference: {type: boolean}
                    generation: {type: integer}
                    importPolicy: {type: object, properties: {importMode: {type: string, enum: [Legacy, PreserveOriginal]}, scheduled: {type: boolean}}}
                    referencePolicy: {type: object, properties: {type: {type: string, enum: [Source, Local]}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

const PULL_HOST: &str = "quay-proxy.ci.example.org";

/// A namespace whose requests may set the tags of its own streams.
struct Streams {
    ground: Ground,
}

impl Streams {
    async fn new(prefix: &str) -> Self {
        Self::of(Stage::new(prefix).await).await
    }

    async fn of(stage: Stage) -> Self {
        stage.plane.apply_crds(IMAGE_STREAMS).await.unwrap();
        let ground = Ground::of(stage).await;
        let streams = Self { ground };
        streams.allow(&streams.ground.stage.namespace, "*:*");
        streams
    }

    /// The one rule: whose requests may set which tags of this namespace's streams.
    fn allow(&self, namespace: &str, tags: &str) {
        let stage = &self.ground.stage;
        let own = &stage.namespace;
        let rule = json!({
            "name": "r", "namespaces": [namespace], "floats": [self.ground.float("*")],
            "imageStreamTags": [format!("{own}/{tags}")],
        });
        let next = stage.folder.join("next");
        std::fs::write(&next, json!({ "rules": [rule] }).to_string()).unwrap();
        std::fs::rename(next, stage.folder.join("policy.yaml")).unwrap();
    }

    fn controller(&self, more: &[&str]) -> Controller {
        self.controller_through(self.ground.stage.plane.kubeconfig(), more)
    }

    fn controller_through(&self, kubeconfig: &Path, more: &[&str]) -> Controller {
        let stage = &self.ground.stage;
        let flags = [
            format!("--policy={}", stage.folder.join("policy.yaml").display()),
            format!("--image-stream-namespace={}", stage.namespace),
            format!("--pull-host={}/ci={PULL_HOST}", self.ground.registry.host()),
        ];
        let flags = flags.iter().map(String::as_str).chain(more.iter().copied());
        let flags = flags.collect::<Vec<_>>();
        self.ground.controller_through(kubeconfig, &flags)
    }

    fn api(&self) -> Api<DynamicObject> {
        api(self.ground.stage.plane, &self.ground.stage.namespace)
    }

    async fn create(&self, name: &str, tags: Value) {
        let stream: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
            "metadata": {"name": name, "annotations": {"theirs": "kept"}},
            "spec": {"lookupPolicy": {"local": true}, "tags": tags},
        }))
        .unwrap();
        let api = self.api();
        api.create(&PostParams::default(), &stream).await.unwrap();
        let status = json!({"status": {"tags": [{"tag": "theirs"}]}});
        let patch = Patch::Merge(&status);
        api.patch_status(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// All of a stream's spec and status.
    async fn stream(&self, name: &str) -> Value {
        self.api().get(name).await.unwrap().data
    }

    async fn tag(&self, stream: &str, tag: &str) -> Option<Value> {
        let stream = self.stream(stream).await;
        let tags = stream["spec"]["tags"].as_array()?;
        tags.iter().find(|one| one["name"] == tag).cloned()
    }

    /// What a tag refers to.
    async fn refers(&self, stream: &str, tag: &str) -> Option<String> {
        let tag = self.tag(stream, tag).await?;
        Some(tag["from"]["name"].as_str()?.to_owned())
    }

    /// Somebody sets a tag by hand, and leaves what else the tag bears.
    async fn set_by_hand(&self, stream: &str, tag: &str, image: &str) {
        let mut current = self.api().get(stream).await.unwrap();
        let tags = current.data["spec"]["tags"].as_array_mut().unwrap();
        let from = json!({"kind": "DockerImage", "name": image});
        match tags.iter_mut().find(|one| one["name"] == tag) {
            Some(found) => found["from"] = from,
            None => tags.push(json!({"name": tag, "from": from})),
        }
        let (api, params) = (self.api(), PostParams::default());
        api.replace(stream, &params, &current).await.unwrap();
    }

    /// A request for one float that a tag follows: its digest, and its spec.
    fn request(&self, source: &str, float: &str, tag: &str) -> (String, Value) {
        let (digest, mut spec) = self.ground.request(source, float);
        spec["imageStreamNamespace"] = json!(self.ground.stage.namespace);
        spec["images"][0]["imageStreamTag"] = json!(tag);
        (digest, spec)
    }

    /// As images of the float's repository are pulled.
    fn pulled(digest: &str) -> String {
        format!("{PULL_HOST}/ci@{digest}")
    }
}

fn api(plane: &ControlPlane, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("image.openshift.io", "v1", "ImageStream");
    let resource = ApiResource::from_gvk_with_plural(&kind, "imagestreams");
    Api::namespaced_with(plane.client().unwrap(), namespace, &resource)
}

fn references(object: &PromotionRequest) -> Vec<Option<ReferenceStatus>> {
    let images = &object.status.as_ref().unwrap().images;
    images.iter().map(|image| image.reference.clone()).collect()
}

fn state(object: &PromotionRequest) -> String {
    let reference = references(object).remove(0);
    reference.map(|r| r.state).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_tags_follow_their_floats_as_references_by_digest_and_nothing_else_of_the_stream_changes()
 {
    let streams = Streams::new("follow").await;
    let ground = &streams.ground;
    let theirs = json!({"name": "theirs", "from": {"kind": "DockerImage", "name": "x.io/y:z"}, "importPolicy": {"scheduled": true}});
    let old = json!({
        "name": "a", "annotations": {"note": "kept"}, "generation": 3, "reference": false,
        "from": {"kind": "ImageStreamImage", "name": "old@sha256:0"}, "importPolicy": {"scheduled": true},
    });
    streams.create("4.21", json!([theirs, old])).await;
    ground.old("a");
    let (a, spec_a) = streams.request("a", "a", "4.21:a");
    let (b, spec_b) = streams.request("b", "b", "4.21:b");
    let mut both = spec_a;
    let images = both["images"].as_array_mut().unwrap();
    images.push(spec_b["images"][0].clone());
    // One without a tag of any stream.
    images.push(ground.request("c", "c").1["images"][0].clone());
    let _controller = streams.controller(&[]);
    ground.stage.create("r", &both).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", ground.stage.log());
    for (kind, truth) in [
        ("Complete", "True"),
        ("Referenced", "True"),
        ("Failed", "False"),
    ] {
        assert_eq!(condition(&done, kind).0, truth, "{kind}");
    }
    let said = condition(&done, "Referenced").2;
    assert_eq!(said, "image stream tags set: 2 of 2");
    let set = |replaced: Option<&str>| {
        let state = "Set".to_owned();
        let replaced = replaced.map(ToOwned::to_owned);
        Some(ReferenceStatus { state, replaced })
    };
    let wanted = [set(Some("old@sha256:0")), set(None), None];
    assert_eq!(references(&done), wanted);

    let order = done.status.as_ref().unwrap().order.unwrap().to_string();
    let uid = done.metadata.uid.clone().unwrap();
    let mut notes =
        json!({"promotion.ci.openshift.io/order": order, "promotion.ci.openshift.io/uid": uid});
    let tag = |name: &str, digest: &str, notes: &Value| {
        json!({
            "name": name, "annotations": notes, "reference": true,
            "from": {"kind": "DockerImage", "name": Streams::pulled(digest)},
            "importPolicy": {"importMode": "PreserveOriginal"}, "referencePolicy": {"type": "Source"},
        })
    };
    let plain = tag("b", &b, &notes);
    notes["note"] = json!("kept");
    notes["promotion.ci.openshift.io/replaced"] = json!("old@sha256:0");
    let stream = streams.stream("4.21").await;
    assert_eq!(
        stream["spec"],
        json!({"lookupPolicy": {"local": true}, "tags": [theirs, tag("a", &a, &notes), plain]})
    );
    assert_eq!(stream["status"], json!({"tags": [{"tag": "theirs"}]}));
    let events = ground.stage.events_until("r", "Promoted", PATIENCE).await;
    let reasons: Vec<_> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
    assert!(reasons.contains(&"Referencing"), "{reasons:?}");
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_request_takes_the_tag_and_an_earlier_one_that_comes_late_leaves_it() {
    let streams = Streams::new("ordered").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let _controller = streams.controller(&[]);
    let mut news = Vec::new();
    for name in ["first", "second"] {
        let (new, spec) = streams.request(name, "a", "4.21:a");
        ground.stage.create(name, &spec).await;
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!((phase(&done), state(&done).as_str()), ("Posted", "Set"));
        assert_eq!(
            streams.refers("4.21", "a").await,
            Some(Streams::pulled(&new))
        );
        news.push(new);
    }
    let second = ground.stage.get("second").await;
    let replaced = references(&second)[0].clone().unwrap().replaced.unwrap();
    let was = Streams::pulled(&news[0]);
    assert!(
        was.ends_with(&replaced) && replaced.contains("@sha256:"),
        "{replaced}"
    );
    // Whoever sets it by hand leaves the mark: the next request takes it from there.
    streams.set_by_hand("4.21", "a", "x.io/by:hand").await;
    let (third, spec) = streams.request("third", "a", "4.21:a");
    ground.stage.create("third", &spec).await;
    let done = ground.stage.finished("third", PATIENCE).await;
    let replaced = references(&done)[0].clone().unwrap().replaced;
    assert_eq!(replaced.as_deref(), Some("x.io/by:hand"));
    news.push(third);

    // As the mark of a request that is yet to come.
    let mut stream = streams.api().get("4.21").await.unwrap();
    let order = "promotion.ci.openshift.io/order";
    stream.data["spec"]["tags"][0]["annotations"][order] = json!(i64::MAX.to_string());
    let params = PostParams::default();
    streams
        .api()
        .replace("4.21", &params, &stream)
        .await
        .unwrap();
    let (_, spec) = streams.request("late", "a", "4.21:a");
    ground.stage.create("late", &spec).await;
    let late = ground.stage.finished("late", PATIENCE).await;
    assert_eq!(
        (phase(&late), state(&late).as_str()),
        ("Posted", "Superseded")
    );
    assert!(
        condition(&late, "Referenced")
            .2
            .contains("left to newer requests: 1")
    );
    assert_eq!(
        streams.refers("4.21", "a").await,
        Some(Streams::pulled(&news[2]))
    );

    // The remedy after a restore of etcd: without its mark the tag is anybody's.
    let mut stream = streams.api().get("4.21").await.unwrap();
    stream.data["spec"]["tags"][0]["annotations"] = json!({});
    streams
        .api()
        .replace("4.21", &params, &stream)
        .await
        .unwrap();
    let (last, spec) = streams.request("last", "a", "4.21:a");
    ground.stage.create("last", &spec).await;
    let done = ground.stage.finished("last", PATIENCE).await;
    assert_eq!(state(&done), "Set");
    assert_eq!(
        streams.refers("4.21", "a").await,
        Some(Streams::pulled(&last))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_and_a_crash_between_float_and_reference_delay_it_and_lose_nothing_and_the_float_is_free()
 {
    let streams = Streams::new("outage").await;
    let ground = &streams.ground;
    streams
        .create(
            "4.21",
            json!([{"name": "a", "from": {"kind": "DockerImage", "name": "x.io/old:a"}}]),
        )
        .await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    relay.add(Call::ReadStream, Fault::Refuse(503, None), 1, usize::MAX);
    let controller = streams.controller_through(&relay.kubeconfig, &[]);
    let (_, first) = streams.request("first", "a", "4.21:a");
    ground.stage.create("first", &first).await;
    let waits = |status: &promotion_controller::api::PromotionRequestStatus| {
        let progressing = status.conditions.iter().find(|c| c.type_ == "Progressing");
        status.phase.as_deref() == Some("Referencing")
            && progressing
                .is_some_and(|c| c.message.contains("4.21") && c.message.contains("next try"))
    };
    let waiting = ground.stage.until("first", PATIENCE, waits).await;
    assert_eq!(waiting.status.as_ref().unwrap().completion_time, None);
    for (kind, truth) in [
        ("Referenced", "False"),
        ("Complete", "False"),
        ("Reconciling", "True"),
    ] {
        assert_eq!(condition(&waiting, kind).0, truth, "{kind}");
    }
    // Another request has the float meanwhile.
    let (new, second) = streams.request("second", "a", "4.21:a");
    ground.stage.create("second", &second).await;
    ground.stage.until("second", PATIENCE, waits).await;
    assert_eq!(ground.at("a"), Some(new.clone()));
    assert_eq!(
        streams.refers("4.21", "a").await.as_deref(),
        Some("x.io/old:a")
    );

    controller.kill();
    relay.clear();
    // The first write is in, and its answer lost.
    relay.add(Call::WriteStream, Fault::LoseAnswer, 1, 1);
    let _next = streams.controller_through(&relay.kubeconfig, &[]);
    let second = ground.stage.finished("second", PATIENCE).await;
    let first = ground.stage.finished("first", PATIENCE).await;
    assert_eq!((phase(&first), phase(&second)), ("Posted", "Posted"));
    assert_eq!(
        streams.refers("4.21", "a").await,
        Some(Streams::pulled(&new))
    );
    // The float had moved on before the first was referred to, so it never was.
    assert_eq!(
        (state(&first).as_str(), state(&second).as_str()),
        ("Superseded", "Set")
    );
    let replaced = references(&second)[0].clone().unwrap().replaced;
    assert_eq!(replaced.as_deref(), Some("x.io/old:a"));
    assert_eq!(relay.faults(Call::WriteStream), 1);
    ground.assert_sound();
}

/// Whether a request waits for its streams.
fn is_referencing(status: &promotion_controller::api::PromotionRequestStatus) -> bool {
    status.phase.as_deref() == Some("Referencing")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_day_ends_the_request_and_leaves_its_floats_where_they_are() {
    let streams = Streams::new("day").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    relay.add(Call::ReadStream, Fault::Refuse(503, None), 1, usize::MAX);
    let _controller = streams.controller_through(&relay.kubeconfig, &[]);
    let (new, spec) = streams.request("r", "a", "4.21:a");
    ground.stage.create("r", &spec).await;
    let waiting = ground.stage.until("r", PATIENCE, is_referencing).await;
    // As if it had begun more than a day ago.
    let mut conditions = serde_json::to_value(waiting.status.unwrap().conditions).unwrap();
    for condition in conditions.as_array_mut().unwrap() {
        if condition["type"] == "Referenced" {
            let ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(25);
            let ago = ago.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            condition["lastTransitionTime"] = json!(ago);
        }
    }
    let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
    let requests = ground.stage.requests();
    requests
        .patch_status("r", &PatchParams::default(), &patch)
        .await
        .unwrap();
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!((phase(&done), state(&done).as_str()), ("Failed", "Failed"));
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!(reason, "ReferenceFailed");
    assert!(
        message.contains("4.21:a: not set within 24 h; last: "),
        "{message}"
    );
    assert_eq!(done.status.as_ref().unwrap().images[0].phase, "Posted");
    assert_eq!(ground.at("a"), Some(new));
    assert_eq!(streams.refers("4.21", "a").await, None);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_back_what_is_left_to_refer_to_and_ends_nothing() {
    let streams = Streams::new("paused").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    relay.add(Call::ReadStream, Fault::Refuse(503, None), 1, usize::MAX);
    let here = format!("--lease-namespace={}", ground.stage.namespace);
    let _controller = streams.controller_through(&relay.kubeconfig, &[&here]);
    let (new, spec) = streams.request("r", "a", "4.21:a");
    ground.stage.create("r", &spec).await;
    ground.stage.until("r", PATIENCE, is_referencing).await;
    ground.pause(&ground.registry.host()).await;
    let why = ground.paused("r").await;
    assert!(why.contains("ConfigMap"), "{why}");
    let asked = relay.seen(Call::ReadStream).len();
    relay.clear();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(relay.seen(Call::ReadStream).len(), asked);
    let held = ground.stage.get("r").await;
    assert_eq!((phase(&held), state(&held).as_str()), ("Referencing", ""));
    ground.go_on().await;
    let done = ground.stage.finished("r", PATIENCE).await;
    assert_eq!((phase(&done), state(&done).as_str()), ("Posted", "Set"));
    let refers = streams.refers("4.21", "a").await;
    assert_eq!(refers, Some(Streams::pulled(&new)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_for_one_stream_of_a_request_is_its_end_and_the_other_streams_tag_is_set() {
    let streams = Streams::new("denied").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    streams.create("4.22", json!([])).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    relay.add(Call::WriteStream, Fault::Refuse(403, None), 1, 1);
    let _controller = streams.controller_through(&relay.kubeconfig, &[]);
    let (_, mut both) = streams.request("a", "a", "4.21:a");
    let (b, other) = streams.request("b", "b", "4.22:b");
    let images = both["images"].as_array_mut().unwrap();
    images.push(other["images"][0].clone());
    ground.stage.create("r", &both).await;
    let done = ground.stage.finished("r", PATIENCE).await;
    let states = references(&done).into_iter().map(|r| r.unwrap().state);
    assert_eq!(states.collect::<Vec<_>>(), ["Failed", "Set"]);
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!((phase(&done), reason), ("Failed", "ReferenceFailed"));
    let said = "4.21:a: the controller may not get or update image stream";
    assert!(message.contains(said), "{message}");
    assert_eq!(streams.refers("4.21", "a").await, None);
    let refers = streams.refers("4.22", "b").await;
    assert_eq!(refers, Some(Streams::pulled(&b)));
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_and_somebody_else_write_one_stream_at_once_and_nobody_loses_anything() {
    let streams = Streams::new("crowd").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let _controller = streams.controller(&[]);
    let mut wanted = Vec::new();
    for number in 0..6 {
        let tag = format!("t{number}");
        let (new, spec) = streams.request(&tag, &tag, &format!("4.21:{tag}"));
        ground.stage.create(&tag, &spec).await;
        wanted.push((tag, new));
    }
    let end = Instant::now() + PATIENCE;
    let mut edits = 0;
    loop {
        let mut stream = streams.api().get("4.21").await.unwrap();
        let tags = stream.data["spec"]["tags"].as_array_mut().unwrap();
        tags.retain(|tag| tag["name"] != "theirs");
        edits += 1;
        tags.push(json!({"name": "theirs", "from": {"kind": "DockerImage", "name": format!("x.io/y:{edits}")}}));
        let replaced = streams
            .api()
            .replace("4.21", &PostParams::default(), &stream)
            .await;
        edits -= usize::from(replaced.is_err());
        let all = ground.stage.list().await;
        if all.iter().all(PromotionRequest::is_finished) {
            break;
        }
        assert!(Instant::now() < end, "{}", ground.stage.log());
        tokio::time::sleep(LOOK).await;
    }
    for (tag, new) in &wanted {
        assert_eq!(phase(&ground.stage.get(tag).await), "Posted");
        assert_eq!(
            streams.refers("4.21", tag).await,
            Some(Streams::pulled(new)),
            "{tag}"
        );
    }
    assert_eq!(
        streams.refers("4.21", "theirs").await,
        Some(format!("x.io/y:{edits}"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_cannot_be_set_fails_the_request_and_leaves_its_floats_and_another_request_sets_it()
 {
    let streams = Streams::new("refused").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let controller = streams.controller(&[]);
    let (new, absent) = streams.request("absent", "a", "4.22:a");
    let (_, forbidden) = streams.request("forbidden", "b", "4.21:forbidden");
    for (name, spec, words) in [
        (
            "absent",
            &absent,
            ["4.22:a: image stream ", "oc create imagestream 4.22"],
        ),
        (
            "forbidden",
            &forbidden,
            ["4.21:forbidden: image stream ", "no such tag"],
        ),
    ] {
        ground.stage.create(name, spec).await;
        let done = ground.stage.finished(name, PATIENCE).await;
        assert_eq!((phase(&done), state(&done).as_str()), ("Failed", "Failed"));
        let (truth, reason, message) = condition(&done, "Failed");
        assert_eq!((truth, reason), ("True", "ReferenceFailed"));
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert_eq!(condition(&done, "Referenced").0, "False");
        assert_eq!(done.status.unwrap().images[0].phase, "Posted");
    }
    assert_eq!(ground.at("a"), Some(new.clone()));
    assert_eq!(streams.stream("4.21").await["spec"]["tags"], json!([]));
    // Once more, where absent streams are made: the float is there already.
    controller.kill();
    let _creating = streams.controller(&["--create-image-streams"]);
    ground.stage.create("again", &absent).await;
    let done = ground.stage.finished("again", PATIENCE).await;
    assert_eq!(
        (phase(&done), state(&done).as_str()),
        ("Posted", "Set"),
        "{}",
        ground.stage.log()
    );
    assert_eq!(condition(&done, "Complete").1, "Unchanged");
    assert_eq!(
        streams.refers("4.22", "a").await,
        Some(Streams::pulled(&new))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_who_asks_for_anothers_stream_is_refused_before_anything_is_contacted() {
    let streams = Streams::new("tenant").await;
    let ground = &streams.ground;
    let own = ground.stage.namespace.clone();
    streams.create("4.21", json!([])).await;
    streams.allow(&own, "4.21:mine-*");
    let _controller = streams.controller(&[]);
    let (_, theirs) = streams.request("theirs", "a", "4.21:payload");
    let (_, mut elsewhere) = streams.request("elsewhere", "b", "4.21:mine-b");
    elsewhere["imageStreamNamespace"] = json!("payloads");
    let (_, mut secret) = streams.request("secret", "c", "4.21:payload");
    secret["pushSecret"] = json!({"name": "of-its-own"});
    for (name, spec, word) in [
        ("theirs", &theirs, "--policy file: "),
        ("elsewhere", &elsewhere, "--image-stream-namespace"),
        ("secret", &secret, "--policy file: "),
    ] {
        ground.stage.create(name, spec).await;
        let done = ground.stage.finished(name, PATIENCE).await;
        let (_, reason, message) = condition(&done, "Failed");
        assert_eq!(reason, "NotAllowed", "{message}");
        assert!(
            message.contains("spec.images[0].imageStreamTag") && message.contains(word),
            "{message}"
        );
        if let Some((_, line)) = message.split_once("--policy file: ") {
            let rules = Rules::parse(&format!("rules:\n{line}\n")).unwrap();
            let float = done.spec.images[0].float.parse().unwrap();
            let tag = "4.21:payload".parse().unwrap();
            assert!(
                rules.of(&own)[0].grants_stream(&float, &own, &tag),
                "{line}"
            );
        }
    }
    assert_eq!(ground.registry.count(&Matcher::default()), 0);
    let (_, allowed) = streams.request("allowed", "d", "4.21:mine-d");
    ground.stage.create("allowed", &allowed).await;
    assert_eq!(
        phase(&ground.stage.finished("allowed", PATIENCE).await),
        "Posted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_withdrawn_after_the_commit_leaves_the_stream() {
    let streams = Streams::new("withdrawn").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    relay.add(Call::ReadStream, Fault::Refuse(503, None), 1, usize::MAX);
    let _controller = streams.controller_through(&relay.kubeconfig, &[]);
    let (_, spec) = streams.request("r", "a", "4.21:a");
    ground.stage.create("r", &spec).await;
    let referencing = |status: &promotion_controller::api::PromotionRequestStatus| {
        status.phase.as_deref() == Some("Referencing")
    };
    ground.stage.until("r", PATIENCE, referencing).await;
    streams.allow("somebody-else", "*:*");
    let done = ground.stage.finished("r", PATIENCE).await;
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!(reason, "ReferenceFailed");
    assert!(message.contains("no rule lets namespace"), "{message}");
    assert_eq!(streams.stream("4.21").await["spec"]["tags"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_image_streams_says_so_at_the_start_and_in_the_request() {
    let (_turn, plane) = alone().await;
    let ground = Ground::of(Stage::on(plane, "without").await).await;
    let streams = Streams { ground };
    streams.allow(&streams.ground.stage.namespace, "*:*");
    let controller = streams.controller(&[]);
    controller.says("this cluster has no image streams").await;
    let (_, spec) = streams.request("r", "a", "4.21:a");
    streams.ground.stage.create("r", &spec).await;
    let done = streams.ground.stage.finished("r", PATIENCE).await;
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!(reason, "NotAllowed");
    assert!(
        message.contains("this cluster has no image streams"),
        "{message}"
    );
    assert_eq!(streams.ground.at("a"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tags_of_a_stream_are_set_by_one_read_and_one_write_and_status_is_saved_once_more() {
    let streams = Streams::new("calls").await;
    let ground = &streams.ground;
    streams.create("4.21", json!([])).await;
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    let controller = streams.controller_through(&relay.kubeconfig, &["--registry-qps=0"]);
    controller
        .says("image stream tags follow floats here")
        .await;
    let mut saves = Vec::new();
    for referenced in [false, true] {
        let mut all: Option<Value> = None;
        for number in 0..40 {
            let tag = format!("{referenced}-{number}");
            let (_, mut spec) = streams.request(&tag, &tag, &format!("4.21:{tag}"));
            if !referenced {
                spec["images"][0]
                    .as_object_mut()
                    .unwrap()
                    .remove("imageStreamTag");
            }
            match &mut all {
                Some(all) => {
                    let images = all["images"].as_array_mut().unwrap();
                    images.push(spec["images"][0].clone());
                }
                None => all = Some(spec),
            }
        }
        let mut all = all.unwrap();
        if !referenced {
            all.as_object_mut().unwrap().remove("imageStreamNamespace");
        }
        let name = format!("r-{referenced}");
        let before = relay.seen(Call::Save).len();
        ground.stage.create(&name, &all).await;
        let done = ground.stage.finished(&name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted");
        saves.push(relay.seen(Call::Save).len() - before);
    }
    let (reads, writes) = (
        relay.seen(Call::ReadStream).len(),
        relay.seen(Call::WriteStream).len(),
    );
    println!(
        "40 references: {reads} read, {writes} write; saves of status without and with: {saves:?}"
    );
    assert_eq!((reads, writes), (1, 1));
    let stream = streams.stream("4.21").await;
    assert_eq!(stream["spec"]["tags"].as_array().unwrap().len(), 40);
}
