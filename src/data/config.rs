//! What the `config.json` beside a model says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::store;

/// The settings that belong to a model; empty where there are none.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    /// Names of classes, with their numbers.
    classes: Vec<(String, i64)>,
    /// The id of the padding token.
    #[cfg(feature = "text")]
    pub(super) padding: Option<u32>,
    /// The id of the token that opens a text.
    #[cfg(feature = "text")]
    pub(super) opening: Option<u32>,
    /// How many positions the model has.
    positions: Option<usize>,
}

/// Names of the number of positions.
const POSITIONS: [&str; 4] = ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"];

/// How many positions the model at `model` has, as the `config.json` beside it says.
pub(crate) fn positions_beside(model: &Path) -> Option<usize> {
    Config::beside(model).positions
}

/// What the `config.json` beside the model at `model` calls its classes, by their numbers.
pub(crate) fn classes_beside(model: &Path) -> BTreeMap<i64, String> {
    Config::beside(model).classes.into_iter().map(|(name, number)| (number, name)).collect()
}

impl Config {
    /// Reads the `config.json` beside the model at `model`.
    pub(super) fn beside(model: &Path) -> Self {
        let content = store::read(&model.with_file_name("config.json")).unwrap_or_default();
        Self::of(&serde_json::from_slice(&content).unwrap_or_default())
    }

    pub(super) fn of(config: &Value) -> Self {
        let number = |key: &str| config.get(key).and_then(Value::as_u64);
        Self {
            classes: classes(config),
            #[cfg(feature = "text")]
            padding: number("pad_token_id").and_then(|id| id.try_into().ok()),
            #[cfg(feature = "text")]
            opening: number("bos_token_id").and_then(|id| id.try_into().ok()),
            positions: POSITIONS.iter().find_map(|key| number(key)).and_then(|n| n.try_into().ok()),
        }
    }

    /// The names of the classes, in their order; none where the model has no names for them.
    #[cfg(any(feature = "text", feature = "images"))]
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().map(|(name, _)| name.as_str())
    }

    /// The class of this name; capitals do not matter where no other class differs by them alone.
    #[cfg(any(feature = "text", feature = "images"))]
    pub(super) fn class(&self, name: &str) -> Option<i64> {
        let is_alike = |(other, _): &&(String, i64)| other.trim().eq_ignore_ascii_case(name.trim());
        let mut alike = self.classes.iter().filter(is_alike).map(|(_, id)| *id);
        let only = alike.next().filter(|first| alike.all(|other| other == *first));
        self.classes.iter().find(|(other, _)| other == name).map(|(_, id)| *id).or(only)
    }
}

/// The classes that a configuration names, by their numbers.
fn classes(config: &Value) -> Vec<(String, i64)> {
    let entries = |key: &str| config.get(key).and_then(Value::as_object).into_iter().flatten();
    let by_name = entries("label2id").filter_map(|(name, id)| Some((name.clone(), id.as_i64()?)));
    let by_id = entries("id2label").filter_map(|(id, name)| Some((name.as_str()?.to_string(), id.parse().ok()?)));
    let mut classes: Vec<(String, i64)> = by_name.chain(by_id).filter(|(name, _)| !is_placeholder(name)).collect();
    classes.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    classes.dedup();
    classes
}

/// Whether a name says nothing: exporters write such where nobody gave names.
fn is_placeholder(name: &str) -> bool {
    name.strip_prefix("LABEL_").is_some_and(|rest| rest.parse::<u32>().is_ok())
}

#[cfg(all(test, any(feature = "text", feature = "images")))]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_names_of_either_table_in_any_capitals() {
        let config = Config::of(&serde_json::json!({"label2id": {"NEGATIVE": 0, "POSITIVE": 2}, "pad_token_id": 1}));
        assert_eq!(
            (config.class("NEGATIVE"), config.class("positive"), config.class("good")),
            (Some(0), Some(2), None)
        );
        let config = Config::of(&serde_json::json!({"id2label": {"0": "no", "1": "yes"}}));
        assert_eq!((config.class("Yes"), config.names().collect::<Vec<_>>()), (Some(1), vec!["no", "yes"]));
    }

    #[test]
    fn names_that_differ_by_capitals_alone_are_taken_as_they_are_written() {
        let config = Config::of(&serde_json::json!({"label2id": {"a": 0, "A": 1}}));
        assert_eq!((config.class("a"), config.class("A")), (Some(0), Some(1)));
    }

    #[test]
    fn placeholders_are_no_names() {
        let config = Config::of(&serde_json::json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}));
        assert_eq!(config.names().count(), 0);
    }
}
