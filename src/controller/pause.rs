//! The pause on a cluster: the ConfigMap `promotion-controller` in the Lease's namespace, key `paused`, read live.
//!
//! While it cannot be read, what was read last stays in force. Until it has been read once nothing is launched: a controller that starts
//! in the middle of an incident must not even start to work.

use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;

use super::watch::config_map;
use crate::engine::{Engine, Pause};
use crate::store::Store;
use crate::store::call::causes;

/// How the ConfigMap is named.
const NAME: &str = "promotion-controller";
/// Its key.
const KEY: &str = "paused";

/// Follows the ConfigMap for ever. Calls `known` once: when it was read, or could not be.
pub(super) async fn follow<S: Store>(
    engine: &Engine<S>,
    client: Client,
    namespace: &str,
    known: impl FnOnce(),
) {
    let place = format!("ConfigMap {namespace}/{NAME}");
    let mut known = Some(known);
    let mut maps = pin!(config_map(client, namespace, NAME));
    while let Some(map) = maps.next().await {
        match map {
            Ok(map) => engine.pause(read(map, &place)),
            Err(error) => {
                tracing::warn!("{place} cannot be read now: {}", causes(&error));
                if known.is_some() {
                    engine.pause(unread(&place));
                }
            }
        }
        if let Some(known) = known.take() {
            known();
        }
    }
}

/// The pause before the ConfigMap was read.
fn unread(place: &str) -> Pause {
    Pause::unknown(format!(
        "paused until {place} can be read (it need not exist); let the controller list and watch it"
    ))
}

fn read(map: Option<ConfigMap>, place: &str) -> Pause {
    let text = map.and_then(|map| map.data?.remove(KEY));
    Pause::parse(&text.unwrap_or_default(), place)
}
