//! The controller: the engine on a cluster.
//!
//! ```text
//! lease ─▶ list and watch ─▶ claims rebuilt ─▶ queue ─▶ engine::reconcile
//!   ├────▶ sweep: finished requests
//!   ├────▶ pause: what an operator has paused
//!   └────▶ freezes: which floats stay where they are
//! ```
//!
//! It leads only while the CRD names its Lease ([`installation`]). It ends when asked to (drain, release), or at once when the
//! lease is lost: the next leader goes on from status.

mod admin;
pub mod freeze_map;
mod freezes;
pub mod handover;
mod health;
pub mod installation;
pub mod lease;
mod pause;
pub mod queue;
mod sweep;
mod watch;

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{Either, select};
use kube::Client;
use kube::runtime::events::Reporter;
use kube::runtime::reflector;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::leadership::Leadership;
use crate::engine::{Engine, Settings};
use crate::policy::Policy;
use crate::registry::RegistryClient;
use crate::store::Key;
use crate::store::cluster::Cluster;
use crate::store::credentials::CredentialFiles;
use crate::store::streams::StreamSettings;
use handover::{Inherited, Written};
use health::Health;
use installation::{Installation, Refused};
use lease::{Acquired, Elector, Lost};

pub use watch::SILENCE;

/// How long operations may take to end after the first signal: a tag write's timeout, and the save of what it found.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a requested end takes at most, without the time that a tag write may be late. Kubernetes must not kill the process earlier.
pub const END: Duration = DRAIN.saturating_add(lease::RELEASE);

/// How the controller is set.
pub struct Config {
    /// Where the requests are.
    pub client: Client,
    /// The address of `client`'s API server, for error messages.
    pub server: String,
    /// Only this namespace's requests; none: all.
    pub namespace: Option<String>,
    /// Where the lease is; none: no election, a single process.
    pub lease_namespace: Option<String>,
    /// Where the `ConfigMap` of the pause is, and that of the freezes.
    pub pause_namespace: String,
    /// How this process is named in the lease and in events.
    pub identity: String,
    /// The registries.
    pub registry: RegistryClient,
    /// The registries that may be contacted.
    pub policy: Policy,
    /// The controller's own credentials, and who may use them.
    pub credentials: CredentialFiles,
    /// The image streams whose tags may follow floats.
    pub streams: StreamSettings,
    /// The engine's.
    pub engine: Settings,
    /// How often finished requests are looked at.
    pub sweep_interval: Duration,
    /// Where metrics and health are served; none: nowhere.
    pub listener: Option<TcpListener>,
    /// Where health alone is served; none: nowhere.
    pub probes: Option<TcpListener>,
}

