//! The registry over HTTP, asked by an ordinary client.

#![allow(clippy::unwrap_used)]

mod access;
mod detached;
mod faults;
mod gates;
mod protocol;
mod remote;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

use super::*;

/// A registry and a client of it. The client follows no redirects.
struct Bench {
    registry: Registry,
    client: Client,
}

impl Bench {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let registry = Registry::start(options).await.unwrap();
        registry.update(|settings| settings.audit = true);
        let client = client();
        Self { registry, client }
    }

    fn ask(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.registry.url())
        };
        self.client.request(method, url)
    }

    /// A request that accepts every manifest type, by anybody.
    async fn send(&self, method: &str, path: &str) -> Response {
        let request = self
            .ask(method, path)
            .header("accept", MANIFEST_TYPES.join(", "));
        request.send().await.unwrap()
    }

    fn put_request(
        &self,
        repository: &str,
        reference: &str,
        manifest: &Manifest,
    ) -> RequestBuilder {
        self.ask("PUT", &format!("/v2/{repository}/manifests/{reference}"))
            .header("content-type", manifest.media_type)
            .body(manifest.bytes.clone())
    }

    async fn put(&self, repository: &str, reference: &str, manifest: &Manifest) -> Response {
        self.put_request(repository, reference, manifest)
            .send()
            .await
            .unwrap()
    }

    /// An image that is tagged in a repository.
    fn seed(&self, repository: &str, tag: &str, shape: Shape, seed: &str) -> Image {
        let image = ImageSpec::new(shape, seed).build().unwrap();
        self.registry.seed_image(repository, tag, &image).unwrap();
        image
    }
}

/// A client that follows no redirects and goes through no proxy.
#[expect(clippy::disallowed_methods, reason = "it installs the provider")]
fn client() -> Client {
    // Plain HTTP alone is spoken, but a client is not built without a provider; a second installation is refused, which is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    let redirect = reqwest::redirect::Policy::none();
    Client::builder()
        .redirect(redirect)
        .no_proxy()
        .build()
        .unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// Code and whole body of a JSON error.
async fn error(response: Response) -> (String, Value) {
    let body: Value = response.json().await.unwrap();
    (body["errors"][0]["code"].as_str().unwrap().to_owned(), body)
}
