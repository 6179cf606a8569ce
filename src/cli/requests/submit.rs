//! `submit`: a request from the command line.

use std::process::ExitCode;

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::act::done;
use super::follow;
use super::reach::{ClusterArgs, Form, Reach, Stop};
use super::status::show;
use crate::api::labels::{REQUESTED_BY, float_label};
use crate::api::status::read;
use crate::api::{
    ImageSpec, Incoming, Latch, Mode, OnFailure, PromotionRequest, PromotionRequestSpec, Referrers,
    SecretRef,
};

/// What a name that the API server ends may have before, so that it fits a label.
const PREFIX_MAX: usize = 57;

/// Create a request that promotes images to floats.
#[derive(Debug, Args)]
pub(in crate::cli) struct SubmitArgs {
    /// What is promoted, and where it goes.
    #[arg(required = true, value_name = "SOURCE=FLOAT", value_parser = image)]
    images: Vec<ImageSpec>,
    /// What a float has to be on when it moves, or None if it must not exist yet (repeatable).
    #[arg(long, value_name = "FLOAT=DIGEST|None")]
    replaces: Vec<String>,
    /// Name of the request [default: after its first float, with an end of its own].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Secret that may push to the floats' repositories.
    #[arg(long, value_name = "SECRET")]
    push_secret: Option<String>,
    /// Secret that may pull the sources [default: the push Secret].
    #[arg(long, value_name = "SECRET")]
    pull_secret: Option<String>,
    /// Whether floats move together: Together or Independently.
    #[arg(long, value_name = "WHEN", default_value = "Together", value_parser = named::<Latch>)]
    latch: Latch,
    /// What becomes of floats that have moved when another image fails: Hold or Rollback.
    #[arg(long, value_name = "WHAT", default_value = "Hold", value_parser = named::<OnFailure>)]
    on_failure: OnFailure,
    /// What is done about signatures and other referrers: Ignore, `BestEffort` or Require.
    #[arg(long, value_name = "WHAT", default_value = "Ignore", value_parser = named::<Referrers>)]
    referrers: Referrers,
    /// What becomes of the tags that images were staged on, once their floats hold them: Keep or Remove.
    #[arg(long, value_name = "WHAT", default_value = "Keep", value_parser = named::<Incoming>)]
    incoming: Incoming,
    /// Only look: the request ends as Planned, and nothing is written to registries.
    #[arg(long)]
    plan: bool,
    /// Go on until the request has ended, and give its end as exit code: 0 if it was Posted or Planned, 1 if not.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: SubmitArgs) -> Result<ExitCode, Stop> {
    let SubmitArgs {
        mut images,
        replaces,
        name,
        push_secret,
        pull_secret,
        latch,
        on_failure,
        referrers,
        incoming,
        plan,
        wait,
        cluster,
    } = args;
    for text in &replaces {
        replace(&mut images, text).map_err(Stop::Input)?;
    }
    let secret = |name: Option<String>| name.map(|name| SecretRef { name });
    let spec = PromotionRequestSpec {
        latch,
        on_failure,
        referrers,
        incoming,
        mode: if plan { Mode::Plan } else { Mode::Promote },
        pull_secret: secret(pull_secret),
        push_secret: secret(push_secret),
        ..of_images(&images).map_err(Stop::Input)?
    };
    let form = cluster.output;
    let reach = Reach::one(cluster).await?;
    let mut object = PromotionRequest::new("", spec);
    object.metadata.generate_name = name.is_none().then(|| prefix(&object.spec.images));
    object.metadata.name = name;
    create(&reach, object, form, wait).await
}

/// Notes what the float of one of the images has to be on; what that may be is checked with the request.
fn replace(images: &mut [ImageSpec], text: &str) -> Result<(), String> {
    let (float, what) = text
        .rsplit_once('=')
        .ok_or_else(|| format!("--replaces {text}: write FLOAT=DIGEST or FLOAT=None"))?;
    let image = images.iter_mut().find(|image| image.float == float);
    let image = image.ok_or_else(|| {
        format!("--replaces {text}: no image goes to {float}; write it as after SOURCE=")
    })?;
    if image.replaces.replace(what.into()).is_some() {
        return Err(format!("--replaces: names {float} twice; name it once"));
    }
    Ok(())
}

