//! The testbed itself: its parts come up, do what the other tests rely on, and end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};

use crate::testbed::{
    Binary, ControlPlane, Distribution, DistributionOptions, Error, Grant, Image, ImageKind,
    RegistryAuth, RegistryClient, Right, RunDir, Supervised, TokenServer, build, shared,
};

const SOON: Duration = Duration::from_secs(20);

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("key".to_owned(), value.to_owned())])),
        ..ConfigMap::default()
    }
}

fn is_alive(pid: &str) -> bool {
    let answer = Command::new("kill")
        .args(["-0", pid])
        .stderr(Stdio::null())
        .status();
    answer.unwrap().success()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first line of a file that is about to be written.
fn first_line(path: &Path) -> String {
    wait_until("a line in the file", || {
        std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
    });
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// A part that writes its process id and would then live for long.
fn sleeper(directory: &Path) -> Supervised {
    let script = "echo $$ > pid; exec sleep 600";
    let arguments = ["-c".to_owned(), script.to_owned()];
    Supervised::spawn("sleeper", Path::new("/bin/sh"), &arguments, &[], directory).unwrap()
}

#[tokio::test]
async fn the_control_plane_is_of_the_pinned_release() {
    let client = shared().await.client().unwrap();
    let version = client.apiserver_version().await.unwrap();
    // Whoever brings binaries of their own brings their release.
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        assert_eq!(version.git_version, "v1.35.4");
        assert_eq!(
            (version.major.as_str(), version.minor.as_str()),
            ("1", "35")
        );
    }
}

#[tokio::test]
async fn a_config_map_is_created_read_changed_and_deleted() {
    let plane = shared().await;
    let namespace = plane.namespace("crud").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client().unwrap(), &namespace);

    maps.create(&PostParams::default(), &config_map("one", "a"))
        .await
        .unwrap();
    let changed = serde_json::json!({ "data": { "key": "b" } });
    maps.patch("one", &PatchParams::default(), &Patch::Merge(changed))
        .await
        .unwrap();
    let read = maps.get("one").await.unwrap();
    assert_eq!(read.data.unwrap()["key"], "b");
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn two_namespaces_of_one_prefix_are_different() {
    let plane = shared().await;
    let first = plane.namespace("same").await.unwrap();
    let second = plane.namespace("same").await.unwrap();
    assert!(first.starts_with("same-") && second.starts_with("same-"));
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_definition_is_served_once_it_is_applied() {
    let plane = shared().await;
    let crd = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: probes.testbed.example
spec:
  group: testbed.example
  names: {kind: Probe, plural: probes, singular: probe}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              properties:
                size:
                  type: integer
                  x-kubernetes-validations:
                    - {rule: self > 0, message: size is positive}
";
    plane.apply_crds(crd).await.unwrap();
    let namespace = plane.namespace("crd").await.unwrap();
    let probe = |size: i32| {
        format!(
            "apiVersion: testbed.example/v1\nkind: Probe\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{size: {size}}}\n"
        )
    };
    plane.apply(&probe(1)).await.unwrap();
    let refused = plane.apply(&probe(0)).await.unwrap_err();
    assert!(
        refused.to_string().contains("size is positive"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_service_account_has_the_rights_of_its_role_alone() {
    let plane = shared().await;
    let namespace = plane.namespace("rbac").await.unwrap();
    let token = plane
        .service_account_token(&namespace, "reader")
        .await
        .unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client_for(&token).unwrap(), &namespace);
    let before = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(
        matches!(&before, kube::Error::Api(status) if status.is_forbidden()),
        "{before}"
    );

    let rbac = format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: reader, namespace: {namespace}}}
rules: [{{apiGroups: [''], resources: [configmaps], verbs: [list]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: reader, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}
subjects: [{{kind: ServiceAccount, name: reader, namespace: {namespace}}}]
"
    );
    plane.apply(&rbac).await.unwrap();
    let began = Instant::now();
    while maps.list(&ListParams::default()).await.is_err() {
        assert!(began.elapsed() < SOON, "the role binding came to no effect");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let written = maps
        .create(&PostParams::default(), &config_map("one", "a"))
        .await
        .unwrap_err();
    assert!(
        matches!(&written, kube::Error::Api(status) if status.is_forbidden()),
        "{written}"
    );
}

#[tokio::test]
async fn a_namespace_is_deleted_once_its_controller_runs() {
    let plane = ControlPlane::start().await.unwrap();
    plane.start_controllers(&["namespace"]).await.unwrap();
    let namespace = plane.namespace("short").await.unwrap();
    let output = plane
        .kubectl(&["delete", "namespace", &namespace, "--timeout=60s"])
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn kubectl_works_with_a_kubeconfig_of_the_testbed() {
    let plane = shared().await;
    let output = plane
        .kubectl(&[
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "admin");

    let namespace = plane.namespace("kubeconfig").await.unwrap();
    let token = plane.service_account_token(&namespace, "me").await.unwrap();
    let file = plane.kubeconfig_for(&token).unwrap();
    let kubeconfig = format!("--kubeconfig={}", file.display());
    let output = plane
        .kubectl(&[
            &kubeconfig,
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("system:serviceaccount:{namespace}:me")
    );
}

#[tokio::test]
async fn objects_and_tokens_outlive_a_restart_of_the_api_server() {
    let plane = ControlPlane::start().await.unwrap();
    let token = plane
        .service_account_token("default", "lasting")
        .await
        .unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client().unwrap(), "default");
    maps.create(&PostParams::default(), &config_map("lasting", "a"))
        .await
        .unwrap();

    plane.kill_apiserver();
    let mut config = plane.config().unwrap();
    config.default_retry = false;
    let refused = kube::Client::try_from(config)
        .unwrap()
        .apiserver_version()
        .await;
    assert!(refused.is_err(), "a killed API server answered");
    plane.start_apiserver().await.unwrap();

    maps.get("lasting").await.unwrap();
    let account = plane.client_for(&token).unwrap();
    account.apiserver_version().await.unwrap();

    let port = plane.server().rsplit(':').next().unwrap().parse().unwrap();
    plane.stop().await.unwrap();
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[tokio::test]
async fn a_frozen_api_server_answers_when_it_is_thawed() {
    let plane = ControlPlane::start().await.unwrap();
    let client = plane.client().unwrap();
    plane.freeze_apiserver();
    let asked = tokio::time::timeout(Duration::from_secs(1), client.apiserver_version()).await;
    assert!(asked.is_err(), "a frozen API server answered");
    plane.thaw_apiserver();
    client.apiserver_version().await.unwrap();
}

#[test]
fn a_part_ends_when_its_value_is_dropped() {
    let directory = RunDir::create("drop").unwrap();
    let part = sleeper(directory.path());
    let pid = first_line(&directory.join("pid"));
    assert!(is_alive(&pid));
    drop(part);
    wait_until("the end of the part", || !is_alive(&pid));
}

#[test]
fn a_part_that_ended_by_itself_is_known_to_have_ended_and_its_log_is_shown() {
    let directory = RunDir::create("end").unwrap();
    let arguments = ["-c".to_owned(), "echo the reason >&2; exit 3".to_owned()];
    let mut part = Supervised::spawn(
        "failing",
        Path::new("/bin/sh"),
        &arguments,
        &[],
        directory.path(),
    )
    .unwrap();
    let began = Instant::now();
    while !part.has_ended() {
        assert!(began.elapsed() < SOON, "the part did not end");
    }
    let error = part.still_running().unwrap_err();
    assert!(matches!(&error, Error::Ended { tail, .. } if tail.contains("the reason")));
}

/// Not a test: the process that the next test kills.
#[test]
#[ignore = "the next test runs it in a process of its own"]
fn parent_of_a_sleeper() {
    let Some(directory) = std::env::var_os("TESTBED_SLEEPER_DIRECTORY") else {
        return;
    };
    let _part = sleeper(Path::new(&directory));
    std::thread::sleep(Duration::from_mins(10));
}

#[test]
fn a_part_ends_when_the_process_that_started_it_is_killed() {
    let directory = RunDir::create("killed").unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact"])
        .arg(
            concat!(module_path!(), "::parent_of_a_sleeper")
                .split_once("::")
                .unwrap()
                .1,
        )
        .env("TESTBED_SLEEPER_DIRECTORY", directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = first_line(&directory.join("pid"));
    assert!(is_alive(&pid));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until("the end of the part", || !is_alive(&pid));
}

#[test]
fn a_directory_left_by_a_dead_process_is_removed_by_the_next() {
    let left = RunDir::create("left").unwrap();
    // As a process leaves it that is killed: the files stay, the lock does not.
    let path = left.path().to_owned();
    let kept = path.with_extension("kept");
    std::fs::rename(&path, &kept).unwrap();
    drop(left);
    let live = RunDir::create("live").unwrap();
    // A test that starts a process at this moment may hold a copy of the lock for an instant.
    wait_until("the removal", || {
        drop(RunDir::create("next").unwrap());
        !kept.exists()
    });
    let _other = RunDir::create("other").unwrap();
    assert!(live.path().exists());
}

#[test]
fn without_a_go_toolchain_the_error_says_what_to_install() {
    let directory = RunDir::create("no-go").unwrap();
    let wanted = directory.join("registry");
    let missing = build(Binary::Registry, &directory.join("go"), &wanted).unwrap_err();
    let text = missing.to_string();
    assert!(matches!(missing, Error::Go { .. }), "{text}");
    for part in ["registry 3.", "install Go 1.", wanted.to_str().unwrap()] {
        assert!(text.contains(part), "{text} does not say {part}");
    }
    assert!(!wanted.exists());
}

#[test]
fn a_go_toolchain_that_is_too_old_is_quoted() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = RunDir::create("old-go").unwrap();
    let script = "#!/bin/sh\necho 'go: go.mod requires go >= 1.99 (running go 1.1)' >&2\nexit 1\n";
    let old = directory.write("go", script).unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o700)).unwrap();
    let refused = build(Binary::Etcd, &old, &directory.join("etcd")).unwrap_err();
    assert!(matches!(&refused, Error::Go { reason, .. } if reason.contains("running go 1.1")));
}

async fn open_registry() -> (Distribution, RegistryClient) {
    let registry = Distribution::start(DistributionOptions::default())
        .await
        .unwrap();
    let client = registry.client().unwrap();
    (registry, client)
}

#[tokio::test]
async fn every_kind_of_image_is_pulled_as_it_was_pushed() {
    let (_registry, client) = open_registry().await;
    for kind in ImageKind::ALL {
        let repository = format!("team/{kind:?}").to_lowercase();
        let image = Image::new(kind, "seed");
        let digest = client.push(&repository, "v1", &image).await.unwrap();
        let found = client.manifest(&repository, "v1").await.unwrap().unwrap();
        assert_eq!(
            (found.digest, found.bytes),
            (digest, image.manifest.clone())
        );
        assert_eq!(found.media_type, kind.media_type());
        let pulled = client.pull(&repository, "v1").await.unwrap();
        assert_eq!(pulled, image.manifest_digests(), "{kind:?}");
    }
}

#[test]
fn images_depend_on_their_seed_alone() {
    for kind in ImageKind::ALL {
        let image = Image::new(kind, "a");
        assert_eq!(image, Image::new(kind, "a"));
        let other = Image::new(kind, "b");
        let shared: Vec<String> = image
            .blob_digests()
            .into_iter()
            .filter(|blob| other.blob_digests().contains(blob))
            .collect();
        assert_eq!(shared, Vec::<String>::new(), "{kind:?}");
        let labelled = Image::with_labels(kind, "a", &[("quay.expires-after", "1d")]);
        assert_ne!(labelled.digest(), image.digest());
    }
}

#[tokio::test]
async fn a_collection_removes_what_has_no_tag_and_nothing_else() {
    let (registry, client) = open_registry().await;
    registry.garbage_collect().await.unwrap();
    let kept = Image::new(ImageKind::OciIndex, "kept");
    let lost = Image::new(ImageKind::OciIndex, "lost");
    let single = Image::new(ImageKind::Docker, "single");
    client.push("floats", "kept", &kept).await.unwrap();
    client.push("floats", "moving", &lost).await.unwrap();
    client.push("floats", "moving", &kept).await.unwrap();
    client.push_untagged("floats", &single).await.unwrap();
    client.pull("floats", &lost.digest()).await.unwrap();

    let report = registry.garbage_collect().await.unwrap();
    assert!(report.contains(&lost.digest()), "{report}");
    assert_eq!(
        client.pull("floats", "kept").await.unwrap(),
        kept.manifest_digests()
    );
    for digest in lost.manifest_digests().iter().chain([&single.digest()]) {
        let found = client.manifest("floats", digest).await.unwrap();
        assert!(found.is_none(), "{digest} is still there");
    }
    for blob in lost.blob_digests() {
        assert!(!client.has_blob("floats", &blob).await.unwrap());
    }
}

#[tokio::test]
async fn a_tag_is_deleted_and_its_manifest_stays() {
    let (_registry, client) = open_registry().await;
    let image = Image::new(ImageKind::Oci, "seed");
    client.push("team/app", "v1", &image).await.unwrap();
    client.push("team/app", "v2", &image).await.unwrap();
    assert_eq!(client.tags("team/app").await.unwrap(), ["v1", "v2"]);
    client.delete("team/app", "v1").await.unwrap();
    assert_eq!(client.tags("team/app").await.unwrap(), ["v2"]);
    client.pull("team/app", &image.digest()).await.unwrap();
}

#[tokio::test]
async fn the_log_tells_the_requests_of_others_and_leaves_out_the_testbeds() {
    let (registry, client) = open_registry().await;
    let image = Image::new(ImageKind::Oci, "seed");
    client.push("team/app", "v1", &image).await.unwrap();
    assert_eq!(registry.log().requests().unwrap(), []);

    let mark = registry.log().mark().unwrap();
    let url = format!("{}/v2/team/app/tags/list?n=1", registry.url());
    let other = crate::testbed::http_builder()
        .user_agent("somebody \"else\"")
        .build()
        .unwrap();
    other.get(url).send().await.unwrap();
    let found = registry
        .log()
        .wait_for(mark, SOON, |request| {
            request.is("GET", "/v2/team/app/tags/list")
        })
        .await
        .unwrap();
    assert_eq!((found.status, found.query.as_str()), (200, "n=1"));
    assert!(found.user_agent.starts_with("somebody"));
    assert_eq!(registry.log().since(mark).unwrap().len(), 1);
}

/// A registry with a token server that knows a writer of `team/*` and a reader of `team/app`.
async fn guarded_registry() -> (Distribution, Arc<TokenServer>) {
    let server = Arc::new(TokenServer::start().unwrap());
    server.set_user("writer", "secret", &[Grant::write("team/*")]);
    server.set_user("reader", "secret", &[Grant::read("team/app")]);
    let auth = RegistryAuth::Token(Arc::clone(&server));
    let registry = Distribution::start(DistributionOptions { auth, tls: false })
        .await
        .unwrap();
    (registry, server)
}

fn status_of<T: std::fmt::Debug>(outcome: Result<T, Error>) -> u16 {
    match outcome {
        Err(Error::Answer { status, .. }) => status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_registry_with_tokens_grants_what_the_table_says() {
    let (registry, _server) = guarded_registry().await;
    let image = Image::new(ImageKind::OciIndex, "seed");
    let writer = registry.client_of("writer", "secret").unwrap();
    writer.push("team/app", "v1", &image).await.unwrap();
    writer.push("team/other", "v1", &image).await.unwrap();

    let reader = registry.client_of("reader", "secret").unwrap();
    reader.pull("team/app", "v1").await.unwrap();
    assert_eq!(status_of(reader.pull("team/other", "v1").await), 401);
    assert_eq!(status_of(reader.delete("team/app", "v1").await), 401);
    let push = reader
        .push("team/app", "v2", &Image::new(ImageKind::Oci, "new"))
        .await;
    assert_eq!(status_of(push), 401);
    writer.delete("team/app", "v1").await.unwrap();
}

#[tokio::test]
async fn nobody_gets_in_with_a_wrong_password_or_none() {
    let (registry, server) = guarded_registry().await;
    let wrong = registry.client_of("writer", "guess").unwrap();
    let image = Image::new(ImageKind::Oci, "seed");
    assert_eq!(status_of(wrong.push("team/app", "v1", &image).await), 401);
    let anonymous = registry.client().unwrap();
    assert_eq!(status_of(anonymous.pull("team/app", "v1").await), 401);

    let statuses: Vec<(Option<String>, u16)> = server
        .requests()
        .into_iter()
        .map(|request| (request.user, request.status))
        .collect();
    assert_eq!(statuses, [(Some("writer".to_owned()), 401), (None, 200)]);
}

#[tokio::test]
async fn an_account_is_changed_while_the_server_runs() {
    let (registry, server) = guarded_registry().await;
    let image = Image::new(ImageKind::Oci, "seed");
    server.set_user("writer", "rotated", &[Grant::write("team/*")]);
    let old = registry.client_of("writer", "secret").unwrap();
    assert_eq!(status_of(old.push("team/app", "v1", &image).await), 401);
    let new = registry.client_of("writer", "rotated").unwrap();
    new.push("team/app", "v1", &image).await.unwrap();
    server.set_anonymous(&[Grant::new("team/*", &[Right::Pull])]);
    let anonymous = registry.client().unwrap();
    anonymous.pull("team/app", "v1").await.unwrap();
}

#[tokio::test]
async fn one_token_covers_two_repositories_and_is_reduced_to_what_is_granted() {
    let server = TokenServer::start().unwrap();
    server.set_user(
        "u",
        "p",
        &[Grant::write("to"), Grant::new("from", &[Right::Pull])],
    );
    let scopes = ["repository:from:pull,push", "repository:to:pull,push"];
    let query = [("service", "x"), ("scope", scopes[0]), ("scope", scopes[1])];
    let http = crate::testbed::http_builder().build().unwrap();
    let answer = http
        .get(server.realm())
        .query(&query)
        .basic_auth("u", Some("p"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let requests = server.requests();
    assert_eq!(requests[0].scopes, scopes);
    assert_eq!(
        requests[0].granted,
        ["repository:from:pull", "repository:to:pull,push"]
    );
    assert_eq!(server.count(Some("u"), scopes[0]), 1);
    assert_eq!(server.count(None, scopes[0]), 0);
}

#[tokio::test]
async fn a_blob_is_mounted_with_a_token_for_both_repositories() {
    let (registry, server) = guarded_registry().await;
    let image = Image::new(ImageKind::Oci, "seed");
    let writer = registry.client_of("writer", "secret").unwrap();
    writer.push("team/app", "v1", &image).await.unwrap();
    let http = crate::testbed::http_builder().build().unwrap();
    let answer: serde_json::Value = http
        .get(server.realm())
        .query(&[
            ("scope", "repository:team/app:pull"),
            ("scope", "repository:team/new:pull,push"),
        ])
        .basic_auth("writer", Some("secret"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let blob = &image.blob_digests()[0];
    let mounted = http
        .post(format!("{}/v2/team/new/blobs/uploads/", registry.url()))
        .query(&[("mount", blob.as_str()), ("from", "team/app")])
        .bearer_auth(answer["token"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(mounted.status(), 201);
}
