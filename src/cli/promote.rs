//! `promotion-controller promote`: the same engine on the requests of a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::args::{RegistryArgs, unusable};
use super::output::{Output, bad_input, fail, print_list};
use super::preview::{self, Form, Preview};
use super::progress::Display;
use super::run::{End, carry_out};
use super::signals::signalled;
use super::stand_in::{StandInArgs, StandIns};
use super::summary::summarise;
use super::telemetry::{self, LogArgs};
use super::verify::verify_posted;
use crate::api::PromotionRequest;
use crate::api::status::read;
use crate::engine::leadership::Leadership;
use crate::engine::{Engine, Settings};
use crate::machine::Phase;
use crate::policy::Policy;
use crate::registry::{Keyring, RegistryClient};
use crate::store::Key;
use crate::store::file::{FileError, FileStore, Update, read_requests};

/// Carry out the promotion requests of a file, without a cluster. It orders the requests of one state file; it keeps no order with a
/// controller, nor with a promote that has another state file: let only one of them write a float.
#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// A YAML file with one or more promotion requests, a document each; their order is their order of creation. - is standard
    /// input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Where the status is kept [default: FILE with the extension .state.yaml; for standard input nowhere, so that an interrupted
    /// run starts again].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Credentials, a dockerconfigjson [default: `$REGISTRY_AUTH_FILE`, else the usual podman and docker files].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// Print the final objects on standard output, as a List; with --dry-run what was found.
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    output: Option<Output>,
    /// Say what would be done from where an earlier run ended, as preview does; write nothing, the state file included.
    #[arg(long)]
    dry_run: bool,
    /// Say nothing but warnings and what did not end well.
    #[arg(short = 'q', long)]
    quiet: bool,
    #[command(flatten)]
    stand_in: StandInArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// What was given, read and checked.
