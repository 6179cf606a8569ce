//! A plain client of any registry, for seeding it and for looking at what a test left in it.
//!
//! Enters: a base URL and at most one account. Leaves: what the registry holds. Guaranteed: independent of the
//! code under test; what is pulled is checked against its digest; its requests are not in the registry's log as
//! the testbed reads it.

use std::collections::HashMap;

use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde_json::Value;

use super::access_log::USER_AGENT;
use super::net::{http_client, locked};
use super::{Error, Image, ImageKind, digest_of};

/// A manifest as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledManifest {
    /// Of the bytes.
    pub digest: String,
    /// The answer's `Content-Type`.
    pub media_type: String,
    /// The manifest.
    pub bytes: Vec<u8>,
}

/// A client of one registry.
#[derive(Debug)]
pub struct RegistryClient {
    base: String,
    account: Option<(String, String)>,
    http: reqwest::Client,
    /// By repository.
    tokens: Mutex<HashMap<String, String>>,
}

impl RegistryClient {
    /// `base` is `http://HOST:PORT`; `account` a user and a password, for registries with a token server.
    pub fn new(base: &str, account: Option<(&str, &str)>) -> Result<Self, Error> {
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            account: account.map(|(user, password)| (user.to_owned(), password.to_owned())),
            http: http_client()?,
            tokens: Mutex::new(HashMap::new()),
        })
    }

    /// Pushes `image` with all it consists of, and points `tag` at it. Returns its digest.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> Result<String, Error> {
        self.push_as(repository, tag, image).await?;
        Ok(image.digest())
    }

    /// Pushes `image` by its digest alone: no tag keeps it.
    pub async fn push_untagged(&self, repository: &str, image: &Image) -> Result<String, Error> {
        let digest = image.digest();
        self.push_as(repository, &digest, image).await?;
        Ok(digest)
    }

    async fn push_as(&self, repository: &str, reference: &str, image: &Image) -> Result<(), Error> {
        for child in &image.children {
            Box::pin(self.push_as(repository, &child.digest(), child)).await?;
        }
        for blob in &image.blobs {
            self.push_blob(repository, blob).await?;
        }
        self.put_manifest(repository, reference, image.media_type, &image.manifest)
            .await
    }

    /// Uploads a blob unless it is there.
    pub async fn push_blob(&self, repository: &str, blob: &[u8]) -> Result<(), Error> {
        let digest = digest_of(blob);
        if self.has_blob(repository, &digest).await? {
            return Ok(());
        }
        let uploads = format!("{}/v2/{repository}/blobs/uploads/", self.base);
        let session = self
            .send(repository, Method::POST, &uploads, |request| request)
            .await?;
        let session = wanted(Method::POST, session, StatusCode::ACCEPTED).await?;
        let content = |reason: &str| Error::Content {
            url: uploads.clone(),
            reason: reason.to_owned(),
        };
        let location = session
            .headers()
            .get(header::LOCATION)
            .and_then(|location| location.to_str().ok())
            .ok_or_else(|| content("the answer to an upload's start has no Location"))?;
        let mut upload = session
            .url()
            .join(location)
            .map_err(|_| content("the Location of an upload is no address"))?;
        upload.query_pairs_mut().append_pair("digest", &digest);
        let done = self
            .send(repository, Method::PUT, upload.as_str(), |request| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .body(blob.to_vec())
            })
            .await?;
        wanted(Method::PUT, done, StatusCode::CREATED).await?;
        Ok(())
    }

    /// Puts a manifest under a tag or its digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let url = self.manifest_url(repository, reference);
        let done = self
            .send(repository, Method::PUT, &url, |request| {
                request
                    .header(header::CONTENT_TYPE, media_type)
                    .body(bytes.to_vec())
            })
            .await?;
        wanted(Method::PUT, done, StatusCode::CREATED).await?;
        Ok(())
    }

    /// The manifest of a tag or digest; `None` when there is none.
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<PulledManifest>, Error> {
        let url = self.manifest_url(repository, reference);
        let accept = ImageKind::ALL.map(ImageKind::media_type).join(", ");
        let answer = self
            .send(repository, Method::GET, &url, |request| {
                request.header(header::ACCEPT, &accept)
            })
            .await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = wanted(Method::GET, answer, StatusCode::OK).await?;
        let media_type = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let bytes = answer.bytes().await?.to_vec();
        let digest = digest_of(&bytes);
        if reference.starts_with("sha256:") && reference != digest {
            return Err(Error::Content {
                url,
                reason: format!("the body's digest is {digest}"),
            });
        }
        Ok(Some(PulledManifest {
            digest,
            media_type,
            bytes,
        }))
    }

    /// The digest a tag points at; `None` when there is no such tag.
    pub async fn digest(&self, repository: &str, tag: &str) -> Result<Option<String>, Error> {
        let found = self.manifest(repository, tag).await?;
        Ok(found.map(|manifest| manifest.digest))
    }

    /// Pulls everything a tag or digest consists of, checks every digest, and returns the digests of the
    /// manifests, the topmost first. An error when anything is missing.
    pub async fn pull(&self, repository: &str, reference: &str) -> Result<Vec<String>, Error> {
        let url = self.manifest_url(repository, reference);
        let broken = |reason: String| Error::Content {
            url: url.clone(),
            reason,
        };
        let manifest = self
            .manifest(repository, reference)
            .await?
            .ok_or_else(|| broken("there is no such manifest".to_owned()))?;
        let parsed: Value =
            serde_json::from_slice(&manifest.bytes).map_err(|error| broken(error.to_string()))?;
        let digests = |field: &str| -> Vec<String> {
            let entries = match &parsed[field] {
                Value::Array(entries) => entries.as_slice(),
                Value::Null => &[],
                single => std::slice::from_ref(single),
            };
            entries
                .iter()
                .filter_map(|entry| entry["digest"].as_str().map(str::to_owned))
                .collect()
        };
        for blob in digests("config").into_iter().chain(digests("layers")) {
            self.blob(repository, &blob).await?;
        }
        let mut found = vec![manifest.digest];
        for child in digests("manifests") {
            found.extend(Box::pin(self.pull(repository, &child)).await?);
        }
        Ok(found)
    }

    /// Whether a blob is there.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool, Error> {
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        let answer = self
            .send(repository, Method::HEAD, &url, |request| request)
            .await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        wanted(Method::HEAD, answer, StatusCode::OK).await?;
        Ok(true)
    }

    /// A blob's bytes, checked against its digest.
    pub async fn blob(&self, repository: &str, digest: &str) -> Result<Vec<u8>, Error> {
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        let answer = self
            .send(repository, Method::GET, &url, |request| request)
            .await?;
        let answer = wanted(Method::GET, answer, StatusCode::OK).await?;
        let bytes = answer.bytes().await?.to_vec();
        let found = digest_of(&bytes);
        if found != digest {
            return Err(Error::Content {
                url,
                reason: format!("the body's digest is {found}"),
            });
        }
        Ok(bytes)
    }

    /// The tags of a repository, sorted; none when there is no such repository.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, Error> {
        let url = format!("{}/v2/{repository}/tags/list", self.base);
        let answer = self
            .send(repository, Method::GET, &url, |request| request)
            .await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let answer = wanted(Method::GET, answer, StatusCode::OK).await?;
        let listed: Value = answer.json().await?;
        let mut tags: Vec<String> = listed["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|tag| tag.as_str().map(str::to_owned))
            .collect();
        tags.sort();
        Ok(tags)
    }

    /// Deletes a tag, or a manifest by its digest.
    pub async fn delete(&self, repository: &str, reference: &str) -> Result<(), Error> {
        let url = self.manifest_url(repository, reference);
        let done = self
            .send(repository, Method::DELETE, &url, |request| request)
            .await?;
        wanted(Method::DELETE, done, StatusCode::ACCEPTED).await?;
        Ok(())
    }

    fn manifest_url(&self, repository: &str, reference: &str) -> String {
        format!("{}/v2/{repository}/manifests/{reference}", self.base)
    }

    /// Sends a request with the repository's token; on a challenge gets a token and sends it once more.
    async fn send(
        &self,
        repository: &str,
        method: Method,
        url: &str,
        complete: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let request = |token: Option<String>| {
            let request = complete(self.http.request(method.clone(), url))
                .header(header::USER_AGENT, USER_AGENT);
            match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            }
        };
        let known = locked(&self.tokens).get(repository).cloned();
        let answer = request(known).send().await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some(token) = self.token(&answer).await? else {
            return Ok(answer);
        };
        locked(&self.tokens).insert(repository.to_owned(), token.clone());
        Ok(request(Some(token)).send().await?)
    }

    /// The token a challenge asks for; `None` when the answer has no challenge for bearer tokens.
    async fn token(&self, refusal: &Response) -> Result<Option<String>, Error> {
        let header = refusal
            .headers()
            .get(header::WWW_AUTHENTICATE)
            .and_then(|challenge| challenge.to_str().ok())
            .unwrap_or_default();
        let challenges = http_auth::parse_challenges(header).unwrap_or_default();
        let Some(bearer) = challenges
            .iter()
            .find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))
        else {
            return Ok(None);
        };
        let parameter = |wanted: &str| {
            bearer
                .params
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.to_unescaped())
        };
        let Some(realm) = parameter("realm") else {
            return Ok(None);
        };
        let query: Vec<(&str, String)> = ["service", "scope"]
            .into_iter()
            .filter_map(|name| Some((name, parameter(name)?)))
            .collect();
        let mut request = self.http.get(realm).query(&query);
        if let Some((user, password)) = &self.account {
            request = request.basic_auth(user, Some(password));
        }
        let answer = wanted(Method::GET, request.send().await?, StatusCode::OK).await?;
        let body: Value = answer.json().await?;
        Ok(body["token"]
            .as_str()
            .or_else(|| body["access_token"].as_str())
            .map(str::to_owned))
    }
}

/// The answer, or an error that shows it when its status is another.
async fn wanted(method: Method, answer: Response, status: StatusCode) -> Result<Response, Error> {
    if answer.status() == status {
        return Ok(answer);
    }
    let url = answer.url().to_string();
    let found = answer.status().as_u16();
    let body = answer.text().await.unwrap_or_default();
    Err(Error::Answer {
        method: method.to_string(),
        url,
        status: found,
        body: body.chars().take(400).collect(),
    })
}
