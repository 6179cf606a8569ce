//! Whether everything below a manifest is there, by reads alone.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt, stream};

use super::blob;
use super::client::RegistryClient;
use super::copy::{AT_ONCE, BLOBS_MAX, DEPTH_MAX};
use super::get::named;
use super::job::Job;
use super::manifest::{Blob, CHILDREN_MAX, Manifest};
use crate::image::{Digest, Reference};
use crate::machine::Reason;
use crate::registry::auth::credential::Remote;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;

/// What was found below a manifest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Below {
    /// Manifests that are there.
    pub manifests: usize,
    /// Blobs that are there.
    pub blobs: usize,
    /// How large these are.
    pub bytes: u64,
    /// What the registry says it does not have.
    pub missing: Vec<String>,
}

impl RegistryClient {
    /// Looks for everything that a manifest of a repository references: child manifests by GET, blobs by HEAD. Asks for tokens to pull
    /// only. Blobs that may be fetched from elsewhere are not missed.
    ///
    /// # Errors
    /// The error of a request, or that there is too much to look for: the bounds are those of a copy.
    pub async fn look_below(
        &self,
        at: Remote<'_>,
        manifest: &Manifest,
        progress: &Progress,
    ) -> Result<Below, Error> {
        let job = Job {
            writes: false,
            ..self.job(at, at, progress)?
        };
        let mut below = Below::default();
        let mut blobs: HashSet<Digest> = HashSet::new();
        let mut known: HashSet<Digest> = HashSet::new();
        let mut wanted: Vec<Blob> = Vec::new();
        let mut level = vec![manifest.clone()];
        for _ in 0..=DEPTH_MAX {
            let mut children = Vec::new();
            for manifest in level.drain(..) {
                let what = named(at.repository, &Reference::Digest(manifest.digest));
                let parts = manifest.parts(&what)?;
                wanted.extend(parts.blobs.into_iter().filter(|b| blobs.insert(b.digest)));
                children.extend(parts.children.into_iter().filter(|c| known.insert(*c)));
            }
            if wanted.len() > BLOBS_MAX || known.len() > CHILDREN_MAX {
                return Err(too_much(at, manifest));
            }
            let mut found = stream::iter(children)
                .map(|digest| async move {
                    let reference = Reference::Digest(digest);
                    let got = self.get(at.repository, &reference, at.credential, progress);
                    Ok::<_, Error>((named(at.repository, &reference), got.await?))
                })
                .buffered(AT_ONCE);
            while let Some((what, child)) = found.try_next().await? {
                match child {
                    Some(child) => {
                        below.manifests += 1;
                        level.push(child);
                    }
                    None => below.missing.push(what),
                }
            }
            if level.is_empty() {
                break;
            }
        }
        if !level.is_empty() {
            return Err(too_much(at, manifest));
        }
        let job = &job;
        let mut found = stream::iter(wanted)
            .map(|blob| async move { self.has_blob(job, blob).await.map(|has| (blob, has)) })
            .buffered(AT_ONCE);
        while let Some((blob, has)) = found.try_next().await? {
            if has {
                below.blobs += 1;
                below.bytes = below.bytes.saturating_add(blob.size);
            } else if !blob.elsewhere {
                below.missing.push(blob::named(at.repository, blob.digest));
            }
        }
        Ok(below)
    }
}

fn too_much(at: Remote<'_>, manifest: &Manifest) -> Error {
    let message = format!(
        "{}@{} consists of too much to look for",
        at.repository,
        manifest.digest.short()
    );
    Error::terminal(Reason::TooLarge, message)
}
