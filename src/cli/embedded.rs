//! `--embedded-registry`: a registry in memory for every host that a file names, seeded so that the file can be promoted.
//!
//! Each source tag gets an image, each source digest must be one of the built-in images, and every float gets an older image
//! unless its object says that this is its first promotion.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::api::PromotionRequest;
use crate::embedded::{Embedded, Image, ImageSpec, Options, Shape, built_in};
use crate::image::{Float, Reference, Source};

/// Floats that do not exist yet: full names, separated by white space or commas.
const FIRST: &str = "promotion-controller/embedded-first";
/// Sources that are multi-arch: full names, separated by white space or commas.
const INDEX: &str = "promotion-controller/embedded-index";

/// The registries that stand in for those of a file.
pub(super) struct StandIns {
    registries: BTreeMap<String, Embedded>,
}

impl StandIns {
    /// Starts and seeds a registry for every host.
    ///
    /// # Errors
    /// What cannot be stood in for, and why.
    pub async fn start(objects: &[PromotionRequest]) -> Result<Self, String> {
        let mut stand_ins = Self {
            registries: BTreeMap::new(),
        };
        for object in objects {
            let first = annotation(object, FIRST);
            let index = annotation(object, INDEX);
            for image in &object.spec.images {
                let source: Source = image.source.parse().map_err(|e| format!("{e}"))?;
                let float: Float = image.float.parse().map_err(|e| format!("{e}"))?;
                stand_ins
                    .seed_source(&source, index.contains(&image.source))
                    .await?;
                if !first.contains(&image.float) {
                    let shape = if index.contains(&image.source) {
                        Shape::Index
                    } else {
                        Shape::Oci
                    };
                    let old = build(shape, &format!("{float} before"))?;
                    let (host, path) = (float.repository().host(), float.repository().path());
                    stand_ins
                        .seed(host, path, float.tag().as_str(), &old)
                        .await?;
                }
            }
        }
        Ok(stand_ins)
    }

    async fn seed_source(&mut self, source: &Source, index: bool) -> Result<(), String> {
        let (host, path) = (source.repository.host(), source.repository.path());
        match &source.reference {
            Reference::Tag(tag) => {
                let shape = if index { Shape::Index } else { Shape::Oci };
                let image = build(shape, &source.to_string())?;
                self.seed(host, path, tag.as_str(), &image).await
            }
            Reference::Digest(digest) => {
                let images = built_in().map_err(|error| error.to_string())?;
                let wanted = digest.to_string();
                let image = images
                    .iter()
                    .find(|(_, _, image)| image.digest().to_string() == wanted);
                let Some((_, tag, image)) = image else {
                    let known: Vec<String> = images
                        .iter()
                        .map(|(_, tag, image)| format!("{tag} {}", image.digest()))
                        .collect();
                    return Err(format!(
                        "source {source} is none of the embedded registry's images; name a source by tag, or one of: {}",
                        known.join(", ")
                    ));
                };
                self.seed(host, path, &format!("{tag}-built-in"), image)
                    .await
            }
        }
    }

    /// Puts an image in, unless the tag is there: the first document that names it decides.
    async fn seed(
        &mut self,
        host: &str,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> Result<(), String> {
        if !self.registries.contains_key(host) {
            let registry = Embedded::start(Options::default())
                .await
                .map_err(|error| error.to_string())?;
            self.registries.insert(host.into(), registry);
        }
        let Some(registry) = self.registries.get(host) else {
            return Ok(());
        };
        if registry.tag(repository, tag).is_none() {
            registry
                .seed_image(repository, tag, image)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Which address stands in for which host.
    pub fn rewrite(&self) -> HashMap<String, String> {
        self.registries
            .iter()
            .map(|(host, registry)| (host.clone(), registry.host()))
            .collect()
    }

    /// Every tag of the floats' repositories, with its digest.
    pub fn tags(&self, objects: &[PromotionRequest]) -> Vec<(String, String)> {
        let floats = objects
            .iter()
            .flat_map(|o| &o.spec.images)
            .filter_map(|i| i.float.parse::<Float>().ok());
        let repositories: BTreeSet<_> = floats.map(|float| float.repository().clone()).collect();
        let mut tags = Vec::new();
        for repository in repositories {
            let Some(registry) = self.registries.get(repository.host()) else {
                continue;
            };
            for (tag, digest) in registry.tags(repository.path()) {
                tags.push((format!("{repository}:{tag}"), digest.to_string()));
            }
        }
        tags
    }
}

fn annotation(object: &PromotionRequest, name: &str) -> BTreeSet<String> {
    let text = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(name));
    let text = text.map(String::as_str).unwrap_or_default();
    text.split([',', ' ', '\n', '\t'])
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect()
}

fn build(shape: Shape, seed: &str) -> Result<Image, String> {
    ImageSpec::new(shape, seed)
        .build()
        .map_err(|error| error.to_string())
}
