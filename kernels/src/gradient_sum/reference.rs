//! The operations of [`super`] in plain loops.

/// As [`super::GradientSums::add`] with gradients in range: the sums of nothing and each of `gradients`.
#[must_use]
pub fn sum(gradients: &[&[f32]]) -> Vec<i64> {
    let mut sums = vec![0i64; gradients.first().map_or(0, |g| g.len())];
    for gradient in gradients {
        for (sum, x) in sums.iter_mut().zip(*gradient) {
            // 2^44; the product is exact in f64.
            *sum = sum.wrapping_add((f64::from(*x) * 17_592_186_044_416.0).round_ties_even() as i64);
        }
    }
    sums
}
