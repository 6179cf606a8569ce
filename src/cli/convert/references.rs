//! Tags of image streams that a script sets to refer to promoted images, and the floats that they follow.
//!
//! In come the lines of `oc tag --reference` and the floats that the script moves; out comes each float's tag, and in a line each
//! whatever is not carried over. A float is found by the tag or the digest that the line names, and where only a run could tell, by the
//! float's name, `NAMESPACE_STREAM_TAG`.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use super::intent::{Intended, Position};
use super::options::read_options;
use super::script::Found;
use super::shell::{UNKNOWN, Word};
use crate::image::{Reference, Source};
use crate::stream::StreamTag;

/// A tag that is set, and what is said where it is not carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SetTag {
    pub(super) line: usize,
    /// The image, as it is pulled.
    image: String,
    /// `NAMESPACE/STREAM:TAG`.
    tag: String,
    left_out: String,
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

/// Gives floats their tags; says what is not carried over. One request names streams of one namespace: the first.
pub(super) fn follow(floats: &mut [Intended], files: &[(Rc<str>, Found)]) -> Vec<String> {
    let mut told = Vec::new();
    let mut namespace: Option<String> = None;
    let mut taken: HashSet<StreamTag> = HashSet::new();
    let mut hosts: BTreeSet<(String, String)> = BTreeSet::new();
    for (file, found) in files {
        for set in &found.tags {
            let at = Position {
                file: Rc::clone(file),
                line: set.line,
            };
            let parsed = set.tag.split_once('/');
            let parsed =
                parsed.and_then(|(space, tag)| Some((space, tag.parse::<StreamTag>().ok()?)));
            let found = parsed.and_then(|parsed| Some((set.float(floats, &parsed)?, parsed)));
            let Some((index, (space, tag))) = found else {
                told.push(format!("{at}: {}", set.left_out));
                continue;
            };
            let other = namespace.as_deref().is_some_and(|known| known != space);
            let again = floats[index].stream_tag.as_ref();
            if again.is_some_and(|known| known.1 == tag && !other) {
                continue;
            }
            if other || again.is_some() || !taken.insert(tag.clone()) {
                let first = namespace.as_deref().unwrap_or_default();
                told.push(format!(
                    "{at}: {space}/{tag} is not carried over: requests made of one script name streams of one namespace, here {first}, each \
                     float one tag and each tag once; set it otherwise"
                ));
                continue;
            }
            namespace = Some(space.to_owned());
            let pulled = set.image.split('/').next().unwrap_or_default();
            let repository = floats[index].float.repository();
            if pulled != repository.host() {
                hosts.insert((repository.to_string(), pulled.to_owned()));
            }
            floats[index].stream_tag = Some((space.to_owned(), tag));
        }
    }
    for (repository, host) in hosts {
        told.push(format!(
            "the host {host} is not carried over: whoever runs the controller says where images are pulled from (--pull-host {repository}={host})"
        ));
    }
    told
}

impl SetTag {
    /// The one float that is meant, by its place.
    fn float(&self, floats: &[Intended], (namespace, tag): &(&str, StreamTag)) -> Option<usize> {
        let name = format!("{namespace}_{}_{}", tag.stream, tag.tag);
        let (_, path) = self.image.split_once('/')?;
        let known = !self.image.contains(UNKNOWN);
        let parsed: Option<Source> = Some(&self.image)
            .filter(|_| known)
            .and_then(|i| i.parse().ok());
        let means = |one: &Intended| {
            let repository = one.float.repository();
            match parsed.as_ref().map(|parsed| &parsed.reference) {
                Some(Reference::Tag(tag)) => {
                    parsed
                        .as_ref()
                        .is_some_and(|p| p.repository.path() == repository.path())
                        && tag == one.float.tag()
                }
                Some(digest) => {
                    parsed
                        .as_ref()
                        .is_some_and(|p| p.repository.path() == repository.path())
                        && *digest == one.source.reference
                }
                // By its digest, which only a run finds out.
                None => {
                    let of = path.strip_prefix(repository.path()).unwrap_or_default();
                    of.strip_prefix('@')
                        .is_some_and(|digest| digest.contains(UNKNOWN))
                        && one.float.tag().as_str() == name
                }
            }
        };
        let mut all = floats.iter().enumerate().filter(|(_, one)| means(one));
        let (index, _) = all.next()?;
        all.next().is_none().then_some(index)
    }
}
