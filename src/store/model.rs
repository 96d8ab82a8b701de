//! Model files with their external data: read, staged, and read back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use kprune_passes::ir::Model;
use kprune_passes::onnx::{self, ExternalFile};
use sha2::{Digest, Sha256};

use super::folder::{folder_of, resolved};
use super::stream::Stream;
use super::temporary::Temporary;
use super::{Ledger, Publication, input};
use crate::error::Error;

/// Reads the model at `path` with its external data.
///
/// # Errors
/// Where a file is missing, is no model, or names external data outside its folder.
pub fn read_model(path: &Path) -> Result<Model, Error> {
    read_with(path, |stream, files| onnx::read(stream, files))
}

/// Reads a model, with the operators of its own functions in the place of their calls.
///
/// # Errors
/// As [`read_model`].
pub fn read_inlined(path: &Path) -> Result<Model, Error> {
    read_with(path, |stream, files| onnx::read_inlined(stream, files))
}

type Files<'a> = &'a mut dyn FnMut(&str) -> Result<Bytes, String>;

type Read = fn(&mut Stream, Files) -> Result<Model, onnx::ReadError>;

fn read_with(path: &Path, read: Read) -> Result<Model, Error> {
    let file = input::open(path).map_err(Error::io("read", path))?;
    let mut known: HashMap<String, Bytes> = HashMap::new();
    let mut files = |location: &str| -> Result<Bytes, String> {
        if let Some(bytes) = known.get(location) {
            return Ok(bytes.clone());
        }
        let file = external(path, location)?;
        let bytes = input::read(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        known.insert(location.to_string(), bytes.clone());
        Ok(bytes)
    };
    decode(file, path, |stream| read(stream, &mut files))
}

/// Decodes the model of a file, which errors call `path`.
fn decode(
    file: File,
    path: &Path,
    read: impl FnOnce(&mut Stream) -> Result<Model, onnx::ReadError>,
) -> Result<Model, Error> {
    let mut stream = Stream::new(file).map_err(Error::io("read", path))?;
    let model = read(&mut stream);
    match stream.failure() {
        Some(failure) => Err(Error::io("read", path)(failure)),
        None => model.map_err(|reason| Error::Model { path: path.to_path_buf(), reason }),
    }
}

/// The path of an external-data file of the model at `path`.
///
/// As in ONNX Runtime, it lies in the model's folder or below it; or, where model and data are links (as in
/// the caches of hubs), the files that they are links to lie so.
fn external(path: &Path, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !plain {
        return Err("it must be a path inside the model's folder".into());
    }
    let file = folder_of(path).join(relative);
    let Ok(real) = file.canonicalize() else { return Ok(file) };
    let is_within = |folder: &Path| folder.canonicalize().is_ok_and(|folder| real.starts_with(folder));
    match is_within(folder_of(path)) || is_within(folder_of(&resolved(path))) {
        true => Ok(file),
        false => Err("it is a link out of the model's folder".into()),
    }
}

/// The external-data files of a model that was read from `path`.
pub(crate) fn external_files(path: &Path, model: &Model) -> Vec<PathBuf> {
    onnx::external_locations(model).iter().map(|location| folder_of(path).join(location)).collect()
}

/// A model written to temporary files beside its target; dropped, it leaves nothing behind.
pub struct Staged {
    model: Temporary,
    data: Vec<Temporary>,
}

/// Writes `model` beside `target`, to be checked and then put in place with a [`Publication`].
///
/// External data go to files named after the target, laid out as in the original.
///
/// # Errors
/// Where the folder cannot be written or the disk is full.
pub fn stage(model: &Model, source: &Path, target: &Path) -> Result<Staged, Error> {
    let target = resolved(target);
    let written = onnx::write(model, &|location| renamed(location, source, &target));
    let mut data = Vec::new();
    for file in &written.files {
        let path = folder_of(&target).join(&file.location);
        let temporary = Temporary::write(&path, |out| write_pieces(out, file));
        data.push(temporary.map_err(Error::io("write", &path))?);
    }
    let temporary = Temporary::write(&target, |out| onnx::encode(written.model, out));
    Ok(Staged { model: temporary.map_err(Error::io("write", &target))?, data })
}

/// How an external-data file of the model at `source` is called once the model is at `target`.
pub(super) fn renamed(location: &str, source: &Path, target: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (old, new) = (name(source), name(target));
    match location.strip_prefix(&old) {
        Some(rest) if !rest.is_empty() => format!("{new}{}", rest.replace(['/', '\\'], "_")),
        _ => format!("{new}.{}", location.replace(['/', '\\'], "_")),
    }
}

fn write_pieces(mut out: impl Write + Seek, external: &ExternalFile) -> std::io::Result<()> {
    for (offset, bytes) in &external.pieces {
        out.seek(SeekFrom::Start(*offset as u64))?;
        out.write_all(bytes)?;
    }
    Ok(())
}

/// Size in bytes of a model file and the external files that it refers to.
pub fn size_with_data(path: &Path, model: &Model) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    size(path) + external_files(path, model).iter().map(|file| size(file)).sum::<u64>()
}

