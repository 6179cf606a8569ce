//! `promotion-controller promote`: the same engine on the requests of a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use tokio::time::Instant;

use super::progress::Display;
use super::{RegistryArgs, bad_input, credentials, fail, signalled, telemetry};
use crate::api::PromotionRequest;
use crate::controller::queue;
use crate::engine::Engine;
use crate::engine::leadership::Leadership;
use crate::image::Float;
use crate::machine::Phase;
use crate::registry::{Activity, Keyring, Registry};
use crate::store::Key;
use crate::store::file::{FileStore, read_requests};

/// How often the display looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long operations may take to end after the first signal.
const DRAIN: Duration = Duration::from_secs(30);

/// Carry out the `PromotionRequests` of a file, without a cluster.
#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// A YAML file with one or more `PromotionRequest` documents; their order is their order of creation.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Where the status is kept [default: FILE with the extension .state.yaml].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Credentials, a dockerconfigjson [default: `$REGISTRY_AUTH_FILE`, else the usual podman and docker files].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// Print the final objects on standard output, as a List.
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    output: Option<Output>,
    /// Promote on a registry in memory that stands in for every registry of the file.
    #[cfg(feature = "embedded-registry")]
    #[arg(long)]
    embedded_registry: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Json,
    Yaml,
}

/// What a run works on.
struct Run {
    engine: Engine<FileStore>,
    registry: Registry,
    keyring: Keyring,
    keys: tokio::sync::mpsc::UnboundedReceiver<Key>,
    #[cfg(feature = "embedded-registry")]
    stand_ins: Option<super::embedded::StandIns>,
    /// Removed with the run: the state of an embedded registry is worth nothing afterwards.
    _temporary: Option<tempfile::TempDir>,
}

