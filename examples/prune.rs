//! Prunes a model with calibration batches and a progress of one's own.
//!
//!     cargo run --release --example prune -- fixtures/reviews/model.onnx pruned.onnx

use onnx_kprune::{Error, Progress, Pruner, Tensor};

/// Says every line once.
struct Lines;

impl Progress for Lines {
    fn done(&self, line: &str) {
        println!("  {line}");
    }
}

/// Batches of eight samples for a model with three integer inputs, from wherever they come.
fn batches() -> impl Iterator<Item = Vec<(String, Tensor)>> {
    (0..32).map(|batch| {
        let length = 8 + batch % 5;
        let ids: Vec<i64> = (0..8 * length).map(|i| 4 + (i * 7 + batch) % 90).collect();
        let (ones, zeros) = (vec![1; ids.len()], vec![0; ids.len()]);
        let tensor = |values: &[i64]| Tensor::from_i64s(&[8, length as usize], values);
        vec![
            ("input_ids".to_string(), tensor(&ids)),
            ("attention_mask".to_string(), tensor(&ones)),
            ("token_type_ids".to_string(), tensor(&zeros)),
        ]
    })
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(input), Some(output)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: prune IN.onnx OUT.onnx");
        return Ok(());
    };
    let report = Pruner::new(input)
        .calibration_batches(batches())
        .compression(0.5)
        .options(|options| options.runtime.threads = 1)
        .progress(&Lines)
        .prune(output)?;
    println!("{:.0} % of the prunable FLOPs went", 100.0 * report.removed());
    Ok(())
}
