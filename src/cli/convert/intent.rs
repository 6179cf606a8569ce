//! What a script means: which image goes to which float.
//!
//! In come pairs as they are copied; out come the floats, each with its source and with the tags that are written beside it. The
//! staged script copies an image under several names; what this program makes itself (`_incoming`, prune tags, `__pre`, `__post1`)
//! is never taken for a float, and a float that is copied from its `_incoming` has the source that was staged there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::intended::{Intended, Position};
use super::mapping::Pair;
use super::references;
use super::script::Found;
use super::shell::UNKNOWN;
use crate::image::{Float, Reference, Source};

/// How the stamp of a prune tag is written where it is not known yet.
pub(in crate::cli) const STAMP: &str = "YYYYMMDDHHMMSS";
/// Its length.
const STAMP_LEN: usize = 14;
/// The most that a message shows of what was written.
const SHOWN_MAX: usize = 200;

/// What files of one kind or the other say.
#[derive(Debug, Default)]
pub(in crate::cli) struct Intent {
    /// In the order in which they are written.
    pub(in crate::cli) floats: Vec<Intended>,
    /// Nothing was to be written at all.
    pub(in crate::cli) dry_run: bool,
    /// Where credentials were found.
    pub(in crate::cli) registry_configs: BTreeSet<String>,
    /// What means something else here, a line each.
    pub(in crate::cli) warnings: Vec<String>,
}

/// What a destination is.
enum Role {
    Float(Float),
    /// `<float>_incoming`.
    Staging(Float),
    /// `<float>__pre` or `<float>__post1`.
    Pin(Float, String),
    /// A prune tag, and the float it belongs to by its source.
    Prune(Option<Float>, String),
}

/// The pairs of one file, gathered.
#[derive(Default)]
struct Gathered {
    floats: Vec<(Float, Source, Position)>,
    staged: Vec<(Float, Source, Position)>,
    pins: BTreeMap<Float, BTreeSet<String>>,
    left_out: usize,
}

/// What the invocations of files mean, in their order.
///
/// # Errors
/// Whatever cannot be meant, each with its position and what to do.
pub(super) fn intent(files: &[(Rc<str>, Found)]) -> Result<Intent, Vec<String>> {
    let mut intent = Intent::default();
    let mut complaints = Vec::new();
    let mut gathered = Gathered::default();
    let all = || files.iter().flat_map(|(_, found)| &found.invocations);
    intent.dry_run = all().all(|invocation| invocation.options.dry_run) && all().next().is_some();
    let mut warned = BTreeSet::new();
    for (file, found) in files {
        for invocation in &found.invocations {
            let at = |line| Position {
                file: Rc::clone(file),
                line,
            };
            let first = at(invocation.pairs.first().map_or(1, |pair| pair.line));
            let mut warnings = invocation.options.warnings.clone();
            let left_out = invocation.options.dry_run && !intent.dry_run;
            if left_out {
                warnings.push(
                    "--dry-run: others write, so what this one would write is left out".into(),
                );
            }
            for warning in warnings {
                if warned.insert(warning.clone()) {
                    intent.warnings.push(format!("{first}: {warning}"));
                }
            }
            if left_out {
                continue;
            }
            intent
                .registry_configs
                .extend(invocation.options.registry_config.clone());
            for pair in &invocation.pairs {
                if let Err(what) = gathered.add(pair, at(pair.line)) {
                    complaints.push(format!("{}: {what}", at(pair.line)));
                }
            }
        }
    }
    gathered.conclude(&mut intent, &mut complaints);
    intent.warnings.extend(in_streams(&intent.floats));
    let told = references::follow(&mut intent.floats, files);
    intent.warnings.extend(told);
    for (file, found) in files {
        let left_out = found.left_out.iter();
        let told = left_out.map(|left_out| format!("{file}:{}: {}", left_out.line, left_out.what));
        intent.warnings.extend(told);
    }
    if complaints.is_empty() {
        Ok(intent)
    } else {
        Err(complaints)
    }
}

