//! Token endpoints and challenges that lie.

use std::time::Duration;

use promotion_controller::image::{Reference, Repository};
use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Error, Keyring, Manifest, Progress};

use super::targets::settings;
use crate::testbed::PATIENCE;
use crate::testbed::client::client_with;
use crate::testbed::scripted::{Image, Say, Scripted, answer, head};

/// What must not show up anywhere, nor be sent to anybody but the registry.
const PASSWORD: &str = "bot-s3cret";

pub fn at(host: &str, path: &str) -> Repository {
    format!("{host}/{path}").parse().unwrap()
}

pub fn credential(host: &str) -> Credential {
    let auths = serde_json::json!({"auths": {host: {"username": "bot", "password": PASSWORD}}});
    let ring = Keyring::parse(auths.to_string().as_bytes(), "Secret ci/robot").unwrap();
    ring.credential(&at(host, "any/thing")).unwrap()
}

/// Asks a registry for an image with a credential, for five seconds at most.
pub async fn fetched(registry: &Scripted) -> Result<Option<Manifest>, Error> {
    let host = registry.host();
    let client = client_with(settings(&[&host]));
    let progress = Progress::default();
    let (repository, reference) = (at(&host, "src/x"), Reference::Tag("t".parse().unwrap()));
    let who = credential(&host);
    let asked = client.get(&repository, &reference, &who, &progress);
    let found = tokio::time::timeout(PATIENCE, asked).await;
    let found = found.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()));
    if let Err(error) = &found {
        assert!(!error.message.contains(PASSWORD), "{error}");
        assert!(error.message.chars().count() <= 256, "{error}");
        assert!(!error.message.contains(|c: char| c.is_control()), "{error}");
    }
    found
}

