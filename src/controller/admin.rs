//! What this process serves to those who look after it: `/metrics`, `/livez` and `/readyz`, over plain HTTP.
//!
//! It answers whether the process leads, waits or ends. No body is read. A connection serves one request and lasts at most [`WHOLE`]. At
//! most [`CONNECTIONS`] are open at once, [`PER_PEER`] from one address; a new connection is always accepted, and the oldest is closed for
//! it. Probes can have an address of their own that nobody else has to reach.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::health::Health;
use crate::metrics::{self, Metrics};

/// Connections open at once.
const CONNECTIONS: usize = 64;
/// Those of one address.
const PER_PEER: usize = 16;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last.
const WHOLE: Duration = Duration::from_secs(10);
/// The most that is kept of a request's head, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves metrics and health until it is dropped. `stalled` says for how long reconciles have been due without one ending.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    stalled: impl Fn() -> Option<Duration> + Clone + Send + Sync + 'static,
) {
    let scrape = get(async move || scraped(&metrics));
    let routes = probes(health, stalled).route("/metrics", scrape);
    answer(listener, routes, "--listen").await;
}

/// Serves health alone, so that nothing that scrapes delays a probe.
pub async fn serve_probes(
    listener: TcpListener,
    health: Health,
    stalled: impl Fn() -> Option<Duration> + Clone + Send + Sync + 'static,
) {
    answer(listener, probes(health, stalled), "--listen-probes").await;
}

fn probes(
    health: Health,
    stalled: impl Fn() -> Option<Duration> + Clone + Send + Sync + 'static,
) -> Router {
    let ready = health.clone();
    Router::new()
        .route("/readyz", get(async move || verdict(ready.ready())))
        .route(
            "/livez",
            get(async move || verdict(health.alive(stalled()))),
        )
}

/// Accepts every connection; beyond the limit the oldest unanswered one is closed.
async fn answer(listener: TcpListener, routes: Router, flag: &str) {
    let mut open = Open::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection on {flag}: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let serving = tokio::spawn(async move {
            // Whoever asked has gone, or was too slow.
            let _ = timeout(WHOLE, connection).await;
        });
        open.add(peer.ip(), serving.abort_handle());
    }
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct Open(VecDeque<(IpAddr, AbortHandle)>);

impl Open {
    /// One more: the oldest of its peer, or of all, goes where there are as many as may be.
    fn add(&mut self, peer: IpAddr, connection: AbortHandle) {
        self.0.retain(|(_, connection)| !connection.is_finished());
        let same = self.0.iter().enumerate();
        let mut same = same.filter(|(_, (other, _))| *other == peer);
        let first = same.next().map(|(index, _)| index);
        let one_too_many = if 1 + same.count() >= PER_PEER {
            first
        } else {
            (self.0.len() >= CONNECTIONS).then_some(0)
        };
        if let Some((_, oldest)) = one_too_many.and_then(|index| self.0.remove(index)) {
            oldest.abort();
        }
        self.0.push_back((peer, connection));
    }
}

fn scraped(metrics: &Metrics) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render()).into_response()
}

fn verdict(verdict: Result<(), &'static str>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    #[tokio::test]
    async fn the_oldest_connection_makes_room_for_the_newest_first_of_its_own_peer() {
        let mut open = Open::default();
        let connection = || tokio::spawn(std::future::pending::<()>());
        let peer = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap_or_default()]);
        let mut greedy = Vec::new();
        for _ in 0..PER_PEER + 5 {
            let one = connection();
            open.add(peer(1), one.abort_handle());
            greedy.push(one);
            tokio::task::yield_now().await;
        }
        assert_eq!(open.0.len(), PER_PEER);
        let ended: Vec<_> = greedy.iter().map(JoinHandle::is_finished).collect();
        assert!(ended[..5].iter().all(|ended| *ended) && ended[5..].iter().all(|ended| !ended));
        let mut others = Vec::new();
        for n in 0..CONNECTIONS {
            let one = connection();
            open.add(peer(10 + n), one.abort_handle());
            others.push(one);
            tokio::task::yield_now().await;
        }
        assert_eq!(open.0.len(), CONNECTIONS);
        assert!(greedy.iter().all(JoinHandle::is_finished));
        assert!(others.iter().all(|one| !one.is_finished()));
    }
}
