//! The methods, and the contract between a method and the world.
//!
//! A method is told a [`Task`], asks a [`Walk`] for sums over the calibration set, and answers with an [`Outcome`] for
//! every budget. It sees no model, no session and no file, so that a walk of a few arrays is enough to test one.
//! A new method is a file or folder here, a line in [`Settings`], and its options in the command line
//! (docs/adding-a-method.md).

pub mod besa;
pub mod kprune;
pub mod kwon;
pub mod magnitude;
pub mod obs;
pub mod one_shot;
pub mod random;
pub mod rank;
pub mod tune;

#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use serde::Serialize;

use crate::calculus::loss::Criterion;
use crate::discover::Sublayer;
use crate::discover::cost::{Alignment, Costs};
use crate::ir::ElementType;
use crate::linalg::least_squares::Sums;
use crate::plan::{Decision, Plan};

/// What ends the work of a method: an error of the walk, or [`NotFinite`](crate::finite::NotFinite).
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The methods, each with its settings. Reports show them as one object, whose `name` is the method's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Settings {
    /// Knowledge-preserving pruning (Park, Choi, Kang, ICLR 2024).
    Kprune(kprune::Settings),
    /// Fisher-based pruning of masks (Kwon et al., NeurIPS 2022).
    Kwon(kwon::Settings),
    /// Optimal brain surgeon for units, in the directions that the outputs feel.
    Obs(obs::Settings),
    /// Learned shares of units, then least squares (the structured variant of BESA).
    Besa(besa::Settings),
    /// The units with the smallest weights go: a baseline.
    Magnitude,
    /// Whatever the dice say: a baseline.
    Random,
}

impl Default for Settings {
    fn default() -> Self {
        Self::Obs(obs::Settings::default())
    }
}

impl Settings {
    /// The method with these settings.
    pub fn method(&self) -> Box<dyn Method> {
        match self {
            Self::Kprune(settings) => Box::new(kprune::Kprune::new(settings.clone())),
            Self::Kwon(settings) => Box::new(kwon::Kwon::new(*settings)),
            Self::Obs(settings) => Box::new(obs::Obs::new(*settings)),
            Self::Besa(settings) => Box::new(besa::Besa::new(*settings)),
            Self::Magnitude => Box::new(magnitude::Magnitude),
            Self::Random => Box::new(random::Random),
        }
    }

    /// The same, with what was left to the method decided for a model of so many sublayers.
    pub fn decided(&self, sublayers: usize) -> Self {
        match self {
            Self::Kprune(settings) => Self::Kprune(settings.decided(sublayers)),
            other => other.clone(),
        }
    }

    /// What is wrong with a setting, in words.
    ///
    /// # Errors
    /// The setting, and what was expected.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Kprune(settings) => settings.check(),
            Self::Obs(settings) => settings.check(),
            Self::Kwon(_) | Self::Besa(_) | Self::Magnitude | Self::Random => Ok(()),
        }
    }
}

/// What a method is told.
pub struct Task<'a> {
    /// The sublayers, from input to output.
    pub sublayers: &'a [Sublayer],
    /// What keeping units costs.
    pub costs: &'a Costs,
    /// What the units that stay may cost: one budget for every student.
    pub budgets: &'a [f64],
    /// Which numbers of units are fast.
    pub alignment: Alignment,
    /// Whether attentions with key/value caches keep equally many heads each: runners may know of one number only.
    pub even_heads: bool,
    /// The seed of whatever is drawn.
    pub seed: u64,
    /// Asked now and then in long work: fails where the run is to end.
    pub check: &'a dyn Fn() -> Result<(), Failure>,
}

impl Task<'_> {
    /// The sublayers that keep as many units as `t` does, itself among them; none where it keeps as many as it likes.
    pub fn even_with(&self, t: usize) -> Vec<usize> {
        let is_even = |s: &Sublayer| s.has_cache && s.units.len() == self.sublayers[t].units.len();
        let all = self.sublayers.iter().enumerate().filter(|(_, s)| self.even_heads && is_even(s)).map(|(i, _)| i);
        if self.sublayers[t].has_cache { all.collect() } else { Vec::new() }
    }
}

/// A way to choose units.
pub trait Method {
    /// At which of so many sublayers it asks for mask gradients. Where it never does, the model need not be
    /// differentiable.
    fn differentiates_at(&self, _sublayers: usize) -> Vec<usize> {
        Vec::new()
    }

    /// Whether it needs the teacher's outputs, where labels say what is right for every output or do not.
    fn needs_outputs(&self, _has_labels: bool) -> bool {
        true
    }

    /// Whether it heeds [`Task::even_with`].
    fn keeps_heads_even(&self) -> bool {
        true
    }

    /// Leads one student for every budget through all sublayers, and says what was decided.
    ///
    /// It may be called again with other budgets, for a walk that has started anew: what is known of the model may be
    /// kept.
    ///
    /// # Errors
    /// Whatever ends the walk, and numbers that are not finite.
    fn choose(&mut self, walk: &mut dyn Walk, task: &Task) -> Result<Vec<Outcome>, Failure>;
}

/// What a method may ask: teacher and students, led over the calibration set sublayer by sublayer.
///
/// All of them start upstream of the first sublayer. [`Walk::equations`] leads the teacher through a sublayer,
/// [`Walk::settle`] a student. Sums are over the real tokens of all samples, in f64.
pub trait Walk {
    /// Number of samples.
    fn samples(&self) -> usize;

