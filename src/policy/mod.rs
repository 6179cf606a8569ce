//! Who may promote what: the registries that may be contacted, and the rules for the controller's own credentials.
//!
//! Pure: patterns and parsed names in, a refusal or nothing out.
//!
//! In reading order: [`pattern`](SourcePattern), [`rules`](Rules), [`Policy`].

mod pattern;
mod rules;

pub use pattern::{
    FloatPattern, HostPattern, NamespacePattern, PatternError, SourcePattern, StreamTagPattern,
};
pub use rules::{Grant, RULES_MAX, Rule, Rules, RulesError, missing_rule, missing_stream_rule};

use crate::machine::Request;

/// What is allowed.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The registries that may be contacted; none: every one (`promote` has no list).
    pub registries: Option<Vec<HostPattern>>,
}

impl Policy {
    /// Whether a request may be carried out; the refusal names the field and the remedy.
    ///
    /// # Errors
    /// The message of a `NotAllowed`.
    pub fn check(&self, request: &Request) -> Result<(), String> {
        let Some(allowed) = &self.registries else {
            return Ok(());
        };
        let allows = |host: &str| allowed.iter().any(|pattern| pattern.matches(host));
        for (index, image) in request.spec.images.iter().enumerate() {
            let hosts = [
                ("source", image.source.repository.host()),
                ("float", image.float.repository().host()),
            ];
            for (field, host) in hosts {
                if !allows(host) {
                    return Err(format!(
                        "spec.images[{index}].{field}: the registry {host} is not on the list; \
                         have --allow-registry {host} added, or use one that is"
                    ));
                }
            }
        }
        Ok(())
    }
}
