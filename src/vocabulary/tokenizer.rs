//! A `tokenizer.json` of fewer tokens, which cuts the texts that it was made for as before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::merges::Merges;
use super::{new_id, read_json};
use crate::error::Error;

/// The tokens of a tokenizer.
pub(super) struct Tokens {
    path: PathBuf,
    json: Value,
    kind: Kind,
    /// The tokens that the model has a row for, by their id.
    names: BTreeMap<usize, String>,
    merges: Option<Merges>,
}

/// How a tokenizer finds its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The longest tokens that a word begins with, one after the other.
    WordPiece,
    /// Whole words.
    WordLevel,
    /// Pairs that are merged in a fixed order.
    Bpe,
    /// The likeliest cut.
    Unigram,
}

/// What begins a word in Unigram tokenizers and some others.
const WORD: char = '\u{2581}';

impl Tokens {
    /// Reads a tokenizer; tokens from `size` on have no row in the model.
    ///
    /// # Errors
    /// Where it is none, or of a kind that is not known.
    pub(super) fn parse(path: &Path, size: usize) -> Result<Self, Error> {
        let json = read_json(path)?;
        let wrong = |reason: String| Error::data(path, reason, "give a Hugging Face tokenizer.json");
        let model = json.get("model").ok_or_else(|| wrong("has no \"model\"".into()))?;
        let vocabulary = model.get("vocab").ok_or_else(|| wrong("has no \"vocab\"".into()))?;
        let kind = match (model.get("type").and_then(Value::as_str), vocabulary) {
            (Some("WordPiece"), _) => Kind::WordPiece,
            (Some("WordLevel"), _) => Kind::WordLevel,
            (Some("BPE"), _) => Kind::Bpe,
            (Some("Unigram"), _) => Kind::Unigram,
            // Old files do not say it.
            (None, Value::Array(_)) => Kind::Unigram,
            (None, _) if model.get("merges").is_some() => Kind::Bpe,
            (None, _) => Kind::WordPiece,
            (Some(other), _) => return Err(wrong(format!("is of the unknown kind {other:?}"))),
        };
        let named: Vec<(usize, String)> = match vocabulary {
            Value::Object(all) => all.iter().filter_map(|(name, id)| Some((number(id)?, name.clone()))).collect(),
            Value::Array(all) => {
                let name = |piece: &Value| Some(piece.get(0)?.as_str()?.to_string());
                all.iter().enumerate().filter_map(|(id, piece)| Some((id, name(piece)?))).collect()
            }
            _ => return Err(wrong("has a \"vocab\" that is no list and no table".into())),
        };
        let names = named.into_iter().filter(|(id, _)| *id < size).collect();
        let merges = (kind == Kind::Bpe).then(|| Merges::of(model));
        Ok(Self { path: path.to_path_buf(), json, kind, names, merges })
    }

    fn model(&self) -> &Value {
        self.json.get("model").unwrap_or(&Value::Null)
    }

    /// These tokens, and what else must stay: special tokens, the letters that they are spelled with, what a token is
    /// merged from, and what other tokens' scores are measured by.
    pub(super) fn closed(&self, mut keep: BTreeSet<usize>) -> BTreeSet<usize> {
        let unknown = self.model().get("unk_token").and_then(Value::as_str);
        keep.extend(self.names.iter().filter(|(_, name)| Some(name.as_str()) == unknown).map(|(id, _)| *id));
        keep.extend(self.model().get("unk_id").and_then(number).filter(|id| self.names.contains_key(id)));
        keep.extend(self.added().map(|(id, _)| id).filter(|id| *id < self.rows()));
        keep.extend(self.least_likely());
        let letters: BTreeSet<char> = keep.iter().filter_map(|id| self.names.get(id)).flat_map(|n| n.chars()).collect();
        let stays = |name: &str| is_special(name) || self.letter(name).is_some_and(|c| self.is_usual(c, &letters));
        keep.extend(self.names.iter().filter(|(_, name)| stays(name)).map(|(id, _)| *id));
        if let Some(merges) = &self.merges {
            let ids: BTreeMap<&str, usize> = self.names.iter().map(|(id, name)| (name.as_str(), *id)).collect();
            let names: Vec<&String> = keep.iter().filter_map(|id| self.names.get(id)).collect();
            let parts: Vec<String> = names.iter().flat_map(|name| merges.parts(name)).collect();
            keep.extend(parts.iter().filter_map(|part| ids.get(part.as_str())));
        }
        keep
    }

