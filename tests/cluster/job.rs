//! The job that waits: `examples/ci-operator`, on the real API server and the real controller, with no more rights than its
//! `rbac.yaml` gives it.
//!
//! Its calls and ends are in here, its interruptions in [`interrupted`].

mod interrupted;

use std::path::{Path, PathBuf};
use std::time::Instant;

use quaylike::{GateSpec, ImageSpec, Matcher, Options, Registry, RequestKind, Shape};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::ground::{Ground, PATIENCE};
use crate::testbed::stage::{LOOK, Stage, condition, phase};
use crate::testbed::{RunDir, Supervised, example, go_in, unformatted};

const PROGRAM: &str = "ci-operator";

/// The program, built once for all tests.
async fn program() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT
        .get_or_try_init(|| example(PROGRAM))
        .await
        .unwrap()
        .as_path()
}

/// A kubeconfig file with the rights of `rbac.yaml` in a namespace.
async fn account(stage: &Stage) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci-operator/rbac.yaml");
    let rights = std::fs::read_to_string(file).unwrap();
    let here = rights.replace("ci-promotions", &stage.namespace);
    assert_ne!(rights, here);
    stage.plane.apply(&here).await.unwrap();
    let token = stage
        .plane
        .service_account_token(&stage.namespace, "promoting-jobs")
        .await
        .unwrap();
    stage.plane.kubeconfig_for(&token).unwrap()
}

/// One run of the program.
struct Job {
    process: Supervised,
    folder: RunDir,
}

/// What a run ended with.
struct Ended {
    code: i32,
    out: String,
    log: String,
    folder: RunDir,
}

impl Job {
    /// Starts the job of a build in the stage's namespace.
    async fn start(stage: &Stage, kubeconfig: &Path, build: &str, arguments: &[&str]) -> Self {
        let folder = RunDir::create("job").unwrap();
        let mut all = vec![format!("--namespace={}", stage.namespace)];
        all.extend(arguments.iter().map(|&a| a.to_owned()));
        let artifacts = folder.join("artifacts");
        let environment = [
            ("KUBECONFIG", kubeconfig.to_str().unwrap()),
            ("ARTIFACT_DIR", artifacts.to_str().unwrap()),
            ("JOB_NAME", "branch-ci_Promotes"),
            ("BUILD_ID", build),
        ];
        let program = program().await;
        let process = Supervised::spawn("job", program, &all, &environment, folder.path());
        Self {
            process: process.unwrap(),
            folder,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("job.log")).unwrap_or_default()
    }

    /// Waits until it has logged a text.
    async fn until_said(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "no '{text}':\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn ended(mut self) -> Ended {
        let end = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(code) = self.process.exit_code() {
                break code;
            }
            assert!(Instant::now() < end, "it goes on:\n{}", self.log());
            tokio::time::sleep(LOOK).await;
        };
        Ended {
            code,
            out: std::fs::read_to_string(self.folder.join("job.out")).unwrap(),
            log: self.log(),
            folder: self.folder,
        }
    }
}

impl Ended {
    fn junit(&self) -> String {
        std::fs::read_to_string(self.folder.join("artifacts/junit_promotion.xml")).unwrap()
    }

