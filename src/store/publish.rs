//! Putting complete files in place: all of them, or none.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::litter::{Litter, uninterrupted};
use super::temporary::Temporary;
use super::{Ledger, folder};
use crate::error::Error;

/// Files and folders that are complete and wait to be put in place together.
#[derive(Default)]
pub struct Publication {
    files: Vec<Temporary>,
    folders: Vec<(Litter, PathBuf)>,
}

/// What was put in place, and how to undo that.
enum Done {
    File { target: PathBuf, before: Option<Litter> },
    Folder { target: PathBuf },
}

impl Publication {
    /// Adds a file with this content.
    ///
    /// # Errors
    /// Where its folder cannot be written or the disk is full.
    pub fn add_content(&mut self, target: &Path, content: &[u8]) -> Result<(), Error> {
        let file = Temporary::write(&folder::resolved(target), |out| out.write_all(content));
        self.files.push(file.map_err(Error::io("write", target))?);
        Ok(())
    }

    pub(super) fn add(&mut self, file: Temporary) {
        self.files.push(file);
    }

    pub(super) fn add_folder(&mut self, place: Litter, target: PathBuf) {
        self.folders.push((place, target));
    }

    /// Puts everything in place. Where one of them fails, what was there before is there again.
    ///
    /// # Errors
    /// Where a target has become something that `ledger` forbids, or cannot be written.
    pub fn commit(self, ledger: &Ledger) -> Result<(), Error> {
        ledger.check()?;
        let mut done = Vec::new();
        let failed = uninterrupted(|| match self.put_in_place(&mut done) {
            Ok(()) => None,
            Err(error) => {
                done.drain(..).rev().for_each(Done::undo);
                Some(error)
            }
        });
        failed.map_or(Ok(()), Err)
    }

    fn put_in_place(self, done: &mut Vec<Done>) -> Result<(), Error> {
        for (place, target) in self.folders {
            std::fs::rename(place.path(), &target).map_err(Error::io("write", &target))?;
            place.forget();
            done.push(Done::Folder { target });
        }
        for file in self.files {
            let target = file.target().to_path_buf();
            // Without links on this disk there is no way back, and still no file that is not whole.
            let keep = |backup: &Path| std::fs::hard_link(&target, backup);
            let before = target.exists().then(|| Litter::beside(&target, keep).ok()).flatten();
            file.put_in_place().map_err(Error::io("write", &target))?;
            done.push(Done::File { target, before });
        }
        Ok(())
    }
}

impl Done {
    fn undo(self) {
        match self {
            Self::Folder { target } => {
                let _ = std::fs::remove_dir_all(target);
            }
            Self::File { target, before: None } => {
                let _ = std::fs::remove_file(target);
            }
            Self::File { target, before: Some(before) } => {
                let _ = std::fs::rename(before.path(), target);
            }
        }
    }
}

/// Writes a small file, whole or not at all.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn write_whole(target: &Path, content: &[u8]) -> Result<(), Error> {
    let mut publication = Publication::default();
    publication.add_content(target, content)?;
    publication.commit(&Ledger::default().writing("the file", target))
}

/// Writes something as readable JSON, whole or not at all.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn write_json(target: &Path, content: &impl Serialize) -> Result<(), Error> {
    write_whole(target, &json(content)?)
}

/// Something as readable JSON.
pub(crate) fn json(content: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut json = serde_json::to_vec_pretty(content).map_err(|e| Error::internal(e.to_string()))?;
    json.push(b'\n');
    Ok(json)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn where_one_file_fails_all_are_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, blocked] = ["old", "new", "blocked"].map(|name| folder.path().join(name));
        std::fs::write(&old, "as it was").unwrap();
        let mut publication = Publication::default();
        for target in [&old, &new, &blocked] {
            publication.add_content(target, b"changed").unwrap();
        }
        // A file cannot take the place of a folder.
        std::fs::create_dir(&blocked).unwrap();
        assert!(publication.commit(&Ledger::default()).is_err());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "as it was");
        assert!(!new.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "and nothing is left behind");
    }
}
