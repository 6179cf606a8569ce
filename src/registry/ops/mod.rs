//! What the engine asks of registries.

pub(crate) mod blob;
pub(crate) mod client;
pub(crate) mod copy;
pub(crate) mod download;
pub(crate) mod estimate;
pub(crate) mod expiry;
pub(crate) mod get;
pub(crate) mod job;
pub(crate) mod known;
pub(crate) mod manifest;
pub(crate) mod put;
pub(crate) mod referrers;
pub(crate) mod sparse;
pub(crate) mod upload;
