//! Which cluster and namespace a command is about, and how it ends.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kube::Client;

use super::super::cluster::{self, Choice};
use super::super::output::{Output, bad_input, fail, print_text, say};
use crate::store::Key;
use crate::store::requests::{Listed, RequestError, Requests, Selection};

/// Which cluster and namespace, and how it is shown.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct ClusterArgs {
    /// The kubeconfig [default: `$KUBECONFIG`, else ~/.kube/config, else the pod's account].
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one].
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The requests' namespace [default: the context's].
    #[arg(short = 'n', long, value_name = "NAMESPACE", global = true)]
    namespace: Option<String>,
    /// All namespaces, where several requests are shown.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How it is shown; json and yaml give the objects.
    #[arg(
        short = 'o',
        long,
        value_name = "FORMAT",
        global = true,
        value_enum,
        default_value_t
    )]
    pub(super) output: Form,
}

/// How something is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Form {
    /// For people.
    #[default]
    Table,
    /// The same, with more columns.
    Wide,
    /// The objects.
    Json,
    /// The objects.
    Yaml,
}

/// A cluster that can be asked.
pub(super) struct Reach {
    pub(super) requests: Requests,
    pub(super) client: Client,
    /// None: all.
    pub(super) namespace: Option<String>,
    home: String,
}

/// Why a command ended before it was done.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something is wrong with what was given: nothing was done.
    Input(String),
    /// The cluster did not do as asked.
    Failed(String),
}

// === impl Form ===

impl Form {
    /// How objects are printed, where they are asked for.
    pub(super) fn objects(self) -> Option<Output> {
        match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(Output::Json),
            Self::Yaml => Some(Output::Yaml),
        }
    }

    pub(super) fn is_wide(self) -> bool {
        self == Self::Wide
    }
}

// === impl Reach ===

impl Reach {
    /// Connects, for one namespace or for all.
    pub(super) async fn several(args: ClusterArgs) -> Result<Self, Stop> {
        let ClusterArgs {
            kubeconfig,
            context,
            namespace,
            all_namespaces,
            output: _,
        } = args;
        let choice = Choice {
            kubeconfig,
            context,
        };
        let cluster = cluster::connect(&choice).await.map_err(Stop::Input)?;
        let home = namespace.unwrap_or(cluster.namespace);
        Ok(Self {
            requests: Requests::new(cluster.client.clone()),
            client: cluster.client,
            namespace: (!all_namespaces).then(|| home.clone()),
            home,
        })
    }

    /// Connects, for one namespace.
    pub(super) async fn one(args: ClusterArgs) -> Result<Self, Stop> {
        if args.all_namespaces {
            let message = "-A names no namespace; name the request's with -n";
            return Err(Stop::Input(message.into()));
        }
        Self::several(args).await
    }

    /// The namespace of new requests, and of those that are named.
    pub(super) fn home(&self) -> &str {
        &self.home
    }

    /// Gives the requests of all namespaces to `each`, or, where the caller may not see those, the ones of its own, and says so.
    pub(super) async fn everywhere(
        &self,
        mut each: impl FnMut(Vec<Listed>),
    ) -> Result<(), RequestError> {
        match self.requests.pages(None, Selection::All, &mut each).await {
            Err(RequestError::Forbidden(_)) => {
                let home = &self.home;
                say(&format!(
                    "only the requests of namespace {home} can be looked at: those of others may have moved these floats since"
                ));
                self.requests.pages(Some(home), Selection::All, each).await
            }
            all => all,
        }
    }

    /// Names a request of this namespace; the prefix of its kind, as `kubectl get -o name` gives it, may stand before.
    pub(super) fn key(&self, name: &str) -> Key {
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        Key {
            namespace: self.home.clone(),
            name: name.into(),
        }
    }
}

// === impl Stop ===

impl Stop {
    pub(super) fn exit(self) -> ExitCode {
        match self {
            Self::Input(message) => bad_input(&message),
            Self::Failed(message) => fail(&message),
        }
    }
}

impl From<RequestError> for Stop {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::Absent(_) | RequestError::Invalid(_) => Self::Input(message),
            RequestError::Forbidden(_) | RequestError::Failed(_) => Self::Failed(message),
        }
    }
}

/// Prints a text on standard output.
pub(super) fn print(text: &str) -> Result<(), Stop> {
    print_text(text).map_err(Stop::Failed)
}
