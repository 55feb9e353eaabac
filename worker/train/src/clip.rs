//! Clipping by the global norm, in pieces that add up to the same bits wherever stages are cut.
//!
//! A stage sums the squares of each of its tensors; the sums of all tensors are added in the model's order of tensors; the gradient is
//! scaled by `min(1, clip / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_` does.

use dunlin_kernels::Pool;
use thiserror::Error;

use crate::optimizer::{CHUNK, TensorRange, chunks, in_parts};

/// The gradient is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error(
    "the sum of squares of the gradient is {0}: the loss has diverged; use a lower learning rate, a longer warm-up or an earlier checkpoint"
)]
pub struct Diverged(f64);

/// Sum of squares of each tensor of `gradient`. In f64 and in an order that depends on the tensor's length alone.
///
/// # Panics
/// When a range is not in `gradient`.
#[must_use]
pub fn sums_of_squares(pool: &Pool, gradient: &[f32], tensors: &[TensorRange]) -> Vec<f64> {
    let work = chunks(tensors).into_iter().map(|(tensor, range)| (tensor, &gradient[range], 0.0)).collect();
    let work: Vec<(usize, &[f32], f64)> = in_parts(pool, work, |(_, values, sum)| *sum = squares(values));
    let mut sums = vec![0.0; tensors.len()];
    for (tensor, _, sum) in work {
        sums[tensor] += sum;
    }
    sums
}

/// Sum of squares of at most [`CHUNK`] values.
pub(crate) fn squares(values: &[f32]) -> f64 {
    debug_assert!(values.len() <= CHUNK, "a chunk");
    const LANES: usize = 8;
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*value) * f64::from(*value);
    }
    lanes.iter().sum()
}

/// Scale that makes the gradient at most `clip` long, of the sums of squares of all tensors of the model in canonical order, each once.
///
/// # Errors
/// When the sum is not finite.
pub fn scale(sums_of_squares: &[f64], clip: Option<f64>) -> Result<f32, Diverged> {
    let total: f64 = sums_of_squares.iter().sum();
    if !total.is_finite() {
        return Err(Diverged(total));
    }
    Ok(clip.map_or(1.0, |clip| (clip / (total.sqrt() + 1e-6)).min(1.0)) as f32)
}

#[cfg(test)]
mod tests {
    use dunlin_kernels::Pool;

    use super::{scale, sums_of_squares};
    use crate::optimizer::TensorRange;

    #[test]
    fn sums_are_right_and_do_not_depend_on_threads_or_neighbours() {
        let gradient: Vec<f32> = (0..100_000).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
        let range = |range| TensorRange { range, decay: true };
        let tensors = [range(0..3), range(3..50_003), range(50_010..100_000)];
        let one = sums_of_squares(&Pool::new(1), &gradient, &tensors);
        for (sum, tensor) in one.iter().zip(&tensors) {
            let exact: f64 = gradient[tensor.range.clone()].iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((sum - exact).abs() < 1e-9 * exact, "{sum} {exact}");
        }
        for threads in 2..5 {
            assert_eq!(sums_of_squares(&Pool::new(threads), &gradient, &tensors), one);
        }
        // The same tensor at another place of another stage.
        let alone = sums_of_squares(&Pool::new(2), &gradient[3..], &[range(0..50_000)]);
        assert_eq!(alone[0].to_bits(), one[1].to_bits());
    }

    #[test]
    fn long_gradients_are_made_shorter_and_wrong_ones_are_refused() {
        assert_eq!(scale(&[9.0, 16.0], None).unwrap(), 1.0);
        assert_eq!(scale(&[9.0, 16.0], Some(5.1)).unwrap(), 1.0);
        assert_eq!(scale(&[9.0, 16.0], Some(1.0)).unwrap(), (1.0 / (5.0 + 1e-6)) as f32);
        assert_eq!(scale(&[], Some(1.0)).unwrap(), 1.0);
        assert!(scale(&[1.0, f64::NAN], None).unwrap_err().to_string().contains("diverged"));
        assert!(scale(&[f64::INFINITY], Some(1.0)).is_err());
    }
}
