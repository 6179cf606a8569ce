//! `undo`: a request that takes floats back to what they were on before. It is printed, or created.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::output::{print_documents, say};
use super::back::{Back, of_request, way};
use super::freeze;
use super::held::{Eyes, LookArgs};
use super::past::Touch;
use super::reach::{ClusterArgs, Reach, Stop};
use super::records::Records;
use super::submit::{create, finish};
use crate::api::{PromotionRequest, PromotionRequestSpec, SecretRef};
use crate::controller::freeze_map::FreezeMap;
use crate::engine::freeze::FreezeLine;
use crate::image::{Digest, Float, Reference, Stamp, Tag};
use crate::store::Stored;

/// The longest name of a request that another is called after.
const NAME_MAX: usize = 230;

/// Take floats back to what they were on: of a request all that it moved, together or not at all; or one float. Prints the request that
/// does it; --apply creates it.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(in crate::cli) struct UndoArgs {
    /// The request to take back, or the float: HOST/REPOSITORY:TAG.
    #[arg(value_name = "REQUEST|FLOAT")]
    what: String,
    /// Of a float, what it is to be on: a digest, or the 14 digits that a prune tag begins with [default: what it was on before; what an
    /// undo has taken back does not count].
    #[arg(long, value_name = "DIGEST|STAMP")]
    to: Option<String>,
    /// Leave out floats that somebody has moved since, or that have nothing to go back to.
    #[arg(long)]
    partial: bool,
    /// Take back what promote did with the requests of this file, as its state file records it: no cluster is asked, and the request that
    /// is printed is for promote.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        conflicts_with = "apply"
    )]
    file: Option<PathBuf>,
    /// That state file [default: FILE with the extension .state.yaml].
    #[arg(long, value_name = "FILE", requires = "file")]
    state: Option<PathBuf>,
    /// Create the request.
    #[arg(long)]
    apply: bool,
    /// Freeze the floats first, for every request but this one: what else is on its way moves them no more. The freeze stays.
    #[arg(long, requires = "apply")]
    freeze: bool,
    /// Go on until the request has ended, and give its end as exit code: 0 if it was Posted or Planned, 1 if not.
    #[arg(long, requires = "apply")]
    wait: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    look: LookArgs,
}

/// What is to be done, and with which Secrets.
struct Plan {
    /// What the new request is called after, and the namespace of the old one.
    name: String,
    namespace: String,
    floats: Vec<Back>,
    /// Where the image streams are that follow them.
    streams: Option<String>,
    pull: Option<SecretRef>,
    push: Option<SecretRef>,
}

pub(super) async fn run(args: UndoArgs) -> Result<ExitCode, Stop> {
    let UndoArgs {
        what,
        to,
        partial,
        file,
        state,
        apply,
        freeze,
        wait,
        cluster,
        look,
    } = args;
    let eyes = look.eyes()?;
    let form = cluster.output;
    let records = match file {
        Some(file) => Records::of_file(&file, state)?,
        None => Records::Cluster(Box::new(Reach::one(cluster).await?)),
    };
    let plan = if what.contains(':') {
        let float: Float = what
            .parse()
            .map_err(|error| Stop::Input(format!("{error}")))?;
        of_float(&records, eyes.as_ref(), &float, to.as_deref()).await?
    } else if to.is_some() {
        return Err(Stop::Input(
            "--to goes with a float, not with a request".into(),
        ));
    } else {
        of_one(&records, eyes.as_ref(), &what, partial).await?
    };
    let name = plan.name[..plan.name.len().min(NAME_MAX)].to_owned();
    let namespace = plan.namespace.clone();
    let mut object = request(plan).map_err(Stop::Input)?;
    records.name_undo(&mut object, &name);
    let object = match records {
        Records::Cluster(reach) => {
            if freeze {
                keep(&reach, &mut object).await?;
            }
            if apply {
                return create(&reach, object, form, wait).await;
            }
            finish(&reach, object).await?
        }
        Records::File(_) => {
            object.metadata.namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
            object
        }
    };
    match form.objects() {
        Some(output) => super::super::output::print_value(&object, output),
        None => print_documents(&[object]),
    }
    .map_err(Stop::Failed)?;
    Ok(ExitCode::SUCCESS)
}

