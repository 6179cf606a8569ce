//! Checks whether a credential may push: by what its token says, else by an upload session that is opened and cancelled.

use reqwest::{Method, StatusCode, Url};

use super::blob::uploads_url;
use super::client::RegistryClient;
use crate::image::Repository;
use crate::registry::auth::access::Access;
use crate::registry::auth::credential::Credential;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::registry::wire::authorize::{AuthContext, First};
use crate::registry::wire::request::Failure;

/// What is known of the right to push.
enum Tried {
    /// The token tells that there is one.
    MayPush,
    /// An upload session was opened.
    Session(Url),
    NotTold,
}

impl RegistryClient {
    /// Whether `credential` may push there: what its token says, else an upload session opened and cancelled, remembered for an
    /// hour.
    ///
    /// # Errors
    /// `PermissionDenied` and `Unauthorized` are the definite no, and a redirect that is not followed is one; a waiting error is
    /// "not known now".
    pub async fn may_push(
        &self,
        repository: &Repository,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<(), Error> {
        let endpoint = self.endpoint(repository)?;
        let access = Access::new(&endpoint, credential, repository, true);
        let key = (credential.key(), repository.clone());
        let what = repository.to_string();
        let tried = self.try_session(&access, &what, progress).await;
        // A redirect that leads nowhere leads nowhere the next time either.
        let definite = |failure: Failure| match Error::from(failure) {
            error if matches!(error.status(), Some(300..400)) => {
                Error::terminal(error.reason, &error.message)
            }
            error => error,
        };
        let opened = match tried {
            Ok(Tried::MayPush) => return Ok(()),
            Ok(Tried::Session(session)) => Ok(session),
            Ok(Tried::NotTold) if self.0.pushable.contains_key(&key) => return Ok(()),
            Ok(Tried::NotTold) => self.begin(&access, &what, false, progress).await,
            Err(failure) => Err(failure),
        };
        let session = match opened.map_err(definite) {
            Ok(session) => Some(session),
            // It lets the credential in, and does not say where: there is nothing to cancel.
            Err(error) if error.status() == Some(StatusCode::ACCEPTED.as_u16()) => None,
            Err(error) => return Err(error),
        };
        self.0.pushable.insert(key, ());
        let Some(session) = session else {
            return Ok(());
        };
        // The answer is known: nobody has to wait for the cleaning up.
        let (registry, repository) = (self.clone(), repository.clone());
        let (credential, progress) = (credential.clone(), progress.clone());
        tokio::spawn(async move {
            let access = Access::new(&endpoint, &credential, &repository, true);
            registry
                .cancel(Some(&session), &access, &what, &progress)
                .await;
        });
        Ok(())
    }

    /// Whether the token of `credential` says that it may push to `repository`; false if no token tells. Only for a repository that is known
    /// to exist: some registries create it for whoever asks.
    ///
    /// # Errors
    /// `PermissionDenied` or `Unauthorized` if the token says that it may not.
    pub async fn claims_push(
        &self,
        repository: &Repository,
        credential: &Credential,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let endpoint = self.endpoint(repository)?;
        let access = Access::new(&endpoint, credential, repository, true);
        let grant = self.transport().authorize(&access, None, progress);
        let grant = grant.await?;
        Ok(grant.tells_rights())
    }

    /// What can be known of the right to push without an upload session, or with one that is the very first request to a registry and
    /// saves the ping.
    async fn try_session(
        &self,
        access: &Access<'_>,
        what: &str,
        progress: &Progress,
    ) -> Result<Tried, Failure> {
        let transport = self.transport();
        let url = uploads_url(access);
        let mut request = self.blob_request(Method::POST, url, what, access, progress);
        let first = transport.try_first(access, &mut request).await;
        let grant = match first {
            Ok(First::LetIn(reply)) if reply.status() == StatusCode::ACCEPTED => {
                let session = self
                    .location(&reply, access, what)
                    .map_err(Failure::Refused);
                return session.map(Tried::Session);
            }
            Ok(First::Challenged(challenge)) => {
                let context = AuthContext {
                    access,
                    patience: None,
                    progress,
                };
                Some(transport.grant(context, challenge, None).await?)
            }
            Ok(_) | Err(_) => match transport.authorize(access, None, progress).await {
                // So ends a guess.
                Err(Failure::Refused(_)) => None,
                grant => Some(grant?),
            },
        };
        Ok(match grant {
            Some(grant) if grant.tells_rights() => Tried::MayPush,
            _ => Tried::NotTold,
        })
    }
}
