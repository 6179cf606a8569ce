//! What the engine asks of registries.

pub(crate) mod below;
pub(crate) mod blob;
pub(crate) mod client;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod download;
pub(crate) mod estimate;
pub(crate) mod expiry;
pub(crate) mod first_of;
pub(crate) mod get;
pub(crate) mod job;
pub(crate) mod known;
pub(crate) mod labels;
pub(crate) mod manifest;
pub(crate) mod media_type;
pub(crate) mod push_check;
pub(crate) mod put;
pub(crate) mod referrer_list;
pub(crate) mod referrers;
pub(crate) mod sparse;
pub(crate) mod upload;
