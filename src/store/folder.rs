//! Model folders as `optimum` writes them: a model with its tokenizer and its configuration.

use std::path::{Path, PathBuf};

use kprune_passes::discover::Discovery;
use kprune_passes::ir::Model;
use kprune_passes::onnx::external_locations;
use kprune_passes::plan::Plan;
use serde_json::Value;

use super::config::{self, Sizes};
use super::litter::Litter;
use super::model::{Staged, renamed};
use super::{Ledger, Publication, input, ledger, publish};
use crate::error::Error;

/// Where a model is.
#[derive(Clone, Debug)]
pub struct Source {
    /// The model file.
    pub model: PathBuf,
    /// The folder that was named instead of the file.
    pub folder: Option<PathBuf>,
}

impl Source {
    /// Finds the model at `path`: the file, or the one model of a folder.
    ///
    /// # Errors
    /// Where a folder holds no model, or several of which none is `model.onnx`.
    pub fn find(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            return Err(missing(path));
        }
        if !path.is_dir() {
            return Ok(Self { model: path.to_path_buf(), folder: None });
        }
        let usual = path.join("model.onnx");
        if usual.is_file() {
            return Ok(Self { model: usual, folder: Some(path.to_path_buf()) });
        }
        let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        let files = entries.flatten().map(|e| e.path());
        let mut models: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
        match (models.pop(), models.is_empty()) {
            (Some(model), true) => Ok(Self { model, folder: Some(path.to_path_buf()) }),
            (found, _) => Err(Error::Unsupported {
                path: path.to_path_buf(),
                reason: match found {
                    Some(_) => "the folder holds several models, and none is called model.onnx".into(),
                    None => "the folder holds no .onnx file".into(),
                },
                help: "name the model file instead".into(),
            }),
        }
    }
}

/// That there is no such file, with what may have been meant.
fn missing(path: &Path) -> Error {
    let named = path.to_string_lossy();
    let command = COMMANDS.iter().find(|command| strsim::damerau_levenshtein(command, &named) <= 2);
    let is_of_hub = named.split('/').count() == 2 && !named.starts_with(['.', '/', '~']) && path.extension().is_none();
    let help = match command {
        Some(command) => format!("did you mean the command {command}?"),
        None if is_of_hub => format!(
            "a model of the Hugging Face hub is exported first: optimum-cli export onnx --model {named} folder/, and then \
             onnx-kprune folder/ smaller/"
        ),
        None => "name a file that ends in .onnx, or a folder with one".into(),
    };
    Error::Unsupported { path: path.to_path_buf(), reason: "there is no such file or folder".into(), help }
}

/// What can be called beside pruning.
const COMMANDS: [&str; 5] = ["inspect", "compare", "prune", "completions", "help"];

/// Where a pruned model goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A file.
    File(PathBuf),
    /// A folder, complete with what the source's folder holds.
    Folder(PathBuf),
}

impl Target {
    /// What `output` names, for a model from `source`: a file; in a folder that is there, a file named as the model;
    /// for a folder, a folder.
    ///
    /// # Errors
    /// Where it names a folder that is not there, for a model that is a file.
    pub fn of(output: &Path, source: &Source) -> Result<Self, Error> {
        let names_file = output.extension().is_some_and(|e| e == "onnx") && !output.is_dir();
        if source.folder.is_some() && !names_file {
            return Ok(Self::Folder(output.to_path_buf()));
        }
        let ends_as_folder = output.as_os_str().as_encoded_bytes().last() == Some(&(std::path::MAIN_SEPARATOR as u8));
        match (output.is_dir(), &source.model.file_name()) {
            (true, Some(name)) => Ok(Self::File(output.join(name))),
            (false, _) if ends_as_folder => {
                let message = format!("OUT: there is no folder {}; make it, or name a file", output.display());
                Err(Error::Usage(message))
            }
            _ => Ok(Self::File(output.to_path_buf())),
        }
    }

    /// Notes what is written there for the model of `source`, which keeps data in the files `external`.
    pub fn note_in(&self, ledger: Ledger, source: &Source, external: &[String]) -> Ledger {
        match self {
            Self::Folder(path) => ledger.making("OUT", path),
            Self::File(path) => {
                let place = |location: &String| {
                    let target = resolved(path);
                    folder_of(&target).join(renamed(location, &source.model, &target))
                };
                ledger.writing("OUT", path).writing_all("external data of OUT", external.iter().map(place))
            }
        }
    }

