//! A function that stands in the place of the network, for a simulation.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::{Request, Response};

/// What came of a request that was given to a [`Wire`].
pub type Sent = Result<Response, WireError>;

/// From request to response. Everything above the network is the same as with one: limits, pacing, breakers, tokens, redirects, what
/// answers mean, and the time that a request may take.
#[derive(Clone)]
pub struct Wire(Arc<dyn Fn(Request) -> BoxFuture<'static, Sent> + Send + Sync>);

/// Why a request that was given to a [`Wire`] has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// There is no connection: nothing was sent.
    #[error("no connection")]
    NotConnected,
    /// The connection ended before an answer.
    #[error("connection closed")]
    Closed,
    /// No answer came in time.
    #[error("timed out")]
    TimedOut,
}

// === impl Wire ===

impl Wire {
    /// A wire that answers as `send` does.
    pub fn new(send: impl Fn(Request) -> BoxFuture<'static, Sent> + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Sends a request, and gives it up when its time is over: what is sent then is dropped.
    pub(crate) async fn send(&self, request: Request) -> Sent {
        let limit = request.timeout().copied();
        let sent = (self.0)(request);
        match limit {
            Some(limit) => {
                let sent = tokio::time::timeout(limit, sent).await;
                sent.unwrap_or(Err(WireError::TimedOut))
            }
            None => sent.await,
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}
