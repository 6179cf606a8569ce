//! A way to a registry that can be closed: connections that are open break, new ones are refused.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::testbed::free_port;

/// A port of 127.0.0.1 behind which a registry is, or nobody.
pub struct Relay {
    address: SocketAddr,
    to: SocketAddr,
    open: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Relay {
    /// An open way to `to`, on a port that no outgoing connection takes while it is closed.
    pub async fn start(to: SocketAddr) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut relay = Self {
            address,
            to,
            open: None,
        };
        relay.open().await;
        relay
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, self.to, stop.clone()));
        self.open = Some((stop, accepting));
    }

    /// Returns once the port refuses connections.
    pub async fn close(&mut self) {
        if let Some((stop, accepting)) = self.open.take() {
            stop.cancel();
            accepting.await.unwrap();
        }
        assert!(TcpStream::connect(self.address).await.is_err());
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((near, _)) = accepted else { continue };
        tokio::spawn(stop.clone().run_until_cancelled_owned(pass(near, to)));
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    // Small requests and answers must not wait for each other's acknowledgement.
    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}
