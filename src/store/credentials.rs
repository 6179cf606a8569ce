//! The controller's own credentials, and the requests that may use them.
//!
//! In come a request without `pushSecret` and what the [`files`] say now; out comes what it may act with. Guaranteed: the
//! controller's credentials answer for no repository but those of images that one rule names whole, source and float; and for
//! the float's of a committed image, because it was named when it was committed, and what is committed runs to its end. That is
//! believed only of what is backed up: a status can be forged by whoever may write it.

mod files;

use std::collections::BTreeSet;

use super::{Access, AccessError};
use crate::image::Repository;
use crate::machine::Request;
use crate::policy::{Grant, Rules, missing_rule};
use crate::registry::Keyring;

pub use files::{CredentialFiles, FILE_LOOK};

/// The controller's credentials, and who may use them.
#[derive(Debug, Clone)]
pub struct ControllerCredentials {
    /// Who may use it.
    pub rules: Rules,
    /// Its credentials.
    pub keyring: Keyring,
}

impl ControllerCredentials {
    /// What a request of `namespace` without a `pushSecret` may act with; `pull` is what its `pullSecret` holds, if it names one.
    ///
    /// # Errors
    /// No rule names an image, and the controller has a credential for a repository of it that the request has none for.
    pub fn access(
        &self,
        namespace: &str,
        request: &Request,
        pull: Option<Keyring>,
    ) -> Result<Access, AccessError> {
        let rules = self.rules.of(namespace);
        let (mut sources, mut floats) = (BTreeSet::new(), BTreeSet::new());
        let mut if_staged = Vec::new();
        for (index, image) in request.spec.images.iter().enumerate() {
            if !request.is_open(index) && !request.awaits_reference(index) {
                continue;
            }
            let (source, float) = (&image.source.repository, image.float.repository());
            let grants = rules
                .iter()
                .filter_map(|rule| rule.grants(&image.source, &image.float));
            if let Some(grant) = grants.min() {
                sources.insert(source.clone());
                floats.insert(float.clone());
                if grant == Grant::IfStaged {
                    if_staged.push(image.source.clone());
                }
            } else if request.is_committed_in_fact(index) {
                // Nothing more is read from its source.
                floats.insert(float.clone());
            } else if self.has(float) || (pull.is_none() && self.has(source)) {
                let rule = missing_rule(namespace, &image.source, &image.float);
                return Err(AccessError::NotAllowed(format!(
                    "spec.images[{index}]: no rule lets namespace {namespace} promote it with the controller's credentials; \
                     name a pushSecret, or have this line added to the rules of the controller's --policy file: {rule}"
                )));
            }
        }
        Ok(Access {
            pull: pull.unwrap_or_else(|| self.keyring.only(sources)),
            push: self.keyring.only(floats),
            if_staged: if_staged.into(),
        })
    }

