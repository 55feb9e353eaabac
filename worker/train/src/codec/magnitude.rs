//! The largest of many values, by its bits.

/// The bits of infinity; those of what is not a number are larger.
pub(super) const INFINITE: u32 = 0x7f80_0000;

/// The bits of the largest magnitude: they are ordered as magnitudes are. Without a branch per value, so that it is quick.
pub(super) fn largest_bits(values: &[f32]) -> u32 {
    // Signed, because all machines compare those quickly.
    let most = values.iter().fold(0, |most: i32, v| most.max((v.to_bits() & 0x7fff_ffff).cast_signed()));
    most.cast_unsigned()
}
