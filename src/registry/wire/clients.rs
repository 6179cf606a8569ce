//! The HTTP clients: one pair for each set of addresses that may be connected to.
//!
//! Guaranteed: a pair connects only to addresses in its [`AddressScope`], checked on the very resolution that is connected to; its
//! connections serve no request of another scope. A private CA is trusted for its own host only. A proxy has a pair of its own, so its
//! address is open only to requests through it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Method, NoProxy, Proxy, Request, Response, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use url::Position;

use super::cause::{NoReply, describe};
use super::network::{Networks, Reach};
use super::request::RegistryRequest;
use super::trust::Trust;
use crate::files;
use crate::registry::endpoint::address;
use crate::registry::error::BuildError;
use crate::registry::host::limits::Connection;
use crate::registry::settings::{Proxies, Settings};
use crate::registry::transport::Wire;

/// How long a connection is kept unused: less than load balancers do (60 s and more), so that no write meets a closed one.
const IDLE: Duration = Duration::from_secs(30);
/// A connection on which nothing arrives is asked for a sign of life so often.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// An HTTP/2 connection in use is asked for a sign of life so often, and given up without one after as long.
const PING: Duration = Duration::from_secs(20);
/// What one HTTP/2 stream may send ahead of its reader; at 100 ms away that is 20 MiB a second.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// What all streams of a connection may: what they can make this process hold.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// Which addresses are connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressScope {
    /// All: the host is meant by name.
    Any,
    /// All but the machine's own link.
    Inner,
    /// Public ones.
    Public,
}

/// A name that resolved to no address that may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("it is at an internal address")]
pub(crate) struct AddressForbidden;

/// What requests are sent with.
#[derive(Debug)]
pub(crate) enum Pair {
    Network(Box<NetworkPair>),
    Wire(Wire),
}

/// Clients that differ in patience, and in what becomes of a request that is given up.
#[derive(Debug)]
pub(crate) struct NetworkPair {
    trust: Arc<Trust>,
    /// GET and HEAD: ends a read that stands still.
    reads: Client,
    /// Everything else but tag PUTs: an answer may be long in coming once a body was sent.
    writes: Client,
    /// PUTs of tags, which must not land long after they were given up. HTTP/1.1: one request in flight per connection, which is
    /// closed with a request that is given up; over HTTP/2 its bytes would stay in a connection that others go on using. And the
    /// kernel drops what nobody has acknowledged when the PUT's time is over, instead of sending it again for many minutes.
    tags: Client,
    /// GET and PUT of large blobs. HTTP/1.1: each fills a connection anyhow, whose window the kernel sizes by what the way takes. Over
    /// HTTP/2 all would share one, in pieces of 16 KiB, as much on its way as the receiver allows: an nginx that passes uploads on
    /// as they come allows 64 KiB.
    downloads: Client,
    uploads: Client,
}

/// All pairs, made when they are first needed.
#[derive(Debug)]
pub(crate) struct Clients {
    recipe: Recipe,
    matcher: Matcher,
    any: Pair,
    inner: OnceLock<Pair>,
    public: OnceLock<Pair>,
    proxied: OnceLock<Pair>,
    /// By `HOST:PORT`, each with its own CA.
    private: HashMap<String, Pair>,
}

/// What clients are made with.
#[derive(Debug)]
struct Recipe {
    connect_timeout: Duration,
    read_timeout: Duration,
    put_timeout: Duration,
    proxies: Proxies,
    networks: Arc<Networks>,
    way: Way,
}

/// What is beyond a client.
#[derive(Debug)]
enum Way {
    /// What is trusted of whatever has no CA of its own. The system's bundle is read once, not by each client.
    Network(Arc<Trust>),
    Wire(Wire),
}

/// Resolves names to the addresses that may be connected to.
struct Guard {
    scope: AddressScope,
    networks: Arc<Networks>,
}

