//! Two controller processes that elect a leader, and what may be done to them.
//!
//! Guaranteed: a replica that has ended is started again at once, and how it ended is judged: on its own only by saying that it
//! lost its lease. Each life of a replica has a name of its own, which the lease shows, and a log of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;

use crate::testbed::stage::Stage;
use crate::testbed::{Signal, Supervised};

/// A controller process, over all its lives.
pub struct Replica {
    name: &'static str,
    life: usize,
    process: Supervised,
    /// Frozen until then.
    pub frozen: Option<Instant>,
    /// When it last went on.
    pub thawed: Option<Instant>,
    /// It was asked to end in this life.
    asked: bool,
    /// It was killed.
    killed: bool,
}

/// Both.
pub struct Replicas<'a> {
    stage: &'a Stage,
    arguments: Vec<String>,
    lease: Api<Lease>,
    pub pair: [Replica; 2],
    /// What was done and what came of it, a line each.
    pub journal: Vec<String>,
    /// Endings that should not have been.
    pub complaints: Vec<String>,
}

impl<'a> Replicas<'a> {
    /// Starts both for the stage's namespace, speaking plainly to `hosts`.
    pub fn start(stage: &'a Stage, hosts: &[String]) -> Self {
        let mut arguments = vec![
            "controller".to_owned(),
            format!("--namespace={}", stage.namespace),
            format!("--lease-namespace={}", stage.namespace),
            "--settle-seconds=3".to_owned(),
            "--late-seconds=15".to_owned(),
        ];
        for host in hosts {
            arguments.push(format!("--plain-http={host}"));
            arguments.push(format!("--allow-registry={host}"));
        }
        let client = stage.plane.client().unwrap();
        let lease = Api::namespaced(client, &stage.namespace);
        let pair = ["a", "b"].map(|name| Replica {
            name,
            life: 1,
            process: spawn(stage, &arguments, &format!("{name}-1")),
            frozen: None,
            thawed: None,
            asked: false,
            killed: false,
        });
        Self {
            stage,
            arguments,
            lease,
            pair,
            journal: Vec::new(),
            complaints: Vec::new(),
        }
    }

    /// Which of the two holds the lease and is not about to end, and who holds it at all.
    pub async fn leader(&self) -> (Option<usize>, Option<String>) {
        let lease = self.lease.get_opt("promotion-controller").await.unwrap();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        let holder = holder.filter(|holder| !holder.is_empty());
        let of = |holder: &String| {
            let mut pair = self.pair.iter();
            pair.position(|replica| {
                let holds = holder.starts_with(&format!("{}_", replica.title()));
                holds && !replica.asked && !replica.killed
            })
        };
        (holder.as_ref().and_then(of), holder)
    }

    /// Does something to a replica; a frozen one is left for `frozen`.
    pub fn strike(&mut self, index: usize, signal: Signal, frozen: Duration) {
        let replica = &mut self.pair[index];
        replica.process.signal(signal);
        match signal {
            Signal::Freeze => replica.frozen = Some(Instant::now() + frozen),
            Signal::Kill => replica.killed = true,
            Signal::Terminate => replica.asked = true,
            Signal::Thaw => replica.thawed = Some(Instant::now()),
        }
        let line = match signal {
            Signal::Freeze => format!("{} freezes for {frozen:.1?}", replica.title()),
            Signal::Kill => format!("{} is killed", replica.title()),
            Signal::Terminate => format!("{} is asked to end", replica.title()),
            Signal::Thaw => format!("{} goes on", replica.title()),
        };
        self.note(&line);
    }

    /// Thaws whoever's time has come, and starts again whoever has ended.
    pub fn tend(&mut self) {
        for index in 0..2 {
            let replica = &mut self.pair[index];
            if replica.frozen.is_some_and(|until| until <= Instant::now()) {
                replica.frozen = None;
                self.strike(index, Signal::Thaw, Duration::ZERO);
            }
            let replica = &mut self.pair[index];
            if !replica.process.has_ended() {
                continue;
            }
            let code = replica.process.exit_code();
            let title = replica.title();
            let log = self.stage.folder.join(&format!("{title}.log"));
            let lost = std::fs::read_to_string(log).is_ok_and(|log| log.contains("is lost"));
            let expected = match code {
                Some(137) => replica.killed,
                Some(0) => replica.asked,
                // Frozen beyond its lease it ends for that, asked or not.
                Some(1) => lost,
                _ => false,
            };
            if !expected {
                let complaint = format!(
                    "{title} ended with {code:?}: {}",
                    replica.process.log_tail()
                );
                self.complaints.push(complaint);
            }
            replica.life += 1;
            (replica.asked, replica.killed) = (false, false);
            (replica.frozen, replica.thawed) = (None, None);
            replica.process = spawn(self.stage, &self.arguments, &replica.title());
            let line = format!(
                "{title} ended with {code:?}, {} begins",
                self.pair[index].title()
            );
            self.note(&line);
        }
    }

    pub fn note(&mut self, line: &str) {
        self.journal.push(format!("{:.6} {line}", Timestamp::now()));
    }

    /// The lines of the journal and of all logs that name one of `words`, in order of time.
    pub fn log_of(&self, words: &[String]) -> String {
        let mut lines = self.journal.clone();
        for entry in std::fs::read_dir(self.stage.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().display().to_string();
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let told = text.lines().filter(|line| {
                words.iter().any(|word| line.contains(word.as_str())) || line.contains("panicked")
            });
            lines.extend(told.map(|line| format!("{line} [{name}]")));
        }
        lines.sort();
        lines.join("\n")
    }

    /// Whether any life of either has panicked.
    pub fn panics(&self) -> Vec<String> {
        let log = self.log_of(&[]);
        let panics = log.lines().filter(|line| line.contains("panicked"));
        panics.map(str::to_owned).collect()
    }
}

impl Replica {
    /// As the lease names it.
    pub fn title(&self) -> String {
        format!("{}-{}", self.name, self.life)
    }
}

fn spawn(stage: &Stage, arguments: &[String], title: &str) -> Supervised {
    let kubeconfig = stage.plane.kubeconfig().to_str().unwrap();
    let environment = [
        ("KUBECONFIG", kubeconfig),
        ("HOSTNAME", title),
        ("RUST_LOG", "warn,promotion_controller=debug"),
    ];
    let program = Path::new(env!("CARGO_BIN_EXE_promotion-controller"));
    Supervised::spawn(title, program, arguments, &environment, stage.folder.path()).unwrap()
}
