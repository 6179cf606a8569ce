//! The only module that speaks to registries.
//!
//! It offers the operations of the OCI distribution protocol that the engine needs (read a float, copy an image, set a tag) and returns
//! manifests and classified errors. An operation waits while its host is unavailable, and says so in its [`Progress`]; to end the wait, drop
//! the future.
//!
//! Guaranteed: manifests are never re-serialised, and every digest is computed here. Absence is believed only on a typed 404 to a
//! credential that may push there. A tag that may have been written is never written again from here. What one credential was granted or
//! shown never serves another. Memory does not grow with the size of images.
//!
//! In reading order: `error`; `transport` (what a simulation puts in the place of the network); `auth` (credentials, challenges, tokens), `host` (the limits of one host, and whose request goes next), `wire`
//! (one request: `send` is its whole path, `classify` and `dialect` say what answers mean, `egress` who may be connected to), `ops` (what
//! the engine asks for). Each knows only those before it.

mod auth;
mod endpoint;
mod error;
mod host;
mod ops;
mod settings;
mod single_flight;
mod transport;
mod wire;

pub use auth::credential::{Credential, Remote};
pub use auth::keyring::{Keyring, KeyringError};
pub use error::{BuildError, Class, Error};
pub use host::progress::{Progress, Waiting};
pub use ops::below::Below;
pub use ops::client::RegistryClient;
pub use ops::manifest::Manifest;
pub use ops::put::Put;
pub use ops::referrer_list::{Referrer, list_with};
pub use ops::referrers::Listing;
pub use settings::{Proxies, Settings};
pub(crate) use single_flight::SingleFlight;
pub use transport::{Sent, Wire, WireError};

#[cfg(test)]
mod tests;
