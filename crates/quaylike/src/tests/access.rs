//! Credentials: none, Basic, bearer tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

fn auth(mode: AuthMode) -> Options {
    let bot = User::new("bot", "right").push("openshift/ci").pull("src");
    Options::default().auth(Auth::new(mode).user(bot).public("open"))
}

async fn token(bench: &Bench, user: Option<(&str, &str)>, scopes: &[&str]) -> Response {
    let mut request = bench.ask("GET", "/v2/auth").query(&[("service", "any")]);
    for scope in scopes {
        request = request.query(&[("scope", scope)]);
    }
    if let Some((name, password)) = user {
        request = request.basic_auth(name, Some(password));
    }
    request.send().await.unwrap()
}

async fn text(response: Response) -> String {
    let body: Value = response.json().await.unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "no expires_in");
    body["token"].as_str().unwrap().to_owned()
}

fn payload(token: &str) -> Value {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3);
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap()
}

#[tokio::test]
async fn a_bearer_challenge_leads_to_a_token_that_opens_the_repository() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let image = bench.seed("openshift/ci", "x", Shape::Oci, "x");
    let ping = bench.send("GET", "/v2/").await;
    assert_eq!(ping.status(), 401);
    let challenge = header(&ping, "www-authenticate");
    let expected = format!(
        "Bearer realm=\"http://{0}/v2/auth\",service=\"{0}\"",
        bench.registry.host()
    );
    assert_eq!(challenge, expected);
    let scope = "repository:openshift/ci:pull,push";
    let token = text(token(&bench, Some(("bot", "right")), &[scope]).await).await;
    let claims = payload(&token);
    assert_eq!(claims["access"][0]["name"], "openshift/ci");
    assert_eq!(
        claims["access"][0]["actions"],
        serde_json::json!(["pull", "push"])
    );
    assert!(claims["exp"].as_i64().unwrap() > claims["iat"].as_i64().unwrap() + 3_000);
    let path = "/v2/openshift/ci/manifests/x";
    assert_eq!(bench.send("GET", path).await.status(), 401);
    let got = bench
        .ask("GET", path)
        .bearer_auth(&token)
        .header("accept", OCI_MANIFEST)
        .send()
        .await
        .unwrap();
    assert_eq!(got.status(), 200);
    let put = bench
        .put_request("openshift/ci", "y", &image.manifest)
        .bearer_auth(&token);
    assert_eq!(put.send().await.unwrap().status(), 201);
    let seen = bench.registry.requests(&Matcher::put_manifest());
    assert_eq!(seen[0].credential.as_deref(), Some("bot"));
}

#[tokio::test]
async fn rights_are_narrowed_with_a_200_and_missed_with_a_401() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let image = bench.seed("src/a", "x", Shape::Oci, "x");
    let scopes = ["repository:src/a:pull,push", "repository:secret:pull"];
    let narrowed = token(&bench, Some(("bot", "right")), &scopes).await;
    assert_eq!(narrowed.status(), 200);
    let token = text(narrowed).await;
    let access = payload(&token)["access"].clone();
    assert_eq!(access[0]["actions"], serde_json::json!(["pull"]));
    assert_eq!(access[1]["actions"], serde_json::json!([]));
    let put = bench
        .put_request("src/a", "y", &image.manifest)
        .bearer_auth(&token);
    assert_eq!(error(put.send().await.unwrap()).await.0, "UNAUTHORIZED");
    let other = bench
        .ask("GET", "/v2/secret/manifests/x")
        .bearer_auth(&token);
    assert_eq!(other.send().await.unwrap().status(), 401);
    assert_eq!(bench.registry.history("src/a", "y").len(), 0);
}

#[tokio::test]
async fn a_wrong_password_is_a_401_of_the_token_endpoint() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let refused = token(
        &bench,
        Some(("bot", "wrong")),
        &["repository:openshift/ci:pull"],
    )
    .await;
    assert_eq!(refused.status(), 401);
    assert_eq!(error(refused).await.0, "UNAUTHORIZED");
}

