//! Who may do what: no authentication, Basic credentials, or bearer tokens that grant less than was asked for, as at quay.
//!
//! In: the `Authorization` header of a request, and at the token endpoint the requested scopes. Out: a [`Caller`] with its rights,
//! or a refusal. Tokens look like JWTs and are not signed: the registry knows those it issued. Passwords and tokens never
//! reach the log or any `Debug` output.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Tokens kept before outdated ones are cleared away.
const TOKENS: usize = 10_000;

/// How callers are authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// How credentials are asked for.
    pub mode: AuthMode,
    /// How the ping asks for them, where it differs from the repositories: usually not at all.
    pub ping: Option<AuthMode>,
    /// Repositories that ask in a way of their own.
    pub modes: Vec<ModeOf>,
    /// Whoever may not see a repository gets a 404 for it instead of a challenge.
    pub hides: bool,
    /// The users.
    pub users: Vec<User>,
    /// Repositories, or prefixes of whole path segments, from which everybody may pull.
    pub public: Vec<String>,
}

/// How credentials are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// Not at all: everybody may do everything.
    #[default]
    None,
    /// `Authorization: Basic` on every request.
    Basic,
    /// Bearer tokens from `/v2/auth`.
    Bearer,
}

/// How some repositories ask for credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeOf {
    /// A repository, or a prefix of whole path segments.
    pub repositories: String,
    /// How these ask.
    pub mode: AuthMode,
}

/// A user and its rights.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password.
    #[serde(skip_serializing)]
    pub password: String,
    /// Its rights; those of all grants that fit a repository add up.
    #[serde(default)]
    pub grants: Vec<Grant>,
}

/// Rights on all repositories under a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// A repository, or a prefix of whole path segments; empty for all.
    #[serde(default)]
    pub repositories: String,
    /// May read.
    #[serde(default)]
    pub pull: bool,
    /// May write.
    #[serde(default)]
    pub push: bool,
}

/// What may be done to a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) pull: bool,
    pub(super) push: bool,
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The user's name.
    pub(super) user: Option<String>,
    rights: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Everything,
    Nothing,
    Grants(Vec<Grant>),
    Token(Arc<Issued>),
}

/// A token that was issued.
#[derive(Debug)]
struct Issued {
    user: Option<String>,
    access: Vec<Access>,
    ends: Instant,
}

/// What a token grants on one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Access {
    #[serde(rename = "type")]
    kind: String,
    pub(super) name: String,
    pub(super) actions: Vec<String>,
}

/// A credential that is wrong or outdated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejected;

/// Users and the tokens they were given.
#[derive(Debug, Default)]
pub(super) struct Authority {
    auth: RwLock<Auth>,
    tokens: Mutex<HashMap<String, Arc<Issued>>>,
}

// === impl Auth ===

impl Auth {
    /// This mode, without users.
    #[must_use]
    pub fn new(mode: AuthMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Adds a user.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// Lets everybody pull from a repository, or from all under a prefix of whole path segments.
    #[must_use]
    pub fn public(mut self, repositories: &str) -> Self {
        self.public.push(repositories.to_owned());
        self
    }

    /// The ping asks in this way, whatever the repositories do.
    #[must_use]
    pub fn ping(mut self, mode: AuthMode) -> Self {
        self.ping = Some(mode);
        self
    }

    /// A repository, or all under a prefix of whole path segments, asks in this way.
    #[must_use]
    pub fn mode_of(mut self, repositories: &str, mode: AuthMode) -> Self {
        self.modes.push(ModeOf {
            repositories: repositories.to_owned(),
            mode,
        });
        self
    }

    /// Answers 404 instead of a challenge where the caller may not see a repository.
    #[must_use]
    pub fn hiding(mut self) -> Self {
        self.hides = true;
        self
    }

    /// How a repository asks; the ping, where none is named.
    fn mode_at(&self, repository: &str) -> AuthMode {
        if repository.is_empty() {
            return self.ping.unwrap_or(self.mode);
        }
        let own = self
            .modes
            .iter()
            .find(|own| covers(&own.repositories, repository));
        own.map_or(self.mode, |own| own.mode)
    }

    /// Whether anything asks in this way.
    fn asks_by(&self, mode: AuthMode) -> bool {
        let own = self.modes.iter().map(|own| own.mode);
        own.chain([self.mode])
            .chain(self.ping)
            .any(|used| used == mode)
    }

    fn known(&self, name: &str, password: &str) -> Option<&User> {
        self.users
            .iter()
            .find(|user| user.name == name && user.password == password)
    }

    fn is_public(&self, repository: &str) -> bool {
        self.public.iter().any(|prefix| covers(prefix, repository))
    }
}

impl User {
    /// A user without any right.
    #[must_use]
    pub fn new(name: &str, password: &str) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
            grants: Vec::new(),
        }
    }

    /// May read there.
    #[must_use]
    pub fn pull(mut self, repositories: &str) -> Self {
        self.grants.push(Grant {
            repositories: repositories.to_owned(),
            pull: true,
            push: false,
        });
        self
    }

    /// May read and write there.
    #[must_use]
    pub fn push(mut self, repositories: &str) -> Self {
        self.grants.push(Grant {
            repositories: repositories.to_owned(),
            pull: true,
            push: true,
        });
        self
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("grants", &self.grants)
            .finish_non_exhaustive()
    }
}

