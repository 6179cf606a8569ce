//! A run: a world, what users ask for in it, the faults, and how it has to end.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use quaylike::Digest;
use serde_json::{Value, json};

use super::api_server::{HOME, REQUESTS, STREAMS};
use super::clock;
use super::draws::Draws;
use super::faults::Fault;
use super::monitors::stream_mark;
use super::process::Options;
use super::registries::{FLOATS, PASSWORD, REPOSITORY, USERS};
use super::world::{Counts, Edit, World};

/// So long after the last fault everything has ended at the latest.
const PATIENCE: Duration = Duration::from_mins(40);

/// A request for promotion.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Duration,
    pub name: String,
    /// Numbers of floats.
    pub floats: Vec<u64>,
    pub together: bool,
    /// Who asks, in a namespace of that name.
    pub user: &'static str,
    pub wants: Wants,
    pub edits: Vec<(Duration, Edit)>,
}

/// What else a request for promotion asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub struct Wants {
    /// Its floats are taken back where one fails.
    pub rollback: bool,
    /// It has a gate, which is removed so much later.
    pub gate: Option<Duration>,
    /// What its floats have to be on.
    pub replaces: Option<Replaces>,
    /// The tags that its images were staged on are deleted.
    pub removes_incoming: bool,
    /// A tag of an image stream follows each float.
    pub streams: bool,
    /// Its first image is nowhere.
    pub sourceless: bool,
}

/// What a float has to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaces {
    /// What it is on when a world begins.
    Old,
    /// Nothing.
    Nothing,
    /// The image of the request before, where that has one for it.
    Last,
}