impl Gathered {
    fn add(&mut self, pair: &Pair, position: Position) -> Result<(), String> {
        check_wildcard(&pair.source, "the source")?;
        check_wildcard(&pair.destination, "the destination")?;
        match role(pair)? {
            Role::Float(float) => self.floats.push((float, source(&pair.source)?, position)),
            Role::Staging(float) => {
                let pins = self.pins.entry(float.clone()).or_default();
                pins.insert(float.incoming().to_string());
                self.staged.push((float, source(&pair.source)?, position));
            }
            Role::Pin(float, tag) | Role::Prune(Some(float), tag) => {
                self.pins.entry(float).or_default().insert(tag);
                self.left_out += 1;
            }
            Role::Prune(None, _) => self.left_out += 1,
        }
        Ok(())
    }

    fn conclude(self, intent: &mut Intent, complaints: &mut Vec<String>) {
        let Self {
            floats,
            staged,
            mut pins,
            left_out,
        } = self;
        // What is missing may be what was refused.
        let whole = complaints.is_empty();
        let staged = once(staged, "staged", complaints);
        let at_incoming: HashMap<&Float, &Source> = staged
            .iter()
            .map(|(float, source, _)| (float, source))
            .collect();
        // By the float as a source would name it.
        let mut moved: HashMap<String, Source> = HashMap::new();
        let mut meant = Vec::new();
        for (float, source, position) in floats {
            let from_incoming = source.repository == *float.repository()
                && source.reference == Reference::Tag(float.incoming());
            let source = if from_incoming {
                let Some(staged) = at_incoming.get(&float) else {
                    if whole {
                        complaints.push(format!(
                            "{position}: {float} is copied from its _incoming, and nothing here is copied there; give the file that does it too, or name the source"
                        ));
                    }
                    continue;
                };
                (*staged).clone()
            } else {
                // What was moved before in the same run is what is found there.
                moved.get(&source.to_string()).cloned().unwrap_or(source)
            };
            moved
                .entry(float.to_string())
                .or_insert_with(|| source.clone());
            meant.push((float, source, position));
        }
        let mut meant = once(meant, "written", complaints);
        let moved: HashSet<Float> = meant.iter().map(|(float, ..)| float.clone()).collect();
        for (float, source, position) in staged {
            if !moved.contains(&float) {
                intent.warnings.push(format!(
                    "{position}: {float} is staged and never moved here; it is taken to be meant"
                ));
                meant.push((float, source, position));
            }
        }
        if meant.is_empty() && complaints.is_empty() {
            complaints.push(match left_out {
                0 => "no mapping in it; write SRC=DST".into(),
                n => format!(
                    "its {n} mappings pin images and move no float; give the file that moves them"
                ),
            });
        }
        let intended = meant.into_iter().map(|(float, source, position)| Intended {
            pins: pins.remove(&float).unwrap_or_default(),
            float,
            source,
            position,
            stream_tag: None,
        });
        intent.floats = intended.collect();
    }
}

/// Floats that are tags of an `ImageStream`, by their registries: what is written beside them would be, too.
fn in_streams(floats: &[Intended]) -> impl Iterator<Item = String> {
    let streams = floats
        .iter()
        .filter(|intended| is_of_a_cluster(intended.float.repository().host()));
    streams.map(|Intended { float, position, .. }| {
        format!(
            "{position}: {float} looks like a tag of an ImageStream: {}, {}, {} and prune tags beside it would be tags of that stream, and \
             go into payloads that are built from it; promote to another registry, or leave this float to the script",
            float.incoming(),
            float.pre(),
            float.post1()
        )
    })
}

/// Whether a registry is by its name a cluster's own, which serves `ImageStream`s.
fn is_of_a_cluster(host: &str) -> bool {
    let name = host.split(':').next().unwrap_or(host);
    let domains = [".openshift.org", ".openshift.com"];
    let routed = name.starts_with("registry.") && domains.iter().any(|d| name.ends_with(d));
    routed || name.contains("image-registry.")
}

/// Each float once: the same copied again is a repeat, another one a contradiction.
fn once(
    all: Vec<(Float, Source, Position)>,
    verb: &str,
    complaints: &mut Vec<String>,
) -> Vec<(Float, Source, Position)> {
    let mut kept: Vec<(Float, Source, Position)> = Vec::new();
    let mut places: HashMap<Float, usize> = HashMap::new();
    for (float, source, position) in all {
        match places.get(&float).and_then(|&at| kept.get(at)) {
            Some((_, first, _)) if *first == source => {}
            Some((_, first, before)) => complaints.push(format!(
                "{position}: {float} is {verb} from {source}, and at {before} from {first}; keep one of them"
            )),
            None => {
                places.insert(float.clone(), kept.len());
                kept.push((float, source, position));
            }
        }
    }
    kept
}