/// Size of a model's file and those that hold its data, each compressed by Zstandard at its usual level, in bytes: what is
/// sent and stored where files are compressed.
///
/// # Errors
/// Where a file cannot be read.
pub fn compressed_size(path: &Path, model: &Model) -> Result<u64, Error> {
    let compressed = |path: &Path| {
        let mut file = std::fs::File::open(path)?;
        let mut counted = Counted(0);
        zstd::stream::copy_encode(&mut file, &mut counted, zstd::DEFAULT_COMPRESSION_LEVEL)?;
        Ok(counted.0)
    };
    let files = std::iter::once(path.to_path_buf()).chain(external_files(path, model));
    files.map(|file| compressed(&file).map_err(Error::io("read", &file))).sum()
}

/// The SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// Where it cannot be read.
pub(crate) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut digest)?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Counts what is written to it.
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Staged {
    /// Size of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.model.len() + self.data.iter().map(Temporary::len).sum::<u64>()
    }

    /// The SHA-256 of the model file, in hexadecimal digits; `None` where it cannot be read.
    pub fn sha256(&self) -> Option<String> {
        sha256(&self.model.path()).ok()
    }

    /// Reads the model back from the temporary files, as a user of the file would.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn reread(&self) -> Result<Model, Error> {
        let target = self.target();
        let folder = folder_of(target);
        let mut files = |location: &str| {
            let wanted = folder.join(location);
            let found = self.data.iter().find(|file| file.target() == wanted).ok_or("it was not written")?;
            found.file().try_clone().and_then(input::whole).map_err(|e| e.to_string())
        };
        let file = self.model.file().try_clone().map_err(Error::io("read", target))?;
        decode(file, target, |stream| onnx::read(stream, &mut files))
    }

    /// The path that the model will have.
    pub fn target(&self) -> &Path {
        self.model.target()
    }

    /// Whether the model has no external data.
    pub fn is_one_file(&self) -> bool {
        self.data.is_empty()
    }

    /// Where the model file can be opened until it is published.
    pub fn path(&self) -> PathBuf {
        self.model.path()
    }

    /// Adds its files to what is put in place together: the data first, then the model.
    pub fn publish_with(self, publication: &mut Publication) {
        self.data.into_iter().for_each(|file| publication.add(file));
        publication.add(self.model);
    }

    /// Puts its files in place.
    ///
    /// # Errors
    /// Where a file cannot be written there.
    pub fn publish(self) -> Result<(), Error> {
        let ledger = Ledger::default().writing("the model", self.target());
        let mut publication = Publication::default();
        self.publish_with(&mut publication);
        publication.commit(&ledger)
    }

    /// The same files, to be put in place in another folder of the same disk.
    pub(super) fn moved_to(self, folder: &Path) -> Self {
        let moved = |file: Temporary| {
            let target = folder.join(file.target().file_name().unwrap_or_default());
            file.aimed_at(target)
        };
        Self { model: moved(self.model), data: self.data.into_iter().map(moved).collect() }
    }

    /// Puts its files in place without replacing anything, where nobody looks yet.
    pub(super) fn put_in_place(self) -> std::io::Result<()> {
        self.data.into_iter().try_for_each(Temporary::put_in_place)?;
        self.model.put_in_place()
    }
}
