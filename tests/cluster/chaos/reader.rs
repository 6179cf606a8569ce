//! Somebody who pulls all the time: every float by its tag, and every digest that a float showed in the last minute.
//!
//! Guaranteed: a client of its own; whatever a pull reaches, manifests, children and blobs, is fetched and compared with its
//! digest. Anything that is missing is kept, with its time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use quaylike::MANIFEST_TYPES;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};

use crate::testbed::{PATIENCE, digest_of};

/// Between the beginnings of two pulls.
const PACE: Duration = Duration::from_millis(40);
/// Pulls at once.
const AT_ONCE: usize = 10;
/// How long a digest is pulled by itself after a float last showed it.
const REMEMBERED: Duration = Duration::from_mins(1);

/// Reads the floats of one repository.
pub struct Reader {
    base: String,
    floats: Vec<String>,
    http: reqwest::Client,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When a float last showed it.
    digests: BTreeMap<String, Instant>,
    /// Floats that are there.
    floats: BTreeSet<String>,
    pulls: usize,
    longest: Duration,
    missing: Vec<String>,
}

/// What a reader did and missed.
#[derive(Debug)]
pub struct Read {
    pub pulls: usize,
    /// Digests that floats have shown.
    pub digests: Vec<String>,
    /// The longest pull.
    pub longest: Duration,
    pub missing: Vec<String>,
}

impl Reader {
    pub fn new(host: &str, repository: &str, floats: &[String]) -> Self {
        let http = crate::testbed::http_builder().timeout(PATIENCE);
        Self {
            base: format!("http://{host}/v2/{repository}"),
            floats: floats.to_vec(),
            http: http.build().unwrap(),
            seen: Mutex::default(),
        }
    }

    /// Pulls, round after round, for ever.
    pub async fn read(self: Arc<Self>) {
        let mut tick = interval(PACE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            for reference in self.round() {
                tick.tick().await;
                let place = Arc::clone(&places).acquire_owned().await;
                let reader = Arc::clone(&self);
                tokio::spawn(async move {
                    reader.pull(&reference).await;
                    drop(place);
                });
            }
        }
    }

    /// What was read so far.
    pub fn so_far(&self) -> Read {
        let seen = self.lock();
        Read {
            pulls: seen.pulls,
            digests: seen.digests.keys().cloned().collect(),
            longest: seen.longest,
            missing: seen.missing.clone(),
        }
    }

    /// Pulls by tag or digest; what is missing is kept.
    pub async fn pull(&self, reference: &str) {
        let begun = Instant::now();
        let pulled = self.whole(reference).await;
        let mut seen = self.lock();
        seen.pulls += 1;
        seen.longest = seen.longest.max(begun.elapsed());
        match pulled {
            Ok(Some(digest)) if !reference.starts_with("sha256:") => {
                seen.digests.insert(digest, Instant::now());
                seen.floats.insert(reference.to_owned());
            }
            Ok(Some(_)) => {}
            // A float that nobody has promoted to yet.
            Ok(None) if !seen.floats.contains(reference) && !reference.starts_with("sha256:") => {}
            Ok(None) => missed(&mut seen, &format!("{reference}: no such manifest")),
            Err(error) => missed(&mut seen, &format!("{reference}: {error}")),
        }
    }

    /// Floats, and the digests they showed lately.
    fn round(&self) -> Vec<String> {
        let seen = self.lock();
        let lately = seen
            .digests
            .iter()
            .filter(|(_, at)| at.elapsed() < REMEMBERED);
        let digests = lately.map(|(digest, _)| digest.clone());
        digests.chain(self.floats.iter().cloned()).collect()
    }

    /// The digest that a reference names, once everything below it was fetched; none where it names nothing.
    async fn whole(&self, reference: &str) -> Result<Option<String>, String> {
        let Some((digest, manifest)) = self.manifest(reference).await? else {
            return Ok(None);
        };
        let mut below = vec![manifest];
        while let Some(manifest) = below.pop() {
            let blobs = named(&manifest, "config").chain(named(&manifest, "layers"));
            let blobs = blobs.map(|blob| async move { self.blob(&blob).await });
            futures::future::try_join_all(blobs)
                .await
                .map_err(|error| format!("{digest}: {error}"))?;
            for child in named(&manifest, "manifests") {
                match self.manifest(&child).await? {
                    Some((_, child)) => below.push(child),
                    None => return Err(format!("{digest}: its child {child} is missing")),
                }
            }
        }
        Ok(Some(digest))
    }

    async fn manifest(&self, reference: &str) -> Result<Option<(String, Value)>, String> {
        let url = format!("{}/manifests/{reference}", self.base);
        let accept = MANIFEST_TYPES.join(", ");
        let Some(bytes) = self.get(&url, &accept).await? else {
            return Ok(None);
        };
        let digest = digest_of(&bytes);
        if reference.starts_with("sha256:") && reference != digest {
            return Err(format!("{reference} has the bytes of {digest}"));
        }
        let manifest = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok(Some((digest, manifest)))
    }

    async fn blob(&self, digest: &str) -> Result<(), String> {
        let url = format!("{}/blobs/{digest}", self.base);
        match self.get(&url, "*/*").await? {
            Some(bytes) if digest_of(&bytes) == digest => Ok(()),
            Some(_) => Err(format!("its blob {digest} has other bytes")),
            None => Err(format!("its blob {digest} is missing")),
        }
    }

    async fn get(&self, url: &str, accept: &str) -> Result<Option<Vec<u8>>, String> {
        let asked = self.http.get(url).header("accept", accept).send().await;
        let answer = asked.map_err(|error| format!("{error:?}"))?;
        match answer.status().as_u16() {
            200 => {
                let bytes = answer.bytes().await.map_err(|error| format!("{error:?}"))?;
                Ok(Some(bytes.to_vec()))
            }
            404 => Ok(None),
            status => Err(format!("{url}: {status}")),
        }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Seen> {
        self.seen.lock()
    }
}

fn missed(seen: &mut Seen, what: &str) {
    seen.missing.push(format!("{:.6} {what}", Timestamp::now()));
}

/// The digests that a field of a manifest names: one descriptor, or a list.
fn named(manifest: &Value, field: &str) -> std::vec::IntoIter<String> {
    let descriptors = match &manifest[field] {
        Value::Array(several) => several.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    };
    let digests = descriptors.iter().filter_map(|d| d["digest"].as_str());
    digests.map(str::to_owned).collect::<Vec<_>>().into_iter()
}
