//! What people apply and what becomes of it: kubectl, several registries, failures of sources and of existence checks.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use promotion_controller::api::ImageStatus;
use quaylike::{
    Action, Auth, AuthMode, GateSpec, ImageSpec, Matcher, Registry, RequestKind, Rule, Shape, User,
};
use serde_json::{Value, json};

use crate::testbed::stage::{Stage, condition, object, phase, spec};
use crate::testbed::{
    Distribution, DistributionOptions, Grant, Image, ImageKind, RegistryAuth, RegistryClient,
    TokenServer,
};

fn seeded(registry: &Registry, repository: &str, tag: &str, seed: &str) -> String {
    let spec = ImageSpec::new(Shape::Oci, seed);
    let digest = registry.seed_spec(repository, tag, &spec).unwrap();
    digest.to_string()
}

fn absent() -> String {
    format!("sha256:{}", "0".repeat(64))
}

// === twenty images ===

/// Floats in `target`; sources there, in `near` (which shares its token server) and in `far` (which has its own).
struct Registries {
    target: Distribution,
    near: Distribution,
    far: Distribution,
    servers: [Arc<TokenServer>; 2],
}

/// One image of the request, and what its float was before.
struct Wanted {
    float: String,
    source: String,
    image: Image,
    old: Option<Image>,
}

async fn guarded(server: &Arc<TokenServer>) -> Distribution {
    let auth = RegistryAuth::Token(Arc::clone(server));
    Distribution::start(DistributionOptions { auth, tls: false })
        .await
        .unwrap()
}

impl Registries {
    async fn start() -> Self {
        let (own, other) = (
            Arc::new(TokenServer::start().unwrap()),
            Arc::new(TokenServer::start().unwrap()),
        );
        for server in [&own, &other] {
            server.set_user("admin", "admin-pw", &[Grant::write("*")]);
        }
        let bot = [Grant::write("ci"), Grant::read("team/*")];
        own.set_user("bot", "bot-pw", &bot);
        other.set_user("reader", "reader-pw", &[Grant::read("team/*")]);
        Self {
            target: guarded(&own).await,
            near: guarded(&own).await,
            far: guarded(&other).await,
            servers: [own, other],
        }
    }

    fn admin(registry: &Distribution) -> RegistryClient {
        registry.client_of("admin", "admin-pw").unwrap()
    }

    fn flags(&self) -> Vec<String> {
        let own = [&self.target, &self.near, &self.far].map(Distribution::host);
        let realms = self.servers.iter().map(|server| {
            let realm = server.realm();
            let host = realm.trim_start_matches("http://");
            host.trim_end_matches("/token").to_owned()
        });
        let hosts = own.into_iter().chain(realms);
        hosts.map(|host| format!("--plain-http={host}")).collect()
    }

    /// Seeds the image of this number: every kind from every origin, half of them over an older one.
    async fn seed(&self, number: usize) -> Wanted {
        let kind = ImageKind::ALL[number % 5];
        let origin = [&self.target, &self.near, &self.far, &self.far][number / 5];
        let (tag, repository) = (format!("f{number}"), "team/src");
        let image = Image::new(kind, &format!("new-{number}"));
        let digest = Self::admin(origin)
            .push(repository, &tag, &image)
            .await
            .unwrap();
        let old = number
            .is_multiple_of(2)
            .then(|| Image::new(kind, &format!("old-{number}")));
        if let Some(old) = &old {
            let target = Self::admin(&self.target);
            target.push("ci", &tag, old).await.unwrap();
        }
        let reference = if number < 15 {
            format!("@{digest}")
        } else {
            format!(":{tag}")
        };
        Wanted {
            float: tag,
            source: format!("{}/{repository}{reference}", origin.host()),
            image,
            old,
        }
    }
}

