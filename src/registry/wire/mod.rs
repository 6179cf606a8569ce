//! One request: built, authorized, sent to an address that may be asked, and its answer read.

pub(crate) mod answer;
pub(crate) mod authorize;
pub(crate) mod cause;
pub(crate) mod classify;
pub(crate) mod clients;
pub(crate) mod dialect;
pub(crate) mod egress;
pub(crate) mod location;
pub(crate) mod network;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod send;
pub(crate) mod tokens;
pub(crate) mod trust;
pub(crate) mod wide_token;
