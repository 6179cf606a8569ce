//! What is promoted, and whether it was: one float and its source, as all sections and all ways of promoting take it.

use std::fmt::Write as _;
use std::path::Path;

use quaylike::{ImageSpec, Shape};
use serde_json::json;

use crate::measure::Task;
use crate::served::{Served, Snapshot};

/// Where the floats are.
pub const FLOATS: &str = "ci";
/// Where their sources are, on the same registry.
pub const SOURCES: &str = "src/app";
/// The most images of one request.
const IMAGES_MAX: usize = 250;
/// Layers of one image; its config is one more blob.
const LAYERS: usize = 3;

/// A float with the image that is to be promoted to it.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// The float's tag.
    pub tag: String,
    /// The digest to be promoted.
    pub new: String,
    /// The digest that the float has.
    pub old: String,
}

/// A small image: 4 blobs, 8 in an index of two.
pub fn image(shape: Shape, seed: &str) -> ImageSpec {
    let mut spec = ImageSpec::new(shape, seed);
    spec.layers = LAYERS;
    spec
}

/// Puts existing floats and their sources into a registry. Nothing is shared between images.
pub async fn seed(served: &Served, shape: Shape, floats: usize) -> Vec<Promotion> {
    let mut promotions = Vec::new();
    for number in 0..floats {
        let tag = format!("t{number:03}");
        let (new, old) = (format!("new {number}"), format!("old {number}"));
        let new = served.seed(SOURCES, &tag, &image(shape, &new)).await;
        let old = served.seed(FLOATS, &tag, &image(shape, &old)).await;
        promotions.push(Promotion { tag, new, old });
    }
    promotions
}

/// Whether every float and every pin is what the promotion promises, and nothing else was tagged.
pub fn check(tags: &Snapshot, promotions: &[Promotion]) -> Result<(), String> {
    let tags = tags.get(FLOATS).ok_or("the floats are gone")?;
    for Promotion { tag, new, old } in promotions {
        let expected = [
            (tag.clone(), new),
            (format!("{tag}_incoming"), new),
            (format!("{tag}__post1"), new),
            (format!("{tag}__pre"), old),
        ];
        for (name, digest) in expected {
            if tags.get(&name) != Some(digest) {
                let found = tags.get(&name);
                return Err(format!("{name} is {found:?} and not {digest}"));
            }
        }
        let pruned: Vec<_> = tags
            .iter()
            .filter(|(name, _)| is_prune(name, tag))
            .collect();
        if pruned.len() != 1 || pruned[0].1 != old {
            return Err(format!(
                "the prune tags of {tag} are {pruned:?}, not one at {old}"
            ));
        }
    }
    if tags.len() != 5 * promotions.len() {
        let (found, expected) = (tags.len(), 5 * promotions.len());
        return Err(format!("{found} tags, not {expected}"));
    }
    Ok(())
}

fn is_prune(name: &str, float: &str) -> bool {
    let stamp = name.strip_suffix(&format!("_prune_{float}"));
    stamp.is_some_and(|stamp| stamp.len() == 14 && stamp.bytes().all(|b| b.is_ascii_digit()))
}

/// The requests of these (source, float) pairs as a file: as many documents as needed.
pub fn requests(images: &[(String, String)]) -> String {
    let mut text = String::new();
    for (number, images) in images.chunks(IMAGES_MAX).enumerate() {
        write!(
            text,
            "---\napiVersion: ci.openshift.io/v1alpha1\nkind: PromotionRequest\n\
             metadata: {{name: bench-{number}}}\nspec:\n  images:\n"
        )
        .unwrap();
        for (source, float) in images {
            writeln!(text, "  - {{source: '{source}', float: '{float}'}}").unwrap();
        }
    }
    text
}

/// The (source, float) pairs of promotions within `host`.
pub fn pairs(host: &str, promotions: &[Promotion]) -> Vec<(String, String)> {
    promotions
        .iter()
        .map(|Promotion { tag, new, .. }| {
            let source = format!("{host}/{SOURCES}@{new}");
            (source, format!("{host}/{FLOATS}:{tag}"))
        })
        .collect()
}

/// `promote` on `images`, whose registries all speak plain HTTP. Writes its files to `folder`.
pub fn promote(
    folder: &Path,
    images: &[(String, String)],
    hosts: &[&str],
    arguments: &[&str],
) -> Task {
    command("promote", folder, images, hosts, arguments)
}

/// The same of `stage`.
pub fn stage(
    folder: &Path,
    images: &[(String, String)],
    hosts: &[&str],
    arguments: &[&str],
) -> Task {
    command("stage", folder, images, hosts, arguments)
}

fn command(
    name: &str,
    folder: &Path,
    images: &[(String, String)],
    hosts: &[&str],
    arguments: &[&str],
) -> Task {
    std::fs::write(folder.join("requests.yaml"), requests(images)).unwrap();
    let mut all = vec![name, "-f", "requests.yaml"];
    all.extend(["--registry-config", "config.json"]);
    for host in hosts {
        all.extend(["--plain-http", host]);
    }
    all.extend(arguments);
    Task::promotion_controller(&all)
}

/// The credentials file `config.json`, where every tool looks for it: with one entry, or none.
pub fn log_in(folder: &Path, host: &str, account: Option<(&str, &str)>) {
    let auths = account.map_or_else(
        || json!({}),
        |(user, password)| {
            let auth = basic(user, password);
            json!({host: {"username": user, "password": password, "auth": auth}})
        },
    );
    let config = json!({ "auths": auths });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}
