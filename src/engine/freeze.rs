//! Which floats the installation's operator keeps where they are.
//!
//! Input: a text with a freeze a line, `PATTERN [until=TIME] [except=NAMESPACE/NAME] REASON`; empty lines and those that begin with `#`
//! say nothing. Output: the freeze of each float of a request at a given time. A line that cannot be read lets no float move, and
//! nothing else waits for it: whoever wrote it meant some float.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::image::Float;
use crate::machine::{Freeze, Mode, Request, whole_second};
use crate::policy::FloatPattern;
use crate::store::Key;

/// The most lines that are read.
pub const LINES_MAX: usize = 1_000;
/// The longest reason, in bytes.
const REASON_MAX: usize = 160;
const UNTIL: &str = "until=";
const EXCEPT: &str = "except=";

/// What is frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freezes {
    lines: Vec<FreezeLine>,
    /// Why it is not known what else is.
    unreadable: Option<String>,
}

/// One freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeLine {
    floats: FloatPattern,
    /// The same as it was written.
    pub pattern: String,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// The one request that it leaves out.
    pub except: Option<Key>,
    /// Why, for those who wait.
    pub reason: String,
}

// === impl FreezeLine ===

impl FreezeLine {
    /// A freeze without an end and without an exception.
    ///
    /// # Errors
    /// What is wrong with the pattern or the reason.
    pub fn new(pattern: &str, reason: &str) -> Result<Self, String> {
        let floats = pattern.parse().map_err(|error| format!("{error}"))?;
        let reason = reason.trim();
        let wrong = match () {
            () if reason.is_empty() => "say why, for those who wait",
            () if reason.len() > REASON_MAX => "a reason has at most 160 bytes",
            () if reason.contains(char::is_control) => "a reason is one line of text",
            () if [UNTIL, EXCEPT].iter().any(|key| reason.starts_with(key)) => {
                "a reason does not begin with until= or except=; each stands once, until= first"
            }
            () => {
                return Ok(Self {
                    floats,
                    pattern: pattern.into(),
                    until: None,
                    except: None,
                    reason: reason.into(),
                });
            }
        };
        Err(format!("{pattern}: {wrong}"))
    }

    /// Whether it is in force.
    #[must_use]
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// Whether a float is meant.
    #[must_use]
    pub fn matches(&self, float: &Float) -> bool {
        self.floats.matches(float)
    }

    fn holds(&self, float: &Float, request: &str, now: Timestamp) -> bool {
        let excepted = self
            .except
            .as_ref()
            .is_some_and(|key| key.to_string() == request);
        self.is_in_force(now) && !excepted && self.matches(float)
    }

    fn message(&self) -> String {
        let until = self.until.map(|until| format!(" until {until}"));
        format!(
            "frozen{}: {} (freeze of {})",
            until.unwrap_or_default(),
            self.reason,
            self.pattern
        )
    }
}

impl FromStr for FreezeLine {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let split = |text: &str| match text.split_once(' ') {
            Some((word, rest)) => (word.to_owned(), rest.trim_start().to_owned()),
            None => (text.to_owned(), String::new()),
        };
        let (pattern, mut rest) = split(line.trim());
        let mut option = |key: &str| {
            let (word, after) = split(&rest);
            let value = word.strip_prefix(key)?.to_owned();
            rest = after;
            Some(value)
        };
        let (until, except) = (option(UNTIL), option(EXCEPT));
        let until = until.map(|text| {
            text.parse().map_err(|_| {
                format!("{pattern}: {UNTIL}{text} is no time; write it as 2026-12-24T18:00:00Z")
            })
        });
        let except = except.map(|text| match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Key {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => Err(format!("{pattern}: {EXCEPT}{text} is not NAMESPACE/NAME")),
        });
        Ok(Self {
            until: until.transpose()?.map(whole_second),
            except: except.transpose()?,
            ..Self::new(&pattern, &rest)?
        })
    }
}

impl fmt::Display for FreezeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pattern)?;
        if let Some(until) = self.until {
            write!(f, " {UNTIL}{until}")?;
        }
        if let Some(except) = &self.except {
            write!(f, " {EXCEPT}{except}")?;
        }
        write!(f, " {}", self.reason)
    }
}

// === impl Freezes ===

impl Freezes {
    /// Reads a text; `place` is how messages name where it was read.
    #[must_use]
    pub fn parse(text: &str, place: &str) -> Self {
        let mut freezes = Self::default();
        for (number, line) in meant(text) {
            let read = match line.parse() {
                Ok(_) if freezes.lines.len() == LINES_MAX => {
                    Err(format!("more than {LINES_MAX} freezes"))
                }
                read => read,
            };
            match read {
                Ok(line) => freezes.lines.push(line),
                Err(why) => {
                    let why = format!(
                        "no float is let move: line {number} of {place}: {why}; correct it"
                    );
                    freezes.unreadable.get_or_insert(why);
                }
            }
        }
        freezes
    }

