//! Who may use the controller's own credentials: rules, the files they stand in, and the limit of a namespace.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use promotion_controller::policy::Rules;
use quaylike::{
    Action, Auth, AuthMode, Gate, GateSpec, ImageSpec, Matcher, Options, Registry, RequestKind,
    Rule, Shape, User, When,
};
use serde_json::{Value, json};

use crate::ground::alone;
use crate::testbed::stage::{EVERYWHERE, LOOK, Stage, condition, dockerconfig, phase, spec};
use crate::testbed::{
    Distribution, DistributionOptions, Grant, Image, ImageKind, RegistryAuth, TokenServer,
};

const PASSWORD: &str = "controller-s3cret";

/// Two files as a pod has them, and the flags that name them.
struct Files<'a> {
    stage: &'a Stage,
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.stage.folder.join(name)
    }

    /// Replaces a file as a mount does: at once.
    fn put(&self, name: &str, content: &str) {
        std::fs::write(self.path("next"), content).unwrap();
        std::fs::rename(self.path("next"), self.path(name)).unwrap();
    }

    fn policy(&self, rules: &[Value]) {
        self.put("policy.yaml", &json!({ "rules": rules }).to_string());
    }

    fn config(&self, entries: &[(&str, &str, &str)]) {
        self.put("config.json", &dockerconfig(entries));
    }

    fn flags(&self) -> [String; 2] {
        [
            ("--policy", "policy.yaml"),
            ("--registry-config", "config.json"),
        ]
        .map(|(flag, name)| format!("{flag}={}", self.path(name).display()))
    }

    /// Waits until the controller's log has said this so often.
    async fn said(&self, words: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.stage.log();
            let count = log.matches(words).count();
            if count >= times {
                assert_eq!(count, times, "{words}:\n{log}");
                return;
            }
            assert!(
                Instant::now() < end,
                "nothing said '{words}' {times} times:\n{log}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn rule(name: &str, namespace: &str, source: &str, float: &str) -> Value {
    json!({"name": name, "namespaces": [namespace], "sources": [source], "floats": [float]})
}

/// A registry of which the controller has a credential, `reader` may pull all sources, and everybody may see nothing.
async fn guarded() -> Registry {
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("controller", PASSWORD).push("ci").pull("src"))
        .user(User::new("owner", "owner-pw").push("ci").pull("src"))
        .user(User::new("reader", "reader-pw").pull("src"));
    let options = audited().auth(auth);
    Registry::start(options).await.unwrap()
}

fn seeded(registry: &Registry, repository: &str, tag: &str) -> String {
    let spec = ImageSpec::new(Shape::Oci, &format!("{repository} {tag}"));
    let digest = registry.seed_spec(repository, tag, &spec).unwrap();
    digest.to_string()
}

fn by(user: &str) -> Matcher {
    Matcher {
        credential: Some(user.into()),
        ..Matcher::default()
    }
}

fn reads(repository: &str) -> Matcher {
    Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository(repository)
}

