//! What this process serves to those who look after it: `/metrics`, `/livez` and `/readyz`, over plain HTTP.
//!
//! Guaranteed: it answers whether the process leads, waits or ends; no body is read; a connection serves one request and lasts
//! [`WHOLE`] at the longest, and no more than [`CONNECTIONS`] are open at once.

use std::sync::Arc;
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
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::health::Health;
use crate::metrics::{self, Metrics};

/// Connections open at once.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last.
const WHOLE: Duration = Duration::from_secs(10);
/// The most that is kept of a request's head, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped. `stalled` says for how long reconciles have been due without one ending.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    stalled: impl Fn() -> Option<Duration> + Clone + Send + Sync + 'static,
) {
    let ready = health.clone();
    let routes = Router::new()
        .route("/metrics", get(async move || scraped(&metrics)))
        .route("/readyz", get(async move || verdict(ready.ready())))
        .route(
            "/livez",
            get(async move || verdict(health.alive(stalled()))),
        );
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // None only if the semaphore were closed, which nobody does.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection on --listen: {error}");
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
        tokio::spawn(async move {
            let _place = place;
            // Whoever asked has gone, or was too slow.
            let _ = timeout(WHOLE, connection).await;
        });
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
