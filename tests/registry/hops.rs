//! Where a registry may lead: redirects, token realms and upload locations, with a list and without, and through proxies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use promotion_controller::image::Repository;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{
    Class, Credential, Error, Keyring, Progress, Proxies, RegistryClient, Settings, Waiting,
};
use quaylike::{Action, ImageSpec, Matcher, Registry, Rule, Shape};

use crate::testbed::PATIENCE;
use crate::testbed::client::{
    by_tag, client_with, credential as embedded_credential, fetched as seed, open, redirecting,
    repository, seeded, settings, tag,
};
use crate::testbed::scripted::{Say, Scripted, answer, redirect};

/// What a registry says of a manifest that it does not have.
const ABSENT: &str = r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#;
/// What must not show up anywhere.
const SIGNATURE: &str = "X-Amz-Signature=s3cret";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Redirect,
    Realm,
    Upload,
}

/// A registry that leads to `target` in one way, and knows no blob.
async fn leading(kind: Kind, target: &str) -> Scripted {
    let to = format!("http://{target}/x?{SIGNATURE}");
    Scripted::start(move |head| {
        let ping = head.starts_with("GET /v2/ ");
        match kind {
            Kind::Realm => {
                let challenge = format!("Bearer realm=\"{to}\",service=\"s\"");
                answer(401, &[("www-authenticate", &challenge)], "")
            }
            _ if ping => answer(200, &[], ""),
            Kind::Redirect => redirect(&to),
            Kind::Upload if head.starts_with("POST") => answer(202, &[("location", &to)], ""),
            Kind::Upload => answer(404, &[], ""),
        }
    })
    .await
}

/// A server that is never to be asked, or answers anything with a page.
async fn other() -> Scripted {
    Scripted::start(|_| answer(403, &[], "<html>no</html>")).await
}

fn listing(hosts: &[&str], plain: &[&str]) -> Settings {
    Settings {
        plain_http: plain.iter().map(|host| (*host).to_owned()).collect(),
        allowed: Some(hosts.iter().map(|host| host.parse().unwrap()).collect()),
        qps: 0,
        ..Settings::default()
    }
}

fn at(host: &str) -> Repository {
    format!("{host}/team/a").parse().unwrap()
}

/// Asks `registry` for what makes it lead to another address.
async fn led(client: &RegistryClient, from: &Registry, registry: &Scripted, kind: Kind) -> Error {
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let target = at(&registry.host());
    let asked = async {
        if kind == Kind::Upload {
            let manifest = seeded(from, client, "src/a", Shape::Oci, &none).await;
            let source = repository(from, "src/a");
            client
                .copy(none.at(&source), &manifest, none.at(&target), &progress)
                .await
        } else {
            client
                .get(&target, &by_tag("x"), &none, &progress)
                .await
                .map(drop)
        }
    };
    let error = tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("{kind:?}: waited: {:?}", progress.waiting()))
        .unwrap_err();
    assert_eq!(progress.waiting(), None, "{kind:?}");
    assert!(!error.message.contains("s3cret"), "{error}");
    error
}

#[tokio::test]
async fn a_registry_leads_to_no_internal_address_that_the_list_does_not_name() {
    let from = open().await;
    let guarded = other().await;
    let (by_address, by_name) = (guarded.host(), guarded.by_name());
    for kind in [Kind::Redirect, Kind::Realm, Kind::Upload] {
        for target in [
            &*by_address,
            &by_name,
            "169.254.169.254",
            "10.0.0.1",
            "172.30.0.1:8443",
            "[fd00::1]",
            "[::ffff:169.254.169.254]",
            "2130706433:1",
            "8.8.8.8",
        ] {
            let registry = leading(kind, target).await;
            // Stars alone name nobody.
            let hosts = [&*registry.host(), &from.host(), "**"];
            let client = client_with(Settings {
                cluster_ranges: vec!["8.8.8.0/24".parse().unwrap()],
                ..listing(&hosts, &hosts[..2])
            });
            let error = led(&client, &from, &registry, kind).await;
            assert_eq!(
                (error.reason, error.class),
                (Reason::NotAllowed, Class::Terminal),
                "{kind:?} {target}: {error}"
            );
            let shown = match target {
                "[::ffff:169.254.169.254]" => "[::ffff:a9fe:a9fe]",
                "2130706433:1" => "127.0.0.1:1",
                target => target,
            };
            let remedy = format!(
                "{shown}, which is at an internal address; have --allow-registry {shown} added"
            );
            assert!(error.message.contains(&remedy), "{error}");
            assert!(error.message.starts_with(&registry.host()), "{error}");
            let word = match kind {
                Kind::Redirect => "redirects",
                Kind::Realm => "tokens",
                Kind::Upload => "uploads",
            };
            assert!(error.message.contains(word), "{error}");
        }
    }
    assert_eq!(guarded.connections(), 0, "not a byte is sent there");
}

