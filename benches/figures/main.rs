//! The figures this program is held to, measured on the real parts and printed beside their limits.
//!
//! In: the names of sections, none for all that take ten minutes together, and `--quick` for small sizes. Out, on standard output:
//! docs/figures.md, and its plots as files. Guaranteed: a row whose outcome is wrong (a tag, a digest, a phase) fails the run; a figure beyond
//! its limit is marked and listed at the end, as times depend on what else the machine does.
//!
//! Each section is a module: [`requests`], [`writes`], [`fairness`], [`peers`], [`rate`], [`bytes`], [`faults`], [`events`], [`scale`]. What they
//! stand on: [`measure`] (what a command took), [`served`] (the registry as a process of its own), [`promotion`] (what is promoted, and whether it was),
//! [`plain`] (the loops this program is compared with), [`tools`] (the staged script and its command lines),
//! [`tls`] (what is before a registry), [`plot`] (lines as SVG).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a bench that meets an error has failed"
)]

mod bytes;
#[path = "../../crates/core/tests/crowd/crowd.rs"]
mod crowd;
mod events;
mod fairness;
mod faults;
mod measure;
mod peers;
mod plain;
mod plot;
mod profile;
mod promotion;
mod rate;
mod relay;
mod report;
mod requests;
mod scale;
#[path = "../../tests/testbed/mod.rs"]
mod testbed;
mod tls;
mod tools;
mod waiting;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;
use testbed::served;

const USAGE: &str = "\
cargo bench [-- [SECTION…] [--quick] [--plots FOLDER]]

  requests  registry requests of one promotion
  writes    status writes and time of a request in a cluster
  fairness  a small request behind two large ones
  peers     promote, a plain loop and the staged script, side by side
  rate      promote as it paces itself, without a limit and behind quay's
  bytes     large layers from registry to registry
  faults    a registry that is down, answers 429 and 503, cuts bodies
  events    what one event costs among up to 100,000 unfinished requests
  scale     a thousand requests at once, and ten thousand that have ended

Without a section: all but scale, which takes ten minutes of its own. --quick: small sizes, to see that it works. --plots: where the
plots go [default: target/figures].";

/// Each with its title, and whether it is run where none is named.
static SECTIONS: [(&str, &str, bool); 9] = [
    ("requests", "Requests of one promotion", true),
    (
        "peers",
        "Beside a plain loop, and the script with other tools",
        true,
    ),
    ("rate", "As it paces itself", true),
    ("bytes", "Bytes", true),
    ("writes", "In a cluster", true),
    ("fairness", "A small request behind large ones", true),
    ("faults", "A bad day", true),
    ("events", "Cost of an event", true),
    ("scale", "Many requests", false),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // This program also is the processes that it measures, and what measures them.
    match arguments.first().map(String::as_str) {
        Some(measure::ROLE) => return measure::main(&arguments[1..]),
        Some(plain::ROLE) => return plain::main(&arguments[1..]),
        _ => {}
    }
    let mut sections = Vec::new();
    let (mut quick, mut plots) = (false, PathBuf::from("target/figures"));
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let section = SECTIONS.iter().find(|(name, ..)| *name == argument);
        match (argument.as_str(), section) {
            // Cargo's own.
            ("--bench", _) => {}
            ("--quick", _) => quick = true,
            ("--plots", _) => plots = arguments.next().unwrap().into(),
            ("--help", _) => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            (_, Some(section)) => sections.push(section),
            (_, None) => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    if sections.is_empty() {
        sections.extend(SECTIONS.iter().filter(|(_, _, always)| *always));
    }
    install_tls();
    let mut report = Report::begin(quick, plots);
    runtime().block_on(async {
        for (section, title, _) in sections {
            report.section(section, title);
            match *section {
                "requests" => requests::run(&mut report).await,
                "writes" => writes::run(&mut report).await,
                "fairness" => fairness::run(&mut report).await,
                "peers" => peers::run(&mut report).await,
                "rate" => rate::run(&mut report).await,
                "bytes" => bytes::run(&mut report).await,
                "faults" => faults::run(&mut report).await,
                "events" => events::run(&mut report),
                _ => scale::run(&mut report).await,
            }
        }
    });
    report.end();
    ExitCode::SUCCESS
}

/// As the program itself sets it up.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// HTTP clients cannot be made without a provider, not even for plain HTTP.
fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
