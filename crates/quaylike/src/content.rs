//! Content and its names: digests, and blobs that are bytes, a repeated block, or a length alone.
//!
//! In: bytes. Out: [`Digest`] and [`Blob`], both cheap to clone. A blob read in ranges yields the same bytes every time, and
//! reading never copies: the pieces share the stored memory.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A `sha256` digest. No other algorithm is spoken, as on quay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Text that is not `sha256:<64 lower-case hex digits>`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest: write sha256: and 64 lower-case hex digits")]
pub struct DigestError(String);

/// The content of a blob. Its digest is kept by whoever stores it.
#[derive(Clone, Debug)]
pub struct Blob {
    content: Content,
    length: u64,
}

#[derive(Clone, Debug)]
enum Content {
    /// The bytes themselves, as they came in.
    Pieces(Arc<[Bytes]>),
    /// One block, repeated up to the length: large blobs without their memory.
    Repeated(Bytes),
    /// Nothing: only the length is known.
    Discarded,
}

/// The pieces of one range of a blob, in order. Empty pieces are never yielded.
#[derive(Debug)]
pub struct Pieces {
    blob: Blob,
    position: u64,
    end: u64,
    /// Index of the piece that holds `position`, and the blob's offset where that piece begins.
    piece: usize,
    begins: u64,
}

// === impl Digest ===

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub(super) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refuse = || DigestError(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(refuse)?.as_bytes();
        if hex.len() != 64 {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            for digit in pair {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return Err(refuse()),
                };
                *byte = (*byte << 4) | value;
            }
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

// === impl Blob ===

impl Blob {
    /// A blob of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self::from_pieces(vec![bytes.into()])
    }

    /// A blob of these pieces, one after another.
    #[must_use]
    pub fn from_pieces(mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self {
            content: Content::Pieces(pieces.into()),
            length,
        }
    }

    /// A blob of `length` bytes that repeats `block`. An empty block gives an empty blob.
    pub fn repeated(block: impl Into<Bytes>, length: u64) -> Self {
        let block = block.into();
        let length = if block.is_empty() { 0 } else { length };
        Self {
            content: Content::Repeated(block),
            length,
        }
    }

    /// A blob of which only the length is known: it exists, but cannot be read.
    #[must_use]
    pub fn discarded(length: u64) -> Self {
        Self {
            content: Content::Discarded,
            length,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether its bytes can be read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        !matches!(self.content, Content::Discarded)
    }

    /// The bytes of a range, cut to the blob's length. A discarded blob yields nothing.
    #[must_use]
    pub fn read(&self, range: Range<u64>) -> Pieces {
        let end = if self.is_readable() {
            range.end.min(self.length)
        } else {
            0
        };
        Pieces {
            blob: self.clone(),
            position: range.start,
            end,
            piece: 0,
            begins: 0,
        }
    }

    /// The digest of its bytes, computed now.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        for piece in self.read(0..self.length) {
            hasher.update(&piece);
        }
        Digest::finish(hasher)
    }
}

// === impl Pieces ===

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.position >= self.end {
            return None;
        }
        let (piece, begins) = match &self.blob.content {
            Content::Discarded => return None,
            Content::Repeated(block) => {
                let length = block.len() as u64;
                (block, self.position / length * length)
            }
            Content::Pieces(pieces) => loop {
                let piece = pieces.get(self.piece)?;
                if self.position < self.begins + piece.len() as u64 {
                    break (piece, self.begins);
                }
                self.begins += piece.len() as u64;
                self.piece += 1;
            },
        };
        // Both are within one piece, so they fit its length.
        let from = usize::try_from(self.position - begins).ok()?;
        let to = usize::try_from((self.end - begins).min(piece.len() as u64)).ok()?;
        let bytes = piece.slice(from..to);
        self.position += bytes.len() as u64;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(blob: &Blob, range: Range<u64>) -> Vec<u8> {
        blob.read(range).flatten().collect()
    }

    #[test]
    fn a_digest_is_written_as_it_is_read() {
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::of(b"abc"));
        for wrong in [
            "",
            "sha256:",
            "sha512:00",
            &text.to_uppercase(),
            &text[..70],
            &format!("{text}0"),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_range_of_pieces_reads_what_the_whole_has_there() {
        let pieces = ["", "ab", "c", "", "defg"].map(Bytes::from);
        let blob = Blob::from_pieces(pieces.to_vec());
        let whole = b"abcdefg";
        for from in 0..=7_usize {
            for to in from..=9 {
                let expected = &whole[from..to.min(7)];
                assert_eq!(read(&blob, from as u64..to as u64), expected);
            }
        }
    }

    #[test]
    fn a_repeated_block_reads_like_the_bytes_it_stands_for() {
        let blob = Blob::repeated("abc", 8);
        assert_eq!(read(&blob, 0..8), b"abcabcab");
        assert_eq!(read(&blob, 2..7), b"cabca");
        assert_eq!(blob.digest(), Digest::of(b"abcabcab"));
        assert_eq!(Blob::repeated("", 8).length(), 0);
    }

    #[test]
    fn a_discarded_blob_has_a_length_and_no_bytes() {
        let blob = Blob::discarded(9);
        assert_eq!((blob.length(), blob.is_readable()), (9, false));
        assert!(read(&blob, 0..9).is_empty());
    }
}
