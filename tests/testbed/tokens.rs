//! A token server for registries: who may do what, and who asked for what.
//!
//! Enters: users with passwords and grants; requests by the Docker token protocol (`GET` with Basic
//! credentials or none, any number of `scope` parameters). Leaves: JWTs signed with Ed25519. Guaranteed: a
//! wrong password is a 401; rights that are not granted are left out of the token and the answer is still a
//! 200, as quay does; every request is recorded. It runs on its own thread and outlives a test's runtime.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Error;
use super::net::locked;

/// `iss` of the tokens, as the registry is told.
pub(super) const ISSUER: &str = "testbed-issuer";
/// `service` of the challenge and `aud` of the tokens.
pub(super) const SERVICE: &str = "testbed-registry";
const KEY_ID: &str = "testbed";

/// Something an account may do in a repository. Distribution asks for `delete` where quay is content with
/// `push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Reads.
    Pull,
    /// Writes.
    Push,
    /// Deletes tags and manifests.
    Delete,
}

impl Right {
    fn action(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// Rights in the repositories a pattern names.
#[derive(Debug, Clone)]
pub struct Grant {
    repositories: String,
    rights: Vec<Right>,
}

impl Grant {
    /// `repositories` is a name, or the beginning of names followed by `*`.
    pub fn new(repositories: &str, rights: &[Right]) -> Self {
        Self {
            repositories: repositories.to_owned(),
            rights: rights.to_vec(),
        }
    }

    /// May read.
    pub fn read(repositories: &str) -> Self {
        Self::new(repositories, &[Right::Pull])
    }

    /// May read, write and delete.
    pub fn write(repositories: &str) -> Self {
        Self::new(repositories, &[Right::Pull, Right::Push, Right::Delete])
    }

    fn gives(&self, repository: &str, action: &str) -> bool {
        let named = match self.repositories.strip_suffix('*') {
            Some(beginning) => repository.starts_with(beginning),
            None => repository == self.repositories,
        };
        named && self.rights.iter().any(|right| right.action() == action)
    }
}

/// A request the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The name in the Basic credentials, also when the password was wrong.
    pub user: Option<String>,
    /// The scopes asked for, as written (`repository:team/app:pull,push`), one per scope.
    pub scopes: Vec<String>,
    /// The scopes granted, without those that were reduced to nothing.
    pub granted: Vec<String>,
    /// 200 or 401.
    pub status: u16,
}

#[derive(Debug)]
struct Account {
    password: String,
    grants: Vec<Grant>,
}

#[derive(Debug)]
struct Book {
    users: BTreeMap<String, Account>,
    anonymous: Vec<Grant>,
    lifetime: Duration,
    requests: Vec<IssuedToken>,
}

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub struct TokenServer {
    port: u16,
    jwks: Value,
    book: Arc<Mutex<Book>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TokenServer {
    /// Starts a server that knows nobody. Its tokens last an hour, as quay's do.
    pub fn start() -> Result<Self, Error> {
        let bound = || -> std::io::Result<(TcpListener, u16)> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        let here = std::path::Path::new("127.0.0.1:0");
        let (listener, port) = bound().map_err(Error::file("listen on", here))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::file("make a runtime for", here))?;

        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let jwks = json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": KEY_ID,
            "x": URL_SAFE_NO_PAD.encode(key.der_bytes()),
        }]});
        let book = Arc::new(Mutex::new(Book {
            users: BTreeMap::new(),
            anonymous: Vec::new(),
            lifetime: Duration::from_hours(1),
            requests: Vec::new(),
        }));
        let desk = Desk {
            key: Arc::new(key),
            book: Arc::clone(&book),
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return;
                };
                let router = Router::new().route("/token", get(answer)).with_state(desk);
                // Without waiting for idle connections of clients that are never going to close them.
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self {
            port,
            jwks,
            book,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// The address registries send clients to.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// The key set registries verify tokens with.
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// Adds an account, or replaces its password and grants from now on.
    pub fn set_user(&self, name: &str, password: &str, grants: &[Grant]) {
        let account = Account {
            password: password.to_owned(),
            grants: grants.to_vec(),
        };
        locked(&self.book).users.insert(name.to_owned(), account);
    }

    /// Removes an account; tokens it holds stay good until they expire.
    pub fn remove_user(&self, name: &str) {
        locked(&self.book).users.remove(name);
    }

    /// What requests without credentials are granted.
    pub fn set_anonymous(&self, grants: &[Grant]) {
        locked(&self.book).anonymous = grants.to_vec();
    }

    /// How long tokens issued from now on last. Distribution accepts them for a further 60 s.
    pub fn set_lifetime(&self, lifetime: Duration) {
        locked(&self.book).lifetime = lifetime;
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<IssuedToken> {
        locked(&self.book).requests.clone()
    }

    /// How many requests of `user` (`None`: without credentials) named `scope`.
    pub fn count(&self, user: Option<&str>, scope: &str) -> usize {
        locked(&self.book)
            .requests
            .iter()
            .filter(|request| request.user.as_deref() == user)
            .filter(|request| request.scopes.iter().any(|asked| asked == scope))
            .count()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Desk {
    key: Arc<KeyPair>,
    book: Arc<Mutex<Book>>,
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

async fn answer(State(desk): State<Desk>, headers: HeaderMap, uri: Uri) -> Answer {
    let scopes: Vec<String> = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes())
        .filter(|(name, _)| name == "scope")
        .flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<String>>())
        .filter(|scope| !scope.is_empty())
        .collect();
    let credentials = basic_credentials(&headers);

    let mut book = locked(&desk.book);
    let user = credentials.as_ref().map(|(user, _)| user.clone());
    let grants = match &credentials {
        None => Some(book.anonymous.clone()),
        Some((user, password)) => book
            .users
            .get(user)
            .filter(|account| account.password == *password)
            .map(|account| account.grants.clone()),
    };
    let Some(grants) = grants else {
        book.requests.push(IssuedToken {
            user,
            scopes,
            granted: Vec::new(),
            status: 401,
        });
        let body = json!({ "errors": [{
            "code": "UNAUTHORIZED", "message": "Invalid Username or Password",
        }]});
        return json_answer(StatusCode::UNAUTHORIZED, &body);
    };

    let access: Vec<(String, Vec<String>)> = scopes
        .iter()
        .filter_map(|scope| granted(scope, &grants))
        .collect();
    let token = sign(&desk.key, user.as_deref(), &access, book.lifetime);
    book.requests.push(IssuedToken {
        user,
        scopes,
        granted: access
            .iter()
            .map(|(repository, actions)| format!("repository:{repository}:{}", actions.join(",")))
            .collect(),
        status: 200,
    });
    match token {
        Ok(token) => json_answer(StatusCode::OK, &json!({ "token": token })),
        Err(error) => json_answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            &json!({ "errors": [{ "code": "UNKNOWN", "message": error.to_string() }] }),
        ),
    }
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, body.to_string())
}

