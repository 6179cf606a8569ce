//! A path between two network namespaces that can be cut and healed in each direction, as a router that fails does it: what is sent
//! is gone, and nobody is told.
//!
//! Enters: the right to make network namespaces (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, as root has), `ip` of iproute2, `unshare` and `nsenter`
//! of util-linux. Leaves: nothing. The namespaces have no names: each lasts as long as a process in it that reads from this one, so both
//! go with the path, and when this process ends in whatever way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

const CLIENT: (&str, &str) = ("10.213.0.1", "02:00:00:00:00:01");
const SERVER: (&str, &str) = ("10.213.0.2", "02:00:00:00:00:02");
/// An address that nobody has.
const NOBODY: &str = "02:00:00:00:00:99";

/// Two namespaces and what connects them.
#[derive(Debug)]
pub struct Path {
    client: Namespace,
    server: Namespace,
}

/// A network namespace, and the process that holds it.
#[derive(Debug)]
struct Namespace(Child);

/// Who no longer reaches the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client sends is lost.
    ToServer,
    /// What the server sends is lost.
    ToClient,
}

impl Path {
    /// A path that works.
    ///
    /// # Panics
    /// Where namespaces cannot be made, saying what is missing.
    pub fn new() -> Self {
        let path = Self {
            client: Namespace::new(),
            server: Namespace::new(),
        };
        let (client, server) = (path.client.id(), path.server.id());
        run(Command::new("ip").args([
            "link", "add", "path", "address", CLIENT.1, "netns", &client, "type", "veth", "peer",
            "name", "path", "address", SERVER.1, "netns", &server,
        ]));
        for (own, address) in [(&path.client, CLIENT.0), (&path.server, SERVER.0)] {
            own.ip(&["address", "add", &format!("{address}/24"), "dev", "path"]);
            own.ip(&["link", "set", "lo", "up"]);
            own.ip(&["link", "set", "path", "up"]);
        }
        path.heal();
        path
    }

    /// What is sent in this direction from now on is lost.
    pub fn cut(&self, direction: Direction) {
        self.lead(direction, NOBODY);
    }

    /// Both directions work again.
    pub fn heal(&self) {
        self.lead(Direction::ToServer, SERVER.1);
        self.lead(Direction::ToClient, CLIENT.1);
    }

    fn lead(&self, direction: Direction, hardware: &str) {
        let (own, address) = match direction {
            Direction::ToServer => (&self.client, SERVER.0),
            Direction::ToClient => (&self.server, CLIENT.0),
        };
        own.ip(&[
            "neighbour",
            "replace",
            address,
            "lladdr",
            hardware,
            "dev",
            "path",
            "nud",
            "permanent",
        ]);
    }

    /// Runs something in a thread at the server's end. Its sockets stay there.
    pub fn at_server<T: Send + 'static>(
        &self,
        work: impl FnOnce(Ipv4Addr) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = std::fs::File::open(self.server.file()).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work(SERVER.0.parse().unwrap())
        })
    }

    /// What runs a program at the client's end, and its first argument; the program follows.
    pub fn client(&self) -> (&'static str, String) {
        ("nsenter", format!("--net={}", self.client.file()))
    }
}

impl Namespace {
    fn new() -> Self {
        // It says that it is there, and ends with the other end of its input.
        let holds = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut holds = holds.unwrap_or_else(|error| refused("unshare", &error.to_string()));
        let mut there = [0];
        let stdout = holds.stdout.as_mut().unwrap();
        if stdout.read_exact(&mut there).is_err() {
            let said = holds.wait_with_output().unwrap();
            refused("unshare --net", &String::from_utf8_lossy(&said.stderr));
        }
        Self(holds)
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }

    fn file(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn ip(&self, arguments: &[&str]) {
        let inside = format!("--net={}", self.file());
        run(Command::new("nsenter")
            .arg(inside)
            .arg("ip")
            .args(arguments));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Waiting closes its input.
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output();
    let output =
        output.unwrap_or_else(|error| refused(&format!("{command:?}"), &error.to_string()));
    if !output.status.success() {
        refused(
            &format!("{command:?}"),
            &String::from_utf8_lossy(&output.stderr),
        );
    }
}

fn refused(command: &str, why: &str) -> ! {
    panic!(
        "this test cuts a real path between network namespaces, which takes root (CAP_SYS_ADMIN and CAP_NET_ADMIN), `ip` of iproute2, \
         `unshare` and `nsenter` of util-linux; `{command}` says: {}",
        why.trim()
    )
}
