//! RMS normalisation (Zhang and Sennrich 2019).

pub mod reference;

use crate::isa::vectorised;
use crate::math::tree_128;
use crate::pool::{Pool, SMALL};
use crate::weight_gradient::sum_columns;

/// Lanes of the sums; fixed, so that the order of additions is.
const LANES: usize = 128;

/// `out = x / sqrt(mean(x^2) + eps) * w` for each of `m` rows of `w.len()` values.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm(pool: &Pool, x: &[f32], w: &[f32], eps: f32, m: usize, out: &mut [f32]) {
    let n = w.len();
    assert!(
        x.len() == m * n && out.len() == m * n,
        "rms_norm: {} and {} values for {m} rows of {n}",
        x.len(),
        out.len()
    );
    if x.len() < SMALL {
        return norm_rows(pool.isa(), x, w, eps, out);
    }
    pool.split_rows([(out, n)], &|rows, [out]| {
        norm_rows(pool.isa(), &x[rows.start * n..rows.end * n], w, eps, out);
    });
}

vectorised! {
    fn norm_rows(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
            let scale = scale(x, eps);
            for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                *out = x * scale * w;
            }
        }
    }
}

/// What the rows of [`rms_norm_backward`] were multiplied by.
#[derive(Default)]
struct Scales(Vec<f32>);

/// Gradients of [`rms_norm`] where its outputs have the gradients `dy`: those of `x` are added to `dx`, those of `w` replace `dw`.
///
/// # Panics
/// When the lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "the operands of the norm, and the gradients of each")]
pub fn rms_norm_backward(
    pool: &Pool,
    x: &[f32],
    w: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let n = w.len();
    assert!(
        x.len().is_multiple_of(n) && dy.len() == x.len() && dx.len() == x.len(),
        "rms_norm_backward: {}, {} and {} values for rows of {n}",
        x.len(),
        dy.len(),
        dx.len()
    );
    let scales = &mut pool.lend::<Scales>().0;
    scales.resize(x.len() / n, 0.0);
    pool.split_rows([(dx, n), (scales, 1)], &|rows, [dx, scales]| {
        let range = rows.start * n..rows.end * n;
        backward_rows(pool.isa(), (&x[range.clone()], &dy[range]), w, eps, dx, scales);
    });
    if let Some(dw) = dw {
        assert_eq!(dw.len(), n, "rms_norm_backward: weights");
        sum_columns(pool, scales.len(), dw, &|row, columns, acc| {
            let (x, dy) = (&x[row * n..][columns.clone()], &dy[row * n..][columns]);
            weight_row(pool.isa(), x, dy, scales[row], acc);
        });
    }
}

vectorised! {
    fn weight_row(x: &[f32], dy: &[f32], scale: f32, acc: &mut [f32]) {
        for ((acc, x), dy) in acc.iter_mut().zip(x).zip(dy) {
            *acc = dy.mul_add(x * scale, *acc);
        }
    }
}

vectorised! {
    fn backward_rows(inputs: (&[f32], &[f32]), w: &[f32], eps: f32, dx: &mut [f32], scales: &mut [f32]) {
        let ((x, dy), n) = (inputs, w.len());
        let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).zip(scales);
        for (((x, dy), dx), out) in rows {
            let scale = scale(x, eps);
            let mut lanes = [0f32; LANES];
            for ((x, w), dy) in x.chunks(LANES).zip(w.chunks(LANES)).zip(dy.chunks(LANES)) {
                for (((lane, x), w), dy) in lanes.iter_mut().zip(x).zip(w).zip(dy) {
                    *lane += dy * w * x;
                }
            }
            let back = tree_128(&lanes, |a, b| a + b) * scale * scale * scale / n as f32;
            for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(w).zip(dy) {
                *dx += (-back).mul_add(*x, dy * w * scale);
            }
            *out = scale;
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`; lane `i` sums the squares of values `i`, `i + 128`, ... in order, the lanes are
/// added as a tree of halves.
#[inline(always)]
fn scale(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            // Separate multiply and add: the same with and without FMA hardware, and the compiler vectorises it.
            *lane += v * v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += v * v;
    }
    1.0 / (tree_128(&lanes, |a, b| a + b) / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::rms_norm;
    use crate::pool::Pool;

    #[test]
    fn normalises_each_row_by_itself() {
        let x: Vec<f32> = (0..3 * 37).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let w: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 100.0).collect();
        let mut out = vec![0.0; x.len()];
        let pool = Pool::new(1);
        rms_norm(&pool, &x, &w, 1e-5, 3, &mut out);
        for row in 0..3 {
            let x = &x[row * 37..][..37];
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 37.0 + 1e-5;
            for i in 0..37 {
                let want = f64::from(x[i]) / mean.sqrt() * f64::from(w[i]);
                assert!((f64::from(out[row * 37 + i]) - want).abs() < 1e-6);
            }
            let mut alone = vec![0.0; 37];
            rms_norm(&pool, x, &w, 1e-5, 1, &mut alone);
            assert_eq!(alone, out[row * 37..][..37]);
        }
    }
}
