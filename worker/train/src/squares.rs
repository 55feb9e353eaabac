//! What a stage knows of the norm of the gradient: the sum of squares of each of its tensors.
//!
//! The conductor adds those of all stages in the model's order of tensors, so that the norm has the same bits wherever stages are cut.

use dunlin_kernels::Pool;

use crate::parts::{CHUNK, TensorRange, chunks, in_parts};

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

#[cfg(test)]
mod tests {
    use dunlin_kernels::Pool;

    use super::sums_of_squares;
    use crate::parts::TensorRange;

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
}
