//! Small servers on loopback that answer as a test says and remember what they were asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One request's head, and what is answered: status line, headers, an empty line, a body.
type Answer = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A server of HTTP/1.1 that closes after every answer.
#[derive(Clone)]
pub struct Listener {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    /// Where `CONNECT` leads, whatever it names.
    behind: Option<SocketAddr>,
    answer: Answer,
}

impl Listener {
    pub async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::begin(Arc::new(answer), None).await
    }

    /// A proxy that answers plain requests itself and tunnels all others to `behind`.
    pub async fn proxy(
        behind: Option<SocketAddr>,
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::begin(Arc::new(answer), behind).await
    }

    async fn begin(answer: Answer, behind: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            heads: Arc::default(),
            behind,
            answer,
        };
        let each = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                each.connections.fetch_add(1, Ordering::Relaxed);
                let each = each.clone();
                tokio::spawn(async move { each.serve(stream).await });
            }
        });
        server
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The same place by name.
    pub fn by_name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The heads of all requests, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        self.heads.lock().push(head.clone());
        if let Some(behind) = self.behind.filter(|_| head.starts_with("connect ")) {
            let mut onward = TcpStream::connect(behind).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            return;
        }
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
        while bytes.len() < end + length.unwrap_or(0) {
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        }
        let answer = (self.answer)(&head);
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

/// An answer with these headers and this body.
pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let headers = lines.concat();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

pub fn redirect(to: &str) -> String {
    answer(307, &[("location", to)], "")
}
