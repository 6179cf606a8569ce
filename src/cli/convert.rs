//! `promotion-controller convert`: from `oc image mirror` to promotion requests.
//!
//! In come mapping files and scripts, by themselves or in the object that a job has them in; out come the documents that promote the
//! same images to the same floats, or, where anything in them cannot be meant, every fault with its place and nothing else. What a
//! script does beside is told. Nothing is contacted. In reading order: `object` (its scripts), `shell` (a text's commands), `script`
//! (its invocations), `left_out` (what else it does), `options` and `mapping` (what they are given), `intent` (what that means), `references` (image streams
//! that follow).

mod complaint;
mod intended;
mod intent;
mod left_out;
mod mapping;
mod object;
mod options;
mod references;
mod script;
mod set_tag;
mod shell;

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::{bad_input, fail, say};
use crate::files;
use crate::store::file::parse_requests;
use complaint::Complaint;
use intent::intent;
use script::Found;

pub(super) use intended::Intended;
pub(super) use intent::{Intent, STAMP};

/// The largest file that is read, in bytes.
const FILE_MAX: usize = 4 * 1024 * 1024;
/// The longest complaint that is shown, in characters.
const COMPLAINT_MAX: usize = 800;
/// Images of one request.
const IMAGES_MAX: usize = 256;
/// The longest name that is made of a file's.
const NAME_MAX: usize = 200;

/// Turn `oc image mirror` mappings, or the scripts that run it, into promotion requests.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Mapping files (SRC=DST, or SRC DST [DST...], a mapping a line), shell scripts that run `oc image mirror`, and the ConfigMap or Pod,
    /// as YAML or JSON, that has such a script; - is standard input. A tag that `oc tag --reference` sets becomes imageStreamTag. What a
    /// script does beside, and requests do not, is named on standard error.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The requests' namespace [default: none is written].
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The request's name; several requests get a number each [default: that of the first FILE].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The Secret, in the requests' namespace, that may push to the floats' repositories.
    #[arg(long, value_name = "SECRET")]
    push_secret: Option<String>,
    /// The Secret that may pull the sources [default: that of --push-secret].
    #[arg(long, value_name = "SECRET")]
    pull_secret: Option<String>,
    /// Whether the floats of a request move together, or each when it is ready.
    #[arg(long, value_enum, ignore_case = true, default_value = "Together")]
    latch: Latch,
    /// How the requests are printed.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "yaml"
    )]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Latch {
    #[value(name = "Together")]
    Together,
    #[value(name = "Independently")]
    Independently,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A YAML document each.
    Yaml,
}

/// A request as it is printed: only what was said, in the order in which people read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: Spec<'a>,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latch: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull_secret: Option<SecretRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    push_secret: Option<SecretRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_stream_namespace: Option<String>,
    images: Vec<Image>,
}

#[derive(Debug, Serialize)]
struct SecretRef<'a> {
    name: &'a str,
}

#[derive(Debug, Serialize)]
struct Image {
    source: String,
    float: String,
    #[serde(rename = "imageStreamTag", skip_serializing_if = "Option::is_none")]
    stream_tag: Option<String>,
}

