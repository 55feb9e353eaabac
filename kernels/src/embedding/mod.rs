//! The gradient of a token embedding.

pub mod reference;

use crate::pool::Pool;

/// Rows of the embedding that tokens looked up, in rising order, and their gradients: `ids[i]` has `rows[i * width..][..width]`, the sum of
/// the gradients `dy` of all places where the token stands, added in their order. Rows that no token looked up have no gradient.
///
/// # Panics
/// When `dy` is not one row of `width` values per token.
pub fn embedding_gradient(
    pool: &Pool,
    tokens: &[u32],
    dy: &[f32],
    width: usize,
    ids: &mut Vec<u32>,
    rows: &mut Vec<f32>,
) {
    assert_eq!(dy.len(), tokens.len() * width, "embedding_gradient: {} rows of {width}", tokens.len());
    let mut places: Vec<(u32, usize)> = tokens.iter().copied().zip(0..).collect();
    places.sort_unstable();
    let groups: Vec<&[(u32, usize)]> = places.chunk_by(|a, b| a.0 == b.0).collect();
    ids.clear();
    ids.extend(groups.iter().filter_map(|group| Some(group.first()?.0)));
    rows.clear();
    rows.resize(groups.len() * width, 0.0);
    pool.split_rows([(rows.as_mut_slice(), width)], &|range, [rows]| {
        for (group, row) in groups[range].iter().zip(rows.chunks_exact_mut(width)) {
            for (i, (_, place)) in group.iter().enumerate() {
                let dy = &dy[place * width..][..width];
                if i == 0 { row.copy_from_slice(dy) } else { crate::add(row, dy) }
            }
        }
    });
}
