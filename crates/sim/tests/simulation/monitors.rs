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
use super::world::FREEZES;

/// A tag write on its way.
#[derive(Clone, Debug)]
pub struct TagWrite {
    pub process: String,
    pub tag: String,
    /// None: it is deleted.
    pub digest: Option<Digest>,
    pub sent: Duration,
    /// Whose promotion it serves, where that can be told.
    pub owner: Option<String>,
}

/// What is remembered of a request for promotion, also when it is gone.
#[derive(Clone, Debug, Default)]
struct Asked {
    floats: Vec<String>,
    replaces: BTreeMap<usize, String>,
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
    /// Where a request's images took their floats from.
    taken: BTreeMap<(String, String), Digest>,
    /// Images of somebody else.
    theirs: BTreeSet<Digest>,
    /// When somebody else last wrote a tag.
    meddled: BTreeMap<String, Duration>,
    /// Up to when a process has seen a tag.
    seen: BTreeMap<(String, String), Duration>,
    /// Floats that could not be promoted to at some time, by nobody's fault here.
    troubled: BTreeSet<String>,
    /// Floats that are frozen, since which version, and whether the leader says that it follows that.
    frozen: Option<(String, u64, bool)>,
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

    /// Whether a request takes its floats back.
    pub fn takes_back(&self, name: &str) -> bool {
        self.asked.get(name).is_some_and(|asked| asked.rollback)
    }

    /// Somebody else writes a tag.
    pub fn meddled(&mut self, tag: &str, digest: Option<Digest>, now: Duration) {
        self.theirs.extend(digest);
        self.meddled.insert(tag.into(), now);
        self.trouble(Role::of(tag).1);
    }

    /// A float could not be promoted to.
    pub fn trouble(&mut self, float: &str) {
        self.troubled.insert(float.into());
    }

    /// Whether it may be that a float cannot be promoted to, or is not where it was put.
    pub fn is_troubled(&self, float: &str) -> bool {
        self.troubled.contains(float)
    }

    /// A process looks at a tag as it was then.
    pub fn looked(&mut self, process: &str, tag: &str, then: Duration) {
        self.seen.insert((process.into(), tag.into()), then);
    }

