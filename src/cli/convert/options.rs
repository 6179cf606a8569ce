//! The options of `oc image mirror`, and what became of each.
//!
//! In come the words after the command; out come the operands, and of the options what matters here. Values are never repeated
//! but where they name a file or a platform: some hold secrets.

use super::complaint::Complaint;
use super::shell::Word;

/// Options that are followed by their value, written with `=` or as the next word.
const VALUED: [&str; 29] = [
    "--registry-config",
    "-a",
    "--filename",
    "-f",
    "--filter-by-os",
    "--max-per-registry",
    "--max-registry",
    "--loglevel",
    "-v",
    "--certificate-authority",
    "--dir",
    "--from-dir",
    "--s3-source-bucket",
    "--context",
    "--cluster",
    "--user",
    "--server",
    "-s",
    "--kubeconfig",
    "--token",
    "--as",
    "--as-group",
    "--as-uid",
    "--namespace",
    "-n",
    "--cache-dir",
    "--request-timeout",
    "--client-certificate",
    "--client-key",
];

/// Options that change nothing about what is promoted.
const WITHOUT_MEANING: [&str; 23] = [
    "--registry-config",
    "-a",
    "--filename",
    "-f",
    "--filter-by-os",
    "--max-per-registry",
    "--max-registry",
    "--loglevel",
    "-v",
    "--skip-multiple-scopes",
    "--keep-manifest-list",
    "--context",
    "--cluster",
    "--user",
    "--server",
    "-s",
    "--kubeconfig",
    "--namespace",
    "-n",
    "--cache-dir",
    "--request-timeout",
    "--dry-run",
    "--match-server-version",
];

/// Options that mean something else here, or nothing: what is the case instead.
const ANOTHER_MEANING: [(&str, &str); 9] = [
    (
        "--force",
        "a float that is at its source already is left alone, and what the target has is not sent again",
    ),
    (
        "--skip-mount",
        "blobs are mounted where registry and credential allow; the images are the same",
    ),
    (
        "--skip-missing",
        "a source that is missing fails its image, and with it its request; convert with --latch Independently to let the others go on",
    ),
    (
        "--continue-on-error",
        "an image that fails holds its request back; convert with --latch Independently to let the others go on",
    ),
    (
        "--insecure",
        "registries are spoken to over plain HTTP with --plain-http HOST, and certificates always checked (--registry-ca)",
    ),
    (
        "--certificate-authority",
        "a registry's CA is given with --registry-ca HOST=FILE",
    ),
    ("--dir", "only registries can be read and written"),
    ("--from-dir", "only registries can be read and written"),
    (
        "--s3-source-bucket",
        "only registries can be read and written",
    ),
];

/// The options of an invocation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Where it found its credentials.
    pub(super) registry_config: Option<String>,
    /// Where it found its mappings.
    pub(super) file: Option<String>,
    /// It wrote nothing.
    pub(super) dry_run: bool,
    /// What means something else here, a line each.
    pub(super) warnings: Vec<String>,
}

/// Takes the options out of the words of an invocation.
///
/// # Errors
/// An option whose value is missing.
pub(super) fn read_options(words: &[Word]) -> Result<(Options, Vec<Word>), Complaint> {
    let mut options = Options::default();
    let mut operands = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word.text == "--" {
            operands.extend(words.cloned());
            break;
        }
        if !word.text.starts_with('-') || word.text == "-" {
            operands.push(word.clone());
            continue;
        }
        let (name, value) = match word.text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.text.as_str(), None),
        };
        let value = match value {
            None if VALUED.contains(&name) => {
                let missing =
                    || Complaint::new(word.line, format!("{name} has no value; give it one"));
                Some(words.next().ok_or_else(missing)?.text.as_str())
            }
            value => value,
        };
        options.note(name, value);
    }
    Ok((options, operands))
}

impl Options {
    fn note(&mut self, name: &str, value: Option<&str>) {
        let off = value == Some("false");
        match (name, value) {
            ("--registry-config" | "-a", Some(file)) => self.registry_config = Some(file.into()),
            ("--filename" | "-f", Some(file)) => self.file = Some(file.into()),
            ("--dry-run", _) => self.dry_run = !off,
            ("--filter-by-os", Some(filter)) if !matches!(filter, "" | ".*") => {
                self.warn(
                    name,
                    "every platform of an image is promoted, its digest unchanged",
                );
            }
            ("--keep-manifest-list", _) if off => {
                self.warn(name, "manifest lists are always kept, with every platform");
            }
            _ if off || WITHOUT_MEANING.contains(&name) => {}
            _ => match ANOTHER_MEANING.iter().find(|(known, _)| *known == name) {
                Some((_, instead)) => self.warn(name, instead),
                None => self.warn(name, "this option is not known and is left out"),
            },
        }
    }

    fn warn(&mut self, name: &str, instead: &str) {
        let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
        self.warnings.push(format!("{name}: {instead}"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> (Options, Vec<String>) {
        let words: Vec<Word> = text
            .split_whitespace()
            .map(|text| Word {
                text: text.into(),
                line: 3,
            })
            .collect();
        let (options, operands) = read_options(&words).unwrap();
        (
            options,
            operands.into_iter().map(|word| word.text).collect(),
        )
    }

    #[test]
    fn what_the_generated_script_says_means_the_same_here() {
        let (options, operands) = read(
            "--loglevel=10 --keep-manifest-list --registry-config=/etc/push-secret/.dockerconfigjson --max-per-registry=10 a=b",
        );
        assert_eq!(operands, ["a=b"]);
        assert_eq!(
            options,
            Options {
                registry_config: Some("/etc/push-secret/.dockerconfigjson".into()),
                ..Options::default()
            }
        );
    }

    #[test]
    fn values_may_follow_as_words_of_their_own() {
        let (options, operands) = read(
            "-a /c --max-per-registry 4 -f list --filter-by-os .* --dry-run=false -v 3 s d -- --x",
        );
        assert_eq!(operands, ["s", "d", "--x"]);
        assert_eq!(
            (
                options.registry_config.as_deref(),
                options.file.as_deref(),
                options.dry_run,
                options.warnings.len()
            ),
            (Some("/c"), Some("list"), false, 0)
        );
        let last = [Word {
            text: "-a".into(),
            line: 3,
        }];
        assert_eq!(
            read_options(&last).unwrap_err(),
            Complaint::new(3, "-a has no value; give it one")
        );
    }

    #[test]
    fn what_changes_the_meaning_is_told_once_each_and_without_values() {
        let text = "--force --skip-mount=true --skip-missing --continue-on-error=true --insecure --certificate-authority /ca --dir=d \
            --from-dir=d --s3-source-bucket=b --filter-by-os=linux/amd64 --keep-manifest-list=false --token=geheim --odd=geheim --dry-run a=b";
        let (options, _) = read(text);
        let names: Vec<_> = options
            .warnings
            .iter()
            .map(|w| w.split(':').next().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "--force",
                "--skip-mount",
                "--skip-missing",
                "--continue-on-error",
                "--insecure",
                "--certificate-authority",
                "--dir",
                "--from-dir",
                "--s3-source-bucket",
                "--filter-by-os",
                "--keep-manifest-list",
                "--token",
                "--odd"
            ]
        );
        assert!(options.dry_run && !options.warnings.concat().contains("geheim"));
    }

    #[test]
    fn what_is_switched_off_is_as_if_it_were_not_there() {
        let (options, _) =
            read("--force=false --skip-mount=false --insecure=false --continue-on-error=false a=b");
        assert_eq!(options, Options::default());
    }
}
