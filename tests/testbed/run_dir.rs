//! Directories for the data of running parts, under `target/testbed/run`.
//!
//! Enters: a name. Leaves: an empty directory that no other process uses. Guaranteed: it is removed when the
//! value is dropped, and when the test binary ended without dropping it (statics, `SIGKILL`), by the next one
//! that starts: a held file lock tells live directories from left ones.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::Error;

/// A directory that lives as long as this value.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _alive: File,
}

impl RunDir {
    /// Makes a directory whose name begins with `name`, and removes what dead processes left.
    pub fn create(name: &str) -> Result<Self, Error> {
        let root = target().join("run");
        fs::create_dir_all(&root).map_err(Error::file("create", &root))?;
        let _turn = lock(&root.join(".lock"))?;
        sweep(&root)?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let path = root.join(format!("{name}-{}-{}", std::process::id(), &unique[..8]));
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        let alive = lock(&path.join(".lock"))?;
        Ok(Self {
            path,
            _alive: alive,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file, readable by its owner alone, and returns its path.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf, Error> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;

        let path = self.join(name);
        File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .map_err(Error::file("write", &path))?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next test binary.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The testbed's place under the package's `target`.
pub(super) fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbed")
}

/// Opens and locks `path`, waiting for its turn; the lock ends with the returned file.
pub(super) fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    file.lock().map_err(Error::file("lock", path))?;
    Ok(file)
}

/// Removes the directories whose process is gone. The caller holds the root's lock, without which a directory
/// just made and not yet locked would be taken for a left one.
fn sweep(root: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(root)
        .map_err(Error::file("read", root))?
        .flatten()
    {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        let alive = match File::open(path.join(".lock")) {
            Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        };
        if !alive {
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
