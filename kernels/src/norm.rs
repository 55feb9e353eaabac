//! RMS normalisation (Zhang and Sennrich 2019).

/// Lanes of the sum of squares; fixed, so that the order of additions is.
const LANES: usize = 16;

/// `out = x / sqrt(mean(x^2) + eps) * w` for each of `m` rows of `w.len()` values.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, m: usize, out: &mut [f32]) {
    let n = w.len();
    assert!(
        x.len() == m * n && out.len() == m * n,
        "rms_norm: {} and {} values for {m} rows of {n}",
        x.len(),
        out.len()
    );
    for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let scale = 1.0 / (sum_of_squares(x) / n as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
            *out = x * scale * w;
        }
    }
}

/// Lane `i` sums the squares of values `i`, `i + 16`, ... in order; the lanes are added as a tree of halves.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    for chunk in x.chunks(LANES) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            // Separate multiply and add: the same with and without FMA hardware, and the compiler vectorises it.
            *lane += v * v;
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::rms_norm;

    #[test]
    fn normalises_each_row_by_itself() {
        let x: Vec<f32> = (0..3 * 37).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let w: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 100.0).collect();
        let mut out = vec![0.0; x.len()];
        rms_norm(&x, &w, 1e-5, 3, &mut out);
        for row in 0..3 {
            let x = &x[row * 37..][..37];
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 37.0 + 1e-5;
            for i in 0..37 {
                let want = f64::from(x[i]) / mean.sqrt() * f64::from(w[i]);
                assert!((f64::from(out[row * 37 + i]) - want).abs() < 1e-6);
            }
            let mut alone = vec![0.0; 37];
            rms_norm(x, &w, 1e-5, 1, &mut alone);
            assert_eq!(alone, out[row * 37..][..37]);
        }
    }
}
