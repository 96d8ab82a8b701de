//! What can be chosen about K-prune.

use serde::Serialize;

/// Sublayers at which knowledge is measured after the first, where nothing else is said.
const REFRESHES: usize = 4;

/// The settings of K-prune; the defaults are the published ones, but for the schedule (docs/speed.md).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Weight of the predictive knowledge.
    pub lambda_pred: f64,
    /// Weight of the representational knowledge.
    pub lambda_rep: f64,
    /// Weight of heads against neurons.
    pub mu: f64,
    /// The temperature tau of the distillation loss.
    pub temperature: f64,
    /// Knowledge is measured at the first two sublayers, and then at every one of so many; where it is not given, at
    /// every fourth part of them. The published method measures at every one.
    pub refresh: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lambda_pred: 1.0, lambda_rep: 2.5e-4, mu: 64.0, temperature: 2.0, refresh: None }
    }
}

impl Settings {
    /// At every how many of so many sublayers knowledge is measured.
    fn every(&self, sublayers: usize) -> usize {
        self.refresh.unwrap_or(sublayers.div_ceil(REFRESHES)).max(1)
    }

    /// Whether knowledge is measured at sublayer `t` of so many. At the first one there is only the representational
    /// part, so the second is always measured.
    pub(super) fn measures_at(&self, t: usize, sublayers: usize) -> bool {
        t == 0 || (t - 1).is_multiple_of(self.every(sublayers))
    }

    /// The same with the schedule for a model of so many sublayers.
    pub(crate) fn decided(&self, sublayers: usize) -> Self {
        Self { refresh: Some(self.every(sublayers)), ..self.clone() }
    }

    /// What is wrong with a setting, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let weights = [("lambda_pred", self.lambda_pred), ("lambda_rep", self.lambda_rep), ("mu", self.mu)];
        if let Some((name, weight)) = weights.into_iter().find(|(_, w)| !(w.is_finite() && *w >= 0.0)) {
            return Err(format!("{name} is {weight}, and must be a number, 0 or above"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(format!("the temperature is {}, and must be a number above 0", self.temperature));
        }
        if self.refresh == Some(0) {
            return Err("refresh is at least 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_measures_at_the_first_two_sublayers_and_then_at_every_so_many() {
        let at = |refresh| {
            let settings = Settings { refresh, ..Settings::default() };
            (0..12).filter(|&t| settings.measures_at(t, 12)).collect::<Vec<_>>()
        };
        assert_eq!(at(None), [0, 1, 4, 7, 10]);
        assert_eq!(at(Some(6)), [0, 1, 7]);
        assert_eq!(at(Some(1)), (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let wrong = [
            Settings { mu: -1.0, ..Settings::default() },
            Settings { lambda_rep: f64::NAN, ..Settings::default() },
            Settings { temperature: 0.0, ..Settings::default() },
            Settings { refresh: Some(0), ..Settings::default() },
        ];
        assert!(wrong.iter().all(|settings| settings.check().is_err()));
        assert!(Settings::default().check().is_ok());
    }
}
