#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// What is no pattern, and why.
type Wrong = (&'static str, fn(String) -> PatternError);

/// What a pattern means, in its plainest words.
fn means(pattern: &[u8], text: &[u8], fence: fn(u8) -> bool) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| means(rest, &text[n..], fence)),
        [b'*', rest @ ..] => {
            let within = text.iter().take_while(|c| !fence(**c));
            (0..=within.count()).any(|n| means(rest, &text[n..], fence))
        }
        [c, rest @ ..] => text.first() == Some(c) && means(rest, &text[1..], fence),
    }
}

fn source(pattern: &str, name: &str) -> bool {
    let pattern: SourcePattern = pattern.parse().unwrap();
    pattern.matches(&name.parse().unwrap())
}

fn float(pattern: &str, name: &str) -> bool {
    let pattern: FloatPattern = pattern.parse().unwrap();
    pattern.matches(&name.parse().unwrap())
}

proptest! {
    #[test]
    fn a_pattern_matches_what_it_means(pattern in "[ab.:*/]{0,8}", text in "[ab.:/]{0,8}") {
        let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
        for fence in [is_dot, is_slash, |_| false] {
            prop_assert_eq!(matches(pattern, text, fence), means(pattern, text, fence));
        }
    }

    #[test]
    fn any_text_is_a_pattern_or_refused_and_asks_any_host_nothing_but_time(text in "\\PC{0,40}", host in "\\PC{0,40}") {
        if let Ok(pattern) = text.parse::<HostPattern>() {
            prop_assert!(!pattern.names(&host) || pattern.matches(&host));
        }
    }

    #[test]
    fn any_text_is_a_pattern_of_names_or_refused_in_one_line(text in "\\PC{0,40}|[a-z*.:/@]{0,40}|.{0,600}") {
        let refusals = [
            text.parse::<SourcePattern>().err(),
            text.parse::<FloatPattern>().err(),
            text.parse::<NamespacePattern>().err(),
        ];
        for refusal in refusals.into_iter().flatten() {
            prop_assert!(!refusal.to_string().is_empty());
        }
    }

    #[test]
    fn a_name_is_matched_by_itself_and_by_stars_in_its_place_and_by_no_other_name(
        host in "[a-z]{1,5}\\.[a-z]{2,3}(:5000)?", path in "[a-z0-9]{1,4}(/[a-z0-9]{1,4}){0,2}", tag in "[a-zA-Z0-9][a-z0-9._-]{0,6}",
        other in "[a-z]{1,5}\\.[a-z]{2,3}/[a-z0-9]{1,4}:[a-z0-9]{1,6}",
    ) {
        let name = format!("{host}/{path}:{tag}");
        prop_assert!(source(&name, &name) && float(&name, &name));
        let untagged = format!("{host}/{path}");
        prop_assert!(source(&untagged, &name));
        for wide in [format!("{host}/**:*"), format!("**/{path}:*"), format!("{host}/{path}:*{tag}*"), "**/**:*".into()] {
            prop_assert!(source(&wide, &name) && float(&wide, &name), "{wide} {name}");
        }
        prop_assert_eq!(float(&name, &other), name == other);
        prop_assert_eq!(source(&format!("{host}/*:{tag}"), &name), !path.contains('/'));
    }
}

#[test]
fn a_pattern_of_many_stars_is_no_more_costly_than_it_is_long() {
    let pattern: HostPattern = format!("{}b", "**a*a".repeat(400)).parse().unwrap();
    let host = "a".repeat(4000);
    crate::cost::is_cheap(|| {
        assert!(!pattern.matches(&host));
        assert!(pattern.matches(&format!("{host}b")));
        let path = format!("quay.io/{}b:*", "**a*a".repeat(80));
        let path: FloatPattern = path.parse().unwrap();
        for _ in 0..10 {
            let name = format!("quay.io/{}:f", "a".repeat(240));
            assert!(!path.matches(&name.parse().unwrap()));
        }
    });
}

