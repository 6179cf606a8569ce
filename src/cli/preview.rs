//! `promotion-controller preview`: what carrying out the requests of a file would do. Nothing is written.
//!
//! In come the documents that `promote` and the API server take; out comes, for each image, what `mode: Plan` finds: what would be
//! copied, which tags would be written with which digest and what they hold now, or why it would fail. With `--against`, beside
//! what a script does about the same floats. Guaranteed: GET, HEAD and requests for tokens only; the right to write is asked for
//! only where the repository is there already, because some registries make the one that a token names.

mod against;
mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::args::{RegistryArgs, unusable};
use super::output::{Output, bad_input, fail, print_value, say};
use super::signals::signalled;
use super::stand_in::{StandInArgs, StandIns};
use super::{convert, telemetry};
use crate::api::PromotionRequest;
use crate::api::status::read;
use crate::engine::forecast;
use crate::image::Float;
use crate::machine::{Fault, FaultClass, Forecast, ImageSpec, Reason, Request};
use crate::policy::Policy;
use crate::registry::{Keyring, Progress, RegistryClient, Settings, Waiting};
use crate::store::Access;
use crate::store::Key;
use crate::store::file::{check_floats, read_requests};
use against::Script;
use report::{Found, Push, Report};

/// What is still unknown after so long is reported as such.
pub(super) const TIMEOUT_SECONDS: u32 = 300;
/// Images looked at at once; how fast the registry is asked is its budget's.
const AT_ONCE: usize = 32;
/// A registry that is not available for so long is not waited for any more.
const UNAVAILABLE: Duration = Duration::from_secs(5);
/// A try to connect takes up to ten seconds, and is no sign that it is available.
const BREAK: Duration = Duration::from_secs(12);
/// How often is looked at what is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Say what carrying out the promotion requests of a file would do, and write nothing.
#[derive(Debug, Args)]
pub(super) struct PreviewArgs {
    /// A YAML file with one or more promotion requests, a document each; - is standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Compare with what this script, or this mapping file, does to the same floats (repeatable).
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Credentials, a dockerconfigjson [default: `$REGISTRY_AUTH_FILE`, else the usual podman and docker files].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// Report what is still unknown after this many seconds as such.
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_SECONDS, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
    /// How the findings are printed.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Form,
    #[command(flatten)]
    stand_in: StandInArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A line for each float.
    Table,
    /// The same, and below each float the tags that would be written, with whole digests.
    Wide,
    /// For programs.
    Json,
    /// For programs.
    Yaml,
}

/// What is looked at, and with what.
pub(super) struct Preview {
    requests: Vec<(PromotionRequest, Request)>,
    script: Option<Script>,
    policy: Policy,
    registry: RegistryClient,
    access: Access,
    /// Lives as long as it is asked.
    _stand_ins: Option<StandIns>,
}

pub(super) async fn run(args: PreviewArgs) -> ExitCode {
    telemetry::start(&telemetry::LogArgs::default(), "error");
    let (form, timeout) = (args.output, args.timeout);
    match set_up(args).await {
        Ok(preview) => preview.say(form, timeout).await,
        Err(message) => bad_input(&message),
    }
}

/// Reads and checks everything; nothing is contacted before all of it is right.
async fn set_up(args: PreviewArgs) -> Result<Preview, String> {
    let objects = read_requests(&args.file).map_err(|error| error.to_string())?;
    let file = args.file.display();
    check_floats(objects.iter().enumerate()).map_err(|error| format!("{file}: {error}"))?;
    let script = if args.against.is_empty() {
        None
    } else {
        let intent =
            convert::read(&args.against).map_err(|all| format!("--against: {}", all.join("; ")))?;
        for warning in &intent.warnings {
            say(&format!("warning: {warning}"));
        }
        Some(Script::of(intent))
    };
    let policy = args.registry.listed_or_all();
    let mut settings: Settings = args.registry.registry(&policy);
    let stand_ins = args.stand_in.start(&objects).await?;
    if let Some(stand_ins) = &stand_ins {
        settings.rewrite = stand_ins.rewrite();
    }
    let keyring = args.stand_in.credentials(args.registry_config.as_deref())?;
    for object in &objects {
        if let Some(streams) = stream_tags(object) {
            say(&format!(
                "{}: once its floats have moved, the controller sets {streams}; neither the streams nor its rules are looked at here",
                Key::from(object)
            ));
        }
    }
    let registry = RegistryClient::new(settings).map_err(|error| unusable(&error))?;
    let preview = Preview::new(objects, policy, registry, keyring, stand_ins)?;
    Ok(Preview { script, ..preview })
}

