//! Mappings as `oc image mirror` reads them: `SRC=DST` words, or a source and one or more destinations; in a file, so a line each,
//! with `#` before what is no mapping.

use super::complaint::Complaint;
use super::shell::Word;

/// A source and a destination, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) line: usize,
}

/// The pairs of a mapping file whose first line is `first`.
///
/// # Errors
/// Every line that is no mapping, and what to do.
pub(super) fn read(text: &str, first: usize) -> Result<Vec<Pair>, Vec<Complaint>> {
    let (mut all, mut complaints) = (Vec::new(), Vec::new());
    for (number, text) in text.lines().enumerate() {
        let line = first + number;
        let text = text.split('#').next().unwrap_or_default();
        let words: Vec<Word> = text
            .split_whitespace()
            .map(|word| Word {
                text: word.into(),
                line,
            })
            .collect();
        match pairs(&words, line) {
            Ok(pairs) => all.extend(pairs),
            Err(complaint) => complaints.push(complaint),
        }
    }
    if complaints.is_empty() {
        Ok(all)
    } else {
        Err(complaints)
    }
}

/// The pairs that words make: each `SRC=DST`, or the first the source of all others.
///
/// # Errors
/// Words that are neither.
pub(super) fn pairs(words: &[Word], line: usize) -> Result<Vec<Pair>, Complaint> {
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if words.iter().all(|word| word.text.contains('=')) {
        let split = words.iter().map(|word| match word.text.split_once('=') {
            Some((source, destination)) if !source.is_empty() && !destination.is_empty() => {
                Ok(Pair {
                    source: source.into(),
                    destination: destination.into(),
                    line: word.line,
                })
            }
            _ => {
                let what = "a mapping has an empty side; write SRC=DST";
                Err(Complaint::new(word.line, what))
            }
        });
        return split.collect();
    }
    if words.iter().any(|word| word.text.contains('=')) {
        let what = "SRC=DST and SRC DST stand together; write one form, a mapping a line";
        return Err(Complaint::new(line, what));
    }
    if words.len() == 1 {
        let what = "a source without a destination; write SRC=DST, or SRC DST";
        return Err(Complaint::new(first.line, what));
    }
    let pair = |word: &Word| Pair {
        source: first.text.clone(),
        destination: word.text.clone(),
        line: word.line,
    };
    Ok(words[1..].iter().map(pair).collect())
}
