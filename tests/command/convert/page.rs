//! `docs/from-the-script.md`, and the README in short: their commands are run as they stand, on registries that stand in for those it names.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::process::Command;

use crate::preview::shadow::Shadow;
use crate::testbed::command::ended;
use crate::testbed::script::sample;

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/from-the-script.md"))
        .unwrap()
}

/// The blocks of this kind, in their order.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let opening = format!("```{kind}\n");
    let blocks = page.split(&opening).skip(1);
    blocks
        .map(|block| block.split("\n```").next().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_do_what_it_says() {
    let shadow = Shadow::new().await;
    let folder = &shadow.ground.folder;
    folder
        .write("promote.sh", &shadow.rewritten(&sample("promote.sh")))
        .unwrap();
    folder
        .write("mapping.txt", &shadow.rewritten(&sample("mapping.txt")))
        .unwrap();
    folder.write("auth.json", "{\"auths\": {}}").unwrap();
    // The command, told where the registries are; what runs in a cluster is left out here.
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let real = env!("CARGO_BIN_EXE_promotion-controller");
    let [float, source] = [shadow.ground.registry.host(), shadow.source.host()];
    let script = format!(
        "#!/bin/sh\ncase $1 in convert) exec {real} \"$@\";; esac\n\
        exec {real} \"$@\" --settle-seconds=3 --plain-http={float} --plain-http={source}\n"
    );
    let wrapper = bin.join("promotion-controller");
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, short) = readme.split_once("## Coming from the script\n").unwrap();
    let mut commands = blocks(short, "console");
    commands.truncate(1);
    commands.extend(blocks(&page(), "console"));
    let mut ran = 0;
    for line in commands.iter().flat_map(|block| block.lines()) {
        if !line.starts_with("promotion-controller ") && !line.starts_with("sed ") {
            assert!(
                line.starts_with("kubectl ") || line.starts_with("oc "),
                "{line}"
            );
            continue;
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .current_dir(folder.path())
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", folder.join("home"));
        ended(command).await.exits(0);
        ran += 1;
    }
    assert!(ran >= 6, "{ran} commands");
    shadow.assert_promoted();
}

#[test]
fn what_the_page_shows_is_what_is_printed() {
    let page = page();
    let shown = blocks(&page, "yaml");
    let ran = super::converted(
        &[
            "-",
            "--name",
            "promote",
            "-n",
            "ci",
            "--push-secret",
            "registry-push-credentials",
        ],
        &sample("promote.sh"),
    );
    // The first image stands for all.
    let beginning: Vec<_> = shown[0].lines().collect();
    let printed: Vec<_> = ran.stdout.lines().take(beginning.len()).collect();
    assert_eq!(beginning, printed);
}

#[test]
fn every_option_of_oc_image_mirror_that_is_known_stands_on_the_page() {
    let page = page();
    for option in [
        "--keep-manifest-list",
        "--registry-config",
        "--max-per-registry",
        "--loglevel",
        "--filter-by-os",
        "--force",
        "--skip-mount",
        "--skip-missing",
        "--continue-on-error",
        "--insecure",
        "--certificate-authority",
        "--dry-run",
        "--filename",
        "--dir",
        "--from-dir",
        "--s3-source-bucket",
        "--skip-multiple-scopes",
        "--max-registry",
    ] {
        assert!(page.contains(&format!("`{option}")), "{option}");
    }
}
