//! Sources that lie, through `promote`: the real binary, one attempt, and what is recorded in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, document, verdict};
use crate::testbed::scripted::{
    INDEX, Image, OCI, Say, Scripted, answer, descriptor, digest, head, unknown,
};

const MIB: u64 = 1024 * 1024;
/// What `promote` may take at its highest while a registry says things without end, a debug build's own needs included.
pub const MEMORY_MAX: u64 = 64 * 1024 * 1024;
/// How long one attempt at a source that answers at once may take, waits between its tries and a busy machine included.
const TIME_MAX: Duration = Duration::from_mins(1);

type Lie = Box<dyn Fn(&Image, &str) -> Option<Say> + Send + Sync>;

/// One way to lie, and what it comes to.
pub struct Case {
    name: &'static str,
    image: Image,
    lie: Lie,
    more: Value,
    reason: &'static str,
}

impl Case {
    /// The image served honestly, but for what `lie` answers.
    pub fn new(
        name: &'static str,
        image: Image,
        reason: &'static str,
        lie: impl Fn(&Image, &str) -> Option<Say> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            image,
            lie: Box::new(lie),
            more: json!({}),
            reason,
        }
    }

    /// With these fields of the spec.
    pub fn with(mut self, more: Value) -> Self {
        self.more = more;
        self
    }
}

/// A run, and the most memory that it took.
pub struct Measured {
    pub run: Run,
    pub peak: u64,
    pub took: Duration,
}

/// Runs `promote` and watches its memory.
pub async fn measured(ground: &Ground, arguments: &[&str]) -> Measured {
    let began = Instant::now();
    let running = ground.start(arguments);
    let pid = running.child.id().unwrap();
    let mut ended = std::pin::pin!(running.ended());
    let mut peak = 0;
    let run = loop {
        tokio::select! {
            run = &mut ended => break run,
            () = tokio::time::sleep(Duration::from_millis(5)) => peak = peak.max(resident(pid).unwrap_or_default()),
        }
    };
    Measured {
        run,
        peak,
        took: began.elapsed(),
    }
}

