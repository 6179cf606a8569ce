//! The two files behind [`ControllerCredentials`], followed while they change.
//!
//! They are read every few seconds, as they come: a mounted `ConfigMap` or Secret changes by a link that is swapped, other files by
//! being written. A change counts once two readings agree, so that a file that is only half written counts for nothing.
//! Guaranteed: a file that cannot be used changes nothing, and is said once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Mutex, Notify};

use super::ControllerCredentials;
use crate::image::Digest;
use crate::policy::{RULES_MAX, Rules};
use crate::registry::Keyring;

/// How often the files are looked at.
pub const FILE_LOOK: Duration = Duration::from_secs(2);
/// How messages name the controller's credentials; where their file lies is nobody else's business.
const ORIGIN: &str = "the controller's --registry-config";

/// The files, and what they say. Clones share both.
#[derive(Debug, Clone)]
pub struct CredentialFiles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: RwLock<Arc<ControllerCredentials>>,
    files: Mutex<Files>,
    changed: Notify,
    unusable: AtomicUsize,
}

#[derive(Debug)]
struct Files {
    policy: Option<File>,
    registry_config: Option<File>,
}

#[derive(Debug)]
struct File {
    flag: &'static str,
    path: PathBuf,
    /// What is in force.
    taken: Option<Digest>,
    /// What it held when it was last taken or refused.
    judged: Seen,
    /// What it held at the last look.
    seen: Seen,
}

/// What a file held, by its digest, so that secrets are not kept twice; or why it cannot be read.
type Seen = Result<Digest, io::ErrorKind>;

impl CredentialFiles {
    /// No files: no credentials, and no rules.
    #[must_use]
    pub fn none() -> Self {
        Self::fixed(Rules::default())
    }

    /// No files, and no credentials: these rules, for ever.
    #[must_use]
    pub fn fixed(rules: Rules) -> Self {
        let credentials = ControllerCredentials {
            rules,
            keyring: Keyring::anonymous(),
        };
        Self::of(credentials, None, None)
    }

    /// Reads the files that are named.
    ///
    /// # Errors
    /// The first one that cannot be used: its flag, what is wrong, and what to do.
    pub async fn read(
        policy: Option<PathBuf>,
        registry_config: Option<PathBuf>,
    ) -> Result<Self, String> {
        let (rules, policy) = match policy {
            Some(path) => {
                let (mut file, bytes) = File::open("--policy", path).await?;
                (file.take(&bytes, rules)?, Some(file))
            }
            None => (Rules::default(), None),
        };
        let (keyring, registry_config) = match registry_config {
            Some(path) => {
                let (mut file, bytes) = File::open("--registry-config", path).await?;
                (file.take(&bytes, keyring)?, Some(file))
            }
            None => (Keyring::anonymous(), None),
        };
        Ok(Self::of(
            ControllerCredentials { rules, keyring },
            policy,
            registry_config,
        ))
    }

    fn of(
        credentials: ControllerCredentials,
        policy: Option<File>,
        registry_config: Option<File>,
    ) -> Self {
        Self(Arc::new(Shared {
            current: RwLock::new(Arc::new(credentials)),
            files: Mutex::new(Files {
                policy,
                registry_config,
            }),
            changed: Notify::new(),
            unusable: AtomicUsize::new(0),
        }))
    }

    /// What they say now.
    #[must_use]
    pub fn now(&self) -> Arc<ControllerCredentials> {
        Arc::clone(&self.0.current.read())
    }

    /// How many of them cannot be used as they are now: what they said before is in force.
    #[must_use]
    pub fn unusable(&self) -> usize {
        self.0.unusable.load(Ordering::Relaxed)
    }

