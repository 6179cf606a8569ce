//! The Dockerfile, as far as it can be read; `.ci/image` runs the commands of its build.

use std::path::Path;

use serde_json::Value;

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The instructions of the Dockerfile, each a keyword and the rest.
fn instructions() -> Vec<(String, String)> {
    let lines = file("Dockerfile");
    let lines: Vec<&str> = lines
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let words = |line: &str| {
        let (keyword, rest) = line.split_once(' ').unwrap();
        let rest: Vec<&str> = rest.split_whitespace().collect();
        (keyword.to_owned(), rest.join(" "))
    };
    joined.lines().map(words).collect()
}

fn of(keyword: &str) -> Vec<String> {
    let all = instructions().into_iter();
    all.filter(|(found, _)| found == keyword)
        .map(|(_, rest)| rest)
        .collect()
}

/// `MAJOR.MINOR` as numbers.
fn minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn the_image_runs_as_a_numbered_user_that_is_not_root_and_starts_the_controller() {
    let user = of("USER").pop().unwrap();
    let (user, group) = user.split_once(':').unwrap();
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
    let [start] = of("ENTRYPOINT").try_into().unwrap();
    let start: Vec<String> = serde_json::from_str(&start).unwrap();
    let copied: Vec<String> = of("COPY")
        .into_iter()
        .filter(|copy| copy.starts_with("--from=build "))
        .collect();
    let program = "--from=build /build/target/release/promotion-controller";
    assert_eq!(
        copied,
        [
            format!("{program} {}", start[0]),
            "--from=build /build/licenses /usr/share/licenses/promotion-controller".into()
        ]
    );
}

#[test]
fn the_base_images_are_pinned_and_of_one_debian_and_the_compiler_is_recent_enough() {
    let by_digest = |from: String| {
        let (image, digest) = from.split_once("@sha256:").unwrap();
        let (digest, stage) = digest.split_at(64);
        assert!(digest.bytes().all(|c| c.is_ascii_hexdigit()), "{from}");
        format!("{image}{stage}")
    };
    let [build, run] = of("FROM").try_into().unwrap();
    let (build, run) = (by_digest(build), by_digest(run));
    assert!(build.ends_with("-slim-trixie AS build"), "{build}");
    // Debian 13 is trixie: the program finds the glibc that it was linked with.
    assert_eq!(run, "gcr.io/distroless/cc-debian13:nonroot");
    let compiler = build.split(':').nth(1).unwrap().split('-').next().unwrap();
    let about: Value = {
        let manifest = file("Cargo.toml");
        let line = manifest.lines().find(|l| l.starts_with("rust-version"));
        serde_json::from_str(line.unwrap().split_once('=').unwrap().1).unwrap()
    };
    assert!(
        minor(compiler) >= minor(about.as_str().unwrap()),
        "{compiler}"
    );
}

#[test]
fn the_build_is_locked_without_the_embedded_registry_and_from_what_the_context_has() {
    let runs = of("RUN");
    let builds: Vec<&str> = runs
        .iter()
        .filter(|run| run.contains(" build "))
        .map(|run| run.rsplit("&& ").next().unwrap())
        .collect();
    // Once for the dependencies, once for the program: with the same flags, or they would be built twice. No path of the builder
    // gets into the program, and the list of its dependencies does.
    let build = "cargo auditable build --locked --release --package promotion-controller --no-default-features";
    assert_eq!(builds, [build, build]);
    assert_eq!(
        of("ENV"),
        ["RUSTFLAGS=\"--remap-path-prefix=${CARGO_HOME}=/cargo\""]
    );
    let fetching = runs.iter().filter(|run| run.contains("cargo "));
    assert!(
        fetching.clone().all(|run| run.contains("--locked")),
        "{runs:?}"
    );
    let let_through: Vec<String> = file(".dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!').map(str::to_owned))
        .collect();
    assert!(file(".dockerignore").lines().any(|line| line == "*"));
    let mut copied = Vec::new();
    for copy in of("COPY").iter().filter(|copy| !copy.starts_with("--from")) {
        let mut words: Vec<&str> = copy.split(' ').collect();
        words.pop();
        copied.extend(words.into_iter().map(str::to_owned));
    }
    assert_eq!(copied, let_through);
}
