//! Rules: which namespaces may promote what with the controller's own credentials.
//!
//! In comes the text of a policy file; out come rules, every pattern of which is one, or the first fault with its field and what to
//! do about it. Nothing is guessed: unknown fields, keys that stand twice and empty lists are refused.

use std::collections::HashSet;
use std::fmt::Display;
use std::str::FromStr;

use serde::Deserialize;

use super::pattern::{FloatPattern, NamespacePattern, SourcePattern, StreamTagPattern};
use crate::image::{Float, Reference, Source, Stamp};
use crate::stream::StreamTag;

/// The longest policy file, in bytes: no `ConfigMap` holds more.
pub const RULES_MAX: usize = 1024 * 1024;
/// The longest name of a rule, in bytes.
const NAME_MAX: usize = 63;

/// What a policy file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// One rule: requests of these namespaces may promote these sources to these floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    name: String,
    namespaces: Vec<NamespacePattern>,
    sources: Vec<SourcePattern>,
    /// And what is pinned for them in the floats' own repositories.
    own_pins: bool,
    floats: Vec<FloatPattern>,
    /// The tags of image streams that may follow these floats, whatever credentials a request has.
    stream_tags: Vec<StreamTagPattern>,
}

/// How a source is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// As it is named.
    Named,
    /// If it is staged: a tag of its digest's name holds it in the float's repository.
    IfStaged,
}

/// Why a policy file cannot be used: the field, what is wrong with it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RulesError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRules {
    rules: Vec<WrittenRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenRule {
    name: String,
    namespaces: Vec<String>,
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    own_pins: bool,
    floats: Vec<String>,
    #[serde(default)]
    image_stream_tags: Vec<String>,
}

impl Rules {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let written = read(text).map_err(RulesError)?;
        let (mut rules, mut names) = (Vec::new(), HashSet::new());
        for (index, rule) in written.rules.into_iter().enumerate() {
            let rule = Rule::parse(rule).map_err(|(field, problem)| {
                RulesError(format!("rules[{index}].{field}: {problem}"))
            })?;
            if !names.insert(rule.name.clone()) {
                return Err(RulesError(format!(
                    "rules[{index}].name: another rule is named {}; name each once",
                    rule.name
                )));
            }
            rules.push(rule);
        }
        Ok(Self(rules))
    }

    /// The rules for the requests of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Vec<&Rule> {
        let meant = |rule: &&Rule| rule.namespaces.iter().any(|n| n.matches(namespace));
        self.0.iter().filter(meant).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Rule {
    /// Whether it lets the source go to the float, and on what condition.
    #[must_use]
    pub fn grants(&self, source: &Source, float: &Float) -> Option<Grant> {
        if !self.floats.iter().any(|pattern| pattern.matches(float)) {
            return None;
        }
        if self.sources.iter().any(|pattern| pattern.matches(source)) {
            return Some(Grant::Named);
        }
        own_pin(source, float).filter(|_| self.own_pins)
    }

    /// Whether it lets this tag, of a stream in `namespace`, follow the float.
    #[must_use]
    pub fn grants_stream(&self, float: &Float, namespace: &str, tag: &StreamTag) -> bool {
        self.floats.iter().any(|pattern| pattern.matches(float))
            && self.stream_tags.iter().any(|p| p.matches(namespace, tag))
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks one rule; the field within it and the problem where it is none.
    fn parse(written: WrittenRule) -> Result<Self, (String, String)> {
        let name = written.name;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
            let problem = "is no name: write 1 to 63 of letters, digits, '.', '_' and '-'";
            return Err(("name".into(), problem.into()));
        }
        // In the order in which a rule is written: the first problem is told.
        let namespaces = patterns("namespaces", &written.namespaces)?;
        let grants = written.own_pins || !written.image_stream_tags.is_empty();
        let sources = if grants && written.sources.is_empty() {
            Vec::new()
        } else {
            patterns("sources", &written.sources)?
        };
        Ok(Self {
            name,
            namespaces,
            sources,
            own_pins: written.own_pins,
            floats: patterns("floats", &written.floats)?,
            stream_tags: if written.image_stream_tags.is_empty() {
                Vec::new()
            } else {
                patterns("imageStreamTags", &written.image_stream_tags)?
            },
        })
    }
}

/// Whether a source may be a pin of the float, by its name: a prune tag that is the float's, or a digest that is staged beside it.
fn own_pin(source: &Source, float: &Float) -> Option<Grant> {
    if source.repository != *float.repository() {
        return None;
    }
    match &source.reference {
        Reference::Tag(tag) => {
            let stamp = Stamp::of(tag)?;
            (float.prune(stamp) == *tag).then_some(Grant::Named)
        }
        Reference::Digest(_) => Some(Grant::IfStaged),
    }
}

