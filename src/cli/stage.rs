//! `promotion-controller stage`: brings each source of a file's requests to its float's repository, beside the floats.
//!
//! In come the documents that `promote` and the API server take, and the credentials of whoever may read the sources; out come the
//! same documents, each source named by digest in its float's repository. Guaranteed: every source is read before anything is
//! written; no float moves; the documents are printed only when every image of them is held. Killed and run again it ends the same.

mod documents;
mod images;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::args::{RegistryArgs, unusable};
use super::output::{bad_input, fail};
use super::progress::Display;
use super::signals::signalled;
use super::telemetry::{self, LogArgs};
use super::{credentials, output};
use crate::engine::Staging;
use crate::registry::RegistryClient;
use crate::store::Access;
use crate::store::file::{Document, check_floats, read_documents};
use images::{Images, Outcome};

/// How long what is under way may take to end after the first signal.
const DRAIN: Duration = Duration::from_secs(30);

/// Copy the sources of a file's requests to their floats' repositories, pin them there, and print the requests that promote them from
/// there. For where the sources can be read: it needs no cluster, moves no float, and may run beside a controller.
#[derive(Debug, Args)]
pub(super) struct StageArgs {
    /// A YAML file with one or more promotion requests, a document each; - is standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Credentials, a dockerconfigjson [default: `$REGISTRY_AUTH_FILE`, else the usual podman and docker files].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// How the requests are printed on standard output.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "yaml"
    )]
    output: Output,
    /// Say nothing but warnings and failures.
    #[arg(short = 'q', long)]
    quiet: bool,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A YAML document each.
    Yaml,
    /// A List.
    Json,
}

/// What a run works on.
struct Run {
    documents: Vec<Document>,
    images: Images,
    staging: Staging,
    stop: CancellationToken,
}

pub(super) async fn run(args: StageArgs) -> ExitCode {
    telemetry::start(&args.log, "error");
    let output = args.output;
    let Run {
        documents,
        images,
        staging,
        stop,
    } = match set_up(&args) {
        Ok(run) => run,
        Err(message) => return bad_input(&message),
    };
    let display = Display::new(args.quiet);
    let work = images.stage(&staging, &stop, &display);
    tokio::pin!(work);
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        () = signalled() => {
            display.line("stopping: tag writes that were sent are waited for");
            stop.cancel();
            // Whatever is staged by then: who stops this wants nothing created.
            let _ = timeout(DRAIN, work).await;
            Outcome::Stopped
        }
    };
    display.end_all();
    match outcome {
        Outcome::Staged(digests) => {
            let documents = documents::staged(documents, &digests);
            let printed = match output {
                Output::Yaml => output::print_documents(&documents),
                Output::Json => output::print_list(&documents, output::Output::Json),
            };
            printed.map_or_else(|message| fail(&message), |()| ExitCode::SUCCESS)
        }
        Outcome::Failed => fail("not all is staged, so no request is printed"),
        Outcome::Stopped => fail("interrupted; call it again to go on from here"),
    }
}

/// Reads and checks everything; nothing is contacted before all of it is right.
fn set_up(args: &StageArgs) -> Result<Run, String> {
    let documents = read_documents(&args.file).map_err(|error| error.to_string())?;
    let file = args.file.display();
    let objects = || documents.iter().map(|document| &document.object);
    check_floats(objects().enumerate()).map_err(|error| format!("{file}: {error}"))?;
    let policy = args.registry.listed_or_all();
    let mut images = Images::default();
    for object in objects() {
        images
            .add(object, &policy)
            .map_err(|error| format!("{file}: {error}"))?;
    }
    let keyring = credentials::find(args.registry_config.as_deref())?;
    let settings = args.registry.registry(&policy);
    let registry = RegistryClient::new(settings).map_err(|error| unusable(&error))?;
    let access = Access::unconditional(keyring.clone(), keyring);
    let stop = CancellationToken::new();
    let settings = args.registry.engine();
    let staging = Staging::new(registry, access, &settings, Timestamp::now(), stop.clone());
    Ok(Run {
        documents,
        images,
        staging,
        stop,
    })
}
