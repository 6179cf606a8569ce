//! What the registry tests stand on: embedded registries, credentials, and a client with short rests.

use promotion_controller::{image, registry};

use std::time::Duration;

use image::{Reference, Repository, Tag};
use quaylike::{Auth, AuthMode, ImageSpec, Options, Registry, Settings as Switches, Shape, User};
use registry::{Credential, Keyring, Manifest, Progress, Put, RegistryClient, Settings};

pub async fn open() -> Registry {
    Registry::start(Options::default()).await.unwrap()
}

/// `bot` may push below `team` and pull below `src`; `reader` may pull below `src`; `other` may push below `team` only.
pub async fn guarded(mode: AuthMode) -> Registry {
    let auth = Auth::new(mode)
        .user(User::new("bot", "bot-s3cret").push("team").pull("src"))
        .user(User::new("reader", "reader-s3cret").pull("src"))
        .user(User::new("other", "other-s3cret").push("team"));
    Registry::start(Options::default().auth(auth))
        .await
        .unwrap()
}

pub async fn redirecting() -> Registry {
    let switches = Switches {
        redirect_blobs: true,
        ..Switches::default()
    };
    let auth = Auth::new(AuthMode::Bearer).user(User::new("reader", "reader-s3cret").pull("src"));
    Registry::start(Options::default().settings(switches).auth(auth))
        .await
        .unwrap()
}

pub fn settings(hosts: &[&Registry]) -> Settings {
    Settings {
        plain_http: hosts.iter().map(|host| host.host()).collect(),
        qps: 0,
        put_timeout: Duration::from_millis(400),
        ..Settings::default()
    }
}

pub fn client_with(settings: Settings) -> RegistryClient {
    super::install_tls();
    RegistryClient::with_backoff(
        settings,
        Duration::from_millis(20),
        Duration::from_millis(100),
    )
    .unwrap()
}

pub fn client(hosts: &[&Registry]) -> RegistryClient {
    client_with(settings(hosts))
}

pub fn repository(host: &Registry, path: &str) -> Repository {
    format!("{}/{path}", host.host()).parse().unwrap()
}

pub fn tag(tag: &str) -> Tag {
    tag.parse().unwrap()
}

pub fn by_tag(name: &str) -> Reference {
    Reference::Tag(tag(name))
}

pub fn credential(host: &Registry, user: &str) -> Credential {
    let json = serde_json::json!({"auths": {host.host(): {"username": user, "password": format!("{user}-s3cret")}}});
    let ring = Keyring::parse(json.to_string().as_bytes(), "Secret ci/robot").unwrap();
    ring.credential(&repository(host, "any/thing")).unwrap()
}

/// Seeds an image and returns it as the client reads it.
pub async fn seeded(
    host: &Registry,
    client: &RegistryClient,
    path: &str,
    shape: Shape,
    who: &Credential,
) -> Manifest {
    host.seed_spec(path, "seed", &ImageSpec::new(shape, "seed"))
        .unwrap();
    fetched(host, client, path, who).await
}

pub async fn fetched(
    host: &Registry,
    client: &RegistryClient,
    path: &str,
    who: &Credential,
) -> Manifest {
    let progress = Progress::default();
    client
        .get(&repository(host, path), &by_tag("seed"), who, &progress)
        .await
        .unwrap()
        .unwrap()
}

/// Writes a tag without a credential, as often as it is called.
pub async fn put(
    client: &RegistryClient,
    host: &Registry,
    path: &str,
    name: &str,
    manifest: &Manifest,
) -> Put {
    let (target, none, progress) = (
        repository(host, path),
        Credential::anonymous(),
        Progress::default(),
    );
    client
        .put_tag(&target, &tag(name), manifest, &none, || true, &progress)
        .await
}
