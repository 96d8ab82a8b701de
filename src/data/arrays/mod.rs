//! Data from files of named arrays: `.npz`, `.safetensors`, and the ONNX test-data layout.
#![warn(clippy::arithmetic_side_effects)]

mod npz;
mod safetensors;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kprune_passes::ir::schema::TensorProto;
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::kv_cache;
use kprune_passes::signature::Input;
use prost::Message;

use super::describe;
use super::labels::{self, Labels};
use super::samples::{Part, Samples, join};
use crate::error::Error;
use crate::store;

/// Arrays by name.
type Named = Vec<(String, Tensor)>;

/// A file may hold so many bytes of arrays, and so many times its own size: more is no data, but a trap.
const MOST_BYTES: u64 = 512 << 20;
const MOST_TIMES: u64 = 64;

/// How the numbers of an array lie in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stored {
    /// What they are read as.
    element: ElementType,
    /// The type that they are stored in, where it is a narrower integer.
    narrow: Option<Narrow>,
    /// Bytes of each.
    size: usize,
    big_endian: bool,
    /// Whether the first axis is the fastest.
    fortran: bool,
}

/// Integers that are read as int64.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Narrow {
    I8,
    I16,
    U16,
    U32,
    U64,
}

/// An array that is described and not read yet.
#[derive(Debug)]
struct Described {
    name: String,
    stored: Stored,
    dims: Vec<usize>,
    place: Place,
}

/// Where the elements of an array begin.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// After the header of this entry of a zip archive.
    Entry(usize),
    /// So many bytes into the file.
    Offset(u64),
}

/// The arrays of one file for the inputs of a model.
#[derive(Debug)]
struct Arrays {
    path: PathBuf,
    file: File,
    described: Vec<Described>,
    inputs: Vec<Input>,
    samples: usize,
}

/// The arrays of an `.npz` file, for the inputs of a model.
pub(super) fn npz(path: &Path, inputs: &[Input]) -> Result<Box<dyn Samples>, Error> {
    let (file, described) = npz::describe(path)?;
    Ok(Box::new(Arrays::new(path, file, described, inputs)?))
}

/// The arrays of a `.safetensors` file, for the inputs of a model.
pub(super) fn safetensors(path: &Path, inputs: &[Input]) -> Result<Box<dyn Samples>, Error> {
    let (file, described) = safetensors::describe(path)?;
    Ok(Box::new(Arrays::new(path, file, described, inputs)?))
}

impl Arrays {
    /// Checks what can be known before anything is read: names, shapes, and how much memory it takes.
    fn new(path: &Path, file: File, described: Vec<Described>, inputs: &[Input]) -> Result<Self, Error> {
        let names = described.iter().map(|d| d.name.as_str());
        check_names(names, inputs, path)?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let mut bytes: u64 = 0;
        let is_input = |name: &str| inputs.iter().any(|i| i.name == name);
        let first_input = described.iter().find(|d| is_input(&d.name) && !d.dims.is_empty());
        let samples = first_input.and_then(|d| d.dims.first().copied()).unwrap_or(0);
        for array in &described {
            let Some(&first) = array.dims.first() else {
                if is_single(&array.name, inputs) {
                    continue;
                }
                return Err(no_samples(&array.name, inputs, path));
            };
            bytes = bytes.saturating_add(array.bytes().unwrap_or(u64::MAX));
            if first != samples && is_input(&array.name) {
                let (name, dims) = first_input.map(|d| (d.name.as_str(), d.dims.as_slice())).unwrap_or_default();
                let reason = format!(
                    "arrays {name:?} and {:?} are of the shapes {dims:?} and {:?}, which are different numbers of samples",
                    array.name, array.dims
                );
                return Err(Error::data(path, reason, help(inputs)));
            } else if first != samples {
                let reason = format!("holds {first} labels and {samples} samples");
                return Err(Error::data(path, reason, "give one label for every sample"));
            }
        }
        if bytes > MOST_BYTES.saturating_add(size.saturating_mul(MOST_TIMES)) {
            let reason = format!("its arrays would take {bytes} bytes, and the file has {size}");
            return Err(Error::data(path, reason, "write it without compression, or give fewer samples"));
        }
        Ok(Self { path: path.to_path_buf(), file, described, inputs: inputs.to_vec(), samples })
    }
}

impl Samples for Arrays {
    fn count(&self) -> usize {
        self.samples
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        let mut arrays = Named::new();
        for array in &self.described {
            let tensor = match array.place {
                Place::Entry(entry) => npz::with_entry(&self.path, &self.file, entry, |from| array.read(from, rows)),
                Place::Offset(start) => safetensors::at(&self.path, &self.file, start, |from| array.read(from, rows)),
            };
            let wrong = |reason| Error::data(&self.path, format!("array {:?} {reason}", array.name), WRITE_ANEW);
            arrays.push((array.name.clone(), tensor?.map_err(wrong)?));
        }
        fit(arrays, &self.inputs, &self.path)
    }
}

/// What to do with a file that is not what it says.
const WRITE_ANEW: &str = "write the file anew, for example with numpy.savez";