/// A spec of these images, all else by default.
fn of_images(images: &[ImageSpec]) -> Result<PromotionRequestSpec, String> {
    let spec = serde_json::json!({ "images": images });
    serde_json::from_value(spec).map_err(|error| error.to_string())
}

/// Creates a request in the namespace; waits for its end if that is asked for.
pub(super) async fn create(
    reach: &Reach,
    object: PromotionRequest,
    form: Form,
    wait: bool,
) -> Result<ExitCode, Stop> {
    let object = finish(reach, object).await?;
    let created = reach.requests.create(&object).await?;
    if !wait {
        done(&created.key(), "created", form, || show(&created, form))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = follow::to_end(reach, created).await?;
    show(&ended, form)?;
    Ok(follow::code(&ended))
}

/// The same, checked, in the namespace, labelled by its floats and with the caller's name.
pub(super) async fn finish(
    reach: &Reach,
    mut object: PromotionRequest,
) -> Result<PromotionRequest, Stop> {
    read(&object).map_err(|error| Stop::Input(error.to_string()))?;
    let metadata = &mut object.metadata;
    metadata.namespace = Some(reach.home().into());
    let labels = object.spec.images.iter().map(|i| float_label(&i.float));
    metadata.labels = Some(labels.map(|label| (label, String::new())).collect());
    if let Some(user) = reach.requests.user().await {
        metadata.annotations = Some([(REQUESTED_BY.to_owned(), user)].into());
    }
    Ok(object)
}

/// What the name begins with that the API server makes up: the first float's tag, as far as a name may have it.
fn prefix(images: &[ImageSpec]) -> String {
    let tag = images
        .first()
        .and_then(|image| image.float.rsplit_once(':'))
        .map_or("", |(_, tag)| tag);
    format!("{}-", plain(tag))
}

/// A tag, as far as the name of an object may have it.
pub(super) fn plain(tag: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = tag.chars().map(plain).take(PREFIX_MAX).collect();
    match name.trim_matches('-') {
        "" => "promotion".into(),
        name => name.into(),
    }
}

fn image(text: &str) -> Result<ImageSpec, String> {
    let (source, float) = text
        .split_once('=')
        .ok_or("write SOURCE=FLOAT, as in registry.ci/x/pipeline:cli=quay.io/o/ci:cli")?;
    source
        .parse::<crate::image::Source>()
        .map_err(|error| format!("{error}"))?;
    float
        .parse::<crate::image::Float>()
        .map_err(|error| format!("{error}"))?;
    Ok(ImageSpec {
        source: source.into(),
        float: float.into(),
        replaces: None,
        image_stream_tag: None,
    })
}

/// A value as the object has it.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_replaced_is_noted_at_its_float_and_nowhere_else() {
        let mut images =
            ["f", "g"].map(|tag| image(&format!("x.io/a/b:c=x.io/o/ci:{tag}")).unwrap());
        replace(&mut images, "x.io/o/ci:g=None").unwrap();
        let replaced = images.clone().map(|image| image.replaces);
        assert_eq!(replaced, [None, Some("None".into())]);
        for (text, word) in [
            ("x.io/o/ci:g=None", "twice"),
            ("x.io/o/ci:h=None", "no image goes to x.io/o/ci:h"),
            ("None", "FLOAT=None"),
        ] {
            let refused = replace(&mut images, text).unwrap_err();
            assert!(
                refused.contains(word) && refused.contains("--replaces"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_name_begins_with_the_tag_of_the_first_float_as_far_as_a_name_may() {
        let begins = |tag: &str| {
            let text = format!("x.io/a/b:c=x.io/o/ci:{tag}");
            prefix(&[image(&text).unwrap()])
        };
        assert_eq!(begins("ocp_4.21_CLI"), "ocp-4-21-cli-");
        assert_eq!(begins("_"), "promotion-");
        assert_eq!(begins(&"x".repeat(90)).len(), 58);
    }
}
