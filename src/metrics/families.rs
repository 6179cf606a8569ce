//! Every family of metrics, declared once: its name as it is scraped, its labels, and what it says.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::Table;

/// Buckets, in seconds, for single calls: 5 ms to a minute.
const CALLS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];
/// Buckets, in seconds, for promotions and their parts: a quarter of a second to three hours.
const PROMOTIONS: [f64; 12] = [
    0.25, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 7200.0, 10_800.0,
];

/// What kind of family it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Only rises, from 0 at the start of the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution, with `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Type {
    /// As it stands in what is scraped.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A family as it is declared.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    /// The whole name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Type,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

macro_rules! families {
    ($($field:ident: $kind:ident $name:literal [$($label:ident)*] $help:literal;)*) => {
        /// Every family, in the order of the documents.
        pub const FAMILIES: &[Declared] = &[$(
            Declared { name: $name, kind: families!(@type $kind), labels: &[$(stringify!($label)),*], help: $help },
        )*];

        pub(super) struct Families {
            $(pub(super) $field: Table<{ <[&str]>::len(&[$(stringify!($label)),*]) }, families!(@metric $kind)>,)*
        }

        impl Families {
            /// All families, without series, registered to be encoded.
            pub(super) fn register(registry: &mut Registry) -> Self {
                $(
                    let family = families!(@new $kind);
                    // The encoder adds what ends the names of counters, and a full stop.
                    let name = $name.strip_suffix("_total").unwrap_or($name);
                    registry.register(name, $help, Family::clone(&family));
                    let $field = Table::new(&[$(stringify!($label)),*], family);
                )*
                Self { $($field),* }
            }

            /// Gauges say what is there at a scrape: what was there at the last one is forgotten.
            pub(super) fn forget_what_is_there(&self) {
                $(families!(@forget $kind self.$field);)*
            }
        }
    };
    (@type Counts) => { Type::Counter };
    (@type Constant) => { Type::Gauge };
    (@type There) => { Type::Gauge };
    (@type Calls) => { Type::Histogram };
    (@type Promotions) => { Type::Histogram };
    (@metric Counts) => { Counter };
    (@metric Constant) => { Gauge };
    (@metric There) => { Gauge };
    (@metric Calls) => { Histogram };
    (@metric Promotions) => { Histogram };
    (@new Calls) => { Family::new_with_constructor((|| Histogram::new(CALLS)) as fn() -> Histogram) };
    (@new Promotions) => { Family::new_with_constructor((|| Histogram::new(PROMOTIONS)) as fn() -> Histogram) };
    (@new $other:ident) => { Family::default() };
    (@forget There $self:ident.$field:ident) => { $self.$field.clear() };
    (@forget $other:ident $self:ident.$field:ident) => {};
}

