//! Numbers of the blocks of GGUF files. Layouts are those of ggml's `ggml-common.h`, and what stands for which value is that of its `ggml-quants.c`.

/// 4-bit value `i` of 32 in 16 bytes: the first half lies in their lower bits.
pub(crate) fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

/// The 5 bits of value `i` of a block of Q5_0 or Q5_1, behind its scale and minimum: `upper [4], lower [16]`.
pub(crate) fn q5_value(bytes: &[u8], i: usize) -> u8 {
    nibble(&bytes[4..], i) | (bytes[i / 8] >> (i % 8) & 1) << 4
}

/// What the 4 bits of IQ4_NL and IQ4_XS stand for: `kvalues_iq4nl`.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Scale and minimum of sub-block `u` of a block of Q4_K or Q5_K: 6 bits each in 12 bytes.
pub(crate) fn q4_k_scale(packed: &[u8], u: usize) -> (u8, u8) {
    if u < 4 {
        (packed[u] & 63, packed[u + 4] & 63)
    } else {
        let scale = (packed[u + 4] & 15) | (packed[u - 4] >> 6 << 4);
        let min = (packed[u + 4] >> 4) | (packed[u] >> 6 << 4);
        (scale, min)
    }
}

/// Value `i` of 256 of 4 bits in 128 bytes: 64 values share 32 bytes.
fn shared_nibble(bytes: &[u8], i: usize) -> u8 {
    let byte = bytes[i / 64 * 32 + i % 32];
    // Vectors have no shift of bytes by a number that is not known.
    if (i / 32).is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

/// The 2 bits of value `i` of 256 in 64 bytes: 128 values share 32 bytes.
fn shared_two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

/// The 4 bits of value `i` of a Q4_K block: `d, dmin, scales [12], qs [128]`.
pub(crate) fn q4_k_value(block: &[u8], i: usize) -> u8 {
    shared_nibble(&block[16..], i)
}

/// The 5 bits of value `i` of a Q5_K block: `d, dmin, scales [12], qh [32], qs [128]`.
pub(crate) fn q5_k_value(block: &[u8], i: usize) -> u8 {
    shared_nibble(&block[48..], i) | (block[16 + i % 32] >> (i / 32) & 1) << 4
}

/// The 6 bits of value `i` of a Q6_K block: of 128 values, four quarters of 32 share bytes.
pub(crate) fn q6_k_value(block: &[u8], i: usize) -> u8 {
    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let low = block[part * 64 + (quarter % 2) * 32 + l] >> (quarter / 2 * 4) & 15;
    low | shared_two_bits(&block[128..], i) << 4
}

/// The 2 bits of value `i` of a Q2_K block: `scales [16], qs [64], d, dmin`; a scale has 4 bits, and above them a minimum.
pub(crate) fn q2_k_value(block: &[u8], i: usize) -> u8 {
    shared_two_bits(&block[16..], i)
}

/// Value `i` of a Q3_K block plus 4, which has 3 bits: `hmask [32], qs [64], scales [12], d`.
pub(crate) fn q3_k_value(block: &[u8], i: usize) -> u8 {
    shared_two_bits(&block[32..], i) | (block[i % 32] >> (i / 32) & 1) << 2
}

/// Scale of the sixteen values from `16 s` on of a Q3_K block: 6 bits around 32.
pub(crate) fn q3_k_scale(block: &[u8], s: usize) -> i8 {
    let low = block[96 + s % 8] >> (s / 8 * 4) & 15;
    (low | (block[104 + s % 4] >> (s / 4 * 2) & 3) << 4).cast_signed() - 32
}

/// Scale of sub-block `u` of an IQ4_XS block, 6 bits around 32: `d, upper bits of scales u16, lower ones [4], qs [8][16]`.
pub(crate) fn iq4_xs_scale(block: &[u8], u: usize) -> i8 {
    let low = block[4 + u / 2] >> (u % 2 * 4) & 15;
    (low | (block[2 + u / 4] >> (u % 4 * 2) & 3) << 4).cast_signed() - 32
}
