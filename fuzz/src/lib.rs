//! What onnx-kprune is fed to find out where it gives up: random graphs that are valid, models that are not, and data
//! files of every kind; and what may come of it.
//!
//! The fuzz targets, the soak test and the tests of the repository share this.

mod choices;
pub mod graphs;
pub mod mutate;

use std::path::{Path, PathBuf};

pub use choices::Choices;
use kprune_passes::onnx;
use onnx_kprune::data::{Dataset, Sources};
use onnx_kprune::inspect::inspect_with;
use onnx_kprune::runtime::{Choice, Runtime};
use onnx_kprune::{Error, Options, Pruner};
use tempfile::TempDir;

/// What came of one execution.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It was refused, with this message.
    Refused(String),
    /// The program blames itself: an internal error, or a result that does not agree.
    Defect(String),
}

impl Outcome {
    fn of<T>(result: Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error @ (Error::Internal(_) | Error::Verify { .. })) => Self::Defect(error.to_string()),
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// A runtime, and a folder for the files that the program is given.
pub struct Bench {
    runtime: Runtime,
    folder: TempDir,
    options: Options,
}

impl Bench {
    /// With one thread, on the CPU.
    ///
    /// # Panics
    /// If there is no ONNX Runtime or no place for files.
    #[expect(clippy::new_without_default, reason = "it starts a runtime")]
    pub fn new() -> Self {
        let runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).expect("ONNX Runtime is installed");
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let mut options = Options::default();
        options.data.calibration = Sources { samples: Some(8), seq_len: Some(6), ..Sources::default() };
        options.data.batch_size = Some(4);
        options.runtime.threads = 1;
        Self { runtime, folder: folder.expect("a folder can be made"), options }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        path
    }

    /// Looks at a model.
    pub fn inspect(&self, model: &[u8]) -> Outcome {
        let path = self.file("in.onnx", model);
        Outcome::of(inspect_with(&self.runtime, &path, &self.options).map(|seen| seen.text(true)))
    }

    /// Prunes a valid model, and leaves nothing behind but what was asked for.
    ///
    /// # Panics
    /// If files are left that should not be there.
    pub fn prune(&self, model: &[u8], choices: &mut Choices) -> Outcome {
        let path = self.file("in.onnx", model);
        let target = self.folder.path().join("out.onnx");
        let share = 0.1 + 0.1 * choices.below(9) as f64;
        let pruner = Pruner::new(path).options(|options| *options = self.options.clone()).compression(share);
        let result = pruner.prune_with(&self.runtime, Some(&target));
        let written = target.is_file();
        assert_eq!(written, result.is_ok(), "a model is written if all went well, and only then");
        let _ = std::fs::remove_file(&target);
        let left = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten().map(|e| e.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains(".tmp")).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        match result {
            // The graph is valid, so that one of the program's own made from it is not.
            Err(error @ Error::Runtime { .. }) => Outcome::Defect(error.to_string()),
            result => Outcome::of(result),
        }
    }

    /// Reads a data file, whose kind its ending says, for the model at `model`.
    pub fn data(&self, ending: &str, content: &[u8], model: &Path) -> Outcome {
        let path = self.file(&format!("data.{ending}"), content);
        let read = || {
            let model_read = onnx_kprune::store::read_inlined(model)?;
            let sources = Sources { files: vec![path.clone()], samples: Some(4), ..Sources::default() };
            Dataset::gather(&model_read, model, &sources, 1)?.batches(4).map(|_| ())
        };
        Outcome::of(read())
    }
}

/// Reads the bytes of a model, and writes what was read.
pub fn read(content: &[u8]) -> Outcome {
    let mut files = |_: &str| Err("there are no files here".to_string());
    match onnx::read_inlined(content, &mut files) {
        Ok(model) => {
            let written = onnx::write(&model, &str::to_string);
            let mut bytes = Vec::new();
            match onnx::encode(written.model, &mut bytes) {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Defect(error.to_string()),
            }
        }
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

/// The bytes of a model.
///
/// # Panics
/// Never, but for want of memory.
pub fn encoded(model: &kprune_passes::ir::Model) -> Vec<u8> {
    let mut bytes = Vec::new();
    onnx::encode(onnx::write(model, &str::to_string).model, &mut bytes).expect("memory can be written");
    bytes
}
