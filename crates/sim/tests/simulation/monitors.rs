//! What must hold at every instant, seen from outside: at the sending of a tag write, at its landing, and at each save.
//!
//! In: what the world sees. Out: what is wrong, in words, the first of it first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quaylike::Digest;
use serde_json::Value;

use super::api_server::{ApiServer, Change, REQUESTS};
use super::faults::Role;
use super::registries::{REPOSITORY, Registries};

/// A tag write on its way.
#[derive(Clone, Debug)]
pub struct TagWrite {
    pub process: String,
    pub tag: String,
    pub digest: Digest,
    pub sent: Duration,
    /// Whose promotion it serves, where that can be told.
    pub owner: Option<String>,
}

/// What is remembered of a request for promotion, also when it is gone.
#[derive(Clone, Debug, Default)]
struct Asked {
    floats: Vec<String>,
    order: u64,
    began: Option<Duration>,
    committed: bool,
    committed_images: BTreeSet<usize>,
    rollback: bool,
}

/// What has been seen so far.
#[derive(Default)]
pub struct Monitors {
    /// What is wrong.
    pub wrong: Vec<String>,
    /// Moves of floats.
    pub moves: u64,
    asked: BTreeMap<String, Asked>,
    owners: BTreeMap<Digest, (String, usize)>,
    displaced: BTreeSet<(String, Digest)>,
    dangled: usize,
}

impl Monitors {
    /// A request for promotion that is going to be: the digests of its images, in order.
    pub fn expect(&mut self, name: &str, digests: &[Digest]) {
        for (index, digest) in digests.iter().enumerate() {
            self.owners.insert(*digest, (name.to_owned(), index));
        }
    }

    /// Whose image a digest is.
    pub fn owner(&self, digest: Digest) -> Option<&str> {
        self.owners.get(&digest).map(|(name, _)| name.as_str())
    }

    /// A request's place in the order.
    pub fn order(&self, name: &str) -> u64 {
        self.asked.get(name).map_or(0, |asked| asked.order)
    }

    /// Whether there ever was a newer request for a float.
    pub fn is_followed(&self, float: &str, order: u64) -> bool {
        let newer =
            |asked: &Asked| asked.order > order && asked.floats.iter().any(|of| of == float);
        self.asked.values().any(newer)
    }

    fn says(&mut self, now: Duration, what: &str) {
        self.wrong.push(format!("{:.3} {what}", now.as_secs_f64()));
    }

    /// A tag write leaves its process.
    pub fn sent(&mut self, write: &TagWrite, api: &ApiServer, now: Duration) {
        let holders: BTreeSet<&str> = api.holders().collect();
        if !holders.contains(write.process.as_str()) {
            let what = format!(
                "one leader: {} puts {} while the Lease is held by {holders:?}",
                write.process, write.tag
            );
            self.says(now, &what);
        } else if holders.len() > 1 {
            let what = format!(
                "one installation: {} puts {} beside {holders:?}",
                write.process, write.tag
            );
            self.says(now, &what);
        }
        let at_work = Self::at_work(api, Role::of(&write.tag).1);
        if let (Some(owner), Some(other)) = (&write.owner, at_work)
            && *owner != other
        {
            let tag = &write.tag;
            let what = format!("one writer: {tag} is put for {owner} while {other} is at work");
            self.says(now, &what);
        }
        if Role::of(&write.tag).0 == Role::Float
            && let Some((name, index)) = self.owners.get(&write.digest).cloned()
            && let Some(asked) = self.asked.get(&name)
            && !asked.committed
            && !asked.committed_images.contains(&index)
        {
            let what = format!(
                "committed first: {} is put for {name}, which is not committed",
                write.tag
            );
            self.says(now, &what);
        }
    }

    /// A tag write is done; the tag was on `before`.
    pub fn landed(
        &mut self,
        write: &TagWrite,
        before: Option<Digest>,
        registries: &Registries,
        now: Duration,
    ) {
        let (role, float) = Role::of(&write.tag);
        // A prune tag binds one digest: whatever lands there is the same.
        if let Some(owner) = write.owner.as_ref().filter(|_| role != Role::Prune) {
            let other = self.asked.iter().find(|(name, asked)| {
                *name != owner
                    && asked.floats.iter().any(|of| of == float)
                    && asked.began.is_some_and(|began| began > write.sent)
            });
            if let Some((other, _)) = other {
                let what = format!(
                    "nothing lands late: {} of {owner}, sent at {:.3}, lands when {other} has begun",
                    write.tag,
                    write.sent.as_secs_f64()
                );
                self.says(now, &what);
            }
        }
        let tags = registries.floats().tags(REPOSITORY);
        let left = before.filter(|before| !tags.values().any(|digest| digest == before));
        if let Some(left) = left {
            self.says(
                now,
                &format!("nothing lost: {} was the last tag of {left}", write.tag),
            );
        }
        if role == Role::Float && before != Some(write.digest) {
            self.moved(write, before, registries, now);
        }
        let dangled = registries.dangled();
        for found in &dangled[self.dangled.min(dangled.len())..] {
            self.says(
                now,
                &format!("never dangling: {} misses {}", found.tag, found.missing),
            );
        }
        self.dangled = dangled.len();
    }

