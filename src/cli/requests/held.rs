//! What a registry holds on a float and beside it, read with the caller's credentials.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::super::args::{RegistryArgs, unusable};
use super::super::credentials;
use super::reach::Stop;
use crate::image::{Digest, Float, Reference, Tag};
use crate::machine::Bytes;
use crate::registry::{Below, Credential, Error, Keyring, Manifest, Progress, RegistryClient};

/// Whether registries are asked, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct LookArgs {
    /// Ask no registry: go by what requests tell.
    #[arg(long)]
    no_registry: bool,
    /// Credentials, a dockerconfigjson [default: `$REGISTRY_AUTH_FILE`, else the usual podman and docker files].
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Looks at registries as the caller.
pub(super) struct Eyes {
    client: RegistryClient,
    keyring: Keyring,
}

/// Looks at one float's repository.
pub(super) struct Looker {
    client: RegistryClient,
    credential: Credential,
    float: Float,
}

/// What was found there.
#[derive(Default)]
pub(super) struct Content {
    /// The float: its digest, its media type, and what is below it. None: it is not there, or was not looked for.
    float: Option<(Digest, String, Option<Below>)>,
    /// The other tags of the float, as far as they are there.
    others: Vec<(Tag, Digest)>,
    /// Whether the registry was asked.
    asked: bool,
    /// What could not be read.
    pub(super) error: Option<String>,
}

// === impl Eyes ===

impl LookArgs {
    /// None: no registry is to be asked.
    pub(super) fn eyes(self) -> Result<Option<Eyes>, Stop> {
        let Self {
            no_registry,
            registry_config,
            registry,
        } = self;
        if no_registry {
            return Ok(None);
        }
        let keyring = credentials::find(registry_config.as_deref()).map_err(Stop::Input)?;
        let settings = registry.registry(&registry.listed_or_all());
        let client = RegistryClient::new(settings);
        let client = client.map_err(|error| Stop::Input(unusable(&error)))?;
        Ok(Some(Eyes { client, keyring }))
    }
}

impl Eyes {
    /// For this float, as whom the keyring says.
    pub(super) fn at(&self, float: &Float) -> Result<Looker, Stop> {
        let credential = self.keyring.credential(float.repository());
        let credential = credential.map_err(|error| Stop::Input(error.to_string()))?;
        Ok(Looker {
            client: self.client.clone(),
            credential,
            float: float.clone(),
        })
    }
}

// === impl Looker ===

impl Looker {
    /// What the float is on.
    pub(super) async fn now(&self) -> Result<Option<String>, Stop> {
        let found = self
            .manifest(&Reference::Tag(self.float.tag().clone()))
            .await;
        let found = found.map_err(|error| {
            let float = &self.float;
            Stop::Failed(format!(
                "cannot look at {float}: {error}; --no-registry goes by what requests tell"
            ))
        })?;
        Ok(found.map(|manifest| manifest.digest.to_string()))
    }

    /// Refuses what is not in the float's repository.
    pub(super) async fn require(&self, reference: &Reference) -> Result<(), Stop> {
        let repository = self.float.repository();
        let found = self.manifest(reference).await;
        let found = found.map_err(|error| {
            Stop::Failed(format!(
                "cannot look for {reference} in {repository}: {error}"
            ))
        })?;
        let missing = || Stop::Input(format!("{repository} does not have {reference}"));
        found.map(drop).ok_or_else(missing)
    }

    /// What a tag is on.
    pub(super) async fn digest(&self, tag: &Tag) -> Result<Option<Digest>, Error> {
        let found = self.manifest(&Reference::Tag(tag.clone())).await?;
        Ok(found.map(|manifest| manifest.digest))
    }

    async fn manifest(&self, reference: &Reference) -> Result<Option<Manifest>, Error> {
        let (repository, progress) = (self.float.repository(), Progress::default());
        self.client
            .get(repository, reference, &self.credential, &progress)
            .await
    }

    /// What the float is on, whether all of that is there, and what its other tags are on.
    pub(super) async fn content(&self) -> Content {
        let mut content = Content {
            asked: true,
            ..Content::default()
        };
        if let Err(error) = self.look(&mut content).await {
            content.error = Some(error.to_string());
        }
        content
    }

    async fn look(&self, content: &mut Content) -> Result<(), Error> {
        if let Some(manifest) = self
            .manifest(&Reference::Tag(self.float.tag().clone()))
            .await?
        {
            let (digest, media_type) = (manifest.digest, manifest.media_type.clone());
            content.float = Some((digest, media_type.clone(), None));
            let at = self.credential.at(self.float.repository());
            let progress = Progress::default();
            let below = self.client.look_below(at, &manifest, &progress).await?;
            content.float = Some((digest, media_type, Some(below)));
        }
        for tag in [self.float.incoming(), self.float.pre(), self.float.post1()] {
            if let Some(digest) = self.digest(&tag).await? {
                content.others.push((tag, digest));
            }
        }
        Ok(())
    }
}

// === impl Content ===

impl Content {
    pub(super) fn is_there(&self) -> bool {
        self.float.is_some()
    }

    /// Whether what was asked for could be read, and nothing is missing below the float.
    pub(super) fn is_sound(&self) -> bool {
        let below = self.float.as_ref().and_then(|(.., below)| below.as_ref());
        self.error.is_none() && below.is_none_or(|below| below.missing.is_empty())
    }

    pub(super) fn lines(&self, float: &Float) -> Vec<String> {
        if !self.asked {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let width = float.tag().as_str().len() + "_incoming".len();
        match &self.float {
            Some((digest, media_type, below)) => {
                lines.push(format!(
                    "  {:<width$}  {digest}  {}",
                    float.tag().as_str(),
                    media_type
                ));
                lines.extend(below.iter().flat_map(said_below));
            }
            None if self.error.is_none() => {
                lines.push(format!("  {:<width$}  is not there", float.tag().as_str()));
            }
            None => {}
        }
        for (tag, digest) in &self.others {
            lines.push(format!("  {:<width$}  {digest}", tag.as_str()));
        }
        lines.extend(
            self.error
                .iter()
                .map(|error| format!("  cannot look further: {error}")),
        );
        lines
    }

    pub(super) fn value(&self) -> Value {
        if !self.asked {
            return Value::Null;
        }
        let float = self.float.as_ref().map(|(digest, media_type, below)| {
            json!({
                "digest": digest.to_string(),
                "mediaType": media_type,
                "below": below.as_ref().map(|below| json!({
                    "manifests": below.manifests, "blobs": below.blobs, "bytes": below.bytes, "missing": below.missing,
                })),
            })
        });
        let others = self.others.iter();
        let others = others.map(|(tag, digest)| (tag.to_string(), Value::from(digest.to_string())));
        json!({"float": float, "tags": others.collect::<serde_json::Map<_, _>>(), "error": self.error})
    }
}

fn said_below(below: &Below) -> Vec<String> {
    let size = Bytes(below.bytes);
    let found = format!(
        "{} manifests and {} blobs below it, {size}",
        below.manifests, below.blobs
    );
    if below.missing.is_empty() {
        return vec![format!("    all is there: {found}")];
    }
    let missing = below
        .missing
        .iter()
        .map(|what| format!("    MISSING {what}"));
    std::iter::once(format!("    there: {found}"))
        .chain(missing)
        .collect()
}
