//! Credentials without a cluster: where they are found, which of them is used where, and that no secret is ever shown.

use base64::Engine as _;
use quaylike::{
    Action, Auth, AuthMode, GateSpec, Grant, Matcher, Options, RequestKind, Rule, User,
};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, PATIENCE, Run, ended, verdict};

const SECRET: &str = "s3cret-pa55word";
const OTHER: &str = "0ther-s3cret";

/// Where the credentials lie, the variables (with a path in the test's folder), the arguments.
type Place<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// A registry with bearer tokens: `reader` may pull sources, `writer` may push to `ci`.
async fn ground() -> Ground {
    let user = |name: &str, password: &str, repositories: &str, push| User {
        name: name.into(),
        password: password.into(),
        grants: vec![Grant {
            repositories: repositories.into(),
            pull: true,
            push,
        }],
    };
    let auth = Auth::new(AuthMode::Bearer)
        .user(user("reader", OTHER, "src", false))
        .user(user("writer", SECRET, "ci", true));
    let ground = Ground::with(Options::default().auth(auth)).await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new");
    ground.documents(&[ground.request("one", &[(":a", "a")], &json!({}))]);
    ground
}

/// Keys with a path: the longest that fits is the one that is used.
fn config(ground: &Ground, password: &str) -> String {
    let entry = |user: &str, password: &str| {
        let auth = format!("{user}:{password}");
        json!({"auth": base64::engine::general_purpose::STANDARD.encode(auth)})
    };
    let auths = json!({
        ground.at("ci"): entry("writer", password),
        ground.registry.host(): entry("reader", OTHER),
    });
    json!({ "auths": auths }).to_string()
}