/// Why a controller ended unasked.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The lease was lost.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The definition belongs to another installation.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Runs until `stop` resolves, the lease is lost, or another installation rules.
///
/// # Errors
/// The lease was lost, or the definition names another.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), Ended> {
    let Config {
        client,
        server,
        namespace,
        lease_namespace,
        pause_namespace,
        identity,
        registry,
        policy,
        credentials,
        streams,
        engine: settings,
        sweep_interval,
        listener,
        probes,
    } = config;
    let metrics = registry.metrics().clone();
    let health = Health::default();
    let leadership = match lease_namespace {
        Some(_) => Leadership::elected(),
        None => Leadership::alone(),
    };
    let reporter = Reporter {
        controller: "promotion-controller".into(),
        instance: Some(identity.clone()),
    };
    // Also while another process leads: it may have to take over at any time.
    let following = credentials.clone();
    let _following = AbortOnDropHandle::new(tokio::spawn(async move { following.follow().await }));
    let store = Cluster::new(
        client.clone(),
        reporter,
        credentials.clone(),
        streams,
        metrics.clone(),
    );
    let (engine, keys) = Engine::new(store, registry, policy, leadership.clone(), settings);
    metrics.at_scrape({
        let (health, leadership, credentials) =
            (health.clone(), leadership.clone(), credentials.clone());
        move |scrape| {
            scrape.leader(health.is_leading() && leadership.covers(Duration::ZERO));
            scrape.unusable_files(credentials.unusable());
        }
    });
    let _served = listener.map(|listener| {
        let (engine, metrics) = (engine.clone(), metrics.clone());
        let stalled = move || engine.stalled();
        AbortOnDropHandle::new(tokio::spawn(admin::serve(
            listener,
            metrics,
            health.clone(),
            stalled,
        )))
    });
    let _probed = probes.map(|listener| {
        let (engine, health) = (engine.clone(), health.clone());
        let stalled = move || engine.stalled();
        AbortOnDropHandle::new(tokio::spawn(admin::serve_probes(listener, health, stalled)))
    });
    let stop = std::pin::pin!(stop);
    let installation = Installation::new(
        client.clone(),
        server,
        lease_namespace.clone(),
        metrics.clone(),
    );
    let followed = freezes::Followed::default();
    let elects = lease_namespace.is_some();
    let leases = lease_namespace.as_deref().unwrap_or(&pause_namespace);
    let elector = Elector::new(client.clone(), leases, identity, leadership)
        .telling(health.clone(), metrics.clone())
        .saying(followed.subscribe())
        .of(installation.clone());
    let was_led = watch::was_led(&client, namespace.as_deref());
    let begun = begin(&installation, elector, elects, was_led, &health);
    let right = Box::pin(engine.store().announce_streams().then(|()| begun));
    let (begun, stop) = match select(stop, right).await {
        Either::Left(_) => return Ok(()),
        Either::Right((begun, stop)) => (begun?, stop),
    };
    let Begun { elector, last_sent } = begun;
    let inherited = elector.as_ref().map(Elector::inherited);
    health.leads();
    metrics.leadership("acquired");
    follow_the_last(&engine, last_sent, inherited);
    let scope = Scope {
        installation,
        credentials,
        client,
        namespace: namespace.as_deref(),
        pause_namespace: &pause_namespace,
        sweep_interval,
        followed,
        health,
    };
    lead(&engine, keys, scope, elector, stop).await
}

/// The right to lead.
struct Begun {
    elector: Option<Elector>,
    /// When somebody else can last have sent a tag write. None: nobody has one on its way.
    last_sent: Option<Instant>,
}

/// Waits until this process leads. `was_led`: whether anybody ever led requests that are still there.
async fn begin(
    installation: &Installation,
    mut elector: Elector,
    elects: bool,
    was_led: impl Future<Output = bool>,
    health: &Health,
) -> Result<Begun, Refused> {
    installation.enter(health).await?;
    if !elects {
        let first = elector.take_unheld().await && !was_led.await;
        let waits = !first;
        tracing::info!(
            waits,
            "no election: waiting until no earlier write can land"
        );
        return Ok(Begun {
            elector: None,
            last_sent: waits.then(Instant::now),
        });
    }
    let how = elector.acquire().await;
    // The definition may have changed while this process waited. The lease is then left to run out: a released one would say that every
    // earlier write has settled.
    let adopted = installation.look().await?;
    tracing::info!(?how, "leading");
    // After an adoption the former leader goes on for as long as it trusts its own lease. And a lease that nobody has held may replace
    // one that was deleted.
    let unaware = match how {
        Acquired::Expired | Acquired::Released => None,
        _ if adopted => Some(lease::DURATION),
        Acquired::New | Acquired::Erased => Some(lease::UNAWARE),
        Acquired::Unheld => was_led.await.then_some(lease::UNAWARE),
    };
    let unaware = unaware.map(|unaware| Instant::now() + unaware);
    let last_sent = unaware.max(elector.last_sent());
    Ok(Begun {
        elector: Some(elector),
        last_sent,
    })
}

/// Which requests this process leads.
struct Scope<'a> {
    installation: Installation,
    credentials: CredentialFiles,
    client: Client,
    namespace: Option<&'a str>,
    pause_namespace: &'a str,
    sweep_interval: Duration,
    followed: freezes::Followed,
    health: Health,
}

