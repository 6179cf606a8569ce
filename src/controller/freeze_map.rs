//! The ConfigMap of the freezes, as those see it who freeze floats.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use super::installation::{DEFINITION, LEASE, LEASE_NAME};
use crate::engine::freeze::{FreezeLine, LINES_MAX, meant};
use crate::store::call::causes;

/// How it is named.
pub const NAME: &str = "promotion-controller-freezes";
/// Its key.
pub const KEY: &str = "freezes";
/// The Lease's annotation: the resourceVersion of the ConfigMap that the leader follows.
pub const FOLLOWED: &str = "promotion-controller.ci.openshift.io/freezes";
/// The longest a call may take.
const CALL: Duration = Duration::from_secs(30);
/// How often somebody else may be first.
const TRIES: usize = 8;

/// The freezes of one installation.
pub struct FreezeMap {
    maps: Api<ConfigMap>,
    leases: Api<Lease>,
    namespace: String,
}

/// What is frozen, as it was read.
pub struct FreezesRead {
    text: String,
    map: Option<ConfigMap>,
}

/// Why nothing was read, or nothing written.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// What is there, or what was given, does not allow it.
    #[error("{0}; nothing was changed")]
    Unfit(String),
    /// The cluster did not do as asked.
    #[error("{0}")]
    Failed(String),
}

impl FreezeMap {
    /// The freezes of the installation that the definition names, or of the one whose Lease is in `namespace`.
    ///
    /// # Errors
    /// The definition cannot be read, or names none.
    pub async fn find(client: Client, namespace: Option<String>) -> Result<Self, FreezeError> {
        let namespace = match namespace {
            Some(namespace) => namespace,
            None => named(client.clone()).await?,
        };
        Ok(Self {
            maps: Api::namespaced(client.clone(), &namespace),
            leases: Api::namespaced(client, &namespace),
            namespace,
        })
    }

    /// How messages name it.
    #[must_use]
    pub fn place(&self) -> String {
        format!("ConfigMap {}/{NAME}", self.namespace)
    }

    /// Reads it; without one nothing is frozen.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(&self) -> Result<FreezesRead, FreezeError> {
        let map = self
            .call(self.maps.get_opt(NAME))
            .await?
            .map_err(|error| self.failed(&error))?;
        let data = map.as_ref().and_then(|map| map.data.as_ref());
        let text = data.and_then(|data| data.get(KEY)).cloned();
        Ok(FreezesRead {
            text: text.unwrap_or_default(),
            map,
        })
    }

    /// Changes it, and gives the version that has the change.
    ///
    /// # Errors
    /// As `change` says, or the cluster; nothing was written then.
    pub async fn change(
        &self,
        change: impl Fn(&FreezesRead) -> Result<String, String>,
    ) -> Result<String, FreezeError> {
        for _ in 0..TRIES {
            let read = self.read().await?;
            let text = change(&read).map_err(FreezeError::Unfit)?;
            let mut map = read.map.clone().unwrap_or_else(|| ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.into()),
                    ..ObjectMeta::default()
                },
                ..ConfigMap::default()
            });
            map.data
                .get_or_insert_with(BTreeMap::new)
                .insert(KEY.into(), text);
            let params = PostParams::default();
            let written = if read.map.is_some() {
                self.call(self.maps.replace(NAME, &params, &map)).await?
            } else {
                self.call(self.maps.create(&params, &map)).await?
            };
            match written {
                Ok(map) => return Ok(map.metadata.resource_version.unwrap_or_default()),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(FreezeError::Failed(format!(
            "{} keeps changing; try again",
            self.place()
        )))
    }

    /// Whether the leader follows this version, or a later one.
    ///
    /// # Errors
    /// The Lease cannot be read.
    pub async fn is_followed(&self, version: &str) -> Result<bool, FreezeError> {
        let lease = self
            .call(self.leases.get_opt(LEASE_NAME))
            .await?
            .map_err(|error| self.failed(&error))?;
        let marks = lease.and_then(|lease| lease.metadata.annotations);
        let followed = marks.and_then(|marks| marks.get(FOLLOWED)?.parse::<u64>().ok());
        let version = version.parse::<u64>().ok();
        Ok(followed >= version && version.is_some())
    }

    async fn call<T>(&self, answer: impl Future<Output = T>) -> Result<T, FreezeError> {
        let late = |_| FreezeError::Failed(format!("no answer within {} s", CALL.as_secs()));
        tokio::time::timeout(CALL, answer).await.map_err(late)
    }

    fn failed(&self, error: &kube::Error) -> FreezeError {
        let why = causes(error);
        match error {
            kube::Error::Api(status) if status.code == 403 => FreezeError::Failed(format!(
                "{why}; ask for the Role promotion-controller-freeze of namespace {}",
                self.namespace
            )),
            kube::Error::Api(status) if matches!(status.code, 400 | 422) => FreezeError::Unfit(why),
            _ => FreezeError::Failed(why),
        }
    }
}

impl FreezesRead {
    /// All that is written there.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The version that was read; none: there is nothing.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.map.as_ref()?.metadata.resource_version.as_deref()
    }

    /// The text without the freezes that `out` names and with these.
    ///
    /// # Errors
    /// A line of it cannot be read: what it holds is not known.
    pub fn with(
        &self,
        out: impl Fn(&FreezeLine) -> bool,
        new: &[FreezeLine],
    ) -> Result<String, String> {
        let (mut removed, mut kept) = (Vec::new(), 0);
        for (number, line) in meant(&self.text) {
            let read: FreezeLine = line.parse().map_err(|why| {
                format!("line {number} of the key {KEY} of ConfigMap {NAME} cannot be read: {why}; correct it first (kubectl edit)")
            })?;
            if out(&read) {
                removed.push(number);
            } else {
                kept += 1;
            }
        }
        if kept + new.len() > LINES_MAX {
            return Err(format!(
                "there is no room for more than {LINES_MAX} freezes; unfreeze some first"
            ));
        }
        let lines = self.text.lines().enumerate();
        let kept = lines.filter(|(index, _)| !removed.contains(&(index + 1)));
        let kept = kept.map(|(_, line)| line.to_owned());
        let all = kept.chain(new.iter().map(ToString::to_string));
        Ok(all.map(|line| line + "\n").collect())
    }
}

/// The namespace of the Lease that the definition names.
async fn named(client: Client) -> Result<String, FreezeError> {
    let remedy = "name the namespace of the controller's Lease with --lease-namespace";
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let found = tokio::time::timeout(CALL, api.get_metadata(DEFINITION)).await;
    let found =
        found.map_err(|_| FreezeError::Failed(format!("no answer within {} s", CALL.as_secs())))?;
    let definition = found.map_err(|error| {
        FreezeError::Failed(format!(
            "which controller rules cannot be read: {}; {remedy}",
            causes(&error)
        ))
    })?;
    let marks = definition.metadata.annotations.unwrap_or_default();
    let lease = marks.get(LEASE).and_then(|lease| lease.split_once('/'));
    let lease = lease
        .ok_or_else(|| FreezeError::Failed(format!("the CRD names no controller; {remedy}")))?;
    Ok(lease.0.into())
}
