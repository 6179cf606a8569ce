//! Finished requests: their status follows the generation of their spec, and they are deleted when their time to live is over.
//!
//! Only the leader sweeps. A sweep pages through all finished requests at a few calls a second, however many there are. It changes or
//! deletes a request only as it was listed: one that somebody changed or created again since is left to the next sweep. Unfinished
//! requests are never touched.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Object, ObjectList, Preconditions};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::api;
use crate::machine::Phase;
use crate::metrics::{Call, Metrics};
use crate::store::call::{call, causes};
use crate::store::cluster::Cluster;
use crate::store::kept::Kept;
use crate::store::{Key, Store as _, StoreError, key_of};

/// Objects on a page: at 1.5 MB each, the most memory that a sweep takes.
const PAGE: u32 = 20;
/// Between two calls of a sweep.
const PACE: Duration = Duration::from_millis(250);
/// How long one of them may take.
const CALL: Duration = Duration::from_secs(30);
/// When the first sweep starts: soon, so that leaders that never last long sweep too.
const FIRST: Duration = Duration::from_secs(10);

/// What a sweep reads of a spec.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ttl {
    ttl_seconds_after_finished: Option<i64>,
}

/// What a sweep reads of a status.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    phase: Option<String>,
    observed_generation: Option<i64>,
    completion_time: Option<Time>,
}

type Finished = Object<Ttl, Ended>;
type Listed = Kept<Ttl, Ended>;

/// What to do about a request.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Its time to live is over.
    Deletion,
    /// Its status speaks of an older generation of its spec.
    Refresh,
}

/// Sweeps for ever, about this often: the requests of `namespace`, or all.
pub async fn run(
    store: &Cluster,
    client: Client,
    namespace: Option<&str>,
    every: Duration,
    metrics: &Metrics,
) {
    let sweeper = Sweeper {
        store,
        client,
        namespace,
        metrics,
    };
    sleep(jittered(every.min(FIRST))).await;
    loop {
        sweeper.sweep().await;
        sleep(jittered(every)).await;
    }
}

struct Sweeper<'a> {
    store: &'a Cluster,
    client: Client,
    namespace: Option<&'a str>,
    metrics: &'a Metrics,
}

