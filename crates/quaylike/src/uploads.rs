//! Upload sessions: bytes on their way to becoming a blob.
//!
//! In: pieces, each at an offset. Out: the blob and its digest. A session belongs to one repository and is found only with the
//! `state` of its last `Location`, so that a client which drops the query of a `Location` is noticed. What arrived before a
//! connection broke stays: the next piece begins there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::content::{Blob, Digest};

/// Sessions kept before old ones are cleared away.
const SESSIONS: usize = 10_000;
/// Blobs up to this size, in bytes, keep their content even where content is discarded: configs are read again.
const SMALL: u64 = 64 << 10;

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<String, Arc<Mutex<Upload>>>>);

/// One session.
pub(super) struct Upload {
    repository: String,
    state: String,
    hasher: Sha256,
    pieces: Vec<Bytes>,
    length: u64,
    discard: bool,
    opened: Instant,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("repository", &self.repository)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Uploads {
    /// Opens a session and returns its name.
    pub(super) fn open(
        &self,
        repository: &str,
        discard: bool,
        now: Instant,
        life: Duration,
    ) -> String {
        let id = unguessable();
        let mut sessions = self.0.lock();
        if sessions.len() >= SESSIONS {
            sessions.retain(|_, upload| now.saturating_duration_since(upload.lock().opened) < life);
        }
        let upload = Upload::new(repository, discard, now);
        sessions.insert(id.clone(), Arc::new(Mutex::new(upload)));
        id
    }

    /// The session of this name, where repository and state are right.
    pub(super) fn find(
        &self,
        id: &str,
        repository: &str,
        state: Option<&str>,
    ) -> Option<Arc<Mutex<Upload>>> {
        let upload = self.0.lock().get(id)?.clone();
        let fits = {
            let upload = upload.lock();
            upload.repository == repository && Some(upload.state.as_str()) == state
        };
        fits.then_some(upload)
    }

    /// Ends a session.
    pub(super) fn close(&self, id: &str) -> Option<Arc<Mutex<Upload>>> {
        self.0.lock().remove(id)
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Where a session goes on: relative, with a query, as the spec allows.
    pub(super) fn location(&self, id: &str, repository: &str) -> String {
        let upload = self.0.lock().get(id).cloned();
        let state = upload.map(|upload| upload.lock().state.clone());
        format!(
            "/v2/{repository}/blobs/uploads/{id}?state={}",
            state.unwrap_or_default()
        )
    }
}

impl Upload {
    pub(super) fn new(repository: &str, discard: bool, now: Instant) -> Self {
        Self {
            repository: repository.to_owned(),
            state: unguessable(),
            hasher: Sha256::new(),
            pieces: Vec::new(),
            length: 0,
            discard,
            opened: now,
        }
    }

    /// Bytes so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds a piece at `offset`; false where that is not the end of what is there.
    pub(super) fn append(&mut self, offset: u64, piece: &Bytes) -> bool {
        if offset != self.length {
            return false;
        }
        self.hasher.update(piece);
        self.length += piece.len() as u64;
        if self.discard && self.length > SMALL {
            self.pieces = Vec::new();
        } else {
            self.pieces.push(piece.clone());
        }
        true
    }

    /// The blob, and what its digest is. The session is empty afterwards.
    pub(super) fn finish(&mut self) -> (Digest, Blob) {
        let digest = Digest::finish(std::mem::take(&mut self.hasher));
        let pieces = std::mem::take(&mut self.pieces);
        let length = std::mem::take(&mut self.length);
        let blob = if self.discard && length > SMALL {
            Blob::discarded(length)
        } else if length <= SMALL {
            // A small piece may keep the whole read buffer alive that it was cut from.
            Blob::new(pieces.concat())
        } else {
            Blob::from_pieces(pieces)
        };
        (digest, blob)
    }
}

fn unguessable() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pieces_must_follow_one_another() {
        let mut upload = Upload::new("a", false, Instant::now());
        assert!(upload.append(0, &"ab".into()));
        assert!(!upload.append(1, &"cd".into()));
        assert!(!upload.append(3, &"cd".into()));
        assert!(upload.append(2, &"cd".into()));
        let (digest, blob) = upload.finish();
        assert_eq!(
            (digest, blob.digest()),
            (Digest::of(b"abcd"), Digest::of(b"abcd"))
        );
    }

    #[test]
    fn discarding_keeps_small_blobs_and_only_the_length_of_large_ones() {
        let piece = Bytes::from(vec![7; 40 << 10]);
        let mut upload = Upload::new("a", true, Instant::now());
        upload.append(0, &piece);
        assert!(upload.finish().1.is_readable());
        upload.append(0, &piece);
        upload.append(40 << 10, &piece);
        let (digest, blob) = upload.finish();
        assert_eq!(digest, Digest::of(&vec![7; 80 << 10]));
        assert_eq!((blob.length(), blob.is_readable()), (80 << 10, false));
    }

    #[test]
    fn a_session_is_found_only_in_its_repository_and_with_its_state() {
        let uploads = Uploads::default();
        let id = uploads.open("a", false, Instant::now(), Duration::ZERO);
        let location = uploads.location(&id, "a");
        let state = location.split_once("?state=").unwrap().1;
        assert!(uploads.find(&id, "a", Some(state)).is_some());
        assert!(uploads.find(&id, "b", Some(state)).is_none());
        assert!(uploads.find(&id, "a", None).is_none());
    }
}
