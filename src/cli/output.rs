//! What a command says on standard error, what it gives on standard output, and its exit code.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

/// Something is wrong with what was given: nothing was done.
pub(super) const BAD_INPUT: u8 = 2;

/// Says what is wrong with what was given.
pub(super) fn bad_input(message: &str) -> ExitCode {
    say(&format!("error: {message}"));
    ExitCode::from(BAD_INPUT)
}

pub(super) fn fail(message: &str) -> ExitCode {
    say(&format!("error: {message}"));
    ExitCode::FAILURE
}

/// A line on standard error. Nobody has to read it: a pipe that was closed must not end what is being promoted.
pub(super) fn say(line: &str) {
    // Whole: standard error keeps nothing back, and each part would be a call of its own.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// How objects are printed for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Json,
    Yaml,
}

/// Prints the objects as a List on standard output.
///
/// # Errors
/// What could not be written, unless the reader has gone.
pub(super) fn print_list(objects: &[impl Serialize], output: Output) -> Result<(), String> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    print_value(&list, output)
}

/// Prints one value on standard output.
///
/// # Errors
/// What could not be written, unless the reader has gone.
pub(super) fn print_value(value: &impl Serialize, output: Output) -> Result<(), String> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value).map_err(|error| error.to_string())?,
        Output::Yaml => serde_saphyr::to_string(value).map_err(|error| error.to_string())?,
    };
    print_text(text.trim_end())
}

/// Prints documents one after the other on standard output, as YAML.
///
/// # Errors
/// What could not be written, unless the reader has gone.
pub(super) fn print_documents(documents: &[impl Serialize]) -> Result<(), String> {
    let mut texts = Vec::with_capacity(documents.len());
    for document in documents {
        // A name on a line of its own reads and greps badly.
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        let text = serde_saphyr::to_string_with_options(document, options);
        texts.push(text.map_err(|error| error.to_string())?);
    }
    print_text(texts.join("---\n").trim_end())
}

/// Prints a text on standard output.
///
/// # Errors
/// What could not be written, unless the reader has gone.
pub(super) fn print_text(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}
