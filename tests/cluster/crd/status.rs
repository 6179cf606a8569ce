//! Status on a real API server: what is written is read back, a newer version's fields outlive our saves, a stale save is
//! refused, and the largest object the schema admits fits.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use promotion_controller::api::{
    ImageStatus, PinStatus, PromotionRequest, PromotionRequestStatus, ReferenceStatus,
    SourceStatus, Unknown, crd,
};
use serde_json::{Value, json};

use super::{DIGEST, FLOAT, object, refusal, served, spec, typed, untyped};
use crate::testbed::own_plane;

fn time(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(1_700_000_000 + second).unwrap())
}

fn pin(stamp: u64) -> PinStatus {
    PinStatus {
        digest: DIGEST.into(),
        prune_tag: format!("{stamp}_prune_ocp_4.21_ovn-kubernetes"),
        unknown: Unknown::new(),
    }
}

fn reference() -> ReferenceStatus {
    ReferenceStatus {
        state: "Superseded".into(),
        replaced: Some(format!("ci.example.org/openshift/ci@{DIGEST}")[..96].into()),
    }
}

/// Every field set, and none left to a default: a new field does not compile before it is here.
fn full_status() -> PromotionRequestStatus {
    PromotionRequestStatus {
        observed_generation: Some(7),
        order: Some(i64::MAX),
        committed: Some(true),
        rollback: Some(false),
        phase: Some("Latched".into()),
        progress: Some("1/2".into()),
        start_time: Some(time(1)),
        deadline_time: Some(time(2)),
        completion_time: Some(time(3)),
        conditions: vec![
            Condition {
                type_: "Progressing".into(),
                status: "True".into(),
                reason: "Latched".into(),
                message: "waiting for „größere“ images 🚢".into(),
                last_transition_time: time(4),
                observed_generation: Some(7),
            },
            Condition {
                type_: "Expiring".into(),
                status: "Unknown".into(),
                reason: "Expiring".into(),
                message: String::new(),
                last_transition_time: time(5),
                observed_generation: None,
            },
        ],
        images: vec![
            ImageStatus {
                float: FLOAT.into(),
                phase: "Latched".into(),
                reason: Some("RegistryUnavailable".into()),
                message: Some("quay.io: 503".into()),
                source: Some(SourceStatus {
                    digest: DIGEST.into(),
                    media_type: Some("application/vnd.oci.image.index.v1+json".into()),
                    unknown: Unknown::new(),
                }),
                unchanged: Some(false),
                first_promotion: Some(true),
                committed: Some(true),
                rollback_tag: Some("20240101000009_prune_ocp_4.21_ovn-kubernetes".into()),
                displaced: vec![pin(20_240_101_000_000), pin(20_240_101_000_001)],
                rescued: vec![pin(20_240_101_000_002)],
                promoted: Some(format!("quay.io/openshift/ci@{DIGEST}")),
                reference: Some(reference()),
                bytes_copied: Some(1 << 53),
                copied_now: Some(1 << 52),
                copy_total: Some(1 << 53),
                would_displace: Some(DIGEST.into()),
                pinned_time: Some(time(7)),
                attempts: Some(3),
                next_attempt_time: Some(time(6)),
                late_until: Some(time(7)),
                unknown: Unknown::new(),
            },
            ImageStatus {
                float: "quay.io/openshift/ci:other".into(),
                phase: "Pending".into(),
                ..ImageStatus::default()
            },
        ],
        unknown: Unknown::new(),
    }
}

async fn create(api: &Api<PromotionRequest>, name: &str) -> PromotionRequest {
    let wanted = json!({"metadata": {"name": name}, "spec": spec(&json!({}))});
    let wanted = serde_json::from_value(wanted).unwrap();
    api.create(&PostParams::default(), &wanted).await.unwrap()
}