/// Freezes the floats of an undo for everybody else. A freeze afterwards would come too late on a busy float, and one without an
/// exception would hold the undo as well: so the undo gets its name here.
async fn keep(reach: &Reach, object: &mut PromotionRequest) -> Result<(), Stop> {
    let prefix = object.metadata.generate_name.take().unwrap_or_default();
    let name = format!("{prefix}{:08x}", rand::random::<u32>());
    let floats = object.spec.images.iter().map(|image| {
        let mut line = FreezeLine::new(&image.float, "taken back by an undo")?;
        line.except = Some(reach.key(&name));
        Ok(line)
    });
    let floats: Vec<_> = floats.collect::<Result<_, String>>().map_err(Stop::Input)?;
    object.metadata.name = Some(name);
    let map = FreezeMap::find(reach.client.clone(), None).await?;
    freeze::add(&map, &floats).await?;
    for float in &floats {
        say(&format!("frozen: {float}"));
    }
    Ok(())
}

/// What takes back a request.
async fn of_one(
    records: &Records,
    eyes: Option<&Eyes>,
    name: &str,
    partial: bool,
) -> Result<Plan, Stop> {
    let found = records.get(name).await?;
    let key = found.key();
    let object = match &found.stored {
        Stored::Read(object) => object,
        Stored::Unreadable(unreadable) => {
            return Err(Stop::Input(format!("{key}: {}", unreadable.why)));
        }
    };
    let (all, first) = of_request(object).map_err(|why| Stop::Input(format!("{key} {why}")))?;
    let mut moved: Vec<String> = first
        .into_iter()
        .map(|float| {
            format!("{float} was promoted for the first time and has nothing to go back to")
        })
        .collect();
    let (mut floats, mut are_back) = (Vec::new(), true);
    for back in all {
        let now = now(records, eyes, &back.float).await?;
        are_back &= now.as_ref() == Some(&back.to);
        match since(&back, now) {
            None => floats.push(back),
            Some(why) => moved.push(why),
        }
    }
    if are_back {
        return Err(Stop::Input(format!(
            "{key} is taken back already; to go back one more, undo the float"
        )));
    }
    if !moved.is_empty() && (!partial || floats.is_empty()) {
        let remedy = if partial {
            ""
        } else {
            "; --partial leaves these out"
        };
        return Err(Stop::Input(format!("{}{remedy}", moved.join("; "))));
    }
    for why in moved {
        say(&format!("left out: {why}"));
    }
    Ok(Plan {
        name: key.name,
        namespace: key.namespace,
        floats,
        streams: object.spec.image_stream_namespace.clone(),
        pull: object.spec.pull_secret.clone(),
        push: object.spec.push_secret.clone(),
    })
}

/// What a float is on now: by the registry, or by what requests tell.
async fn now(records: &Records, eyes: Option<&Eyes>, float: &str) -> Result<Option<String>, Stop> {
    let Some(eyes) = eyes else {
        let touches = records.touches(float).await?;
        return Ok(way(&touches).last().cloned());
    };
    let float: Float = float
        .parse()
        .map_err(|error| Stop::Input(format!("{error}")))?;
    eyes.at(&float)?.now().await
}

/// Why a float does not go back: somebody has moved it since. A move between this look and the undo's own ends the undo.
fn since(back: &Back, now: Option<String>) -> Option<String> {
    let float = &back.float;
    match now {
        Some(now) if now == back.from || now == back.to => None,
        Some(now) => Some(format!(
            "{float} is on {now} now: somebody has moved it since"
        )),
        None => Some(format!("{float} is gone")),
    }
}

/// What takes one float back.
async fn of_float(
    records: &Records,
    eyes: Option<&Eyes>,
    float: &Float,
    to: Option<&str>,
) -> Result<Plan, Stop> {
    let name = float.to_string();
    let touches = records.touches(&name).await?;
    let way = way(&touches);
    let Some(known) = way.last() else {
        return Err(Stop::Input(format!(
            "no request that is still there has promoted to {name}: there is nothing to take back"
        )));
    };
    let looker = match eyes {
        Some(eyes) => Some(eyes.at(float)?),
        None => None,
    };
    let now = match &looker {
        Some(looker) => looker
            .now()
            .await?
            .ok_or_else(|| Stop::Input(format!("{name} is gone")))?,
        None => known.clone(),
    };
    let target = match to {
        Some(to) => {
            let digest = named(&touches, float, to).map_err(Stop::Input)?;
            if let Some(looker) = &looker {
                let reference = Reference::Digest(digest);
                looker.require(&reference).await?;
            }
            digest.to_string()
        }
        None if now != *known => {
            return Err(Stop::Input(format!(
                "{name} is on {now}, and no request put it there: somebody else has moved it since; --to says what it is to be on"
            )));
        }
        None => {
            let before = way.len().checked_sub(2).and_then(|at| way.get(at).cloned());
            before.ok_or_else(|| {
                Stop::Input(format!("nothing is known that {name} was on before {now}; --to says what it is to be on"))
            })?
        }
    };
    if target == now {
        return Err(Stop::Input(format!("{name} is on {now} already")));
    }
    let pin = touches
        .iter()
        .flat_map(Touch::pins)
        .find(|pin| pin.digest == target);
    let mut shared = touches.iter();
    let own = shared.find(|touch| records.shares_secrets(&touch.request));
    let stream = own.and_then(|touch| touch.stream.clone());
    let [streams, stream_tag] = stream.map_or([None, None], |stream| stream.map(Some));
    Ok(Plan {
        name: super::submit::plain(float.tag().as_str()),
        namespace: own.map_or_else(String::new, |touch| touch.request.namespace.clone()),
        floats: vec![Back {
            float: name,
            pin: pin.map(|pin| pin.prune_tag.clone()),
            to: target,
            from: now,
            stream_tag,
        }],
        streams,
        pull: own.and_then(|touch| touch.pull.clone()),
        push: own.and_then(|touch| touch.push.clone()),
    })
}

