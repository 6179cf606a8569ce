//! Where an undo reads what was promoted: the requests of a cluster, or those of a file and the state that `promote` keeps beside it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::super::promote::state_beside;
use super::past::{Scope, Touch, newest_first, touches};
use super::reach::{Reach, Stop};
use crate::api::PromotionRequest;
use crate::image::Stamp;
use crate::store::Key;
use crate::store::file::{FileStore, read_requests};
use crate::store::requests::Listed;

/// What was promoted.
pub(super) enum Records {
    Cluster(Box<Reach>),
    File(Vec<Listed>),
}

impl Records {
    /// The requests of `file`, as its state records them.
    pub(super) fn of_file(file: &Path, state: Option<PathBuf>) -> Result<Self, Stop> {
        let state = state.unwrap_or_else(|| state_beside(file));
        if !state.exists() {
            let state = state.display();
            return Err(Stop::Input(format!(
                "{state} does not exist: nothing is recorded of a promote of {}; --state names its state file",
                file.display()
            )));
        }
        let input = |error: &dyn std::fmt::Display| Stop::Input(error.to_string());
        let objects = read_requests(file).map_err(|error| input(&error))?;
        let objects = FileStore::recorded(objects, &state).map_err(|error| input(&error))?;
        let listed = objects.into_iter().map(listed);
        let listed = listed.collect::<Result<_, _>>();
        Ok(Self::File(listed.map_err(|error| input(&error))?))
    }

    /// A request by its name.
    pub(super) async fn get(&self, name: &str) -> Result<Listed, Stop> {
        let listed = match self {
            Self::Cluster(reach) => return Ok(reach.requests.get(&reach.key(name)).await?),
            Self::File(listed) => listed,
        };
        let is = |one: &&Listed| one.key().name == name || one.key().to_string() == name;
        let mut found = listed.iter().filter(is);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => Err(Stop::Input(format!("the file has no request {name}"))),
            (Some(_), Some(_)) => Err(Stop::Input(format!(
                "the file has several requests {name}; write NAMESPACE/{name}"
            ))),
        }
    }

    /// What is recorded of a float, newest first.
    pub(super) async fn touches(&self, float: &str) -> Result<Vec<Touch>, Stop> {
        match self {
            Self::Cluster(reach) => Ok(touches(reach, float, Scope::Everywhere).await?),
            Self::File(listed) => {
                let found = listed.iter().filter_map(|one| Touch::of(one, float));
                Ok(newest_first(found.collect()))
            }
        }
    }

    /// Whether Secrets of a request are at hand for another.
    pub(super) fn shares_secrets(&self, request: &Key) -> bool {
        match self {
            Self::Cluster(reach) => request.namespace == reach.home(),
            Self::File(_) => true,
        }
    }

    /// Names a new request after another; the API server makes up the rest of the name, a file has the time in it.
    pub(super) fn name_undo(&self, object: &mut PromotionRequest, after: &str) {
        let metadata = &mut object.metadata;
        match self {
            Self::Cluster(_) => {
                metadata.name = None;
                metadata.generate_name = Some(format!("{after}-undo-"));
            }
            Self::File(_) => {
                let now = Stamp::at(Timestamp::now());
                metadata.name = Some(format!("{after}-undo-{now}"));
            }
        }
    }
}

fn listed(object: PromotionRequest) -> Result<Listed, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(object)?)
}
