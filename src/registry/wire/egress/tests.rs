#![allow(clippy::unwrap_used)]
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::registry::settings::Proxies;

struct Rules {
    egress: EgressPolicy,
    endpoints: Arc<Endpoints>,
}

fn rules(settings: &Settings) -> Rules {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoints = Arc::new(Endpoints::new(settings).unwrap());
    Rules {
        egress: EgressPolicy::new(settings, &endpoints).unwrap(),
        endpoints,
    }
}

impl Rules {
    /// Whether `registry` may lead to `url`, as far as can be told before it is resolved, and how far that reaches.
    fn leads(&self, registry: &str, url: &str, inner: bool) -> Result<AddressScope, Error> {
        let registry = self
            .endpoints
            .of(&format!("{registry}/a/b").parse().unwrap())
            .unwrap();
        let url = Url::parse(url).unwrap();
        let approved = self.egress.check(&registry, LedBy::Redirect, &url, inner)?;
        let proxied = approved.proxied;
        for scope in [AddressScope::Public, AddressScope::Inner] {
            let pair = self.egress.clients.pair(&url, scope, proxied).unwrap();
            if std::ptr::eq(approved.pair, pair) {
                return Ok(scope);
            }
        }
        Ok(AddressScope::Any)
    }

    fn refuses(&self, registry: &str, url: &str, inner: bool) -> String {
        let error = self.leads(registry, url, inner).unwrap_err();
        assert_eq!(error.reason, Reason::NotAllowed);
        error.message
    }
}

fn list(hosts: &[&str]) -> Vec<HostPattern> {
    hosts.iter().map(|host| host.parse().unwrap()).collect()
}

#[test]
fn with_a_list_what_it_does_not_name_is_asked_at_public_addresses_alone() {
    let rules = rules(&Settings {
        allowed: Some(list(&[
            "quay.io",
            "docker.io",
            "*.corp.example",
            "10.0.0.7",
            "**",
            "[fd00::1]:8443",
        ])),
        cluster_ranges: vec!["52.0.0.0/8".parse().unwrap()],
        plain_http: vec!["10.0.0.8:5000".into()],
        rewrite: HashMap::from([("old.example".into(), "10.0.0.9".into())]),
        ..Settings::default()
    });
    for (registry, url, scope) in [
        ("quay.io", "https://quay.io/x", AddressScope::Any),
        ("quay.io", "https://cdn.example/x", AddressScope::Public),
        ("quay.io", "https://quay.io:444/x", AddressScope::Public),
        ("quay.io", "https://8.8.8.8/x", AddressScope::Public),
        ("quay.io", "https://s3.corp.example/x", AddressScope::Any),
        ("quay.io", "https://10.0.0.7/x", AddressScope::Any),
        ("quay.io", "https://[fd00::1]:8443/x", AddressScope::Any),
        ("10.0.0.8:5000", "http://10.0.0.8:5000/x", AddressScope::Any),
        ("old.example", "http://10.0.0.9/x", AddressScope::Any),
        (
            "docker.io",
            "https://registry-1.docker.io/x",
            AddressScope::Any,
        ),
        (
            "docker.io",
            "https://auth.docker.io/x",
            AddressScope::Public,
        ),
        // On the list by stars alone.
        (
            "other.example",
            "https://other.example/x",
            AddressScope::Public,
        ),
    ] {
        for inner in [true, false] {
            let found = rules.leads(registry, url, inner);
            assert_eq!(found.unwrap(), scope, "{registry} {url}");
        }
    }
    for url in [
        "https://10.0.0.7:444/x",
        "http://10.0.0.8:5001/x",
        // Being spoken to without TLS, or standing in for another, is no leave to be led there.
        "http://10.0.0.8:5000/x",
        "http://10.0.0.9/x",
        "https://127.1/x",
        "https://[fd00::1]/x",
        "https://52.1.2.3/x",
        "http://169.254.169.254/x",
    ] {
        for inner in [true, false] {
            let message = rules.refuses("quay.io", url, inner);
            assert!(message.starts_with("quay.io redirects to "), "{message}");
            assert!(message.contains("internal address; have --allow-registry"));
        }
    }
}

#[test]
fn without_a_list_only_internal_registries_lead_inside() {
    let rules = rules(&Settings::default());
    for (registry, url, inner, scope) in [
        ("10.0.0.1", "https://10.0.0.1/x", true, AddressScope::Any),
        (
            "169.254.1.1",
            "https://169.254.1.1/x",
            false,
            AddressScope::Any,
        ),
        ("quay.io", "https://quay.io/x", false, AddressScope::Any),
        (
            "quay.io",
            "https://cdn.example/x",
            false,
            AddressScope::Public,
        ),
        (
            "10.0.0.1",
            "https://cdn.example/x",
            true,
            AddressScope::Inner,
        ),
        ("10.0.0.1", "https://10.0.0.2/x", true, AddressScope::Inner),
    ] {
        assert_eq!(rules.leads(registry, url, inner).unwrap(), scope, "{url}");
    }
    for (url, inner) in [
        ("https://10.0.0.2/x", false),
        ("https://127.0.0.1/x", false),
        ("https://169.254.169.254/x", true),
        ("https://[::ffff:169.254.169.254]/x", true),
    ] {
        rules.refuses("registry.example", url, inner);
    }
    let inner = |host: &str| {
        let repository = format!("{host}/a/b").parse().unwrap();
        rules
            .egress
            .is_inner(&rules.endpoints.of(&repository).unwrap())
    };
    assert!(inner("192.168.1.1:5000") && !inner("8.8.8.8") && !inner("registry.example"));
}

#[test]
fn what_goes_through_a_proxy_has_to_be_meant_by_name() {
    let through = |allowed| {
        rules(&Settings {
            allowed,
            proxies: Proxies::Given {
                proxy: "http://10.0.0.1:3128".into(),
                except: "direct.example,10.0.0.0/8".into(),
            },
            ..Settings::default()
        })
    };
    let listed = through(Some(list(&["quay.io", "**"])));
    assert!(listed.leads("quay.io", "https://quay.io/x", false).is_ok());
    for registry in ["quay.io", "other.example"] {
        let message = listed.refuses(registry, "https://other.example/x", false);
        assert!(message.contains("behind a proxy"), "{message}");
    }
    let free = through(None);
    assert!(
        free.leads("a.example", "https://a.example/x", false)
            .is_ok()
    );
    assert!(
        free.leads("a.example", "https://a.example:444/x", false)
            .is_ok()
    );
    for rules in [listed, free] {
        // The proxy itself, and what no proxy is asked for, are places as any other.
        rules.refuses("quay.io", "http://10.0.0.1:3128/x", false);
        let direct = rules.leads("quay.io", "https://direct.example/x", false);
        assert_eq!(direct.unwrap(), AddressScope::Public);
        rules.refuses("quay.io", "https://cdn.example/x", true);
    }
}

proptest! {
    #[test]
    fn whatever_a_registry_leads_to_is_a_host_without_a_name_and_password(
        location in "\\PC{0,60}|((https?|ftp|file|data|javascript):)?(//)?(u(:p)?@)?(x|\\[::1\\]|127\\.1|%2e)?(:[0-9]{0,6})?(/|\\\\|\\.\\.|\\?|#|@){0,6}",
    ) {
        let base = Url::parse("https://quay.io/v2/a/blobs/uploads/").unwrap();
        if let Some(url) = base.join(&location).ok().and_then(unsigned) {
            prop_assert!(url.has_host() && url.username().is_empty() && url.password().is_none(), "{url}");
        }
    }
}
