//! Reads manifests: a float, a source, a pin.
//!
//! Guaranteed: at most 4 MiB are read, whatever the registry announces. Where absence decides something, only a typed 404 of the registry
//! itself to a credential that may push counts; elsewhere a typed 404 at the end of a redirect counts too.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};

use super::client::RegistryClient;
use super::known::ManifestKey;
use super::manifest::Manifest;
use crate::image::{Digest, Reference, Repository, Tag};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::error::Error;
use crate::registry::host::limits::Lane;
use crate::registry::host::progress::Progress;
use crate::registry::wire::reply::{CUTS_MAX, ManifestBody};
use crate::registry::wire::request::RegistryRequest;

/// Always all four: without the stored one, quay converts and answers another digest.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// With what rights a manifest is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Pull,
    /// The answer may decide a write: so many tag PUTs may follow it at once.
    Push {
        puts: u32,
    },
}

/// What one GET of a manifest came to.
enum Got {
    Manifest(Manifest),
    /// The registry says that it is not there.
    Absent,
    /// Memory has to be reserved for it first.
    Large,
}

impl RegistryClient {
    /// GET by tag with a token to pull and push: its answer may decide a write. None: the registry says that the tag does not exist.
    ///
    /// # Errors
    /// Anything else, including a 404 without a registry's error code.
    pub async fn get_authoritative(
        &self,
        repository: &Repository,
        tag: &Tag,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<Option<Manifest>, Error> {
        self.get_before_puts(repository, tag, 0, credential, progress)
            .await
    }

    /// The same, where so many tag PUTs may follow the answer at once: it waits until they may go as well, and their tokens are kept in
    /// `progress` for them.
    ///
    /// # Errors
    /// As [`RegistryClient::get_authoritative`].
    pub async fn get_before_puts(
        &self,
        repository: &Repository,
        tag: &Tag,
        puts: u32,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<Option<Manifest>, Error> {
        let reference = Reference::Tag(tag.clone());
        let rights = Rights::Push { puts };
        self.read(repository, &reference, credential, rights, progress)
            .await
    }

    /// GET by tag or digest with a token to pull, for sources and plans. By digest the cache answers if it can. None: the registry says
    /// that it does not exist.
    ///
    /// # Errors
    /// Anything else, including a 404 without a registry's error code.
    pub async fn get(
        &self,
        repository: &Repository,
        reference: &Reference,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<Option<Manifest>, Error> {
        if let Some(manifest) = self.cached(repository, reference, credential) {
            return Ok(Some(manifest));
        }
        self.read(repository, reference, credential, Rights::Pull, progress)
            .await
    }

    /// The manifest of this digest in a repository that is written to: from the cache, else by GET with the push credential. None: the
    /// registry says that it does not exist, or that a child of an index does not, if a PUT would not say so.
    ///
    /// # Errors
    /// Anything else, including a 404 without a registry's error code.
    pub async fn get_cached(
        &self,
        repository: &Repository,
        digest: Digest,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<Option<Manifest>, Error> {
        let reference = Reference::Digest(digest);
        let found = if let Some(manifest) = self.cached(repository, &reference, credential) {
            Some(manifest)
        } else {
            let rights = Rights::Push { puts: 0 };
            self.read(repository, &reference, credential, rights, progress)
                .await?
        };
        let Some(manifest) = found else {
            return Ok(None);
        };
        let whole = self.is_whole(repository, &manifest, credential, progress);
        Ok(whole.await?.then_some(manifest))
    }

    /// Forgets a manifest, so that the next read asks the registry.
    pub fn forget_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
        credential: &Credential,
    ) {
        self.0
            .manifests
            .invalidate(&manifest_key(repository, digest, credential));
    }

    pub(crate) fn cached(
        &self,
        repository: &Repository,
        reference: &Reference,
        credential: &Credential,
    ) -> Option<Manifest> {
        let Reference::Digest(digest) = reference else {
            return None;
        };
        self.0
            .manifests
            .get(&manifest_key(repository, *digest, credential))
    }

    /// Keeps a manifest that a repository was just seen to have, or given.
    pub(crate) fn remember(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        credential: &Credential,
    ) {
        if manifest.is_large() {
            return;
        }
        let key = manifest_key(repository, manifest.digest, credential);
        // Kept anew is dearer than looked up, and a float's tags show the same few over and over.
        if self.0.manifests.get(&key).is_none() {
            self.0.manifests.insert(key, manifest.clone());
        }
    }

    /// GET with a pull token, or one that may push too. Only a typed 404 is absence: a bare one may be a proxy's, or mean a wrong
    /// address.
    async fn read(
        &self,
        repository: &Repository,
        reference: &Reference,
        credential: &Credential,
        rights: Rights,
        progress: &Progress,
    ) -> Result<Option<Manifest>, Error> {
        let what = named(repository, reference);
        let endpoint = self.endpoint(repository)?;
        let push = rights != Rights::Pull;
        let access = Access::new(&endpoint, credential, repository, push);
        let mut request = self.manifest_request(Method::GET, &what, reference, &access, progress);
        if let Rights::Push { puts } = rights {
            request.puts = puts;
        }
        let (mut cuts, mut hold) = (1, None);
        loop {
            let got = match self
                .get_once(&mut request, &what, reference, hold.is_some())
                .await
            {
                Err(error) if error.is_cut() && cuts < CUTS_MAX => {
                    cuts += 1;
                    continue;
                }
                got => got?,
            };
            match got {
                Got::Absent => return Ok(None),
                // Nothing of it was read: whoever waits for memory holds no place meanwhile.
                Got::Large => hold = Some(progress.hold(&self.0.reserve).await?),
                Got::Manifest(mut manifest) => {
                    self.remember(repository, &manifest, credential);
                    manifest.hold = hold.filter(|_| manifest.is_large());
                    return Ok(Some(manifest));
                }
            }
        }
    }

    async fn get_once(
        &self,
        request: &mut RegistryRequest<'_>,
        what: &str,
        reference: &Reference,
        reserved: bool,
    ) -> Result<Got, Error> {
        let reply = self.transport().send(request).await;
        let reply = reply?;
        match reply.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let decides = request.access.push;
                let answer = reply.absence(what, decides).await?;
                if answer.says_absent() {
                    return Ok(Got::Absent);
                }
                let message =
                    format!("{what}: a 404 that does not say what is missing; not taken as absent");
                let error = Error::attempt(Reason::RegistryError, message);
                return Err(error.with_status(answer.status));
            }
            _ => return Err(reply.refusal(what).await),
        }
        let content_type = reply.header(CONTENT_TYPE.as_str()).map(str::to_owned);
        let stated = reply.header("docker-content-digest").map(str::to_owned);
        let bytes = match reply.manifest_body(what, reserved).await? {
            ManifestBody::All(bytes) => bytes,
            ManifestBody::Large => return Ok(Got::Large),
            ManifestBody::TooLarge => {
                let message =
                    format!("{what}: the manifest is larger than 4 MiB; make the image smaller");
                return Err(Error::terminal(Reason::TooLarge, message));
            }
        };
        let named = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        let what = what.to_owned();
        let read = move || {
            let (content_type, stated) = (content_type.as_deref(), stated.as_deref());
            Manifest::read(&what, bytes, content_type, named, stated).map(Got::Manifest)
        };
        if reserved {
            self.0.reserve.compute(read).await
        } else {
            read()
        }
    }

    /// Whether a repository has the manifest of this digest, asked by HEAD.
    pub(crate) async fn has_manifest(
        &self,
        access: &Access<'_>,
        digest: Digest,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let reference = Reference::Digest(digest);
        let what = named(access.repository, &reference);
        let request = self.manifest_request(Method::HEAD, &what, &reference, access, progress);
        self.is_there(request).await
    }

    /// Whether there is what a HEAD asks for.
    pub(crate) async fn is_there(&self, mut request: RegistryRequest<'_>) -> Result<bool, Error> {
        let reply = self.transport().send(&mut request).await?;
        match reply.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(reply.refusal(request.what).await),
        }
    }

    /// A request for one manifest, without content.
    pub(crate) fn manifest_request<'a>(
        &self,
        method: Method,
        what: &'a str,
        reference: &Reference,
        access: &'a Access<'a>,
        progress: &'a Progress,
    ) -> RegistryRequest<'a> {
        let path = access.repository.path();
        let url = access
            .endpoint
            .url(format_args!("{path}/manifests/{reference}"));
        let headers = [(ACCEPT, HeaderValue::from_static(ACCEPTED))];
        RegistryRequest {
            headers: headers.into_iter().collect(),
            timeout: Some(self.transport().settings.request_timeout),
            ..RegistryRequest::new(method, url, what, Lane::Manifests, access, progress)
        }
    }
}

fn manifest_key(repository: &Repository, digest: Digest, credential: &Credential) -> ManifestKey {
    ManifestKey {
        credential: credential.key(),
        repository: repository.clone(),
        digest,
    }
}

/// How messages name a manifest.
pub(crate) fn named(repository: &Repository, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{}", digest.short()),
    }
}
