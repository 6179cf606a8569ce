//! One request: built, sent to an address that may be asked, and its answer read.

pub(crate) mod authorize;
pub(crate) mod clients;
pub(crate) mod dialect;
pub(crate) mod egress;
pub(crate) mod location;
pub(crate) mod network;
pub(crate) mod reply;
pub(crate) mod send;