    fn object(&self) -> Value {
        let file = self.folder.join("artifacts/promotionrequest.yaml");
        serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    /// It ended unsuccessfully, for this reason.
    fn assert_failed(&self, reason: &str) {
        assert_eq!(self.code, 1, "{}", self.log);
        let last = format!("promoting_images:{reason}");
        assert_eq!(self.log.lines().last(), Some(last.as_str()), "{}", self.log);
    }
}

/// How a job of this build is called by its name.
fn named(build: &str) -> String {
    format!("branch-ci-promotes-{build}")
}

/// The look before the latch of a float: the request is committed then.
fn latch(tag: &str) -> GateSpec {
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci");
    GateSpec::before(look.reference(tag)).nth(2)
}

/// The tags that a printed list sets: namespace, name, and what it is to refer to.
fn references(printed: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(printed).unwrap();
    let of = |item: &Value| {
        assert_eq!(item["kind"], "ImageStreamTag");
        let parts = [
            &item["metadata"]["namespace"],
            &item["metadata"]["name"],
            &item["tag"]["from"]["name"],
        ];
        parts.map(|part| part.as_str().unwrap()).join(" ")
    };
    list["items"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_until_staged_and_its_next_run_adopts_the_request_and_gets_its_references() {
    let ground = Ground::new("job").await;
    let kubeconfig = account(&ground.stage).await;
    let _controller = ground.controller(&[]);
    let old = ground.old("ocp_4.21_cli");
    let (cli, cli_source) = ground.source("cli");
    let (tests, tests_source) = ground.source("tests");
    // It is there already: nothing is written, and its reference is to be set all the same.
    let same = ImageSpec::new(Shape::Oci, "new tests");
    ground
        .registry
        .seed_spec("ci", "origin_4.21_tests", &same)
        .unwrap();
    let (_, other_source) = ground.source("other");
    let pairs = [
        format!("{cli_source}={}", ground.float("ocp_4.21_cli")),
        format!("{tests_source}={}", ground.float("origin_4.21_tests")),
        format!("{other_source}={}", ground.float("ci_other_latest")),
    ];
    let images = pairs.each_ref().map(String::as_str);
    let gate = ground.registry.gate(latch("ocp_4.21_cli"));

    let first = [&["--until=Staged", "--latch=Together"], &images[..]].concat();
    let staged = Job::start(&ground.stage, &kubeconfig, "1", &first).await;
    let staged = staged.ended().await;
    assert_eq!(staged.code, 0, "{}", staged.log);
    let now = ground.stage.get(&named("1")).await;
    assert_eq!(condition(&now, "Staged").0, "True");
    assert_ne!(phase(&now), "Posted");
    assert!(staged.log.contains(": created\n"), "{}", staged.log);
    assert_eq!(ground.history("ocp_4.21_cli"), [old]);
    // What is posted already can be referred to; the others are not.
    assert!(staged.out.contains("ocp_4.21_cli"), "{}", staged.out);
    assert!(!staged.out.contains("ocp/4.21:cli"), "{}", staged.out);
    assert_eq!(staged.junit().matches("<testcase ").count(), 3);
    assert!(!staged.junit().contains("<failure"), "{}", staged.junit());

    // The same job once more, with what the API server filled in before left out.
    let again = [&["-o", "json"], &images[..]].concat();
    let posted = Job::start(&ground.stage, &kubeconfig, "1", &again).await;
    posted.until_said(": adopted").await;
    gate.open();
    let posted = posted.ended().await;
    assert_eq!(posted.code, 0, "{}", posted.log);
    assert!(
        posted.log.contains("Posted, 3/3 finished"),
        "{}",
        posted.log
    );
    let by = |digest: &str| format!("{}/ci@{digest}", ground.registry.host());
    let wanted = [
        format!("ocp 4.21:cli {}", by(&cli)),
        format!("origin 4.21:tests {}", by(&tests)),
    ];
    assert_eq!(references(&posted.out), wanted);
    assert!(posted.log.contains(&cli), "{}", posted.log);
    let object = posted.object();
    let stored = ground.stage.get(&named("1")).await;
    assert_eq!(object, serde_json::to_value(&stored).unwrap());
    assert_eq!(object["status"]["phase"], "Posted");
    assert!(
        posted.junit().contains("failures=\"0\""),
        "{}",
        posted.junit()
    );

    // Another one under the same name.
    let different = [&["--latch=Independently"], &images[..2]].concat();
    let refused = Job::start(&ground.stage, &kubeconfig, "1", &different).await;
    let refused = refused.ended().await;
    refused.assert_failed("DifferentRequest");
    assert!(
        refused
            .log
            .contains("differs in images, latch; choose another name"),
        "{}",
        refused.log
    );
    assert_eq!(
        refused
            .junit()
            .matches("<failure type=\"DifferentRequest\"")
            .count(),
        2
    );
    assert_eq!(ground.stage.get(&named("1")).await, stored);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_stages_from_where_it_runs_and_the_controller_needs_no_build_registry_and_moves_no_byte()
 {
    let ground = Ground::new("jobstage").await;
    let kubeconfig = account(&ground.stage).await;
    let old = ground.old("ocp_4.21_cli");
    let builds = Registry::start(Options::default()).await.unwrap();
    let image = ImageSpec::new(Shape::Index, "built");
    let digest = builds.seed_spec("pipeline", "cli", &image).unwrap();
    let pair = format!(
        "{}/pipeline:cli={}",
        builds.host(),
        ground.float("ocp_4.21_cli")
    );
    let plain = |registry: &Registry| format!("--stage-arg=--plain-http={}", registry.host());
    let program = format!("--stage={}", env!("CARGO_BIN_EXE_promotion-controller"));
    let plain = [plain(&builds), plain(&ground.registry)];
    let arguments = [&program, &plain[0], &plain[1], &pair].map(String::as_str);
    let job = Job::start(&ground.stage, &kubeconfig, "1", &arguments).await;
    job.until_said(": created").await;
    // The job's namespace goes, and its cluster's registry with it.
    drop(builds);
    let before = ground.registry.requests(&Matcher::default()).len();
    let _controller = ground.controller(&[]);
    let ended = job.ended().await;
    assert_eq!(ended.code, 0, "{}", ended.log);
    assert!(ended.log.contains("  Staged    "), "{}", ended.log);
    let stored = ground.stage.get(&named("1")).await;
    let source = format!("{}/ci@{digest}", ground.registry.host());
    assert_eq!(stored.spec.images[0].source, source);
    assert_eq!(ground.history("ocp_4.21_cli"), [old, digest.to_string()]);
    let log = ground
        .registry
        .requests(&Matcher::default())
        .split_off(before);
    let (manifests, others): (Vec<_>, Vec<_>) = log
        .into_iter()
        .partition(|request| request.kind == RequestKind::Manifest);
    assert!(manifests.len() <= 12, "{manifests:#?}");
    let bytes = others.iter().filter(|r| r.kind != RequestKind::Token);
    let bytes: u64 = bytes.map(|r| r.bytes_in + r.bytes_out).sum();
    assert_eq!(bytes, 0, "{others:#?}");
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_source_is_gone_says_so_image_by_image_and_in_its_last_line() {
    let ground = Ground::new("jobgone").await;
    let kubeconfig = account(&ground.stage).await;
    let _controller = ground.controller(&[]);
    let old = ground.old("ocp_4.21_a");
    let (_, source) = ground.source("a");
    let gone = format!("{}/src/a@sha256:{}", ground.registry.host(), "0".repeat(64));
    let images = [
        format!("{source}={}", ground.float("ocp_4.21_a")),
        format!("{gone}={}", ground.float("ocp_4.21_b")),
    ];
    let job = Job::start(
        &ground.stage,
        &kubeconfig,
        "2",
        &images.each_ref().map(String::as_str),
    )
    .await;
    let failed = job.ended().await;
    failed.assert_failed("SourceGone");
    assert!(!failed.out.contains("oc tag"), "{}", failed.out);
    let junit = failed.junit();
    assert!(junit.contains("tests=\"2\" failures=\"2\""), "{junit}");
    let case = |float: &str, reason: &str, word: &str| {
        let case = junit
            .split("<testcase ")
            .find(|case| case.contains(&format!("name=\"{float}\"")));
        let case = case.unwrap_or_else(|| panic!("no {float}: {junit}"));
        assert!(
            case.contains(&format!("<failure type=\"{reason}\"")) && case.contains(word),
            "{junit}"
        );
    };
    case(
        &ground.float("ocp_4.21_a"),
        "Held",
        &ground.float("ocp_4.21_b"),
    );
    case(&ground.float("ocp_4.21_b"), "SourceGone", &gone);
    assert_eq!(failed.object()["status"]["phase"], "Failed");
    assert_eq!(ground.history("ocp_4.21_a"), [old]);
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_called_wrongly_or_not_served_says_so_and_takes_nothing_back() {
    let stage = Stage::new("jobwrong").await;
    let kubeconfig = account(&stage).await;
    let image = "x.io/a/b:c=x.io/a/d:e";
    for arguments in [
        &["--until=Posted", image][..],
        &[],
        &["a"],
        &["--nonsense", image],
    ] {
        let wrong = Job::start(&stage, &kubeconfig, "3", arguments)
            .await
            .ended()
            .await;
        assert_eq!(wrong.code, 2, "{}", wrong.log);
        assert!(wrong.log.starts_with("error: "), "{}", wrong.log);
        assert!(!wrong.log.contains("promoting_images"), "{}", wrong.log);
    }
    let token = stage
        .plane
        .service_account_token(&stage.namespace, "nobody")
        .await;
    let nobody = stage.plane.kubeconfig_for(&token.unwrap()).unwrap();
    let nobody = Job::start(&stage, &nobody, "6", &[image]).await;
    // The API server refuses it.
    let bad = Job::start(&stage, &kubeconfig, "3", &["x.io/a/b:c=x.io/a/d:e__pre"]).await;
    let bad = bad.ended().await;
    bad.assert_failed("InvalidSpec");
    assert!(bad.log.contains("choose another tag"), "{}", bad.log);
    assert!(stage.list().await.is_empty());

    // Nobody works on it.
    let late = Job::start(&stage, &kubeconfig, "4", &["--timeout=1500ms", image]).await;
    let late = late.ended().await;
    late.assert_failed("Timeout");
    assert!(
        late.log.contains("it goes on without this job"),
        "{}",
        late.log
    );
    assert!(!stage.get(&named("4")).await.spec.cancel);
    assert!(
        late.junit().contains("<failure type=\"Timeout\""),
        "{}",
        late.junit()
    );

    let job = Job::start(&stage, &kubeconfig, "5", &[image]).await;
    job.until_said(": created").await;
    stage.delete(&named("5")).await;
    job.ended().await.assert_failed("Deleted");

    // For a while this may be an API server that has just begun.
    assert!(nobody.log().contains("asking again"), "{}", nobody.log());
    let nobody = nobody.ended().await;
    nobody.assert_failed("APIError");
    assert!(nobody.log.contains("is forbidden"), "{}", nobody.log);
}

/// Every kind of end, and one that waits, as the API server has them.
async fn written_by_the_controller(ground: &Ground, folder: &RunDir) {
    let stage = &ground.stage;
    ground.old("moves");
    let (moves, source) = ground.source("moves");
    let pair = |source: &str, tag: &str| json!({"source": source, "float": ground.float(tag)});
    let gone = format!("{}/src/x@sha256:{}", ground.registry.host(), "0".repeat(64));
    let mut specs = vec![
        (
            "posted",
            json!({"images": [pair(&source, "moves"), pair(&source, "first")], "pushSecret": {"name": "push"}}),
        ),
        (
            "failed",
            json!({"images": [pair(&gone, "gone"), pair(&source, "apart")], "latch": "Independently"}),
        ),
        (
            "planned",
            json!({"images": [pair(&source, "planned")], "mode": "Plan", "ttlSecondsAfterFinished": 0}),
        ),
        (
            "waiting",
            json!({"images": [pair(&source, "waiting")], "suspend": true, "pullSecret": {"name": "none"}}),
        ),
        (
            "cancelled",
            json!({"images": [pair(&source, "cancelled")], "cancel": true}),
        ),
    ];
    specs[0].1["onFailure"] = json!("Rollback");
    stage
        .secret("push", &[(ground.registry.host().as_str(), "u", "p")])
        .await;
    for (name, spec) in &specs {
        stage.create(name, spec).await;
    }
    for name in ["posted", "failed", "planned", "cancelled"] {
        stage.finished(name, PATIENCE).await;
    }
    stage
        .until("waiting", PATIENCE, |s| {
            s.conditions.iter().any(|c| c.reason == "Suspended")
        })
        .await;
    // One that was unchanged.
    stage
        .create("unchanged", &json!({"images": [pair(&source, "moves")]}))
        .await;
    let done = stage.finished("unchanged", PATIENCE).await;
    assert_eq!(condition(&done, "Complete").1, "Unchanged");
    assert_eq!(ground.at("moves"), Some(moves));
    let arguments = ["get", "preq", "-n", &stage.namespace, "-o", "json"];
    let output = stage.plane.kubectl(&arguments).await.unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), specs.len() + 1);
    for item in items {
        let name = item["metadata"]["name"].as_str().unwrap();
        let text = serde_json::to_string_pretty(item).unwrap();
        folder.write(&format!("{name}.json"), &text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_program_is_vetted_and_its_types_read_and_write_what_this_controller_wrote() {
    let ground = Ground::new("jobgo").await;
    let folder = RunDir::create("objects").unwrap();
    let _controller = ground.controller(&[]);
    written_by_the_controller(&ground, &folder).await;
    for module in ["api", "examples/ci-operator"] {
        assert_eq!(unformatted(module).await.unwrap(), "");
        for arguments in [&["vet", "./..."][..], &["test", "-vet=off", "./..."]] {
            let began = Instant::now();
            let objects = vec![("PROMOTIONREQUESTS", folder.path().to_owned())];
            let output = go_in(module, arguments, objects).await.unwrap();
            let said = [output.stdout, output.stderr]
                .map(|text| String::from_utf8_lossy(&text).into_owned());
            let what = format!("go {} in {module}", arguments.join(" "));
            println!("{what} in {:.1?}", began.elapsed());
            assert!(output.status.success(), "{what}:\n{}", said.join("\n"));
        }
    }
}