    /// Number of rows of the features of sublayer `t`: real tokens where the token mask says which are real, and all
    /// positions otherwise. It is a whole number only in sum, where samples count with their mean length.
    fn tokens(&self, t: usize) -> f64;

    /// The projection of sublayer `t` as the model has it.
    ///
    /// # Errors
    /// Where its weight is no matrix.
    fn projection(&self, t: usize) -> Result<Stored, Failure>;

    /// For every sublayer from `t` on, the squared features of the leading student, summed by column: `[width]`.
    ///
    /// `each` is given the mask gradients of every mini-batch, for the same sublayers and of the same shape: for column
    /// c the derivative of the loss with respect to a factor of c, which is the sum over samples and tokens of feature
    /// times gradient. While the student is still the teacher, all are zero against the teacher, and `each` is not
    /// called.
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, a number is not finite, or ONNX Runtime fails.
    fn columns(
        &mut self,
        t: usize,
        criterion: Criterion,
        each: &mut dyn FnMut(&[Array1<f64>]),
    ) -> Result<Vec<Array1<f64>>, Failure>;

    /// How many mini-batches there are.
    fn mini_batches(&self) -> usize;

    /// Runs a mini-batch through the untouched model without the units that `keep` says to go, forward and backward, and
    /// compares it with the teacher, distributions softened by `tau`.
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, a number is not finite, or ONNX Runtime fails.
    fn masked(&mut self, mini_batch: usize, keep: &[Vec<bool>], tau: f64) -> Result<Masked, Failure>;

    /// Gives `each` sublayer's moments in the model itself, from the first to the last. They are measured with a random
    /// probe of the outputs, whose distributions are softened by `tau`.
    ///
    /// # Errors
    /// Where an operator cannot be differentiated, a number is not finite, ONNX Runtime fails, or `each` does.
    fn moments(&mut self, tau: f64, each: &mut dyn FnMut(usize, Moments) -> Result<(), Failure>)
    -> Result<(), Failure>;

    /// Goes back upstream of the first sublayer, with so many students of which nothing is pruned yet. The teacher is the
    /// model from then on, or the model without the units that `teacher` removes.
    ///
    /// # Errors
    /// Where a projection is of no floating-point type.
    fn restart(&mut self, students: usize, teacher: Option<&Plan>) -> Result<(), Failure>;

    /// Leads the teacher through sublayer `t`, and sums up for every student the normal equations of its projection:
    /// for the columns of the units that `keep` says to stay, which may be all, and what is missing to the teacher's
    /// residual stream.
    ///
    /// # Errors
    /// Where a number is not finite, or ONNX Runtime fails.
    fn equations(&mut self, t: usize, keep: &[Vec<bool>]) -> Result<Vec<Equations>, Failure>;

    /// Leads a student through sublayer `t` with its projection as decided, for units that its [`Walk::equations`] were
    /// of.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    fn settle(&mut self, student: usize, t: usize, decision: &Decision) -> Result<(), Failure>;
}

/// What a mini-batch gives without some units.
#[derive(Clone, Debug)]
pub struct Masked {
    /// The loss.
    pub loss: f64,
    /// For every sublayer the mask gradients of its columns, those of units that are gone among them: `[width]`.
    pub gradients: Vec<Array1<f64>>,
}

/// Sums over the real tokens of a sublayer.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The Gram matrix of its features: all columns and a column of ones, [width + 1, width + 1], so that the last number
    /// is that of rows.
    pub gram: Array2<f64>,
    /// What the outputs feel of an error of its projection: the sum of g g^T, [outputs, outputs], g being the gradient of a
    /// probe of the outputs with respect to what the projection gives. Zero where they do not depend on it.
    pub felt: Array2<f64>,
}

/// A projection as the model has it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its weight: [columns of the features, outputs].
    pub weight: Array2<f64>,
    /// The type that its elements are stored as.
    pub element: ElementType,
    /// Whether a bias is added to it.
    pub has_bias: bool,
}

/// The normal equations of a projection.
#[derive(Clone, Debug)]
pub struct Equations {
    /// Of the samples to solve for.
    pub solve: Sums,
    /// Of the samples that were held out, to judge by.
    pub held_out: Sums,
}

/// What was decided, and how well each projection could be repaired.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The decisions.
    pub plan: Plan,
    /// For every sublayer, how well it could be repaired.
    pub repairs: Vec<tune::Repair>,
    /// For every sublayer, the scores that its units had when they were chosen; empty where they had none.
    pub scores: Vec<Vec<f64>>,
    /// For every sublayer, what else a method has to say.
    pub details: Vec<Details>,
}

/// What a method says of a sublayer, by name.
pub type Details = BTreeMap<&'static str, Detail>;

/// Something that a method says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Detail {
    /// A number of units.
    Count(usize),
    /// A number for every unit that stays.
    Numbers(Vec<f64>),
    /// Words.
    Text(String),
}

impl Outcome {
    /// Nothing is decided yet.
    pub fn untouched(sublayers: &[Sublayer]) -> Self {
        Self {
            plan: Plan::untouched(sublayers),
            repairs: vec![tune::Repair::default(); sublayers.len()],
            scores: vec![Vec::new(); sublayers.len()],
            details: vec![Details::new(); sublayers.len()],
        }
    }
}
