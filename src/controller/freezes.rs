//! The freezes on a cluster: the ConfigMap `promotion-controller-freezes` in the Lease's namespace, key `freezes`, read live.
//!
//! The leader says on the Lease which version it follows, once no float that is frozen there can be let move any more: `freeze` waits for
//! that. While the ConfigMap cannot be read, what was read last stays in force; until it has been read once no float is let move.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;

use super::freeze_map::{KEY, NAME};
use super::watch::config_map;
use crate::engine::Engine;
use crate::engine::freeze::Freezes;
use crate::store::Store;
use crate::store::call::causes;

/// The clock is asked this often whether a freeze has ended: it may be set.
const END_AGAIN: Duration = Duration::from_secs(30);

/// The version that is followed, for whoever renews the Lease.
pub(super) type Followed = watch::Sender<Option<String>>;

/// Follows the ConfigMap for ever. Calls `known` once: when it was read, or could not be.
pub(super) async fn follow<S: Store>(
    engine: &Engine<S>,
    client: Client,
    namespace: &str,
    followed: &Followed,
    known: impl FnOnce(),
) {
    let place = format!("ConfigMap {namespace}/{NAME}");
    let mut known = Some(known);
    let mut freezes = Freezes::default();
    // Which version is read and not yet followed.
    let mut read_last = None;
    let mut maps = pin!(config_map(client, namespace, NAME));
    loop {
        let ends = ended(freezes.next_end(Timestamp::now()));
        let map = tokio::select! {
            biased;
            map = maps.next() => map,
            () = ends => {
                engine.reconsider();
                continue;
            }
            () = engine.freezes_followed(), if read_last.is_some() => {
                followed.send_replace(read_last.take());
                continue;
            }
        };
        let map = match map {
            None => return,
            Some(Ok(map)) => map.unwrap_or_default(),
            Some(Err(error)) => {
                tracing::warn!("{place} cannot be read now: {}", causes(&error));
                if let Some(known) = known.take() {
                    engine.freeze(Freezes::unknown(format!(
                        "no float is let move until {place} can be read (it need not exist); let the controller list and watch it"
                    )));
                    known();
                }
                continue;
            }
        };
        let text = map.data.and_then(|mut data| data.remove(KEY));
        freezes = Freezes::parse(&text.unwrap_or_default(), &place);
        engine.freeze(freezes.clone());
        read_last = Some(map.metadata.resource_version.unwrap_or_default());
        if let Some(known) = known.take() {
            known();
        }
    }
}

/// Waits for an end, by the time of day.
async fn ended(end: Option<Timestamp>) {
    let Some(end) = end else {
        return std::future::pending().await;
    };
    loop {
        let left = Timestamp::now().duration_until(end);
        match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(END_AGAIN)).await,
            _ => return,
        }
    }
}