#[test]
fn a_star_stays_within_a_label_and_two_cross_dots() {
    let pattern = |s: &str| s.parse::<HostPattern>().unwrap();
    assert!(pattern("quay.io").matches("quay.io"));
    assert!(!pattern("quay.io").matches("quay.io.evil.example"));
    assert!(!pattern("quay.io").matches("quay.io:5000"));
    assert!(pattern("registry.*.ci.openshift.org").matches("registry.build02.ci.openshift.org"));
    assert!(!pattern("registry.*.ci.openshift.org").matches("registry.a.b.ci.openshift.org"));
    assert!(pattern("**.openshift.org").matches("registry.a.b.ci.openshift.org"));
    assert!(pattern("127.0.0.1:*").matches("127.0.0.1:5000"));
    assert!(pattern("registry-1.docker.io").matches("docker.io"));
    assert!(pattern("docker.io").matches("registry-1.docker.io"));
    assert!(pattern("*.docker.io").matches("registry-1.docker.io"));
    assert!(!pattern("docker.io").matches("auth.docker.io"));
    assert!(pattern("quay.io:443").matches("quay.io"));
    assert!(pattern("[fd00::1]:5000").matches("[fd00::1]:5000"));
    assert!("Quay.io".parse::<HostPattern>().is_err());
    assert!("".parse::<HostPattern>().is_err());
}

#[test]
fn stars_alone_match_everybody_and_name_nobody() {
    for pattern in ["**", "*", "**:*", "*.*", "*:5000", "**:5000", "[*]"] {
        let pattern: HostPattern = pattern.parse().unwrap();
        for host in ["quay.io", "localhost:5000", "10.0.0.1", "[::1]"] {
            assert!(!pattern.names(host), "{pattern:?} {host}");
        }
    }
    for (pattern, host) in [
        ("quay.io", "quay.io"),
        ("127.0.0.1:*", "127.0.0.1:5000"),
        ("[::1]", "[::1]"),
        ("[::1]:*", "[::1]:5000"),
        ("**.svc", "registry.ci.svc"),
    ] {
        let pattern: HostPattern = pattern.parse().unwrap();
        assert!(pattern.names(host), "{pattern:?} {host}");
    }
    let quay: HostPattern = "quay.io".parse().unwrap();
    assert!(!quay.names("quay.io:5000"));
}

#[test]
fn a_star_stays_within_a_path_segment_and_two_cross_slashes() {
    for (pattern, name, matches) in [
        (
            "quay.io/openshift/ci:*",
            "quay.io/openshift/ci:ocp_4.21_cli",
            true,
        ),
        ("quay.io/openshift/*:f", "quay.io/openshift/ci:f", true),
        ("quay.io/openshift/*:f", "quay.io/openshift/ci/x:f", false),
        ("quay.io/*:f", "quay.io/openshift/ci:f", false),
        ("quay.io/**:f", "quay.io/openshift/ci:f", true),
        ("quay.io/openshift/**:f", "quay.io/openshift/a/b/c:f", true),
        ("quay.io/openshift/**:f", "quay.io/openshift:f", false),
        (
            "quay.io/openshift/**:f",
            "quay.io/openshift-evil/ci:f",
            false,
        ),
        ("quay.io/openshift**:f", "quay.io/openshift-evil/ci:f", true),
        ("quay.io/a/**/z:f", "quay.io/a/b/c/z:f", true),
        ("quay.io/a/**/z:f", "quay.io/a/z:f", false),
        (
            "quay.io/ci-op-*/pipeline:f",
            "quay.io/ci-op-x1/pipeline:f",
            true,
        ),
        (
            "quay.io/ci-op-*/pipeline:f",
            "quay.io/ci-op-x1/y/pipeline:f",
            false,
        ),
        (
            "quay.io/openshift/ci:ocp_*",
            "quay.io/openshift/ci:ocp_4.21_cli",
            true,
        ),
        (
            "quay.io/openshift/ci:ocp_*",
            "quay.io/openshift/ci:okd_4.21_cli",
            false,
        ),
        (
            "quay.io/openshift/ci:ocp_*_cli",
            "quay.io/openshift/ci:ocp_4.21_cli",
            true,
        ),
        (
            "quay.io/openshift/ci:OCP_*",
            "quay.io/openshift/ci:ocp_4.21_cli",
            false,
        ),
        ("quay.io/**:*", "quay.io.evil.example/a:f", false),
        ("quay.io**/a:f", "quay.io/b/a:f", false),
        ("**/a:f", "quay.io/b/a:f", false),
        ("**/**:f", "quay.io/b/a:f", true),
        ("*/a:f", "localhost/a:f", true),
        ("*/a:f", "quay.io/a:f", false),
    ] {
        assert_eq!(float(pattern, name), matches, "{pattern} {name}");
    }
}

