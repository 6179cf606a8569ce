//! What can go wrong in the testbed, told so that the failing test's output is enough to mend it.
//!
//! `Debug` is `Display`, so that `unwrap()` in a test prints the readable text with the part's own log.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of the testbed itself, not of the code under test.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file or directory of the testbed could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No Go toolchain that is able to build the binary.
    #[error(
        "{binary} {version} must be built and there is no fitting Go toolchain ({reason}): install Go {minimum} or newer \
         (https://go.dev/dl/) and put `go` on PATH, or put a ready {binary} into the directory KUBEBUILDER_ASSETS names \
         or at {}",
        cached.display()
    )]
    Go {
        /// The binary's name.
        binary: &'static str,
        /// The pinned version.
        version: String,
        /// What `go` said, or that it was not found.
        reason: String,
        /// The least version of Go, from the module's `go` line.
        minimum: String,
        /// Where a ready binary would be found.
        cached: PathBuf,
    },
    /// `go build` did not succeed; its own words went to standard error.
    #[error("`go build` of {binary} in {} ended with {status}; its output is above", module.display())]
    Build {
        /// The binary's name.
        binary: &'static str,
        /// The Go module.
        module: PathBuf,
        /// The exit status.
        status: std::process::ExitStatus,
    },
    /// A Go module of the testbed does not say what is expected of it.
    #[error("go.mod of testbed module {module} has no line `{line}`")]
    Module {
        /// The directory under `go/`.
        module: &'static str,
        /// The line that was looked for.
        line: String,
    },
    /// A part ended while it was wanted.
    #[error("{process} ended early; the end of {}:\n{tail}", log.display())]
    Ended {
        /// The part.
        process: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A part did not become ready in time.
    #[error("{process} was not ready after {} s ({last}); the end of {}:\n{tail}", waited.as_secs(), log.display())]
    NotReady {
        /// The part.
        process: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last look at it gave.
        last: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// Something that was waited for did not come.
    #[error("{what} did not come about within {} s", waited.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// A command line program failed.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The program with its arguments.
        command: String,
        /// The exit status.
        status: std::process::ExitStatus,
        /// What it printed on standard error.
        output: String,
    },
    /// The Kubernetes API refused.
    #[error("the API server: {0}")]
    Kube(#[from] kube::Error),
    /// The Kubernetes API could not be described to the client, or an answer lacks a field.
    #[error("{what}: {reason}")]
    Cluster {
        /// The object.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Keys or certificates could not be made.
    #[error("making the testbed's keys: {0}")]
    Keys(#[from] rcgen::Error),
    /// A registry or token server was not reached.
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    /// A registry answered otherwise than wanted.
    #[error("{method} {url} answered {status}: {body}")]
    Answer {
        /// The method.
        method: String,
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// A registry's answer cannot be understood or does not match its digest.
    #[error("{url}: {reason}")]
    Content {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A blocking step of the testbed was cancelled.
    #[error("a step of the testbed was cancelled: {0}")]
    Cancelled(#[from] tokio::task::JoinError),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A file error on `path`, ready for `map_err`.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