/// A source, parsed.
fn source(text: &str) -> Result<Source, String> {
    check(text, "the source")?;
    let parsed = text.parse::<Source>();
    parsed.map_err(|error| format!("the source {error}"))
}

/// What a destination is by its name.
fn role(pair: &Pair) -> Result<Role, String> {
    let text = &pair.destination;
    let pruned = text.rsplit_once(':').and_then(|(repository, tag)| {
        let (stamp, name) = tag.split_once("_prune_")?;
        let mark = UNKNOWN.to_string();
        let stamped = stamp.len() == STAMP_LEN && stamp.bytes().all(|c| c.is_ascii_digit());
        (!repository.contains(UNKNOWN) && (stamp == mark || stamped)).then_some(name)
    });
    if let Some(name) = pruned.filter(|name| !name.contains(UNKNOWN)) {
        // Whose it is its source tells: names have differed.
        return Ok(Role::Prune(
            pair.source.parse().ok(),
            format!("{STAMP}_prune_{name}"),
        ));
    }
    check(text, "the destination")?;
    let float = |text: &str| Float::new(text).map_err(|error| format!("the destination {error}"));
    if text.contains("@sha256:") {
        return Err(format!(
            "the destination '{}' names a digest; name the tag that is to be moved",
            shown(text)
        ));
    }
    if !text[text.rfind('/').unwrap_or(0)..].contains(':') {
        return Err(format!(
            "the destination '{}' has no tag; append :TAG",
            shown(text)
        ));
    }
    if let Some(name) = text.strip_suffix("_incoming") {
        return Ok(Role::Staging(float(name)?));
    }
    for suffix in ["__pre", "__post1"] {
        if let Some(name) = text.strip_suffix(suffix) {
            let float = float(name)?;
            let tag = format!("{}{suffix}", float.tag());
            return Ok(Role::Pin(float, tag));
        }
    }
    float(text).map(Role::Float)
}

/// Refuses a name that stands for several: then the other side of its mapping is often none by itself.
fn check_wildcard(text: &str, what: &str) -> Result<(), String> {
    if text.contains('*') && !text.contains("://") && !text.contains('@') {
        return Err(format!(
            "{what} '{}' has a wildcard, which stands for tags that only its registry knows; write a mapping for each tag",
            shown(text).replace(UNKNOWN, "…")
        ));
    }
    Ok(())
}

/// What no image's name can be: said without repeating what may be a password.
fn check(text: &str, what: &str) -> Result<(), String> {
    if text.contains(UNKNOWN) {
        let shown = shown(text).replace(UNKNOWN, "…");
        return Err(format!(
            "{what} '{shown}' depends on what only a run of the script knows; write the name out"
        ));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!(
            "{what} begins with {}://; only registries can be read and written, by HOST/REPOSITORY",
            shown(scheme)
        ));
    }
    if text
        .split_once('@')
        .is_some_and(|(_, after)| !after.starts_with("sha256:"))
    {
        return Err(format!(
            "{what} has an '@' that no sha256 digest follows; write HOST/REPOSITORY:TAG or @sha256:DIGEST, credentials belong in a Secret"
        ));
    }
    Ok(())
}

