//! A folder that goes with the run.

use std::path::Path;

use super::litter::Litter;
use crate::error::Error;

/// A folder for what a run makes on its way; it goes when this is dropped, or the program ends.
#[derive(Debug)]
pub(crate) struct Scratch(Litter);

impl Scratch {
    /// A new folder beside `target`, where there is room for what will be there.
    ///
    /// # Errors
    /// Where none can be made there.
    pub(crate) fn beside(target: &Path) -> Result<Self, Error> {
        let made = Litter::beside(target, |path| std::fs::create_dir(path));
        made.map(Self).map_err(Error::io("write", target))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}
