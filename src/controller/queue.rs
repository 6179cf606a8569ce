//! From triggers to reconciles: kube's applier, with a queue of our own.
//!
//! One reconcile per key runs at a time, and a reconcile can ask to be run again later. The same queue serves the cluster and the file.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::core::{ObjectMeta, PartialObjectMeta, PartialObjectMetaExt as _};
use kube::runtime::controller::{Action, Config, Error, applier};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher;

use crate::api::PromotionRequest;
use crate::engine::{Engine, Next, ReconcileError};
use crate::shares::Shares;
use crate::store::{Key, Store, key_of};

/// What the queue keeps of an object: its name is enough, because a reconcile loads it freshly.
pub type Named = PartialObjectMeta<PromotionRequest>;

/// Reconciles run at once, at most: each holds one object of at most 1.5 MB, several times.
const CONCURRENCY: usize = 16;
/// Reconciles of one namespace at once, however many are due: to decode a large object takes as long as several small reconciles.
const NAMESPACE_MAX: usize = 4;

/// Reconciles every key of `keys` whose object `names` knows, until `keys` ends.
pub async fn drive<S: Store>(
    engine: Engine<S>,
    names: reflector::Store<Named>,
    keys: impl Stream<Item = Key> + Send + 'static,
) {
    let requests = keys.map(|key| Ok::<_, Infallible>(object_ref(&key)));
    // kube's queue knows no namespaces, so all that are due wait here, each as no more than its name.
    let config = Config::default();
    let turns = Shares::new(CONCURRENCY, NAMESPACE_MAX);
    let queue_engine = engine.clone();
    applier(
        move |object: Arc<Named>, engine: Arc<Engine<S>>| {
            let turns = turns.clone();
            Box::pin(async move {
                let namespace = object.metadata.namespace.clone().unwrap_or_default();
                let _turn = turns.enter(namespace).await;
                Box::pin(reconcile(object, engine)).await
            })
        },
        |_: Arc<Named>, _: &ReconcileError, _: Arc<Engine<S>>| {
            Action::requeue(Duration::from_millis(rand::random_range(1_000..5_000)))
        },
        Arc::new(engine),
        names,
        requests,
        config,
    )
    .for_each(|result| {
        match result {
            Ok(_) => {}
            // It ended, or was deleted, between the trigger and its turn.
            Err(Error::ObjectNotFound(object)) => queue_engine.dequeue_missing(&Key {
                namespace: object.namespace.clone().unwrap_or_default(),
                name: object.name.clone(),
            }),
            Err(error) => tracing::warn!("{error}"),
        }
        std::future::ready(())
    })
    .await;
}

async fn reconcile<S: Store>(
    object: Arc<Named>,
    engine: Arc<Engine<S>>,
) -> Result<Action, ReconcileError> {
    let key = key_of(&object.metadata);
    Ok(match engine.reconcile(&key).await? {
        Next::Triggered => Action::await_change(),
        Next::After(after) => Action::requeue(after),
    })
}

fn object_ref(key: &Key) -> ObjectRef<Named> {
    let named = ObjectRef::new(&key.name);
    if key.namespace.is_empty() {
        named
    } else {
        named.within(&key.namespace)
    }
}

/// The little that [`Named`] keeps of an object's metadata.
#[must_use]
pub fn named(metadata: &ObjectMeta) -> Named {
    let kept = ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectMeta::default()
    };
    kept.into_response_partial()
}

/// A reader that knows these objects and no others, for a store without a watch.
#[must_use]
pub fn names_of(objects: &[PromotionRequest]) -> reflector::Store<Named> {
    let (reader, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply(named(&object.metadata)));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    reader
}
