//! The merges of byte-pair encodings: what a token was put together from.

use std::collections::HashMap;

use serde_json::Value;

/// Pairs of tokens that are merged into one, in the order in which that is done.
pub(super) struct Merges {
    pairs: Vec<[String; 2]>,
    ranks: HashMap<[String; 2], usize>,
    /// What letters begin with that begin no word, and end with where they end one.
    prefix: String,
    suffix: String,
}

/// Tokens of more letters are none that were merged.
const LONGEST: usize = 1024;

impl Merges {
    /// Those of the `model` of a `tokenizer.json`: pairs, or lines with a space between the two.
    pub(super) fn of(model: &Value) -> Self {
        let pair = |merge: &Value| match merge {
            Value::String(line) => line.split_once(' ').map(|(a, b)| [a.to_string(), b.to_string()]),
            merge => Some([merge.get(0)?.as_str()?.to_string(), merge.get(1)?.as_str()?.to_string()]),
        };
        let all = model.get("merges").and_then(Value::as_array);
        let pairs: Vec<[String; 2]> = all.into_iter().flatten().filter_map(pair).collect();
        // Of a pair that is listed twice, the last counts.
        let ranks = pairs.iter().cloned().enumerate().map(|(rank, pair)| (pair, rank)).collect();
        let mark = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        Self { pairs, ranks, prefix: mark("continuing_subword_prefix"), suffix: mark("end_of_word_suffix") }
    }

    /// All pairs, with what they are merged into.
    pub(super) fn all(&self) -> impl Iterator<Item = ([&str; 2], String)> {
        self.pairs.iter().map(|pair| ([pair[0].as_str(), pair[1].as_str()], self.merged(&pair[0], &pair[1])))
    }

    fn merged(&self, first: &str, second: &str) -> String {
        format!("{first}{}", second.strip_prefix(&self.prefix).unwrap_or(second))
    }

    /// What is merged on the way to a token, its letters among it. Which way that is does not depend on the word around
    /// it: no merge crosses the ends of a token that is left in the end.
    pub(super) fn parts(&self, token: &str) -> Vec<String> {
        let mut symbols = self.letters(token);
        let mut parts = symbols.clone();
        if symbols.len() > LONGEST {
            return parts;
        }
        let rank = |pair: &[String]| match pair {
            [first, second] => self.ranks.get(&[first.clone(), second.clone()]),
            _ => None,
        };
        loop {
            let ranked = symbols.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at)));
            let Some((_, at)) = ranked.min() else { return parts };
            let second = symbols.remove(at + 1);
            if let Some(first) = symbols.get_mut(at) {
                *first = self.merged(first, &second);
                parts.push(first.clone());
            }
        }
    }

    /// A token letter by letter, each as the tokenizer has it.
    fn letters(&self, token: &str) -> Vec<String> {
        let bare = token.strip_suffix(&self.suffix).filter(|_| !self.suffix.is_empty());
        let inner = bare.unwrap_or(token);
        let continued = inner.strip_prefix(&self.prefix).filter(|_| !self.prefix.is_empty());
        let letters = continued.unwrap_or(inner).chars().enumerate();
        let mut letters: Vec<String> = letters
            .map(|(i, letter)| match i > 0 || continued.is_some() {
                true => format!("{}{letter}", self.prefix),
                false => letter.to_string(),
            })
            .collect();
        if let Some(last) = letters.last_mut().filter(|_| bare.is_some()) {
            last.push_str(&self.suffix);
        }
        letters
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_has_what_it_is_merged_from() {
        let merges = Merges::of(&json!({"merges": ["h e", "l l", "he ll", "l o", "hell o"]}));
        assert_eq!(merges.parts("hello"), ["h", "e", "l", "l", "o", "he", "ll", "hell", "hello"]);
        assert_eq!(merges.parts("xy"), ["x", "y"], "what no merges make");
    }

    #[test]
    fn the_end_of_a_word_may_be_marked() {
        let merges = Merges::of(&json!({"merges": [["a", "t</w>"], ["c", "at</w>"]], "end_of_word_suffix": "</w>"}));
        assert_eq!(merges.parts("cat</w>"), ["c", "a", "t</w>", "at</w>", "cat</w>"]);
    }

    #[test]
    fn letters_within_a_word_may_be_marked() {
        let merges = Merges::of(&json!({"merges": ["c ##a", "ca ##t"], "continuing_subword_prefix": "##"}));
        assert_eq!(merges.parts("cat"), ["c", "##a", "##t", "ca", "cat"]);
    }
}