impl Sweeper<'_> {
    /// Looks at every finished request once.
    async fn sweep(&self) {
        let mut params = ListParams::default().fields(&selector()).limit(PAGE);
        loop {
            let (items, more) = match self.list(&params).await {
                Ok(page) => (page.items, page.metadata.continue_),
                // The list expired meanwhile; go on at the same place of a fresh one.
                Err(kube::Error::Api(status)) if status.code == 410 => {
                    (Vec::new(), status.metadata.and_then(|list| list.continue_))
                }
                Err(error) => {
                    tracing::warn!("cannot list finished requests: {}", causes(&error));
                    return;
                }
            };
            for item in items {
                // One that cannot be read is left alone.
                if let Ok((spec, status)) = item.content {
                    let request = Finished {
                        types: None,
                        metadata: item.metadata,
                        spec,
                        status,
                    };
                    self.look(&request).await;
                }
            }
            params.continue_token = more.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return;
            }
        }
    }

    async fn look(&self, request: &Finished) {
        let key = key_of(&request.metadata);
        match due(request, Timestamp::now()) {
            Due::Nothing => {}
            Due::Deletion => self.delete(&key, request).await,
            Due::Refresh => self.refresh(&key, request.metadata.uid.as_deref()).await,
        }
    }

    /// Deletes a request as it was listed.
    async fn delete(&self, key: &Key, request: &Finished) {
        sleep(PACE).await;
        let preconditions = Preconditions {
            uid: request.metadata.uid.clone(),
            resource_version: request.metadata.resource_version.clone(),
        };
        let params = DeleteParams::background().preconditions(preconditions);
        let api = self.api(Some(&key.namespace));
        let delete = api.delete(&key.name, &params);
        match call(self.metrics, Call::Delete, CALL, delete).await {
            Ok(Ok(_)) => {
                self.metrics.swept();
                tracing::info!(request = %key, "deleted: its ttlSecondsAfterFinished has passed");
            }
            // Changed, recreated or deleted since it was listed.
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {}
            Ok(Err(error)) => tracing::warn!(request = %key, "cannot delete: {}", causes(&error)),
            Err(_) => tracing::warn!(request = %key, "cannot delete: timed out"),
        }
    }

    /// Updates `observedGeneration` of a finished request: spec changes no longer matter to it.
    async fn refresh(&self, key: &Key, uid: Option<&str>) {
        sleep(PACE).await;
        let refreshed = async {
            let Some(mut object) = self.store.load(key).await? else {
                return Ok(());
            };
            if object.metadata.uid.as_deref() == uid && api::status::follow_generation(&mut object)
            {
                self.store.save(&object).await?;
            }
            Ok(())
        };
        match refreshed.await {
            Ok(()) | Err(StoreError::Conflict(_) | StoreError::Gone(_)) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Listed>> {
        sleep(PACE).await;
        let api = self.api(self.namespace);
        let listed = call(self.metrics, Call::List, CALL, api.list(params)).await;
        listed.unwrap_or_else(|_| {
            let timed_out = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Err(kube::Error::Service(timed_out.into()))
        })
    }

    fn api(&self, namespace: Option<&str>) -> Api<Listed> {
        let client = self.client.clone();
        match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }
}

/// Everything but the unfinished phases, so also phases of a newer version.
fn selector() -> String {
    let unfinished = Phase::ALL.into_iter().filter(|phase| !phase.is_finished());
    let unfinished = unfinished.map(Phase::as_str);
    let others = [""].into_iter().chain(unfinished);
    let terms: Vec<String> = others
        .map(|phase| format!("status.phase!={phase}"))
        .collect();
    terms.join(",")
}

fn due(request: &Finished, now: Timestamp) -> Due {
    let ended = request.status.clone().unwrap_or_default();
    let phase = ended.phase.as_deref().and_then(Phase::parse);
    let Some(completed) = ended
        .completion_time
        .filter(|_| phase.is_some_and(Phase::is_finished))
    else {
        return Due::Nothing;
    };
    if request.metadata.deletion_timestamp.is_some() {
        return Due::Nothing;
    }
    let ttl = request.spec.ttl_seconds_after_finished;
    let over =
        ttl.is_some_and(|ttl| now.duration_since(completed.0) >= SignedDuration::from_secs(ttl));
    if over {
        Due::Deletion
    } else if ended.observed_generation < request.metadata.generation {
        Due::Refresh
    } else {
        Due::Nothing
    }
}

/// Nine to eleven tenths of it, so that controllers of several clusters do not sweep in step.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn finished(phase: &str, ttl: i64, generations: (i64, i64)) -> Finished {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "generation": generations.0},
            "spec": {"ttlSecondsAfterFinished": ttl, "images": [], "cancel": false},
            "status": {
                "phase": phase,
                "observedGeneration": generations.1,
                "completionTime": at(0).to_string(),
                "images": [],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_finished_request_is_deleted_when_its_time_is_over_and_not_a_second_before() {
        for phase in ["Posted", "Planned", "Failed", "Cancelled"] {
            let request = finished(phase, 60, (3, 2));
            assert_eq!(due(&request, at(59)), Due::Refresh);
            assert_eq!(due(&request, at(60)), Due::Deletion);
        }
        let at_once = finished("Posted", 0, (1, 1));
        assert_eq!(due(&at_once, at(0)), Due::Deletion);
        // Written by a process whose clock is ahead.
        assert_eq!(due(&at_once, at(-1)), Due::Nothing);
    }

    #[test]
    fn nothing_is_due_for_what_is_unfinished_unknown_being_deleted_or_up_to_date() {
        let now = at(1_000_000);
        for phase in [
            "Pending",
            "Incoming",
            "BackedUp",
            "Latched",
            "Referencing",
            "Signing",
        ] {
            assert_eq!(due(&finished(phase, 0, (9, 1)), now), Due::Nothing);
        }
        let mut leaving = finished("Posted", 0, (9, 1));
        leaving.metadata.deletion_timestamp = Some(Time(at(5)));
        assert_eq!(due(&leaving, now), Due::Nothing);
        let mut unmarked = finished("Posted", 0, (9, 1));
        unmarked.status.as_mut().unwrap().completion_time = None;
        assert_eq!(due(&unmarked, now), Due::Nothing);
        assert_eq!(
            due(&finished("Posted", 9_999_999, (2, 2)), now),
            Due::Nothing
        );
        let mut unseen = finished("Posted", 9_999_999, (2, 2));
        unseen.status = None;
        assert_eq!(due(&unseen, now), Due::Nothing);
    }

    #[test]
    fn the_selection_leaves_out_every_unfinished_phase_and_what_has_none() {
        assert_eq!(
            selector(),
            "status.phase!=,status.phase!=Pending,status.phase!=Incoming,status.phase!=BackedUp,status.phase!=Latched,status.phase!=Referencing"
        );
    }
}
