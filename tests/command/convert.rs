//! `convert`, the real binary, on the forms that the script has had; and the page that leads from the script to this program.

mod page;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::testbed::RunDir;
use crate::testbed::script::{meant, sample};

/// The staged script, the one before it, and the same as a mapping file.
pub const FORMS: [&str; 3] = ["promote.sh", "oneline.sh", "mapping.txt"];

/// What the command printed, by exit code.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn convert(arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_promotion-controller"))
        .arg("convert")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who does not read standard input is not asked to.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn converted(arguments: &[&str], input: &str) -> Ran {
    let ran = convert(arguments, input);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn every_form_of_the_script_means_the_same_images_and_floats() {
    for form in FORMS {
        let ran = converted(&["-"], &sample(form));
        let documents = documents(&ran.stdout);
        assert_eq!(
            documents,
            [json!({
                "apiVersion": "ci.openshift.io/v1alpha1",
                "kind": "PromotionRequest",
                "metadata": {"name": "promotion"},
                "spec": meant(form),
            })],
            "{form}"
        );
        let streams = match form {
            "promote.sh" => "the host quay-proxy.ci.openshift.org",
            "oneline.sh" => {
                "standard input:4: 'oc tag quay-proxy.ci.openshift.org/openshift/ci:ocp_4.21_cli ocp/4.21-quay:cli'"
            }
            _ => "",
        };
        let told = format!("warning: {streams} is not carried over: ");
        let lines: Vec<_> = ran.stderr.lines().collect();
        assert_eq!(lines.len(), usize::from(!streams.is_empty()), "{lines:?}");
        assert!(
            lines.iter().all(|line| line.starts_with(&told)),
            "{lines:?}"
        );
        let hint = ran
            .stdout
            .starts_with("# The credentials were in /etc/push-secret/.dockerconfigjson. ");
        assert_eq!(hint, form != "mapping.txt", "{}", ran.stdout);
    }
}

#[test]
fn the_objects_that_a_job_has_its_script_in_mean_the_same_as_the_script() {
    let map = |script: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"promote.sh": script, "x": "y"}});
    let pod = |script: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {
            "containers": [{"name": "promotion", "command": ["/bin/sh", "-c"], "args": [script]}],
        }})
    };
    for (form, object, said) in [
        (
            "promote.sh",
            map(&sample("promote.sh")),
            "the host quay-proxy.ci.openshift.org is not carried over",
        ),
        (
            "oneline.sh",
            pod(&sample("oneline.sh")),
            "standard input spec.containers[0].args[0]:4: 'oc tag ",
        ),
    ] {
        for text in [
            object.to_string(),
            serde_saphyr::to_string(&object).unwrap(),
        ] {
            let ran = converted(&["-"], &text);
            let documents = documents(&ran.stdout);
            assert_eq!(documents[0]["spec"], meant(form), "{form}");
            let told = format!("warning: {said}");
            assert!(ran.stderr.starts_with(&told), "{}", ran.stderr);
        }
    }
    let none = convert(&["-"], "kind: ConfigMap\ndata: {a: b}\n");
    assert_eq!((none.code, none.stdout.as_str()), (Some(2), ""));
    assert!(
        none.stderr
            .contains("no script in it runs 'oc image mirror'"),
        "{}",
        none.stderr
    );
}

#[test]
fn wildcards_are_refused_and_image_streams_warned_of() {
    for mapping in ["q.io/ci:ocp_*=q.io/other", "r.io/p:x=q.io/ci:ocp_*"] {
        let ran = convert(&["-"], mapping);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
        let told = "has a wildcard, which stands for tags that only its registry knows; write a mapping for each tag";
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    let ran = converted(
        &["-"],
        "r.io/p:x=registry.ci.openshift.org/ci-ln-x/stable:cli\n",
    );
    let told = "warning: standard input:1: registry.ci.openshift.org/ci-ln-x/stable:cli looks like a tag of an ImageStream: cli_incoming, ";
    assert!(ran.stderr.starts_with(told), "{}", ran.stderr);
}

#[test]
fn more_images_than_a_request_holds_make_several_and_that_is_told() {
    let mut text = String::new();
    for n in 0..513 {
        writeln!(text, "r.io/p:{n}=q.io/ci:f{n}").unwrap();
    }
    let ran = converted(&["-", "--name", "big"], &text);
    let documents = documents(&ran.stdout);
    let named: Vec<_> = documents
        .iter()
        .map(|d| {
            (
                d["metadata"]["name"].as_str().unwrap(),
                d["spec"]["images"].as_array().unwrap().len(),
            )
        })
        .collect();
    assert_eq!(named, [("big-1", 256), ("big-2", 256), ("big-3", 1)]);
    assert_eq!(
        ran.stderr,
        "warning: 513 images make 3 requests; the floats of each move together, not those of all\n"
    );
    let alone = converted(&["-", "--latch", "Independently"], &text);
    assert_eq!(alone.stderr, "");
}

#[test]
fn options_that_mean_something_else_here_are_told_once_with_their_place() {
    let text = "oc image mirror --force --insecure=true --token=s3cret r.io/p:a=q.io/ci:a\noc image mirror --force r.io/p:b=q.io/ci:b\n";
    let ran = converted(&["-"], text);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, option) in lines.iter().zip(["--force", "--insecure", "--token"]) {
        let start = format!("warning: standard input:1: {option}: ");
        assert!(line.starts_with(&start), "{line}");
    }
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("s3cret"));
    let plan = converted(&["-"], "oc image mirror --dry-run=true r.io/p:a q.io/ci:a");
    assert_eq!(documents(&plan.stdout)[0]["spec"]["mode"], "Plan");
}

