//! What helps at the keyboard: completions of shells, the answer to kubectl's completion hook, and man pages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::aot::{Shell, generate};
use clap_complete::engine::complete;

use super::output::{bad_input, fail, print_text};

/// How kubectl finds what completes its plugin's command line.
pub(super) const HOOK: &str = "kubectl_complete-promotion";
/// The end of an answer to kubectl: no names of files.
const NO_FILES: &str = ":4";

/// Which shell.
#[derive(Debug, Args)]
pub(super) struct CompletionArgs {
    /// The shell that is to complete.
    shell: Shell,
}

/// Where to.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder that the pages are written to.
    folder: PathBuf,
}

/// Prints the completions of a command line.
pub(super) fn print(args: &CompletionArgs, mut command: Command) -> ExitCode {
    let CompletionArgs { shell } = *args;
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut command, name, &mut script);
    match print_text(String::from_utf8_lossy(&script).trim_end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

/// Writes the man pages of command lines.
pub(super) fn write_pages(args: &ManArgs, commands: Vec<Command>) -> ExitCode {
    let ManArgs { folder } = args;
    for command in commands {
        if let Err(error) = clap_mangen::generate_to(command, folder) {
            return bad_input(&format!("cannot write to {}: {error}", folder.display()));
        }
    }
    ExitCode::SUCCESS
}

/// Answers kubectl: the arguments of this process are those of the plugin so far, the last one to be completed. A candidate a line, with
/// what it is behind a tab.
pub(super) fn answer(command: Command) -> ExitCode {
    let words = std::env::args_os().skip(1);
    match print_text(&candidates(command, words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

fn candidates(mut command: Command, words: impl Iterator<Item = OsString>) -> String {
    let name = OsString::from(command.get_name());
    let words: Vec<OsString> = std::iter::once(name).chain(words).collect();
    let last = words.len() - 1;
    // No candidate is better than an error in the middle of a line that is being typed.
    let found = complete(&mut command, words, last, None).unwrap_or_default();
    let lines = found.iter().filter(|one| !one.is_hide_set()).map(|one| {
        let value = one.get_value().to_string_lossy();
        let help = one.get_help().map(ToString::to_string).unwrap_or_default();
        match help.lines().next() {
            Some(help) => format!("{value}\t{help}"),
            None => value.into_owned(),
        }
    });
    lines
        .chain([NO_FILES.to_owned()])
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::requests::plugin;
    use super::*;

    fn answers(words: &[&str]) -> Vec<String> {
        let text = candidates(plugin(), words.iter().map(OsString::from));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.last().map(String::as_str), Some(NO_FILES), "{text}");
        let named = |line: &String| line.split('\t').next().unwrap_or_default().to_owned();
        lines[..lines.len() - 1].iter().map(named).collect()
    }

    #[test]
    fn kubectl_is_told_the_subcommands_options_and_values_that_fit_what_was_typed() {
        assert_eq!(answers(&["sus"]), ["suspend"]);
        assert!(answers(&[""]).contains(&"history".to_owned()));
        assert!(answers(&["status", "--wa"]).contains(&"--watch".to_owned()));
        assert_eq!(answers(&["status", "-o", "w"]), ["wide"]);
        assert_eq!(answers(&["nothing-like-it"]), Vec::<String>::new());
    }
}
