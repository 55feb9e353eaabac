//! The gradient of a linear map's weights, `dW = dY^T X`: a product whose summed axis is the tokens (ARITHMETIC.md, 5).

pub mod reference;

use std::ops::Range;

use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::linear::CHUNK;
use crate::matrix::PANEL;
use crate::pool::{Pool, Shards};
use crate::tile::{Into, Out, Product};

/// Whether a gradient begins with these tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// What is in the output is replaced.
    Here,
    /// The tokens follow others, whose number was a multiple of 256: their sums are added to the output.
    Before,
}

/// Buffers of [`weight_gradient`].
#[derive(Default)]
struct Packed {
    /// Inputs of a chunk: `[k / 16][tokens][16]`.
    x: Buffer<f32>,
    /// Output gradients of a chunk in panels of as many columns as a tile has rows: `[n / R][tokens][R]`.
    dy: Buffer<f32>,
}

/// `dW[n][k] = sum over the m tokens of dY[token][n] X[token][k]`, row-major as the weights of a file, for several maps of the same input `x`.
///
/// # Panics
/// When the lengths do not fit.
pub fn weight_gradient(
    pool: &Pool,
    x: &[f32],
    m: usize,
    dys: &[&[f32]],
    dws: &mut [&mut [f32]],
    begin: Begin,
) {
    assert_eq!(dys.len(), dws.len(), "as many outputs as maps");
    assert!(m > 0 && x.len().is_multiple_of(m), "weight_gradient: {} values for {m} rows", x.len());
    let k = x.len() / m;
    for (dy, dw) in dys.iter().zip(dws.iter()) {
        assert!(
            dy.len().is_multiple_of(m) && dw.len() == dy.len() / m * k,
            "weight_gradient: {} by {} gives {}",
            dy.len(),
            x.len(),
            dw.len()
        );
    }
    match pool.isa() {
        Isa::Avx512 => chunks::<12, 32>(pool, x, m, dys, dws, begin),
        _ => chunks::<6, 16>(pool, x, m, dys, dws, begin),
    }
}

/// In tiles of `R` rows (maps' outputs) and `C` columns (their inputs).
fn chunks<const R: usize, const C: usize>(
    pool: &Pool,
    x: &[f32],
    m: usize,
    dys: &[&[f32]],
    dws: &mut [&mut [f32]],
    begin: Begin,
) {
    let k = x.len() / m;
    let packed = &mut *pool.lend::<Packed>();
    for start in (0..m).step_by(CHUNK) {
        let tokens = CHUNK.min(m - start);
        let into = if start == 0 && begin == Begin::Here { Into::Set } else { Into::Add };
        packed.x.ensure(k.next_multiple_of(PANEL) * tokens);
        pack::<PANEL>(pool, &x[start * k..(start + tokens) * k], tokens, &mut packed.x);
        for (dy, dw) in dys.iter().zip(dws.iter_mut()) {
            let n = dy.len() / m;
            packed.dy.ensure(n.next_multiple_of(R) * tokens);
            pack::<R>(pool, &dy[start * n..(start + tokens) * n], tokens, &mut packed.dy);
            packed.product::<R, C>(pool, tokens, (n, k), dw, into);
        }
    }
}

/// `rows` rows to panels of `W` columns: `[columns / W][rows][W]`. What is beyond the last column is not read later, except as a factor
/// of outputs that nobody keeps.
fn pack<const W: usize>(pool: &Pool, from: &[f32], rows: usize, to: &mut [f32]) {
    let width = from.len() / rows;
    let panels = width.div_ceil(W);
    pool.split_rows([(&mut to[..panels * rows * W], rows * W)], &|range, [to]| {
        for (panel, to) in range.zip(to.chunks_exact_mut(rows * W)) {
            let column = panel * W;
            let count = W.min(width - column);
            for (from, to) in from.chunks_exact(width).zip(to.as_chunks_mut::<W>().0) {
                match from[column..].first_chunk::<W>() {
                    Some(whole) => *to = *whole,
                    None => to[..count].copy_from_slice(&from[column..]),
                }
            }
        }
    });
}