#[tokio::test]
async fn a_registry_leads_to_an_internal_address_that_the_list_names() {
    let from = open().await;
    for kind in [Kind::Redirect, Kind::Realm, Kind::Upload] {
        for named in [true, false] {
            let storage = other().await;
            let target = if named {
                storage.by_name()
            } else {
                storage.host()
            };
            let registry = leading(kind, &target).await;
            let hosts = [&*registry.host(), &from.host(), &target];
            let client = client_with(listing(&hosts, &hosts[..2]));
            let error = led(&client, &from, &registry, kind).await;
            assert_ne!(error.reason, Reason::NotAllowed, "{kind:?} {error}");
            let heads = storage.heads();
            assert!(!heads.is_empty(), "{kind:?}");
            for head in heads {
                assert!(head.contains(SIGNATURE), "{head}");
                assert!(!head.contains("authorization"), "{head}");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_on_the_list_by_stars_alone_is_not_asked_at_an_internal_address() {
    let registry = other().await;
    let client = client_with(listing(&["**"], &[]));
    for host in [registry.by_name(), registry.host()] {
        let (none, progress) = (Credential::anonymous(), Progress::default());
        let error = client
            .get_authoritative(&at(&host), &tag("x"), &none, &progress)
            .await
            .unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::NotAllowed, Class::Terminal)
        );
        let words = format!("{host} is at an internal address; have --allow-registry {host} added");
        assert_eq!(error.message, words);
        assert_eq!(progress.waiting(), None);
    }
    assert_eq!(registry.connections(), 0);
}

#[tokio::test]
async fn without_a_list_internal_registries_lead_to_internal_addresses_but_never_to_the_link() {
    let from = open().await;
    let storage = other().await;
    for kind in [Kind::Redirect, Kind::Realm, Kind::Upload] {
        for target in [storage.host(), storage.by_name()] {
            let before = storage.connections();
            let registry = leading(kind, &target).await;
            let mut settings = settings(&[&from]);
            settings.plain_http.push(registry.host());
            let client = client_with(settings);
            let error = led(&client, &from, &registry, kind).await;
            assert_ne!(error.reason, Reason::NotAllowed, "{kind:?} {error}");
            assert!(storage.connections() > before, "{kind:?} {error}");
        }
        for target in ["169.254.169.254", "[fe80::1]"] {
            let registry = leading(kind, target).await;
            let mut settings = settings(&[&from]);
            settings.plain_http.push(registry.host());
            let error = led(&client_with(settings), &from, &registry, kind).await;
            assert_eq!(
                (error.reason, error.class),
                (Reason::NotAllowed, Class::Terminal),
                "{error}"
            );
            assert!(
                error.message.contains("each registry of the file"),
                "{error}"
            );
        }
    }
}

fn credential(host: &str) -> Credential {
    let auths = serde_json::json!({"auths": {host: {"username": "bot", "password": "bot-s3cret"}}});
    let ring = Keyring::parse(auths.to_string().as_bytes(), "Secret ci/robot").unwrap();
    ring.credential(&at(host)).unwrap()
}

#[tokio::test]
async fn a_redirect_takes_accept_and_range_along_and_authorization_to_the_registry_alone() {
    let storage = Scripted::start(|_| answer(404, &[], "")).await;
    let away = format!("http://{}/y?{SIGNATURE}", storage.host());
    // Within the registry first, by way of every kind of redirect, then away, then back.
    let registry = Scripted::start(move |head| {
        let (path, status) = match head.split(' ').nth(1).unwrap() {
            "/v2/" if head.contains("authorization") => return answer(200, &[], ""),
            "/v2/" => return answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
            "/1" => ("/2", 302),
            "/2" => ("2/../3", 303),
            "/3" => ("/4", 308),
            "/4" => (&*away, 301),
            _ => ("/1", 307),
        };
        answer(status, &[("location", path)], "")
    })
    .await;
    let host = registry.host();
    let client = client_with(listing(&[&host, &storage.host()], &[&host]));
    let (who, progress) = (credential(&host), Progress::default());
    let found = client.get(&at(&host), &by_tag("x"), &who, &progress).await;
    assert!(found.unwrap_err().message.contains("answered 404"));
    let heads = registry.heads();
    // The ping asks for the kind of credential.
    assert_eq!(heads.len(), 6, "{heads:#?}");
    for head in &heads[1..] {
        assert!(head.contains("authorization: Basic "), "{head}");
        assert!(
            head.contains("application/vnd.oci.image.index.v1+json"),
            "{head}"
        );
    }
    let heads = storage.heads();
    assert_eq!(heads.len(), 1);
    assert!(!heads[0].contains("authorization"), "{heads:?}");
    assert!(!heads[0].contains("referer"), "{heads:?}");
    assert!(
        heads[0].contains("application/vnd.oci.image.index.v1+json"),
        "{heads:?}"
    );
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_in_the_storage_it_is_redirected_to() {
    let (from, to) = (redirecting().await, open().await);
    let mut spec = ImageSpec::new(Shape::Oci, "big");
    (spec.layers, spec.layer_bytes) = (1, Some(300_000));
    from.seed_spec("src/a", "seed", &spec).unwrap();
    let reader = embedded_credential(&from, "reader");
    let (client, none) = (
        client_with(settings(&[&from, &to])),
        Credential::anonymous(),
    );
    let manifest = seed(&from, &client, "src/a", &reader).await;
    let cut = Action::CutBody { after: 100_000 };
    from.add_rule(Rule::new(Matcher::kind(quaylike::RequestKind::Storage), cut).times(2));
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    client
        .copy(
            reader.at(&source),
            &manifest,
            none.at(&target),
            &Progress::default(),
        )
        .await
        .unwrap();
    let asked = from.requests(&Matcher::kind(quaylike::RequestKind::Storage));
    let rest = asked.iter().filter(|entry| entry.status == Some(206));
    assert_eq!(rest.count(), 1, "{asked:#?}");
}

#[tokio::test]
async fn who_comes_back_from_elsewhere_brings_no_authorization() {
    let registry = Arc::new(std::sync::OnceLock::new());
    let back = Arc::clone(&registry);
    let storage =
        Scripted::start(move |_| redirect(&format!("http://u:p@{}/back", back.get().unwrap())))
            .await;
    let away = format!("http://{}/", storage.host());
    let host = Scripted::start(move |head| match head.split(' ').nth(1).unwrap() {
        "/v2/" => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        "/back" => answer(404, &[], ABSENT),
        _ => redirect(&away),
    })
    .await;
    registry.set(host.host()).unwrap();
    let client = client_with(listing(&[&host.host(), &storage.host()], &[&host.host()]));
    let who = credential(&host.host());
    let found = client
        .get(&at(&host.host()), &by_tag("x"), &who, &Progress::default())
        .await;
    assert_eq!(found.unwrap(), None);
    let last = host.heads().pop().unwrap();
    assert!(last.starts_with("GET /back "), "{last}");
    assert!(!last.contains("authorization"), "{last}");
}

#[tokio::test]
async fn a_credential_goes_to_no_realm_that_is_not_the_registrys_own() {
    for realm in ["https://auth.example/token", "https://8.8.8.8/token"] {
        let registry = Scripted::start(move |_| {
            let challenge = format!("Bearer realm=\"{realm}?{SIGNATURE}\"");
            answer(401, &[("www-authenticate", &challenge)], "")
        })
        .await;
        let client = client_with(listing(
            &[&registry.host(), "auth.example"],
            &[&registry.host()],
        ));
        let who = credential(&registry.host());
        let error = client
            .get(
                &at(&registry.host()),
                &by_tag("x"),
                &who,
                &Progress::default(),
            )
            .await
            .unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::NotAllowed, Class::Terminal)
        );
        assert!(error.message.contains("not its own; not sent"), "{error}");
        assert!(!error.message.contains("s3cret"), "{error}");
    }
}

/// A proxy beside no network at all: it answers for every plain host itself.
async fn proxy() -> Scripted {
    Scripted::proxy(None, |head| match head.split(' ').nth(1).unwrap() {
        "http://registry.test/v2/" => answer(200, &[], ""),
        "http://registry.test/v2/team/a/manifests/x" => answer(404, &[], ABSENT),
        "http://registry.test/v2/team/a/manifests/away" => {
            redirect(&format!("http://storage.test/x?{SIGNATURE}"))
        }
        "http://registry.test/v2/team/a/manifests/near" => redirect("http://registry.test:81/x"),
        "http://registry.test/v2/team/a/manifests/self" => redirect("http://127.0.0.1:9/x"),
        _ => answer(404, &[], ""),
    })
    .await
}

fn through(proxy: &Scripted, except: &str, settings: Settings) -> Settings {
    Settings {
        proxies: Proxies::Given {
            proxy: format!("http://{}", proxy.by_name()),
            except: except.into(),
        },
        qps: 0,
        ..settings
    }
}

async fn fetched(client: &RegistryClient, name: &str) -> Result<(), Error> {
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let found = client
        .get(&at("registry.test"), &by_tag(name), &none, &progress)
        .await?;
    assert_eq!(found, None);
    Ok(())
}

#[tokio::test]
async fn a_proxy_is_asked_only_for_hosts_that_are_meant_by_name() {
    let plain = || vec!["registry.test".to_owned()];
    for allowed in [None, Some("registry.test"), Some("storage.test")] {
        let proxy = proxy().await;
        let client = client_with(through(
            &proxy,
            "",
            Settings {
                plain_http: plain(),
                allowed: allowed.map(|host| vec![host.parse().unwrap()]),
                ..Settings::default()
            },
        ));
        fetched(&client, "x").await.unwrap();
        assert_eq!(proxy.heads().len(), 2);
        let outcome = fetched(&client, "away").await;
        let asked = proxy
            .heads()
            .iter()
            .any(|head| head.contains("storage.test/x"));
        assert_eq!(asked, allowed == Some("storage.test"), "{outcome:?}");
        let outcome = match (asked, outcome) {
            (true, outcome) => {
                assert!(outcome.unwrap_err().message.contains("answered 404"));
                continue;
            }
            (false, outcome) => outcome.unwrap_err(),
        };
        assert_eq!(
            (outcome.reason, outcome.class),
            (Reason::NotAllowed, Class::Terminal)
        );
        assert!(
            outcome
                .message
                .contains("storage.test, which is behind a proxy"),
            "{outcome}"
        );
        // Another port of a host that a spec names is that host; of one that is on the list it is not.
        let near = fetched(&client, "near").await.unwrap_err();
        assert_eq!(
            near.reason == Reason::NotAllowed,
            allowed.is_some(),
            "{near}"
        );
        // The proxy's own place is no exception.
        let error = fetched(&client, "self").await.unwrap_err();
        assert_eq!(error.reason, Reason::NotAllowed, "{error}");
        let heads = proxy.heads();
        assert!(
            !heads.iter().any(|head| head.contains("127.0.0.1:9")),
            "{heads:?}"
        );
    }
}

#[tokio::test]
async fn the_place_of_a_proxy_is_no_place_to_be_led_to() {
    let guarded = other().await;
    let registry = leading(Kind::Redirect, &guarded.by_name()).await;
    // The registry and the proxy's own host are reached directly.
    for proxied in ["127.0.0.1,localhost", "127.0.0.1"] {
        let client = client_with(through(
            &guarded,
            proxied,
            listing(&[&registry.host()], &[&registry.host()]),
        ));
        let error = client
            .get(
                &at(&registry.host()),
                &by_tag("x"),
                &Credential::anonymous(),
                &Progress::default(),
            )
            .await
            .unwrap_err();
        assert_eq!(error.reason, Reason::NotAllowed, "{error}");
    }
    assert_eq!(guarded.connections(), 0);
}

async fn waiting(progress: &Progress) -> Waiting {
    loop {
        if let Some(waiting) = progress.waiting() {
            return waiting;
        }
        progress.changed().await;
    }
}

#[tokio::test]
async fn a_host_that_accepts_and_says_nothing_is_unwell_and_not_waited_for_without_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let short = Duration::from_millis(300);
    // Without TLS the answer does not come; with it, the connection is not made.
    for (plain, connect_timeout, read_timeout) in [
        (true, Duration::from_mins(1), short),
        (false, short, Duration::from_mins(1)),
    ] {
        let host = format!("localhost:{port}");
        let client = client_with(Settings {
            plain_http: if plain {
                vec![host.clone()]
            } else {
                Vec::new()
            },
            connect_timeout,
            read_timeout,
            ..Settings::default()
        });
        let (none, progress, name) = (Credential::anonymous(), Progress::default(), tag("x"));
        let began = Instant::now();
        let target = at(&host);
        let waiting = tokio::select! {
            found = client.get_authoritative(&target, &name, &none, &progress) => panic!("{found:?}"),
            waiting = waiting(&progress) => waiting,
        };
        let took = began.elapsed();
        assert!(took >= short && took < Duration::from_secs(30), "{took:?}");
        assert_eq!(waiting.reason, Reason::RegistryUnavailable);
        assert!(waiting.message.contains("timed out"), "{}", waiting.message);
    }
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_error_and_no_log_shows_what_a_redirect_was_signed_with() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    tracing::debug!("listens");
    let dead = Scripted::start(|_| Say::Bytes(Vec::new())).await.host();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let refusing = other().await;
    let cut =
        Scripted::start(|_| Say::Bytes(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{".into()))
            .await;
    let garbage = Scripted::start(|_| Say::Bytes(b"no HTTP at all\r\n\r\n".into())).await;
    let circle = Scripted::start(|_| redirect(&format!("/again?{SIGNATURE}"))).await;
    let targets = [
        dead,
        closed,
        refusing.host(),
        cut.host(),
        garbage.host(),
        circle.host(),
        "10.0.0.1".into(),
        "no-such-name.invalid".into(),
        "[::bad".into(),
    ];
    let mut texts = Vec::new();
    for target in &targets {
        let registry = leading(Kind::Redirect, target).await;
        let mut hosts: Vec<&str> = targets
            .iter()
            .map(String::as_str)
            .filter(|host| host.starts_with("127"))
            .collect();
        let own = registry.host();
        hosts.push(&own);
        let client = client_with(listing(&hosts, &[&own]));
        let (none, progress, place) = (Credential::anonymous(), Progress::default(), at(&own));
        let name = by_tag("x");
        tokio::select! {
            found = client.get(&place, &name, &none, &progress) => {
                texts.push(format!("{target}: {:?}", found.unwrap_err()));
            }
            waiting = waiting(&progress) => texts.push(format!("{target}: {waiting:?}")),
        }
    }
    let log = String::from_utf8(log.0.lock().clone()).unwrap();
    assert!(log.contains("listens"));
    for text in texts.iter().chain([&log]) {
        for secret in ["s3cret", "Signature"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let all = texts.join("\n");
    for words in [
        "too many redirects",
        "Connection refused",
        "403",
        "cut off",
        "NotAllowed",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
}
