//! `.safetensors` files: a header in JSON, followed by the arrays.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use kprune_passes::ir::ElementType as E;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{Described, Place, Stored};
use crate::data::fence::fenced;
use crate::error::Error;
use crate::store;

/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// What the header says that the file holds.
pub(super) fn describe(path: &Path) -> Result<(File, Vec<Described>), Error> {
    let mut file = store::open(path).map_err(Error::io("read", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let wrong = |reason: String| {
        let help = "write it with safetensors.numpy.save_file";
        Error::data(path, format!("is no readable .safetensors file: {reason}"), help)
    };
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|e| wrong(e.to_string()))?;
    let length = u64::from_le_bytes(start);
    if length > LONGEST_HEADER.min(size) {
        return Err(wrong(format!("its header would have {length} bytes, and the file has {size}")));
    }
    let mut header = Vec::new();
    file.by_ref().take(length).read_to_end(&mut header).map_err(Error::io("read", path))?;
    let described = fenced(path, || {
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| wrong(e.to_string()))?;
        let array = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let unknown = || wrong(format!("array {name:?} is of type {:?}, which is not read", info.dtype));
            let (element, size_of) = element(info.dtype).ok_or_else(unknown)?;
            let stored = Stored { element, narrow: None, size: size_of, big_endian: false, fortran: false };
            let (from, to) = info.data_offsets;
            let place = (from as u64).checked_add(length).and_then(|n| n.checked_add(8));
            let place = Place::Offset(place.unwrap_or(u64::MAX));
            let described = Described { name: name.clone(), stored, dims: info.shape.clone(), place };
            let is_there = to.checked_sub(from).map(|n| n as u64) == described.bytes()
                && to as u64 <= size.saturating_sub(length.saturating_add(8));
            if is_there { Ok(described) } else { Err(wrong(format!("array {name:?} does not fit its shape"))) }
        };
        metadata.tensors().into_iter().map(array).collect::<Result<Vec<_>, Error>>()
    })?;
    Ok((file, described))
}

/// Gives `read` what follows `start`.
pub(super) fn at<T>(
    path: &Path,
    mut file: &File,
    start: u64,
    read: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, Error> {
    file.seek(SeekFrom::Start(start)).map_err(Error::io("read", path))?;
    Ok(read(&mut std::io::BufReader::new(file)))
}

fn element(dtype: Dtype) -> Option<(E, usize)> {
    Some(match dtype {
        Dtype::F32 => (E::F32, 4),
        Dtype::F64 => (E::F64, 8),
        Dtype::F16 => (E::F16, 2),
        Dtype::BF16 => (E::BF16, 2),
        Dtype::I64 => (E::I64, 8),
        Dtype::I32 => (E::I32, 4),
        Dtype::U8 => (E::U8, 1),
        Dtype::BOOL => (E::Bool, 1),
        _ => return None,
    })
}
