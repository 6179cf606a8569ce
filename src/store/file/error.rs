//! Why requests or their state cannot be used.

use std::path::PathBuf;

use crate::image::ParseError;
use crate::store::Key;

/// Why requests or their state cannot be used. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read or written.
    #[error("cannot {verb} {}: {source}; {remedy}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Not what it should be.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why, and what to do.
        message: String,
    },
    /// A document that is not a valid request.
    #[error("{}: document {number}{}: {message}", path.display(), name.as_ref().map_or(String::new(), |n| format!(" ({n})")))]
    Document {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        number: usize,
        /// Its name, if it has one.
        name: Option<String>,
        /// Which field, and what to do.
        message: String,
    },
    /// A float that only an earlier version admitted.
    #[error("document {number} ({request}): spec.images[{index}].float: {error}")]
    Float {
        /// The document, counted from 1.
        number: usize,
        /// The request.
        request: Key,
        /// Which image.
        index: usize,
        /// Why, and what to do.
        error: ParseError,
    },
    /// The state belongs to something else.
    #[error("{}: {message}; name another --state, or remove this one to start over", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// What does not match.
        message: String,
    },
    /// Somebody else uses the state.
    #[error("{} is in use by {holder}; wait until that has ended, or name another --state", path.display())]
    Locked {
        /// The state file.
        path: PathBuf,
        /// Who.
        holder: String,
    },
}
