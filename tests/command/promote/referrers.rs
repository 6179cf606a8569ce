//! What refers to an image goes with it: from one registry to another, whatever either can, and however often it is interrupted.

use std::time::{Duration, Instant};

use futures::future::join_all;
use quaylike::{
    Action, Digest, GateSpec, Image, ImageBuilder, Layer, Matcher, Moment, Options, Registry,
    RequestKind, Rule, Settings,
};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, document, image, put, verdict};

/// Sources on one registry, floats on another that looks for dangling tags after every change.
struct Pair {
    ground: Ground,
    sources: Registry,
    image: Image,
    old: Digest,
}

fn referrer(to: &Image, kind: &str) -> Image {
    let artifact = ImageBuilder::artifact(kind).layer(Layer::named(kind));
    artifact.referring_to(to, kind).build().unwrap()
}

fn kind() -> Matcher {
    Matcher::kind(RequestKind::Referrers)
}

fn name(digest: Digest, suffix: &str) -> String {
    format!("{}{suffix}", digest.to_string().replace(':', "-"))
}

impl Pair {
    /// `apis`: whether the sources' and the floats' registry have the API.
    async fn new(apis: [bool; 2]) -> Self {
        let [source, target] = apis.map(|referrers| Settings {
            audit: true,
            referrers,
            ..Settings::default()
        });
        let ground = Ground::with(Options::default().settings(target)).await;
        let sources = Registry::start(Options::default().settings(source))
            .await
            .unwrap();
        let image = image("new");
        sources.seed_image("src/x", "a", &image).unwrap();
        let old = ground.seed("ci", "a", "old");
        Self {
            ground,
            sources,
            image,
            old,
        }
    }

    /// Adds a referrer, held where subjects hold.
    fn refer(&self, to: &Image, kind: &str) -> Image {
        let referrer = referrer(to, kind);
        self.sources.seed_untagged("src/x", &referrer).unwrap();
        referrer
    }

    /// What cosign would put beside the image.
    fn sign(&self, registry: &Registry, repository: &str, seed: &str) -> Digest {
        let tag = name(self.image.digest(), ".sig");
        registry.seed_image(repository, &tag, &image(seed)).unwrap()
    }

    fn documents(&self, floats: &[&str], referrers: &str, attempts: u32) {
        let request = |float: &&str| {
            let source = format!("{}/src/x@{}", self.sources.host(), self.image.digest());
            let images =
                json!([{"source": source, "float": self.ground.at(&format!("ci:{float}"))}]);
            let spec = json!({"images": images, "referrers": referrers, "attempts": attempts});
            document(&format!("to-{float}"), &spec)
        };
        let documents: Vec<Value> = floats.iter().map(request).collect();
        self.ground.documents_anew(&documents);
    }

    fn plain(&self) -> String {
        format!("--plain-http={}", self.sources.host())
    }

    async fn promote(&self) -> Run {
        self.ground.promote(&["-o", "json", &self.plain()]).await
    }

    /// Promotes to `a` and asserts that this went well.
    async fn posted(&self, referrers: &str) -> Run {
        self.documents(&["a"], referrers, 5);
        let run = self.promote().await.exits(0);
        assert_eq!(
            verdict(&run.items()[0]),
            ("Posted", "Promoted"),
            "{}",
            run.stderr
        );
        self.ground.assert_never_dangling();
        run
    }

    fn there(&self, image: &Image) -> bool {
        self.ground
            .registry
            .manifest("ci", image.digest())
            .is_some()
    }

