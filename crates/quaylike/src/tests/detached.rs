//! The registry as a function, without a socket.

use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt as _;

use super::*;

async fn ask(router: &axum::Router, path: &str) -> axum::response::Response {
    let request = Request::get(path).header("accept", MANIFEST_TYPES.join(", "));
    let request = request.body(Body::empty()).unwrap();
    router.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn a_detached_registry_answers_redirects_and_marks_what_is_cut() {
    let (handle, router) = detached(Options::default().settings(Settings {
        redirect_blobs: true,
        ..Settings::default()
    }));
    let image = ImageSpec::new(Shape::Oci, "seed").build().unwrap();
    handle.seed_image("a/b", "t", &image).unwrap();
    assert_eq!(ask(&router, "/v2/a/b/manifests/t").await.status(), 200);

    let (digest, blob) = &image.blobs[0];
    let redirect = ask(&router, &format!("/v2/a/b/blobs/{digest}")).await;
    let location = redirect.headers()["location"].to_str().unwrap();
    let answer = ask(&router, location).await;
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await;
    assert_eq!(bytes.unwrap().len() as u64, blob.length());

    handle.add_rule(Rule::new(Matcher::default(), Action::LoseAnswer));
    let lost = ask(&router, "/v2/a/b/manifests/t").await;
    assert!(lost.extensions().get::<ConnectionCut>().is_some());
    assert_eq!(handle.requests(&Matcher::default()).len(), 4);
}
