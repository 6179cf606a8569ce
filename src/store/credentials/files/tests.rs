#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const RULE: &str = "{namespaces: [ci], sources: [quay.io/src/**], floats: ['quay.io/ci:*']";

fn policy(names: &[&str]) -> String {
    let rules: Vec<String> = names
        .iter()
        .map(|name| format!("- {RULE}, name: {name}}}\n"))
        .collect();
    if rules.is_empty() {
        return "rules: []\n".into();
    }
    format!("rules:\n{}", rules.concat())
}

fn config(password: &str) -> String {
    format!(r#"{{"auths": {{"quay.io": {{"username": "bot", "password": "{password}"}}}}}}"#)
}

/// What the files say of quay.io/ci, to be compared.
fn password_of(files: &CredentialFiles) -> crate::registry::Credential {
    files
        .now()
        .keyring
        .credential(&"quay.io/ci".parse().unwrap())
        .unwrap()
}

fn credential(password: &str) -> crate::registry::Credential {
    let keyring = Keyring::parse(config(password).as_bytes(), "x").unwrap();
    keyring.credential(&"quay.io/ci".parse().unwrap()).unwrap()
}

/// A folder as Kubernetes mounts one: the files are links through a link, which is swapped.
struct Mount(TempDir);

impl Mount {
    fn new(policy: &str, config: &str) -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        mount.swap("1", policy, config);
        for name in ["policy.yaml", "config.json"] {
            symlink(Path::new("..data").join(name), mount.path(name)).unwrap();
        }
        mount
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn swap(&self, version: &str, policy: &str, config: &str) {
        let folder = self.path(&format!("..{version}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("policy.yaml"), policy).unwrap();
        std::fs::write(folder.join("config.json"), config).unwrap();
        symlink(&folder, self.path("..data_tmp")).unwrap();
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    async fn read(&self) -> CredentialFiles {
        let paths = ["policy.yaml", "config.json"].map(|name| Some(self.path(name)));
        let [policy, config] = paths;
        CredentialFiles::read(policy, config).await.unwrap()
    }
}

/// Whether a change was announced since this was last asked.
async fn was_told(files: &CredentialFiles) -> bool {
    tokio::time::timeout(Duration::from_millis(1), files.changed())
        .await
        .is_ok()
}

#[tokio::test]
async fn a_mount_that_is_swapped_is_taken_when_two_looks_agree() {
    let mount = Mount::new(&policy(&["a"]), &config("one"));
    let files = mount.read().await;
    assert_eq!(
        (files.now().rules.len(), password_of(&files)),
        (1, credential("one"))
    );
    files.look().await;
    assert!(!was_told(&files).await);
    mount.swap("2", &policy(&["a", "b"]), &config("two"));
    files.look().await;
    assert_eq!(
        (files.now().rules.len(), password_of(&files)),
        (1, credential("one"))
    );
    files.look().await;
    assert_eq!(
        (files.now().rules.len(), password_of(&files)),
        (2, credential("two"))
    );
    assert!(was_told(&files).await);
    files.look().await;
    assert!(!was_told(&files).await);
    assert_eq!(files.unusable(), 0);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_counts_until_it_can() {
    let mount = Mount::new(&policy(&["a"]), &config("one"));
    let files = mount.read().await;
    let before = files.now();
    for (number, (policy, config)) in [
        ("rules: [", config("one")),
        ("", config("one")),
        ("rules: [{name: x}]", config("one")),
        (&policy(&["a"]), "{".into()),
        (
            &policy(&["a"]),
            "{\"auths\": {\"quay.io\": {\"auth\": \"s3cret\"}}}".into(),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        mount.swap(&format!("bad-{number}"), policy, &config);
        for _ in 0..4 {
            files.look().await;
        }
        assert_eq!(files.unusable(), 1, "{policy} {config}");
        assert!(Arc::ptr_eq(&files.now(), &before), "{policy} {config}");
        // What is not JSON was not taken for a credential either.
        files.renew().await;
        assert!(Arc::ptr_eq(&files.now(), &before), "{policy} {config}");
    }
    std::fs::remove_file(mount.path("..data")).unwrap();
    for _ in 0..4 {
        files.look().await;
    }
    assert_eq!(files.unusable(), 2);
    assert!(Arc::ptr_eq(&files.now(), &before));
    assert!(!was_told(&files).await);
    mount.swap("good", &policy(&[]), &config("two"));
    for _ in 0..2 {
        files.look().await;
    }
    assert!(files.now().rules.is_empty());
    assert_eq!(password_of(&files), credential("two"));
    assert_eq!(files.unusable(), 0);
}

#[tokio::test]
async fn half_a_file_is_none() {
    let mount = Mount::new(&policy(&["a", "b"]), &config("one"));
    let files = mount.read().await;
    let path = mount.path("policy.yaml");
    // As a writer that stops in the middle shows it: valid, and not what was meant.
    std::fs::write(&path, policy(&["a"])).unwrap();
    files.look().await;
    std::fs::write(&path, policy(&["a", "b", "c"])).unwrap();
    files.look().await;
    assert_eq!(files.now().rules.len(), 2);
    files.look().await;
    assert_eq!(files.now().rules.len(), 3);
}

#[tokio::test]
async fn a_credential_that_was_rejected_is_read_at_once() {
    let mount = Mount::new(&policy(&["a"]), &config("one"));
    let files = mount.read().await;
    files.renew().await;
    assert!(!was_told(&files).await);
    mount.swap("2", &policy(&["a", "b"]), &config("two"));
    files.renew().await;
    assert_eq!(
        (files.now().rules.len(), password_of(&files)),
        (1, credential("two"))
    );
    assert!(was_told(&files).await);
}

#[tokio::test]
async fn at_the_start_a_file_that_cannot_be_used_is_refused_by_its_flag() {
    let mount = Mount::new(
        "rules: [{name: x}]",
        "{\"auths\": {\"quay.io\": {\"auth\": \"s3cret\"}}}",
    );
    let (policy, config) = (mount.path("policy.yaml"), mount.path("config.json"));
    let large = mount.path("large");
    std::fs::write(&large, " ".repeat(RULES_MAX + 2)).unwrap();
    for (policy, config, parts) in [
        (
            Some(&policy),
            None,
            &["--policy: ", "policy.yaml: rules[0]", "missing field"][..],
        ),
        (
            None,
            Some(&config),
            &[
                "--registry-config: ",
                "config.json: ",
                "write auth as base64",
            ],
        ),
        (
            Some(&mount.path("none")),
            None,
            &["--policy: cannot read", "name a readable file"],
        ),
        (
            None,
            Some(&mount.path("none")),
            &["--registry-config: cannot read", "name a readable file"],
        ),
        (
            Some(&mount.0.path().to_owned()),
            None,
            &["--policy: cannot read", "name a readable file"],
        ),
        (Some(&large), None, &["--policy: ", "larger than 1 MiB"]),
        (
            None,
            Some(&large),
            &["--registry-config: ", "larger than 1 MiB"],
        ),
    ] {
        let refused = CredentialFiles::read(policy.cloned(), config.cloned())
            .await
            .unwrap_err();
        for part in parts {
            assert!(refused.contains(part), "{refused}");
        }
        assert!(
            !refused.contains("s3cret") && !refused.contains('\n'),
            "{refused}"
        );
    }
}