/// The tags of image streams that follow a request's floats.
fn stream_tags(object: &PromotionRequest) -> Option<String> {
    let namespace = object.spec.image_stream_namespace.as_deref()?;
    let images = object.spec.images.iter();
    let tags = images.filter_map(|image| image.image_stream_tag.as_deref());
    let tags: Vec<_> = tags.map(|tag| format!("{namespace}/{tag}")).collect();
    Some(tags.join(", "))
}

impl Preview {
    /// Of these requests, from where each is.
    pub(super) fn new(
        objects: Vec<PromotionRequest>,
        policy: Policy,
        registry: RegistryClient,
        keyring: Keyring,
        stand_ins: Option<StandIns>,
    ) -> Result<Self, String> {
        let mut requests = Vec::new();
        for object in objects {
            let request = read(&object).map_err(|error| error.to_string())?;
            requests.push((object, request));
        }
        Ok(Self {
            requests,
            script: None,
            policy,
            registry,
            access: Access::unconditional(keyring.clone(), keyring),
            _stand_ins: stand_ins,
        })
    }

    /// Looks for at most so many seconds, prints what was found, and gives an exit code: whether anything is in the way.
    pub(super) async fn say(&self, form: Form, seconds: u32) -> ExitCode {
        let end = Instant::now() + Duration::from_secs(seconds.into());
        let report = tokio::select! {
            report = self.report(end) => report,
            () = signalled() => return fail("interrupted; nothing was written"),
        };
        let printed = match form {
            Form::Table => report.print_table(false),
            Form::Wide => report.print_table(true),
            Form::Json => print_value(&report.value(), Output::Json),
            Form::Yaml => print_value(&report.value(), Output::Yaml),
        };
        match printed {
            Err(message) => fail(&message),
            Ok(()) if report.in_the_way() == 0 => ExitCode::SUCCESS,
            Ok(()) => ExitCode::FAILURE,
        }
    }

