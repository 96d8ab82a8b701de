//! Scores of the next token compared inside ONNX Runtime, against the formulas written out.
#![allow(missing_docs)]

mod support;

use kprune_passes::calculus::next_token::{FIRST, IDS, MASK, OWN, compare};
use kprune_passes::ir::{ElementType, Tensor};
use ndarray::{Array3, ArrayD, s};
use onnx_kprune::judge::metrics::{argmax, cosine, divergence};
use onnx_kprune::runtime::{Purpose, host, numbers, scalars};
use support::cpu;

const SHAPE: (usize, usize, usize) = (2, 4, 5);

fn scores(seed: usize) -> Array3<f64> {
    Array3::from_shape_fn(SHAPE, |(i, j, k)| ((i * 37 + j * 17 + k * 11 + seed * 29) % 23) as f64 / 5.0 - 2.0)
}

#[test]
fn sums_are_those_of_the_formulas_without_padding() {
    let (first, own) = (scores(1), scores(2));
    let ids = [[3i64, 1, 4, 0], [2, 2, 0, 1]];
    // The last token of the second sample is padding.
    let real = [[true; 4], [true, true, true, false]];
    for marks_padding in [None, Some(false), Some(true)] {
        let is_real = |i: usize, j: usize| marks_padding.is_none() || real[i][j];
        let (model, sums) =
            compare([ElementType::F32; 2], ElementType::I64, marks_padding.map(|m| (ElementType::I64, m)));
        let runtime = cpu();
        let mut session = runtime.session(&model, "testing", Purpose::Trial).unwrap_or_else(|e| panic!("{e}"));
        let feed = |array: &Array3<f64>| numbers(&array.clone().into_dyn()).unwrap();
        let (a, b) = (feed(&first), feed(&own));
        let integers = |values: Vec<i64>| host(&Tensor::from_i64s(&[2, 4], &values)).unwrap();
        let tokens = integers(ids.concat());
        let flag = |r: &bool| i64::from(*r != (marks_padding == Some(true)));
        let mask = integers(real.iter().flatten().map(flag).collect());
        let values = session.run_with(|name| match name {
            FIRST => Some(a.value()),
            OWN => Some(b.value()),
            IDS => Some(tokens.value()),
            MASK => Some(mask.value()),
            _ => None,
        });
        let values = values.unwrap();
        let found = |name: &String| scalars(&values[name]).unwrap().sum();
        let all = || (0..2).flat_map(|i| (0..4).map(move |j| (i, j))).filter(|&(i, j)| is_real(i, j));
        let row = |array: &Array3<f64>, (i, j): (usize, usize)| array.slice(s![i, j, ..]).to_vec();
        let sum = |of: &dyn Fn((usize, usize)) -> f64| all().map(of).sum::<f64>();
        let next = |(i, j): (usize, usize)| -> f64 {
            if j + 1 == 4 || !is_real(i, j + 1) {
                return 0.0;
            }
            let z = row(&own, (i, j));
            let total: f64 = z.iter().map(|x| x.exp()).sum();
            total.ln() - z[ids[i][j + 1] as usize]
        };
        let best = |array: &Array3<f64>, at| argmax(row(array, at));
        let expected = [
            (&sums.surprise, sum(&next)),
            (&sums.predicted, sum(&|(i, j)| f64::from(j + 1 < 4 && is_real(i, j + 1)))),
            (&sums.tokens, sum(&|_| 1.0)),
            (&sums.same, sum(&|at| f64::from(best(&first, at) == best(&own, at)))),
            (&sums.divergence, sum(&|at| divergence(&row(&first, at), &row(&own, at)))),
            (&sums.cosine, sum(&|at| cosine(&row(&first, at), &row(&own, at)))),
        ];
        for (name, value) in expected {
            assert!((found(name) - value).abs() < 1e-4, "{name} ({marks_padding:?}): {} {value}", found(name));
        }
        let apart: ArrayD<f64> = (&first - &own).mapv(f64::abs).into_dyn();
        let apart = apart.indexed_iter().filter(|(at, _)| is_real(at[0], at[1])).map(|(_, x)| *x);
        let largest = scalars(&values[&sums.largest]).unwrap().into_iter().fold(0.0, f64::max);
        assert!((largest - apart.fold(0.0, f64::max)).abs() < 1e-5);
    }
}
