//! Ending runs of ONNX Runtime before they are done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ort::session::RunOptions;

use crate::error::Error;
use crate::machine::memory;

/// How often somebody looks whether to end.
const LOOK: Duration = Duration::from_millis(20);

/// The wish to end, and the options of all runs, by which ONNX Runtime ends one between two operators.
pub(super) struct Interrupt {
    cancelled: Arc<AtomicBool>,
    options: RunOptions,
    bounds: Mutex<Option<Bounds>>,
}

/// What runs may take, and what they took too much of.
struct Bounds {
    until: Instant,
    memory: u64,
    exceeded: Option<String>,
}

impl Interrupt {
    /// Watches `cancelled`, and the bounds of runs, as long as somebody holds what is returned.
    pub(super) fn watch(cancelled: Arc<AtomicBool>) -> Result<Arc<Self>, Error> {
        let options = RunOptions::new().map_err(Error::runtime("starting"))?;
        let this = Arc::new(Self { cancelled, options, bounds: Mutex::new(None) });
        let watched = Arc::downgrade(&this);
        std::thread::spawn(move || {
            while let Some(this) = watched.upgrade() {
                if this.check().is_err() {
                    let _ = this.options.terminate();
                    return;
                }
                this.look_at_bounds();
                drop(this);
                std::thread::sleep(LOOK);
            }
        });
        Ok(this)
    }

    fn bounds(&self) -> MutexGuard<'_, Option<Bounds>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at_bounds(&self) {
        if let Some(bounds) = self.bounds().as_mut().filter(|b| b.exceeded.is_none()) {
            if Instant::now() > bounds.until {
                bounds.exceeded = Some("it took too long".into());
            } else if memory().is_some_and(|used| used > bounds.memory) {
                bounds.exceeded = Some("it took too much memory".into());
            }
            if bounds.exceeded.is_some() {
                let _ = self.options.terminate();
            }
        }
    }

    /// Does work whose runs end after `time`, or once the process has `more` bytes of memory more than now; `Err` with
    /// the reason where they did.
    pub(super) fn within<T>(&self, time: Duration, more: u64, work: impl FnOnce() -> T) -> Result<T, String> {
        let memory = memory().unwrap_or(0).saturating_add(more);
        *self.bounds() = Some(Bounds { until: Instant::now() + time, memory, exceeded: None });
        let done = work();
        let bounds = self.bounds().take();
        match bounds.and_then(|b| b.exceeded) {
            None => Ok(done),
            Some(reason) => {
                let _ = self.options.unterminate();
                Err(reason)
            }
        }
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