    /// Whether the controller has a credential for a repository, usable or not.
    fn has(&self, repository: &Repository) -> bool {
        let credential = self.keyring.credential(repository);
        credential.map_or(true, |credential| !credential.is_anonymous())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::image::Digest;
    use crate::machine::{
        Image, ImageSpec, Latch, Mode, OnFailure, Phase, Referrers, Spec, Status,
    };

    /// One rule: namespace ci, sources quay.io/src/**, floats quay.io/ci:ocp_*; credentials for all of quay.io.
    fn credentials() -> ControllerCredentials {
        let rules = "rules: [{name: r, namespaces: [ci], sources: [quay.io/src/**], floats: ['quay.io/ci:ocp_*']}]";
        ControllerCredentials {
            rules: Rules::parse(rules).unwrap(),
            keyring: keyring("controller", "quay.io"),
        }
    }

    fn keyring(user: &str, key: &str) -> Keyring {
        let json =
            format!(r#"{{"auths": {{"{key}": {{"username": "{user}", "password": "p"}}}}}}"#);
        Keyring::parse(json.as_bytes(), user).unwrap()
    }

    fn request(images: &[(&str, &str)]) -> Request {
        let image = |(source, float): &(&str, &str)| ImageSpec {
            source: source.parse().unwrap(),
            float: float.parse().unwrap(),
            replaces: None,
            freeze: None,
            remove_incoming: false,
        };
        let spec = Spec {
            images: images.iter().map(image).collect(),
            latch: Latch::Independently,
            on_failure: OnFailure::Hold,
            mode: Mode::Promote,
            referrers: Referrers::Ignore,
            attempts: 5,
            deadline_seconds: 7200,
            suspend: false,
            cancel: false,
            gates: Vec::new(),
            undo: false,
        };
        let status = Status::new(images.len());
        Request { spec, status }
    }

    /// Whose credential an access sends to a repository, for reading and for writing.
    fn acts_as(access: &Access, repository: &str) -> (bool, bool) {
        let repository = repository.parse().unwrap();
        let sends = |ring: &Keyring| !ring.credential(&repository).unwrap().is_anonymous();
        (sends(&access.pull), sends(&access.push))
    }

    fn refused(result: Result<Access, AccessError>) -> String {
        match result {
            Err(AccessError::NotAllowed(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    const NAMED: (&str, &str) = ("quay.io/src/a:new", "quay.io/ci:ocp_a");
    const UNNAMED: (&str, &str) = ("quay.io/other/a:new", "quay.io/ci:ocp_b");
    const ELSEWHERE: (&str, &str) = ("registry.ci/src/a:new", "registry.ci/ci:a");

    #[test]
    fn what_one_rule_names_whole_is_done_with_the_controllers_credentials_and_nothing_else_is() {
        let access = credentials()
            .access("ci", &request(&[NAMED]), None)
            .unwrap();
        assert_eq!(acts_as(&access, "quay.io/src/a"), (true, false));
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, true));
        // Neither named by the request's images.
        assert_eq!(acts_as(&access, "quay.io/src/b"), (false, false));
        assert_eq!(acts_as(&access, "quay.io/ci/below"), (false, false));
    }

    #[test]
    fn what_no_rule_names_is_refused_where_the_controller_has_a_credential_and_anonymous_elsewhere()
    {
        for (namespace, images) in [
            ("ci", &[UNNAMED][..]),
            ("ci", &[NAMED, UNNAMED]),
            ("ci", &[NAMED, ("registry.ci/a:x", "quay.io/ci:other")]),
            ("ci", &[("quay.io/src/a:new", "registry.ci/ci:a")]),
            ("ci", &[("registry.ci/src/a:new", "quay.io/ci:ocp_a")]),
            ("other", &[NAMED]),
        ] {
            let message = refused(credentials().access(namespace, &request(images), None));
            let (index, (source, float)) = (images.len() - 1, images[images.len() - 1]);
            let source = source.split(':').next().unwrap();
            for part in [
                &format!("spec.images[{index}]"),
                "--policy",
                &format!("namespaces: [\"{namespace}\"]"),
                &format!("\"{source}\""),
                &format!("\"{float}\""),
            ] {
                assert!(message.contains(part), "{message}");
            }
        }
        let access = credentials()
            .access("other", &request(&[ELSEWHERE]), None)
            .unwrap();
        assert_eq!(acts_as(&access, "registry.ci/src/a"), (false, false));
        let access = credentials()
            .access("ci", &request(&[NAMED, ELSEWHERE]), None)
            .unwrap();
        assert_eq!(acts_as(&access, "registry.ci/ci"), (false, false));
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, true));
    }

    #[test]
    fn what_is_granted_only_as_staged_is_said_and_what_a_pattern_names_needs_no_staging() {
        let digest = Digest::of(b"image");
        let staged = format!("quay.io/ci@{digest}");
        let image = (staged.as_str(), "quay.io/ci:ocp_a");
        let access = |sources: &str| {
            let rules = format!(
                "rules: [{{name: r, namespaces: [ci], {sources}ownPins: true, floats: ['quay.io/ci:ocp_*']}}]"
            );
            let credentials = ControllerCredentials {
                rules: Rules::parse(&rules).unwrap(),
                keyring: keyring("controller", "quay.io"),
            };
            credentials.access("ci", &request(&[image]), None).unwrap()
        };
        let own = access("");
        assert_eq!(*own.if_staged, [staged.parse().unwrap()]);
        assert_eq!(acts_as(&own, "quay.io/ci"), (true, true));
        assert!(access("sources: ['quay.io/ci@*'], ").if_staged.is_empty());
        refused(credentials().access("ci", &request(&[image]), None));
    }

    #[test]
    fn with_a_pull_secret_of_its_own_a_request_reads_with_that_alone() {
        let pull = || Some(keyring("reader", "registry.ci"));
        let access = credentials()
            .access("ci", &request(&[NAMED]), pull())
            .unwrap();
        assert_eq!(acts_as(&access, "quay.io/src/a"), (false, false));
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, true));
        assert_eq!(acts_as(&access, "registry.ci/src"), (true, false));
        // What is read by its own credential may still not be put anywhere with the controller's.
        let unnamed = request(&[("registry.ci/src/a:new", "quay.io/ci:ocp_a")]);
        refused(credentials().access("ci", &unnamed, pull()));
        // Its sources are its own business where the float needs no credential of the controller's.
        let away = request(&[("quay.io/other/a:new", "registry.ci/ci:a")]);
        let access = credentials().access("ci", &away, pull()).unwrap();
        assert_eq!(acts_as(&access, "quay.io/other/a"), (false, false));
        assert_eq!(acts_as(&access, "registry.ci/ci"), (true, false));
    }

