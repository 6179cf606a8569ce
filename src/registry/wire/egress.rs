//! Checks every address before it is connected to: registries, and wherever they lead.
//!
//! Guaranteed:
//!
//! - An internal address is asked only if its host is meant by name: on the list, configured as a registry, or, without a list, named by a
//!   spec. Plain HTTP or a rewrite for a host does not allow others to lead there.
//! - Without a list, a registry at an internal address may lead to other internal addresses, but never to the machine's own link.
//! - Behind a proxy the address cannot be seen, so the host must be meant by name.
//! - At most five redirects are followed, none out of TLS, and by writes only within the registry's own address.
//! - The registry's `Authorization` goes to no other address.
//! - Of writes only a blob's content goes to another address, if that is not known as a registry, and never to what could be read as a
//!   manifest's place. Only our own uploads are deleted.
//! - No error shows a URL.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE};
use reqwest::{Method, Request, Response, Url};
use tokio::time::Instant;
use url::Host;

use super::cause::{NoReply, cause};
use super::clients::{AddressForbidden, AddressScope, Clients, Pair};
use super::location::{is_like_a_manifest, is_like_a_registry, is_own_tag, is_own_upload};
use super::network::{Networks, Reach};
use super::request::RegistryRequest;
use crate::machine::Reason;
use crate::policy::HostPattern;
use crate::registry::auth::access::Access;
use crate::registry::endpoint::{Endpoint, Endpoints, address, is_same};
use crate::registry::error::{BuildError, Error};
use crate::registry::host::limits::Lane;
use crate::registry::settings::Settings;

/// Redirects followed for one request.
pub(crate) const REDIRECTS_MAX: usize = 5;
/// How many registries are remembered with where they were met.
const MET_MAX: u64 = 10_000;

/// The rules, and the clients that enforce them.
#[derive(Debug)]
pub(crate) struct EgressPolicy {
    clients: Clients,
    networks: Arc<Networks>,
    endpoints: Arc<Endpoints>,
    allowed: Option<Vec<HostPattern>>,
    /// Registries that have answered, by `HOST:PORT`: whether last at an internal address.
    met: moka::sync::Cache<String, bool>,
}

/// What led to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedBy {
    /// A spec.
    Registry,
    Realm,
    Redirect,
    Upload,
    /// The next page of a list.
    Page,
}

/// Approval to ask one address.
#[derive(Debug)]
pub(crate) struct Approved<'a> {
    pair: &'a Pair,
    proxied: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// An address that must not be asked. `sent`: whether the registry itself had answered.
    AddressForbidden { error: Error, sent: bool },
    /// A redirect that is not followed.
    Astray(&'static str),
    /// The connection to `at` failed.
    Broken { error: NoReply, at: String },
}

impl LedBy {
    /// What led to the address of a request, told by its kind.
    fn of(request: &RegistryRequest<'_>) -> Self {
        if request.access.endpoint.is_at(&request.url) {
            return Self::Registry;
        }
        match request.lane {
            Lane::Tokens => Self::Realm,
            Lane::Blobs => Self::Upload,
            Lane::Manifests => Self::Page,
        }
    }
}

impl EgressPolicy {
    pub(crate) fn new(settings: &Settings, endpoints: &Arc<Endpoints>) -> Result<Self, BuildError> {
        let networks = Arc::new(Networks {
            cluster: settings.cluster_ranges.clone(),
        });
        Ok(Self {
            clients: Clients::new(settings, &networks)?,
            networks,
            endpoints: Arc::clone(endpoints),
            allowed: settings.allowed.clone(),
            met: moka::sync::Cache::new(MET_MAX),
        })
    }

    pub(crate) async fn load_trust(&self) -> Result<(), BuildError> {
        self.clients.load_trust().await
    }