#[tokio::test]
async fn every_field_of_status_is_read_back_as_it_was_written() {
    let (plane, namespace) = served("round-trip").await;
    let api = typed(plane, &namespace);
    let mut request = create(&api, "r").await;
    request.status = Some(full_status());
    let saved = api
        .replace_status("r", &PostParams::default(), &request)
        .await
        .unwrap();
    assert_eq!(saved.status, Some(full_status()));
    let read = api.get("r").await.unwrap();
    assert_eq!(read.status, Some(full_status()));
    assert_eq!(read.spec, request.spec);

    // The schema has no field that the types leave out, and the types none that the schema drops.
    let raw = untyped(plane, &namespace).get("r").await.unwrap();
    assert_eq!(
        raw.data["status"],
        serde_json::to_value(full_status()).unwrap()
    );
    let version = &crd().spec.versions[0];
    let root = version
        .schema
        .as_ref()
        .unwrap()
        .open_api_v3_schema
        .as_ref()
        .unwrap();
    let in_schema = &root.properties.as_ref().unwrap()["status"];
    for name in in_schema.properties.as_ref().unwrap().keys() {
        assert!(raw.data["status"].get(name).is_some(), "{name} was not set");
    }

    let mut request = saved;
    request.status = Some(PromotionRequestStatus::default());
    let cleared = api
        .replace_status("r", &PostParams::default(), &request)
        .await
        .unwrap();
    assert_eq!(cleared.status, Some(PromotionRequestStatus::default()));
}

#[tokio::test]
async fn status_is_written_by_its_subresource_alone_and_spec_is_not_written_there() {
    let (plane, namespace) = served("subresource").await;
    let api = typed(plane, &namespace);
    let mut request = create(&api, "r").await;
    request.status = Some(full_status());
    request.spec.suspend = true;
    let changed = api
        .replace("r", &PostParams::default(), &request)
        .await
        .unwrap();
    assert_eq!((changed.status, changed.spec.suspend), (None, true));

    request.metadata.resource_version = changed.metadata.resource_version;
    request.spec.suspend = false;
    let saved = api
        .replace_status("r", &PostParams::default(), &request)
        .await
        .unwrap();
    assert_eq!(
        (saved.status, saved.spec.suspend),
        (Some(full_status()), true)
    );
    // A save of status is no change of what is wanted.
    assert_eq!(saved.metadata.generation, changed.metadata.generation);
}

/// Statuses that are refused, the field below status that is named, a word of the message.
fn bad_statuses() -> Vec<(Value, &'static str, &'static str)> {
    let condition = |name: &str, value: Value| {
        let mut condition = json!({
            "type": "Staged",
            "status": "True",
            "reason": "Incoming",
            "message": "",
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        });
        condition[name] = value;
        json!({"conditions": [condition]})
    };
    let mut twice = condition("message", json!("once"));
    let one = twice["conditions"][0].clone();
    twice["conditions"].as_array_mut().unwrap().push(one);
    vec![
        (json!({"order": 0}), "order", "greater than or equal to 1"),
        (json!({"phase": "P".repeat(33)}), "phase", "more than 32"),
        (
            json!({"progress": "1".repeat(17)}),
            "progress",
            "more than 16",
        ),
        (json!({"startTime": "yesterday"}), "startTime", "date-time"),
        (twice, "conditions[1]", "Duplicate"),
        (
            condition("status", json!("Maybe")),
            "conditions[0].status",
            "supported values",
        ),
        (
            condition("reason", json!("")),
            "conditions[0].reason",
            "at least 1 chars",
        ),
        (
            condition("message", json!("m".repeat(1025))),
            "conditions[0].message",
            "more than 1024",
        ),
        (
            condition("lastTransitionTime", json!(null)),
            "conditions[0].lastTransitionTime",
            "Required",
        ),
    ]
}

/// The same for one image.
fn bad_images() -> Vec<(Value, &'static str, &'static str)> {
    let pins = |count| vec![json!({"digest": DIGEST, "pruneTag": "20240101000000_prune_a"}); count];
    let at_least_none = "greater than or equal to 0";
    [
        (
            json!({"phase": "P".repeat(33)}),
            "images[0].phase",
            "more than 32",
        ),
        (
            json!({"reason": "R".repeat(65)}),
            "images[0].reason",
            "more than 64",
        ),
        (
            json!({"message": "ä".repeat(257)}),
            "images[0].message",
            "more than 256",
        ),
        (json!({"source": {}}), "images[0].source.digest", "Required"),
        (
            json!({"source": {"digest": "sha256:1"}}),
            "images[0].source.digest",
            "should match",
        ),
        (
            json!({"displaced": pins(9)}),
            "images[0].displaced",
            "at most 8",
        ),
        (
            json!({"rescued": pins(4)}),
            "images[0].rescued",
            "at most 3",
        ),
        (
            json!({"displaced": [{"digest": DIGEST, "pruneTag": "latest"}]}),
            "images[0].displaced[0].pruneTag",
            "should match",
        ),
        (
            json!({"rescued": [{"digest": DIGEST, "pruneTag": "2024010100000_prune_a"}]}),
            "images[0].rescued[0].pruneTag",
            "should match",
        ),
        (
            json!({"rollbackTag": "20240101000000_prune_"}),
            "images[0].rollbackTag",
            "should match",
        ),
        (
            json!({"bytesCopied": -1}),
            "images[0].bytesCopied",
            at_least_none,
        ),
        (json!({"attempts": -1}), "images[0].attempts", at_least_none),
    ]
    .map(|(changed, field, word)| {
        let mut image = json!({"float": FLOAT, "phase": "Pending"});
        for (name, value) in changed.as_object().unwrap() {
            image[name] = value.clone();
        }
        (json!({"images": [image]}), field, word)
    })
    .to_vec()
}

