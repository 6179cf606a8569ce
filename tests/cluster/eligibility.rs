//! Who may begin: Secrets that are missing, unreadable or without rights, registries off the list, and rights that stay apart.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::time::Duration;

use quaylike::{
    Auth, AuthMode, GateSpec, ImageSpec, Matcher, Options, Registry, RequestKind, Shape, User,
};
use serde_json::{Value, json};

use crate::ground::alone;
use crate::testbed::stage::{EVERYWHERE, Stage, condition, dockerconfig, phase, spec};

const DOCKER: &str = "kubernetes.io/dockerconfigjson";

async fn guarded() -> Registry {
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("alice", "alice-pw").push("ci").pull("src"))
        .user(User::new("bob", "bob-pw").pull("ci").pull("src"))
        .user(User::new("carol", "carol-pw").push("ci"));
    let options = audited().auth(auth);
    Registry::start(options).await.unwrap()
}

fn seeded(registry: &Registry, repository: &str, tag: &str, seed: &str) -> String {
    let spec = ImageSpec::new(Shape::Index, seed);
    let digest = registry.seed_spec(repository, tag, &spec).unwrap();
    digest.to_string()
}

fn with_secret(mut spec: Value, name: &str) -> Value {
    spec["pushSecret"] = json!({"name": name});
    spec
}

