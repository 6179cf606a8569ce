//! The loops that this program is compared with: the same requests and the same bytes, and nothing else.
//!
//! In: a plan in a file. Out: the tags set, or the layer copied. Nothing is recorded, retried, limited in rate, checked against a
//! policy or seen twice. They run as a process of their own, like everything they are compared with, with the connection
//! settings of `registry::wire::clients` and the runtime of the command line.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Certificate, Client, Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::measure::Task;
use crate::promotion::{FLOATS, Promotion, SOURCES};

/// The argument that makes this program a loop.
pub const ROLE: &str = "plain";
/// As many requests as `--registry-concurrency` lets be in flight.
const IN_FLIGHT: usize = 16;
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What a loop is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Plan {
    /// The steps of a promotion, for each float one after another, for all floats at once.
    Promote {
        /// `https://HOST:PORT` of the floats.
        to: String,
        /// Of the sources: blobs are mounted if it is the same, and copied otherwise.
        from: String,
        account: Option<(String, String)>,
        /// The certificate of whoever signs what the registries show, as PEM.
        ca: Option<String>,
        /// Tag, new digest.
        floats: Vec<(String, String)>,
    },
    /// Blobs side by side: each a GET as a stream, hashed on its way into the PUT.
    Copy {
        blobs: Vec<Blob>,
        /// The certificate of whoever signs what the registries show, as PEM.
        ca: Option<String>,
    },
}

/// A blob to copy.
#[derive(Debug, Serialize, Deserialize)]
pub struct Blob {
    /// Its URL.
    pub from: String,
    /// URL of the target's uploads.
    pub to: String,
    pub digest: String,
}

/// The clients, the budget, and the right to act.
#[derive(Clone)]
struct Wire {
    reads: Client,
    writes: Client,
    /// For large blobs, where they are copied.
    large: Option<(Client, Client)>,
    in_flight: Arc<Semaphore>,
    /// Where the floats are, and their sources.
    to: String,
    from: String,
    authorization: Option<String>,
}

/// A manifest as the registry sent it.
#[derive(Clone)]
struct Manifest {
    media_type: String,
    bytes: Bytes,
}

/// A loop over these promotions.
pub fn promotion(host: &str, account: Option<(&str, &str)>, promotions: &[Promotion]) -> Plan {
    Plan::Promote {
        to: format!("http://{host}"),
        from: format!("http://{host}"),
        account: account.map(|(user, password)| (user.to_owned(), password.to_owned())),
        ca: None,
        floats: promotions
            .iter()
            .map(|p| (p.tag.clone(), p.new.clone()))
            .collect(),
    }
}

impl Plan {
    /// The loop as a command; its plan goes to `folder`.
    pub fn task(&self, folder: &std::path::Path) -> Task {
        std::fs::write(folder.join("plan.json"), serde_json::to_vec(self).unwrap()).unwrap();
        Task::own(&[ROLE, "plan.json"])
    }
}

/// Carries out the plan of a file.
pub fn main(arguments: &[String]) -> ExitCode {
    crate::install_tls();
    let plan = serde_json::from_slice(&std::fs::read(&arguments[0]).unwrap()).unwrap();
    crate::runtime().block_on(async {
        match plan {
            Plan::Promote {
                to,
                from,
                account,
                ca,
                floats,
            } => {
                let wire = Wire::new(to, from, account, ca.as_deref()).await;
                wire.promote_all(floats).await;
            }
            Plan::Copy { blobs, ca } => {
                let clients = clients(ca.as_deref(), true);
                join_all(
                    blobs
                        .into_iter()
                        .map(|blob| tokio::spawn(copy(clients.clone(), blob))),
                )
                .await
                .into_iter()
                .for_each(Result::unwrap);
            }
        }
    });
    ExitCode::SUCCESS
}

/// Reading and writing, set up as `registry::wire::clients` does it: large blobs on HTTP/1.1 alone.
#[expect(
    clippy::disallowed_methods,
    reason = "the process has installed the provider"
)]
fn clients(ca: Option<&str>, large: bool) -> (Client, Client) {
    let build = |builder: reqwest::ClientBuilder| {
        let builder = if large { builder.http1_only() } else { builder };
        builder
            .user_agent("plain-loop")
            .tls_certs_merge(ca.map(|ca| Certificate::from_pem(ca.as_bytes()).unwrap()))
            .connect_timeout(Duration::from_secs(10))
            .referer(false)
            .retry(reqwest::retry::never())
            .build()
            .unwrap()
    };
    let reads = Client::builder()
        .redirect(reqwest::redirect::Policy::limited(5))
        .read_timeout(Duration::from_mins(1));
    let writes = Client::builder().redirect(reqwest::redirect::Policy::none());
    (build(reads), build(writes))
}

impl Wire {
    async fn new(
        to: String,
        from: String,
        account: Option<(String, String)>,
        ca: Option<&str>,
    ) -> Self {
        let (reads, writes) = clients(ca, false);
        let mut wire = Self {
            reads,
            writes,
            large: (to != from).then(|| clients(ca, true)),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            to,
            from,
            authorization: None,
        };
        if let Some(account) = account {
            wire.authorization = Some(format!("Bearer {}", wire.token(account).await));
        }
        wire
    }

    async fn promote_all(&self, floats: Vec<(String, String)>) {
        let stamp = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S").to_string();
        let tasks = floats.into_iter().map(|(tag, new)| {
            let (wire, stamp) = (self.clone(), stamp.clone());
            tokio::spawn(async move { wire.promote(&tag, &new, &stamp).await })
        });
        for ended in join_all(tasks).await {
            ended.unwrap();
        }
    }