#[tokio::test]
async fn a_bad_status_is_refused_by_its_field() {
    let (plane, namespace) = served("bad-status").await;
    let api = untyped(plane, &namespace);
    let wanted = object("r", &spec(&json!({})));
    api.create(&PostParams::default(), &wanted).await.unwrap();
    for (status, field, word) in bad_statuses().into_iter().chain(bad_images()) {
        let case = status.to_string();
        let patch = Patch::Merge(json!({ "status": status }));
        let outcome = api.patch_status("r", &PatchParams::default(), &patch).await;
        let refused = refusal(outcome);
        super::assert_names(&case, &refused, &format!("status.{field}"), &[word]);
    }
}

/// A status with every field at its maximum and messages of `character`; names are ASCII by their grammar.
fn largest_status(floats: &[String], character: &str) -> PromotionRequestStatus {
    let pin = PinStatus {
        prune_tag: format!("20240101000000_prune_{}", "t".repeat(107)),
        ..pin(0)
    };
    let image = |float: &String| ImageStatus {
        float: float.clone(),
        phase: "P".repeat(32),
        reason: Some("R".repeat(64)),
        message: Some(character.repeat(256)),
        source: Some(SourceStatus {
            digest: DIGEST.into(),
            media_type: Some("m".repeat(128)),
            unknown: Unknown::new(),
        }),
        rollback_tag: Some(pin.prune_tag.clone()),
        displaced: vec![pin.clone(); 8],
        rescued: vec![pin.clone(); 3],
        // With mode Plan alone, which displaces nothing; and before there is anything promoted.
        would_displace: None,
        pinned_time: None,
        // Posted alone, and then without a message.
        promoted: None,
        reference: None,
        bytes_copied: Some(i64::MAX),
        attempts: Some(i32::MAX),
        ..full_status().images[0].clone()
    };
    let condition = |number: usize| Condition {
        type_: format!("{number}{}", "T".repeat(63)),
        status: "Unknown".into(),
        reason: "R".repeat(64),
        message: character.repeat(1024),
        last_transition_time: time(0),
        observed_generation: Some(i64::MAX),
    };
    PromotionRequestStatus {
        observed_generation: Some(i64::MAX),
        phase: Some("P".repeat(32)),
        progress: Some("1".repeat(16)),
        conditions: (0..10).map(condition).collect(),
        images: floats.iter().map(image).collect(),
        ..full_status()
    }
}

