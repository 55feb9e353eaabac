//! Which rows and panels are computed together, and on which thread.

use std::ops::Range;

use super::activations::Quantised;
use super::tile::{Rows, Tile};
use super::{many, tiles};
use crate::isa::Isa;
use crate::matrix::{Matrix, Packing};
use crate::pool::{Pool, Shards};

/// Rows whose activations stay in the cache while the panels pass.
const ROWS_CACHED: usize = 64;
/// From so many rows on, as in training, it pays to keep a chunk of f32 weights in the nearest cache while the rows pass.
const MANY_ROWS: usize = 24;

/// `y[m][n] = x[m][k] W^T`.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear(pool: &Pool, w: &Matrix, x: &[f32], m: usize, y: &mut [f32]) {
    linear_many(pool, &[w], x, m, &mut [y]);
}

/// `y[m][n] += x[m][k] W^T`: every output is summed as in [`linear`], then added.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_add(pool: &Pool, w: &Matrix, x: &[f32], m: usize, y: &mut [f32]) {
    run_many(pool, &[w], x, m, &mut [y], true);
}

/// [`linear`] of several maps of the same input, which is quantised once.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_many(pool: &Pool, ws: &[&Matrix], x: &[f32], m: usize, ys: &mut [&mut [f32]]) {
    run_many(pool, ws, x, m, ys, false);
}

fn run_many(pool: &Pool, ws: &[&Matrix], x: &[f32], m: usize, ys: &mut [&mut [f32]], add: bool) {
    assert_eq!(ws.len(), ys.len(), "as many outputs as maps");
    let quantised = ws.iter().any(|w| !w.packing.is_dense()).then(|| {
        let mut quantised = pool.lend::<Quantised>();
        quantised.fill(x, m, ws[0].k());
        quantised
    });
    for (w, y) in ws.iter().zip(ys.iter_mut()) {
        assert!(x.len() == m * w.k(), "linear: {} values for {m} rows of {}", x.len(), w.k());
        assert!(y.len() == m * w.n(), "linear: {} outputs for {m} rows of {}", y.len(), w.n());
        let rows = Rows { x, quantised: quantised.as_deref(), m, add, out: Shards::new(y) };
        if w.packing == Packing::F32 && m >= MANY_ROWS && pool.isa() >= Isa::Avx2 {
            pool.split(w.panels(), &|panels| many::panel_range(pool.isa(), w, &rows, panels));
        } else {
            pool.split(w.panels(), &|panels| panel_range(pool.isa(), w, &rows, panels));
        }
    }
}

/// All rows against the panels of one thread: rows in cached groups, panels inside, so that weights stream once per group.
fn panel_range(isa: Isa, w: &Matrix, rows: &Rows<'_>, panels: Range<usize>) {
    let dense = w.packing.is_dense();
    let rows_max = tiles::rows_max(isa, dense);
    for group in (0..rows.m).step_by(ROWS_CACHED) {
        let group_rows = ROWS_CACHED.min(rows.m - group);
        let blocks = group_rows.div_ceil(rows_max);
        let mut panel = panels.start;
        while panel < panels.end {
            let mut width = tiles::panels_max(isa, dense, group_rows.div_ceil(blocks));
            while width > panels.end - panel {
                width /= 2;
            }
            for block in 0..blocks {
                // Rows are spread evenly: 9 rows are 5 + 4, not 8 + 1.
                let start = group_rows * block / blocks;
                let count = group_rows * (block + 1) / blocks - start;
                let tile = Tile { w, rows, first_row: group + start, panel };
                // SAFETY: the pool checked that this machine has the instructions; tiles lie inside of matrix and rows.
                unsafe { tiles::run(isa, &tile, count, width) };
            }
            panel += width;
        }
    }
}
