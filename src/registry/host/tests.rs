#![allow(clippy::unwrap_used)]
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::admission::{Caller, Host, Needs};
use super::hosts::{Hosts, StreamPlaces};
use super::limits::{Connection, Lane, Limit, Limits, Rates, Zone};
use super::progress::Progress;
use crate::machine::Reason;
use crate::metrics::Metrics;
use crate::registry::auth::credential::Credential;

fn caller(progress: &Progress) -> Caller<'_> {
    Caller::new(progress, &Credential::anonymous())
}

async fn places(from: &Arc<Host>, to: &Arc<Host>, progress: &Progress) -> StreamPlaces {
    let hosts = Hosts::new(limits(), Metrics::default(), HashSet::new());
    let caller = caller(progress);
    hosts.stream_places((from, caller), (to, caller)).await
}

fn of(zone: Zone) -> Limit {
    Limit {
        zone,
        protocol: None,
        apart: false,
    }
}

fn limits() -> Limits {
    Limits {
        rates: Rates {
            qps: 40,
            qps_max: 1000,
        },
        concurrency: 4,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_mins(1),
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_rest_one_request_probes_and_the_others_wait_for_its_answer() {
    let host = Arc::new(Host::new("h", "h".into(), limits()));
    let progress = Progress::default();
    let first = host
        .admit(Zone::Content, false, None, caller(&progress))
        .await
        .unwrap();
    first.unavailable("h answered 503".into(), None, true);
    let start = Instant::now();
    let probe = host
        .admit(Zone::Content, false, None, caller(&progress))
        .await
        .unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    let other = tokio::spawn({
        let (host, progress) = (Arc::clone(&host), progress.clone());
        async move {
            host.admit(Zone::Content, false, None, caller(&progress))
                .await
                .map(|_| Instant::now())
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!other.is_finished());
    assert_eq!(
        progress.waiting().unwrap().reason,
        Reason::RegistryUnavailable
    );
    host.serves(of(Zone::Content), caller(&progress), probe);
    assert_eq!(
        other.await.unwrap().unwrap() - start,
        Duration::from_millis(1300)
    );
    assert_eq!(progress.waiting(), None);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_leaves_its_turn_to_the_next() {
    let host = Host::new("h", "h".into(), limits());
    let progress = Progress::default();
    let first = host
        .admit(Zone::Content, false, None, caller(&progress))
        .await
        .unwrap();
    first.unavailable("x".into(), None, true);
    drop(
        host.admit(Zone::Content, false, None, caller(&progress))
            .await
            .unwrap(),
    );
    let start = Instant::now();
    assert!(
        host.admit(Zone::Content, false, None, caller(&progress))
            .await
            .is_ok()
    );
    assert!(start.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn a_read_only_host_is_read_all_the_same() {
    let host = Host::new("h", "h".into(), limits());
    let progress = Progress::default();
    let write = host
        .admit(Zone::Content, true, None, caller(&progress))
        .await
        .unwrap();
    host.read_only(write);
    let start = Instant::now();
    assert!(
        host.admit(Zone::Content, false, None, caller(&progress))
            .await
            .is_ok()
    );
    assert!(start.elapsed().is_zero());
    let error = host
        .admit(Zone::Content, true, Some(start), caller(&progress))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::RegistryReadOnly);
    assert!(
        host.admit(Zone::Content, true, None, caller(&progress))
            .await
            .is_ok()
    );
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn streams_both_ways_between_two_hosts_never_wait_for_each_other() {
    let (a, b) = (
        Arc::new(Host::new("a", "a".into(), limits())),
        Arc::new(Host::new("b", "b".into(), limits())),
    );
    let mut tasks = Vec::new();
    for n in 0..60 {
        let (a, b) = (Arc::clone(&a), Arc::clone(&b));
        tasks.push(tokio::spawn(async move {
            let (from, to) = match n % 4 {
                0 => (&a, &b),
                1 => (&b, &a),
                2 => (&a, &a),
                _ => (&b, &b),
            };
            let progress = Progress::default();
            let _places = places(from, to, &progress).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }));
    }
    let all = futures::future::join_all(tasks);
    assert!(
        tokio::time::timeout(Duration::from_mins(1), all)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn streams_leave_room_for_a_request() {
    let (a, b) = (
        Arc::new(Host::new("a", "a".into(), limits())),
        Arc::new(Host::new("b", "b".into(), limits())),
    );
    let progress = Progress::default();
    let mut held = Vec::new();
    while let Ok(places) =
        tokio::time::timeout(Duration::from_secs(1), places(&a, &b, &progress)).await
    {
        held.push(places);
    }
    assert_eq!(held.len(), 3);
    let needs = Needs {
        lane: Lane::Manifests,
        placed: false,
        connection: Connection::Shared,
        puts: 0,
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(1), b.acquire(needs, caller(&progress)))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_one_credential_meets_rests_that_credential_alone() {
    let host = Arc::new(Host::new("h", "h".into(), limits()));
    let key = |name: &str| Credential::new(name.into(), "x".into(), "", "");
    let (evil, good) = (Progress::of("evil", "1"), Progress::of("good", "1"));
    let needs = Needs {
        lane: Lane::Manifests,
        placed: false,
        connection: Connection::Shared,
        puts: 0,
    };
    let met = async |caller: Caller<'_>| {
        let admission = host
            .admit(Zone::Content, false, None, caller)
            .await
            .unwrap();
        let place = host.acquire(needs, caller).await;
        let after = Some(Duration::from_mins(10));
        host.limits(of(Zone::Content), caller, &place, &admission, after);
    };
    // However many credentials a namespace has.
    let keys = ["a", "b", "c"].map(key);
    for key in &keys {
        met(Caller::new(&evil, key)).await;
    }
    let start = Instant::now();
    let own = key("good");
    let own = Caller::new(&good, &own);
    let admission = host.admit(Zone::Content, true, None, own).await.unwrap();
    assert!(start.elapsed().is_zero() && !host.is_backing_off(true));
    host.serves(of(Zone::Content), own, admission);
    let mine = Caller::new(&evil, &keys[0]);
    let patience = Some(start + Duration::from_secs(1));
    let error = host
        .admit(Zone::Content, false, patience, mine)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::RateLimited);
    // Others meet it as well: it is the host's.
    met(own).await;
    assert!(host.is_backing_off(false));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_token_endpoint_slows_tokens_alone() {
    let host = Arc::new(Host::new("h", "h".into(), limits()));
    let progress = Progress::default();
    let caller = caller(&progress);
    let admission = host.admit(Zone::Tokens, false, None, caller).await.unwrap();
    let needs = Needs {
        lane: Lane::Tokens,
        placed: false,
        connection: Connection::Shared,
        puts: 0,
    };
    let place = host.acquire(needs, caller).await;
    let after = Some(Duration::from_mins(10));
    host.limits(of(Zone::Tokens), caller, &place, &admission, after);
    let start = Instant::now();
    assert!(host.admit(Zone::Content, true, None, caller).await.is_ok());
    assert!(start.elapsed().is_zero() && !host.is_backing_off(true));
    let soon = Some(start + Duration::from_secs(1));
    let error = host.admit(Zone::Tokens, false, soon, caller).await;
    assert_eq!(error.unwrap_err().reason, Reason::RateLimited);
    assert_eq!(
        (host.rate(Zone::Content), host.rate(Zone::Tokens)),
        (Some(40.0), Some(20.0))
    );
}

/// Sends until the rate has grown; each is answered at once.
async fn grow(host: &Arc<Host>) {
    let send = || async {
        let progress = Progress::default();
        let caller = caller(&progress);
        let needs = Needs {
            lane: Lane::Manifests,
            placed: false,
            connection: Connection::Shared,
            puts: 0,
        };
        let admission = host
            .admit(Zone::Content, false, None, caller)
            .await
            .unwrap();
        let _place = host.acquire(needs, caller).await;
        host.serves(of(Zone::Content), caller, admission);
    };
    futures::future::join_all((0..200).map(|_| send())).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_or_a_pause_a_host_is_not_asked_faster_than_at_first() {
    let host = Arc::new(Host::new("h", "h".into(), limits()));
    let rate = || host.rate(Zone::Content).unwrap();
    grow(&host).await;
    assert!(rate() > 400.0, "{}", rate());
    let progress = Progress::default();
    let failed = host.admit(Zone::Content, false, None, caller(&progress));
    failed
        .await
        .unwrap()
        .unavailable("h answered 503".into(), None, true);
    let probe = host.admit(Zone::Content, false, None, caller(&progress));
    host.serves(of(Zone::Content), caller(&progress), probe.await.unwrap());
    assert!(rate() <= 40.0, "{}", rate());
    grow(&host).await;
    assert!(rate() > 400.0, "{}", rate());
    host.restart();
    assert!(rate() <= 40.0, "{}", rate());
}

#[test]
fn what_a_registry_leads_to_is_kept_apart_from_the_registry_there() {
    let hosts = Hosts::new(limits(), Metrics::default(), HashSet::new());
    let own = hosts.get("victim:443", None);
    let led = hosts.get("victim:443", Some("evil:443".into()));
    assert!(!Arc::ptr_eq(&own, &led));
    assert!(Arc::ptr_eq(&own, &hosts.get("victim:443", None)));
}
