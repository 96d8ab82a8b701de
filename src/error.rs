//! What can go wrong, in words that name the file, node or value and say what to do.

use std::path::{Path, PathBuf};

use kprune_passes::finite::NotFinite;
use kprune_passes::methods::Failure;
use miette::Diagnostic;
use thiserror::Error;

/// An error of the program.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The input is no model that can be worked on.
    #[error("{}: {reason}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: kprune_passes::onnx::ReadError,
    },
    /// Something about the model is not supported.
    #[error("{}: {reason}", path.display())]
    #[diagnostic(help("{help}"))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },
    /// The library that was asked for cannot be used.
    #[error("cannot load ONNX Runtime from {}: {reason}", path.display())]
    #[diagnostic(help("give the file libonnxruntime.so of ONNX Runtime 1.17 or newer, or leave the option away"))]
    Library {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No library was found.
    #[error("ONNX Runtime was not found{}", tried_list(tried))]
    #[diagnostic(help(
        "install it with: pip install onnxruntime\n(or name a library with --onnxruntime PATH or ORT_DYLIB_PATH)"
    ))]
    NoLibrary {
        /// Files that did not load, with reasons.
        tried: Vec<String>,
    },
    /// The execution provider that was asked for is not there.
    #[error("the CUDA provider was asked for and cannot be used: {reason}")]
    #[diagnostic(help("install onnxruntime-gpu and a driver for the device, or use --provider cpu"))]
    Provider {
        /// What ONNX Runtime says.
        reason: String,
    },
    /// ONNX Runtime refuses a graph or fails to run it.
    #[error("ONNX Runtime failed while {doing}: {reason}")]
    Runtime {
        /// What was being done.
        doing: String,
        /// What ONNX Runtime says.
        reason: String,
    },
    /// Data that do not fit the model.
    #[error("data {}: {reason}", source_name(path))]
    #[diagnostic(help("{help}"))]
    Data {
        /// The file; empty for data that the program makes.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },
    /// A number that is not finite, where nothing can be chosen with one.
    #[error("{place}: {what} is {value}, and nothing can be learnt from that")]
    #[diagnostic(help("{help}"))]
    NotFinite {
        /// The file, sublayer or samples.
        place: String,
        /// The weight, output or sum.
        what: String,
        /// NaN, or an infinity.
        value: f64,
        /// What to do.
        help: String,
    },
    /// A use that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The result does not agree with the masked original.
    #[error("the pruned model does not agree with the masked original: {reason}; nothing was written")]
    #[diagnostic(help("this is a defect of onnx-kprune: please report it with the model"))]
    Verify {
        /// Where and by how much they differ.
        reason: String,
    },
    /// Ctrl-C.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// A defect of the program.
    #[error("internal error: {0}")]
    #[diagnostic(help("this is a defect of onnx-kprune: please report it"))]
    Internal(String),
}

impl From<Failure> for Error {
    /// What ended a method: an error of the walk, or a number that is not finite.
    fn from(failure: Failure) -> Self {
        let failure = match failure.downcast::<Self>() {
            Ok(error) => return *error,
            Err(failure) => failure,
        };
        match failure.downcast::<NotFinite>() {
            Ok(odd) => not_finite(odd.place, &odd.what, odd.value),
            Err(failure) => Self::internal(failure.to_string()),
        }
    }
}

/// A number that is not finite, where all before it were.
pub(crate) fn not_finite(place: String, what: &str, value: f64) -> Error {
    let help = "leave these samples out; where that does not help, the model overflows within: keep it in float32, or \
                scale its inputs";
    Error::NotFinite { place, what: what.into(), value, help: help.into() }
}

impl Error {
    /// A failure to `action` the file at `path`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |reason| Self::Io { action, path, reason }
    }

    /// Data at `path` that do not fit, with advice.
    pub fn data(path: &Path, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Data { path: path.to_path_buf(), reason: reason.into(), help: help.into() }
    }

    /// A defect of the program.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }

    /// The same about the model at `path`, where it is about nothing yet.
    pub fn about(self, path: &Path) -> Self {
        match self {
            Self::Data { path: none, reason, help } | Self::Unsupported { path: none, reason, help }
                if none.as_os_str().is_empty() =>
            {
                Self::Unsupported { path: path.to_path_buf(), reason, help }
            }
            other => other,
        }
    }

    /// The same about the file that the user named, where it is about one that was made of it.
    pub(crate) fn about_original(mut self, made: &Path, original: &Path) -> Self {
        match &mut self {
            Self::Unsupported { path, .. } | Self::Model { path, .. } | Self::Data { path, .. } if path == made => {
                *path = original.to_path_buf();
            }
            _ => {}
        }
        self
    }

    /// A defect that made the program, or a library that it uses, give up.
    pub fn of_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        Self::Internal(Self::panic_text(panic).to_string())
    }

    /// What was said on giving up.
    pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave up without a reason")
    }

    /// A failure of ONNX Runtime while `doing` something.
    pub fn runtime(doing: &str) -> impl FnOnce(ort::Error) -> Self {
        let doing = doing.to_string();
        move |e| Self::Runtime { doing, reason: e.to_string() }
    }

    /// The exit status for this error.
    pub fn status(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

fn tried_list(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!("; these did not load:\n  {}", tried.join("\n  ")) }
}

fn source_name(path: &Path) -> String {
    if path.as_os_str().is_empty() { "made for this model".into() } else { path.display().to_string() }
}