/// Leads until `stop` resolves or the lease is lost.
async fn lead(
    engine: &Engine<Cluster>,
    mut keys: mpsc::UnboundedReceiver<Key>,
    scope: Scope<'_>,
    mut elector: Option<Elector>,
    stop: impl Future<Output = ()>,
) -> Result<(), Ended> {
    let Scope {
        installation,
        credentials,
        client,
        namespace,
        pause_namespace,
        sweep_interval,
        followed,
        health,
    } = scope;
    let (names, writer) = reflector::store();
    let (ready, is_ready) = oneshot::channel();
    let sweep = Box::pin(sweep::run(
        engine.store(),
        client.clone(),
        namespace,
        sweep_interval,
        engine.metrics(),
    ));
    let (pause_known, is_pause_known) = oneshot::channel();
    let pause = Box::pin(pause::follow(
        engine,
        client.clone(),
        pause_namespace,
        || {
            let _ = pause_known.send(());
        },
    ));
    let (freezes_known, are_freezes_known) = oneshot::channel();
    let freeze = Box::pin(freezes::follow(
        engine,
        client.clone(),
        pause_namespace,
        &followed,
        || {
            let _ = freezes_known.send(());
        },
    ));
    let events = watch::events(client, namespace);
    let follow = watch::follow(engine.clone(), writer, events, &health, || {
        let _ = ready.send(());
    });
    let work = async {
        // Nothing is reconciled before the claims are rebuilt, and before it is known what is stopped.
        let known = async { is_pause_known.await.is_ok() && are_freezes_known.await.is_ok() };
        if is_ready.await.is_ok() && known.await {
            health.rebuilt();
            tracing::info!("ready");
            let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
            queue::drive(engine.clone(), names, keys).await;
        }
    };
    let keep = async {
        match &mut elector {
            Some(elector) => Ended::from(elector.keep().await),
            None => installation.another(&health).await.into(),
        }
    };
    let reconsider = async {
        loop {
            credentials.changed().await;
            engine.reconsider();
        }
    };
    let end = async {
        stop.await;
        health.ends();
        drain(engine).await;
        handed_over(engine).await
    };
    let written = tokio::select! {
        biased;
        ended = keep => return Err(ended),
        written = end => Some(written),
        () = follow => failed("the watch has ended"),
        () = work => failed("the queue has ended"),
        () = sweep => failed("the sweep has ended"),
        () = pause => failed("changes of the key paused are no longer followed"),
        () = freeze => failed("the freezes are no longer followed"),
        () = reconsider => None,
    };
    let landing = engine
        .memory()
        .log(|log| log.inherited_until(Instant::now()));
    match (elector, written) {
        (Some(elector), Some(written)) if landing.is_none() => elector.release(&written).await,
        // Whoever finds a released lease waits for nothing.
        (Some(_), _) => {
            tracing::info!("keeping the lease until it runs out: earlier writes may still land");
        }
        (None, _) => {}
    }
    Ok(())
}

/// What must not end has ended.
fn failed<T>(what: &str) -> Option<T> {
    tracing::error!("{what}");
    None
}

/// Enters what the last leader may have sent, and what it handed over; says how long nothing is launched for that.
fn follow_the_last(
    engine: &Engine<Cluster>,
    last_sent: Option<Instant>,
    inherited: Option<&Inherited>,
) {
    let now = Instant::now();
    engine.memory().log(|log| {
        if let Some(last_sent) = last_sent {
            log.follow(last_sent);
        }
        if let Some(inherited) = inherited {
            inherited.enter(log, now);
        }
    });
    let (others, all) = engine
        .memory()
        .log(|log| (log.inherited_until(now), log.nothing_until(now)));
    if let Some(others) = others {
        let left = |until: Option<Instant>| until.map_or(0, |until| (until - now).as_secs());
        tracing::info!(
            all_seconds = left(all),
            most_seconds = left(Some(others)),
            "a tag write of an earlier process may still land: floats whose owner has none on its way wait for the first, others for the second"
        );
    }
}

/// Lets tag writes end, records what they found, and waits until none can land any more.
async fn drain(engine: &Engine<Cluster>) {
    tracing::info!(
        operations = engine.unrecorded(),
        "stopping: launching nothing more"
    );
    engine.drain();
    let deadline = Instant::now() + DRAIN;
    while engine.unrecorded() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let landed = || engine.memory().log(|log| log.landed_at(Instant::now()));
    while let Some(landed) = landed() {
        tokio::time::sleep_until(landed).await;
    }
}

/// What the next leader has to know, once that is little enough to be told: what was written longer ago shows everywhere.
async fn handed_over(engine: &Engine<Cluster>) -> Written {
    loop {
        let written = engine.memory().log(|log| Written::of(log, Instant::now()));
        match written {
            Some(written) => return written,
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
