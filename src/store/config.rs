//! Configurations beside a model that stay true when it is pruned: `config.json` of transformers, and `genai_config.json` of
//! ONNX Runtime GenAI.

use kprune_passes::discover::{Discovery, Kind};
use kprune_passes::ir::Model;
use kprune_passes::kv_cache;
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
    /// Whether keys and values are kept in caches, which runners make.
    has_caches: bool,
}

impl Sizes {
    /// What `plan` leaves of `model`.
    pub(super) fn of(model: &Model, found: &Discovery, plan: &Plan) -> Self {
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
            has_caches: !kv_cache::caches(&model.graph).is_empty(),
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

/// That number.
fn number(config: &Map<String, Value>, names: &[&str]) -> Option<u64> {
    config.get(&field(config, names)?)?.as_u64()
}

/// Where all layers keep as many heads or neurons, the usual fields say so. Heads that differ by layer are listed
/// in `pruned_heads`, which is what the format has for them; for neurons it has nothing, so that a note of ours
/// holds the number of each layer.
fn of_transformers(config: Value, sizes: &Sizes) -> Value {
    let Value::Object(mut config) = config else { return config };
    let layers = number(&config, &["num_hidden_layers", "n_layers", "n_layer", "num_layers"]);
    let is_layer = |kept: &[usize]| layers == Some(kept.len() as u64);
    let groups = match shared_by_all(&config, sizes) {
        Some(groups) => vec![groups as usize; sizes.groups.len()],
        None => sizes.groups.clone(),
    };
    let mut note = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "attention_heads": sizes.heads,
        "key_value_heads": groups,
        "neurons": sizes.neurons
    });
    match (field(&config, HEADS), uniform(&sizes.heads)) {
        (Some(name), Some(all)) if is_layer(&sizes.heads) => count_heads(&mut config, &name, all, sizes, &mut note),
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
    config.insert("onnx_kprune".into(), note);
    Value::Object(config)
}

/// How many heads of keys and values there are, where query heads that share them go one by one and they stay.
fn shared_by_all(config: &Map<String, Value>, sizes: &Sizes) -> Option<u64> {
    let is_multi_query = config.get("multi_query").and_then(Value::as_bool) == Some(true);
    let groups = if is_multi_query { Some(1) } else { number(config, GROUPS) };
    groups.filter(|_| sizes.heads == sizes.groups).filter(|&groups| Some(groups) < number(config, HEADS))
}

const HEADS: &[&str] = &["num_attention_heads", "n_heads", "n_head", "num_heads"];
const GROUPS: &[&str] = &["num_key_value_heads", "num_kv_heads"];

/// Says how many heads every layer has, in the fields `heads` and its like.
///
/// Runners such as optimum make caches whose heads are `hidden_size / num_attention_heads` wide, whatever `head_dim` says. For
/// a model with caches that quotient stays as it was, and `note` tells what is true.
fn count_heads(config: &mut Map<String, Value>, heads: &str, all: usize, sizes: &Sizes, note: &mut Value) {
    let (groups, shared) = (field(config, GROUPS), shared_by_all(config, sizes));
    let before = number(config, &[heads]);
    // Runners divide by it.
    if all == 0 || before == Some(all as u64) {
        return;
    }
    let are_shared = groups.as_ref().is_some_and(|name| number(config, &[name]) < before);
    let hidden = field(config, &["hidden_size", "n_embd", "d_model"]).filter(|_| sizes.has_caches);
    let follows = |name: &String| number(config, &[name]) == before.zip(sizes.width).map(|(n, width)| n * width as u64);
    match (hidden.filter(follows), sizes.width) {
        (Some(_), _) if are_shared => {}
        (Some(name), Some(width)) => {
            let earlier = config.get("onnx_kprune").and_then(|note| note.get("hidden_size"));
            note["hidden_size"] = earlier.or(config.get(&name)).cloned().into();
            config.insert(name, (all * width).into());
            config.insert(heads.into(), all.into());
        }
        _ => drop(config.insert(heads.into(), all.into())),
    }
    if let (Some(name), Some(all), None) = (groups, uniform(&sizes.groups), shared) {
        // It would follow from the number of heads otherwise, where the format has such a field.
        let width = sizes.width.filter(|_| name == "num_key_value_heads");
        config.extend(width.map(|width| ("head_dim".into(), width.into())));
        config.insert(name, all.into());
    }
}

/// The decoder's numbers of heads, where all layers keep as many: it has one number for all.
fn of_genai(mut config: Value, sizes: &Sizes) -> Value {
    let Some(decoder) = config.pointer_mut("/model/decoder").and_then(Value::as_object_mut) else { return config };
    let is_layer = number(decoder, &["num_hidden_layers"]) == Some(sizes.heads.len() as u64);
    let numbers = [("num_attention_heads", &sizes.heads), ("num_key_value_heads", &sizes.groups)];
    let written = if shared_by_all(decoder, sizes).is_some() { 1 } else { 2 };
    for (name, numbers) in numbers.into_iter().take(written) {
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
        let (heads, groups) = (heads.to_vec(), groups.to_vec());
        Sizes { heads, groups, gone, width: Some(16), neurons: vec![20, 30], has_caches: false }
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
    fn the_width_of_a_cache_follows_as_runners_compute_it() {
        let shared = json!({"num_hidden_layers": 2, "hidden_size": 96,
            "num_attention_heads": 6, "num_key_value_heads": 3});
        let own = json!({"n_layer": 2, "n_embd": 96, "n_head": 6});
        let number = |config: &Value, name: &str| config[name].as_u64();
        for (before, groups) in [(shared, [2, 2]), (own, [4, 4])] {
            let kept = |has_caches| Sizes { has_caches, ..sizes(&[4, 4], &groups) };
            let [heads, hidden] = [["num_attention_heads", "hidden_size"], ["n_head", "n_embd"]]
                [usize::from(before.get("n_head").is_some())];
            let after = of_transformers(before.clone(), &kept(true));
            let width = |config: &Value| number(config, hidden).unwrap() / number(config, heads).unwrap();
            assert_eq!(width(&after), 16);
            let made = number(&after, "num_key_value_heads").or(number(&after, heads));
            assert_eq!(made, Some(groups[0] as u64));
            assert_eq!(after["onnx_kprune"]["attention_heads"], json!([4, 4]));
            let without = of_transformers(before.clone(), &kept(false));
            assert_eq!((number(&without, heads), number(&without, hidden)), (Some(4), Some(96)));
        }
    }

    #[test]
    fn the_one_head_of_keys_that_all_queries_share_stays() {
        let kept = Sizes { has_caches: true, ..sizes(&[4, 4], &[4, 4]) };
        let named = json!({"num_hidden_layers": 2, "hidden_size": 96,
            "num_attention_heads": 6, "num_key_value_heads": 1});
        let said = json!({"n_layer": 2, "n_embd": 96, "n_head": 6, "multi_query": true});
        let [named, said] = [named, said].map(|before| of_transformers(before, &kept));
        assert_eq!(named["num_key_value_heads"], 1);
        assert_eq!(said["n_embd"].as_u64().unwrap() / said["n_head"].as_u64().unwrap(), 16);
        for after in [named, said] {
            assert_eq!(after["onnx_kprune"]["key_value_heads"], json!([1, 1]));
        }
        let decoder = json!({"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 1});
        let after = of_genai(json!({"model": {"decoder": decoder}}), &kept);
        assert_eq!(after["model"]["decoder"]["num_attention_heads"], 4);
        assert_eq!(after["model"]["decoder"]["num_key_value_heads"], 1);
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
