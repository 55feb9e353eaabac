//! Registers as the kernels written by hand see them: one algorithm over [`Lanes`], compiled for each instruction set.
//!
//! A value of [`Portable`], `Avx2` or `Avx512` says that this machine has the instructions; that is why its methods are safe but for those that
//! read or write memory. All of them are inlined, so an algorithm over lanes is inlined as well, `#[inline(always)]`, into a function that is compiled for the
//! instructions: one made by [`compiled`].
//!
//! Kernels that are plain loops over slices need none of this: the compiler finds their lanes ([`crate::isa`], `vectorised`).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// f32 values side by side.
pub(crate) trait Lanes: Copy {
    /// How many.
    const WIDTH: usize;
    /// That many values.
    type Floats: Copy;

    fn zero(self) -> Self::Floats;

    /// The same in every lane.
    fn all(self, x: f32) -> Self::Floats;

    /// # Safety
    /// `WIDTH` values are readable at `from`.
    unsafe fn load(self, from: *const f32) -> Self::Floats;

    /// # Safety
    /// `WIDTH` values are writable at `to`.
    unsafe fn store(self, to: *mut f32, x: Self::Floats);

    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

/// Lanes that read packed weights, and multiply them with 8-bit activations.
pub(crate) trait WeightLanes: Lanes {
    /// A 32-bit integer in every lane, or four bytes.
    type Integers: Copy;

    /// # Safety
    /// `WIDTH` f16 values are readable at `from`.
    unsafe fn f16(self, from: *const u8) -> Self::Floats;

    /// # Safety
    /// `WIDTH` bf16 values are readable at `from`.
    unsafe fn bf16(self, from: *const u8) -> Self::Floats;

    /// Unsigned bytes as integers.
    ///
    /// # Safety
    /// `WIDTH` bytes are readable at `from`.
    unsafe fn unsigned(self, from: *const u8) -> Self::Integers;

    /// Signed bytes as integers.
    ///
    /// # Safety
    /// `WIDTH` bytes are readable at `from`.
    unsafe fn signed(self, from: *const u8) -> Self::Integers;

    /// Four bytes for every lane.
    ///
    /// # Safety
    /// `4 * WIDTH` bytes are readable at `from`.
    unsafe fn bytes(self, from: *const u8) -> Self::Integers;

    /// The same four bytes in every lane.
    ///
    /// # Safety
    /// Four bytes are readable at `from`.
    unsafe fn four(self, from: *const i8) -> Self::Integers;

    /// The same in every lane.
    fn all_integers(self, x: i32) -> Self::Integers;

    fn add_integers(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    fn mul_integers(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    fn to_floats(self, x: Self::Integers) -> Self::Floats;

    /// `c - a * b`, rounded once.
    fn fused_sub(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The lower four bits of every byte.
    fn low(self, bytes: Self::Integers) -> Self::Integers;

    /// The upper four bits of every byte.
    fn high(self, bytes: Self::Integers) -> Self::Integers;

    /// Some bits of every byte moved to the left by `left`, or to the right if that is negative, as far as `mask` has them: they end inside of the byte.
    /// Fast if `left` is a constant for the compiler.
    fn moved(self, bytes: Self::Integers, left: i32, mask: u8) -> Self::Integers;

    fn or(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    /// Begins partial sums of products that are added to `sum` at last.
    fn open(self, sum: Self::Integers) -> Self::Integers;

    /// Adds four products of every lane, of unsigned `weights` with activations. Partial sums may have 16 bits: the count of these products times twice
    /// 127 and the largest weight is below 2^15.
    fn add_products(
        self,
        partial: Self::Integers,
        weights: Self::Integers,
        q: Self::Integers,
    ) -> Self::Integers;

    /// Adds partial sums to others.
    fn add_partial(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;

    /// `sum`, which they were opened with, and partial sums.
    fn close(self, sum: Self::Integers, partial: Self::Integers) -> Self::Integers;

    /// What sums of signed weights with activations begin with, that in all add up to `sum_of_q`.
    fn open_signed(self, sum_of_q: i32) -> Self::Integers;

    /// Signed bytes as [`Self::add_signed`] takes them.
    fn signed_weights(self, bytes: Self::Integers) -> Self::Integers;

    /// For every byte from 0 to 15 the value that it stands for, as [`Self::add_signed`] takes them.
    fn chosen_weights(self, values: &[i8; 16], bytes: Self::Integers) -> Self::Integers;

    /// Adds four products of every lane, of signed weights with activations from -127 to 127.
    fn add_signed(self, sum: Self::Integers, weights: Self::Integers, q: Self::Integers) -> Self::Integers;
}

/// Lanes that a softmax is computed in.
pub(crate) trait SoftmaxLanes: Lanes {
    /// [`crate::math::exp`], bit for bit.
    fn exp(self, x: Self::Floats) -> Self::Floats;

    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// The largest lane.
    fn largest(self, x: Self::Floats) -> f32;

    /// The lanes added as a tree of halves.
    fn sum(self, x: Self::Floats) -> f32;

    /// Lane `i` where `first + i` is in `seen`, and negative infinity elsewhere.
    fn seen(self, x: Self::Floats, first: usize, seen: &Range<usize>) -> Self::Floats;
}

/// Makes a function one that is compiled for the instructions of these lanes. It is called where the machine has them: a pool has an instruction set
/// only then.
macro_rules! compiled {
    (portable, $($function:tt)*) => { $($function)* };
    (avx2, $($function:tt)*) => { #[target_feature(enable = "avx2,fma,f16c")] $($function)* };
    (avx512, $($function:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        $($function)*
    };
}
pub(crate) use compiled;

/// Asks for the cache line at `at`, which is needed soon.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, for any address; every x86-64 machine has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
