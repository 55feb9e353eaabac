//! The gradient of a token embedding.

pub mod reference;

use crate::pool::Pool;

/// Buffers of [`embedding_gradient`].
#[derive(Default)]
struct Places {
    /// Tokens and where they stand, sorted.
    places: Vec<(u32, usize)>,
    /// Where the places of every token end.
    ends: Vec<usize>,
}

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
    let Places { places, ends } = &mut *pool.lend::<Places>();
    places.clear();
    places.extend(tokens.iter().copied().zip(0..));
    places.sort_unstable();
    ids.clear();
    ends.clear();
    for group in places.chunk_by(|a, b| a.0 == b.0) {
        ids.push(group[0].0);
        ends.push(ends.last().map_or(0, |end| *end) + group.len());
    }
    rows.clear();
    rows.resize(ids.len() * width, 0.0);
    let group = |i: usize| &places[if i == 0 { 0 } else { ends[i - 1] }..ends[i]];
    pool.split_rows([(rows.as_mut_slice(), width)], &|range, [rows]| {
        for (i, row) in range.zip(rows.chunks_exact_mut(width)) {
            for (i, (_, place)) in group(i).iter().enumerate() {
                let dy = &dy[place * width..][..width];
                if i == 0 { row.copy_from_slice(dy) } else { crate::add(row, dy) }
            }
        }
    });
}