/// A registry that wants tokens of `realm`, by default its own, and answers there with `token`.
async fn issuing(
    challenge: &'static str,
    token: impl Fn() -> Say + Send + Sync + 'static,
) -> Scripted {
    let image = Image::new("new");
    Scripted::start(move |asked| {
        if asked.starts_with("GET /token") {
            return token();
        }
        let lower = asked.to_lowercase();
        if lower.contains("authorization: bearer") {
            return image.honest(asked);
        }
        let host = lower
            .split("host: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        let challenge = challenge.replace("HOST", host);
        answer(401, &[("www-authenticate", &challenge)], b"")
    })
    .await
}

const PLAIN: &str = "Bearer realm=\"http://HOST/token\",service=\"s\"";

fn json(body: &str) -> Say {
    answer(
        200,
        &[("content-type", "application/json")],
        body.as_bytes(),
    )
}

#[tokio::test]
async fn a_token_is_taken_or_refused_whatever_is_said_of_it() {
    let long = "x".repeat(20_000);
    let wide = format!(r#"{{"token":"x","x":[{}0]}}"#, "{\"a\":0},".repeat(100_000));
    let table: Vec<(&str, String, bool)> = vec![
        (
            "no life at all",
            r#"{"token":"x","expires_in":0}"#.into(),
            true,
        ),
        (
            "a life without end",
            format!(r#"{{"token":"x","expires_in":{}}}"#, u64::MAX),
            true,
        ),
        (
            "a negative life",
            r#"{"token":"x","expires_in":-1}"#.into(),
            true,
        ),
        (
            "a life that is no number",
            r#"{"token":"x","expires_in":"soon"}"#.into(),
            true,
        ),
        (
            "more life than numbers have",
            r#"{"token":"x","expires_in":1e300}"#.into(),
            true,
        ),
        ("a long token", format!(r#"{{"token":"{long}"}}"#), false),
        (
            "another header in the token",
            r#"{"token":"x\r\nX-Evil: 1"}"#.into(),
            false,
        ),
        ("a NUL in the token", r#"{"token":"x\u0000"}"#.into(), false),
        (
            "letters that no header has",
            r#"{"token":"é"}"#.into(),
            false,
        ),
        ("no token", r#"{"token":""}"#.into(), false),
        ("no text", r#"{"token":{"a":1}}"#.into(), false),
        (
            "an empty one beside another",
            r#"{"token":"","access_token":"x","expires_in":"60"}"#.into(),
            true,
        ),
        (
            "a claim that is none",
            r#"{"token":"e30.e30.x"}"#.into(),
            true,
        ),
        ("a claim of noise", r#"{"token":"e30.____.x"}"#.into(), true),
        ("a page", "<html>".into(), false),
        ("depth", "[".repeat(60_000), false),
        ("width", wide, false),
    ];
    for (name, body, taken) in table {
        let registry = issuing(PLAIN, move || json(&body)).await;
        let found = fetched(&registry).await;
        match &found {
            Ok(found) => assert!(taken && found.is_some(), "{name}: {found:?}"),
            Err(error) => {
                let is = (error.reason, error.class);
                assert_eq!(
                    is,
                    (Reason::RegistryError, Class::Attempt),
                    "{name}: {error}"
                );
                assert!(!taken, "{name}: {error}");
            }
        }
        for head in registry.heads() {
            assert!(!head.contains("X-Evil"), "{name}: {head}");
        }
    }
}

#[tokio::test]
async fn a_token_without_end_is_not_read_to_it() {
    for say in [
        Say::Endless(head(200, &[]), vec![b'['; 64 * 1024]),
        Say::Endless(head(400, &[]), vec![b'<'; 64 * 1024]),
        Say::Drip(head(200, &[]), vec![b' '], Duration::from_millis(20)),
    ] {
        let registry = issuing(PLAIN, move || say.clone()).await;
        let error = fetched(&registry).await.unwrap_err();
        let is = (error.reason, error.class);
        assert_eq!(is, (Reason::RegistryError, Class::Attempt), "{error}");
    }
}

#[tokio::test]
async fn what_a_challenge_says_is_asked_for_and_nothing_else() {
    for (challenge, service) in [
        (PLAIN, "s"),
        (
            "Bearer service=\"a\\\"b&scope=x#?\",realm=\"http://HOST/token\"",
            "a%22b%26scope%3Dx%23%3F",
        ),
        ("Bearer realm=\"http://u:p@HOST/token\",service=\"s\"", "s"),
        (
            "Basic realm=\"a\", Bearer realm=\"http://HOST/token?x=1#y\",service=\"s\",scope=\"repository:other:push\"",
            "s",
        ),
    ] {
        let registry = issuing(challenge, || json(r#"{"token":"x"}"#)).await;
        assert!(fetched(&registry).await.unwrap().is_some(), "{challenge}");
        let asked = registry
            .heads()
            .into_iter()
            .find(|head| head.starts_with("GET /token"));
        let asked = asked.unwrap();
        let wanted = format!("service={service}&scope=repository%3Asrc%2Fx%3Apull HTTP/1.1\r\n");
        assert!(asked.contains(&wanted), "{challenge}: {asked}");
        // The registry's own credential, and not the one that it wrote into its realm.
        let basic = "authorization: Basic Ym90OmJvdC1zM2NyZXQ=\r\n";
        assert_eq!(
            asked.matches("uthorization:").count(),
            1,
            "{challenge}: {asked}"
        );
        assert!(asked.contains(basic), "{challenge}: {asked}");
    }
}

#[tokio::test]
async fn a_challenge_that_leads_elsewhere_or_nowhere_is_shown_no_credential() {
    let table = [
        (
            "Bearer realm=\"http://foreign.test/token\"",
            Reason::NotAllowed,
        ),
        ("Bearer realm=\"ftp://HOST/token\"", Reason::NotAllowed),
        ("Bearer realm=\"file:///etc/passwd\"", Reason::NotAllowed),
        (
            "Bearer realm=\"http://HOST@foreign.test/token\"",
            Reason::NotAllowed,
        ),
        ("Bearer realm=\"/token\"", Reason::RegistryError),
        ("Bearer realm=\"http://[/token\"", Reason::RegistryError),
        ("Bearer realm=\"\"", Reason::RegistryError),
        ("Bearer service=\"x\"", Reason::RegistryError),
        ("Bearer realm=\"http://HOST/token", Reason::RegistryError),
        ("Negotiate", Reason::RegistryError),
        ("", Reason::RegistryError),
    ];
    for (challenge, reason) in table {
        let registry = issuing(challenge, || json(r#"{"token":"x"}"#)).await;
        let error = fetched(&registry).await.unwrap_err();
        assert_eq!(error.reason, reason, "{challenge}: {error}");
        registry.assert_shown_nothing(challenge);
    }
    // Asked for another kind each time.
    let again = Scripted::start(|_| {
        let n: u64 = rand::random();
        answer(
            401,
            &[(
                "www-authenticate",
                &format!("Basic realm=\"{n}\", Bearer realm=\"http://127.0.0.1:9/{n}\""),
            )],
            b"",
        )
    })
    .await;
    let host = again.host();
    let client = client_with(settings(&[&host]));
    let none = Credential::anonymous();
    let progress = Progress::default();
    let reference = Reference::Tag("t".parse().unwrap());
    let repository = at(&host, "src/x");
    let asked = client.get(&repository, &reference, &none, &progress);
    let shown = async {
        while progress.waiting().is_none() {
            progress.changed().await;
        }
        progress.waiting()
    };
    tokio::select! {
        found = asked => panic!("its realm is not reachable: {found:?}"),
        waiting = shown => {
            let reason = waiting.map(|waiting| waiting.reason);
            assert_eq!(reason, Some(Reason::RegistryUnavailable));
        }
        () = tokio::time::sleep(Duration::from_secs(5)) => panic!("nothing is shown"),
    }
    assert!(again.heads().len() < 10, "{:?}", again.heads());
}

#[tokio::test]
async fn a_registry_that_says_back_what_it_was_shown_is_not_quoted() {
    let registry = issuing(PLAIN, || json(r#"{"token":"t0ken-s3cret"}"#)).await;
    assert!(fetched(&registry).await.is_ok());
    // Both the token, at the registry, and the password, at the token endpoint.
    for at_token in [false, true] {
        let registry = Scripted::start(move |asked| {
            let lower = asked.to_lowercase();
            let host = lower
                .split("host: ")
                .nth(1)
                .unwrap()
                .lines()
                .next()
                .unwrap();
            let echo = || {
                let shown = asked
                    .split("uthorization: ")
                    .nth(1)
                    .unwrap()
                    .lines()
                    .next()
                    .unwrap();
                let message =
                    format!("what is {shown} or t0ken-s3cret or bot:bot-s3cret or bot-s3cret");
                let body = serde_json::json!({"errors": [{"code": shown, "message": message}]});
                answer(400, &[], body.to_string().as_bytes())
            };
            match lower.contains("authorization:") {
                _ if asked.starts_with("GET /token") && at_token => echo(),
                _ if asked.starts_with("GET /token") => json(r#"{"token":"t0ken-s3cret"}"#),
                true => echo(),
                false => answer(
                    401,
                    &[("www-authenticate", &PLAIN.replace("HOST", host))],
                    b"",
                ),
            }
        })
        .await;
        let error = fetched(&registry).await.unwrap_err();
        let own = if at_token {
            "bot-s3cret"
        } else {
            "t0ken-s3cret"
        };
        assert!(error.message.contains("what is"), "{error}");
        assert!(!error.message.contains(own), "{error}");
        assert!(!error.message.contains("Ym90OmJvdC1zM2NyZXQ"), "{error}");
    }
}
