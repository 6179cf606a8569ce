//! `status`: where a request stands, or all of them.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::super::columns::table;
use super::super::output::{print_list, print_value, say};
use super::reach::{ClusterArgs, Form, Reach, Stop, print};
use super::tree::{COLUMNS, WIDE, row, tree};
use super::{follow, reach};
use crate::store::requests::{Listed, Selection};

/// How often the table is drawn anew.
const TABLE: Duration = Duration::from_secs(5);

/// Show where a request stands, or all of them.
#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// The request; without one each has a line.
    request: Option<String>,
    /// Go on until the request has ended; without a request show those that have not ended, every few seconds.
    #[arg(short = 'w', long)]
    watch: bool,
    /// Go on until the request has ended, and give its end as exit code: 0 if it was Posted or Planned, 1 if not.
    #[arg(long, requires = "request")]
    wait: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: StatusArgs) -> Result<ExitCode, Stop> {
    let StatusArgs {
        request,
        watch,
        wait,
        cluster,
    } = args;
    let form = cluster.output;
    let Some(name) = request else {
        let reach = Reach::several(cluster).await?;
        return several(&reach, form, watch).await;
    };
    let reach = Reach::one(cluster).await?;
    let mut listed = reach.requests.get(&reach.key(&name)).await?;
    if watch || wait {
        listed = follow::to_end(&reach, listed).await?;
    }
    show(&listed, form)?;
    Ok(if wait {
        follow::code(&listed)
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows one request.
pub(super) fn show(listed: &Listed, form: Form) -> Result<(), Stop> {
    match form.objects() {
        Some(output) => print_value(&listed.raw, output).map_err(Stop::Failed),
        None => reach::print(&tree(listed, &[], Timestamp::now()).join("\n")),
    }
}

async fn several(reach: &Reach, form: Form, watch: bool) -> Result<ExitCode, Stop> {
    let selection = if watch {
        Selection::Unfinished
    } else {
        Selection::All
    };
    loop {
        if let Some(output) = form.objects() {
            let mut objects: Vec<Value> = Vec::new();
            let each = |page: Vec<Listed>| objects.extend(page.into_iter().map(|one| one.raw));
            let namespace = reach.namespace.as_deref();
            reach.requests.pages(namespace, selection, each).await?;
            print_list(&objects, output).map_err(Stop::Failed)?;
        } else {
            lines(reach, selection, form.is_wide()).await?;
        }
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(TABLE).await;
    }
}

async fn lines(reach: &Reach, selection: Selection<'_>, wide: bool) -> Result<(), Stop> {
    let everywhere = reach.namespace.is_none();
    let now = Timestamp::now();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let each = |page: Vec<Listed>| {
        rows.extend(page.iter().map(|listed| row(listed, everywhere, wide, now)));
    };
    let namespace = reach.namespace.as_deref();
    reach.requests.pages(namespace, selection, each).await?;
    if rows.is_empty() {
        say(&match namespace {
            Some(namespace) => {
                format!("no such requests in namespace {namespace}; -A looks in all")
            }
            None => "no such requests".into(),
        });
        return Ok(());
    }
    let first = everywhere.then_some("NAMESPACE");
    let more = if wide { &WIDE[..] } else { &[] };
    let heading: Vec<&str> = first
        .into_iter()
        .chain(COLUMNS)
        .chain(more.iter().copied())
        .collect();
    print(&table(&heading, &rows).join("\n"))
}
