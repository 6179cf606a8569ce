//! Tags of image streams that a script sets to refer to promoted images, and the floats that they follow.
//!
//! In come the lines of `oc tag --reference` and the floats that the script moves; out comes each float's tag, and in a line each
//! whatever is not carried over. A float is found by the tag or the digest that the line names, and where only a run could tell, by the
//! float's name, `NAMESPACE_STREAM_TAG`.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use super::intended::{Intended, Position};
use super::script::Found;
use super::set_tag::SetTag;
use super::shell::UNKNOWN;
use crate::image::{Reference, Source};
use crate::stream::StreamTag;

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
