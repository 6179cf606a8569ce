//! What promoting an image would do: the end of `mode: Plan`.
//!
//! In come the digests that the float and its tags hold and what a copy would take, as reads alone found them, and the tags
//! that the steps would write ([`dry_run`](crate::dry_run)); out comes one line that says it all.

use std::fmt;

use super::expiry::Expiry;
use crate::image::{Digest, Tag};

/// What promoting an image would do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forecast {
    /// The digest to promote.
    pub source: Digest,
    /// Its media type, where its manifest was read.
    pub media_type: Option<String>,
    /// What the float's tags hold now.
    pub held: FloatTags,
    /// What staging it would copy.
    pub copying: Copying,
    /// The tags that would be written; none where the float is at the source.
    pub writes: Vec<Write>,
    /// Which of them would expire.
    pub expiring: Vec<Expiry>,
}

/// What the tags of a float hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FloatTags {
    /// The float itself.
    pub float: Option<Digest>,
    /// `<float>_incoming`.
    pub incoming: Option<Digest>,
    /// `<float>__pre`.
    pub pre: Option<Digest>,
    /// `<float>__post1`.
    pub post1: Option<Digest>,
}

/// What a copy would take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Copying {
    /// Blobs that the float's repository has.
    pub present: Tally,
    /// Blobs that could be mounted from the source's repository.
    pub mountable: Tally,
    /// Blobs that would be streamed.
    pub missing: Tally,
    /// Manifests that an index lists.
    pub children: Children,
}

/// Blobs and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tally {
    /// How many.
    pub blobs: u64,
    /// How large together.
    pub bytes: u64,
}

/// Manifests below the top one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Children {
    /// Those that the float's repository has.
    pub present: u64,
    /// Those that would be put.
    pub missing: u64,
}

/// A tag that would be written, or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Write {
    /// Which.
    pub tag: WrittenTag,
    /// What it would hold; none: it would be deleted.
    pub digest: Option<Digest>,
    /// What it holds now.
    pub holds: Option<Digest>,
}

/// The name of a tag that would be written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WrittenTag {
    /// Known.
    Named(Tag),
    /// A prune tag, whose stamp is that of the moment: for what the float shows, or else for what another of its tags holds alone.
    Prune {
        /// The digest was found on another tag of the float.
        rescue: bool,
    },
}

impl Forecast {
    /// Whether the float is at the source and nothing is left to do.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.writes.is_empty()
    }

    /// What only another tag of the float holds, and what would be pinned for that.
    #[must_use]
    pub fn rescued(&self) -> Vec<Digest> {
        let rescues = |write: &&Write| write.tag == WrittenTag::Prune { rescue: true };
        let rescues = self.writes.iter().filter(rescues);
        rescues.filter_map(|write| write.digest).collect()
    }

    /// Whether an earlier run has staged it.
    fn goes_on(&self) -> bool {
        let stages = |write: &Write| match &write.tag {
            WrittenTag::Named(tag) => write.digest.is_some() && tag.as_str().ends_with("_incoming"),
            WrittenTag::Prune { .. } => false,
        };
        !self.writes.iter().any(stages)
    }

    /// What follows the writes, where a tag is deleted.
    fn fmt_removal(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.writes.iter().any(|write| write.digest.is_none()) {
            f.write_str("; then remove _incoming")?;
        }
        Ok(())
    }
}

/// One line, at most 256 bytes whatever the float's name.
impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unchanged() {
            return f.write_str("the float is at the source already: nothing would be written");
        }
        if self.goes_on() {
            let tags = self.writes.iter().filter(|w| w.digest.is_some()).count();
            write!(
                f,
                "would go on where an earlier run ended: write {tags} tags"
            )?;
            return self.fmt_removal(f);
        }
        write!(f, "would {}; write ", self.copying)?;
        let prunes = self
            .writes
            .iter()
            .filter(|w| matches!(w.tag, WrittenTag::Prune { .. }));
        f.write_str("_incoming, ")?;
        match prunes.count() {
            0 => {}
            1 => f.write_str("1 prune tag, ")?,
            n => write!(f, "{n} prune tags, ")?,
        }
        match self.held.float {
            Some(old) => write!(f, "__pre, float, __post1; float is at {}", old.short())?,
            None => f.write_str("float; float does not exist")?,
        }
        self.fmt_removal(f)?;
        for (number, expiry) in self.expiring.iter().enumerate() {
            let before = if number == 0 { "; expiring:" } else { "," };
            let (what, after) = match expiry {
                Expiry::Tags { after } => ("its tags", after),
                Expiry::Pins { after } => ("old pins", after),
                Expiry::Rescued { after } => ("rescued pins", after),
            };
            write!(f, "{before} {what} after {after:.12}")?;
        }
        Ok(())
    }
}