    /// One more than the largest id.
    fn rows(&self) -> usize {
        let added = self.added().map(|(id, _)| id + 1).max().unwrap_or(0);
        self.names.last_key_value().map_or(0, |(id, _)| id + 1).max(added)
    }

    /// Tokens that were added to the vocabulary, special ones among them.
    fn added(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = self.json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|token| Some((token.get("id").and_then(number)?, token.get("content")?.as_str()?)))
    }

    /// The token with the lowest score: what is unknown has a score below it.
    fn least_likely(&self) -> Option<usize> {
        let pieces = self.model().get("vocab")?.as_array()?;
        let score = |id: &usize| pieces.get(*id).and_then(|piece| piece.get(1)?.as_f64()).unwrap_or(f64::MAX);
        self.names.keys().copied().min_by(|a, b| score(a).total_cmp(&score(b)))
    }

    /// The only letter of a token, without what marks its place in a word.
    fn letter(&self, name: &str) -> Option<char> {
        let mark = |key: &str| self.model().get(key).and_then(Value::as_str).filter(|mark| !mark.is_empty());
        let name = mark("continuing_subword_prefix").and_then(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let name = mark("end_of_word_suffix").and_then(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let inner = name.strip_prefix(WORD).filter(|rest| !rest.is_empty()).unwrap_or(name);
        let mut letters = inner.chars();
        letters.next().filter(|_| letters.next().is_none())
    }

    fn is_usual(&self, letter: char, seen: &BTreeSet<char>) -> bool {
        letter.is_ascii() || seen.contains(&letter) || letter == WORD || self.is_of_bytes()
    }

    /// Whether letters stand for bytes, so that there are 256.
    fn is_of_bytes(&self) -> bool {
        let is_named = |key: &str| self.json.get(key).is_some_and(|part| part.to_string().contains("\"ByteLevel\""));
        is_named("pre_tokenizer") || is_named("decoder")
    }

    /// The names of the tokens that stay, with their new ids.
    pub(super) fn renumbered<'t>(&'t self, keep: &'t [usize]) -> impl Iterator<Item = (&'t str, usize)> {
        self.names.iter().filter_map(|(old, name)| Some((name.as_str(), new_id(keep, *old)?)))
    }

    /// The merges that are left, in their order.
    pub(super) fn merges_left(&self, keep: &[usize]) -> Vec<[&str; 2]> {
        let names: BTreeSet<&str> = self.renumbered(keep).map(|(name, _)| name).collect();
        let merges = self.merges.iter().flat_map(Merges::all);
        merges
            .filter(|(pair, whole)| [pair[0], pair[1], whole].iter().all(|n| names.contains(n)))
            .map(|(p, _)| p)
            .collect()
    }

    /// The tokenizer of the tokens that stay.
    ///
    /// # Errors
    /// Where one of them is named in a way that is not known.
    pub(super) fn cut(&self, keep: &[usize]) -> Result<Value, Error> {
        let mut json = self.json.clone();
        let new = |id: &Value| number(id).and_then(|id| new_id(keep, id));
        if let Some(model) = json.get_mut("model") {
            let vocabulary: Value = match self.model().get("vocab") {
                Some(Value::Array(all)) => keep.iter().filter_map(|id| all.get(*id).cloned()).collect(),
                _ => self.renumbered(keep).map(|(name, id)| (name.to_string(), json!(id))).collect(),
            };
            set(model, "vocab", vocabulary);
            if self.kind == Kind::Bpe {
                let is_joined = self.model().pointer("/merges/0").is_some_and(Value::is_string);
                let merge = |[a, b]: [&str; 2]| if is_joined { json!(format!("{a} {b}")) } else { json!([a, b]) };
                set(model, "merges", self.merges_left(keep).into_iter().map(merge).collect());
            }
            if let Some(id) = self.model().get("unk_id").filter(|id| id.is_u64()) {
                let new = new(id).ok_or_else(|| self.gone("the unknown token"))?;
                set(model, "unk_id", json!(new));
            }
        }
        if let Some(Value::Array(added)) = json.get_mut("added_tokens") {
            added.retain(|token| token.get("id").and_then(&new).is_some());
            for token in added {
                let id = token.get("id").and_then(&new);
                set(token, "id", json!(id));
            }
        }
        if let Some(id) = json.pointer("/padding/pad_id").and_then(&new)
            && let Some(padding) = json.get_mut("padding")
        {
            set(padding, "pad_id", json!(id));
        }
        if let Some(processor) = json.get_mut("post_processor") {
            renumber(processor, keep).map_err(|name| self.gone(&name))?;
        }
        Ok(json)
    }

    fn gone(&self, what: &str) -> Error {
        let reason = format!("names {what}, for which the model has no row");
        Error::data(&self.path, reason, "give the tokenizer that belongs to the model")
    }
}