pub(super) fn run(args: &ConvertArgs) -> ExitCode {
    let intent = match read(&args.files) {
        Ok(intent) => intent,
        Err(complaints) => {
            for complaint in &complaints {
                say(&format!("error: {complaint}"));
            }
            return ExitCode::from(super::output::BAD_INPUT);
        }
    };
    let text = match print(args, &intent) {
        Ok(text) => text,
        Err(message) => return bad_input(&message),
    };
    for warning in &intent.warnings {
        say(&format!("warning: {warning}"));
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// What files mean together.
///
/// # Errors
/// Every fault of them, with its file and line, and what to do.
pub(super) fn read(files: &[PathBuf]) -> Result<Intent, Vec<String>> {
    let mut read = Vec::new();
    let mut complaints = Vec::new();
    for path in files {
        let name = named(path);
        match text_of(path).and_then(|text| all_of(&name, &text)) {
            Ok(all) => read.extend(all),
            Err(all) => complaints.extend(all),
        }
    }
    if !complaints.is_empty() {
        return Err(complaints
            .iter()
            .map(|complaint| line_of(complaint))
            .collect());
    }
    intent(&read).map_err(|all| {
        // What is said of no line is said of the file.
        let file = read
            .iter()
            .map(|(name, _)| &**name)
            .collect::<Vec<_>>()
            .join(", ");
        let known = |complaint: &String| {
            read.iter()
                .any(|(name, _)| complaint.starts_with(&format!("{name}:")))
        };
        let told = all.into_iter();
        told.map(|c| if known(&c) { c } else { format!("{file}: {c}") })
            .map(|complaint| line_of(&complaint))
            .collect()
    })
}

/// What is shown of a complaint: one line that a terminal can bear, whatever was in the file.
fn line_of(complaint: &str) -> String {
    let shown = complaint.chars().take(COMPLAINT_MAX);
    shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn named(path: &Path) -> Rc<str> {
    if path == Path::new("-") {
        "standard input".into()
    } else {
        path.display().to_string().into()
    }
}

fn placed(name: &str, complaints: Vec<Complaint>) -> Vec<String> {
    let all = complaints.into_iter();
    all.map(|Complaint { line, what }| format!("{name}:{line}: {what}"))
        .collect()
}

fn text_of(path: &Path) -> Result<String, Vec<String>> {
    let name = named(path);
    let refused = |what: String| vec![format!("{name}: {what}")];
    let bytes = files::read_or_stdin(path, FILE_MAX).map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => {
            refused(format!("is larger than {} MiB; split it", FILE_MAX >> 20))
        }
        _ => refused(format!("cannot be read: {error}; name a readable file")),
    })?;
    String::from_utf8(bytes)
        .map_err(|_| refused("is not UTF-8; name a mapping file or a shell script".into()))
}

/// What a text comes to, under its name; each script of an object under the name of its field, too.
fn all_of(name: &str, text: &str) -> Result<Vec<(Rc<str>, Found)>, Vec<String>> {
    let texts = match object::scripts(text) {
        None => vec![(name.to_owned(), text.to_owned())],
        Some(Err(what)) => return Err(vec![format!("{name}: {what}")]),
        Some(Ok(scripts)) => {
            let named = scripts.into_iter();
            named
                .map(|(field, script)| (format!("{name} {field}"), script))
                .collect()
        }
    };
    let (mut read, mut complaints) = (Vec::new(), Vec::new());
    for (name, text) in texts {
        match found(&text) {
            Ok(found) => read.push((name.into(), found)),
            Err(all) => complaints.extend(placed(&name, all)),
        }
    }
    if complaints.is_empty() {
        Ok(read)
    } else {
        Err(complaints)
    }
}

/// What a script comes to, or the one invocation that a mapping file stands for.
fn found(text: &str) -> Result<Found, Vec<Complaint>> {
    if script::is_script(text) {
        return script::read(text);
    }
    mapping::read(text, 1).map(Found::from)
}

/// The documents, checked by what reads them.
fn print(args: &ConvertArgs, intent: &Intent) -> Result<String, String> {
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.files));
    let count = intent.floats.len().div_ceil(IMAGES_MAX);
    let mut text = String::new();
    if let Some(hint) = hint(args, intent) {
        text.push_str(&hint);
    }
    for (number, floats) in intent.floats.chunks(IMAGES_MAX).enumerate() {
        if number > 0 {
            text.push_str("---\n");
        }
        let name = if count > 1 {
            format!("{name}-{}", number + 1)
        } else {
            name.clone()
        };
        let document = document(args, intent, name, floats);
        // A name on a line of its own reads and greps badly.
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        let document = serde_saphyr::to_string_with_options(&document, options)
            .map_err(|error| error.to_string())?;
        text.push_str(document.trim_end());
        text.push('\n');
    }
    // Whatever is wrong now came with --name, -n or a Secret's name.
    parse_requests(&text, Path::new("what would be printed")).map_err(|error| error.to_string())?;
    if count > 1 && args.latch == Latch::Together {
        say(&format!(
            "warning: {} images make {count} requests; the floats of each move together, not those of all",
            intent.floats.len()
        ));
    }
    Ok(text)
}

fn document<'a>(
    args: &'a ConvertArgs,
    intent: &Intent,
    name: String,
    floats: &[Intended],
) -> Document<'a> {
    let secret = |name: &'a Option<String>| name.as_deref().map(|name| SecretRef { name });
    Document {
        api_version: "ci.openshift.io/v1alpha1",
        kind: "PromotionRequest",
        metadata: Metadata {
            name,
            namespace: args.namespace.as_deref(),
        },
        spec: Spec {
            mode: intent.dry_run.then_some("Plan"),
            latch: (args.latch == Latch::Independently).then_some("Independently"),
            pull_secret: secret(&args.pull_secret),
            push_secret: secret(&args.push_secret),
            image_stream_namespace: floats
                .iter()
                .find_map(|intended| Some(intended.stream_tag.as_ref()?.0.clone())),
            images: floats
                .iter()
                .map(|intended| Image {
                    source: intended.source.to_string(),
                    float: intended.float.to_string(),
                    stream_tag: intended.stream_tag.as_ref().map(|(_, tag)| tag.to_string()),
                })
                .collect(),
        },
    }
}

/// Where the credentials were, as a comment, if no Secret is named.
fn hint(args: &ConvertArgs, intent: &Intent) -> Option<String> {
    if args.push_secret.is_some() || intent.registry_configs.is_empty() {
        return None;
    }
    let files: Vec<String> = intent
        .registry_configs
        .iter()
        .map(|file| file.escape_debug().to_string().replace(shell::UNKNOWN, "…"))
        .collect();
    Some(format!(
        "# The credentials were in {}. In a cluster, name the Secret that holds them: convert --push-secret NAME.\n",
        files.join(", ")
    ))
}

/// A name that a cluster takes, of the first file's.
fn name_of(files: &[PathBuf]) -> String {
    let stem = files.first().and_then(|path| path.file_stem());
    let stem = stem
        .map(|stem| stem.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(NAME_MAX)
        .collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() {
        "promotion".into()
    } else {
        name.into()
    }
}
