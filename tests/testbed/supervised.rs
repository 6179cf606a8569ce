//! Child processes that cannot outlive the test binary.
//!
//! Enters: a program with its arguments. Leaves: a running process whose output goes to log files. Guaranteed:
//! it is killed when the value is dropped and when the process that holds the value ends in whatever way.
//! Statics are never dropped and `SIGKILL` runs no destructor, so the child is started by a shell that reads
//! our end of a pipe: a line is the name of a signal for the child, the end of the pipe is its death.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Error;

/// `"$@"` is the program. The reading loop is a shell of its own made of builtins only, so nothing is left
/// of it when the child ended by itself and it is killed.
const SUPERVISOR: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(
    while read -r signal; do kill -s "$signal" "$child"; done <&3
    kill -s KILL "$child"
) 2>/dev/null &
watcher=$!
exec 3<&- </dev/null
wait "$child"
status=$?
kill -s KILL "$watcher" 2>/dev/null
exit "$status"
"#;

/// A signal a test may send to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks it to end.
    Terminate,
    /// Ends it.
    Kill,
    /// Freezes it: connections stay open and nothing answers.
    Freeze,
    /// Lets a frozen part go on.
    Thaw,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Kill => "KILL",
            Self::Freeze => "STOP",
            Self::Thaw => "CONT",
        }
    }
}

/// A running part.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    program: PathBuf,
    shell: Child,
    log: PathBuf,
}

impl Supervised {
    /// Starts `program`. Standard output is appended to `NAME.out` and standard error to `NAME.log` in
    /// `directory`, which is also the working directory.
    pub fn spawn(
        name: &str,
        program: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
        directory: &Path,
    ) -> Result<Self, Error> {
        let log = directory.join(format!("{name}.log"));
        let out = directory.join(format!("{name}.out"));
        let append = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(Error::file("open", path))
        };
        let shell = Command::new("/bin/sh")
            .args(["-c", SUPERVISOR, name])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(append(&out)?)
            .stderr(append(&log)?)
            // The interrupt key of a terminal is for the test binary; its end is what ends the parts.
            .process_group(0)
            .spawn()
            .map_err(Error::file("run", program))?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            shell,
            log,
        })
    }

    /// Sends `signal` to the part; without effect once it ended.
    pub fn signal(&mut self, signal: Signal) {
        if let Some(stdin) = self.shell.stdin.as_mut() {
            // A broken pipe says that the part is gone, which `has_ended` tells.
            let _ = stdin.write_all(format!("{}\n", signal.name()).as_bytes());
        }
    }

    /// Whether the part is gone.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// The part's exit code, once it is gone: 128 and the signal's number where a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.shell.try_wait().ok().flatten()?.code()
    }

    /// The highest resident memory of the part so far, in bytes; none once it is gone.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(self.process()?.join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }

    /// The part's processor time so far; none once it is gone.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(self.process()?.join("stat")).ok()?;
        // After the name, which may have spaces in it: user and system time in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')')?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times
            .map(|time| time.parse::<u64>().ok())
            .sum::<Option<_>>()?;
        Some(Duration::from_millis(ticks * 10))
    }

    /// The part's process; none once it is gone.
    pub fn id(&self) -> Option<u32> {
        self.process()?.file_name()?.to_str()?.parse().ok()
    }

    /// The part in `/proc`: the child of our shell that runs the program.
    fn process(&self) -> Option<PathBuf> {
        let parent = format!("PPid:\t{}", self.shell.id());
        let program = self.program.canonicalize().ok()?;
        let is_part = |process: &PathBuf| {
            let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
            status.lines().any(|line| line == parent)
                && std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program)
        };
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        processes.map(|process| process.path()).find(is_part)
    }

    /// Kills the part and blocks until it is gone.
    pub fn kill(&mut self) {
        // `wait` closes the pipe first, which is the part's death.
        let _ = self.shell.wait();
    }

    /// An error that shows the part's log when it is gone.
    pub fn still_running(&mut self) -> Result<(), Error> {
        if self.has_ended() {
            return Err(Error::Ended {
                process: self.name.clone(),
                tail: self.log_tail(),
                log: self.log.clone(),
            });
        }
        Ok(())
    }

    /// The error for a part that runs and does not become ready.
    pub fn not_ready(&self, waited: Duration, last: String) -> Error {
        Error::NotReady {
            process: self.name.clone(),
            waited,
            last,
            tail: self.log_tail(),
            log: self.log.clone(),
        }
    }

    /// Standard error of the part so far, its last 20 lines.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill();
    }
}