/// Whether a token is no piece of text by its name, as `[PAD]`, `<s>` and the byte `<0x0A>` are.
fn is_special(name: &str) -> bool {
    let is_within = |open: char, close: char| name.len() > 2 && name.starts_with(open) && name.ends_with(close);
    (is_within('[', ']') && !name.starts_with("[unused")) || is_within('<', '>')
}

/// Gives the special tokens of a post-processor their new ids: `{"id": "[CLS]", "ids": [101], ...}` and `["[SEP]", 102]`.
fn renumber(part: &mut Value, keep: &[usize]) -> Result<(), String> {
    let new = |id: &Value| {
        let old = number(id).ok_or("a token without a number")?;
        new_id(keep, old).map(|id| json!(id)).ok_or_else(|| format!("token {old}"))
    };
    match part {
        Value::Array(pair) if pair.len() == 2 && pair.first().is_some_and(Value::is_string) => {
            if let Some(id) = pair.get_mut(1).filter(|id| id.is_u64()) {
                *id = new(id)?;
            }
        }
        Value::Array(parts) => parts.iter_mut().try_for_each(|part| renumber(part, keep))?,
        Value::Object(parts) => {
            for (key, part) in parts {
                match part {
                    Value::Array(ids) if key == "ids" => ids.iter_mut().try_for_each(|id| new(id).map(|n| *id = n))?,
                    part => renumber(part, keep)?,
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn set(part: &mut Value, key: &str, value: Value) {
    if let Value::Object(entries) = part {
        entries.insert(key.into(), value);
    }
}

/// A number that may be an id.
pub(super) fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| n.try_into().ok())
}

#[cfg(all(test, feature = "text"))]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;

    const TEXTS: [&str; 3] = ["low lower", "newest low", "wide"];
    const OTHERS: [&str; 3] = ["lowest", "we\u{f6}w", "new bed"];

    /// Cuts a tokenizer to the tokens of [`TEXTS`]; how many are left of all.
    fn cut(json: Value) -> (Tokenizer, Tokenizer, Vec<usize>) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        let before = Tokenizer::from_file(&path).unwrap();
        let tokens = Tokens::parse(&path, 1000).unwrap();
        let seen = TEXTS.iter().flat_map(|text| before.encode(*text, true).unwrap().get_ids().to_vec());
        let keep: Vec<usize> = tokens.closed(seen.map(|id| id as usize).collect()).into_iter().collect();
        let after = tokens.cut(&keep).unwrap();
        (before, Tokenizer::from_bytes(after.to_string()).unwrap(), keep)
    }

    /// What a tokenizer must do: the same with the texts it was cut for, and something with others.
    fn check(json: Value, gone: &[&str]) {
        let all = json["model"]["vocab"]
            .as_array()
            .map_or_else(|| json["model"]["vocab"].as_object().unwrap().len(), Vec::len);
        let (before, after, keep) = cut(json);
        assert_eq!(after.get_vocab_size(true), keep.len());
        assert!(keep.len() < all);
        for text in TEXTS {
            let [old, new] = [&before, &after].map(|t| t.encode(text, true).unwrap());
            assert_eq!(old.get_tokens(), new.get_tokens());
            let renumbered: Vec<usize> = new.get_ids().iter().map(|&id| keep[id as usize]).collect();
            assert_eq!(renumbered, old.get_ids().iter().map(|&id| id as usize).collect::<Vec<_>>());
        }
        for name in gone {
            assert!(before.token_to_id(name).is_some() && after.token_to_id(name).is_none(), "{name}");
        }
        for text in OTHERS {
            assert!(!after.encode(text, true).unwrap().is_empty(), "{text}");
        }
    }

    fn numbered(names: &[&str]) -> Value {
        names.iter().enumerate().map(|(id, name)| (name.to_string(), json!(id))).collect()
    }

    #[test]
    fn word_pieces_keep_their_letters_and_special_tokens() {
        let names = [
            "[PAD]",
            "[unused0]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "bed",
            "low",
            "##er",
            "##e",
            "##w",
            "e",
            "w",
            "l",
            "o",
            "n",
            "new",
            "##est",
            "lowest",
            "wide",
            "\u{f6}",
            "d",
            "##d",
            "##o",
            "##l",
        ];
        let template = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [3], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [4], "tokens": ["[SEP]"]}}});
        let added = json!([{"id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}]);
        let json = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": template, "padding": null, "truncation": null, "model": {"type": "WordPiece",
            "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": numbered(&names)}});
        check(json.clone(), &["bed", "lowest", "[unused0]", "\u{f6}"]);
        let (_, after, _) = cut(json);
        assert_eq!(after.encode("lowest", true).unwrap().get_tokens(), ["[CLS]", "low", "##est", "[SEP]"]);
    }

    #[test]
    fn merges_keep_what_they_are_made_of() {
        let names = [
            "<s>", "l", "o", "w", "e", "r", "n", "s", "t", "i", "d", "b", "lo", "low", "er", "ne", "new", "es", "est",
            "lower", "newest", "be", "bed", "wi", "wid", "wide",
        ];
        let merges = [
            "l o", "lo w", "e r", "n e", "ne w", "e s", "es t", "low er", "new est", "b e", "be d", "w i", "wi d",
            "wid e",
        ];
        for listed in [json!(merges), merges.iter().map(|m| json!(m.split(' ').collect::<Vec<_>>())).collect()] {
            let json = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "BPE", "vocab": numbered(&names), "merges": listed, "unk_token": "<s>"}});
            check(json, &["be", "bed"]);
        }
    }

    #[test]
    fn likely_pieces_keep_the_score_of_what_is_unknown() {
        let names = [
            "<unk>",
            "\u{2581}",
            "\u{2581}low",
            "er",
            "e",
            "w",
            "l",
            "o",
            "\u{2581}new",
            "est",
            "\u{2581}wide",
            "\u{2581}bed",
            "\u{2581}lowest",
            "d",
            "least",
        ];
        let vocab: Value = names.iter().enumerate().map(|(i, name)| json!([name, -(i as f64)])).collect();
        let json = json!({"version": "1.0", "added_tokens": [],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}});
        check(json, &["\u{2581}bed", "\u{2581}lowest"]);
    }

    #[test]
    fn whole_words_keep_the_unknown_one() {
        let json = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model":
            {"type": "WordLevel", "unk_token": "[UNK]",
            "vocab": numbered(&["[PAD]", "[UNK]", "bed", "low", "lower", "newest", "wide"])}});
        check(json, &["bed"]);
    }
}
