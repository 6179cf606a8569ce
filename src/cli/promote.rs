//! `promotion-controller promote`: the same engine on the requests of a file.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, interval, timeout};

use super::progress::Display;
use super::summary::{Output, print, summarise};
use super::{RegistryArgs, bad_input, credentials, fail, signalled, telemetry};
use crate::api::status::read;
use crate::api::{ImageStatus, Latch, PromotionRequest};
use crate::controller::queue;
use crate::engine::Engine;
use crate::engine::leadership::Leadership;
use crate::image::Float;
use crate::machine::Phase;
use crate::registry::{Activity, BuildError, Keyring, Registry};
use crate::store::Key;
use crate::store::file::{FileStore, Update, read_requests};

/// How often bytes are counted, and a stop looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long operations may take to end after the first signal.
const DRAIN: Duration = Duration::from_secs(30);
/// How long looking at what was promoted before may take in all.
const LOOKS: Duration = Duration::from_mins(1);
/// How many of these looks are under way at once.
const LOOKS_AT_ONCE: usize = 8;
/// After a state could not be saved for so long, the run gives up.
const UNSAVED_MAX: Duration = Duration::from_mins(1);
/// How long the last word about an ended request may take after its end was saved.
const LAST_WORD: Duration = Duration::from_secs(1);

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

/// What a run works on.
struct Run {
    engine: Engine<FileStore>,
    registry: Registry,
    keyring: Keyring,
    keys: UnboundedReceiver<Key>,
    updates: UnboundedReceiver<Update>,
    #[cfg(feature = "embedded-registry")]
    stand_ins: Option<super::embedded::StandIns>,
    /// Removed with the run: the state of an embedded registry is worth nothing afterwards.
    _temporary: Option<tempfile::TempDir>,
}

/// How carrying out a file ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nothing is left to do.
    Done,
    /// A signal came first.
    Interrupted,
    /// The state could not be saved.
    Unsaved,
}

pub(super) async fn run(args: PromoteArgs) -> ExitCode {
    telemetry::start("error");
    let output = args.output;
    let mut display = Display::new();
    let run = match set_up(args, &display).await {
        Ok(run) => run,
        Err(message) => return bad_input(&message),
    };
    let Run {
        engine,
        registry,
        keyring,
        keys,
        updates,
        #[cfg(feature = "embedded-registry")]
        stand_ins,
        _temporary,
    } = run;
    let mut stop = Box::pin(signalled());
    let before = engine.store().objects();
    let end = tokio::select! {
        () = &mut stop => End::Interrupted,
        () = look_again(&registry, &keyring, &before, &display) => {
            carry_out(&engine, keys, updates, &mut display, stop).await
        }
    };
    display.end();
    let objects = engine.store().objects();
    for object in &objects {
        summarise(object, &display);
    }
    #[cfg(feature = "embedded-registry")]
    if let Some(stand_ins) = &stand_ins {
        show_tags(stand_ins, &objects, &display);
    }
    if let Some(output) = output
        && let Err(error) = print(&objects, output)
    {
        return fail(&error);
    }
    let done = |o: &PromotionRequest| matches!(phase(o), Some(Phase::Posted | Phase::Planned));
    match end {
        End::Interrupted => fail("interrupted; call it again to go on from here"),
        End::Unsaved => {
            fail("the state cannot be saved; call it again once it can, to go on from here")
        }
        End::Done if objects.iter().all(done) => ExitCode::SUCCESS,
        End::Done => ExitCode::FAILURE,
    }
}