    /// It is not known what is frozen, so no float is let move.
    #[must_use]
    pub fn unknown(message: String) -> Self {
        Self {
            lines: Vec::new(),
            unreadable: Some(message),
        }
    }

    /// Each freeze that can be read.
    #[must_use]
    pub fn lines(&self) -> &[FreezeLine] {
        &self.lines
    }

    /// Why it is not known what else is frozen.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// When the next one ends.
    #[must_use]
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.lines.iter().filter_map(|line| line.until);
        ends.filter(|&until| until > now).min()
    }

    /// Says of each float of a request whether it is frozen. A plan moves nothing.
    pub(super) fn mark(&self, key: &Key, request: &mut Request, now: Timestamp) {
        if request.spec.mode == Mode::Plan {
            return;
        }
        let name = key.to_string();
        for image in &mut request.spec.images {
            image.freeze = self.of(&image.float, &name, now);
        }
    }

    /// Whether a float is kept where it is, for a request of this name.
    pub(super) fn holds(&self, float: &Float, request: &str, now: Timestamp) -> bool {
        self.of(float, request, now).is_some()
    }

    fn of(&self, float: &Float, request: &str, now: Timestamp) -> Option<Freeze> {
        let mut lines = self.lines.iter();
        let line = lines.find(|line| line.holds(float, request, now));
        let message = line.map(FreezeLine::message);
        let unreadable = message.is_none();
        let message = message.or_else(|| self.unreadable.clone())?;
        Some(Freeze {
            message,
            unreadable,
        })
    }
}

/// The lines that say something, each with its number.
pub fn meant(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    let lines = lines.map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PLACE: &str = "ConfigMap ci/promotion-controller-freezes";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn message(text: &str, float: &str, request: &str) -> Option<(String, bool)> {
        let now = at("2026-11-28T12:00:00Z");
        let freeze = Freezes::parse(text, PLACE).of(&float.parse().unwrap(), request, now)?;
        Some((freeze.message, freeze.unreadable))
    }

    #[test]
    fn a_line_holds_the_floats_it_means_until_its_end_and_leaves_its_exception_out() {
        let text = "# release week\n\nquay.io/o/ci:4.21_* until=2026-12-01T00:00:00Z except=ci/undo ask #forum\nquay.io/o/other:* broken\n";
        let held = message(text, "quay.io/o/ci:4.21_cli", "ci/r").unwrap();
        assert_eq!(
            held,
            (
                "frozen until 2026-12-01T00:00:00Z: ask #forum (freeze of quay.io/o/ci:4.21_*)"
                    .into(),
                false
            )
        );
        for (float, request) in [
            ("quay.io/o/ci:4.22_cli", "ci/r"),
            ("quay.io/o/ci:4.21_cli", "ci/undo"),
        ] {
            assert_eq!(message(text, float, request), None, "{float} {request}");
        }
        let freezes = Freezes::parse(text, PLACE);
        assert!(freezes.holds(
            &"quay.io/o/ci:4.21_cli".parse().unwrap(),
            "other/undo",
            at("2026-11-30T23:59:59Z")
        ));
        assert!(!freezes.holds(
            &"quay.io/o/ci:4.21_cli".parse().unwrap(),
            "ci/r",
            at("2026-12-01T00:00:00Z")
        ));
        assert_eq!(
            freezes.next_end(at("2026-11-28T12:00:00Z")),
            Some(at("2026-12-01T00:00:00Z"))
        );
        assert_eq!(freezes.next_end(at("2026-12-01T00:00:00Z")), None);
        for line in freezes.lines() {
            assert_eq!(line.to_string().parse::<FreezeLine>().as_ref(), Ok(line));
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_lets_nothing_move_and_the_others_hold_what_they_hold() {
        for spoilt in [
            "quay.io/o/ci",
            "quay.io/o/ci:*",
            "quay.io/o/ci:* until=tomorrow x",
            "quay.io/o/ci:* except=r x",
            "quay.io/o/ci:* except=ci/r until=2026-12-01T00:00:00Z x",
            "quay.io/o/ci@sha256:* x",
            "everything: please",
        ] {
            let text = format!("quay.io/o/a:b why\n{spoilt}");
            let (why, unreadable) = message(&text, "quay.io/x/y:z", "ci/r").unwrap();
            assert!(
                unreadable && why.starts_with("no float is let move: line 2 of ConfigMap ci/"),
                "{why}"
            );
            let (_, unreadable) = message(&text, "quay.io/o/a:b", "ci/r").unwrap();
            assert!(!unreadable, "{spoilt}");
        }
        let many = "quay.io/o/a:b why\n".repeat(LINES_MAX + 1);
        assert!(
            Freezes::parse(&many, PLACE)
                .unreadable()
                .unwrap()
                .contains("more than 1000")
        );
    }
}
