//! Model folders as `optimum` writes them: a model with its tokenizer and its configuration.

use std::path::{Path, PathBuf};

use kprune_passes::discover::{Discovery, Kind};
use kprune_passes::ir::Model;
use kprune_passes::onnx::external_locations;
use kprune_passes::plan::Plan;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::Error;
use crate::files;

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

/// Where a pruned model goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A file.
    File(PathBuf),
    /// A folder, complete with what the source's folder holds.
    Folder(PathBuf),
}

impl Target {
    /// What `output` names, for a model from `source`.
    ///
    /// # Errors
    /// Where it cannot be written there.
    pub fn of(output: &Path, source: &Source) -> Result<Self, Error> {
        let names_file = output.extension().is_some_and(|e| e == "onnx");
        let Some(folder) = source.folder.as_ref().filter(|_| !names_file) else {
            return Ok(Self::File(output.to_path_buf()));
        };
        let (inner, outer) = (folder_of(output).canonicalize(), folder.canonicalize());
        if inner.is_ok_and(|inner| outer.is_ok_and(|outer| inner.starts_with(outer))) {
            return Err(Error::Usage("OUT lies within IN, which is never changed; name another folder".into()));
        }
        let is_free = !output.exists() || std::fs::read_dir(output).is_ok_and(|mut d| d.next().is_none());
        match is_free {
            true => Ok(Self::Folder(output.to_path_buf())),
            false => Err(Error::Usage(format!(
                "{} is there already, and is no empty folder; name another one or remove it",
                output.display()
            ))),
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
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A folder that is made beside its target and put in place whole.
pub struct StagedFolder {
    place: TempDir,
    target: PathBuf,
}

impl StagedFolder {
    /// Copies everything but the model, and weights in other forms, from `source` to a new folder beside `target`.
    ///
    /// # Errors
    /// Where a file cannot be copied.
    pub fn new(source: &Path, model_file: &Path, model: &Model, target: &Path) -> Result<Self, Error> {
        let place = tempfile::Builder::new().prefix(".onnx-kprune-").suffix(".tmp").tempdir_in(folder_of(target));
        let place = place.map_err(Error::io("write", target))?;
        let mut left_out: Vec<PathBuf> = external_locations(model).iter().map(|l| source.join(l)).collect();
        left_out.push(model_file.to_path_buf());
        copy(source, place.path(), &left_out)?;
        Ok(Self { place, target: target.to_path_buf() })
    }

    /// Where the model is to be written.
    pub fn model(&self, like: &Path) -> PathBuf {
        self.place.path().join(like.file_name().unwrap_or("model.onnx".as_ref()))
    }

    /// Says in `config.json`, if there is one, what was pruned.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn describe(&self, found: &Discovery, plan: &Plan) -> Result<(), Error> {
        let path = self.place.path().join("config.json");
        let Ok(content) = std::fs::read(&path) else { return Ok(()) };
        match serde_json::from_slice::<Value>(&content) {
            Ok(Value::Object(config)) => files::write_json(&path, &describe(config, found, plan)),
            _ => Ok(()),
        }
    }

    /// Puts the folder in place.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn publish(self) -> Result<(), Error> {
        let failed = |e| Error::io("write", &self.target)(e);
        if self.target.is_dir() {
            std::fs::remove_dir(&self.target).map_err(failed)?;
        }
        open_to_all(self.place.path());
        std::fs::rename(self.place.path(), &self.target).map_err(|e| Error::io("write", &self.target)(e))?;
        let _ = self.place.keep();
        Ok(())
    }
}

/// Temporary folders are private; the result is an ordinary folder.
#[cfg(unix)]
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755));
}

#[cfg(not(unix))]
fn open_to_all(_: &Path) {}

fn copy(from: &Path, to: &Path, left_out: &[PathBuf]) -> Result<(), Error> {
    for entry in std::fs::read_dir(from).map_err(Error::io("read", from))? {
        let source = entry.map_err(Error::io("read", from))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        if left_out.contains(&source) || holds_weights(&source) {
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir(&target).map_err(Error::io("write", &target))?;
            copy(&source, &target, left_out)?;
        } else {
            std::fs::copy(&source, &target).map_err(Error::io("write", &target))?;
        }
    }
    Ok(())
}

/// Whether a file holds weights, which would be those of the original.
fn holds_weights(file: &Path) -> bool {
    let name = file.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let kinds = [".onnx", ".onnx_data", ".onnx.data", ".safetensors", ".h5", ".msgpack", ".ckpt", ".pt", ".pth"];
    kinds.iter().any(|kind| name.ends_with(kind)) || name.starts_with("pytorch_model")
}

/// A configuration that is true of the pruned model.
///
/// Where all layers keep as many heads or neurons, the usual fields say so. Heads that differ by layer are listed
/// in `pruned_heads`, which is what the format has for them; for neurons it has nothing, so that a note of ours
/// holds the number of each layer.
fn describe(mut config: serde_json::Map<String, Value>, found: &Discovery, plan: &Plan) -> Value {
    let heads = plan.kept(found, Kind::Head);
    let neurons = plan.kept(found, Kind::Neuron);
    let uniform = |kept: &[usize]| kept.first().copied().filter(|first| kept.iter().all(|n| n == first));
    let rename = |config: &serde_json::Map<String, Value>, names: &[&str]| {
        names.iter().find(|n| config.get(**n).is_some_and(Value::is_u64)).map(|n| n.to_string())
    };
    let layers = rename(&config, &["num_hidden_layers", "n_layers", "num_layers"]).and_then(|n| config[&n].as_u64());
    let head_field = rename(&config, &["num_attention_heads", "n_heads", "num_heads"]);
    let neuron_field = rename(&config, &["intermediate_size", "hidden_dim", "d_ff", "ffn_dim"]);
    let is_layer = |kept: &[usize]| layers == Some(kept.len() as u64);
    match (&head_field, uniform(&heads)) {
        (Some(field), Some(all)) if is_layer(&heads) => {
            config.insert(field.clone(), all.into());
        }
        (Some(_), _) if is_layer(&heads) => {
            let sublayers = plan.each(found).filter(|(s, _)| s.kind == Kind::Head).enumerate();
            let gone = sublayers.map(|(layer, (_, decision))| {
                let gone: Vec<usize> = (0..decision.keep.len()).filter(|&u| !decision.keep[u]).collect();
                (layer.to_string(), json!(gone))
            });
            config.insert("pruned_heads".into(), gone.filter(|(_, g)| g != &json!([])).collect());
        }
        _ => {}
    }
    if let (Some(field), Some(all), true) = (&neuron_field, uniform(&neurons), is_layer(&neurons)) {
        config.insert(field.clone(), all.into());
    }
    let note = json!({ "version": env!("CARGO_PKG_VERSION"), "attention_heads": heads, "neurons": neurons });
    config.insert("onnx_kprune".into(), note);
    Value::Object(config)
}