pub(super) async fn run(args: PromoteArgs) -> ExitCode {
    telemetry::start("error");
    let output = args.output;
    let mut display = Display::new();
    let run = match set_up(args, &display).await {
        Ok(run) => run,
        Err(message) => return bad_input(&message),
    };
    look_again(
        &run.registry,
        &run.keyring,
        &run.engine.store().objects(),
        &display,
    )
    .await;
    let interrupted = carry_out(&run.engine, run.keys, &mut display).await;
    let objects = run.engine.store().objects();
    for object in &objects {
        summarise(object, &display);
    }
    #[cfg(feature = "embedded-registry")]
    if let Some(stand_ins) = &run.stand_ins {
        display.line("tags in the embedded registry:");
        for (tag, digest) in stand_ins.tags(&objects) {
            display.line(&format!("  {tag} {digest}"));
        }
    }
    if let Some(output) = output
        && let Err(error) = print(&objects, output)
    {
        return fail(&error);
    }
    if interrupted {
        return fail("interrupted; call it again to go on from here");
    }
    let done = |o: &PromotionRequest| matches!(phase(o), Some(Phase::Posted | Phase::Planned));
    if objects.iter().all(done) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Reads and checks everything; nothing is contacted before all of it is right.
async fn set_up(args: PromoteArgs, display: &Display) -> Result<Run, String> {
    let objects = read_requests(&args.file).map_err(|error| error.to_string())?;
    if objects
        .iter()
        .any(|o| o.spec.pull_secret.is_some() || o.spec.push_secret.is_some())
    {
        display.line("pullSecret and pushSecret are ignored without a cluster; credentials come from --registry-config or the usual files");
    }
    let keyring = credentials::find(args.registry_config.as_deref())?;
    let settings = args.registry.engine();
    #[cfg_attr(not(feature = "embedded-registry"), allow(unused_mut))]
    let mut registry = args.registry.registry();
    let mut temporary = None;
    #[cfg(feature = "embedded-registry")]
    let stand_ins = if args.embedded_registry {
        let stand_ins = super::embedded::StandIns::start(&objects).await?;
        registry.rewrite = stand_ins.rewrite();
        let mut hosts: Vec<_> = registry.rewrite.iter().collect();
        hosts.sort();
        for (host, address) in hosts {
            display.line(&format!(
                "embedded registry: {address} stands in for {host}"
            ));
        }
        if args.state.is_none() {
            temporary = Some(
                tempfile::tempdir()
                    .map_err(|error| format!("cannot make a temporary folder: {error}"))?,
            );
        }
        Some(stand_ins)
    } else {
        None
    };
    let state = match (&args.state, &temporary) {
        (Some(state), _) => state.clone(),
        (None, Some(folder)) => folder.path().join("state.yaml"),
        (None, None) => state_beside(&args.file),
    };
    let registry = Registry::new(registry).map_err(|error| error.to_string())?;
    let store = FileStore::open(objects, state, keyring.clone(), settings.settle)
        .map_err(|error| error.to_string())?;
    let quiet = store.quiet();
    let policy = args.registry.listed_or_all();
    let (engine, keys) = Engine::new(
        store,
        registry.clone(),
        policy,
        Leadership::alone(),
        settings,
    );
    if !quiet.is_zero() {
        display.line(&format!(
            "waiting {:.0} s for tag writes of the earlier run to settle",
            quiet.as_secs_f64().ceil()
        ));
        engine.memory().keep_quiet(Instant::now() + quiet);
    }
    Ok(Run {
        engine,
        registry,
        keyring,
        keys,
        #[cfg(feature = "embedded-registry")]
        stand_ins,
        _temporary: temporary,
    })
}

/// Runs every unfinished request to its end, and looks once at the floats of those that were done before. True where a signal
/// came first.
async fn carry_out(
    engine: &Engine<FileStore>,
    mut keys: tokio::sync::mpsc::UnboundedReceiver<Key>,
    display: &mut Display,
) -> bool {
    let objects = engine.store().objects();
    engine.rebuild(objects.iter());
    for object in objects.iter().filter(|o| !is_finished(o)) {
        engine.trigger(Key::of(object));
    }
    let names = queue::names_of(&objects);
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
    let mut work = Box::pin(queue::drive(engine.clone(), names, keys.boxed()));
    let mut stop = Box::pin(signalled());
    let mut draining: Option<Instant> = None;
    loop {
        tokio::select! {
            () = &mut work => {}
            () = &mut stop, if draining.is_none() => {
                display.line("stopping: tag writes that were sent are waited for");
                engine.drain();
                draining = Some(Instant::now() + DRAIN);
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let objects = engine.store().objects();
        for object in &objects {
            let uid = object.metadata.uid.as_deref().unwrap_or_default();
            let bytes = engine.bytes(uid).iter().map(|(_, bytes)| bytes).sum();
            display.show(object, bytes);
        }
        if objects.iter().all(is_finished) {
            return false;
        }
        if draining.is_some_and(|until| engine.unrecorded() == 0 || Instant::now() > until) {
            return true;
        }
    }
}

fn summarise(object: &PromotionRequest, display: &Display) {
    let Some(status) = &object.status else { return };
    let key = Key::of(object);
    let condition = status.conditions.iter().find(|c| c.type_ == "Progressing");
    let (reason, message) = condition
        .map(|c| (c.reason.as_str(), c.message.as_str()))
        .unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    display.line(&format!("{key}  {phase} ({reason}): {message}"));
    for image in &status.images {
        if let Some(promoted) = &image.promoted {
            display.line(&format!("  {}  {promoted}", image.float));
        }
        for pin in image.displaced.iter().chain(&image.rescued) {
            display.line(&format!("    kept {} as {}", pin.digest, pin.prune_tag));
        }
    }
}

fn print(objects: &[PromotionRequest], output: Output) -> Result<(), String> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    match output {
        Output::Json => {
            println!(
                "{}",
                serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?
            );
        }
        Output::Yaml => {
            print!(
                "{}",
                serde_saphyr::to_string(&list).map_err(|error| error.to_string())?
            );
        }
    }
    Ok(())
}

fn state_beside(file: &Path) -> PathBuf {
    file.with_extension("state.yaml")
}

fn phase(object: &PromotionRequest) -> Option<Phase> {
    Phase::parse(object.status.as_ref()?.phase.as_deref()?)
}

fn is_finished(object: &PromotionRequest) -> bool {
    phase(object).is_some_and(Phase::is_finished)
}

/// Looks once at each float of the requests that were Posted before this run; one on another digest is worth a warning.
async fn look_again(
    registry: &Registry,
    keyring: &Keyring,
    objects: &[PromotionRequest],
    display: &Display,
) {
    for object in objects.iter().filter(|o| phase(o) == Some(Phase::Posted)) {
        let images = object
            .status
            .as_ref()
            .map(|s| s.images.as_slice())
            .unwrap_or_default();
        for image in images {
            let (Ok(float), Some(source)) = (image.float.parse::<Float>(), &image.source) else {
                continue;
            };
            let found = match keyring.credential(float.repository()) {
                Ok(credential) => {
                    registry
                        .look(
                            float.repository(),
                            float.tag(),
                            &credential,
                            &Activity::default(),
                        )
                        .await
                }
                Err(error) => {
                    display.line(&format!("warning: cannot look at {float}: {error}"));
                    continue;
                }
            };
            let key = Key::of(object);
            match found {
                Ok(Some(manifest)) if manifest.digest.to_string() == source.digest => {
                    display.line(&format!("{key}  Posted    {float}  is in place"));
                }
                Ok(Some(manifest)) => display.line(&format!(
                    "warning: {float} was promoted to {} and is on {} now; another --state promotes it anew",
                    source.digest, manifest.digest
                )),
                Ok(None) => display.line(&format!("warning: {float} was promoted and is gone; another --state promotes it anew")),
                Err(error) => display.line(&format!("warning: cannot look at {float}: {error}")),
            }
        }
    }
}