impl Described {
    /// Bytes of all elements; `None` where there are more than memory can address.
    fn bytes(&self) -> Option<u64> {
        let size = self.dims.iter().try_fold(self.stored.size, |n, &d| n.checked_mul(d))?;
        u64::try_from(size).ok()
    }

    /// Reads the `rows`, in ascending order, and skips the others; the reason where there are too few bytes.
    fn read(&self, mut from: impl Read, rows: &[usize]) -> Result<Tensor, String> {
        let short = |e: std::io::Error| format!("cannot be read: {e}");
        let impossible = || format!("has the impossible shape {:?}", self.dims);
        let all = self.bytes().and_then(|n| usize::try_from(n).ok()).ok_or_else(impossible)?;
        let count = self.dims.first().copied().unwrap_or(0);
        if self.stored.fortran {
            let mut bytes = Vec::new();
            from.take(all as u64).read_to_end(&mut bytes).map_err(short)?;
            return self.tensor(&self.dims, bytes)?.select(0, rows).map_err(|e| e.to_string());
        }
        let mut bytes = Vec::new();
        if self.dims.is_empty() {
            from.take(all as u64).read_to_end(&mut bytes).map_err(short)?;
            return self.tensor(&[], bytes);
        }
        let row = all.checked_div(count).unwrap_or(0);
        bytes.try_reserve_exact(row.saturating_mul(rows.len())).map_err(|e| format!("is too large: {e}"))?;
        let mut next = 0;
        for &wanted in rows {
            let skipped = (wanted.saturating_sub(next) as u64).saturating_mul(row as u64);
            std::io::copy(&mut from.by_ref().take(skipped), &mut std::io::sink()).map_err(short)?;
            let before = bytes.len();
            from.by_ref().take(row as u64).read_to_end(&mut bytes).map_err(short)?;
            if bytes.len().saturating_sub(before) < row {
                return Err("ends before its shape says".into());
            }
            next = wanted.saturating_add(1);
        }
        let mut dims = self.dims.clone();
        dims.splice(..1, [rows.len()]);
        self.tensor(&dims, bytes)
    }

    /// The elements as a tensor of this shape.
    fn tensor(&self, dims: &[usize], mut bytes: Vec<u8>) -> Result<Tensor, String> {
        let Stored { element, narrow, size, big_endian, fortran } = self.stored;
        if big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        let bytes = match narrow {
            None => bytes,
            Some(narrow) => narrow.widened(&bytes)?,
        };
        let wrong = |e: kprune_passes::ir::TensorError| e.to_string();
        if !fortran || dims.len() < 2 {
            return Tensor::from_raw(&self.name, element, dims, bytes.into()).map_err(wrong);
        }
        // The bytes of an array whose axes are the other way round.
        let turned: Vec<usize> = dims.iter().rev().copied().collect();
        let order: Vec<usize> = (0..dims.len()).rev().collect();
        Tensor::from_raw(&self.name, element, &turned, bytes.into()).and_then(|t| t.transposed(&order)).map_err(wrong)
    }
}

impl Narrow {
    fn widened(self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        fn wide<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> i64) -> Vec<u8> {
            bytes.as_chunks::<N>().0.iter().flat_map(|&b| number(b).to_le_bytes()).collect()
        }
        Ok(match self {
            Self::I8 => wide(bytes, |b| i8::from_le_bytes(b).into()),
            Self::I16 => wide(bytes, |b| i16::from_le_bytes(b).into()),
            Self::U16 => wide(bytes, |b| u16::from_le_bytes(b).into()),
            Self::U32 => wide(bytes, |b| u32::from_le_bytes(b).into()),
            Self::U64 => {
                let numbers = bytes.as_chunks::<8>().0.iter().map(|&b| i64::try_from(u64::from_le_bytes(b)));
                let numbers: Vec<i64> = numbers.collect::<Result<_, _>>().map_err(|_| "holds a number above 2^63")?;
                numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
            }
        })
    }
}

/// Whether an input is a single number, which all samples share.
fn is_single(name: &str, inputs: &[Input]) -> bool {
    inputs.iter().any(|i| i.name == name && i.axes.as_ref().is_some_and(Vec::is_empty))
}

fn no_samples(name: &str, inputs: &[Input], path: &Path) -> Error {
    let reason = format!("array {name:?} is a single number, and has no axis of samples");
    Error::data(path, reason, format!("give one entry for every sample along the first axis; {}", help(inputs)))
}

fn help(inputs: &[Input]) -> String {
    let expected: Vec<_> = inputs.iter().map(describe).collect();
    format!("the model takes {}", expected.join("; "))
}

/// Every array is an input or labels, and every input has an array.
fn check_names<'n>(names: impl Iterator<Item = &'n str>, inputs: &[Input], path: &Path) -> Result<(), Error> {
    let names: Vec<&str> = names.collect();
    // Samples begin without earlier tokens, whatever was recorded of them.
    let is_known =
        |name: &str| inputs.iter().any(|i| i.name == name) || labels::NAMES.contains(&name) || kv_cache::is_past(name);
    if let Some(extra) = names.iter().find(|name| !is_known(name)) {
        return Err(Error::data(path, format!("array {extra:?} is no input of the model"), help(inputs)));
    }
    match inputs.iter().find(|i| !names.contains(&i.name.as_str())) {
        Some(input) => Err(Error::data(path, format!("there is no array {:?}", input.name), help(inputs))),
        None => Ok(()),
    }
}

