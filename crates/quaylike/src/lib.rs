//! An OCI registry in memory that behaves like quay, collects at once, and fails on demand.
//!
//! In: [`Options`], and OCI distribution requests on a port of 127.0.0.1. Out: answers, a log of the requests, and a check of every
//! tag: does all that it reaches resolve?
//!
//! ```
//! use quaylike::{Action, GateSpec, ImageSpec, Matcher, Options, Registry, Rule, Shape};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::start(Options::default()).await?;
//! registry.seed_spec("team/app", "v1", &ImageSpec::new(Shape::Index, "some seed"))?;
//!
//! // The next two writes of a manifest are answered with 503.
//! registry.add_rule(Rule::new(Matcher::put_manifest(), Action::page(503)).times(2));
//! // The first request for this tag stops, after the work and before its answer, until the test calls `gate.open()`.
//! let gate = registry.gate(GateSpec::after(Matcher::default().reference("v1")));
//!
//! // Point a client at `registry.host()`, then look at what it did.
//! assert_eq!(registry.count(&Matcher::put_manifest()), 0);
//! assert!(registry.dangling().is_empty());
//! # drop(gate);
//! # Ok(())
//! # }
//! ```
//!
//! [`RegistryHandle`] has everything a test may look at or change; [`Registry`] is one that also serves. [`serve`] serves on a
//! listener of yours, and [`detached`] is the registry as a function, without a socket. The same handle answers over HTTP below
//! `/_control/`, for a registry in a process of its own.
//!
//! # What it does like quay
//!
//! - **It collects at once.** A manifest that loses its last tag, and is in no index that is held, stops resolving in the same
//!   instant, with its children and blobs ([`Settings::collect`]). Content pushed without a tag is held for a grace period
//!   ([`Settings::hold`]).
//! - Blobs belong to a repository; a mount needs pull on its source and otherwise opens an upload session.
//! - A token request gets a 200 with the rights that the user has of those it asked for; a missing right is a 401; asking for push
//!   creates the repository.
//! - A GET by tag without the stored media type in `Accept` is converted to schema 1, which has another digest.
//! - A manifest with missing content is `MANIFEST_INVALID`, naming the first unknown blob.
//! - Labels of an image, or of all children of an index, make its tags expire or immutable ([`Settings::labels`]).
//!
//! Off unless [`Settings`] turn them on:
//!
//! - stale answers: reads by digest come from a cache ([`Settings::stale_manifests`], [`Settings::stale_blobs`]);
//! - sparse indexes: an index may lack children ([`Settings::sparse`]);
//! - a digest resolves one level below a tag ([`Settings::one_level`]);
//! - rate limits: one for manifests and blobs together, with a burst for each, others for tag lists and tokens, higher on HTTP/2
//!   ([`Settings::rate`]);
//! - blobs are read by redirect from another address ([`Settings::redirect_blobs`]).
//!
//! [`Dialect`] gives it the words of CNCF distribution, Harbor or ECR instead.
//!
//! # How it fails
//!
//! - [`Rule`]s inject faults into matching requests: error statuses, rate limits, read-only times, stale reads, bodies that are cut,
//!   corrupted or endless, wrong digests and lengths, lost answers, late writes ([`Action`] has them all).
//! - A [`Gate`] stops one request, before or after its work, until the test opens it or cuts the connection.
//! - [`RegistryHandle::set_tag`] and its like are another writer; [`RegistryHandle::lose_blob`] is storage that breaks.
//!
//! # In reading order
//!
//! `store` is the heart: tags, manifests, blobs, collection, no I/O; `store::audit` checks it. `state` is what a running registry
//! shares. `http` is the way of a request, past `log`, `gate`, `faults` and `auth`, to `manifests` and `blobs`, which see it as a
//! `call`. `handle` is the API for tests, `control_api` the same over HTTP. `seed` makes images.

mod answers;
mod auth;
mod blobs;
mod body_faults;
mod call;
mod content;
mod control_api;
mod cuttable_listener;
mod faults;
mod gate;
mod handle;
mod http;
mod log;
mod manifest;
mod manifests;
mod names;
mod rate_limit;
mod seed;
mod settings;
mod stale_cache;
mod state;
mod store;
mod uploads;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use cuttable_listener::{CutHandle, CuttableListener, cut_if_marked};
use state::RegistryState;