#[test]
fn bad_input_prints_nothing_and_names_every_fault_with_its_place() {
    let folder = RunDir::create("convert").unwrap();
    folder
        .write("one.txt", "r.io/p:a=q.io/ci:a\nr.io/p:a\n\nr.io/p:b=\n")
        .unwrap();
    folder.write("two.sh", "oc image mirror 'r.io/p:a").unwrap();
    folder
        .write(
            "three.txt",
            "r.io/p:a=q.io/ci:a\nr.io/p:a=q.io/ci@sha256:00",
        )
        .unwrap();
    folder.write("four.txt", "\nr.io/p:c=q.io/ci:a\n").unwrap();
    folder.write("good.txt", "r.io/p:a=q.io/ci:a\n").unwrap();
    std::fs::write(folder.join("bytes"), [0xff, 0xfe]).unwrap();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["one.txt", "two.sh"],
            &[
                "one.txt:2: a source without a destination; write",
                "one.txt:4: a mapping has an empty side; write",
                "two.sh:1: a quote (') is not closed; close it",
            ],
        ),
        (
            &["three.txt", "four.txt"],
            &[
                "three.txt:2: the destination 'q.io/ci@sha256:00' names a digest; name the tag",
                "four.txt:2: q.io/ci:a is written from r.io/p:c, and at ",
            ],
        ),
        (&["missing"], &["missing: cannot be read: "]),
        (&["bytes"], &["bytes: is not UTF-8; name"]),
        (
            &["good.txt", "--name", "No"],
            &["metadata.name: 'No' is not a valid name; use"],
        ),
        (
            &["good.txt", "-n", "a/b"],
            &["metadata.namespace: 'a/b' is not a valid name; use"],
        ),
        (
            &["/dev/null"],
            &["/dev/null: no mapping in it; write SRC=DST"],
        ),
    ];
    for (arguments, faults) in cases {
        let given: Vec<String> = arguments
            .iter()
            .map(|a| {
                if folder.join(a).exists() || *a == "missing" {
                    at(a)
                } else {
                    (*a).into()
                }
            })
            .collect();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let ran = convert(&given, "");
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        let lines: Vec<_> = ran.stderr.lines().collect();
        assert_eq!(lines.len(), faults.len(), "{lines:?}");
        for (line, fault) in lines.iter().zip(faults) {
            assert!(
                line.starts_with("error: ") && line.contains(fault),
                "{fault}: {line}"
            );
        }
    }
}

#[test]
fn references_follow_the_float_that_they_name_and_what_cannot_be_carried_over_is_told() {
    let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
    let (a, b) = (digest('a'), digest('b'));
    let oc = "oc tag --source=docker --reference-policy='source' --import-mode='PreserveOriginal' --reference";
    let script = format!(
        "#!/bin/sh\noc image mirror r.io/p@{a}=q.io/o/ci:ocp_4.21_a r.io/p@{b}=q.io/o/ci:ocp_4.21_b r.io/p:c=q.io/o/ci:c\n\
         {oc} proxy.io/o/ci@{a} ocp/4.21:a\n\
         {oc} proxy.io/o/ci@$(x) ocp/4.21:b\n\
         {oc} q.io/o/ci:c ocp/4.21:c\n\
         {oc} q.io/o/ci:c ocp/4.21:again\n\
         {oc} q.io/o/ci@{b} ocp-priv/4.21:b\n\
         {oc} q.io/o/ci:unknown ocp/4.21:d\n\
         {oc} q.io/other/ci:c ocp/4.21:e\n\
         {oc} --scheduled q.io/o/ci:c ocp/4.21:f\n\
         oc tag q.io/o/ci:c ocp/4.21:g\n\
         {oc} q.io/o/ci:c 4.21:h\n"
    );
    let ran = converted(&["-"], &script);
    let spec = &documents(&ran.stdout)[0]["spec"];
    assert_eq!(spec["imageStreamNamespace"], "ocp");
    let images = spec["images"].as_array().unwrap();
    let tags: Vec<_> = images
        .iter()
        .map(|image| &image["imageStreamTag"])
        .collect();
    assert_eq!(tags, ["4.21:a", "4.21:b", "4.21:c"]);
    let told: Vec<_> = ran.stderr.lines().collect();
    // Each line that is left out, and the host that pulls are served from.
    for (line, word) in [
        (6, "ocp/4.21:again"),
        (7, "ocp-priv/4.21:b"),
        (8, "q.io/o/ci:unknown"),
        (9, "q.io/other/ci:c"),
        (10, "ocp/4.21:f"),
        (11, "ocp/4.21:g"),
        (12, "4.21:h"),
    ] {
        let start = format!("warning: standard input:{line}: ");
        let all = told
            .iter()
            .filter(|said| said.starts_with(&start) && said.contains(word));
        assert_eq!(all.count(), 1, "{line}: {told:?}");
    }
    assert!(
        told.iter()
            .any(|said| said.contains("--pull-host q.io/o/ci=proxy.io"))
    );
    assert_eq!(told.len(), 8, "{told:?}");
}
