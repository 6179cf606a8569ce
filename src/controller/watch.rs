//! What the cluster reports: unfinished requests as they come, change and leave.
//!
//! Only unfinished ones are watched; one that finishes leaves as a Delete, like one that is deleted. The first list rebuilds
//! the claims before anything is reconciled. A later list (the watch was interrupted) also shows what left meanwhile.
//!
//! A silent watch may be dead. The server is asked to end each watch after [`WATCH`] seconds; where that end does not arrive, the
//! watch is given up five seconds later. A list, and the start of a watch, are given up after [`SILENCE`]. So when a server, or something
//! on the way to it, swallows everything, what happened meanwhile is known within a minute after that is over or a new connection avoids
//! it.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::runtime::reflector::store::Writer;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource as _};
use serde::de::DeserializeOwned;

use super::health::Health;
use super::installation::{APPLY, DEFINITION};
use super::queue::{Named, named};
use crate::engine::Engine;
use crate::store::call::causes;
use crate::store::requests::unfinished;
use crate::store::{Key, Store, Stored, key_of};

/// Objects on a page. A page is in memory as a whole, as text, and an object may have 1.5 MB; less of it is kept.
const PAGE: u32 = 16;

/// How long a watch lasts, in seconds: the server ends it then, or we do, five seconds later.
const WATCH: u32 = 30;
/// A connection to the API server is given up after so long a silence: longer than a watch without events.
pub const SILENCE: Duration = Duration::from_secs(40);

/// How long it may take to find out whether anything was ever led.
const LED: Duration = Duration::from_secs(5);

/// What is being listed.
#[derive(Default)]
struct Listing {
    /// No more is kept of them: thousands of objects at once would be too much.
    keys: Vec<Key>,
    uids: HashSet<String>,
}

/// The watch's events, of one namespace or of all.
pub fn events(
    client: Client,
    namespace: Option<&str>,
) -> impl Stream<Item = watcher::Result<Event<Stored>>> + use<> {
    let api: Api<Stored> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    lasting(api, &unfinished())
}

/// Whether a leader has ever saved the status of a request that still exists. Unless that is known, it may have.
pub(super) async fn was_led(client: &Client, namespace: Option<&str>) -> bool {
    let api: Api<Stored> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let params = ListParams::default().fields("status.phase!=").limit(1);
    match tokio::time::timeout(LED, api.list_metadata(&params)).await {
        Ok(Ok(list)) => !list.items.is_empty(),
        Ok(Err(_)) | Err(_) => true,
    }
}

/// A watch that ends only with the process.
pub(super) fn lasting<K>(
    api: Api<K>,
    fields: &str,
) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default()
        .fields(fields)
        .page_size(PAGE)
        .timeout(WATCH);
    listing_anew(move || watch(api.clone(), config.clone()).boxed()).backoff(Pause)
}

/// A ConfigMap as it is, whenever it changes: none where there was none from the start. A deleted one has no data.
pub(super) fn config_map(
    client: Client,
    namespace: &str,
    name: &str,
) -> impl Stream<Item = watcher::Result<Option<ConfigMap>>> + use<> {
    let events = lasting(
        Api::namespaced(client, namespace),
        &format!("metadata.name={name}"),
    );
    let mut listed = None;
    events.filter_map(move |event| {
        let seen = match event {
            Ok(Event::Init) => {
                listed = None;
                None
            }
            Ok(Event::InitApply(map)) => {
                listed = Some(map);
                None
            }
            Ok(Event::InitDone) => Some(Ok(listed.take())),
            Ok(Event::Apply(map)) => Some(Ok(Some(map))),
            Ok(Event::Delete(map)) => Some(Ok(Some(ConfigMap { data: None, ..map }))),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(seen)
    })
}

/// Starts again with a list where a watch is refused because its resourceVersion is too old or its kind is not served. kube does so only
/// where the refusal is an event of a watch that has started.
fn listing_anew<'a, T: 'a>(
    begin: impl Fn() -> BoxStream<'a, watcher::Result<T>> + 'a,
) -> impl Stream<Item = watcher::Result<T>> + 'a {
    futures::stream::unfold((begin, None), async |(begin, current)| {
        let mut events = current.unwrap_or_else(&begin);
        let event = events.next().await?;
        let current = (!is_refused(&event)).then_some(events);
        Some((event, (begin, current)))
    })
}