#[tokio::test]
async fn the_largest_object_the_schema_admits_is_created_and_its_status_saved_and_changed() {
    let (plane, namespace) = served("largest").await;
    let api = typed(plane, &namespace);
    let floats: Vec<String> = (0..256)
        .map(|n| format!("quay.io/{}{n:03}:{}", "r".repeat(253), "t".repeat(98)))
        .collect();
    assert_eq!(floats[0].len(), 363);
    let source = format!("quay.io/{}:{}@{DIGEST}", "r".repeat(303), "t".repeat(128));
    assert_eq!(source.len(), 512);
    let images: Vec<_> = floats
        .iter()
        .enumerate()
        .map(|(n, float)| {
            let tag = format!("{n:03}:{}", "t".repeat(124));
            json!({"source": source, "float": float, "replaces": DIGEST, "imageStreamTag": tag})
        })
        .collect();
    let secret = json!({"name": "s".repeat(253)});
    let gates: Vec<_> = (0..8)
        .map(|n| json!({"name": format!("{n}{}", "g".repeat(62))}))
        .collect();
    let largest = json!({"images": images, "pullSecret": secret, "pushSecret": secret, "undo": true, "gates": gates, "imageStreamNamespace": "n".repeat(63)});
    let (created, applied) = ("c".repeat(253), "a".repeat(253));
    let post = PostParams::default();

    let wanted = object(&created, &spec(&largest));
    let raw = untyped(plane, &namespace);
    raw.create(&post, &wanted).await.unwrap();
    // kubectl keeps what it applied in an annotation, of 256 KiB at most: without stream tags it just fits.
    let mut fitting = largest.clone();
    for image in fitting["images"].as_array_mut().unwrap() {
        image.as_object_mut().unwrap().remove("imageStreamTag");
    }
    let fields = fitting.as_object_mut().unwrap();
    fields.remove("imageStreamNamespace");
    let mut copy = object(&applied, &spec(&fitting));
    copy.metadata.namespace = Some(namespace);
    let yaml = serde_json::to_string(&copy).unwrap();
    plane.apply(&yaml).await.unwrap();

    // kubectl apply keeps a copy of the spec in an annotation, 0.2 MB here: then messages have one byte for a character.
    for (name, character) in [(created, "🚢"), (applied, "m")] {
        let mut request = api.get(&name).await.unwrap();
        let before = serde_json::to_vec(&request).unwrap().len();
        request.status = Some(largest_status(&floats, character));
        let saved = api.replace_status(&name, &post, &request).await;
        let saved = saved.unwrap_or_else(|error| panic!("{character}, {before}: {error}"));
        assert_eq!(saved.status, request.status);
        let bytes = serde_json::to_vec(&saved).unwrap().len();
        println!("largest object, messages of '{character}': {before} bytes, {bytes} with status");

        // At its end it has no messages, and says where everything went.
        let mut ended = saved.clone();
        for image in &mut ended.status.as_mut().unwrap().images {
            image.promoted = Some("p".repeat(330));
            image.reference = Some(reference());
            (image.message, image.rollback_tag, image.next_attempt_time) = (None, None, None);
            (image.copied_now, image.copy_total) = (None, None);
        }
        let mut saved = api.replace_status(&name, &post, &ended).await.unwrap();
        let bytes = serde_json::to_vec(&saved).unwrap().len();
        println!("largest object that has ended: {bytes} bytes");
        saved.status.as_mut().unwrap().images[255].attempts = Some(1);
        let changed = api.replace_status(&name, &post, &saved).await.unwrap();
        assert_eq!(changed.status, saved.status);
        let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
        let params = PatchParams::default();
        let cancelled = api.patch(&name, &params, &patch).await.unwrap();
        assert_eq!(cancelled.status, saved.status);
        assert!(cancelled.spec.cancel);
    }
}

/// The definition as a newer version might have it: one more field in status and in each of its parts.
fn newer_crd() -> String {
    let mut newer = serde_json::to_value(crd()).unwrap();
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status";
    let image = format!("{status}/properties/images/items");
    let parts = [
        status.to_owned(),
        format!("{image}/properties/source"),
        format!("{image}/properties/displaced/items"),
        format!("{image}/properties/rescued/items"),
        image,
    ];
    let field = json!({
        "type": "object",
        "properties": {"text": {"type": "string"}, "list": {"type": "array", "items": {"type": "integer"}}},
    });
    for part in parts {
        let properties = newer.pointer_mut(&format!("{part}/properties")).unwrap();
        properties["newer"] = field.clone();
    }
    serde_json::to_string(&newer).unwrap()
}

