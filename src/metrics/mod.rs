//! What is counted and measured, in Prometheus form.
//!
//! In come calls that say what happened; out comes the text of a scrape, which also asks whoever knows what is there now
//! ([`Metrics::at_scrape`]). Every family is declared once, in [`FAMILIES`]; `docs/metrics.md`, the alert rules and the dashboard
//! are compared with it by tests.
//!
//! Guaranteed: a label takes its values from a closed set, `host` apart, which takes [`HOSTS_MAX`] values besides the hosts that the
//! configuration names in full; nothing that a request, a registry or a Secret says becomes a label. A call takes no lock that is
//! held over I/O, and allocates only where its series is new.

mod families;
mod labels;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::registry::Registry;

use crate::api::references::ReferenceState;
use crate::machine::{OperationResult, Outcome, Phase, Reason, Step};
use families::Families;
pub use families::{Declared, FAMILIES, Type};
pub use labels::{Call, CallResult, Host, Sent};

/// How many hosts have a series of their own besides those that the configuration names in full.
pub const HOSTS_MAX: usize = 32;
/// What stands for all further ones.
const OTHER: &str = "other";
/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

type Probe = Box<dyn Fn(&Scrape<'_>) + Send + Sync>;

/// The metrics of one process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    families: Families,
    registry: Registry,
    hosts: Mutex<Hosts>,
    probes: Mutex<Vec<Probe>>,
}

#[derive(Default)]
struct Hosts {
    labels: HashMap<String, Host>,
    /// How many of them the configuration does not name.
    found: usize,
}

/// What is there now, as a probe reports it during a scrape.
pub struct Scrape<'a>(&'a Families);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        families
            .build_info
            .at([env!("CARGO_PKG_VERSION").into()])
            .set(1);
        families.begin();
        Self(Arc::new(Shared {
            families,
            registry,
            hosts: Mutex::default(),
            probes: Mutex::default(),
        }))
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Families {
    /// What has never happened is 0, so that the first time is a rise. Of registries only what is known of each from its first
    /// request on begins so: see [`Metrics::host`].
    fn begin(&self) {
        for (phase, reason) in ends() {
            self.promotions
                .begin([phase.as_str().into(), reason.as_str().into()]);
        }
        for phase in Phase::ALL {
            if phase.is_finished() {
                self.promotion_duration.begin([phase.as_str().into()]);
            } else if !phase.is_referencing() {
                self.image_phase_duration.begin([phase.as_str().into()]);
            }
        }
        for reason in Reason::ALL {
            self.events.begin([reason.as_str().into()]);
            if reason.uses_attempt() {
                self.attempts.begin([reason.as_str().into()]);
            }
        }
        for step in Step::ALL {
            for result in OperationResult::ALL {
                self.operation_duration
                    .begin([step.as_str().into(), result.as_str().into()]);
            }
        }
        for call in Call::ALL {
            self.api_request_duration.begin([call.as_str().into()]);
            for result in CallResult::ALL {
                self.api_requests
                    .begin([call.as_str().into(), result.as_str().into()]);
            }
        }
        for change in ["acquired", "lost", "released"] {
            self.leadership_changes.begin([change.into()]);
        }
        for state in ReferenceState::ALL {
            self.image_stream_tags.begin([state.as_str().into()]);
        }
        self.foreign_moves.begin([]);
        self.promotion_queue_duration.begin([]);
        self.reconcile_duration.begin([]);
        self.reconcile_errors.begin([]);
        self.reconcile_queue_wait.begin([]);
        self.swept_requests.begin([]);
        self.watch_interruptions.begin([]);
    }

    /// What is there is 0 where nobody says otherwise.
    fn nothing_is_there(&self) {
        for reason in Reason::ALL {
            if reason.is_of_the_unfinished() {
                self.requests.begin([reason.as_str().into()]);
            }
        }
        for phase in Phase::ALL.into_iter().filter(|p| !p.is_referencing()) {
            self.images.begin([phase.as_str().into()]);
        }
        for step in Step::ALL {
            self.operations_in_flight.begin([step.as_str().into()]);
        }
        for scope in ["all", "hosts"] {
            self.paused.begin([scope.into()]);
        }
        for state in ["in_force", "unreadable"] {
            self.freezes.begin([state.into()]);
        }
        for alone in [
            &self.oldest_request_age,
            &self.overdue,
            &self.reconcile_queue_depth,
            &self.leader,
            &self.unusable_files,
        ] {
            alone.begin([]);
        }
    }
}

