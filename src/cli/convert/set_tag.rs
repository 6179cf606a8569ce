//! The tags of image streams that a command sets.

use super::options::read_options;
use super::shell::Word;

/// A tag that is set, and what is said where it is not carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SetTag {
    pub(super) line: usize,
    /// The image, as it is pulled.
    pub(super) image: String,
    /// `NAMESPACE/STREAM:TAG`.
    pub(super) tag: String,
    pub(super) left_out: String,
}

/// What a command sets, as references and as requests set them; nothing where it does anything else.
pub(super) fn read(words: &[Word], left_out: &str) -> Vec<SetTag> {
    let program = |word: &Word| word.text == "oc" || word.text.ends_with("/oc");
    let Some(at) = words.iter().position(program) else {
        return Vec::new();
    };
    let Ok((_, operands)) = read_options(&words[at + 1..]) else {
        return Vec::new();
    };
    let options = || words[at + 1..].iter().filter(|w| w.text.starts_with('-'));
    let meant = |word: &Word| {
        let text = word.text.to_ascii_lowercase();
        let known = [
            "--source=docker",
            "--reference",
            "--reference=true",
            "--reference-policy=source",
        ];
        let free = [
            "--import-mode",
            "--loglevel",
            "-v",
            "--registry-config",
            "-a",
        ];
        let name = text.split('=').next().unwrap_or_default();
        known.contains(&text.as_str()) || free.contains(&name)
    };
    let refers = options().any(|w| matches!(w.text.as_str(), "--reference" | "--reference=true"));
    let [verb, image, tags @ ..] = operands.as_slice() else {
        return Vec::new();
    };
    if verb.text != "tag" || !refers || !options().all(meant) {
        return Vec::new();
    }
    let set = tags.iter().map(|tag| SetTag {
        line: words[at].line,
        image: image.text.clone(),
        tag: tag.text.clone(),
        left_out: left_out.to_owned(),
    });
    set.collect()
}
