//! The brake: what the controller's operator has stopped.
//!
//! In comes the text of the key `paused`; out comes, for the registries that work has to do with, whether it is stopped and a line
//! that says so. A text that cannot be read stops everything: whoever reached for the brake meant it.

use crate::policy::HostPattern;

/// What is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brake {
    stopped: Stopped,
    /// Why, and how to go on.
    message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Stopped {
    #[default]
    Nothing,
    Hosts(Vec<HostPattern>),
    Everything,
}

impl Brake {
    /// Nothing is launched before it is known what is stopped; the message says why it is not.
    #[must_use]
    pub fn unknown(message: String) -> Self {
        Self {
            stopped: Stopped::Everything,
            message,
        }
    }

    /// Reads `all`, or hosts as `--allow-registry` takes them, with commas or blanks between; nothing, and `false`, stop nothing.
    /// `place` is how messages name where it was read: `ConfigMap ci/promotion-controller`.
    #[must_use]
    pub fn parse(text: &str, place: &str) -> Self {
        let text = text.trim();
        if matches!(text, "" | "false") {
            return Self::default();
        }
        let message = |shown: &str| {
            format!("paused by {place} (paused: {shown}); take the key away to go on")
        };
        if text == "all" {
            return Self {
                stopped: Stopped::Everything,
                message: message(text),
            };
        }
        let words = text.split([',', ' ', '\t', '\n', '\r']);
        let hosts: Option<Vec<_>> = words.filter(|word| !word.is_empty()).map(host).collect();
        match hosts {
            Some(hosts) => Self {
                stopped: Stopped::Hosts(hosts),
                message: message(&text.split_whitespace().collect::<Vec<_>>().join(" ")),
            },
            None => Self {
                stopped: Stopped::Everything,
                message: format!(
                    "paused altogether, because {place} has a key paused that is neither all nor HOST[:PORT]; correct it, or take it away"
                ),
            },
        }
    }

    /// The line for work that has to do with these registries, if it is stopped.
    #[must_use]
    pub fn stops<'a>(&self, mut hosts: impl Iterator<Item = &'a str>) -> Option<&str> {
        let stops = match &self.stopped {
            Stopped::Nothing => false,
            Stopped::Hosts(stopped) => hosts.any(|host| stopped.iter().any(|s| s.matches(host))),
            Stopped::Everything => true,
        };
        stops.then_some(&self.message)
    }

    /// How much is stopped, as metrics say it.
    pub(super) const fn scope(&self) -> Option<&'static str> {
        match self.stopped {
            Stopped::Nothing => None,
            Stopped::Hosts(_) => Some("hosts"),
            Stopped::Everything => Some("all"),
        }
    }

    /// The line, if anything is stopped.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        (self.stopped != Stopped::Nothing).then_some(&self.message)
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

    fn stops(text: &str, host: &str) -> bool {
        Brake::parse(text, PLACE)
            .stops([host].into_iter())
            .is_some()
    }

    #[test]
    fn it_stops_the_hosts_it_names_and_no_others() {
        for text in [
            "quay.io",
            " Quay.io\n",
            "registry.ci.openshift.org, quay.io:443",
            "other.io quay.io",
            "**.io",
        ] {
            assert!(stops(text, "quay.io"), "{text}");
            assert!(!stops(text, "gcr.example.com"), "{text}");
        }
        assert!(stops("localhost:5000", "localhost:5000"));
        assert!(!stops("localhost:5000", "localhost:5001"));
        let brake = Brake::parse("quay.io", PLACE);
        assert_eq!(
            brake.message(),
            Some(
                "paused by ConfigMap ci/promotion-controller (paused: quay.io); take the key away to go on"
            )
        );
        assert_eq!(
            brake.stops(["gcr.example.com", "quay.io"].into_iter()),
            brake.message()
        );
    }

    #[test]
    fn nothing_and_false_stop_nothing_and_whatever_cannot_be_read_everything() {
        for text in ["", "  \n", "false"] {
            assert!(!stops(text, "quay.io"), "{text:?}");
            assert_eq!(Brake::parse(text, PLACE), Brake::default());
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
            assert!(stops(text, "quay.io"), "{text:?}");
            assert!(stops(text, "gcr.example.com"), "{text:?}");
        }
        assert!(
            Brake::unknown("not read yet".into())
                .stops(std::iter::empty())
                .is_some()
        );
    }
}