/// Every way a request can end.
fn ends() -> impl Iterator<Item = (Phase, Reason)> {
    let failed = Reason::ALL.into_iter().filter(|reason| reason.can_fail());
    let others = [
        (Phase::Posted, Reason::Promoted),
        (Phase::Posted, Reason::Unchanged),
        (Phase::Planned, Reason::Planned),
        (Phase::Cancelled, Reason::Cancelled),
    ];
    others
        .into_iter()
        .chain(failed.map(|reason| (Phase::Failed, reason)))
}

impl Metrics {
    /// Asks `probe` for what is there at every scrape from now on.
    pub fn at_scrape(&self, probe: impl Fn(&Scrape<'_>) + Send + Sync + 'static) {
        self.0.probes.lock().push(Box::new(probe));
    }

    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let families = &self.0.families;
        // Held over the encoding too: two scrapes at once must not see each other's half of what is there.
        let probes = self.0.probes.lock();
        families.forget_what_is_there();
        families.nothing_is_there();
        for probe in probes.iter() {
            probe(&Scrape(families));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &self.0.registry);
        text
    }

    fn families(&self) -> &Families {
        &self.0.families
    }
}

// === promotions ===

impl Metrics {
    /// A request ended, so long after it was created.
    pub fn ended(&self, phase: Phase, reason: Reason, took: Option<Duration>) {
        let labels = [phase.as_str().into(), reason.as_str().into()];
        self.families().promotions.at(labels).inc();
        if let Some(took) = took {
            let whole = self
                .families()
                .promotion_duration
                .at([phase.as_str().into()]);
            whole.observe(took.as_secs_f64());
        }
    }

    /// A request claimed its floats, so long after it was created.
    pub fn claimed(&self, waited: Duration) {
        let queued = self.families().promotion_queue_duration.at([]);
        queued.observe(waited.as_secs_f64());
    }

    /// An image left a phase, so long after it entered it.
    pub fn left_phase(&self, phase: Phase, after: Duration) {
        let stay = self
            .families()
            .image_phase_duration
            .at([phase.as_str().into()]);
        stay.observe(after.as_secs_f64());
    }

    /// A float was found where neither this program nor its request put it.
    pub fn moved_by_somebody_else(&self) {
        self.families().foreign_moves.at([]).inc();
    }

    /// It is known what became of tags of image streams.
    pub fn referenced(&self, state: ReferenceState, tags: usize) {
        let series = self
            .families()
            .image_stream_tags
            .at([state.as_str().into()]);
        series.inc_by(tags.try_into().unwrap_or_default());
    }

    /// An operation ended.
    pub fn operation(&self, step: Step, outcome: &Outcome, took: Duration) {
        let labels = [step.as_str().into(), outcome.result().as_str().into()];
        let whole = self.families().operation_duration.at(labels);
        whole.observe(took.as_secs_f64());
        drop(whole);
        if let Some(reason) = outcome.failed_attempt() {
            self.families().attempts.at([reason.as_str().into()]).inc();
        }
    }

    /// An event was published.
    pub fn event_published(&self, reason: Reason) {
        self.families().events.at([reason.as_str().into()]).inc();
    }
}

// === the controller ===

impl Metrics {
    /// A reconcile ended.
    pub fn reconciled(&self, took: Duration, well: bool) {
        self.families()
            .reconcile_duration
            .at([])
            .observe(took.as_secs_f64());
        if !well {
            self.families().reconcile_errors.at([]).inc();
        }
    }

    /// A request's turn came, so long after it was due.
    pub fn reconcile_waited(&self, waited: Duration) {
        let wait = self.families().reconcile_queue_wait.at([]);
        wait.observe(waited.as_secs_f64());
    }

    /// A call to the API server was answered, or given up.
    pub fn called(&self, call: Call, result: CallResult, took: Duration) {
        let labels = [call.as_str().into(), result.as_str().into()];
        self.families().api_requests.at(labels).inc();
        let duration = self
            .families()
            .api_request_duration
            .at([call.as_str().into()]);
        duration.observe(took.as_secs_f64());
    }

    /// The watch broke off.
    pub fn interrupted(&self) {
        self.families().watch_interruptions.at([]).inc();
    }