    /// What is found of everything until `end`.
    async fn report(&self, end: Instant) -> Report {
        let mut moved: HashMap<&Float, Key> = HashMap::new();
        let mut images = Vec::new();
        for (number, (object, request)) in self.requests.iter().enumerate() {
            for (index, image) in request.spec.images.iter().enumerate() {
                let key = Key::from(object);
                let before = moved
                    .insert(&image.float, key)
                    .filter(|before| *before != Key::from(object));
                images.push((number, index, image, before));
            }
        }
        let found: Vec<Found> = stream::iter(images)
            .map(|(number, index, image, before)| async move {
                let (_, request) = &self.requests[number];
                let finding = self.find(request, index, image, end).await;
                let push = match &finding {
                    Ok(forecast) => self.push(image, forecast, end).await,
                    Err(_) => Push::NotKnown,
                };
                Found {
                    request: number,
                    source: image.source.clone(),
                    float: image.float.clone(),
                    script: self
                        .script
                        .as_ref()
                        .map(|script| script.compare(image, finding.as_ref().ok())),
                    before,
                    finding,
                    push,
                }
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let names = self
            .requests
            .iter()
            .map(|(object, _)| Key::from(object).to_string());
        let floats = found.iter().map(|image| &image.float).collect();
        Report {
            requests: names.collect(),
            missed: self
                .script
                .as_ref()
                .map(|script| script.missed(&floats))
                .unwrap_or_default(),
            images: found,
        }
    }

    async fn find(
        &self,
        request: &Request,
        index: usize,
        image: &ImageSpec,
        end: Instant,
    ) -> Result<Forecast, Fault> {
        let ends = |reason, message: &str| Fault {
            reason,
            message: message.into(),
            class: FaultClass::Terminal,
        };
        if request.spec.cancel {
            return Err(ends(Reason::Cancelled, "spec.cancel is set; leave it out"));
        }
        if request.spec.suspend {
            return Err(ends(
                Reason::Suspended,
                "spec.suspend is set; set it to false to resume",
            ));
        }
        if let Err(message) = self.policy.check(&alone(request, image)) {
            let at = format!("spec.images[{index}]");
            return Err(ends(
                Reason::NotAllowed,
                &message.replace("spec.images[0]", &at),
            ));
        }
        let progress = Arc::new(Progress::default());
        let recorded = &request.status.images[index];
        let forecast = forecast(&self.registry, &self.access, image, recorded, &progress);
        let mut waits = Waits::default();
        let found = tokio::select! {
            forecast = forecast => forecast,
            () = waits.too_long(&progress) => Err(waits.fault()),
            () = sleep_until(end) => Err(waits.fault()),
        }?;
        let unmet = image
            .unmet(found.held.float)
            .filter(|_| found.held.float != Some(found.source));
        match unmet {
            Some(message) => Err(ends(Reason::PreconditionFailed, &message)),
            None => Ok(found),
        }
    }

    /// Whether the credential says that it may push. Where the float is there, its repository is, and asking makes none.
    async fn push(&self, image: &ImageSpec, forecast: &Forecast, end: Instant) -> Push {
        let repository = image.float.repository();
        let held = forecast.held;
        let there = [held.float, held.incoming, held.pre, held.post1];
        if forecast.is_unchanged() || there.iter().all(Option::is_none) {
            return Push::NotKnown;
        }
        let Ok(credential) = self.access.push.credential(repository) else {
            return Push::NotKnown;
        };
        let progress = Progress::default();
        let asked = self
            .registry
            .claims_push(repository, &credential, &progress);
        match timeout_at(end, asked).await {
            Ok(Ok(true)) => Push::Granted,
            Ok(Err(error)) if error.class == crate::registry::Class::Terminal => {
                Push::Denied(Fault {
                    reason: error.reason,
                    message: error.message,
                    class: FaultClass::Terminal,
                })
            }
            Ok(_) | Err(_) => Push::NotKnown,
        }
    }
}

/// The request with this image alone, as far as a policy looks at it.
fn alone(request: &Request, image: &ImageSpec) -> Request {
    let mut alone = request.clone();
    alone.spec.images = vec![image.clone()];
    alone.status.images.truncate(1);
    alone
}

/// What the look at an image has waited for.
#[derive(Default)]
struct Waits {
    /// Why it waited last.
    last: Option<Waiting>,
    /// Since when it waits for an unavailable registry, with short breaks for trying again, and when it was last seen to.
    unavailable: Option<(Instant, Instant)>,
}

impl Waits {
    /// Resolves when a registry has not been available for [`UNAVAILABLE`]: whoever looks wants to know why, and not in five minutes.
    async fn too_long(&mut self, progress: &Progress) {
        loop {
            sleep(LOOK).await;
            let Some(waiting) = progress.waiting() else {
                continue;
            };
            let now = Instant::now();
            if waiting.reason.is_unavailable() {
                let recent = self.unavailable.filter(|(_, seen)| *seen + BREAK > now);
                let since = recent.map_or(now, |(since, _)| since);
                self.unavailable = Some((since, now));
            }
            self.last = Some(waiting);
            if (self.unavailable).is_some_and(|(since, _)| since + UNAVAILABLE <= now) {
                return;
            }
        }
    }

    /// Why nothing is known.
    fn fault(&self) -> Fault {
        let (reason, message) = match &self.last {
            Some(waiting) => (waiting.reason, waiting.message.clone()),
            None => (
                Reason::RegistryUnavailable,
                "not known within --timeout".into(),
            ),
        };
        Fault {
            reason,
            message,
            class: FaultClass::Wait { seconds: 1 },
        }
    }
}
