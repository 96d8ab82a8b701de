//! Model files: read by mapping, written whole or not at all.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use kprune_passes::ir::Model;
use kprune_passes::onnx::{self, ExternalFile};
use memmap2::Mmap;
use tempfile::NamedTempFile;

use crate::error::Error;

/// Reads the model at `path` with its external data. Nothing is copied: files are mapped.
///
/// # Errors
/// Where a file is missing, is no model, or names external data outside its folder.
pub fn read_model(path: &Path) -> Result<Model, Error> {
    read_with(path, onnx::read)
}

/// Reads a model, with the operators of its own functions in the place of their calls.
///
/// # Errors
/// As [`read_model`].
pub fn read_inlined(path: &Path) -> Result<Model, Error> {
    read_with(path, onnx::read_inlined)
}

type Files<'a> = &'a mut dyn FnMut(&str) -> Result<Bytes, String>;

fn read_with(path: &Path, read: fn(Bytes, Files) -> Result<Model, onnx::ReadError>) -> Result<Model, Error> {
    let bytes = map(path).map_err(Error::io("read", path))?;
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut mapped: HashMap<String, Bytes> = HashMap::new();
    let mut files = |location: &str| -> Result<Bytes, String> {
        if let Some(bytes) = mapped.get(location) {
            return Ok(bytes.clone());
        }
        let file = inside(&folder, location)?;
        let bytes = map(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        mapped.insert(location.to_string(), bytes.clone());
        Ok(bytes)
    };
    read(bytes, &mut files).map_err(|reason| Error::Model { path: path.to_path_buf(), reason })
}

fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a folder"));
    }
    // SAFETY: as with every mapped file, nobody may cut the file short while the program runs; the
    // program itself writes only to new files.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

/// The path of an external-data file, which must lie in the model's folder or below it.
fn inside(folder: &Path, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !plain {
        return Err("it must be a path inside the model's folder".into());
    }
    let file = folder.join(relative);
    let (root, real) = (folder_or_here(folder).canonicalize(), file.canonicalize());
    match (root, real) {
        (Ok(root), Ok(real)) if !real.starts_with(&root) => Err("it is a link out of the model's folder".into()),
        _ => Ok(file),
    }
}

fn folder_or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// A model written to temporary files in its target's folder; dropped, it leaves nothing behind.
pub struct Staged {
    model: NamedTempFile,
    data: Vec<(NamedTempFile, PathBuf)>,
    target: PathBuf,
    bytes: u64,
}

/// Writes `model` beside `target`, to be checked and then put in place with [`Staged::publish`].
///
/// External data go to files named after the target, laid out as in the original; a model too large
/// for one file gets one.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn stage(model: &Model, source: &Path, target: &Path) -> Result<Staged, Error> {
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (old, new) = (name(source), name(target));
    let rename = |location: &str| match location.strip_prefix(&old) {
        Some(rest) if !rest.is_empty() => format!("{new}{rest}"),
        _ => format!("{new}.{}", location.replace(['/', '\\'], "_")),
    };
    let written = onnx::write(model, &rename);
    let folder = folder_or_here(target.parent().unwrap_or(Path::new("")));
    let mut bytes = 0;
    let mut data = Vec::new();
    for file in &written.files {
        let path = folder.join(&file.location);
        let temporary = write_pieces(folder, file).map_err(Error::io("write", &path))?;
        bytes += temporary.as_file().metadata().map(|m| m.len()).unwrap_or(0);
        data.push((temporary, path));
    }
    let temporary = write_proto(folder, written.model).map_err(Error::io("write", target))?;
    bytes += temporary.as_file().metadata().map(|m| m.len()).unwrap_or(0);
    Ok(Staged { model: temporary, data, target: target.to_path_buf(), bytes })
}

/// Checks that the folder of a file to be written is there.
///
/// # Errors
/// Where it is not.
pub fn check_folder(path: &Path) -> Result<(), Error> {
    let folder = folder_or_here(path.parent().unwrap_or(Path::new("")));
    let is_folder = std::fs::metadata(folder).and_then(|m| match m.is_dir() {
        true => Ok(()),
        false => Err(std::io::Error::new(std::io::ErrorKind::NotADirectory, "its folder is no folder")),
    });
    is_folder.map_err(Error::io("write", path))
}

/// Writes a small file, whole or not at all.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = folder_or_here(path.parent().unwrap_or(Path::new("")));
    let write = || -> std::io::Result<NamedTempFile> {
        let mut file = temporary(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    persist(write().map_err(Error::io("write", path))?, path)
}

/// Writes something as readable JSON, whole or not at all.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn write_json(path: &Path, content: &impl serde::Serialize) -> Result<(), Error> {
    let mut json = serde_json::to_string_pretty(content).map_err(|e| Error::internal(e.to_string()))?;
    json.push('\n');
    write_whole(path, json.as_bytes())
}

/// Size in bytes of a model file and the external files that it refers to.
pub fn size_with_data(path: &Path, model: &Model) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    let folder = path.parent().unwrap_or(Path::new(""));
    let locations = onnx::external_locations(model);
    size(path) + locations.iter().map(|l| size(&folder.join(l))).sum::<u64>()
}

fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".onnx-kprune-").suffix(".tmp").tempfile_in(folder)
}

fn write_proto(folder: &Path, model: kprune_passes::onnx::schema::ModelProto) -> std::io::Result<NamedTempFile> {
    let mut file = temporary(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    onnx::encode(model, &mut out)?;
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    Ok(file)
}

fn write_pieces(folder: &Path, external: &ExternalFile) -> std::io::Result<NamedTempFile> {
    let mut file = temporary(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    for (offset, bytes) in &external.pieces {
        out.seek(SeekFrom::Start(*offset as u64))?;
        out.write_all(bytes)?;
    }
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    Ok(file)
}

impl Staged {
    /// Size of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the model back from the temporary files, as a user of the file would.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn reread(&self) -> Result<Model, Error> {
        let bytes = map(self.model.path()).map_err(Error::io("read", self.model.path()))?;
        let folder = folder_or_here(self.target.parent().unwrap_or(Path::new(""))).to_path_buf();
        let mut files = |location: &str| {
            let wanted = folder.join(location);
            let found = self.data.iter().find(|(_, path)| *path == wanted);
            let (file, _) = found.ok_or("it was not written")?;
            map(file.path()).map_err(|e| e.to_string())
        };
        onnx::read(bytes, &mut files).map_err(|reason| Error::Model { path: self.target.clone(), reason })
    }

    /// The path that the model will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether the model has no external data.
    pub fn is_one_file(&self) -> bool {
        self.data.is_empty()
    }

    /// Where the model file is until it is published.
    pub fn path(&self) -> &Path {
        self.model.path()
    }

    /// Puts the files in place: the data first, then the model, each at once.
    ///
    /// # Errors
    /// Where a file cannot be renamed.
    pub fn publish(self) -> Result<(), Error> {
        for (file, path) in self.data {
            persist(file, &path)?;
        }
        persist(self.model, &self.target)
    }
}

fn persist(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    readable_by_all(&file);
    file.persist(path).map(|_| ()).map_err(|e| Error::io("write", path)(e.error))
}

/// Temporary files are private; the result is an ordinary file.
#[cfg(unix)]
fn readable_by_all(file: &NamedTempFile) {
    use std::os::unix::fs::PermissionsExt;
    let _ = file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644));
}

#[cfg(not(unix))]
fn readable_by_all(_: &NamedTempFile) {}
