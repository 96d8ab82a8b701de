//! Opening and reading what a user names: regular files, and nothing that could block or never end.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

use bytes::{Buf, Bytes};

use super::stream::Stream;

/// Opens a file for reading.
///
/// # Errors
/// Where it is not there, or no regular file: a FIFO could block for ever, and a device never end.
pub fn open(path: &Path) -> Result<File> {
    let file = without_blocking(path)?;
    match kind(&file.metadata()?.file_type()) {
        None => Ok(file),
        Some(kind) => Err(Error::new(ErrorKind::InvalidInput, format!("it is {kind}, and no regular file"))),
    }
}

/// Reads a whole file into memory.
///
/// Files of users are read and not mapped: a mapped file that somebody cuts short ends the process with a
/// SIGBUS, against which there is no guard that works everywhere.
///
/// # Errors
/// Where it cannot be opened or read, becomes shorter meanwhile, or is larger than memory.
pub fn read(path: &Path) -> Result<Bytes> {
    whole(open(path)?)
}

/// The content of a file from its beginning.
///
/// # Errors
/// As [`read`].
pub(super) fn whole(file: File) -> Result<Bytes> {
    let mut stream = Stream::new(file)?;
    let content = stream.copy_to_bytes(stream.remaining());
    stream.failure().map_or(Ok(content), Err)
}

/// Reads a whole file as text.
///
/// # Errors
/// As [`read`], and where it is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = Vec::from(read(path)?);
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "it is no text in UTF-8"))
}

/// What something is that is no regular file, in words.
pub(super) fn kind(found: &std::fs::FileType) -> Option<&'static str> {
    if found.is_file() {
        return None;
    }
    if found.is_dir() {
        return Some("a folder");
    }
    Some(special(found))
}

#[cfg(unix)]
fn special(found: &std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match found {
        f if f.is_fifo() => "a FIFO",
        f if f.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(not(unix))]
fn special(_: &std::fs::FileType) -> &'static str {
    "a device"
}

/// Opening a FIFO would wait for a writer.
#[cfg(unix)]
fn without_blocking(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn without_blocking(path: &Path) -> Result<File> {
    File::open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        assert_eq!(read(&path).unwrap(), "content");
        assert_eq!(read_text(&path).unwrap(), "content");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn folders_devices_and_fifos_are_named_and_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("a folder"));
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(open(&fifo).unwrap_err().to_string().contains("a FIFO"));
    }
}
