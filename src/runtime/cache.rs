//! Values kept between runs: in memory up to a limit, in a temporary file beyond it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use kprune_passes::ir::{ElementType, Tensor};
use ort::value::DynValue;

use super::tensors::{self, Held};
use super::{Values, host};
use crate::error::Error;

/// Where values are kept.
#[derive(Clone)]
pub struct Cache(Rc<Store>);

struct Store {
    limit: u64,
    used: Cell<u64>,
    spill: RefCell<Option<Spill>>,
}

/// A file that nobody else sees, and the places in it that are free again, by their length.
struct Spill {
    file: File,
    end: u64,
    free: HashMap<u64, Vec<u64>>,
}

/// Values that are kept, by name; dropped, they make room for others.
#[derive(Default)]
pub struct Kept(HashMap<String, Entry>);

struct Entry {
    store: Rc<Store>,
    bytes: u64,
    place: Place,
}

enum Place {
    Memory(Held),
    File { offset: u64, element: ElementType, dims: Vec<usize> },
}

impl Cache {
    /// At most `limit` bytes of values are kept in memory.
    pub fn new(limit: u64) -> Self {
        Self(Rc::new(Store { limit, used: Cell::new(0), spill: RefCell::default() }))
    }

    /// Keeps values.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn keep(&self, values: Values) -> Result<Kept, Error> {
        let mut kept = Kept::default();
        values.into_iter().try_for_each(|(name, value)| self.add(&mut kept, name, value))?;
        Ok(kept)
    }

    /// Keeps one value more.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn add(&self, kept: &mut Kept, name: String, value: DynValue) -> Result<(), Error> {
        kept.0.insert(name, self.entry(value)?);
        Ok(())
    }

    /// Whether values would be kept in memory.
    pub fn has_room_for(&self, values: &Values) -> bool {
        self.0.has_room_for(values.values().map(tensors::size).sum())
    }

    fn entry(&self, value: DynValue) -> Result<Entry, Error> {
        let store = &self.0;
        let bytes = tensors::size(&value);
        let fits = store.has_room_for(bytes);
        let place = match tensors::element(&value).filter(|&e| !fits && bytes > 0 && e != ElementType::String) {
            Some(element) => store.spill(&value, element)?,
            None => Place::Memory(tensors::own(value)?),
        };
        if matches!(place, Place::Memory(_)) {
            store.used.set(store.used.get() + bytes);
        }
        Ok(Entry { store: store.clone(), bytes, place })
    }

    /// The length of the temporary file, in bytes.
    pub fn spilled(&self) -> u64 {
        self.0.spill.borrow().as_ref().map_or(0, |s| s.end)
    }
}

impl Store {
    fn has_room_for(&self, bytes: u64) -> bool {
        self.used.get() + bytes <= self.limit
    }

    fn spill(&self, value: &DynValue, element: ElementType) -> Result<Place, Error> {
        let (dims, bytes) = tensors::content(value)?;
        let mut spill = self.spill.borrow_mut();
        let mut write = || -> std::io::Result<u64> {
            if spill.is_none() {
                *spill = Some(Spill { file: tempfile::tempfile()?, end: 0, free: HashMap::new() });
            }
            spill.as_mut().map_or(Ok(0), |s| s.write(&bytes))
        };
        let offset = write().map_err(Error::io("write to", &std::env::temp_dir()))?;
        Ok(Place::File { offset, element, dims })
    }
}

impl Spill {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<u64> {
        let length = bytes.len() as u64;
        let offset = self.free.get_mut(&length).and_then(Vec::pop).unwrap_or(self.end);
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)?;
        self.end = self.end.max(offset + length);
        Ok(offset)
    }

    fn read(&mut self, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Kept {
    /// The values, readable by sessions.
    ///
    /// # Errors
    /// Where the temporary file cannot be read.
    pub fn load(&self) -> Result<HashMap<String, Held>, Error> {
        self.0.iter().map(|(name, entry)| Ok((name.clone(), entry.load()?))).collect()
    }

    /// Keeps only the values whose names `stays` says.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| stays(name));
    }
}

impl Entry {
    fn load(&self) -> Result<Held, Error> {
        let (offset, element, dims) = match &self.place {
            Place::Memory(held) => return Ok(held.clone()),
            Place::File { offset, element, dims } => (*offset, *element, dims),
        };
        let mut spill = self.store.spill.borrow_mut();
        let read = spill.as_mut().map_or(Ok(Vec::new()), |s| s.read(offset, self.bytes));
        let bytes = read.map_err(Error::io("read from", &std::env::temp_dir()))?;
        let tensor = Tensor::from_raw("kept", element, dims, bytes.into());
        host(&tensor.map_err(|e| Error::internal(e.to_string()))?)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        match (&self.place, self.store.spill.borrow_mut().as_mut()) {
            (Place::Memory(_), _) => self.store.used.set(self.store.used.get() - self.bytes),
            (Place::File { offset, .. }, Some(spill)) => spill.free.entry(self.bytes).or_default().push(*offset),
            (Place::File { .. }, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Choice, Runtime, integers};

    fn value(numbers: &[i64]) -> DynValue {
        ort::value::Tensor::from_array(([numbers.len()], numbers.to_vec())).unwrap().into_dyn()
    }

    fn numbers(kept: &Kept, name: &str) -> Vec<i64> {
        integers(kept.load().unwrap()[name].value()).unwrap().into_iter().collect()
    }

    #[test]
    fn what_does_not_fit_into_memory_comes_back_from_a_file() {
        let _runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).unwrap();
        let cache = Cache::new(20);
        let mut kept = cache.keep([("a".to_string(), value(&[1, 2])), ("b".into(), value(&[3, 4]))].into()).unwrap();
        assert_eq!(cache.spilled(), 16);
        assert_eq!((numbers(&kept, "a"), numbers(&kept, "b")), (vec![1, 2], vec![3, 4]));

        // The place of what was dropped, in memory or in the file, is used again.
        kept.retain(|name| name == "a");
        cache.add(&mut kept, "c".into(), value(&[5, 6])).unwrap();
        assert_eq!(cache.spilled(), 16);
        assert_eq!((numbers(&kept, "a"), numbers(&kept, "c")), (vec![1, 2], vec![5, 6]));
        drop(kept);
        assert_eq!(cache.0.used.get(), 0);
    }
}
