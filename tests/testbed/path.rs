//! A path between two network namespaces that can be cut and healed in each direction, as a router that fails does it: what is sent
//! is gone, and nobody is told.
//!
//! Enters: the right to make network namespaces (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, as root has), and `ip` of iproute2. Leaves: nothing;
//! both namespaces go with the path.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets an error has failed"
)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

const CLIENT: (&str, &str) = ("10.213.0.1", "02:00:00:00:00:01");
const SERVER: (&str, &str) = ("10.213.0.2", "02:00:00:00:00:02");
/// An address that nobody has.
const NOBODY: &str = "02:00:00:00:00:99";

/// Two namespaces and what connects them.
#[derive(Debug)]
pub struct Path {
    client: String,
    server: String,
}

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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Self {
            client: format!("pc-{unique}-client"),
            server: format!("pc-{unique}-server"),
        };
        let (client, server) = (path.client.as_str(), path.server.as_str());
        ip(&["netns", "add", client]);
        ip(&["netns", "add", server]);
        ip(&[
            "link", "add", "path", "address", CLIENT.1, "netns", client, "type", "veth", "peer",
            "name", "path", "address", SERVER.1, "netns", server,
        ]);
        for (own, address) in [(client, CLIENT.0), (server, SERVER.0)] {
            ip(&[
                "-n",
                own,
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                "path",
            ]);
            ip(&["-n", own, "link", "set", "lo", "up"]);
            ip(&["-n", own, "link", "set", "path", "up"]);
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
        ip(&[
            "-n",
            own,
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
        let file = std::fs::File::open(format!("/run/netns/{}", self.server)).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work(SERVER.0.parse().unwrap())
        })
    }

    /// The beginning of a command that runs a program at the client's end.
    pub fn client(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.client]
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for own in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", own]).output();
        }
    }
}

fn ip(arguments: &[&str]) {
    let told = arguments.join(" ");
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "this test cuts a real path and needs `ip` of iproute2, which cannot be run: {error}"
        )
    });
    assert!(
        output.status.success(),
        "this test cuts a real path between network namespaces, which takes root (CAP_SYS_ADMIN and CAP_NET_ADMIN); \
         `ip {told}` says: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
