//! What the cluster tells: unfinished requests as they come, change and leave.
//!
//! Only unfinished ones are watched; one that finishes leaves as a Delete, like one that is deleted. The first list rebuilds
//! the claims before anything is reconciled. A later list (the watch was interrupted) also shows what left meanwhile.

use std::collections::HashSet;
use std::pin::pin;

use futures::{Stream, StreamExt as _};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource as _};

use super::queue::{Named, named};
use crate::api::PromotionRequest;
use crate::engine::Engine;
use crate::machine::Phase;
use crate::store::{Key, Store};

type Guarded = DeserializeGuard<PromotionRequest>;

/// What is being listed.
#[derive(Default)]
struct Listing {
    objects: Vec<PromotionRequest>,
    uids: HashSet<String>,
}

/// The watch's events, of one namespace or of all.
pub fn events(
    client: Client,
    namespace: Option<&str>,
) -> impl Stream<Item = watcher::Result<Event<Guarded>>> {
    let api: Api<Guarded> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let finished = Phase::ALL.into_iter().filter(|phase| phase.is_finished());
    let selector: Vec<String> = finished
        .map(|phase| format!("status.phase!={}", phase.as_str()))
        .collect();
    let config = watcher::Config::default()
        .fields(&selector.join(","))
        .page_size(200);
    watch(api, config).default_backoff()
}

/// Follows the watch for ever, telling the engine. `ready` is called once, when the claims are rebuilt.
pub async fn follow<S: Store>(
    engine: Engine<S>,
    mut writer: Writer<Named>,
    events: impl Stream<Item = watcher::Result<Event<Guarded>>>,
    ready: impl FnOnce(),
) {
    let mut ready = Some(ready);
    let mut known: HashSet<String> = HashSet::new();
    let mut listing = Listing::default();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!("the watch was interrupted: {error}");
                continue;
            }
        };
        writer.apply_watcher_event(&trimmed(&event));
        match event {
            Event::Init => listing = Listing::default(),
            Event::InitApply(object) => {
                if let Some(object) = decoded(object) {
                    listing.uids.extend(object.metadata.uid.clone());
                    listing.objects.push(object);
                }
            }
            Event::InitDone => {
                let Listing { objects, uids } = std::mem::take(&mut listing);
                for uid in known.difference(&uids) {
                    engine.gone(uid);
                }
                known = uids;
                if let Some(ready) = ready.take() {
                    engine.rebuild(objects.iter());
                    ready();
                }
                for object in &objects {
                    engine.observe(object);
                    engine.trigger(Key::of(object));
                }
            }
            Event::Apply(object) => {
                let Some(object) = decoded(object) else {
                    continue;
                };
                known.extend(object.metadata.uid.clone());
                if engine.observe(&object) {
                    engine.trigger(Key::of(&object));
                }
            }
            Event::Delete(object) => {
                if let Some(uid) = object.meta().uid.as_deref() {
                    known.remove(uid);
                    engine.gone(uid);
                }
            }
        }
        // The watch has no end; without this pause a burst of events would keep the reconciles from running.
        tokio::task::yield_now().await;
    }
}

/// An object that can be read; one that cannot is left alone, and said so.
fn decoded(object: Guarded) -> Option<PromotionRequest> {
    match object.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let key = Key {
                namespace: invalid.metadata.namespace.clone().unwrap_or_default(),
                name: invalid.metadata.name.clone().unwrap_or_default(),
            };
            tracing::error!(request = %key, "cannot be read and is left alone: {}", invalid.error);
            None
        }
    }
}

fn trimmed(event: &Event<Guarded>) -> Event<Named> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(named(object.meta())),
        Event::Apply(object) => Event::Apply(named(object.meta())),
        Event::Delete(object) => Event::Delete(named(object.meta())),
    }
}