/// The arrays of the model's inputs, in their order, and the labels.
pub(super) fn fit(arrays: Named, inputs: &[Input], path: &Path) -> Result<Part, Error> {
    check_names(arrays.iter().map(|(name, _)| name.as_str()), inputs, path)?;
    let is_input = |name: &str| inputs.iter().any(|i| i.name == name);
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    let mut fitting = Vec::new();
    for input in inputs {
        let missing = || Error::data(path, format!("there is no array {:?}", input.name), help(inputs));
        let array = find(&input.name).ok_or_else(missing)?;
        if array.dims().is_empty() && !is_single(&input.name, inputs) {
            return Err(no_samples(&input.name, inputs, path));
        }
        let element = input.element.unwrap_or(array.element());
        let other = || {
            let reason = format!("array {:?} is not of type {element}: it is of type {}", input.name, array.element());
            Error::data(path, reason, format!("the model takes {}", describe(input)))
        };
        fitting.push(labels::converted(array, element).ok_or_else(other)?);
    }
    let labels = Labels::from_arrays(|name| find(name).filter(|_| !is_input(name)).cloned());
    let labels = labels.map_err(|reason| Error::data(path, reason, "one label for every sample"))?;
    Ok(Part { arrays: fitting, labels, ..Part::default() })
}

/// Arrays that a caller gives, batch by batch.
pub(super) struct Given(Part);

impl Given {
    pub(super) fn of(part: Part) -> Self {
        Self(part)
    }

    pub(super) fn new(batches: &[Named], inputs: &[Input]) -> Result<Self, Error> {
        let path = Path::new("given arrays");
        let parts = batches.iter().map(|batch| fit(batch.clone(), inputs, path)).collect::<Result<_, _>>()?;
        join(parts, inputs, path).map(Self)
    }
}

impl Samples for Given {
    fn count(&self) -> usize {
        self.0.samples()
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        self.0.select(rows)
    }
}

/// The samples of a folder in the ONNX test-data layout: `test_data_set_*/input_*.pb`, each set a batch.
pub(super) struct Sets {
    folder: PathBuf,
    sets: Vec<PathBuf>,
    inputs: Vec<Input>,
    /// Number of samples of every set.
    counts: Vec<usize>,
}

impl Sets {
    pub(super) fn new(folder: &Path, inputs: &[Input]) -> Result<Self, Error> {
        let sets = test_data_sets(folder);
        let counts = sets.iter().map(|set| test_data_set(set, inputs).map(|part| part.samples()));
        let counts = counts.collect::<Result<_, _>>()?;
        Ok(Self { folder: folder.to_path_buf(), sets, inputs: inputs.to_vec(), counts })
    }
}

impl Samples for Sets {
    fn count(&self) -> usize {
        self.counts.iter().sum()
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        let mut parts = Vec::new();
        let mut before = 0;
        for (set, count) in self.sets.iter().zip(&self.counts) {
            let own: Vec<usize> = rows.iter().filter_map(|r| r.checked_sub(before)).filter(|r| r < count).collect();
            if !own.is_empty() {
                parts.push(test_data_set(set, &self.inputs)?.select(&own)?);
            }
            before = before.saturating_add(*count);
        }
        join(parts, &self.inputs, &self.folder)
    }
}

/// The sets of a folder, in order; the folder itself where it is one.
pub(super) fn test_data_sets(folder: &Path) -> Vec<PathBuf> {
    let holds_inputs = |f: &Path| f.join("input_0.pb").is_file();
    if holds_inputs(folder) {
        return vec![folder.to_path_buf()];
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut sets: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| holds_inputs(p)).collect();
    sets.sort_by_key(|p| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        (digits.parse::<u64>().unwrap_or(u64::MAX), name)
    });
    sets
}

fn test_data_set(folder: &Path, inputs: &[Input]) -> Result<Part, Error> {
    let mut arrays = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let path = folder.join(format!("input_{i}.pb"));
        let content = store::read(&path).map_err(Error::io("read", &path))?;
        let wrong = |reason: String| {
            Error::data(&path, reason, "each input_N.pb holds a TensorProto, in the order of the model's inputs")
        };
        let proto = TensorProto::decode(content).map_err(|e| wrong(format!("is no tensor: {e}")))?;
        let name = proto.name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| input.name.clone());
        arrays.push((name, Tensor::from_proto(proto, None).map_err(|e| wrong(e.to_string()))?));
    }
    // Some writers name tensors otherwise, and rely on their order.
    if !arrays.iter().all(|(name, _)| inputs.iter().any(|i| i.name == *name)) {
        arrays.iter_mut().zip(inputs).for_each(|((name, _), input)| name.clone_from(&input.name));
    }
    fit(arrays, inputs, folder)
}
