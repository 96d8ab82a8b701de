//! The charts of the page that are more than bars.

use maud::{Markup, html};

/// Points of a curve of sorted scores; more could not be seen.
const POINTS: usize = 160;

/// Scores below the best by more than this factor are drawn as if they were below it by as much.
const RANGE: f32 = 1e8;

/// Where each score lies between the least and the best, on a logarithmic scale, from 0 to 1.
pub(super) fn shares(scores: &[f32]) -> Vec<f64> {
    let best = scores.iter().copied().fold(0.0, f32::max);
    if best <= 0.0 {
        return vec![0.0; scores.len()];
    }
    let log = |score: f32| f64::from(score.max(best / RANGE).ln());
    let least = scores.iter().map(|&s| log(s)).fold(f64::INFINITY, f64::min);
    let range = (log(best) - least).max(f64::MIN_POSITIVE);
    scores.iter().map(|&s| (log(s) - least) / range).collect()
}

/// Scores from the best to the least, the first `kept` filled.
pub(super) fn sorted_scores(name: &str, scores: &[f32], kept: usize) -> Markup {
    const WIDTH: f64 = 160.0;
    const HEIGHT: f64 = 70.0;
    let mut shares = shares(scores);
    shares.sort_by(|a, b| b.total_cmp(a));
    let last = (shares.len() - 1).max(1);
    let x = |i: usize| WIDTH * i as f64 / last as f64;
    let y = |share: f64| HEIGHT - 4.0 - (HEIGHT - 8.0) * share;
    let step = last.div_ceil(POINTS).max(1);
    let points = |to: usize| -> Vec<String> {
        let places = (0..to).step_by(step).chain(to.checked_sub(1));
        places.map(|i| format!("{:.1},{:.1}", x(i), y(shares[i]))).collect()
    };
    let cut = kept.min(shares.len());
    let area = format!("0,{HEIGHT} {} {:.1},{HEIGHT}", points(cut).join(" "), x(cut.saturating_sub(1)));
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{name}: scores from the best to the least")) {
            @if cut > 0 { polygon points=(area) fill="var(--neuron)" opacity="0.35" {} }
            polyline points=(points(shares.len()).join(" ")) fill="none" stroke="var(--neuron)" stroke-width="1.5" {}
            line x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) stroke="var(--line)" {}
        }
    }
}

/// A point of a curve.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The standard error of y.
    pub(super) error: Option<f64>,
    /// What it is, for whoever points at it.
    pub(super) title: String,
}

/// Points joined from left to right, with twice their errors; what `name` says is for those who do not see it.
pub(super) fn curve(mut points: Vec<Point>, name: &str, label: impl Fn(f64) -> String) -> Markup {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 250.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 34.0;
    const BOTTOM: f64 = 28.0;
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    let reach = |point: &Point| 2.0 * point.error.unwrap_or(0.0);
    let rows = Scale::of(points.iter().flat_map(|p| [p.y - reach(p), p.y + reach(p)]), 4.0);
    let columns = Scale::of(points.iter().map(|p| p.x), 5.0);
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * columns.share(value);
    let y = |value: f64| 10.0 + (HEIGHT - BOTTOM - 10.0) * (1.0 - rows.share(value));
    let at = |place: f64| format!("{place:.1}");
    let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.x), y(p.y))).collect();
    let decimals = (-rows.step.log10().floor()).clamp(1.0, 5.0) as usize;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(name) style="max-width:760px;margin-bottom:14px" {
            @for tick in rows.ticks() {
                line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(at(y(tick))) y2=(at(y(tick))) stroke="var(--line)" {}
                text x=(LEFT - 8.0) y=(at(y(tick) + 4.0)) text-anchor="end" { (format!("{tick:.decimals$}")) }
            }
            @for tick in columns.ticks() {
                text x=(at(x(tick))) y=(HEIGHT - 8.0) text-anchor="middle" { (label(tick)) }
            }
            polyline points=(line.join(" ")) fill="none" stroke="var(--head)" stroke-width="2.5" stroke-linejoin="round" {}
            @for point in &points {
                @if reach(point) > 0.0 {
                    line x1=(at(x(point.x))) x2=(at(x(point.x))) y1=(at(y(point.y - reach(point)))) y2=(at(y(point.y + reach(point)))) stroke="var(--head)" stroke-width="1.5" {}
                }
                circle cx=(at(x(point.x))) cy=(at(y(point.y))) r="5" fill="var(--head)" stroke="var(--card)" stroke-width="2" {
                    title { (point.title) }
                }
            }
        }
    }
}

/// A scale whose ends and steps are round.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// From the least of some numbers to the largest, in about so many steps.
    fn of(numbers: impl Iterator<Item = f64>, steps: f64) -> Self {
        let (least, most) =
            numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), n| (least.min(n), most.max(n)));
        let step = nice_step((most - least).max(1e-4) / steps);
        let (low, high) = ((least / step).floor() * step, (most / step).ceil() * step);
        Self { low, high: high.max(low + step), step }
    }

    fn share(&self, number: f64) -> f64 {
        (number - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        (0..=((self.high - self.low) / self.step).round() as usize).map(|i| self.low + self.step * i as f64).collect()
    }
}

/// The least of 1, 2 and 5 times a power of ten that is no less than `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|&s| s >= step * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!([0.03, 0.2, 0.21, 7.0].map(nice_step), [0.05, 0.2, 0.5, 10.0]);
    }

    #[test]
    fn scales_hold_what_they_are_made_for() {
        let scale = Scale::of([0.71, 0.93].into_iter(), 4.0);
        assert!(scale.low <= 0.71 && scale.high >= 0.93 && scale.ticks().len() > 3, "{:?}", scale.ticks());
        let one = Scale::of([1.0].into_iter(), 4.0);
        assert!(one.high > one.low && one.share(1.0).is_finite());
    }

    #[test]
    fn scores_are_shares_of_their_range() {
        assert_eq!(shares(&[1.0, 100.0, 10.0]), [0.0, 1.0, 0.5]);
        assert_eq!(shares(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(shares(&[0.0, 1.0])[0], 0.0);
    }
}