fn covers(prefix: &str, repository: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    prefix.is_empty()
        || repository
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn rights_of(grants: &[Grant], repository: &str) -> Rights {
    let fitting = grants
        .iter()
        .filter(|grant| covers(&grant.repositories, repository));
    fitting.fold(Rights::default(), |rights, grant| Rights {
        pull: rights.pull || grant.pull,
        push: rights.push || grant.push,
    })
}

// === impl Caller ===

impl Caller {
    pub(super) fn anonymous() -> Self {
        Self {
            user: None,
            rights: Source::Nothing,
        }
    }

    /// Whether it showed a credential that holds.
    pub(super) fn is_authenticated(&self) -> bool {
        !matches!(self.rights, Source::Nothing)
    }

    fn rights(&self, repository: &str) -> Rights {
        match &self.rights {
            Source::Everything => Rights {
                pull: true,
                push: true,
            },
            Source::Nothing => Rights::default(),
            Source::Grants(grants) => rights_of(grants, repository),
            Source::Token(issued) => {
                let fitting = issued
                    .access
                    .iter()
                    .filter(|access| access.name == repository);
                fitting.fold(Rights::default(), |rights, access| Rights {
                    pull: rights.pull || access.actions.iter().any(|action| action == "pull"),
                    push: rights.push || access.actions.iter().any(|action| action == "push"),
                })
            }
        }
    }
}

// === impl Authority ===

impl Authority {
    pub(super) fn new(auth: Auth) -> Self {
        Self {
            auth: RwLock::new(auth),
            tokens: Mutex::default(),
        }
    }

    pub(super) fn set(&self, auth: Auth) {
        *self.auth.write() = auth;
    }

    /// How a repository asks for credentials; the ping, where none is named.
    pub(super) fn mode(&self, repository: &str) -> AuthMode {
        self.read(|auth| auth.mode_at(repository))
    }

    pub(super) fn has_tokens(&self) -> bool {
        self.read(|auth| auth.asks_by(AuthMode::Bearer))
    }

    pub(super) fn hides(&self) -> bool {
        self.read(|auth| auth.hides)
    }

    /// Makes every token that was issued invalid.
    pub(super) fn revoke(&self) {
        self.tokens.lock().clear();
    }

    /// Who a request on a repository comes from, or a ping, where none is named.
    pub(super) fn caller(
        &self,
        repository: &str,
        authorization: Option<&str>,
        now: Instant,
    ) -> Result<Caller, Rejected> {
        match (self.mode(repository), authorization) {
            (AuthMode::None, header) => Ok(Caller {
                // For the log only.
                user: header.and_then(basic).map(|(name, _)| name),
                rights: Source::Everything,
            }),
            (_, None) => Ok(Caller::anonymous()),
            (AuthMode::Basic, Some(header)) => self.basic_caller(header),
            (AuthMode::Bearer, Some(header)) => {
                let token = header
                    .split_once(' ')
                    .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
                let token = token.ok_or(Rejected)?.1.trim();
                let issued = self.tokens.lock().get(token).cloned().ok_or(Rejected)?;
                if issued.ends <= now {
                    return Err(Rejected);
                }
                Ok(Caller {
                    user: issued.user.clone(),
                    rights: Source::Token(issued),
                })
            }
        }
    }

    /// Who a request at the token endpoint comes from.
    pub(super) fn applicant(&self, authorization: Option<&str>) -> Result<Caller, Rejected> {
        match authorization {
            Some(header) => self.basic_caller(header),
            None => Ok(Caller::anonymous()),
        }
    }

    /// What a caller may do to a repository. `public` is whether the repository itself was made public.
    pub(super) fn rights(&self, caller: &Caller, repository: &str, public: bool) -> Rights {
        let mut rights = caller.rights(repository);
        rights.pull = rights.pull || public || self.read(|auth| auth.is_public(repository));
        rights
    }

    /// Of the requested scopes, what the caller has. Asking for more is no error, as on quay.
    pub(super) fn narrow(
        &self,
        caller: &Caller,
        scopes: &[String],
        public: impl Fn(&str) -> bool,
    ) -> Vec<Access> {
        let asked = scopes.iter().flat_map(|scope| scope.split_whitespace());
        asked
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let rights = self.rights(caller, name, public(name));
                let granted = actions.split(',').filter(|action| match *action {
                    "pull" => rights.pull,
                    "push" => rights.push,
                    _ => false,
                });
                Some(Access {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    actions: granted.map(str::to_owned).collect(),
                })
            })
            .filter(|access| access.kind == "repository")
            .collect()
    }

    /// A token for this access: three parts, its rights and its end in the second.
    pub(super) fn issue(
        &self,
        caller: &Caller,
        access: Vec<Access>,
        host: &str,
        life: Duration,
    ) -> String {
        let since = jiff::Timestamp::now().as_second();
        let ends = since.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        let header = json!({"alg": "none", "typ": "JWT"}).to_string();
        let payload = json!({
            "iss": "quay", "aud": host, "sub": caller.user.as_deref().unwrap_or("(anonymous)"),
            "iat": since, "nbf": since, "exp": ends, "access": access,
        });
        let signature = rand::random::<[u8; 32]>();
        let token = format!(
            "{}.{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload.to_string()),
            URL_SAFE_NO_PAD.encode(signature),
        );
        let now = Instant::now();
        let issued = Arc::new(Issued {
            user: caller.user.clone(),
            access,
            ends: now.checked_add(life).unwrap_or(now),
        });
        let mut tokens = self.tokens.lock();
        if tokens.len() >= TOKENS {
            tokens.retain(|_, issued| issued.ends > now);
        }
        if tokens.len() >= TOKENS {
            // All valid: better a refused client than a map that grows.
            tokens.clear();
        }
        tokens.insert(token.clone(), issued);
        token
    }

    fn basic_caller(&self, header: &str) -> Result<Caller, Rejected> {
        let (name, password) = basic(header).ok_or(Rejected)?;
        self.read(|auth| {
            let user = auth.known(&name, &password).ok_or(Rejected)?;
            Ok(Caller {
                user: Some(user.name.clone()),
                rights: Source::Grants(user.grants.clone()),
            })
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Auth) -> T) -> T {
        look(&self.auth.read())
    }
}