    /// This process began to lead or ceased to.
    pub fn leadership(&self, change: &'static str) {
        self.families().leadership_changes.at([change.into()]).inc();
    }

    /// A finished request was deleted, its time to live being over.
    pub fn swept(&self) {
        self.families().swept_requests.at([]).inc();
    }
}

// === registries ===

impl Metrics {
    /// The label of a host, which is cheap to keep and to clone. `named`: the configuration names it in full, so that it has a
    /// series of its own however many there are.
    #[must_use]
    pub fn host(&self, address: &str, named: bool) -> Host {
        let shown = address.strip_suffix(":443").unwrap_or(address);
        let mut hosts = self.0.hosts.lock();
        if let Some(known) = hosts.labels.get(shown) {
            return known.clone();
        }
        if !named && hosts.found >= HOSTS_MAX {
            return Host::from(OTHER);
        }
        hosts.found += usize::from(!named);
        let host = Host::from(shown);
        hosts.labels.insert(shown.to_owned(), host.clone());
        self.families().registry_copied.begin([host.clone().into()]);
        for reason in [
            Reason::RateLimited,
            Reason::RegistryUnavailable,
            Reason::RegistryReadOnly,
        ] {
            self.families()
                .registry_waits
                .begin([host.clone().into(), reason.as_str().into()]);
        }
        host
    }

    /// A request was sent to a registry; `status` is what was answered, if anything was.
    pub fn asked(&self, host: &Host, sent: Sent, status: Option<u16>, took: Duration) {
        let (host, class) = (host.clone(), sent.as_str());
        let labels = [
            host.clone().into(),
            class.into(),
            labels::code(status).into(),
        ];
        self.families().registry_requests.at(labels).inc();
        let duration = self
            .families()
            .registry_request_duration
            .at([host.into(), class.into()]);
        duration.observe(took.as_secs_f64());
    }

    /// An answer of a registry makes its request wait.
    pub fn put_off(&self, host: &Host, reason: Reason) {
        let labels = [host.clone().into(), reason.as_str().into()];
        self.families().registry_waits.at(labels).inc();
    }

    /// Bytes of a blob were read from a registry, on their way to another.
    pub fn copied(&self, host: &Host, bytes: u64) {
        self.families()
            .registry_copied
            .at([host.clone().into()])
            .inc_by(bytes);
    }
}

// === what is there ===

impl Scrape<'_> {
    /// Unfinished requests with this reason.
    pub fn requests(&self, reason: Reason, count: usize) {
        self.0
            .requests
            .at([reason.as_str().into()])
            .inc_by(whole(count));
    }

    /// Images of unfinished requests in this phase.
    pub fn images(&self, phase: Phase, count: usize) {
        self.0
            .images
            .at([phase.as_str().into()])
            .inc_by(whole(count));
    }

    /// The age of the oldest unfinished request that is not suspended, and how far the one that is furthest past its deadline is
    /// past it.
    pub fn oldest(&self, age: Duration, overdue: Duration) {
        self.0.oldest_request_age.at([]).set(seconds(age));
        self.0.overdue.at([]).set(seconds(overdue));
    }

    /// Operations in flight.
    pub fn operations(&self, step: Step, count: usize) {
        self.0
            .operations_in_flight
            .at([step.as_str().into()])
            .inc_by(whole(count));
    }

    /// Requests that are due and whose turn has not come.
    pub fn due(&self, count: usize) {
        self.0.reconcile_queue_depth.at([]).inc_by(whole(count));
    }

    /// Files of the controller's own that cannot be used as they are.
    pub fn unusable_files(&self, count: usize) {
        self.0.unusable_files.at([]).set(whole(count));
    }

    /// Whether this process leads.
    pub fn leader(&self, leads: bool) {
        self.0.leader.at([]).set(leads.into());
    }

    /// What is paused: `all` or `hosts`.
    pub fn paused(&self, scope: &'static str) {
        self.0.paused.at([scope.into()]).set(1);
    }

    /// How many freezes are in force, and whether there is one that cannot be read.
    pub fn freezes(&self, in_force: usize, unreadable: bool) {
        self.0.freezes.at(["in_force".into()]).set(whole(in_force));
        self.0
            .freezes
            .at(["unreadable".into()])
            .set(unreadable.into());
    }

    /// One registry. Hosts that share a label are added up.
    pub fn registry(&self, host: &Host, state: RegistryState) {
        let RegistryState {
            rests,
            refuses_writes,
            in_flight,
            queued,
            limit,
        } = state;
        let label = || host.clone().into();
        for (requests, rests) in [("all", rests), ("writes", refuses_writes)] {
            self.0
                .registry_resting
                .at([label(), requests.into()])
                .inc_by(rests.into());
        }
        self.0
            .registry_in_flight
            .at([label()])
            .inc_by(whole(in_flight));
        self.0.registry_queued.at([label()]).inc_by(whole(queued));
        self.0.registry_limit.at([label()]).inc_by(whole(limit));
    }

    /// How many requests a second a zone of a registry is sent at most. Of hosts that share a label, added up.
    pub fn registry_rate(&self, host: &Host, zone: &'static str, rate: f64) {
        let series = self.0.registry_rate.at([host.clone().into(), zone.into()]);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "bounded by the configuration"
        )]
        series.inc_by(rate.round() as i64);
    }
}

