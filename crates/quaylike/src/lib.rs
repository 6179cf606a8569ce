//! A quay-like OCI registry in memory: the `--embedded-registry` of the command line, and the fault registry of the tests.
//!
//! In: [`Options`], and OCI distribution requests on a port of 127.0.0.1. Out: their answers, a log of them, and a judgement of
//! every tag: does all that it reaches resolve?
//!
//! # What it does like quay
//!
//! - **It collects at once.** A manifest that loses its last tag, and is in no index that is held, stops resolving in the same
//!   instant, with its children and blobs ([`Settings::collect`]). What was pushed without a tag is held for a grace ([`Settings::hold`]).
//! - Blobs belong to a repository; a mount needs pull on its source and otherwise opens an upload session.
//! - A token request is narrowed to what the user has, with a 200; a missing right is a 401; asking for push makes the repository.
//! - A GET by tag without the stored media type in `Accept` is converted to schema 1, with another digest.
//! - A manifest with missing content is `MANIFEST_INVALID`, naming the first unknown blob.
//! - Labels of an image, or of all children of an index, make its tags expire or immutable ([`Settings::labels`]).
//! - Where [`Settings`] say so: reads by digest are answered from a cache ([`Settings::stale_manifests`], [`Settings::stale_blobs`]), an
//!   index may lack children ([`Settings::sparse`]), a digest resolves one level below a tag ([`Settings::one_level`]), and one rate
//!   holds for manifests and blobs together ([`Settings::rate`]).
//!
//! [`Dialect::Distribution`] switches to the other registry's ways in the last two; [`Dialect::Harbor`] and [`Dialect::Ecr`] do so
//! too, with the words of their own for what is not there and what must not move.
//!
//! # In reading order
//!
//! `store` is the heart: tags, manifests, blobs, collection, no I/O. `audit` judges it. `http` is the way of a request, past
//! `log`, `gate`, `faults` and `auth`, to `manifests` and `blobs`, which see it as a `call`. `control` is the same handle over HTTP as [`Control`] is in
//! the process. `seed` makes images.

mod answers;
mod audit;
mod auth;
mod blobs;
mod call;
mod content;
mod control;
mod faults;
mod gate;
mod handle;
mod http;
mod log;
mod manifest;
mod manifests;
mod names;
mod recall;
mod seed;
mod settings;
mod store;
mod strike;
#[cfg(test)]
mod tests;
mod uploads;
mod wire;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use audit::Dangling;
pub use auth::{Auth, AuthMode, Grant, ModeOf, User};
pub use content::{Blob, Digest, DigestError, Pieces};
pub use faults::{Action, ActiveRule, Matcher, RetryAfter, Rule, When};
pub use gate::{Gate, GateSpec, GateState, Moment};
pub use handle::Control;
pub use log::{Entry, Phase};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_TYPES, MAX_MANIFEST, Manifest, ManifestError, OCI_INDEX,
    OCI_MANIFEST,
};
pub use names::{Kind, is_repository, is_tag};
pub use seed::{Image, ImageBuilder, ImageSpec, Layer, Shape, built_in};
pub use settings::{Dialect, Options, Settings};
pub use store::{Policy, Stale, Store, StoreError, TagChange};

/// A registry that runs until it is dropped.
///
/// Dropping it cuts every connection at once; held writes and parked requests are never executed.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    control: Control,
    stop: CancellationToken,
}

/// A registry that could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No port to listen on.
    #[error("the embedded registry has no port to listen on at {address}: free one")]
    Bind {
        /// Where it tried to.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Listening broke off.
    #[error("the embedded registry stopped serving")]
    Serve(#[source] io::Error),
}

impl Embedded {
    /// Starts a registry on a free port of 127.0.0.1, in tasks of the current runtime.
    ///
    /// # Errors
    /// [`EmbeddedError::Bind`] where there is no port.
    pub async fn start(options: Options) -> Result<Self, EmbeddedError> {
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let (address, control, stop, server) = open(listener, options).await?;
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::warn!(%error, "the embedded registry stopped");
            }
        });
        Ok(Self {
            address,
            control,
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

    /// The handle to look into it and to disturb it. It may be cloned and outlive the registry.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl std::ops::Deref for Embedded {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves on a listener until `shutdown` is ready; then every connection is cut. `ready` gets the handle before the first request,
/// for instance to put the [`built_in`] images in.
///
/// # Errors
/// [`EmbeddedError`] where the second listener finds no port or serving breaks off.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    ready: impl FnOnce(&Control),
    shutdown: impl Future<Output = ()>,
) -> Result<(), EmbeddedError> {
    let (_, control, stop, server) = open(listener, options).await?;
    let _cut = stop.drop_guard();
    ready(&control);
    tokio::select! {
        ended = server => ended,
        () = shutdown => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, EmbeddedError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| EmbeddedError::Bind { address, source })
}

async fn open(
    listener: TcpListener,
    options: Options,
) -> Result<
    (
        SocketAddr,
        Control,
        CancellationToken,
        impl Future<Output = Result<(), EmbeddedError>> + Send + use<>,
    ),
    EmbeddedError,
> {
    let address = listener.local_addr().map_err(EmbeddedError::Serve)?;
    let second = bind(SocketAddr::from((address.ip(), 0))).await?;
    let storage = second.local_addr().map_err(EmbeddedError::Serve)?;
    let stop = CancellationToken::new();
    let registry = Arc::new(http::Registry::new(
        options,
        format!("http://{storage}"),
        stop.clone(),
    ));
    let control = Control::new(registry.clone());
    let own = run(listener, http::routes(registry.clone()), stop.clone());
    let other = run(second, http::storage_routes(registry), stop.clone());
    let serving = async move { tokio::try_join!(own, other).map(|_| ()) };
    Ok((address, control, stop, serving))
}

async fn run(
    listener: TcpListener,
    routes: axum::Router,
    stop: CancellationToken,
) -> Result<(), EmbeddedError> {
    let wires = wire::Wires {
        listener,
        stop: stop.clone(),
    };
    let service = routes.into_make_service_with_connect_info::<wire::Line>();
    let served = axum::serve(wires, service).with_graceful_shutdown(stop.cancelled_owned());
    served.await.map_err(EmbeddedError::Serve)
}
