//! What a request is entitled to: whose rights it uses, on which repository, and why it is refused.
//!
//! Takes what a token allows and what a registry said when it refused. Tells whether a right is missing, whether the refusal is final,
//! and what a person has to do about it.

use reqwest::StatusCode;

use super::credential::Credential;
use super::token::{Grant, Right, may};
use crate::image::Repository;
use crate::machine::Reason;
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;

/// Whose rights are used, for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) credential: &'a Credential,
    pub(crate) repository: &'a Repository,
    /// Whether it is written to, or absence there is to be believed.
    pub(crate) push: bool,
    /// Another repository of the same registry that is read as well, if the credential may: for mounts.
    pub(crate) also: Option<&'a Repository>,
}

impl<'a> Access<'a> {
    /// The rights of `credential` in one repository: to read it, or, with `push`, to write it and to have absence there believed.
    pub(crate) fn new(
        endpoint: &'a Endpoint,
        credential: &'a Credential,
        repository: &'a Repository,
        push: bool,
    ) -> Self {
        Self {
            endpoint,
            credential,
            repository,
            push,
            also: None,
        }
    }
}

/// The scope of a token for one repository.
pub(crate) fn scope(repository: &Repository, push: bool) -> String {
    let actions = if push { "pull,push" } else { "pull" };
    format!("repository:{}:{actions}", repository.path())
}

impl Access<'_> {
    /// The repositories whose rights it needs.
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &Repository> {
        std::iter::once(self.repository).chain(self.also)
    }

    /// The scopes a token needs, one string each.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![scope(self.repository, self.push)];
        scopes.extend(self.also.map(|also| scope(also, false)));
        scopes
    }

    /// Why a 401 with this grant is final.
    pub(crate) fn refused(
        &self,
        status: StatusCode,
        words: &str,
        grant: &Grant,
        insufficient: bool,
    ) -> Error {
        if grant.header.is_none() && !self.credential.is_anonymous() {
            return self.unnamed().with_status(status);
        }
        let lacks = insufficient
            || grant
                .token
                .as_ref()
                .is_some_and(|t| self.lacking(t.rights.as_ref()).is_some());
        let error = if self.credential.is_anonymous() {
            self.no_entry()
        } else if lacks {
            self.denied(if self.push { "push" } else { "pull" }, words)
        } else {
            self.rejected(words)
        };
        error.with_status(status)
    }

    /// The action this access needs and the token says is missing.
    pub(crate) fn lacking(&self, rights: Option<&Vec<Right>>) -> Option<&'static str> {
        let needed: &[&'static str] = if self.push {
            &["push", "pull"]
        } else {
            &["pull"]
        };
        let rights = rights?;
        needed
            .iter()
            .copied()
            .find(|action| !may(rights, self.repository, action))
    }

    /// The credential was shown, and is not accepted; the registry's words may say why.
    pub(crate) fn rejected(&self, words: &str) -> Error {
        let (host, named) = (&self.endpoint.name, self.credential.named());
        Error::terminal(
            Reason::Unauthorized,
            format!("{host} rejected {named}; renew it{words}"),
        )
    }

    /// The credential is accepted and lacks a right. That may be because there is nothing to have a right on: a registry that gives
    /// fewer rights than were asked for does not say why.
    pub(crate) fn denied(&self, action: &str, words: &str) -> Error {
        let (repository, named) = (self.repository, self.credential.named());
        let remedy = if action == "push" {
            "grant it push there, unless the repository or its organization is missing or the registry is read-only"
        } else {
            "grant it pull there"
        };
        let message = format!("{named} may not {action} {repository}; {remedy}{words}");
        Error::terminal(Reason::PermissionDenied, message)
    }

    /// Nothing was shown, for it was not said what to show.
    fn unnamed(&self) -> Error {
        let repository = self.repository;
        let message =
            format!("{repository}: the registry asks for a credential and does not say which kind");
        Error::attempt(Reason::RegistryError, message)
    }

    /// It was shown what it asked for, and asked for something else, again and again.
    pub(crate) fn unsteady(&self) -> Error {
        let repository = self.repository;
        let message =
            format!("{repository}: the registry asks for another kind of credential each time");
        Error::attempt(Reason::RegistryError, message)
    }

    pub(crate) fn no_entry(&self) -> Error {
        let (repository, named) = (self.repository, self.credential.named());
        let message =
            format!("{repository} wants a credential and was asked as {named}; give one for it");
        Error::terminal(Reason::Unauthorized, message)
    }
}
