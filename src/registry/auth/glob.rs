//! Keys of a dockerconfigjson with a glob in the host, matched as the kubelet documents them. Pure.

use crate::image::Repository;

/// Whether a key with a glob in its host serves a repository.
pub(crate) fn fits(key: &str, repository: &Repository) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    if !host.contains(['*', '?', '[', '\\']) {
        return false;
    }
    let below = |rest: &str| path.is_empty() || rest.is_empty() || rest.starts_with('/');
    let (glob, port) = split_port(host);
    let (name, own_port) = split_port(repository.host());
    let (globs, parts) = (glob.split('.'), name.split('.'));
    port == own_port
        && repository.path().strip_prefix(path).is_some_and(below)
        && globs.clone().count() == parts.clone().count()
        && globs
            .zip(parts)
            .all(|(glob, part)| matches(&glob.chars().collect::<Vec<_>>(), part))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether one part of a host's name is what a glob means: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before a character that means itself.
/// It takes no longer than the one's length times the other's. A glob that is none fits nothing.
fn matches(glob: &[char], part: &str) -> bool {
    let Some(tokens) = tokens(glob) else {
        return false;
    };
    let part: Vec<char> = part.chars().collect();
    // Which beginnings of the part fit the tokens so far.
    let mut fits = vec![false; part.len() + 1];
    fits[0] = true;
    for token in &tokens {
        if let Token::Any = token {
            let first = fits.iter().position(|fits| *fits).unwrap_or(fits.len());
            fits[first..].fill(true);
        } else {
            for at in (0..part.len()).rev() {
                fits[at + 1] = fits[at] && token.means(part[at]);
            }
            fits[0] = false;
        }
    }
    fits[part.len()]
}

/// What one place of a glob stands for.
enum Token {
    /// Any run.
    Any,
    /// Any one character.
    One,
    /// One of these, or none of these.
    In(bool, Vec<(char, char)>),
}

impl Token {
    fn means(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::In(of, ranges) => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) == *of
            }
        }
    }
}

/// A glob in its parts; none where it is no glob.
fn tokens(glob: &[char]) -> Option<Vec<Token>> {
    let mut chars = glob.iter().copied().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '[' => {
                let of = chars.next_if_eq(&'^').is_none();
                let mut ranges = Vec::new();
                while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                    let from = literal(&mut chars)?;
                    let to = match chars.next_if_eq(&'-') {
                        Some(_) => literal(&mut chars)?,
                        None => from,
                    };
                    ranges.push((from, to));
                }
                Token::In(of, ranges)
            }
            '\\' => {
                let c = chars.next()?;
                Token::In(true, vec![(c, c)])
            }
            c => Token::In(true, vec![(c, c)]),
        });
    }
    Some(tokens)
}

/// A character of a class, which a backslash may stand before.
fn literal(chars: &mut impl Iterator<Item = char>) -> Option<char> {
    match chars.next()? {
        '\\' => chars.next(),
        c => Some(c),
    }
}