fn is_refused<T>(event: &watcher::Result<T>) -> bool {
    matches!(
        event,
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if matches!(status.code, 404 | 410)
    )
}

/// The pause after an error. It does not grow: this is the cluster's one watch, and everybody waits for it.
struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(rand::random_range(500..3_000)))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}

/// Follows the watch for ever, telling the engine. `ready` is called once, when the claims are rebuilt.
pub async fn follow<S: Store>(
    engine: Engine<S>,
    mut writer: Writer<Named>,
    events: impl Stream<Item = watcher::Result<Event<Stored>>>,
    health: &Health,
    ready: impl FnOnce(),
) {
    let mut ready = Some(ready);
    let mut said = String::new();
    let mut known: HashSet<String> = HashSet::new();
    let mut listing = Listing::default();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                health.interrupted();
                engine.metrics().interrupted();
                let why = why(&error);
                // It is asked again every second or two, and may be refused for hours.
                if why == said {
                    tracing::debug!("the watch was interrupted: {why}");
                } else {
                    tracing::warn!("the watch was interrupted: {why}");
                    said = why;
                }
                continue;
            }
        };
        // The start of a list is no answer yet.
        if !matches!(event, Event::Init) {
            health.heard();
            said.clear();
        }
        writer.apply_watcher_event(&trimmed(&event));
        match event {
            Event::Init => listing = Listing::default(),
            Event::InitApply(object) => {
                listing.uids.extend(object.meta().uid.clone());
                // Also where this list breaks off and the next one no longer shows it.
                known.extend(object.meta().uid.clone());
                observe(&engine, &object);
                listing.keys.push(key_of(object.meta()));
            }
            Event::InitDone => {
                let Listing { keys, uids } = std::mem::take(&mut listing);
                for uid in known.difference(&uids) {
                    engine.forget(uid);
                }
                known = uids;
                if let Some(ready) = ready.take() {
                    engine.rebuild();
                    ready();
                }
                for key in keys {
                    engine.trigger(key);
                }
            }
            Event::Apply(object) => {
                known.extend(object.meta().uid.clone());
                if observe(&engine, &object) {
                    engine.trigger(key_of(object.meta()));
                }
            }
            Event::Delete(object) => {
                if let Some(uid) = object.meta().uid.as_deref() {
                    known.remove(uid);
                    engine.forget(uid);
                }
            }
        }
        // The watch has no end; without this pause a burst of events would keep the reconciles from running.
        tokio::task::yield_now().await;
    }
}

/// Why a watch was interrupted, and what to do where that is known.
fn why(error: &watcher::Error) -> String {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) =
        error
    else {
        return causes(error);
    };
    match cause {
        kube::Error::Api(status) if status.code == 404 => {
            format!("the definition {DEFINITION} is not served: {APPLY}")
        }
        _ => causes(error),
    }
}

/// Whether a reconcile is due. A request that cannot be read still counts: it keeps the floats that it may have started on.
fn observe<S: Store>(engine: &Engine<S>, object: &Stored) -> bool {
    match object {
        Stored::Read(object) => engine.observe(object),
        Stored::Unreadable(object) => engine.observe_unreadable(object),
    }
}

fn trimmed(event: &Event<Stored>) -> Event<Named> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(named(object.meta())),
        Event::Apply(object) => Event::Apply(named(object.meta())),
        Event::Delete(object) => Event::Delete(named(object.meta())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;

    use super::*;

    fn refused(code: u16) -> watcher::Result<&'static str> {
        let status = Status::failure("no", "Expired").with_code(code);
        let error = kube::Error::Api(status.boxed());
        Err(watcher::Error::WatchStartFailed(error))
    }

    #[tokio::test]
    async fn a_refused_watch_begins_with_a_list_and_a_broken_one_goes_on() {
        let begun = AtomicUsize::new(0);
        let runs = || {
            let events = match begun.fetch_add(1, Ordering::Relaxed) {
                0 => vec![
                    Ok("list"),
                    refused(503),
                    Ok("event"),
                    refused(410),
                    Ok("deaf"),
                ],
                1 => vec![Ok("list"), refused(404), Ok("deaf")],
                _ => vec![Ok("list")],
            };
            futures::stream::iter(events).boxed()
        };
        let heard: Vec<_> = listing_anew(runs).map(Result::ok).collect().await;
        let wanted = [
            Some("list"),
            None,
            Some("event"),
            None,
            Some("list"),
            None,
            Some("list"),
        ];
        assert_eq!(heard, wanted);
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
