//! The `oc image mirror` invocations of a script.
//!
//! In comes a script's text; out come its invocations in the order in which a run would come to them, with the pairs they copy. A
//! run is followed as far as it decides about names: functions of the script and what they are called with, variables that are
//! always given the same value, here-documents read with `-f -`. Conditions and loops are not: what stands in them counts once,
//! as if it ran. A name that depends on anything else is known to depend on it ([`UNKNOWN`]).

use std::collections::{BTreeMap, HashMap};

use super::complaint::Complaint;
use super::left_out::{left_out, left_out_tool};
use super::mapping::{self, Pair};
use super::options::{Options, read_options};
use super::set_tag::{self, SetTag};
use super::shell::{self, Command, UNKNOWN, Word};

/// How deep functions may call each other.
const CALLS_MAX: usize = 8;
/// How many words a run may come to.
const WORDS_MAX: usize = 1_000_000;
/// The longest text that a word or a variable may come to, in bytes.
const TEXT_MAX: usize = 64 * 1024;

/// Words of the shell's grammar that stand before a command.
const GRAMMAR: [&str; 12] = [
    "if", "then", "elif", "else", "while", "until", "do", "{", "!", "time", "exec", "command",
];
/// Commands that only show what they are given.
const SHOWING: [&str; 3] = ["echo", "printf", ":"];

/// One invocation of `oc image mirror`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) options: Options,
    pub(super) pairs: Vec<Pair>,
}

/// What a script comes to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) invocations: Vec<Invocation>,
    /// What else it does, where it does it.
    pub(super) left_out: Vec<Complaint>,
    /// Tags of image streams that it sets to refer to images.
    pub(super) tags: Vec<SetTag>,
}

impl From<Vec<Pair>> for Found {
    /// The one invocation that a mapping file stands for.
    fn from(pairs: Vec<Pair>) -> Self {
        let options = Options::default();
        Self {
            invocations: vec![Invocation { options, pairs }],
            left_out: Vec::new(),
            tags: Vec::new(),
        }
    }
}

/// Whether a text is a script rather than a list of mappings: a line of it that is no comment runs the command.
pub(super) fn is_script(text: &str) -> bool {
    text.starts_with("#!")
        || text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .any(|line| line.contains("image mirror"))
}

/// The invocations of a script.
///
/// # Errors
/// What cannot be read, each with its line and what to do.
pub(super) fn read(text: &str) -> Result<Found, Vec<Complaint>> {
    let script = shell::read(text).map_err(|(line, what)| vec![Complaint::new(line, what)])?;
    let (functions, named) = functions(&script.commands);
    let mut run = Run {
        script: &script,
        constant: constants(&script.commands),
        variables: HashMap::new(),
        functions,
        named,
        left: WORDS_MAX,
        found: Found::default(),
        complaints: Vec::new(),
    };
    run.follow(0..script.commands.len(), &mut Vec::new(), None, 0);
    if run.complaints.is_empty() {
        Ok(run.found)
    } else {
        Err(run.complaints)
    }
}

/// A function: the commands of its body, the first one from a word of it on.
#[derive(Debug)]
struct Function {
    body: std::ops::Range<usize>,
    /// The first command's words that belong to the body.
    from: usize,
    /// The definition, as commands that are passed over.
    end: usize,
}

/// The functions of a script by where they begin, and where by name: the last one of a name counts.
fn functions(commands: &[Command]) -> (BTreeMap<usize, Function>, HashMap<String, usize>) {
    let (mut functions, mut named) = (BTreeMap::new(), HashMap::new());
    let mut at = 0;
    while let Some(command) = commands.get(at) {
        let Some((name, words)) = definition(command) else {
            at += 1;
            continue;
        };
        // The brace may stand on a line of its own.
        let (begin, from) = match command.words.get(words).map(|word| word.text.as_str()) {
            Some("{") => (at, words + 1),
            _ => (at + 1, 1),
        };
        let mut open = 1_usize;
        let mut end = begin + 1;
        while let Some(inner) = commands.get(end) {
            for word in &inner.words {
                match word.text.as_str() {
                    "{" => open += 1,
                    "}" => open = open.saturating_sub(1),
                    _ => {}
                }
            }
            if open == 0 {
                break;
            }
            end += 1;
        }
        let function = Function {
            body: begin..end,
            from,
            end: end + 1,
        };
        functions.insert(at, function);
        named.insert(name, at);
        at = end + 1;
    }
    (functions, named)
}