    /// Approves `request.url`, as far as possible before it is resolved.
    pub(crate) fn approve(&self, request: &RegistryRequest<'_>) -> Result<Approved<'_>, Error> {
        let registry = request.access.endpoint;
        let led_by = LedBy::of(request);
        let problem = match request.method {
            Method::GET | Method::HEAD => None,
            Method::DELETE if request.lane == Lane::Manifests => {
                (!is_own_tag(request.access, &request.url)).then_some(Problem::Foreign)
            }
            Method::DELETE => {
                (!is_own_upload(request.access, &request.url)).then_some(Problem::Foreign)
            }
            Method::PUT if request.lane == Lane::Blobs => {
                self.no_upload(request.access, &request.url)
            }
            _ => (led_by != LedBy::Registry).then_some(Problem::Foreign),
        };
        if let Some(problem) = problem {
            return Err(self.refusal(registry, LedBy::Upload, &request.url, problem));
        }
        self.check(registry, led_by, &request.url, self.is_inner(registry))
    }

    /// Whether an upload to `access` may be sent to `location`, as far as can be told before that is resolved.
    pub(crate) fn may_upload(&self, access: &Access<'_>, location: &Url) -> Result<(), Error> {
        let registry = access.endpoint;
        if let Some(problem) = self.no_upload(access, location) {
            return Err(self.refusal(registry, LedBy::Upload, location, problem));
        }
        let led_by = if registry.is_at(location) {
            LedBy::Registry
        } else {
            LedBy::Upload
        };
        self.check(registry, led_by, location, self.is_inner(registry))
            .map(drop)
    }

    /// Where a redirected write has to be sent: on the registry's own address and to the same tag or digest, otherwise an error. None if
    /// `answer` is not such a redirect.
    pub(crate) fn moved(
        &self,
        request: &RegistryRequest<'_>,
        answer: &Response,
    ) -> Option<Result<Url, Error>> {
        let writes = matches!(request.method, Method::PUT | Method::POST);
        if !writes || !matches!(answer.status().as_u16(), 307 | 308) {
            return None;
        }
        let next = target(answer)?;
        let registry = request.access.endpoint;
        let own = registry.is_at(&request.url) && registry.is_at(&next);
        let problem = match request.lane {
            _ if !own => Some(Problem::Foreign),
            Lane::Blobs => self.no_upload(request.access, &next),
            Lane::Manifests if last_two(&request.url) == last_two(&next) => None,
            _ => Some(Problem::Manifest),
        };
        Some(match problem {
            Some(problem) => Err(self.refusal(registry, LedBy::Redirect, &next, problem)),
            None => Ok(next),
        })
    }

    /// Why no blob may be sent to `location`.
    fn no_upload(&self, access: &Access<'_>, location: &Url) -> Option<Problem> {
        if is_own_upload(access, location) {
            return None;
        }
        if is_like_a_manifest(location) {
            return Some(Problem::Manifest);
        }
        let other = !access.endpoint.is_at(location);
        let registrys =
            || is_like_a_registry(location) || self.met.contains_key(&address(location));
        (other && registrys()).then_some(Problem::Foreign)
    }

    /// Sends `http`, which is `request`, and follows what a read is redirected to.
    pub(crate) async fn send(
        &self,
        request: &RegistryRequest<'_>,
        approved: &Approved<'_>,
        http: Request,
    ) -> Result<Response, SendError> {
        let registry = request.access.endpoint;
        let began = Instant::now();
        let safe = matches!(request.method, Method::GET | Method::HEAD);
        let authorization = http.headers().get(AUTHORIZATION).cloned();
        let mut own = true;
        let mut inner = registry.is_at(&request.url) || self.is_inner(registry);
        let mut proxied = approved.proxied;
        let mut answer = self
            .send_to(request, LedBy::of(request), approved, http)
            .await?;
        if !safe {
            return Ok(answer);
        }
        for followed in 0.. {
            let Some(next) = target(&answer) else {
                break;
            };
            if followed == REDIRECTS_MAX {
                return Err(SendError::Astray("too many redirects"));
            }
            if !self.endpoints.may_follow(Some(answer.url()), &next) {
                return Err(SendError::Astray("a redirect leaves TLS"));
            }
            inner = inner && !proxied && self.is_from_inside(&answer);
            own = own && is_same(&request.url, &next);
            let approved = self
                .check(registry, LedBy::Redirect, &next, inner)
                .map_err(|error| SendError::AddressForbidden { error, sent: true })?;
            let mut http = Request::new(request.method.clone(), next);
            for name in [ACCEPT, RANGE] {
                if let Some(value) = request.headers.get(&name) {
                    http.headers_mut().insert(name, value.clone());
                }
            }
            if let Some(value) = authorization.as_ref().filter(|_| own) {
                http.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            // One attempt has one timeout, however often it is redirected.
            *http.timeout_mut() = request
                .timeout
                .map(|timeout| timeout.saturating_sub(began.elapsed()));
            proxied = approved.proxied;
            answer = self
                .send_to(request, LedBy::Redirect, &approved, http)
                .await?;
        }
        Ok(answer)
    }

    async fn send_to(
        &self,
        request: &RegistryRequest<'_>,
        led_by: LedBy,
        approved: &Approved<'_>,
        http: Request,
    ) -> Result<Response, SendError> {
        let registry = request.access.endpoint;
        let url = http.url().clone();
        match approved.pair.send(request, http).await {
            Ok(answer) => {
                if registry.is_at(&url) {
                    let inner = !approved.proxied && self.is_from_inside(&answer);
                    if self.met.get(&registry.address) != Some(inner) {
                        self.met.insert(registry.address.clone(), inner);
                    }
                }
                Ok(answer)
            }
            Err(NoReply::Network(error)) if cause::<AddressForbidden>(&error).is_some() => {
                Err(SendError::AddressForbidden {
                    error: self.refusal(registry, led_by, &url, Problem::Internal),
                    sent: led_by == LedBy::Redirect,
                })
            }
            Err(error) => Err(SendError::Broken {
                error,
                at: address(&url),
            }),
        }
    }

    /// Approves `url`, to which `led_by` of `registry` led. `inner`: everything that led there was at internal addresses.
    fn check(
        &self,
        registry: &Endpoint,
        led_by: LedBy,
        url: &Url,
        inner: bool,
    ) -> Result<Approved<'_>, Error> {
        let proxied = self.clients.are_proxied(url);
        let named = self.is_named(registry, url);
        let scope = match &self.allowed {
            _ if named => AddressScope::Any,
            None if proxied && url.host() == registry.base.host() => AddressScope::Any,
            None if inner => AddressScope::Inner,
            _ => AddressScope::Public,
        };
        let private = self.clients.trusts_privately(url);
        let problem = match literal(url) {
            _ if proxied && scope != AddressScope::Any => Some(Problem::Unseen),
            // A private CA is only for hosts that are meant by name.
            _ if private && scope != AddressScope::Any => Some(Problem::Unlisted),
            Some(address) if !proxied && !scope.includes(self.networks.reach(address)) => {
                Some(Problem::Internal)
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(self.refusal(registry, led_by, url, problem));
        }
        match self.clients.pair(url, scope, proxied) {
            Ok(pair) => Ok(Approved { pair, proxied }),
            Err(error) => Err(Error::attempt(Reason::RegistryError, error.to_string())),
        }
    }

    /// Whether the host of `url` is meant by name, so that its address does not matter. Being configured (plain HTTP, rewrite) names it as
    /// a registry, not as a place that others may lead to.
    fn is_named(&self, registry: &Endpoint, url: &Url) -> bool {
        let own = registry.is_at(url);
        let private = self.clients.trusts_privately(url);
        if own && (private || self.endpoints.is_configured(registry)) {
            return true;
        }
        let Some(allowed) = &self.allowed else {
            return own || private;
        };
        let (bare, full) = (shown(url), address(url));
        allowed.iter().any(|pattern| {
            pattern.names(&bare) || pattern.names(&full) || (own && pattern.names(&registry.name))
        })
    }

    /// Whether `registry` was last met at an internal address.
    fn is_inner(&self, registry: &Endpoint) -> bool {
        match literal(&registry.base) {
            Some(address) => self.networks.reach(address) != Reach::Public,
            None => self.met.get(&registry.address).unwrap_or(false),
        }
    }

    fn is_from_inside(&self, answer: &Response) -> bool {
        let peer = answer.remote_addr().as_ref().map(SocketAddr::ip);
        peer.is_some_and(|address| self.networks.reach(address) != Reach::Public)
    }

    fn refusal(&self, registry: &Endpoint, led_by: LedBy, url: &Url, problem: Problem) -> Error {
        let (name, mut host) = (&registry.name, shown(url));
        let led = match led_by {
            LedBy::Registry => {
                host.clone_from(name);
                format!("{name} is")
            }
            LedBy::Realm => format!("{name} wants tokens asked for at {host}, which is"),
            LedBy::Redirect => format!("{name} redirects to {host}, which is"),
            LedBy::Upload => format!("{name} wants uploads sent to {host}, which is"),
            LedBy::Page => format!("{name} goes on with a list at {host}, which is"),
        };
        let problem = match problem {
            Problem::Internal => "at an internal address",
            Problem::Unseen => "behind a proxy and not on the list",
            Problem::Unlisted => "not on the list",
            Problem::Foreign | Problem::Manifest => {
                let what = if matches!(problem, Problem::Manifest) {
                    "a manifest's place"
                } else {
                    "another registry's"
                };
                let message = format!("{led} {what}; nothing is written there: correct {name}");
                return Error::terminal(Reason::NotAllowed, message);
            }
        };
        let remedy = match &self.allowed {
            Some(_) => format!("have --allow-registry {host} added"),
            None => format!("give --allow-registry {host}, and one for each registry of the file"),
        };
        Error::terminal(Reason::NotAllowed, format!("{led} {problem}; {remedy}"))
    }
}

/// Why an address is not asked.
#[derive(Debug, Clone, Copy)]
enum Problem {
    Internal,
    /// What a proxy connects to cannot be seen.
    Unseen,
    /// It has a private CA, and is not named.
    Unlisted,
    /// A write to another registry.
    Foreign,
    /// It could be a manifest's place.
    Manifest,
}

/// Where an answer redirects to; none if it is not a redirect with a usable `Location`.
fn target(answer: &Response) -> Option<Url> {
    if !matches!(answer.status().as_u16(), 301..=303 | 307 | 308) {
        return None;
    }
    let location = answer.headers().get(LOCATION)?.to_str().ok()?;
    unsigned(answer.url().join(location).ok()?)
}

/// `manifests/<reference>` of a URL.
fn last_two(url: &Url) -> Option<(&str, &str)> {
    let (before, last) = url.path().rsplit_once('/')?;
    Some((before.rsplit_once('/')?.1, last))
}

/// A URL that a registry led to, without user and password.
pub(crate) fn unsigned(mut url: Url) -> Option<Url> {
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.has_host().then_some(url)
}

/// `HOST` or `HOST:PORT`, as the URL has it.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

#[cfg(test)]
mod tests;
