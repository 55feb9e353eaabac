//! Clipping by the global norm: the gradient is scaled by `min(1, clip / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_` does.

use thiserror::Error;

/// The gradient is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error(
    "the sum of squares of the gradient is {0}: the loss has diverged; use a lower learning rate, a longer warm-up or an earlier checkpoint"
)]
pub struct Diverged(f64);

/// Norm of a gradient, of the sums of squares of all tensors of the model in canonical order, each once.
///
/// # Errors
/// When the sum is not finite.
pub fn norm(sums_of_squares: &[f64]) -> Result<f64, Diverged> {
    let total: f64 = sums_of_squares.iter().sum();
    if total.is_finite() { Ok(total.sqrt()) } else { Err(Diverged(total)) }
}

/// Scale that makes a gradient of that norm at most `clip` long.
#[must_use]
pub fn scale(norm: f64, clip: Option<f64>) -> f32 {
    clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0)) as f32
}

#[cfg(test)]
mod tests {
    use super::{norm, scale};

    #[test]
    fn long_gradients_are_made_shorter_and_wrong_ones_are_refused() {
        let scaled = |sums: &[f64], clip| norm(sums).map(|norm| scale(norm, clip));
        assert_eq!(scaled(&[9.0, 16.0], None).unwrap(), 1.0);
        assert_eq!(scaled(&[9.0, 16.0], Some(5.1)).unwrap(), 1.0);
        assert_eq!(scaled(&[9.0, 16.0], Some(1.0)).unwrap(), (1.0 / (5.0 + 1e-6)) as f32);
        assert_eq!(scaled(&[], Some(1.0)).unwrap(), 1.0);
        assert!(scaled(&[1.0, f64::NAN], None).unwrap_err().to_string().contains("diverged"));
        assert!(scaled(&[f64::INFINITY], Some(1.0)).is_err());
    }
}
