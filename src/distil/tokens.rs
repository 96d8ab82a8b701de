//! Copies of samples with ordinary tokens replaced: data that cost nothing.

use std::collections::{HashMap, HashSet};

use kprune_passes::calculus::TokenMask;
use kprune_passes::ir::{ElementType, Graph, Tensor};
use kprune_passes::signature;
use ndarray::ArrayD;
use ort::value::DynValue;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::Batch;
use crate::error::Error;
use crate::runtime::{self, Held};

/// The tokens of a calibration set.
pub(super) struct Tokens {
    /// The input that holds them.
    input: String,
    /// The input that says which are real, and whether it does so by 0.
    mask: Option<(String, bool)>,
    /// Those that stay: separators and the like, which nearly every sample has.
    fixed: HashSet<i64>,
    /// All others, as often as they occur.
    ordinary: Vec<i64>,
}

/// How likely an ordinary token is replaced.
const REPLACED: f64 = 0.15;

/// A token that this share of the samples has stays.
const FIXED: f64 = 0.9;

impl Tokens {
    /// The tokens of these batches; `None` where no input of the model holds any: none whose numbers look up a table.
    ///
    /// # Errors
    /// Where numbers cannot be had.
    pub(super) fn of(graph: &Graph, batches: &[Batch], mask: Option<TokenMask>) -> Result<Option<Self>, Error> {
        let mask = mask.map(|m| (graph.name(m.input).to_string(), m.marks_padding));
        let limits = signature::limits(graph);
        let mut inputs: Vec<_> =
            limits.into_iter().map(|(input, rows)| (rows, graph.name(input).to_string())).collect();
        inputs.sort();
        let Some((_, input)) = inputs.pop() else { return Ok(None) };
        let mut this = Self { input, mask, fixed: HashSet::new(), ordinary: Vec::new() };
        let mut having: HashMap<i64, usize> = HashMap::new();
        for batch in batches {
            let Some(ids) = this.ids(batch)? else { return Ok(None) };
            let real = this.real(batch, ids.len())?;
            let real: Vec<Option<i64>> = ids.iter().zip(real).map(|(&id, real)| real.then_some(id)).collect();
            for sample in real.chunks((ids.len() / batch.samples.max(1)).max(1)) {
                let held: HashSet<i64> = sample.iter().copied().flatten().collect();
                held.into_iter().for_each(|id| *having.entry(id).or_default() += 1);
            }
            this.ordinary.extend(real.into_iter().flatten());
        }
        let samples: usize = batches.iter().map(|b| b.samples).sum();
        let is_fixed = |&(_, &count): &(&i64, &usize)| count as f64 >= FIXED * samples as f64;
        this.fixed = having.iter().filter(is_fixed).map(|(&id, _)| id).collect();
        this.ordinary.retain(|id| !this.fixed.contains(id));
        Ok((!this.ordinary.is_empty()).then_some(this))
    }

    /// The tokens of a batch; `None` where they are no integers.
    fn ids(&self, batch: &Batch) -> Result<Option<ArrayD<i64>>, Error> {
        let is_index = |v: &&DynValue| matches!(runtime::element(v), Some(ElementType::I64 | ElementType::I32));
        batch.find(&self.input).filter(is_index).map(runtime::integers).transpose()
    }

    /// Which of so many tokens are real; all where nothing says so.
    fn real(&self, batch: &Batch, count: usize) -> Result<Vec<bool>, Error> {
        let mask = self.mask.as_ref().and_then(|(name, is_padding)| Some((batch.find(name)?, *is_padding)));
        let Some((mask, is_padding)) = mask else { return Ok(vec![true; count]) };
        let real: Vec<bool> = runtime::is_nonzero(mask)?.into_iter().map(|flag| flag != is_padding).collect();
        Ok(if real.len() == count { real } else { vec![true; count] })
    }

