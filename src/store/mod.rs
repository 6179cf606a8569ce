//! Where requests live: the Kubernetes API ([`cluster`]) or a file ([`file`]).
//!
//! The engine knows only this trait: read an object freshly, save its status if nobody changed it meanwhile, find its
//! credentials, publish what happened.

pub(crate) mod call;
pub mod cluster;
pub mod credentials;
pub mod file;
pub mod kept;
pub mod requests;
mod stored;
pub mod streams;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::PromotionRequest;
pub use crate::coordinator::Key;
use crate::image::{Float, Repository, Source};
use crate::machine::Reason;
use crate::registry::Keyring;
use crate::stream::StreamTag;
pub use stored::{Stored, Unreadable};

impl From<&PromotionRequest> for Key {
    fn from(object: &PromotionRequest) -> Self {
        key_of(&object.metadata)
    }
}

/// The name that metadata give.
#[must_use]
pub fn key_of(metadata: &ObjectMeta) -> Key {
    Key {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// Where requests live.
pub trait Store: Send + Sync + 'static {
    /// The current object, from the source of truth and not from a cache; none if it was deleted.
    fn load(
        &self,
        key: &Key,
    ) -> impl Future<Output = Result<Option<PromotionRequest>, StoreError>> + Send;

    /// Saves the object's status, provided that nobody changed the object since it was loaded; gives what is stored now.
    fn save(
        &self,
        object: &PromotionRequest,
    ) -> impl Future<Output = Result<PromotionRequest, StoreError>> + Send;

    /// The credentials the object may use.
    fn access(
        &self,
        object: &PromotionRequest,
    ) -> impl Future<Output = Result<Access, AccessError>> + Send;

    /// The same, where a registry has just rejected what was read before: nothing remembered serves.
    fn access_anew(
        &self,
        object: &PromotionRequest,
    ) -> impl Future<Output = Result<Access, AccessError>> + Send;

    /// Publishes an event about the object. Never fails: an event is not worth a promotion.
    fn publish(&self, object: &PromotionRequest, event: Event) -> impl Future<Output = ()> + Send;

    /// The image streams beside the requests, where there are any.
    fn streams(&self) -> Option<&streams::Streams> {
        None
    }

    /// Whether requests of a namespace may have this tag, of a stream in the namespace beside it, follow the float.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn grants(&self, _: &str, _: &Float, _: (&str, &StreamTag)) -> Result<(), String> {
        Err("there are no image streams here".into())
    }
}

/// Why an object could not be loaded or saved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Somebody changed it since it was loaded: load it again.
    #[error("{0} was changed meanwhile")]
    Conflict(Key),
    /// It is gone.
    #[error("{0} is gone")]
    Gone(Key),
    /// This version cannot read it.
    #[error("{0}: {why}", why = .1.why)]
    Unreadable(Key, Box<Unreadable>),
    /// It could not be reached, or refused; try again.
    #[error("cannot {verb} {key}: {message}")]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// On which object.
        key: Key,
        /// What came back.
        message: String,
    },
}

/// What an object may use.
#[derive(Debug, Clone)]
pub struct Access {
    /// Sources are read with this.
    pub pull: Keyring,
    /// Everything in the floats' repositories is done with this.
    pub push: Keyring,
    /// Sources by digest that may be promoted only if they are staged in their floats' repositories.
    pub if_staged: Box<[Source]>,
}

impl Access {
    /// Whatever a request names may be promoted: the credentials are its own.
    #[must_use]
    pub fn unconditional(pull: Keyring, push: Keyring) -> Self {
        Self {
            pull,
            push,
            if_staged: Box::default(),
        }
    }

    /// Whether the same is sent to these repositories, for reading from the first and for the second.
    #[must_use]
    pub fn is_same_for(&self, other: &Self, source: &Repository, float: &Repository) -> bool {
        self.pull.credential(source).ok() == other.pull.credential(source).ok()
            && self.push.credential(float).ok() == other.push.credential(float).ok()
    }
}

/// Why an object's credentials cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The Secret is not there (yet).
    #[error("{0}")]
    NotFound(String),
    /// The Secret is there and cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// No rule lets the object use the controller's own.
    #[error("{0}")]
    NotAllowed(String),
    /// Not known now; ask again.
    #[error("{0}")]
    Unavailable(String),
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From the closed set.
    pub reason: Reason,
    /// One line.
    pub note: String,
    /// Whether a person should look.
    pub warning: bool,
}