/// As much of a text as a line bears.
fn shown(text: &str) -> String {
    let escaped: String = text
        .chars()
        .take(SHOWN_MAX)
        .filter(|c| !c.is_control())
        .collect();
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::{mapping, script};
    use super::*;

    fn of(text: &str) -> Result<Intent, Vec<String>> {
        let found = if script::is_script(text) {
            script::read(text).unwrap()
        } else {
            mapping::read(text, 1).unwrap().into()
        };
        intent(&[("f".into(), found)])
    }

    fn floats(intent: &Intent) -> Vec<(String, String, usize)> {
        let all = intent.floats.iter();
        all.map(|i| {
            (
                i.source.to_string(),
                i.float.tag().to_string(),
                i.position.line,
            )
        })
        .collect()
    }

    fn pins(intent: &Intent, at: usize) -> Vec<&str> {
        intent.floats[at].pins.iter().map(String::as_str).collect()
    }

    #[test]
    fn the_staged_script_means_its_sources_and_their_floats() {
        let text = "oc image mirror r.io/p:x=q.io/ci:a_incoming\noc image mirror q.io/ci:a=q.io/ci:20240603235401_prune_a q.io/ci:a=q.io/ci:a__pre\n\
            oc image mirror q.io/ci:a_incoming=q.io/ci:a\noc image mirror q.io/ci:a=q.io/ci:a__post1\noc image mirror q.io/ci:a_incoming=q.io/ci:a";
        let intent = of(text).unwrap();
        assert_eq!(
            floats(&intent),
            [("r.io/p:x".to_owned(), "a".to_owned(), 3)]
        );
        assert_eq!(
            pins(&intent, 0),
            ["YYYYMMDDHHMMSS_prune_a", "a__post1", "a__pre", "a_incoming"]
        );
        assert!(intent.warnings.is_empty(), "{:?}", intent.warnings);
    }

    #[test]
    fn a_prune_tag_is_its_sources_whatever_its_name_and_stamp() {
        let text = "S=$(date +%s)\noc image mirror q.io/ci:ns_a=q.io/ci:${S}_prune_a || true\noc image mirror r.io/p:x=q.io/ci:ns_a";
        let intent = of(text).unwrap();
        assert_eq!(
            floats(&intent),
            [("r.io/p:x".to_owned(), "ns_a".to_owned(), 3)]
        );
        assert_eq!(pins(&intent, 0), ["YYYYMMDDHHMMSS_prune_a"]);
    }

    #[test]
    fn floats_of_a_clusters_own_registry_are_warned_of_with_the_tags_that_would_be_made() {
        let warned = |host: &str| {
            of(&format!("r.io/p:x={host}/ci-ln-x/stable:cli"))
                .unwrap()
                .warnings
        };
        for host in [
            "registry.ci.openshift.org",
            "registry.build02.ci.openshift.org",
            "registry.apps.build02.vmc.ci.openshift.org",
            "registry.arm-build01.arm-build.devcluster.openshift.com:443",
            "image-registry.openshift-image-registry.svc:5000",
            "default-route-openshift-image-registry.apps.x.io",
        ] {
            let warnings = warned(host);
            assert_eq!(warnings.len(), 1, "{host}: {warnings:?}");
            for part in [
                "f:1: ",
                "tag of an ImageStream: cli_incoming, cli__pre, cli__post1",
            ] {
                assert!(warnings[0].contains(part), "{warnings:?}");
            }
        }
        for host in [
            "quay.io",
            "registry.redhat.io",
            "quay-proxy.ci.openshift.org",
            "registry.example.org",
        ] {
            assert!(warned(host).is_empty(), "{host}");
        }
    }

    #[test]
    fn what_is_staged_only_is_taken_and_told_of() {
        let intent = of("r.io/p:x=q.io/ci:a_incoming").unwrap();
        assert_eq!(
            floats(&intent),
            [("r.io/p:x".to_owned(), "a".to_owned(), 1)]
        );
        assert!(
            intent.warnings[0].starts_with("f:1: q.io/ci:a is staged and never moved"),
            "{:?}",
            intent.warnings
        );
    }

    #[test]
    fn a_float_copied_from_one_that_was_moved_before_has_its_source() {
        let intent =
            of("r.io/p:x=q.io/ci:a\nq.io/ci:a=q.io/ci:b\nq.io/ci:b__pre=q.io/ci:c").unwrap();
        let sources: Vec<_> = floats(&intent)
            .into_iter()
            .map(|(source, ..)| source)
            .collect();
        assert_eq!(sources, ["r.io/p:x", "r.io/p:x", "q.io/ci:b__pre"]);
    }

    #[test]
    fn a_dry_run_is_a_plan_and_left_out_beside_what_writes() {
        let dry = "oc image mirror --dry-run r.io/p:x=q.io/ci:a";
        assert!(of(dry).unwrap().dry_run);
        let both = of(&format!("{dry}\noc image mirror r.io/p:x=q.io/ci:b")).unwrap();
        assert!(
            !both.dry_run && both.warnings[0].contains("--dry-run"),
            "{both:?}"
        );
        assert_eq!(floats(&both)[0].1, "b");
        assert_eq!(both.floats.len(), 1);
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_its_line_and_a_remedy() {
        let long = "a".repeat(99);
        for (text, line, remedy) in [
            (
                "r.io/p:x=q.io/ci:a\n\nr.io/p:y=q.io/ci:a",
                3,
                "at f:1 from r.io/p:x; keep one",
            ),
            (
                "r.io/p:x=q.io/ci:a_incoming\nr.io/p:y=q.io/ci:a_incoming",
                2,
                "staged from r.io/p:y, and at f:1",
            ),
            (
                "q.io/ci:a_incoming=q.io/ci:a",
                1,
                "give the file that does it too",
            ),
            (
                &format!("r.io/p:x q.io/ci:{long}"),
                1,
                "choose a shorter tag",
            ),
            ("r.io/p:x q.io/ci@sha256:00", 1, "name the tag"),
            ("r.io/p:x q.io/ci", 1, "append :TAG"),
            ("r.io/p q.io/ci:a", 1, "there is no default tag"),
            ("r.io/p:x q.io/ci:art__a", 1, "choose another float"),
            ("cli:x q.io/ci:a", 1, "in full"),
            ("r.io/p:* q.io/ci:a", 1, "a mapping for each tag"),
            ("file://x q.io/ci:a", 1, "only registries"),
            ("x s3://b/c", 1, "only registries"),
            ("r.io/p:x q.io/ci:a__rescued", 1, "choose another float"),
            (
                "r.io/p:x q.io/ci:a__broken_incoming",
                1,
                "choose another float",
            ),
            ("r.io/p@sha256:0 q.io/ci:a", 1, "64 lower-case"),
        ] {
            let complaints = of(text).unwrap_err();
            let start = format!("f:{line}: ");
            let found = complaints
                .iter()
                .any(|c| c.starts_with(&start) && c.contains(remedy));
            assert!(found, "{text}: {complaints:?}");
        }
        for (text, remedy) in [
            ("", "write SRC=DST"),
            ("a=q.io/ci:20240603235401_prune_a", "move no float"),
        ] {
            assert!(of(text).unwrap_err()[0].contains(remedy));
        }
        let unknown =
            of("oc image mirror r.io/p:$X=q.io/ci:a r.io/p:x=q.io/ci:${X}_prune_$Y").unwrap_err();
        assert!(
            unknown.iter().all(|c| c.contains("write the name out")) && unknown.len() == 2,
            "{unknown:?}"
        );
    }

    #[test]
    fn what_follows_from_a_fault_is_no_fault_of_its_own() {
        let text = "oc image mirror r.io/p:$X=q.io/ci:a_incoming\noc image mirror q.io/ci:a_incoming=q.io/ci:a";
        let complaints = of(text).unwrap_err();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("f:1: "), "{complaints:?}");
    }

    proptest! {
        #[test]
        fn any_mappings_mean_something_or_are_refused_by_their_place(
            text in "((q\\.io/ci:|r\\.io/p[:@]|[ab]|_incoming|__pre|__post1|20240603235401_prune_|sha256:|=| |\\n|\\PC){0,12}\\n){0,6}"
        ) {
            let Ok(pairs) = mapping::read(&text, 1) else {
                return Ok(());
            };
            match intent(&[("f".into(), pairs.into())]) {
                Ok(intent) => {
                    let floats: HashSet<_> = intent.floats.iter().map(|intended| &intended.float).collect();
                    prop_assert!(!floats.is_empty() && floats.len() == intent.floats.len());
                }
                Err(complaints) => prop_assert!(!complaints.is_empty()),
            }
        }
    }

    #[test]
    fn a_password_in_a_name_is_not_repeated() {
        for text in [
            "https://u:geheim@q.io/x q.io/ci:a",
            "u:geheim@q.io/p:x q.io/ci:a",
            "r.io/p:x u:geheim@q.io/ci:a",
        ] {
            let complaints = of(text).unwrap_err();
            assert!(!complaints.concat().contains("geheim"), "{complaints:?}");
        }
    }
}
