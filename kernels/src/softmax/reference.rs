//! The operations of [`super`] in plain loops.

use crate::math::exp;

/// As [`super::weights`].
#[must_use]
pub fn weights(logits: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    logits.iter().map(|logit| exp((logit - max) / temperature)).collect()
}