/// The tags and digests that the request must have left, its prune tags read from status.
fn tags_of(wanted: &Wanted, status: &ImageStatus) -> BTreeMap<String, String> {
    let (float, new) = (&wanted.float, wanted.image.digest());
    let mut tags = BTreeMap::from([
        (float.clone(), new.clone()),
        (format!("{float}_incoming"), new.clone()),
    ]);
    assert_eq!(status.phase, "Posted", "{status:?}");
    let source = status.source.as_ref().unwrap();
    assert_eq!(source.digest, new);
    assert_eq!(source.media_type.as_deref(), Some(wanted.image.media_type));
    assert!(
        status
            .promoted
            .as_ref()
            .unwrap()
            .ends_with(&format!("/ci@{new}"))
    );
    assert_eq!(status.attempts, None);
    if let Some(old) = &wanted.old {
        assert_eq!(status.first_promotion, None);
        let [pin] = status.displaced.as_slice() else {
            panic!("{status:?}")
        };
        assert_eq!(pin.digest, old.digest());
        let (stamp, rest) = pin.prune_tag.split_at(14);
        assert!(stamp.bytes().all(|b| b.is_ascii_digit()), "{pin:?}");
        assert_eq!(rest, format!("_prune_{float}"));
        tags.insert(pin.prune_tag.clone(), old.digest());
        tags.insert(format!("{float}__pre"), old.digest());
        tags.insert(format!("{float}__post1"), new);
    } else {
        assert_eq!(status.first_promotion, Some(true));
        assert!(status.displaced.is_empty());
    }
    tags
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_images_of_all_kinds_from_three_registries_are_complete_and_survive_collection() {
    let stage = Stage::new("twenty").await;
    let registries = Registries::start().await;
    let target = registries.target.host();
    stage.secret("push", &[(&target, "bot", "bot-pw")]).await;
    let (near, far) = (registries.near.host(), registries.far.host());
    let entries = [
        (target.as_str(), "bot", "bot-pw"),
        (near.as_str(), "bot", "bot-pw"),
        (far.as_str(), "reader", "reader-pw"),
    ];
    stage.secret("pull", &entries).await;
    let mut wanted = Vec::new();
    for number in 0..20 {
        wanted.push(registries.seed(number).await);
    }
    let flags = registries.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let _controller = stage.controller(&flags);
    let images: Vec<Value> = wanted
        .iter()
        .map(|w| json!({"source": w.source, "float": format!("{target}/ci:{}", w.float)}))
        .collect();
    let mut request = serde_json::to_value(object(
        "twenty",
        &json!({"images": images, "pullSecret": {"name": "pull"}, "pushSecret": {"name": "push"}}),
    ))
    .unwrap();
    request["metadata"]["namespace"] = json!(stage.namespace);
    stage.plane.apply(&request.to_string()).await.unwrap();
    let arguments = [
        "wait",
        "--for=condition=Complete",
        "promotionrequests/twenty",
        "--timeout=120s",
        "--namespace",
        &stage.namespace,
    ];
    let output = stage.plane.kubectl(&arguments).await.unwrap();
    assert!(output.status.success(), "{output:?}\n{}", stage.log());

    let done = stage.get("twenty").await;
    let status = done.status.clone().unwrap();
    assert_eq!(phase(&done), "Posted");
    assert_eq!(status.progress.as_deref(), Some("20/20"));
    assert_eq!(status.observed_generation, done.metadata.generation);
    let mut expected = BTreeMap::new();
    for (wanted, status) in wanted.iter().zip(&status.images) {
        expected.extend(tags_of(wanted, status));
    }
    let client = Registries::admin(&registries.target);
    let found: BTreeSet<String> = client.tags("ci").await.unwrap().into_iter().collect();
    assert_eq!(found, expected.keys().cloned().collect());

    registries.target.garbage_collect().await.unwrap();
    let mut contents = BTreeMap::new();
    for wanted in &wanted {
        for image in [Some(&wanted.image), wanted.old.as_ref()]
            .into_iter()
            .flatten()
        {
            contents.insert(image.digest(), image);
        }
    }
    for (tag, digest) in &expected {
        let image = contents[digest];
        let manifest = client.manifest("ci", tag).await.unwrap().unwrap();
        assert_eq!(manifest.bytes, image.manifest, "{tag}");
        assert_eq!(manifest.media_type, image.media_type, "{tag}");
        let below = client.pull("ci", digest).await.unwrap();
        assert_eq!(below, image.manifest_digests(), "{tag}");
    }
    let log = registries.target.log().requests().unwrap();
    let mounts = log.iter().filter(|r| {
        r.method == "POST" && r.status == 201 && r.query.contains("from=team%2Fsrc")
            || r.query.contains("from=team/src") && r.status == 201
    });
    let blobs: BTreeSet<String> = wanted[..5]
        .iter()
        .flat_map(|w| w.image.blob_digests())
        .collect();
    assert_eq!(mounts.count(), blobs.len(), "each blob is mounted once");
}

// === sources that are gone ===

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_gone_fails_a_group_and_moves_no_float_of_it() {
    let stage = Stage::new("gone").await;
    let registry = Registry::start(audited()).await.unwrap();
    let host = registry.host();
    let olds: Vec<String> = ["a", "b", "c"]
        .map(|t| seeded(&registry, "ci", t, &format!("old {t}")))
        .into();
    let new = seeded(&registry, "src/x", "new", "new");
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let source = format!("{host}/src/x@{new}");
    let gone = format!("{host}/src/x@{}", absent());
    let float = |tag: &str| format!("{host}/ci:{tag}");
    let images = spec(&[
        (&source, &float("a")),
        (&gone, &float("b")),
        (&source, &float("c")),
    ]);
    stage.create("group", &images).await;
    let done = stage.finished("group", PATIENCE).await;
    assert_eq!(phase(&done), "Failed");
    assert_eq!(condition(&done, "Failed").0, "True");
    assert_eq!(condition(&done, "Failed").1, "SourceGone");
    assert_eq!(condition(&done, "Complete").0, "False");
    assert_eq!(condition(&done, "Staged").0, "False");
    assert_eq!(condition(&done, "Progressing").0, "False");
    let status = done.status.unwrap();
    assert_eq!(status.committed, None);
    assert_eq!(status.progress.as_deref(), Some("0/3"));
    let reasons: Vec<_> = status.images.iter().map(|i| i.reason.as_deref()).collect();
    assert_eq!(reasons, [Some("Held"), Some("SourceGone"), Some("Held")]);
    for held in [&status.images[0], &status.images[2]] {
        assert_eq!(held.phase, "Failed");
        let message = held.message.as_deref().unwrap();
        assert!(message.contains(&float("b")), "{message}");
    }
    let message = status.images[1].message.as_deref().unwrap();
    assert!(message.contains(&gone), "{message}");
    for (tag, old) in ["a", "b", "c"].iter().zip(&olds) {
        let history = registry.history("ci", tag);
        assert_eq!(history.len(), 1, "{tag} moved: {history:?}");
        assert_eq!(registry.tags("ci")[*tag].to_string(), *old);
    }
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_images_are_posted_beside_one_whose_source_is_gone() {
    let stage = Stage::new("apart").await;
    let registry = Registry::start(audited()).await.unwrap();
    let host = registry.host();
    let old = seeded(&registry, "ci", "a", "old");
    let old_b = seeded(&registry, "ci", "b", "old b");
    let new = seeded(&registry, "src/x", "new", "new");
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let source = format!("{host}/src/x@{new}");
    let gone = format!("{host}/src/x@{}", absent());
    let mut images = spec(&[
        (&source, &format!("{host}/ci:a")),
        (&gone, &format!("{host}/ci:b")),
        (&source, &format!("{host}/ci:c")),
    ]);
    images["latch"] = json!("Independently");
    stage.create("apart", &images).await;
    let done = stage.finished("apart", PATIENCE).await;
    assert_eq!(phase(&done), "Failed");
    assert_eq!(condition(&done, "Failed").1, "SourceGone");
    let status = done.status.unwrap();
    assert_eq!(status.progress.as_deref(), Some("2/3"));
    let phases: Vec<_> = status.images.iter().map(|i| i.phase.as_str()).collect();
    assert_eq!(phases, ["Posted", "Failed", "Posted"]);
    let committed: Vec<_> = status.images.iter().map(|i| i.committed).collect();
    assert_eq!(committed, [Some(true), None, Some(true)]);
    let tags: BTreeMap<String, String> = registry
        .tags("ci")
        .into_iter()
        .map(|(tag, digest)| (tag, digest.to_string()))
        .collect();
    let prune = status.images[0].displaced[0].prune_tag.clone();
    let expected = BTreeMap::from([
        ("a".to_owned(), new.clone()),
        ("a_incoming".to_owned(), new.clone()),
        ("a__post1".to_owned(), new.clone()),
        ("a__pre".to_owned(), old.clone()),
        (prune, old),
        ("b".to_owned(), old_b),
        ("c".to_owned(), new.clone()),
        ("c_incoming".to_owned(), new),
    ]);
    assert_eq!(tags, expected);
    assert!(registry.audit_trail().is_empty());
}

// === existence checks that are not answered ===

async fn waits_out(stage: &Stage, registry: &Registry, name: &str, action: Action, reason: &str) {
    let host = registry.host();
    let old = seeded(registry, "ci", "f", "old");
    let new = seeded(registry, "src/x", "new", "new");
    let check = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("f");
    let fault = registry.add_rule(Rule::new(check.clone(), action));
    let images = spec(&[(&format!("{host}/src/x@{new}"), &format!("{host}/ci:f"))]);
    stage.create(name, &images).await;
    let waiting = stage
        .until(name, PATIENCE, |status| {
            let image = status.images.first();
            image.is_some_and(|i| {
                i.reason.as_deref() == Some(reason) && i.next_attempt_time.is_some()
            })
        })
        .await;
    assert_eq!(condition(&waiting, "Progressing").1, reason);
    let status = waiting.status.unwrap();
    assert_eq!(status.images[0].phase, "Pending");
    assert!(status.images[0].displaced.is_empty());
    assert_eq!(status.images[0].first_promotion, None);
    registry.wait_for(&check, 2, true).await;
    assert_eq!(registry.count(&Matcher::put_manifest()), 0, "{name} wrote");
    registry.remove_rule(fault);
    let done = stage.finished(name, PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let image = &done.status.as_ref().unwrap().images[0];
    assert_eq!(image.attempts, None, "waiting uses no attempt");
    assert_eq!(image.displaced[0].digest, old);
    let tags = registry.tags("ci");
    assert_eq!(tags["f"].to_string(), new);
    assert_eq!(tags["f__pre"].to_string(), old);
    assert_eq!(tags[&image.displaced[0].prune_tag].to_string(), old);
    assert_eq!(tags["f__post1"].to_string(), new);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existence_check_answered_429_5xx_or_401_moves_no_float() {
    let stage = Stage::new("check").await;
    let [busy, broken, closed] = [
        Registry::start(audited()).await.unwrap(),
        Registry::start(audited()).await.unwrap(),
        Registry::start(audited()).await.unwrap(),
    ];
    let flags = [&busy, &broken, &closed].map(|r| format!("--plain-http={}", r.host()));
    let _controller = stage.controller(&flags.each_ref().map(String::as_str));
    let host = closed.host();
    let old = seeded(&closed, "ci", "f", "old");
    let new = seeded(&closed, "src/x", "new", "new");
    let check = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("f");
    closed.add_rule(Rule::new(check, Action::error(401, "UNAUTHORIZED")));
    let rejected = async {
        let images = spec(&[(&format!("{host}/src/x@{new}"), &format!("{host}/ci:f"))]);
        stage.create("closed", &images).await;
        let done = stage.finished("closed", PATIENCE).await;
        assert_eq!(phase(&done), "Failed");
        assert_eq!(condition(&done, "Failed").1, "Unauthorized");
        assert_eq!(closed.count(&Matcher::put_manifest()), 0);
        let tags = closed.tags("ci");
        assert_eq!(tags.len(), 1, "{tags:?}");
        assert_eq!(tags["f"].to_string(), old);
    };
    tokio::join!(
        rejected,
        waits_out(
            &stage,
            &busy,
            "busy",
            Action::TooMany { retry_after: None },
            "RateLimited"
        ),
        waits_out(
            &stage,
            &broken,
            "broken",
            Action::page(503),
            "RegistryUnavailable"
        ),
    );
}

// === requests that write nothing ===

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_writes_nothing_claims_nothing_and_asks_for_no_push_right() {
    let stage = Stage::new("plan").await;
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("bot", "pw").push("ci").pull("src"))
        .user(User::new("viewer", "pw").pull("ci").pull("src"));
    let registry = Registry::start(audited().auth(auth)).await.unwrap();
    let host = registry.host();
    let old = seeded(&registry, "ci", "f", "old");
    let new = seeded(&registry, "src/x", "new", "new");
    stage.secret("bot", &[(&host, "bot", "pw")]).await;
    stage.secret("viewer", &[(&host, "viewer", "pw")]).await;
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    // The look before the latch.
    let look = Matcher {
        credential: Some("bot".into()),
        ..Matcher::kind(RequestKind::Manifest)
            .method("GET")
            .reference("f")
    };
    let gate = registry.gate(GateSpec::before(look).nth(2));
    let mut images = spec(&[(&format!("{host}/src/x@{new}"), &format!("{host}/ci:f"))]);
    images["pushSecret"] = json!({"name": "bot"});
    stage.create("holder", &images).await;
    stage.reached(&gate).await;

    images["mode"] = json!("Plan");
    images["pushSecret"] = json!({"name": "viewer"});
    stage.create("plan", &images).await;
    let done = stage.finished("plan", PATIENCE).await;
    assert_eq!(phase(&done), "Planned");
    assert_eq!(condition(&done, "Complete").0, "True");
    assert_eq!(condition(&done, "Complete").1, "Planned");
    assert_eq!(condition(&done, "Failed").0, "False");
    let status = done.status.unwrap();
    assert_eq!(status.progress.as_deref(), Some("1/1"));
    assert_eq!(status.committed, None);
    assert_eq!(status.images[0].source.as_ref().unwrap().digest, new);
    // No tag is named that was never written.
    assert_eq!(status.images[0].would_displace.as_deref(), Some(&*old));
    assert_eq!(status.images[0].displaced, []);
    assert_eq!(status.images[0].first_promotion, None);
    let found = status.images[0].message.as_deref().unwrap();
    assert!(
        found.starts_with("would copy no blob; write _incoming, 1 prune tag, __pre, "),
        "{found}"
    );
    let viewer = Matcher {
        credential: Some("viewer".into()),
        ..Matcher::default()
    };
    for request in registry.requests(&viewer) {
        assert!(!request.is_write(), "{request:?}");
        assert!(!request.query.contains("push"), "{request:?}");
    }
    assert!(registry.count(&viewer) > 0);

    assert_eq!(registry.tags("ci")["f"].to_string(), old);
    gate.open();
    assert_eq!(phase(&stage.finished("holder", PATIENCE).await), "Posted");
    assert_eq!(registry.tags("ci")["f"].to_string(), new);
    assert!(registry.audit_trail().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_schema_cannot_refuse_fails_as_invalid_spec_before_anything_is_asked() {
    let stage = Stage::new("invalid").await;
    let _controller = stage.controller(&[]);
    // One float by two spellings.
    let source = "quay.io/a/src:new";
    let images = spec(&[(source, "quay.io/a/b:f"), (source, "quay.io:443/a/b:f")]);
    stage.create("twice", &images).await;
    let done = stage.finished("twice", PATIENCE).await;
    assert_eq!(phase(&done), "Failed");
    let (truth, reason, message) = condition(&done, "Failed");
    assert_eq!((truth, reason), ("True", "InvalidSpec"));
    assert!(message.contains("spec.images[1].float"), "{message}");
    assert_eq!(condition(&done, "Complete").0, "False");
    assert_eq!(condition(&done, "Staged").0, "False");
    let status = done.status.as_ref().unwrap();
    assert_eq!(status.observed_generation, done.metadata.generation);
    assert_eq!(status.images[0].reason.as_deref(), Some("InvalidSpec"));
    let events = stage.events_until("twice", "InvalidSpec", PATIENCE).await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].type_.as_deref(), Some("Warning"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_expire_and_referrers_that_were_not_copied_are_told_by_events_and_a_condition() {
    let stage = Stage::new("noticed").await;
    let bot = User::new("bot", "bot-pw").push("ci").pull("src");
    let options = audited().auth(Auth::new(AuthMode::Bearer).user(bot));
    let registry = Registry::start(options).await.unwrap();
    let host = registry.host();
    seeded(&registry, "ci", "f", "old");
    let mut image = ImageSpec::new(Shape::Docker, "labelled");
    image
        .labels
        .insert("quay.expires-after".into(), json!("2w"));
    registry.seed_spec("src/x", "new", &image).unwrap();
    let refused = Action::error(403, "DENIED");
    registry.add_rule(Rule::new(Matcher::kind(RequestKind::Referrers), refused));
    stage.secret("push", &[(&host, "bot", "bot-pw")]).await;
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    let mut images = spec(&[
        (&format!("{host}/src/x:new"), &format!("{host}/ci:f")),
        (&format!("{host}/src/x:new"), &format!("{host}/ci:g")),
    ]);
    images["pushSecret"] = json!({"name": "push"});
    images["referrers"] = json!("BestEffort");
    stage.create("noticed", &images).await;
    let done = stage.finished("noticed", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let (truth, reason, message) = condition(&done, "Expiring");
    assert_eq!((truth, reason), ("True", "Expiring"));
    assert!(
        message.contains("/ci:") && message.contains("quay.expires-after=2w"),
        "{message}"
    );
    let events = stage.events_until("noticed", "Promoted", PATIENCE).await;
    // Those of one reason are counted in one event.
    for reason in ["Expiring", "ReferrersFailed"] {
        let told = events
            .iter()
            .filter(|e| e.reason.as_deref() == Some(reason));
        let warnings = told.filter(|e| e.type_.as_deref() == Some("Warning"));
        assert_eq!(warnings.count(), 1, "{events:#?}");
    }
    assert!(registry.audit_trail().is_empty());
}