impl AddressScope {
    pub(crate) fn includes(self, reach: Reach) -> bool {
        match self {
            Self::Any => true,
            Self::Inner => reach != Reach::LinkLocal,
            Self::Public => reach == Reach::Public,
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (scope, networks) = (self.scope, Arc::clone(&self.networks));
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let open = |address: &SocketAddr| scope.includes(networks.reach(address.ip()));
            let (open, forbidden): (Vec<_>, Vec<_>) = found.into_iter().partition(open);
            if open.is_empty() && !forbidden.is_empty() {
                return Err(AddressForbidden.into());
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

impl Clients {
    pub(crate) fn new(settings: &Settings, networks: &Arc<Networks>) -> Result<Self, BuildError> {
        let recipe = Recipe {
            connect_timeout: settings.connect_timeout,
            read_timeout: settings.read_timeout,
            put_timeout: settings.put_timeout,
            proxies: settings.proxies.clone(),
            networks: Arc::clone(networks),
            way: match &settings.wire {
                Some(wire) => Way::Wire(wire.clone()),
                None => Way::Network(Trust::new(Vec::new())?),
            },
        };
        let matcher = match &settings.proxies {
            Proxies::Environment => Matcher::from_system(),
            Proxies::Given { proxy, except } => Matcher::builder()
                .all(proxy.as_str())
                .no(except.as_str())
                .build(),
        };
        let mut private = HashMap::new();
        for (host, file) in &settings.registry_ca {
            let fails = |problem: String| BuildError::Ca {
                host: host.clone(),
                file: file.clone(),
                problem,
            };
            let url = Url::parse(&format!("https://{host}/"))
                .ok()
                .filter(|url| url.path() == "/" && url.query().is_none())
                .ok_or_else(|| fails("what is before the = is not HOST or HOST:PORT".into()))?;
            let roots = read_roots(file).map_err(fails)?;
            let trust = Trust::new(roots)?;
            let pair = if intercepts(&matcher, &url) {
                recipe.proxied(Some(&trust))
            } else {
                recipe.direct(AddressScope::Any, Some(&trust))
            };
            private.insert(address(&url), pair?);
        }
        Ok(Self {
            any: recipe.direct(AddressScope::Any, None)?,
            inner: OnceLock::new(),
            public: OnceLock::new(),
            proxied: OnceLock::new(),
            private,
            recipe,
            matcher,
        })
    }

    pub(crate) async fn load_trust(&self) -> Result<(), BuildError> {
        match &self.recipe.way {
            Way::Network(trust) => trust.load().await,
            Way::Wire(_) => Ok(()),
        }
    }

    /// Whether requests to `url` go through a proxy.
    pub(crate) fn are_proxied(&self, url: &Url) -> bool {
        intercepts(&self.matcher, url)
    }

    /// Whether that address has a CA of its own.
    pub(crate) fn trusts_privately(&self, url: &Url) -> bool {
        !self.private.is_empty() && self.private.contains_key(&address(url))
    }

    /// The pair for `url` that reaches no further than `scope`; through a proxy where one is configured for `url`
    /// ([`Self::are_proxied`]).
    pub(crate) fn pair(
        &self,
        url: &Url,
        scope: AddressScope,
        proxied: bool,
    ) -> Result<&Pair, BuildError> {
        if scope == AddressScope::Any
            && url.scheme() == "https"
            && let Some(pair) = self.private.get(&address(url))
        {
            return Ok(pair);
        }
        if proxied {
            return made(&self.proxied, || self.recipe.proxied(None));
        }
        match scope {
            AddressScope::Any => Ok(&self.any),
            AddressScope::Inner => made(&self.inner, || self.recipe.direct(scope, None)),
            AddressScope::Public => made(&self.public, || self.recipe.direct(scope, None)),
        }
    }
}

impl Pair {
    /// Sends `http`, which is `request` or what it is redirected to.
    pub(crate) async fn send(
        &self,
        request: &RegistryRequest<'_>,
        http: Request,
    ) -> Result<Response, NoReply> {
        let pair = match self {
            Self::Network(pair) => pair,
            Self::Wire(wire) => return wire.send(http).await.map_err(NoReply::Wire),
        };
        if http.url().scheme() == "https" {
            pair.trust.begin_to_load();
        }
        let reads = matches!(*http.method(), Method::GET | Method::HEAD);
        let client = match request.connection {
            Connection::Bulk if reads => &pair.downloads,
            _ if reads => &pair.reads,
            Connection::Prompt => &pair.tags,
            Connection::Bulk => &pair.uploads,
            Connection::Shared => &pair.writes,
        };
        let sent = client.execute(http).await;
        sent.map_err(|error| NoReply::Network(error.without_url()))
    }
}

impl Recipe {
    /// Connects to hosts themselves, whatever the environment says of proxies.
    fn direct(
        &self,
        scope: AddressScope,
        private: Option<&Arc<Trust>>,
    ) -> Result<Pair, BuildError> {
        self.pair(scope, private, ClientBuilder::no_proxy)
    }

    /// Connects to proxies: it is asked for nothing that does not go through one.
    fn proxied(&self, private: Option<&Arc<Trust>>) -> Result<Pair, BuildError> {
        let proxy = match &self.proxies {
            Proxies::Environment => None,
            Proxies::Given { proxy, except } => {
                let proxy = Proxy::all(proxy)
                    .map_err(|error| BuildError::Client(describe(&error.without_url())))?;
                Some(proxy.no_proxy(NoProxy::from_string(except)))
            }
        };
        self.pair(AddressScope::Any, private, |builder| match &proxy {
            Some(proxy) => builder.proxy(proxy.clone()),
            None => builder,
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the command line has installed the provider"
    )]
    fn pair(
        &self,
        scope: AddressScope,
        private: Option<&Arc<Trust>>,
        way: impl Fn(ClientBuilder) -> ClientBuilder,
    ) -> Result<Pair, BuildError> {
        let common = match &self.way {
            Way::Wire(wire) => return Ok(Pair::Wire(wire.clone())),
            Way::Network(trust) => trust,
        };
        let trust = private.unwrap_or(common);
        let fails = |error: reqwest::Error| BuildError::Client(describe(&error.without_url()));
        // Sessions are resumed within a pair, and by no other.
        let tls = trust.config()?;
        let build = |builder: ClientBuilder, protocols: &[&str]| {
            let mut tls = tls.clone();
            tls.alpn_protocols = protocols.iter().map(|&name| name.into()).collect();
            way(builder)
                .tls_backend_preconfigured(tls)
                .user_agent(concat!("promotion-controller/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Guard {
                    scope,
                    networks: Arc::clone(&self.networks),
                })
                .pool_idle_timeout(IDLE)
                .tcp_keepalive(KEEPALIVE)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_keep_alive_interval(PING)
                .http2_keep_alive_timeout(PING)
                .http2_keep_alive_while_idle(false)
                // Every next address is checked first, by `egress`.
                .redirect(Policy::none())
                .referer(false)
                // What is sent again, and when, is decided by `transport` alone.
                .retry(reqwest::retry::never())
                .build()
                .map_err(fails)
        };
        let patient = || Client::builder().connect_timeout(self.connect_timeout);
        let reads = || patient().read_timeout(self.read_timeout);
        // Shorter than the PUT's whole time, so that it shows that nothing was sent.
        let connect_timeout = self.connect_timeout.min(self.put_timeout * 3 / 4);
        let tags = Client::builder()
            .connect_timeout(connect_timeout)
            .http1_only()
            .tcp_user_timeout(self.put_timeout);
        Ok(Pair::Network(Box::new(NetworkPair {
            trust: Arc::clone(trust),
            reads: build(reads(), &["h2", "http/1.1"])?,
            writes: build(patient(), &["h2", "http/1.1"])?,
            tags: build(tags, &["http/1.1"])?,
            downloads: build(reads().http1_only(), &["http/1.1"])?,
            uploads: build(patient().http1_only(), &["http/1.1"])?,
        })))
    }
}

fn made(
    cell: &OnceLock<Pair>,
    make: impl FnOnce() -> Result<Pair, BuildError>,
) -> Result<&Pair, BuildError> {
    if let Some(pair) = cell.get() {
        return Ok(pair);
    }
    // Whoever else made one meanwhile was as right.
    let pair = make()?;
    Ok(cell.get_or_init(|| pair))
}

fn intercepts(matcher: &Matcher, url: &Url) -> bool {
    // Its path plays no part.
    url[..Position::BeforePath]
        .parse()
        .is_ok_and(|uri: http::Uri| matcher.intercept(&uri).is_some())
}

/// The certificates of a PEM bundle; the problem where there is none that can be trusted.
fn read_roots(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text =
        files::read(file, files::SMALL).map_err(|error| format!("cannot be read ({error})"))?;
    let mut roots = Vec::new();
    for root in CertificateDer::pem_slice_iter(&text) {
        let root = root.map_err(|error| format!("is no PEM file ({error})"))?;
        rustls::RootCertStore::empty()
            .add(root.clone())
            .map_err(|error| format!("holds a certificate that cannot be used ({error})"))?;
        roots.push(root);
    }
    if roots.is_empty() {
        return Err("holds no certificate".into());
    }
    Ok(roots)
}
