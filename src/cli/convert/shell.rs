//! A shell script, cut into its simple commands.
//!
//! In comes the text of a script; out come its commands in the order of the text, each with its words, unquoted, and their lines.
//! The grammar around them (loops, conditions, functions) is left to the reader, and may be broken: scripts that were made by a
//! program often are. Quotes, comments, continued lines, here-documents and substitutions are understood; `shlex` takes the
//! quotes off, but knows neither separators nor the rest. What a substitution would come to cannot be known: it reads as
//! [`UNKNOWN`], and the commands within it stand before the one they are in.

use shlex::Shlex;

/// What stands in a word where only a run of the script could tell.
pub(super) const UNKNOWN: char = '\u{FFFC}';
/// How deep substitutions may lie in each other.
const DEPTH_MAX: usize = 32;

/// A script.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    /// Its commands, none empty.
    pub(super) commands: Vec<Command>,
    /// The bodies of its here-documents.
    pub(super) here: Vec<Here>,
}

/// A simple command, with the words of the grammar that stand before it (`if`, `do`, `{`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) words: Vec<Word>,
    /// The here-document that it, or one it shares the line with, is given.
    pub(super) here: Option<usize>,
}

/// A word, unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) line: usize,
}

/// The body of a here-document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) text: String,
    /// Of its first line.
    pub(super) line: usize,
}

