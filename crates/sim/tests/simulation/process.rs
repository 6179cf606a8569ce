//! One controller process: a runtime of its own whose clock goes on only when it is stepped.
//!
//! In: how far to go. Out: what it sent meanwhile, and that it ended. Killed, its runtime goes with all its tasks. Frozen, it is not
//! stepped, and its clock jumps when it wakes up; where the machine slept, only the other clocks do.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::Client;
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use parking_lot::Mutex;
use promotion_controller::controller::{Config, Ended, SILENCE, run};
use promotion_controller::engine;
use promotion_controller::engine::leadership::write_timeout;
use promotion_controller::policy::{Policy, Rules};
use promotion_controller::registry::{Proxies, RegistryClient, Sent, Settings, Wire, WireError};
use promotion_controller::store::credentials::CredentialFiles;
use promotion_controller::store::streams::StreamSettings;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep_until, timeout};
use tower::BoxError;
use tower::retry::Retry;

use super::api_server::STREAMS;
use super::clock::{self, Clocks};
use super::registries::{FLOATS, REPOSITORY, SOURCES};

/// When every world begins, by the time of day: 2027-01-01.
const EPOCH: Duration = Duration::from_hours(499_656);
/// How long machines have run when a world begins.
const RUNNING: Duration = Duration::from_secs(1_000);

/// The longest that a registry may be silent.
const SILENT: Duration = Duration::from_mins(1);

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Api,
    Registry,
}

/// What a process gets for a request.
pub enum Reply {
    Whole(Response<Bytes>),
    /// The beginning of an answer that goes on.
    Stream(mpsc::UnboundedReceiver<Bytes>),
    /// The connection ends.
    Closed,
    /// There was none.
    NotConnected,
}

/// A request that a process has sent.
pub struct Outgoing {
    pub server: Server,
    pub request: Request<Bytes>,
    pub reply: oneshot::Sender<Reply>,
    sent: Instant,
}

type Outbox = Arc<Mutex<Vec<Outgoing>>>;

/// How a controller is set in a world.
#[derive(Clone, Debug)]
pub struct Options {
    pub settle: Duration,
    pub late: Duration,
    pub namespace_max: usize,
    /// Where its Lease is.
    pub home: String,
    /// Whether boot clock and time of day go on while the machine sleeps, as they do; where a world lies, they stand still.
    pub sleepless_clocks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(10),
            late: Duration::from_secs(30),
            namespace_max: 200,
            home: super::api_server::HOME.into(),
            sleepless_clocks: true,
        }
    }
}

/// A process.
pub struct Process {
    /// New for every process, as its identity on the Lease.
    pub name: String,
    pub options: Options,
    runtime: Runtime,
    main: JoinHandle<Result<(), Ended>>,
    stop: Option<oneshot::Sender<()>>,
    outbox: Outbox,
    origin: Instant,
    /// When it was started.
    started: Duration,
    /// How long its machine has slept.
    slept: Duration,
    /// By how much its time of day is ahead.
    ahead: Duration,
}

impl Process {
    /// Starts one at `now`.
    pub fn start(name: &str, options: &Options, ahead: Duration, now: Duration) -> Self {
        let mut process = Self::idle(name, options, ahead, now);
        process.show_clocks(now);
        let config = process.config();
        let (stop, stopped) = oneshot::channel();
        let stopped = async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        process.stop = Some(stop);
        process.main = process.runtime.spawn(run(config, stopped));
        process
    }

    fn idle(name: &str, options: &Options, ahead: Duration, now: Duration) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let origin = runtime.block_on(async { Instant::now() });
        let main = runtime.spawn(std::future::pending());
        Self {
            name: name.into(),
            options: options.clone(),
            runtime,
            main,
            stop: None,
            outbox: Outbox::default(),
            origin,
            started: now,
            slept: Duration::ZERO,
            ahead,
        }
    }

    /// How it is called, without the number of its life.
    pub fn place(&self) -> &str {
        self.name.trim_end_matches(|c: char| c.is_ascii_digit())
    }

    fn config(&self) -> Config {
        let _inside = self.runtime.enter();
        let hosts = [FLOATS, SOURCES];
        let allowed: Vec<_> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let rules = format!(
            "rules: [{{name: all, namespaces: ['*'], floats: ['{FLOATS}/{REPOSITORY}:*'], imageStreamTags: ['{STREAMS}/*:*']}}]"
        );
        let settle = self.options.settle;
        let registry = RegistryClient::new(Settings {
            plain_http: hosts.map(str::to_owned).into(),
            allowed: Some(allowed.clone()),
            put_timeout: write_timeout(settle),
            proxies: Proxies::Given {
                proxy: String::new(),
                except: "*".into(),
            },
            wire: Some(wire(&self.outbox)),
            ..Settings::default()
        });
        Config {
            client: client(&self.outbox),
            server: "https://api.sim".into(),
            namespace: None,
            lease_namespace: Some(self.options.home.clone()),
            pause_namespace: self.options.home.clone(),
            identity: self.name.clone(),
            registry: registry.unwrap(),
            policy: Policy {
                registries: Some(allowed),
            },
            credentials: CredentialFiles::fixed(Rules::parse(&rules).unwrap()),
            streams: StreamSettings {
                namespaces: vec![STREAMS.into()],
                create: true,
                ..StreamSettings::default()
            },
            engine: engine::Settings {
                settle,
                late: self.options.late,
                status_interval: Duration::from_secs(2),
                namespace_max: self.options.namespace_max,
            },
            sweep_interval: Duration::from_mins(1),
            listener: None,
            probes: None,
        }
    }

    /// Lets it run up to `now`.
    pub fn run_until(&self, now: Duration) {
        self.show_clocks(now);
        let until = self.origin + now.saturating_sub(self.started + self.slept);
        self.runtime.block_on(async { sleep_until(until).await });
    }

    /// It has stood still for so long, and goes on; its machine may have slept meanwhile.
    pub fn wake(&mut self, stood: Duration, slept: bool) {
        if slept {
            self.slept += stood;
        } else {
            self.runtime.block_on(advance(stood));
        }
    }

    /// Asks it to end.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Result<(), String>> {
        if !self.main.is_finished() {
            return None;
        }
        let ended = self.runtime.block_on(&mut self.main);
        Some(ended.unwrap().map_err(|ended| ended.to_string()))
    }

    /// What it has sent, and when.
    pub fn sent(&self) -> Vec<(Duration, Outgoing)> {
        let sent = std::mem::take(&mut *self.outbox.lock());
        let at = |out: &Outgoing| self.started + self.slept + (out.sent - self.origin);
        sent.into_iter().map(|out| (at(&out), out)).collect()
    }

    /// Ends it at once, with everything that it had in memory.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn show_clocks(&self, now: Duration) {
        let slept = if self.options.sleepless_clocks {
            Duration::ZERO
        } else {
            self.slept
        };
        clock::set(Clocks {
            running: RUNNING + now.saturating_sub(self.slept),
            boot: RUNNING + now.saturating_sub(slept),
            wall: EPOCH + self.ahead + now.saturating_sub(slept),
        });
    }
}