    async fn promote(&self, tag: &str, new: &str, stamp: &str) {
        // Resolve.
        let old = self.look(tag).await;
        // Stage.
        let source = self.get(SOURCES, new).await.unwrap();
        let children: Vec<(String, Manifest)> = join_all(
            descriptors(&source, &["manifests"])
                .into_iter()
                .map(|digest| self.child(digest)),
        )
        .await;
        let mut blobs = descriptors(&source, &["config", "layers"]);
        for (_, child) in &children {
            blobs.extend(descriptors(child, &["config", "layers"]));
        }
        join_all(blobs.into_iter().map(|digest| self.bring(digest))).await;
        join_all(
            children
                .iter()
                .map(|(digest, child)| self.put(digest, child)),
        )
        .await;
        let incoming = format!("{tag}_incoming");
        self.look(&incoming).await;
        self.put(&incoming, &source).await;
        // BackUp.
        if let Some(old) = old {
            let prune = format!("{stamp}_prune_{tag}");
            self.look(&prune).await;
            self.put(&prune, &old).await;
            self.put(&format!("{tag}__pre"), &old).await;
        }
        // Latch.
        self.look(tag).await;
        self.put(tag, &source).await;
        // Post.
        let post1 = format!("{tag}__post1");
        self.look(&post1).await;
        self.put(&post1, &source).await;
        self.look(tag).await;
    }

    async fn child(&self, digest: String) -> (String, Manifest) {
        let child = self.get(SOURCES, &digest).await.unwrap();
        (digest, child)
    }

    async fn bring(&self, digest: String) {
        let uploads = format!("{}/v2/{FLOATS}/blobs/uploads/", self.to);
        if let Some(large) = &self.large {
            let blob = Blob {
                from: format!("{}/v2/{SOURCES}/blobs/{digest}", self.from),
                to: uploads,
                digest,
            };
            copy(large.clone(), blob).await;
        } else {
            let mount = format!("{uploads}?mount={digest}&from={SOURCES}");
            let mount = self.writes.post(mount).header(CONTENT_LENGTH, 0);
            self.send(mount, StatusCode::CREATED).await;
        }
    }

    async fn look(&self, tag: &str) -> Option<Manifest> {
        self.get(FLOATS, tag).await
    }

    async fn get(&self, repository: &str, reference: &str) -> Option<Manifest> {
        let at = if repository == SOURCES {
            &self.from
        } else {
            &self.to
        };
        let url = format!("{at}/v2/{repository}/manifests/{reference}");
        let get = self.reads.get(url).header(ACCEPT, ACCEPTED);
        let (status, media_type, bytes) = self.exchange(get).await;
        (status == StatusCode::OK).then_some(Manifest { media_type, bytes })
    }

    async fn put(&self, reference: &str, manifest: &Manifest) {
        let url = format!("{}/v2/{FLOATS}/manifests/{reference}", self.to);
        let put = self
            .writes
            .put(url)
            .header(CONTENT_TYPE, &manifest.media_type)
            .body(manifest.bytes.clone());
        self.send(put, StatusCode::CREATED).await;
    }

    async fn send(&self, request: RequestBuilder, expected: StatusCode) {
        let (status, _, bytes) = self.exchange(request).await;
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&bytes));
    }

    /// Sends within the budget; the body is read to its end, so that the connection can be used again.
    async fn exchange(&self, mut request: RequestBuilder) -> (StatusCode, String, Bytes) {
        let _place = self.in_flight.acquire().await.unwrap();
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let media_type = answer.headers().get(CONTENT_TYPE);
        let media_type = media_type.map_or_else(String::new, |value| {
            value.to_str().unwrap_or_default().to_owned()
        });
        (status, media_type, answer.bytes().await.unwrap())
    }

    /// One token for everything.
    async fn token(&self, (user, password): (String, String)) -> String {
        let (_, host) = self.to.split_once("://").unwrap();
        let url = format!(
            "{}/v2/auth?service={host}&scope=repository:{FLOATS}:pull,push&scope=repository:{SOURCES}:pull",
            self.to
        );
        let request = self.reads.get(url).basic_auth(user, Some(password));
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["token"].as_str().unwrap().to_owned()
    }
}

/// The digests that a manifest names under these fields.
fn descriptors(manifest: &Manifest, fields: &[&str]) -> Vec<String> {
    let document: Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let mut digests = Vec::new();
    for field in fields {
        let found = &document[*field];
        let list = found
            .as_array()
            .map_or_else(|| std::slice::from_ref(found), Vec::as_slice);
        let named = list.iter().filter_map(|one| one["digest"].as_str());
        digests.extend(named.map(str::to_owned));
    }
    digests
}

async fn copy((reads, writes): (Client, Client), blob: Blob) {
    let Blob { from, to, digest } = blob;
    let source = reads.get(from).send().await.unwrap();
    assert_eq!(source.status(), StatusCode::OK);
    let length = source.content_length().unwrap();
    let opened = writes.post(to).header(CONTENT_LENGTH, 0);
    let opened = opened.send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::ACCEPTED);
    let location = opened.headers()[LOCATION].to_str().unwrap();
    let mut url = opened.url().join(location).unwrap();
    url.query_pairs_mut().append_pair("digest", &digest);
    let hash = Arc::new(parking_lot::Mutex::new(Sha256::new()));
    let hashing = Arc::clone(&hash);
    let stream = source
        .bytes_stream()
        .inspect_ok(move |piece| hashing.lock().update(piece));
    let put = writes
        .request(Method::PUT, url)
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, length)
        .body(Body::wrap_stream(stream.boxed()));
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    let found = hash.lock().clone().finalize();
    let found = found.iter().map(|byte| format!("{byte:02x}"));
    assert_eq!(format!("sha256:{}", found.collect::<String>()), digest);
}