/// No password, in clear or encoded, in anything that was written.
fn assert_no_secret(ground: &Ground, run: &Run) {
    let mut texts = vec![run.stdout.clone(), run.stderr.clone()];
    for entry in std::fs::read_dir(ground.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("requests.") {
            texts.push(std::fs::read_to_string(&path).unwrap());
        }
    }
    assert!(texts.len() >= 4, "outputs, requests and state");
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secrets = [
        SECRET.to_owned(),
        OTHER.to_owned(),
        encoded(&format!("writer:{SECRET}")),
        encoded(&format!("reader:{OTHER}")),
    ];
    for text in texts {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{secret} in:\n{text}");
        }
        // Nor a bearer token.
        assert!(!text.contains("eyJ"), "a token in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_found_in_every_usual_place_and_the_longest_key_is_used() {
    let places: [Place; 8] = [
        ("c.json", &[], &["--registry-config=c.json"]),
        ("c.json", &[("REGISTRY_AUTH_FILE", "c.json")], &[]),
        (
            "run/containers/auth.json",
            &[("XDG_RUNTIME_DIR", "run")],
            &[],
        ),
        (
            "conf/containers/auth.json",
            &[("XDG_CONFIG_HOME", "conf")],
            &[],
        ),
        ("home/.config/containers/auth.json", &[], &[]),
        ("docker/config.json", &[("DOCKER_CONFIG", "docker")], &[]),
        ("home/.docker/config.json", &[], &[]),
        // A named file is the only one: what lies in the usual places is not read.
        (
            "c.json",
            &[("HOME", "broken")],
            &["--registry-config=c.json"],
        ),
    ];
    for (path, environment, arguments) in places {
        let ground = ground().await;
        let broken = ground.folder.join("broken/.docker");
        std::fs::create_dir_all(&broken).unwrap();
        std::fs::write(broken.join("config.json"), "{").unwrap();
        let file = ground.folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, config(&ground, SECRET)).unwrap();
        let mut command = ground.command(arguments);
        command.arg("-ojson").env("RUST_LOG", "trace");
        for (name, value) in environment {
            command.env(name, ground.folder.join(value));
        }
        let run = ended(command).await.exits(0);
        assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"), "{path}");
        assert_no_secret(&ground, &run);
        for (repository, user) in [("ci", "writer"), ("src/x", "reader")] {
            let seen = ground.registry.requests(&Matcher {
                repository: Some(repository.into()),
                kind: Some(RequestKind::Manifest),
                ..Matcher::default()
            });
            assert!(!seen.is_empty(), "{path} {repository}");
            for entry in seen.iter().filter(|e| e.authorization) {
                assert_eq!(entry.credential.as_deref(), Some(user), "{path} {entry:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podmans_and_dockers_files_serve_together() {
    let ground = ground().await;
    let whole: Value = serde_json::from_str(&config(&ground, SECRET)).unwrap();
    for (path, key) in [
        ("home/containers/auth.json", ground.registry.host()),
        ("home/.docker/config.json", ground.at("ci")),
    ] {
        let file = ground.folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let part = json!({"auths": {&key: whole["auths"][&key]}});
        std::fs::write(&file, part.to_string()).unwrap();
    }
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_none_fails_and_writes_nothing() {
    let ground = ground().await;
    let before = ground.registry.snapshot();
    std::fs::write(
        ground.folder.join("c.json"),
        config(&ground, &format!("{SECRET}-wrong")),
    )
    .unwrap();
    let cases: [(&[&str], &[&str]); 2] = [
        (&["--registry-config=c.json", "-ojson"], &["Unauthorized"]),
        (&["-ojson"], &["Unauthorized", "PermissionDenied"]),
    ];
    for (arguments, reasons) in cases {
        let mut command = ground.command(arguments);
        // Without a home there are no usual files, and that is no error.
        command.env_remove("HOME").env("RUST_LOG", "trace");
        let run = ended(command).await.exits(1);
        let items = run.items();
        let (phase, reason) = verdict(&items[0]);
        assert_eq!(phase, "Failed");
        assert!(reasons.contains(&reason), "{reason}");
        assert_no_secret(&ground, &run);
        assert_eq!(ground.registry.snapshot(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_is_gone_for_good_is_an_attempt_each_time_and_its_cause_is_told() {
    for page in [Action::page(404), Action::page(410)] {
        let ground = ground().await;
        ground
            .folder
            .write("c.json", &config(&ground, SECRET))
            .unwrap();
        let few = json!({"attempts": 3});
        ground.documents(&[ground.request("one", &[(":a", "a")], &few)]);
        ground
            .registry
            .add_rule(Rule::new(Matcher::kind(RequestKind::Token), page));
        let begun = std::time::Instant::now();
        let run = ground.promote(&["--registry-config=c.json"]).await;
        assert!(begun.elapsed().as_secs() < 60, "{run:?}");
        assert_ne!(run.code, Some(0));
        let told = format!("{}{}", run.stdout, run.stderr);
        assert!(told.contains("the token for"), "{told}");
        assert!(told.contains("RegistryError"), "{told}");
        assert_no_secret(&ground, &run);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_is_a_fault_of_what_it_would_serve_alone() {
    let ground = ground().await;
    let mut whole: Value = serde_json::from_str(&config(&ground, SECRET)).unwrap();
    let place = ground.at("ci");
    for (key, code) in [("other.test", Some(0)), (&*place, Some(1))] {
        whole["auths"][key] = json!({"auth": "%%%"});
        let text = whole.to_string();
        ground.folder.write("c.json", &text).unwrap();
        let run = ground.promote(&["--registry-config=c.json"]).await;
        assert_eq!(run.code, code, "{run:?}");
        let told = format!("{}{}", run.stdout, run.stderr);
        let named = told.contains(&format!("entry {key}")) && told.contains("base64");
        assert_eq!(named, code == Some(1), "{told}");
        assert_no_secret(&ground, &run);
        ground.documents_anew(&[ground.request("two", &[(":a", "a")], &json!({}))]);
    }
}

/// The registry takes the token back between a look and the PUT that rests on it, and is slow to give another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_grew_old_while_a_token_was_fetched_is_taken_again_before_the_put() {
    let ground = ground().await;
    std::fs::write(ground.folder.join("c.json"), config(&ground, SECRET)).unwrap();
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci")
        .reference("a");
    let answered = ground.registry.gate(GateSpec::after(look).nth(2));
    let running = ground.start(&["--registry-config=c.json"]);
    let reached = tokio::time::timeout(PATIENCE, answered.reached()).await;
    assert!(reached.is_ok(), "{}", running.log());
    let looked = ground.registry.requests(&Matcher::default());
    let looked = looked.last().unwrap().seq;
    ground.registry.revoke_tokens();
    let slow = Rule::new(
        Matcher::kind(RequestKind::Token),
        Action::Delay { ms: 6_000 },
    );
    ground.registry.add_rule(slow.times(1));
    answered.open();
    running.ended().await.exits(0);
    let float = Matcher::kind(RequestKind::Manifest)
        .repository("ci")
        .reference("a");
    let asked = ground.registry.requests_after(looked, usize::MAX, &float);
    let asked = asked.into_iter().map(|e| (e.method, e.status.unwrap()));
    let asked: Vec<_> = asked.take_while(|(_, status)| *status != 201).collect();
    let refused = ("PUT".to_owned(), 401);
    let again = ("GET".to_owned(), 200);
    assert_eq!(asked, [refused, again]);
}
