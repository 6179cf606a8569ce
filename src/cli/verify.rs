//! What a run does about floats that an earlier one has promoted: it looks at each once, and writes nothing.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::timeout;

use super::progress::Display;
use crate::api::{ImageStatus, PromotionRequest};
use crate::image::Float;
use crate::machine::Phase;
use crate::registry::{Keyring, Progress, RegistryClient};
use crate::store::Key;

/// How long looking at what was promoted before may take in all.
const LOOKS: Duration = Duration::from_mins(1);
/// How many of these looks are under way at once.
const LOOKS_AT_ONCE: usize = 8;

/// Looks once at each float of the requests that were Posted before this run; one on another digest is worth a warning.
pub(super) async fn verify_posted(
    registry: &RegistryClient,
    keyring: &Keyring,
    objects: &[PromotionRequest],
    display: &Display,
) {
    let posted = objects
        .iter()
        .filter(|o| o.phase().is_some_and(Phase::is_posted));
    let images = posted.flat_map(|o| {
        let images = o.status.as_ref().map(|s| s.images.as_slice());
        images
            .unwrap_or_default()
            .iter()
            .map(move |image| (Key::from(o), image))
    });
    let looks = futures::stream::iter(images)
        .map(|(key, image)| async move { (key, image, look(registry, keyring, image).await) })
        .buffered(LOOKS_AT_ONCE)
        .for_each(|(key, image, found)| async move {
            match found {
                Ok(()) => display.line(&format!("{key}  Posted    {}  is in place", image.float)),
                Err(message) => display.warn(&format!("warning: {key}: {message}")),
            }
        });
    if timeout(LOOKS, looks).await.is_err() {
        let seconds = LOOKS.as_secs();
        display.warn(&format!(
            "warning: looking at what was promoted before took {seconds} s; the rest is not looked at"
        ));
    }
}

/// Whether a float that was promoted is where it was put.
async fn look(
    registry: &RegistryClient,
    keyring: &Keyring,
    image: &ImageStatus,
) -> Result<(), String> {
    let float: Float = image.float.parse().map_err(|error| format!("{error}"))?;
    let unknown = |error: &dyn std::fmt::Display| format!("cannot look at {float}: {error}");
    let credential = keyring
        .credential(float.repository())
        .map_err(|error| unknown(&error))?;
    let progress = Progress::default();
    let found = registry
        .get_authoritative(float.repository(), float.tag(), &credential, &progress)
        .await
        .map_err(|error| unknown(&error))?;
    let source = image.source.as_ref().map(|s| s.digest.as_str());
    let source = source.unwrap_or_default();
    match found.map(|manifest| manifest.digest.to_string()) {
        Some(digest) if digest == source => Ok(()),
        Some(digest) => Err(format!(
            "{float} was promoted to {source} and is on {digest} now; another --state promotes it anew"
        )),
        None => Err(format!(
            "{float} was promoted to {source} and is gone; another --state promotes it anew"
        )),
    }
}
