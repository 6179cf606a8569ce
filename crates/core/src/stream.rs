//! References: tags of image streams that follow floats.
//!
//! Nobody claims a stream tag. Each tag that is set bears a [`Mark`], the order and UID of the request that set it, and a stream is
//! written only as it was read, by its resourceVersion. So a request that comes late finds the mark of a newer one and leaves the tag,
//! and a write that lands late, of a frozen leader or of an answer that was lost, changes nothing. The registry takes no part: whoever
//! calls has seen that it holds the image.
//!
//! [`refer`] is all of it. The engine runs it on the API server, the model checker below through every order of events.

use std::str::FromStr;

use crate::image::Tag;

#[cfg(test)]
mod model;

/// The longest `STREAM:TAG`, in bytes.
pub const STREAM_TAG_MAX: usize = 128;
/// How often a stream that somebody else keeps changing is read in a row.
const ROUNDS: usize = 5;

/// A tag of an image stream: `STREAM:TAG`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamTag {
    /// The stream's name.
    pub stream: String,
    /// The tag's.
    pub tag: Tag,
}

/// A text that is no stream tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no tag of an image stream: write STREAM:TAG, at most 128 characters, the stream in lower-case letters, digits, '-' and '.'"
)]
pub struct StreamTagError(String);

impl FromStr for StreamTag {
    type Err = StreamTagError;

    fn from_str(s: &str) -> Result<Self, StreamTagError> {
        let wrong = || StreamTagError(s.chars().take(STREAM_TAG_MAX + 1).collect());
        let (stream, tag) = s.split_once(':').ok_or_else(wrong)?;
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let named = stream.starts_with(edge)
            && stream.ends_with(edge)
            && stream.chars().all(|c| edge(c) || "-.".contains(c));
        if s.len() > STREAM_TAG_MAX || !named {
            return Err(wrong());
        }
        Ok(Self {
            stream: stream.into(),
            tag: tag.parse().map_err(|_| wrong())?,
        })
    }
}

impl std::fmt::Display for StreamTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.stream, self.tag)
    }
}

/// Who set a tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The place among all requests.
    pub order: u64,
    /// The request's UID.
    pub uid: String,
}

/// What a tag of a stream is to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The tag, without its stream.
    pub tag: String,
    /// The image, as it is pulled.
    pub image: String,
}

/// What a tag of a stream is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Shown {
    /// Who set it, if it says so.
    pub mark: Option<Mark>,
    /// The image.
    pub image: Option<String>,
    /// What it was before whoever marked it set it.
    pub replaced: Option<String>,
    /// It is a reference as we set them.
    pub is_ours: bool,
}

/// What became of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Referred {
    /// It refers to the image; what it was before, if it was anything.
    Set(Option<String>),
    /// A newer request has set it: it is left.
    Superseded,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Put {
    /// It is in.
    Written,
    /// Somebody changed the stream since, or the answer was lost: look again.
    LookAgain,
}

/// One stream, as it is asked and written.
///
/// Its futures are driven as they are, never behind a `dyn`: where the implementation's are `Send`, so is [`refer`]'s.
#[allow(async_fn_in_trait)]
pub trait StreamIo {
    /// The stream as it was read, with its version.
    type Stream;
    /// Why it could not be read or written.
    type Error;

    /// Reads it, from the source of truth.
    async fn look(&self) -> Result<Self::Stream, Self::Error>;
    /// What a tag of it is.
    fn shown(&self, stream: &Self::Stream, tag: &str) -> Shown;
    /// Sets a tag in what was read.
    fn set(&self, stream: &mut Self::Stream, wanted: &Wanted, mark: &Mark, replaced: Option<&str>);
    /// Writes it, provided that nobody changed it since it was read.
    async fn put(&self, stream: Self::Stream) -> Result<Put, Self::Error>;
    /// Others kept changing it.
    fn busy(&self) -> Self::Error;
}

/// Lets tags of one stream refer to these images, unless a newer request has set them: one read and one write for all of them.
///
/// # Errors
/// The stream could not be read or written; nothing of it is set, or all. It may be tried again at any time, by anybody.
pub async fn refer<I: StreamIo>(
    io: &I,
    wanted: &[Wanted],
    mark: &Mark,
) -> Result<Vec<Referred>, I::Error> {
    for _ in 0..ROUNDS {
        let mut stream = io.look().await?;
        let mut changed = false;
        let mut referred = Vec::with_capacity(wanted.len());
        for one in wanted {
            let shown = io.shown(&stream, &one.tag);
            let newer = shown.mark.as_ref().is_some_and(|m| m.order > mark.order);
            referred.push(if newer {
                Referred::Superseded
            } else if shown.is_ours
                && shown.mark.as_ref() == Some(mark)
                && shown.image.as_ref() == Some(&one.image)
            {
                // It was set before, and that was not recorded.
                Referred::Set(shown.replaced)
            } else {
                changed = true;
                io.set(&mut stream, one, mark, shown.image.as_deref());
                Referred::Set(shown.image)
            });
        }
        if !changed || io.put(stream).await? == Put::Written {
            return Ok(referred);
        }
    }
    Err(io.busy())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stream_tag_is_a_stream_and_a_tag_and_nothing_else() {
        let longest = format!("{}:{}", "s".repeat(63), "t".repeat(64));
        for text in [
            "4.21:cli",
            "origin-v4.0:Latest_1.x",
            "a:_",
            longest.as_str(),
        ] {
            let parsed: StreamTag = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        let long = format!("{longest}t");
        for text in [
            "",
            "cli",
            ":cli",
            "4.21:",
            "4.21:a:b",
            "4.21@sha256:0",
            "ocp/4.21:cli",
            "A:b",
            "-a:b",
            "a-:b",
            "a:.b",
            "a:-b",
            "a: b",
            "a b:c",
            "a:ü",
            &long,
        ] {
            let error = text.parse::<StreamTag>().unwrap_err().to_string();
            assert!(
                error.contains("STREAM:TAG") && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }
}
