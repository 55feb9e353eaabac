//! Logits for tests.

use proptest::prelude::*;

/// Flat and peaked, with and without equal ones.
pub(super) fn logits(len_max: usize) -> impl Strategy<Value = Vec<f32>> {
    let of = prop::collection::vec(-1f32..1.0, 1..len_max);
    (of, 0.01f32..40.0, prop::sample::select(vec![0.0, 0.25, 2.0]), -30f32..30.0).prop_map(
        |(of, scale, step, offset)| {
            let stepped = |l: f32| if step > 0.0 { (l / step).round() * step } else { l };
            of.into_iter().map(|l| stepped(l * l * l * scale + offset)).collect()
        },
    )
}