/// Reads and checks everything; nothing is contacted before all of it is right.
async fn set_up(args: PromoteArgs, display: &Display) -> Result<Run, String> {
    let objects = read_requests(&args.file).map_err(|error| error.to_string())?;
    for object in &objects {
        if object.spec.pull_secret.is_some() || object.spec.push_secret.is_some() {
            display.line(&format!(
                "{}: pullSecret and pushSecret are ignored without a cluster; credentials come from --registry-config or the usual files",
                Key::of(object)
            ));
        }
    }
    let policy = args.registry.listed_or_all();
    for object in &objects {
        let request = read(object).map_err(|error| error.to_string())?;
        policy
            .check(&request)
            .map_err(|error| format!("{}: {}: {error}", args.file.display(), Key::of(object)))?;
    }
    let keyring = credentials(&args)?;
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
    let registry = Registry::new(registry).map_err(|error| match error {
        BuildError::Address(_) => format!("--plain-http: {error}; correct it"),
        BuildError::Client(_) => error.to_string(),
    })?;
    let (store, updates) = FileStore::open(objects, &state, keyring.clone(), settings.settle)
        .map_err(|error| error.to_string())?;
    let quiet = store.quiet();
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
        updates,
        #[cfg(feature = "embedded-registry")]
        stand_ins,
        _temporary: temporary,
    })
}

/// An embedded registry knows nobody, and must not be shown anybody's password unasked.
fn credentials(args: &PromoteArgs) -> Result<Keyring, String> {
    #[cfg(feature = "embedded-registry")]
    if args.embedded_registry && args.registry_config.is_none() {
        return Ok(Keyring::anonymous());
    }
    credentials::find(args.registry_config.as_deref())
}

/// What is awaited of the requests of a run.
#[derive(Default)]
struct Awaited {
    /// Their end was not saved yet.
    open: HashMap<Key, String>,
    /// They ended, and the last word about it was not told yet.
    untold: HashSet<Key>,
    /// Since when every end is saved.
    ended: Option<Instant>,
    /// Since when the state cannot be saved.
    unsaved: Option<Instant>,
}

impl Awaited {
    /// Takes note of an update and shows it.
    fn note(&mut self, update: &Update, display: &mut Display) {
        match update {
            Update::Saved(object) => {
                self.unsaved = None;
                display.saved(object);
                let key = Key::of(object);
                if is_over(object) && self.open.remove(&key).is_some() && is_finished(object) {
                    self.untold.insert(key);
                }
            }
            Update::NotSaved(error) => {
                if self.unsaved.is_none() {
                    display.line(&format!(
                        "{error}; nothing goes on until then, trying again"
                    ));
                }
                self.unsaved.get_or_insert_with(Instant::now);
            }
            Update::Told { key, event, last } => {
                if *last {
                    self.untold.remove(key);
                } else {
                    display.told(key, event);
                }
            }
        }
    }

    /// Whether nothing more will come.
    fn over(&mut self) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        let ended = *self.ended.get_or_insert_with(Instant::now);
        self.untold.is_empty() || ended.elapsed() > LAST_WORD
    }
}

/// Runs every unfinished request to its end.
async fn carry_out(
    engine: &Engine<FileStore>,
    mut keys: UnboundedReceiver<Key>,
    mut updates: UnboundedReceiver<Update>,
    display: &mut Display,
    mut stop: impl Future<Output = ()> + Unpin,
) -> End {
    let objects = engine.store().objects();
    engine.rebuild(objects.iter());
    let mut awaited = Awaited::default();
    for object in objects.iter().filter(|o| !is_finished(o)) {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        display.begin(object);
        awaited.open.insert(Key::of(object), uid);
        engine.trigger(Key::of(object));
    }
    let names = queue::names_of(&objects);
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
    let mut work = Box::pin(queue::drive(engine.clone(), names, keys.boxed()));
    let mut tick: Interval = interval(TICK);
    let mut draining: Option<Instant> = None;
    while !awaited.over() {
        tokio::select! {
            Some(update) = updates.recv() => awaited.note(&update, display),
            // It ends with the engine, which this function outlives not.
            () = &mut work => return End::Interrupted,
            () = &mut stop, if draining.is_none() => {
                display.line("stopping: tag writes that were sent are waited for");
                engine.drain();
                draining = Some(Instant::now() + DRAIN);
            }
            _ = tick.tick() => {
                for (key, uid) in &awaited.open {
                    display.copying(key, engine.bytes(uid).iter().map(|(_, bytes)| bytes).sum());
                }
                if draining.is_some_and(|until| engine.unrecorded() == 0 || Instant::now() > until) {
                    return End::Interrupted;
                }
                if draining.is_none() && awaited.unsaved.is_some_and(|since| since.elapsed() > UNSAVED_MAX) {
                    return End::Unsaved;
                }
            }
        }
    }
    while let Ok(update) = updates.try_recv() {
        awaited.note(&update, display);
    }
    End::Done
}