impl Packed {
    /// One chunk of tokens; threads split the tiles, those of the same inputs one after the other.
    fn product<const R: usize, const C: usize>(
        &self,
        pool: &Pool,
        tokens: usize,
        (n, k): (usize, usize),
        dw: &mut [f32],
        into: Into,
    ) {
        let out = Shards::new(dw);
        let blocks = n.div_ceil(R);
        pool.split(k.div_ceil(C) * blocks, &|tiles| {
            for index in tiles {
                let (panel, block) = (index / blocks, index % blocks);
                let (row, column) = (block * R, panel * C);
                let (rows, columns) = (R.min(n - row), C.min(k - column));
                let a = &self.dy[block * tokens * R..][..tokens * R];
                let b = &self.x[column * tokens..columns.next_multiple_of(PANEL) * tokens + column * tokens];
                let b_panel = tokens * PANEL;
                let product = Product { a, a_row: 1, a_step: R, b, b_step: PANEL, b_panel, steps: tokens };
                // SAFETY: rows `row..row + rows` and columns `column..column + columns` are inside of `dw`, and each is of one tile only.
                let out = Out { at: out.at(row * k + column), row: k };
                unsafe { tile::<R, C>(pool.isa(), &product, (rows, columns), out, into) };
            }
        });
    }
}

/// # Safety
/// `rows` rows of `columns` values may be read and written at `out`, and nobody else does.
unsafe fn tile<const R: usize, const C: usize>(
    isa: Isa,
    product: &Product<'_>,
    (rows, columns): (usize, usize),
    out: Out,
    into: Into,
) {
    if columns.is_multiple_of(8) {
        // SAFETY: promised.
        return unsafe { product.run_at(isa, (rows, columns), out, into) };
    }
    let mut sums = [[0f32; C]; R];
    let whole = (rows, columns.next_multiple_of(PANEL));
    product.run(isa, whole, sums.as_flattened_mut(), C, Into::Set);
    for (r, sums) in sums.iter().enumerate().take(rows) {
        // SAFETY: promised; the slice lives for this row only.
        let out = unsafe { std::slice::from_raw_parts_mut(out.at.add(r * out.row), columns) };
        if into == Into::Add {
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        } else {
            out.copy_from_slice(&sums[..columns]);
        }
    }
}

/// `db[n] = sum over the tokens of dY[token][n]`: the gradient of a bias, in chunks of 256 tokens as the weights'.
///
/// # Panics
/// When the lengths do not fit.
pub fn bias_gradient(pool: &Pool, dy: &[f32], db: &mut [f32]) {
    let n = db.len();
    assert!(n > 0 && dy.len().is_multiple_of(n), "bias_gradient: {} values for {n}", dy.len());
    sum_columns(pool, dy.len() / n, db, &|row, columns, acc| {
        for (acc, dy) in acc.iter_mut().zip(&dy[row * n..][columns]) {
            *acc += dy;
        }
    });
}

/// Adds some columns of a row to their sums.
type AddRow<'a> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a;

/// Sums over rows of what `add(row, columns, acc)` adds to its columns: in chunks of 256 rows, chunk sums added in order.
pub(crate) fn sum_columns(pool: &Pool, rows: usize, out: &mut [f32], add: &AddRow<'_>) {
    /// Columns whose sums stay in the nearest cache.
    const COLUMNS: usize = 256;
    let n = out.len();
    let split = |range: Range<usize>, out: &mut [f32]| {
        let mut acc = [0f32; COLUMNS];
        for (at, out) in out.chunks_mut(COLUMNS).enumerate() {
            let columns = range.start + at * COLUMNS..range.start + at * COLUMNS + out.len();
            let acc = &mut acc[..out.len()];
            for start in (0..rows).step_by(CHUNK) {
                acc.fill(0.0);
                for row in start..rows.min(start + CHUNK) {
                    add(row, columns.clone(), acc);
                }
                for (out, acc) in out.iter_mut().zip(acc.iter()) {
                    *out = if start == 0 { *acc } else { *out + *acc };
                }
            }
        }
    };
    if n * rows < crate::pool::SMALL {
        split(0..n, out);
    } else {
        pool.split_rows([(out, 1)], &|range, [out]| split(range, out));
    }
}
