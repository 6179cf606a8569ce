//! The embedded registry as a process of its own, as `promotion-controller registry` serves it.
//!
//! Leaves: an address, and a hand on the registry's control API. It ends with this value, and with this process.

#![allow(
    clippy::unwrap_used,
    reason = "a test whose registry does not answer has failed"
)]

use super::PATIENCE;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use quaylike::ImageSpec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RunDir, Supervised};

/// More than any section asks.
const ENTRIES_MAX: usize = 200_000;

/// Repository, tag, digest.
pub type Snapshot = BTreeMap<String, BTreeMap<String, String>>;

/// A running registry.
pub struct Served {
    host: String,
    client: reqwest::Client,
    // In this order: the process ends before its folder goes.
    _process: Supervised,
    _folder: RunDir,
}

/// What was asked of the registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// Without pings and tokens.
    pub requests: usize,
    pub pings: usize,
    pub tokens: usize,
    /// Of these, how many were answered 429.
    pub refused: usize,
    /// Bytes of all bodies, both ways.
    pub bodies: u64,
}

/// A tag that was written, or that somebody tried to write.
#[derive(Debug, Clone)]
pub struct TagWrite {
    /// When the request arrived, in milliseconds since 1970.
    pub time: i64,
    pub repository: String,
    pub tag: String,
    pub status: Option<u16>,
}

#[derive(Deserialize)]
struct Entry {
    seq: u64,
    time: i64,
    micros: i64,
    method: String,
    kind: String,
    repository: String,
    reference: String,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Deserialize)]
struct Change {
    digest: Option<String>,
}

impl Served {
    /// Starts a registry with these settings (`latency_ms`, `discard_blobs`, …).
    pub async fn start(settings: &Value) -> Self {
        let folder = RunDir::create("served").unwrap();
        let mut process = Supervised::spawn(
            "registry",
            Path::new(env!("CARGO_BIN_EXE_promotion-controller")),
            &["registry".into(), "--listen=127.0.0.1:0".into()],
            &[("RUST_LOG", "warn")],
            folder.path(),
        )
        .unwrap();
        let begun = Instant::now();
        let host = loop {
            let said = std::fs::read_to_string(folder.join("registry.out")).unwrap_or_default();
            let line = said.lines().find_map(|l| l.strip_prefix("listening on "));
            if let Some(host) = line.filter(|_| said.ends_with('\n')) {
                break host.to_owned();
            }
            process.still_running().unwrap();
            assert!(begun.elapsed() < PATIENCE, "the registry does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let client = super::http_builder().build().unwrap();
        let served = Self {
            host,
            client,
            _process: process,
            _folder: folder,
        };
        served.post("settings", settings).await;
        served
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Who may do what; by default everybody everything.
    pub async fn authenticate(&self, auth: &Value) {
        self.post("auth", auth).await;
    }

    /// Puts an image in under a tag and returns its digest.
    pub async fn seed(&self, repository: &str, tag: &str, image: &ImageSpec) -> String {
        let body = json!({"repository": repository, "tag": tag, "image": image});
        let answer = self.post("seed", &body).await;
        answer["digest"].as_str().unwrap().to_owned()
    }

    /// A manifest.
    pub async fn manifest(&self, repository: &str, tag: &str) -> Value {
        let path = format!("manifest?repository={repository}&reference={tag}");
        self.control(reqwest::Method::GET, &path, None).await
    }

    /// Forgets what was asked so far.
    pub async fn reset(&self) {
        self.control(reqwest::Method::DELETE, "log", None).await;
    }

    /// When the first GET or HEAD of a blob arrived since, or else the first upload was begun, and when the last request about one was
    /// answered, in microseconds since 1970.
    pub async fn blobs(&self) -> Option<(i64, i64)> {
        let entries = self.entries(0).await;
        let blobs = entries
            .iter()
            .filter(|entry| ["blob", "upload"].contains(&entry.kind.as_str()));
        // Before any blob an upload may be tried and cancelled, to see whether that is allowed.
        let first = blobs
            .clone()
            .min_by_key(|entry| (entry.kind == "upload", entry.time))?;
        let begun = first.time * 1000;
        let ended = blobs.map(|entry| entry.time * 1000 + entry.micros).max()?;
        Some((begun, ended))
    }

    /// What was asked since.
    pub async fn asked(&self) -> Asked {
        let entries = self.entries(0).await;
        let mut asked = Asked::default();
        for entry in &entries {
            match entry.kind.as_str() {
                "ping" => asked.pings += 1,
                "token" => asked.tokens += 1,
                _ => {
                    asked.requests += 1;
                    asked.refused += usize::from(entry.status == Some(429));
                }
            }
            asked.bodies += entry.bytes_in + entry.bytes_out;
        }
        asked
    }

    /// All tags; it is an error if something that one of them reaches does not resolve.
    pub async fn snapshot(&self) -> Result<Snapshot, String> {
        let get = async |path: &str| self.control(reqwest::Method::GET, path, None).await;
        let dangling = get("dangling").await;
        if dangling.as_array().is_none_or(|list| !list.is_empty()) {
            return Err(format!("tags dangle: {dangling}"));
        }
        Ok(serde_json::from_value(get("snapshot").await).unwrap())
    }

    /// Takes a tag away.
    pub async fn untag(&self, repository: &str, tag: &str) {
        self.post("untag", &json!({"repository": repository, "tag": tag}))
            .await;
    }

    /// The tags written after the request of this number, and the number of the newest request.
    pub async fn tag_writes(&self, after: u64) -> (Vec<TagWrite>, u64) {
        let entries = self.entries(after).await;
        let newest = entries.last().map_or(after, |entry| entry.seq);
        let written = |e: &Entry| {
            e.kind == "manifest" && e.method == "PUT" && !e.reference.starts_with("sha256:")
        };
        let writes = entries.into_iter().filter(written).map(|entry| TagWrite {
            time: entry.time,
            repository: entry.repository,
            tag: entry.reference,
            status: entry.status,
        });
        (writes.collect(), newest)
    }

    /// The digests of a tag, oldest first, at most the newest 256; none for a time without the tag.
    pub async fn history(&self, repository: &str, tag: &str) -> Vec<Option<String>> {
        let path = format!("history?repository={repository}&tag={tag}");
        let changes = self.control(reqwest::Method::GET, &path, None).await;
        let changes: Vec<Change> = serde_json::from_value(changes).unwrap();
        changes.into_iter().map(|change| change.digest).collect()
    }

    /// Every tag that ever dangled, if the settings ask for the audit.
    pub async fn audit_trail(&self) -> Vec<Value> {
        let trail = self.control(reqwest::Method::GET, "audit", None).await;
        serde_json::from_value(trail).unwrap()
    }

    async fn entries(&self, after: u64) -> Vec<Entry> {
        let path = format!("log?after={after}&limit={ENTRIES_MAX}");
        let entries = self.control(reqwest::Method::GET, &path, None).await;
        serde_json::from_value(entries).unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.control(reqwest::Method::POST, path, Some(body)).await
    }

    async fn control(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Value {
        let url = format!("http://{}/_control/{path}", self.host);
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let bytes = answer.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(status.is_success(), "{path}: {status} {text}");
        if bytes.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&bytes).unwrap()
    }
}
