//! The shadow run: the sample script, converted, previewed beside itself, and then promoted.

use std::collections::BTreeMap;

use quaylike::{ImageSpec, Options, Registry, Shape};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::testbed::command::{Ground, Run, ended};
use crate::testbed::script::sample;

const SOURCES: &str = "ci-op-x/pipeline";
const FLOATS: &str = "openshift/ci";

/// The registries of the sample script, and what is in them.
pub struct Shadow {
    /// The floats' registry.
    pub ground: Ground,
    /// The sources'.
    pub source: Registry,
    /// The sample's digests, and those of the images that are there.
    digests: BTreeMap<String, String>,
}

impl Shadow {
    /// Four sources and the floats: one new, one where it should be already, an index with what others left on its tags.
    pub async fn new() -> Self {
        let ground = Ground::new().await;
        let source = Registry::start(Options::default()).await.unwrap();
        let build = |shape, seed: &str| ImageSpec::new(shape, seed).build().unwrap();
        let mut digests = BTreeMap::new();
        for (digit, shape) in [
            ("a", Shape::Oci),
            ("b", Shape::Docker),
            ("c", Shape::Index),
            ("d", Shape::Oci),
        ] {
            let image = build(shape, digit);
            let digest = source.seed_image(SOURCES, digit, &image).unwrap();
            digests.insert(format!("sha256:{}", digit.repeat(64)), digest.to_string());
        }
        let seed = |tag: &str, image: &quaylike::Image| {
            ground.registry.seed_image(FLOATS, tag, image).unwrap();
        };
        for tag in ["ci_tools_latest", "ocp_4.21_cli"] {
            seed(tag, &build(Shape::Oci, &format!("{tag} before")));
        }
        seed(
            "ocp_4.21_ovn-kubernetes",
            &build(Shape::Index, "ovn before"),
        );
        seed(
            "ocp_4.21_ovn-kubernetes_incoming",
            &build(Shape::Oci, "left on incoming"),
        );
        seed(
            "ocp_4.21_ovn-kubernetes__post1",
            &build(Shape::Oci, "left on post1"),
        );
        seed("ocp_4.21_tests", &build(Shape::Oci, "d"));
        Self {
            ground,
            source,
            digests,
        }
    }

    /// A text of the samples with the registries and digests that are there.
    pub fn rewritten(&self, text: &str) -> String {
        let text = text
            .replace("quay.io/", &format!("{}/", self.ground.registry.host()))
            .replace(
                "registry.build02.ci.openshift.org/",
                &format!("{}/", self.source.host()),
            );
        let all = self.digests.iter();
        all.fold(text, |text, (written, digest)| {
            text.replace(written, digest)
        })
    }

    async fn command(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promotion-controller"));
        command
            .args(arguments)
            .current_dir(self.ground.folder.path())
            .env_clear()
            .env("HOME", self.ground.folder.join("home"));
        if arguments[0] != "convert" {
            for host in [self.ground.registry.host(), self.source.host()] {
                command.arg(format!("--plain-http={host}"));
            }
        }
        ended(command).await
    }

    /// The floats' tags with their digests, the stamps of prune tags replaced.
    fn tags(&self) -> Vec<(String, String)> {
        let tags = self.ground.tags(FLOATS).into_iter();
        let mut tags: Vec<_> = tags
            .map(|(tag, digest)| (tag.replace("STAMP_prune", "YYYYMMDDHHMMSS_prune"), digest))
            .collect();
        tags.sort();
        tags
    }

    /// Every float is at its source, and nothing dangled.
    pub fn assert_promoted(&self) {
        let floats = [
            "ci_tools_latest",
            "ocp_4.21_cli",
            "ocp_4.21_machine-os",
            "ocp_4.21_ovn-kubernetes",
            "ocp_4.21_tests",
        ];
        for (float, digit) in floats.into_iter().zip(["a", "a", "b", "c", "d"]) {
            let at = self.ground.registry.tag(FLOATS, float).unwrap().to_string();
            assert_eq!(
                at,
                self.digests[&format!("sha256:{}", digit.repeat(64))],
                "{float}"
            );
        }
        self.ground.assert_never_dangling();
    }
}