    fn moved(
        &mut self,
        write: &TagWrite,
        before: Option<Digest>,
        registries: &Registries,
        now: Duration,
    ) {
        self.moves += 1;
        let float = &write.tag;
        let Some(before) = before else {
            return;
        };
        let tags = registries.floats().tags(REPOSITORY);
        let pinned = |(tag, digest): (&String, &Digest)| {
            Role::of(tag) == (Role::Prune, float.as_str()) && *digest == before
        };
        if !tags.iter().any(pinned) {
            self.says(
                now,
                &format!("nothing lost: {float} leaves {before}, which no prune tag pins"),
            );
        }
        self.displaced.insert((float.clone(), before));
        let order = |digest: &Digest| {
            let (name, _) = self.owners.get(digest)?;
            Some((name.clone(), self.asked.get(name)?.clone()))
        };
        let (from, to) = (order(&before), order(&write.digest));
        let rolls_back = from.as_ref().is_some_and(|(_, from)| from.rollback);
        let back = match (&from, &to) {
            (Some((_, from)), Some((_, to))) => to.order < from.order,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if back && !rolls_back {
            let name = |asked: &Option<(String, Asked)>| {
                asked
                    .as_ref()
                    .map_or("nobody's", |(name, _)| name.as_str())
                    .to_owned()
            };
            let what = format!(
                "never back: {float} goes from {} to {}",
                name(&from),
                name(&to)
            );
            self.says(now, &what);
        }
    }

    /// A change of an object.
    pub fn changed(&mut self, change: &Change, now: Duration) {
        if change.key.0 != REQUESTS {
            return;
        }
        let name = &change.key.2;
        if let (Some(before), Some(after)) = (&change.before, &change.after) {
            for what in regressions(&before["status"], &after["status"]) {
                self.says(now, &format!("saves only go on: {name}: {what}"));
            }
        }
        let Some(after) = &change.after else {
            return;
        };
        self.remember(name, after, now);
        let images = after["status"]["images"].as_array();
        let superseded = images
            .into_iter()
            .flatten()
            .any(|image| image["reason"] == "Superseded");
        let order = self.asked[name].order;
        let cause = |(other, asked): (&String, &Asked)| {
            let shares = asked
                .floats
                .iter()
                .any(|float| self.asked[name].floats.contains(float));
            other != name && asked.order > order && shares
        };
        if superseded && !self.asked.iter().any(cause) {
            self.says(
                now,
                &format!("superseded with cause: nothing newer shares a float with {name}"),
            );
        }
    }

    fn remember(&mut self, name: &str, object: &Value, now: Duration) {
        let status = &object["status"];
        let floats = object["spec"]["images"].as_array().into_iter().flatten();
        let floats = floats.filter_map(|image| image["float"].as_str()?.rsplit_once(':'));
        let floats = floats.map(|(_, tag)| tag.to_owned()).collect();
        let version = object["metadata"]["resourceVersion"].as_str();
        let asked = self.asked.entry(name.to_owned()).or_default();
        asked.floats = floats;
        if let Some(order) = status["order"].as_u64() {
            asked.order = order;
        } else if let Some(version) = version.and_then(|version| version.parse().ok()) {
            asked.order = version;
        }
        if !status["startTime"].is_null() {
            asked.began.get_or_insert(now);
        }
        asked.committed |= status["committed"] == true;
        asked.rollback |= status["rollback"] == true;
        let images = status["images"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate();
        let committed = images.filter(|(_, image)| image["committed"] == true);
        asked
            .committed_images
            .extend(committed.map(|(index, _)| index));
    }

    /// Who is at work on a float: it has begun and has not ended.
    pub fn at_work(api: &ApiServer, float: &str) -> Option<String> {
        let suffix = format!(":{float}");
        let mut all = api.all(REQUESTS).filter(|object| {
            let status = &object["status"];
            let images = object["spec"]["images"].as_array();
            let mut floats = images
                .into_iter()
                .flatten()
                .filter_map(|image| image["float"].as_str());
            !status["startTime"].is_null()
                && status["completionTime"].is_null()
                && floats.any(|of| of.ends_with(&suffix))
        });
        let first = all.next()?;
        // Under `Independently` there may be two.
        let alone = all.next().is_none();
        alone.then(|| {
            first["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    }

    /// All that was displaced is still to be had.
    pub fn at_the_end(&mut self, registries: &Registries, now: Duration) {
        let tags = registries.floats().tags(REPOSITORY);
        for (float, digest) in self.displaced.clone() {
            let pinned = |(tag, at): (&String, &Digest)| {
                Role::of(tag) == (Role::Prune, float.as_str()) && *at == digest
            };
            if !tags.iter().any(pinned) {
                self.says(
                    now,
                    &format!("nothing lost: {digest}, once at {float}, has no prune tag"),
                );
            }
        }
    }
}

/// What a save takes back that must stay.
fn regressions(before: &Value, after: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if !before["completionTime"].is_null() && before["images"] != after["images"] {
        wrong.push("an ended request has changed".to_owned());
    }
    if before["committed"] == true && after["committed"] != true {
        wrong.push("its commit is gone".to_owned());
    }
    for field in ["order", "startTime"] {
        if !before[field].is_null() && before[field] != after[field] {
            wrong.push(format!("{field} has changed"));
        }
    }
    let images = |status: &Value| status["images"].as_array().cloned().unwrap_or_default();
    for (old, new) in images(before).iter().zip(images(after)) {
        let (from, to) = (&old["phase"], &new["phase"]);
        let final_ = ["Posted", "Failed", "Cancelled", "Planned"];
        let ended = final_.iter().any(|phase| from == phase);
        if from != to && (ended || (from == "Latched" && to != "Posted" && to != "Failed")) {
            wrong.push(format!("an image goes from {from} to {to}"));
        }
        let digest = &old["source"]["digest"];
        if !digest.is_null() && *digest != new["source"]["digest"] {
            wrong.push("a source has changed".to_owned());
        }
    }
    wrong
}
