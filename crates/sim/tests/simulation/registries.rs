//! The registries of a world: one with sources, one with floats that collects at once. They answer when the world asks them, and at once.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response};
use quaylike::{
    Action, Auth, AuthMode, ConnectionCut, Dangling, Digest, ImageSpec, Matcher, Options,
    RegistryHandle, Rule, Settings, Shape, User, detached,
};
use tower::ServiceExt as _;

/// The registry of the floats.
pub const FLOATS: &str = "quay.sim";
/// Their repository.
pub const REPOSITORY: &str = "ci";
/// The registry of the sources.
pub const SOURCES: &str = "registry.sim";
/// Whoever promotes, at both; each has a namespace of its name with its Secret.
pub const USERS: [&str; 2] = ["ci", "other"];
/// Their password.
pub const PASSWORD: &str = "secret";

/// Both registries.
pub struct Registries {
    by_host: BTreeMap<&'static str, (RegistryHandle, Router)>,
}

impl Registries {
    pub fn new() -> Self {
        let settings = Settings {
            audit: true,
            ..Settings::default()
        };
        let users = USERS.map(|user| User::new(user, PASSWORD).pull("").push(""));
        let auth = users
            .into_iter()
            .fold(Auth::new(AuthMode::Bearer), Auth::user);
        let options = Options::default().auth(auth).settings(settings);
        let by_host = [FLOATS, SOURCES].map(|host| (host, detached(options.clone())));
        Self {
            by_host: by_host.into(),
        }
    }

    pub fn floats(&self) -> &RegistryHandle {
        &self.by_host[FLOATS].0
    }

    /// A source of this name, and how a request names it.
    pub fn source(&self, name: &str) -> (Digest, String) {
        let spec = ImageSpec::new(Shape::Oci, name);
        let repository = format!("src/{name}");
        let digest = self.by_host[SOURCES].0.seed_spec(&repository, "x", &spec);
        let digest = digest.unwrap();
        (digest, format!("{SOURCES}/{repository}@{digest}"))
    }

    /// Puts a float on an image of its own.
    pub fn begin_at(&self, float: &str) -> Digest {
        let spec = ImageSpec::new(Shape::Oci, &format!("old {float}"));
        self.floats().seed_spec(REPOSITORY, float, &spec).unwrap()
    }

    /// Somebody else puts an image of theirs to a tag, or deletes it.
    pub fn meddle(&self, tag: &str, image: Option<&str>) -> Option<Digest> {
        if let Some(image) = image {
            let spec = ImageSpec::new(Shape::Oci, image);
            return self.floats().seed_spec(REPOSITORY, tag, &spec).ok();
        }
        // It may not be there.
        let _ = self.floats().delete_tag(REPOSITORY, tag);
        None
    }

    /// The next read of a tag tells what it was so long before.
    pub fn lag(&self, lag: Duration) {
        let ms = u64::try_from(lag.as_millis()).unwrap_or_default();
        let rule = Rule::new(Matcher::default(), Action::StaleRead { ms });
        self.floats().add_rule(rule.times(1));
    }

    pub fn tag(&self, tag: &str) -> Option<Digest> {
        self.floats().tag(REPOSITORY, tag)
    }

    /// What dangled at any instant.
    pub fn dangled(&self) -> Vec<Dangling> {
        self.floats().audit_trail()
    }

    /// Answers a request; none: the connection is cut.
    pub fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let (_, router) = self.by_host.get(host.as_str())?;
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = path.parse().unwrap();
        head.headers
            .insert(http::header::HOST, host.parse().unwrap());
        if !body.is_empty() {
            head.headers
                .insert(http::header::CONTENT_LENGTH, body.len().into());
        }
        let request = Request::from_parts(head, Body::from(body));
        let answer = router.clone().oneshot(request).now_or_never();
        let answer = answer.expect("nothing here waits").unwrap();
        if answer.extensions().get::<ConnectionCut>().is_some() {
            return None;
        }
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).now_or_never();
        let body = body.expect("it is in memory").unwrap();
        Some(Response::from_parts(head, body))
    }
}