struct Given {
    objects: Vec<PromotionRequest>,
    policy: Policy,
    keyring: Keyring,
    registry: RegistryClient,
    settings: Settings,
    stand_ins: Option<StandIns>,
    state: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

/// What a run works on.
struct Run {
    engine: Engine<FileStore>,
    registry: RegistryClient,
    keyring: Keyring,
    keys: UnboundedReceiver<Key>,
    updates: UnboundedReceiver<Update>,
    stand_ins: Option<StandIns>,
    /// Removed with the run: the state of an embedded registry is worth nothing afterwards, and that of standard input has no name.
    temporary: Option<tempfile::TempDir>,
}

pub(super) async fn run(args: PromoteArgs) -> ExitCode {
    telemetry::start(&args.log, "error");
    let (output, dry_run, file) = (args.output, args.dry_run, args.file.clone());
    let mut display = Display::new(args.quiet);
    let given = match read_all(args, &display).await {
        Ok(given) => given,
        Err(message) => return bad_input(&message),
    };
    if dry_run {
        return foresee(given, &file, output, &display).await;
    }
    let run = match set_up(given, &file, &display) {
        Ok(run) => run,
        Err(message) => return bad_input(&message),
    };
    let Run {
        // Outlives the engine, which writes there at the end.
        temporary,
        engine,
        registry,
        keyring,
        keys,
        updates,
        stand_ins,
    } = run;
    let mut stop = Box::pin(signalled());
    let before = engine.store().objects();
    let end = tokio::select! {
        () = &mut stop => End::Interrupted,
        () = verify_posted(&registry, &keyring, &before, &display) => {
            carry_out(&engine, keys, updates, &mut display, stop).await
        }
    };
    display.end();
    let objects = engine.store().objects();
    for object in &objects {
        summarise(object, &display);
    }
    if let Some(stand_ins) = &stand_ins {
        show_tags(stand_ins, &objects, &display);
    }
    if let Some(output) = output
        && let Err(error) = print_list(&objects, output)
    {
        return fail(&error);
    }
    let done = |o: &PromotionRequest| o.phase().is_some_and(Phase::is_complete);
    match end {
        End::Interrupted if temporary.is_some() => fail(
            "interrupted; without --state nothing is kept: called again it begins anew, from what the registry holds",
        ),
        End::Interrupted => fail("interrupted; call it again to go on from here"),
        End::Unsaved => {
            fail("the state cannot be saved; call it again once it can, to go on from here")
        }
        End::Done if objects.iter().all(done) => ExitCode::SUCCESS,
        End::Done => ExitCode::FAILURE,
    }
}

/// Reads and checks everything; nothing is contacted before all of it is right.
async fn read_all(args: PromoteArgs, display: &Display) -> Result<Given, String> {
    let objects = read_requests(&args.file).map_err(|error| error.to_string())?;
    for object in &objects {
        if object.spec.pull_secret.is_some() || object.spec.push_secret.is_some() {
            display.line(&format!(
                "{}: pullSecret and pushSecret are ignored without a cluster; credentials come from --registry-config or the usual files",
                Key::from(object)
            ));
        }
    }
    let policy = args.registry.listed_or_all();
    for object in &objects {
        let request = read(object).map_err(|error| error.to_string())?;
        if object.spec.image_stream_namespace.is_some() {
            return Err(format!(
                "{}: {}: imageStreamTag and imageStreamNamespace need the controller of a cluster; leave them out, or create the request there",
                args.file.display(),
                Key::from(object)
            ));
        }
        policy
            .check(&request)
            .map_err(|error| format!("{}: {}: {error}", args.file.display(), Key::from(object)))?;
    }
    let keyring = args.stand_in.credentials(args.registry_config.as_deref())?;
    let mut registry = args.registry.registry(&policy);
    let stand_ins = args.stand_in.start(&objects).await?;
    if let Some(stand_ins) = &stand_ins {
        registry.rewrite = stand_ins.rewrite();
        let mut hosts: Vec<_> = registry.rewrite.iter().collect();
        hosts.sort();
        for (host, address) in hosts {
            display.line(&format!(
                "embedded registry: {address} stands in for {host}"
            ));
        }
    }
    let nameless = args.stand_in.is_set() || args.file == Path::new("-");
    let temporary = if nameless && args.state.is_none() {
        let folder = tempfile::tempdir();
        Some(folder.map_err(|error| format!("cannot make a temporary folder: {error}"))?)
    } else {
        None
    };
    let state = match (&args.state, &temporary) {
        (Some(state), _) => state.clone(),
        (None, Some(folder)) => folder.path().join("state.yaml"),
        (None, None) => state_beside(&args.file),
    };
    let registry = RegistryClient::new(registry).map_err(|error| unusable(&error))?;
    Ok(Given {
        objects,
        policy,
        keyring,
        registry,
        settings: args.registry.engine(),
        stand_ins,
        state,
        temporary,
    })
}

/// Takes the state file, and makes an engine that works on it.
fn set_up(given: Given, file: &Path, display: &Display) -> Result<Run, String> {
    let Given {
        objects,
        policy,
        keyring,
        registry,
        settings,
        stand_ins,
        state,
        temporary,
    } = given;
    let late = registry.put_timeout() + settings.late;
    let (store, updates) = FileStore::open(objects, &state, keyring.clone(), settings.settle, late)
        .map_err(|error| in_file(file, &error))?;
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
        let until = Instant::now() + quiet;
        engine.memory().log(|log| log.keep_quiet(until, until));
    }
    Ok(Run {
        engine,
        registry,
        keyring,
        keys,
        updates,
        stand_ins,
        temporary,
    })
}

/// Says what a run would do, and does nothing.
async fn foresee(given: Given, file: &Path, output: Option<Output>, display: &Display) -> ExitCode {
    let Given {
        objects,
        policy,
        keyring,
        registry,
        stand_ins,
        state,
        ..
    } = given;
    let mut objects = match FileStore::foreseen(objects, &state) {
        Ok(objects) => objects,
        Err(error) => return bad_input(&in_file(file, &error)),
    };
    verify_posted(&registry, &keyring, &objects, display).await;
    objects.retain(|object| !object.is_finished());
    let form = match output {
        None => Form::Table,
        Some(Output::Json) => Form::Json,
        Some(Output::Yaml) => Form::Yaml,
    };
    match Preview::new(objects, policy, registry, keyring, stand_ins) {
        Ok(preview) => preview.say(form, preview::TIMEOUT_SECONDS).await,
        Err(message) => bad_input(&message),
    }
}

/// Says which file a float stands in; all else names its own.
fn in_file(file: &Path, error: &FileError) -> String {
    match error {
        FileError::Float { .. } => format!("{}: {error}", file.display()),
        error => error.to_string(),
    }
}

/// Shows what the embedded registry holds in the end.
fn show_tags(stand_ins: &StandIns, objects: &[PromotionRequest], display: &Display) {
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

/// Where the state of a file's requests is kept unless it is said.
pub(super) fn state_beside(file: &Path) -> PathBuf {
    file.with_extension("state.yaml")
}