/// User and password; `None` without an `Authorization` header. One that cannot be read names nobody.
fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let header = headers.get(header::AUTHORIZATION)?;
    let decoded = header
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Basic "))
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    Some(pair.map_or_else(Default::default, |(user, password)| {
        (user.to_owned(), password.to_owned())
    }))
}

/// The repository and the actions of `scope` that `grants` give, unless that is none.
fn granted(scope: &str, grants: &[Grant]) -> Option<(String, Vec<String>)> {
    let (repository, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    let actions: Vec<String> = actions
        .split(',')
        .filter(|action| grants.iter().any(|grant| grant.gives(repository, action)))
        .map(str::to_owned)
        .collect();
    (!actions.is_empty()).then(|| (repository.to_owned(), actions))
}

/// A JWT (RFC 7519) with the `access` claim of the registry token specification.
fn sign(
    key: &KeyPair,
    user: Option<&str>,
    access: &[(String, Vec<String>)],
    lifetime: Duration,
) -> Result<String, rcgen::Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let access: Vec<Value> = access
        .iter()
        .map(|(name, actions)| json!({ "type": "repository", "name": name, "actions": actions }))
        .collect();
    let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": KEY_ID });
    let claims = json!({
        "iss": ISSUER,
        "sub": user.unwrap_or(""),
        "aud": SERVICE,
        "iat": now.as_secs(),
        "nbf": now.as_secs(),
        "exp": (now + lifetime).as_secs(),
        "jti": uuid::Uuid::new_v4().to_string(),
        "access": access,
    });
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = key.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