/// What follows "would".
impl fmt::Display for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.present.blobs + self.mountable.blobs + self.missing.blobs;
        match (self.missing.blobs, self.mountable.blobs) {
            (0, 0) => write!(f, "copy no blob")?,
            (0, mount) => write!(
                f,
                "mount {mount} of {all} blobs ({})",
                Bytes(self.mountable.bytes)
            )?,
            (copy, 0) => write!(
                f,
                "copy {copy} of {all} blobs ({})",
                Bytes(self.missing.bytes)
            )?,
            (copy, mount) => write!(
                f,
                "copy {copy} of {all} blobs ({}), mount {mount}",
                Bytes(self.missing.bytes)
            )?,
        }
        match self.children.missing {
            0 => Ok(()),
            1 => f.write_str(", put 1 child manifest"),
            n => write!(f, ", put {n} child manifests"),
        }
    }
}

/// A number of bytes for a person.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let power = self.0.checked_ilog2().unwrap_or_default() / 10;
        let Some(unit) = (power as usize).checked_sub(1).and_then(|at| units.get(at)) else {
            return write!(f, "{} B", self.0);
        };
        // In tenths, rounded down: never more than there is.
        let tenths = (u128::from(self.0) * 10) >> (10 * power);
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dry_run::forecast;
    use crate::machine::ImageSpec;
    use crate::machine::samples::{digest, held, image_spec};

    #[test]
    fn one_line_says_it_and_fits_a_message() {
        let tally = |blobs, bytes| Tally { blobs, bytes };
        let copying = Copying {
            present: tally(1, 1),
            mountable: tally(2, 5000),
            missing: tally(3, 12_900_000),
            children: Children {
                present: 1,
                missing: 4,
            },
        };
        let say = |held, copying| {
            forecast(&image_spec(0), digest("new"), None, held, copying).to_string()
        };
        assert_eq!(
            say(held("old", "lost", ""), copying),
            format!(
                "would copy 3 of 6 blobs (12.3 MiB), mount 2, put 4 child manifests; write _incoming, 2 prune tags, __pre, float, __post1; float is at {}",
                digest("old").short()
            )
        );
        assert_eq!(
            say(
                held("", "", ""),
                Copying {
                    missing: tally(0, 0),
                    children: Children::default(),
                    ..copying
                }
            ),
            "would mount 2 of 3 blobs (4.8 KiB); write _incoming, float; float does not exist"
        );
        assert_eq!(
            say(held("new", "", ""), Copying::default()),
            "the float is at the source already: nothing would be written"
        );
        let removing = ImageSpec {
            remove_incoming: true,
            ..image_spec(0)
        };
        let mut expiring = forecast(&removing, digest("new"), None, held("old", "", ""), copying);
        let after = "2d".to_owned();
        expiring.expiring.push(Expiry::Tags {
            after: after.clone(),
        });
        expiring.expiring.push(Expiry::Pins {
            after: after.clone(),
        });
        expiring.expiring.push(Expiry::Rescued { after });
        let line = expiring.to_string();
        assert!(
            line.ends_with("; then remove _incoming; expiring: its tags after 2d, old pins after 2d, rescued pins after 2d"),
            "{line}"
        );
        assert!(line.len() <= 256, "{line}");
        let most = tally(u64::MAX / 3, u64::MAX);
        let most = Copying {
            present: most,
            mountable: most,
            missing: most,
            children: Children {
                present: 0,
                missing: u64::MAX,
            },
        };
        assert!(say(held("old", "lost", "gone"), most).len() <= 256);
    }

    #[test]
    fn bytes_are_never_shown_as_more_than_they_are() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }
}
