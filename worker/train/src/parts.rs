//! Vectors cut in chunks of tensors, which threads share.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use dunlin_kernels::Pool;

/// A tensor of the flat parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRange {
    /// Its place in the vector of parameters.
    pub range: Range<usize>,
    /// Weight decay pulls it (matrices, not norms and biases).
    pub decay: bool,
}

/// Values of a chunk, except the last of a tensor. Sums over a tensor are sums of its chunks', so this number is a part of the arithmetic.
pub(crate) const CHUNK: usize = 1 << 14;

/// Chunks in order: which tensor, and where.
pub(crate) type Chunks = Vec<(usize, Range<usize>)>;

/// The chunks of `tensors`.
pub(crate) fn chunks(tensors: &[TensorRange]) -> Chunks {
    let of = |(index, tensor): (usize, &TensorRange)| {
        let Range { start, end } = tensor.range;
        (start..end).step_by(CHUNK).map(move |at| (index, at..end.min(at + CHUNK)))
    };
    tensors.iter().enumerate().flat_map(of).collect()
}

/// The parts of `values` at `ranges`, which are ordered and disjoint.
pub(crate) fn split_mut<'a>(values: &'a mut [f32], ranges: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let (mut rest, mut begin) = (values, 0);
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (part, after) = rest.split_at_mut(range.end - begin);
        parts.push(&mut part[range.start - begin..]);
        (rest, begin) = (after, range.end);
    }
    parts
}

/// Calls `each` for every item of `work`, split among the threads of `pool`, and gives the items back in order.
pub(crate) fn in_parts<T: Send>(pool: &Pool, mut work: Vec<T>, each: impl Fn(&mut T) + Sync) -> Vec<T> {
    let size = work.len().div_ceil(pool.threads()).max(1);
    {
        let parts: Vec<Mutex<&mut [T]>> = work.chunks_mut(size).map(Mutex::new).collect();
        pool.run(&|thread| {
            if let Some(part) = parts.get(thread) {
                // Each part has one thread; the lock only tells the compiler so.
                part.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(&each);
            }
        });
    }
    work
}
