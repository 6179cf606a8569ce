//! The state file: what is recorded of the requests of a file, between and during runs.
//!
//! Guaranteed: one process at a time has it; at every instant it is one whole state, the newest that was saved or the one
//! before, also after a crash of the machine. Its last line is a digest of all others: what was cut off or changed since it was
//! written is not taken for a state, because it may lack what a later step relies on.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::documents::read_text;
use super::error::FileError;
use crate::api::{ImageStatus, PromotionRequest, PromotionRequestStatus};
use crate::image::Digest;
use crate::machine::Phase;
use crate::store::Key;

const KIND: &str = "PromotionState";
/// How its last line begins.
const SEAL: &str = "# whole as written: ";
/// What is recorded is nobody else's to read: messages of registries, and names.
const PRIVATE: u32 = 0o600;
const WRITABLE: &str = "make its folder writable, or name another --state";
/// How often a holder without a name is given 10 ms: to write it down, where it has just locked the file, or to let go of it. Who erased
/// its name has; a process that it is about to start has the lock as well until then.
const INTRODUCTIONS: usize = 50;

/// What a state file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateFile {
    /// What this file is, for people who open it.
    kind: String,
    /// When something was recorded last: after the answer to every tag write that it speaks of.
    pub saved_at: Option<Timestamp>,
    /// Each request's state, in the order of the documents.
    pub requests: Vec<SavedRequest>,
}

/// What is recorded of one request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedRequest {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    pub spec_hash: String,
    pub status: PromotionRequestStatus,
}

/// A state file that this process alone uses, as long as this value lives.
#[derive(Debug)]
pub(super) struct StatePath {
    path: PathBuf,
    lock: File,
}

// === impl StateFile ===

impl StateFile {
    pub fn new(saved_at: Option<Timestamp>, requests: Vec<SavedRequest>) -> Self {
        Self {
            kind: KIND.into(),
            saved_at,
            requests,
        }
    }

    /// How long to wait before anything is launched: a write of the earlier run may be on the wire (then `late` from now), may have
    /// been given up without an answer (then as long as is recorded), or be younger than `settle` (then from when the state was
    /// saved, which is after its answer).
    pub fn quiet(&self, settle: Duration, late: Duration) -> Duration {
        let images = || self.requests.iter().flat_map(|e| &e.status.images);
        if images().any(may_be_writing) {
            return late;
        }
        let until = images().filter_map(|image| image.late_until.as_ref()).max();
        let given_up = until.map(|until| Timestamp::now().duration_until(until.0));
        // What a clock that went back makes longer is bounded by what it was recorded with.
        let given_up = given_up.and_then(|left| Duration::try_from(left).ok());
        self.young(settle)
            .max(given_up.unwrap_or_default().min(late))
    }

    fn young(&self, settle: Duration) -> Duration {
        let images = || self.requests.iter().flat_map(|e| &e.status.images);
        let Some(saved_at) = self.saved_at.filter(|_| images().any(may_have_written)) else {
            return Duration::ZERO;
        };
        // A clock that went back makes no write older.
        let age = Duration::try_from(saved_at.duration_until(Timestamp::now()));
        settle.saturating_sub(age.unwrap_or_default())
    }
}

/// A step that writes was launched, and what became of it is not recorded. The first step, Resolve, only reads. An image whose float
/// is being taken back has ended before.
fn may_be_writing(image: &ImageStatus) -> bool {
    let finished = Phase::parse(&image.phase).is_some_and(Phase::is_finished);
    let taken_back = image.rollback_tag.is_some();
    (!finished || taken_back) && image.source.is_some() && image.attempts.unwrap_or_default() > 0
}

/// A step that writes may have ended.
fn may_have_written(image: &ImageStatus) -> bool {
    let planned = Phase::parse(&image.phase).is_some_and(Phase::is_planned);
    image.source.is_some() && !image.unchanged.unwrap_or_default() && !planned
}

// === impl SavedRequest ===

impl SavedRequest {
    /// `spec_hash`: that of its spec.
    pub fn of(object: &PromotionRequest, spec_hash: String) -> Self {
        let Key { namespace, name } = Key::from(object);
        Self {
            namespace,
            name,
            spec_hash,
            status: object.status.clone().unwrap_or_default(),
        }
    }

