//! The lines of log of a promotion, for people and for programs.

use crate::testbed::PATIENCE;

use quaylike::{ImageSpec, Options, Registry, Shape};
use serde_json::{Value, json};

use crate::testbed::stage::{Stage, phase, spec};

/// One request that succeeds on an existing float, and one that fails: the log, and the digest promoted.
async fn promoted(stage: &Stage, format: &str) -> (String, String, String) {
    let registry = Registry::start(Options::default()).await.unwrap();
    let host = registry.host();
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    registry.seed_image("ci", "a", &image("old")).unwrap();
    let new = registry.seed_image("src/x", "a", &image("new")).unwrap();
    let flag = format!("--log-format={format}");
    let controller = stage.controller(&[&flag, &format!("--plain-http={host}")]);
    let float = format!("{host}/ci:a");
    let good = spec(&[(&format!("{host}/src/x:a"), &float)]);
    stage.create("good", &good).await;
    let done = stage.finished("good", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", controller.log());
    let bad = spec(&[("example.com/x:a", &float)]);
    stage.create("bad", &bad).await;
    let done = stage.finished("bad", PATIENCE).await;
    assert_eq!(phase(&done), "Failed", "{}", controller.log());
    let name = format!("{}/bad", stage.namespace);
    // The line follows the save.
    let end = std::time::Instant::now() + PATIENCE;
    while !controller
        .log()
        .lines()
        .any(|line| line.contains("request ended") && line.contains(&name))
    {
        assert!(std::time::Instant::now() < end, "{}", controller.log());
        tokio::time::sleep(crate::testbed::stage::LOOK).await;
    }
    (controller.log(), float, new.to_string())
}

/// What a line says beside its time, its length and what is not the same in every run.
fn bare(line: &Value) -> Value {
    let mut line = line.clone();
    let fields = line.as_object_mut().unwrap();
    for always in ["timestamp", "level", "target"] {
        let text = fields.remove(always);
        assert!(text.is_some_and(|text| text.is_string()), "{always}");
    }
    if let Some(took) = fields.remove("took") {
        assert!(
            took.as_f64()
                .is_some_and(|took| (0.0..60.0).contains(&took)),
            "{took}"
        );
        fields.insert("took".into(), json!("some"));
    }
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_every_line_is_an_object_and_every_transition_has_one() {
    let stage = Stage::new("lines-json").await;
    let (log, float, digest) = promoted(&stage, "json").await;
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let key = format!("{}/good", stage.namespace);
    let of = |request: &str, levels: &[&str]| -> Vec<Value> {
        let lines = lines.iter().filter(|line| line["request"] == request);
        let lines = lines.filter(|line| levels.iter().any(|level| line["level"] == *level));
        lines.map(bare).collect()
    };
    let image = |phase: &str| json!({"message": "image entered phase", "request": key, "float": float, "phase": phase, "digest": digest, "took": "some"});
    let mut wanted =
        vec![json!({"message": "request began", "request": key, "images": 1, "took": "some"})];
    wanted.extend(["Incoming", "BackedUp", "Latched", "Posted"].map(image));
    wanted[4]["reason"] = json!("Promoted");
    let found = of(&key, &["INFO", "WARN", "ERROR"]);
    let why = found.last().unwrap()["why"].clone();
    assert!(why.as_str().is_some_and(|why| !why.is_empty()), "{why}");
    wanted.push(json!({
        "message": "request ended", "request": key, "phase": "Posted", "reason": "Promoted", "took": "some", "why": why,
    }));
    assert_eq!(found, wanted);

    let steps = of(&key, &["DEBUG"]);
    for message in ["step launched", "step ended"] {
        let steps = steps.iter().filter(|line| line["message"] == message);
        let steps: Vec<&str> = steps
            .map(|line| {
                assert_eq!(line["float"], float.as_str());
                line["step"].as_str().unwrap()
            })
            .collect();
        assert_eq!(
            steps,
            ["Resolve", "Stage", "BackUp", "Latch", "Post"],
            "{message}"
        );
    }

    let bad = format!("{}/bad", stage.namespace);
    let found = of(&bad, &["INFO", "WARN", "ERROR"]);
    let said: Vec<_> = found
        .iter()
        .map(|line| {
            (
                line["message"].as_str().unwrap(),
                line["phase"].as_str().unwrap(),
                line["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("image entered phase", "Failed", "NotAllowed"),
            ("request ended", "Failed", "NotAllowed")
        ]
    );
    assert!(found.iter().all(|line| {
        line["why"]
            .as_str()
            .is_some_and(|why| why.contains("example.com"))
    }));
    let warned = lines
        .iter()
        .filter(|line| line["request"] == bad.as_str() && line["level"] == "WARN");
    assert_eq!(warned.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_text_every_transition_is_a_line_with_the_same_fields() {
    let stage = Stage::new("lines-text").await;
    let (log, float, digest) = promoted(&stage, "text").await;
    let key = format!("{}/good", stage.namespace);
    let transitions: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(&format!("request={key} ")) && line.contains(" INFO "))
        .collect();
    let wanted = [
        format!("request began request={key} images=1 took="),
        format!(
            "image entered phase request={key} float={float} phase=\"Incoming\" digest={digest} took="
        ),
        format!(
            "image entered phase request={key} float={float} phase=\"BackedUp\" digest={digest} took="
        ),
        format!(
            "image entered phase request={key} float={float} phase=\"Latched\" digest={digest} took="
        ),
        format!(
            "image entered phase request={key} float={float} phase=\"Posted\" reason=\"Promoted\" digest={digest} took="
        ),
        format!("request ended request={key} phase=\"Posted\" reason=\"Promoted\" took="),
    ];
    assert_eq!(transitions.len(), wanted.len(), "{transitions:#?}");
    for (line, wanted) in transitions.iter().zip(&wanted) {
        assert!(line.contains(wanted), "{line}\nand not: {wanted}");
    }
    assert!(!log.contains('\u{1b}'), "colours in a file");
}
