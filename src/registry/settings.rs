//! How registries are spoken to.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::metrics::Metrics;
use crate::policy::HostPattern;
use crate::registry::transport::Wire;

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOST` or `HOST:PORT` spoken to over plain HTTP.
    pub plain_http: Vec<String>,
    /// Requests a second to each host at first, for manifests and blobs together and for tokens apart; 0: no pacing.
    pub qps: u32,
    /// How many these may become while requests wait and the host serves them; at most `qps`: no more than that.
    pub qps_max: u32,
    /// Requests in flight per host, at least 3; a quarter is kept free of blob streams.
    pub concurrency: usize,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// How long a read may stall.
    pub read_timeout: Duration,
    /// Total time of one attempt at a manifest, a token or a mount.
    pub request_timeout: Duration,
    /// Total time of a tag PUT.
    pub put_timeout: Duration,
    /// Hosts that may be connected to at any address; none: no list, every host that a spec names is allowed.
    pub allowed: Option<Vec<HostPattern>>,
    /// Networks with public addresses that count as internal.
    pub cluster_ranges: Vec<IpNet>,
    /// `HOST` or `HOST:PORT`, and the PEM file of a CA that is trusted there in addition to the system's.
    pub registry_ca: Vec<(String, PathBuf)>,
    /// Which proxies requests go through.
    pub proxies: Proxies,
    /// Host in a spec -> address to speak to instead, over plain HTTP.
    pub rewrite: HashMap<String, String>,
    /// What stands in the place of the network; none: nothing does.
    pub wire: Option<Wire>,
    /// Where requests are counted.
    pub metrics: Metrics,
}

/// Which proxies requests go through.
#[derive(Debug, Clone, Default)]
pub enum Proxies {
    /// Those of `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    #[default]
    Environment,
    /// This one, but for the hosts of `except` (as in `NO_PROXY`).
    Given {
        /// Its URL.
        proxy: String,
        /// A list as in `NO_PROXY`.
        except: String,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            qps: 40,
            qps_max: 1000,
            concurrency: 16,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_mins(1),
            request_timeout: Duration::from_mins(1),
            put_timeout: Duration::from_secs(8),
            allowed: None,
            cluster_ranges: Vec::new(),
            registry_ca: Vec::new(),
            proxies: Proxies::default(),
            rewrite: HashMap::new(),
            wire: None,
            metrics: Metrics::default(),
        }
    }
}
