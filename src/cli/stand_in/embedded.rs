//! `--embedded-registry`: a registry in memory for every host that a file names, seeded so that the file can be promoted.
//!
//! Each source tag gets an image, each source digest must be one of the built-in images, and every float gets an older image
//! unless its object says that this is its first promotion.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clap::Args;

use crate::api::PromotionRequest;
use crate::image::{Float, Reference, Repository, Source};
use crate::store::Key;
use quaylike::{Image, ImageSpec, Options, Registry, Shape, built_in};

/// Floats that do not exist yet: full names, separated by white space or commas.
const FIRST: &str = "promotion-controller/embedded-first";
/// Sources that are multi-arch: full names, separated by white space or commas.
const INDEX: &str = "promotion-controller/embedded-index";

/// Whether registries stand in.
#[derive(Debug, Args)]
pub(in crate::cli) struct StandInArgs {
    /// Use a registry in memory in place of every registry of the file.
    #[arg(long)]
    embedded_registry: bool,
}

impl StandInArgs {
    pub fn is_set(&self) -> bool {
        self.embedded_registry
    }

    /// Starts and seeds a registry for every host of the file, where the flag says so.
    ///
    /// # Errors
    /// What cannot be stood in for, and why.
    pub async fn start(&self, objects: &[PromotionRequest]) -> Result<Option<StandIns>, String> {
        if self.embedded_registry {
            StandIns::start(objects).await.map(Some)
        } else {
            Ok(None)
        }
    }
}

/// The registries that stand in for those of a file.
pub(in crate::cli) struct StandIns {
    registries: BTreeMap<String, Registry>,
}

impl StandIns {
    async fn start(objects: &[PromotionRequest]) -> Result<Self, String> {
        let mut stand_ins = Self {
            registries: BTreeMap::new(),
        };
        for object in objects {
            let first = annotation(object, FIRST);
            let index = annotation(object, INDEX);
            let floats = object.spec.images.iter().map(|i| &i.float);
            check(object, FIRST, &first, &floats.collect(), "float")?;
            let sources = object.spec.images.iter().map(|i| &i.source);
            check(object, INDEX, &index, &sources.collect(), "source")?;
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
            let registry = Registry::start(Options::default())
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

    /// The floats' repositories, each with all its tags and their digests: a float, what pins what it displaced, what pins what
    /// it shows, and so float by float; then the tags of no float.
    pub fn tags(&self, objects: &[PromotionRequest]) -> Vec<(Repository, Vec<(String, String)>)> {
        let images = objects.iter().flat_map(|o| &o.spec.images);
        let mut floats: BTreeMap<Repository, BTreeSet<Float>> = BTreeMap::new();
        for float in images.filter_map(|i| i.float.parse::<Float>().ok()) {
            let repository = float.repository().clone();
            floats.entry(repository).or_default().insert(float);
        }
        let mut all = Vec::new();
        for (repository, floats) in floats {
            let Some(registry) = self.registries.get(repository.host()) else {
                continue;
            };
            let tags = registry.tags(repository.path());
            let place = |tag: &str| {
                let mut places = floats.iter().enumerate();
                places
                    .find_map(|(at, float)| Some((at, rank(float, tag)?)))
                    .unwrap_or((floats.len(), 0))
            };
            let mut tags: Vec<_> = tags
                .into_iter()
                .map(|(tag, digest)| (tag, digest.to_string()))
                .collect();
            tags.sort_by_cached_key(|(tag, _)| (place(tag), tag.clone()));
            all.push((repository, tags));
        }
        all
    }
}

/// Which of a float's tags this is, if it is one.
fn rank(float: &Float, tag: &str) -> Option<u8> {
    let own = [
        float.tag().clone(),
        float.pre(),
        float.incoming(),
        float.post1(),
    ];
    let pruned = tag.parse().is_ok_and(|tag| float.is_stamped(&tag));
    let at = own.iter().position(|own| own.as_str() == tag);
    at.and_then(|at| u8::try_from(at * 2).ok())
        .or(pruned.then_some(3))
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

/// A name that stands for nothing is a slip of the pen.
fn check(
    object: &PromotionRequest,
    annotation: &str,
    named: &BTreeSet<String>,
    known: &BTreeSet<&String>,
    what: &str,
) -> Result<(), String> {
    match named.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(format!(
            "{}: metadata.annotations[{annotation}]: {name} is no {what} of this request; name one as it stands in spec.images",
            Key::from(object)
        )),
        None => Ok(()),
    }
}

fn build(shape: Shape, seed: &str) -> Result<Image, String> {
    ImageSpec::new(shape, seed)
        .build()
        .map_err(|error| error.to_string())
}