/// User and password of a Basic header.
fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, rest) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn authority() -> Authority {
        let bot = User::new("bot", "secret")
            .push("openshift/ci")
            .pull("openshift");
        Authority::new(Auth::new(AuthMode::Bearer).user(bot).public("open"))
    }

    fn basic_header(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    fn granted(caller: &Caller, scope: &str) -> Vec<String> {
        authority().narrow(caller, &[scope.to_owned()], |_| false)[0]
            .actions
            .clone()
    }

    #[test]
    fn prefixes_end_at_path_segments() {
        assert!(covers("openshift/ci", "openshift/ci"));
        assert!(covers("openshift/ci", "openshift/ci/sub"));
        assert!(!covers("openshift/ci", "openshift/cinema"));
        assert!(covers("", "anything"));
    }

    #[test]
    fn scopes_are_narrowed_to_what_the_user_has() {
        let bot = authority()
            .applicant(Some(&basic_header("bot:secret")))
            .unwrap();
        assert_eq!(
            granted(&bot, "repository:openshift/ci:pull,push"),
            ["pull", "push"]
        );
        assert_eq!(granted(&bot, "repository:openshift/x:pull,push"), ["pull"]);
        assert!(granted(&bot, "repository:other:push").is_empty());
        assert_eq!(
            granted(&Caller::anonymous(), "repository:open/x:pull,push"),
            ["pull"]
        );
    }

    #[test]
    fn a_wrong_password_and_an_outdated_token_are_rejected() {
        let authority = authority();
        assert!(
            authority
                .applicant(Some(&basic_header("bot:wrong")))
                .is_err()
        );
        let bot = authority
            .applicant(Some(&basic_header("bot:secret")))
            .unwrap();
        let token = authority.issue(&bot, Vec::new(), "h", Duration::from_mins(1));
        let header = format!("Bearer {token}");
        let now = Instant::now();
        assert_eq!(
            authority
                .caller("a", Some(&header), now)
                .unwrap()
                .user
                .unwrap(),
            "bot"
        );
        let later = now + Duration::from_secs(61);
        assert!(authority.caller("a", Some(&header), later).is_err());
        authority.revoke();
        assert!(authority.caller("a", Some(&header), now).is_err());
    }

    #[test]
    fn debug_output_has_no_password() {
        let text = format!("{:?}", authority());
        assert!(text.contains("bot") && !text.contains("secret"), "{text}");
    }
}
