//! The operations of [`super`] in plain loops.

use super::{IGNORED, LANES};
use crate::math::{exp, ln_f64, tree};

/// As [`super::cross_entropy`]: the gradients, and the losses.
#[must_use]
pub fn cross_entropy(logits: &[f32], targets: &[u32], scale: f32) -> (Vec<f32>, Vec<f64>) {
    let vocab = logits.len() / targets.len();
    let (mut gradients, mut losses) = (Vec::new(), Vec::new());
    for (logits, target) in logits.chunks(vocab).zip(targets) {
        if *target == IGNORED {
            gradients.extend(vec![0f32; vocab]);
            losses.push(0.0);
            continue;
        }
        let target = *target as usize;
        let max = logits.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        let mut lanes = [0f64; LANES];
        for (i, logit) in logits.iter().enumerate() {
            lanes[i % LANES] += f64::from(exp(logit - max));
        }
        let sum = tree(&lanes, |a, b| a + b);
        for (i, logit) in logits.iter().enumerate() {
            let gradient = exp(logit - max) * (f64::from(scale) / sum) as f32;
            gradients.push(if i == target { gradient - scale } else { gradient });
        }
        losses.push(ln_f64(sum) - (f64::from(logits[target]) - f64::from(max)));
    }
    (gradients, losses)
}