    /// The tokens of a batch with some of the ordinary ones replaced, and the name of the input that takes them.
    ///
    /// # Errors
    /// Where numbers cannot be had.
    pub(super) fn replaced(&self, batch: &Batch, random: &mut ChaCha8Rng) -> Result<Option<(String, Held)>, Error> {
        let Some(mut ids) = self.ids(batch)? else { return Ok(None) };
        let real = self.real(batch, ids.len())?;
        for (id, _) in ids.iter_mut().zip(real).filter(|(_, real)| *real) {
            if !self.fixed.contains(id) && random.random_bool(REPLACED) {
                *id = self.ordinary[random.random_range(0..self.ordinary.len())];
            }
        }
        let is_wide = batch.find(&self.input).and_then(runtime::element) == Some(ElementType::I64);
        let bytes: Vec<u8> = match is_wide {
            true => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            false => ids.iter().flat_map(|&id| (id as i32).to_le_bytes()).collect(),
        };
        let element = if is_wide { ElementType::I64 } else { ElementType::I32 };
        let tensor = Tensor::from_raw(&self.input, element, ids.shape(), bytes.into());
        Ok(Some((self.input.clone(), runtime::host(&tensor.map_err(|e| Error::internal(e.to_string()))?)?)))
    }
}

#[cfg(test)]
mod tests {
    use kprune_passes::ir::Operator;
    use kprune_passes::signature::declare;
    use rand::SeedableRng;

    use super::*;
    use crate::runtime::{Choice, Runtime, host};

    /// Samples of a start, three words, an end, and two tokens of padding.
    fn batch(first: i64) -> Batch {
        let (samples, length) = (10, 7);
        let rows = (0..samples as i64).flat_map(|i| [1, first + i, first + 20 + i, first + 40 + i, 2, 0, 0]);
        let real = (0..samples).flat_map(|_| [1, 1, 1, 1, 1, 0, 0]);
        let held = |values: Vec<i64>| host(&Tensor::from_i64s(&[samples, length], &values)).unwrap();
        let feeds = vec![("ids".to_string(), held(rows.collect())), ("mask".to_string(), held(real.collect()))];
        let (tokens, padded) = (5 * samples, length * samples);
        let rows = (0..samples).collect();
        let (mini_batch, mini_batch_samples, is_held_out) = (0, samples, false);
        Batch { feeds, rows, samples, tokens, padded, mini_batch, mini_batch_samples, is_held_out }
    }

    #[test]
    fn ordinary_tokens_are_replaced_by_others_of_the_set_and_no_others() {
        let _runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).unwrap();
        let mut graph = Graph::new();
        let ids = graph.add_input(declare("ids", ElementType::I64, 2));
        let mask = graph.add_input(declare("mask", ElementType::I64, 2));
        let table =
            graph.add_constant("table", Tensor::from_floats(ElementType::F32, &ArrayD::zeros(vec![99, 4])).unwrap());
        let output = graph.add(Operator::new("Gather"), &[table, ids], "embedded");
        graph.add_output(output);
        let batches = [batch(10), batch(15)];
        let tokens = Tokens::of(&graph, &batches, Some(mask.into())).unwrap().unwrap();
        let (name, copy) = tokens.replaced(&batches[0], &mut ChaCha8Rng::seed_from_u64(3)).unwrap().unwrap();
        let (old, new) = (tokens.ids(&batches[0]).unwrap().unwrap(), runtime::integers(copy.value()).unwrap());
        let changed: Vec<(i64, i64)> = old.iter().zip(&new).filter(|(a, b)| a != b).map(|(a, b)| (*a, *b)).collect();
        assert_eq!((name.as_str(), new.shape()), ("ids", old.shape()));
        assert!((1..15).contains(&changed.len()), "{} of 30 words", changed.len());
        assert!(changed.iter().all(|(a, b)| *a >= 10 && *b >= 10), "{changed:?}: ends and padding stay");
    }

    #[test]
    fn a_model_without_tables_has_no_tokens() {
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 2));
        graph.add_output(x);
        assert!(Tokens::of(&graph, &[], None).unwrap().is_none());
    }
}