/// The rule that would let a namespace promote a source to a float, as a line of a policy file. A source's tag or digest differs from
/// build to build: it is left out.
#[must_use]
pub fn missing_rule(namespace: &str, source: &Source, float: &Float) -> String {
    let sources = if own_pin(source, float).is_some() {
        "ownPins: true".to_owned()
    } else {
        format!("sources: [\"{}\"]", source.repository)
    };
    format!(
        "- {{name: \"{namespace}\", namespaces: [\"{namespace}\"], {sources}, floats: [\"{float}\"]}}"
    )
}

/// The rule that would let a tag of an image stream follow a float, as a line of a policy file.
#[must_use]
pub fn missing_stream_rule(
    namespace: &str,
    float: &Float,
    streams: &str,
    tag: &StreamTag,
) -> String {
    format!(
        "- {{name: \"{namespace}\", namespaces: [\"{namespace}\"], floats: [\"{float}\"], imageStreamTags: [\"{streams}/{tag}\"]}}"
    )
}

fn patterns<P: FromStr>(field: &str, written: &[String]) -> Result<Vec<P>, (String, String)>
where
    P::Err: Display,
{
    if written.is_empty() {
        let problem =
            "is empty, so that the rule means nothing; write a pattern, or remove the rule";
        return Err((field.into(), problem.into()));
    }
    let parse = |(index, text): (usize, &String)| {
        let pattern = text.parse();
        pattern.map_err(|error: P::Err| (format!("{field}[{index}]"), error.to_string()))
    };
    written.iter().enumerate().map(parse).collect()
}

