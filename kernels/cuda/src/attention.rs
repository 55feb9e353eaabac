//! Attention of query rows over KV pages of 16 positions, in segments of 256: `dunlin_kernels::attention`.
//!
//! A page of a layer is as on the host: `K [kv_heads][hd][16]`, then `V [kv_heads][16][hd]`. A table says for each sequence where its pages are, which may be
//! anywhere ([`crate::pages`]).

use dunlin_kernels::attention::HEAD_DIM_MAX;
use dunlin_kernels::{Heads, PAGE, SEGMENT};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::launch::{Grid, arguments};
use crate::linear::Scratch;
use crate::memory::{Slice, SliceMut};

/// Where keys and values of rows belong.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Of each row, the address of the page that has its position.
    pub pages: Slice<'a, u64>,
    /// Of each row.
    pub positions: Slice<'a, u32>,
}

/// Puts keys and values of rows into their pages.
///
/// # Safety
/// The addresses are those of pages for such heads, which are there until this is done and belong to nobody else.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths do not fit.
pub unsafe fn write_kv(
    gpu: &Gpu,
    k: Slice<'_, f32>,
    v: Slice<'_, f32>,
    places: &Places<'_>,
    heads: &Heads,
) -> Result<(), GpuError> {
    let (m, width) = (places.positions.len(), heads.kv_heads * heads.head_dim);
    assert!(
        k.len() == m * width && v.len() == k.len() && places.pages.len() == m,
        "write_kv: {} and {} values for {m} rows of {width}",
        k.len(),
        v.len()
    );
    let arguments = arguments![k, v, places.pages, places.positions, heads.kv_heads, heads.head_dim];
    // SAFETY: the arguments are those of the kernel, with m rows; the pages are promised.
    unsafe { gpu.launch("write_kv", Grid(m, 1, 1), 128, arguments) }
}

/// What each row attends to.
#[derive(Clone, Copy, Debug)]
pub struct SeenPages<'a> {
    /// `[sequence][pages_max]`, the addresses of the pages of each sequence from position 0 on. Those that no row sees may be anything.
    pub tables: Slice<'a, u64>,
    /// Pages of a sequence in the tables.
    pub pages_max: usize,
    /// Of each row, the number of its table.
    pub sequences: Slice<'a, u32>,
    /// Of each row, its position, which is the last that it sees.
    pub positions: Slice<'a, u32>,
    /// Of each row, the first position that it sees: 0 but for rows with a window.
    pub from: Slice<'a, u32>,
    /// 1, or the most segments that a row sees: then segments are computed side by side. See [`segments`].
    pub splits: usize,
}

/// How many segments a row sees. It is computed faster in splits when there are few rows and many segments.
#[must_use]
pub fn segments(from: usize, position: usize) -> usize {
    (position + 1).div_ceil(SEGMENT) - from / SEGMENT
}

/// `out[row] = softmax(q K^T * scale) V` for every row and head; `q` and `out` are `rows * heads * hd`. The bits do not depend on the splits.
///
/// # Safety
/// The tables have the addresses of pages for such heads, for all positions that a row sees, and they are there until this is done.
///
/// # Errors
/// When an operation before failed, or there is too little memory.
///
/// # Panics
/// When the lengths do not fit.
pub unsafe fn attention(
    gpu: &Gpu,
    scratch: &mut Scratch,
    q: Slice<'_, f32>,
    seen: &SeenPages<'_>,
    shape: &Heads,
    mut out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    check(q, seen, shape, &out);
    let Heads { heads, kv_heads, head_dim, scale } = *shape;
    let SeenPages { tables, pages_max, sequences, positions, from, splits } = *seen;
    let m = positions.len();
    // A part has its maximum and its sum besides its values.
    let parts = if splits > 1 { m * heads * splits * (head_dim + 2) } else { 0 };
    scratch.parts.ensure(parts)?;
    let arguments = arguments![
        q,
        tables,
        pages_max,
        sequences,
        positions,
        from,
        heads,
        kv_heads,
        head_dim,
        scale,
        splits,
        scratch.parts.all_mut(),
        out.reborrow(),
    ];
    // SAFETY: the arguments are those of the kernel. There is room for the outputs of all rows and heads, and for as many parts.
    unsafe { gpu.launch("attention", Grid(heads, m, splits), 256, arguments)? };
    if splits == 1 {
        return Ok(());
    }
    let arguments = arguments![scratch.parts.all(), positions, from, heads, head_dim, splits, out];
    // SAFETY: as above.
    unsafe { gpu.launch("attention_merge", Grid(heads, m, 1), head_dim, arguments) }
}

fn check(q: Slice<'_, f32>, seen: &SeenPages<'_>, shape: &Heads, out: &SliceMut<'_, f32>) {
    let Heads { heads, kv_heads, head_dim, .. } = *shape;
    let m = seen.positions.len();
    assert!(head_dim.is_multiple_of(8) && head_dim <= HEAD_DIM_MAX, "attention: head dimension {head_dim}");
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention: {heads} heads, {kv_heads} KV heads");
    assert!(
        q.len() == m * heads * head_dim && out.len() == q.len(),
        "attention: {m} rows, {} values",
        q.len()
    );
    assert!(
        seen.from.len() == m && seen.sequences.len() == m && seen.tables.len().is_multiple_of(seen.pages_max),
        "attention: {m} rows, tables of {} pages",
        seen.pages_max
    );
    assert!(
        seen.splits > 0 && seen.splits <= seen.pages_max.div_ceil(SEGMENT / PAGE).max(1),
        "attention: {} splits",
        seen.splits
    );
}
