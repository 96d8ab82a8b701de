//! What a run reads and what it will write: nothing that is read is ever replaced, and nothing but regular files.

use std::path::{Path, PathBuf};

use super::folder::{folder_of, resolved};
use super::input::kind;
use crate::error::Error;

/// Everything that a run reads, and everything that it will write.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    reads: Vec<Entry>,
    writes: Vec<Entry>,
}

/// A path, and what it is to the user.
#[derive(Clone, Debug)]
struct Entry {
    what: String,
    path: PathBuf,
    /// Whether it is a folder that is made.
    is_folder: bool,
}

impl Entry {
    fn new(what: &str, path: &Path) -> Self {
        Self { what: what.to_string(), path: path.to_path_buf(), is_folder: false }
    }
}

impl Ledger {
    /// Notes a file that is read, or a folder of which everything is read.
    pub fn reading(mut self, what: &str, path: &Path) -> Self {
        self.reads.push(Entry::new(what, path));
        self
    }

    /// Notes files that are read.
    pub fn reading_all<P: AsRef<Path>>(self, what: &str, paths: impl IntoIterator<Item = P>) -> Self {
        paths.into_iter().fold(self, |this, path| this.reading(what, path.as_ref()))
    }

    /// Notes a file that will be written.
    pub fn writing(mut self, what: &str, path: &Path) -> Self {
        self.writes.push(Entry::new(what, path));
        self
    }

    /// Notes files that will be written.
    pub fn writing_all<P: AsRef<Path>>(self, what: &str, paths: impl IntoIterator<Item = P>) -> Self {
        paths.into_iter().fold(self, |this, path| this.writing(what, path.as_ref()))
    }

    /// Notes a folder that will be made, or filled if it is there and empty.
    pub fn making(mut self, what: &str, path: &Path) -> Self {
        self.writes.push(Entry { is_folder: true, ..Entry::new(what, path) });
        self
    }

    /// Everything of both.
    pub fn and(mut self, more: Self) -> Self {
        self.reads.extend(more.reads);
        for write in more.writes {
            // What is noted twice is one thing.
            if !self.writes.iter().any(|own| (&own.what, &own.path) == (&write.what, &write.path)) {
                self.writes.push(write);
            }
        }
        self
    }