    fn list(&self) -> Option<Vec<Digest>> {
        let tag = name(self.image.digest(), "");
        let list = self.ground.registry.tagged("ci", &tag)?;
        Some(list.children.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_and_theirs_are_there_before_the_float_moves_and_stay() {
    let pair = Pair::new([true, true]).await;
    let hold = Duration::from_secs(5);
    pair.ground.registry.update(|settings| settings.hold = hold);
    pair.sources.update(|settings| settings.referrers_page = 1);
    let found: Vec<Image> = ["sig", "sbom", "att"]
        .iter()
        .map(|kind| pair.refer(&pair.image, kind))
        .collect();
    let nested = pair.refer(&found[1], "sig-of-sbom");
    let (plain, gate) = (
        pair.plain(),
        GateSpec {
            matcher: put("a"),
            nth: 1,
            moment: Moment::Before,
        },
    );
    let gate = pair.ground.registry.gate(gate);
    pair.documents(&["a"], "Require", 5);
    let running = pair.ground.start(&["-o", "json", &plain]);
    gate.reached().await;
    assert!(found.iter().chain([&nested]).all(|image| pair.there(image)));
    let began = Instant::now();
    // Nothing is read from the source any more.
    pair.sources.reset_log();
    gate.open();
    let run = running.ended().await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert_eq!(pair.sources.count(&Matcher::default()), 0);
    tokio::time::sleep_until((began + hold + Duration::from_millis(500)).into()).await;
    assert!(found.iter().chain([&nested]).all(|image| pair.there(image)));
    assert_eq!(pair.list(), None, "the registry lists them itself");
    pair.ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_floats_registry_has_no_api_a_tag_lists_them_and_keeps_what_it_listed() {
    let pair = Pair::new([true, false]).await;
    pair.ground
        .registry
        .update(|settings| settings.hold = Duration::from_secs(5));
    let ours = [
        pair.refer(&pair.image, "sig"),
        pair.refer(&pair.image, "att"),
    ];
    let foreign = referrer(&pair.image, "foreign");
    let list = Image::index(vec![foreign.clone(), ours[0].clone()]).unwrap();
    let tag = name(pair.image.digest(), "");
    pair.ground.registry.seed_image("ci", &tag, &list).unwrap();
    let began = Instant::now();
    pair.posted("Require").await;
    let wanted = [foreign.digest(), ours[0].digest(), ours[1].digest()];
    assert_eq!(pair.list(), Some(wanted.to_vec()));
    let artifact = pair.ground.registry.tagged("ci", &tag).unwrap();
    let text = String::from_utf8(artifact.bytes.to_vec()).unwrap();
    assert!(text.contains(r#""artifactType":"att""#), "{text}");
    tokio::time::sleep_until((began + Duration::from_secs(8)).into()).await;
    assert!(pair.there(&foreign) && ours.iter().all(|image| pair.there(image)));
    // To another float of the same repository: everything is there.
    pair.ground.registry.reset_log();
    pair.documents(&["b"], "Require", 5);
    pair.promote().await.exits(0);
    assert_eq!(pair.ground.registry.count(&put(&tag)), 0);
    pair.ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_sources_registry_has_no_api_the_tag_that_lists_them_is_read() {
    let pair = Pair::new([false, true]).await;
    let listed = [referrer(&pair.image, "sig"), referrer(&pair.image, "att")];
    let list = Image::index(listed.to_vec()).unwrap();
    pair.sources
        .seed_image("src/x", &name(pair.image.digest(), ""), &list)
        .unwrap();
    pair.posted("Require").await;
    assert!(listed.iter().all(|image| pair.there(image)));
    assert_eq!(pair.list(), None);
    // One look, and another before it is believed; so for what each referrer would be referred to by, but for the pause.
    assert_eq!(pair.sources.count(&kind()), 2 + 2);
    pair.documents(&["b"], "BestEffort", 5);
    pair.sources.reset_log();
    pair.promote().await.exits(0);
    assert_eq!(
        pair.sources.count(&kind()),
        1,
        "remembered within a process"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_404_out_of_the_blue_is_not_believed_where_referrers_are_required() {
    let pair = Pair::new([true, true]).await;
    let found = pair.refer(&pair.image, "sig");
    pair.sources
        .add_rule(Rule::new(kind(), Action::page(404)).times(1));
    pair.posted("Require").await;
    assert!(pair.there(&found));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lists_referrers_without_saying_so_gets_no_tag_for_it() {
    let pair = Pair::new([true, true]).await;
    pair.ground
        .registry
        .update(|settings| settings.oci_subject = false);
    let found = pair.refer(&pair.image, "sig");
    pair.posted("Require").await;
    assert!(pair.there(&found));
    assert_eq!(pair.list(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_the_subject_itself_or_lists_strangers_is_no_list_of_referrers() {
    let children = vec![image("amd64"), image("arm64")];
    let subject = Image::index(children).unwrap();
    for strangers in [false, true] {
        for requirement in ["BestEffort", "Require"] {
            let mut pair = Pair::new([false, false]).await;
            pair.sources.seed_image("src/x", "a", &subject).unwrap();
            let tag = name(subject.digest(), "");
            let list = if strangers {
                Image::index(vec![image("stranger"), referrer(&subject, "sig")]).unwrap()
            } else {
                pair.ground
                    .registry
                    .seed_image("ci", &tag, &subject)
                    .unwrap();
                subject.clone()
            };
            pair.sources.seed_image("src/x", &tag, &list).unwrap();
            pair.image = subject.clone();
            let run = pair.posted(requirement).await;
            assert!(!run.stderr.contains("was not all copied"), "{}", run.stderr);
            assert!(!pair.there(&image("stranger")));
            let listed = strangers.then(|| vec![referrer(&subject, "sig").digest()]);
            let listed = listed.unwrap_or_else(|| subject.manifest.children.clone());
            assert_eq!(
                pair.list(),
                Some(listed),
                "{requirement}, strangers: {strangers}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cosign_named_keeps_its_name_and_is_written_once() {
    for apis in [[true, true], [false, false]] {
        let pair = Pair::new(apis).await;
        let signature = pair.sign(&pair.sources, "src/x", "signature");
        let tag = name(pair.image.digest(), ".sig");
        pair.documents(&["a", "b", "c"], "Require", 5);
        pair.promote().await.exits(0);
        assert_eq!(pair.ground.registry.tag("ci", &tag), Some(signature));
        assert_eq!(pair.ground.registry.count(&put(&tag)), 1);
        pair.ground.assert_never_dangling();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_digest_at_cosigns_tag_is_left_and_fails_the_image_only_where_required() {
    let pair = Pair::new([true, true]).await;
    let attested = pair.refer(&pair.image, "att");
    pair.sign(&pair.sources, "src/x", "theirs");
    let own = pair.sign(&pair.ground.registry, "ci", "own");
    let tag = name(pair.image.digest(), ".sig");
    pair.documents(&["a"], "Require", 1);
    let run = pair.promote().await.exits(1);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Failed", "ReferrersFailed"));
    let message = items[0]["status"]["images"][0]["message"].as_str().unwrap();
    assert!(
        message.contains(&tag) && message.contains("remove that tag"),
        "{message}"
    );
    assert_eq!(pair.ground.registry.tag("ci", "a"), Some(pair.old));
    pair.documents(&["b"], "BestEffort", 1);
    let run = pair.promote().await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    assert!(
        run.stderr.contains("was not all copied (1 failed)"),
        "{}",
        run.stderr
    );
    assert!(pair.there(&attested), "the others are copied");
    assert_eq!(pair.ground.registry.tag("ci", &tag), Some(own));
    pair.ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_look_up_is_waited_for_and_never_means_none() {
    let pair = Pair::new([true, true]).await;
    let found = pair.refer(&pair.image, "sig");
    let throttled = Action::TooMany { retry_after: None };
    pair.sources.add_rule(Rule::new(kind(), throttled).times(3));
    pair.posted("Require").await;
    assert!(pair.there(&found));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_look_up_moves_no_float_where_referrers_are_required_and_warns_elsewhere() {
    for (status, code) in [(403, "DENIED"), (409, "UNKNOWN")] {
        let pair = Pair::new([true, true]).await;
        pair.refer(&pair.image, "sig");
        pair.sources
            .add_rule(Rule::new(kind(), Action::error(status, code)));
        pair.documents(&["a"], "Require", 2);
        let run = pair.promote().await.exits(1);
        let items = run.items();
        assert_eq!(verdict(&items[0]), ("Failed", "ReferrersFailed"));
        assert_eq!(items[0]["status"]["images"][0]["attempts"], 2);
        assert_eq!(pair.ground.registry.tag("ci", "a"), Some(pair.old));
        pair.documents(&["b"], "BestEffort", 2);
        let run = pair.promote().await.exits(0);
        assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
        let told = run.stderr.matches("was not all copied (1 failed)").count();
        assert!(told >= 1, "{}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_referred_to_too_deep_or_too_often_is_not_copied_in_part_and_called_whole() {
    let pair = Pair::new([true, true]).await;
    let mut last = pair.refer(&pair.image, "one");
    for kind in ["two", "three"] {
        last = pair.refer(&last, kind);
    }
    pair.documents(&["a"], "Require", 1);
    let run = pair.promote().await.exits(1);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Failed", "ReferrersFailed"));
    let message = items[0]["status"]["images"][0]["message"].as_str().unwrap();
    assert!(message.contains("2 levels deep"), "{message}");
    let pair = Pair::new([true, true]).await;
    for number in 0..101 {
        pair.refer(&pair.image, &format!("kind-{number}"));
    }
    pair.documents(&["a"], "Require", 1);
    let run = pair.promote().await.exits(1);
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Failed", "ReferrersFailed"));
    let message = items[0]["status"]["images"][0]["message"].as_str().unwrap();
    assert!(message.contains("more than 100"), "{message}");
    assert_eq!(pair.ground.registry.tag("ci", "a"), Some(pair.old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_or_a_kill_at_any_of_its_writes_ends_like_an_undisturbed_run() {
    let seeded = async || {
        let pair = Pair::new([true, false]).await;
        pair.refer(&pair.image, "sig");
        pair.sign(&pair.sources, "src/x", "signature");
        pair
    };
    let calm = seeded().await;
    calm.posted("Require").await;
    let wanted = calm.ground.tags("ci");
    let tags = [
        name(calm.image.digest(), ""),
        name(calm.image.digest(), ".sig"),
    ];
    let lost = async |tag: &str| {
        let pair = seeded().await;
        let rule = Rule::new(put(tag), Action::LoseAnswer).times(1);
        pair.ground.registry.add_rule(rule);
        pair.posted("Require").await;
        assert_eq!(pair.ground.tags("ci"), wanted, "{tag}");
        assert_eq!(pair.ground.registry.count(&put(tag)), 1, "{tag}");
    };
    let killed = async |tag: &str, moment: Moment| {
        let pair = seeded().await;
        let spec = GateSpec {
            matcher: put(tag),
            nth: 1,
            moment,
        };
        let gate = pair.ground.registry.gate(spec);
        pair.documents(&["a"], "Require", 5);
        let running = pair.ground.start(&[&pair.plain()]);
        gate.reached().await;
        running.kill().await;
        gate.cut();
        pair.promote().await.exits(0);
        assert_eq!(pair.ground.tags("ci"), wanted, "{moment:?} {tag}");
        pair.ground.assert_never_dangling();
    };
    // What they do most is wait.
    let runs = tags.iter().map(|tag| async {
        futures::join!(
            lost(tag),
            killed(tag, Moment::Before),
            killed(tag, Moment::After)
        )
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_goes_away_while_its_referrers_are_looked_for_has_not_none() {
    let pair = Pair::new([false, true]).await;
    let tag = name(pair.image.digest(), ".sbom");
    let look = Matcher::kind(RequestKind::Manifest)
        .repository("src/x")
        .reference(&tag);
    let gate = pair.sources.gate(GateSpec {
        matcher: look,
        nth: 1,
        moment: Moment::Before,
    });
    pair.documents(&["a"], "Require", 1);
    let running = pair.ground.start(&["-o", "json", &pair.plain()]);
    gate.reached().await;
    pair.sources.delete_tag("src/x", "a").unwrap();
    gate.open();
    let run = running.ended().await.exits(1);
    assert_eq!(verdict(&run.items()[0]), ("Failed", "ReferrersFailed"));
    assert_eq!(pair.ground.registry.tag("ci", "a"), Some(pair.old));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_for_referrers_that_are_not_wanted_or_there_already() {
    let pair = Pair::new([true, true]).await;
    pair.refer(&pair.image, "sig");
    pair.posted("Ignore").await;
    let source = pair.ground.at(&format!("ci@{}", pair.image.digest()));
    let images = json!([{"source": source, "float": pair.ground.at("ci:b")}]);
    let spec = json!({"images": images, "referrers": "Require"});
    pair.ground.documents_anew(&[document("own", &spec)]);
    pair.promote().await.exits(0);
    for registry in [&pair.sources, &pair.ground.registry] {
        assert_eq!(registry.count(&kind()), 0);
    }
}