/// What one registry is asked to bear now.
#[derive(Debug, Clone, Copy)]
pub struct RegistryState {
    /// It is not asked, but for one request at a time that finds out whether it is well again.
    pub rests: bool,
    /// It is not written to.
    pub refuses_writes: bool,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that wait for their turn.
    pub queued: usize,
    /// How many may be in flight.
    pub limit: usize,
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_named_in_full_always_have_a_label_and_of_the_others_the_first() {
        let metrics = Metrics::default();
        let shown = |address: &str, named: bool| {
            let host = metrics.host(address, named);
            metrics.copied(&host, 1);
        };
        for number in 0..2 * HOSTS_MAX {
            shown(&format!("10.0.0.1:{number}"), false);
        }
        shown("quay.io:443", true);
        shown("quay.io:443", false);
        shown("10.0.0.1:0", false);
        let text = metrics.render();
        let value = |host: &str| {
            let series = format!("registry_copied_bytes_total{{host=\"{host}\"}} ");
            let line = text.lines().find_map(|line| line.split_once(&series));
            line.and_then(|(_, value)| value.parse::<usize>().ok())
        };
        assert_eq!(value("quay.io"), Some(2));
        assert_eq!(value("10.0.0.1:0"), Some(2));
        assert_eq!(value("10.0.0.1:31"), Some(1));
        assert_eq!(value("10.0.0.1:32"), None);
        assert_eq!(value("other"), Some(HOSTS_MAX));
    }

    #[test]
    fn every_family_but_those_of_registries_is_there_from_the_first_scrape_on() {
        let text = Metrics::default().render();
        for family in FAMILIES.iter().filter(|f| !f.labels.contains(&"host")) {
            let name = match family.kind {
                Type::Histogram => format!("{}_count", family.name),
                Type::Counter | Type::Gauge => family.name.to_owned(),
            };
            let series: Vec<&str> = text
                .lines()
                .filter(|line| line.split(['{', ' ']).next() == Some(&name))
                .collect();
            assert!(!series.is_empty(), "{name}");
            let zero = series.iter().all(|line| line.ends_with(" 0"));
            assert_eq!(
                zero,
                family.name != "promotion_controller_build_info",
                "{series:?}"
            );
            let labelled = family.labels.iter().all(|label| {
                series
                    .iter()
                    .all(|line| line.contains(&format!("{label}=\"")))
            });
            assert!(labelled, "{series:?}");
        }
    }

    #[test]
    fn what_was_there_at_one_scrape_is_forgotten_at_the_next_and_counts_stay() {
        let metrics = Metrics::default();
        let host = metrics.host("quay.io:443", true);
        let there = Arc::new(Mutex::new(true));
        let seen = Arc::clone(&there);
        metrics.at_scrape(move |scrape| {
            if *seen.lock() {
                scrape.requests(Reason::Queued, 3);
                scrape.requests(Reason::Queued, 4);
            }
        });
        metrics.put_off(&host, Reason::RateLimited);
        let queued = "promotion_controller_requests{reason=\"Queued\"} 7";
        let limited = "registry_waits_total{host=\"quay.io\",reason=\"RateLimited\"} 1";
        let first = metrics.render();
        assert!(first.contains(queued) && first.contains(limited), "{first}");
        *there.lock() = false;
        let second = metrics.render();
        assert!(
            second.contains("requests{reason=\"Queued\"} 0") && second.contains(limited),
            "{second}"
        );
    }
}