/// The name of the function that a command begins to define, and how many words that takes.
fn definition(command: &Command) -> Option<(String, usize)> {
    let word = |at: usize| command.words.get(at).map(|word| word.text.as_str());
    match (word(0)?, word(1)) {
        ("function", Some(name)) => Some((name.trim_end_matches("()").to_owned(), 2)),
        (name, _) => Some((name.strip_suffix("()")?.to_owned(), 1)),
    }
}

/// `NAME=VALUE`, taken apart.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let mut letters = name.chars();
    let first = letters.next()?;
    let named = (first.is_ascii_alphabetic() || first == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_');
    named.then_some((name, value))
}

/// The words of a command that assign, if that is all it does.
fn assignments(words: &[Word]) -> impl Iterator<Item = (&str, &str)> {
    let declares = |word: &str| matches!(word, "export" | "local" | "readonly" | "declare");
    words
        .iter()
        .skip_while(move |word| declares(&word.text) || GRAMMAR.contains(&word.text.as_str()))
        .map_while(|word| assignment(&word.text))
}

/// The variables that every assignment gives the same value, by that value as written.
fn constants(commands: &[Command]) -> HashMap<String, bool> {
    let mut values: HashMap<String, (String, bool)> = HashMap::new();
    for command in commands {
        for (name, value) in assignments(&command.words) {
            values
                .entry(name.into())
                .and_modify(|(first, same)| *same &= first == value)
                .or_insert_with(|| (value.into(), true));
        }
        let words = command.words.iter().map(|word| word.text.as_str());
        let mut words = words.skip_while(|word| GRAMMAR.contains(word));
        if let (Some("for" | "select" | "read"), Some(name)) = (words.next(), words.next()) {
            values.insert(name.into(), (String::new(), false));
        }
    }
    let same = values.into_iter().map(|(name, (_, same))| (name, same));
    same.collect()
}

struct Run<'a> {
    script: &'a shell::Script,
    /// Which variables are always given the same value.
    constant: HashMap<String, bool>,
    variables: HashMap<String, String>,
    /// The functions by where they begin, and where by name.
    functions: BTreeMap<usize, Function>,
    named: HashMap<String, usize>,
    /// Words that the run may still come to.
    left: usize,
    found: Found,
    complaints: Vec<Complaint>,
}