/// What the tags are after the announced writes, in their order; prune tags are never overwritten, so they add up.
fn after(before: &[(String, String)], report: &Value) -> Vec<(String, String)> {
    let mut named: BTreeMap<String, String> = before.iter().cloned().collect();
    let mut pinned = Vec::new();
    for image in report["requests"][0]["images"].as_array().unwrap() {
        for write in image["tags"].as_array().unwrap() {
            let (tag, digest) = (
                write["tag"].as_str().unwrap(),
                write["digest"].as_str().unwrap(),
            );
            let held = named.get(tag).map(String::as_str);
            if tag.contains("_prune_") {
                pinned.push((tag.to_owned(), digest.to_owned()));
                continue;
            }
            let told = write["holds"].as_str();
            assert_eq!(told, held, "{tag}");
            named.insert(tag.into(), digest.into());
        }
    }
    let mut all: Vec<_> = named.into_iter().chain(pinned).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_preview_of_the_script_announces_is_what_promote_writes() {
    let shadow = Shadow::new().await;
    let folder = &shadow.ground.folder;
    folder
        .write("promote.sh", &shadow.rewritten(&sample("promote.sh")))
        .unwrap();
    let converted = shadow.command(&["convert", "promote.sh"]).await.exits(0);
    folder.write("requests.yaml", &converted.stdout).unwrap();
    let refused = shadow
        .command(&["promote", "-f", "requests.yaml"])
        .await
        .exits(2);
    assert!(
        refused.stderr.contains("imageStreamTag"),
        "{}",
        refused.stderr
    );
    let before = shadow.tags();
    let run = shadow
        .command(&[
            "preview",
            "-f",
            "requests.yaml",
            "--against",
            "promote.sh",
            "-ojson",
        ])
        .await
        .exits(0);
    assert!(
        run.stderr
            .contains("promote: once its floats have moved, the controller sets ocp/4.21:cli"),
        "{}",
        run.stderr
    );
    assert_eq!(shadow.tags(), before);
    assert_eq!(shadow.ground.writes(), 0);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let images = report["requests"][0]["images"].as_array().unwrap();
    let seen: Vec<_> = images
        .iter()
        .map(|image| {
            let script = &image["script"];
            assert_eq!(script["float"], "Same");
            let only = |side: &str| script[side].as_array().unwrap().len();
            (
                image["float"].as_str().unwrap().rsplit(':').next().unwrap(),
                image["verdict"].as_str().unwrap(),
                image["tags"].as_array().unwrap().len(),
                only("onlyScript"),
                only("onlyPromotion"),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("ci_tools_latest", "Promote", 5, 0, 0),
            ("ocp_4.21_cli", "Promote", 5, 0, 0),
            ("ocp_4.21_machine-os", "Promote", 2, 0, 0),
            // Two digests that others left are pinned first, under a name that no script writes.
            ("ocp_4.21_ovn-kubernetes", "Promote", 7, 0, 1),
            // The script writes all of it again.
            ("ocp_4.21_tests", "Unchanged", 0, 5, 0),
        ]
    );
    let expected = after(&before, &report);
    let plain = converted.stdout.lines();
    let plain: Vec<_> = plain.filter(|line| !line.contains("imageStream")).collect();
    folder.write("requests.yaml", &plain.join("\n")).unwrap();
    shadow
        .command(&["promote", "-f", "requests.yaml", "--settle-seconds=3"])
        .await
        .exits(0);
    assert_eq!(shadow.tags(), expected);
    shadow.assert_promoted();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_does_something_else_is_told_float_by_float() {
    let shadow = Shadow::new().await;
    let folder = &shadow.ground.folder;
    folder
        .write("oneline.sh", &shadow.rewritten(&sample("oneline.sh")))
        .unwrap();
    let converted = shadow.command(&["convert", "oneline.sh"]).await.exits(0);
    let mut request: Value = serde_saphyr::from_str(&converted.stdout).unwrap();
    let images = request["spec"]["images"].as_array_mut().unwrap();
    images.pop();
    let other = images[0]["source"]
        .as_str()
        .unwrap()
        .split('@')
        .next()
        .unwrap()
        .to_owned();
    images[0]["source"] = json!(format!("{other}:d"));
    let mut added = images[1].clone();
    added["float"] = json!(
        added["float"]
            .as_str()
            .unwrap()
            .replace("ocp_4.21_cli", "more")
    );
    images.push(added);
    shadow.ground.documents(&[request]);
    let arguments = ["preview", "-f", "requests.yaml", "--against", "oneline.sh"];
    let run = shadow
        .command(&[&arguments[..], &["-ojson"]].concat())
        .await
        .exits(1);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let images = report["requests"][0]["images"].as_array().unwrap();
    let floats: Vec<_> = images
        .iter()
        .map(|image| image["script"]["float"].as_str().unwrap())
        .collect();
    assert_eq!(floats, ["OtherSource", "Same", "Same", "Same", "Absent"]);
    // The old form neither stages nor posts, and named prune tags after a part of the float.
    let tags = |side: &str| -> Vec<&str> {
        let all = images[1]["script"][side].as_array().unwrap();
        all.iter().map(|tag| tag["tag"].as_str().unwrap()).collect()
    };
    assert_eq!(tags("onlyScript"), ["YYYYMMDDHHMMSS_prune_cli"]);
    assert_eq!(
        tags("onlyPromotion"),
        [
            "YYYYMMDDHHMMSS_prune_ocp_4.21_cli",
            "ocp_4.21_cli__post1",
            "ocp_4.21_cli__pre",
            "ocp_4.21_cli_incoming"
        ]
    );
    assert_eq!(report["missed"].as_array().unwrap().len(), 1);
    assert_eq!(report["inTheWay"], 3);
    let table = shadow.command(&arguments).await.exits(1);
    assert!(
        table.stdout.contains("only the script moves ")
            && table.stdout.contains("3 not as in the script"),
        "{}",
        table.stdout
    );
    assert_eq!(shadow.ground.writes(), 0);
}