    /// Refuses to write what is read, to write two things to one place, and to replace what is no regular file.
    ///
    /// # Errors
    /// [`Error::Usage`] with the two that are in conflict, or the kind of what would be replaced; [`Error::Io`]
    /// where a folder is not there or cannot be written.
    pub fn check(&self) -> Result<(), Error> {
        for (i, write) in self.writes.iter().enumerate() {
            write.check_target()?;
            if let Some(read) = self.reads.iter().find(|read| write.changes(read)) {
                return Err(conflict(write, read, "which is read and never changed"));
            }
            if let Some(other) = self.writes.iter().take(i).find(|other| write.changes(other)) {
                return Err(conflict(write, other, "which is written too"));
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Whether something can be written there.
    fn check_target(&self) -> Result<(), Error> {
        let Entry { what, path, .. } = self;
        let refused = |reason: &str| Err(Error::Usage(format!("{what}: {} {reason}", path.display())));
        match std::fs::metadata(path) {
            Ok(found) if self.is_folder && found.is_dir() => {
                let is_empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
                if !is_empty {
                    return refused("is there already, and is no empty folder; name another one or remove it");
                }
            }
            Ok(_) if self.is_folder => return refused("is there already; name another folder or remove it"),
            Ok(found) => {
                if let Some(kind) = kind(&found.file_type()) {
                    return refused(&format!("is {kind}, and only regular files are replaced; name another file"));
                }
            }
            Err(_) => {}
        }
        let folder = folder_of(&resolved(path)).to_path_buf();
        let found = std::fs::metadata(&folder).map_err(Error::io("write", path))?;
        if !found.is_dir() {
            let reason = std::io::Error::new(std::io::ErrorKind::NotADirectory, "its folder is no folder");
            return Err(Error::io("write", path)(reason));
        }
        // Found out now rather than when all the work is done.
        tempfile::tempfile_in(&folder).map(|_| ()).map_err(Error::io("write", path))
    }
}

fn conflict(write: &Entry, other: &Entry, how: &str) -> Error {
    let is_within = other.is_folder || other.path.is_dir();
    let relation = if is_within { "lies within" } else { "is the same file as" };
    let (path, what) = (write.path.display(), &other.what);
    Error::Usage(format!("{} {relation} {what}, {how}: {path}; name another place", write.what))
}

impl Entry {
    /// Whether writing this one would change `other`: they are one file, by place or on the disk, or `other` is a
    /// folder that this one would change, or fill while it is copied.
    fn changes(&self, other: &Self) -> bool {
        let (own, place) = (resolved(&self.path), resolved(&other.path));
        let is_within = own.starts_with(&place);
        match (identity(&own), identity(&place)) {
            _ if own == place => true,
            _ if other.is_folder => is_within,
            (None, _) => is_within && self.is_folder,
            (Some(_), _) if is_within => true,
            (Some(file), _) if place.is_dir() => {
                let is_it = |path: &PathBuf| identity(path).as_ref() == Some(&file);
                file.links > 1 && files_below(&place).iter().any(is_it)
            }
            (Some(file), other) => Some(file) == other,
        }
    }
}

/// What a file is on the disk, whatever it is called.
struct Identity {
    device: u64,
    inode: u64,
    links: u64,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).ok()?;
    Some(Identity { device: found.dev(), inode: found.ino(), links: found.nlink() })
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    None
}

/// All files below a folder; links to folders are not followed.
pub(super) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn refused(ledger: Ledger) -> String {
        ledger.check().unwrap_err().to_string()
    }

    #[test]
    fn what_is_read_is_not_written_however_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("in"), "read").unwrap();
        std::fs::hard_link(path("in"), path("hard")).unwrap();
        std::os::unix::fs::symlink("in", path("soft")).unwrap();
        std::fs::create_dir(path("inner")).unwrap();
        let ledger = || Ledger::default().reading("IN", &path("in"));
        for name in ["in", "hard", "soft", "inner/../in"] {
            assert!(refused(ledger().writing("OUT", &path(name))).contains("the same file as IN"), "{name}");
        }
        ledger().writing("OUT", &path("other")).check().unwrap();
        let twice = Ledger::default().writing("OUT", &path("new")).writing("--report", &path("inner/../new"));
        assert!(refused(twice).contains("which is written too"));
    }

    #[test]
    fn a_folder_that_is_read_may_get_new_files_but_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("in/deep")).unwrap();
        std::fs::write(path("in/deep/file"), "read").unwrap();
        std::fs::hard_link(path("in/deep/file"), path("outside")).unwrap();
        let ledger = || Ledger::default().reading("IN", &path("in"));
        ledger().writing("--report", &path("in/new")).check().unwrap();
        assert!(refused(ledger().writing("OUT", &path("in/deep/file"))).contains("IN"));
        assert!(refused(ledger().writing("OUT", &path("outside"))).contains("IN"));
        assert!(refused(ledger().making("OUT", &path("in/out"))).contains("IN"));
        ledger().making("OUT", &path("out")).check().unwrap();
    }

    #[test]
    fn only_regular_files_are_replaced_and_folders_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let writing = |path: &Path| Ledger::default().writing("OUT", path);
        assert!(refused(writing(folder.path())).contains("a folder"));
        assert!(refused(writing(Path::new("/dev/full"))).contains("a device"));
        let missing = writing(&folder.path().join("no/such/folder/out")).check();
        assert!(matches!(missing, Err(Error::Io { .. })));
        std::os::unix::fs::symlink("/dev/full", folder.path().join("link")).unwrap();
        assert!(refused(writing(&folder.path().join("link"))).contains("a device"));
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(refused(Ledger::default().making("OUT", &folder.path().join("file"))).contains("another folder"));
    }
}