/// Shows what the embedded registry holds in the end.
#[cfg(feature = "embedded-registry")]
fn show_tags(
    stand_ins: &super::embedded::StandIns,
    objects: &[PromotionRequest],
    display: &Display,
) {
    for (repository, tags) in stand_ins.tags(objects) {
        display.line(&format!("{repository} in the embedded registry:"));
        let width = tags
            .iter()
            .map(|(tag, _)| tag.len())
            .max()
            .unwrap_or_default();
        for (tag, digest) in tags {
            display.line(&format!("  {tag:<width$}  {digest}"));
        }
    }
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

/// Whether this run can do nothing more for a request: it ended, or it is suspended and was so before its floats could move.
fn is_over(object: &PromotionRequest) -> bool {
    let Some(status) = &object.status else {
        return false;
    };
    let together = object.spec.latch == Latch::Together;
    let goes_on = |image: &ImageStatus| {
        let finished = Phase::parse(&image.phase).is_some_and(Phase::is_finished);
        let committed = if together {
            status.committed
        } else {
            image.committed
        };
        !finished && committed == Some(true)
    };
    is_finished(object) || (object.spec.suspend && !status.images.iter().any(goes_on))
}

/// Looks once at each float of the requests that were Posted before this run; one on another digest is worth a warning.
async fn look_again(
    registry: &Registry,
    keyring: &Keyring,
    objects: &[PromotionRequest],
    display: &Display,
) {
    let posted = objects.iter().filter(|o| phase(o) == Some(Phase::Posted));
    let images = posted.flat_map(|o| {
        let images = o.status.as_ref().map(|s| s.images.as_slice());
        images
            .unwrap_or_default()
            .iter()
            .map(|image| (Key::of(o), image))
    });
    let looks = futures::stream::iter(images)
        .map(|(key, image)| async move { (key, image, look(registry, keyring, image).await) })
        .buffered(LOOKS_AT_ONCE)
        .for_each(|(key, image, found)| async move {
            match found {
                Ok(()) => display.line(&format!("{key}  Posted    {}  is in place", image.float)),
                Err(message) => display.line(&format!("warning: {key}: {message}")),
            }
        });
    if timeout(LOOKS, looks).await.is_err() {
        let seconds = LOOKS.as_secs();
        display.line(&format!(
            "warning: looking at what was promoted before took {seconds} s; the rest is not looked at"
        ));
    }
}

/// Whether a float that was promoted is where it was put.
async fn look(registry: &Registry, keyring: &Keyring, image: &ImageStatus) -> Result<(), String> {
    let float: Float = image.float.parse().map_err(|error| format!("{error}"))?;
    let unknown = |error: &dyn std::fmt::Display| format!("cannot look at {float}: {error}");
    let credential = keyring
        .credential(float.repository())
        .map_err(|error| unknown(&error))?;
    let activity = Activity::default();
    let found = registry
        .look(float.repository(), float.tag(), &credential, &activity)
        .await
        .map_err(|error| unknown(&error))?;
    let source = image.source.as_ref().map(|s| s.digest.as_str());
    let source = source.unwrap_or_default();
    match found.map(|manifest| manifest.digest.to_string()) {
        Some(digest) if digest == source => Ok(()),
        Some(digest) => Err(format!(
            "{float} was promoted to {source} and is on {digest} now; another --state promotes it anew"
        )),
        None => Err(format!(
            "{float} was promoted to {source} and is gone; another --state promotes it anew"
        )),
    }
}
