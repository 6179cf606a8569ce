//! What is admitted and what is refused: each rule and bound, and that a refusal names the field and the remedy.

use kube::api::{ListParams, PostParams};
use promotion_controller::api::PromotionRequest;
use promotion_controller::image::{Float, Source};
use serde_json::{Value, json};

use super::{DIGEST, FLOAT, assert_names, object, refusal, served, source, spec, typed, untyped};

fn with_source(source: &str) -> Value {
    json!({"images": [{"source": source, "float": FLOAT}]})
}

fn with_float(float: &str) -> Value {
    json!({"images": [{"source": source(), "float": float}]})
}

fn many_images(count: usize) -> Value {
    let image = |n| json!({"source": source(), "float": format!("quay.io/openshift/ci:f{n}")});
    json!({"images": (0..count).map(image).collect::<Vec<_>>()})
}

/// Sources that are refused, and why a person would write them.
fn bad_sources() -> Vec<(&'static str, String)> {
    let name = "quay.io/openshift/ci";
    vec![
        ("no host", "ubuntu:24.04".into()),
        ("neither tag nor digest", name.into()),
        ("a scheme", format!("docker://{name}:v1")),
        ("upper case in the host", "Quay.io/openshift/ci:v1".into()),
        (
            "upper case in the repository",
            "quay.io/OpenShift/ci:v1".into(),
        ),
        ("no repository", format!("quay.io/@{DIGEST}")),
        ("two slashes", "quay.io//ci:v1".into()),
        ("two dots", "quay.io/openshift..ci:v1".into()),
        ("three underscores", "quay.io/openshift___ci:v1".into()),
        ("a trailing dash", "quay.io/openshift-:v1".into()),
        ("a port without digits", "localhost:/ci:v1".into()),
        ("a port of six digits", "localhost:123456/ci:v1".into()),
        ("a host that begins with a dash", "-quay.io/ci:v1".into()),
        ("a space", format!("{name}:v1 ")),
        ("a line break", format!("{name}:v1\n")),
        ("letters outside ASCII", "quay.io/öpenshift/ci:v1".into()),
        ("a tag that begins with a dot", format!("{name}:.v1")),
        (
            "a tag of 129 characters",
            format!("{name}:{}", "t".repeat(129)),
        ),
        (
            "a digest of another kind",
            format!("{name}@sha512:{}", "a".repeat(128)),
        ),
        ("a digest cut short", format!("{name}@{}", &DIGEST[..70])),
        (
            "a digest in upper case",
            format!("{name}@{}", DIGEST.replace('e', "E")),
        ),
        ("the digest before the tag", format!("{name}@{DIGEST}:v1")),
    ]
}

/// Tags of image streams that are refused, and one without its namespace.
fn bad_stream_tags() -> impl Iterator<Item = Bad> {
    let image = |tag: &str| json!({"source": source(), "float": FLOAT, "imageStreamTag": tag});
    let tags = [
        "cli",
        ":cli",
        "4.21:",
        "ocp/4.21:cli",
        "Stream:cli",
        "4.21:.x",
        "4.21:a b",
    ];
    let tags = tags.map(move |tag| {
        let spec = json!({"images": [image(tag)], "imageStreamNamespace": "ocp"});
        bad(tag, &spec, "images[0].imageStreamTag", &["STREAM:TAG"])
    });
    let long = format!("s:{}", "t".repeat(127));
    let long = json!({"images": [image(&long)], "imageStreamNamespace": "ocp"});
    let alone = json!({"images": [image("4.21:cli")]});
    let nothing =
        json!({"images": [{"source": source(), "float": FLOAT}], "imageStreamNamespace": "ocp"});
    tags.into_iter().chain([
        bad(
            "129 characters",
            &long,
            "images[0].imageStreamTag",
            &["128"],
        ),
        bad(
            "no namespace",
            &alone,
            "",
            &["imageStreamNamespace need each other"],
        ),
        bad(
            "no tag",
            &nothing,
            "",
            &["imageStreamNamespace need each other"],
        ),
    ])
}