    /// The same with a compression in its name.
    pub fn named_after(&self, compression: f64) -> Self {
        let rename = |path: &Path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = match path.extension().filter(|_| matches!(self, Self::File(_))) {
                Some(extension) => format!("{stem}-{compression}.{}", extension.to_string_lossy()),
                None => format!("{}-{compression}", path.file_name().unwrap_or_default().to_string_lossy()),
            };
            path.with_file_name(name)
        };
        match self {
            Self::File(path) => Self::File(rename(path)),
            Self::Folder(path) => Self::Folder(rename(path)),
        }
    }

    /// The path that the user named.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Folder(path) => path,
        }
    }
}

/// The folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a file really is, or would be: links are followed, also where what they name is not there yet.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(named) = std::fs::read_link(&path) else { break };
        path = folder_of(&path).join(named);
    }
    let by_folder = || {
        let name = path.file_name()?;
        Some(folder_of(&path).canonicalize().ok()?.join(name))
    };
    path.canonicalize().ok().or_else(by_folder).unwrap_or(path)
}

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// A folder that is complete but for its model, and put in place whole.
pub(crate) struct StagedFolder {
    target: PathBuf,
    files: Vec<(PathBuf, PathBuf)>,
    /// Configurations that will say what was pruned, by the name of their file.
    configs: Vec<(&'static str, Value)>,
}

impl StagedFolder {
    /// Everything of the folder `source` but the model and weights in other forms, to be copied to `target`.
    /// `config.json` and `genai_config.json` will say what `plan` pruned.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub(crate) fn new(
        source: &Source,
        model: &Model,
        target: &Path,
        found: &Discovery,
        plan: &Plan,
    ) -> Result<Self, Error> {
        let folder = source.folder.as_deref().unwrap_or(folder_of(&source.model));
        let files = rest_of_folder(source, model);
        let sizes = Sizes::of(model, found, plan);
        let mut configs = Vec::new();
        for (name, describe) in config::FILES {
            let path = folder.join(name);
            if path.is_file() {
                let content = input::read(&path).map_err(Error::io("read", &path))?;
                configs.extend(serde_json::from_slice(&content).ok().map(|config| (name, describe(config, &sizes))));
            }
        }
        Ok(Self { target: target.to_path_buf(), files, configs })
    }

    /// Makes the folder beside its target, with the model and a file of text in it, and adds it to what is put in place together.
    ///
    /// # Errors
    /// Where a file cannot be copied.
    pub(crate) fn publish_with(
        self,
        model: Staged,
        (name, card): (&str, &str),
        publication: &mut Publication,
    ) -> Result<(), Error> {
        let failed = |path: &Path| Error::io("write", path);
        let place = Litter::beside(&self.target, |path| std::fs::create_dir(path)).map_err(failed(&self.target))?;
        for (inner, source) in &self.files {
            copy(source, &place.path().join(inner))?;
        }
        for (name, config) in &self.configs {
            let path = place.path().join(name);
            std::fs::write(&path, publish::json(config)?).map_err(failed(&path))?;
        }
        let path = place.path().join(name);
        std::fs::write(&path, card).map_err(failed(&path))?;
        model.moved_to(place.path()).put_in_place().map_err(failed(&self.target))?;
        publication.add_folder(place, self.target);
        Ok(())
    }
}

/// Everything of the folder of `source` but the model and weights in other forms: where it is in the folder, and its path.
pub(crate) fn rest_of_folder(source: &Source, model: &Model) -> Vec<(PathBuf, PathBuf)> {
    let folder = source.folder.as_deref().unwrap_or(folder_of(&source.model));
    let mut left_out: Vec<PathBuf> = external_locations(model).iter().map(|l| folder.join(l)).collect();
    left_out.push(source.model.clone());
    let inner = |file: PathBuf| Some((file.strip_prefix(folder).ok()?.to_path_buf(), file));
    let stays = |file: &PathBuf| !left_out.contains(file) && !holds_weights(file);
    ledger::files_below(folder).into_iter().filter(stays).filter_map(inner).collect()
}

/// Copies what a file holds, and no permissions, into a folder that is made where it is not there.
///
/// # Errors
/// Where it cannot be read or written.
pub(crate) fn copy(source: &Path, target: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder_of(target)).map_err(Error::io("write", target))?;
    let mut from = input::open(source).map_err(Error::io("read", source))?;
    let mut to = std::fs::File::create_new(target).map_err(Error::io("write", target))?;
    std::io::copy(&mut from, &mut to).map(|_| ()).map_err(Error::io("write", target))
}

/// Whether a file holds weights, which would be those of the original.
fn holds_weights(file: &Path) -> bool {
    let name = file.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let kinds = [".onnx", ".onnx_data", ".onnx.data", ".safetensors", ".h5", ".msgpack", ".ckpt", ".pt", ".pth"];
    kinds.iter().any(|kind| name.ends_with(kind)) || name.starts_with("pytorch_model")
}
