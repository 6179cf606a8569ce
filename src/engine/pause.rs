//! What the controller's operator has paused.
//!
//! Input: the text of the key `paused`. Output: whether work on given registries is paused, and a line that says so. A text that cannot
//! be read pauses everything: whoever set it meant to pause.

use crate::policy::HostPattern;

/// What is paused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pause {
    scope: Scope,
    /// Why, and how to go on.
    message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Scope {
    #[default]
    Nothing,
    Hosts(Vec<HostPattern>),
    Everything,
}

impl Pause {
    /// Nothing is launched before it is known what is paused; the message says why it is not.
    #[must_use]
    pub fn unknown(message: String) -> Self {
        Self {
            scope: Scope::Everything,
            message,
        }
    }

    /// Reads `all`, or hosts as `--allow-registry` takes them, with commas or blanks between; nothing, and `false`, pause nothing.
    /// `place` is how messages name where it was read: `ConfigMap ci/promotion-controller`.
    #[must_use]
    pub fn parse(text: &str, place: &str) -> Self {
        let text = text.trim();
        if matches!(text, "" | "false") {
            return Self::default();
        }
        let message =
            |shown: &str| format!("paused by {place} (paused: {shown}); remove the key to resume");
        if text == "all" {
            return Self {
                scope: Scope::Everything,
                message: message(text),
            };
        }
        let words = text.split([',', ' ', '\t', '\n', '\r']);
        let hosts: Option<Vec<_>> = words.filter(|word| !word.is_empty()).map(host).collect();
        match hosts {
            Some(hosts) => Self {
                scope: Scope::Hosts(hosts),
                message: message(&text.split_whitespace().collect::<Vec<_>>().join(" ")),
            },
            None => Self {
                scope: Scope::Everything,
                message: format!(
                    "everything is paused, because {place} has a key paused that is neither all nor HOST[:PORT]; correct or remove it"
                ),
            },
        }
    }

    /// Whether work that has to do with these registries is paused.
    #[must_use]
    pub fn is_paused_for<'a>(&self, mut hosts: impl Iterator<Item = &'a str>) -> bool {
        match &self.scope {
            Scope::Nothing => false,
            Scope::Hosts(paused) => hosts.any(|host| paused.iter().any(|s| s.matches(host))),
            Scope::Everything => true,
        }
    }

    /// The line for work that has to do with these registries, if it is paused.
    pub(super) fn message_for<'a>(&self, hosts: impl Iterator<Item = &'a str>) -> Option<String> {
        self.is_paused_for(hosts).then(|| self.message.clone())
    }

    /// How much is paused, as metrics say it.
    pub(super) const fn scope(&self) -> Option<&'static str> {
        match self.scope {
            Scope::Nothing => None,
            Scope::Hosts(_) => Some("hosts"),
            Scope::Everything => Some("all"),
        }
    }

    /// The line, if anything is paused.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        (self.scope != Scope::Nothing).then_some(&self.message)
    }
}

/// A word that can only be meant as a host: `true` and `yes` are none.
fn host(word: &str) -> Option<HostPattern> {
    let meant = word == "localhost" || word.contains(['.', ':', '*']);
    word.to_ascii_lowercase().parse().ok().filter(|_| meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "ConfigMap ci/promotion-controller";

    fn is_paused(text: &str, host: &str) -> bool {
        Pause::parse(text, PLACE).is_paused_for([host].into_iter())
    }

    #[test]
    fn it_pauses_the_hosts_it_names_and_no_others() {
        for text in [
            "quay.io",
            " Quay.io\n",
            "registry.ci.openshift.org, quay.io:443",
            "other.io quay.io",
            "**.io",
        ] {
            assert!(is_paused(text, "quay.io"), "{text}");
            assert!(!is_paused(text, "gcr.example.com"), "{text}");
        }
        assert!(is_paused("localhost:5000", "localhost:5000"));
        assert!(!is_paused("localhost:5000", "localhost:5001"));
        let pause = Pause::parse("quay.io", PLACE);
        assert_eq!(
            pause.message(),
            Some(
                "paused by ConfigMap ci/promotion-controller (paused: quay.io); remove the key to resume"
            )
        );
        assert!(pause.is_paused_for(["gcr.example.com", "quay.io"].into_iter()));
    }

    #[test]
    fn nothing_and_false_pause_nothing_and_whatever_cannot_be_read_everything() {
        for text in ["", "  \n", "false"] {
            assert!(!is_paused(text, "quay.io"), "{text:?}");
            assert_eq!(Pause::parse(text, PLACE), Pause::default());
        }
        for text in [
            "all",
            " all ",
            "true",
            "yes",
            "quay",
            "quay.io/openshift",
            "quay.io, yes",
            "https://quay.io",
            "\u{0}",
        ] {
            assert!(is_paused(text, "quay.io"), "{text:?}");
            assert!(is_paused(text, "gcr.example.com"), "{text:?}");
        }
        assert!(Pause::unknown("not read yet".into()).is_paused_for(std::iter::empty()));
    }
}
