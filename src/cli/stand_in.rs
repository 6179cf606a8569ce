//! `--embedded-registry` and `registry`: a registry in memory in place of the real ones. No other file knows whether the program
//! is built with it.

#[cfg(not(feature = "embedded-registry"))]
mod absent;
#[cfg(feature = "embedded-registry")]
mod embedded;
#[cfg(feature = "embedded-registry")]
mod serve;

use std::path::Path;

use super::credentials;
use crate::registry::Keyring;
#[cfg(not(feature = "embedded-registry"))]
pub(super) use absent::{StandInArgs, StandInCommand, StandIns};
#[cfg(feature = "embedded-registry")]
pub(super) use embedded::{StandInArgs, StandIns};
#[cfg(feature = "embedded-registry")]
pub(super) use serve::StandInCommand;

impl StandInArgs {
    /// The credentials of a run. The embedded registry has no users and must not be sent anybody's password unasked.
    pub(super) fn credentials(&self, config: Option<&Path>) -> Result<Keyring, String> {
        if self.is_set() && config.is_none() {
            return Ok(Keyring::anonymous());
        }
        credentials::find(config)
    }
}