/// Everything that a run follows from.
#[derive(Clone, Debug)]
pub struct Scene {
    pub seed: u64,
    /// Where controllers run, and how they are set.
    pub places: Vec<(&'static str, Options)>,
    pub asked: Vec<Asked>,
    pub faults: Vec<Fault>,
    /// Floats that are not there when it begins.
    pub new: Vec<u64>,
    /// Each definition asked for names the Lease of whoever asks: as if nothing kept two installations apart.
    pub two_installations: bool,
    /// Whether clocks of places differ.
    pub skewed: bool,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Ran {
    pub wrong: Vec<String>,
    pub log: Vec<String>,
    pub lasted: Duration,
    pub counts: Counts,
    pub moves: u64,
    /// Faults that have not happened.
    pub left: Vec<Fault>,
    /// How each request has ended.
    pub ends: BTreeMap<String, String>,
}

impl Asked {
    /// A request with one image for each of these floats, all together.
    pub fn new(at: u64, name: &str, floats: &[u64]) -> Self {
        Self {
            at: Duration::from_secs(at),
            name: name.into(),
            floats: floats.into(),
            together: true,
            user: USERS[0],
            wants: Wants::default(),
            edits: Vec::new(),
        }
    }
}

impl Scene {
    /// Two controllers, and these requests.
    pub fn new(seed: u64, asked: Vec<Asked>, faults: Vec<Fault>) -> Self {
        Self {
            seed,
            places: vec![("a", Options::default()), ("b", Options::default())],
            asked,
            faults,
            new: Vec::new(),
            two_installations: false,
            skewed: false,
        }
    }

    /// Runs it, on a thread of its own: all that it draws from the thread is new.
    pub fn run(&self) -> Ran {
        static WARM: Once = Once::new();
        // What a process makes only once (tables, caches) is made before a run that counts.
        WARM.call_once(|| {
            let asked = vec![Asked::new(1, "warm", &[0])];
            Scene::new(0, asked, Vec::new()).run_on_a_thread();
        });
        self.run_on_a_thread()
    }

    fn run_on_a_thread(&self) -> Ran {
        let scene = self.clone();
        let thread = std::thread::spawn(move || {
            clock::seed(scene.seed);
            scene.play()
        });
        thread.join().unwrap()
    }

    fn play(&self) -> Ran {
        let mut world = World::new(self.seed, self.faults.clone());
        self.furnish(&mut world);
        let mut calm = Duration::ZERO;
        loop {
            world.step();
            let busy = world.is_scripted() || unfinished(&world).next().is_some();
            calm = if busy { world.now } else { calm };
            let over = world.now > calm + Duration::from_secs(2);
            let last = self.asked.iter().map(|asked| asked.at).max();
            let late = world.now > last.unwrap_or_default() + PATIENCE;
            if over || late || !world.monitors.wrong.is_empty() {
                break;
            }
        }
        if world.monitors.wrong.is_empty() {
            self.judge(&mut world);
        }
        let ends = world
            .api
            .all(REQUESTS)
            .map(|object| (name(object), end(object)));
        Ran {
            ends: ends.collect(),
            lasted: world.now,
            counts: world.counts.clone(),
            moves: world.monitors.moves,
            left: world.faults_left().to_vec(),
            wrong: std::mem::take(&mut world.monitors.wrong),
            log: std::mem::take(&mut world.log),
        }
    }

    fn furnish(&self, world: &mut World) {
        let now = Timestamp::now();
        let draws = Draws(self.seed);
        let lease = format!("{HOME}/promotion-controller");
        let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
            "metadata": {"name": "promotionrequests.ci.openshift.io", "annotations": {"ci.openshift.io/lease": lease}}});
        world
            .api
            .create("customresourcedefinitions", definition, now);
        world.api.two_installations = self.two_installations;
        for home in [HOME, "elsewhere"] {
            let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
                "metadata": {"name": "promotion-controller", "namespace": home,
                    "annotations": {"promotion-controller.ci.openshift.io/made": "1"}}, "spec": {}});
            world.api.create("leases", lease, now);
        }
        for user in USERS {
            let account = json!({"username": user, "password": PASSWORD});
            let accounts = json!({"auths": {"quay.sim": account, "registry.sim": account}});
            let accounts = STANDARD.encode(accounts.to_string());
            let secret = json!({"kind": "Secret", "apiVersion": "v1", "type": "kubernetes.io/dockerconfigjson",
                "metadata": {"name": "registries", "namespace": user}, "data": {".dockerconfigjson": accounts}});
            world.api.create("secrets", secret, now);
        }
        let floats: std::collections::BTreeSet<u64> = self
            .asked
            .iter()
            .flat_map(|asked| asked.floats.clone())
            .collect();
        let mut at: BTreeMap<u64, Digest> = BTreeMap::new();
        for float in floats.iter().filter(|float| !self.new.contains(float)) {
            at.insert(*float, world.registries.begin_at(&format!("f{float}")));
        }
        let mut last = BTreeMap::new();
        for asked in &self.asked {
            Self::furnish_request(world, asked, &at, &mut last);
        }
        for (number, (place, options)) in (0..).zip(&self.places) {
            let ahead = if self.skewed {
                draws.within("ahead", number, (0, 40))
            } else {
                0
            };
            world.settle(
                place,
                options,
                Duration::from_secs(ahead),
                Duration::from_millis(300 * number),
            );
        }
    }

    /// `old` is what floats are on when it begins, `last` the images of the request before.
    fn furnish_request(
        world: &mut World,
        asked: &Asked,
        old: &BTreeMap<u64, Digest>,
        last: &mut BTreeMap<u64, Digest>,
    ) {
        let wants = asked.wants;
        let (mut digests, mut images) = (Vec::new(), Vec::new());
        for (index, float) in asked.floats.iter().enumerate() {
            let (digest, mut source) = world.registries.source(&format!("{}-{float}", asked.name));
            if wants.sourceless && index == 0 {
                source = source.replace("@sha256:", "-gone@sha256:");
            }
            let mut image =
                json!({"source": source, "float": format!("{FLOATS}/{REPOSITORY}:f{float}")});
            let on = match wants.replaces {
                None => None,
                Some(Replaces::Nothing) => Some("None".to_owned()),
                Some(Replaces::Old) => old.get(float).map(Digest::to_string),
                Some(Replaces::Last) => last.get(float).map(Digest::to_string),
            };
            if let Some(on) = on {
                image["replaces"] = on.into();
            }
            if wants.streams {
                image["imageStreamTag"] = format!("s:f{float}").into();
            }
            digests.push(digest);
            images.push(image);
        }
        *last = asked
            .floats
            .iter()
            .copied()
            .zip(digests.iter().copied())
            .collect();
        world.monitors.expect(&asked.name, &digests);
        let latch = if asked.together {
            "Together"
        } else {
            "Independently"
        };
        let mut object = json!({
            "kind": "PromotionRequest", "apiVersion": "ci.openshift.io/v1alpha1",
            "metadata": {"name": asked.name, "namespace": asked.user},
            "spec": {"images": images, "latch": latch, "onFailure": if wants.rollback { "Rollback" } else { "Hold" }, "mode": "Promote", "attempts": 10,
                "deadlineSeconds": 7200, "ttlSecondsAfterFinished": 604_800, "suspend": false, "cancel": false,
                "pushSecret": {"name": "registries"}, "pullSecret": {"name": "registries"}},
        });
        let spec = &mut object["spec"];
        if let Some(after) = wants.gate {
            spec["gates"] = json!([{"name": "tests"}]);
            world.edit(asked.at + after, &asked.name, Edit::Open);
        }
        if wants.removes_incoming {
            spec["incoming"] = "Remove".into();
        }
        if wants.streams {
            spec["imageStreamNamespace"] = STREAMS.into();
        }
        world.ask(asked.at, object);
        for (after, edit) in &asked.edits {
            world.edit(asked.at + *after, &asked.name, *edit);
        }
    }

    /// How it has to be in the end.
    fn judge(&self, world: &mut World) {
        let now = world.now;
        let mut wrong: Vec<String> = unfinished(world)
            .map(|object| format!("every request ends: {} is {}", name(object), end(object)))
            .collect();
        world.monitors.at_the_end(&world.registries, now);
        let mut newest: BTreeMap<String, (u64, &Value, usize)> = BTreeMap::new();
        for object in world.api.all(REQUESTS) {
            let order = world.monitors.order(&name(object));
            let images = object["spec"]["images"].as_array().into_iter().flatten();
            for (index, image) in images.enumerate() {
                let float = image["float"].as_str().unwrap_or_default().to_owned();
                if newest.get(&float).is_none_or(|(known, ..)| *known < order) {
                    newest.insert(float, (order, object, index));
                }
            }
        }
        for (float, (order, object, index)) in newest {
            let status = &object["status"]["images"][index];
            let tag = float.rsplit(':').next().unwrap_or_default();
            // A newer one that is gone may have moved the float, or ended this one.
            let followed = world.monitors.is_followed(tag, order);
            let cancelled = object["spec"]["cancel"] == true;
            if status["phase"] != "Posted" {
                // A group is superseded as a whole.
                let images = object["spec"]["images"].as_array().into_iter().flatten();
                let floats = images.filter_map(|image| image["float"].as_str()?.rsplit_once(':'));
                let mut tags = floats.map(|(_, tag)| tag);
                let excused = |tag: &str| {
                    world.monitors.is_followed(tag, order) || world.monitors.is_troubled(tag)
                };
                let wants = self.asked.iter().find(|asked| asked.name == name(object));
                let may_fail = wants
                    .is_some_and(|asked| asked.wants.sourceless || asked.wants.replaces.is_some());
                if !tags.any(excused) && !cancelled && !may_fail {
                    let end = end(object);
                    wrong.push(format!(
                        "the newest wins: {} of {float} has ended as {end}",
                        name(object)
                    ));
                }
                continue;
            }
            let at = world.registries.tag(tag);
            let shown = at.map(|digest| digest.to_string()).unwrap_or_default();
            let excused = followed || world.monitors.is_troubled(tag);
            if status["source"]["digest"] != shown.as_str() && !excused {
                wrong.push(format!(
                    "the newest wins: {float} is at {shown}, not at {}'s",
                    name(object)
                ));
            }
        }
        wrong.extend(references(world));
        let at = now.as_secs_f64();
        let wrong = wrong.into_iter().map(|what| format!("{at:.3} {what}"));
        world.monitors.wrong.extend(wrong.collect::<Vec<_>>());
    }
}