fn by(user: &str) -> Matcher {
    Matcher {
        credential: Some(user.into()),
        ..Matcher::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_never_act_with_each_others_rights_and_delay_nobody() {
    let (_turn, plane) = alone().await;
    let [with, without, apart] = [
        Stage::on(plane, "with").await,
        Stage::on(plane, "without").await,
        Stage::on(plane, "apart").await,
    ];
    let registry = guarded().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    // The same Secret name everywhere: a name is no credential.
    for (stage, user) in [(&with, "alice"), (&without, "bob"), (&apart, "carol")] {
        let password = format!("{user}-pw");
        stage.secret("robot", &[(&host, user, &password)]).await;
    }
    let flag = format!("--plain-http={host}");
    let _controller = with.controller(&[EVERYWHERE, &flag]);
    let source = format!("{host}/src/x@{new}");
    let images = with_secret(spec(&[(&source, &format!("{host}/ci:f"))]), "robot");
    without.create("older", &images).await;
    with.create("newer", &images).await;
    let refused = without.finished("older", PATIENCE).await;
    assert_eq!(phase(&refused), "Failed");
    let (_, reason, message) = condition(&refused, "Failed");
    assert_eq!(reason, "PermissionDenied");
    assert!(
        message.contains("push") && message.contains("/ci"),
        "{message}"
    );
    assert!(refused.status.unwrap().start_time.is_none());
    let posted = with.finished("newer", PATIENCE).await;
    assert_eq!(phase(&posted), "Posted", "{}", with.log());
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), old);

    // Everything of that image is in the floats' repository now and was read a moment ago, by another credential.
    let images = with_secret(spec(&[(&source, &format!("{host}/ci:g"))]), "robot");
    registry.reset_log();
    apart.create("copy", &images).await;
    let denied = apart.finished("copy", PATIENCE).await;
    assert_eq!(phase(&denied), "Failed", "{}", with.log());
    assert_eq!(condition(&denied, "Failed").1, "PermissionDenied");
    assert!(!registry.tags("ci").contains_key("g"));
    assert!(!registry.tags("ci").contains_key("g_incoming"));
    assert_eq!(registry.count(&by("alice")), 0);
    assert_eq!(registry.count(&by("bob")), 0);
    assert!(registry.count(&by("carol")) > 0);

    // With the right to read, it is another credential that acts.
    apart.secret("reader", &[(&host, "bob", "bob-pw")]).await;
    let mut images = with_secret(spec(&[(&source, &format!("{host}/ci:g"))]), "robot");
    images["pullSecret"] = json!({"name": "reader"});
    apart.create("both", &images).await;
    let posted = apart.finished("both", PATIENCE).await;
    assert_eq!(phase(&posted), "Posted", "{}", with.log());
    assert_eq!(registry.tags("ci")["g"].to_string(), new);
    assert_eq!(registry.count(&by("alice")), 0);
    for request in registry.requests(&by("bob")) {
        assert!(!request.is_write(), "{request:?}");
        assert_ne!(request.repository, "ci", "{request:?}");
    }
    for request in registry.requests(&by("carol")) {
        assert!(
            request.kind == RequestKind::Token || request.repository == "ci",
            "{request:?}"
        );
    }
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_waited_for_delays_nobody_and_is_used_when_it_comes() {
    let stage = Stage::new("missing").await;
    let registry = guarded().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let source = format!("{host}/src/x@{new}");
    let images = |float: &str, secret: &str| {
        let spec = spec(&[(&source, &format!("{host}/ci:{float}"))]);
        with_secret(spec, secret)
    };
    let missing = |name: &'static str| {
        stage.until(name, PATIENCE, |s| {
            s.conditions
                .iter()
                .any(|c| c.type_ == "Progressing" && c.reason == "SecretNotFound")
        })
    };
    stage.create("early", &images("g", "later")).await;
    stage.create("never", &images("f", "nowhere")).await;
    let waiting = missing("early").await;
    let (truth, _, message) = condition(&waiting, "Progressing");
    assert_eq!(truth, "True");
    assert!(
        message.contains("/later") && message.contains("create it"),
        "{message}"
    );
    assert!(waiting.status.unwrap().start_time.is_none());
    missing("never").await;
    assert_eq!(registry.count(&Matcher::default()), 0);

    stage.secret("good", &[(&host, "alice", "alice-pw")]).await;
    stage.create("newer", &images("f", "good")).await;
    let newer = stage.finished("newer", PATIENCE).await;
    assert_eq!(phase(&newer), "Posted");
    let overtaken = stage.finished("never", PATIENCE).await;
    assert_eq!(condition(&overtaken, "Failed").1, "Superseded");
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), old);

    stage.secret("later", &[(&host, "alice", "alice-pw")]).await;
    let early = stage.finished("early", PATIENCE).await;
    assert_eq!(phase(&early), "Posted");
    assert_eq!(registry.tags("ci")["g"].to_string(), new);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_cannot_be_used_ends_its_request_saying_why_and_delays_nobody() {
    let stage = Stage::new("invalid-secret").await;
    let registry = guarded().await;
    let elsewhere = Registry::start(Options::default()).await.unwrap();
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let good = dockerconfig(&[(&host, "alice", "alice-pw")]);
    let key = ".dockerconfigjson";
    stage.secret("good", &[(&host, "alice", "alice-pw")]).await;
    stage.secret("wrong", &[(&host, "alice", "guess")]).await;
    stage.secret("weak", &[(&host, "bob", "bob-pw")]).await;
    stage
        .secret("other", &[("quay.io", "alice", "alice-pw")])
        .await;
    stage.secret_of("opaque", "Opaque", key, &good).await;
    let nonsense = json!({"auths": [1, 2]}).to_string();
    stage.secret_of("nonsense", DOCKER, key, &nonsense).await;
    let store = json!({"credsStore": "desktop"}).to_string();
    stage.secret_of("store", DOCKER, key, &store).await;
    let listed = format!("--allow-registry={host}");
    let _controller = stage.controller(&[&format!("--plain-http={host}"), &listed]);
    let float = format!("{host}/ci:f");
    let images = spec(&[(&format!("{host}/src/x@{new}"), &float)]);
    let cases = [
        ("opaque", "SecretInvalid", DOCKER),
        ("nonsense", "SecretInvalid", "nonsense"),
        ("store", "SecretInvalid", "credsStore"),
        ("wrong", "Unauthorized", &host),
        ("weak", "PermissionDenied", "push"),
        ("other", "Unauthorized", "/ci"),
        ("none", "Unauthorized", "/ci"),
    ];
    for (name, _, _) in cases {
        let spec = match name {
            "none" => images.clone(),
            secret => with_secret(images.clone(), secret),
        };
        stage.create(name, &spec).await;
    }
    let foreign = format!("{}/src/x@{new}", elsewhere.host());
    let foreign = with_secret(spec(&[(&foreign, &float)]), "good");
    stage.create("foreign", &foreign).await;
    stage.create("good", &with_secret(images, "good")).await;

    let posted = stage.finished("good", PATIENCE).await;
    assert_eq!(phase(&posted), "Posted");
    let listed = ("foreign", "NotAllowed", elsewhere.host());
    let cases = cases.map(|(name, reason, part)| (name, reason, part.to_owned()));
    for (name, reason, part) in cases.into_iter().chain([listed]) {
        let done = stage.finished(name, PATIENCE).await;
        assert_eq!(phase(&done), "Failed", "{name}");
        let (_, why, message) = condition(&done, "Failed");
        assert_eq!(why, reason, "{name}: {message}");
        assert!(message.contains(&part), "{name}: {message}");
        for secret in ["alice-pw", "bob-pw", "guess"] {
            assert!(!message.contains(secret), "{message}");
        }
        let status = done.status.unwrap();
        assert!(status.start_time.is_none(), "{name} claimed");
        assert_eq!(status.images[0].reason.as_deref(), Some(reason));
    }
    for secret in ["alice-pw", "bob-pw", "guess"] {
        assert!(!stage.log().contains(secret), "a password is in the log");
    }
    assert_eq!(elsewhere.count(&Matcher::default()), 0);
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), old);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_request_goes_on_when_its_secret_is_repaired() {
    let stage = Stage::new("repaired").await;
    let registry = guarded().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    stage.secret("robot", &[(&host, "alice", "alice-pw")]).await;
    let first = stage.controller(&[&format!("--plain-http={host}")]);
    let latch = Matcher::put_manifest().repository("ci").reference("f");
    let gate = registry.gate(GateSpec::before(latch));
    let images = spec(&[(&format!("{host}/src/x@{new}"), &format!("{host}/ci:f"))]);
    stage.create("r", &with_secret(images, "robot")).await;
    stage.reached(&gate).await;
    first.kill();
    gate.cut();
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
    let edit = |content: String| {
        let change = json!({"stringData": {".dockerconfigjson": content}});
        let secrets = secrets.clone();
        async move {
            let params = kube::api::PatchParams::default();
            let change = kube::api::Patch::Merge(&change);
            secrets.patch("robot", &params, &change).await.unwrap();
        }
    };
    edit(json!({"credHelpers": 1}).to_string()).await;
    let _second = stage.controller(&[&format!("--plain-http={host}")]);
    let waiting = stage
        .until("r", PATIENCE, |s| {
            s.conditions
                .iter()
                .any(|c| c.type_ == "Progressing" && c.reason == "SecretInvalid")
        })
        .await;
    assert_eq!(phase(&waiting), "BackedUp");
    edit(dockerconfig(&[(&host, "alice", "alice-pw")])).await;
    let done = stage.finished("r", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), old);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_changed_is_read_anew_when_the_old_one_is_rejected() {
    let stage = Stage::new("rotated").await;
    let registry = guarded().await;
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    let newer = seeded(&registry, "src/x", "newer", "newer");
    stage.secret("robot", &[(&host, "alice", "alice-pw")]).await;
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let images = |source: &str| {
        let source = format!("{host}/src/x@{source}");
        with_secret(spec(&[(&source, &format!("{host}/ci:f"))]), "robot")
    };
    let rotate = async |password: &str| {
        let auth =
            Auth::new(AuthMode::Bearer).user(User::new("alice", password).push("ci").pull("src"));
        registry.set_auth(auth);
        registry.revoke_tokens();
        let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
            kube::Api::namespaced(stage.plane.client().unwrap(), &stage.namespace);
        let config = dockerconfig(&[(&host, "alice", password)]);
        let change = json!({"stringData": {".dockerconfigjson": config}});
        let change = kube::api::Patch::Merge(&change);
        let params = kube::api::PatchParams::default();
        secrets.patch("robot", &params, &change).await.unwrap();
    };
    // In the middle of a promotion: the next look is answered with a 401.
    let latch = Matcher::put_manifest().repository("ci").reference("f");
    let gate = registry.gate(GateSpec::after(latch));
    stage.create("first", &images(&new)).await;
    stage.reached(&gate).await;
    rotate("alice-pw-2").await;
    gate.open();
    let done = stage.finished("first", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", stage.log());
    assert_eq!(done.status.unwrap().images[0].attempts, None);
    // Before it begins: the Secret was read less than a minute ago.
    rotate("alice-pw-3").await;
    stage.create("second", &images(&newer)).await;
    let done = stage.finished("second", PATIENCE).await;
    assert_eq!(phase(&done), "Posted", "{}", stage.log());
    assert_eq!(registry.tags("ci")["f"].to_string(), newer);
    assert_eq!(registry.tags("ci")["f__pre"].to_string(), new);
    assert_ne!(old, new);
    for password in ["alice-pw", "alice-pw-2", "alice-pw-3"] {
        assert!(!stage.log().contains(password), "a password is in the log");
    }
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_that_waits_for_a_dead_registry_says_so_and_when_it_is_asked_again() {
    let stage = Stage::new("dead").await;
    // Nobody listens there.
    let host = "127.0.0.1:9";
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let source = format!("{host}/src@sha256:{}", "0".repeat(64));
    let names = ["a", "b", "c"];
    for name in names {
        let images = spec(&[(&source, &format!("{host}/ci/{name}:f"))]);
        stage.create(name, &images).await;
    }
    for name in names {
        let told = |status: &promotion_controller::api::PromotionRequestStatus| {
            let mut conditions = status.conditions.iter();
            conditions.any(|c| {
                let message = &c.message;
                c.reason == "RegistryUnavailable"
                    && message.contains(host)
                    && message.contains("next try within")
                    && message.contains("; since ")
            })
        };
        stage.until(name, Duration::from_secs(30), told).await;
    }
}
