//! `open-gate`: a gate is taken out of a request, and no other one.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::act::{comes_too_late, done};
use super::reach::{ClusterArgs, Reach, Stop};
use super::status::show;
use crate::api::PromotionRequest;
use crate::store::requests::RequestError;
use crate::store::{Key, Stored};

/// So often is tried anew because somebody else opened another gate meanwhile: a request has no more of them.
const TRIES: usize = 8;

/// Which gate of which request.
#[derive(Debug, Args)]
pub(in crate::cli) struct OpenGateArgs {
    /// The request.
    request: String,
    /// The gate, as in spec.gates.
    gate: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: OpenGateArgs) -> Result<ExitCode, Stop> {
    let OpenGateArgs {
        request,
        gate,
        cluster,
    } = args;
    let form = cluster.output;
    let reach = Reach::one(cluster).await?;
    let key = reach.key(&request);
    let mut found = reach.requests.get(&key).await?;
    for _ in 0..TRIES {
        let Stored::Read(object) = &found.stored else {
            return Err(Stop::Input(format!(
                "{key} cannot be read by this version; use one that knows all its fields"
            )));
        };
        let others = without(object, &key, &gate).map_err(Stop::Input)?;
        // Of two who open a gate each at once, the second's list has the first's gate again: gates cannot be added, so it is refused.
        let changed = match reach.requests.change(&key, &others).await {
            Err(RequestError::Invalid(why)) => {
                let now = reach.requests.get(&key).await?;
                if now.object().map(gates) == Some(gates(object)) {
                    return Err(RequestError::Invalid(why).into());
                }
                found = now;
                continue;
            }
            changed => changed?,
        };
        done(&key, &format!("gate {gate} opened"), form, || {
            show(&changed, form)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Stop::Failed(format!(
        "{key}: its gates keep changing; try again"
    )))
}

fn gates(object: &PromotionRequest) -> Vec<&str> {
    let gates = object.spec.gates.iter();
    gates.map(|gate| gate.name.as_str()).collect()
}

/// The change that leaves all other gates.
fn without(object: &PromotionRequest, key: &Key, gate: &str) -> Result<serde_json::Value, String> {
    if let Some(why) = comes_too_late(object, true) {
        return Err(format!("{key} {why}; nothing was changed"));
    }
    let all = gates(object);
    let others: Vec<_> = all.iter().filter(|&&name| name != gate).collect();
    if others.len() == all.len() {
        let has = match all.as_slice() {
            [] => "none".to_owned(),
            all => all.join(", "),
        };
        return Err(format!(
            "{key} has no gate {gate} (left: {has}); nothing was changed"
        ));
    }
    let others: Vec<_> = others.iter().map(|name| json!({"name": name})).collect();
    Ok(json!({"spec": {"gates": others}}))
}
