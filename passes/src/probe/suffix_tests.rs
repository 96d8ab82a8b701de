use super::*;
use crate::ir::Operator;
use crate::testing::{B, S, Sketch, feed_forward, n};

/// Two feed-forward sublayers; the second also reads a value that was made upstream of the first.
fn two() -> (Sketch, ValueId, [ValueId; 2]) {
    let mut g = Sketch::default();
    let input = g.input("x", &[B, S, n(4)]);
    let x = g.on("Abs", &[input]);
    let first = feed_forward(&mut g, x, 4, 6);
    let mixed = g.on("Mul", &[first, x]);
    let second = feed_forward(&mut g, mixed, 4, 5);
    g.graph.add_output(second);
    (g, x, [first, second])
}

#[test]
fn what_crosses_is_what_is_read_from_upstream() {
    let (g, x, [first, second]) = two();
    let crossings = Crossings::find(&g.graph, &g.discover());
    assert_eq!(crossings.at(0), g.graph.inputs());
    let mut into_second = crossings.at(1).to_vec();
    into_second.sort_unstable();
    assert_eq!(into_second, [x, first]);
    assert_eq!(crossings.at(2), [second], "the output is needed although nothing reads it");
}

#[test]
fn a_part_reads_only_what_crosses_into_it() {
    let (g, x, [first, second]) = two();
    let crossings = Crossings::find(&g.graph, &g.discover());
    let part = extract(&g.model(), &g.seen(), crossings.at(1), &[second]);
    let names: Vec<_> = part.graph.inputs().iter().map(|&v| part.graph.name(v)).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&g.graph.name(x)) && names.contains(&g.graph.name(first)));
    assert_eq!(part.graph.sorted().len(), g.graph.sorted().len() - 7);
    assert_eq!(part.graph.initializers().len(), 4, "no constant of the first sublayer is left");
    let whole = extract(&g.model(), &g.seen(), g.graph.inputs(), &[second]);
    assert_eq!(whole.graph.sorted().len(), g.graph.sorted().len());
}

#[test]
fn layers_side_by_side_are_entered_from_the_same_values() {
    let mut g = Sketch::default();
    let x = g.input("x", &[B, S, n(4)]);
    let stream = g.on("Tanh", &[x]);
    let mut sides = Vec::new();
    for name in ["a", "b"] {
        let (up, down) = (g.weight(&format!("{name}_up"), &[4, 6]), g.weight(&format!("{name}_down"), &[6, 4]));
        let h = g.on("MatMul", &[stream, up]);
        sides.push(g.on("MatMul", &[h, down]));
    }
    let both = g.op(Operator::new("Add"), &[sides[0], sides[1]], &[B, S, n(4)]);
    let sum = g.on("Add", &[stream, both]);
    g.graph.add_output(sum);
    let crossings = Crossings::find(&g.graph, &g.discover());
    assert_eq!(crossings.at(0), crossings.at(1));
    assert_eq!(crossings.at(2), [sum]);
}
