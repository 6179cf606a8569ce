//! What the packages depend on, and how a release is made of them.

use std::env;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn what_a_promotion_is_depends_on_nothing_that_does_io_runs_tasks_or_draws_random_numbers() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package=promotion-core"])
        .args(["--edges=normal", "--prefix=none", "--format={p}"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let names: Vec<&str> = tree
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert_eq!(names.first(), Some(&"promotion-core"), "{tree}");
    for outside in [
        "tokio",
        "kube",
        "k8s-openapi",
        "reqwest",
        "hyper",
        "rand",
        "getrandom",
    ] {
        assert!(!names.contains(&outside), "{outside} is in:\n{tree}");
    }
}

/// What is signed is what was pushed, by digest: a tag could have moved in between.
#[test]
fn a_release_signs_the_digest_that_was_pushed_and_only_from_a_clean_checkout_of_its_tag() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let script = |name: &str, text: &str| {
        std::fs::write(at(name), format!("#!/bin/sh\n{text}")).unwrap();
        std::fs::set_permissions(at(name), Permissions::from_mode(0o755)).unwrap();
    };
    std::fs::create_dir(at(".ci")).unwrap();
    std::fs::create_dir(at("bin")).unwrap();
    std::fs::copy(Path::new(ROOT).join(".ci/release"), at(".ci/release")).unwrap();
    std::fs::write(at("Cargo.toml"), "version = \"1.2.3\"\n").unwrap();
    std::fs::write(at(".gitignore"), "bin\ntarget\ncalls\n").unwrap();
    let digest = format!("sha256:{}", "ab".repeat(32));
    script(
        "bin/docker",
        &format!(
            "echo docker \"$@\" >> calls; while [ \"$1\" != --metadata-file ]; do shift; done\n\
             printf '{{\\n  \"containerimage.digest\": \"{digest}\",\\n  \"image.name\": \"x\"\\n}}\\n' > \"$2\"\n"
        ),
    );
    script("bin/cosign", "echo cosign \"$@\" >> calls\n");
    let git = |args: &[&str]| {
        let name = ["-c", "user.name=t", "-c", "user.email=t@example.com"];
        let mut git = Command::new("git");
        git.args(name).args(args).current_dir(place.path());
        let done = git.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let path = format!("{}:{}", at("bin").display(), env::var("PATH").unwrap());
    let release = || {
        let mut release = Command::new(at(".ci/release"));
        let done = release
            .arg("x.io/ci/pc")
            .env("PATH", &path)
            .output()
            .unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        (
            done.status.success(),
            String::from_utf8(done.stdout).unwrap(),
            text,
        )
    };
    git(&["init", "-q"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "x"]);
    let (ok, _, said) = release();
    assert!(!ok && said.contains("v1.2.3"), "{said}");
    git(&["tag", "v1.2.3"]);
    std::fs::write(at("Cargo.toml"), "version = \"1.2.3\"\n#\n").unwrap();
    let (ok, _, said) = release();
    assert!(!ok && said.contains("Cargo.toml"), "{said}");
    assert!(!at("calls").exists());
    git(&["checkout", "-q", "Cargo.toml"]);
    let (ok, out, said) = release();
    assert!(ok, "{said}");
    assert_eq!(out, format!("x.io/ci/pc@{digest}\n"));
    let calls = std::fs::read_to_string(at("calls")).unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    assert!(
        calls[0].contains("--provenance=mode=max --sbom=true --push"),
        "{calls:?}"
    );
    assert_eq!(
        calls[1..],
        [format!("cosign sign --yes x.io/ci/pc@{digest}")]
    );
}
