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
pub(super) fn sorted_scores(scores: &[f32], kept: usize) -> Markup {
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
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
            @if cut > 0 { polygon points=(area) fill="var(--neuron)" opacity="0.35" {} }
            polyline points=(points(shares.len()).join(" ")) fill="none" stroke="var(--neuron)" stroke-width="1.5" {}
            line x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) stroke="var(--line)" {}
        }
    }
}

/// Quality over the share of FLOPs removed; `original` is that of the model nothing was removed from.
pub(super) fn curve(points: &[(f64, f64)], original: f64) -> Markup {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 250.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 34.0;
    const BOTTOM: f64 = 28.0;
    let mut all = vec![(0.0, original)];
    all.extend_from_slice(points);
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = all.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = all.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let step = nice_step((most - least).max(1e-4) / 4.0);
    let (low, high) = ((least / step).floor() * step, (most / step).ceil() * step);
    let x = |share: f64| LEFT + (WIDTH - LEFT - RIGHT) * share;
    let y = |value: f64| 10.0 + (HEIGHT - BOTTOM - 10.0) * (high - value) / (high - low).max(f64::MIN_POSITIVE);
    let ticks: Vec<f64> = (0..=((high - low) / step).round() as usize).map(|i| low + step * i as f64).collect();
    let line: Vec<String> = all.iter().map(|&(s, v)| format!("{:.1},{:.1}", x(s), y(v))).collect();
    let decimals = (-step.log10().floor()).clamp(1.0, 5.0) as usize;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" style="max-width:760px;margin-bottom:14px" {
            @for tick in ticks {
                line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(format!("{:.1}", y(tick))) y2=(format!("{:.1}", y(tick))) stroke="var(--line)" {}
                text x=(LEFT - 8.0) y=(format!("{:.1}", y(tick) + 4.0)) text-anchor="end" { (format!("{tick:.decimals$}")) }
            }
            @for share in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
                text x=(format!("{:.1}", x(share))) y=(HEIGHT - 8.0) text-anchor="middle" { (format!("{:.0} %", 100.0 * share)) }
            }
            polyline points=(line.join(" ")) fill="none" stroke="var(--head)" stroke-width="2.5" stroke-linejoin="round" {}
            @for &(share, value) in &all {
                circle cx=(format!("{:.1}", x(share))) cy=(format!("{:.1}", y(value))) r="5" fill="var(--head)" stroke="var(--card)" stroke-width="2" {
                    title { (format!("{:.1} % removed: {value:.4}", 100.0 * share)) }
                }
            }
        }
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
    fn scores_are_shares_of_their_range() {
        assert_eq!(shares(&[1.0, 100.0, 10.0]), [0.0, 1.0, 0.5]);
        assert_eq!(shares(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(shares(&[0.0, 1.0])[0], 0.0);
    }
}