/// That a request ended before it began, because no rule names it; the message has the rule that would.
async fn assert_not_allowed(stage: &Stage, name: &str) -> String {
    let done = stage.finished(name, PATIENCE).await;
    assert_eq!(phase(&done), "Failed", "{name}");
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!(reason, "NotAllowed", "{name}: {message}");
    assert!(
        message.contains("--policy") && message.contains("pushSecret"),
        "{message}"
    );
    let line = message.split("--policy file: ").nth(1).unwrap();
    let rules = Rules::parse(&format!("rules:\n{line}\n")).unwrap();
    let image = &done.spec.images[0];
    let (source, float) = (image.source.parse().unwrap(), image.float.parse().unwrap());
    let granting = rules.of(&stage.namespace);
    assert!(
        granting
            .iter()
            .any(|rule| rule.grants(&source, &float).is_some()),
        "{message}"
    );
    let status = done.status.as_ref().unwrap();
    assert_eq!(status.images[0].reason.as_deref(), Some("NotAllowed"));
    message.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn own_pins_are_promoted_and_no_other_digest_of_the_repository_is() {
    let stage = Stage::new("ownpins").await;
    let registry = guarded().await;
    let host = registry.host();
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    let (staged, other, old) = (image("staged"), image("other"), image("old"));
    let digest = staged.digest().to_string();
    let day = jiff::Timestamp::now().strftime("%Y%m%d").to_string();
    let hex = digest.trim_start_matches("sha256:");
    let pin = format!("{day}000000_prune_{hex}__staged");
    registry.seed_image("ci", &pin, &staged).unwrap();
    registry.seed_image("ci", "somebodys", &other).unwrap();
    registry
        .seed_image("ci", "20260304050607_prune_f", &old)
        .unwrap();
    let files = Files { stage: &stage };
    files.config(&[(&host, "controller", PASSWORD)]);
    let floats = format!("{host}/ci:f*");
    files.policy(&[json!({
        "name": "own", "namespaces": [stage.namespace], "ownPins": true, "floats": [floats],
    })]);
    let [policy, config] = files.flags();
    let flag = format!("--plain-http={host}");
    let _controller = stage.controller(&[&policy, &config, &flag]);
    let by_digest = |digest: &dyn std::fmt::Display| format!("{host}/ci@{digest}");
    // Staged a moment ago, and not yet shown by the replica that answers first.
    let absent = Action::Status {
        status: 404,
        code: Some("MANIFEST_UNKNOWN".into()),
        message: None,
        detail: None,
        body: None,
        retry_after: None,
    };
    registry.add_rule(Rule {
        matcher: reads("ci").reference(&pin),
        when: When::Nth(1),
        left: Some(1),
        action: absent,
    });
    let cases = [
        ("staged", by_digest(&digest), "f1", "Promote", "Posted"),
        (
            "pruned",
            format!("{host}/ci:20260304050607_prune_f"),
            "f",
            "Promote",
            "Posted",
        ),
        ("planned", by_digest(&digest), "f2", "Plan", "Planned"),
        (
            "others",
            by_digest(&other.digest()),
            "f3",
            "Promote",
            "Failed",
        ),
        (
            "others-plan",
            by_digest(&other.digest()),
            "f3",
            "Plan",
            "Failed",
        ),
    ];
    for (name, source, float, mode, _) in &cases {
        let mut images = spec(&[(source, &format!("{host}/ci:{float}"))]);
        images["mode"] = json!(mode);
        stage.create(name, &images).await;
    }
    for (name, _, _, _, wanted) in &cases {
        let done = stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), *wanted, "{name}:\n{}", stage.log());
        if *wanted == "Failed" {
            let (_, reason, message) = condition(&done, "Failed");
            assert_eq!(reason, "NotAllowed", "{message}");
            assert!(
                message.contains("ownPins lets only what was staged"),
                "{message}"
            );
        }
    }
    // Without such a rule the refusal names the one that is missing.
    let away = spec(&[(&by_digest(&digest), &format!("{host}/ci:g"))]);
    stage.create("no-rule", &away).await;
    let message = assert_not_allowed(&stage, "no-rule").await;
    assert!(message.contains("ownPins: true"), "{message}");
    let at = |tag: &str| registry.tag("ci", tag);
    assert_eq!(at("f1"), Some(staged.digest()));
    assert_eq!(at("f"), Some(old.digest()));
    assert_eq!([at("f2"), at("f3"), at("f3_incoming"), at("g")], [None; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_names_is_promoted_for_its_namespaces_alone_and_no_other_repository_is_touched()
{
    let (_turn, plane) = alone().await;
    let (a, b) = (Stage::on(plane, "a").await, Stage::on(plane, "b").await);
    // The registry would let the controller do anything: only the rules are in the way.
    let tokens = Arc::new(TokenServer::start().unwrap());
    tokens.set_user("controller", PASSWORD, &[Grant::write("*")]);
    let auth = RegistryAuth::Token(Arc::clone(&tokens));
    let options = DistributionOptions { auth, tls: false };
    let registry = Distribution::start(options).await.unwrap();
    let host = registry.host();
    let client = registry.client_of("controller", PASSWORD).unwrap();
    let mut digests = Vec::new();
    for repository in ["team-a/deep/app", "team-b/app", "team-b/deep/app"] {
        let image = Image::new(ImageKind::Oci, repository);
        let digest = client.push(repository, "new", &image).await.unwrap();
        let signature = Image::new(ImageKind::Oci, &format!("signature of {repository}"));
        let tag = format!("{}.sig", digest.replace(':', "-"));
        client.push(repository, &tag, &signature).await.unwrap();
        digests.push((repository, digest, signature.digest()));
    }
    let files = Files { stage: &a };
    files.config(&[(&host, "controller", PASSWORD)]);
    files.policy(&[
        rule(
            "a",
            &a.namespace,
            &format!("{host}/team-a/**"),
            &format!("{host}/floats/a:f*"),
        ),
        rule(
            "b",
            &b.namespace,
            &format!("{host}/team-b/*"),
            &format!("{host}/floats/**:*"),
        ),
        // Of each namespace one half: no rule names both.
        rule(
            "half",
            &a.namespace,
            &format!("{host}/nothing"),
            &format!("{host}/floats/b:*"),
        ),
    ]);
    let [policy, config] = files.flags();
    let before = tokens.requests().len();
    let _controller = a.controller(&[
        EVERYWHERE,
        &policy,
        &config,
        &format!("--plain-http={host}"),
    ]);
    let source = |n: usize| format!("{host}/{}@{}", digests[n].0, digests[n].1);
    let cases = [
        // (namespace, name, source, float, allowed)
        (&a, "own", 0, "floats/a:f", true),
        (&b, "own", 1, "floats/b/c:f", true),
        (&a, "anothers-source", 1, "floats/a:f1", false),
        (&a, "anothers-float", 0, "floats/b:g", false),
        (&a, "another-tag", 0, "floats/a:g", false),
        (&b, "as-the-other", 0, "floats/a:f2", false),
        (&b, "too-deep", 2, "floats/b/c:g", false),
    ];
    for (stage, name, from, float, _) in &cases {
        let mut images = spec(&[(&source(*from), &format!("{host}/{float}"))]);
        images["referrers"] = json!("Require");
        stage.create(name, &images).await;
    }
    for (stage, name, from, float, allowed) in &cases {
        let (repository, tag) = float.split_once(':').unwrap();
        if !allowed {
            assert_not_allowed(stage, name).await;
            assert_eq!(
                client.digest(repository, tag).await.unwrap(),
                None,
                "{name}"
            );
            continue;
        }
        let done = stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", a.log());
        let (_, digest, signature) = &digests[*from];
        assert_eq!(
            client.digest(repository, tag).await.unwrap().as_ref(),
            Some(digest)
        );
        let tag = format!("{}.sig", digest.replace(':', "-"));
        assert_eq!(
            client.digest(repository, &tag).await.unwrap().as_ref(),
            Some(signature)
        );
    }
    // What the controller asked rights for: what the two rules name, the mounts' two repositories by one and the same rule.
    let allowed = [
        (
            "repository:floats/a:pull,push",
            "repository:team-a/deep/app:pull",
        ),
        (
            "repository:floats/b/c:pull,push",
            "repository:team-b/app:pull",
        ),
    ];
    let mut mounts = 0;
    for asked in &tokens.requests()[before..] {
        // The test's own client asks for single scopes, and so does a reader.
        let own = asked.scopes.len() == 1 && asked.scopes[0].ends_with(":pull");
        let own = own && asked.scopes[0].starts_with("repository:floats/");
        let named = allowed.iter().any(|(float, source)| {
            asked
                .scopes
                .iter()
                .all(|scope| scope == float || scope == source)
        });
        assert!(own || named, "{asked:?}");
        mounts += usize::from(asked.scopes.len() == 2);
    }
    assert!(mounts >= 2, "{:?}", tokens.requests());
    assert!(!a.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_push_secret_acts_as_the_controller_where_a_rule_says_so_and_as_nobody_elsewhere()
 {
    let stage = Stage::new("own").await;
    let (registry, open) = (
        guarded().await,
        Registry::start(Options::default()).await.unwrap(),
    );
    let (host, public) = (registry.host(), open.host());
    seeded(&registry, "src/x", "new");
    seeded(&registry, "src/y", "new");
    seeded(&open, "src/x", "new");
    let files = Files { stage: &stage };
    files.config(&[(&host, "controller", PASSWORD)]);
    files.policy(&[rule(
        "r",
        &stage.namespace,
        &format!("{host}/src/x"),
        &format!("{host}/ci:f*"),
    )]);
    stage
        .secret("reader", &[(&host, "reader", "reader-pw")])
        .await;
    stage.secret("owner", &[(&host, "owner", "owner-pw")]).await;
    let [policy, config] = files.flags();
    let plain = [&host, &public].map(|host| format!("--plain-http={host}"));
    let _controller = stage.controller(&[&policy, &config, &plain[0], &plain[1]]);
    let x = format!("{host}/src/x:new");

    // Neither the source nor the float needs any credential that the controller has.
    let nobodys = spec(&[(&format!("{public}/src/x:new"), &format!("{public}/ci:f"))]);
    stage.create("nobodys", &nobodys).await;
    assert_eq!(
        phase(&stage.finished("nobodys", PATIENCE).await),
        "Posted",
        "{}",
        stage.log()
    );

    // Read by its own credential, put by the controller's, both named by the rule.
    let mut both = spec(&[(&x, &format!("{host}/ci:f1"))]);
    both["pullSecret"] = json!({"name": "reader"});
    stage.create("both", &both).await;
    assert_eq!(
        phase(&stage.finished("both", PATIENCE).await),
        "Posted",
        "{}",
        stage.log()
    );
    for request in registry.requests(&by("reader")) {
        assert!(
            !request.is_write() && request.repository == "src/x",
            "{request:?}"
        );
    }
    let own = registry.requests(&by("controller"));
    assert!(!own.is_empty());
    for request in own {
        let named = request.repository == "ci" || request.kind == RequestKind::Token;
        assert!(named && !request.query.contains("src/y"), "{request:?}");
    }

    // Its own credential may read what it likes; where it goes is the rule's.
    let mut unnamed = spec(&[(&format!("{host}/src/y:new"), &format!("{host}/ci:f2"))]);
    unnamed["pullSecret"] = json!({"name": "reader"});
    stage.create("unnamed", &unnamed).await;
    assert_not_allowed(&stage, "unnamed").await;

    // With its own Secret it needs no rule, and the controller's is not touched.
    registry.reset_log();
    let mut owned = spec(&[(&format!("{host}/src/y:new"), &format!("{host}/ci:g"))]);
    owned["pushSecret"] = json!({"name": "owner"});
    stage.create("owned", &owned).await;
    assert_eq!(
        phase(&stage.finished("owned", PATIENCE).await),
        "Posted",
        "{}",
        stage.log()
    );
    assert_eq!(registry.count(&by("controller")), 0);

    // One image of two is not named: nothing of it is done.
    let two = spec(&[
        (&x, &format!("{host}/ci:f3")),
        (&x, &format!("{host}/ci:g3")),
    ]);
    stage.create("two", &two).await;
    let done = stage.finished("two", PATIENCE).await;
    assert_eq!(condition(&done, "Failed").1, "NotAllowed");
    assert!(condition(&done, "Failed").2.contains("spec.images[1]"));
    assert!(!registry.tags("ci").contains_key("f3_incoming"));
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_holds_from_then_on_and_what_is_committed_keeps_its_grant() {
    let stage = Stage::new("followed").await;
    let registry = guarded().await;
    let host = registry.host();
    for repository in ["src/x", "src/y", "src/z"] {
        seeded(&registry, repository, "new");
    }
    let old = seeded(&registry, "ci", "z");
    let files = Files { stage: &stage };
    files.config(&[(&host, "controller", PASSWORD)]);
    files.policy(&[]);
    let [policy, config] = files.flags();
    let plain = format!("--plain-http={host}");
    let flags = [policy.as_str(), &config, &plain];
    let first = stage.controller(&flags);
    let images = |source: &str, float: &str| {
        spec(&[(
            &format!("{host}/{source}:new"),
            &format!("{host}/ci:{float}"),
        )])
    };
    stage.create("early", &images("src/x", "early")).await;
    assert_not_allowed(&stage, "early").await;

    let all = rule(
        "all",
        &stage.namespace,
        &format!("{host}/src/*"),
        &format!("{host}/ci:*"),
    );
    files.policy(std::slice::from_ref(&all));
    files.said("--policy changed", 1).await;
    stage.create("later", &images("src/x", "later")).await;
    assert_eq!(
        phase(&stage.finished("later", PATIENCE).await),
        "Posted",
        "{}",
        stage.log()
    );
    // What has ended has ended.
    assert_eq!(phase(&stage.get("early").await), "Failed");

    files.put(
        "policy.yaml",
        "rules: [{name: x, namespaces: [Y], sources: [z], floats: [z]}]",
    );
    files
        .said("rules[0].namespaces[0]: 'Y' is not a namespace pattern", 1)
        .await;
    stage.create("still", &images("src/x", "still")).await;
    assert_eq!(
        phase(&stage.finished("still", PATIENCE).await),
        "Posted",
        "{}",
        stage.log()
    );

    // One that has only begun, and one that is committed, when the rule is taken away.
    let begun = registry.gate(GateSpec::before(reads("src/y")));
    let latch = Matcher::put_manifest().repository("ci").reference("z");
    let committed = registry.gate(GateSpec::before(latch));
    stage.create("begun", &images("src/y", "y")).await;
    stage.create("committed", &images("src/z", "z")).await;
    stage.reached(&begun).await;
    stage.reached(&committed).await;
    files.policy(&[]);
    files.said("--policy changed", 2).await;
    let ended = stage.finished("begun", PATIENCE).await;
    assert_eq!(condition(&ended, "Failed").1, "NotAllowed");
    assert!(!registry.tags("ci").contains_key("y_incoming"));
    // Not even a process that has never known the rule gives a committed one up.
    first.kill();
    committed.cut();
    begun.cut();
    let _second = stage.controller(&flags);
    let done = stage.finished("committed", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", stage.log());
    assert_eq!(registry.tags("ci")["z__pre"].to_string(), old);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_the_controllers_that_was_changed_is_read_anew_when_the_old_one_is_rejected()
{
    let stage = Stage::new("own-rotated").await;
    let registry = guarded().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f");
    let new = seeded(&registry, "src/x", "new");
    let files = Files { stage: &stage };
    files.config(&[(&host, "controller", PASSWORD)]);
    files.policy(&[rule(
        "r",
        &stage.namespace,
        &format!("{host}/**"),
        &format!("{host}/ci:f"),
    )]);
    let [policy, config] = files.flags();
    let _controller = stage.controller(&[&policy, &config, &format!("--plain-http={host}")]);
    let latch = Matcher::put_manifest().repository("ci").reference("f");
    let gate = registry.gate(GateSpec::after(latch));
    let images = spec(&[(&format!("{host}/src/x:new"), &format!("{host}/ci:f"))]);
    stage.create("r", &images).await;
    stage.reached(&gate).await;
    let renewed = format!("{PASSWORD}-2");
    let user = User::new("controller", &renewed).push("ci").pull("src");
    registry.set_auth(Auth::new(AuthMode::Bearer).user(user));
    registry.revoke_tokens();
    files.config(&[(&host, "controller", &renewed)]);
    gate.open();
    let done = stage.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", stage.log());
    assert_eq!(done.status.unwrap().images[0].attempts, None);
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), old);
    assert!(!stage.log().contains(PASSWORD));
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_at_the_start_is_bad_input() {
    let stage = Stage::new("unusable").await;
    let files = Files { stage: &stage };
    files.policy(&[rule("r", "ci", "quay.io/src/**", "quay.io/ci")]);
    files.put("config.json", "{");
    for (flag, words) in files
        .flags()
        .into_iter()
        .zip(["says no tag: append", "is not a dockerconfigjson"])
    {
        let mut controller = stage.controller(&[&flag]);
        let end = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(code) = controller.exit_code() {
                break code;
            }
            assert!(Instant::now() < end, "it goes on:\n{}", stage.log());
            tokio::time::sleep(LOOK).await;
        };
        assert_eq!(code, 2, "{}", stage.log());
        assert!(stage.log().contains(words), "{}", stage.log());
    }
}

#[test]
fn the_example_of_the_page_is_a_policy_and_does_what_the_page_says() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md");
    let page = std::fs::read_to_string(page).unwrap();
    let example = page
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let rules = Rules::parse(example).unwrap();
    let granted = |namespace: &str, source: &str, float: &str| {
        let (source, float) = (source.parse().unwrap(), float.parse().unwrap());
        rules
            .of(namespace)
            .iter()
            .any(|rule| rule.grants(&source, &float).is_some())
    };
    let build = "registry.build02.ci.openshift.org/ci-op-x1/pipeline:cli";
    for namespace in ["ocp", "origin", "ocp-priv"] {
        assert!(granted(
            namespace,
            build,
            "quay.io/openshift/ci:ocp_4.21_cli"
        ));
    }
    assert!(granted(
        "ci",
        "registry.ci.openshift.org/ci/tool:x",
        "quay.io/openshift/ci:ci_tool_latest"
    ));
    assert!(!granted("ci", build, "quay.io/openshift/ci:ocp_4.21_cli"));
    assert!(!granted(
        "ocp",
        build,
        "quay.io/openshift/ci:ci_tool_latest"
    ));
    assert!(!granted(
        "ocp",
        "registry.ci.openshift.org/ci-op-x1/stable:cli",
        "quay.io/openshift/ci:ocp_x"
    ));
}

/// Stops the read of a source.
fn before_read(registry: &Registry, repository: &str) -> Gate {
    registry.gate(GateSpec::before(reads(repository)))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_limit_of_a_namespace_come_in_their_order_and_delay_no_other() {
    let (_turn, plane) = alone().await;
    let (a, b) = (
        Stage::on(plane, "limit").await,
        Stage::on(plane, "other").await,
    );
    let registry = Registry::start(Options::default()).await.unwrap();
    let host = registry.host();
    for repository in ["src/held", "src/x"] {
        seeded(&registry, repository, "new");
    }
    let images = |source: &str, float: &str| {
        spec(&[(
            &format!("{host}/{source}:new"),
            &format!("{host}/ci:{float}"),
        )])
    };
    let flags = [
        EVERYWHERE,
        &format!("--plain-http={host}"),
        "--max-active-requests-per-namespace=1",
    ];
    let first = a.controller(&flags);
    let held = before_read(&registry, "src/held");
    a.create("1", &images("src/held", "one")).await;
    a.reached(&held).await;
    for (name, float) in [("2", "two"), ("3", "three"), ("4", "four")] {
        a.create(name, &images("src/x", float)).await;
        let waiting = a
            .until(name, PATIENCE, |status| {
                status.conditions.iter().any(|c| {
                    c.type_ == "Progressing"
                        && c.reason == "Queued"
                        && c.message.contains("--max-active-requests-per-namespace")
                })
            })
            .await;
        assert!(waiting.status.unwrap().start_time.is_none(), "{name}");
    }
    // Plans have a limit of their own.
    let mut plan = images("src/x", "one");
    plan["mode"] = json!("Plan");
    a.create("plan", &plan).await;
    assert_eq!(phase(&a.finished("plan", PATIENCE).await), "Planned");
    // Another namespace takes a float that the second one, over its limit, waits for.
    b.create("newer", &images("src/x", "two")).await;
    let newer = b.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted", "{}", a.log());
    let second = a.finished("2", PATIENCE).await;
    assert_eq!(condition(&second, "Failed").1, "Superseded");
    assert_eq!(phase(&a.get("1").await), "Pending");

    // A new leader counts what has begun.
    first.kill();
    held.cut();
    let held = before_read(&registry, "src/held");
    let _second = a.controller(&flags);
    a.reached(&held).await;
    b.create("again", &images("src/x", "two")).await;
    b.finished("again", PATIENCE).await;
    for name in ["3", "4"] {
        assert!(
            a.get(name).await.status.unwrap().start_time.is_none(),
            "{name}"
        );
    }
    held.open();
    let mut ended = None;
    for name in ["1", "3", "4"] {
        let done = a.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Posted", "{}", a.log());
        let status = done.status.unwrap();
        let begun = status.start_time.map(|time| time.0);
        assert!(ended <= begun, "{name} began before its turn");
        ended = status.completion_time.map(|time| time.0);
    }
}