#[test]
fn names_are_matched_as_they_are_normalised() {
    assert!(float("quay.io:443/a:f", "quay.io/a:f"));
    assert!(float("quay.io/a:f", "quay.io:443/a:f"));
    assert!(float("quay.io/a:f", "quay.io:00443/a:f"));
    assert!(!float("quay.io/a:f", "quay.io:5000/a:f"));
    assert!(float("quay.io:5000/a:f", "quay.io:5000/a:f"));
    assert!(float("quay.io:*/a:f", "quay.io:5000/a:f"));
    // Docker Hub has three names.
    for pattern in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io:443"] {
            let (pattern, name) = (format!("{pattern}/a/b:f"), format!("{name}/a/b:f"));
            assert!(float(&pattern, &name), "{pattern} {name}");
        }
    }
}

#[test]
fn a_source_is_meant_by_tag_by_digest_or_by_both() {
    let digest = Digest::of(b"image");
    let (by_tag, by_digest) = ("quay.io/a/b:v1", format!("quay.io/a/b@{digest}"));
    let tagged = format!("quay.io/a/b:v1@{digest}");
    let exact = format!("quay.io/a/b@{digest}");
    let other = format!("quay.io/a/b@{}", Digest::of(b"other"));
    for (pattern, tag, digest) in [
        ("quay.io/a/b", true, true),
        ("quay.io/a/*", true, true),
        ("quay.io/a/b:v1", true, false),
        ("quay.io/a/b:*", true, false),
        ("quay.io/a/b:v2", false, false),
        ("quay.io/a/b@*", false, true),
        (&exact, false, true),
        (&other, false, false),
        ("quay.io/a/c", false, false),
    ] {
        assert_eq!(source(pattern, by_tag), tag, "{pattern}");
        assert_eq!(source(pattern, &by_digest), digest, "{pattern}");
        // With a digest, the tag is only a remark.
        assert_eq!(source(pattern, &tagged), digest, "{pattern}");
    }
}

#[test]
fn what_is_no_pattern_says_what_to_write_instead() {
    use PatternError as E;
    let sources: Vec<Wrong> = vec![
        ("", E::Repository),
        ("quay.io", E::Repository),
        ("quay.io:5000", E::Repository),
        ("/a", E::Repository),
        ("quay.io/", E::Repository),
        ("quay.io//a", E::Repository),
        ("quay.io/a/", E::Repository),
        ("Quay.io/a", E::Repository),
        ("quay.io/A", E::Repository),
        ("quay.io/a b", E::Repository),
        ("quay.io/a?", E::Repository),
        ("quay.io/a***", E::Repository),
        ("https://quay.io/a", E::Repository),
        ("quay.io/a:", E::Tag),
        ("quay.io/a:-x", E::Tag),
        ("quay.io/a:x y", E::Tag),
        ("quay.io/a:**", E::Tag),
        ("quay.io/a@", E::Digest),
        ("quay.io/a@sha256:abc", E::Digest),
        ("quay.io/a@**", E::Digest),
        ("quay.io/a:v1@*", E::Digest),
    ];
    for (text, error) in sources {
        assert_eq!(
            text.parse::<SourcePattern>(),
            Err(error(text.into())),
            "{text}"
        );
    }
    let floats: Vec<Wrong> = vec![
        ("quay.io/openshift/ci", E::NoTag),
        ("quay.io:5000/openshift/ci", E::NoTag),
        ("quay.io/**", E::NoTag),
        ("quay.io/ci@*", E::NotAFloat),
        ("quay.io/ci:", E::Tag),
        ("quay.io:f", E::Repository),
        ("**", E::Repository),
    ];
    for (text, error) in floats {
        assert_eq!(
            text.parse::<FloatPattern>(),
            Err(error(text.into())),
            "{text}"
        );
    }
    for text in ["", "Ci", "a/b", "a.b", "**", &"a".repeat(64)] {
        let refused = text.parse::<NamespacePattern>();
        assert!(matches!(refused, Err(E::Namespace(_))), "{text}");
    }
    let long = format!("quay.io/{}:f", "a".repeat(600));
    assert!(matches!(long.parse::<FloatPattern>(), Err(E::TooLong(_))));
    assert!(matches!(long.parse::<SourcePattern>(), Err(E::TooLong(_))));
}

#[test]
fn a_star_in_a_namespace_stands_for_any_part_of_it() {
    let matches = |pattern: &str, name: &str| {
        let pattern: NamespacePattern = pattern.parse().unwrap();
        pattern.matches(name)
    };
    assert!(matches("ci", "ci"));
    assert!(!matches("ci", "ci-evil"));
    assert!(!matches("ci", "evil-ci"));
    assert!(matches("ci-*", "ci-op-1"));
    assert!(!matches("ci-*", "ci"));
    assert!(matches("*", "anything"));
    assert!(matches("*-ci", "team-a-ci"));
}