impl Run<'_> {
    /// Follows commands, with the parameters of the function they are in, called at `line`.
    fn follow(
        &mut self,
        range: std::ops::Range<usize>,
        parameters: &mut Vec<String>,
        call: Option<(usize, usize)>,
        depth: usize,
    ) {
        let script = self.script;
        let mut at = range.start;
        while at < range.end {
            let Some(command) = script.commands.get(at) else {
                return;
            };
            let inside = call.is_some() && at == range.start;
            if let Some(function) = self.functions.get(&at).filter(|_| !inside) {
                at = function.end;
                continue;
            }
            if self.left == 0 {
                return;
            }
            let from = call.filter(|_| inside).map_or(0, |(_, from)| from);
            let words = command.words.get(from..).unwrap_or_default();
            let line = call.map(|(line, _)| line);
            self.step(words, command.here, parameters, line, depth);
            at += 1;
        }
    }

    fn step(
        &mut self,
        words: &[Word],
        here: Option<usize>,
        parameters: &mut Vec<String>,
        line: Option<usize>,
        depth: usize,
    ) {
        for (name, value) in assignments(words) {
            let value = self.expand(value, parameters);
            self.variables.insert(name.into(), value);
        }
        let begun = words.first().map_or(1, |word| word.line);
        let words: Vec<Word> = words
            .iter()
            .skip_while(|word| {
                GRAMMAR.contains(&word.text.as_str()) || assignment(&word.text).is_some()
            })
            .flat_map(|word| self.words(word, parameters, line))
            .take(self.left)
            .collect();
        // A command counts as a word, too: one that assigns has no other.
        self.left = self.left.saturating_sub(words.len() + 1);
        if self.left == 0 {
            self.complain(
                begun,
                "the script comes to more than 1,000,000 words; split it",
            );
            return;
        }
        let words = without_redirections(words);
        let Some(first) = words.first() else {
            return;
        };
        if SHOWING.contains(&first.text.as_str()) {
            return;
        }
        if first.text == "shift" {
            let count = words.get(1).and_then(|word| word.text.parse().ok());
            parameters.drain(..count.unwrap_or(1).min(parameters.len()));
            return;
        }
        let called = self.named.get(&first.text);
        let called = called.and_then(|at| self.functions.get(at));
        if let Some(Function { body, from, .. }) = called {
            let (body, from) = (body.clone(), *from);
            if depth == CALLS_MAX {
                self.complain(
                    first.line,
                    "functions call each other too deep; write the call out",
                );
                return;
            }
            let mut arguments = words[1..].iter().map(|word| word.text.clone()).collect();
            self.follow(body, &mut arguments, Some((first.line, from)), depth + 1);
            return;
        }
        let is_oc = |word: &Word| {
            let program = word.text.rsplit('/').next().unwrap_or_default();
            matches!(program, "oc" | "kubectl") || word.text.contains(UNKNOWN)
        };
        let mirrors = words
            .windows(2)
            .position(|pair| pair[0].text == "image" && pair[1].text == "mirror");
        if let Some(at) = mirrors.filter(|&at| words[..at].iter().any(is_oc)) {
            self.mirror(&words[at + 2..], words[at].line, here);
        } else if let Some(what) = left_out(&words).or_else(|| left_out_tool(&words)) {
            let set = set_tag::read(&words, &what);
            if !set.is_empty() {
                for one in set {
                    if !self.found.tags.contains(&one) {
                        self.found.tags.push(one);
                    }
                }
                return;
            }
            let left_out = Complaint::new(first.line, what);
            if !self.found.left_out.contains(&left_out) {
                self.found.left_out.push(left_out);
            }
        }
    }

    /// What the arguments of an invocation say.
    fn mirror(&mut self, words: &[Word], line: usize, here: Option<usize>) {
        let (options, operands) = match read_options(words) {
            Ok(read) => read,
            Err(complaint) => return self.complaints.push(complaint),
        };
        let mut pairs = match mapping::pairs(&operands, line) {
            Ok(pairs) => pairs,
            Err(complaint) => return self.complaints.push(complaint),
        };
        match (
            options.file.as_deref(),
            here.and_then(|here| self.script.here.get(here)),
        ) {
            (None, _) if pairs.is_empty() => {
                self.complain(line, "'oc image mirror' is given no pair; give it SRC=DST");
            }
            (None, _) => {}
            (Some("-" | "/dev/stdin"), Some(here)) => match mapping::read(&here.text, here.line) {
                Ok(more) => pairs.extend(more),
                Err(complaints) => self.complaints.extend(complaints),
            },
            (Some(file), _) => {
                let what = if file.contains(UNKNOWN) || file == "-" {
                    "pairs are read from a file that only a run of the script knows; convert that file".into()
                } else {
                    format!("pairs are read from {file}; convert that file instead of the script")
                };
                self.complain(line, what);
            }
        }
        self.found.invocations.push(Invocation { options, pairs });
    }

    /// A word as a run would give it to its command: `$@` may be several, and nothing is left of what is empty.
    fn words(&self, word: &Word, parameters: &[String], line: Option<usize>) -> Vec<Word> {
        let line = line.unwrap_or(word.line);
        let of = |text: &str| Word {
            text: text.into(),
            line,
        };
        match word.text.as_str() {
            "$@" | "$*" | "${@}" | "${*}" => parameters.iter().map(|text| of(text)).collect(),
            text if text.contains('$') => {
                let text = self.expand(text, parameters);
                text.split_whitespace().map(of).collect()
            }
            text => vec![of(text)],
        }
    }

    /// A text with what is known of its parameters in place.
    fn expand(&self, text: &str, parameters: &[String]) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let braced = rest.starts_with('{');
            let name = rest.strip_prefix('{').unwrap_or(rest);
            let end = match name.chars().next() {
                Some(c) if c.is_ascii_digit() && !braced => 1,
                Some('@' | '*') => 1,
                _ => name
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .unwrap_or(name.len()),
            };
            let (name, after) = name.split_at(end);
            rest = if braced {
                after.strip_prefix('}').unwrap_or(after)
            } else {
                after
            };
            match name {
                "" => out.push(UNKNOWN),
                "@" | "*" => out.push_str(&parameters.join(" ")),
                name => match name.parse::<usize>() {
                    Ok(number) => {
                        let value = number.checked_sub(1).and_then(|at| parameters.get(at));
                        out.push_str(value.map_or("\u{FFFC}", String::as_str));
                    }
                    Err(_) => out.push_str(self.value(name)),
                },
            }
        }
        out.push_str(rest);
        if out.len() > TEXT_MAX {
            // No name is as long; what is made of it is not worth its memory.
            return UNKNOWN.into();
        }
        out
    }

    fn value(&self, name: &str) -> &str {
        let constant = self.constant.get(name).copied().unwrap_or_default();
        let value = self.variables.get(name).filter(|_| constant);
        value.map_or("\u{FFFC}", String::as_str)
    }

    fn complain(&mut self, line: usize, what: impl Into<String>) {
        self.complaints.push(Complaint::new(line, what));
    }
}