/// What is wrong with image stream tags: each is the newest request's of those that set it.
fn references(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut newest: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    for object in world.api.all(REQUESTS) {
        let order = world.monitors.order(&name(object));
        let images = object["spec"]["images"].as_array().into_iter().flatten();
        for (index, image) in images.enumerate() {
            let Some(tag) = image["imageStreamTag"].as_str() else {
                continue;
            };
            let status = &object["status"]["images"][index];
            match status["reference"]["state"].as_str() {
                Some("Set") => {
                    let digest = status["source"]["digest"].as_str().unwrap_or_default();
                    let set = (order, format!("{FLOATS}/{REPOSITORY}@{digest}"));
                    let known = newest.entry(tag).or_default();
                    *known = set.max(known.clone());
                }
                Some("Superseded") => {}
                _ if status["phase"] != "Posted" => {}
                state => wrong.push(format!(
                    "every request ends: {tag} of {} is {state:?}",
                    name(object)
                )),
            }
        }
    }
    let stream = world.api.get("imagestreams", STREAMS, "s");
    for (tag, set) in newest {
        let shown = stream.and_then(|stream| stream_mark(stream, tag.trim_start_matches("s:")));
        // Who set it later may have been deleted.
        if shown.as_ref().is_none_or(|(order, _)| *order <= set.0) && shown != Some(set.clone()) {
            wrong.push(format!("the newest wins: {tag} is {shown:?}, not {set:?}"));
        }
    }
    wrong
}

fn unfinished(world: &World) -> impl Iterator<Item = &Value> {
    let open = |object: &&Value| object["status"]["completionTime"].is_null();
    world.api.all(REQUESTS).filter(open)
}

fn name(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .into()
}

/// How a request has ended, with the reasons of its images.
fn end(object: &Value) -> String {
    let status = &object["status"];
    let images = status["images"].as_array().into_iter().flatten();
    let reasons = images.filter_map(|image| image["reason"].as_str());
    let reasons: Vec<&str> = reasons.collect();
    let phase = status["phase"].as_str().unwrap_or("unseen");
    if reasons.is_empty() {
        phase.into()
    } else {
        format!("{phase} {}", reasons.join(" "))
    }
}
