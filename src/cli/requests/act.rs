//! `cancel`, `suspend`, `resume`: one field of a request, where that can still change something.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::reach::{ClusterArgs, Form, Reach, Stop, print};
use super::status::show;
use crate::api::PromotionRequest;
use crate::store::{Key, Stored};

/// Which request.
#[derive(Debug, Args)]
pub(in crate::cli) struct ActArgs {
    /// The request.
    request: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What is done to it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Cancel,
    Suspend,
    Resume,
}

pub(super) async fn run(args: ActArgs, act: Act) -> Result<ExitCode, Stop> {
    let ActArgs { request, cluster } = args;
    let form = cluster.output;
    let reach = Reach::one(cluster).await?;
    let key = reach.key(&request);
    let found = reach.requests.get(&key).await?;
    if let Stored::Read(object) = &found.stored
        && let Some(why) = comes_too_late(object, act.holds_back())
    {
        return Err(Stop::Input(format!("{key} {why}; nothing was changed")));
    }
    let changed = reach.requests.change(&key, &act.change()).await?;
    done(&key, act.done(), form, || show(&changed, form))?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was done, or shows the object where that is asked for.
pub(super) fn done(
    key: &Key,
    done: &str,
    form: Form,
    object: impl FnOnce() -> Result<(), Stop>,
) -> Result<(), Stop> {
    if form.objects().is_some() {
        return object();
    }
    let name = &key.name;
    print(&format!("promotionrequest.ci.openshift.io/{name} {done}"))
}

impl Act {
    fn change(self) -> Value {
        match self {
            Self::Cancel => json!({"spec": {"cancel": true}}),
            Self::Suspend => json!({"spec": {"suspend": true}}),
            Self::Resume => json!({"spec": {"suspend": false}}),
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Cancel => "cancelled",
            Self::Suspend => "suspended",
            Self::Resume => "resumed",
        }
    }

    fn holds_back(self) -> bool {
        match self {
            Self::Cancel | Self::Suspend => true,
            Self::Resume => false,
        }
    }
}

/// Why a change would change nothing any more; one that matters only before the commit, or one that matters to the end. What is told here
/// may have changed when the change comes: the controller decides.
pub(super) fn comes_too_late(object: &PromotionRequest, before_commit: bool) -> Option<String> {
    if object.is_finished() {
        let phase = object.status.as_ref()?.phase.as_deref()?;
        return Some(format!("has ended: it is {phase}"));
    }
    let images = &object.status.as_ref()?.images;
    let committed = !images.is_empty() && images.iter().all(|i| object.has_committed(i));
    (committed && before_commit)
        .then(|| "is committed: its floats may have moved, and it runs to its end".into())
}
