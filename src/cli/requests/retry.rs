//! `retry`: asks again for what a request that failed or was cancelled asked for.

use std::process::ExitCode;

use clap::Args;

use super::reach::{ClusterArgs, Reach, Stop};
use super::submit::create;
use super::touch::{is_newer, touches};
use crate::api::{ImageStatus, PromotionRequest};
use crate::machine::Phase;
use crate::store::requests::Listed;
use crate::store::{Key, Stored};

/// The longest name of an object, without the end that the API server makes up.
const NAME_MAX: usize = 240;

/// Ask again for what a request that failed or was cancelled asked for.
#[derive(Debug, Args)]
pub(in crate::cli) struct RetryArgs {
    /// The request.
    request: String,
    /// Go on until the new request has ended, and give its end as exit code: 0 if it was Posted or Planned, 1 if not.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: RetryArgs) -> Result<ExitCode, Stop> {
    let RetryArgs {
        request,
        wait,
        cluster,
    } = args;
    let form = cluster.output;
    let reach = Reach::one(cluster).await?;
    let key = reach.key(&request);
    let found = reach.requests.get(&key).await?;
    let object = match &found.stored {
        Stored::Read(object) => object,
        Stored::Unreadable(unreadable) => {
            return Err(Stop::Input(format!("{key}: {}", unreadable.why)));
        }
    };
    if let Some(why) = has_nothing_to_retry(object) {
        return Err(Stop::Input(format!("{key} {why}")));
    }
    if let Some((newer, float)) = newer(&reach, object).await? {
        return Err(Stop::Input(format!(
            "{newer} is newer than {key} and moved {float}, or will: trying {key} again would move it back; submit what you want instead"
        )));
    }
    create(&reach, again(object), form, wait).await
}

fn has_nothing_to_retry(object: &PromotionRequest) -> Option<String> {
    let phase = object.status.as_ref().and_then(|s| s.phase.as_deref());
    match object.phase() {
        Some(phase) if phase.is_unsuccessful() => None,
        Some(phase) if phase.is_finished() => Some(format!(
            "is {}: there is nothing to try again",
            phase.as_str()
        )),
        _ => Some(format!(
            "has not ended: it is {}; wait for it, or cancel it first",
            phase.unwrap_or(Phase::Pending.as_str())
        )),
    }
}

/// A newer request that touched one of the floats, in any namespace that the caller may see.
async fn newer(reach: &Reach, object: &PromotionRequest) -> Result<Option<(Key, String)>, Stop> {
    let mut found: Option<(Key, String)> = None;
    let each = |page: Vec<Listed>| {
        for listed in page.iter().filter(|one| is_newer(&one.stored, object)) {
            let mut floats = object.spec.images.iter().map(|image| &image.float);
            if let Some(float) = floats.find(|float| touches(&listed.stored, float)) {
                found.get_or_insert((listed.key(), float.clone()));
            }
        }
    };
    reach.everywhere(each).await?;
    Ok(found)
}

/// What the float was on when the request left it, as `replaces` says it; none where it never looked. Whoever moved the float since is
/// not overwritten.
fn left(image: &ImageStatus) -> Option<String> {
    let source = image.source.as_ref()?;
    if Phase::parse(&image.phase).is_some_and(Phase::is_posted) {
        return Some(source.digest.clone());
    }
    let displaced = image.displaced.last().map(|pin| pin.digest.clone());
    let first = image.first_promotion == Some(true);
    displaced.or_else(|| first.then(|| "None".into()))
}

/// A new request of the same, by a name that begins alike.
fn again(object: &PromotionRequest) -> PromotionRequest {
    let mut spec = object.spec.clone();
    (spec.cancel, spec.suspend) = (false, false);
    let images = object.status.iter().flat_map(|status| &status.images);
    for (wanted, image) in spec.images.iter_mut().zip(images) {
        wanted.replaces = left(image).or(wanted.replaces.take());
    }
    let name = object.metadata.name.as_deref().unwrap_or_default();
    // Names of a retry's retry do not grow.
    let base = name.rsplit_once("-retry-").map_or(name, |(base, _)| base);
    let mut new = PromotionRequest::new("", spec);
    new.metadata.name = None;
    new.metadata.generate_name = Some(format!("{}-retry-", &base[..base.len().min(NAME_MAX)]));
    new
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_retry_moves_a_float_only_off_what_the_failed_request_left_there() {
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let images: Vec<_> = (0..5)
            .map(|n| json!({"source": "x.io/s/a:b", "float": format!("x.io/o/ci:f{n}"), "replaces": digest('e')}))
            .collect();
        let source = json!({"digest": digest('a')});
        let pins = json!([{"digest": digest('b'), "pruneTag": "1"}, {"digest": digest('c'), "pruneTag": "2"}]);
        let object: PromotionRequest = serde_json::from_value(json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest",
            "metadata": {"name": "r-retry-x"},
            "spec": {"images": images, "cancel": true, "suspend": true},
            "status": {"phase": "Failed", "images": [
                {"float": "x.io/o/ci:f0", "phase": "Posted", "source": source, "displaced": pins},
                {"float": "x.io/o/ci:f1", "phase": "Failed", "source": source, "displaced": pins},
                {"float": "x.io/o/ci:f2", "phase": "Failed", "source": source, "firstPromotion": true},
                {"float": "x.io/o/ci:f3", "phase": "Failed"},
            ]},
        }))
        .unwrap();
        let again = again(&object);
        let replaces = again
            .spec
            .images
            .iter()
            .map(|image| image.replaces.clone().unwrap());
        assert_eq!(
            replaces.collect::<Vec<_>>(),
            [
                digest('a'),
                digest('c'),
                "None".into(),
                digest('e'),
                digest('e')
            ]
        );
        assert!(!again.spec.cancel && !again.spec.suspend && again.status.is_none());
        assert_eq!(again.metadata.generate_name.as_deref(), Some("r-retry-"));
    }
}