pub use answers::ConnectionCut;
pub use auth::{Auth, AuthMode, Grant, ModeOf, User};
pub use content::{Blob, Digest, DigestError, Pieces};
pub use faults::{Action, ActiveRule, Matcher, RetryAfter, Rule, When};
pub use gate::{Gate, GateSpec, GateState, Moment};
pub use handle::RegistryHandle;
pub use log::{LoggedRequest, Phase};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_TYPES, MAX_MANIFEST, Manifest, ManifestError, OCI_INDEX,
    OCI_MANIFEST,
};
pub use names::{RequestKind, is_repository, is_tag};
pub use seed::{Image, ImageBuilder, ImageSpec, Layer, Shape, built_in};
pub use settings::{Deletion, Dialect, Options, Settings};
pub use store::{Dangling, StoreError, TagChange};

/// A registry that serves until it is dropped.
///
/// Dropping it cuts every connection at once; held writes and parked requests are never done.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    handle: RegistryHandle,
    stop: CancellationToken,
}

/// A registry that could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No port to listen on.
    #[error("the registry has no port to listen on at {address}: free one")]
    Bind {
        /// Where it tried to.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Listening broke off.
    #[error("the registry stopped serving")]
    Serve(#[source] io::Error),
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1, in tasks of the current runtime.
    ///
    /// # Errors
    /// [`ServeError::Bind`] where there is no port.
    pub async fn start(options: Options) -> Result<Self, ServeError> {
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let (address, handle, stop, server) = open(listener, options).await?;
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::warn!(%error, "the registry stopped");
            }
        });
        Ok(Self {
            address,
            handle,
            stop,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as the host of an image reference: `127.0.0.1:<port>`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The handle to look into it and to disturb it. Clones of it may outlive the registry.
    #[must_use]
    pub fn handle(&self) -> &RegistryHandle {
        &self.handle
    }
}

impl std::ops::Deref for Registry {
    type Target = RegistryHandle;

    fn deref(&self) -> &RegistryHandle {
        &self.handle
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves on a listener until `shutdown` is ready, then cuts every connection. `ready` gets the handle before the first request,
/// for instance to seed the [`built_in`] images.
///
/// # Errors
/// [`ServeError`] where the second listener finds no port or serving breaks off.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    ready: impl FnOnce(&RegistryHandle),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (_, handle, stop, server) = open(listener, options).await?;
    let _cut = stop.drop_guard();
    ready(&handle);
    tokio::select! {
        ended = server => ended,
        () = shutdown => Ok(()),
    }
}

/// A registry as a function from request to response, without a socket: for a simulation that decides itself when a request
/// arrives and whether its answer does.
///
/// An answer with [`ConnectionCut`] among its extensions stands for a connection that is cut. Blobs that are redirected are read
/// from `/storage/` of the same router.
pub fn detached(options: Options) -> (RegistryHandle, Router) {
    let state = RegistryState::new(options, String::new(), CancellationToken::new());
    let state = Arc::new(state);
    (RegistryHandle::new(state.clone()), http::all_routes(state))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Bind { address, source })
}

async fn open(
    listener: TcpListener,
    options: Options,
) -> Result<
    (
        SocketAddr,
        RegistryHandle,
        CancellationToken,
        impl Future<Output = Result<(), ServeError>> + Send + use<>,
    ),
    ServeError,
> {
    let address = listener.local_addr().map_err(ServeError::Serve)?;
    let second = bind(SocketAddr::from((address.ip(), 0))).await?;
    let storage = second.local_addr().map_err(ServeError::Serve)?;
    let stop = CancellationToken::new();
    let registry = RegistryState::new(options, format!("http://{storage}"), stop.clone());
    let registry = Arc::new(registry);
    let handle = RegistryHandle::new(registry.clone());
    let own = run(listener, http::routes(registry.clone()), stop.clone());
    let other = run(second, http::storage_routes(registry), stop.clone());
    let serving = async move { tokio::try_join!(own, other).map(|_| ()) };
    Ok((address, handle, stop, serving))
}

async fn run(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let listener = CuttableListener {
        listener,
        stop: stop.clone(),
    };
    let service = routes
        .layer(axum::middleware::from_fn(cut_if_marked))
        .into_make_service_with_connect_info::<CutHandle>();
    let served = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned());
    served.await.map_err(ServeError::Serve)
}

#[cfg(test)]
mod tests;
