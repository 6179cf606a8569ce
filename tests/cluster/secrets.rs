//! Secrets are planted, and looked for in all that is written: status, events, logs, outputs, files.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quaylike::{Auth, AuthMode, Options, Registry, Settings, User};
use serde_json::json;

use crate::metrics::Scraped;
use crate::testbed::command::{Ground, document, ended, image, verdict};
use crate::testbed::scripted::{Scripted, answer, unknown};
use crate::testbed::stage::{Stage, condition, phase};
use crate::testbed::{Supervised, free_port};

/// In every planted text, so that also a part of one is found.
const MARK: &str = "s3cret";

/// What must not be in `text`: the mark, also encoded as the passwords are, and tokens.
fn assert_clean(what: &str, text: &str) {
    let encoded = [
        "bot:bot-s3cret",
        "reader:reader-s3cret",
        "echo:echo-s3cret",
        "bot:wrong-s3cret",
    ];
    let mut secrets: Vec<String> = encoded.iter().map(|pair| STANDARD.encode(pair)).collect();
    secrets.extend([MARK.to_owned(), STANDARD.encode(MARK), "eyJ".to_owned()]);
    for secret in secrets {
        if let Some(at) = text.find(&secret) {
            let line = text[..at].lines().count();
            let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            panic!("{what} shows {secret}, line {line}: {shown}");
        }
    }
}

/// `bot` may push below `ci`, `reader` may pull below `src`; blobs are behind signed URLs.
async fn registry() -> Registry {
    let switches = Settings {
        redirect_blobs: true,
        ..Settings::default()
    };
    let auth = Auth::new(AuthMode::Bearer)
        .user(User::new("bot", "bot-s3cret").push("ci").pull("src"))
        .user(User::new("reader", "reader-s3cret").pull("src"));
    let registry = Registry::start(Options::default().settings(switches).auth(auth))
        .await
        .unwrap();
    registry.seed_image("ci", "a", &image("old")).unwrap();
    registry.seed_image("src/x", "a", &image("new")).unwrap();
    registry
}