/// The digest that is meant: itself, or that of a prune tag by its stamp.
fn named(touches: &[Touch], float: &Float, to: &str) -> Result<Digest, String> {
    if let Ok(digest) = to.parse() {
        return Ok(digest);
    }
    let mut pins = touches.iter().flat_map(Touch::pins);
    let of_stamp = |tag: &str| {
        let stamped = tag.parse::<Tag>().is_ok_and(|tag| float.is_stamped(&tag));
        stamped && to.len() == 14 && tag.starts_with(to)
    };
    let pin = pins.find(|pin| of_stamp(&pin.prune_tag)).ok_or_else(|| {
        format!("--to {to} is neither a digest nor the 14 digits of a prune tag of {float} that a request tells of; float {float} lists them")
    })?;
    pin.digest.parse().map_err(|error| format!("{error}"))
}

/// The request that does it.
fn request(plan: Plan) -> Result<PromotionRequest, String> {
    let Plan {
        name: _,
        namespace: _,
        floats,
        streams,
        pull,
        push,
    } = plan;
    let mut images = Vec::new();
    for Back {
        float,
        to,
        pin,
        from,
        stream_tag,
    } in floats
    {
        let parsed: Float = float.parse().map_err(|error| format!("{error}"))?;
        let repository = parsed.repository();
        // A rule with `ownPins` lets the controller's own credentials use a float's prune tags, and no digest.
        let own = pin
            .filter(|_| push.is_none())
            .and_then(|pin| pin.parse::<Tag>().ok());
        let own = own.filter(|tag| Stamp::of(tag).is_some_and(|stamp| parsed.prune(stamp) == *tag));
        let source = match own {
            Some(tag) => format!("{repository}:{tag}"),
            None => format!("{repository}@{to}"),
        };
        let mut image = json!({"source": source, "float": float, "replaces": from});
        if let Some(tag) = stream_tag {
            image["imageStreamTag"] = tag.into();
        }
        images.push(image);
    }
    let mut spec = json!({"images": images, "undo": true});
    // It says where tags are, and says nothing where there are none.
    let has_tag = |image: &Value| image.get("imageStreamTag").is_some();
    if let Some(namespace) = streams.filter(|_| images.iter().any(has_tag)) {
        spec["imageStreamNamespace"] = namespace.into();
    }
    let spec: PromotionRequestSpec =
        serde_json::from_value(spec).map_err(|error| error.to_string())?;
    let spec = PromotionRequestSpec {
        pull_secret: pull,
        push_secret: push,
        ..spec
    };
    Ok(PromotionRequest::new("", spec))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_image_stream_tag_that_follows_a_float_goes_back_with_it() {
        let digest = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let back = |tag: &str, stream_tag: Option<&str>| Back {
            float: format!("x.io/o/ci:{tag}"),
            to: digest('a'),
            pin: None,
            from: digest('b'),
            stream_tag: stream_tag.map(str::to_owned),
        };
        let asked = |floats: Vec<Back>| {
            let plan = Plan {
                name: "r".into(),
                namespace: "ci".into(),
                floats,
                streams: Some("ocp".into()),
                pull: None,
                push: None,
            };
            let spec = request(plan).unwrap().spec;
            let tags = spec.images.into_iter().map(|image| image.image_stream_tag);
            (spec.image_stream_namespace, tags.collect::<Vec<_>>())
        };
        assert_eq!(
            asked(vec![back("f", Some("4.21:f")), back("g", None)]),
            (Some("ocp".into()), vec![Some("4.21:f".into()), None])
        );
        assert_eq!(asked(vec![back("g", None)]), (None, vec![None]));
    }
}
