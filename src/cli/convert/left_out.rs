//! What a script does beside copying images, and no request does.
//!
//! In come the words of a command that is no `oc image mirror`; out comes a line that names it, if it changes anything that a reader of
//! the requests would miss. Values of options are never shown, nor what may be a password: some scripts hold secrets.

use super::options::read_options;
use super::shell::{UNKNOWN, Word};
use crate::image::{Reference, Source};

/// What `oc` and `kubectl` do without changing anything.
const READING: [&str; 13] = [
    "get",
    "describe",
    "whoami",
    "version",
    "status",
    "explain",
    "wait",
    "logs",
    "api-resources",
    "api-versions",
    "cluster-info",
    "auth",
    "config",
];
/// Other programs that write registries.
const TOOLS: [&str; 9] = [
    "skopeo", "crane", "gcrane", "regctl", "podman", "docker", "buildah", "oras", "cosign",
];
/// As much of a word as a line bears.
const SHOWN_MAX: usize = 200;

/// What is left out of a command, in a line; none where it changes nothing, or is not known.
pub(super) fn left_out(words: &[Word]) -> Option<String> {
    let at = words
        .iter()
        .position(|word| is_program(word, &["oc", "kubectl"]))?;
    let (_, operands) = read_options(&words[at + 1..]).ok()?;
    let verb = operands.first()?.text.as_str();
    let program = &words[at].text;
    let program = program.rsplit('/').next().unwrap_or(program);
    match verb {
        "tag" => Some(tag(program, words, &operands[1..])),
        "image" if operands.get(1).is_some_and(|word| word.text == "info") => None,
        "image" => {
            let what = operands.get(1).map_or("", |word| word.text.as_str());
            Some(changes(&format!("{program} image {}", shown(what))))
        }
        verb if READING.contains(&verb) || verb.contains(UNKNOWN) => None,
        verb => Some(changes(&format!("{program} {}", shown(verb)))),
    }
}

/// The same of another program that writes registries.
pub(super) fn left_out_tool(words: &[Word]) -> Option<String> {
    let at = words.iter().position(|word| is_program(word, &TOOLS))?;
    let program = words[at].text.rsplit('/').next().unwrap_or_default();
    let verb = words[at + 1..]
        .iter()
        .find(|word| !word.text.starts_with('-'))?;
    let reads = [
        "inspect",
        "manifest",
        "digest",
        "ls",
        "list-tags",
        "login",
        "version",
        "verify",
        "config",
        "info",
    ];
    let written = !reads.contains(&verb.text.as_str()) && !verb.text.contains(UNKNOWN);
    written.then(|| changes(&format!("{program} {}", shown(&verb.text))))
}

fn is_program(word: &Word, names: &[&str]) -> bool {
    names.contains(&word.text.rsplit('/').next().unwrap_or_default())
}

fn changes(command: &str) -> String {
    format!(
        "'{command}' is not carried over: requests do only what 'oc image mirror' does; keep it where the script is, or do it otherwise"
    )
}

/// A line that sets `ImageStream` tags.
fn tag(program: &str, words: &[Word], operands: &[Word]) -> String {
    let reference = words
        .iter()
        .any(|word| matches!(word.text.as_str(), "--reference" | "--reference=true"));
    let option = if reference { " --reference" } else { "" };
    let names: Vec<String> = operands.iter().map(|word| shown(&word.text)).collect();
    format!(
        "'{program} tag{option} {}' is not carried over: only references by --reference follow a float that is moved here; once the request is Complete set the tag to \
         status.images[].promoted",
        names.join(" ")
    )
}

/// A word, if it can be the name of an image, of a stream's tag or of a command.
fn shown(word: &str) -> String {
    let named = word.replace(UNKNOWN, "…");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-@…".contains(c);
    let digest = match named.split_once('@') {
        Some((_, after)) => {
            after.starts_with("sha256:") || after.starts_with('…') || is_source(word)
        }
        None => true,
    };
    if !digest || named.contains("://") || !named.chars().all(plain) {
        return "…".into();
    }
    named.chars().take(SHOWN_MAX).collect()
}

fn is_source(word: &str) -> bool {
    word.parse::<Source>()
        .is_ok_and(|source| matches!(source.reference, Reference::Digest(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<Word> {
        let words = text.split_whitespace();
        words
            .map(|text| Word {
                text: text.replace("$X", &UNKNOWN.to_string()),
                line: 1,
            })
            .collect()
    }

    #[test]
    fn what_sets_an_image_stream_is_named_with_both_its_names() {
        for (text, named) in [
            (
                "oc tag --source=docker --reference-policy=source --reference quay-proxy.io/ci@$X ocp/4.21:cli",
                "'oc tag --reference quay-proxy.io/ci@… ocp/4.21:cli' is not carried over",
            ),
            (
                "timeout 30 /usr/bin/oc --kubeconfig /k tag a/b:c d/e:f g:h",
                "'oc tag a/b:c d/e:f g:h' is not carried over",
            ),
            (
                "oc tag --token=geheim user:geheim@host/x ocp/4.21:cli",
                "'oc tag … ocp/4.21:cli'",
            ),
        ] {
            let said = left_out(&words(text)).unwrap();
            assert!(said.starts_with(named), "{said}");
            assert!(
                !said.contains("geheim") && said.contains("status.images[].promoted"),
                "{said}"
            );
        }
    }

    #[test]
    fn other_changes_are_named_by_their_command_and_what_only_reads_is_not() {
        for (text, named) in [
            ("oc import-image x --confirm", "'oc import-image'"),
            ("kubectl apply -f -", "'kubectl apply'"),
            ("oc image append --from=a --to=b", "'oc image append'"),
            ("oc delete $X", "'oc delete'"),
        ] {
            assert!(left_out(&words(text)).unwrap().starts_with(named), "{text}");
        }
        for (text, named) in [
            ("skopeo copy a b", "'skopeo copy'"),
            ("retry /bin/crane tag a b", "'crane tag'"),
        ] {
            assert!(
                left_out_tool(&words(text)).unwrap().starts_with(named),
                "{text}"
            );
        }
        for text in [
            "oc get is",
            "oc image info a",
            "kubectl -n x wait y",
            "sleep 3",
            "oc",
            "oc $X",
            "crane digest a",
            "docker login",
            "crane",
        ] {
            assert_eq!(left_out(&words(text)), None, "{text}");
            assert_eq!(left_out_tool(&words(text)), None, "{text}");
        }
    }
}
