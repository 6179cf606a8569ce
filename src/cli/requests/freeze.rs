//! `freeze`, `unfreeze`, `frozen`: floats that stay where they are.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::{SpanRelativeTo, Timestamp};
use kube::Client;
use serde_json::{Value, json};

use super::super::columns::{or_dash, table};
use super::super::output::{print_value, say};
use super::reach::{ClusterArgs, Reach, Stop, print};
use crate::api::PromotionRequest;
use crate::controller::freeze_map::{FreezeError, FreezeMap};
use crate::engine::freeze::{FreezeLine, Freezes};
use crate::image::Float;
use crate::machine::whole_second;
use crate::policy::FloatPattern;
use crate::store::requests::{Listed, RequestError, Selection};

/// How long the leader may take to follow: the watch may be anew, and a request at work has to be saved.
const FOLLOW_MAX: Duration = Duration::from_mins(1);
const FOLLOW_AGAIN: Duration = Duration::from_millis(250);

/// Keep floats where they are: no request moves them until they are let go. A request that was committed before runs to its end.
#[derive(Debug, Args)]
pub(in crate::cli) struct FreezeArgs {
    /// The floats: HOST/REPOSITORY:TAG, with * for a part of the tag or of a segment, and ** for several segments.
    pattern: String,
    /// When it ends by itself: a time as 2026-12-24T18:00:00Z, or from now on, as 36h or 14d [default: never].
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Option<Timestamp>,
    /// Why: requests that wait show it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Let floats go that were frozen by this pattern.
#[derive(Debug, Args)]
pub(in crate::cli) struct UnfreezeArgs {
    /// The pattern, as `frozen` shows it.
    pattern: String,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Show which floats are frozen, until when and why.
#[derive(Debug, Args)]
pub(in crate::cli) struct FrozenArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Which installation's freezes.
#[derive(Debug, Clone, Args)]
pub(super) struct PlaceArgs {
    /// Namespace of the controller's Lease and freezes [default: the one that the CRD names].
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
}

impl PlaceArgs {
    /// Where the freezes are.
    pub(super) async fn find(self, client: Client) -> Result<FreezeMap, Stop> {
        Ok(FreezeMap::find(client, self.lease_namespace).await?)
    }
}

impl From<FreezeError> for Stop {
    fn from(error: FreezeError) -> Self {
        let message = error.to_string();
        match error {
            FreezeError::Unfit(_) => Self::Input(message),
            FreezeError::Failed(_) => Self::Failed(message),
        }
    }
}

pub(super) async fn run(args: FreezeArgs) -> Result<ExitCode, Stop> {
    let FreezeArgs {
        pattern,
        until,
        reason,
        place,
        cluster,
    } = args;
    let mut line = FreezeLine::new(&pattern, &reason).map_err(Stop::Input)?;
    line.until = until;
    let reach = Reach::several(cluster).await?;
    let map = place.find(reach.client.clone()).await?;
    add(&map, std::slice::from_ref(&line)).await?;
    match committed(&reach, &line).await {
        Ok(going) => going.iter().for_each(|request| {
            say(&format!(
                "{request} was committed before: it runs to its end"
            ));
        }),
        Err(why) => say(&format!(
            "which requests were committed before, and run to their end, cannot be seen: {why}"
        )),
    }
    print(&format!("frozen: {line}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes freezes, each in the place of an earlier one of its pattern and exception, and waits until the leader follows them.
pub(super) async fn add(map: &FreezeMap, lines: &[FreezeLine]) -> Result<(), Stop> {
    let same = |old: &FreezeLine| {
        let mut lines = lines.iter();
        lines.any(|new| new.pattern == old.pattern && new.except == old.except)
    };
    let version = map.change(|read| read.with(same, lines)).await?;
    let since = Instant::now();
    while !map.is_followed(&version).await? {
        if since.elapsed() >= FOLLOW_MAX {
            return Err(Stop::Failed(format!(
                "written to {}, but no controller has said within {} s that it follows: floats may still move; see whether one leads, and run this again",
                map.place(),
                FOLLOW_MAX.as_secs()
            )));
        }
        tokio::time::sleep(FOLLOW_AGAIN).await;
    }
    Ok(())
}

/// The requests that may still move a float of the pattern: nothing stops what is committed.
async fn committed(reach: &Reach, line: &FreezeLine) -> Result<Vec<String>, RequestError> {
    let mut found = Vec::new();
    let may_move = |object: &PromotionRequest| {
        let images = object.status.iter().flat_map(|status| &status.images);
        let mut images = object.spec.images.iter().zip(images);
        images.any(|(spec, image)| {
            let meant = spec.float.parse().is_ok_and(|float| line.matches(&float));
            meant && object.has_committed(image)
        })
    };
    let each = |page: Vec<Listed>| {
        let named = page
            .iter()
            .filter(|listed| listed.object().is_some_and(may_move));
        found.extend(named.map(|listed| listed.key().to_string()));
    };
    let unfinished = Selection::Unfinished;
    reach.requests.pages(None, unfinished, each).await?;
    Ok(found)
}

pub(super) async fn unfreeze(args: UnfreezeArgs) -> Result<ExitCode, Stop> {
    let UnfreezeArgs {
        pattern,
        place,
        cluster,
    } = args;
    pattern
        .parse::<FloatPattern>()
        .map_err(|error| Stop::Input(error.to_string()))?;
    let reach = Reach::several(cluster).await?;
    let map = place.find(reach.client).await?;
    let change = map.change(|read| {
        let text = read.with(|line| line.pattern == pattern, &[])?;
        if text.lines().eq(read.text().lines()) {
            return Err(format!(
                "there is no freeze of {pattern}; frozen lists them"
            ));
        }
        Ok(text)
    });
    change.await?;
    print(&format!("no longer frozen: {pattern}"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn frozen(args: FrozenArgs) -> Result<ExitCode, Stop> {
    let FrozenArgs { place, cluster } = args;
    let form = cluster.output;
    let reach = Reach::several(cluster).await?;
    let map = place.find(reach.client).await?;
    let read = map.read().await?;
    let freezes = Freezes::parse(read.text(), &format!("the key freezes of {}", map.place()));
    let followed = match read.version() {
        Some(version) => map.is_followed(version).await?,
        None => true,
    };
    if let Some(output) = form.objects() {
        let lines: Vec<Value> = freezes.lines().iter().map(value).collect();
        let all =
            json!({"freezes": lines, "followed": followed, "unreadable": freezes.unreadable()});
        print_value(&all, output).map_err(Stop::Failed)?;
    } else if !freezes.lines().is_empty() {
        let now = Timestamp::now();
        let rows: Vec<_> = freezes.lines().iter().map(|line| row(line, now)).collect();
        print(&table(&["PATTERN", "UNTIL", "EXCEPT", "REASON"], &rows).join("\n"))?;
    } else {
        say("nothing is frozen");
    }
    if let Some(why) = freezes.unreadable() {
        return Err(Stop::Failed(why.into()));
    }
    if !followed {
        let message = "no controller has said that it follows these: floats may still move";
        return Err(Stop::Failed(message.into()));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(line: &FreezeLine, now: Timestamp) -> Vec<String> {
    let over = if line.is_in_force(now) { "" } else { " (over)" };
    vec![
        line.pattern.clone(),
        or_dash(line.until.map(|until| format!("{until}{over}"))),
        or_dash(line.except.as_ref().map(ToString::to_string)),
        line.reason.clone(),
    ]
}

fn value(line: &FreezeLine) -> Value {
    json!({
        "pattern": line.pattern, "reason": line.reason,
        "until": line.until.map(|until| until.to_string()),
        "except": line.except.as_ref().map(ToString::to_string),
    })
}

/// What keeps one float where it is, for `float`.
pub(super) async fn of_float(client: Client, float: &Float) -> (Vec<String>, Value) {
    let read = async {
        let map = FreezeMap::find(client, None).await?;
        Ok::<_, FreezeError>((map.read().await?, map.place()))
    };
    let freezes = match read.await {
        Ok((read, place)) => Freezes::parse(read.text(), &format!("the key freezes of {place}")),
        Err(why) => return (vec![format!("  frozen: not known: {why}")], Value::Null),
    };
    let now = Timestamp::now();
    let lines = freezes.lines().iter();
    let lines: Vec<_> = lines
        .filter(|line| line.is_in_force(now) && line.matches(float))
        .collect();
    let mut said: Vec<String> = lines
        .iter()
        .map(|line| format!("  FROZEN: {line}"))
        .collect();
    said.extend(freezes.unreadable().map(|why| format!("  FROZEN: {why}")));
    (said, lines.into_iter().map(value).collect())
}

/// A time, or a span from now on.
fn until(text: &str) -> Result<Timestamp, String> {
    let now = Timestamp::now();
    let time = text.parse::<Timestamp>().ok().or_else(|| {
        let span = text.parse::<jiff::Span>().ok()?;
        let lasts = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
        now.checked_add(lasts).ok()
    });
    match time.map(whole_second) {
        None => Err("write a time as 2026-12-24T18:00:00Z, or how long, as 36h or 14d".into()),
        Some(time) if time <= now => Err("has passed already".into()),
        Some(time) => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_end_of_a_freeze_is_a_time_to_come_or_a_span_from_now_on() {
        let seconds =
            |text: &str| until(text).map(|at| at.as_second() - Timestamp::now().as_second());
        assert!((3_599..=3_600).contains(&seconds("1h").unwrap()));
        assert!((86_399..=2 * 86_400).contains(&seconds("2d").unwrap()));
        assert_eq!(
            until("2999-01-01T00:00:00Z").unwrap().to_string(),
            "2999-01-01T00:00:00Z"
        );
        for wrong in [
            "",
            "tomorrow",
            "2020-01-01T00:00:00Z",
            "-1h",
            "0s",
            "2999-01-01",
        ] {
            assert!(until(wrong).is_err(), "{wrong}");
        }
    }
}