/// Why a text is no script: where, and what is wrong.
pub(super) type Broken = (usize, &'static str);

/// The commands of a script.
///
/// # Errors
/// A quote, a substitution or a here-document that does not end.
pub(super) fn read(text: &str) -> Result<Script, Broken> {
    let mut scanner = Scanner {
        rest: text,
        line: 1,
        depth: 0,
        raw: String::new(),
        begun: 1,
        awaited: Vec::new(),
        row: 0,
        script: Script::default(),
    };
    scanner.run(None)?;
    Ok(scanner.script)
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    depth: usize,
    /// The command that is being read, its quotes still on.
    raw: String,
    /// The line of its first character.
    begun: usize,
    /// The here-documents that follow this line: how each ends, and whether it is indented by tabs.
    awaited: Vec<(String, bool)>,
    /// The first command of this line.
    row: usize,
    script: Script,
}

impl Scanner<'_> {
    /// Reads to the end, or to the character that ends a substitution.
    fn run(&mut self, until: Option<char>) -> Result<(), Broken> {
        let begun = self.line;
        while let Some(c) = self.next() {
            match c {
                _ if until == Some(c) => {
                    self.end()?;
                    return Ok(());
                }
                '\n' => {
                    self.end()?;
                    self.documents()?;
                    self.row = self.script.commands.len();
                }
                '\\' => self.escaped(),
                '\'' => self.literal()?,
                '"' => self.quoted()?,
                '$' | '`' => self.substitution(c)?,
                '#' if self.raw.is_empty() || self.raw.ends_with(char::is_whitespace) => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                '&' if self.raw.ends_with(['>', '<']) || self.rest.starts_with('>') => {
                    self.push(c);
                }
                '(' if self.is_definition() => {
                    self.rest = self.rest.trim_start_matches([' ', '\t']);
                    self.next();
                    self.raw.truncate(self.raw.trim_end().len());
                    self.raw.push_str("() ");
                }
                ';' | '|' | '&' | '(' | ')' => self.end()?,
                '<' if self.rest.starts_with("<<") => {
                    self.take(2);
                    self.raw.push_str("<<<");
                }
                '<' if self.rest.starts_with('<') => self.announce()?,
                '\r' => {}
                _ => self.push(c),
            }
        }
        self.end()?;
        self.documents()?;
        match until {
            Some(_) => Err((begun, "a substitution is not closed; close it")),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.take(c.len_utf8());
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn take(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn push(&mut self, c: char) {
        if self.raw.is_empty() {
            self.begun = self.line;
        }
        self.raw.push(c);
    }

    /// A backslash was read. A continued line joins words only where it cuts one.
    fn escaped(&mut self) {
        if self.rest.starts_with("\r\n") {
            self.take(1);
        }
        if self.rest.starts_with('\n') {
            if self.raw.is_empty() || self.raw.ends_with(char::is_whitespace) {
                self.push('\n');
            } else {
                self.raw.push_str("\\\n");
            }
            self.next();
        } else if let Some(c) = self.rest.chars().next() {
            self.push('\\');
            self.raw.push(c);
            self.next();
        }
    }

    fn literal(&mut self) -> Result<(), Broken> {
        let begun = self.line;
        self.push('\'');
        while let Some(c) = self.next() {
            self.raw.push(c);
            if c == '\'' {
                return Ok(());
            }
        }
        Err((begun, "a quote (') is not closed; close it"))
    }

    fn quoted(&mut self) -> Result<(), Broken> {
        let begun = self.line;
        self.push('"');
        while let Some(c) = self.next() {
            match c {
                '"' => {
                    self.raw.push(c);
                    return Ok(());
                }
                '\\' => {
                    self.raw.push(c);
                    let escaped = self.next();
                    self.raw.extend(escaped);
                }
                '$' | '`' => self.substitution(c)?,
                _ => self.raw.push(c),
            }
        }
        Err((begun, "a quote (\") is not closed; close it"))
    }

    /// `$` or a backquote was read.
    fn substitution(&mut self, c: char) -> Result<(), Broken> {
        let closing = match (c, self.rest.chars().next()) {
            ('`', _) => '`',
            (_, Some('(')) => ')',
            (_, Some('{')) => return self.parameter(),
            _ => {
                self.push(c);
                return Ok(());
            }
        };
        if closing == ')' {
            self.take(1);
        }
        if closing == ')' && self.rest.starts_with('(') {
            self.arithmetic()?;
        } else {
            self.nested(closing)?;
        }
        self.push(UNKNOWN);
        Ok(())
    }

    /// The commands of `$(…)` or `` `…` ``.
    fn nested(&mut self, closing: char) -> Result<(), Broken> {
        if self.depth == DEPTH_MAX {
            return Err((
                self.line,
                "substitutions lie too deep in each other; take them apart",
            ));
        }
        self.depth += 1;
        let raw = std::mem::take(&mut self.raw);
        let begun = self.begun;
        self.run(Some(closing))?;
        (self.raw, self.begun) = (raw, begun);
        self.depth -= 1;
        Ok(())
    }

    /// The rest of `$((…))`.
    fn arithmetic(&mut self) -> Result<(), Broken> {
        let (begun, mut open) = (self.line, 1_usize);
        while let Some(c) = self.next() {
            match c {
                '(' => open += 1,
                ')' if open == 1 => return Ok(()),
                ')' => open -= 1,
                _ => {}
            }
        }
        Err((begun, "a substitution is not closed; close it"))
    }

    /// `${…}`: kept where it only names a parameter.
    fn parameter(&mut self) -> Result<(), Broken> {
        let Some(end) = self.rest.find('}') else {
            return Err((self.line, "a parameter (${) is not closed; close it"));
        };
        let name = self.rest[1..end].to_owned();
        let lines = name.matches('\n').count();
        self.take(end + 1);
        if name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_@*".contains(c))
        {
            self.push('$');
            self.raw.push('{');
            self.raw.push_str(&name);
            self.raw.push('}');
        } else {
            self.push(UNKNOWN);
        }
        self.line += lines;
        Ok(())
    }

    /// Whether the `(` that was read makes the word before it a function's name.
    fn is_definition(&self) -> bool {
        let named = self
            .raw
            .trim_end()
            .ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        named && self.rest.trim_start_matches([' ', '\t']).starts_with(')')
    }

    /// `<` was read, and another follows: a here-document comes after this line.
    fn announce(&mut self) -> Result<(), Broken> {
        self.take(1);
        let tabs = self.rest.starts_with('-');
        self.take(usize::from(tabs));
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || ";|&()<>".contains(c));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let word: String = word.chars().filter(|c| !"'\"\\".contains(*c)).collect();
        if word.is_empty() {
            return Err((
                self.line,
                "a here-document (<<) does not say how it ends; name its end",
            ));
        }
        self.rest = rest;
        self.awaited.push((word, tabs));
        self.push(' ');
        Ok(())
    }

    /// Reads the here-documents that follow the line that has just ended.
    fn documents(&mut self) -> Result<(), Broken> {
        for (end, tabs) in std::mem::take(&mut self.awaited) {
            let begun = self.line;
            let mut text = String::new();
            loop {
                if self.rest.is_empty() {
                    return Err((
                        begun,
                        "a here-document does not end; end it by a line of its word alone",
                    ));
                }
                let at = self.rest.find('\n').unwrap_or(self.rest.len());
                let line = self.rest[..at].trim_end_matches('\r');
                let line = if tabs {
                    line.trim_start_matches('\t')
                } else {
                    line
                };
                let last = line == end;
                if !last {
                    text.push_str(line);
                    text.push('\n');
                }
                self.take((at + 1).min(self.rest.len()));
                self.line += 1;
                if last {
                    break;
                }
            }
            let number = self.script.here.len();
            self.script.here.push(Here { text, line: begun });
            for command in &mut self.script.commands[self.row..] {
                command.here.get_or_insert(number);
            }
        }
        Ok(())
    }

    /// The command that was read so far is one.
    fn end(&mut self) -> Result<(), Broken> {
        let raw = std::mem::take(&mut self.raw);
        let mut words = Vec::new();
        let mut lexer = Shlex::new(&raw);
        while let Some(text) = lexer.next() {
            // The newline after a word was read with it.
            let line = self.begun + lexer.line_no - 1;
            words.push(Word { text, line });
        }
        if lexer.had_error {
            return Err((self.begun, "a quote is not closed; close it"));
        }
        if !words.is_empty() {
            self.script.commands.push(Command { words, here: None });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn commands(text: &str) -> Vec<Vec<String>> {
        let script = read(text).unwrap();
        let words = |command: Command| command.words.into_iter().map(|word| word.text).collect();
        script.commands.into_iter().map(words).collect()
    }

    #[test]
    fn separators_quotes_and_comments_are_those_of_the_shell() {
        assert_eq!(
            commands("a b && c;d|e # f\n'g h' \"i $j\" k\\ l  #m\nn#o"),
            [
                vec!["a", "b"],
                vec!["c"],
                vec!["d"],
                vec!["e"],
                vec!["g h", "i $j", "k l"],
                vec!["n#o"]
            ]
        );
    }

    #[test]
    fn a_word_knows_its_line_also_where_lines_are_continued() {
        let script = read("\n  oc \\\n    a=b \\\n c=\\\nd\nnext").unwrap();
        let lines: Vec<_> = script
            .commands
            .iter()
            .flat_map(|command| &command.words)
            .map(|word| (word.text.as_str(), word.line))
            .collect();
        assert_eq!(lines, [("oc", 2), ("a=b", 3), ("c=d", 5), ("next", 6)]);
    }

    #[test]
    fn what_only_a_run_could_tell_reads_as_unknown_and_its_commands_stand_before() {
        let unknown = |before: &str, after: &str| format!("{before}{UNKNOWN}{after}");
        assert_eq!(
            commands("x=$(oc a \"b)\" | c)d \"$((1 + (2)))s\" `e f` ${g} ${h:-i j}"),
            [
                vec!["oc".to_owned(), "a".into(), "b)".into()],
                vec!["c".into()],
                vec!["e".into(), "f".into()],
                vec![
                    unknown("x=", "d"),
                    unknown("", "s"),
                    unknown("", ""),
                    "${g}".into(),
                    unknown("", "")
                ],
            ]
        );
    }

    #[test]
    fn a_here_document_belongs_to_its_line_and_is_no_command() {
        let script = read("a; cat <<-'END' | b -f - >x 2>&1\n\t1 2\n\t3\n\tEND\nc").unwrap();
        let here: Vec<_> = script.commands.iter().map(|command| command.here).collect();
        assert_eq!(here, [Some(0), Some(0), Some(0), None]);
        assert_eq!(
            script.here,
            [Here {
                text: "1 2\n3\n".into(),
                line: 2
            }]
        );
        assert_eq!(
            script.commands[3].words,
            [Word {
                text: "c".into(),
                line: 5
            }]
        );
    }

    #[test]
    fn functions_are_told_from_subshells() {
        assert_eq!(
            commands("m() { a; }\nm ( ) {\n(b c)"),
            [
                vec!["m()", "{", "a"],
                vec!["}"],
                vec!["m()", "{"],
                vec!["b", "c"]
            ]
        );
    }

    #[test]
    fn what_does_not_end_is_named_with_its_line() {
        for (text, line, named) in [
            ("a\n'b\nc", 2, "quote (')"),
            ("a \"b", 1, "quote (\")"),
            ("\n\na $(b", 3, "substitution"),
            ("a $((1", 1, "substitution"),
            ("a ${b", 1, "parameter"),
            ("a <<X\nb", 2, "here-document"),
            ("a << ;", 1, "here-document"),
            ("a `b", 1, "substitution"),
        ] {
            let (at, what) = read(text).unwrap_err();
            assert!(at == line && what.contains(named), "{text}: {at} {what}");
        }
        let (_, what) = read(&"$(".repeat(100_000)).unwrap_err();
        assert!(what.contains("deep"), "{what}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}|([a-z =]|[\\n\\r'\"\\\\$(){}`#<;|&-]|<<E\\n|E\\n){0,80}") {
            let lines = text.split('\n').count();
            match read(&text) {
                Ok(script) => {
                    for command in &script.commands {
                        prop_assert!(!command.words.is_empty());
                        prop_assert!(command.words.iter().all(|word| (1..=lines).contains(&word.line)));
                    }
                }
                Err((line, _)) => prop_assert!((1..=lines + 1).contains(&line)),
            }
        }
    }
}