/// The world's own clocks.
pub fn show_world_clocks(now: Duration) {
    clock::set(Clocks {
        running: RUNNING + now,
        boot: RUNNING + now,
        wall: EPOCH + now,
    });
}

/// Puts a request into the outbox, and waits for what comes of it.
fn send(
    outbox: &Outbox,
    server: Server,
    request: Request<Bytes>,
) -> impl Future<Output = Reply> + Send + use<> {
    let (reply, replied) = oneshot::channel();
    outbox.lock().push(Outgoing {
        server,
        request,
        reply,
        sent: Instant::now(),
    });
    async move { replied.await.unwrap_or(Reply::Closed) }
}

/// What stands in the place of the network to the registries.
fn wire(outbox: &Outbox) -> Wire {
    let outbox = Arc::clone(outbox);
    Wire::new(move |request| -> BoxFuture<'static, Sent> {
        let outbox = Arc::clone(&outbox);
        Box::pin(async move {
            let url = request.url().clone();
            let request = Request::<reqwest::Body>::try_from(request).unwrap();
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(|_| WireError::Closed)?;
            let request = Request::from_parts(head, body.to_bytes());
            // As a connection on which nothing arrives is given up.
            let sent = timeout(SILENT, send(&outbox, Server::Registry, request)).await;
            match sent.map_err(|_| WireError::TimedOut)? {
                Reply::Whole(response) => Ok(located(response, &url)),
                Reply::Stream(_) | Reply::Closed => Err(WireError::Closed),
                Reply::NotConnected => Err(WireError::NotConnected),
            }
        })
    })
}

/// An answer as reqwest has it, with where it came from.
fn located(response: Response<Bytes>, url: &reqwest::Url) -> reqwest::Response {
    use reqwest::ResponseBuilderExt as _;
    let (head, body) = response.into_parts();
    let mut located = Response::builder().url(url.clone()).status(head.status);
    if let Some(headers) = located.headers_mut() {
        *headers = head.headers;
    }
    located.body(body).unwrap().into()
}

/// A client of the API server as the command makes one: it tries again where the server asks for that, and gives up a silent connection.
fn client(outbox: &Outbox) -> Client {
    let outbox = Arc::clone(outbox);
    let ask = tower::service_fn(move |request: Request<Body>| {
        let outbox = Arc::clone(&outbox);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let reply = send(&outbox, Server::Api, Request::from_parts(head, body));
            let reply = timeout(SILENCE, reply).await;
            match reply.map_err(|_| failed(ErrorKind::TimedOut))? {
                Reply::Whole(response) => Ok(response.map(whole)),
                Reply::Stream(lines) => Ok(Response::new(streamed(lines))),
                Reply::Closed => Err(failed(ErrorKind::ConnectionReset)),
                Reply::NotConnected => Err(failed(ErrorKind::ConnectionRefused)),
            }
        }
    });
    Client::new(Retry::new(RetryPolicy::server_retry(), ask), "default")
}

fn failed(kind: ErrorKind) -> BoxError {
    std::io::Error::from(kind).into()
}

type Answer = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: Bytes) -> Answer {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that ends with its sender, and breaks off after a long silence.
fn streamed(lines: mpsc::UnboundedReceiver<Bytes>) -> Answer {
    let lines = futures::stream::unfold(lines, |mut lines| async move {
        match timeout(SILENCE, lines.recv()).await {
            Ok(None) => None,
            Ok(Some(line)) => Some((Ok(http_body::Frame::data(line)), lines)),
            Err(_) => {
                let silent = std::io::Error::from(ErrorKind::TimedOut);
                lines.close();
                Some((Err(silent), lines))
            }
        }
    });
    StreamBody::new(lines).boxed_unsync()
}
