//! What a command says on standard error, and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

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
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
