//! Registry requests of one promotion: the command without a cluster, on the embedded registry.
//!
//! Out: requests, tokens and pings of each case beside what the protocol needs. They do not depend on the machine.

use promotion_controller::embedded::{
    Auth, AuthMode, Dialect, Embedded, Image, ImageSpec, Kind, Options, Settings, Shape, User,
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

pub async fn run(report: &mut Report) {
    method(
        "`promote` of one image on the embedded registry with bearer tokens, fetched on the way; the registry's own count, pings \
         and tokens apart. It behaves as distribution does, in the last two rows as quay does: there the labels of a mounted image \
         are read as well, once for each image.",
    );
    let mut table = Table::new(&["one promotion", "requests", "limit", "tokens", "pings"]);
    let new = image(Shape::Oci, "new", 3);
    let old = image(Shape::Oci, "old", 3);
    let blobs = 4;
    let mut dialect = Dialect::Distribution;
    let mut row =
        async |dialect, name: &str, limit: u64, seed: &dyn Fn(&Embedded), source: &str| {
            let bot = User::new("bot", "secret").push("ci").pull("src");
            let settings = Settings {
                dialect,
                ..Settings::default()
            };
            let options = Options::default()
                .settings(settings)
                .auth(Auth::new(AuthMode::Bearer).user(bot));
            let registry = Embedded::start(options).await.unwrap();
            seed(&registry);
            promote(&registry, source, "ci:float").await;
            let counts = registry.counts();
            let count = |kind: Kind| counts.get(&kind).copied().unwrap_or_default();
            let requests = count(Kind::Manifest) + count(Kind::Blob) + count(Kind::Upload);
            let figure = format!("{name}: {requests} requests");
            let within = requests <= limit;
            table.row([
                name.to_owned(),
                requests.to_string(),
                report.held(&figure, within, &limit.to_string()),
                count(Kind::Token).to_string(),
                count(Kind::Ping).to_string(),
            ]);
        };
    let by_digest = format!("src/app@{}", new.digest());
    let seeded = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &old).unwrap();
    };
    row(
        dialect,
        "existing float, another repository, 4 blobs mounted",
        12 + blobs,
        &seeded,
        &by_digest,
    )
    .await;
    let same = format!("ci@{}", new.digest());
    let in_repository = |registry: &Embedded| {
        registry.seed_image("ci", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &old).unwrap();
    };
    row(
        dialect,
        "existing float, the same repository",
        12,
        &in_repository,
        &same,
    )
    .await;
    let unchanged = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.seed_image("ci", "float", &new).unwrap();
    };
    row(
        dialect,
        "already at the source digest",
        1,
        &unchanged,
        &by_digest,
    )
    .await;
    let again = |registry: &Embedded| {
        seeded(registry);
        for tag in ["float_incoming", "float__post1"] {
            registry.seed_image("ci", tag, &old).unwrap();
        }
    };
    row(
        dialect,
        "promoted before: _incoming and __post1 hold the old digest",
        12 + blobs,
        &again,
        &by_digest,
    )
    .await;
    let stranger = image(Shape::Oci, "stranger", 1);
    let rescue = |registry: &Embedded| {
        seeded(registry);
        registry
            .seed_image("ci", "float_incoming", &stranger)
            .unwrap();
    };
    row(
        dialect,
        "_incoming is the last pin of another digest: rescue",
        14 + blobs,
        &rescue,
        &by_digest,
    )
    .await;
    let first = |registry: &Embedded| {
        registry.seed_image("src/app", "seed", &new).unwrap();
        registry.create_repository("ci");
    };
    row(
        dialect,
        "first promotion, 4 blobs mounted",
        7 + blobs,
        &first,
        &by_digest,
    )
    .await;
    dialect = Dialect::Quay;
    let name = "quay: existing float, another repository, 4 blobs mounted";
    row(dialect, name, 13 + blobs, &seeded, &by_digest).await;
    let name = "quay: already at the source digest";
    row(dialect, name, 1, &unchanged, &by_digest).await;
    table.print();
}

/// Promotes one image (source, float; without the host).
async fn promote(registry: &Embedded, source: &str, float: &str) {
    let folder = RunDir::create("requests").unwrap();
    let host = registry.host();
    promotion::log_in(folder.path(), &host, Some(("bot", "secret")));
    let images = [(format!("{host}/{source}"), format!("{host}/{float}"))];
    let task = promotion::promote(folder.path(), &images, &[&host], &["--registry-qps=0"]);
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{}", taken.stderr);
}
