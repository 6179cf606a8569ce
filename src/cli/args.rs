//! The arguments that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::engine;
use crate::policy::{HostPattern, Policy};
use crate::registry::{BuildError, Settings};

/// How registries are spoken to.
#[derive(Debug, Clone, Args)]
pub(super) struct RegistryArgs {
    /// Use plain HTTP with this registry (repeatable).
    #[arg(long, value_name = "HOST[:PORT]")]
    plain_http: Vec<String>,
    /// A registry that may be contacted; * matches within a label, ** across dots (repeatable). The controller contacts no
    /// other; promote contacts any if there is no list. Hosts at internal addresses, or behind a proxy, must be listed
    /// literally, token and storage hosts included.
    #[arg(long, value_name = "PATTERN")]
    pub(super) allow_registry: Vec<HostPattern>,
    /// Trust the CA certificates of this PEM file at this registry only, besides the system's (repeatable).
    #[arg(long, value_name = "HOST[:PORT]=FILE", value_parser = host_and_file)]
    registry_ca: Vec<(String, PathBuf)>,
    /// A network with public addresses that is internal, such as that of pods or services: no registry may lead there
    /// (repeatable).
    #[arg(long, value_name = "CIDR")]
    cluster_range: Vec<IpNet>,
    /// Requests per second to each registry; auto: begin at 40 and find what it bears; 0: no limit.
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = qps)]
    registry_qps: Qps,
    /// The most requests per second that auto tries.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    registry_qps_max: u32,
    /// Requests in flight to each registry.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(3..=256))]
    registry_concurrency: u16,
    /// How long a tag write may take to show in reads; its timeout is two seconds less.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u8).range(3..=12))]
    settle_seconds: u8,
    /// How long a tag write may still land after it was given up unanswered; nobody else gets its float before.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u8).range(15..=120))]
    late_seconds: u8,
    /// A working request is saved at most this often.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=60))]
    status_interval: u8,
}

/// Requests per second.
#[derive(Debug, Clone, Copy)]
enum Qps {
    /// As many as the registry bears.
    Auto,
    Fixed(u32),
}

impl RegistryArgs {
    pub(super) fn engine(&self) -> engine::Settings {
        engine::Settings {
            settle: Duration::from_secs(self.settle_seconds.into()),
            late: Duration::from_secs(self.late_seconds.into()),
            status_interval: Duration::from_secs(self.status_interval.into()),
            namespace_max: 0,
        }
    }

    pub(super) fn registry(&self, policy: &Policy) -> Settings {
        let default = Settings::default();
        let (qps, qps_max) = match self.registry_qps {
            Qps::Auto => (
                default.qps.min(self.registry_qps_max),
                self.registry_qps_max,
            ),
            Qps::Fixed(qps) => (qps, qps),
        };
        Settings {
            plain_http: self.plain_http.clone(),
            allowed: policy.registries.clone(),
            cluster_ranges: self.cluster_range.clone(),
            registry_ca: self.registry_ca.clone(),
            qps,
            qps_max,
            concurrency: self.registry_concurrency.into(),
            put_timeout: engine::leadership::write_timeout(self.engine().settle),
            ..default
        }
    }

    /// Only the registries of the list.
    pub(super) fn listed(&self) -> Policy {
        Policy {
            registries: Some(self.allow_registry.clone()),
        }
    }

    /// The registries of the list, or all where there is none.
    pub(super) fn listed_or_all(&self) -> Policy {
        if self.allow_registry.is_empty() {
            Policy::default()
        } else {
            self.listed()
        }
    }
}

fn qps(text: &str) -> Result<Qps, &'static str> {
    if text == "auto" {
        return Ok(Qps::Auto);
    }
    let fixed = text.parse().map(Qps::Fixed);
    fixed.map_err(|_| "write auto, a number of requests per second, or 0 for no limit")
}

fn host_and_file(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((host, file)) if !host.is_empty() && !file.is_empty() => {
            Ok((host.into(), file.into()))
        }
        _ => Err("write HOST=FILE or HOST:PORT=FILE"),
    }
}

/// Says which flag has to be corrected.
pub(super) fn unusable(error: &BuildError) -> String {
    match error {
        BuildError::Address(_) => format!("--plain-http: {error}; correct it"),
        BuildError::Client(_) | BuildError::Ca { .. } => error.to_string(),
    }
}
