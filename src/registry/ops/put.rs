//! Sets tags.
//!
//! Guaranteed: the caller's gate is asked directly before every sending, with no await between; a PUT that may have landed is not
//! repeated; only 201 with our digest counts as written.

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use std::time::Duration;

use super::client::RegistryClient;
use super::get::named;
use super::manifest::Manifest;
use crate::image::{Reference, Repository, Tag};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::error::{Error, Meaning};
use crate::registry::host::limits::Connection;
use crate::registry::host::progress::Progress;
use crate::registry::wire::reply::Reply;
use crate::registry::wire::request::{Content, Failure};

/// How long something may be waited out between a look at a tag and its PUT.
pub(super) const TAG_PUT_MAX_DELAY: Duration = Duration::from_secs(1);

/// How long a PUT may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// In total, once it is sent.
    pub(crate) timeout: Duration,
    /// Until it is sent, if something has to be waited out; none: no limit.
    pub(crate) patience: Option<Duration>,
}

/// The outcome of a PUT of a manifest, or of a tag's deletion.
#[derive(Debug)]
pub enum Put {
    /// 201, and our digest back.
    Written,
    /// A definite no: nothing was written.
    Refused(Error),
    /// Refused because a blob or child manifest is unknown there.
    ContentMissing(Error),
    /// Refused because the tag is immutable.
    Immutable(Error),
    /// Timed out, reset, 408, any 5xx, another digest answered: it may land at any time.
    Unknown(Error),
    /// The gate was closed.
    NotSent,
}

impl RegistryClient {
    /// PUT of the exact bytes to a tag that was read just before. Waits for a token and a place, but not for the pacing, which later
    /// requests make up for; then asks `gate` and sends, with no await between. Total time: `put_timeout`.
    ///
    /// 429, maintenance, a failed connection and a 401 (one fresh token) are waited out for a moment, and the gate is asked again each
    /// time. What lasts longer is [`Put::Refused`] with an error of class `Wait`, so that the caller reads the tag again before the next
    /// PUT. Never repeated after [`Put::Unknown`].
    pub async fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        manifest: &Manifest,
        credential: &Credential,
        gate: impl Fn() -> bool + Send,
        progress: &Progress,
    ) -> Put {
        let endpoint = match self.endpoint(repository) {
            Ok(endpoint) => endpoint,
            Err(error) => return Put::Refused(error),
        };
        let access = Access::new(&endpoint, credential, repository, true);
        let bounds = Bounds {
            timeout: self.put_timeout(),
            patience: Some(TAG_PUT_MAX_DELAY),
        };
        let reference = Reference::Tag(tag.clone());
        self.put(&access, &reference, manifest, bounds, gate, progress)
            .await
            .0
    }

    /// How long a tag PUT may take, once it is sent.
    #[must_use]
    pub fn put_timeout(&self) -> Duration {
        self.transport().settings.put_timeout
    }

    /// PUT of a manifest by tag or by its digest; and whether the registry says that it took note of what the manifest refers to.
    pub(crate) async fn put(
        &self,
        access: &Access<'_>,
        reference: &Reference,
        manifest: &Manifest,
        bounds: Bounds,
        gate: impl Fn() -> bool + Send,
        progress: &Progress,
    ) -> (Put, bool) {
        let what = named(access.repository, reference);
        let mut request = self.manifest_request(Method::PUT, &what, reference, access, progress);
        let Ok(media_type) = HeaderValue::from_str(&manifest.media_type) else {
            let message = format!("{what}: its media type is no header");
            let error = Error::terminal(Reason::UnsupportedManifest, message);
            return (Put::Refused(error), false);
        };
        request.headers.insert(CONTENT_TYPE, media_type);
        request.content = Content::Bytes(manifest.bytes.clone());
        request.timeout = Some(bounds.timeout);
        request.patience = bounds.patience;
        if bounds.patience.is_some() {
            request.connection = Connection::Prompt;
        }
        let (put, noted) = match self.transport().send_gated(&mut request, gate).await {
            Ok(reply) => {
                let noted = reply.header("oci-subject").is_some();
                (outcome(&what, manifest, reply).await, noted)
            }
            Err(Failure::Refused(error) | Failure::Restart(error)) => (refused(error), false),
            Err(Failure::OutcomeUnknown(error)) => (Put::Unknown(error), false),
            Err(Failure::NotSent) => (Put::NotSent, false),
        };
        match put {
            Put::Written => self.remember(access.repository, manifest, access.credential),
            Put::ContentMissing(_) => self.forget_parts(access, manifest),
            _ => {}
        }
        (put, noted)
    }
}

async fn outcome(what: &str, manifest: &Manifest, reply: Reply) -> Put {
    let status = reply.status();
    if status == StatusCode::CREATED {
        let stated = reply
            .header("docker-content-digest")
            .filter(|stated| stated.starts_with("sha256:"));
        return match stated {
            Some(stated) if stated != manifest.digest.to_string() => {
                let message = format!("{what}: written, and the registry answered another digest");
                Put::Unknown(Error::attempt(Reason::DigestMismatch, message))
            }
            _ => Put::Written,
        };
    }
    let error = reply.answer().await.error(what);
    if status.is_client_error() || status.is_redirection() {
        refused(error)
    } else {
        Put::Unknown(error)
    }
}

/// A definite no, told apart by what it means.
pub(super) fn refused(error: Error) -> Put {
    match error.meaning() {
        Some(Meaning::Immutable) => Put::Immutable(error),
        Some(Meaning::ContentMissing) => Put::ContentMissing(error),
        _ => Put::Refused(error),
    }
}
