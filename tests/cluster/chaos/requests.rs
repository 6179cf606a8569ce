//! What is asked for, one request after the other, and what must have come of all of it in the end.
//!
//! Nothing in a run is a reason for a request to fail or to be overtaken, and nobody else writes: so each request in its turn
//! moves each of its floats from its predecessor's image to its own, and every tag of the repository follows from that alone.

use std::collections::{BTreeMap, BTreeSet};

use promotion_controller::api::PromotionRequest;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::testbed::stage::phase;

/// Where sources are made.
pub trait Sources {
    /// Makes an image under a tag of the sources' repository; gives its digest.
    async fn make(&self, tag: &str, kind: usize) -> String;
    /// HOST/REPOSITORY
    fn repository(&self) -> String;
}

/// One image of a request.
pub struct Asked {
    /// The float's tag.
    pub float: String,
    /// What it is to show.
    pub digest: String,
    /// Its tag among the sources; none for one that the float showed earlier.
    pub tag: Option<String>,
}

/// One request.
pub struct Request {
    pub name: String,
    pub spec: Value,
    pub images: Vec<Asked>,
}

/// The requests of a run.
pub struct Requests {
    draws: StdRng,
    /// HOST/REPOSITORY
    repository: String,
    floats: Vec<String>,
    pub asked: Vec<Request>,
}

impl Requests {
    /// For these floats of a repository.
    pub fn new(seed: u64, repository: String, floats: &[String]) -> Self {
        Self {
            draws: StdRng::seed_from_u64(seed),
            repository,
            floats: floats.to_vec(),
            asked: Vec::new(),
        }
    }

    /// The next one: half of them for one float, half for two or three.
    pub async fn next(&mut self, sources: &impl Sources) -> &Request {
        let number = self.asked.len();
        let several = if self.draws.random_bool(0.5) {
            self.draws.random_range(2..=3)
        } else {
            1
        };
        let floats: Vec<String> = self
            .floats
            .sample(&mut self.draws, several)
            .cloned()
            .collect();
        let mut images = Vec::new();
        let mut specs = Vec::new();
        for (place, float) in floats.into_iter().enumerate() {
            let (asked, source) = if let Some(digest) = self.earlier(&float) {
                let source = format!("{}@{digest}", self.repository);
                let tag = None;
                (Asked { float, digest, tag }, source)
            } else {
                let tag = format!("r{number}-{place}");
                let digest = sources.make(&tag, self.draws.random_range(0..4)).await;
                let by_tag = self.draws.random_bool(0.2);
                let reference = if by_tag {
                    format!(":{tag}")
                } else {
                    format!("@{digest}")
                };
                let source = format!("{}{reference}", sources.repository());
                let tag = Some(tag);
                (Asked { float, digest, tag }, source)
            };
            let float = format!("{}:{}", self.repository, asked.float);
            specs.push(json!({"source": source, "float": float}));
            images.push(asked);
        }
        let latch = if self.draws.random_bool(0.5) {
            "Together"
        } else {
            "Independently"
        };
        self.asked.push(Request {
            name: format!("r{number}"),
            spec: json!({"images": specs, "latch": latch}),
            images,
        });
        &self.asked[number]
    }

    /// Sometimes, an image that was promoted to this float before.
    fn earlier(&mut self, float: &str) -> Option<String> {
        if !self.draws.random_bool(0.15) {
            return None;
        }
        let images = self.asked.iter().flat_map(|request| &request.images);
        let images = images.filter(|image| image.float == float && image.tag.is_some());
        let digests: Vec<&String> = images.map(|image| &image.digest).collect();
        digests
            .choose(&mut self.draws)
            .map(|&digest| digest.clone())
    }
}

/// What must be there in the end.
#[derive(Default)]
pub struct Outcome {
    /// Every tag of the floats' repository, with its digest.
    pub tags: BTreeMap<String, String>,
    /// Every digest that each tag has had, in order: but one for a prune tag.
    pub histories: BTreeMap<String, Vec<String>>,
    /// What status says otherwise: about what, and what is wrong.
    pub complaints: Vec<(String, String)>,
    /// The most attempts that an image has used.
    pub attempts: i32,
}