/// YAML as rules, none of them checked yet.
fn read(text: &str) -> Result<WrittenRules, String> {
    const SHAPE: &str =
        "write a list 'rules' of {name, namespaces, sources, ownPins, floats, imageStreamTags}";
    if text.len() > RULES_MAX {
        return Err("is larger than 1 MiB; write fewer rules, with * and **".into());
    }
    let options = serde_saphyr::options! {
        // Nothing in it needs them, and a few lines of them can stand for millions.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 0 },
        with_snippet: false,
        // A namespace may be called `on` or `no`.
        strict_booleans: true,
    };
    let document: serde_json::Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| format!("is not YAML: {}; correct it", one_line(&error.to_string())))?;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
    WrittenRules::deserialize(tracked).map_err(|error| {
        let (path, error) = (track.path().to_string(), one_line(&error.to_string()));
        if error.ends_with("expected a string") {
            format!("{path}: {error}; quote it")
        } else if path == "." {
            format!("{error}; {SHAPE}")
        } else {
            format!("{path}: {error}; {SHAPE}")
        }
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const PAYLOAD: &str = r#"
rules:
- name: payload
  namespaces: [ci, ci-*]
  sources:
  - registry.*.ci.openshift.org/ci-op-*/**
  - quay.io/openshift/builds@*
  floats:
  - "quay.io/openshift/ci:ocp_*"
- {name: own, namespaces: [team-a], sources: [quay.io/team-a/**], floats: ["quay.io/team-a/**:*"]}
"#;

    fn granted(rules: &Rules, namespace: &str, source: &str, float: &str) -> Option<String> {
        let (source, float) = (source.parse().unwrap(), float.parse().unwrap());
        let granting = rules
            .of(namespace)
            .into_iter()
            .find(|rule| rule.grants(&source, &float).is_some());
        granting.map(|rule| rule.name().to_owned())
    }

    fn refused(text: &str) -> String {
        let error = Rules::parse(text).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn a_rule_grants_what_it_names_in_all_three_and_nothing_else() {
        let rules = Rules::parse(PAYLOAD).unwrap();
        assert_eq!((rules.len(), rules.is_empty()), (2, false));
        let build = "registry.build02.ci.openshift.org/ci-op-x1/pipeline:cli";
        let float = "quay.io/openshift/ci:ocp_4.21_cli";
        assert_eq!(
            granted(&rules, "ci", build, float).as_deref(),
            Some("payload")
        );
        assert_eq!(
            granted(&rules, "ci-1", build, float).as_deref(),
            Some("payload")
        );
        let short = PAYLOAD.replacen("[ci, ci-*]", "[on, 'no', y, \"7\"]", 1);
        let short = Rules::parse(&short).unwrap();
        assert!(
            ["on", "no", "y", "7"]
                .iter()
                .all(|name| short.of(name).len() == 1)
        );
        let own = ("quay.io/team-a/src:x", "quay.io/team-a/app:latest");
        assert_eq!(
            granted(&rules, "team-a", own.0, own.1).as_deref(),
            Some("own")
        );
        for (namespace, source, float) in [
            ("team-a", build, float),
            ("ci", own.0, own.1),
            // Each of the two is named, by another rule.
            ("ci", build, own.1),
            ("team-a", own.0, float),
            ("ci", own.0, float),
            ("ci", "quay.io/openshift/builds:latest", float),
            ("ci", build, "quay.io/openshift/ci:okd_4.21_cli"),
            ("", build, float),
        ] {
            assert_eq!(
                granted(&rules, namespace, source, float),
                None,
                "{namespace} {source} {float}"
            );
        }
    }

    #[test]
    fn own_pins_are_the_floats_prune_tags_and_what_is_staged_and_no_other_tag() {
        let digest = crate::image::Digest::of(b"image");
        let hex = digest.hex();
        for sources in ["", "sources: [registry.ci/a], "] {
            let text = format!(
                "rules: [{{name: r, namespaces: [ci], {sources}ownPins: true, floats: ['quay.io/ci:ocp_*']}}]"
            );
            let rules = Rules::parse(&text).unwrap();
            let grant = |source: &str, float: &str| {
                rules.of("ci")[0].grants(&source.parse().unwrap(), &float.parse().unwrap())
            };
            let float = "quay.io/ci:ocp_a";
            let staged = format!("quay.io/ci@{digest}");
            assert_eq!(grant(&staged, float), Some(Grant::IfStaged));
            let prune = "quay.io/ci:20260304050607_prune_ocp_a";
            assert_eq!(grant(prune, float), Some(Grant::Named));
            let named = (!sources.is_empty()).then_some(Grant::Named);
            assert_eq!(grant("registry.ci/a:x", float), named);
            for source in [
                "quay.io/ci:20260304050607_prune_ocp_b",
                "quay.io/ci:20260304050607_prune_ocp_a__rescued",
                "quay.io/ci:20260304050607_prune_ocp_a__broken",
                &format!("quay.io/ci:20260304000000_prune_{hex}__staged"),
                "quay.io/ci:ocp_a__pre",
                "quay.io/ci:ocp_b",
                "quay.io/other:20260304050607_prune_ocp_a",
                &format!("quay.io/other@{digest}"),
            ] {
                assert_eq!(grant(source, float), None, "{source}");
            }
            assert_eq!(grant(&staged, "quay.io/ci:okd_a"), None);
        }
        let without = PAYLOAD.replacen("name: own,", "name: own, ownPins: false,", 1);
        let own = format!("quay.io/team-a/app@{digest}");
        let rules = without.replacen("quay.io/team-a/**]", "x.io/y]", 1);
        let rules = Rules::parse(&rules).unwrap();
        assert_eq!(
            granted(&rules, "team-a", &own, "quay.io/team-a/app:latest"),
            None
        );
    }

    #[test]
    fn stream_tags_are_granted_with_their_float_and_give_no_credential() {
        let text = r#"rules: [{name: r, namespaces: [ci-*], floats: ["quay.io/o/ci:ocp_*"], imageStreamTags: ["ocp/4.*:*", "origin/v*:cli"]}]"#;
        let rules = Rules::parse(text).unwrap();
        let rule = rules.of("ci-a")[0];
        assert!(rules.of("ci").is_empty());
        let float: Float = "quay.io/o/ci:ocp_a".parse().unwrap();
        let grants = |float: &Float, namespace: &str, tag: &str| {
            rule.grants_stream(float, namespace, &tag.parse().unwrap())
        };
        for (namespace, tag) in [
            ("ocp", "4.21:cli"),
            ("ocp", "4.22:x"),
            ("origin", "v4.0:cli"),
        ] {
            assert!(grants(&float, namespace, tag), "{namespace}/{tag}");
        }
        for (namespace, tag) in [
            ("ocp-priv", "4.21:cli"),
            ("ocp", "5.0:cli"),
            ("origin", "v4.0:other"),
            ("ocp", "v4.0:cli"),
        ] {
            assert!(!grants(&float, namespace, tag), "{namespace}/{tag}");
        }
        let other: Float = "quay.io/o/ci:okd_a".parse().unwrap();
        assert!(!grants(&other, "ocp", "4.21:cli"));
        let source = "quay.io/x/y:z".parse().unwrap();
        assert_eq!(rule.grants(&source, &float), None);
        for pattern in [
            "4.21:cli",
            "ocp/4.21",
            "OCP/4.21:cli",
            "ocp/4.21:a:b",
            "ocp/**:a",
            "ocp/4.21:",
        ] {
            let text = text.replacen("ocp/4.*:*", pattern, 1);
            let error = refused(&text);
            assert!(
                error.contains("rules[0].imageStreamTags[0]")
                    && error.contains("NAMESPACE/STREAM:TAG"),
                "{pattern}: {error}"
            );
        }
        let line = missing_stream_rule("ci", &float, "ocp", &"4.21:cli".parse().unwrap());
        let rules = Rules::parse(&format!("rules:\n{line}\n")).unwrap();
        assert!(rules.of("ci")[0].grants_stream(&float, "ocp", &"4.21:cli".parse().unwrap()));
    }

    #[test]
    fn no_rule_grants_nothing() {
        let rules = Rules::parse("rules: []").unwrap();
        assert!(rules.is_empty() && rules.of("ci").is_empty());
        assert_eq!(rules, Rules::default());
    }

    #[test]
    fn the_rule_that_a_refusal_names_grants_what_was_refused_and_only_to_that_namespace() {
        let digest = crate::image::Digest::of(b"image");
        for (namespace, source) in [
            ("ci-1", "quay.io:5000/a/b:v1"),
            ("123", &format!("docker.io/a/b@{digest}")),
            ("own", &format!("quay.io/a/b@{digest}")),
            ("own", "quay.io/a/b:20260304050607_prune_f"),
        ] {
            let (source, float) = (source.parse().unwrap(), "quay.io/a/b:f".parse().unwrap());
            let text = format!("rules:\n{}\n", missing_rule(namespace, &source, &float));
            let rules = Rules::parse(&text).unwrap();
            let grant = rules.of(namespace)[0].grants(&source, &float);
            assert!(grant.is_some(), "{text}");
            assert!(rules.of("ci").is_empty());
        }
    }

    #[test]
    fn a_file_that_is_none_names_the_field_and_what_to_write() {
        for (change, parts) in [
            (
                ("name: payload", "name: a b"),
                &["rules[0].name", "is no name"][..],
            ),
            (
                ("name: payload", "name: ''"),
                &["rules[0].name", "is no name"],
            ),
            (
                ("name: payload", "name: own"),
                &["rules[1].name", "another rule is named own"],
            ),
            (
                ("name: payload", "nam: payload"),
                &[
                    "rules[0]",
                    "unknown field `nam`",
                    "namespaces, sources, ownPins, floats",
                ],
            ),
            (
                ("name: payload", "name: payload\n  name: other"),
                &["not YAML", "duplicate"],
            ),
            (("rules:", "rules:\nrules:"), &["not YAML"]),
            (
                ("rules:", "extra: 1\nrules:"),
                &["unknown field `extra`", "write a list 'rules'"],
            ),
            (
                ("namespaces: [ci, ci-*]", "namespaces: []"),
                &["rules[0].namespaces", "is empty"],
            ),
            (
                (
                    "  sources:\n  - registry.*.ci.openshift.org/ci-op-*/**\n  - quay.io/openshift/builds@*\n",
                    "",
                ),
                &["rules[0].sources", "is empty"],
            ),
            (
                ("name: payload", "name: payload\n  ownPins: often"),
                &["rules[0].ownPins", "invalid type"],
            ),
            (
                ("namespaces: [ci, ci-*]", "namespaces: ci"),
                &["rules[0].namespaces", "invalid type"],
            ),
            (
                ("namespaces: [ci, ci-*]", "namespaces: [ci, 7]"),
                &["rules[0].namespaces[1]", "invalid type", "quote it"],
            ),
            (
                ("namespaces: [ci, ci-*]", "namespaces: [ci, CI]"),
                &["rules[0].namespaces[1]", "'CI'", "write"],
            ),
            (
                ("  - quay.io/openshift/builds@*", "  - quay.io"),
                &["rules[0].sources[1]", "'quay.io'", "write"],
            ),
            (
                ("quay.io/openshift/ci:ocp_*", "quay.io/openshift/ci"),
                &["rules[0].floats[0]", "says no tag", "append"],
            ),
            (
                ("  floats:\n  - \"quay.io/openshift/ci:ocp_*\"\n", ""),
                &["rules[0]", "missing field `floats`"],
            ),
        ] {
            let text = PAYLOAD.replacen(change.0, change.1, 1);
            assert_ne!(text, PAYLOAD, "{change:?}");
            let error = refused(&text);
            for part in parts {
                assert!(error.contains(part), "{change:?}: {error}");
            }
        }
        for (text, part) in [
            ("", "write a list 'rules'"),
            ("{}", "missing field `rules`"),
            ("rules", "write a list 'rules'"),
            ("rules: {}", "invalid type"),
            ("rules: [", "not YAML"),
            ("rules: [&a {name: x}, *a]", "not YAML"),
            ("rules: []\n---\nrules: []", "not YAML"),
            (&"#".repeat(RULES_MAX + 1), "larger than 1 MiB"),
        ] {
            let error = refused(text);
            assert!(error.contains(part), "{text:.40}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_refused_in_one_line(text in "\\PC{0,60}|(rules:|- name: |namespaces|sources|floats|\\[|\\]|\\{|\\}|, |: |\n|  |a|\\*|&a|'){0,25}") {
            if let Err(error) = Rules::parse(&text) {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }
    }
}
