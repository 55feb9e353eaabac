//! The operations of [`super`] in plain loops.

use std::collections::BTreeMap;

/// As [`super::embedding_gradient`]: the gradient of each row that a token looked up.
#[must_use]
pub fn embedding_gradient(tokens: &[u32], dy: &[f32], width: usize) -> BTreeMap<u32, Vec<f32>> {
    let mut rows: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for (token, dy) in tokens.iter().zip(dy.chunks(width)) {
        match rows.get_mut(token) {
            None => drop(rows.insert(*token, dy.to_vec())),
            Some(row) => row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy),
        }
    }
    rows
}
