//! Softmax cross-entropy of next tokens.

pub mod reference;

use crate::isa::{Isa, vectorised};
use crate::math::{exp_lane, ln_f64, tree_64};
use crate::pool::{Pool, Shards};

/// A target that counts nothing.
pub const IGNORED: u32 = u32::MAX;

/// Lanes of the largest logit and of the sum.
const LANES: usize = 64;

/// The loss `ln(sum of exp(logits)) - logit of the target` of each row of `logits`, in nats, into `losses`; the row becomes its gradient times
/// `scale`. Rows whose target is [`IGNORED`] have neither.
///
/// Logits must be finite.
///
/// # Panics
/// When the lengths do not fit, or a target is not in the vocabulary.
pub fn cross_entropy(pool: &Pool, logits: &mut [f32], targets: &[u32], scale: f32, losses: &mut [f64]) {
    let m = targets.len();
    assert!(m > 0 && losses.len() == m && logits.len().is_multiple_of(m), "cross_entropy: {m} rows");
    let vocab = logits.len() / m;
    assert!(
        targets.iter().all(|t| (*t as usize) < vocab || *t == IGNORED),
        "cross_entropy: a target beyond {vocab} tokens"
    );
    let losses = Shards::new(losses);
    pool.split_rows([(logits, vocab)], &|rows, [logits]| {
        for (row, logits) in rows.zip(logits.chunks_exact_mut(vocab)) {
            let loss = one_row(pool.isa(), logits, targets[row], scale);
            // SAFETY: one loss per row, and every row is of one part only.
            unsafe { losses.at(row).write(loss) };
        }
    });
}

fn one_row(isa: Isa, logits: &mut [f32], target: u32, scale: f32) -> f64 {
    if target == IGNORED {
        logits.fill(0.0);
        return 0.0;
    }
    let target = target as usize;
    let logit = f64::from(logits[target]);
    let (max, sum) = exponentials(isa, logits);
    scale_all(isa, logits, (f64::from(scale) / sum) as f32);
    logits[target] -= scale;
    ln_f64(sum) - (logit - f64::from(max))
}

vectorised! {
    /// Replaces the logits by `exp(logit - max)`; gives the largest logit and the sum in f64: lane `i` adds values `i`, `i + 64`, ... in order,
    /// the lanes are added as a tree of halves.
    fn exponentials(logits: &mut [f32]) -> (f32, f64) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sums = [0f64; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for chunk in whole {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                *v = exp_lane(*v - max);
                *sum += f64::from(*v);
            }
        }
        for (sum, v) in sums.iter_mut().zip(rest) {
            *v = exp_lane(*v - max);
            *sum += f64::from(*v);
        }
        (max, tree_64(&sums, |a, b| a + b))
    }
}

vectorised! {
    fn scale_all(values: &mut [f32], by: f32) {
        for v in values {
            *v *= by;
        }
    }
}
