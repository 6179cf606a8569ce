//! The step of a plan: Resolve, and a survey of what the other steps would find. They run over it in [`dry_run`].
//!
//! In come the image's spec and credentials; out comes what promoting it would do. Guaranteed: nothing is written, and no token is
//! asked for with the right to write: some registries make the repository that it names.

use std::sync::Arc;
use std::time::Duration;

use futures::try_join;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Operation, Tools};
use crate::dry_run;
use crate::engine::leadership::Leadership;
use crate::engine::memory::Memory;
use crate::image::{Digest, Reference, Tag};
use crate::machine::{
    Copying, Expiry, Fault, FaultClass, FloatTags, Forecast, Image, ImageSpec, Mode, Outcome,
    Reason, Referrers, Step,
};
use crate::registry::{Manifest, Progress, RegistryClient};
use crate::steps::{Flow, immovable};
use crate::store::Access;

/// What promoting an image would do now, found as `mode: Plan` finds it; or why it would fail. `image` is what is recorded of it.
///
/// # Errors
/// What the step would end with.
pub async fn forecast(
    registry: &RegistryClient,
    access: &Access,
    spec: &ImageSpec,
    image: &Image,
    progress: &Arc<Progress>,
) -> Result<Forecast, Fault> {
    let tools = Tools {
        registry: registry.clone(),
        memory: Arc::new(Memory::new(Duration::ZERO, Duration::ZERO)),
        leadership: Leadership::alone(),
    };
    let operation = Operation {
        tools,
        access: access.clone(),
        spec: spec.clone(),
        image: image.clone(),
        mode: Mode::Plan,
        referrers: Referrers::Ignore,
        step: Step::Resolve,
        may_have_run: false,
        cancel: CancellationToken::new(),
        progress: Arc::clone(progress),
        read: Mutex::default(),
        ahead: Mutex::default(),
    };
    match Box::pin(operation.run()).await {
        Outcome::Forecast(forecast) => Ok(*forecast),
        Outcome::Faulted(fault) => Err(fault),
        other => Err(Fault {
            reason: Reason::RegistryError,
            message: format!("the plan ended without a finding ({other:?})"),
            class: FaultClass::Attempt,
        }),
    }
}

impl Operation {
    /// Finds out what promoting the image would do.
    pub(super) async fn forecast(&self) -> Flow<Outcome> {
        let float = &self.spec.float;
        let mut held = FloatTags {
            float: self.peek(float.tag()).await?,
            ..FloatTags::default()
        };
        if let Some(source) = self
            .image
            .source
            .clone()
            .filter(|_| self.image.phase.is_staged())
        {
            Box::pin(self.peek_beside(&mut held)).await?;
            let rest = dry_run::rest(&self.spec, source, &self.image, held);
            return Ok(Outcome::Forecast(Box::new(rest)));
        }
        let (recorded, named) = (&self.image.source, &self.spec.source.reference);
        let reference = match (recorded, named) {
            (Some(known), _) => Reference::Digest(known.digest),
            (None, named) => named.clone(),
        };
        if recorded.is_none()
            && let Reference::Digest(source) = reference
        {
            self.check_staged(source).await?;
        }
        if let Reference::Digest(source) = reference
            && held.float == Some(source)
        {
            return Ok(self.forecast_of(source, None, held, Copying::default()));
        }
        let manifest = self.work().source_manifest(&reference).await?;
        if held.float == Some(manifest.digest) {
            let media_type = Some(manifest.media_type);
            return Ok(self.forecast_of(manifest.digest, media_type, held, Copying::default()));
        }
        let (digest, media_type) = (manifest.digest, manifest.media_type.clone());
        let expiring = self.foresee_labels(&manifest, held.float).await?;
        let (pull, push) = (self.pull()?, self.push()?);
        let from = &self.spec.source.repository;
        let survey = self.tools.registry.estimate_copy(
            pull.at(from),
            manifest,
            push.at(self.repository()),
            &self.progress,
        );
        // Boxed: every operation is as large as its largest step, and plans are few.
        let copying = self.read(Box::pin(survey)).await?;
        Box::pin(self.peek_beside(&mut held)).await?;
        let mut forecast = dry_run::forecast(&self.spec, digest, Some(media_type), held, copying);
        forecast.expiring = expiring;
        for digest in forecast.rescued() {
            let after = Box::pin(self.pins_expire_after(digest)).await?;
            let expiry = after.map(|after| Expiry::Rescued { after });
            forecast.expiring.extend(expiry);
        }
        Ok(Outcome::Forecast(Box::new(forecast)))
    }

    /// Which tags would expire, as labels say; the end of an image whose tags could never be moved again.
    async fn foresee_labels(&self, manifest: &Manifest, on: Option<Digest>) -> Flow<Vec<Expiry>> {
        let from = &self.spec.source.repository;
        let own = self.labels_of(from, manifest, &self.pull()?, false).await?;
        if own.immutable {
            return Err(immovable(&self.spec.float));
        }
        let own = own.expires_after.map(|after| Expiry::Tags { after });
        let pins = match on {
            Some(on) => self.pins_expire_after(on).await?,
            None => None,
        };
        let pins = pins.map(|after| Expiry::Pins { after });
        Ok(own.into_iter().chain(pins).collect())
    }

    /// The life of the pins of an image that the float's repository has.
    async fn pins_expire_after(&self, digest: Digest) -> Flow<Option<String>> {
        let (reference, push) = (Reference::Digest(digest), self.push()?);
        let registry = &self.tools.registry;
        let fetch = registry.get(self.repository(), &reference, &push, &self.progress);
        let Some(manifest) = self.read(fetch).await? else {
            return Ok(None);
        };
        let labels = self.labels_of(self.repository(), &manifest, &push, false);
        Ok(labels.await?.expires_after)
    }

    fn forecast_of(
        &self,
        source: Digest,
        media_type: Option<String>,
        held: FloatTags,
        copying: Copying,
    ) -> Outcome {
        let forecast = dry_run::forecast(&self.spec, source, media_type, held, copying);
        Outcome::Forecast(Box::new(forecast))
    }

    /// Looks at the tags beside the float.
    async fn peek_beside(&self, held: &mut FloatTags) -> Flow<()> {
        let float = &self.spec.float;
        let (incoming, pre, post1) = (float.incoming(), float.pre(), float.post1());
        (held.incoming, held.pre, held.post1) =
            try_join!(self.peek(&incoming), self.peek(&pre), self.peek(&post1))?;
        Ok(())
    }

    /// Where a tag of the float's repository is, as a credential sees it that may only read.
    pub(super) async fn peek(&self, tag: &Tag) -> Flow<Option<Digest>> {
        let reference = Reference::Tag(tag.clone());
        let credential = self.push()?;
        let fetch =
            self.tools
                .registry
                .get(self.repository(), &reference, &credential, &self.progress);
        Ok(self.read(fetch).await?.map(|manifest| manifest.digest))
    }
}
