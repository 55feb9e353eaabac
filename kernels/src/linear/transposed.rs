//! `dx = dy W` with weights that are held in one direction only: the way back through a map that is not trained.

use super::product::{linear, linear_add};
use super::tile::CHUNK;
use crate::matrix::Matrix;
use crate::pool::Pool;

/// Buffers of [`linear_transposed`].
struct Turned {
    /// A chunk of the weights as f32, row-major, and turned around.
    rows: Vec<f32>,
    turned: Matrix,
    /// The same columns of `dy`.
    dy: Vec<f32>,
    sum: Vec<f32>,
}

impl Default for Turned {
    fn default() -> Self {
        Self { rows: Vec::new(), turned: Matrix::zeroed_f32(0, 0), dy: Vec::new(), sum: Vec::new() }
    }
}

/// `dx[m][k] = dy[m][n] W`, or added to what is in `dx` when `add`: the bits of [`linear`] or [`linear_add`] with the transpose of `w`
/// widened to f32. 256 outputs of `w` are turned around at a time, so that the memory it takes does not grow with the model.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_transposed(pool: &Pool, w: &Matrix, dy: &[f32], m: usize, dx: &mut [f32], add: bool) {
    let (n, k) = (w.n(), w.k());
    assert!(dy.len() == m * n, "linear_transposed: {} gradients for {m} rows of {n}", dy.len());
    assert!(dx.len() == m * k, "linear_transposed: {} values for {m} rows of {k}", dx.len());
    let Turned { rows, turned, dy: part, sum } = &mut *pool.lend::<Turned>();
    sum.resize(if add { dx.len() } else { 0 }, 0.0);
    let out = if add { sum.as_mut_slice() } else { &mut *dx };
    for start in (0..n).step_by(CHUNK) {
        let count = CHUNK.min(n - start);
        rows.resize(count * k, 0.0);
        pool.split_rows([(rows, k)], &|range, [rows]| {
            range.zip(rows.chunks_exact_mut(k)).for_each(|(i, row)| w.row(start + i, row));
        });
        turned.resize_f32(k, count);
        turned.set_transposed(pool, rows);
        part.clear();
        dy.chunks_exact(n).for_each(|dy| part.extend_from_slice(&dy[start..start + count]));
        if start == 0 {
            linear(pool, turned, part, m, out);
        } else {
            linear_add(pool, turned, part, m, out);
        }
    }
    if add {
        dx.iter_mut().zip(&*sum).for_each(|(dx, sum)| *dx += sum);
    }
}