/// The words that a command is given: not where its input comes from and its output goes.
fn without_redirections(words: Vec<Word>) -> Vec<Word> {
    let mut kept = Vec::new();
    let mut target = false;
    for word in words {
        if std::mem::take(&mut target) {
            continue;
        }
        let operator = word
            .text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '&');
        if operator.starts_with(['<', '>']) {
            target = operator.ends_with(['<', '>', '&', '|']);
        } else {
            kept.push(word);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String, usize)> {
        let invocations = read(text).unwrap().invocations;
        let pairs = invocations
            .into_iter()
            .flat_map(|invocation| invocation.pairs);
        pairs
            .map(|pair| (pair.source, pair.destination, pair.line))
            .collect()
    }

    fn pair(source: &str, destination: &str, line: usize) -> (String, String, usize) {
        (source.into(), destination.into(), line)
    }

    #[test]
    fn one_command_in_a_loop_of_one_line_counts_once() {
        let text = "for r in {1..5}; do echo Mirror attempt $r; oc image mirror --loglevel=2 --registry-config=/c a=b c=d && break; \
            backoff=$(($RANDOM % 120))s; echo Sleeping $backoff; sleep $backoff; done";
        assert_eq!(pairs(text), [pair("a", "b", 1), pair("c", "d", 1)]);
    }

    #[test]
    fn functions_are_followed_with_what_they_are_called_with() {
        let text = "function mirror {\nfor r in $(seq 1 $1); do\n  if oc image mirror --loglevel=$2 --registry-config=$3 $4; then break; fi\ndone\n}\n\
            mirror 5 2 /c a=b\nif true; then\n  mirror 5 2 /c \"c=d e=f\"\nfi\nm2() { shift 2; oc image mirror \"$@\"; }\nm2 5 x g=h i=j";
        assert_eq!(
            pairs(text),
            [
                pair("a", "b", 6),
                pair("c", "d", 8),
                pair("e", "f", 8),
                pair("g", "h", 11),
                pair("i", "j", 11)
            ]
        );
    }

    #[test]
    fn a_variable_counts_where_every_assignment_gives_it_the_same_value() {
        let text = "repo=quay.io/x\nexport TO=\"${repo}/y\"\nSTAMP=$(date)\noc image mirror $repo:a=$TO:b $TO:b=$TO:${STAMP}_prune_b\n\
            for i in a b; do oc image mirror a=$TO:$i; done\nother=1\nother=2\noc image mirror a=$TO:$other";
        let unknown = format!("quay.io/x/y:{UNKNOWN}");
        assert_eq!(
            pairs(text),
            [
                pair("quay.io/x:a", "quay.io/x/y:b", 4),
                pair("quay.io/x/y:b", &format!("{unknown}_prune_b"), 4),
                pair("a", &unknown, 5),
                pair("a", &unknown, 8),
            ]
        );
    }

    #[test]
    fn pairs_come_from_continued_lines_here_documents_and_command_substitutions() {
        let text = "/usr/bin/oc image mirror \\\n  a=b \\\n  c=d >/dev/null 2>&1\ncat <<EOF | oc image mirror -f - -a /c\n# one\ne f g\nEOF\n\
            out=$(oc --loglevel=2 image mirror h i 2> x)\necho oc image mirror j k\n# oc image mirror l m";
        assert_eq!(
            pairs(text),
            [
                pair("a", "b", 2),
                pair("c", "d", 3),
                pair("e", "f", 6),
                pair("e", "g", 6),
                pair("h", "i", 8)
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line_and_a_remedy() {
        for (text, line, remedy) in [
            ("oc image mirror", 1, "give it SRC=DST"),
            ("\noc image mirror -f list.txt", 2, "convert that file"),
            ("oc image mirror --filename=$X", 1, "convert that file"),
            ("oc image mirror a", 1, "write"),
            ("f() { f a; }\nf b", 2, "write the call out"),
            ("oc image mirror 'a=b", 1, "close it"),
        ] {
            let complaints = read(text).unwrap_err();
            let found = complaints
                .iter()
                .any(|c| c.line == line && c.what.contains(remedy));
            assert!(found, "{text}: {complaints:?}");
        }
    }

    #[test]
    fn what_else_a_script_does_is_told_once_a_line_also_within_functions_and_conditions() {
        let text = "set() {\n  oc tag --reference q@$1 $2\n}\noc image mirror a=b\nfor i in {1..5}; do if set x ocp/4.21:cli; then break; fi; done\n\
            set x ocp/4.21:cli; set x ocp/4.21:cli\necho oc tag no\noc image info a | grep x\nskopeo copy a b";
        let found = read(text).unwrap();
        let told: Vec<_> = found
            .left_out
            .iter()
            .map(|c| (c.line, c.what.split('\'').nth(1).unwrap()))
            .collect();
        assert_eq!(told, [(9, "skopeo copy")]);
        let set: Vec<_> = found.tags.iter().map(|set| set.line).collect();
        assert_eq!(set, [5, 6]);
        assert_eq!(found.invocations.len(), 1);
    }

    #[test]
    fn functions_that_multiply_end() {
        let mut text = String::from("f0() { oc image mirror a=b; }\n");
        for n in 1..8 {
            let calls = format!("f{}; ", n - 1).repeat(20);
            writeln!(text, "f{n}() {{ {calls} }}").unwrap();
        }
        text.push_str("f7");
        let complaints = read(&text).unwrap_err();
        assert!(
            complaints.iter().any(|c| c.what.contains("split it")),
            "{complaints:?}"
        );
        assert!(complaints.len() < 10, "{}", complaints.len());
    }

    #[test]
    fn words_and_texts_that_multiply_end() {
        let mut doubling = String::from("f0() { v=$v$v; oc image mirror a=b; }\n");
        for n in 1..8 {
            let calls = format!("f{} \"$@\" \"$@\" \"$@\" \"$@\"; ", n - 1).repeat(8);
            writeln!(doubling, "f{n}() {{ {calls} }}").unwrap();
        }
        doubling.push_str("f7 a b c d");
        let complaints = read(&doubling).unwrap_err();
        assert!(
            complaints.iter().all(|c| c.what.contains("split it")),
            "{complaints:?}"
        );
        let mut chain = String::from("v0=x\n");
        for n in 1..100 {
            writeln!(chain, "v{n}=$v{m}$v{m}", m = n - 1).unwrap();
        }
        chain.push_str("oc image mirror $v99=b");
        assert_eq!(pairs(&chain).len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_a_script_or_refused(text in "(oc image mirror |f\\(\\) \\{ |f |\\}|\\$@|\\$1|\\$\\{a\\}|a=b|[a-z=$'\"<;|&\\n(){} -]){0,40}") {
            let lines = text.split('\n').count();
            if let Err(complaints) = read(&text) {
                prop_assert!(complaints.iter().all(|c| (1..=lines + 1).contains(&c.line)), "{complaints:?}");
            }
        }
    }
}