/// Floats that are refused, with a word of the reason.
fn bad_floats() -> Vec<(&'static str, String, &'static str)> {
    let name = "quay.io/openshift/ci";
    let tagged = |tag: &str| format!("{name}:{tag}");
    vec![
        ("no tag", name.into(), "HOST[:PORT]/REPOSITORY:TAG"),
        ("a digest", format!("{name}@{DIGEST}"), "without a digest"),
        (
            "tag and digest",
            format!("{name}:v1@{DIGEST}"),
            "without a digest",
        ),
        ("no host", "ci:v1".into(), "HOST"),
        (
            "a tag of 99 characters",
            tagged(&"t".repeat(99)),
            "at most 98 characters",
        ),
        (
            "a prune tag",
            tagged("20240101000000_prune_v1"),
            "choose another tag",
        ),
        (
            "a release payload",
            tagged("rc_payload__4.21"),
            "choose another tag",
        ),
        (
            "a preserved payload",
            tagged("preserved__rc_payload__4.21"),
            "choose another tag",
        ),
        (
            "a removed payload",
            tagged("remove__rc_payload__4.21"),
            "choose another tag",
        ),
        (
            "an art image",
            tagged("art__ose-cli"),
            "reserved for pins and release payloads",
        ),
        (
            "an incoming pin",
            tagged("v1_incoming"),
            "a float cannot end in _incoming",
        ),
        ("a pre pin", tagged("v1__pre"), "choose another tag"),
        ("a post pin", tagged("v1__post1"), "choose another tag"),
        ("a rescue", tagged("v1__rescued"), "choose another tag"),
        ("a broken image", tagged("v1__broken"), "choose another tag"),
    ]
}

/// A spec that is refused.
struct Bad {
    what: String,
    spec: Value,
    /// The field that is named, below spec.
    field: String,
    /// What the message has in it.
    words: Vec<String>,
}

/// The good spec made bad by `changed`.
fn bad(what: &str, changed: &Value, field: &str, words: &[&str]) -> Bad {
    Bad {
        what: what.to_owned(),
        spec: spec(changed),
        field: field.to_owned(),
        words: words.iter().map(|&words| words.to_owned()).collect(),
    }
}

fn bad_names() -> Vec<Bad> {
    let words = [
        "must be HOST[:PORT]/REPOSITORY@sha256:DIGEST or HOST",
        "no default tag",
    ];
    let sources = bad_sources().into_iter().map(|(what, source)| {
        let what = format!("source with {what}");
        bad(&what, &with_source(&source), "images[0].source", &words)
    });
    let floats = bad_floats().into_iter().map(|(what, float, word)| {
        let what = format!("float with {what}");
        bad(&what, &with_float(&float), "images[0].float", &[word])
    });
    let long_source = format!("quay.io/{}@{DIGEST}", "r".repeat(433));
    assert_eq!(long_source.len(), 513);
    let long_float = format!("quay.io/{}:v1", "r".repeat(353));
    assert_eq!(long_float.len(), 364);
    let (source, float) = ("images[0].source", "images[0].float");
    let upper = DIGEST.replace('e', "E");
    let replaces = [
        "",
        "none",
        "absent",
        "sha256:abc",
        &upper,
        &format!("{DIGEST} "),
    ];
    let replaces = replaces.map(|replaces| {
        let image = json!({"source": self::source(), "float": FLOAT, "replaces": replaces});
        let words = if replaces.len() > 71 {
            "more than 71"
        } else {
            "must be sha256:DIGEST, or None"
        };
        let field = "images[0].replaces";
        bad(replaces, &json!({"images": [image]}), field, &[words])
    });
    sources
        .chain(floats)
        .chain(replaces)
        .chain(bad_stream_tags())
        .chain([
            bad(
                "a source too long",
                &with_source(&long_source),
                source,
                &["more than 512"],
            ),
            bad(
                "a float too long",
                &with_float(&long_float),
                float,
                &["more than 363"],
            ),
            bad(
                "an empty source",
                &with_source(""),
                source,
                &["at least 1 chars"],
            ),
            bad(
                "an empty float",
                &with_float(""),
                float,
                &["at least 1 chars"],
            ),
        ])
        .collect()
}

