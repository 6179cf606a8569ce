//! What a command took: time, processor, memory.
//!
//! In: a command. Out: its output and what it used. The command runs under a process of its own that does nothing else, because
//! the system tells the peak memory of children only for all of them together: it is that of the largest process of the
//! command, its own children among them.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

/// The argument that makes this program the one that measures.
pub const ROLE: &str = "measured";
/// How long ago the command ended is known to this.
const LOOK: Duration = Duration::from_millis(1);

/// A command to be measured.
#[derive(Debug, Clone, Default)]
pub struct Task {
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

/// What it took.
#[derive(Debug, Clone)]
pub struct Taken {
    pub wall: Duration,
    /// User and system time of all its processes.
    pub cpu: Duration,
    /// Resident memory of its largest process at the highest, in bytes.
    pub peak: u64,
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Used {
    micros: u64,
    cpu_micros: u64,
    peak: u64,
    success: bool,
}

impl Task {
    /// This program in another role.
    pub fn own(arguments: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        Self::new(&program, arguments)
    }

    /// `promotion-controller` with these arguments.
    pub fn promotion_controller(arguments: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_promotion-controller"));
        Self::new(program, arguments)
    }

    pub fn new(program: &Path, arguments: &[&str]) -> Self {
        Self {
            program: program.to_str().unwrap().to_owned(),
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            environment: Vec::new(),
        }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it in `folder`, which is its home too; it is ended after `limit`.
    pub async fn run(&self, folder: &Path, limit: Duration) -> Taken {
        let result = folder.join("used.json");
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .arg(ROLE)
            .arg(&result)
            .arg(limit.as_secs().to_string())
            .arg(&self.program)
            .args(&self.arguments)
            .current_dir(folder)
            .env("HOME", folder)
            .env("NO_PROXY", "127.0.0.1")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let stderr = text(output.stderr);
        assert!(output.status.success(), "{}: {stderr}", self.program);
        let used = std::fs::read(&result).unwrap();
        let used: Used = serde_json::from_slice(&used).unwrap();
        Taken {
            wall: Duration::from_micros(used.micros),
            cpu: Duration::from_micros(used.cpu_micros),
            peak: used.peak,
            success: used.success,
            stdout: text(output.stdout),
            stderr,
        }
    }
}

/// Runs `RESULT LIMIT PROGRAM ARGUMENT…` and writes what it took to the file RESULT.
pub fn main(arguments: &[String]) -> ExitCode {
    let [result, limit, program, rest @ ..] = arguments else {
        return ExitCode::from(2);
    };
    let limit = Duration::from_secs(limit.parse().unwrap());
    let begun = Instant::now();
    let mut child = Command::new(program).args(rest).spawn().unwrap();
    let success = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.success();
        }
        if begun.elapsed() > limit {
            eprintln!("ended after {} s", limit.as_secs());
            child.kill().unwrap();
            child.wait().unwrap();
            break false;
        }
        std::thread::sleep(LOOK);
    };
    let micros = as_micros(begun.elapsed());
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let used = Used {
        micros,
        cpu_micros: micros_of(used.user_time()) + micros_of(used.system_time()),
        // In KiB, on Linux.
        peak: u64::try_from(used.max_rss()).unwrap_or_default() * 1024,
        success,
    };
    std::fs::write(result, serde_json::to_vec(&used).unwrap()).unwrap();
    ExitCode::SUCCESS
}

fn as_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn micros_of(time: TimeVal) -> u64 {
    let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
    u64::try_from(micros).unwrap_or_default()
}
