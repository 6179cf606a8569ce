//! Faults in an answer that is ready: wrong headers, and bodies that are cut, corrupted or endless.
//!
//! In: the true answer. Out: the one that is sent. Bodies stay streams: nothing is buffered in memory.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, LOCATION};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};

use super::answers::{CONTENT_DIGEST, set};
use super::content::Digest;
use super::faults::Action;

/// Time for what was sent before a cut to leave the machine.
const FLUSH: Duration = Duration::from_millis(30);
/// Size of one piece of an endless body.
const NONSENSE: usize = 64 << 10;

/// Applies the faults that concern headers and body.
pub(super) fn apply(mut response: Response, actions: &[Action]) -> Response {
    for action in actions {
        response = match action {
            Action::LieDigest { digest } => {
                let digest = digest.unwrap_or_else(|| Digest::of(b""));
                set(response.headers_mut(), CONTENT_DIGEST, &digest.to_string());
                response
            }
            Action::LieLength { by } => with_length(response, *by),
            Action::NoLocation => {
                response.headers_mut().remove(LOCATION);
                response
            }
            Action::Corrupt { at } => {
                let at = *at;
                response.map(|body| Body::from_stream(corrupted(body, at)))
            }
            Action::CutBody { after } => {
                let after = *after;
                response.map(|body| Body::from_stream(cut(body, after)))
            }
            Action::Endless { bytes } => {
                response.headers_mut().remove(CONTENT_LENGTH);
                let bytes = bytes.unwrap_or(u64::MAX);
                response.map(|_| Body::from_stream(nonsense(bytes)))
            }
            _ => response,
        };
    }
    response
}

fn with_length(mut response: Response, by: i64) -> Response {
    let length = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if let Some(length) = length {
        let wrong = HeaderValue::from(length.saturating_add_signed(by));
        response.headers_mut().insert(CONTENT_LENGTH, wrong);
    }
    // A stream has no length of its own that contradicts the header. Where the body ends too early, the client sees what there
    // is before the connection breaks.
    let rest = stream::once(broken()).take(usize::from(by > 0));
    response.map(|body| Body::from_stream(body.into_data_stream().chain(rest)))
}

/// The end of a body that breaks off, once what came before has been sent.
async fn broken() -> Result<Bytes, axum::Error> {
    tokio::time::sleep(FLUSH).await;
    Err(axum::Error::new(io::Error::from(
        io::ErrorKind::ConnectionAborted,
    )))
}

fn corrupted(body: Body, at: u64) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    let mut position = 0_u64;
    body.into_data_stream().map(move |piece| {
        let piece = piece?;
        let here = at
            .checked_sub(position)
            .and_then(|at| usize::try_from(at).ok());
        position += piece.len() as u64;
        let mut bytes = piece.to_vec();
        match here.and_then(|here| bytes.get_mut(here)) {
            Some(byte) => {
                *byte = !*byte;
                Ok(bytes.into())
            }
            None => Ok(piece),
        }
    })
}

fn cut(body: Body, after: u64) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    stream::unfold(
        (body.into_data_stream(), after),
        |(mut body, left)| async move {
            if left == 0 {
                return Some((broken().await, (body, left)));
            }
            let piece = match body.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some((Err(error), (body, left))),
            };
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            Some((Ok(piece.slice(..taken)), (body, left - taken as u64)))
        },
    )
}

fn nonsense(bytes: u64) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let piece = Bytes::from(vec![b'x'; NONSENSE]);
    stream::unfold(bytes, move |left| {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(NONSENSE);
        let item = (taken > 0).then(|| (Ok(piece.slice(..taken)), left - taken as u64));
        std::future::ready(item)
    })
}