impl Outcome {
    /// What follows from where the floats began and what was asked for, in order; `done` is compared with it.
    pub fn of(
        begun: &BTreeMap<String, String>,
        asked: &[Request],
        done: &[PromotionRequest],
    ) -> Self {
        let mut outcome = Self::default();
        for (float, digest) in begun {
            outcome.set(float.clone(), digest);
        }
        let mut order = 0;
        for request in asked {
            let named =
                |object: &&PromotionRequest| object.metadata.name.as_deref() == Some(&request.name);
            let Some(object) = done.iter().find(named) else {
                outcome.complain(&request.name, "is not there any more");
                continue;
            };
            let status = object.status.clone().unwrap_or_default();
            let place = status.order.unwrap_or_default();
            if phase(object) != "Posted" || place <= order {
                outcome.complain(&request.name, &format!("{status:#?}"));
            }
            order = place;
            if status.images.len() != request.images.len() {
                continue;
            }
            for (image, found) in request.images.iter().zip(&status.images) {
                outcome.attempts = outcome.attempts.max(found.attempts.unwrap_or_default());
                let before = outcome.tags.get(&image.float).cloned();
                let unchanged = before.as_ref() == Some(&image.digest);
                let displaced = before.filter(|_| !unchanged);
                let mut pins = found.displaced.iter().map(|pin| &pin.digest);
                let wrong = found.phase != "Posted"
                    || !found.rescued.is_empty()
                    || found.unchanged.unwrap_or_default() != unchanged
                    || pins.next() != displaced.as_ref()
                    || pins.next().is_some();
                if wrong {
                    let expected = format!(
                        "{} from {displaced:?} (unchanged: {unchanged})",
                        image.digest
                    );
                    outcome.complain(&request.name, &format!("{expected}: {found:#?}"));
                }
                if unchanged {
                    continue;
                }
                outcome.moved(
                    image,
                    displaced,
                    found.displaced.first().map(|pin| pin.prune_tag.clone()),
                );
            }
        }
        outcome
    }

    fn moved(&mut self, image: &Asked, displaced: Option<String>, prune_tag: Option<String>) {
        let Asked { float, digest, .. } = image;
        self.set(format!("{float}_incoming"), digest);
        if let Some(displaced) = displaced {
            self.set(format!("{float}__pre"), &displaced);
            self.set(format!("{float}__post1"), digest);
            let prune_tag = prune_tag.unwrap_or_default();
            let taken = self.tags.contains_key(&prune_tag);
            self.set(prune_tag.clone(), &displaced);
            let own = prune_tag.ends_with(&format!("_prune_{float}"));
            if taken || !own {
                self.complain(
                    float,
                    &format!("{prune_tag} is the prune tag of two, or of another"),
                );
            }
        }
        self.set(float.clone(), digest);
    }

    fn set(&mut self, tag: String, digest: &str) {
        let history = self.histories.entry(tag.clone()).or_default();
        if history.last().is_none_or(|last| last != digest) {
            history.push(digest.to_owned());
        }
        self.tags.insert(tag, digest.to_owned());
    }

    fn complain(&mut self, about: &str, what: &str) {
        self.complaints
            .push((about.to_owned(), format!("{about}: {what}")));
    }

    /// Compares with the tags that are there.
    pub fn compare_tags(&mut self, found: &BTreeMap<String, String>) {
        let names: BTreeSet<String> = self.tags.keys().chain(found.keys()).cloned().collect();
        for name in names {
            let (expected, found) = (self.tags.get(&name), found.get(&name));
            if expected != found {
                let float = name.split("_prune_").last().unwrap_or(&name).to_owned();
                let what = format!("tag {name} is {found:?} and not {expected:?}");
                self.complain(&float, &what);
            }
        }
    }

    /// Compares with the digests that a tag has had, of which only the newest are known.
    pub fn compare_history(&mut self, tag: &str, found: &[Option<String>]) {
        let mut known: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
        known.dedup();
        let expected = self
            .histories
            .get(tag)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let expected: Vec<Option<&str>> = expected.iter().map(|d| Some(d.as_str())).collect();
        let whole = found.len() < 256;
        let right = if whole {
            known == expected
        } else {
            expected.ends_with(&known)
        };
        if !right {
            let what = format!("tag {tag} went through {known:#?} and not {expected:#?}");
            self.complain(tag, &what);
        }
    }
}
