//! How long models take: measured in turns, so that whatever else the machine does falls on all alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kprune_passes::ir::{Model, Tensor};
use serde::Serialize;

use crate::data::{Dataset, as_declared, find};
use crate::error::Error;
use crate::machine::{Others, processor_time};
use crate::runtime::{self, Held, Purpose, Runtime, Session};

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
    /// Processor time of a run, all threads together: the median; `None` where the system does not say. Threads that wait for
    /// others may use some.
    pub processor: Option<f64>,
    /// How many times as fast as the first of those that took turns: the median over the rounds of the ratio of the two.
    pub speedup: f64,
    /// The interval of that median, with a probability of 95 %.
    pub interval: [f64; 2],
    /// Rounds that were timed.
    pub rounds: usize,
    /// Cores that other processes kept busy meanwhile, in the mean; `None` where the system does not say.
    pub others: Option<f64>,
}

/// What seconds a contender took, round by round, and of processor time.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    /// Of the clock on the wall.
    pub seconds: Vec<f64>,
    /// Of the processor; empty where the system does not say.
    pub processor: Vec<f64>,
}

/// Intervals that are wider than this share of the speed-up are said to be wide.
const WIDE: f64 = 0.1;

/// A machine is busy where other processes take this many cores.
const BUSY: f64 = 0.25;

impl Timing {
    /// What is not sure of a speed-up, in words.
    pub(crate) fn doubt(&self) -> Option<String> {
        let [low, high] = self.interval;
        let busy = self.others.filter(|cores| *cores > BUSY);
        let busy = busy.map(|cores| format!("; other processes kept {cores:.1} cores busy")).unwrap_or_default();
        let is_wide = (high - low) > WIDE * self.speedup;
        match low < 1.0 && high > 1.0 {
            true => Some(format!("the times do not tell which model is faster: {low:.2} to {high:.2} times{busy}")),
            false if is_wide => Some(format!("times vary much: {low:.2} to {high:.2} times as fast{busy}")),
            false if !busy.is_empty() => Some(format!("times are of a busy machine{busy}")),
            false => None,
        }
    }

