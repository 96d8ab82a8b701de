//! Files that are written beside their target and put in place when they are complete.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::{Path, PathBuf};

use super::litter::Litter;

/// A complete file that is not in place yet; dropped, it leaves nothing behind.
///
/// Where the system has files without a name (`O_TMPFILE`) it is one, and goes even if the program is killed.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    /// Its name, where it needs one.
    named: Option<Litter>,
    /// The file that it will be.
    target: PathBuf,
}

impl Temporary {
    /// Writes a file for `target`; on the disk when this returns.
    pub(super) fn write(target: &Path, content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<Self> {
        let this = match unnamed(super::folder_of(target)) {
            Some(file) => Self { file, named: None, target: target.to_path_buf() },
            None => Self::with_name(target)?,
        };
        let mut out = BufWriter::new(&this.file);
        content(&mut out)?;
        out.flush()?;
        drop(out);
        this.file.sync_all()?;
        Ok(this)
    }

    fn with_name(target: &Path) -> Result<Self> {
        let mut file = None;
        let named = Litter::beside(target, |path| {
            file = Some(File::options().read(true).write(true).create_new(true).open(path)?);
            Ok(())
        })?;
        let file = file.ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Self { file, named: Some(named), target: target.to_path_buf() })
    }

    /// Where it can be opened until it is put in place.
    pub(super) fn path(&self) -> PathBuf {
        match &self.named {
            Some(named) => named.path().to_path_buf(),
            None => by_descriptor(&self.file),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// The same file for a target elsewhere on the same disk.
    pub(super) fn aimed_at(self, target: PathBuf) -> Self {
        Self { target, ..self }
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    /// Puts it in the place of its target, whether there is one already or not.
    pub(super) fn put_in_place(self) -> Result<()> {
        let named = match self.named {
            Some(named) => named,
            None => match link(&self.file, &self.target) {
                Ok(()) => return Ok(()),
                // A link replaces nothing, and a renaming does.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Litter::beside(&self.target, |path| link(&self.file, path))?
                }
                Err(error) => return Err(error),
            },
        };
        std::fs::rename(named.path(), &self.target)?;
        named.forget();
        Ok(())
    }
}

/// A file without a name on the disk of `folder`; `None` where there is no such thing.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)).ok()?);
    // It is named by way of its descriptor, for which /proc must be there.
    by_descriptor(&file).exists().then_some(file)
}

#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> Result<()> {
    use rustix::fs::{AtFlags, CWD};
    Ok(rustix::fs::linkat(CWD, by_descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(target_os = "linux")]
fn by_descriptor(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path) -> Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn by_descriptor(_: &File) -> PathBuf {
    PathBuf::new()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn both(target: &Path, content: &str) -> Vec<Temporary> {
        let write = |file: &File| (&*file).write_all(content.as_bytes());
        let named = Temporary::with_name(target).unwrap();
        write(&named.file).unwrap();
        vec![Temporary::write(target, |out| out.write_all(content.as_bytes())).unwrap(), named]
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        for round in ["new", "replaced"] {
            for temporary in both(&target, round) {
                assert_eq!(std::fs::read_to_string(temporary.path()).unwrap(), round);
                assert_eq!(temporary.len(), round.len() as u64);
                temporary.put_in_place().unwrap();
                assert_eq!(std::fs::read_to_string(&target).unwrap(), round);
            }
        }
        drop(both(&target, "dropped"));
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["target"]);
    }
}
