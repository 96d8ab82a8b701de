//! `.npz` files: arrays in a zip archive.

use std::fs::File;
use std::io::{Chain, Cursor, Read};
use std::path::Path;

use kprune_passes::ir::ElementType as E;
use npyz::{DType, Endianness, NpyFile, Order, TypeChar};
use zip::ZipArchive;

use super::{Described, Narrow, Place, Stored, WRITE_ANEW};
use crate::data::fence::fenced;
use crate::error::Error;
use crate::store;

/// What the archive says that it holds.
pub(super) fn describe(path: &Path) -> Result<(File, Vec<Described>), Error> {
    let file = store::open(path).map_err(Error::io("read", path))?;
    let described = fenced(path, || {
        let mut archive = open(path, &file)?;
        (0..archive.len()).map(|entry| described(path, &mut archive, entry)).collect()
    })?;
    Ok((file, described))
}

/// Gives `read` what follows the header of an entry.
pub(super) fn with_entry<T>(
    path: &Path,
    file: &File,
    entry: usize,
    read: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, Error> {
    fenced(path, || {
        let mut archive = open(path, file)?;
        let entry = archive.by_index(entry).map_err(|e| unreadable(path, &e.to_string()))?;
        let array = array(entry).map_err(|e| unreadable(path, &e.to_string()))?;
        Ok(read(&mut array.into_inner()))
    })
}

fn open<'f>(path: &Path, file: &'f File) -> Result<ZipArchive<&'f File>, Error> {
    ZipArchive::new(file).map_err(|e| unreadable(path, &e.to_string()))
}

/// The longest header that is read; numpy's own have some hundred bytes.
const LONGEST_HEADER: u32 = 1 << 16;

/// An array whose header has been read. The header's length comes first: 2 bytes in the first version of the format,
/// 4 in later ones.
fn array<R: Read>(mut entry: R) -> std::io::Result<NpyFile<Chain<Cursor<[u8; 12]>, R>>> {
    let mut start = [0; 12];
    entry.read_exact(&mut start)?;
    let length = match start {
        [.., 1, _, a, b, _, _] => u32::from(u16::from_le_bytes([a, b])),
        [.., a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
    };
    if length > LONGEST_HEADER {
        let reason = format!("its header would have {length} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    NpyFile::new(Cursor::new(start).chain(entry))
}

fn unreadable(path: &Path, reason: &str) -> Error {
    Error::data(path, format!("is no readable .npz file: {reason}"), WRITE_ANEW)
}

fn described(path: &Path, archive: &mut ZipArchive<&File>, place: usize) -> Result<Described, Error> {
    let entry = archive.by_index(place).map_err(|e| unreadable(path, &e.to_string()))?;
    let name = entry.name().to_string();
    let length = entry.size();
    let array = array(entry).map_err(|e| unreadable(path, &format!("array {name:?}: {e}")))?;
    let unknown = || {
        let reason = format!("array {name:?} is of a type that is not read");
        Error::data(path, reason, "give integers, booleans or floating-point numbers")
    };
    let stored = stored(&array.dtype(), array.order() == Order::Fortran).ok_or_else(unknown)?;
    let dims = array.shape().iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let impossible = |shape: &[u64]| unreadable(path, &format!("array {name:?} has the impossible shape {shape:?}"));
    let dims = dims.map_err(|_| impossible(array.shape()))?;
    let stem = name.strip_suffix(".npy").unwrap_or(&name).to_string();
    let described = Described { name: stem, stored, dims, place: Place::Entry(place) };
    let bytes = described.bytes().ok_or_else(|| impossible(array.shape()))?;
    if bytes > length {
        let reason = format!("array {name:?} of shape {:?} needs {bytes} bytes and has {length}", described.dims);
        return Err(unreadable(path, &reason));
    }
    Ok(described)
}

/// How the elements of a type are stored; `None` for types that are not read.
fn stored(dtype: &DType, fortran: bool) -> Option<Stored> {
    let DType::Plain(kind) = dtype else { return None };
    let size = kind.num_bytes()?;
    let (element, narrow) = match (kind.type_char(), size) {
        (TypeChar::Float, 2) => (E::F16, None),
        (TypeChar::Float, 4) => (E::F32, None),
        (TypeChar::Float, 8) => (E::F64, None),
        (TypeChar::Int, 1) => (E::I64, Some(Narrow::I8)),
        (TypeChar::Int, 2) => (E::I64, Some(Narrow::I16)),
        (TypeChar::Int, 4) => (E::I32, None),
        (TypeChar::Int, 8) => (E::I64, None),
        (TypeChar::Uint, 1) => (E::U8, None),
        (TypeChar::Uint, 2) => (E::I64, Some(Narrow::U16)),
        (TypeChar::Uint, 4) => (E::I64, Some(Narrow::U32)),
        (TypeChar::Uint, 8) => (E::I64, Some(Narrow::U64)),
        (TypeChar::Bool, 1) => (E::Bool, None),
        _ => return None,
    };
    let big_endian = kind.endianness() == Endianness::Big;
    Some(Stored { element, narrow, size, big_endian, fortran })
}
