//! Configurations beside a model that stay true when it is pruned: `config.json` of transformers, and `genai_config.json` of
//! ONNX Runtime GenAI.

use kprune_passes::discover::{Discovery, Kind};
use kprune_passes::plan::Plan;
use serde_json::{Map, Value, json};

/// Makes a configuration true of the pruned model.
type Describe = fn(Value, &Sizes) -> Value;

/// The files, with what is written into them.
pub(super) const FILES: [(&str, Describe); 2] = [("config.json", of_transformers), ("genai_config.json", of_genai)];

/// What is left of every layer.
pub(super) struct Sizes {
    /// Query heads.
    heads: Vec<usize>,
    /// Heads of keys and values: as many, but where several query heads share them.
    groups: Vec<usize>,
    /// The heads that are gone, by their places.
    gone: Vec<Vec<usize>>,
    /// Columns of a head, where all have as many.
    width: Option<usize>,
    neurons: Vec<usize>,
}

impl Sizes {
    /// What `plan` leaves.
    pub(super) fn of(found: &Discovery, plan: &Plan) -> Self {
        let attentions = || plan.each(found).filter(|(s, _)| s.kind == Kind::Head);
        let heads = attentions()
            .map(|(s, d)| s.units.iter().zip(&d.keep).filter(|(_, keep)| **keep).map(|(unit, _)| unit.members).sum());
        let gone = attentions()
            .map(|(_, d)| d.keep.iter().enumerate().filter(|(_, keep)| !**keep).map(|(unit, _)| unit).collect());
        let widths = attentions().flat_map(|(s, _)| s.units.iter().map(|u| u.columns.len() / u.members.max(1)));
        let widths: Vec<usize> = widths.collect();
        Self {
            heads: heads.collect(),
            groups: plan.kept(found, Kind::Head),
            gone: gone.collect(),
            width: uniform(&widths),
            neurons: plan.kept(found, Kind::Neuron),
        }
    }
}

/// The number that all are, if they are all the same.
fn uniform(numbers: &[usize]) -> Option<usize> {
    numbers.first().copied().filter(|first| numbers.iter().all(|n| n == first))
}

/// The first of some names that a configuration has a number for.
fn field(config: &Map<String, Value>, names: &[&str]) -> Option<String> {
    names.iter().find(|n| config.get(**n).is_some_and(Value::is_u64)).map(|n| n.to_string())
}

/// Where all layers keep as many heads or neurons, the usual fields say so. Heads that differ by layer are listed
/// in `pruned_heads`, which is what the format has for them; for neurons it has nothing, so that a note of ours
/// holds the number of each layer.
fn of_transformers(config: Value, sizes: &Sizes) -> Value {
    let Value::Object(mut config) = config else { return config };
    let layers = field(&config, &["num_hidden_layers", "n_layers", "n_layer", "num_layers"]);
    let layers = layers.and_then(|name| config.get(&name)?.as_u64());
    let is_layer = |kept: &[usize]| layers == Some(kept.len() as u64);
    let heads = field(&config, &["num_attention_heads", "n_heads", "n_head", "num_heads"]);
    let groups = field(&config, &["num_key_value_heads", "num_kv_heads"]);
    match (heads, uniform(&sizes.heads)) {
        (Some(name), Some(all)) if is_layer(&sizes.heads) => {
            let is_other = config.get(&name) != Some(&all.into());
            config.insert(name, all.into());
            if let (Some(name), Some(all)) = (groups, uniform(&sizes.groups)) {
                config.insert(name, all.into());
                // It would follow from the number of heads otherwise.
                if let Some(width) = sizes.width.filter(|_| is_other) {
                    config.insert("head_dim".into(), width.into());
                }
            }
        }
        (Some(_), _) if is_layer(&sizes.heads) => {
            let gone = sizes.gone.iter().enumerate().filter(|(_, gone)| !gone.is_empty());
            let gone = gone.map(|(layer, gone)| (layer.to_string(), json!(gone)));
            config.insert("pruned_heads".into(), gone.collect());
        }
        _ => {}
    }
    let neurons = field(&config, &["intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner"]);
    if let (Some(name), Some(all), true) = (neurons, uniform(&sizes.neurons), is_layer(&sizes.neurons)) {
        config.insert(name, all.into());
    }
    let note = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "attention_heads": sizes.heads,
        "key_value_heads": sizes.groups,
        "neurons": sizes.neurons
    });
    config.insert("onnx_kprune".into(), note);
    Value::Object(config)
}

/// The decoder's numbers of heads, where all layers keep as many: it has one number for all.
fn of_genai(mut config: Value, sizes: &Sizes) -> Value {
    let Some(decoder) = config.pointer_mut("/model/decoder").and_then(Value::as_object_mut) else { return config };
    let is_layer = decoder.get("num_hidden_layers").and_then(Value::as_u64) == Some(sizes.heads.len() as u64);
    let numbers = [("num_attention_heads", &sizes.heads), ("num_key_value_heads", &sizes.groups)];
    for (name, numbers) in numbers {
        if let (Some(all), true) = (uniform(numbers), is_layer && decoder.contains_key(name)) {
            decoder.insert(name.into(), all.into());
        }
    }
    config
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn sizes(heads: &[usize], groups: &[usize]) -> Sizes {
        let gone = heads.iter().map(|_| vec![1]).collect();
        Sizes { heads: heads.to_vec(), groups: groups.to_vec(), gone, width: Some(16), neurons: vec![20, 30] }
    }

    #[test]
    fn queries_and_keys_are_counted_apart() {
        let before = json!({"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "ffn_dim": 64});
        let after = of_transformers(before.clone(), &sizes(&[4, 4], &[2, 2]));
        let number = |name: &str| after[name].as_u64();
        assert_eq!([number("num_attention_heads"), number("num_key_value_heads")], [Some(4), Some(2)]);
        assert_eq!([number("head_dim"), number("ffn_dim")], [Some(16), Some(64)]);
        assert_eq!(after["onnx_kprune"]["neurons"], json!([20, 30]));
        let uneven = of_transformers(before, &sizes(&[4, 2], &[2, 1]));
        assert_eq!(uneven["num_attention_heads"], 6);
        assert_eq!(uneven["pruned_heads"], json!({"0": [1], "1": [1]}));
    }

    #[test]
    fn a_decoder_of_genai_has_one_number_for_all_layers() {
        let before = json!({"model": {"decoder": {
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_size": 16}}});
        let after = of_genai(before.clone(), &sizes(&[4, 4], &[2, 2]));
        assert_eq!(after["model"]["decoder"]["num_attention_heads"], 4);
        assert_eq!(after["model"]["decoder"]["num_key_value_heads"], 2);
        assert_eq!(of_genai(before.clone(), &sizes(&[4, 2], &[2, 1])), before);
    }
}
