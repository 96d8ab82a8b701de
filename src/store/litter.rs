//! Temporary files that have a name, and their end with the program, however it ends.
//!
//! Most temporary files have no name, and go by themselves. The few that have one are listed here, so that
//! whoever ends the program early can remove them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static NAMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static PUBLISHING: Mutex<()> = Mutex::new(());

/// A file or folder that goes when this is dropped, or the program ends, unless it was renamed before.
#[derive(Debug)]
pub(super) struct Litter(PathBuf);

impl Litter {
    /// A name beside `target` that is free, for something that `make` makes there.
    pub(super) fn beside(target: &Path, mut make: impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<Self> {
        let folder = super::folder_of(target);
        loop {
            let number: u64 = rand::random();
            let path = folder.join(format!(".onnx-kprune-{number:016x}.tmp"));
            // Listed first, so that there is no moment in which it could be forgotten.
            let litter = Self(path.clone());
            lock(&NAMED).insert(path.clone());
            match make(&path) {
                Ok(()) => return Ok(litter),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => litter.forget(),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// It is somebody else's now.
    pub(super) fn forget(self) {
        lock(&NAMED).remove(&self.0);
    }
}

impl Drop for Litter {
    fn drop(&mut self) {
        if lock(&NAMED).remove(&self.0) {
            remove(&self.0);
        }
    }
}

/// Does something that must not be cut in two by [`leave`].
pub(super) fn uninterrupted<T>(work: impl FnOnce() -> T) -> T {
    let _publishing = lock(&PUBLISHING);
    work()
}

/// Removes all temporary files and ends the process with `status`, whatever other threads are doing; files that
/// are being put in place are first.
pub fn leave(status: i32) -> ! {
    let _publishing = lock(&PUBLISHING);
    // Nobody makes a new one while this is held.
    let named = lock(&NAMED);
    named.iter().for_each(|path| remove(path));
    exit(status)
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process without running the destructors of libraries, whose threads may be at work.
#[cfg(unix)]
fn exit(status: i32) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(not(unix))]
fn exit(status: i32) -> ! {
    std::process::exit(status)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_goes_and_what_was_renamed_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let make = |path: &Path| std::fs::write(path, "content");
        drop(Litter::beside(&target, make).unwrap());
        drop(Litter::beside(&target, |path| std::fs::create_dir(path)).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let litter = Litter::beside(&target, make).unwrap();
        std::fs::rename(litter.path(), &target).unwrap();
        litter.forget();
        assert!(target.is_file());
    }
}