fn bad_images() -> Vec<Bad> {
    let images = |images: Value| json!({ "images": images });
    let first = json!({"source": source(), "float": FLOAT});
    let second = json!({"source": "quay.io/a/b:v2", "float": FLOAT});
    let twice = images(json!([first, second]));
    let sourceless = images(json!([{ "float": FLOAT }]));
    let floatless = images(json!([{ "source": source() }]));
    vec![
        bad(
            "no image",
            &images(json!([])),
            "images",
            &["at least 1 item"],
        ),
        bad(
            "257 images",
            &many_images(257),
            "images",
            &["at most 256 items"],
        ),
        bad(
            "a float twice",
            &twice,
            "images[1]",
            &["Duplicate value", FLOAT],
        ),
        bad(
            "images as text",
            &images(json!("all")),
            "images",
            &["must be of type array"],
        ),
        bad(
            "no images",
            &images(json!(null)),
            "images",
            &["Required value"],
        ),
        bad(
            "no source",
            &sourceless,
            "images[0].source",
            &["Required value"],
        ),
        bad(
            "no float",
            &floatless,
            "images[0].float",
            &["Required value"],
        ),
    ]
}

fn bad_choices() -> Vec<Bad> {
    let choices = [
        ("latch", "together", r#""Together", "Independently""#),
        ("onFailure", "Retry", r#""Hold", "Rollback""#),
        ("referrers", "Copy", r#""Ignore", "BestEffort", "Require""#),
        ("incoming", "remove", r#""Keep", "Remove""#),
        ("mode", "DryRun", r#""Promote", "Plan""#),
    ];
    let choices = choices.iter().map(|&(field, wrong, right)| {
        let words = ["supported values", right];
        bad(
            &format!("{field} {wrong}"),
            &json!({field: wrong}),
            field,
            &words,
        )
    });
    let alone = json!({"latch": "Independently", "onFailure": "Rollback"});
    let words = ["set latch to Together, or onFailure to Hold"];
    choices
        .chain([bad("rollback alone", &alone, "", &words)])
        .collect()
}

fn bad_numbers() -> Vec<Bad> {
    let bounds = [
        ("attempts", 1, 20),
        ("deadlineSeconds", 60, 86_400),
        ("ttlSecondsAfterFinished", 0, 7_776_000),
    ];
    let mut cases = Vec::new();
    for (field, low, high) in bounds {
        for (wrong, words) in [
            (json!(low - 1), format!("greater than or equal to {low}")),
            (json!(high + 1), format!("less than or equal to {high}")),
            (json!("5"), "must be of type integer".into()),
            (json!(61.5), "must be of type integer".into()),
        ] {
            cases.push(bad(
                &format!("{field} {wrong}"),
                &json!({field: wrong}),
                field,
                &[&words],
            ));
        }
    }
    for field in ["suspend", "cancel", "undo"] {
        let words = ["must be of type boolean"];
        cases.push(bad(field, &json!({field: "yes"}), field, &words));
    }
    cases
}

fn bad_gates() -> Vec<Bad> {
    let gate = |name: &str| json!({"name": name});
    let many: Vec<_> = (0..9).map(|n| gate(&n.to_string())).collect();
    let name = "gates[0].name";
    let odd = ["", "-a", "a.", "a b", "ä"].map(|text| {
        let words = if text.is_empty() {
            "at least 1 chars"
        } else {
            "must be letters, digits"
        };
        let what = format!("a gate called '{text}'");
        bad(&what, &json!({"gates": [gate(text)]}), name, &[words])
    });
    let long = json!({"gates": [gate(&"g".repeat(64))]});
    let twice = json!({"gates": [gate("a"), gate("a")]});
    let mut all = Vec::from(odd);
    all.extend([
        bad("a long gate", &long, name, &["more than 63"]),
        bad(
            "nine gates",
            &json!({"gates": many}),
            "gates",
            &["at most 8 items"],
        ),
        bad("a gate twice", &twice, "gates[1]", &["Duplicate value"]),
        bad(
            "a gate without a name",
            &json!({"gates": [{}]}),
            name,
            &["Required value"],
        ),
    ]);
    all
}

fn bad_secrets() -> Vec<Bad> {
    let mut cases = Vec::new();
    for field in ["pullSecret", "pushSecret"] {
        let name = format!("{field}.name");
        for (wrong, path, words) in [
            (json!({}), &name, "Required value"),
            (json!({"name": ""}), &name, "at least 1 chars"),
            (json!({"name": "s".repeat(254)}), &name, "more than 253"),
            (json!("pull"), &field.to_owned(), "must be of type object"),
        ] {
            cases.push(bad(
                &format!("{field} {wrong}"),
                &json!({field: wrong}),
                path,
                &[words],
            ));
        }
    }
    cases
}

#[tokio::test]
async fn every_bad_spec_is_refused_and_the_refusal_says_what_to_change() {
    let (plane, namespace) = served("bad").await;
    let api = untyped(plane, &namespace);
    let cases = [
        bad_names(),
        bad_images(),
        bad_choices(),
        bad_numbers(),
        bad_gates(),
        bad_secrets(),
    ];
    for bad in cases.into_iter().flatten() {
        let wanted = object("bad", &bad.spec);
        let refused = refusal(api.create(&PostParams::default(), &wanted).await);
        // A rule over several fields names what they are in.
        let field = match bad.field.as_str() {
            "" => "spec".to_owned(),
            field => format!("spec.{field}"),
        };
        let words: Vec<&str> = bad.words.iter().map(String::as_str).collect();
        assert_names(&bad.what, &refused, field.trim_end_matches('.'), &words);
    }
    let mut bare = object("bare", &json!({}));
    bare.data = json!({});
    let refused = refusal(api.create(&PostParams::default(), &bare).await);
    assert_names("no spec", &refused, "spec", &["Required value"]);
    let left = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 0);
}

#[test]
fn whatever_the_schema_refuses_as_a_name_the_parser_refuses_too() {
    for (what, source) in bad_sources() {
        assert!(source.parse::<Source>().is_err(), "{what}: {source}");
    }
    for (what, float, _) in bad_floats() {
        assert!(Float::new(&float).is_err(), "{what}: {float}");
    }
}

#[tokio::test]
async fn every_good_name_and_bound_is_admitted_and_parsed() {
    let (plane, namespace) = served("good").await;
    let api = typed(plane, &namespace);
    let name = "quay.io/openshift/ci";
    let mut cases = vec![many_images(256)];
    for source in [
        format!("{name}@{DIGEST}"),
        format!("{name}:v1"),
        format!("{name}:v1@{DIGEST}"),
        format!("{name}:{}", "t".repeat(128)),
        "localhost:5000/a:1".into(),
        "localhost/a:1".into(),
        format!("10.0.0.1:80/a/b/c/d@{DIGEST}"),
        "my-host.example/a.b/c_d/e__f/g--h---i:_1.x-Y".into(),
    ] {
        assert!(source.parse::<Source>().is_ok(), "{source}");
        cases.push(with_source(&source));
    }
    for float in [
        format!("{name}:{}", "t".repeat(98)),
        format!("{name}:1_prune_v1"),
        format!("{name}:v1__rescued.1"),
        format!("{name}:prerc_payload__4.21"),
        format!("{name}:_incoming.1"),
        format!("{name}:v1_pre"),
        format!("{name}:v1__post2"),
        "localhost:5000/a:1".into(),
        "rc_payload__.example/a:b".replace('_', "-"),
    ] {
        assert!(Float::new(&float).is_ok(), "{float}");
        cases.push(with_float(&float));
    }
    cases.push(json!({"attempts": 1, "deadlineSeconds": 60, "ttlSecondsAfterFinished": 0}));
    cases.push(
        json!({"attempts": 20, "deadlineSeconds": 86_400, "ttlSecondsAfterFinished": 7_776_000}),
    );
    cases.push(json!({"latch": "Together", "onFailure": "Rollback", "referrers": "BestEffort", "mode": "Plan"}));
    cases.push(json!({"latch": "Independently", "onFailure": "Hold", "referrers": "Require", "mode": "Promote", "incoming": "Remove"}));
    cases.push(json!({"pullSecret": {"name": "a"}, "pushSecret": {"name": "s".repeat(253)}, "suspend": true, "cancel": true}));
    for (number, changed) in cases.iter().enumerate() {
        let wanted = spec(changed);
        let good: PromotionRequest = serde_json::from_value(json!({
            "metadata": {"name": format!("good-{number}")},
            "spec": wanted,
        }))
        .unwrap();
        let made = api.create(&PostParams::default(), &good).await;
        let made = made.unwrap_or_else(|error| panic!("{changed}: {error}"));
        assert_eq!(made.spec, good.spec);
    }
}

#[tokio::test]
async fn kubectl_refuses_a_misspelt_field_by_its_path() {
    let (plane, namespace) = served("misspelt").await;
    let misspelt = object("r", &spec(&json!({"pullsecret": {"name": "pull"}})));
    let output = plane
        .kubectl_with_input(
            &["create", "-n", &namespace, "-f", "-"],
            &serde_json::to_string(&misspelt).unwrap(),
        )
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("unknown field \"spec.pullsecret\""),
        "{said}"
    );
}
