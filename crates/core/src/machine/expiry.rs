//! Tags that expire by the labels of their images: how it is said, and how what is said of several images becomes one message.

use std::fmt;

use super::{Notice, Reason};
use crate::image::Float;

/// What every message of tags that expire ends with.
const REMEDY: &str = "; build it without quay.expires-after";
/// The longest message.
const MESSAGE_MAX: usize = 8 * 1024;
/// What stands for those that have no room in it.
const OTHERS: &str = "others";

/// What expires.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// Every tag of the promoted image.
    Tags {
        /// The life that its label gives.
        after: String,
    },
    /// The pins of the image that the float was on.
    Pins {
        /// The life that its label gives.
        after: String,
    },
    /// The pin of an image that another tag of the float held alone.
    Rescued {
        /// The life that its label gives.
        after: String,
    },
}

impl Expiry {
    /// What is said of it for a float.
    #[must_use]
    pub fn notice(&self, float: &Float) -> Notice {
        Notice {
            reason: Reason::Expiring,
            message: format!("{float}: {self}{REMEDY}"),
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tags { after } => write!(
                f,
                "its image has the label quay.expires-after={after}, by which its tags expire, its pins too"
            ),
            Self::Pins { after } => write!(
                f,
                "the image that it was on has the label quay.expires-after={after}, by which its prune tag and __pre expire"
            ),
            Self::Rescued { after } => write!(
                f,
                "an image that was on another of its tags has the label quay.expires-after={after}, by which its prune tag expires"
            ),
        }
    }
}

/// Adds what is said of one image to what was said of others. Each is named once, and at the end the remedy.
pub(super) fn add(said: &mut Option<String>, message: &str) {
    let Some(known) = said else {
        *said = Some(message.to_owned());
        return;
    };
    let entry = message.strip_suffix(REMEDY).unwrap_or(message);
    let entries = known.strip_suffix(REMEDY).unwrap_or(known);
    if entries
        .split("; ")
        .any(|known| known == entry || known == OTHERS)
    {
        return;
    }
    let room = entries.len() + entry.len() + REMEDY.len() <= MESSAGE_MAX;
    let entry = if room { entry } else { OTHERS };
    *known = format!("{entries}; {entry}{REMEDY}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_image_is_named_once_and_no_message_grows_without_end() {
        let notice = |name: &str, expiry: Expiry| {
            let float: Float = format!("quay.io/openshift/ci:{name}").parse().unwrap();
            expiry.notice(&float).message
        };
        let after = || "2d".to_owned();
        let mut said = None;
        let own = notice("a", Expiry::Tags { after: after() });
        add(&mut said, &own);
        assert_eq!(said.as_ref(), Some(&own));
        for _ in 0..2 {
            add(&mut said, &notice("b", Expiry::Tags { after: after() }));
            add(&mut said, &notice("b", Expiry::Pins { after: after() }));
            add(&mut said, &own);
        }
        let text = said.clone().unwrap();
        for (name, count) in [("ci:a", 1), ("ci:b", 2)] {
            assert_eq!(text.matches(name).count(), count, "{text}");
        }
        assert!(
            text.ends_with("; build it without quay.expires-after"),
            "{text}"
        );
        assert_eq!(text.matches("build it").count(), 1, "{text}");
        for number in 0..1000 {
            add(
                &mut said,
                &notice(&number.to_string(), Expiry::Tags { after: after() }),
            );
        }
        let text = said.unwrap();
        assert!(
            text.len() <= MESSAGE_MAX + OTHERS.len() + 2,
            "{}",
            text.len()
        );
        assert!(text.ends_with("; others; build it without quay.expires-after"));
    }
}