// Counts: a counter. There: a gauge that is asked for at every scrape. Constant: one that is not. Calls, Promotions: histograms.
families! {
    promotions: Counts "promotion_controller_promotions_total" [phase reason]
        "Promotion requests that ended, by their last phase and its reason";
    promotion_duration: Promotions "promotion_controller_promotion_duration_seconds" [phase]
        "Time from the creation of a promotion request to its end, by its last phase";
    promotion_queue_duration: Promotions "promotion_controller_promotion_queue_duration_seconds" []
        "Time from the creation of a promotion request to its claim of the floats";
    image_phase_duration: Promotions "promotion_controller_image_phase_duration_seconds" [phase]
        "Time an image spent in a phase, if this process saw it enter";
    requests: There "promotion_controller_requests" [reason]
        "Unfinished promotion requests, by what they wait for or work on";
    images: There "promotion_controller_images" [phase]
        "Images of unfinished promotion requests, by phase";
    oldest_request_age: There "promotion_controller_oldest_request_age_seconds" []
        "Age of the oldest unfinished promotion request that is neither suspended nor at a gate";
    overdue: There "promotion_controller_overdue_seconds" []
        "How long the most overdue unfinished promotion request is past its deadline";
    foreign_moves: Counts "promotion_controller_foreign_moves_total" []
        "Floats that somebody else had moved";
    image_stream_tags: Counts "promotion_controller_image_stream_tags_total" [state]
        "Image stream tags that followed their floats (Set), were left to newer requests (Superseded), or could not be set (Failed)";
    operations_in_flight: There "promotion_controller_operations_in_flight" [step]
        "Operations in flight";
    operation_duration: Promotions "promotion_controller_operation_duration_seconds" [step result]
        "Duration of operations, including waits for registries, by step and result (done, waits, failed, refused, dropped)";
    attempts: Counts "promotion_controller_attempts_total" [reason]
        "Operations that failed and used an attempt of their image";
    events: Counts "promotion_controller_events_total" [reason]
        "Events published about promotion requests";
    swept_requests: Counts "promotion_controller_swept_requests_total" []
        "Finished promotion requests deleted after their time to live";
    reconcile_duration: Calls "promotion_controller_reconcile_duration_seconds" []
        "Duration of reconciles";
    reconcile_errors: Counts "promotion_controller_reconcile_errors_total" []
        "Reconciles that failed and are repeated";
    reconcile_queue_depth: There "promotion_controller_reconcile_queue_depth" []
        "Promotion requests that are due and wait to be reconciled";
    reconcile_queue_wait: Calls "promotion_controller_reconcile_queue_wait_seconds" []
        "Time a due promotion request waited to be reconciled";
    api_requests: Counts "promotion_controller_api_requests_total" [call result]
        "Calls to the API server, by call (load, save, secret, event, lease, definition, list, delete, stream) and result (ok, conflict, gone, refused, timeout, failed)";
    api_request_duration: Calls "promotion_controller_api_request_duration_seconds" [call]
        "Duration of calls to the API server, including retries";
    watch_interruptions: Counts "promotion_controller_watch_interruptions_total" []
        "Times the watch of promotion requests broke or could not start";
    leader: There "promotion_controller_leader" []
        "1 while this process leads";
    leadership_changes: Counts "promotion_controller_leadership_changes_total" [change]
        "Times this process began to lead (acquired) or stopped (lost, released)";
    registry_requests: Counts "promotion_controller_registry_requests_total" [host class code]
        "Requests sent to registries, by class (ping, token, manifest, tag, referrers, blob, upload) and code of the answer; error if there was none";
    registry_request_duration: Calls "promotion_controller_registry_request_duration_seconds" [host class]
        "Time from sending a request to a registry to the head of its answer";
    registry_copied: Counts "promotion_controller_registry_copied_bytes_total" [host]
        "Bytes of blobs read from a registry for copying";
    registry_waits: Counts "promotion_controller_registry_waits_total" [host reason]
        "Times a request to a registry waited to be sent again, by reason";
    registry_resting: There "promotion_controller_registry_resting" [host requests]
        "1 while the controller backs off from an unavailable registry, with all requests or with writes";
    registry_in_flight: There "promotion_controller_registry_requests_in_flight" [host]
        "Requests and blob streams in flight to a registry";
    registry_queued: There "promotion_controller_registry_requests_queued" [host]
        "Requests queued for a registry";
    registry_limit: There "promotion_controller_registry_requests_limit" [host]
        "Limit of requests and blob streams in flight to a registry; lower after a 429";
    registry_rate: There "promotion_controller_registry_requests_per_second" [host zone]
        "Requests a second that a registry is sent at most, for content (manifests and blobs) and for tokens; absent where there is no limit";
    paused: There "promotion_controller_paused" [scope]
        "1 while work is paused, everywhere (all) or at some registries (hosts)";
    freezes: There "promotion_controller_freezes" [state]
        "Freezes that are in force, and 1 while there is one that cannot be read, so that no float is let move";
    unusable_files: There "promotion_controller_unusable_files" []
        "Files of --policy and --registry-config that cannot be used as they are; their old content is in force";
    build_info: Constant "promotion_controller_build_info" [version]
        "1, by the version of the program";
}
