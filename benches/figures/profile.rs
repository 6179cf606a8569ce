//! What the controller's processor time goes to: its stacks, sampled by `perf`.
//!
//! In: a process, while it works. Out: a table of its parts. A sample counts for the first part that one of its frames is of, from
//! the innermost outwards; what the kernel does counts for the kernel. Guaranteed: where there is no `perf`, or it may not look, nothing is
//! measured, and that is said.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::report::Table;

/// Samples a second: each is a copy of the stack.
const RATE: &str = "49";
/// Names of frames, and the part that they are of. The first that fits a frame counts.
const PARTS: [(&str, &[&str]); 8] = [
    (
        "TLS, all of it with the API server",
        &["rustls", "ring_core", "ring::"],
    ),
    ("JSON and YAML", &["serde", "saphyr", "schemars"]),
    (
        "queues: whose turn it is",
        &["fair_queue", "operation_queue", "host::queue", "shares::"],
    ),
    ("logs and metrics", &["tracing", "metrics", "prometheus"]),
    (
        "HTTP",
        &[
            "hyper", "reqwest", "h2::", "http::", "httparse", "tower", "url::",
        ],
    ),
    ("registry requests", &["promotion_controller::registry"]),
    (
        "requests: load, decide, save",
        &[
            "promotion_controller",
            "promotion_core",
            "kube",
            "k8s_openapi",
        ],
    ),
    (
        "tasks and timers",
        &["tokio", "mio::", "futures", "parking_lot"],
    ),
];
const KERNEL: &str = "the kernel: sockets and files";
const OTHER: &str = "the rest: memory among it";

/// A process that is watched.
pub struct Profile {
    perf: Child,
    data: PathBuf,
}

impl Profile {
    /// Watches a process from now on, with a file in `folder`.
    pub fn begin(process: u32, folder: &Path) -> Option<Self> {
        let data = folder.join("perf.data");
        let perf = Command::new("perf")
            .args(["record", "-e", "cpu-clock", "-F", RATE])
            .args([
                "--call-graph",
                "dwarf,16384",
                "-p",
                &process.to_string(),
                "-o",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { perf, data })
    }

    /// What it saw, once the process has ended.
    pub fn end(mut self) -> Option<Table> {
        self.perf.wait().ok()?;
        let script = Command::new("perf")
            .args(["script", "--no-inline", "-F", "tid,ip,sym,dso", "-i"])
            .arg(&self.data)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        table(&String::from_utf8_lossy(&script.stdout))
    }
}

/// Samples are blocks of lines: a head, then the frames from the innermost outwards.
fn table(script: &str) -> Option<Table> {
    let names = PARTS.iter().map(|(name, _)| *name);
    let mut parts: Vec<(&str, usize)> =
        names.chain([KERNEL, OTHER]).map(|name| (name, 0)).collect();
    for sample in script.split("\n\n") {
        let frames: Vec<&str> = sample.lines().skip(1).collect();
        if frames.is_empty() {
            continue;
        }
        let part = part_of(&frames);
        if let Some((_, count)) = parts.iter_mut().find(|(name, _)| *name == part) {
            *count += 1;
        }
    }
    let all: usize = parts.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return None;
    }
    parts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut table = Table::new(&["the controller's processor time", "part"]);
    for (name, count) in parts {
        let mut share = String::new();
        write!(share, "{} %", (100 * count + all / 2) / all).unwrap();
        table.row([name.to_owned(), share]);
    }
    Some(table)
}

fn part_of(frames: &[&str]) -> &'static str {
    if frames[0].contains("[kernel") || frames[0].contains("[guest.kernel") {
        return KERNEL;
    }
    let of = |frame: &&str| {
        let fits = |names: &[&str]| names.iter().any(|name| frame.contains(name));
        PARTS.iter().find(|(_, names)| fits(names))
    };
    frames.iter().find_map(of).map_or(OTHER, |(name, _)| name)
}
