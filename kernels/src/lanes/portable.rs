//! Eight lanes as arrays, for machines without vectors that we know, and for tests.

use std::array::from_fn;
use std::ops::Range;

use half::{bf16, f16};

use super::{Lanes, SoftmaxLanes, WeightLanes};
use crate::math::{exp_lane, tree_8};

const WIDTH: usize = 8;

/// Any machine has these.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    /// # Safety
    /// None is needed: the others have such a function.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self
    }
}

impl Lanes for Portable {
    const WIDTH: usize = WIDTH;
    type Floats = [f32; WIDTH];

    #[inline(always)]
    fn zero(self) -> [f32; WIDTH] {
        [0.0; WIDTH]
    }

    #[inline(always)]
    fn all(self, x: f32) -> [f32; WIDTH] {
        [x; WIDTH]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; WIDTH] {
        // SAFETY: promised.
        unsafe { from.cast::<[f32; WIDTH]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: [f32; WIDTH]) {
        // SAFETY: promised.
        unsafe { to.cast::<[f32; WIDTH]>().write_unaligned(x) }
    }

    #[inline(always)]
    fn add(self, a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; WIDTH], b: [f32; WIDTH], c: [f32; WIDTH]) -> [f32; WIDTH] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}

/// The products of four bytes, the first ones unsigned or signed as `value` reads them, with four signed ones.
#[inline(always)]
fn dot(weights: i32, q: i32, value: impl Fn(u8) -> i32) -> i32 {
    let (weights, q) = (weights.to_le_bytes(), q.to_le_bytes());
    weights.iter().zip(q).map(|(weight, q)| value(*weight) * i32::from(q.cast_signed())).sum()
}

impl WeightLanes for Portable {
    type Integers = [i32; WIDTH];

    #[inline(always)]
    unsafe fn f16(self, from: *const u8) -> [f32; WIDTH] {
        // SAFETY: promised.
        let bytes = unsafe { from.cast::<[[u8; 2]; WIDTH]>().read_unaligned() };
        bytes.map(|bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn bf16(self, from: *const u8) -> [f32; WIDTH] {
        // SAFETY: promised.
        let bytes = unsafe { from.cast::<[[u8; 2]; WIDTH]>().read_unaligned() };
        bytes.map(|bytes| bf16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn unsigned(self, from: *const u8) -> [i32; WIDTH] {
        // SAFETY: promised.
        unsafe { from.cast::<[u8; WIDTH]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn signed(self, from: *const u8) -> [i32; WIDTH] {
        // SAFETY: promised.
        unsafe { from.cast::<[i8; WIDTH]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> [i32; WIDTH] {
        // SAFETY: promised.
        unsafe { from.cast::<[[u8; 4]; WIDTH]>().read_unaligned() }.map(i32::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn four(self, from: *const i8) -> [i32; WIDTH] {
        // SAFETY: promised.
        [i32::from_le_bytes(unsafe { from.cast::<[u8; 4]>().read_unaligned() }); WIDTH]
    }

    #[inline(always)]
    fn all_integers(self, x: i32) -> [i32; WIDTH] {
        [x; WIDTH]
    }

    #[inline(always)]
    fn add_integers(self, a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul_integers(self, a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn to_floats(self, x: [i32; WIDTH]) -> [f32; WIDTH] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn fused_sub(self, a: [f32; WIDTH], b: [f32; WIDTH], c: [f32; WIDTH]) -> [f32; WIDTH] {
        from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn low(self, bytes: [i32; WIDTH]) -> [i32; WIDTH] {
        bytes.map(|bytes| bytes & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn high(self, bytes: [i32; WIDTH]) -> [i32; WIDTH] {
        bytes.map(|bytes| bytes >> 4 & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn moved(self, bytes: [i32; WIDTH], left: i32, mask: u8) -> [i32; WIDTH] {
        let mask = i32::from_le_bytes([mask; 4]);
        bytes.map(|bytes| if left < 0 { bytes >> -left } else { bytes << left } & mask)
    }

    #[inline(always)]
    fn or(self, a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn open(self, sum: [i32; WIDTH]) -> [i32; WIDTH] {
        sum
    }

    #[inline(always)]
    fn add_products(self, partial: [i32; WIDTH], weights: [i32; WIDTH], q: [i32; WIDTH]) -> [i32; WIDTH] {
        from_fn(|i| partial[i] + dot(weights[i], q[i], i32::from))
    }

    #[inline(always)]
    fn add_partial(self, a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        self.add_integers(a, b)
    }

    #[inline(always)]
    fn close(self, _: [i32; WIDTH], partial: [i32; WIDTH]) -> [i32; WIDTH] {
        partial
    }

    #[inline(always)]
    fn open_signed(self, _: i32) -> [i32; WIDTH] {
        [0; WIDTH]
    }

    #[inline(always)]
    fn signed_weights(self, bytes: [i32; WIDTH]) -> [i32; WIDTH] {
        bytes
    }

    #[inline(always)]
    fn chosen_weights(self, values: &[i8; 16], bytes: [i32; WIDTH]) -> [i32; WIDTH] {
        let value = |byte: u8| values[usize::from(byte % 16)].cast_unsigned();
        bytes.map(|bytes| i32::from_le_bytes(bytes.to_le_bytes().map(value)))
    }

    #[inline(always)]
    fn add_signed(self, sum: [i32; WIDTH], weights: [i32; WIDTH], q: [i32; WIDTH]) -> [i32; WIDTH] {
        from_fn(|i| sum[i] + dot(weights[i], q[i], |weight| i32::from(weight.cast_signed())))
    }
}

impl SoftmaxLanes for Portable {
    #[inline(always)]
    fn exp(self, x: [f32; WIDTH]) -> [f32; WIDTH] {
        x.map(exp_lane)
    }

    #[inline(always)]
    fn max(self, a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn largest(self, x: [f32; WIDTH]) -> f32 {
        tree_8(&x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn sum(self, x: [f32; WIDTH]) -> f32 {
        tree_8(&x, |a, b| a + b)
    }

    #[inline(always)]
    fn seen(self, x: [f32; WIDTH], first: usize, seen: &Range<usize>) -> [f32; WIDTH] {
        from_fn(|i| if seen.contains(&(first + i)) { x[i] } else { f32::NEG_INFINITY })
    }
}