    pub fn key(&self) -> Key {
        Key {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// A hash of what cannot change in a spec.
pub(super) fn spec_hash(object: &PromotionRequest) -> String {
    let mut spec = object.spec.clone();
    (spec.suspend, spec.cancel, spec.ttl_seconds_after_finished) = (false, false, 0);
    // They are removed one by one.
    spec.gates.clear();
    let text = serde_json::to_vec(&spec).unwrap_or_default();
    Digest::of(&text).to_string()
}

// === impl StatePath ===

impl StatePath {
    /// Takes the state file at `path`, which need not be there yet, for this process.
    ///
    /// # Errors
    /// Another process has it, or the path cannot hold a state.
    pub fn take(path: &Path) -> Result<Self, FileError> {
        let path = resolved(path)?;
        let lock = lock(&path)?;
        Ok(Self { path, lock })
    }

    /// Where it is, with links followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces what it holds: written beside it, fsynced, renamed, and the folder fsynced too.
    pub fn replace(&self, state: &StateFile) -> Result<(), FileError> {
        let io = |source| FileError::Io {
            verb: "write",
            path: self.path.clone(),
            source,
            remedy: WRITABLE,
        };
        let text = text_of(state).map_err(|error| io(std::io::Error::other(error)))?;
        // Always the same name, so that crashes leave one file and not many; the lock makes it ours.
        let next = beside(&self.path, ".next");
        match fs::remove_file(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&next)
            .map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&next, &self.path).map_err(io)?;
        File::open(folder_of(&self.path))
            .and_then(|folder| folder.sync_all())
            .map_err(io)
    }
}

impl Drop for StatePath {
    fn drop(&mut self) {
        // The holder is erased; the lock itself ends with the file.
        let _ = self.lock.set_len(0);
    }
}

/// What the state file at `path` holds; nothing where it is not there, or empty.
pub(super) fn read(path: &Path) -> Result<StateFile, FileError> {
    let text = match read_text(path, "make it readable, or name another --state") {
        Err(FileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Ok(StateFile::default());
        }
        text => text?,
    };
    if text.is_empty() {
        return Ok(StateFile::default());
    }
    let odd = |message: String| FileError::State {
        path: path.into(),
        message,
    };
    let value = parse(&text).map_err(|e| odd(format!("is not a state file ({e})")))?;
    let kind = value.get("kind").and_then(|kind| kind.as_str());
    if kind != Some(KIND) {
        let kind = kind.unwrap_or_default();
        return Err(odd(format!(
            "is not a state file (kind is '{kind}', not {KIND})"
        )));
    }
    if !is_whole(&text) {
        return Err(odd("state file is truncated or modified".into()));
    }
    serde_json::from_value(value).map_err(|e| odd(format!("is not a state file ({e})")))
}

fn text_of(state: &StateFile) -> Result<String, String> {
    let text = serde_saphyr::to_string(state).map_err(|e| e.to_string())?;
    Ok(format!("{text}{SEAL}{}\n", Digest::of(text.as_bytes())))
}

/// Whether this is all that [`text_of`] wrote.
fn is_whole(text: &str) -> bool {
    let written = text.rsplit_once(SEAL);
    written.is_some_and(|(text, seal)| seal == format!("{}\n", Digest::of(text.as_bytes())))
}

/// Reads what [`text_of`] wrote, however large it became: the size of the file is bounded already.
fn parse(text: &str) -> Result<serde_json::Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: usize::MAX,
            max_events: usize::MAX,
        },
        // There are none in it.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 0 },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The file that a path leads to, so that it is one file for everybody, and a link to it stays a link.
fn resolved(path: &Path) -> Result<PathBuf, FileError> {
    let io = |source| FileError::Io {
        verb: "use",
        path: path.into(),
        source,
        remedy: "name another --state",
    };
    let odd = |message: &str| {
        Err(FileError::Parse {
            path: path.into(),
            message: format!("{message}; name another --state"),
        })
    };
    match fs::canonicalize(path) {
        Ok(path) if fs::metadata(&path).map_err(io)?.is_file() => Ok(path),
        Ok(_) => odd("is no regular file"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                return odd("is a link to nothing");
            }
            match path.file_name() {
                Some(name) => Ok(fs::canonicalize(folder_of(path)).map_err(io)?.join(name)),
                None => odd("is no file"),
            }
        }
        Err(error) => Err(io(error)),
    }
}

