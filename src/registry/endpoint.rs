//! The address behind a registry's name, and the other addresses that it may vouch for.
//!
//! Gives the base URL of a repository's registry. Plain HTTP only where the configuration names the address. Guaranteed: credentials go
//! to a token realm only over TLS (unless the registry itself is configured as plain HTTP), and only on the registry's own host or a
//! neighbour in its domain.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::Url;

use super::error::BuildError;
use super::settings::Settings;
use crate::image::{Repository, host_name};

/// How many names are remembered with where they lead: to parse one takes longer than the rest of what a request is made of.
const KNOWN_MAX: usize = 1024;

/// Names and the addresses they stand for.
#[derive(Debug)]
pub(crate) struct Endpoints {
    plain: HashSet<String>,
    rewrite: HashMap<String, Url>,
    known: Mutex<HashMap<String, Arc<Endpoint>>>,
}

/// Where a registry is spoken to.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The host as a repository names it.
    pub(crate) name: String,
    /// Scheme and authority of its API.
    pub(crate) base: Url,
    /// `HOST:PORT` of it.
    pub(crate) address: String,
}

impl Endpoints {
    pub(crate) fn new(settings: &Settings) -> Result<Self, BuildError> {
        let mut plain = HashSet::new();
        for host in &settings.plain_http {
            plain.insert(address(&plain_url(host)?));
        }
        let mut rewrite = HashMap::new();
        for (name, host) in &settings.rewrite {
            let url = plain_url(host)?;
            plain.insert(address(&url));
            rewrite.insert(host_name(name).to_owned(), url);
        }
        Ok(Self {
            plain,
            rewrite,
            known: Mutex::default(),
        })
    }

    /// The addresses that the configuration names for plain HTTP.
    pub(crate) fn plain(&self) -> impl Iterator<Item = String> + '_ {
        self.plain.iter().cloned()
    }

    /// Where `repository`'s registry is spoken to.
    pub(crate) fn of(&self, repository: &Repository) -> Option<Arc<Endpoint>> {
        let name = repository.host();
        if let Some(known) = self.known.lock().get(name) {
            return Some(Arc::clone(known));
        }
        let base = self.rewrite.get(name).cloned();
        let endpoint = Arc::new(Endpoint::new(name, base.or_else(|| self.own(name))?));
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), Arc::clone(&endpoint));
        Some(endpoint)
    }

    /// The address that a host's own name says.
    fn own(&self, name: &str) -> Option<Url> {
        let host = match name {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            _ => name,
        };
        // A name says no default port: which of them is spoken plainly, the configuration says.
        for port in ["", ":443"] {
            let plain = plain_url(&format!("{host}{port}")).ok();
            if let Some(plain) = plain.filter(|plain| self.plain.contains(&address(plain))) {
                return Some(plain);
            }
        }
        Url::parse(&format!("https://{host}/")).ok()
    }

    /// Whether the configuration names the address of a registry: plain HTTP is spoken there, or it stands in for a host.
    pub(crate) fn is_configured(&self, endpoint: &Endpoint) -> bool {
        self.plain.contains(&endpoint.address)
    }

    /// Whether a redirect or an upload location from `from` to `to` keeps TLS where there was TLS.
    pub(crate) fn may_follow(&self, from: Option<&Url>, to: &Url) -> bool {
        match to.scheme() {
            "https" => true,
            "http" => {
                from.is_some_and(|from| from.scheme() == "http")
                    || self.plain.contains(&address(to))
            }
            _ => false,
        }
    }
}

impl Endpoint {
    pub(crate) fn new(name: &str, base: Url) -> Self {
        Self {
            name: name.to_owned(),
            address: address(&base),
            base,
        }
    }

    /// The URL of `path` below `/v2/`.
    pub(crate) fn url(&self, path: impl Display) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{path}"));
        url
    }

    /// Whether `url` is at this registry itself, so that its credentials may go there.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        is_same(url, &self.base)
    }

    /// Whether a token may be asked for at `realm` at all: TLS, unless the registry has none itself.
    pub(crate) fn may_ask(&self, realm: &Url) -> bool {
        realm.host_str().is_some()
            && (realm.scheme() == "https"
                || (realm.scheme() == "http" && self.base.scheme() == "http"))
    }

    /// Whether the registry's credentials may be sent to `realm`: its own host, or one below its parent domain.
    pub(crate) fn trusts(&self, realm: &Url) -> bool {
        let (Some(own), Some(other)) = (self.base.host_str(), realm.host_str()) else {
            return false;
        };
        let local = |host: &str| matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        if own == other || (local(own) && local(other)) {
            return true;
        }
        if own.parse::<std::net::IpAddr>().is_ok() || own.starts_with('[') {
            return false;
        }
        let domain = domain(own);
        other == domain
            || other
                .strip_suffix(domain)
                .is_some_and(|rest| rest.ends_with('.'))
    }
}

