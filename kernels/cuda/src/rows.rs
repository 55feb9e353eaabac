//! What a decoder block needs besides products and attention: the functions of the same names in `dunlin_kernels`.

use dunlin_kernels::{RopeLayout, RopeTable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::launch::{Grid, arguments};
use crate::memory::{DeviceBuffer, Slice, SliceMut};

/// Threads of a block.
const THREADS: usize = 256;

/// `out = x / sqrt(mean(x^2) + eps) * w` for each of `m` rows of `w.len()` values.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    w: Slice<'_, f32>,
    eps: f32,
    m: usize,
    out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    let n = w.len();
    assert!(
        x.len() == m * n && out.len() == m * n,
        "rms_norm: {} and {} values for {m} rows of {n}",
        x.len(),
        out.len()
    );
    let arguments = arguments![x, w, eps, m, n, out];
    // SAFETY: the arguments are those of the kernel, with m rows of n values.
    unsafe { gpu.launch("rms_norm", Grid(m.div_ceil(8), 1, 1), THREADS, arguments) }
}

/// A [`RopeTable`] on the device.
pub struct DeviceRope {
    /// `[position][pair]` of cosine and sine.
    values: DeviceBuffer<f32>,
    half: usize,
}

impl DeviceRope {
    /// Copies a table to the device.
    ///
    /// # Errors
    /// When there is too little memory, or an operation before failed.
    pub fn upload(gpu: &Gpu, table: &RopeTable) -> Result<Self, GpuError> {
        let values: Vec<f32> = table.values().iter().flat_map(|(cos, sin)| [*cos, *sin]).collect();
        let half = table.values().len() / table.positions_max().max(1);
        Ok(Self { values: gpu.upload(&values)?, half })
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// Rotates all heads of row `i` of `x` to `positions[i]`, each of which is in the table.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When `x` has no equal rows of whole heads.
pub fn rope(
    gpu: &Gpu,
    table: &DeviceRope,
    layout: RopeLayout,
    x: SliceMut<'_, f32>,
    positions: Slice<'_, u32>,
) -> Result<(), GpuError> {
    let (m, head) = (positions.len(), table.half * 2);
    assert!(m > 0 && x.len().is_multiple_of(m * head), "rope: {} values in {m} rows", x.len());
    let heads = x.len() / (m * head);
    let layout: usize = match layout {
        RopeLayout::Interleaved => 0,
        RopeLayout::Halves => 1,
    };
    let arguments = arguments![x, table.values.all(), positions, heads, table.half, layout];
    // SAFETY: the arguments are those of the kernel, with so many heads in each row.
    unsafe { gpu.launch("rope", Grid(m, 1, 1), 128, arguments) }
}

/// `out = silu(gate) * up`.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(
    gpu: &Gpu,
    gate: Slice<'_, f32>,
    up: Slice<'_, f32>,
    out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    gated(gpu, "swiglu", gate, up, out)
}

/// `out = gelu(gate) * up`, with the approximation of GELU by tanh.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths differ.
pub fn geglu(
    gpu: &Gpu,
    gate: Slice<'_, f32>,
    up: Slice<'_, f32>,
    out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    gated(gpu, "geglu", gate, up, out)
}

fn gated(
    gpu: &Gpu,
    kernel: &'static str,
    gate: Slice<'_, f32>,
    up: Slice<'_, f32>,
    out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    let count = out.len();
    assert!(gate.len() == count && up.len() == count, "{kernel}: lengths differ");
    // SAFETY: the arguments are those of the kernel, with as many values each.
    unsafe { gpu.launch(kernel, for_each(count), THREADS, arguments![gate, up, out, count]) }
}

/// A thread for each value.
fn for_each(count: usize) -> Grid {
    Grid(count.div_ceil(THREADS), 1, 1)
}

/// `y += x`.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths differ.
pub fn add(gpu: &Gpu, y: SliceMut<'_, f32>, x: Slice<'_, f32>) -> Result<(), GpuError> {
    let count = y.len();
    assert_eq!(count, x.len(), "add: lengths differ");
    // SAFETY: the arguments are those of the kernel, with as many values each.
    unsafe { gpu.launch("add", for_each(count), THREADS, arguments![y, x, count]) }
}

/// Adds `bias` to every row of `y`.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When `y` is not whole rows.
pub fn add_bias(gpu: &Gpu, y: SliceMut<'_, f32>, bias: Slice<'_, f32>) -> Result<(), GpuError> {
    let (count, n) = (y.len(), bias.len());
    assert!(count.is_multiple_of(n), "add_bias: {count} values in rows of {n}");
    // SAFETY: the arguments are those of the kernel, with whole rows of n values.
    unsafe { gpu.launch("add_bias", for_each(count), THREADS, arguments![y, bias, count, n]) }
}

/// `x *= by`.
///
/// # Errors
/// When an operation before failed.
pub fn scale(gpu: &Gpu, x: SliceMut<'_, f32>, by: f32) -> Result<(), GpuError> {
    let count = x.len();
    // SAFETY: the arguments are those of the kernel.
    unsafe { gpu.launch("scale", for_each(count), THREADS, arguments![x, by, count]) }
}

/// Row `i` of `out` becomes row `rows[i]` of `x`, each of which exists; they have `n` values.
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When the lengths do not fit.
pub fn gather_rows(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    rows: Slice<'_, u32>,
    n: usize,
    out: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    assert!(
        x.len().is_multiple_of(n) && out.len() == rows.len() * n,
        "gather_rows: {} and {} values for {} rows of {n}",
        x.len(),
        out.len(),
        rows.len()
    );
    let grid = Grid(n.div_ceil(THREADS), rows.len(), 1);
    // SAFETY: the arguments are those of the kernel, with as many rows of n values.
    unsafe { gpu.launch("gather_rows", grid, THREADS, arguments![x, rows, n, out]) }
}

/// Looks for rows of `n` values that are not all finite, and makes `flaw` the least of what it is and `code * 65536 + row` of each: the first code
/// and its first row are left, when `flaw` was [`NO_FLAW`].
///
/// # Errors
/// When an operation before failed.
///
/// # Panics
/// When `x` is not whole rows, or there are more than 65,536 rows or codes.
pub fn find_not_finite(
    gpu: &Gpu,
    x: Slice<'_, f32>,
    n: usize,
    code: u32,
    flaw: SliceMut<'_, u32>,
) -> Result<(), GpuError> {
    assert!(
        x.len().is_multiple_of(n) && flaw.len() == 1,
        "find_not_finite: {} values in rows of {n}",
        x.len()
    );
    let m = x.len() / n;
    assert!(m <= ROWS_OF_FLAWS as usize && code < ROWS_OF_FLAWS, "find_not_finite: {m} rows, code {code}");
    // SAFETY: the arguments are those of the kernel, with m rows of n values.
    unsafe { gpu.launch("find_not_finite", Grid(m, 1, 1), THREADS, arguments![x, n, code, flaw]) }
}

/// What a flaw is before anything was found.
pub const NO_FLAW: u32 = u32::MAX;
/// A flaw is a code times this, plus a row.
const ROWS_OF_FLAWS: u32 = 65_536;

/// The code and the row of a flaw that was found by [`find_not_finite`].
#[must_use]
pub fn flaw(found: u32) -> Option<(u32, usize)> {
    (found != NO_FLAW).then_some((found / ROWS_OF_FLAWS, (found % ROWS_OF_FLAWS) as usize))
}
