//! ONNX Runtime: the library, the execution provider, sessions, and tensors on the host.

mod cache;
mod interrupt;
mod library;
mod session;
mod tensors;
mod weights;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProvider};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session as OrtSession;
use ort::session::builder::SessionBuilder;

pub use cache::{Cache, Kept};
pub use session::{Purpose, Session, Values};
pub use tensors::{
    Held, changeable, element, host, integers, is_nonzero, numbers, numbers_of, numbers_of_mut, odd, own, scalars,
};

use crate::error::Error;
use interrupt::Interrupt;
use weights::Weights;
pub use weights::knows;

/// Which execution provider to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// CUDA where the library and a device are there, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this number, or an error.
    Cuda(i32),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|&n: &i32| n >= 0);
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", device)) => {
                number(device).map(Self::Cuda).ok_or_else(|| format!("{device:?} is no device number"))
            }
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

/// The execution provider that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// The CUDA device with this number.
    Cuda(i32),
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(device) => write!(f, "cuda:{device}"),
        }
    }
}

/// A loaded ONNX Runtime with the settings that all sessions share.
pub struct Runtime {
    environment: ort::environment::Environment,
    library: PathBuf,
    provider: Provider,
    threads: usize,
    tf32: Cell<bool>,
    weights: RefCell<Weights>,
    set_up: Cell<Duration>,
    interrupt: Arc<Interrupt>,
}

impl Runtime {
    /// Finds and loads ONNX Runtime. `threads` 0 leaves their number to the machine; that of solves is set for the
    /// whole process. Once `cancelled` is set, the work ends at the next operator.
    ///
    /// # Errors
    /// Where no library is found, or the provider asked for is not there.
    pub fn load(
        library: Option<&Path>,
        choice: Choice,
        threads: usize,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let (environment, library) = library::load(library)?;
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let mut this = Self {
            environment,
            library,
            provider: Provider::Cpu,
            threads,
            tf32: Cell::new(false),
            weights: RefCell::default(),
            set_up: Cell::default(),
            interrupt: Interrupt::watch(cancelled)?,
        };
        kprune_passes::linalg::use_threads(threads);
        this.provider = this.choose(choice)?;
        Ok(this)
    }

    fn choose(&self, choice: Choice) -> Result<Provider, Error> {
        match choice {
            Choice::Cpu => Ok(Provider::Cpu),
            Choice::Cuda(device) => {
                self.try_cuda(device).map(|()| Provider::Cuda(device)).map_err(|reason| Error::Provider { reason })
            }
            Choice::Auto => Ok(self.try_cuda(0).map_or(Provider::Cpu, |()| Provider::Cuda(0))),
        }
    }

    /// Whether a session can be made on a CUDA device.
    fn try_cuda(&self, device: i32) -> Result<(), String> {
        let available = CUDA::is_available().map_err(|e| e.to_string())?;
        if !available {
            return Err(format!("{} has no CUDA provider", self.library.display()));
        }
        library::preload_cuda(&self.library);
        let builder = OrtSession::builder(&self.environment).map_err(|e| e.to_string())?;
        with_cuda(builder, device, self.tf32.get()).map(|_| ()).map_err(|e| e.to_string())
    }

    /// The same, with products rounded to TF32 on CUDA where `tf32` says so.
    pub fn with_tf32(self, tf32: bool) -> Self {
        self.tf32.set(tf32);
        self
    }

    /// Does work whose sessions compute in full f32, whatever else was asked for.
    pub fn in_full_precision<T>(&self, work: impl FnOnce() -> T) -> T {
        let asked = self.tf32.replace(false);
        let done = work();
        self.tf32.set(asked);
        done
    }

    /// Where the library was found.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The execution provider of all sessions.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Threads of all sessions.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many tokens to run at once: products get no faster beyond, and memory grows.
    pub fn tokens_at_once(&self) -> usize {
        match self.provider {
            Provider::Cpu => 256.max(64 * self.threads),
            Provider::Cuda(_) => 16384,
        }
    }

    /// Time spent so far on making sessions.
    pub fn set_up(&self) -> Duration {
        self.set_up.get()
    }

    /// Where outputs may stay; `None` where that is the host.
    fn device(&self) -> Result<Option<MemoryInfo<'static>>, Error> {
        match self.provider {
            Provider::Cpu => Ok(None),
            Provider::Cuda(device) => {
                let memory =
                    MemoryInfo::new(AllocationDevice::CUDA, device, AllocatorType::Device, MemoryType::Default);
                memory.map(Some).map_err(Error::runtime("finding the device's memory"))
            }
        }
    }

    /// Does work whose runs end after `time`, or once the process has `more` bytes of memory more than now; `Err` with
    /// the reason where they did.
    pub(crate) fn within<T>(&self, time: Duration, more: u64, work: impl FnOnce() -> T) -> Result<T, String> {
        self.interrupt.within(time, more, work)
    }

    /// # Errors
    /// [`Error::Interrupted`] once the flag is set.
    pub fn check_cancelled(&self) -> Result<(), Error> {
        self.interrupt.check()
    }

    /// What makes sessions, for models of so many weights.
    fn builder(&self, purpose: Purpose, weights: usize) -> Result<SessionBuilder, ort::Error> {
        use ort::session::builder::GraphOptimizationLevel::{Disable, Level3};
        let builder = OrtSession::builder(&self.environment)?.with_intra_threads(self.threads)?;
        let builder = builder.with_optimization_level(if purpose == Purpose::Trial { Disable } else { Level3 })?;
        let builder = builder.with_memory_pattern(false)?;
        // Weights are copied to where products read them fastest. That takes as much memory once more, and with batches of a
        // few hundred tokens a pass of the model takes an eighth longer without; of a whole run that is a fortieth.
        let is_copied = purpose == Purpose::Timing || (purpose == Purpose::Work && weights < MANY_WEIGHTS);
        let builder = builder.with_config_entry("session.disable_prepacking", if is_copied { "0" } else { "1" })?;
        // Several sessions take turns: the threads of one that waits must not take the cores of one that runs.
        let builder = builder.with_config_entry("session.force_spinning_stop", "1")?;
        match self.provider {
            Provider::Cpu => Ok(builder),
            Provider::Cuda(device) => with_cuda(builder, device, self.tf32.get()),
        }
    }
}

/// Weights of so many numbers are not copied for each session.
const MANY_WEIGHTS: usize = 1 << 26;

/// CUDA, with full f32 products unless coarser ones were asked for.
fn with_cuda(builder: SessionBuilder, device: i32, tf32: bool) -> Result<SessionBuilder, ort::Error> {
    let cuda = CUDA::default()
        .with_device_id(device)
        .with_tf32(tf32)
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        .build()
        .error_on_failure();
    Ok(builder.with_execution_providers([cuda])?)
}