/// A registry that says back all that it is told, and signs what it leads to.
async fn echoing() -> Scripted {
    Scripted::start(|asked| {
        let lower = asked.to_lowercase();
        let host = lower
            .split("host: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        let shown = asked
            .split("uthorization: ")
            .nth(1)
            .map(|rest| rest.lines().next().unwrap());
        let Some(shown) = shown else {
            let challenge = format!(
                "Bearer realm=\"http://{host}/token?X-Amz-Signature=realm-s3cret\",service=\"x\""
            );
            return answer(401, &[("www-authenticate", &challenge)], b"");
        };
        if asked.starts_with("GET /token") {
            return answer(
                200,
                &[("set-cookie", "session=cookie-s3cret")],
                br#"{"token":"token-s3cret"}"#,
            );
        }
        match asked.split(' ').next().unwrap() {
            "POST" => answer(
                202,
                &[(
                    "location",
                    &format!("http://x:y-s3cret@{host}/up?X-Amz-Signature=up-s3cret"),
                )],
                b"",
            ),
            "GET" if asked.contains("/manifests/") => unknown(),
            "PUT" | "GET" => {
                let message = format!("you said {shown}");
                answer(
                    400,
                    &[],
                    json!({"errors": [{"code": "X", "message": message}]})
                        .to_string()
                        .as_bytes(),
                )
            }
            _ => unknown(),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_shows_no_secret_at_any_level_of_logging() {
    let (registry, echo) = (registry().await, echoing().await);
    let (host, echo) = (registry.host(), echo.host());
    let entry = |user: &str, password: &str| json!({"username": user, "password": password});
    let good = json!({"auths": {
        format!("{host}/src"): entry("reader", "reader-s3cret"), format!("{host}/ci"): entry("bot", "bot-s3cret"), &echo: entry("echo", "echo-s3cret"),
    }});
    let wrong = json!({"auths": {&host: entry("bot", "wrong-s3cret"), &echo: entry("echo", "echo-s3cret")}});
    let malformed = json!({"auths": {&host: {"auth": "s3cret"}}});
    let encoded = json!({"auths": {&host: {"auth": STANDARD.encode("bot-s3cret")}}});
    let shapeless = json!({"auths": "bot-s3cret"});
    for (auth, code, format) in [
        (good.clone(), 1, "text"),
        (good, 1, "json"),
        (wrong, 1, "json"),
        (malformed, 1, "text"),
        (encoded, 1, "json"),
        (shapeless, 2, "text"),
    ] {
        let ground = Ground::new().await;
        let image = |source: &str, float: &str| json!({"source": source, "float": float});
        let spec = |name: &str, float: String| {
            let images = [image(&format!("{host}/src/x:a"), &float)];
            document(
                name,
                &json!({"images": images, "attempts": 1, "deadlineSeconds": 60}),
            )
        };
        ground.documents(&[
            spec("own", format!("{host}/ci:a")),
            spec("echo", format!("{echo}/ci:a")),
        ]);
        ground.folder.write("auth.json", &auth.to_string()).unwrap();
        let plain = [
            format!("--plain-http={host}"),
            format!("--plain-http={echo}"),
        ];
        let mut command = ground.command(&[
            "-ojson",
            "--registry-config=auth.json",
            &format!("--log-format={format}"),
            &plain[0],
            &plain[1],
        ]);
        command.env("RUST_LOG", "trace");
        let run = ended(command).await.exits(code);
        assert_clean("standard output", &run.stdout);
        assert_clean("standard error", &run.stderr);
        if code == 1 {
            let items = run.items();
            assert_eq!(verdict(&items[1]).0, "Failed", "{}", run.stderr);
            let state = std::fs::read_to_string(ground.folder.join("requests.state.yaml")).unwrap();
            assert_clean("the state", &state);
            assert!(
                run.stderr.contains("TRACE") || run.stderr.contains("DEBUG"),
                "it was logged: {}",
                run.stderr
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_shows_no_secret_in_status_events_logs_or_metrics() {
    // Each with a controller, registries and Secrets of its own.
    let text = Box::pin(nothing_secret_is_shown("text"));
    let json = Box::pin(nothing_secret_is_shown("json"));
    tokio::join!(text, json);
}

async fn nothing_secret_is_shown(format: &str) {
    let stage = Stage::new(&format!("hostile-secrets-{format}")).await;
    let port = free_port().unwrap();
    let (registry, echo) = (registry().await, echoing().await);
    let (host, echo) = (registry.host(), echo.host());
    stage
        .secret(
            "good",
            &[(&host, "bot", "bot-s3cret"), (&echo, "echo", "echo-s3cret")],
        )
        .await;
    stage
        .secret("wrong", &[(&host, "bot", "wrong-s3cret")])
        .await;
    let typed = |content: String| {
        (
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            content,
        )
    };
    let broken = [
        typed(json!({"auths": "bot-s3cret"}).to_string()),
        typed(json!({"auths": {&host: {"auth": "bot-s3cret"}}}).to_string()),
        typed(json!({"auths": {&host: {"auth": STANDARD.encode("bot-s3cret")}}}).to_string()),
        typed(json!({"auths": {&host: "bot-s3cret"}}).to_string()),
        typed(json!({"auths": {&host: {"identitytoken": "bot-s3cret"}}}).to_string()),
        typed(json!({"auths": {&host: {"username": "bot-s3cret"}}}).to_string()),
        ("Opaque", "password", "bot-s3cret".to_owned()),
    ];
    let kubeconfig = stage.plane.kubeconfig().to_str().unwrap().to_owned();
    let environment = [("KUBECONFIG", kubeconfig.as_str()), ("RUST_LOG", "trace")];
    let arguments = [
        "controller".to_owned(),
        format!("--namespace={}", stage.namespace),
        "--leader-elect=false".into(),
        "--settle-seconds=3".into(),
        "--late-seconds=15".into(),
        format!("--log-format={format}"),
        format!("--listen=127.0.0.1:{port}"),
        "--allow-registry=127.0.0.1:*".into(),
        format!("--plain-http={host}"),
        format!("--plain-http={echo}"),
    ];
    let program = Path::new(env!("CARGO_BIN_EXE_promotion-controller"));
    let _process = Supervised::spawn(
        "controller",
        program,
        &arguments,
        &environment,
        stage.folder.path(),
    )
    .unwrap();
    let mut wanted = vec![
        ("own".to_owned(), "Posted", "Promoted"),
        ("wrong".into(), "Failed", "Unauthorized"),
        ("echo".into(), "Failed", ""),
    ];
    let spec = |float: String, secret: &str| {
        json!({
            "images": [{"source": format!("{host}/src/x:a"), "float": float}],
            "pullSecret": {"name": "good"}, "pushSecret": {"name": secret}, "attempts": 1, "deadlineSeconds": 120,
        })
    };
    stage
        .create("own", &spec(format!("{host}/ci:a"), "good"))
        .await;
    stage
        .create("wrong", &spec(format!("{host}/ci:b"), "wrong"))
        .await;
    stage
        .create("echo", &spec(format!("{echo}/ci:c"), "good"))
        .await;
    for (number, (kind, key, content)) in broken.iter().enumerate() {
        let name = format!("broken-{number}");
        stage.secret_of(&name, kind, key, content).await;
        stage
            .create(&name, &spec(format!("{host}/ci:x{number}"), &name))
            .await;
        wanted.push((name, "Failed", "SecretInvalid"));
    }
    for (name, end, reason) in &wanted {
        let object = stage.finished(name, Duration::from_mins(1)).await;
        let (_, found, message) = condition(&object, "Progressing");
        assert_eq!(phase(&object), *end, "{name}: {message}");
        assert!(
            reason.is_empty() || found == *reason,
            "{name}: {found}: {message}"
        );
        let last = stage
            .events_until(name, found, Duration::from_secs(30))
            .await;
        assert_clean(
            &format!("the status of {name}"),
            &serde_json::to_string(&object.status).unwrap(),
        );
        assert_clean(
            &format!("the events of {name}"),
            &serde_json::to_string(&last).unwrap(),
        );
    }
    let scraped = Scraped::of(port).await.unwrap();
    assert!(scraped.sum("promotions_total") >= 3, "{}", scraped.text);
    assert!(
        scraped.sum(&format!(r#"registry_requests_total{{host="{echo}"}}"#)) >= 3,
        "{}",
        scraped.text
    );
    assert_clean("what is scraped", &scraped.text);
    let log = stage.log();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "it was logged:\n{log}"
    );
    assert_clean("the log", &log);
}
