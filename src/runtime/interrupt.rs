//! Ending runs of ONNX Runtime before they are done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ort::session::RunOptions;

use crate::error::Error;

/// How often somebody looks whether to end.
const LOOK: Duration = Duration::from_millis(20);

/// The wish to end, and the options of all runs, by which ONNX Runtime ends one between two operators.
pub(super) struct Interrupt {
    cancelled: Arc<AtomicBool>,
    options: RunOptions,
}

impl Interrupt {
    /// Watches `cancelled` as long as somebody holds what is returned.
    pub(super) fn watch(cancelled: Arc<AtomicBool>) -> Result<Arc<Self>, Error> {
        let options = RunOptions::new().map_err(Error::runtime("starting"))?;
        let this = Arc::new(Self { cancelled, options });
        let watched = Arc::downgrade(&this);
        std::thread::spawn(move || {
            while let Some(this) = watched.upgrade() {
                if this.cancelled.load(Ordering::Relaxed) {
                    let _ = this.options.terminate();
                    return;
                }
                drop(this);
                std::thread::sleep(LOOK);
            }
        });
        Ok(this)
    }

    /// # Errors
    /// [`Error::Interrupted`] once the flag is set.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// What all runs are given.
    pub(super) fn options(&self) -> &RunOptions {
        &self.options
    }

    /// What went wrong in a run, which may be that it was ended.
    pub(super) fn error(&self, doing: &str, error: ort::Error) -> Error {
        self.check().err().unwrap_or_else(|| Error::runtime(doing)(error))
    }
}
