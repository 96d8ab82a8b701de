//! The files beside a model that name tokens or their ids.

use std::path::Path;

use kprune_passes::ir::Model;
use serde_json::{Map, Value, json};

use super::tokenizer::{Tokens, number};
use super::{TOKENIZER, new_id, read_json};
use crate::error::Error;
use crate::store::{self, Source};

/// Settings of transformers and of ONNX Runtime GenAI that name ids.
const SETTINGS: [&str; 3] = ["config.json", "generation_config.json", "genai_config.json"];

/// Settings whose ids may be missing: what is not there needs no forbidding.
const FORBIDDEN: [&str; 3] = ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"];

/// Forms of a tokenizer that are not rewritten; `tokenizer.json` says the same.
const OTHERS: [&str; 5] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"];

/// The ids that are named beside a model of `size` tokens.
///
/// # Errors
/// Where a file cannot be read.
pub(super) fn named(source: &Source, size: usize) -> Result<Vec<usize>, Error> {
    let mut named = Vec::new();
    for name in SETTINGS {
        let path = source.model.with_file_name(name);
        if path.is_file() {
            for_ids(&mut read_json(&path)?, &mut |id| {
                named.extend(number(id).filter(|id| *id < size));
            });
        }
    }
    Ok(named)
}

/// Does something to every id that a setting names, as `eos_token_id`: a number or a list of some.
fn for_ids(settings: &mut Value, act: &mut dyn FnMut(&mut Value)) {
    let Value::Object(entries) = settings else { return };
    for (key, value) in entries {
        match value {
            Value::Number(_) if key.ends_with("token_id") => act(value),
            Value::Array(ids) if key.ends_with("token_id") || key.ends_with("token_ids") => {
                ids.iter_mut().for_each(&mut *act)
            }
            nested => for_ids(nested, act),
        }
    }
}

/// Writes everything of the source's folder but the model into `folder`, true of the tokens that stay.
///
/// # Errors
/// Where a file cannot be read or written, or the tokenizer names what the model does not have.
pub(super) fn write(
    source: &Source,
    model: &Model,
    folder: &Path,
    keep: &[usize],
    tokens: &Tokens,
) -> Result<(), Error> {
    for (inner, file) in store::rest_of_folder(source, model) {
        let target = folder.join(&inner);
        let name = inner.to_str().unwrap_or_default();
        let content = match name {
            _ if OTHERS.contains(&name) => continue,
            TOKENIZER => store::json(&tokens.cut(keep)?)?,
            name if SETTINGS.contains(&name) => store::json(&settings(read_json(&file)?, keep))?,
            "tokenizer_config.json" => store::json(&tokenizer_settings(read_json(&file)?, keep))?,
            "added_tokens.json" => store::json(&by_name(read_json(&file)?, keep))?,
            "vocab.json" => {
                store::json(&tokens.renumbered(keep).map(|(n, id)| (n.to_string(), json!(id))).collect::<Value>())?
            }
            "vocab.txt" => lines(&store::read_text(&file).map_err(Error::io("read", &file))?, keep),
            "merges.txt" => merges(tokens, keep),
            _ => {
                store::copy(&file, &target)?;
                continue;
            }
        };
        std::fs::write(&target, content).map_err(Error::io("write", &target))?;
    }
    Ok(())
}

/// Settings with new ids and the number of tokens that are left.
fn settings(mut settings: Value, keep: &[usize]) -> Value {
    for_ids(&mut settings, &mut |id| {
        if let Some(new) = number(id).and_then(|old| new_id(keep, old)) {
            *id = json!(new);
        }
    });
    let Value::Object(entries) = &mut settings else { return settings };
    entries.iter_mut().for_each(|(key, value)| resize(key, value, keep));
    settings
}

fn resize(key: &str, value: &mut Value, keep: &[usize]) {
    let new = |id: &Value| number(id).and_then(|old| new_id(keep, old)).map(|id| json!(id));
    match value {
        Value::Number(_) if key == "vocab_size" => *value = json!(keep.len()),
        Value::Array(ids) if FORBIDDEN.contains(&key) => *value = ids.iter().filter_map(new).collect(),
        Value::Object(entries) => entries.iter_mut().for_each(|(key, value)| resize(key, value, keep)),
        _ => {}
    }
}

/// `tokenizer_config.json`, in which added tokens are listed by their id.
fn tokenizer_settings(mut settings: Value, keep: &[usize]) -> Value {
    if let Some(Value::Object(added)) = settings.get_mut("added_tokens_decoder") {
        let new = |id: &String| Some(new_id(keep, id.parse().ok()?)?.to_string());
        *added = std::mem::take(added).into_iter().filter_map(|(id, token)| Some((new(&id)?, token))).collect();
    }
    settings
}

/// A table of ids by the names of tokens.
fn by_name(table: Value, keep: &[usize]) -> Value {
    let Value::Object(table) = table else { return table };
    let new = |(name, id): (String, Value)| Some((name, json!(new_id(keep, number(&id)?)?)));
    Value::Object(table.into_iter().filter_map(new).collect::<Map<_, _>>())
}

/// The lines of the tokens that stay, of a file with one for every token.
fn lines(content: &str, keep: &[usize]) -> Vec<u8> {
    let all: Vec<&str> = content.lines().collect();
    let lines = keep.iter().filter_map(|id| all.get(*id));
    lines.flat_map(|line| line.bytes().chain([b'\n'])).collect()
}

fn merges(tokens: &Tokens, keep: &[usize]) -> Vec<u8> {
    let lines = tokens.merges_left(keep).into_iter().map(|[a, b]| format!("{a} {b}\n"));
    std::iter::once("#version: 0.2\n".to_string()).chain(lines).collect::<String>().into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_the_new_ids() {
        let before = json!({"vocab_size": 9, "eos_token_id": [7, 8], "pad_token_id": -1, "suppress_tokens": [1, 7],
            "model": {"vocab_size": 9, "bos_token_id": 5}});
        let mut named = Vec::new();
        for_ids(&mut before.clone(), &mut |id| named.extend(number(id)));
        named.sort_unstable();
        assert_eq!(named, [5, 7, 8]);
        let after = settings(before, &[0, 5, 7, 8]);
        assert_eq!(
            after,
            json!({"vocab_size": 4, "eos_token_id": [2, 3], "pad_token_id": -1, "suppress_tokens": [2],
            "model": {"vocab_size": 4, "bos_token_id": 1}})
        );
    }

    #[test]
    fn added_tokens_and_lines_follow() {
        let before = json!({"added_tokens_decoder": {"3": {"content": "<s>"}, "4": {"content": "gone"}}});
        assert_eq!(tokenizer_settings(before, &[1, 3]), json!({"added_tokens_decoder": {"1": {"content": "<s>"}}}));
        assert_eq!(by_name(json!({"<s>": 3, "gone": 4}), &[1, 3]), json!({"<s>": 1}));
        assert_eq!(lines("a\nb\nc\nd\n", &[1, 3]), b"b\nd\n");
    }
}
