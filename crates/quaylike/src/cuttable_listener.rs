//! The listener: TCP connections that can be cut from the inside.
//!
//! In: a bound [`TcpListener`] and the server's stop token. Out: connections for `axum::serve`. One whose answer is marked
//! [`ConnectionCut`] sends not one more byte, as if the server had crashed or the network was broken. Cancelling the stop token cuts
//! all of them, so that a stopped registry leaves no connection behind.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::answers::ConnectionCut;

/// Accepts connections until the process ends.
#[derive(Debug)]
pub(super) struct CuttableListener {
    pub(super) listener: TcpListener,
    pub(super) stop: CancellationToken,
}

/// One connection.
#[derive(Debug)]
pub(super) struct CuttableConnection {
    stream: TcpStream,
    handle: CutHandle,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// By what a request cuts the connection it came by.
#[derive(Clone, Debug)]
pub(super) struct CutHandle {
    cut: CancellationToken,
    id: u64,
}

/// Numbers connections.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

impl CutHandle {
    fn new(cut: CancellationToken) -> Self {
        let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Self { cut, id }
    }

    /// Which connection it is.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// Cuts the connection where the answer says so.
pub(super) async fn cut_if_marked(
    ConnectInfo(handle): ConnectInfo<CutHandle>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if response.extensions().get::<ConnectionCut>().is_some() {
        handle.cut.cancel();
    }
    response
}

impl Listener for CuttableListener {
    type Io = CuttableConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (CuttableConnection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // Small answers must not wait for the client's delayed acknowledgement.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY not set");
                    }
                    let handle = CutHandle::new(self.stop.child_token());
                    let cut = Box::pin(handle.cut.clone().cancelled_owned());
                    return (
                        CuttableConnection {
                            stream,
                            handle,
                            cut,
                        },
                        peer,
                    );
                }
                Err(error) => {
                    // Out of file descriptors, mostly: it passes.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for CutHandle {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.io().handle.clone()
    }
}

impl CuttableConnection {
    fn cut_off(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        let cut = self.cut.as_mut();
        cut.poll(context)
            .is_ready()
            .then(|| io::ErrorKind::ConnectionAborted.into())
    }
}

impl AsyncRead for CuttableConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Polled on every read so that a cut wakes a connection that idles.
        match self.cut_off(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for CuttableConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.cut_off(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.cut_off(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
