//! A server on loopback that answers as a test says, down to the byte, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use promotion_controller::image::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is said to one request.
#[derive(Clone)]
pub enum Say {
    /// These bytes, and the connection is closed.
    Bytes(Vec<u8>),
    /// The first bytes, then the second ones again and again, as long as somebody listens.
    Endless(Vec<u8>, Vec<u8>),
    /// The first bytes at once, then the second ones one by one, again and again, so often.
    Drip(Vec<u8>, Vec<u8>, Duration),
    /// Nothing: so many bytes of the request are read each time.
    Sip(usize, Duration),
}

type Script = dyn Fn(&str) -> Say + Send + Sync;

/// A server of HTTP/1.1 that closes after every answer.
#[derive(Clone)]
pub struct Scripted {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    /// Where `CONNECT` leads, whatever it names.
    behind: Option<SocketAddr>,
    script: Arc<Script>,
}

impl Scripted {
    /// `script` is given each request's head.
    pub async fn start(script: impl Fn(&str) -> Say + Send + Sync + 'static) -> Self {
        Self::proxy(None, script).await
    }

    /// A proxy that tunnels `CONNECT` to `behind`, and answers everything else itself.
    pub async fn proxy(
        behind: Option<SocketAddr>,
        script: impl Fn(&str) -> Say + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            heads: Arc::default(),
            behind,
            script: Arc::new(script),
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

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }

    /// Nothing to show a right with has come here.
    pub fn assert_shown_nothing(&self, case: &str) {
        for head in self.heads() {
            let head = head.to_lowercase();
            assert!(!head.contains("authorization:"), "{case}: {head}");
        }
    }

    async fn serve(&self, mut stream: TcpStream) {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        self.heads.lock().push(head.clone());
        if let Some(behind) = self.behind.filter(|_| head.starts_with("CONNECT ")) {
            let mut onward = TcpStream::connect(behind).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            return;
        }
        let say = (self.script)(&head);
        if let Say::Sip(size, every) = say {
            while let Ok(1..) = stream.read(&mut chunk[..size]).await {
                tokio::time::sleep(every).await;
            }
            return;
        }
        let length = head.to_lowercase();
        let length = length.split("content-length: ").nth(1);
        let length: usize = length.map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        let mut received = bytes.len() - end;
        while received < length {
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 => received += n,
                _ => return,
            }
        }
        let _ = match say {
            Say::Bytes(bytes) => stream.write_all(&bytes).await,
            Say::Endless(first, next) => endless(&mut stream, &first, &next).await,
            Say::Drip(first, next, every) => drip(&mut stream, &first, &next, every).await,
            Say::Sip(..) => Ok(()),
        };
        let _ = stream.shutdown().await;
        // A close with bytes unread would be a reset, and take the answer back.
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut chunk)).await;
    }
}

async fn endless(stream: &mut TcpStream, first: &[u8], next: &[u8]) -> std::io::Result<()> {
    stream.write_all(first).await?;
    loop {
        stream.write_all(next).await?;
    }
}

async fn drip(
    stream: &mut TcpStream,
    first: &[u8],
    next: &[u8],
    every: Duration,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(first).await?;
    for byte in next.iter().cycle() {
        tokio::time::sleep(every).await;
        stream.write_all(&[*byte]).await?;
    }
    Ok(())
}

/// An answer with these headers and this body.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Say {
    let body = body.as_ref();
    let length = body.len().to_string();
    let headers = [headers, &[("content-length", &length)]].concat();
    let mut bytes = head(status, &headers);
    bytes.extend_from_slice(body);
    Say::Bytes(bytes)
}

pub fn redirect(to: &str) -> Say {
    answer(307, &[("location", to)], "")
}

/// The head of an answer: nothing is added.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers = headers.collect::<Vec<_>>().concat();
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// An image of one layer, as an honest registry serves it.
#[derive(Clone)]
pub struct Image {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Image {
    pub fn new(seed: &str) -> Self {
        let config = json!({"architecture": "amd64", "os": "linux", "seed": seed});
        let (config, layer) = (
            config.to_string().into_bytes(),
            seed.repeat(1000).into_bytes(),
        );
        let manifest = Self::manifest(
            &descriptor("application/vnd.oci.image.config.v1+json", &config),
            &[Self::layer(&layer)],
        );
        Self {
            config,
            layer,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub fn layer(bytes: &[u8]) -> Value {
        descriptor("application/vnd.oci.image.layer.v1.tar", bytes)
    }

    pub fn manifest(config: &Value, layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI, "config": config, "layers": layers})
    }

    /// The same with another manifest, made from its own.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest: Value = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
        self
    }

    /// What an honest registry without accounts says of it.
    pub fn honest(&self, head: &str) -> Say {
        let path = head.split(' ').nth(1).unwrap();
        let body = if path == "/v2/" {
            return answer(200, &[], b"");
        } else if path.ends_with("/manifests/t") || path.ends_with(&digest(&self.manifest)) {
            let manifest: Value = serde_json::from_slice(&self.manifest).unwrap_or_default();
            let media_type = manifest["mediaType"].as_str().unwrap_or(OCI);
            return answer(200, &[("content-type", media_type)], &self.manifest);
        } else if path.ends_with(&digest(&self.config)) {
            &self.config
        } else if path.ends_with(&digest(&self.layer)) {
            &self.layer
        } else {
            return unknown();
        };
        answer(200, &[], body)
    }
}

pub fn unknown() -> Say {
    let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#;
    answer(404, &[("content-type", "application/json")], body)
}