fn lock(state: &Path) -> Result<File, FileError> {
    let path = beside(state, ".lock");
    let io = |source| FileError::Io {
        verb: "lock",
        path: path.clone(),
        source,
        remedy: WRITABLE,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        // Whoever may write this folder must not have another file of ours emptied, nor have us wait at a pipe.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(&path)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => strange(&path, "is a link"),
            _ => io(error),
        })?;
    let found = file.metadata().map_err(io)?;
    if !found.is_file() {
        return Err(strange(&path, "is not a regular file"));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(strange(&path, "belongs to another user"));
    }
    if found.nlink() != 1 {
        return Err(strange(&path, "is another file too (a hard link)"));
    }
    for _ in 0..INTRODUCTIONS {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(io)?;
                let (process, now) = (std::process::id(), Timestamp::now());
                write!(file, "process {process}, since {now:.0}").map_err(io)?;
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        if let Some(holder) = holder(&mut file) {
            return Err(locked(state, holder));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(locked(state, "another process".into()))
}

fn locked(state: &Path, holder: String) -> FileError {
    FileError::Locked {
        path: state.into(),
        holder,
    }
}

/// What occupies the lock's path and is not ours.
fn strange(path: &Path, message: &str) -> FileError {
    FileError::Parse {
        path: path.into(),
        message: format!("{message}; remove it, or name another --state"),
    }
}

/// Who has locked a file, as that one wrote down.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(200).read_to_string(&mut text));
    read.is_ok_and(|length| length > 0).then_some(text)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(name: &str, phase: &str, attempts: i32) -> SavedRequest {
        let image = serde_json::json!({
            "float": "quay.io/a/b:c", "phase": phase, "attempts": attempts,
            "source": {"digest": Digest::of(b"x").to_string()},
        });
        SavedRequest {
            namespace: String::new(),
            name: name.into(),
            spec_hash: String::new(),
            status: serde_json::from_value(serde_json::json!({"images": [image]})).unwrap(),
        }
    }

    fn seconds_ago(seconds: i64) -> Timestamp {
        Timestamp::now() - jiff::SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_lock_whose_holder_has_erased_its_name_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let former = StatePath::take(&path).unwrap();
        // As a process has it that was forked and is not another program yet.
        let forked = former.lock.try_clone().unwrap();
        assert!(matches!(
            StatePath::take(&path),
            Err(FileError::Locked { .. })
        ));
        drop(former);
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(forked);
        });
        assert!(StatePath::take(&path).is_ok());
        ends.join().unwrap();
    }

    const SETTLE: Duration = Duration::from_secs(10);
    const LATE: Duration = Duration::from_secs(30);

    #[test]
    fn a_write_without_an_answer_is_waited_for_from_now_and_an_answered_one_from_its_record() {
        let quiet = |at, entry| StateFile::new(Some(at), vec![entry]).quiet(SETTLE, LATE);
        assert_eq!(quiet(seconds_ago(3600), entry("a", "Incoming", 1)), LATE);
        assert_eq!(
            quiet(seconds_ago(3600), entry("a", "Incoming", 0)),
            Duration::ZERO
        );
        let left = quiet(seconds_ago(4), entry("a", "Posted", 0));
        assert!(
            left > Duration::from_secs(1) && left <= Duration::from_secs(6),
            "{left:?}"
        );
        assert_eq!(quiet(seconds_ago(-30), entry("a", "Posted", 0)), SETTLE);
        let mut taken_back = entry("a", "Posted", 1);
        taken_back.status.images[0].rollback_tag = Some("20260101000000_prune_c".into());
        assert_eq!(quiet(seconds_ago(3600), taken_back), LATE);
    }

    /// A wait takes its attempt back, so that only this shows that a write may land.
    #[test]
    fn a_write_that_was_given_up_is_waited_for_as_long_as_is_recorded() {
        let late = |seconds: i64| {
            let mut entry = entry("a", "Posted", 0);
            let until = Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
            let until = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(until);
            entry.status.images[0].late_until = Some(until);
            StateFile::new(Some(seconds_ago(12)), vec![entry]).quiet(SETTLE, LATE)
        };
        assert_eq!(late(-1), Duration::ZERO);
        let left = late(18);
        assert!(
            left > Duration::from_secs(13) && left <= Duration::from_secs(18),
            "{left:?}"
        );
        assert_eq!(late(3600), LATE);
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_can_have_been_written() {
        let quiet = |entry| StateFile::new(Some(seconds_ago(0)), vec![entry]).quiet(SETTLE, LATE);
        assert_eq!(quiet(entry("a", "Planned", 0)), Duration::ZERO);
        let mut resolving = entry("a", "Pending", 1);
        resolving.status.images[0].source = None;
        assert_eq!(quiet(resolving), Duration::ZERO);
        let mut unchanged = entry("a", "Posted", 0);
        unchanged.status.images[0].unchanged = Some(true);
        assert_eq!(quiet(unchanged), Duration::ZERO);
        assert_eq!(StateFile::default().quiet(SETTLE, LATE), Duration::ZERO);
    }

    #[test]
    fn whatever_text_a_registry_sent_is_read_back_as_it_was_saved() {
        let long = "word ".repeat(200);
        let texts = [
            "",
            " ",
            "a: b",
            "- a",
            "# a",
            "a #b",
            "'",
            "\"",
            "\\",
            "~",
            "null",
            "true",
            "no",
            "0755",
            "0x1F",
            "1_000",
            "1e3",
            ".inf",
            "2026-11-23",
            "2026-11-23T00:00:00Z",
            "12:30:45",
            "|",
            ">",
            "%",
            "@",
            "`",
            "&a",
            "*a",
            "!a",
            "{",
            "[",
            "---",
            "...",
            "a\nb",
            "a\n",
            "\na",
            "a\r\nb",
            "\t",
            "a\tb",
            "\u{0}",
            "\u{1b}[31m",
            "\u{7f}",
            "\u{85}",
            "\u{a0}",
            "\u{2028}",
            "\u{feff}",
            "é…",
            "😀",
            " a",
            "a ",
            "? a",
            ": a",
            "=",
            "<<",
            "a:",
            "-",
            "+1",
            "1.",
            "-0",
            long.as_str(),
        ];
        for text in texts {
            let mut entry = entry(text, "Failed", 0);
            entry.status.images[0].message = Some(text.into());
            let state = StateFile::new(Some(seconds_ago(0)), vec![entry]);
            let written = text_of(&state).unwrap();
            let back: StateFile = serde_json::from_value(parse(&written).unwrap()).unwrap();
            assert_eq!(back.requests[0].name, text, "{written}");
            assert_eq!(
                back.requests[0].status, state.requests[0].status,
                "{written}"
            );
        }
    }

    #[test]
    fn a_state_of_many_large_requests_is_read_back() {
        let mut big = entry("big", "Posted", 0);
        big.status.images = vec![big.status.images[0].clone(); 256];
        let state = StateFile::new(Some(seconds_ago(0)), vec![big; 120]);
        let back: StateFile =
            serde_json::from_value(parse(&text_of(&state).unwrap()).unwrap()).unwrap();
        assert_eq!(back.requests.len(), 120);
    }

    #[test]
    fn a_link_stays_a_link_and_what_is_no_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let place = StatePath::take(&link).unwrap();
        let other = StatePath::take(&file).unwrap_err().to_string();
        let me = format!("process {}", std::process::id());
        assert!(
            other.contains("in use by") && other.contains(&me),
            "{other}"
        );
        place
            .replace(&StateFile::new(None, vec![entry("a", "Posted", 0)]))
            .unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        drop(place);
        assert_eq!(read(&file).unwrap().requests[0].name, "a");
        for odd in ["/dev/null", "/", "/nowhere/at/all"] {
            let error = StatePath::take(Path::new(odd)).unwrap_err().to_string();
            assert!(
                error.contains(odd) && error.contains("name another --state"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_lock_that_is_a_link_or_not_of_ones_own_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (state, lock, precious) = (at("a.yaml"), at("a.yaml.lock"), at("precious"));
        fs::write(&precious, "precious").unwrap();
        let refused = |why: &str| {
            let error = StatePath::take(&state).unwrap_err().to_string();
            assert!(error.contains("a.yaml.lock"), "{error}");
            assert!(error.contains(why) && error.contains("--state"), "{error}");
            assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
            fs::remove_file(&lock).ok();
        };
        std::os::unix::fs::symlink(&precious, &lock).unwrap();
        refused("is a link");
        std::os::unix::fs::symlink(at("nowhere"), &lock).unwrap();
        refused("is a link");
        assert!(!at("nowhere").exists());
        fs::hard_link(&precious, &lock).unwrap();
        refused("is another file too");
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(PRIVATE);
        rustix::fs::mknodat(rustix::fs::CWD, &lock, kind, mode, 0).unwrap();
        refused("is not a regular file");
        fs::create_dir(&lock).unwrap();
        assert!(StatePath::take(&state).is_err());
    }

    #[test]
    fn what_is_recorded_is_nobody_elses_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        fs::write(&path, "").unwrap();
        let place = StatePath::take(&path).unwrap();
        place
            .replace(&StateFile::new(None, vec![entry("a", "Posted", 0)]))
            .unwrap();
        for name in ["a.yaml", "a.yaml.lock"] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_not_read_and_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.state.yaml");
        let place = StatePath::take(&path).unwrap();
        fs::write(folder.path().join("a.state.yaml.next"), "kind: Promo").unwrap();
        assert!(read(place.path()).unwrap().requests.is_empty());
        place
            .replace(&StateFile::new(None, vec![entry("a", "Posted", 0)]))
            .unwrap();
        assert_eq!(read(place.path()).unwrap().requests.len(), 1);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a.state.yaml", "a.state.yaml.lock"]);
    }
}
