//! `float`: what a float holds now, what pins what was on it, which requests touched it, what waits for it, and whether it is frozen.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::columns::{age, or_dash, table};
use super::super::output::print_value;
use super::held::{Content, LookArgs, Looker};
use super::history::nobody;
use super::past::{Scope, Touch, stamped, touches};
use super::reach::{ClusterArgs, Reach, Stop, print};
use crate::image::{Digest, Float, Tag};

/// The columns of the pins.
const PINS: [&str; 5] = ["TAG", "DIGEST", "AGE", "DISPLACED BY", "THERE"];
/// The columns of the requests.
const REQUESTS: [&str; 5] = ["REQUEST", "PHASE", "AGE", "DIGEST", "ASKED FOR BY"];

/// Show what a float holds, the pins of what was on it, the requests that touched it, and what waits for it.
#[derive(Debug, Args)]
pub(in crate::cli) struct FloatArgs {
    /// The float: HOST/REPOSITORY:TAG.
    float: Float,
    /// Look through all requests, those without the label of the float included.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    look: LookArgs,
}

/// A tag that pins something, and what the registry holds there.
struct PinShown {
    tag: String,
    digest: String,
    request: String,
    /// None: it was not asked.
    there: Option<String>,
}

pub(super) async fn run(args: FloatArgs) -> Result<ExitCode, Stop> {
    let FloatArgs {
        float,
        all,
        cluster,
        look,
    } = args;
    let looker = match look.eyes()? {
        Some(eyes) => Some(eyes.at(&float)?),
        None => None,
    };
    let form = cluster.output;
    let reach = Reach::several(cluster).await?;
    let name = float.to_string();
    let touches = touches(&reach, &name, Scope::of(all)).await?;
    let content = match &looker {
        Some(looker) => looker.content().await,
        None => Content::default(),
    };
    if touches.is_empty() && !content.is_there() {
        let mut message = nobody(&reach, &name, all);
        if let Some(why) = &content.error {
            message = format!("{message}; {why}");
        }
        return Err(Stop::Input(message));
    }
    let pins = pins(&touches, looker.as_ref()).await;
    let (frozen, freezes) = super::freeze::of_float(reach.client.clone(), &float).await;
    let now = Timestamp::now();
    if let Some(output) = form.objects() {
        let mut value = value(&name, &content, &pins, &touches);
        value["freezes"] = freezes;
        print_value(&value, output).map_err(Stop::Failed)?;
    } else {
        let mut lines = vec![name.clone()];
        lines.extend(content.lines(&float));
        lines.extend(frozen);
        let wide = form.is_wide();
        lines.extend(section("PINS", &pin_rows(&pins, wide, now), &PINS));
        let waiting = touches.iter().rev().filter(|touch| touch.waits);
        let rows: Vec<_> = waiting.map(|touch| waiting_row(touch, now)).collect();
        lines.extend(section(
            "WAITING, IN THEIR ORDER",
            &rows,
            &["REQUEST", "AGE", "AT"],
        ));
        let rows = touches.iter();
        let rows: Vec<_> = rows.map(|touch| request_row(touch, wide, now)).collect();
        lines.extend(section("REQUESTS, NEWEST FIRST", &rows, &REQUESTS));
        if rows.is_empty() {
            lines.extend([String::new(), nobody(&reach, &name, all)]);
        }
        print(&lines.join("\n"))?;
    }
    Ok(if content.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The pins that requests left, newest first, with what the registry holds there.
async fn pins(touches: &[Touch], looker: Option<&Looker>) -> Vec<PinShown> {
    let mut all = Vec::new();
    for touch in touches {
        for pin in touch.pins() {
            let there = match (looker, pin.prune_tag.parse::<Tag>()) {
                (Some(looker), Ok(tag)) => Some(match looker.digest(&tag).await {
                    Ok(Some(digest)) if digest.to_string() == pin.digest => "yes".into(),
                    Ok(Some(digest)) => format!("no: {}", Digest::short(&digest)),
                    Ok(None) => "no".into(),
                    Err(_) => "not known".into(),
                }),
                _ => None,
            };
            all.push(PinShown {
                tag: pin.prune_tag.clone(),
                digest: pin.digest.clone(),
                request: touch.request.to_string(),
                there,
            });
        }
    }
    all
}

/// A table below a heading of its own, if there is anything in it.
fn section(heading: &str, rows: &[Vec<String>], columns: &[&str]) -> Vec<String> {
    if rows.is_empty() {
        return Vec::new();
    }
    let lines = table(columns, rows);
    let lines = lines.into_iter().map(|line| format!("  {line}"));
    [String::new(), heading.to_owned()]
        .into_iter()
        .chain(lines)
        .collect()
}

fn short(digest: &str, wide: bool) -> String {
    if wide {
        digest.into()
    } else {
        digest.chars().take(19).collect()
    }
}

fn pin_rows(pins: &[PinShown], wide: bool, now: Timestamp) -> Vec<Vec<String>> {
    let row = |pin: &PinShown| {
        vec![
            pin.tag.clone(),
            short(&pin.digest, wide),
            or_dash(stamped(&pin.tag).map(|made| age(made, now))),
            pin.request.clone(),
            or_dash(pin.there.clone()),
        ]
    };
    pins.iter().map(row).collect()
}

fn waiting_row(touch: &Touch, now: Timestamp) -> Vec<String> {
    let image = touch.image.as_ref().and_then(|image| image.message.clone());
    let at = [Some(touch.message.clone()), image];
    let mut at: Vec<String> = at
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect();
    at.dedup();
    vec![
        touch.request.to_string(),
        or_dash(touch.created.map(|created| age(created, now))),
        or_dash(Some(at.join("; "))),
    ]
}

fn request_row(touch: &Touch, wide: bool, now: Timestamp) -> Vec<String> {
    let source = touch.image.as_ref().and_then(|image| image.source.as_ref());
    let by = touch.requested_by.as_ref();
    vec![
        touch.request.to_string(),
        touch.phase.clone(),
        or_dash(touch.created.map(|created| age(created, now))),
        or_dash(source.map(|source| short(&source.digest, wide))),
        or_dash(by.map(|user| format!("{user} (claimed)"))),
    ]
}

fn value(float: &str, content: &Content, pins: &[PinShown], touches: &[Touch]) -> Value {
    let pins: Vec<Value> = pins
        .iter()
        .map(|pin| {
            json!({
                "tag": pin.tag, "digest": pin.digest, "request": pin.request, "there": pin.there,
                "time": stamped(&pin.tag).map(|time| time.to_string()),
            })
        })
        .collect();
    let requests: Vec<Value> = touches
        .iter()
        .map(|touch| {
            json!({
                "request": touch.request.to_string(), "phase": touch.phase, "message": touch.message,
                "requestedBy": touch.requested_by, "waits": touch.waits, "image": touch.image,
                "created": touch.created.map(|time| time.to_string()),
                "ended": touch.ended.map(|time| time.to_string()),
            })
        })
        .collect();
    json!({"float": float, "registry": content.value(), "pins": pins, "requests": requests})
}
