//! Who asks, with what right, and how that is shown.

pub(crate) mod access;
pub(crate) mod challenge;
pub(crate) mod credential;
pub(crate) mod glob;
pub(crate) mod keyring;
pub(crate) mod token;