    /// How many times as fast, with what is sure of it.
    pub(crate) fn faster(&self) -> String {
        let [low, high] = self.interval;
        format!("{:.2} times as fast ({low:.2} to {high:.2})", self.speedup)
    }
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

/// Lets all run in turns for about `budget`, every second round the other way round; what every one took.
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn in_turns(runtime: &Runtime, contenders: &mut [Contender], budget: Duration) -> Result<Vec<Rounds>, Error> {
    let mut rounds = vec![Rounds::default(); contenders.len()];
    let start = Instant::now();
    for round in 0..WARM_UP + ROUNDS.end() {
        runtime.check_cancelled()?;
        if round >= WARM_UP + ROUNDS.start() && start.elapsed() > budget {
            break;
        }
        let mut turns: Vec<_> = contenders.iter_mut().zip(&mut rounds).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (contender, rounds) in turns {
            let (start, used) = (Instant::now(), processor_time());
            let feeds = contender.feeds;
            contender.session.run_with(|name| find(feeds, name))?;
            if round >= WARM_UP {
                rounds.seconds.push(start.elapsed().as_secs_f64());
                rounds.processor.extend(processor_time().zip(used).map(|(after, before)| after - before));
            }
        }
    }
    Ok(rounds)
}

/// Times models in turns, each at its setting; the first is what the others' speed-up is counted against.
///
/// # Errors
/// Where a model does not run at its setting.
pub fn compare(runtime: &Runtime, models: &[(&Model, &Setting)], budget: Duration) -> Result<Vec<Timing>, Error> {
    let feeds = models.iter().map(|(model, setting)| setting.feeds(model)).collect::<Result<Vec<_>, _>>()?;
    let mut contenders = Vec::new();
    for ((model, _), feeds) in models.iter().zip(&feeds) {
        contenders.push(Contender { session: runtime.session(model, "timing a model", Purpose::Timing)?, feeds });
    }
    let others = Others::watch();
    let rounds = in_turns(runtime, &mut contenders, budget)?;
    let others = others.cores();
    let timing = |(own, (_, setting)): (&Rounds, &(&Model, &Setting))| Timing {
        others,
        ..timing(own, &rounds[0].seconds, setting.batch)
    };
    Ok(rounds.iter().zip(models).map(timing).collect())
}

fn timing(own: &Rounds, first: &[f64], batch: usize) -> Timing {
    let Rounds { seconds, processor } = own;
    let ratios: Vec<f64> = first.iter().zip(seconds).map(|(a, b)| a / b).collect();
    let median = quantile(seconds, 0.5);
    Timing {
        median: median * 1e3,
        low: quantile(seconds, 0.1) * 1e3,
        high: quantile(seconds, 0.9) * 1e3,
        throughput: batch as f64 / median,
        processor: (!processor.is_empty()).then(|| quantile(processor, 0.5) * 1e3),
        speedup: quantile(&ratios, 0.5),
        interval: interval(&ratios),
        rounds: seconds.len(),
        others: None,
    }
}

/// The stretches of consecutive rounds that are compared with each other, and the quantile of Student's distribution for as
/// many, at a probability of 95 %.
const STRETCHES: (usize, f64) = (10, 2.262);

/// The interval of the median with a probability of 95 %: the wider of the one for rounds that know nothing of each other, and
/// of the one that follows from how much the medians of ten stretches differ, since what else a machine does lasts longer than
/// a round (batch means, Law 2015, section 9.5.3).
fn interval(ratios: &[f64]) -> [f64; 2] {
    let (stretches, student) = STRETCHES;
    let [low, high] = of_median(ratios);
    if ratios.len() < stretches {
        return [low, high];
    }
    let medians = ndarray::Array1::from_iter((0..stretches).map(|i| {
        let [from, to] = [i, i + 1].map(|edge| edge * ratios.len() / stretches);
        quantile(&ratios[from..to], 0.5)
    }));
    let (middle, half) = (quantile(ratios, 0.5), student * medians.std(1.0) / (stretches as f64).sqrt());
    [low.min(middle - half), high.max(middle + half)]
}

/// The interval of a median of independent numbers, with a probability of 95 %: between two of the sorted numbers, whose places
/// follow from the binomial distribution (Conover 1999, section 3.2).
fn of_median(numbers: &[f64]) -> [f64; 2] {
    let apart = 0.98 / (numbers.len().max(1) as f64).sqrt();
    [0.5 - apart, 0.5 + apart].map(|share| quantile(numbers, share.clamp(0.0, 1.0)))
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
        let own = Rounds { seconds: vec![1.0, 2.0, 1.0], processor: vec![2.0, 3.0, 2.0] };
        let timing = timing(&own, &[2.0, 6.0, 3.0], 4);
        assert_eq!((timing.speedup, timing.median, timing.throughput), (3.0, 1e3, 4.0));
        assert_eq!((timing.interval, timing.processor), ([2.0, 3.0], Some(2e3)));
    }

    #[test]
    fn the_interval_of_a_median_gets_narrow_with_more_rounds() {
        let numbers = |count: usize| (0..count).map(|i| 1.0 + i as f64 / count as f64).collect::<Vec<_>>();
        let [few, many] = [25, 400].map(|count| of_median(&numbers(count)));
        assert!(few[0] < many[0] && many[0] < 1.5 && 1.5 < many[1] && many[1] < few[1], "{few:?} {many:?}");
        assert!((many[1] - many[0] - 0.098).abs() < 0.01, "{many:?}");
    }

    #[test]
    fn rounds_that_hang_together_tell_less() {
        let flickering: Vec<f64> = (0..400).map(|i| 1.5 + f64::from(i % 2) * 0.1).collect();
        let drifting: Vec<f64> = (0..400).map(|i| 1.5 + f64::from(i / 100 % 2) * 0.1).collect();
        let width = |ratios: &[f64]| interval(ratios)[1] - interval(ratios)[0];
        assert!(width(&flickering) <= 0.1 + 1e-9, "{:?}", interval(&flickering));
        let [low, high] = interval(&drifting);
        assert!(low < 1.52 && high > 1.58 && high < 1.65, "{low} {high}");
    }

    #[test]
    fn what_times_do_not_tell_is_said() {
        let timing = |interval: [f64; 2], others| Timing {
            others: Some(others),
            interval,
            speedup: interval[0].midpoint(interval[1]),
            ..timing(&Rounds { seconds: vec![1.0], processor: vec![] }, &[1.0], 1)
        };
        assert_eq!(timing([1.49, 1.51], 0.1).doubt(), None);
        assert!(timing([0.97, 1.04], 0.0).doubt().unwrap().contains("do not tell"));
        let busy = timing([1.2, 1.6], 1.3).doubt().unwrap();
        assert!(busy.contains("vary much") && busy.contains("1.3 cores"), "{busy}");
    }
}
