//! Registry requests of one promotion: the command without a cluster, on the embedded registry.
//!
//! Out: requests, tokens and pings of each case beside what the protocol needs. They do not depend on the machine.

use std::collections::BTreeMap;

use quaylike::{
    Auth, AuthMode, Dialect, Image, ImageSpec, Options, Registry, RequestKind, Settings, Shape,
    User,
};

use crate::promotion;
use crate::report::{Report, Table, method};
use crate::testbed::RunDir;

const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// An image of so many layers and a config.
pub fn image(shape: Shape, seed: &str, layers: usize) -> Image {
    let mut spec = ImageSpec::new(shape, seed);
    spec.layers = layers;
    spec.build().unwrap()
}

/// One promotion to `ci:float`.
struct Case {
    name: &'static str,
    dialect: Dialect,
    shape: Shape,
    limit: u64,
    /// Where the new image is.
    repository: &'static str,
    /// What tags of `ci` hold before.
    tags: &'static [(&'static str, &'static str)],
}

/// Blobs of the new image: three layers and a config.
const BLOBS: u64 = 4;

const CASE: Case = Case {
    name: "existing float, another repository, 4 blobs mounted",
    dialect: Dialect::Distribution,
    shape: Shape::Oci,
    limit: 12 + BLOBS,
    repository: "src/app",
    tags: &[("float", "old")],
};

const CASES: [Case; 9] = [
    CASE,
    Case {
        name: "existing float, an index of two images, 8 blobs mounted",
        shape: Shape::Index,
        limit: 16 + 2 * BLOBS,
        ..CASE
    },
    Case {
        name: "existing float, the same repository",
        limit: 12,
        repository: "ci",
        ..CASE
    },
    Case {
        name: "already at the source digest",
        limit: 1,
        tags: &[("float", "new")],
        ..CASE
    },
    Case {
        name: "promoted before: _incoming and __post1 hold the old digest",
        tags: &[
            ("float", "old"),
            ("float_incoming", "old"),
            ("float__post1", "old"),
        ],
        ..CASE
    },
    Case {
        name: "_incoming is the last pin of another digest: rescue",
        limit: 15 + BLOBS,
        tags: &[("float", "old"), ("float_incoming", "stranger")],
        ..CASE
    },
    Case {
        name: "first promotion, 4 blobs mounted",
        limit: 7 + BLOBS,
        tags: &[],
        ..CASE
    },
    Case {
        name: "quay: existing float, another repository, 4 blobs mounted",
        dialect: Dialect::Quay,
        limit: 14 + BLOBS,
        ..CASE
    },
    Case {
        name: "quay: already at the source digest",
        dialect: Dialect::Quay,
        limit: 1,
        tags: &[("float", "new")],
        ..CASE
    },
];

pub async fn run(report: &mut Report) {
    method(
        "`promote` of one image on the embedded registry with bearer tokens, fetched on the way; the registry's own count, pings \
         and tokens apart. It behaves as distribution does, in the last two rows as quay does: there the labels of a mounted image, \
         and of the one displaced, are read as well, once for each image.",
    );
    method(
        "B blobs mounted from another repository take B requests. A child of an index adds a GET and a PUT, whether it is there \
         already or not. Each registry gets one ping. Where it grants several scopes at once, a request takes one token from it for each \
         credential, however many source repositories it has (of 24 at most), until the token expires; those of few repositories share tokens \
         with later requests. Of an existing float 15 requests come one after another, the first and the token among them: so often a registry's \
         latency is waited for. `counts.json` of the registry tests fails where one of these counts rises.",
    );
    let mut table = Table::new(&["one promotion", "requests", "limit", "tokens", "pings"]);
    for case in CASES {
        let counts = case.counts().await;
        let count = |kind: RequestKind| counts.get(&kind).copied().unwrap_or_default();
        let requests =
            count(RequestKind::Manifest) + count(RequestKind::Blob) + count(RequestKind::Upload);
        // The first upload session that is asked for stands for the ping.
        let pings =
            count(RequestKind::Ping) + count(RequestKind::Upload).saturating_sub(case.mounts());
        let requests = requests - count(RequestKind::Upload).saturating_sub(case.mounts());
        let figure = format!("{}: {requests} requests", case.name);
        let within = requests <= case.limit;
        table.row([
            case.name.to_owned(),
            requests.to_string(),
            report.held(&figure, within, &case.limit.to_string()),
            count(RequestKind::Token).to_string(),
            pings.to_string(),
        ]);
    }
    table.print();
}

impl Case {
    /// Mounts that are needed.
    fn mounts(&self) -> u64 {
        let there = self.repository == "ci" || self.tags.contains(&("float", "new"));
        let images = if self.shape == Shape::Index { 2 } else { 1 };
        if there { 0 } else { images * BLOBS }
    }

    /// The requests that a registry counted.
    async fn counts(&self) -> BTreeMap<RequestKind, u64> {
        let bot = User::new("bot", "secret").push("ci").pull("src");
        let settings = Settings {
            dialect: self.dialect,
            ..Settings::default()
        };
        let options = Options::default()
            .settings(settings)
            .auth(Auth::new(AuthMode::Bearer).user(bot));
        let registry = Registry::start(options).await.unwrap();
        let new = image(self.shape, "new", 3);
        registry.seed_image(self.repository, "seed", &new).unwrap();
        registry.create_repository("ci");
        for (tag, seed) in self.tags {
            let held = image(Shape::Oci, seed, 3);
            registry.seed_image("ci", tag, &held).unwrap();
        }
        let source = format!("{}@{}", self.repository, new.digest());
        promote(&registry, &source, "ci:float").await;
        registry.counts()
    }
}

/// Promotes one image (source, float; without the host).
async fn promote(registry: &Registry, source: &str, float: &str) {
    let folder = RunDir::create("requests").unwrap();
    let host = registry.host();
    promotion::log_in(folder.path(), &host, Some(("bot", "secret")));
    let images = [(format!("{host}/{source}"), format!("{host}/{float}"))];
    let task = promotion::promote(folder.path(), &images, &[&host], &["--registry-qps=0"]);
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}", taken.stderr);
}