#[tokio::test]
async fn asking_for_push_makes_the_repository_and_asking_for_pull_does_not() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let user = Some(("bot", "right"));
    token(&bench, user, &["repository:openshift/ci/a:pull"]).await;
    token(&bench, user, &["repository:src/b:pull,push"]).await;
    assert!(bench.registry.snapshot().is_empty());
    token(&bench, user, &["repository:openshift/ci/a:pull,push"]).await;
    assert!(bench.registry.has_repository("openshift/ci/a"));
}

#[tokio::test]
async fn public_repositories_are_read_by_anybody_and_written_by_nobody() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let image = bench.seed("open/x", "x", Shape::Oci, "x");
    bench.seed("private", "x", Shape::Oci, "x");
    bench.registry.set_public("made/public", true);
    let granted = token(
        &bench,
        None,
        &["repository:open/x:pull,push", "repository:made/public:pull"],
    )
    .await;
    let token = text(granted).await;
    let claims = payload(&token);
    assert_eq!(claims["access"][0]["actions"], serde_json::json!(["pull"]));
    assert_eq!(claims["access"][1]["actions"], serde_json::json!(["pull"]));
    assert_eq!(
        bench.send("GET", "/v2/open/x/manifests/x").await.status(),
        200
    );
    assert_eq!(
        bench.send("GET", "/v2/private/manifests/x").await.status(),
        401
    );
    assert_eq!(
        bench.put("open/x", "y", &image.manifest).await.status(),
        401
    );
}

#[tokio::test]
async fn tokens_end_by_age_and_by_revocation() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let user = Some(("bot", "right"));
    let scope = ["repository:src:pull"];
    let ping = async |token: &str| {
        let ask = bench.ask("GET", "/v2/").bearer_auth(token);
        ask.send().await.unwrap().status().as_u16()
    };
    let lasting = text(token(&bench, user, &scope).await).await;
    bench
        .registry
        .update(|settings| settings.token_life = std::time::Duration::from_millis(50));
    let short = text(token(&bench, user, &scope).await).await;
    assert_eq!((ping(&lasting).await, ping(&short).await), (200, 200));
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    assert_eq!((ping(&lasting).await, ping(&short).await), (200, 401));
    bench.registry.revoke_tokens();
    assert_eq!(ping(&lasting).await, 401);
}

#[tokio::test]
async fn a_mount_without_pull_on_its_source_opens_a_session() {
    let bench = Bench::with(auth(AuthMode::Bearer)).await;
    let digest = bench.registry.seed_blob("src/a", Blob::new("text"));
    let path = format!("/v2/openshift/ci/blobs/uploads/?mount={digest}&from=src/a");
    for (scopes, status) in [
        (vec!["repository:openshift/ci:pull,push"], 202),
        (
            vec!["repository:openshift/ci:pull,push", "repository:src/a:pull"],
            201,
        ),
    ] {
        let token = text(token(&bench, Some(("bot", "right")), &scopes).await).await;
        let mount = bench
            .ask("POST", &path)
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        assert_eq!(mount.status(), status);
    }
}

#[tokio::test]
async fn basic_credentials_go_with_every_request() {
    let bench = Bench::with(auth(AuthMode::Basic)).await;
    let image = bench.seed("src/a", "x", Shape::Oci, "x");
    let ping = bench.send("GET", "/v2/").await;
    assert!(header(&ping, "www-authenticate").starts_with("Basic realm="));
    let with = async |password: &str, request: RequestBuilder| {
        request
            .basic_auth("bot", Some(password))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(with("wrong", bench.ask("GET", "/v2/")).await, 401);
    assert_eq!(with("right", bench.ask("GET", "/v2/")).await, 200);
    let path = "/v2/src/a/manifests/x";
    assert_eq!(with("right", bench.ask("HEAD", path)).await, 200);
    assert_eq!(
        with("right", bench.put_request("src/a", "y", &image.manifest)).await,
        401
    );
    let entries = bench.registry.requests(&Matcher::kind(RequestKind::Ping));
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.authorization, entry.credential.as_deref()))
        .collect();
    assert_eq!(seen, [(false, None), (true, None), (true, Some("bot"))]);
}