/// The highest resident memory of a process so far, in bytes.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Promotes from a lying registry to a float that exists; where that fails, the float has not moved and nothing dangles.
pub async fn tried(case: Case, memory: u64) -> String {
    let Case {
        name,
        image,
        lie,
        more,
        reason,
    } = case;
    let ground = Ground::new().await;
    let old = ground.seed("ci", "a", "old");
    let honest = Arc::new(image);
    let source = {
        let honest = Arc::clone(&honest);
        Scripted::start(move |head| lie(&honest, head).unwrap_or_else(|| honest.honest(head))).await
    };
    let mut spec = json!({
        "images": [{"source": format!("{}/src/x:t", source.host()), "float": ground.at("ci:a")}],
        "attempts": 1,
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    ground.documents(&[document("one", &spec)]);
    let plain = format!("--plain-http={}", source.host());
    let measured = measured(&ground, &["-o", "json", "--registry-qps=0", &plain]).await;
    let (run, good) = (measured.run, reason == "Promoted");
    let run = run.exits(i32::from(!good));
    let object = &run.items()[0];
    let message = object["status"]["images"][0]["message"]
        .as_str()
        .unwrap_or_default();
    let said = format!("{name}: {message}\n{}", run.stderr);
    let image = &object["status"]["images"][0];
    let found = image["reason"].as_str().unwrap_or(verdict(object).1);
    assert_eq!(found, reason, "{said}");
    assert!(message.chars().count() <= 256, "{said}");
    assert!(!message.contains(|c: char| c.is_control()), "{said}");
    assert!(!run.stderr.contains("panicked"), "{said}");
    let now = ground.registry.tag("ci", "a").unwrap();
    let wanted = if good {
        digest(&honest.manifest)
    } else {
        old.to_string()
    };
    assert_eq!(now.to_string(), wanted, "{said}");
    ground.assert_never_dangling();
    source.assert_shown_nothing(name);
    let (peak, took) = (measured.peak, measured.took);
    assert!(took < TIME_MAX, "{name}: took {took:?}");
    let mib = peak / MIB;
    assert!(
        peak > 0 && peak <= memory,
        "{name}: {mib} MiB at the highest"
    );
    format!("{name}: {found}, {mib} MiB, {:.1} s", took.as_secs_f64())
}

pub async fn all(cases: Vec<Case>, memory: u64) {
    let runs = futures::stream::iter(cases).map(|case| tried(case, memory));
    let mut runs = runs.buffer_unordered(3);
    while let Some(line) = runs.next().await {
        println!("{line}");
    }
}

fn is(head: &str, kind: &str) -> bool {
    head.starts_with("GET") && head.split(' ').nth(1).unwrap().contains(kind)
}

/// Answers requests for manifests.
fn manifests(
    say: impl Fn(&Image) -> Say + Send + Sync + 'static,
) -> impl Fn(&Image, &str) -> Option<Say> + Send + Sync {
    move |image, head| is(head, "/manifests/").then(|| say(image))
}

/// Answers requests for the layer.
fn layers(
    say: impl Fn(&Image) -> Say + Send + Sync + 'static,
) -> impl Fn(&Image, &str) -> Option<Say> + Send + Sync {
    move |image, head| is(head, &format!("/blobs/{}", digest(&image.layer))).then(|| say(image))
}

fn typed(media_type: &str, body: &[u8]) -> Say {
    answer(200, &[("content-type", media_type)], body)
}

fn image() -> Image {
    Image::new("new")
}

/// An index whose only child has this digest.
fn index_of(child: &Value) -> Image {
    image().with(|manifest| {
        *manifest = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]});
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_about_manifests_moves_no_float() {
    let page = || vec![b'<'; 64 * 1024];
    let nothing = |_: &Image, _: &str| None;
    let other_digest = digest(b"other");
    let nested = {
        // Six levels of indexes, honest ones.
        let mut levels = vec![image().manifest];
        for _ in 0..6 {
            let media_type = if levels.len() == 1 { OCI } else { INDEX };
            let child = descriptor(media_type, levels.last().unwrap());
            levels.push(index_of(&child).manifest);
        }
        levels
    };
    let top = Image {
        manifest: nested.last().unwrap().clone(),
        ..image()
    };
    let (a, b) = (
        index_of(&descriptor(INDEX, b"b")).manifest,
        index_of(&descriptor(INDEX, b"a")).manifest,
    );
    let cases = vec![
        Case::new(
            "another digest in the header",
            image(),
            "DigestMismatch",
            manifests(move |image| {
                answer(
                    200,
                    &[
                        ("content-type", OCI),
                        ("docker-content-digest", &other_digest),
                    ],
                    &image.manifest,
                )
            }),
        ),
        Case::new(
            "another digest algorithm in the header",
            image(),
            "Promoted",
            manifests(|image| {
                answer(
                    200,
                    &[
                        ("content-type", OCI),
                        ("docker-content-digest", "sha512:00"),
                    ],
                    &image.manifest,
                )
            }),
        ),
        Case::new(
            "no manifest",
            image(),
            "UnsupportedManifest",
            manifests(|_| typed("text/html", b"<html>hello</html>")),
        ),
        Case::new(
            "another media type",
            image(),
            "UnsupportedManifest",
            manifests(|image| typed(INDEX, &image.manifest)),
        ),
        Case::new(
            "control characters as a media type",
            image().with(|m| m["mediaType"] = json!("\u{202e}\u{1b}[2J\nx")),
            "UnsupportedManifest",
            manifests(|image| typed("application/json", &image.manifest)),
        ),
        Case::new(
            "schema 1",
            image().with(|m| *m = json!({"schemaVersion": 1, "name": "x"})),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "a body that is too short",
            image(),
            "RegistryError",
            manifests(|_| {
                Say::Bytes(
                    [
                        head(200, &[("content-type", OCI), ("content-length", "4000")]),
                        b"{".to_vec(),
                    ]
                    .concat(),
                )
            }),
        ),
        Case::new(
            "a length that is too small",
            image(),
            "UnsupportedManifest",
            manifests(|image| {
                Say::Bytes(
                    [
                        head(200, &[("content-type", OCI), ("content-length", "10")]),
                        image.manifest.clone(),
                    ]
                    .concat(),
                )
            }),
        ),
        Case::new(
            "chunks that are none",
            image(),
            "RegistryError",
            manifests(|_| {
                Say::Bytes(
                    [
                        head(
                            200,
                            &[("content-type", OCI), ("transfer-encoding", "chunked")],
                        ),
                        b"zzz\r\nhello".to_vec(),
                    ]
                    .concat(),
                )
            }),
        ),
        Case::new(
            "a 204 with a body",
            image(),
            "RegistryError",
            manifests(|image| answer(204, &[("content-type", OCI)], &image.manifest)),
        ),
        Case::new(
            "a redirect to itself",
            image(),
            "RegistryError",
            manifests(|_| answer(307, &[("location", "")], b"")),
        ),
        Case::new(
            "a redirect that names somebody",
            image(),
            "RegistryError",
            manifests(|_| answer(302, &[("location", "//bot:s3cret@/x")], b"")),
        ),
        Case::new(
            "a 403 page without end",
            image(),
            "PermissionDenied",
            manifests(move |_| Say::Endless(head(403, &[]), page())),
        ),
        Case::new(
            "a 401 page without end",
            image(),
            "Unauthorized",
            manifests(move |_| Say::Endless(head(401, &[]), page())),
        ),
        Case::new("HTTP/1.0", image(), "Promoted", |image, head| {
            let Say::Bytes(bytes) = image.honest(head) else {
                return None;
            };
            let text = bytes
                .splitn(2, |byte| *byte == b' ')
                .nth(1)
                .unwrap()
                .to_vec();
            Some(Say::Bytes([b"HTTP/1.0 ".to_vec(), text].concat()))
        }),
        Case::new(
            "a hundred answers of 1xx first",
            image(),
            "Promoted",
            manifests(|image| {
                let Say::Bytes(honest) = typed(OCI, &image.manifest) else {
                    unreachable!()
                };
                Say::Bytes([b"HTTP/1.1 103 X\r\nlink: </x>\r\n\r\n".repeat(100), honest].concat())
            }),
        ),
        Case::new(
            "an index in itself",
            Image {
                manifest: a.clone(),
                ..image()
            },
            "DigestMismatch",
            manifests({
                let a = a.clone();
                move |_| typed(INDEX, &a)
            }),
        ),
        Case::new(
            "indexes in each other",
            Image {
                manifest: a.clone(),
                ..image()
            },
            "DigestMismatch",
            move |_, head| {
                is(head, "/manifests/").then(|| {
                    typed(
                        INDEX,
                        if head.contains("/manifests/t") {
                            &a
                        } else {
                            &b
                        },
                    )
                })
            },
        ),
        Case::new(
            "indexes six levels deep",
            top,
            "UnsupportedManifest",
            move |_, head| {
                let asked = |level: &&Vec<u8>| is(head, &digest(level));
                let found = nested.iter().find(asked)?;
                Some(typed(if *found == nested[0] { OCI } else { INDEX }, found))
            },
        ),
        Case::new(
            "a child that is not there",
            index_of(&descriptor(OCI, b"gone")),
            "SourceIncomplete",
            nothing,
        ),
        Case::new(
            "a child of another algorithm",
            index_of(
                &json!({"mediaType": OCI, "size": 1, "digest": format!("sha512:{}", "0".repeat(128))}),
            ),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "a layer of another algorithm",
            image().with(|m| m["layers"][0]["digest"] = json!("md5:00")),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "a layer of negative size",
            image().with(|m| m["layers"][0]["size"] = json!(-1)),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "a layer of no size that can be",
            image().with(|m| m["layers"][0]["size"] = json!(1e30)),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new("a bare 404", image(), "RegistryError", |_, head| {
            is(head, "/manifests/").then(|| answer(404, &[], b""))
        }),
        Case::new("an honest image", image(), "Promoted", nothing),
        Case::new("nothing", image(), "SourceGone", |_, head| {
            is(head, "/manifests/").then(unknown)
        }),
    ];
    all(cases, MEMORY_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_about_blobs_moves_no_float() {
    let nothing = |_: &Image, _: &str| None;
    let claimed = |at: &'static str, size: u64| {
        image().with(move |manifest| manifest.pointer_mut(at).unwrap()["size"] = json!(size))
    };
    let unsized_layer = |image: &Image| Say::Bytes([head(200, &[]), image.layer.clone()].concat());
    let cases = vec![
        Case::new(
            "other content",
            image(),
            "DigestMismatch",
            layers(|image| answer(200, &[], image.layer.to_ascii_uppercase())),
        ),
        Case::new(
            "a descriptor that is too small",
            claimed("/layers/0", 7),
            "DigestMismatch",
            layers(unsized_layer),
        ),
        Case::new(
            "a descriptor that is too large",
            claimed("/layers/0", 4_000),
            "RegistryError",
            layers(unsized_layer),
        ),
        Case::new(
            "a descriptor that does not agree with the length",
            claimed("/layers/0", 4_000),
            "DigestMismatch",
            nothing,
        ),
        Case::new(
            "a config of 2 GiB",
            claimed("/config", 2 << 30),
            "DigestMismatch",
            nothing,
        ),
        Case::new(
            "a layer of all sizes",
            claimed("/layers/0", i64::MAX as u64),
            "RegistryError",
            layers(unsized_layer),
        ),
        Case::new(
            "a blob without end",
            image(),
            "DigestMismatch",
            layers(|_| Say::Endless(head(200, &[]), vec![0; 64 * 1024])),
        ),
        Case::new(
            "a 403 page without end",
            image(),
            "PermissionDenied",
            layers(|_| Say::Endless(head(403, &[]), vec![b'<'; 64 * 1024])),
        ),
        Case::new(
            "a partial answer that nobody asked for",
            image(),
            "RegistryError",
            layers(|image| answer(206, &[("content-range", "bytes 5-9/10")], &image.layer)),
        ),
        Case::new(
            "another range than was asked",
            image(),
            "RegistryError",
            |image, asked| {
                is(asked, &digest(&image.layer)).then(|| {
                    if asked.to_lowercase().contains("range: bytes=") {
                        answer(
                            206,
                            &[("content-range", "bytes 1-2999/3000")],
                            &image.layer[1..],
                        )
                    } else {
                        Say::Bytes(
                            [
                                head(200, &[("content-length", "3000")]),
                                image.layer[..100].to_vec(),
                            ]
                            .concat(),
                        )
                    }
                })
            },
        ),
        Case::new(
            "ranges that are no ranges",
            image(),
            "RegistryError",
            |image, asked| {
                is(asked, &digest(&image.layer)).then(|| {
                    if asked.to_lowercase().contains("range: bytes=") {
                        answer(
                            206,
                            &[("content-range", "bytes */18446744073709551616")],
                            &image.layer,
                        )
                    } else {
                        Say::Bytes(
                            [
                                head(200, &[("content-length", "3000")]),
                                image.layer[..100].to_vec(),
                            ]
                            .concat(),
                        )
                    }
                })
            },
        ),
        Case::new(
            "redirects in a circle",
            image(),
            "RegistryError",
            |image, head| {
                let path = head.split(' ').nth(1).unwrap();
                (path == "/round" || is(head, &digest(&image.layer)))
                    .then(|| answer(302, &[("location", "/round")], b""))
            },
        ),
        Case::new("nothing", image(), "SourceIncomplete", |image, head| {
            is(head, &digest(&image.layer)).then(unknown)
        }),
    ];
    all(cases, MEMORY_MAX).await;
}