#[tokio::test]
async fn what_a_newer_version_noted_in_status_outlives_our_save() {
    let (_turn, plane) = own_plane().await;
    plane.apply_crds(&newer_crd()).await.unwrap();
    let (api, raw) = (typed(plane, "default"), untyped(plane, "default"));
    create(&api, "r").await;

    let newer = |text: &str| json!({"text": text, "list": [3, 1, 2]});
    let mut status = serde_json::to_value(full_status()).unwrap();
    status["newer"] = newer("status");
    status["images"][0]["newer"] = newer("image");
    status["images"][0]["source"]["newer"] = newer("source");
    status["images"][0]["displaced"][1]["newer"] = newer("displaced");
    status["images"][0]["rescued"][0]["newer"] = newer("rescued");
    let patch = Patch::Merge(json!({ "status": status }));
    let written = raw
        .patch_status("r", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        written.data["status"], status,
        "the newer definition keeps its fields"
    );

    let mut request = api.get("r").await.unwrap();
    let ours = request.status.as_mut().unwrap();
    assert_eq!(ours.unknown["newer"], newer("status"));
    ours.phase = Some("Posted".into());
    ours.images[0].message = None;
    ours.images[0].displaced.push(pin(20_240_101_000_003));
    api.replace_status("r", &PostParams::default(), &request)
        .await
        .unwrap();

    status["phase"] = json!("Posted");
    let image = status["images"][0].as_object_mut().unwrap();
    image.remove("message");
    let displaced = image["displaced"].as_array_mut().unwrap();
    displaced.push(serde_json::to_value(pin(20_240_101_000_003)).unwrap());
    assert_eq!(raw.get("r").await.unwrap().data["status"], status);
}

#[tokio::test]
async fn what_no_definition_knows_is_dropped_and_does_not_hinder_a_save() {
    let (plane, namespace) = served("dropped").await;
    let api = typed(plane, &namespace);
    let mut request = create(&api, "r").await;
    let mut status = full_status();
    status.unknown.insert("newer".into(), json!("text"));
    status.images[0]
        .unknown
        .insert("newer".into(), json!({"deep": true}));
    request.status = Some(status);
    let saved = api
        .replace_status("r", &PostParams::default(), &request)
        .await
        .unwrap();
    assert_eq!(saved.status, Some(full_status()));
}

/// What kube says of a refusal: conflict, not found, already exists.
fn told(status: &kube::core::Status) -> (bool, bool, bool) {
    (
        status.is_conflict(),
        status.is_not_found(),
        status.is_already_exists(),
    )
}

const CONFLICT: (bool, bool, bool) = (true, false, false);
const NOT_FOUND: (bool, bool, bool) = (false, true, false);
const ALREADY_EXISTS: (bool, bool, bool) = (false, false, true);

#[tokio::test]
async fn a_stale_a_missing_and_a_second_object_are_told_apart() {
    let (plane, namespace) = served("refusals").await;
    let api = typed(plane, &namespace);
    let post = PostParams::default();
    let mut first = create(&api, "r").await;
    let mut stale = first.clone();
    first.status = Some(full_status());
    let first = api.replace_status("r", &post, &first).await.unwrap();

    stale.status = Some(PromotionRequestStatus::default());
    let refused = refusal(api.replace_status("r", &post, &stale).await);
    assert_eq!((told(&refused), refused.code), (CONFLICT, 409));
    stale.spec.cancel = true;
    let refused = refusal(api.replace("r", &post, &stale).await);
    assert_eq!((told(&refused), refused.code), (CONFLICT, 409));
    assert_eq!(
        api.get("r").await.unwrap(),
        first,
        "a stale save changed something"
    );

    let refused = refusal(api.get("missing").await);
    assert_eq!((told(&refused), refused.code), (NOT_FOUND, 404));
    assert_eq!(api.get_opt("missing").await.unwrap(), None);
    let mut missing = first.clone();
    missing.metadata.name = Some("missing".into());
    let refused = refusal(api.replace_status("missing", &post, &missing).await);
    assert_eq!((told(&refused), refused.code), (NOT_FOUND, 404));

    let second = PromotionRequest::new("r", first.spec.clone());
    let refused = refusal(api.create(&post, &second).await);
    assert_eq!((told(&refused), refused.code), (ALREADY_EXISTS, 409));

    // Deleted and created again under the same name: another object.
    let preconditions = Preconditions {
        uid: Some("00000000-0000-0000-0000-000000000000".into()),
        ..Preconditions::default()
    };
    let other = DeleteParams::default().preconditions(preconditions);
    let refused = refusal(api.delete("r", &other).await.map(|_| ()));
    assert_eq!((told(&refused), refused.code), (CONFLICT, 409));
    api.delete("r", &DeleteParams::default()).await.unwrap();
    create(&api, "r").await;
    let refused = refusal(api.replace_status("r", &post, &first).await);
    assert_eq!((told(&refused), refused.code), (CONFLICT, 409));
}
