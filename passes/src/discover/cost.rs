//! What keeping units costs: FLOPs or parameters as counted, or time as measured on a machine; and which numbers of units are fast.

use crate::discover::{Kind, Sublayer};
use crate::plan::Decision;

/// What the budget is counted in.
#[derive(Clone, Debug)]
pub enum Costs {
    /// FLOPs of one sample.
    Flops,
    /// Parameters.
    Parameters,
    /// Time: one curve for every sublayer.
    Time(Vec<Curve>),
}

/// How long a sublayer takes by the number of units that it keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    points: Vec<(usize, f64)>,
}

impl Curve {
    /// A curve through `points`, pairs of kept units and time, made non-decreasing: where more units took less time,
    /// that is noise.
    pub fn new(mut points: Vec<(usize, f64)>) -> Self {
        points.sort_by_key(|p| p.0);
        let mut most = f64::MIN;
        for (_, time) in &mut points {
            most = most.max(*time);
            *time = most;
        }
        Self { points }
    }

    /// The points that it goes through, by number of units.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }

    /// The time with `kept` units, interpolated linearly.
    pub fn at(&self, kept: usize) -> f64 {
        let next = self.points.partition_point(|p| p.0 < kept);
        match (next.checked_sub(1).map(|i| self.points[i]), self.points.get(next)) {
            (Some((n, a)), Some(&(m, b))) => a + (b - a) * (kept - n) as f64 / (m - n) as f64,
            (Some((_, time)), None) => time,
            (None, first) => first.map_or(0.0, |p| p.1),
        }
    }

    /// The same with what units add to the time without any `factor` times as long.
    pub fn stretched(&self, factor: f64) -> Self {
        let nothing = self.at(0);
        Self { points: self.points.iter().map(|&(n, time)| (n, nothing + (time - nothing) * factor)).collect() }
    }

    /// What `kept` units add to the time without any.
    fn added(&self, kept: usize) -> f64 {
        self.at(kept) - self.at(0)
    }
}

impl Costs {
    /// What the units that stay of sublayer `t` cost.
    pub fn kept(&self, t: usize, sublayer: &Sublayer, decision: &Decision) -> f64 {
        match self {
            Self::Flops => decision.flops(sublayer),
            Self::Parameters => decision.parameters(sublayer),
            Self::Time(curves) => curves[t].added(decision.kept()),
        }
    }

    /// What all units of all sublayers cost.
    pub fn all(&self, sublayers: &[Sublayer]) -> f64 {
        let whole = |(t, s): (usize, &Sublayer)| self.kept(t, s, &Decision::untouched(s));
        sublayers.iter().enumerate().map(whole).sum()
    }

    /// What one unit of sublayer `t` costs on average, by which its score is divided.
    pub fn unit(&self, t: usize, sublayer: &Sublayer, unit: usize) -> f64 {
        match self {
            Self::Flops => sublayer.units[unit].flops,
            Self::Parameters => sublayer.units[unit].parameters as f64,
            Self::Time(curves) => (curves[t].added(sublayer.units.len()) / sublayer.units.len() as f64).max(LEAST),
        }
    }

    /// The marginal cost of a unit of sublayer `t` when it is the `nth` to stay, the first being 1.
    pub fn nth(&self, t: usize, sublayer: &Sublayer, unit: usize, nth: usize) -> f64 {
        match self {
            Self::Flops => sublayer.units[unit].flops,
            Self::Parameters => sublayer.units[unit].parameters as f64,
            Self::Time(curves) => curves[t].at(nth) - curves[t].at(nth - 1),
        }
    }
}

/// A unit whose time cannot be measured still has one.
const LEAST: f64 = 1e-12;

/// Of what the number of neurons that a sublayer keeps is a multiple.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alignment(pub Option<usize>);

/// Widths that are a multiple of this are the fastest per neuron (docs/speed.md).
pub const ALIGNED: usize = 16;

/// A sublayer is wide where it has at least this many times [`ALIGNED`] neurons.
const WIDE: usize = 8;

impl Alignment {
    /// The multiple for a sublayer: what is given, else [`ALIGNED`] in wide ones; 1 for heads.
    pub fn step(self, sublayer: &Sublayer) -> usize {
        let is_wide = sublayer.units.len() >= WIDE * ALIGNED;
        match sublayer.kind {
            Kind::Head => 1,
            Kind::Neuron => self.0.unwrap_or(if is_wide { ALIGNED } else { 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points_and_never_falls() {
        let curve = Curve::new(vec![(8, 5.0), (0, 1.0), (4, 3.0)]);
        assert_eq!([0, 2, 4, 6, 8, 9].map(|n| curve.at(n)), [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]);
        let noisy = Curve::new(vec![(0, 1.0), (4, 0.9), (8, 2.0)]);
        assert_eq!([0, 4, 8].map(|n| noisy.at(n)), [1.0, 1.0, 2.0]);
    }

    #[test]
    fn a_stretched_curve_keeps_the_time_without_units() {
        let curve = Curve::new(vec![(0, 1.0), (4, 3.0)]).stretched(1.5);
        assert_eq!([curve.at(0), curve.at(2), curve.at(4)], [1.0, 2.5, 4.0]);
    }
}
