//! Files that somebody names: whole, or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The most that a file of certificates, rules or credentials may hold, in bytes.
pub(crate) const SMALL: usize = 1 << 20;

/// What a file holds, where that is at most `max` bytes: one that never ends is not read for ever.
pub(crate) fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    whole(File::open(path)?, max)
}

/// As [`read`]; `-` is standard input.
pub(crate) fn read_or_stdin(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    if path == Path::new("-") {
        whole(io::stdin().lock(), max)
    } else {
        read(path, max)
    }
}

fn whole(input: impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} MiB", max >> 20),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_for_ever_and_one_of_the_bound_is() {
        let refused = read(Path::new("/dev/zero"), SMALL).unwrap_err();
        assert_eq!(refused.to_string(), "it is larger than 1 MiB");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![b'x'; SMALL]).unwrap();
        assert_eq!(read(&path, SMALL).unwrap().len(), SMALL);
        std::fs::write(&path, vec![b'x'; SMALL + 1]).unwrap();
        assert!(read(&path, SMALL).is_err());
    }
}
