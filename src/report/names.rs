//! Names of sublayers that people read: `layer 3 attention` for `/bert/encoder/layer.3/attention/output/dense/MatMul`.

use kprune_passes::discover::Kind;

/// What exporters call the parts of a model that follow each other.
const PARTS: [&str; 9] = ["layer", "layers", "block", "blocks", "h", "stage", "stages", "group", "groups"];

/// Short names of sublayers, in order, each of another; by their layers where the names of their operators tell them, else
/// counted.
pub(crate) fn short<'n>(sublayers: impl IntoIterator<Item = (&'n str, Kind)>) -> Vec<String> {
    let sublayers: Vec<(&str, Kind)> = sublayers.into_iter().collect();
    let of_kind = |kind: Kind| sublayers.iter().filter(move |s| s.1 == kind).map(|s| layer(s.0)).collect::<Vec<_>>();
    let is_telling = |kind: Kind| {
        let mut layers = of_kind(kind);
        layers.sort();
        layers.iter().all(|layer| !layer.is_empty()) && layers.windows(2).all(|pair| pair[0] != pair[1])
    };
    let telling = [Kind::Head, Kind::Neuron].map(is_telling);
    let mut counted = [0; 2];
    let name = |&(name, kind): &(&str, Kind)| {
        let place = usize::from(kind == Kind::Neuron);
        let what = ["attention", "FFN"][place];
        counted[place] += 1;
        match telling[place] {
            true => format!("layer {} {what}", layer(name)),
            false => format!("{what} {}", counted[place]),
        }
    };
    sublayers.iter().map(name).collect()
}

/// The number of the layer that an operator is in, or of its stage and its block.
fn layer(name: &str) -> String {
    let parts: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()).collect();
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let numbers = parts.windows(2).filter(|pair| PARTS.contains(&pair[0]) && is_number(pair[1])).map(|pair| pair[1]);
    numbers.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_those_of_the_names() {
        let names = [
            ("/bert/encoder/layer.0/attention/output/dense/MatMul", Kind::Head),
            ("/bert/encoder/layer.0/output/dense/MatMul", Kind::Neuron),
            ("/bert/encoder/layer.11/attention/output/dense/MatMul", Kind::Head),
            ("/bert/encoder/layer.11/output/dense/MatMul", Kind::Neuron),
        ];
        assert_eq!(short(names), ["layer 0 attention", "layer 0 FFN", "layer 11 attention", "layer 11 FFN"]);
        let names = [("/stages.1/blocks.0/attn/MatMul", Kind::Head), ("/stages.1/blocks.2/attn/MatMul", Kind::Head)];
        assert_eq!(short(names), ["layer 1.0 attention", "layer 1.2 attention"]);
    }

    #[test]
    fn what_names_do_not_tell_is_counted() {
        let names = [("node_MatMul_7", Kind::Head), ("node_MatMul_9", Kind::Neuron), ("node_MatMul_31", Kind::Head)];
        assert_eq!(short(names), ["attention 1", "FFN 1", "attention 2"]);
        // One layer that is applied twice.
        let names = [("/layer.0/a", Kind::Head), ("/layer.0/b", Kind::Head)];
        assert_eq!(short(names), ["attention 1", "attention 2"]);
    }
}