    /// Whether somebody else wrote a tag since it was looked at last, or since this write was sent, which may land late. What deletes a
    /// tag looks at its float as well.
    fn is_unseen(&self, write: &TagWrite) -> bool {
        let unseen = |tag: &str| {
            let seen = self.seen.get(&(write.process.clone(), tag.to_owned()));
            let at = self.meddled.get(tag);
            at.is_some_and(|at| *at >= write.sent || seen.is_none_or(|seen| at >= seen))
        };
        unseen(&write.tag) || (write.digest.is_none() && unseen(Role::of(&write.tag).1))
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
            && let Some(digest) = write.digest
            && let Some((name, index)) = self.owners.get(&digest).cloned()
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
        // `__pre` is ours: what is on it is pinned before, and whoever else puts an image there has to keep it.
        let left = left.filter(|left| role != Role::Pre || !self.theirs.contains(left));
        // An image that is pushed only to see whether a tag can be deleted alone.
        let probe = write.tag.contains("_deletion_probe_");
        if let Some(left) = left.filter(|_| !probe && !self.is_unseen(write)) {
            self.says(
                now,
                &format!("nothing lost: {} was the last tag of {left}", write.tag),
            );
        }
        if role == Role::Float && before != write.digest {
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
        let owner = write.digest.and_then(|to| self.owners.get(&to)).cloned();
        if let Some((name, index)) = &owner
            && !self.is_unseen(write)
            && !self.takes_back(write.owner.as_deref().unwrap_or_default())
            && let Some(replaces) = self
                .asked
                .get(name)
                .and_then(|asked| asked.replaces.get(index))
        {
            let was = before.map_or("None".to_owned(), |before| before.to_string());
            if *replaces != was {
                let what = format!(
                    "fails closed: {float} leaves {was} for {name}, which replaces {replaces}"
                );
                self.says(now, &what);
            }
        }
        let Some(before) = before else {
            return;
        };
        if self.is_unseen(write) {
            return;
        }
        let of = |digest: &Digest| self.owner(*digest);
        if let Some(name) = write.owner.as_deref().filter(|name| self.takes_back(name))
            && write.digest.as_ref().and_then(of) != Some(name)
            && of(&before) != Some(name)
        {
            let what = format!("never back: {float} is taken back by {name}, which is not on it");
            self.says(now, &what);
        }
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
        let (from, to) = (order(&before), write.digest.as_ref().and_then(order));
        let rolls_back = from.as_ref().is_some_and(|(_, from)| from.rollback);
        let name = |asked: &Option<(String, Asked)>| {
            asked
                .as_ref()
                .map_or("nobody's", |(name, _)| name.as_str())
                .to_owned()
        };
        let back = match (&from, &to) {
            (Some((_, from)), Some((_, to))) => to.order < from.order,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let key = |(name, _): &(String, Asked)| (float.clone(), name.clone());
        let taken = from.as_ref().and_then(|from| self.taken.get(&key(from)));
        if back && !rolls_back {
            let what = format!(
                "never back: {float} goes from {} to {}",
                name(&from),
                name(&to)
            );
            self.says(now, &what);
        } else if back && taken.is_some_and(|taken| write.digest != Some(*taken)) {
            let from = name(&from);
            let what =
                format!("never back: {float} is taken back from {from} to what it was not on");
            self.says(now, &what);
        } else if let Some(to) = to.filter(|_| !back) {
            self.taken.insert(key(&to), before);
        }
    }

    /// A change of an object.
    pub fn changed(&mut self, change: &Change, now: Duration) {
        let name = &change.key.2;
        match change.key.0.as_str() {
            REQUESTS => {}
            "imagestreams" => return self.referred(change, now),
            "configmaps" if name == FREEZES.name => return self.freezes(change),
            "leases" => return self.follows(change),
            _ => return,
        }
        if let (Some(before), Some(after)) = (&change.before, &change.after) {
            for what in regressions(&before["status"], &after["status"]) {
                self.says(now, &format!("saves only go on: {name}: {what}"));
            }
        }
        let Some(after) = &change.after else {
            return;
        };
        self.committed(name, change.before.as_ref(), after, now);
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

    /// What is let move: no gate is left, and nothing is frozen.
    fn committed(&mut self, name: &str, before: Option<&Value>, after: &Value, now: Duration) {
        let is = |object: &Value, index: usize| {
            let status = &object["status"];
            status["committed"] == true || status["images"][index]["committed"] == true
        };
        let together = after["spec"]["latch"] == "Together";
        let images = after["spec"]["images"].as_array().into_iter().flatten();
        for (index, image) in images.enumerate() {
            if !is(after, index) || before.is_some_and(|before| is(before, index)) {
                continue;
            }
            if after["spec"]["gates"]
                .as_array()
                .is_some_and(|gates| !gates.is_empty())
            {
                self.says(
                    now,
                    &format!("fails closed: {name} is let move, and a gate is left"),
                );
            }
            let frozen = self.frozen.as_ref().filter(|(.., followed)| *followed);
            let held = |image: &Value| {
                let float = image["float"].as_str().unwrap_or_default();
                frozen.is_some_and(|(frozen, ..)| float.ends_with(frozen))
            };
            let mut all = after["spec"]["images"].as_array().into_iter().flatten();
            if held(image) || (together && all.any(held)) {
                let what = format!("fails closed: {name} is let move, and a float of it is frozen");
                self.says(now, &what);
            }
        }
    }

    /// The operator has frozen something, or lifted that.
    fn freezes(&mut self, change: &Change) {
        let text = change
            .after
            .as_ref()
            .and_then(|map| map["data"]["freezes"].as_str());
        let float = text.and_then(|text| Some(text.split_once(' ')?.0.rsplit_once(':')?.1));
        self.frozen = float.map(|float| (format!(":{float}"), change.version, false));
    }

    /// The leader says what it follows.
    fn follows(&mut self, change: &Change) {
        let mark = "promotion-controller.ci.openshift.io/freezes";
        let said = change
            .after
            .as_ref()
            .and_then(|lease| lease["metadata"]["annotations"][mark].as_str());
        let said = said.and_then(|said| said.parse::<u64>().ok());
        if let Some((_, version, followed)) = &mut self.frozen {
            *followed |= said.is_some_and(|said| said >= *version);
        }
    }

    /// A stream has changed: no tag of it goes back.
    fn referred(&mut self, change: &Change, now: Duration) {
        let (Some(before), Some(after)) = (&change.before, &change.after) else {
            return;
        };
        for tag in before["spec"]["tags"].as_array().into_iter().flatten() {
            let name = tag["name"].as_str().unwrap_or_default();
            let order = |stream| stream_mark(stream, name).map(|(order, _)| order);
            if order(before) > order(after) {
                self.says(now, &format!("never back: the stream tag {name}"));
            }
        }
    }

    fn remember(&mut self, name: &str, object: &Value, now: Duration) {
        let status = &object["status"];
        let floats = object["spec"]["images"].as_array().into_iter().flatten();
        let floats = floats.filter_map(|image| image["float"].as_str()?.rsplit_once(':'));
        let floats = floats.map(|(_, tag)| tag.to_owned()).collect();
        let replaces = object["spec"]["images"].as_array().into_iter().flatten();
        let replaces = replaces
            .enumerate()
            .filter_map(|(index, image)| Some((index, image["replaces"].as_str()?.to_owned())));
        let replaces = replaces.collect();
        let version = object["metadata"]["resourceVersion"].as_str();
        let asked = self.asked.entry(name.to_owned()).or_default();
        asked.floats = floats;
        asked.replaces = replaces;
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

    /// Who is at work on a float: it has begun and not ended, and its floats are not at their end.
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
                && status["phase"] != "Referencing"
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

/// The order of the request that set a tag of a stream, and the image.
pub fn stream_mark(stream: &Value, tag: &str) -> Option<(u64, String)> {
    let mut tags = stream["spec"]["tags"].as_array()?.iter();
    let tag = tags.find(|one| one["name"] == tag)?;
    let order = tag["annotations"]["promotion.ci.openshift.io/order"].as_str()?;
    let image = tag["from"]["name"].as_str().unwrap_or_default();
    Some((order.parse().ok()?, image.to_owned()))
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
        let taken_back = after["rollback"] == true && to == "Failed";
        let ended = final_.iter().any(|phase| from == phase) && !taken_back;
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
