//! How long models take: measured in turns, so that whatever else the machine does falls on all alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kprune_passes::ir::{Model, Tensor};
use serde::Serialize;

use crate::data::{Dataset, as_declared, find};
use crate::error::Error;
use crate::runtime::{self, Held, Runtime, Session};

/// Runs before the clock counts.
const WARM_UP: usize = 3;

/// At least so many rounds are timed, and at most.
const ROUNDS: std::ops::RangeInclusive<usize> = 15..=400;

/// What a run is timed at.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Samples in a run.
    pub batch: usize,
    /// The length of every other free axis of the inputs.
    pub lengths: BTreeMap<String, usize>,
    /// Threads.
    pub threads: usize,
    /// The execution provider.
    pub provider: String,
    /// What is fed.
    #[serde(skip)]
    samples: Vec<(String, Tensor)>,
}

/// How long a run takes, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The median.
    pub median: f64,
    /// A tenth of the runs take less.
    pub low: f64,
    /// A tenth of the runs take more.
    pub high: f64,
    /// Samples in a second, at the median.
    pub throughput: f64,
    /// How many times as fast as the first of those that took turns: the median over the rounds.
    pub speedup: f64,
    /// Rounds that were timed.
    pub rounds: usize,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let samples = if self.batch == 1 { "1 sample".to_string() } else { format!("{} samples", self.batch) };
        let threads = if self.threads == 1 { "1 thread".to_string() } else { format!("{} threads", self.threads) };
        let longest = self.lengths.values().max().filter(|&&n| n > 1);
        let length = longest.map_or(String::new(), |n| format!(" of length {n}"));
        write!(f, "{samples}{length}, {threads}, {}", self.provider)
    }
}

impl Setting {
    /// Runs of `batch` samples of `data`, or of as many as the model takes; of length `seq_len`, or of their mean length,
    /// so that all tokens are real.
    ///
    /// # Errors
    /// Where an array cannot be taken apart.
    pub fn new(runtime: &Runtime, batch: usize, data: &Dataset, seq_len: Option<usize>) -> Result<Self, Error> {
        let whole = |(name, length): (String, f64)| (name, (length.round() as usize).max(1));
        let lengths: BTreeMap<String, usize> = data.lengths(seq_len).into_iter().map(whole).collect();
        let batch = data.fixed_batch().unwrap_or(batch);
        Ok(Self {
            batch,
            samples: data.cut(&data.longest_samples(batch), &lengths)?,
            lengths,
            threads: runtime.threads(),
            provider: runtime.provider().to_string(),
        })
    }

    /// The inputs of the model for one run.
    ///
    /// # Errors
    /// Where ONNX Runtime makes no tensor.
    pub fn feeds(&self, model: &Model) -> Result<Vec<(String, Held)>, Error> {
        let feeds = self.samples.iter().map(|(name, tensor)| Ok((name.clone(), runtime::host(tensor)?)));
        as_declared(&feeds.collect::<Result<Vec<_>, Error>>()?, model)
    }
}

/// A graph that takes part in a comparison, with what it is fed.
pub struct Contender<'a> {
    /// The session.
    pub session: Session,
    /// Its inputs.
    pub feeds: &'a [(String, Held)],
}

/// Lets all run in turns for about `budget`; the seconds of every one, round by round.
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn in_turns(runtime: &Runtime, contenders: &mut [Contender], budget: Duration) -> Result<Vec<Vec<f64>>, Error> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    for round in 0..WARM_UP + ROUNDS.end() {
        runtime.check_cancelled()?;
        if round >= WARM_UP + ROUNDS.start() && start.elapsed() > budget {
            break;
        }
        for (contender, seconds) in contenders.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            let feeds = contender.feeds;
            contender.session.run_with(|name| find(feeds, name))?;
            if round >= WARM_UP {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds)
}

/// Times models in turns, each at its setting; the first is what the others' speed-up is counted against.
///
/// # Errors
/// Where a model does not run at its setting.
pub fn compare(runtime: &Runtime, models: &[(&Model, &Setting)], budget: Duration) -> Result<Vec<Timing>, Error> {
    let feeds = models.iter().map(|(model, setting)| setting.feeds(model)).collect::<Result<Vec<_>, _>>()?;
    let mut contenders = Vec::new();
    for ((model, _), feeds) in models.iter().zip(&feeds) {
        contenders.push(Contender { session: runtime.session(model, "timing a model", true)?, feeds });
    }
    let seconds = in_turns(runtime, &mut contenders, budget)?;
    let timing = |(own, (_, setting)): (&Vec<f64>, &(&Model, &Setting))| timing(own, &seconds[0], setting.batch);
    Ok(seconds.iter().zip(models).map(timing).collect())
}

fn timing(own: &[f64], first: &[f64], batch: usize) -> Timing {
    let ratios: Vec<f64> = first.iter().zip(own).map(|(a, b)| a / b).collect();
    let median = quantile(own, 0.5);
    Timing {
        median: median * 1e3,
        low: quantile(own, 0.1) * 1e3,
        high: quantile(own, 0.9) * 1e3,
        throughput: batch as f64 / median,
        speedup: quantile(&ratios, 0.5),
        rounds: own.len(),
    }
}

/// The number below which that share of the numbers lies.
pub(crate) fn quantile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len().saturating_sub(1)) as f64 * share;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * place.fract(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_numbers() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.25), 1.25);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_speedup_is_that_of_the_median_round() {
        let timing = timing(&[1.0, 2.0, 1.0], &[2.0, 6.0, 3.0], 4);
        assert_eq!((timing.speedup, timing.median, timing.throughput), (3.0, 1e3, 4.0));
    }
}
