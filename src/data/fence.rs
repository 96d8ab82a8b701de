//! Foreign readers of files: whatever they do with a hostile one, it is an error about the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::Error;

/// Runs a reader of the file at `path` that may give up with a panic.
pub(super) fn fenced<T>(path: &Path, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let reason = format!("cannot be read: {}", Error::panic_text(&*panic));
        Err(Error::data(path, reason, "the library that reads such files gave up; is it damaged? Write it anew"))
    })
}
