//! Many rows against f32 weights: a chunk of two panels stays in the nearest cache while the rows pass.

use std::ops::Range;

use super::tile::{CHUNK, Rows};
use crate::isa::Isa;
use crate::matrix::{Matrix, PANEL};
use crate::tile::{Into, Out, Product};

/// Columns of two panels.
const COLUMNS: usize = 2 * PANEL;
/// Inputs of a group of rows, which stay in the second cache while the panels pass: 256 KiB.
const GROUP_VALUES: usize = 1 << 16;
/// Most and least rows of a group.
const GROUP_ROWS: [usize; 2] = [48, 256];

/// Room for the sums of a group.
type Sums = [[f32; COLUMNS]; GROUP_ROWS[1]];

/// All rows against some panels.
pub(super) fn panel_range(isa: Isa, w: &Matrix, rows: &Rows<'_>, panels: Range<usize>) {
    let groups = rows.m.div_ceil((GROUP_VALUES / w.k().max(1)).clamp(GROUP_ROWS[0], GROUP_ROWS[1]));
    let mut buffer = [[0f32; COLUMNS]; GROUP_ROWS[1]];
    for group in 0..groups {
        let group = rows.m * group / groups..rows.m * (group + 1) / groups;
        for panel in panels.clone().step_by(2) {
            some_panels(isa, w, rows, &group, panel..panels.end.min(panel + 2), &mut buffer);
        }
    }
}

/// Some rows against one or two panels.
fn some_panels(
    isa: Isa,
    w: &Matrix,
    rows: &Rows<'_>,
    group: &Range<usize>,
    panels: Range<usize>,
    buffer: &mut Sums,
) {
    let (n, first) = (w.n(), panels.start * PANEL);
    let columns = n.min(panels.end * PANEL) - first;
    let part = Part { w, x: &rows.x[group.start * w.k()..group.end * w.k()], rows: group.len(), panels };
    let out = rows.out.at(group.start * n + first);
    if columns.is_multiple_of(8) && (!rows.add || w.k() <= CHUNK) {
        // SAFETY: these rows and columns are inside of the output, and each column is written by one thread only.
        return unsafe { part.sums(isa, columns, Out { at: out, row: n }, rows.add) };
    }
    let to = Out { at: buffer.as_mut_ptr().cast(), row: COLUMNS };
    // SAFETY: the buffer has as many rows as a group at most, and columns as two panels.
    unsafe { part.sums(isa, part.panels.len() * PANEL, to, false) };
    for (r, sums) in buffer.iter().enumerate().take(group.len()) {
        // SAFETY: as above; the slice lives for this row only.
        let out = unsafe { std::slice::from_raw_parts_mut(out.wrapping_add(r * n), columns) };
        if rows.add {
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        } else {
            out.copy_from_slice(&sums[..columns]);
        }
    }
}

/// Some rows of inputs, and one or two panels.
struct Part<'a> {
    w: &'a Matrix,
    /// `[rows][k]`.
    x: &'a [f32],
    rows: usize,
    panels: Range<usize>,
}

impl Part<'_> {
    /// # Safety
    /// As many rows of `columns` values may be read and written at `out`, and nobody else does.
    unsafe fn sums(&self, isa: Isa, columns: usize, out: Out, add: bool) {
        let k = self.w.k();
        let b = &self.w.values()[self.panels.start * k * PANEL..self.panels.end * k * PANEL];
        for start in (0..k).step_by(CHUNK) {
            let (a, b) = (&self.x[start..], &b[start * PANEL..]);
            let steps = CHUNK.min(k - start);
            let product = Product { a, a_row: k, a_step: 1, b, b_step: PANEL, b_panel: k * PANEL, steps };
            let into = if start > 0 || add { Into::Add } else { Into::Set };
            // SAFETY: promised.
            unsafe { product.run_at(isa, (self.rows, columns), out, into) };
        }
    }
}
