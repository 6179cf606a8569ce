//! A float that a script moves, and the line that says so.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use crate::image::{Float, Source};
use crate::stream::StreamTag;

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Position {
    pub(super) file: Rc<str>,
    pub(super) line: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A float that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Intended {
    pub(in crate::cli) float: Float,
    pub(in crate::cli) source: Source,
    pub(in crate::cli) position: Position,
    /// The other tags that are written for it, with `YYYYMMDDHHMMSS` for stamps.
    pub(in crate::cli) pins: BTreeSet<String>,
    /// The namespace and the tag of the image stream that follows it.
    pub(in crate::cli) stream_tag: Option<(String, StreamTag)>,
}
