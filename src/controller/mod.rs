//! The controller: the engine on a cluster.
//!
//! ```text
//! lease ─▶ list and watch ─▶ claims rebuilt ─▶ queue ─▶ engine::reconcile
//!   ├────▶ sweep: finished requests
//!   └────▶ brake: what the operator has stopped
//! ```
//!
//! Ends in one of two ways: asked to (drain, settle, release), or because the lease was lost (at once; the next leader goes
//! on from status).

mod admin;
mod brake;
mod health;
pub mod lease;
pub mod queue;
mod sweep;
mod watch;

use std::time::Duration;

use futures::StreamExt as _;
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
use crate::registry::Registry;
use crate::store::Key;
use crate::store::cluster::Cluster;
use crate::store::own::OwnFiles;
use health::Health;
use lease::{Acquired, Elector, Lost};

pub use watch::SILENCE;

/// How long operations may take to end after the first signal: a tag write's timeout, and the save of what it found.
const DRAIN: Duration = Duration::from_secs(30);
/// How long an end takes at most that was asked for, beside the settle time: whoever asks has to wait so long before it kills.
pub const END: Duration = DRAIN.saturating_add(lease::RELEASE);

/// How the controller is set.
pub struct Config {
    /// Where the requests are.
    pub client: Client,
    /// Only this namespace's requests; none: all.
    pub namespace: Option<String>,
    /// Where the lease is; none: no election, a single process.
    pub lease_namespace: Option<String>,
    /// Where the ConfigMap is that stops work.
    pub brake_namespace: String,
    /// How this process is named in the lease and in events.
    pub identity: String,
    /// The registries.
    pub registry: Registry,
    /// The registries that may be contacted.
    pub policy: Policy,
    /// The controller's own credentials, and who may use them.
    pub own: OwnFiles,
    /// The engine's.
    pub engine: Settings,
    /// How often finished requests are looked at.
    pub sweep_interval: Duration,
    /// Where metrics and health are served; none: nowhere.
    pub listener: Option<TcpListener>,
}

/// Runs until `stop` resolves or the lease is lost.
///
/// # Errors
/// The lease was lost.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), Lost> {
    let Config {
        client,
        namespace,
        lease_namespace,
        brake_namespace,
        identity,
        registry,
        policy,
        own,
        engine: settings,
        sweep_interval,
        listener,
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
    // Also while another leads: whoever takes over goes by what they say then.
    let following = own.clone();
    let _following = AbortOnDropHandle::new(tokio::spawn(async move { following.follow().await }));
    let store = Cluster::new(client.clone(), reporter, own.clone(), metrics.clone());
    let settle = settings.settle;
    let (engine, keys) = Engine::new(store, registry, policy, leadership.clone(), settings);
    metrics.at_scrape({
        let (health, leadership, own) = (health.clone(), leadership.clone(), own.clone());
        move |scrape| {
            scrape.leader(health.is_leading() && leadership.covers(Duration::ZERO));
            scrape.unusable_files(own.unusable());
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
    let stop = std::pin::pin!(stop);
    let elector = lease_namespace.map(|ns| {
        Elector::new(client.clone(), &ns, identity, leadership)
            .telling(health.clone(), metrics.clone())
    });
    let (stop, elector) = if let Some(mut elector) = elector {
        let acquire = Box::pin(async { (elector.acquire().await, elector) });
        let ((how, elector), stop) = match select(stop, acquire).await {
            Either::Left(_) => return Ok(()),
            Either::Right(acquired) => acquired,
        };
        tracing::info!(?how, "leading");
        health.leads();
        metrics.leadership("acquired");
        if how == Acquired::New {
            engine
                .memory()
                .keep_quiet(Instant::now() + lease::UNAWARE + settle);
        }
        (stop, Some(elector))
    } else {
        tracing::info!(
            seconds = settle.as_secs(),
            "no election: waiting for earlier writes to settle"
        );
        health.leads();
        metrics.leadership("acquired");
        engine.memory().keep_quiet(Instant::now() + settle);
        (stop, None)
    };
    let scope = Scope {
        own,
        client,
        namespace: namespace.as_deref(),
        brake_namespace: &brake_namespace,
        sweep_interval,
        health,
    };
    lead(&engine, keys, scope, elector, stop).await
}

/// Whose requests are led.
struct Scope<'a> {
    own: OwnFiles,
    client: Client,
    namespace: Option<&'a str>,
    brake_namespace: &'a str,
    sweep_interval: Duration,
    health: Health,
}

/// Leads until `stop` resolves or the lease is lost.
async fn lead(
    engine: &Engine<Cluster>,
    mut keys: mpsc::UnboundedReceiver<Key>,
    scope: Scope<'_>,
    mut elector: Option<Elector>,
    stop: impl Future<Output = ()>,
) -> Result<(), Lost> {
    let Scope {
        own,
        client,
        namespace,
        brake_namespace,
        sweep_interval,
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
    let (braked, is_braked) = oneshot::channel();
    let brake = Box::pin(brake::follow(
        engine,
        client.clone(),
        brake_namespace,
        || {
            let _ = braked.send(());
        },
    ));
    let events = watch::events(client, namespace);
    let follow = watch::follow(engine.clone(), writer, events, &health, || {
        let _ = ready.send(());
    });
    let work = async {
        // Nothing is reconciled before the claims are rebuilt, and before it is known what is stopped.
        if is_ready.await.is_ok() && is_braked.await.is_ok() {
            tracing::info!("ready");
            health.rebuilt();
            let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
            queue::drive(engine.clone(), names, keys.boxed()).await;
        }
    };
    let keep = async {
        match &mut elector {
            Some(elector) => elector.keep().await,
            None => std::future::pending().await,
        }
    };
    let reconsider = async {
        loop {
            own.changed().await;
            engine.reconsider();
        }
    };
    let end = async {
        stop.await;
        health.ends();
        drain(engine).await;
    };
    tokio::select! {
        lost = keep => return Err(lost),
        () = follow => tracing::error!("the watch has ended"),
        () = work => tracing::error!("the queue has ended"),
        () = sweep => tracing::error!("the sweep has ended"),
        () = brake => tracing::error!("the brake is not followed any more"),
        () = reconsider => {}
        () = end => {}
    }
    if let Some(elector) = elector {
        elector.release().await;
    }
    Ok(())
}

/// Lets tag writes end, records what they found, and waits until the newest one has settled.
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
    while let Some(settled) = engine.memory().settled_at()
        && Instant::now() < settled
    {
        tokio::time::sleep_until(settled).await;
    }
}