    #[test]
    fn what_is_committed_keeps_what_it_was_granted_and_what_has_ended_needs_nothing() {
        let mut held = request(&[NAMED, UNNAMED]);
        held.status.images[1].committed = true;
        // Said of an image that is not even backed up, it is not believed.
        for phase in [Phase::Pending, Phase::Incoming] {
            held.status.images[1].phase = phase;
            let message = refused(credentials().access("ci", &held, None));
            assert!(message.contains("spec.images[1]"), "{message}");
        }
        held.status.images[1].phase = Phase::BackedUp;
        let access = credentials().access("ci", &held, None).unwrap();
        assert_eq!(acts_as(&access, "quay.io/other/a"), (false, false));
        // Of the two, the one that is not committed is refused.
        let message = refused(credentials().access("other", &held, None));
        assert!(message.contains("spec.images[0]"), "{message}");
        held.status.images[0] = Image {
            phase: Phase::Failed,
            ..Image::default()
        };
        let access = credentials().access("other", &held, None).unwrap();
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, true));
        assert_eq!(acts_as(&access, "quay.io/src/a"), (false, false));
    }

    #[test]
    fn a_group_is_believed_to_be_committed_where_every_open_image_is_backed_up() {
        let mut group = request(&[UNNAMED, UNNAMED]);
        group.spec.latch = Latch::Together;
        group.status.committed = true;
        group.status.images[0].phase = Phase::Latched;
        refused(credentials().access("ci", &group, None));
        group.status.images[1].phase = Phase::BackedUp;
        let access = credentials().access("ci", &group, None).unwrap();
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, true));
        assert_eq!(acts_as(&access, "quay.io/other/a"), (false, false));
    }

    #[test]
    fn an_entry_that_cannot_be_used_is_a_credential_all_the_same() {
        let json = br#"{"credHelpers": {"quay.io": "ecr"}}"#;
        let credentials = ControllerCredentials {
            keyring: Keyring::parse(json, "file").unwrap(),
            ..credentials()
        };
        refused(credentials.access("other", &request(&[NAMED]), None));
        let access = credentials.access("ci", &request(&[NAMED]), None).unwrap();
        let float = "quay.io/ci".parse().unwrap();
        assert!(access.push.credential(&float).is_err());
    }

    #[test]
    fn without_credentials_of_its_own_the_controller_lets_nobody_in_and_keeps_nobody_out() {
        let credentials = ControllerCredentials {
            rules: Rules::default(),
            keyring: Keyring::anonymous(),
        };
        let digest = Digest::of(b"x");
        let source = format!("quay.io/src/a@{digest}");
        let access = credentials
            .access("ci", &request(&[(&source, "quay.io/ci:f")]), None)
            .unwrap();
        assert_eq!(acts_as(&access, "quay.io/src/a"), (false, false));
        assert_eq!(acts_as(&access, "quay.io/ci"), (false, false));
    }
}
