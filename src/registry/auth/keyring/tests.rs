#![allow(clippy::unwrap_used)]
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

fn auth(user: &str) -> String {
    format!(
        r#"{{"auth":"{}"}}"#,
        STANDARD.encode(format!("{user}:s3cret-{user}"))
    )
}

fn ring(entries: &[(&str, &str)]) -> Keyring {
    let body: Vec<_> = entries
        .iter()
        .map(|(k, u)| format!("\"{k}\":{}", auth(u)))
        .collect();
    Keyring::parse(
        format!(r#"{{"auths":{{{}}}}}"#, body.join(",")).as_bytes(),
        "Secret a/b",
    )
    .unwrap()
}

fn user(ring: &Keyring, repository: &str) -> Option<String> {
    let credential = ring.credential(&repository.parse().unwrap()).unwrap();
    credential.secret().map(|(user, _)| user.to_owned())
}

#[test]
fn the_longest_matching_path_wins() {
    let ring = ring(&[
        ("quay.io", "host"),
        ("quay.io/openshift", "ns"),
        ("quay.io/openshift/ci", "repo"),
    ]);
    assert_eq!(user(&ring, "quay.io/openshift/ci").as_deref(), Some("repo"));
    assert_eq!(
        user(&ring, "quay.io/openshift/ci-extra").as_deref(),
        Some("ns")
    );
    assert_eq!(
        user(&ring, "quay.io/openshift-x/ci").as_deref(),
        Some("host")
    );
    assert_eq!(user(&ring, "other.io/openshift/ci"), None);
}

#[test]
fn every_spelling_of_a_host_is_that_host() {
    for key in [
        "https://quay.io/v1/",
        "https://quay.io/v2",
        "http://quay.io",
        "quay.io:443",
        "Quay.io",
        "quay.io/",
    ] {
        assert_eq!(
            user(&ring(&[(key, "u")]), "quay.io/a/b").as_deref(),
            Some("u"),
            "{key}"
        );
    }
    assert_eq!(
        user(
            &ring(&[("https://index.docker.io/v1/", "u")]),
            "docker.io/library/x"
        )
        .as_deref(),
        Some("u")
    );
    assert_eq!(user(&ring(&[("reg.io:5000", "u")]), "reg.io/a"), None);
    assert_eq!(
        user(&ring(&[("reg.io:5000/a", "u")]), "reg.io:5000/a").as_deref(),
        Some("u")
    );
}

#[test]
fn what_is_not_supported_is_an_error_only_where_it_would_be_used() {
    let json = format!(
        r#"{{"auths":{{"quay.io":{},"tok.io":{{"identitytoken":"t0ken"}}}},"credHelpers":{{"gcr.io":"gcloud"}},"credsStore":"desktop"}}"#,
        auth("u")
    );
    let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
    assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"));
    for (repository, named) in [
        ("tok.io/a", "entry tok.io"),
        ("gcr.io/a", "entry gcr.io"),
        ("x.io/a", "credsStore"),
    ] {
        let error = ring
            .credential(&repository.parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(named) && error.contains("Secret a/b"),
            "{error}"
        );
        assert!(!error.contains("t0ken"), "{error}");
    }
}

#[test]
fn a_bad_entry_is_named_and_not_quoted() {
    for auth in ["%%%", "bm9jb2xvbg==", "Og=="] {
        let json = format!(r#"{{"auths":{{"quay.io/x":{{"auth":"{auth}"}}}}}}"#);
        let error = refused(&json, "quay.io/x/y");
        assert!(
            error.contains("quay.io/x") && !error.contains(auth),
            "{error}"
        );
    }
    let error = refused(r#"{"auths":{"quay.io":"s3cret"}}"#, "quay.io/a");
    assert!(
        error.contains("Secret a/b, entry quay.io") && !error.contains("s3cret"),
        "{error}"
    );
}

fn refused(json: &str, repository: &str) -> String {
    let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
    let credential = ring.credential(&repository.parse().unwrap());
    credential.unwrap_err().to_string()
}

#[test]
fn auth_is_read_as_docker_and_the_kubelet_read_it() {
    for password in [
        "p",
        "pw",
        "p4s",
        "a-password-that-is-longer-than-one-line-of-seventy-six-columns-of-base64",
    ] {
        let whole = STANDARD.encode(format!("bot:{password}"));
        let bare = whole.trim_end_matches('=');
        let wrap = |by: usize, with: &str| {
            let lines = whole.as_bytes().chunks(by).map(String::from_utf8_lossy);
            lines.collect::<Vec<_>>().join(with)
        };
        for auth in [
            whole.clone(),
            bare.to_owned(),
            format!("{whole}\n"),
            format!(" {bare}\r\n"),
            wrap(76, "\n"),
            wrap(64, "\r\n"),
            wrap(10, "\n  "),
        ] {
            let json = serde_json::json!({"auths": {"quay.io": {"auth": auth}}}).to_string();
            let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
            let credential = ring.credential(&"quay.io/a".parse().unwrap()).unwrap();
            assert_eq!(credential.secret(), Some(("bot", password)), "{auth:?}");
        }
    }
}

#[test]
fn an_odd_entry_is_a_fault_for_its_own_hosts_alone_and_an_empty_one_is_no_credential() {
    let good = auth("u");
    for odd in [
        r#""s3cret""#,
        "[]",
        "7",
        "true",
        r#"{"auth":"%%%"}"#,
        r#"{"auth":7}"#,
        r#"{"auth":{}}"#,
        r#"{"username":"u"}"#,
        r#"{"password":["p"],"username":"u"}"#,
        r#"{"auth":"Og=="}"#,
    ] {
        let json = format!(r#"{{"auths":{{"odd.io":{odd},"quay.io":{good}}}}}"#);
        let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
        assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"), "{odd}");
        assert_eq!(user(&ring, "other.io/a"), None, "{odd}");
        let error = refused(&json, "odd.io/a");
        assert!(error.contains("entry odd.io"), "{odd}: {error}");
    }
    for empty in [
        "{}",
        "null",
        r#"{"auth":""}"#,
        r#"{"auth":null}"#,
        r#"{"email":"a@b"}"#,
        r#"{"username":"","password":""}"#,
    ] {
        let json = format!(r#"{{"auths":{{"empty.io":{empty},"quay.io":{good}}}}}"#);
        let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
        assert_eq!(user(&ring, "quay.io/a").as_deref(), Some("u"), "{empty}");
        assert_eq!(user(&ring, "empty.io/a"), None, "{empty}");
    }
    for nothing in [
        "{}",
        r#"{"auths":null}"#,
        r#"{"auths":{}}"#,
        r#"{"auths":{},"credHelpers":null,"credsStore":null}"#,
        r#"{"auths":null,"credsStore":"","HttpHeaders":{"x":1}}"#,
    ] {
        let ring = Keyring::parse(nothing.as_bytes(), "Secret a/b").unwrap();
        assert!(ring.is_empty(), "{nothing}");
        assert_eq!(user(&ring, "quay.io/a"), None, "{nothing}");
    }
    // Docker keeps an empty entry for what its store has.
    let stored = r#"{"auths":{"quay.io":{}},"credsStore":"desktop"}"#;
    assert!(refused(stored, "quay.io/a").contains("credsStore"));
}

#[test]
fn a_glob_serves_the_hosts_that_the_kubelet_means_by_it() {
    for (key, serves, not) in [
        (
            "*.example.com",
            &["a.example.com/x", "a-b.example.com/x/y"][..],
            &[
                "example.com/x",
                "a.b.example.com/x",
                "a.example.com:5000/x",
                "a.example.com.evil.io/x",
            ][..],
        ),
        (
            "*.*.example.com",
            &["a.b.example.com/x"],
            &["a.example.com/x"],
        ),
        ("*.*", &["a.io/x"], &["a.b.io/x", "localhost/x"]),
        ("*", &["localhost/x"], &["a.io/x", "localhost:5000/x"]),
        (
            "prefix.*.io",
            &["prefix.kubernetes.io/x"],
            &["other.kubernetes.io/x"],
        ),
        (
            "*-good.kubernetes.io",
            &["prefix-good.kubernetes.io/x"],
            &["good.kubernetes.io/x"],
        ),
        (
            "sub*.reg.io",
            &["sub.reg.io/x", "subdomain.reg.io/x"],
            &["asub.reg.io/x"],
        ),
        (
            "*.example.com:5000",
            &["a.example.com:5000/x"],
            &["a.example.com/x", "a.example.com:5001/x"],
        ),
        (
            "*.example.com:443",
            &["a.example.com/x"],
            &["a.example.com:5000/x"],
        ),
        (
            "https://*.example.com/v1/",
            &["a.example.com/x"],
            &["b.io/x"],
        ),
        (
            "*.example.com/team",
            &["a.example.com/team", "a.example.com/team/x"],
            &["a.example.com/teams", "a.example.com/x"],
        ),
        ("reg?.io", &["reg1.io/x"], &["reg.io/x", "reg12.io/x"]),
        ("reg[0-9].io", &["reg7.io/x"], &["rega.io/x"]),
        ("reg[^0-9].io", &["rega.io/x"], &["reg7.io/x"]),
        ("REG*.IO", &["reg7.io/x"], &["rug.io/x"]),
        ("reg\\*.io", &[], &["reg7.io/x"]),
        ("reg[.io", &[], &["reg7.io/x", "reg.io/x"]),
        ("reg[].io", &[], &["reg7.io/x"]),
        ("**.io", &["a.io/x"], &["a.b.io/x"]),
    ] {
        let key = key.replace('\\', "\\\\");
        let ring = ring(&[(&key, "u")]);
        for repository in serves {
            assert_eq!(
                user(&ring, repository).as_deref(),
                Some("u"),
                "{key} {repository}"
            );
        }
        for repository in not {
            assert_eq!(user(&ring, repository), None, "{key} {repository}");
        }
    }
    // A key without a glob goes first, whatever its path.
    let ring = ring(&[
        ("*.example.com/team/app", "glob"),
        ("a.example.com", "own"),
        ("*.example.com", "any"),
        ("b*.example.com", "b"),
    ]);
    for (repository, who) in [
        ("a.example.com/team/app", "own"),
        ("c.example.com/team/app", "glob"),
        ("c.example.com/x", "any"),
        ("b1.example.com/x", "b"),
    ] {
        assert_eq!(
            user(&ring, repository).as_deref(),
            Some(who),
            "{repository}"
        );
    }
}

#[test]
fn a_glob_as_long_as_a_secret_takes_no_longer_than_its_length() {
    crate::cost::is_cheap(|| {
        for glob in [
            "*a".repeat(40_000),
            "[a-".repeat(30_000),
            "*?".repeat(40_000),
        ] {
            let ring = ring(&[(&format!("{glob}.io"), "u")]);
            assert_eq!(user(&ring, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab.io/x"), None);
        }
    });
}

#[test]
fn the_first_of_two_keyrings_wins_where_both_have_a_key() {
    let both =
        ring(&[("quay.io", "first")]).or(&ring(&[("quay.io", "second"), ("x.io/a", "second")]));
    assert_eq!(user(&both, "quay.io/a").as_deref(), Some("first"));
    assert_eq!(user(&both, "x.io/a").as_deref(), Some("second"));
    assert_eq!(both.origin(), "Secret a/b and Secret a/b");
}

#[test]
fn debug_shows_keys_only() {
    let ring = ring(&[("quay.io", "robot")]);
    let credential = ring.credential(&"quay.io/a".parse().unwrap()).unwrap();
    let shown = format!("{ring:?} {credential:?} {:?}", credential.key());
    assert!(shown.contains("quay.io"), "{shown}");
    assert!(
        !shown.contains("robot") && !shown.contains("s3cret"),
        "{shown}"
    );
}

/// The host that a key names, by hand.
fn host_of(key: &str) -> String {
    let bare = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let host = bare
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.trim_end_matches(":443") {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        host => host.into(),
    }
}

fn keys() -> impl Strategy<Value = Vec<String>> {
    let hosts = "(https?://)?(quay\\.io|QUAY\\.io|quay\\.io\\.evil\\.io|evil\\.io|uay\\.io|index\\.docker\\.io|docker\\.io|x)";
    let key = format!("{hosts}(:443|:5000)?(/v1/?|/v2/?|/|/a|/a/b|/quay\\.io)?");
    let key = proptest::string::string_regex(&key).unwrap();
    proptest::collection::vec(prop_oneof![9 => key, 1 => "\\PC{0,20}"], 0..6)
}

proptest! {
    #[test]
    fn a_repository_is_given_the_credential_of_its_own_host_or_none(
        keys in keys(), host in "quay\\.io|evil\\.io|docker\\.io|x|quay\\.io:5000", path in "a|a/b|a/b/c|quay\\.io|v1|v2/a",
    ) {
        let entries: serde_json::Map<_, _> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| (key.clone(), serde_json::json!({"username": "robot", "password": format!("s3cret-{n}")})))
            .collect();
        let json = serde_json::json!({"auths": entries}).to_string();
        let ring = Keyring::parse(json.as_bytes(), "Secret a/b").unwrap();
        let repository: Repository = format!("{host}/{path}").parse().unwrap();
        let credential = ring.credential(&repository).unwrap();
        if let Some((_, password)) = credential.secret() {
            let number: usize = password.trim_start_matches("s3cret-").parse().unwrap();
            let glob = keys[number].contains(['*', '?', '[']);
            prop_assert!(glob || host_of(&keys[number]) == host, "{}", &keys[number]);
        }
        let shown = format!("{ring:?} {credential:?} {} {:?}", credential.named(), credential.key());
        prop_assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn anything_at_all_is_a_keyring_or_refused_without_being_quoted(
        entry in prop_oneof![
            Just(serde_json::json!("s3cret")), Just(serde_json::json!(["s3cret"])), Just(serde_json::json!({"auth": {"s3cret": 1}})),
            Just(serde_json::json!({"auth": "s3cret"})), Just(serde_json::json!({"username": "s3cret"})),
            Just(serde_json::json!({"password": "s3cret", "username": ["s3cret"]})), Just(serde_json::json!({"identitytoken": "s3cret"})),
            Just(serde_json::json!({"auth": STANDARD.encode("s3cret")})), Just(serde_json::json!({"auth": STANDARD.encode(":s3cret")})),
            Just(serde_json::json!({"auth": STANDARD.encode([0xff, 0xfe])})),
        ],
        key in "\\PC{0,200}", cut in 0_usize..300, noise: Vec<u8>,
    ) {
        let mut json = serde_json::json!({"auths": {key: entry}}).to_string().into_bytes();
        for _ in 0..2 {
            for json in [&json, &noise] {
                let shown = match Keyring::parse(json, "Secret a/b") {
                    Ok(ring) => format!("{ring:?} {:?}", ring.credential(&"quay.io/a".parse().unwrap())),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!shown.contains("s3cret"), "{shown}");
            }
            json.truncate(cut);
        }
    }
}