/// The domain whose hosts belong together: the parent, unless that is where anybody may register.
fn domain(host: &str) -> &str {
    let Some((_, parent)) = host.split_once('.') else {
        return host;
    };
    match parent.split_once('.') {
        None => host,
        // Such as co.uk and com.au: a country below which names are given to anybody.
        Some((second, top)) if !top.contains('.') && top.len() == 2 && second.len() <= 3 => host,
        Some(_) => parent,
    }
}

/// `HOST:PORT` of a URL, the port always written out.
pub(crate) fn address(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

/// Whether a URL is at this address.
pub(crate) fn has_address(url: &Url, address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    url.host_str() == Some(host) && url.port_or_known_default() == port.parse().ok()
}

/// Whether two URLs are at one address, and speak to it the same way.
pub(crate) fn is_same(one: &Url, other: &Url) -> bool {
    let port = Url::port_or_known_default;
    (one.scheme(), one.host_str(), port(one)) == (other.scheme(), other.host_str(), port(other))
}

fn plain_url(host: &str) -> Result<Url, BuildError> {
    let bad = || BuildError::Address(host.to_owned());
    let url = Url::parse(&format!("http://{host}/")).map_err(|_| bad())?;
    if url.path() == "/" && url.query().is_none() && url.username().is_empty() {
        Ok(url)
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn endpoint(host: &str, settings: &Settings) -> Arc<Endpoint> {
        let repository = format!("{host}/a/b").parse().unwrap();
        Endpoints::new(settings).unwrap().of(&repository).unwrap()
    }

    #[test]
    fn plain_http_is_spoken_only_where_it_is_configured() {
        let settings = Settings {
            plain_http: vec!["localhost:5000".into(), "reg.test".into()],
            rewrite: HashMap::from([("quay.io".into(), "127.0.0.1:7000".into())]),
            ..Settings::default()
        };
        for (host, base) in [
            ("localhost:5000", "http://localhost:5000/"),
            ("localhost:5001", "https://localhost:5001/"),
            ("reg.test", "http://reg.test/"),
            ("quay.io", "http://127.0.0.1:7000/"),
            ("docker.io", "https://registry-1.docker.io/"),
            ("x.io", "https://x.io/"),
        ] {
            assert_eq!(endpoint(host, &settings).base.as_str(), base, "{host}");
        }
    }

    #[test]
    fn every_spelling_of_a_plain_registry_is_one_address() {
        for (plain, base) in [
            ("reg.test", "http://reg.test/"),
            ("reg.test:80", "http://reg.test/"),
            ("reg.test:443", "http://reg.test:443/"),
        ] {
            let settings = Settings {
                plain_http: vec![plain.into()],
                ..Settings::default()
            };
            for host in ["reg.test", "reg.test:80", "reg.test:443"] {
                let endpoint = endpoint(host, &settings);
                assert_eq!(endpoint.base.as_str(), base, "{plain} {host}");
                assert_eq!(endpoint.name, "reg.test");
            }
        }
        let rewrite = HashMap::from([("reg.test:80".into(), "127.0.0.1:7000".into())]);
        let settings = Settings {
            rewrite,
            ..Settings::default()
        };
        let endpoint = endpoint("reg.test", &settings);
        assert_eq!(endpoint.base.as_str(), "http://127.0.0.1:7000/");
    }

    #[test]
    fn credentials_stay_with_the_registry_and_its_neighbours() {
        let settings = Settings::default();
        for (host, realm, trusted) in [
            ("quay.io", "https://quay.io/v2/auth", true),
            ("quay.io", "https://auth.quay.io/token", true),
            ("quay.io", "https://evilquay.io/token", false),
            ("quay.io", "https://other.io/token", false),
            ("docker.io", "https://auth.docker.io/token", true),
            (
                "registry.build02.ci.openshift.org",
                "https://auth.build02.ci.openshift.org/t",
                true,
            ),
            (
                "registry.build02.ci.openshift.org",
                "https://ci.openshift.org/t",
                false,
            ),
            ("registry.example.com", "https://auth.example.com/t", true),
            ("example.co.uk", "https://evil.co.uk/t", false),
            ("localhost:5000", "http://127.0.0.1:9/t", true),
            ("quay.io", "http://127.0.0.1:9/t", false),
            ("10.0.0.1", "https://10.0.0.2/t", false),
        ] {
            let realm = Url::parse(realm).unwrap();
            assert_eq!(
                endpoint(host, &settings).trusts(&realm),
                trusted,
                "{host} {realm}"
            );
        }
    }

    #[test]
    fn a_realm_without_tls_is_for_registries_without_tls() {
        let plain = Settings {
            plain_http: vec!["localhost:5000".into()],
            ..Settings::default()
        };
        let realm = Url::parse("http://localhost:6000/token").unwrap();
        assert!(endpoint("localhost:5000", &plain).may_ask(&realm));
        assert!(!endpoint("localhost:5000", &Settings::default()).may_ask(&realm));
        assert!(!endpoint("quay.io", &plain).may_ask(&Url::parse("ftp://quay.io/").unwrap()));
    }
}
