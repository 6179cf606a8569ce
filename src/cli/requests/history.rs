//! `history`: what a float was on, from when until when, and who moved it.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::columns::{or_dash, table};
use super::super::output::print_value;
use super::past::{Held, Scope, past, touches};
use super::reach::{ClusterArgs, Reach, Stop, print};
use crate::image::Float;

/// The columns of the table.
const COLUMNS: [&str; 6] = ["DIGEST", "FROM", "UNTIL", "REQUEST", "ASKED FOR BY", "PIN"];

/// Show what a float was on, from when until when, and who moved it.
#[derive(Debug, Args)]
pub(in crate::cli) struct HistoryArgs {
    /// The float: HOST/REPOSITORY:TAG.
    float: Float,
    /// Look through all requests, those without the label of the float included.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: HistoryArgs) -> Result<ExitCode, Stop> {
    let HistoryArgs {
        float,
        all,
        cluster,
    } = args;
    let form = cluster.output;
    let reach = Reach::several(cluster).await?;
    let name = float.to_string();
    let past = past(&touches(&reach, &name, Scope::of(all)).await?);
    if past.is_empty() {
        return Err(Stop::Input(nobody(&reach, &name, all)));
    }
    if let Some(output) = form.objects() {
        let held: Vec<Value> = past.iter().map(value).collect();
        print_value(&json!({"float": name, "history": held}), output).map_err(Stop::Failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = past.iter().map(|held| row(held, form.is_wide())).collect();
    print(&table(&COLUMNS, &rows).join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What is said of a float that no request has moved.
pub(super) fn nobody(reach: &Reach, float: &str, all: bool) -> String {
    let place = match &reach.namespace {
        Some(namespace) => format!("of namespace {namespace} (-A looks in all)"),
        None => "of any namespace".into(),
    };
    let which = if all {
        "no request"
    } else {
        "no labelled request (--all looks through all)"
    };
    format!("{which} {place} has promoted to {float}")
}

fn row(held: &Held, wide: bool) -> Vec<String> {
    let digest = if wide {
        held.digest.clone()
    } else {
        held.digest.chars().take(19).collect()
    };
    let by = held.requested_by.as_ref();
    vec![
        digest,
        or_dash(held.from.map(when)),
        held.until.map_or_else(|| "now".into(), when),
        held.request
            .as_ref()
            .map_or_else(|| "none known".into(), ToString::to_string),
        or_dash(by.map(|user| format!("{user} (claimed)"))),
        or_dash(held.pin.clone()),
    ]
}

fn when(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

pub(super) fn value(held: &Held) -> Value {
    json!({
        "digest": held.digest,
        "from": held.from.map(|time| time.to_string()),
        "until": held.until.map(|time| time.to_string()),
        "request": held.request.as_ref().map(ToString::to_string),
        "requestedBy": held.requested_by,
        "pin": held.pin,
    })
}
