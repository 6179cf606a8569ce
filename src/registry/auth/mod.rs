//! Who asks, with what right, and how that is shown.

pub(crate) mod access;
pub(crate) mod credential;
pub(crate) mod keyring;