    /// Resolves when what they say has changed since it was last asked.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Follows the files for ever.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(FILE_LOOK).await;
            self.look().await;
        }
    }

    /// Reads the credentials at once: a registry has rejected what was read before. A file that cannot be used is left to the next
    /// looks.
    pub async fn renew(&self) {
        let mut files = self.0.files.lock().await;
        let Some(file) = &mut files.registry_config else {
            return;
        };
        let Ok(bytes) = read(&file.path).await else {
            return;
        };
        let digest = Digest::of(&bytes);
        if file.judged != Ok(digest)
            && file.taken != Some(digest)
            && let Ok(keyring) = file.take(&bytes, keyring)
        {
            self.change(file, |credentials| credentials.keyring = keyring);
        }
    }

    async fn look(&self) {
        let mut files = self.0.files.lock().await;
        let Files {
            policy,
            registry_config,
        } = &mut *files;
        if let Some(file) = policy
            && let Some(rules) = self.settled(file, rules).await
        {
            self.change(file, |credentials| credentials.rules = rules);
        }
        if let Some(file) = registry_config
            && let Some(keyring) = self.settled(file, keyring).await
        {
            self.change(file, |credentials| credentials.keyring = keyring);
        }
        let unusable = [policy, registry_config].into_iter().flatten();
        let unusable = unusable.filter(|file| file.judged.ok() != file.taken);
        self.0.unusable.store(unusable.count(), Ordering::Relaxed);
    }

    /// What a file says, if that is something new, the same in two looks, and can be used.
    async fn settled<T>(
        &self,
        file: &mut File,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Option<T> {
        let bytes = read(&file.path).await;
        let seen = match &bytes {
            Ok(bytes) => Ok(Digest::of(bytes)),
            Err(error) => Err(error.kind()),
        };
        let before = std::mem::replace(&mut file.seen, seen);
        if seen != before || seen == file.judged {
            return None;
        }
        file.judged = seen;
        if seen.ok().is_some_and(|digest| file.taken == Some(digest)) {
            // As it was before it was spoilt.
            return None;
        }
        let taken = match bytes {
            Ok(bytes) => file.take(&bytes, parse),
            Err(error) => Err(file.unreadable(&error)),
        };
        match taken {
            Ok(taken) => Some(taken),
            Err(error) => {
                tracing::error!("{error}; its previous content stays in force");
                None
            }
        }
    }

    fn change(&self, file: &File, change: impl FnOnce(&mut ControllerCredentials)) {
        let mut credentials = ControllerCredentials::clone(&self.now());
        change(&mut credentials);
        tracing::info!(
            rules = credentials.rules.len(),
            "{} changed and is in force",
            file.flag
        );
        *self.0.current.write() = Arc::new(credentials);
        self.0.changed.notify_one();
    }
}

impl File {
    /// A file as it is at the start, and what it holds.
    async fn open(flag: &'static str, path: PathBuf) -> Result<(Self, Vec<u8>), String> {
        let bytes = read(&path).await;
        let mut file = Self {
            flag,
            path,
            taken: None,
            judged: Err(io::ErrorKind::NotFound),
            seen: Err(io::ErrorKind::NotFound),
        };
        let bytes = bytes.map_err(|error| file.unreadable(&error))?;
        file.seen = Ok(Digest::of(&bytes));
        Ok((file, bytes))
    }

    fn take<T>(
        &mut self,
        bytes: &[u8],
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, String> {
        let taken = parse(bytes)
            .map_err(|problem| format!("{}: {}: {problem}", self.flag, self.path.display()))?;
        let digest = Digest::of(bytes);
        self.taken = Some(digest);
        self.judged = Ok(digest);
        Ok(taken)
    }

    fn unreadable(&self, error: &io::Error) -> String {
        let (flag, path) = (self.flag, self.path.display());
        format!("{flag}: cannot read {path}: {error}; name a readable file")
    }
}

fn rules(bytes: &[u8]) -> Result<Rules, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("is not valid UTF-8: {error}; correct it"))?;
    Rules::parse(text).map_err(|error| error.to_string())
}

fn keyring(bytes: &[u8]) -> Result<Keyring, String> {
    if bytes.len() > RULES_MAX {
        return Err("is larger than 1 MiB; remove the entries that are not needed".into());
    }
    let keyring = Keyring::parse(bytes, ORIGIN).map_err(|error| error.to_string())?;
    // A warning is logged at once; the entry that served before stays in force.
    match keyring.fault() {
        Some(error) => Err(error.to_string()),
        None => Ok(keyring),
    }
}

/// What a file holds, and a byte more than can be used where it is larger.
async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(RULES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
