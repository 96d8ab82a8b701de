//! The usual scores, from what was predicted and what is right.

/// The share of predictions that are right; 0 of nothing.
pub fn accuracy(predicted: &[i64], right: &[i64]) -> f64 {
    let hits = predicted.iter().zip(right).filter(|(p, r)| p == r).count();
    hits as f64 / predicted.len().max(1) as f64
}

/// Harmonic mean of precision and recall: of class 1 where there are two classes, else the mean over the classes
/// that are right for some sample.
pub fn f1(predicted: &[i64], right: &[i64], classes: usize) -> f64 {
    let of = |class: i64| {
        let both = predicted.iter().zip(right).filter(|&(&p, &r)| p == class && r == class).count();
        let either = predicted.iter().filter(|&&p| p == class).count() + right.iter().filter(|&&r| r == class).count();
        if either == 0 { 0.0 } else { 2.0 * both as f64 / either as f64 }
    };
    if classes == 2 {
        return of(1);
    }
    let mut present: Vec<i64> = right.to_vec();
    present.sort_unstable();
    present.dedup();
    present.iter().map(|&class| of(class)).sum::<f64>() / present.len().max(1) as f64
}

/// Spearman's rank correlation; equal numbers share the mean of their ranks. 0 where one side is constant.
pub fn spearman(predicted: &[f64], right: &[f64]) -> f64 {
    pearson(&ranks(predicted), &ranks(right))
}

/// Pearson's correlation; 0 where one side is constant.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(&a, &b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    let (both, square_a, square_b) = (sum(&|a, b| a * b), sum(&|a, _| a * a), sum(&|_, b| b * b));
    let norm = (square_a * square_b).sqrt();
    if norm == 0.0 { 0.0 } else { both / norm }
}

fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut start = 0;
    while start < order.len() {
        let end = start + order[start..].iter().take_while(|&&i| numbers[i] == numbers[order[start]]).count();
        order[start..end].iter().for_each(|&i| ranks[i] = (start + end - 1) as f64 / 2.0);
        start = end;
    }
    ranks
}

/// The share of answers whose first and last token are right.
pub fn exact_match(predicted: &[[i64; 2]], right: &[[i64; 2]]) -> f64 {
    let hits = predicted.iter().zip(right).filter(|(p, r)| p == r).count();
    hits as f64 / predicted.len().max(1) as f64
}

/// The mean over answers of the harmonic mean of precision and recall of their tokens.
pub fn span_f1(predicted: &[[i64; 2]], right: &[[i64; 2]]) -> f64 {
    let length = |[start, end]: [i64; 2]| (end - start + 1).max(0);
    let of = |(&p, &r): (&[i64; 2], &[i64; 2])| {
        let both = length([p[0].max(r[0]), p[1].min(r[1])]);
        let either = length(p) + length(r);
        if either == 0 { f64::from(p == r) } else { 2.0 * both as f64 / either as f64 }
    };
    predicted.iter().zip(right).map(of).sum::<f64>() / predicted.len().max(1) as f64
}

/// The place of the largest number; the first where several are.
pub fn argmax(numbers: impl IntoIterator<Item = f64>) -> i64 {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, number) in numbers.into_iter().enumerate() {
        if number > best.1 {
            best = (i as i64, number);
        }
    }
    best.0
}

/// KL(softmax(a) || softmax(b)), in nats.
pub fn divergence(a: &[f64], b: &[f64]) -> f64 {
    let log_softmax = |x: &[f64]| -> Vec<f64> {
        let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|v| (v - largest).exp()).sum();
        x.iter().map(|v| v - largest - sum.ln()).collect()
    };
    let (a, b) = (log_softmax(a), log_softmax(b));
    a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>().max(0.0)
}

/// The sum of KL(sigmoid(a) || sigmoid(b)) of labels that are each right or not for themselves, in nats.
pub fn label_divergence(a: &[f64], b: &[f64]) -> f64 {
    // log sigmoid(z), without an overflow.
    let log = |z: f64| -((-z.abs()).exp().ln_1p() + (-z).max(0.0));
    let of = |a: f64, b: f64| log(a).exp() * (log(a) - log(b)) + log(-a).exp() * (log(-a) - log(-b));
    a.iter().zip(b).map(|(&a, &b)| of(a, b)).sum::<f64>().max(0.0)
}

/// The cosine of the angle between two vectors; 1 where both are nothing.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    match norm == 0.0 {
        true => f64::from(a == b),
        false => dot(a, b) / norm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_diverge_each_for_itself() {
        let p = |z: f64| 1.0 / (1.0 + (-z).exp());
        let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        let expected = kl(p(1.0), p(-2.0)) + kl(p(0.5), p(3.0));
        assert!((label_divergence(&[1.0, 0.5], &[-2.0, 3.0]) - expected).abs() < 1e-12);
        assert!(label_divergence(&[800.0], &[-800.0]).is_finite());
        assert_eq!(label_divergence(&[0.3, -4.0], &[0.3, -4.0]), 0.0);
    }

    #[test]
    fn f1_is_of_the_positive_class_or_the_mean() {
        assert_eq!(accuracy(&[1, 0, 1, 1], &[1, 0, 0, 1]), 0.75);
        assert_eq!(f1(&[1, 0, 1, 1], &[1, 0, 0, 1], 2), 0.8);
        // By hand: class 0: 2/3, class 1: 1, class 2: 0.
        assert!((f1(&[0, 1, 0], &[0, 1, 2], 3) - (2.0 / 3.0 + 1.0 + 0.0) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn equal_numbers_share_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 15.0]) - 0.5).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn answers_overlap_in_part() {
        assert_eq!(exact_match(&[[1, 2], [3, 4]], &[[1, 2], [3, 5]]), 0.5);
        assert_eq!(span_f1(&[[3, 4]], &[[3, 5]]), 0.8);
        assert_eq!(span_f1(&[[5, 2]], &[[1, 2]]), 0.0);
    }

    #[test]
    fn divergence_and_cosine_vanish_and_rise_as_they_should() {
        assert_eq!(divergence(&[1.0, 2.0], &[11.0, 12.0]), 0.0);
        let expected = 0.5 * (0.5f64 / 0.9).ln() + 0.5 * (0.5f64 / 0.1).ln();
        assert!((divergence(&[0.0, 0.0], &[9.0f64.ln(), 0.0]) - expected).abs() < 1e-12);
        assert_eq!(cosine(&[0.0], &[0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
        assert_eq!(argmax([1.0, 5.0, 5.0]), 1);
    }
}
