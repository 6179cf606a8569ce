//! The only place that speaks to registries.
//!
//! Operations of the OCI distribution protocol come in, as the engine thinks of them (look at a float, copy an image, set a
//! tag); manifests and classed errors come out. An operation waits inside while its host is unavailable and says so in its
//! [`Progress`]; a caller that drops the future ends the wait.
//!
//! Guaranteed: manifests are never re-serialised and every digest is computed here; absence is believed only where the registry
//! says so with a typed 404 to a credential that may push there; a tag that may have been written is never written again from
//! here; what one credential was granted or shown never serves another; memory does not grow with the size of images.
//!
//! In reading order: `error`; `auth` (who asks, with what right), `host` (what one host is asked to bear, and whose request goes next),
//! `wire` (one request: `send` has its whole path, `classify` and `dialect` what answers mean, `egress` who may be connected to),
//! `ops` (what the engine asks for). Each knows only those before it.

mod auth;
mod endpoint;
mod error;
mod host;
mod ops;
mod settings;
mod single_flight;
mod wire;

pub use auth::credential::{Credential, Remote};
pub use auth::keyring::{Keyring, KeyringError};
pub use error::{BuildError, Class, Error};
pub use host::progress::{Progress, Waiting};
pub use ops::client::RegistryClient;
pub use ops::labels::TagLabels;
pub use ops::manifest::Manifest;
pub use ops::put::Put;
pub use ops::referrer_list::{Referrer, list_with};
pub use ops::referrers::Listing;
pub use settings::{Proxies, Settings};
pub(crate) use single_flight::SingleFlight;
