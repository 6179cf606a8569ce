//! Who may promote what: the registries that may be contacted.
//!
//! Pure: patterns and parsed names in, a refusal or nothing out.

use crate::machine::Request;

/// A host, where `*` stands for any run of letters, digits and dashes within one label, and `**` also for dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(String);

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a host pattern: write HOST[:PORT] in lower case, with * for one label's part or ** for several labels"
)]
pub struct PatternError(String);

impl std::str::FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:*[]".contains(c);
        if s.is_empty() || !s.chars().all(fits) {
            return Err(PatternError(s.into()));
        }
        Ok(Self(s.strip_suffix(":443").unwrap_or(s).into()))
    }
}

impl HostPattern {
    /// Whether a host, as parsed, is meant.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        matches(self.0.as_bytes(), host.as_bytes())
    }

    /// The one host that is meant, where it is only one.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|pattern| !pattern.contains('*'))
    }

    /// Whether a host is meant by name: stars alone match everybody and name nobody.
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        let name = match self.0.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => &self.0,
        };
        name.contains(|c: char| c.is_ascii_alphanumeric()) && self.matches(host)
    }
}

/// Glob on bytes, in one pass over the pattern: hosts come from specs and redirects, and no pattern may make one of them costly.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Of which beginnings of the text, by length, the pattern so far is a match.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    let mut rest = pattern;
    loop {
        rest = match rest {
            [] => return ends[text.len()],
            [b'*', b'*', rest @ ..] => {
                for n in 0..text.len() {
                    ends[n + 1] |= ends[n];
                }
                rest
            }
            [b'*', rest @ ..] => {
                for n in 0..text.len() {
                    ends[n + 1] |= ends[n] && !matches!(text[n], b'.' | b':');
                }
                rest
            }
            [c, rest @ ..] => {
                for n in (0..text.len()).rev() {
                    ends[n + 1] = ends[n] && text[n] == *c;
                }
                ends[0] = false;
                rest
            }
        };
    }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// What a pattern means, in its plainest words.
    fn means(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| means(rest, &text[n..])),
            [b'*', rest @ ..] => {
                let in_label = text.iter().take_while(|c| !matches!(c, b'.' | b':'));
                (0..=in_label.count()).any(|n| means(rest, &text[n..]))
            }
            [c, rest @ ..] => text.first() == Some(c) && means(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_means(pattern in "[ab.:*]{0,8}", host in "[ab.:]{0,8}") {
            let (pattern, host) = (pattern.as_bytes(), host.as_bytes());
            prop_assert_eq!(matches(pattern, host), means(pattern, host));
        }

        #[test]
        fn any_text_is_a_pattern_or_refused_and_asks_any_host_nothing_but_time(text in "\\PC{0,40}", host in "\\PC{0,40}") {
            if let Ok(pattern) = text.parse::<HostPattern>() {
                prop_assert!(!pattern.names(&host) || pattern.matches(&host));
            }
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_no_more_costly_than_it_is_long() {
        let pattern: HostPattern = format!("{}b", "**a*a".repeat(400)).parse().unwrap();
        let host = "a".repeat(4000);
        let begun = std::time::Instant::now();
        assert!(!pattern.matches(&host));
        assert!(pattern.matches(&format!("{host}b")));
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn a_star_stays_within_a_label_and_two_cross_dots() {
        let pattern = |s: &str| s.parse::<HostPattern>().unwrap();
        assert!(pattern("quay.io").matches("quay.io"));
        assert!(!pattern("quay.io").matches("quay.io.evil.example"));
        assert!(!pattern("quay.io").matches("quay.io:5000"));
        assert!(
            pattern("registry.*.ci.openshift.org").matches("registry.build02.ci.openshift.org")
        );
        assert!(!pattern("registry.*.ci.openshift.org").matches("registry.a.b.ci.openshift.org"));
        assert!(pattern("**.openshift.org").matches("registry.a.b.ci.openshift.org"));
        assert!(pattern("127.0.0.1:*").matches("127.0.0.1:5000"));
        assert!(pattern("quay.io:443").matches("quay.io"));
        assert!(pattern("[fd00::1]:5000").matches("[fd00::1]:5000"));
        assert!("Quay.io".parse::<HostPattern>().is_err());
        assert!("".parse::<HostPattern>().is_err());
    }

    #[test]
    fn stars_alone_match_everybody_and_name_nobody() {
        for pattern in ["**", "*", "**:*", "*.*", "*:5000", "**:5000", "[*]"] {
            let pattern: HostPattern = pattern.parse().unwrap();
            for host in ["quay.io", "localhost:5000", "10.0.0.1", "[::1]"] {
                assert!(!pattern.names(host), "{pattern:?} {host}");
            }
        }
        for (pattern, host) in [
            ("quay.io", "quay.io"),
            ("127.0.0.1:*", "127.0.0.1:5000"),
            ("[::1]", "[::1]"),
            ("[::1]:*", "[::1]:5000"),
            ("**.svc", "registry.ci.svc"),
        ] {
            assert!(
                pattern.parse::<HostPattern>().unwrap().names(host),
                "{pattern} {host}"
            );
        }
        assert!(
            !"quay.io"
                .parse::<HostPattern>()
                .unwrap()
                .names("quay.io:5000")
        );
    }
}
